"""Which numbers a setting may have. The owner of a setting checks it where it is made, in one line."""

import math
import struct

LARGEST, SMALLEST = 3.4028234663852886e38, 1.1754943508222875e-38  # of float32; devices round smaller numbers to 0
WHOLE = 2**31 - 1  # the largest whole number that devices count with

Number = int | float


def check_range(
    name: str,
    value: Number,
    *,
    least: Number | None = None,
    above: Number | None = None,
    most: Number | None = None,
    below: Number | None = None,
    note: str = "",
) -> None:
    """Refuses a number that is not finite in float32, or not between these bounds.

    `least` and `most` are allowed themselves, `above` and `below` are not. `note` ends the rule in the message.
    """
    number, bounds = float32(value), {"at least": least, "above": above, "at most": most, "below": below}
    known = {word: float32(bound) for word, bound in bounds.items() if bound is not None}
    holds = abs(number) <= LARGEST  # NaN fails every comparison
    holds &= number >= known.get("at least", -LARGEST) and number <= known.get("at most", LARGEST)
    holds &= number > known.get("above", -math.inf) and number < known.get("below", math.inf)
    if not holds:
        rule = " and ".join(f"{word} {bound:,}" for word, bound in bounds.items() if bound is not None)
        ends = note if not note else f" {note}"
        rounded = f", which is {number} in float32" if abs(value) <= LARGEST and number != value else ""
        raise ValueError(f"{name} must be {rule or 'a finite number'}{ends}; got {value!r}{rounded}.")


def float32(value: Number) -> Number:
    """The number that devices compute with in place of this one: infinite if it is too large. Integers stay exact."""
    if isinstance(value, int) or math.isnan(value):
        return value
    if abs(value) > LARGEST:
        return math.copysign(math.inf, value)
    return 0.0 if abs(value) < SMALLEST else struct.unpack("f", struct.pack("f", value))[0]
