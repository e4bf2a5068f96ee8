"""One operation a file: the torch reference, and faster ways to the same numbers."""
