"""What answers to replies cost the sampler: waiting for tools, and reading what they say. For docs/sampling.md.

    python docs/measure_turns.py            SmolLM2-135M's shape with random weights, on this machine

Each reply ends after 48 tokens on average, and a row has four. First, in 64 rows, they are answered by 8 tokens, at
once or after a second; then, in 16 rows, at once by 200 tokens, which are read a token at a time or in blocks. All runs
of an answer's length sample the same episodes. Each pair runs in turn, once to compile and then twice.
"""

import sys
import time
from concurrent import futures
from dataclasses import replace

import jax
import numpy as np

from grpo_jax.models import SHAPES, decoder_policy
from grpo_jax.rollout import Sampler
from grpo_jax.structs import Params, Policy, Prompts

MEAN_REPLY, TURNS, RESPONSES = 48, 3, 8


class Tool:
    """Answers so many rows with so many tokens after `seconds`, in threads, until a row has had all its turns."""

    def __init__(self, rows: int, tokens: int, seconds: float):
        self.tokens, self.seconds, self.pool = tokens, seconds, futures.ThreadPoolExecutor(rows)
        self.turns, self.asked = dict.fromkeys(range(rows), 0), dict[futures.Future, int]()

    def replied(self, row: int, ids: list[int], room: int) -> None:
        """Asks the tool."""
        if room:
            self.asked[self.pool.submit(self._answer, row, room)] = row

    def answers(self, wait: bool) -> dict[int, list[int] | None]:
        """What it has answered since this was last asked."""
        done, _ = futures.wait(self.asked, timeout=None if wait else 0, return_when=futures.FIRST_COMPLETED)
        return {self.asked.pop(future): future.result() for future in done}

    def _answer(self, row: int, room: int) -> list[int] | None:
        self.turns[row] += 1
        if self.turns[row] > TURNS or room <= self.tokens:
            return None
        time.sleep(self.seconds)
        return list(range(1, self.tokens + 1))


def chosen_a_second(
    policy: Policy, params: Params, sampler: Sampler, prompts: Prompts, tokens: int, seconds: float
) -> float:
    """Tokens that the model chose, over the seconds of sampling."""
    begin = time.perf_counter()
    tool = Tool(len(prompts.tokens_PL) * sampler.responses, tokens, seconds)
    rollouts = jax.block_until_ready(sampler(policy, params, prompts, jax.random.key(1), partner=tool))
    return int(np.sum(rollouts.action_PGT)) / (time.perf_counter() - begin)


def main() -> None:
    """Prints the rates and their ratios."""
    shape = SHAPES[sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"]
    policy, draw = decoder_policy(shape), np.random.default_rng(0)
    params = jax.jit(policy.init)(jax.random.key(0))
    ends = draw.choice(shape.vocabulary, shape.vocabulary // MEAN_REPLY, replace=False)
    by_token = replace(policy, extend_block=None)
    for P, tokens, most, pair in (
        (8, 8, 256, {"at once": (policy, 0.0), "after a second": (policy, 1.0)}),
        (2, 200, 1024, {"token by token": (by_token, 0.0), "in blocks": (policy, 0.0)}),
    ):
        prompts = Prompts(draw.integers(1, 1000, (P, 64)).astype(np.int32), np.ones((P, 64), bool))
        sampler, rates = Sampler(tuple(ends.tolist()), responses=RESPONSES, max_tokens=most), []
        for _ in range(3):
            of_pair = [(one, params, sampler, prompts, tokens, seconds) for one, seconds in pair.values()]
            rates.append([chosen_a_second(*case) for case in of_pair])
        first, second = np.mean(rates[1:], axis=0)
        names = " and ".join(f"{name} {rate:.1f}" for name, rate in zip(pair, (first, second), strict=True))
        print(f"answers of {tokens} tokens: tokens/s {names}, ratio {second / first:.2f}", flush=True)


if __name__ == "__main__":
    main()
