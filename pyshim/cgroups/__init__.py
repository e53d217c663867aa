"""What the kernel knows of a container's control group (cgroups(7)).

``locate`` finds the group's folders, ``v1`` and ``v2`` read them into the message that Stats
answers, each with one function, ``metrics``.
"""
