"""Runs as one interactive page: read, grouped by seed, drawn."""
