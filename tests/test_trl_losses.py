"""The objectives compute what TRL 1.16.0 computes: its losses, gradients and metrics on fixed inputs.

TRL's settings are combinations here. What the copied cases leave out, and where they come from, is written in
data/copy_trl_losses.py.
"""

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import objectives
from grpo_jax.devices.mesh import Layout
from grpo_jax.devices.sharding import weight_shardings
from grpo_jax.distribution import Distribution
from grpo_jax.learner.logprobs import token_logprobs
from grpo_jax.models.families import NAMES
from grpo_jax.models.model_config import read_shape
from grpo_jax.models.policy import decoder_policy
from grpo_jax.models.weights import load_weights
from grpo_jax.objectives import Objective, credit, first_coefficients, next_coefficients, scored_of
from grpo_jax.objectives.advantages import Advantage, GroupStd, group_mean
from grpo_jax.objectives.coefficients import Stepwise
from grpo_jax.objectives.corrections import (
    OffPolicyMask,
    SequenceMask,
    SequenceTruncation,
    TokenMask,
    TokenTruncation,
    TopEntropy,
)
from grpo_jax.objectives.kl import KL, k3
from grpo_jax.objectives.ratios import BoundedProduct, sequence, sequence_product, token
from grpo_jax.objectives.surrogates import ClippedRatio, ClippedWeight, GammaWeight, GeometricClip, SoftGate
from grpo_jax.objectives.terms import Term, entropy
from grpo_jax.objectives.weightings import FixedLength, sequence_mean, sequence_sum, token_mean
from grpo_jax.structs import Batch, Params, Policy, Prompts, Rollouts, Tokens

DATA = Path(__file__).parent / "data"
RECORD = json.loads((DATA / "trl_losses.json").read_text())
ARRAYS = np.load(DATA / "trl_losses.npz")
DEFAULTS = RECORD["defaults"][0]
P, G = 2, 3  # TRL's six rows as two groups
LEVELS = {"token": token, "sequence": sequence}
WEIGHTINGS = {"bnpo": token_mean, "dapo": token_mean, "cispo": token_mean, "vespo": token_mean, "luspo": sequence_sum}
NO_KEY = jax.random.key(0)


@dataclass(frozen=True)
class Given:
    """A correction that was computed elsewhere."""

    ratio_PGT: jax.Array

    def __call__(self, tokens: Tokens) -> jax.Array:
        return jnp.broadcast_to(self.ratio_PGT, tokens.action_PGT.shape)


def surrogate_of(case: dict):
    high = case["epsilon"] if case["epsilon_high"] is None else case["epsilon_high"]
    match case["loss_type"]:
        case "cispo":
            return ClippedWeight(0.0, high)  # TRL's epsilon_high is the largest weight itself
        case "sapo":
            return SoftGate(case["sapo_temperature_pos"], case["sapo_temperature_neg"])
        case "vespo":
            powers = (case["vespo_k_pos"], case["vespo_lambda_pos"], case["vespo_k_neg"], case["vespo_lambda_neg"])
            return GammaWeight(*powers)
        case "gmpo":
            return GeometricClip(case["epsilon"], high)
    return ClippedRatio(case["epsilon"], high, case["delta"])


def weighting_of(case: dict):
    if case["loss_type"] == "dr_grpo":
        return FixedLength(case["max_completion_length"])
    return WEIGHTINGS.get(case["loss_type"], sequence_mean)


def objective_of(case: dict) -> Objective:
    """TRL's settings as a combination."""
    vespo, gmpo = case["loss_type"] == "vespo", case["loss_type"] == "gmpo"
    level = LEVELS[case["importance_sampling_level"]]
    threshold, share = case["off_policy_mask_threshold"], case["top_entropy_quantile"]
    corrections = () if threshold is None else (OffPolicyMask(threshold),)
    if case["is_ratio"] and not vespo:
        corrections = (Given(grouped(f"in.base.{case['is_ratio']}")), *corrections)
    terms = ()
    if case["use_adaptive_entropy"]:
        bonus = Stepwise(case["entropy_target"], case["entropy_coef"], case["entropy_coef_delta"])
        terms = (Term(bonus, entropy, token_mean),)
    elif case["entropy_coef"]:
        terms = (Term(case["entropy_coef"], entropy, token_mean),)
    return Objective(
        Advantage(group_mean, GroupStd()),
        surrogate_of(case),
        weighting_of(case),
        ratio=BoundedProduct(20.0) if vespo else level,
        anchor="sampler" if vespo and case["is_ratio"] else "recomputed",
        masks=(TopEntropy(share),) if share < 1 else (),
        corrections=corrections,
        kl=KL(case["beta"], k3, ratio=level if case["use_bias_correction_kl"] and not gmpo else None)
        if case["beta"]
        else None,
        terms=terms,
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
        Distribution(temperature=temperature),
    )


def batch_of(objective: Objective, case: dict) -> Batch:
    """These rows as the first of some equal microbatches of a batch, which is how TRL accumulates gradients."""
    name, steps = case["input"], case["gradient_accumulation_steps"] if case["mode"] == "train" else 1
    action_PGT = action_of(name)
    prompts = Prompts(jnp.zeros((P, 1), jnp.int32), jnp.ones((P, 1), bool))
    old_PGT = grouped(f"in.{name}.old_per_token_logps") if case["use_old"] else None
    sampler_PGT = grouped(f"in.{name}.per_token_logps") if old_PGT is None else old_PGT
    if case["sampling"]:
        sampler_PGT = grouped(f"in.{name}.{case['sampling']}")
    if case["loss_type"] == "vespo" and case["is_ratio"]:
        sampler_PGT = old_PGT - log_of(case)
    rollouts = replace(
        rollouts_of(action_PGT, prompts, jnp.zeros(action_PGT.shape, jnp.int32), 1.0),
        logprobs_PGT=sampler_PGT,
        entropy_PGT=grouped(f"in.{name}.entropies"),
    )
    arrays = {"old_logprobs_PGT": old_PGT, "ref_logprobs_PGT": grouped(f"in.{name}.ref_per_token_logps")}
    together = partial(jax.tree.map, lambda a: jnp.concatenate([a] * steps))
    everything, known = together(rollouts), together({key: a for key, a in arrays.items() if a is not None})
    nothing_PG1 = jnp.zeros((steps * P, G, 1))
    scored = scored_of(nothing_PG1, jnp.ones(1), everything)
    coefficients = first_coefficients(objective)
    batch = credit(objective, everything, scored, NO_KEY, coefficients=coefficients, **known)
    first = jax.tree.map(lambda a: a[:P] if a.ndim > 1 else a, batch)
    return replace(first, advantages=grouped(f"in.{name}.advantages"))


def log_of(case: dict) -> jax.Array:
    """The log of TRL's ratio of trainer to sampler, which VESPO includes; that of a response is at its first token."""
    log_PGT = jnp.clip(jnp.log(jnp.maximum(grouped(f"in.base.{case['is_ratio']}"), 1e-8)), jnp.log(1e-8), 20.0)
    T = action_of("base").shape[2]
    return log_PGT if log_PGT.shape[2] == T else jnp.pad(log_PGT, ((0, 0), (0, 0), (0, T - 1)))


def measure(objective: Objective, name: str, batch: Batch):
    logprobs_PGT, entropy_PGT = grouped(f"in.{name}.per_token_logps"), grouped(f"in.{name}.entropies")
    return jax.value_and_grad(partial(objectives.loss, objective), (0, 1), has_aux=True)(
        logprobs_PGT, entropy_PGT, batch
    )


@pytest.mark.parametrize(
    ("case", "gradient"),
    [pytest.param(*pair, id=str(pair[0]["id"])) for pair in zip(RECORD["losses"], ARRAYS["gradients"], strict=True)],
)
@pytest.mark.slow
def test_loss_gradient_and_metrics_are_those_of_trl(case, gradient):
    case = DEFAULTS | case
    objective = objective_of(case)
    batch = batch_of(objective, case)
    (loss, sums), (gradient_PGT, entropy_PGT) = measure(objective, case["input"], batch)
    np.testing.assert_allclose(loss, case["loss"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient_PGT, gradient.reshape(gradient_PGT.shape), rtol=1e-4, atol=1e-5)
    found = np.flatnonzero(ARRAYS["entropy_gradients_of"] == case["id"])
    theirs = ARRAYS["entropy_gradients"][found[0]] if found.size else np.zeros(gradient.shape)
    np.testing.assert_allclose(entropy_PGT, theirs.reshape(entropy_PGT.shape), rtol=1e-4, atol=1e-5)
    tokens = jnp.sum(batch.rollouts.action_PGT)
    for key in comparable(case):
        np.testing.assert_allclose(sums[key] / tokens, case["metrics"][key], rtol=1e-4, atol=1e-6)


def comparable(case: dict) -> list[str]:
    """The metrics that mean the same: TRL counts responses if the ratio is one of responses, and ignores the cap."""
    keys = ["kl"] if case["beta"] and case["loss_type"] != "gmpo" else []
    clips = case["loss_type"] in ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
    if clips and case["importance_sampling_level"] == "token":
        keys += ["clip_ratio/high_mean"] if case["delta"] else ["clip_ratio/high_mean", "clip_ratio/low_mean"]
    return keys


def test_an_adaptive_entropy_bonus_changes_as_that_of_trl():
    case = next(DEFAULTS | case for case in RECORD["losses"] if case.get("use_adaptive_entropy"))
    objective = objective_of(case)
    batch = batch_of(objective, case)
    entropy_PGT = jnp.where(action_of(case["input"]), grouped(f"in.{case['input']}.entropies"), 0.0)
    measured = {"entropy": jnp.sum(entropy_PGT) / jnp.sum(batch.rollouts.action_PGT)}
    following = next_coefficients(objective, batch.coefficients, measured)["term 1"]
    np.testing.assert_allclose(following, [case["metrics"]["entropy_coef_after"]] * 2, rtol=1e-6)


CORRECTIONS = {
    "token_truncate": lambda low, high: TokenTruncation(high, low),
    "token_mask": lambda low, high: TokenMask(low, high),
    "sequence_truncate": lambda low, high: SequenceTruncation(high, low),
    "sequence_mask": lambda low, high: SequenceMask(low, high),
}


@pytest.mark.parametrize("case", RECORD["ratios"], ids=lambda case: f"{case['id']}-{case['mode']}")
def test_corrections_for_the_sampler_are_those_of_trl(case):
    trainer_BT, sampler_BT = (jnp.asarray(ARRAYS[f"D.{name}"]) for name in ("old_per_token_logps", case["sampling"]))
    low = 0.0 if case["clip_min"] is None else case["clip_min"]
    high = jnp.inf if case["clip_max"] is None else case["clip_max"]
    lengths_B = jnp.array(case["completion_mask_rows"])
    action_PGT = (jnp.arange(trainer_BT.shape[1])[None] < lengths_B[:, None])[None]
    nothing_PGT = jnp.zeros(action_PGT.shape)
    tokens = Tokens(action_PGT, *(nothing_PGT,) * 5, trainer_PGT=trainer_BT[None], sampler_PGT=sampler_BT[None])
    ours_PGT = CORRECTIONS[case["mode"]](low, high)(tokens)
    theirs_BT = ARRAYS[f"D.ratio.{case['id']}"]
    np.testing.assert_allclose(ours_PGT[0], np.broadcast_to(theirs_BT, ours_PGT[0].shape), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("index", range(len(RECORD["rloo"])))
def test_rloo_with_a_clipped_ratio_of_the_sequence_is_that_of_trl(index):
    case = DEFAULTS | {"loss_type": "rloo"} | RECORD["rloo"][index]
    high = case["epsilon"] if case["epsilon_high"] is None else case["epsilon_high"]
    surrogate = ClippedRatio(case["epsilon"], high)
    objective = Objective(Advantage(group_mean, GroupStd()), surrogate, sequence_mean, ratio=sequence_product)
    (loss, _), (gradient_PGT, _) = measure(objective, case["input"], batch_of(objective, case))
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


def scored_batch(case: dict, objective: Objective) -> Batch:
    """The model's six rows: each has a prompt of its own."""
    prompts = Prompts(jnp.asarray(ARRAYS["B.prompt_ids"]), jnp.asarray(ARRAYS["B.prompt_mask"] == 1))
    action_PGT = jnp.asarray(ARRAYS["B.completion_mask"] == 1)[:, None]
    tokens_PGT = jnp.asarray(ARRAYS["B.completion_ids"])[:, None]
    old, ref = (ARRAYS[f"B.T{case['temperature']}.{name}_per_token_logps"] for name in ("old", "ref"))
    rollouts = rollouts_of(action_PGT, prompts, tokens_PGT, case["temperature"])
    known = {"old_logprobs_PGT": jnp.asarray(old)[:, None], "ref_logprobs_PGT": jnp.asarray(ref)[:, None]}
    rollouts = replace(rollouts, logprobs_PGT=known["old_logprobs_PGT"])
    batch = credit(objective, rollouts, scored_of(jnp.zeros((6, 1, 1)), jnp.ones(1), rollouts), NO_KEY, **known)
    return replace(batch, advantages=jnp.asarray(ARRAYS["in.base.advantages"])[:, None])


def norms_of(gradient: dict) -> dict[str, float]:
    """The norm of each parameter's gradient, by its Hugging Face name."""
    norms = {}
    for path, array in jax.tree_util.tree_leaves_with_path(gradient):
        name, _ = NAMES["/".join(part.key for part in path)]
        parts = {name.format(n=n): part for n, part in enumerate(array)} if "{n}" in name else {name: array}
        norms |= {name: float(jnp.linalg.norm(part.ravel())) for name, part in parts.items()}
    return norms


@pytest.mark.parametrize("case", RECORD["model"], ids=lambda case: f"{case['loss_type']}-{case['temperature']}")
@pytest.mark.slow
def test_log_probs_loss_and_parameter_gradients_of_a_model_are_those_of_trl(case, qwen3):
    policy, params = qwen3
    objective = objective_of(DEFAULTS | case)
    batch = scored_batch(case, objective)

    logprobs_PGT, pull_back = jax.vjp(lambda params: score(policy, params, batch.rollouts), params)
    nothing_PGT = jnp.zeros(logprobs_PGT.shape)
    (loss, _), slope_PGT = jax.value_and_grad(partial(objectives.loss, objective), has_aux=True)(
        logprobs_PGT, nothing_PGT, batch
    )
    norms = norms_of(*pull_back(slope_PGT))
    theirs_BT = ARRAYS[f"B.T{case['temperature']}.per_token_logps"]
    np.testing.assert_allclose(logprobs_PGT[:, 0], theirs_BT, atol=1e-4)
    np.testing.assert_allclose(loss, case["loss"], rtol=1e-4, atol=1e-6)
    assert norms.keys() == case["param_grad_norms"].keys()
    for name, norm in case["param_grad_norms"].items():
        np.testing.assert_allclose(norms[name], norm, rtol=1e-3, err_msg=name)
