"""The native monitor, and the Python end of its channel."""
