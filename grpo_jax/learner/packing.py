"""Which responses are computed together, and in which rows: decided on the host, from their lengths alone.

A row of W slots holds several short responses one after the other (`slots_PBW`); all B rows of a prompt attend to the
one copy of the prompt. There are few sizes, because each is compiled once: a quarter, a half, three quarters or all of
G rows, of a quarter, a half or all of T slots, but never under 64.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

FRACTIONS = (4, 2, 1)  # a row has the longest possible response's slots, divided by one of these
FEWEST_SLOTS = 64
QUARTERS = (1, 2, 3, 4)  # of the rows


@dataclass(frozen=True)
class Microbatch:
    """What one forward and backward pass computes: some prompts, some responses to each, and where their tokens stand.

    `slots_PBW[p, b, w]` is the token in a slot, as g * T + t; G * T where there is none. A prompt may occur twice, with
    other responses.
    """

    index_p: np.ndarray
    index_pg: np.ndarray
    slots_PBW: np.ndarray


def divide(length_PG: Int[np.ndarray, "P G"], T: int, at_once: int, splits: int, shards: int) -> Iterator[Microbatch]:
    """Microbatches of `at_once` prompts and 1 / `splits` of their responses, similar lengths together.

    Responses have at most T tokens. Shards are equal runs of prompts on different devices; each microbatch takes as
    many from every shard.
    """
    P = len(length_PG)
    shards = shards if P % shards == 0 and at_once % shards == 0 else 1
    longest_first_PG = np.argsort(-length_PG, axis=1, kind="stable")
    for index_Pg in np.split(longest_first_PG, splits, axis=1):
        length_Pg = np.take_along_axis(length_PG, index_Pg, axis=1)
        order_P = np.argsort(-length_Pg.sum(axis=1).reshape(shards, -1), axis=1, kind="stable")
        order_P = order_P + np.arange(shards)[:, None] * (P // shards)
        for index_p in np.split(order_P, P // at_once, axis=1):
            index_p = index_p.reshape(-1)
            yield Microbatch(index_p, index_Pg[index_p], pack(length_Pg[index_p], T))


def pack(length_PG: Int[np.ndarray, "P G"], T: int) -> Int[np.ndarray, "P B W"]:
    """The fewest slots, among the sizes that are compiled, that hold these responses."""
    P, G = length_PG.shape
    for B, W in sizes(G, T):
        if length_PG.max(initial=0) > W or length_PG.sum(axis=1).max(initial=0) > B * W:
            continue
        starts = [_first_fit(length_G, B, W) for length_G in length_PG]
        if all(found is not None for found in starts):
            break
    slots_PBW = np.full((P, B, W), G * T, np.int32)
    for p, found in enumerate(starts):
        for g, (b, start) in enumerate(found or ()):
            n = length_PG[p, g]
            slots_PBW[p, b, start : start + n] = g * T + np.arange(n)
    return slots_PBW


def sizes(G: int, T: int) -> list[tuple[int, int]]:
    """Numbers of rows and their slots, the smallest first; the last one holds all responses at full length."""
    slots = {T} | {-(-T // (16 * part)) * 16 for part in FRACTIONS if T / part >= FEWEST_SLOTS and part > 1}
    found = {(math.ceil(G * quarters / 4), W) for quarters in QUARTERS for W in slots}
    return sorted(found, key=lambda size: (size[0] * size[1], size[1]))


def _first_fit(length_G: np.ndarray, B: int, W: int) -> list[tuple[int, int]] | None:
    """The row and first slot of each response, the longest placed first; None if they do not fit."""
    used_B = np.zeros(B, int)
    starts = [(0, 0)] * len(length_G)
    for g in np.argsort(-length_G, kind="stable"):
        fitting = np.flatnonzero(used_B + length_G[g] <= W)
        if not fitting.size:
            return None
        starts[g] = (int(fitting[0]), int(used_B[fitting[0]]))
        used_B[fitting[0]] += length_G[g]
    return starts
