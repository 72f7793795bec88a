"""Measures what the critic of PPO costs, beside GRPO, which has none. Prints tables in Markdown.

    python examples/measure_critic.py plan                memory on a TPU v5e, by its compiler, for configs/travel.yaml
    python examples/measure_critic.py measure             time and memory of updates here, SmolLM2-135M in float32

`plan` needs the extra `tpu` and no TPU: it compiles the same programs as `grpo-jax plan`. `measure` has random weights
of the model's shape, which cost as much as trained ones, and runs each method in a process of its own.
"""

import argparse
import multiprocessing
import time
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import ppo

import grpo_jax as gj
from grpo_jax.commands.bench.train import peak_bytes
from grpo_jax.commands.plan.case import Case, assemble, fitted
from grpo_jax.commands.plan.programs import memory_of, plan_learning
from grpo_jax.commands.plan.topology import find_slice
from grpo_jax.devices.memory import device_bytes
from grpo_jax.devices.sharding import PROMPTS, weight_shardings, with_shardings
from grpo_jax.distribution import Distribution
from grpo_jax.models import decoder_policy, find_shape
from grpo_jax.structs import prompt_shapes, rollout_shapes

GRPO, SHARED, OWN = "GRPO", "PPO, a head on the policy", "PPO, a critic of its own"
METHODS: dict[str, ppo.PPO | None] = {
    GRPO: None,
    SHARED: ppo.PPO(epochs=1),
    OWN: ppo.PPO(epochs=1, own_critic=True),
}


@dataclass(frozen=True)
class Sizes:
    """How much is learned from at once."""

    prompts: int = 2
    responses: int = 4
    prompt_tokens: int = 32
    response_tokens: int = 64


# What the compiler says.


def plan(config: str, slice_name: str) -> None:
    """Prints the bytes of the train state, and the peak of learning from all answers of a step at once."""
    case = assemble(gj.config.read(config, ["objective={use: grpo, kl: 0}"]), find_slice(slice_name))
    P, G, T = case.settings.prompts, case.sampler.responses, case.sampler.max_tokens
    print(f"{config} on {slice_name}: {P} x {G} answers of {T} tokens\n")
    print("| | weights and optimiser | peak of learning |\n|---|---|---|")
    for name, settings in METHODS.items():
        if settings is None:
            held, peak = device_bytes(case.state), plan_learning(case, case.choices[0]).peak
        else:
            held, peak = planned(case, settings)
        print(f"| {name} | {held / 1e9:.2f} GB | {'does not fit' if peak is None else f'{peak / 1e9:.2f} GB'} |")


def planned(case: Case, settings: ppo.PPO) -> tuple[int, int]:
    """The bytes of the state of PPO, and the peak of its update."""
    algorithm = replace(case.algorithm, objective=ppo.objective())
    state = jax.eval_shape(partial(ppo.init, algorithm, settings), algorithm.policy.shapes)
    state = with_shardings(state, weight_shardings(state, case.mesh))
    G, T = case.sampler.responses, case.sampler.max_tokens
    rollouts = rollout_shapes(prompt_shapes(case.settings.prompts, case.length), G, T, case.sampler.distribution)
    a_PGT = rollouts.logprobs_PGT
    batch = gj.Batch(rollouts, a_PGT, a_PGT, old_logprobs_PGT=a_PGT)
    valued = fitted(ppo.Valued(batch, a_PGT, a_PGT), PROMPTS, case.mesh)
    with jax.set_mesh(case.mesh):
        compiled = ppo.descend.lower(algorithm, settings, state, valued).compile()
    return device_bytes(state), memory_of(compiled).peak_memory_in_bytes


# What a machine takes.


def measure(name: str, sizes: Sizes, repeat: int) -> None:
    """Prints the processor time and the time of an update, medians after one that compiles, and the peak memory.

    The processor time is that of all cores together, which says what is computed also where others use the machine.
    """
    context = multiprocessing.get_context("spawn")  # a peak is that of a whole process
    print(f"{name}: {sizes.prompts} x {sizes.responses} answers of {sizes.response_tokens} tokens\n")
    print("| | processor time of an update | time | peak memory |\n|---|---|---|---|")
    for method in METHODS:
        with context.Pool(1) as pool:
            computing, waiting, peak = pool.apply(measured, (method, name, sizes, repeat))
        print(f"| {method} | {computing:.1f} s | {waiting:.1f} s | {peak / 1e9:.1f} GB |", flush=True)


def measured(method: str, name: str, sizes: Sizes, repeat: int) -> tuple[float, float, int]:
    """Seconds of an update of random answers, what comes before its gradient included, and peak bytes: of the
    processor, and on the clock.
    """
    shape, settings = find_shape(name), METHODS[method]
    policy = decoder_policy(shape, jnp.float32, "products")
    objective = gj.objectives.grpo(kl=0.0) if settings is None else ppo.objective()
    sampler = gj.Sampler((0,), responses=sizes.responses, max_tokens=sizes.response_tokens)
    algorithm = gj.Algorithm(policy, sampler, str, cast(Any, len), objective, gj.adamw(1e-6, warmup_steps=0))
    params, rollouts = jax.jit(policy.init)(jax.random.key(0)), random_answers(shape.vocabulary, sizes)
    rewards = gj.Rewards(np.random.default_rng(1).uniform(size=(sizes.prompts, sizes.responses, 1)).astype(np.float32))
    key, found = jax.random.key(0), []
    state = gj.init(algorithm, params) if settings is None else ppo.init(algorithm, settings, params)
    del params
    for _ in range(repeat + 1):
        begun = time.process_time(), time.perf_counter()
        if settings is None:
            state, _ = gj.update(algorithm, state, gj.prepare(algorithm, state, rollouts, rewards, key))
        else:
            valued = ppo.prepare(algorithm, settings, state, rollouts, rewards, key)
            state, _ = ppo.update(algorithm, settings, state, valued)
        jax.block_until_ready(state)
        found.append((time.process_time() - begun[0], time.perf_counter() - begun[1]))
    computing, waiting = (median(each) for each in zip(*found[1:], strict=True))
    return computing, waiting, peak_bytes()


def random_answers(vocabulary: int, sizes: Sizes) -> gj.Rollouts:
    """Answers of random tokens, all of full length."""
    random, shape = np.random.default_rng(0), (sizes.prompts, sizes.responses, sizes.response_tokens)
    tokens_PL = random.integers(0, vocabulary, (sizes.prompts, sizes.prompt_tokens)).astype(np.int32)
    tokens_PGT = jnp.asarray(random.integers(0, vocabulary, shape), jnp.int32)
    every_PGT, ended_PG = jnp.ones(shape, bool), jnp.ones(shape[:2], bool)
    numbers_PGT = jnp.full(shape, -10.0), jnp.zeros(shape)
    prompts = gj.Prompts(tokens_PL, np.ones(tokens_PL.shape, bool))
    return gj.Rollouts(prompts, tokens_PGT, every_PGT, every_PGT, *numbers_PGT, ended_PG, Distribution())


def main() -> None:
    """Prints one of the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["plan", "measure"])
    parser.add_argument("--config", default="configs/travel.yaml", help="of the plan; default: %(default)s")
    parser.add_argument("--topology", default="v5e-1", help="of the plan; default: %(default)s")
    parser.add_argument("--model", default="smollm2-135m", help="that is measured; default: %(default)s")
    parser.add_argument("--repeat", type=int, default=3, help="updates that are timed; default: %(default)s")
    arguments = parser.parse_args()
    if arguments.what == "plan":
        plan(arguments.config, arguments.topology)
    else:
        measure(arguments.model, Sizes(), arguments.repeat)


if __name__ == "__main__":
    main()
