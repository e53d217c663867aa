"""The per-container shim of containerd: a native monitor and a service that runs on demand."""

__version__ = "0.1.0"
