"""Calls all rewards of a step: async ones and those in workers at once, the others one after the other beside them.

A reward that is neither runs in the main thread, and alone: there a deadline and Ctrl-C can interrupt it, whatever it
does, libraries that use SIGALRM work, and code that was not written for threads meets none. What waits for something
should be async, or ask for workers.
"""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from grpo_jax.rewards import event_loop, workers
from grpo_jax.rewards.batch import Batch
from grpo_jax.rewards.deadline import Watch
from grpo_jax.rewards.failures import FAILURES, described
from grpo_jax.rewards.guarded import Guarded, innermost, judge_of, unguarded
from grpo_jax.rewards.mixing import Mix, Reward
from grpo_jax.rewards.signatures import Kind, Request, entries, kind_of, requests
from grpo_jax.rewards.trl import Notes
from grpo_jax.rewards.workers import LATE

ADVICE = "A reward returns 0 for a response that it cannot read, and None for one that it cannot score."


@dataclass
class Part:
    """A reward of a mix, with the calls that it gets, and what it said in each."""

    reward: Reward
    label: str
    kind: Kind
    requests: Sequence[Request]
    guard: Guarded
    values: dict[int, Any] = field(default_factory=dict)  # by the index of the call
    faults: dict[int, str] = field(default_factory=dict)  # why a response is not scored, by its index
    late: set[int] = field(default_factory=set)  # responses that took longer than the deadline

    @property
    def is_async(self) -> bool:
        """Whether calling the reward gives something to wait for."""
        written = innermost(self.reward)
        method = inspect.getattr_static(type(written), "__call__", None)
        return inspect.iscoroutinefunction(written) or inspect.iscoroutinefunction(method)

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
        if value is LATE:
            self.late |= set(request.responses)
        elif isinstance(value, FAILURES):
            text = f"Reward {self.label} failed on {request.place}: {described(value)}. {ADVICE}"
            self.fail(request.responses, value, text)
        else:
            self.values[index] = value


def parts_of(mix: Mix, batch: Batch, notes: Notes) -> list[Part]:
    """The rewards of a mix with their calls, none of which has been made."""
    columns = {name for example in batch.examples for name in example.columns}
    found = []
    for (given, _), label in zip(mix.parts, mix.labels, strict=True):
        kind, reward = kind_of(given, columns), unguarded(given)
        guard = given if isinstance(given, Guarded) else Guarded(given)
        found.append(Part(reward, label, kind, list(requests(reward, label, kind, batch, notes)), guard))
    return found


def call_all(parts: Sequence[Part], watch: Watch) -> None:
    """Makes all calls of all parts, and waits for them. What raises, such as a deadline, leaves none running."""
    started: dict[Future[Any], tuple[Part, int | None]] = {}
    try:
        for part in parts:
            if part.guard.workers:
                started[workers.start(part.guard, part.label, part.requests)] = part, None
            elif part.is_async:
                calls = [partial(part.reward, *each.positional, **each.named) for each in part.requests]
                futures = event_loop.start(map(_finished, calls))
                started |= {future: (part, n) for n, future in enumerate(futures)}
        for part in parts:
            if not part.guard.workers and not part.is_async:
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
        except FAILURES as error:
            value = error
        if inspect.isawaitable(value):
            started[index] = event_loop.start([_finished(lambda value=value: value)])[0]
        else:
            part.keep(index, value)
    return started


async def _finished(call: Callable[[], Awaitable[Any]]) -> Any:
    """What an async reward says, or the exception that it raises. It is called inside of its event loop."""
    try:
        return await call()
    except FAILURES as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # nobody waits any more
            raise
        return error


def _wait(started: dict[Future[Any], tuple[Part, int | None]], watch: Watch) -> None:
    """Waits for calls, and notes what they gave, until one of them ends the run."""
    pending = set(started)
    while pending:
        first = next(future for future in started if future in pending)
        part, index = started[first]
        watch.at = part.doing(part.requests[0 if index is None else index])
        done, pending = wait(pending, timeout=1.0, return_when=FIRST_EXCEPTION)
        for future in done:
            part, index = started[future]
            found = future.result() if index is None else {index: future.result()}
            for each, value in found.items():
                part.keep(each, value)


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
            place, limit = batch.place(min(part.late)), part.guard.deadline
            why = "in a worker that ended" if limit is None else f"within {limit:g} s"
            text = "reward %s did not score %d of %d responses %s; the first is %s"
            logger.warning(
                text, part.label, len(part.late), count, why.replace("within", "as it took more than"), place
            )
        if part.faults:
            text = "reward %s did not score %d of %d responses, as it failed on them (on_error: mask): %s"
            logger.warning(text, part.label, len(part.faults), count, part.faults[min(part.faults)])
