"""The init that runs as PID 1 in a container."""
