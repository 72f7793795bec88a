"""Finds from how many responses a device can learn at once, by compiling."""

import logging
import multiprocessing
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection

import jax

from grpo_jax.commands.plan.case import Case, assemble
from grpo_jax.commands.plan.programs import Phase, plan_learning
from grpo_jax.commands.plan.progress import Progress
from grpo_jax.commands.plan.topology import find_slice
from grpo_jax.config import Config

PATIENCE = 240.0  # seconds for a program that only the search asks for
FAR_TOO_MUCH = 2  # times the memory; not all temporaries grow with the responses


def fits(case: Case, phase: Phase) -> bool:
    """Whether a phase fits a device."""
    return phase.peak is not None and phase.peak <= case.slice.chip.memory


def search(case: Case, present: Phase, progress: Progress) -> dict[int, Phase]:
    """What learning needs, by the number of responses at once, for the numbers that are tried to find the largest
    that fits: the choices are halved again and again.

    Temporaries grow with the responses. A program that they would make far too large is not compiled, and one that
    takes the compiler longer than `PATIENCE` counts as too large.
    """
    choices, most = sorted(case.choices), case.choices[0]
    phases: dict[int, Phase] = {case.responses_at_once: present}
    while choices:
        middle = most if most in choices else choices[len(choices) // 2]  # all at once adds no gradients up
        if middle not in phases and _expected(middle, phases) < FAR_TOO_MUCH * case.slice.chip.memory:
            name = f"learning from {middle} responses at once"
            found = timed(progress, "learning", name, partial(in_time, case, middle))
            phases[middle] = found or Phase(None)
        fitting = middle in phases and fits(case, phases[middle])
        choices = [n for n in choices if (n > middle) == fitting and n != middle]
    return phases


def largest(case: Case, phases: dict[int, Phase]) -> int | None:
    """The most responses at once that are known to fit; None if none are."""
    return max((n for n, phase in phases.items() if fits(case, phase)), default=None)


def timed(progress: Progress, kind: str, name: str, work: Callable[[], Phase | None]) -> Phase | None:
    """The phase that `work` returns. Tells how far it has come, and how long that took."""
    begun = time.monotonic()
    with progress.during(kind, name):
        phase = work()
    outcome = f"compiled {name} in" if phase else f"gave up compiling {name} after"
    logging.getLogger("grpo_jax").info("%s %.0f s", outcome, time.monotonic() - begun)
    return phase


def in_time(case: Case, responses_at_once: int) -> Phase | None:
    """The phase of learning from so many responses; None if the compiler needs more than `PATIENCE` seconds, or ends
    without a result, as it does if this machine's own memory is too small for it.
    """
    spawned = multiprocessing.get_context("spawn")
    receiver, sender = spawned.Pipe(duplex=False)
    inputs = (sender, case.config, case.slice.name, responses_at_once)
    child = spawned.Process(target=_plan_and_send, args=inputs, daemon=True)
    child.start()
    sender.close()  # or the end of the child would not be noticed
    try:
        return receiver.recv() if receiver.poll(PATIENCE) else None
    except EOFError:
        return None
    finally:
        child.kill()
        child.join()


def _plan_and_send(sender: Connection, config: Config, name: str, responses_at_once: int) -> None:
    jax.config.update("jax_enable_compilation_cache", False)
    sender.send(plan_learning(assemble(config, find_slice(name)), responses_at_once))


def _expected(n: int, phases: dict[int, Phase]) -> float:
    """The peak of learning from n responses at once, by that of the nearest number whose peak is known."""
    peaks = {number: phase.peak for number, phase in phases.items() if phase.peak is not None}
    if not peaks:
        return 0.0
    nearest = min(peaks, key=lambda number: abs(number - n))
    temporary = phases[nearest].temporary
    return peaks[nearest] - temporary + temporary * n / nearest
