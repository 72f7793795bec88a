"""What a tracker is: a function of (step, metrics), or an object that opens one when it is told of the run."""

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

Write = Callable[[int, Mapping[str, float]], object]  # takes the metrics of one step


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run before its first step."""

    path: Path  # the run directory
    name: str
    id: str  # the same for each start of this run, and of no other run
    step: int  # steps that are done: those that come are later
    settings: Mapping[str, Any]  # without secrets


@runtime_checkable
class Tracker(Protocol):
    """A tracker that is told of the run.

    What it opens may have a method `close`, called at the end, and `fail`, called instead if the run ends by an error.
    """

    def open(self, run: TrackedRun) -> Write:
        """The function that takes the metrics of each step. It is called in the thread of this tracker."""
        ...


def check_trackers(trackers: Sequence[Any]) -> None:
    """Refuses a tracker whose library is not installed, and a function that cannot be called with (step, metrics)."""
    for index, tracker in enumerate(trackers):
        place = f"train.trackers[{index}]"
        if isinstance(tracker, type):
            raise ValueError(f"{place} is the class {tracker.__qualname__}. Call it, with its settings if it has any.")
        if isinstance(tracker, Tracker):
            check = getattr(tracker, "check", None)
            if check is not None:
                check(place)
        else:
            _check_function(tracker, place)


def _check_function(tracker: Any, place: str) -> None:
    if not callable(tracker):
        raise ValueError(
            f"{place} has to be a function of (step, metrics), or an object with a method open(run) that gives one; got"
            f" an object of type {type(tracker).__name__}."
        )
    call = tracker if inspect.isroutine(tracker) or isinstance(tracker, functools.partial) else type(tracker).__call__
    if inspect.iscoroutinefunction(call.func if isinstance(call, functools.partial) else call):
        raise ValueError(f"{place}: {label_of(tracker)} is async, and nothing awaits it. Make it a plain function.")
    try:
        inspect.signature(tracker).bind(0, {})
    except TypeError as error:
        raise ValueError(
            f"{place}: {label_of(tracker)} is called with (step, metrics), the step's number and a dict, and cannot be:"
            f" {error}. Change its parameters, or give the others in the config: {{use: ..., name: value}}."
        ) from error
    except ValueError:  # written in C: it does not tell
        return


def labels(trackers: Sequence[Any]) -> list[str]:
    """What each tracker is called in messages and files; the second of the same name is `name-2`."""
    return numbered([label_of(tracker) for tracker in trackers])


def numbered(names: Sequence[str]) -> list[str]:
    """The names, of which the second of the same is `name-2`."""
    found: list[str] = []
    for name in names:
        found.append(name)
        if found.count(name) > 1 or name in found[:-1]:
            found[-1] = next(f"{name}-{n}" for n in range(2, len(found) + 2) if f"{name}-{n}" not in found)
    return found


def label_of(tracker: Any) -> str:
    """What a tracker is called."""
    label = getattr(tracker, "label", None)
    if isinstance(label, str):
        return label
    while isinstance(tracker, functools.partial):
        tracker = tracker.func
    named = tracker if hasattr(tracker, "__qualname__") else type(tracker)
    return f"{named.__module__}:{named.__qualname__}"


def file_name(label: str) -> str:
    """A label as the name of a file, without what comes after the dot."""
    return re.sub(r"[^\w.-]+", "_", label)


def opened(tracker: Any, run: TrackedRun) -> Write:
    """The function of a tracker that takes the metrics of each step."""
    return tracker.open(run) if isinstance(tracker, Tracker) else tracker
