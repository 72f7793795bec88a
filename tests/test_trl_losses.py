"""The objectives compute what TRL 1.16.0 computes: its losses, gradients and metrics on fixed inputs.

TRL's settings are combinations here. What the copied cases leave out, and where they come from, is written in
data/copy_trl_losses.py.
"""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.advantages import Advantage, GroupStd, group_mean
from grpo_jax.distribution import Distribution
from grpo_jax.logprobs import token_logprobs
from grpo_jax.models.families import NAMES, read_shape
from grpo_jax.models.policy import decoder_policy
from grpo_jax.models.weights import load_weights
from grpo_jax.objectives import (
    KL,
    ClippedRatio,
    FixedLength,
    Objective,
    k3,
    sequence,
    sequence_mean,
    sequence_product,
    sequence_sum,
    token,
    token_mean,
)
from grpo_jax.runtime.sharding import Layout, weight_shardings
from grpo_jax.structs import Batch, Params, Policy, Prompts, Rollouts

DATA = Path(__file__).parent / "data"
RECORD = json.loads((DATA / "trl_losses.json").read_text())
ARRAYS = np.load(DATA / "trl_losses.npz")
DEFAULTS = RECORD["defaults"][0]
P, G = 2, 3  # TRL's six rows as two groups
RATIOS = {"token": token, "sequence": sequence}
WEIGHTINGS = {"grpo": sequence_mean, "bnpo": token_mean, "dapo": token_mean, "luspo": sequence_sum}


def objective_of(case: dict) -> Objective:
    high = case["epsilon"] if case["epsilon_high"] is None else case["epsilon_high"]
    weighting = WEIGHTINGS.get(case["loss_type"]) or FixedLength(case["max_completion_length"])
    kl = KL(case["beta"], k3, corrected=case["use_bias_correction_kl"]) if case["beta"] else None
    surrogate = ClippedRatio(case["epsilon"], high, case.get("delta"))
    return Objective(
        Advantage(group_mean, GroupStd()), RATIOS[case["importance_sampling_level"]], surrogate, weighting, kl
    )


def grouped(name: str) -> jax.Array:
    rows = ARRAYS[name]
    return jnp.asarray(rows.reshape(P, G, *rows.shape[1:]))


def action_of(name: str) -> jax.Array:
    mask_PGT = grouped(f"in.{name}.completion_mask")
    return (mask_PGT * grouped("in.tool.tool_mask") if name == "tool" else mask_PGT) == 1


def rollouts_of(action_PGT: jax.Array, prompts: Prompts, tokens_PGT: jax.Array, temperature: float) -> Rollouts:
    nothing_PGT = jnp.zeros(action_PGT.shape)
    return Rollouts(
        prompts,
        tokens_PGT,
        action_PGT,
        action_PGT,
        nothing_PGT,
        nothing_PGT,
        action_PGT[..., -1],
        Distribution(temperature),
    )


def batch_of(name: str, weighting, steps: int = 1, use_old: bool = True) -> Batch:
    """These rows as the first of `steps` equal parts of a batch, which is how TRL accumulates gradients."""
    action_PGT = action_of(name)
    prompts = Prompts(jnp.zeros((P, 1), jnp.int32), jnp.ones((P, 1), bool))
    return Batch(
        rollouts_of(action_PGT, prompts, jnp.zeros(action_PGT.shape, jnp.int32), 1.0),
        grouped(f"in.{name}.advantages"),
        weighting(jnp.concatenate([action_PGT] * steps))[:P],
        grouped(f"in.{name}.old_per_token_logps") if use_old else None,
        grouped(f"in.{name}.ref_per_token_logps"),
    )


def measure(objective: Objective, name: str, batch: Batch):
    logprobs_PGT = grouped(f"in.{name}.per_token_logps")
    return jax.value_and_grad(objective, has_aux=True)(logprobs_PGT, batch)


@pytest.mark.parametrize(
    ("case", "gradient"),
    [pytest.param(*pair, id=str(pair[0]["id"])) for pair in zip(RECORD["losses"], ARRAYS["gradients"], strict=True)],
)
def test_loss_gradient_and_metrics_are_those_of_trl(case, gradient):
    case = DEFAULTS | case
    objective = objective_of(case)
    steps = case["gradient_accumulation_steps"] if case["mode"] == "train" else 1
    batch = batch_of(case["input"], objective.weighting, steps, case["use_old"])
    (loss, sums), gradient_PGT = measure(objective, case["input"], batch)
    np.testing.assert_allclose(loss, case["loss"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient_PGT, gradient.reshape(gradient_PGT.shape), rtol=1e-4, atol=1e-5)
    tokens = jnp.sum(batch.rollouts.action_PGT)
    for key in comparable(case):
        np.testing.assert_allclose(sums[key] / tokens, case["metrics"][key], rtol=1e-4, atol=1e-6)


def comparable(case: dict) -> list[str]:
    """TRL counts responses where the ratio is a response's, and never those that the cap stops."""
    keys = ["kl"] if case["beta"] else []
    if case["importance_sampling_level"] == "token":
        keys += ["clip_ratio/high_mean"] if case["delta"] else ["clip_ratio/high_mean", "clip_ratio/low_mean"]
    return keys


@pytest.mark.parametrize("index", range(len(RECORD["rloo"])))
def test_rloo_with_a_clipped_ratio_of_the_sequence_is_that_of_trl(index):
    case = RECORD["rloo"][index]
    high = case["epsilon"] if case["epsilon_high"] is None else case["epsilon_high"]
    surrogate = ClippedRatio(case["epsilon"], high)
    objective = Objective(Advantage(group_mean, GroupStd()), sequence_product, surrogate, sequence_mean)
    (loss, _), gradient_PGT = measure(objective, case["input"], batch_of(case["input"], sequence_mean))
    np.testing.assert_allclose(loss, case["loss"], rtol=1e-4, atol=1e-6)
    theirs_PGT = grouped(f"rloo.{index}.grad_logps")
    np.testing.assert_allclose(gradient_PGT, theirs_PGT, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def qwen3():
    directory = DATA / "trl_qwen3"
    policy = decoder_policy(read_shape(directory), remat="none")
    shapes = jax.eval_shape(policy.init, jax.random.key(0))
    mesh = Layout().mesh(jax.devices()[:1])
    return policy, load_weights(directory, shapes, weight_shardings(shapes, mesh))


@partial(jax.jit, static_argnums=0)
def score(policy: Policy, params: Params, rollouts: Rollouts) -> jax.Array:
    return token_logprobs(policy, params, rollouts)[0]


def scored_batch(case: dict, weighting) -> Batch:
    """The model's six rows: each has a prompt of its own."""
    prompts = Prompts(jnp.asarray(ARRAYS["B.prompt_ids"]), jnp.asarray(ARRAYS["B.prompt_mask"] == 1))
    action_PGT = jnp.asarray(ARRAYS["B.completion_mask"] == 1)[:, None]
    tokens_PGT = jnp.asarray(ARRAYS["B.completion_ids"])[:, None]
    old, ref = (ARRAYS[f"B.T{case['temperature']}.{name}_per_token_logps"] for name in ("old", "ref"))
    return Batch(
        rollouts_of(action_PGT, prompts, tokens_PGT, case["temperature"]),
        jnp.asarray(ARRAYS["in.base.advantages"])[:, None],
        weighting(action_PGT),
        jnp.asarray(old)[:, None],
        jnp.asarray(ref)[:, None],
    )


def norms_of(gradient: dict) -> dict[str, float]:
    """The norm of each parameter's gradient, by its Hugging Face name."""
    norms = {}
    for path, array in jax.tree_util.tree_leaves_with_path(gradient):
        name, _ = NAMES["/".join(part.key for part in path)]
        parts = {name.format(n=n): part for n, part in enumerate(array)} if "{n}" in name else {name: array}
        norms |= {name: float(jnp.linalg.norm(part.ravel())) for name, part in parts.items()}
    return norms


@pytest.mark.parametrize("case", RECORD["model"], ids=lambda case: f"{case['loss_type']}-{case['temperature']}")
def test_log_probs_loss_and_parameter_gradients_of_a_model_are_those_of_trl(case, qwen3):
    policy, params = qwen3
    objective = objective_of(case)
    batch = scored_batch(case, objective.weighting)

    logprobs_PGT, pull_back = jax.vjp(lambda params: score(policy, params, batch.rollouts), params)
    (loss, _), slope_PGT = jax.value_and_grad(objective, has_aux=True)(logprobs_PGT, batch)
    norms = norms_of(*pull_back(slope_PGT))
    theirs_BT = ARRAYS[f"B.T{case['temperature']}.per_token_logps"]
    np.testing.assert_allclose(logprobs_PGT[:, 0], theirs_BT, atol=1e-4)
    np.testing.assert_allclose(loss, case["loss"], rtol=1e-4, atol=1e-6)
    assert norms.keys() == case["param_grad_norms"].keys()
    for name, norm in case["param_grad_norms"].items():
        np.testing.assert_allclose(norms[name], norm, rtol=1e-3, err_msg=name)
