"""Forwards host ports to container addresses."""
