"""Events to containerd."""
