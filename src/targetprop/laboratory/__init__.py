"""Explicit passes: layers that run both ways, for targets at a finite nudge, beyond autograd."""
