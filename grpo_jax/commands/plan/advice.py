"""Settings with which a device needs less memory: chosen by estimates, and named once they were compiled."""

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import NamedTuple

from grpo_jax.commands.plan.case import Case
from grpo_jax.commands.plan.estimate import estimated_learning, estimated_sampling
from grpo_jax.commands.plan.programs import Phase
from grpo_jax.commands.plan.search import Planned
from grpo_jax.commands.plan.topology import GIB, AnyDevice
from grpo_jax.devices.mesh import prompt_shards
from grpo_jax.devices.sharding import devices_per_group
from grpo_jax.rollout.sizes import prompts_held, subgroups_at_once

TRIALS = 3  # sets of settings that are compiled, one or two programs each
AT_MOST = 4  # settings in a set
NEAR = GIB / 4  # bytes that are too few for a choice

Settings = tuple[str, ...]  # overrides of a config


Guess = Callable[[Settings], Planned | None]  # what settings are expected to need; None if they do not go together


class Advice(NamedTuple):
    """Settings that were tried, and what a device needs with them. Empty settings: none of those known would help."""

    settings: Settings
    planned: Planned


def advice(
    planned: Planned,
    expect: Callable[[Planned, Settings], Planned | None],
    compiled: Callable[[Settings, Planned], Planned],
    choosing: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Advice:
    """The first settings with which everything fits, or those tried with which it comes nearest to that.

    `expect` estimates what settings need, given what is known; it is None if they do not go together. `compiled` plans
    such settings, given what is expected of them. What is compiled corrects the estimates of the next settings.
    """
    tried: list[Advice] = []
    known, refused = planned, set[str]()
    for _ in range(TRIALS):
        with choosing():
            guess = cache(partial(expect, known))
            settings = choose(guess, refused)
        guessed = guess(settings)
        if not settings or guessed is None or any(settings == each.settings for each in tried):
            break
        known = compiled(settings, guessed)
        tried.append(Advice(settings, known))
        if known.fits:
            return tried[-1]
        if known.peak is None:
            refused.add(settings[-1])  # the compiler did not say what it needs: its estimate stays wrong
            known = planned
    return min(tried, key=lambda each: each.planned.peak or float("inf"), default=Advice((), planned))


def choose(guess: Guess, refused: Container[str]) -> Settings:
    """The settings that are expected to help most: one after the other, until both phases are expected to fit.

    Of several that are enough, or that help alike, it is the gentlest. One that is not needed in the end is left out.
    """
    chosen: Settings = ()
    now = guess(chosen)
    while now is not None and not now.fits and len(chosen) < AT_MOST:
        proposed = [_with(chosen, each) for each in changes(now.case) if each not in refused]
        more = _best(_missing(now), proposed, guess)
        if more is None:
            break
        chosen, now = more, guess(more)
    for each in reversed(chosen):
        fewer = tuple(other for other in chosen if other != each)
        left = guess(fewer) if fewer else None
        chosen = fewer if left is not None and left.fits else chosen
    return chosen


def _best(missing: int, proposed: Sequence[Settings], guess: Guess) -> Settings | None:
    """The first of these with which least is missing, but for a little; None if none of them helps."""
    best, least = None, max(missing - NEAR, 1)
    for settings in proposed:
        planned = guess(settings)
        if planned is not None and _missing(planned) < least:
            best, least = settings, max(_missing(planned) - NEAR, 0)
    return best


def _with(chosen: Settings, change: str) -> Settings:
    """These settings with one more, which takes the place of any that it replaces."""
    keys = {each.partition("=")[0] for each in change.split()}
    section = change.partition(".use=")[0] + "." if ".use=" in change else None
    kept = (each for each in chosen if each.partition("=")[0] not in keys)
    return (*(each for each in kept if section is None or not each.startswith(section)), change)


def _missing(planned: Planned) -> int:
    """The bytes that both phases lack, if they are known."""
    memory = planned.case.slice.chip.memory
    return sum(max(int(phase.peak - memory), 0) for phase in (planned.sample, planned.train) if phase.peak is not None)


def expected(known: Planned, case: Case | None) -> Planned | None:
    """What a case is expected to need: by an estimate, corrected by what the estimate of a known case was wrong by."""
    if case is None:
        return None
    n = case.responses_at_once
    like = n if n in known.learned else known.case.responses_at_once
    sample = _corrected(known.case, known.sample, estimated_sampling(known.case), estimated_sampling(case))
    before, now = estimated_learning(known.case, like), estimated_learning(case, n)
    return Planned(case, sample, {n: _corrected(known.case, known.learned[like], before, now)})


def _corrected(known: Case, found: Phase, before: Phase, now: Phase) -> Phase:
    """A phase by its estimate now, with what was found for another case, and that case's estimate before."""
    least = known.slice.chip.memory + NEAR  # of what did not compile
    before_peak, now_peak = (each.peak or 0 for each in (before, now))
    peak = max(found.asked or before_peak, int(least)) if found.peak is None else found.peak
    return Phase(peak + now_peak - before_peak)


def changes(case: Case) -> Iterator[str]:
    """All single settings that make a case smaller and are not set yet, the gentlest first.

    Gentle are those that change how much is computed at once; then come those that round and another optimiser, what
    takes the compiler long, another objective, and last shorter answers.
    """
    optimizer, algorithm, model = (getattr(case.config, name).arguments for name in ("optimizer", "algorithm", "model"))
    now, in_device = case.responses_at_once, optimizer.get("moments_in") == "device"
    fewer = [n for n in case.choices if n < now]
    yield from (f"algorithm.responses_at_once={n}" for n in (*case.choices[:1], *fewer) if n != now)
    if case.remat not in ("full", "offload"):
        yield "model.remat=full"
    if case.remat != "offload" and not isinstance(case.slice, AnyDevice):
        yield "model.remat=offload"
    if (fewer_prompts := _half_of_the_prompts(case)) is not None:
        yield f"rollout.at_once={fewer_prompts}"
    if case.mesh.shape["data"] > 1:
        yield f"mesh.fsdp={case.mesh.shape['fsdp'] * case.mesh.shape['data']} mesh.data=1"
    if not case.sampler.int8_cache:
        yield "rollout.int8_cache=true"
    if optimizer.get("moments", "int8") != "int8":
        yield "optimizer.moments=int8"
    if model["weights"] != (smallest := "int8" if case.algorithm.policy.frozen else "bfloat16"):
        yield f"model.weights={smallest}"
    if optimizer.get("moments_in"):
        yield "optimizer.use=adafactor"
    if in_device and not isinstance(case.slice, AnyDevice):  # chips read the host's memory; other devices may not
        yield "optimizer.moments_in=host"
    if algorithm["gradients"] == "whole":
        yield "algorithm.gradients=by_layer"
    if case.reference_bytes:
        yield "objective.kl=0"
    if case.sampler.max_tokens > 1:
        yield f"{case.longest}={case.sampler.max_tokens // 2}"


def _half_of_the_prompts(case: Case) -> int | None:
    """An `at_once` of half the prompts held now; None if a host then holds no fewer."""
    held, hosts = case.sampled[0], case.mesh.size // case.host_mesh.size
    spread = devices_per_group(case.settings.prompts, case.sampler.responses, case.mesh)
    at_once = max(held * hosts // spread // 2, 1)
    subgroups = prompts_held(held, subgroups_at_once(at_once, spread, hosts), prompt_shards(case.host_mesh))
    return at_once if subgroups < held else None
