"""Clean/corrupted pairs: reading, validity, tokens, donors, selection."""
