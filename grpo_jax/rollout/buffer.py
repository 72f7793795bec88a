"""What the host keeps while the devices sample: every finished response, and which response each row belongs to."""

from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax import Array

from grpo_jax.rollout.sizes import Compaction
from grpo_jax.structs import Rows


class ResponseBuffer:
    """Finished responses of all P prompts, and whose response each row on the devices is writing (-1: none)."""

    def __init__(self, P: int, G: int, T: int, held: int, padding: int):
        self.tokens_PGT = np.full((P, G, T), padding, np.int32)
        self.logprobs_PGT, self.entropy_PGT = np.zeros((P, G, T), np.float32), np.zeros((P, G, T), np.float32)
        self.length_PG, self.ended_PG = np.zeros((P, G), np.int32), np.zeros((P, G), bool)
        self.action_PGT = np.zeros((P, G, T), bool)
        self.waits_PG = np.zeros((P, G), bool)  # for an answer, after a reply
        self.owner_PG = np.arange(held * G).reshape(held, G)
        self.told_P = np.zeros(P, bool)  # of which groups somebody has been told
        self.experts_PGTNe: np.ndarray | None = None  # only where the policy records them
        self.experts_PLNe: np.ndarray | None = None

    @property
    def valid_PGT(self) -> np.ndarray:
        """Which tokens there are: those that the model chose, and those that it was answered."""
        return np.arange(self.tokens_PGT.shape[2])[None, None] < self.length_PG[:, :, None]

    @property
    def waiting_PG(self) -> np.ndarray:
        """Which rows on the devices wait for an answer."""
        return (self.owner_PG >= 0) & self.waits_PG.reshape(-1)[self.owner_PG]

    def read(self, index_p: np.ndarray, experts: Sequence[Array], L: int) -> None:
        """Copies the experts of each layer that computed the L tokens of some prompts from the devices."""
        experts_pLNe = np.stack(jax.device_get(experts)).transpose(1, 3, 0, 2)[:, -L:]
        if self.experts_PLNe is None or self.experts_PGTNe is None:
            (P, G, T), (_, _, N, e) = self.tokens_PGT.shape, experts_pLNe.shape
            self.experts_PLNe = np.zeros((P, L, N, e), experts_pLNe.dtype)
            self.experts_PGTNe = np.zeros((P, G, T, N, e), experts_pLNe.dtype)
        self.experts_PLNe[index_p] = experts_pLNe

    def collect(
        self,
        rows: Rows,
        stops: Callable[[Sequence[int]], bool] | None,
        experts: Sequence[Array] = (),
        replied: Callable[[int, list[int], int], None] | None = None,
    ) -> np.ndarray:
        """Copies the rows that ended, or whose text `stops`, from the devices. Gives the rows that are still active.

        So are the experts of each layer that computed their tokens, if there are any. With `replied`, what has ended is
        a reply: it is called with the row's response, the reply's tokens and how many more the response may have. If
        there are any, the row waits for an answer.
        """
        known = rows.active_PG, rows.length_PG, rows.ended_PG, rows.start_PG
        active_PG, length_PG, ended_PG, start_PG = jax.device_get(known)
        waiting_PG, active_PG = self.waiting_PG, active_PG.copy()
        if stops is None and (active_PG | (self.owner_PG < 0) | waiting_PG).all():
            return active_PG
        rings = jax.device_get((rows.tokens_PGS, rows.logprobs_PGS, rows.entropy_PGS))
        kept, S = (self.tokens_PGT, self.logprobs_PGT, self.entropy_PGT), rows.tokens_PGS.shape[2]
        experts_PGSNe = np.stack(jax.device_get(experts)).transpose(1, 2, 4, 0, 3) if experts else None
        for p, g in zip(*np.nonzero((self.owner_PG >= 0) & ~waiting_PG), strict=True):
            owner = divmod(self.owner_PG[p, g], self.tokens_PGT.shape[1])
            before = self.length_PG[owner]  # of earlier replies and answers
            index_T = (start_PG[p, g] + np.arange(before, length_PG[p, g])) % S
            cut = None if stops is None else _stop_length(rings[0][p, g, index_T].tolist(), stops)
            if active_PG[p, g] and cut is None:
                continue
            index_T = index_T[:cut]
            n = before + len(index_T)
            for array, ring in zip(kept, rings, strict=True):
                array[owner][before:n] = ring[p, g, index_T]
            if experts_PGSNe is not None and self.experts_PGTNe is not None:
                self.experts_PGTNe[owner][:n] = experts_PGSNe[p, g, (start_PG[p, g] + np.arange(n)) % S]
            self.action_PGT[owner][before:n] = True
            self.length_PG[owner] = n
            self.ended_PG[owner] = ended_PG[p, g] or cut is not None
            active_PG[p, g] = False
            room = self.tokens_PGT.shape[2] - n
            self.waits_PG[owner] = replied is not None and room > 0
            if replied is not None:
                replied(int(self.owner_PG[p, g]), rings[0][p, g, index_T].tolist(), int(room))
            if not self.waits_PG[owner]:
                self.owner_PG[p, g] = -1
        return active_PG

    def answer(self, p: int, g: int, ids: Sequence[int]) -> None:
        """Writes what a row that waits reads next into its response."""
        owner = divmod(self.owner_PG[p, g], self.tokens_PGT.shape[1])
        length = self.length_PG[owner]
        self.tokens_PGT[owner][length : length + len(ids)] = ids
        self.length_PG[owner] += len(ids)
        self.waits_PG[owner] = False

    def finish(self, p: int, g: int) -> None:
        """Notes that a row that waits has nothing more to read."""
        self.waits_PG[divmod(self.owner_PG[p, g], self.tokens_PGT.shape[1])] = False
        self.owner_PG[p, g] = -1

    def newly_complete(self, spread: int) -> Iterator[tuple[int, list[list[int]]]]:
        """The prompts whose last response was collected since this was last asked, with the ids of all responses.

        Each group is `spread` of the P here, one after the other.
        """
        T = self.tokens_PGT.shape[2]
        for p in range(len(self.length_PG) // spread):
            group = slice(p * spread, (p + 1) * spread)
            if not self.told_P[p] and self.length_PG[group].all():
                self.told_P[p] = True
                pairs = zip(self.tokens_PGT[group].reshape(-1, T), self.length_PG[group].reshape(-1), strict=True)
                yield p, [ids[:length].tolist() for ids, length in pairs]

    def admit(self, position_p: np.ndarray, index_p: np.ndarray) -> None:
        """Notes that the rows at these positions now write the responses to other prompts."""
        G = self.tokens_PGT.shape[1]
        self.owner_PG[position_p] = index_p[:, None] * G + np.arange(G)[None]

    def compact(self, moved: Compaction, shards: int) -> None:
        """Notes that rows were moved together, within each shard."""
        source_np = moved.source_p.reshape(shards, -1)
        owner_nPG = self.owner_PG.reshape(shards, -1, self.owner_PG.shape[1])
        taken_PG = np.take_along_axis(owner_nPG, source_np[:, :, None], axis=1).reshape(-1, self.owner_PG.shape[1])
        self.owner_PG = np.where(moved.active_pg, np.take_along_axis(taken_PG, moved.row_pg, axis=1), -1)


def _stop_length(ids: list[int], stops: Callable[[Sequence[int]], bool]) -> int | None:
    """How many tokens there are when the text first stops; None if it does not."""
    return next((n for n in range(1, len(ids) + 1) if stops(ids[:n])), None) if stops(ids) else None
