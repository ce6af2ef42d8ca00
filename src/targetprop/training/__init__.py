"""Configured, logged, checkpointed training runs."""
