"""Which responses are computed together, and in which rows: decided on the host, from their lengths alone.

A row of S slots holds several short responses one after the other (`slots_PRS`); all of a prompt's rows attend to the
one copy of the prompt. Sizes are a few, because each is compiled once: a quarter, a half, three quarters or all of the
G rows, of a quarter, a half or all of T slots, but never under 64.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

SHARES = (4, 2, 1)  # of the longest row, in how many parts
FEWEST_SLOTS = 64
QUARTERS = (1, 2, 3, 4)  # of the rows


@dataclass(frozen=True)
class Part:
    """What one forward and backward pass computes: some prompts, some responses of each, and where they stand.

    `slots_PRS[p, r, s]` is which token stands in a slot, as g * T + t; G * T where there is none.
    """

    place_p: np.ndarray
    place_pg: np.ndarray
    slots_PRS: np.ndarray


def divide(length_PG: Int[np.ndarray, "P G"], T: int, at_once: int, group_parts: int, shards: int) -> Iterator[Part]:
    """Parts of `at_once` prompts and 1 / `group_parts` of their responses, like with like, from every shard the same.

    Responses are of at most T tokens. Shards are equal runs of prompts that live on different devices.
    """
    P = len(length_PG)
    shards = shards if P % shards == 0 and at_once % shards == 0 else 1
    longest_first_PG = np.argsort(-length_PG, axis=1, kind="stable")
    for place_Pg in np.split(longest_first_PG, group_parts, axis=1):
        length_Pg = np.take_along_axis(length_PG, place_Pg, axis=1)
        order_P = np.argsort(-length_Pg.sum(axis=1).reshape(shards, -1), axis=1, kind="stable")
        order_P = order_P + np.arange(shards)[:, None] * (P // shards)
        for place_p in np.split(order_P, P // at_once, axis=1):
            place_p = place_p.reshape(-1)
            yield Part(place_p, place_Pg[place_p], pack(length_Pg[place_p], T))


def pack(length_PG: Int[np.ndarray, "P G"], T: int) -> Int[np.ndarray, "P R S"]:
    """The fewest slots, among the sizes that are compiled, that hold these responses."""
    P, G = length_PG.shape
    for R, S in sizes(G, T):
        if length_PG.max(initial=0) > S or length_PG.sum(axis=1).max(initial=0) > R * S:
            continue
        rows = [_first_fit(length_G, R, S) for length_G in length_PG]
        if all(row is not None for row in rows):
            break
    slots_PRS = np.full((P, R, S), G * T, np.int32)
    for p, places in enumerate(rows):
        for g, (r, start) in enumerate(places):
            n = length_PG[p, g]
            slots_PRS[p, r, start : start + n] = g * T + np.arange(n)
    return slots_PRS


def sizes(G: int, T: int) -> list[tuple[int, int]]:
    """Rows and slots of each, the smallest first; the last one holds whatever there is."""
    slots = {T} | {-(-T // (16 * share)) * 16 for share in SHARES if T / share >= FEWEST_SLOTS and share > 1}
    found = {(math.ceil(G * quarters / 4), S) for quarters in QUARTERS for S in slots}
    return sorted(found, key=lambda size: (size[0] * size[1], size[1]))


def _first_fit(length_G: np.ndarray, R: int, S: int) -> list[tuple[int, int]] | None:
    """Row and first slot of each response, the longest placed first; None if they do not fit."""
    used_R = np.zeros(R, int)
    places = [(0, 0)] * len(length_G)
    for g in np.argsort(-length_G, kind="stable"):
        fitting = np.flatnonzero(used_R + length_G[g] <= S)
        if not fitting.size:
            return None
        places[g] = (int(fitting[0]), int(used_R[fitting[0]]))
        used_R[fitting[0]] += length_G[g]
    return places
