"""Which blocks of queries and keys the TPU's attention kernel works on, by the lengths and the width of a head."""

from itertools import product
from typing import NamedTuple

TILE = 128  # positions; the kernel's block sizes are multiples of it
MOST_QUERIES, MOST_KEYS = 1024, 2048  # in a block, for heads of up to 512 bytes
LEAST_STEP, MOST_STEP = 384, 640  # smaller steps rescale the sums too often, larger ones spill registers
MOST_SCORES = 512 * 1024  # of one step, for heads of up to 512 bytes
MOST_COPIES = 6  # of the gradient of the queries: the fused backward kernel writes one for each block of keys


class Blocks(NamedTuple):
    """Positions in a block of queries and in one of keys, and how many keys of a block are multiplied at once."""

    queries: int
    keys: int
    step: int

    def fused(self, S: int) -> bool:
        """Whether one kernel computes all gradients of S keys, not two of which each computes the scores again."""
        return S <= MOST_COPIES * self.keys


def choose_blocks(T: int, L: int, channels: int, itemsize: int = 2, softcap: bool = False) -> Blocks:
    """The best blocks for T queries, which see L positions before them, and themselves up to their own position.

    They have the smallest product of `cycles` and of the keys with their padding, which are copied and held, too.
    With a softcap the backward kernel holds scores twice, before and after it, so that blocks have half as many.
    """
    size = max(1, channels * itemsize // 512)  # wider heads take more memory
    queries = _sizes(TILE, T, MOST_QUERIES // size)
    keys = _sizes(padded(-(-(L + T) // MOST_COPIES), TILE), L + T, MOST_KEYS // size)
    steps = _sizes(min(LEAST_STEP, padded(L + T, TILE)), L + T, MOST_STEP)
    most_scores = MOST_SCORES // 2 if softcap else MOST_SCORES
    found = (
        Blocks(*sizes)
        for sizes in product(queries, keys, steps)
        if sizes[1] % sizes[2] == 0 and sizes[0] * sizes[2] * size <= most_scores
    )
    return min(found, key=lambda blocks: cycles(blocks, T, L, channels) * padded(L + T, blocks.keys))


def cycles(blocks: Blocks, T: int, L: int, channels: int) -> float:
    """An estimate of the cycles of a head, forward and backward: a least-squares fit to what a v5e executes.

    The fit is to the final bundles of kernels with 128 channels, from T = 512 to 3,072 (docs/kernels.md has the
    command). Other widths and v6e have other counts, and nearly the same order.
    """
    queries, keys, step = blocks
    scores, width = queries * keys, max(channels, TILE) / TILE
    pair = 1275 + (5.0 + 12.3 * width) * scores / 1024 + 0.134 * scores / step + 0.024 * keys
    copies = 0.47 * width * padded(T, queries) * padded(L + T, keys) / keys  # of the gradient, read to be summed
    return _visits(blocks, T, L) * pair + copies


def padded(length: int, size: int) -> int:
    """The length of whole blocks that hold so many positions."""
    return -(-length // size) * size


def _sizes(least: int, *most: int) -> range:
    """Multiples of a tile, no longer than what they divide."""
    longest = padded(min(most), TILE)
    return range(min(least, longest), longest + 1, TILE)


def _visits(blocks: Blocks, T: int, L: int) -> int:
    """How many pairs of blocks have a query that may attend to a key."""
    ends = range(blocks.queries, padded(T, blocks.queries) + 1, blocks.queries)
    return sum(-(-(L + min(end, T)) // blocks.keys) for end in ends)
