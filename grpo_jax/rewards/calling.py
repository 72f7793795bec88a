"""Calls all rewards of a step: async ones and those in workers at once, the others one after the other beside them.

What waits, and judges single responses or groups, is asked as soon as a group is there (`early.py`): `begun` has these
calls, and all others are made when all responses are there.

A reward that is neither runs in the main thread, and alone: there a deadline and Ctrl-C can interrupt it, whatever it
does, libraries that use SIGALRM work, and code that was not written for threads meets none. What waits for something
should be async, or ask for workers.
"""

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from grpo_jax.hosts.signals import INTERRUPTS
from grpo_jax.rewards import event_loop, workers
from grpo_jax.rewards.batch import Batch
from grpo_jax.rewards.deadline import Watch
from grpo_jax.rewards.example import Example
from grpo_jax.rewards.failures import NO_FAILURES, UnusableError, described
from grpo_jax.rewards.guarded import Guarded, innermost, judge_of, unguarded
from grpo_jax.rewards.mixing import Mix, Reward
from grpo_jax.rewards.signatures import Kind, Request, entries, kind_of, requests
from grpo_jax.rewards.trl import Notes
from grpo_jax.rewards.workers import Unanswered

Begun = Mapping[int, Mapping[int, Future[Any]]]  # results by the index of the reward in its mix, and of the call
ADVICE = "A reward returns 0 for a response that it cannot read, and None for one that it cannot score."


@dataclass
class Part:
    """A reward of a mix, with the calls that it gets, and what it said in each."""

    reward: Reward
    label: str
    kind: Kind
    guard: Guarded
    requests: Sequence[Request] = ()
    values: dict[int, Any] = field(default_factory=dict)  # by the index of the call
    faults: dict[int, str] = field(default_factory=dict)  # why a response is not scored, by its index
    late: dict[int, str] = field(default_factory=dict)  # why a worker did not answer about a response

    @property
    def is_async(self) -> bool:
        """Whether calling the reward gives something to wait for."""
        written = innermost(self.reward)
        method = inspect.getattr_static(type(written), "__call__", None)
        return inspect.iscoroutinefunction(written) or inspect.iscoroutinefunction(method)

    @property
    def waits(self) -> bool:
        """Whether the calls are made in workers or in the event loop, so that several go on at once."""
        return self.guard.workers > 0 or self.is_async

    def start(self, requests: Sequence[Request]) -> list[Future[Any]]:
        """What the reward will say in each call, for a reward that `waits`."""
        if self.guard.workers:
            return workers.start(self.guard, f"Reward {self.label}", requests)
        return event_loop.start(_finished(partial(self.reward, *each.positional, **each.named)) for each in requests)

    @property
    def judge(self) -> Any:
        """The judge that the reward asks; None without one."""
        return judge_of(self.guard.reward)

    def doing(self, request: Request) -> str:
        """What a message calls a call."""
        return f"reward {self.label}, {request.place}"

    def fail(self, responses: range, error: BaseException, text: str) -> None:
        """Notes that a reward failed on these responses; raises what the run ends with, unless they are masked."""
        if self.guard.on_error == "stop":
            raise ValueError(text) from error
        self.faults |= dict.fromkeys(responses, text)

    def keep(self, index: int, value: Any) -> None:
        """Notes what the reward said in a call: a value, that it was late, or that it failed."""
        request = self.requests[index]
        if isinstance(value, Unanswered):
            self.late |= dict.fromkeys(request.responses, value.why)
        elif isinstance(value, UnusableError):
            raise ValueError(f"Reward {self.label} cannot judge. {value}") from value
        elif isinstance(value, BaseException):
            text = f"Reward {self.label} failed on {request.place}: {described(value)}. {ADVICE}"
            self.fail(request.responses, value, text)
        else:
            self.values[index] = value


def parts_of(mix: Mix, examples: Sequence[Example]) -> list[Part]:
    """The rewards of a mix, without any calls."""
    columns = {name for example in examples for name in example.columns}
    found = []
    for (given, _), label in zip(mix.parts, mix.labels, strict=True):
        reward = unguarded(given)
        guard = given if isinstance(given, Guarded) else Guarded(given)
        found.append(Part(reward, label, kind_of(given, columns), guard))
    return found


def with_calls(mix: Mix, batch: Batch, notes: Notes) -> list[Part]:
    """The rewards of a mix with the calls that judge a batch, none of which has been made."""
    parts = parts_of(mix, batch.examples)
    return [replace(part, requests=list(requests(part.reward, part.label, part.kind, batch, notes))) for part in parts]


def call_all(parts: Sequence[Part], watch: Watch, begun: Begun) -> None:
    """Makes all calls of all parts but those that have begun, and waits for all. What raises, such as a deadline,
    leaves none running.
    """
    started: dict[Future[Any], tuple[Part, int]] = {}
    try:
        for r, part in enumerate(parts):
            known = begun.get(r, {})
            started |= {future: (part, n) for n, future in known.items()}
            if part.waits:
                rest = [n for n in range(len(part.requests)) if n not in known]
                futures = part.start([part.requests[n] for n in rest])
                started |= {future: (part, n) for n, future in zip(rest, futures, strict=True)}
        for part in parts:
            if not part.waits:
                started |= {future: (part, n) for n, future in _call_here(part, watch).items()}
        _wait(started, watch)
    except BaseException:
        event_loop.abandon(started)
        raise


def _call_here(part: Part, watch: Watch) -> dict[int, Future[Any]]:
    """Makes the calls of a part in this thread; what is to be waited for is given back."""
    started = {}
    for index, request in enumerate(part.requests):
        watch.at = part.doing(request)
        try:
            value = part.reward(*request.positional, **request.named)
        except NO_FAILURES:
            raise
        except BaseException as error:  # sys.exit, too, which would end the run as if it were complete
            value = error
        if inspect.isawaitable(value):
            started[index] = event_loop.start([_finished(lambda value=value: value)])[0]
        else:
            part.keep(index, value)
    return started


async def _finished(call: Callable[[], Awaitable[Any]]) -> Any:
    """What an async reward says, or the exception that it raises. It is called inside of its event loop."""
    try:
        value = await call()
    except BaseException as error:  # a cancelled call, too: a reward may have cancelled itself, and else nobody waits
        return error
    if inspect.iscoroutine(value):
        value.close()
        return TypeError("it returned a coroutine: write await before it")
    return value


def _wait(started: Mapping[Future[Any], tuple[Part, int]], watch: Watch) -> None:
    """Waits for calls, and notes what they gave, until one of them ends the run."""
    pending = set(started)
    while pending:
        INTERRUPTS.check()  # Python drops a KeyboardInterrupt that is raised inside a destructor
        part, index = next(started[future] for future in started if future in pending)
        watch.at = part.doing(part.requests[index])
        done, pending = wait(pending, timeout=1.0, return_when=FIRST_EXCEPTION)
        for future in [future for future in started if future in done]:
            part, index = started[future]
            part.keep(index, future.result())


def said(part: Part, batch: Batch) -> list[Any]:
    """What a reward said of each response; None where it was late or failed."""
    values: list[Any] = [None] * batch.count
    for index, value in part.values.items():
        request = part.requests[index]
        try:
            found = entries(value, part.kind, part.label, batch, request)
        except ValueError as error:
            part.fail(request.responses, error, str(error))
            continue
        for n, entry in zip(request.responses, found, strict=True):
            values[n] = entry
    return values


def warn(parts: Sequence[Part], batch: Batch) -> None:
    """Says which rewards left responses without a score, as they were late or failed."""
    logger = logging.getLogger("grpo_jax")
    for part in parts:
        count = batch.count
        if part.late:
            first = min(part.late)
            text = "reward %s did not score %d of %d responses; the first is %s: %s"
            logger.warning(text, part.label, len(part.late), count, batch.place(first), part.late[first])
        if part.faults:
            text = "reward %s did not score %d of %d responses, as it failed on them (on_error: mask): %s"
            logger.warning(text, part.label, len(part.faults), count, part.faults[min(part.faults)])
