"""What the host keeps while the devices sample: every response as far as it is done, and whose row sits where."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from grpo_jax.rollout.sizes import Seating
from grpo_jax.structs import Rows


class Ledger:
    """Responses that have ended, and who sits in which of the places on the devices (-1: nobody)."""

    def __init__(self, P: int, G: int, T: int, held: int, padding: int):
        self.tokens_PGT = np.full((P, G, T), padding, np.int32)
        self.logprobs_PGT, self.entropy_PGT = np.zeros((P, G, T), np.float32), np.zeros((P, G, T), np.float32)
        self.length_PG, self.ended_PG = np.zeros((P, G), np.int32), np.zeros((P, G), bool)
        self.who_PG = np.arange(held * G).reshape(held, G)

    @property
    def action_PGT(self) -> np.ndarray:
        """Which tokens were chosen, of the responses that are written down."""
        return np.arange(self.tokens_PGT.shape[2])[None, None] < self.length_PG[:, :, None]

    def write(self, rows: Rows, stops: Callable[[Sequence[int]], bool] | None) -> np.ndarray:
        """Writes rows down that have ended, by themselves or because their text `stops`; who is living then."""
        live_PG, length_PG, ended_PG, start_PG = jax.device_get(
            (rows.live_PG, rows.length_PG, rows.ended_PG, rows.start_PG)
        )
        if stops is None and (live_PG | (self.who_PG < 0)).all():
            return live_PG
        rings = jax.device_get((rows.tokens_PGS, rows.logprobs_PGS, rows.entropy_PGS))
        S = rings[0].shape[2]
        live_PG = live_PG.copy()
        for p, g in zip(*np.nonzero(self.who_PG >= 0), strict=True):
            index_T = (start_PG[p, g] + np.arange(length_PG[p, g])) % S
            cut = None if stops is None else _stop_length(rings[0][p, g, index_T].tolist(), stops)
            if live_PG[p, g] and cut is None:
                continue
            n = len(index_T) if cut is None else cut
            row = divmod(self.who_PG[p, g], self.tokens_PGT.shape[1])
            for kept, ring in zip((self.tokens_PGT, self.logprobs_PGT, self.entropy_PGT), rings, strict=True):
                kept[row][:n] = ring[p, g, index_T[:n]]
            self.length_PG[row] = n
            self.ended_PG[row] = ended_PG[p, g] or cut is not None
            self.who_PG[p, g] = -1
            live_PG[p, g] = False
        return live_PG

    def admit(self, place_p: np.ndarray, index_p: np.ndarray) -> None:
        """The responses of some prompts sit down."""
        G = self.tokens_PGT.shape[1]
        self.who_PG[place_p] = index_p[:, None] * G + np.arange(G)[None]

    def seat(self, seating: Seating, parts: int) -> None:
        """Rows have moved, each within its shard."""
        place_np = seating.place_p.reshape(parts, -1)
        shards_nPG = self.who_PG.reshape(parts, -1, self.who_PG.shape[1])
        moved_PG = np.take_along_axis(shards_nPG, place_np[:, :, None], axis=1).reshape(-1, self.who_PG.shape[1])
        self.who_PG = np.where(seating.lives_pg, np.take_along_axis(moved_PG, seating.row_pg, axis=1), -1)


def _stop_length(ids: list[int], stops: Callable[[Sequence[int]], bool]) -> int | None:
    """How many tokens there are when the text first stops."""
    return next((n for n in range(1, len(ids) + 1) if stops(ids[:n])), None) if stops(ids) else None
