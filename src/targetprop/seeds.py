"""One seed from several numbers."""

from __future__ import annotations


def mixed(*numbers: int) -> int:
    """A seed from every number; a number's neighbours give unrelated seeds (splitmix64)."""
    seed = 0
    for number in numbers:
        seed = (seed + number + 0x9E3779B97F4A7C15) % 2**64
        seed = (seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        seed = (seed ^ (seed >> 27)) * 0x94D049BB133111EB % 2**64
        seed ^= seed >> 31
    return seed % 2**63
