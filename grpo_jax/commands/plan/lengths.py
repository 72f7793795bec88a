"""How long the answers are that a plan counts with, and what the sampler decodes for them, by its own policy."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from grpo_jax.models.attention import BLOCK
from grpo_jax.rollout.sizes import Compaction, compact, next_ring, next_shape, row_shapes

SPREAD = 0.5  # of logarithms, where only a mean is given
RECENT = 10  # steps of a run


class Size(NamedTuple):
    """The rows that are decoded together, and the positions of their caches."""

    prompts: int
    responses: int
    positions: int


class Decoded(NamedTuple):
    """Tokens that are decoded with rows of one size; and, summed over them, the positions that rows use of their caches
    and the blocks of the decoding kernel that these fill.
    """

    tokens: int = 0
    used: int = 0
    blocks: int = 0


@dataclass(frozen=True)
class Lengths:
    """Lengths of answers in tokens: `known` ones, drawn with replacement, log-normal, or the cap if `mean` is None."""

    mean: float | None = None
    spread: float = 0.0
    known: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.known:
            return f"drawn from {len(self.known)} known lengths"
        if self.mean is None:
            return "every answer as long as it may be"
        return f"log-normal with a mean of {self.mean:g} tokens, {self.spread:g} of their logarithms"

    def draw(self, P: int, G: int, most: int) -> np.ndarray:
        """The lengths of G answers to each of P prompts. Half of the spread is that of a group as a whole."""
        random = np.random.default_rng(0)
        if self.known:
            drawn_PG = random.choice(np.array(self.known), (P, G))
        elif self.mean is None:
            drawn_PG = np.full((P, G), most)
        else:
            logs_PG = random.normal(0, self.spread / 2, (P, 1)) + random.normal(0, self.spread, (P, G))
            drawn_PG = np.ceil(self.mean * np.exp(logs_PG) / math.exp(1.25 * self.spread**2 / 2))
        return np.clip(drawn_PG, 1, most).astype(int)


def read_lengths(text: str | None) -> Lengths:
    """The lengths of a mean such as 300, of a mean and a spread such as 300,0.5, of a file with a number in each line,
    or of a run directory; None is the cap.
    """
    if text is None:
        return Lengths()
    if text and (path := Path(text)).exists():
        return _of_run(path) if path.is_dir() else Lengths(known=_numbers(path))
    try:
        mean, *spread = map(float, text.split(","))
    except ValueError:
        mean, spread = math.nan, []
    if not (mean >= 1 and len(spread) <= 1 and all(0 <= n <= 3 for n in spread)):
        raise ValueError(
            f"--lengths is a mean such as 300, a mean and a spread such as 300,0.5, a file with a number of tokens in"
            f" each line, or the directory of a run; got {text!r}."
        )
    return Lengths(mean, spread[0] if spread else SPREAD)


def _numbers(path: Path) -> tuple[int, ...]:
    words = path.read_text().split()
    if not words or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ValueError(f"--lengths: {path} has to be a number of tokens in each line, such as 312.")
    return tuple(map(int, words))


def _of_run(path: Path) -> Lengths:
    metrics = path / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    means = [row["completions/mean_length"] for row in rows if "completions/mean_length" in row][-RECENT:]
    if not means:
        raise ValueError(f"--lengths: {path} is not the directory of a run that has ended a step.")
    return Lengths(float(sum(means)) / len(means), SPREAD)


def turns(
    length_PG: np.ndarray, held: int, rings: list[int], shards: int, fewest: int = 1, block: int = BLOCK
) -> dict[Size, Decoded]:
    """How many tokens the sampler decodes with rows of each size, for answers of these lengths, `held` prompts at once.

    The first token of each answer is not among them. `rings` and `fewest` are the sampler's lengths of caches, and the
    rows that a shard keeps; `block` is the positions of a block.
    """
    P, G = length_PG.shape
    shapes, few = row_shapes(held, G, shards, fewest), max(shards, held // 4 // shards * shards)
    left_pG, age_pG = length_PG[:held] - 1, np.ones((held, G), int)
    waiting, S, shape, found = list(range(held, P)), rings[0], (held, G), {}
    while (active_pG := left_pG > 0).any() or waiting:
        idle_p = np.flatnonzero(~active_pG.any(axis=1))
        if waiting and len(idle_p) >= min(few, held):
            admitted = waiting[: min(few, len(idle_p))]
            left_pG[idle_p[: len(admitted)]], age_pG[idle_p[: len(admitted)]] = length_PG[admitted] - 1, 1
            waiting = waiting[len(admitted) :]
            continue
        smaller = shape if waiting else next_shape(shapes, shape, active_pG, shards)
        if smaller != shape:
            moved = compact(active_pG, smaller, shards)
            left_pG, age_pG = (_compacted(a_pG, moved, shards) for a_pG in (left_pG, age_pG))
            shape = smaller
            continue
        S = next_ring(rings, S, int(age_pG.max(where=active_pG, initial=0)))
        steps = _steps(left_pG, age_pG, S)
        before = found.get(Size(*shape, S), Decoded())
        lengths = age_pG[active_pG][:, None] + np.arange(1, steps + 1)
        more = (steps, int(lengths.sum()), int(np.sum(-(-lengths // block))))
        found[Size(*shape, S)] = Decoded(*(a + b for a, b in zip(before, more, strict=True)))
        age_pG, left_pG = age_pG + active_pG * steps, np.maximum(left_pG - steps, 0)
    return found


def _steps(left_pG: np.ndarray, age_pG: np.ndarray, S: int) -> int:
    """Tokens until a row ends or is as long as its buffer."""
    active_pG = left_pG > 0
    return int(max(1, min(left_pG[active_pG].min(), S - age_pG[active_pG].max())))


def _compacted(a_PG: np.ndarray, moved: Compaction, shards: int) -> np.ndarray:
    """What is known of the rows that are kept; 0 for inactive copies."""
    first_p = np.repeat(np.arange(shards) * (len(a_PG) // shards), len(moved.source_p) // shards)
    taken_pg = a_PG[(first_p + moved.source_p)[:, None], moved.row_pg]
    return np.where(moved.active_pg, taken_pg, 0)
