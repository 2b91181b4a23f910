"""Units that people write, and the numbers they mean."""

MIB = 1 << 20
MBIT = 1_000_000  # bits a second
"""Rates are in bits a second of Ethernet frames, as link rates are sold."""


def mib(count: float) -> int:
    return int(count * MIB)


def seconds_for(size: int, rate: float) -> float:
    """Seconds that `size` bytes of payload take at `rate` bits a second with no header at all."""
    return size * 8 / rate
