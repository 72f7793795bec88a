"""Finds from how many responses a device can learn at once, by compiling."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import NamedTuple

import jax

from grpo_jax.commands.plan.case import Case, assemble
from grpo_jax.commands.plan.child import child
from grpo_jax.commands.plan.programs import Phase, plan_learning, plan_sampling
from grpo_jax.commands.plan.progress import Progress
from grpo_jax.commands.plan.topology import find_slice
from grpo_jax.config import Config
from grpo_jax.hosts.signals import left_by_signals

PATIENCE = 240.0  # seconds for a program that only the search asks for
OF_SAMPLING, OF_LEARNING = ("rollout.at_once", "rollout.int8_cache"), ("algorithm.responses_at_once", "model.remat")
FAR_TOO_MUCH = 2  # times the memory; not all temporaries grow with the responses


def fits(case: Case, phase: Phase) -> bool:
    """Whether a phase fits a device."""
    return phase.peak is not None and phase.peak <= case.slice.chip.memory


class Planned(NamedTuple):
    """What sampling needs, and learning by the number of responses at once."""

    case: Case
    sample: Phase
    learned: dict[int, Phase]

    @property
    def train(self) -> Phase:
        """Learning as the config has it."""
        return self.learned[self.case.responses_at_once]

    @property
    def fits(self) -> bool:
        """Whether both phases fit the device."""
        return fits(self.case, self.sample) and fits(self.case, self.train)

    @property
    def peak(self) -> int | None:
        """The most bytes that a device needs; None if a program did not compile."""
        peaks = [phase.peak for phase in (self.sample, self.train)]
        return None if None in peaks else max(peak for peak in peaks if peak is not None)


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


def tried(planned: Planned, guess: Planned, settings: Sequence[str], progress: Progress) -> Planned:
    """What a case with other settings needs, which is guessed. A phase that they leave alone stays as it was planned.

    The phase that is expected to need more is compiled first; if it does not fit, the other one stays as guessed.
    """
    case, n, told = guess.case, guess.case.responses_at_once, " ".join(settings)
    keys = {each.partition("=")[0] for each in settings}
    works = {"sampling": partial(plan_sampling, case), "learning": partial(in_time, case, n)}
    phases = {"sampling": guess.sample, "learning": guess.train}
    if keys <= set(OF_LEARNING):
        phases["sampling"] = planned.sample
        del works["sampling"]
    if keys <= {*OF_SAMPLING, OF_LEARNING[0]} and n in planned.learned:
        phases["learning"] = planned.learned[n]
        del works["learning"]
    for kind in sorted(works, key=lambda kind: phases[kind].peak or 0, reverse=True):
        phases[kind] = timed(progress, kind, f"{kind} with {told}", works[kind]) or Phase(None)
        if not fits(case, phases[kind]):
            break
    return Planned(case, phases["sampling"], {n: phases["learning"]})


def in_time(case: Case, responses_at_once: int) -> Phase | None:
    """The phase of learning from so many responses; None if the compiler needs more than `PATIENCE` seconds, or ends
    without a result, as it does if this machine's own memory is too small for it.
    """
    inputs = (case.config, case.slice.name, responses_at_once)
    with left_by_signals(), child(_plan_and_send, *inputs) as receiver:
        try:
            return receiver.recv() if receiver.poll(PATIENCE) else None
        except EOFError:
            return None


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
