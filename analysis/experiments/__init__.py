"""Data and figure of each experiment."""
