"""Measures what rewards cost: python docs/measure_rewards.py [reading] [waiting] [hostile] [beside], all without names.

reading   seconds for 4,096 answers that are compared with a number
waiting   seconds for 512 answers with an async judge that takes a second, asked 64 times at once
hostile   seconds for 63 answers of 0.1 s and one that never ends, in 4 workers with a deadline of 2 s
beside    a step whose rewards take as long as its sampling, over the same step with a free reward
"""

import asyncio
import re
import statistics
import sys
import time

from grpo_jax.rewards import Example, Guarded, exact, last_number, score

WORKING = "Natalia sold 48/2 = 24 clips in May, and 48 in April.\n" * 8
CASES = {
    "exact, a number": (exact, "72"),
    "exact, words": (exact, "seventy-two clips"),
    "last_number, ####": (last_number, WORKING + "#### 72"),
    "last_number, boxed": (last_number, WORKING + r"So it is \boxed{72 \text{ clips}}."),
    "last_number, prose": (last_number, WORKING + "Altogether she sold 72 clips."),
}


class Judge:
    """An async judge that takes `seconds` for each answer, and no more than `at_once` of them at a time."""

    def __init__(self, seconds: float, at_once: int):
        self.seconds, self.gate = seconds, asyncio.Semaphore(at_once)

    async def __call__(self, example: Example, response: str) -> float:
        """The share of vowels, after a while."""
        async with self.gate:
            await asyncio.sleep(self.seconds)
        return vowels(example, response)


def vowels(example: Example, response: str) -> float:
    """The share of vowels in a response."""
    return sum(letter in "aeiou" for letter in response) / max(len(response), 1)


def slow_match(example: Example, response: str) -> float:
    """A pattern that never ends on one response, and takes a tenth of a second on all others."""
    time.sleep(0.1)
    return float(re.fullmatch(r"(a+)+b", response) is not None)


def reading() -> None:
    """Seconds for each way of comparing 4,096 answers with a number."""
    for name, (reward, response) in CASES.items():
        begun = time.perf_counter()
        for _ in range(4096):
            reward(Example("How many clips?", "72"), response)
        print(f"{name}: {time.perf_counter() - begun:.2f} s")


def waiting() -> None:
    """Seconds for 512 answers with a judge of one second, 64 at once: at least 8."""
    begun = time.perf_counter()
    score(Judge(1.0, 64), [Example("q")] * 64, [["a"] * 8] * 64)
    print(f"512 answers, a judge of 1 s, 64 at once: {time.perf_counter() - begun:.2f} s")


def hostile() -> None:
    """Seconds with and without a response on which a regular expression never ends."""
    guarded = Guarded(slow_match, workers=4, deadline=2.0)
    score(guarded, [Example("q")], [["b"] * 8])  # the workers are there
    for name, first in (("63 answers and a harmless one", "b"), ("63 answers and a hostile one", "a" * 60)):
        begun = time.perf_counter()
        rewards_PGR = score(guarded, [Example("q")], [[first] + ["b"] * 63])
        unscored = int((rewards_PGR != rewards_PGR).sum())
        print(f"{name}, 4 workers: {time.perf_counter() - begun:.2f} s, {unscored} not scored")


def beside(rounds: int = 3) -> None:
    """How much longer steps take with a judge that needs as long as the sampling, asked beside it and after it.

    One step of each kind in each round, so that a busy minute of the machine is a busy minute for all three. The judge
    of a round takes as long as sampling took in the step with a free reward before it.
    """
    import jax

    import grpo_jax as gj
    from grpo_jax.devices.mesh import Layout

    model, prompts = gj.load("smollm2-135m-instruct", remat="products"), 64
    examples = [Example(f"{n} plus {n + 1} is?") for n in range(prompts)]
    encoded = model.tokenizer.encode_all([example.prompt for example in examples], max_tokens=64)
    sampler = gj.Sampler(model.tokenizer.end_ids, responses=4, max_tokens=24, at_once=2)
    objective, optimizer = gj.objectives.dapo(), gj.adamw(1e-6, warmup_steps=1)

    def algorithm(reward) -> gj.Algorithm:
        return gj.Algorithm(model.policy, sampler, model.tokenizer.decode, reward, objective, optimizer)

    def step(algorithm: gj.Algorithm, overlapped: bool) -> tuple[float, float, float]:
        """Seconds of a step, of its sampling, and of the scoring that is left after it."""
        state, key = gj.init(algorithm, model.params(Layout().mesh(jax.devices()[:1]))), jax.random.key(0)
        jax.block_until_ready(state)
        begun = time.perf_counter()
        with gj.scoring.EarlyScoring(algorithm, encoded, examples) as early:
            early = early if overlapped else None
            rollouts = gj.sample(algorithm, state, encoded, examples, key, early=early)
            sampled = time.perf_counter() - begun
            rewards = gj.score(algorithm, rollouts, examples, early=early)
            scored = time.perf_counter() - begun - sampled
        state, _ = gj.update(algorithm, state, gj.prepare(algorithm, state, rollouts, rewards, key))
        jax.block_until_ready(state)
        return time.perf_counter() - begun, sampled, scored

    free = algorithm(vowels)
    step(free, False)  # compiles
    judge = Judge(0.0, 8)  # set anew in each round
    judged = algorithm(judge)
    step(judged, True)  # compiles
    times = []
    for _ in range(rounds):
        without = step(free, False)
        judge.seconds = 8 * without[1] / (4 * prompts)
        times.append((without, step(judged, True), step(judged, False)))
        print(*(" ".join(f"{seconds:.2f}" for seconds in kind) for kind in times[-1]), sep=" | ", flush=True)
    free_seconds, beside_ratio, after_ratio, sampling, scoring = (
        statistics.median(numbers)
        for numbers in zip(*[(a[0], b[0] / a[0], c[0] / a[0], c[1], c[2]) for a, b, c in times], strict=True)
    )
    print(
        f"sampling {prompts} x 4 answers, 2 prompts at once: {sampling:.2f} s; a step with a free reward:"
        f" {free_seconds:.2f} s; with a judge that takes {scoring:.2f} s, {judge.seconds:.3f} s an answer and 8 at"
        f" once: {beside_ratio:.3f} times as long beside sampling, {after_ratio:.3f} times after it (medians of"
        f" {rounds} rounds)"
    )


if __name__ == "__main__":
    chosen = sys.argv[1:] or ["reading", "waiting", "hostile", "beside"]
    for measure in (reading, waiting, hostile, beside):
        if measure.__name__ in chosen:
            measure()
