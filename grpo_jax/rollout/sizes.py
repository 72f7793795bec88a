"""Which sizes the sampler compiles, and which rows are kept when fewer are enough: decided on the host, in NumPy.

Every size is one of a few, because each is compiled once: ring buffers of T, T/2, T/4 and T/8 positions, and all rows,
a half or a quarter. Buffers grow and rows shrink by one size at a time, so a run with one length of prompts has at most
12 programs that decode, 9 that grow a buffer (18 with waiting prompts) and 8 that compact rows.
"""

from typing import NamedTuple

import numpy as np

RING_HALVINGS = 3
ROW_HALVINGS = 2
SHORTEST_RING = 64  # positions; halving again would save next to nothing
SHORTEST_PREFIX = 64
FEWEST_ROWS = 64  # where ended rows are not read; fewer are multiplied no faster by a TPU, which waits for the weights


class Compaction(NamedTuple):
    """Where rows come from when active ones are moved together, within each shard of the prompts.

    New prompt p is old prompt `source_p[p]` of its shard, its row g is old row `row_pg[p, g]`; where `active_pg` is
    false the row is an inactive copy.
    """

    source_p: np.ndarray
    row_pg: np.ndarray
    active_pg: np.ndarray


def prompts_held(P: int, at_once: int | None, shards: int) -> int:
    """How many of P prompts are in memory at once, if `at_once` are asked for: as many on every shard."""
    return P if at_once is None else min(P, -(-at_once // shards) * shards)


def subgroups_at_once(at_once: int | None, spread: int, hosts: int) -> int | None:
    """How many subgroups each host holds at once, for `at_once` prompts whose groups are `spread` subgroups each."""
    return None if at_once is None else -(-at_once * spread // hosts)


def ring_lengths(max_tokens: int, block: int | None = None) -> list[int]:
    """Lengths of the responses' cache, from the shortest to `max_tokens`.

    A policy that reads no block of a ring buffer before a row uses it has one length, a multiple of such a block.
    """
    if block is not None:
        return [-(-max_tokens // block) * block]
    lengths = [max_tokens]
    while len(lengths) <= RING_HALVINGS and lengths[-1] > SHORTEST_RING:
        lengths.append(-(-lengths[-1] // 2))
    return lengths[::-1]


def prefix_length(length: int) -> int:
    """The length that the prompts' cache is padded to: a power of two."""
    return max(SHORTEST_PREFIX, 1 << (length - 1).bit_length())


def row_shapes(P: int, G: int, shards: int, fewest: int = 1) -> list[tuple[int, int]]:
    """Prompts and rows of each, the most rows first; groups shrink before prompts do. Halving ends where a shard would
    have less than the `fewest` rows.
    """
    shapes = [(P, G)]
    for _ in range(ROW_HALVINGS):
        P, G = shapes[-1]
        if P * G < 2 * fewest * shards:
            return shapes
        if G % 2 == 0:
            shapes.append((P, G // 2))
        elif G == 1 and P % (2 * shards) == 0:
            shapes.append((P // 2, G))
    return shapes


def next_ring(rings: list[int], S: int, longest: int) -> int:
    """The buffer for rows of which the longest active one has so many tokens: never a shorter one than S."""
    return next((length for length in rings if length >= S and length > longest), S)


def next_shape(
    shapes: list[tuple[int, int]], shape: tuple[int, int], active_PG: np.ndarray, shards: int
) -> tuple[int, int]:
    """The shape one smaller, if the active rows fit into it, else the present one."""
    smaller = shapes[shapes.index(shape) + 1 :][:1]
    fits = smaller and prompts_needed(active_PG, smaller[0][1], shards) <= smaller[0][0] // shards
    return smaller[0] if fits else shape


def prompts_needed(active_PG: np.ndarray, width: int, shards: int) -> int:
    """How many prompts of `width` rows the fullest shard needs for its active rows."""
    needed_P = -(-active_PG.sum(axis=1) // width)
    return int(needed_P.reshape(shards, -1).sum(axis=1).max())


def compact(active_PG: np.ndarray, shape: tuple[int, int], shards: int) -> Compaction:
    """The active rows of each prompt in as few prompts as they need; shards keep their own."""
    P, width = shape
    source_p, row_pg = np.zeros(P, np.int32), np.zeros((P, width), np.int32)
    active_pg = np.zeros((P, width), bool)
    for shard, active in enumerate(np.split(active_PG, shards)):
        p = shard * (P // shards)
        for source, active_G in enumerate(active):
            rows = np.flatnonzero(active_G)
            for begin in range(0, len(rows), width):
                some = rows[begin : begin + width]
                source_p[p] = source
                row_pg[p, : len(some)] = some
                active_pg[p, : len(some)] = True
                p += 1
    return Compaction(source_p, row_pg, active_pg)
