"""Drives an OCI runtime's command line, and performs a container's mounts."""
