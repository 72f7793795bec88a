"""Measures what replaying the sampler's experts is worth: python docs/measure_experts.py prints a table.

A random model of eight layers with 32 experts, 4 for each token, samples in bfloat16, and the trainer scores the
responses with the experts that its own router chooses, or with those that were recorded.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.learner.logprobs import token_logprobs
from grpo_jax.metrics import describe_mismatch
from grpo_jax.models import decoder_policy, tiny
from grpo_jax.models.decoder import Experts
from grpo_jax.rollout import Sampler

ROUNDS = 4
EXPERTS = Experts(count=32, chosen=4, feedforward=32, normalized=True)

model = tiny()
shape = replace(model.shape, layers=8, experts=EXPERTS, feedforward=128)
prompts = model.tokenizer.encode_all([f"What is {n} + {n}?" for n in range(8)], max_tokens=64)
score = jax.jit(token_logprobs, static_argnums=0)
print("| activations | experts in learning | tokens | mean gap | gaps above 0.1 | largest gap | k3 |")
print("|---|---|---|---|---|---|---|")
for dtype in (jnp.float32, jnp.bfloat16):
    policy = decoder_policy(shape, dtype, replay_experts=True)
    params, found = policy.init(jax.random.key(0)), {"the router's": [], "the sampler's": []}
    for seed in range(ROUNDS):
        sampler = Sampler((0,), responses=8, max_tokens=64)
        rollouts = sampler(policy, params, prompts, jax.random.key(seed))
        for name, given in zip(found, (rollouts.without_experts, rollouts), strict=True):
            logprobs_PGT = score(policy, params, given)[0]
            gap_PGT = np.abs(np.asarray(logprobs_PGT) - np.asarray(rollouts.logprobs_PGT))
            found[name].append((gap_PGT[np.asarray(rollouts.action_PGT)], describe_mismatch(logprobs_PGT, rollouts)))
    for name, rounds in found.items():
        gap = np.concatenate([gap for gap, _ in rounds])
        k3 = np.mean([float(metrics["sampling/k3"]) for _, metrics in rounds])
        print(
            f"| {jnp.dtype(dtype).name} | {name} | {len(gap)} | {gap.mean():.1e} | {np.mean(gap > 0.1):.1e} |"
            f" {gap.max():.1e} | {k3:.1e} |",
            flush=True,
        )
