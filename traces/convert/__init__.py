"""Upstream weights to a checkpoint folder."""
