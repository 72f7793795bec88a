"""Who answers the model between its replies, as the sampler sees them, and what the host does with the answers.

A row whose reply has ended waits while others decode. A short answer is read by the decoding loop, a token in each
step, with the rows that choose theirs; a long one is read in blocks (`reading`) before its row decodes again. Nothing
is read twice, and no program depends on an answer's length. When an answer comes, the row's positions are moved in its
ring buffer, so that they end where those of all rows do.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax import Array

from grpo_jax.rollout.buffer import ResponseBuffer
from grpo_jax.rollout.reading import LONG_ANSWER, Reading, worthwhile
from grpo_jax.structs import Prompts, Rows

TURN_TOKENS = 16  # between two looks at which replies have ended and which answers have come


@runtime_checkable
class Partner(Protocol):
    """Who answers the model's replies while it is sampled. Rows are numbered p * G + g over this host's prompts and
    their G responses.
    """

    def replied(self, row: int, ids: list[int], room: int) -> None:
        """The model has ended a reply with these tokens (its end token included); `room` tokens are left for the
        answer and the next reply: 0 if the row ends with this reply in any case.
        """
        ...

    def answers(self, wait: bool) -> dict[int, list[int] | None]:
        """Answers that have come since this was last asked: the tokens that the row reads next (fewer than its room),
        None if its conversation is over. With `wait`, returns as soon as there is at least one.
        """
        ...


class Resumption(NamedTuple):
    """How rows go on after answers: by how many positions each is moved, which begin to decode, from which token, and
    the tokens that they are given (-1: the model chooses), at their positions in the response. `readings` are those
    that are read in blocks, before the rows decode.
    """

    shift_PG: np.ndarray
    begins_PG: np.ndarray
    length_PG: np.ndarray
    last_PG: np.ndarray
    given_PGT: np.ndarray
    readings: tuple[Reading, ...]


def ring_tokens(max_tokens: int) -> int:
    """The tokens that a ring buffer has room for: the longest response, and what others decode while it waits."""
    return max_tokens + 2 * TURN_TOKENS


def longest_answered(buffer: ResponseBuffer, answers: Mapping[int, list[int] | None]) -> int:
    """How many tokens the longest of the responses has whose answers have come, these included."""
    G = buffer.tokens_PGT.shape[1]
    lengths = [int(buffer.length_PG[divmod(row, G)]) + len(ids) for row, ids in answers.items() if ids]
    return max(lengths, default=0)


def resumption(
    buffer: ResponseBuffer, rows: Rows, answers: Mapping[int, list[int] | None], shards: int
) -> Resumption | None:
    """How rows go on whose answers have come, after these are written into the buffer; None if none is to be changed.

    A row that goes on waiting is moved, too, if others would soon write over its first position. `shards` are those on
    which rows can read blocks; 0 if the policy reads none.
    """
    long = [len(ids) for ids in answers.values() if ids and len(ids) >= LONG_ANSWER]
    in_blocks = shards > 0 and worthwhile(long, shards)
    start_PG, cursor = jax.device_get((rows.start_PG, rows.cursor))
    S, shape, T = rows.tokens_PGS.shape[2], start_PG.shape, buffer.tokens_PGT.shape[2]
    length_PG, last_PG = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    begins_PG, moved_PG, given_PGT = np.zeros(shape, bool), np.zeros(shape, bool), np.full((*shape, T), -1, np.int32)
    readings = []
    for p, g in np.argwhere(buffer.waiting_PG).tolist():
        row = int(buffer.owner_PG[p, g])
        owner = divmod(row, buffer.tokens_PGT.shape[1])
        length = int(buffer.length_PG[owner])
        ids = answers.get(row, [])
        if ids is None:
            buffer.finish(p, g)
            continue
        if len(ids) + length >= T:
            raise ValueError(
                f"An answer of {len(ids)} tokens leaves no room for a reply: {T - length} tokens are left."
            )
        length_PG[p, g], last_PG[p, g] = length, buffer.tokens_PGT[owner][length - 1]
        moved_PG[p, g] = row in answers or start_PG[p, g] + S - cursor < TURN_TOKENS
        if row in answers:
            begins_PG[p, g] = True
            given_PGT[p, g, length : length + len(ids)] = ids
            buffer.answer(p, g, ids)
        if in_blocks and len(ids) >= LONG_ANSWER:  # all but its last token, which the row decodes from
            read = (int(last_PG[p, g]), *ids[:-1])
            length_PG[p, g], last_PG[p, g] = length + len(ids), ids[-1]
            readings.append(Reading(p, g, int(cursor) - length - len(ids), length - 1, read))
    if not moved_PG.any():
        return None
    shift_PG = np.where(moved_PG, cursor - (start_PG + length_PG), 0)
    return Resumption(shift_PG, begins_PG, length_PG, last_PG, given_PGT, tuple(readings))


def seen_again(known_PGV: Array, buffer: ResponseBuffer, prompts: Prompts, begins_PG: np.ndarray) -> np.ndarray:
    """The tokens that rows have seen, without those after a stop string, which rows that begin again have dropped."""
    seen_PGV, G = np.array(jax.device_get(known_PGV)), buffer.tokens_PGT.shape[1]
    tokens_PL, valid_PL = jax.device_get((prompts.tokens_PL, prompts.valid_PL))
    for p, g in np.argwhere(begins_PG).tolist():
        owner = divmod(int(buffer.owner_PG[p, g]), G)
        seen_PGV[p, g] = False
        seen_PGV[p, g, tokens_PL[owner[0]][valid_PL[owner[0]]]] = True
        seen_PGV[p, g, buffer.tokens_PGT[owner][: buffer.length_PG[owner]]] = True
    return seen_PGV


def safe_cursor(buffer: ResponseBuffer, rows: Rows) -> int:
    """The step at which a stage ends, so that the host can look, and before a waiting row's first position is lost."""
    start_PG, cursor = jax.device_get((rows.start_PG, rows.cursor))
    first = np.min(start_PG, where=buffer.waiting_PG, initial=np.iinfo(np.int32).max - rows.tokens_PGS.shape[2])
    return min(int(cursor) + TURN_TOKENS, int(first) + rows.tokens_PGS.shape[2])
