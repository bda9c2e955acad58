"""Statistics and figures of the lens."""
