"""What to run: the vocabulary, the config schema, and the shipped TOML files."""
