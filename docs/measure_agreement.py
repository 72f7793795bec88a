"""Measures how far log-probs of trainer and sampler differ in float32: python docs/measure_agreement.py prints a table.

A random model of two layers answers the same prompts under each distribution, and the trainer scores the responses.
Where tokens are left out (top-p, min-p, top-k), rounding may put a token at the edge on the other side of the threshold
for the trainer; the probability of that token is then missing from one of the two sums.
"""

import jax
import numpy as np

from grpo_jax.devices.mesh import Layout
from grpo_jax.learner.logprobs import token_logprobs
from grpo_jax.models import tiny
from grpo_jax.rollout import Sampler

SETTINGS = {
    "all tokens": {},
    "temperature 0.7": {"temperature": 0.7},
    "top_k 40": {"top_k": 40},
    "top_p 0.95": {"top_p": 0.95},
    "top_p 0.6": {"top_p": 0.6},
    "min_p 0.1": {"min_p": 0.1},
}
ROUNDS = 8

model = tiny(remat="none")
params = model.params(Layout().mesh(jax.devices()[:1]))
prompts = model.tokenizer.encode_all([f"What is {n} + {n}?" for n in range(32)], max_tokens=64)
score = jax.jit(token_logprobs, static_argnums=0)
print("| distribution | tokens | mean gap | largest gap | tokens with a gap above 2e-4 |\n|---|---|---|---|---|")
for name, settings in SETTINGS.items():
    sampler, gaps = Sampler((0,), responses=8, max_tokens=64, **settings), []
    for seed in range(ROUNDS):
        rollouts = sampler(model.policy, params, prompts, jax.random.key(seed))
        logprobs_PGT, _ = score(model.policy, params, rollouts)
        gap_PGT = np.abs(np.asarray(logprobs_PGT) - np.asarray(rollouts.logprobs_PGT))
        gaps.append(gap_PGT[np.asarray(rollouts.action_PGT)])
    gap = np.concatenate(gaps)
    print(f"| {name} | {len(gap)} | {gap.mean():.1e} | {gap.max():.1e} | {np.mean(gap > 2e-4):.1e} |", flush=True)
