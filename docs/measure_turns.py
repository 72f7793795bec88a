"""How much of the sampler's token rate is left while tools of one second are waited for: docs/environments.md.

    python docs/measure_turns.py            64 rows of SmolLM2-135M's shape with random weights, on this machine

Each reply ends after 48 tokens on average, and is answered by 8 tokens, at once or after a second. Both runs sample the
same episodes.
"""

import sys
import time
from concurrent import futures

import jax
import numpy as np

from grpo_jax.models import SHAPES, decoder_policy
from grpo_jax.rollout import Sampler
from grpo_jax.structs import Params, Policy, Prompts

MEAN_REPLY, ANSWER, TURNS = 48, 8, 3


class Slow:
    """Answers after `seconds`, in threads, until a row has had all its turns."""

    def __init__(self, seconds: float, threads: int):
        self.seconds, self.pool = seconds, futures.ThreadPoolExecutor(threads)
        self.turns, self.asked = dict.fromkeys(range(threads), 0), dict[futures.Future, int]()

    def replied(self, row: int, ids: list[int], room: int) -> None:
        """Asks a tool."""
        if room:
            self.asked[self.pool.submit(self._answer, row, room)] = row

    def answers(self, wait: bool) -> dict[int, list[int] | None]:
        """What the tools have answered since this was last asked."""
        done, _ = futures.wait(self.asked, timeout=None if wait else 0, return_when=futures.FIRST_COMPLETED)
        return {self.asked.pop(future): future.result() for future in done}

    def _answer(self, row: int, room: int) -> list[int] | None:
        self.turns[row] += 1
        if self.turns[row] > TURNS or room <= ANSWER:
            return None
        time.sleep(self.seconds)
        return list(range(1, ANSWER + 1))


def tokens_a_second(policy: Policy, params: Params, sampler: Sampler, prompts: Prompts, seconds: float) -> float:
    """Tokens that the model chose, over the seconds of sampling."""
    partner = Slow(seconds, len(prompts.tokens_PL) * sampler.responses)
    begin = time.perf_counter()
    rollouts = jax.block_until_ready(sampler(policy, params, prompts, jax.random.key(1), partner=partner))
    return int(np.sum(rollouts.action_PGT)) / (time.perf_counter() - begin)


def main() -> None:
    """Prints both rates and their ratio."""
    shape = SHAPES[sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"]
    policy, draw = decoder_policy(shape), np.random.default_rng(0)
    params = jax.jit(policy.init)(jax.random.key(0))
    ends = draw.choice(shape.vocabulary, shape.vocabulary // MEAN_REPLY, replace=False)
    sampler = Sampler(tuple(ends.tolist()), responses=8, max_tokens=256)
    prompts = Prompts(draw.integers(1, 1000, (8, 64)).astype(np.int32), np.ones((8, 64), bool))
    rates: dict[float, list[float]] = {0.0: [], 1.0: []}
    for seconds in (0.0, 0.0, 1.0, 0.0, 1.0):  # the first compiles
        rates[seconds].append(tokens_a_second(policy, params, sampler, prompts, seconds))
    at_once, late = max(rates[0.0][1:]), max(rates[1.0])
    print(f"answers at once {at_once:.1f} tokens/s, after a second {late:.1f} tokens/s: {late / at_once:.2f}")


if __name__ == "__main__":
    main()
