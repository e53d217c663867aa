"""What the kernel knows of a container's control group."""
