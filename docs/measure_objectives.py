"""Measures the time that each preset adds to a step: python docs/measure_objectives.py

That is `credit` (advantages, weights, masks), then `loss` with its gradient by the log-probs.
"""

import time
from functools import partial
from statistics import median

import jax
import jax.numpy as jnp

from grpo_jax.cli import parse
from grpo_jax.commands.bench.command import load_model
from grpo_jax.commands.bench.train import build_algorithm, random_answers, time_updates
from grpo_jax.grpo import init
from grpo_jax.objectives import PRESETS, credit, first_coefficients, loss, scored_of


def seconds(work, repeat: int = 9) -> float:
    """The median time of some runs after the first, which compiles."""
    found = []
    for _ in range(repeat + 1):
        begun = time.perf_counter()
        jax.block_until_ready(work())
        found.append(time.perf_counter() - begun)
    return median(found[1:])


def main() -> None:
    """Prints a line for each preset: milliseconds, and percent of the time of one learning step."""
    arguments = parse(["bench", "train"])
    subject = load_model(arguments)
    algorithm = build_algorithm(arguments, subject)
    rollouts, scored = random_answers(arguments, subject, algorithm)
    steps_PGT = jnp.where(rollouts.action_PGT, scored.rewards_PG[:, :, None], jnp.nan)
    scored = scored_of(
        scored.parts_PGR, scored.weights_R, rollouts, steps_PGT=steps_PGT, greedy_P1=scored.rewards_PG[:, :1]
    )
    learning = time_updates(arguments, algorithm, init(algorithm, subject.params), subject)["train_step_s"]
    print(
        f"learning {learning:.2f} s; {arguments.prompts} x {arguments.responses} x {arguments.response_tokens} tokens"
    )
    key, other_PGT = jax.random.key(0), rollouts.logprobs_PGT - 0.1
    for preset in PRESETS:
        objective = preset()
        known = {"ref_logprobs_PGT": other_PGT, "teacher_logprobs_PGT": other_PGT, "old_logprobs_PGT": other_PGT}
        prepare = jax.jit(partial(credit, objective, **known, coefficients=first_coefficients(objective)))
        learn = jax.jit(jax.value_and_grad(partial(loss, objective), has_aux=True))
        batch = prepare(rollouts, scored, key)
        before = seconds(partial(prepare, rollouts, scored, key))
        after = seconds(partial(learn, rollouts.logprobs_PGT, rollouts.entropy_PGT, batch))
        print(
            f"{preset.__name__:22} {1e3 * (before + after):6.2f} ms {100 * (before + after) / learning:7.3f} %",
            flush=True,
        )


if __name__ == "__main__":
    main()
