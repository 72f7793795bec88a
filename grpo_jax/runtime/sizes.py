"""Lengths that programs are compiled for: few, because each costs seconds to minutes."""


def bucket(length: int) -> int:
    """The next length that gets compiled: multiples of 16 up to 128, then four lengths for each doubling."""
    step = max(16, (1 << (length - 1).bit_length()) // 8)
    return -(-length // step) * step
