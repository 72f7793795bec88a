"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685): a `Policy` from a `Policy`, of which only adapters are
trained.

Its parameters are `{"base": ..., "lora": ...}`. The base is frozen, and `lora` mirrors it: in place of each weight that
is adapted it has the matrices `lora_a` (random at first) and `lora_b` (zero at first).
"""

import logging
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models.adapted import Adapted, is_adapted
from grpo_jax.ranges import WHOLE, check_range
from grpo_jax.structs import Params, Policy, axes_of

# The weights that can be adapted, with the number of axes that each sums over.
INPUTS = {"query": 1, "key": 1, "value": 1, "out": 2, "gate": 1, "up": 1, "down": 1}
GROUPS = {
    "all": tuple(INPUTS),
    "attention": ("query", "key", "value", "out"),
    "feedforward": ("gate", "up", "down"),  # of each expert, too
}
LARGE_RANK = 64  # above it adapters were seen to collapse under GRPO
Targets = str | Sequence[str]


@dataclass(frozen=True)
class Lora:
    """The settings of adapters. What they add to a weight is alpha / rank times the product of their two matrices."""

    rank: int = 16
    alpha: float | int = 32
    targets: Targets = "all"  # all, attention, feedforward, or some of query, key, value, out, gate, up, down

    def __post_init__(self) -> None:
        check_range("model.lora.rank", self.rank, least=1, most=WHOLE)
        check_range("model.lora.alpha", self.alpha, above=0, most=WHOLE)
        object.__setattr__(self, "targets", _targets(self.targets))

    def __str__(self) -> str:
        """As a config has them."""
        group = next((name for name, group in GROUPS.items() if group == self.targets), None)
        targets = f"[{', '.join(self.targets)}]" if group is None else group
        return f"{{rank: {self.rank}, alpha: {self.alpha:g}, targets: {targets}}}"

    @property
    def factor(self) -> float:
        """What the product of the two matrices is multiplied by."""
        return self.alpha / self.rank


def read_lora(settings: Mapping[str, Any]) -> Lora:
    """The settings that a config gives as a mapping."""
    known = [each.name for each in fields(Lora)]
    if unknown := [name for name in settings if name not in known]:
        raise ValueError(f"model.lora has the keys {', '.join(known)}; got {unknown[0]}.")
    for name, kind, what in (("rank", int, "a whole number"), ("alpha", int | float, "a number")):
        value = settings.get(name, 1)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"model.lora.{name} must be {what}; got {value!r}.")
    _targets(settings.get("targets", Lora.targets))
    return Lora(**settings)


def _targets(targets: Any) -> tuple[str, ...]:
    """The names of the adapted weights, in the order of `INPUTS`."""
    asked = list(targets) if isinstance(targets, list | tuple) else [targets]
    unknown = [name for name in asked if not isinstance(name, str) or name not in {*INPUTS, *GROUPS}]
    if unknown or not asked:
        raise ValueError(
            f"model.lora.targets must name some of {', '.join(INPUTS)}, or be {', '.join(GROUPS)}; got"
            f" {', '.join(map(str, unknown)) or 'none'}."
        )
    named = {each for name in asked for each in GROUPS.get(name, (name,))}
    return tuple(name for name in INPUTS if name in named)


def lora(
    policy: Policy,
    rank: int = Lora.rank,
    alpha: float | int = Lora.alpha,
    targets: Targets = Lora.targets,
    int8: bool = False,
) -> Policy:
    """A policy that computes with the weights of `policy` plus adapters, and trains only these.

    Its parameters are `{"base": params of policy, "lora": first_adapters(...)}`. With `int8`, the matrices of the base
    are int8, as `quantized` makes them.
    """
    return adapted_policy(policy, Lora(rank, alpha, targets), int8)


@cache
def adapted_policy(policy: Policy, settings: Lora, int8: bool = False) -> Policy:
    """`lora`, with its settings in one object. The same arguments give the same policy, and so the same programs."""
    _check_rank(policy.shapes, settings)

    def init(key: Array) -> Params:
        base = policy.init(key)
        return {"base": quantized(base) if int8 else base, "lora": first_adapters(base, settings, key)}

    def of(function: Callable[..., Any]) -> Callable[..., Any]:
        def with_adapters(params: Params, *inputs: Any, **named: Any) -> Any:
            return function(joined(params, settings.factor), *inputs, **named)

        return with_adapters

    return replace(
        policy,
        init=init,
        read=of(policy.read),
        respond=of(policy.respond),
        unembed=of(policy.unembed),
        serve=of(policy.serve),
        balanced=None if policy.balanced is None else of(policy.balanced),
        layered=None,
        frozen=frozenset({"base"}),
        faster={name: adapted_policy(each, settings, int8) for name, each in policy.faster.items()},
    )


def first_adapters(base: Params, settings: Lora, key: Array) -> Params:
    """Adapters that change nothing yet: `lora_a` is uniform within 1 / sqrt(inputs), as in PEFT, and `lora_b` zero.

    `base` may be shapes. All arrays are float32.
    """
    found: Params = {}
    for path, weight in adapted_weights(base, settings.targets):
        letters, leading, inputs = weight_axes(path[-1], weight.shape)
        batch, wide = weight.shape[:leading], weight.shape[len(weight.shape) - inputs :]
        own = jax.random.fold_in(key, zlib.crc32("/".join(path).encode()))
        bound = math.prod(wide) ** -0.5
        a = jax.random.uniform(own, (*batch, settings.rank, *wide), jnp.float32, -bound, bound)
        b = jnp.zeros((*weight.shape[: len(weight.shape) - inputs], settings.rank), jnp.float32)
        node = found
        for name in path:
            node = node.setdefault(name, {})
        experts, rest = ("E", letters[1:]) if letters.startswith("E") else ("", letters)
        node[f"lora_a_{experts}A{rest[-inputs:]}"] = a
        node[f"lora_b_{experts}{rest[:-inputs]}A"] = b
    return found


def joined(params: Params, factor: float) -> Params:
    """The base, in which each adapted or int8 weight is an `Adapted`. A copy for sampling stays as it is."""
    return _joined(params["base"], params["lora"], factor) if "lora" in params else params


def _joined(base: Params, adapters: Params, factor: float) -> Params:
    found: Params = {}
    for name, value in base.items():
        own = adapters.get(name, {})
        if kind_of(name) and (own or isinstance(value, dict)):
            found[name] = _one(name, value, own, factor)
        else:
            found[name] = _joined(value, own, factor) if isinstance(value, dict) else value
    return found


def _one(name: str, value: Array | Params, own: Params, factor: float) -> Adapted:
    base, scale = (_part(value, "int8"), _part(value, "scale")) if isinstance(value, dict) else (value, None)
    return Adapted(base, scale, _part(own, "lora_a"), _part(own, "lora_b"), INPUTS[kind_of(name)], factor)


def _part(node: Params, kind: str) -> Any:
    return next((value for name, value in node.items() if name.startswith(kind)), None)


def merged(params: Params, settings: Lora) -> Params:
    """The parameters of the base policy with the adapters added, in float32."""
    whole = joined(params, settings.factor)
    return jax.tree.map(lambda a: a.astype(jnp.float32), whole, is_leaf=is_adapted)


def quantized(base: Params) -> Params:
    """Parameters whose matrices are int8, each with a float32 scale for every output: W is about int8 times scale.

    Embeddings, heads, norms, biases and routers stay as they are.
    """
    return {
        name: _quantized(name, value) if kind_of(name) else quantized(value) if isinstance(value, dict) else value
        for name, value in base.items()
    }


def _quantized(name: str, weight: Array) -> Params:
    letters, _, inputs = weight_axes(name, weight.shape)
    summed_over = tuple(range(weight.ndim - inputs, weight.ndim))
    largest = jnp.max(jnp.abs(weight.astype(jnp.float32)), axis=summed_over, keepdims=True)
    scale = jnp.maximum(largest, 1e-30) / 127
    int8 = jnp.round(weight.astype(jnp.float32) / scale).astype(jnp.int8)
    return {f"int8_{letters}": int8, f"scale_{letters[:-inputs]}": jnp.squeeze(scale, summed_over)}


def kind_of(name: str) -> str:
    """The target that a parameter is; nothing if it is none: "query" for "query_HCD"."""
    kind = name.rpartition("_")[0]
    return kind if kind in INPUTS else ""


def adapted_weights(base: Params, targets: Sequence[str], path: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any]]:
    """The path and the array, or the shape, of each weight that these targets name."""
    for name, value in base.items():
        if kind_of(name):
            if kind_of(name) in targets:
                yield (*path, name), value
        elif isinstance(value, Mapping):
            yield from adapted_weights(value, targets, (*path, name))


def _check_rank(shapes: Params, settings: Lora) -> None:
    """Refuses targets that the model does not have, and a rank above the width of a weight; warns of a large rank."""
    weights = list(adapted_weights(shapes, settings.targets))
    missing = [name for name in settings.targets if not any(kind_of(path[-1]) == name for path, _ in weights)]
    if missing:
        raise ValueError(f"model.lora.targets: this model has no weight {missing[0]}.")
    for path, weight in weights:
        _, leading, inputs = weight_axes(path[-1], weight.shape)
        sizes = weight.shape[leading : weight.ndim - inputs], weight.shape[weight.ndim - inputs :]
        width = min(map(math.prod, sizes))
        if settings.rank > width:
            raise ValueError(
                f"model.lora.rank must be at most {width}, the smaller side of {'/'.join(path)}; got {settings.rank}."
                " A usual rank is 16."
            )
    if settings.rank > LARGE_RANK:
        text = "warning: model.lora.rank is %d; under GRPO, adapters of a rank above %d were seen to collapse"
        logging.getLogger("grpo_jax").warning(text, settings.rank, LARGE_RANK)


def weight_axes(name: str, shape: tuple[int, ...]) -> tuple[str, int, int]:
    """The letters of a weight, how many of its axes are layers and experts, and how many it sums over."""
    letters = axes_of(name)
    return letters, len(shape) - len(letters) + letters.startswith("E"), INPUTS[kind_of(name)]
