"""What training asks of a sampler: an engine answers every prompt G times and says what it can hold.

`Sampler` is the engine of this package. `as_engine` makes one of any function.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeGuard, runtime_checkable

from jax import Array

from grpo_jax.devices.mesh import mesh_of
from grpo_jax.devices.placing import place_prompts
from grpo_jax.rollout.turns import Partner
from grpo_jax.structs import Params, Policy, Prompts, Rollouts


@runtime_checkable
class Engine(Protocol):
    """Answers prompts with the policy of the moment. `responses` is G, None if it is not known before."""

    @property
    def responses(self) -> int | None:
        """How many responses each prompt gets."""
        ...

    def __call__(
        self, policy: Policy, params: Params, prompts: Prompts, key: Array, examples: Sequence[Any] = ()
    ) -> Rollouts:
        """G responses to each prompt, on the devices of the prompts. `examples` are the rows that prompts come from."""
        ...

    def greedy(self) -> "Engine | None":
        """The engine that gives the one likeliest answer to each prompt; None if this one cannot."""
        ...

    def with_room(self, policy: Policy, prompts: Prompts, multiple: int) -> "Engine":
        """This engine, holding fewer prompts at once if memory asks for it, in a multiple of `multiple`."""
        ...

    def check(self, policy: Policy, prompts: Prompts) -> None:
        """Refuses prompts that leave no room for responses, and settings whose responses teach nothing."""
        ...


Heard = Callable[[int, list[list[int]]], None]  # called with the index of a prompt, and the ids of its responses


class TellingEngine(Engine, Protocol):
    """An engine that calls `heard` for each group as soon as its last response has ended, if there is a listener.

    The index is one of this host's prompts, in their order; the ids are those that the policy chose.
    """

    def __call__(
        self,
        policy: Policy,
        params: Params,
        prompts: Prompts,
        key: Array,
        examples: Sequence[Any] = (),
        heard: Heard | None = None,
    ) -> Rollouts:
        """As `Engine`, and tells of groups while others are sampled."""
        ...


class ConversingEngine(Engine, Protocol):
    """An engine that asks a partner, if there is one, what the model reads after each of its replies."""

    def __call__(
        self,
        policy: Policy,
        params: Params,
        prompts: Prompts,
        key: Array,
        examples: Sequence[Any] = (),
        *,
        partner: Partner | None = None,
    ) -> Rollouts:
        """As `Engine`; a response has several turns where the partner answers."""
        ...


def _converses(engine: Engine) -> TypeGuard[ConversingEngine]:
    return "partner" in inspect.signature(engine).parameters


def _tells(engine: Engine) -> TypeGuard[TellingEngine]:
    return "heard" in inspect.signature(engine).parameters


def answer(
    engine: Engine,
    policy: Policy,
    params: Params,
    prompts: Prompts,
    key: Array,
    examples: Sequence[Any],
    heard: Heard | None = None,
    partner: Partner | None = None,
) -> Rollouts:
    """What an engine answers. If it can tell of groups that have ended, `heard` is called for each.

    A `partner` answers the model's replies; an engine that cannot ask it is refused.
    """
    if partner is not None:
        if not _converses(engine):
            raise ValueError(
                "This engine samples one reply to each prompt, and the task has an environment, which answers replies:"
                " use the native sampler (leave out rollout.use), or an engine with a parameter `partner`."
            )
        return engine(policy, params, prompts, key, examples, partner=partner)
    if heard is None or not _tells(engine):
        return engine(policy, params, prompts, key, examples)
    return engine(policy, params, prompts, key, examples, heard)


@dataclass(frozen=True, eq=False)
class FunctionEngine:
    """A function as an engine. It is not asked for greedy answers, and looks after its own memory."""

    function: Callable[..., Rollouts]
    responses: int | None = None

    def __call__(
        self,
        policy: Policy,
        params: Params,
        prompts: Prompts,
        key: Array,
        examples: Sequence[Any] = (),
        heard: Heard | None = None,
        partner: Partner | None = None,
    ) -> Rollouts:
        parameters = inspect.signature(self.function).parameters
        offered = {"examples": examples, "heard": heard, "partner": partner}
        if partner is not None and "partner" not in parameters:
            raise ValueError("The task has an environment, so the function that samples needs a parameter `partner`.")
        known = {name: value for name, value in offered.items() if name in parameters}
        rollouts = self.function(policy, params, prompts, key, **known)
        mesh = mesh_of(prompts)
        return rollouts if mesh is None else place_prompts(replace(rollouts, prompts=prompts), mesh)

    def greedy(self) -> None:
        """None: a function is only known to sample."""

    def with_room(self, policy: Policy, prompts: Prompts, multiple: int) -> "FunctionEngine":
        """This engine as it is."""
        return self

    def check(self, policy: Policy, prompts: Prompts) -> None:
        """Refuses nothing."""


def longest_response(engine: Engine) -> int | None:
    """The most tokens that a response can have: the engine's `max_tokens`, None if it does not say."""
    return getattr(engine, "max_tokens", None)


def as_engine(sample: Engine | Callable[..., Rollouts]) -> Engine:
    """An engine as it is, or one made of `sample(policy, params, prompts, key) -> Rollouts`.

    The function may take `examples` and `heard` too, by these names, and may have an attribute `responses`.
    """
    if isinstance(sample, Engine):
        return sample
    return FunctionEngine(sample, getattr(sample, "responses", None))
