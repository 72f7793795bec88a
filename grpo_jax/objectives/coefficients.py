"""Coefficients of KL and other terms that adapt: each one follows a metric of the last step.

The state of an adaptive coefficient is an array of two numbers: the coefficient, and what of it is in effect.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from grpo_jax.ranges import check_range


@runtime_checkable
class Adaptive(Protocol):
    """A coefficient that follows the metric named `watches`."""

    @property
    def watches(self) -> str:
        """The name of the metric."""
        ...

    def begin(self) -> Float[Array, " 2"]:
        """The state before the first step: the coefficient, and what of it is in effect."""
        ...

    def follow(self, coefficient_2: Float[Array, " 2"], measured: Float[Array, ""]) -> Float[Array, " 2"]:
        """The state of the next step, given the metric of this one."""
        ...


@dataclass(frozen=True)
class Proportional:
    """Grows while a metric is above its target and shrinks while it is below, by at most a fifth of `gain` each step
    (Ziegler et al., arXiv:1909.08593, section 2.2).
    """

    target: float
    initial: float = 0.01
    gain: float = 0.1
    watches: str = "kl"  # a metric

    def __post_init__(self) -> None:
        check_range("target", self.target, above=0)
        check_range("initial", self.initial, above=0)
        check_range("gain", self.gain, above=0, below=5, note="(it grows by a fifth of that in a step)")

    def begin(self) -> Float[Array, " 2"]:
        """The initial coefficient, all of it in effect."""
        return jnp.full(2, self.initial, jnp.float32)

    def follow(self, coefficient_2: Float[Array, " 2"], measured: Float[Array, ""]) -> Float[Array, " 2"]:
        """The coefficient, changed in proportion to the distance from the target."""
        return coefficient_2 * (1 + self.gain * jnp.clip(measured / self.target - 1, -0.2, 0.2))


@dataclass(frozen=True)
class Stepwise:
    """Grows by `change` while a metric is at most its target and shrinks by as much while it is above. It is in effect
    only in the first case: an entropy bonus that acts while entropy is low (Skywork-OR1, arXiv:2505.22312).
    """

    target: float
    initial: float = 0.0
    change: float = 0.005
    least: float = 0.0
    most: float = 1.0
    watches: str = "entropy"  # a metric

    def __post_init__(self) -> None:
        check_range("target", self.target)
        check_range("change", self.change, least=0)
        check_range("least", self.least)
        check_range("most", self.most, least=self.least)
        check_range("initial", self.initial, least=self.least, most=self.most)

    def begin(self) -> Float[Array, " 2"]:
        """The initial coefficient, which has no effect before anything is measured."""
        return jnp.array([self.initial, 0.0], jnp.float32)

    def follow(self, coefficient_2: Float[Array, " 2"], measured: Float[Array, ""]) -> Float[Array, " 2"]:
        """The coefficient one `change` up or down, in effect only if the metric is at most its target."""
        low = measured <= self.target
        coefficient = jnp.clip(coefficient_2[0] + jnp.where(low, self.change, -self.change), self.least, self.most)
        return jnp.stack([coefficient, jnp.where(low, coefficient, 0.0)])


@runtime_checkable
class HasCoefficients(Protocol):
    """An objective, seen as the owner of coefficients."""

    @property
    def coefficients(self) -> Mapping[str, float | Adaptive]:
        """The coefficient of each term, by the term's name."""
        ...


def adaptive(objective: HasCoefficients) -> dict[str, Adaptive]:
    """The coefficients of an objective that adapt, by the names of their terms."""
    return {name: given for name, given in objective.coefficients.items() if not isinstance(given, int | float)}


def first_coefficients(objective: HasCoefficients) -> dict[str, Array]:
    """The states of the adaptive coefficients before the first step."""
    return {name: given.begin() for name, given in adaptive(objective).items()}


def next_coefficients(
    objective: HasCoefficients, coefficients: Mapping[str, Array], measured: Mapping[str, Array | float]
) -> dict[str, Array]:
    """The states of the adaptive coefficients after a step with the metrics `measured`.

    A coefficient does not change if its metric is not finite.
    """
    known, following = adaptive(objective), {}
    for name, before_2 in coefficients.items():
        watched = known[name].watches
        if watched not in measured:
            raise ValueError(f"The coefficient of {name} watches {watched}; measured are {', '.join(measured)}.")
        value = jnp.asarray(measured[watched], jnp.float32)
        following[name] = jnp.where(jnp.isfinite(value), known[name].follow(before_2, value), before_2)
    return following


def in_effect(name: str, given: float | Adaptive, coefficients: Mapping[str, Array]) -> Array | float:
    """The value of a coefficient at this step; `coefficients` are the states of those that adapt."""
    return given if isinstance(given, int | float) else coefficients[name][1]
