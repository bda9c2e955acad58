"""Running many cells in one forward, and their rows."""
