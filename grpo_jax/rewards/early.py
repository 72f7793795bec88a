"""Calls of rewards that begin while other groups are still sampled: each group is judged when its last response ends.

Only rewards that wait, in the event loop or in workers, and judge a response or a group can begin early. All others
need the main thread, which samples, or the responses of all groups.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any

from grpo_jax.hosts.signals import exits_refused
from grpo_jax.rewards import event_loop
from grpo_jax.rewards.calling import Begun, parts_of
from grpo_jax.rewards.deadline import interpreter_watched
from grpo_jax.rewards.example import Example
from grpo_jax.rewards.mixing import Mix
from grpo_jax.rewards.signatures import Kind, requests_of_group

BY_GROUP = (Kind.RESPONSE, Kind.GROUP, Kind.VERIFIERS)


class EarlyCalls:
    """The calls of a mix that have begun, for groups of responses to some of the examples."""

    def __init__(self, mix: Mix, examples: Sequence[Example], seconds: float | None):
        parts = enumerate(parts_of(mix, examples))
        self.parts = {r: part for r, part in parts if part.waits and part.kind in BY_GROUP}
        self.examples, self.seconds = examples, seconds
        self.begun: dict[int, dict[int, Future[Any]]] = {}
        self.guards = ExitStack()

    def begin(self, p: int, responses: Sequence[str]) -> None:
        """Makes the calls that judge the responses to the example with this index, and does not wait for them."""
        if not self.begun:
            self.guards.enter_context(exits_refused())
            self.guards.enter_context(interpreter_watched(self.seconds))
        for r, part in list(self.parts.items()):
            try:
                calls = requests_of_group(part.reward, part.label, part.kind, self.examples[p], responses, p)
                futures = part.start(list(calls))
            except Exception:
                del self.parts[r]  # scoring makes the same calls: there, this is raised on all hosts at once
                continue
            first = p * len(futures)
            self.begun.setdefault(r, {}).update(enumerate(futures, start=first))

    def taken(self) -> Begun:
        """What has begun, for scoring, which waits for it and has its own limits."""
        self.guards.close()
        return self.begun

    def close(self) -> None:
        """Cancels what has not ended."""
        self.guards.close()
        event_loop.abandon(future for calls in self.begun.values() for future in calls.values())
