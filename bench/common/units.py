"""Parses sizes and rates that people write."""

MIB = 1 << 20
MBIT = 1_000_000  # bits per second
"""Rates are in bits per second of Ethernet frames, as links are sold."""


def mib(count: float) -> int:
    return int(count * MIB)


def seconds_for(size: int, rate: float) -> float:
    """Seconds that `size` bytes of payload take at `rate` bits per second, without any headers."""
    return size * 8 / rate
