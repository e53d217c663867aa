"""The Task service: forked from the zygote when there is something to do."""
