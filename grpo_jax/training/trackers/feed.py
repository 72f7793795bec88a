"""Hands the metrics of each step to trackers. Whatever a tracker does, it can neither delay the run nor end it.

Each tracker has a thread of its own and a queue of `WAITING` steps. If the queue is full, the oldest step is dropped.
The first failure is a warning, and the end of the run says how many steps were lost. metrics.jsonl has all of them.
"""

import json
import secrets
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_jax.hosts.signals import say
from grpo_jax.training.trackers.child import FOLDER, Child
from grpo_jax.training.trackers.tracker import TrackedRun, Write, file_name, labels, opened

WAITING = 100  # steps that may wait for a tracker
CLOSING_SECONDS = 5.0  # that the end of a run waits, for all trackers together
AGAIN_SECONDS = 30.0  # until a tracker that could not be opened is tried again


class Mark:
    """A file with the id of a run in one tracker, and the last step that the tracker has taken."""

    def __init__(self, file: Path):
        self.file = file
        self.id, self.step = secrets.token_hex(4), -1
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            self.id, self.step = str(found["id"]), int(found["step"])
        except (OSError, ValueError, KeyError, TypeError):  # there is none, or it was cut off: the run is a new one
            return

    def write(self, step: int) -> None:
        """Keeps that the tracker has all steps up to this one."""
        self.step = max(self.step, step)
        self.file.parent.mkdir(exist_ok=True)
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps({"id": self.id, "step": self.step}) + "\n", encoding="utf-8")
        new.replace(self.file)


class Feed:
    """The thread and the queue of one tracker."""

    def __init__(self, tracker: Any, label: str, run: TrackedRun, mark: Mark | None):
        self.tracker, self.label, self.run, self.mark = tracker, label, run, mark
        self.skipped = -1 if mark is None else mark.step  # the last step of an earlier start
        self.waiting: deque[tuple[int, dict[str, float]]] = deque()
        self.changed, self.closing = threading.Condition(), threading.Event()
        self.given = self.lost = 0
        self.in_hand = self.warned = self.done = self.failed = False
        self.child: Child | None = None
        self.thread = threading.Thread(target=self._feed, daemon=True, name=f"tracker {label}")
        self.thread.start()

    def write(self, step: int, metrics: Mapping[str, float], amends: bool = False) -> None:
        """Hands the metrics of a step to the thread, unless an earlier start has; those that amend a step are new."""
        if step <= self.skipped and not amends:
            return
        with self.changed:
            self.given += 1
            self.waiting.append((step, dict(metrics)))
            full = len(self.waiting) > WAITING
            if full:
                self.waiting.popleft()
                self.lost += 1
            self.changed.notify()
        if full:
            self._warn(f"{WAITING} steps wait for it, so the oldest are dropped")

    def end(self, failed: bool = False) -> None:
        """Tells the thread that there are no more steps, and whether the run has failed."""
        self.failed = failed
        self.closing.set()
        with self.changed:
            self.changed.notify()
        self._complete()

    def leave(self, deadline: float) -> None:
        """Waits for the thread, until the deadline at most, and says what was lost."""
        self.thread.join(max(0.0, deadline - time.monotonic()))
        with self.changed:
            lost = self.lost + len(self.waiting) + self.in_hand
            self.done = True
        if lost:
            say(f"tracker {self.label}: {lost} of {self.given} step(s) did not reach it; metrics.jsonl has them")
        elif self.thread.is_alive():
            say(f"tracker {self.label} was not done {CLOSING_SECONDS:g} s after the run, which does not wait for it")

    def _feed(self) -> None:
        """Opens the tracker, hands it all steps, and closes it."""
        write = self._opened()
        if write is None:
            return
        with self.changed:
            self.child = write if isinstance(write, Child) else None
        self._complete()
        while (item := self._next()) is not None:
            step, metrics = item
            try:
                write(step, metrics)
                if self.mark is not None:
                    self.mark.write(step)
            except (Exception, SystemExit) as error:
                self._warn(_reason(error))
                with self.changed:
                    self.lost, self.in_hand = self.lost + 1, False
            else:
                with self.changed:
                    self.in_hand = False
        try:
            close = getattr(write, "close", None)
            close = getattr(write, "fail", close) if self.failed else close
            if close is not None:
                close()
        except (Exception, SystemExit) as error:
            self._warn(_reason(error))

    def _complete(self) -> None:
        """Tells the process of a library that the run has ended and is complete, also while it is busy."""
        with self.changed:
            child = self.child
        if child is not None and self.closing.is_set() and not self.failed:
            child.complete()

    def _opened(self) -> Write | None:
        """The tracker's function. Tries again after a failure, until the run ends."""
        while True:
            try:
                if self.mark is not None:
                    self.mark.write(self.mark.step)  # an id is kept before it is used
                return opened(self.tracker, self.run)
            except (Exception, SystemExit) as error:
                self._warn(_reason(error))
            if self.closing.wait(AGAIN_SECONDS):
                return None

    def _next(self) -> tuple[int, dict[str, float]] | None:
        """The oldest step that waits, once there is one; None at the end."""
        with self.changed:
            while not self.waiting and not self.closing.is_set():
                self.changed.wait()
            self.in_hand = bool(self.waiting)
            return self.waiting.popleft() if self.waiting else None

    def _warn(self, reason: str) -> None:
        with self.changed:
            first, self.warned = not self.warned and not self.done, True
        if first:
            say(
                f"warning: tracker {self.label}: {reason}. What it has may be incomplete from here on; the run is not"
                " affected, and metrics.jsonl has everything"
            )


def _reason(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def feeds_of(trackers: Sequence[Any], path: Path, step: int, settings: Mapping[str, Any]) -> list[Feed]:
    """A feed for each tracker of the run in the directory `path`, of which `step` steps are done."""
    found = []
    for tracker, label in zip(trackers, labels(trackers), strict=True):
        replaces = getattr(tracker, "replaces_steps", False)
        mark = None if replaces else Mark(path / FOLDER / f"{file_name(label)}.json")
        run = TrackedRun(path, path.name, "" if mark is None else mark.id, step, settings)
        found.append(Feed(tracker, label, run, mark))
    return found


def forget(path: Path) -> None:
    """Removes what is known of the trackers of a run that begins again: there it is another run, with another id."""
    for file in (path / FOLDER).glob("*.json"):
        file.unlink()


def close_all(feeds: Sequence[Feed], failed: bool = False) -> None:
    """Waits until all trackers have every step, for `CLOSING_SECONDS` at most."""
    deadline = time.monotonic() + CLOSING_SECONDS
    for feed in feeds:
        feed.end(failed)
    for feed in feeds:
        feed.leave(deadline)
