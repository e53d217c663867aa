"""Services that die at a point of the code that a test has chosen."""
