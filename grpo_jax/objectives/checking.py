"""Whether the functions of an objective give what they should, before anything compiles.

Every function is traced with the shapes of the run, without computing anything. What comes back must have exactly the
shape that is asked for: one number for each response where one for each token is meant would be broadcast in silence.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from grpo_jax.distribution import Distribution
from grpo_jax.objectives.advantages import Advantage
from grpo_jax.objectives.coefficients import adaptive
from grpo_jax.objectives.credit import credit
from grpo_jax.objectives.groups import least_group, parts_of
from grpo_jax.objectives.loss import loss
from grpo_jax.objectives.objective import Objective
from grpo_jax.structs import Rollouts, Scored, Tokens, prompt_shapes, rollout_shapes

L = 16  # positions of prompts, which no function of an objective looks at
ARRAYS = (Array, np.ndarray, np.generic, bool, int, float)


def check_group(objective: Objective, G: int) -> None:
    """Refuses a group so small that the objective would learn nothing from it."""
    kept = min([G, *(getattr(select, "count", G) for select in objective.select)])
    compared = [(f"objective.select[{n}]", select, G) for n, select in enumerate(objective.select)]
    if not objective.distillation:
        compared.append(("objective.advantage", objective.advantage, kept))
    for axis, choice, size in compared:
        least = least_group(choice)
        if size < least:
            raise ValueError(
                f"{axis} compares the responses to a prompt with each other: it needs at least {least}, and would get"
                f" {size}, from which nothing can be learned. Raise rollout.responses (or what the objective keeps), or"
                " choose an objective that compares no groups, such as reinforce_pp or remax."
            )


def check_objective(objective: Objective, P: int, G: int, T: int, R: int) -> None:
    """Refuses functions that cannot be traced or give the wrong shape or type, by their place in the objective.

    P, G and T are those of a step; R is the number of rewards.
    """
    jax.eval_shape(functools.partial(_check_all, objective, P, G, T, R))


def _check_all(objective: Objective, P: int, G: int, T: int, R: int) -> None:
    """All checks, on arrays of zeros that are never computed, as this is traced."""
    shapes = rollout_shapes(prompt_shapes(P, L), G, T, Distribution())
    rollouts = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), shapes)
    number_PGT = rollouts.logprobs_PGT
    scored = Scored(  # as if there were rewards of steps: whether there are is known only once there are responses
        jnp.zeros((P, G)),
        jnp.zeros((P, G, R)),
        jnp.zeros(R),
        rollouts.action_PGT,
        rollouts.ended_PG,
        number_PGT,
        jnp.zeros((P, 1)) if objective.greedy_baseline else None,
    )
    _check_credit(objective, scored, rollouts)
    _check_tokens(objective, Tokens(rollouts.action_PGT, *[number_PGT] * 7))
    _check_whole(objective, scored, rollouts)


def _check_credit(objective: Objective, scored: Scored, rollouts: Rollouts) -> None:
    """Everything that is decided before the gradient from rewards, each choice by itself."""
    action_PGT = rollouts.action_PGT
    shape_PG = action_PGT.shape[:2]
    for n, shape in enumerate(objective.shaping):
        scored = _shaped(f"objective.shaping[{n}]", shape, scored)
    for n, select in enumerate(objective.select):
        _asked(f"objective.select[{n}]", shape_PG, "bool", select, scored)
    _check_baselines("objective.advantage", objective.advantage, scored)
    advantages = _asked(
        "objective.advantage", shape_PG, "float", objective.advantage, scored, or_shape=action_PGT.shape
    )
    for n, prune in enumerate(objective.prune):
        _asked(f"objective.prune[{n}]", shape_PG, "bool", prune, scored, advantages)
    for axis, weighting in _weightings(objective):
        _asked(axis, action_PGT.shape, "float", weighting, action_PGT, rollouts.ended_PG)


def _weightings(objective: Objective) -> list[tuple[str, Callable[[Array, Array], Array]]]:
    more = [(f"objective.terms[{n}].weighting", term.weighting) for n, term in enumerate(objective.terms)]
    return [
        ("objective.weighting", objective.weighting),
        *((axis, given) for axis, given in more if given is not None),
    ]


def _shaped(axis: str, shape: Callable[[Scored], Scored], scored: Scored) -> Scored:
    """What a shaping function makes of rewards; only the numbers of `Scored` may change, not their shapes."""
    shaped = _traced(axis, shape, scored)
    if not isinstance(shaped, Scored):
        raise ValueError(f"{axis} must return a Scored, such as replace(scored, rewards_PG=...); it gave {shaped!r}.")
    for name in ("rewards_PG", "parts_PGR"):
        before, after = getattr(scored, name), getattr(shaped, name)
        if before is not None:
            _refuse_unless(f"{axis}, {name}", shape, after, [before.shape], "float")
    return shaped


def _check_baselines(axis: str, advantage: object, scored: Scored) -> None:
    """The center and scale of every `Advantage` inside an advantage: a number for each group, response, or for all."""
    if isinstance(advantage, Advantage):
        P, G = scored.rewards_PG.shape
        for name in ("center", "scale"):
            baseline = getattr(advantage, name)
            value = _traced(f"{axis}.{name}", baseline, scored)
            _refuse_unless(f"{axis}.{name}", baseline, value, [(P, 1), (P, G), (1, 1), ()], "float")
    for name, inner in parts_of(advantage).items():
        if name not in ("center", "scale"):
            _check_baselines(f"{axis}.{name}", inner, scored)


def _check_tokens(objective: Objective, tokens: Tokens) -> None:
    """Everything that is asked of tokens, each choice by itself."""
    shape, key = tokens.action_PGT.shape, jax.random.key(0)
    difference_PGT, action_PGT = tokens.logprobs_PGT, tokens.action_PGT
    _asked("objective.ratio", shape, "float", objective.ratio, difference_PGT, action_PGT)
    _asked("objective.surrogate", shape, "float", objective.surrogate, tokens)
    for n, mask in enumerate(objective.masks):
        _asked(f"objective.masks[{n}]", shape, "bool", mask, tokens, key)
    for n, correction in enumerate(objective.corrections):
        _asked(f"objective.corrections[{n}]", shape, "bool or float", correction, tokens)
    for n, term in enumerate(objective.terms):
        _asked(f"objective.terms[{n}].value", shape, "float", term.value, tokens)
        if term.mask is not None:
            _asked(f"objective.terms[{n}].mask", shape, "bool", term.mask, tokens, key)
    for name, coefficient in adaptive(objective).items():
        _asked(f"the coefficient of {name}", (2,), "float", coefficient.begin)
    kl = objective.counted_kl
    if kl is not None:
        _asked("objective.kl.estimator", shape, "float", kl.estimator, tokens.logprobs_PGT, tokens.trainer_PGT)
        if kl.ratio is not None:
            _asked("objective.kl.ratio", shape, "float", kl.ratio, difference_PGT, action_PGT)


def _check_whole(objective: Objective, scored: Scored, rollouts: Rollouts) -> None:
    """The batch and the gradient of its loss, for what the functions do together."""
    number_PGT = rollouts.logprobs_PGT
    coefficients = {name: jnp.zeros(2) for name in adaptive(objective)}
    fixed = {f"{name}_logprobs_PGT": number_PGT for name in ("old", "ref", "teacher")}
    batch = credit(objective, rollouts, scored, jax.random.key(0), coefficients=coefficients, **fixed)

    def value(logprobs_PGT: Array) -> Array:
        return loss(objective, logprobs_PGT, number_PGT, batch)[0]

    _traced("the gradient of the objective", jax.grad(value), number_PGT)


def _asked(
    axis: str,
    shape: tuple[int, ...],
    kind: str,
    function: Callable[..., Any],
    *arguments: Any,
    or_shape: tuple[int, ...] | None = None,
) -> Array:
    """What a function gives for these arguments, refused unless it has the shape and type that are expected."""
    value = _traced(axis, function, *arguments)
    _refuse_unless(axis, function, value, [shape] if or_shape is None else [shape, or_shape], kind)
    return value


def _traced(axis: str, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{axis}: {_name(function)} cannot be computed by JAX with the arrays of this run:"
            f" {type(error).__name__}: {first}"
        ) from error


def _refuse_unless(
    axis: str, function: Callable[..., Any], value: Any, shapes: Sequence[tuple[int, ...]], kind: str
) -> None:
    """Refuses a value of another shape or type; `kind` is float, bool, or either."""
    if not isinstance(value, ARRAYS):
        raise ValueError(f"{axis} must give an array; {_name(function)} gave {value!r}.")
    found, dtype = jnp.shape(value), jnp.result_type(value)
    fits = ("float" in kind and jnp.issubdtype(dtype, jnp.floating)) or ("bool" in kind and dtype == jnp.bool_)
    if found not in shapes or not fits:
        expected = " or ".join(str(shape) for shape in shapes)
        raise ValueError(
            f"{axis} must give {kind} of shape {expected}; {_name(function)} gave {dtype} of shape {found}."
            f" {_meaning(found, shapes)}"
        )


def _meaning(found: tuple[int, ...], shapes: Sequence[tuple[int, ...]]) -> str:
    """What is likely wrong with a shape, and what to do."""
    if found in shapes:
        return "Compare for bool, or use astype(float) for numbers."
    if len(found) < len(shapes[0]) and len(shapes[0]) == 3:
        each = {0: "in all", 1: "for each prompt", 2: "for each response"}[len(found)]
        return (
            f"That is one number {each} instead of one for each token; jnp.broadcast_to makes it one if that is meant."
        )
    return "Keep reduced axes (keepdims=True), and use jnp.broadcast_to where one number is meant for many."


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", repr(function))
