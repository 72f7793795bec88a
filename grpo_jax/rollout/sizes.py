"""Which sizes are compiled, and where living rows go when there is room to save: decided on the host, in NumPy.

Every size is one of a few, because each is compiled once: rings of T, T/2, T/4 and T/8 positions, and rows in full, a
half or a quarter. Rings grow and rows move by one size at a time, so a run with one length of prompts has at most 12
programs that decode, 9 that grow a ring (18 with waiting prompts) and 8 that move rows together.
"""

from typing import NamedTuple

import numpy as np

RING_HALVINGS = 3
ROW_HALVINGS = 2
SHORTEST_RING = 64  # positions; halving again would save next to nothing
SHORTEST_PREFIX = 64


class Seating(NamedTuple):
    """Where rows go: new place p takes the prompt of `place_p[p]` of its shard, its row g row `row_pg[p, g]`."""

    place_p: np.ndarray
    row_pg: np.ndarray
    lives_pg: np.ndarray


def ring_lengths(max_tokens: int) -> list[int]:
    """Cache lengths from the shortest to `max_tokens`."""
    lengths = [max_tokens]
    while len(lengths) <= RING_HALVINGS and lengths[-1] > SHORTEST_RING:
        lengths.append(-(-lengths[-1] // 2))
    return lengths[::-1]


def prefix_length(length: int) -> int:
    """The length that the memory of prompts is padded to: a power of two."""
    return max(SHORTEST_PREFIX, 1 << (length - 1).bit_length())


def row_shapes(P: int, G: int, parts: int) -> list[tuple[int, int]]:
    """Places and rows of each, the fullest first; groups shrink before prompts do."""
    shapes = [(P, G)]
    for _ in range(ROW_HALVINGS):
        P, G = shapes[-1]
        if G % 2 == 0:
            shapes.append((P, G // 2))
        elif G == 1 and P % (2 * parts) == 0:
            shapes.append((P // 2, G))
    return shapes


def next_ring(rings: list[int], S: int, longest: int) -> int:
    """The ring for rows of which the longest has so many tokens and goes on: never a shorter one than S."""
    return next((length for length in rings if length >= S and length > longest), S)


def next_shape(shapes: list[tuple[int, int]], shape: tuple[int, int], live_PG: np.ndarray, parts: int):
    """The shape one smaller, if the living fit into it, else the present one."""
    smaller = shapes[shapes.index(shape) + 1 :][:1]
    fits = smaller and pieces(live_PG, smaller[0][1], parts) <= smaller[0][0] // parts
    return smaller[0] if fits else shape


def pieces(live_PG: np.ndarray, width: int, parts: int) -> int:
    """How many places of `width` rows the fullest shard needs."""
    needed_P = -(-live_PG.sum(axis=1) // width)
    return int(needed_P.reshape(parts, -1).sum(axis=1).max())


def seat(live_PG: np.ndarray, shape: tuple[int, int], parts: int) -> Seating:
    """The living of each prompt in as many places as they need; shards keep their own."""
    P, width = shape
    place_p, row_pg = np.zeros(P, np.int32), np.zeros((P, width), np.int32)
    lives_pg = np.zeros((P, width), bool)
    for shard, live in enumerate(np.split(live_PG, parts)):
        p = shard * (P // parts)
        for place, living in enumerate(live):
            rows = np.flatnonzero(living)
            for begin in range(0, len(rows), width):
                some = rows[begin : begin + width]
                place_p[p] = place
                row_pg[p, : len(some)] = some
                lives_pg[p, : len(some)] = True
                p += 1
    return Seating(place_p, row_pg, lives_pg)
