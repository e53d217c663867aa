"""The fork server: Python with everything imported, so that a service starts in milliseconds.

Anyone may kill it at any time; whoever needs it starts the next one.
"""
