"""The conversations of the rows that are sampled: steps in worker processes, limits, and the record of what was said.

`Conversations` is what a sampler asks as its partner (rollout/turns.py). Nothing here knows tokens but by the functions
that it is given: one that reads a reply, and one that writes what the model reads next.
"""

import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, get_args

from grpo_jax.environments.environment import Bounded
from grpo_jax.environments.stepping import Stepped
from grpo_jax.hosts.signals import INTERRUPTS
from grpo_jax.rewards import workers
from grpo_jax.rewards.conversation import Conversation, StopReason
from grpo_jax.rewards.example import Example, Message
from grpo_jax.rewards.failures import described
from grpo_jax.rewards.signatures import Request
from grpo_jax.rewards.workers import Unanswered

LOOK = 1.0  # seconds between two looks for Ctrl-C while waiting

Decode = Callable[[Sequence[int]], str]
Write = Callable[[Sequence[Message], int], list[int]]  # the tokens of messages after a reply that ended with a token


@dataclass(frozen=True)
class Begun:
    """A conversation after its environment's `reset`: what is shown after the example's prompt, or why it failed."""

    state: bytes = b""
    messages: Sequence[Message] = ()
    error: str | None = None


def begin(bounded: Bounded, examples: Sequence[Example], seeds: Sequence[int]) -> list[Begun]:
    """Resets a copy of an environment for each example, in worker processes."""
    pairs = zip(examples, seeds, strict=True)
    calls = [Request(range(0), example.label, (None, example, seed)) for example, seed in pairs]
    futures = workers.start(bounded.guard, f"Environment {bounded.name}", calls)
    try:
        return [_begun(bounded, _waited(future), example) for future, example in zip(futures, examples, strict=True)]
    except BaseException:
        for future in futures:
            future.cancel()
        raise


def _waited(future: Future[Any]) -> Any:
    while True:
        INTERRUPTS.check()
        try:
            return future.result(timeout=LOOK)
        except TimeoutError:
            continue


def _begun(bounded: Bounded, value: Any, example: Example) -> Begun:
    if isinstance(value, Stepped):
        return Begun(value.state, value.messages)
    why = why_failed(value)
    if bounded.on_error == "stop":
        raise ValueError(f"Environment {bounded.name} cannot begin with {example.label}: {why}.")
    return Begun(error=why)


def why_failed(value: Any) -> str:
    """What a failed step is told as: its exception, or what became of its worker."""
    return (value.why if isinstance(value, Unanswered) else described(value)).rstrip(".")


@dataclass
class _Row:
    """One conversation while it goes on. `future` is the step that has not been answered yet."""

    state: bytes
    messages: list[Message] = field(default_factory=list)
    rewards: list[float | None] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    stop_reason: StopReason | None = None
    future: Future[Any] | None = None
    room: int = 0
    asked: float = 0.0
    waited: float = 0.0

    def record(self) -> Conversation:
        """What is kept of it."""
        lengths = [len(ids) for ids in self.ids]
        reason = "tokens" if self.stop_reason is None else self.stop_reason
        return Conversation(
            self.messages, self.rewards, lengths, self.errors, reason, self.metrics, round(self.waited, 3)
        )


class Conversations:
    """The partner of one call of a sampler: G conversations for each that has begun."""

    def __init__(
        self,
        bounded: Bounded,
        begun: Sequence[Begun],
        responses: int,
        decode: Decode,
        write: Write,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.bounded, self.responses, self.decode, self.write, self.clock = bounded, responses, decode, write, clock
        self.rows = [_row(each) for each in begun for _ in range(responses)]
        self.came: queue.SimpleQueue[int] = queue.SimpleQueue()  # rows whose step has been answered
        self.started = clock()

    def replied(self, row: int, ids: list[int], room: int) -> None:
        """Begins the environment's step for a reply, which the sampler has ended with these tokens."""
        talk = self.rows[row]
        reply = {"role": "assistant", "content": self.decode(ids)}
        talk.messages.append(reply)
        talk.ids.append(list(ids))
        talk.room, talk.asked = room, self.clock()
        if talk.stop_reason is not None:  # its environment could not begin
            talk.rewards.append(None)
            self.came.put(row)
            return
        call = Request(range(0), f"row {row}", (talk.state, reply))
        (talk.future,) = workers.start(self.bounded.guard, f"Environment {self.bounded.name}", [call])
        talk.future.add_done_callback(lambda future: self.came.put(row))

    def answers(self, wait: bool) -> dict[int, list[int] | None]:
        """The answers that have come: tokens to read, or None for a conversation that is over."""
        found = self._arrived(wait=0.0)
        while wait and not found and any(talk.future is not None and talk.room for talk in self.rows):
            INTERRUPTS.check()
            found = self._arrived(wait=min(LOOK, self._left()))
        return found

    def finished(self, ids: Sequence[Sequence[Sequence[int]]]) -> list[list[Conversation]]:
        """The records of all conversations, G for each prompt, once their last steps have been taken.

        `ids` are the tokens that the model chose in each response. Those after the last reply that the sampler has told
        of are a reply that was cut off; it is shown to the environment, too.
        """
        every = [row for group in ids for row in group]
        for row, chosen in enumerate(every):
            self._check_same(row, chosen)
            known = sum(map(len, self.rows[row].ids))
            if len(chosen) > known and self.rows[row].stop_reason in (None, "error"):
                self.replied(row, list(chosen[known:]), room=0)
        while any(talk.future is not None for talk in self.rows):
            INTERRUPTS.check()
            self._arrived(wait=min(LOOK, self._left()))
        records, G = [talk.record() for talk in self.rows], self.responses
        return [records[start : start + G] for start in range(0, len(records), G)]

    def close(self) -> None:
        """Ends the steps that nobody waits for any more."""
        for talk in self.rows:
            if talk.future is not None:
                talk.future.cancel()

    def _check_same(self, row: int, chosen: Sequence[int]) -> None:
        """Refuses a response whose first tokens are not those of the replies that were told of."""
        told = [token for ids in self.rows[row].ids for token in ids]
        if list(chosen[: len(told)]) != told:
            raise ValueError(
                f"The sampler told of other replies in row {row} than it then returned. It must call `replied` with the"
                " tokens that the policy chose, in their order."
            )

    def _arrived(self, wait: float) -> dict[int, list[int] | None]:
        """The answers of the steps that have ended, at least one of which is waited for so many seconds."""
        found: dict[int, list[int] | None] = {}
        try:
            row = self.came.get(timeout=wait) if wait > 0 else self.came.get_nowait()
            while True:
                if not self._is_dropped(row):
                    found[row] = self._answered(row)
                row = self.came.get_nowait()
        except queue.Empty:
            pass
        found |= self._expired()
        return {row: ids for row, ids in found.items() if self.rows[row].room}

    def _is_dropped(self, row: int) -> bool:
        """Whether a step has ended after its conversation had."""
        talk = self.rows[row]
        return talk.future is None and talk.stop_reason == "seconds"

    def _answered(self, row: int) -> list[int] | None:
        """What the model reads next in a row whose step has been answered; None if that was its last."""
        talk, future = self.rows[row], self.rows[row].future
        talk.waited += self.clock() - talk.asked
        if future is None:  # its environment could not begin
            return None
        talk.future, value = None, future.result()
        messages = self._step_ended(talk, value) if isinstance(value, Stepped) else self._step_failed(talk, value, row)
        talk.messages += messages
        if talk.stop_reason is None:
            return self._next(talk, messages)
        return None

    def _step_ended(self, talk: _Row, step: Stepped) -> Sequence[Message]:
        talk.state = step.state
        talk.rewards.append(step.reward)
        talk.errors += [] if step.error is None else [step.error]
        for name, number in step.metrics.items():
            talk.metrics[name] = talk.metrics.get(name, 0.0) + number
        talk.stop_reason = "done" if step.done or not step.messages else None
        return step.messages

    def _step_failed(self, talk: _Row, value: Any, row: int) -> Sequence[Message]:
        """What the model is shown of a step that failed: nothing, unless `on_error` is show."""
        why = why_failed(value)
        if self.bounded.on_error == "stop":
            raise ValueError(f"Environment {self.bounded.name} failed on reply {len(talk.ids)} of row {row}: {why}.")
        talk.errors.append(why)
        if self.bounded.on_error == "show":
            talk.rewards.append(0.0)
            role = "tool" if hasattr(self.bounded.environment, "offered") else "user"
            return [{"role": role, "content": f"Error: {why}."[: self.bounded.characters]}]
        talk.rewards.append(None)
        talk.stop_reason = "error"
        return ()

    def _next(self, talk: _Row, messages: Sequence[Message]) -> list[int] | None:
        """The tokens of messages, unless a limit ends the conversation."""
        if talk.room == 0:
            talk.stop_reason = "tokens"
        elif len(talk.ids) >= self.bounded.turns:
            talk.stop_reason = "turns"
        else:
            ids = self.write(messages, talk.ids[-1][-1])
            if len(ids) < talk.room:
                return ids
            talk.stop_reason = "tokens"
        return None

    def _left(self) -> float:
        """Seconds until conversations come to their limit."""
        if self.bounded.seconds is None:
            return LOOK
        return max(self.started + self.bounded.seconds - self.clock(), 0.001)

    def _expired(self) -> dict[int, None]:
        """The rows that still wait for an answer at the limit of seconds: their steps are ended."""
        if self.bounded.seconds is None or self.clock() - self.started < self.bounded.seconds:
            return {}
        late = [row for row, talk in enumerate(self.rows) if talk.future is not None]
        for row in late:
            talk = self.rows[row]
            future, talk.future, talk.stop_reason = talk.future, None, "seconds"
            talk.rewards.append(0.0)
            talk.waited += self.clock() - talk.asked
            if future is not None:
                future.cancel()
        return dict.fromkeys(late)


def _row(begun: Begun) -> _Row:
    if begun.error is None:
        return _Row(begun.state)
    return _Row(begun.state, errors=[begun.error], stop_reason="error")


def totals(conversations: Sequence[Sequence[Conversation]]) -> dict[str, float]:
    """What a run records of the conversations of a step: means over them, named as in metrics.jsonl."""
    every = [each for group in conversations for each in group]
    found = {
        "environment/turns": _mean([len(each.lengths) for each in every]),
        "environment/seconds": _mean([each.seconds for each in every]),
        "environment/errors": _mean([len(each.errors) for each in every]),
    }
    rewards = [each.total for each in every if each.total is not None]
    found |= {"environment/reward": _mean(rewards)} if rewards else {}
    for reason in get_args(StopReason):
        found[f"environment/ended_by_{reason}"] = _mean([each.stop_reason == reason for each in every])
    counted = {name: _mean([each.metrics.get(name, 0.0) for each in every]) for each in every for name in each.metrics}
    found |= {f"environment/{name}": value for name, value in counted.items()}
    calls, parsed = counted.get("calls", 0.0), counted.get("calls_parsed", 0.0)
    return found | ({"environment/calls_parsed_frac": parsed / calls} if calls else {})


def _mean(values: Sequence[float | int]) -> float:
    return float(sum(values)) / len(values)
