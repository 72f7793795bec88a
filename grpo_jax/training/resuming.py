"""What may change when a run is resumed. `run.json` keeps what the run was made of; a resume compares with it.

What is in `FREE` may change, and is said. All else decides what is learned (the model, the data, the objective, the
rewards and their code, the optimiser, the seed, the sizes of a step): a change of it is refused unless it is allowed.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any

from grpo_jax.hosts import store
from grpo_jax.models import Model
from grpo_jax.models.load import base_digest
from grpo_jax.redaction import hidden, redact
from grpo_jax.rewards import Rubric
from grpo_jax.training.record import RUN, RunDirectory, settings_of
from grpo_jax.training.session import Session
from grpo_jax.training.user_code import user_code

FREE = (
    "run.",  # what ends in a dot is a whole section
    "mesh.",
    "task.",  # the examples that it gives are compared instead
    "held-out data",
    "evaluation.",
    "train.steps",
    "train.evaluate_every",
    "train.evaluate_prompts",
    "train.save_every",
    "train.keep",
    "train.keep_best",
    "train.keep_every",
    "train.patience",
    "train.max_skipped",
    "train.watchdog_minutes",
    "train.report_minutes",
    "train.token_groups",
    "train.trackers",
    "train.profile_steps",
    "algorithm.reward_seconds",
    "judge.at_once",
    "judge.seconds",
    "judge.attempts",
    "judge.wait",
    "judge.failures",
    "judge.cache",
    "judge.key",
    "algorithm.responses_at_once",
    "rollout.at_once",
    "optimizer.moments_in",
    "model.remat",
)


@dataclass(frozen=True)
class Fingerprint:
    """What a run is made of, as texts by name.

    `facts` are always compared, `settings` (the keys of a config) where both runs have them, `parts` (what the objects
    say of themselves) else. A setting in `defaults` was not written, so a version that does not know it agrees.
    """

    facts: Mapping[str, str]
    settings: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    defaults: Sequence[str] = ()


@dataclass(frozen=True)
class Change:
    """One thing that is not what it was; "not there" where one side does not have it."""

    name: str
    before: str
    now: str

    @property
    def is_free(self) -> bool:
        """Whether it may change without being allowed."""
        name = self.name.partition("[")[0]  # of a list, and of what is in it
        return any(name == free or (free[-1] == "." and self.name.startswith(free)) for free in FREE)

    def __str__(self) -> str:
        return f"{self.name}: {self.before} -> {self.now}"


def fingerprint(session: Session, config: str) -> Fingerprint:
    """What a run is made of. `config` is the text of its config, empty if it was started from Python."""
    algorithm, settings = session.algorithm, settings_of(config)
    facts = {f"model's {name}": text for name, text in _told("shape", session.model.shape)}
    for name, text in session.facts().items():
        facts[name] = f"{text.count(chr(10)) + bool(text)} examples, sha256 {_digest(text)}"
    for index, (reward, weight) in enumerate(algorithm.mix.parts):
        facts |= dict(_told(f"rewards[{index}]", reward)) | {f"rewards[{index}].weight": repr(float(weight))}
    if session.model.lora is not None:
        facts |= {"model's base": base_digest(session.model)} | dict(_told("model's adapters", session.model.lora))
    own = [*_objects(algorithm.reward), *_objects(algorithm.objective), *_objects(algorithm.sample)]
    facts |= {f"code of {name}": f"sha256 {digest[:16]}" for name, digest in user_code(own).items()}
    parts = dict(_told("train", session.settings)) | dict(_told("rollout", algorithm.sample, {"ends", "decode"}))
    parts |= dict(_told("objective", algorithm.objective)) | {"algorithm.minibatches": repr(algorithm.minibatches)}
    texts = {key: text for key, (text, _) in settings.items()}
    return Fingerprint(facts, texts, parts, [key for key, (_, source) in settings.items() if source == "default"])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:16]


def _told(name: str, value: Any, without: Iterable[str] = ()) -> Iterator[tuple[str, str]]:
    """What a value and its fields are, as texts that are the same in another process."""
    if isinstance(value, functools.partial):
        yield from _told(name, value.func)
        yield from _told(name, dict(enumerate(value.args)) | value.keywords)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _told(f"{name}.{key}", item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _told(f"{name}[{index}]", item)
    elif value is None or isinstance(value, bool | int | float | str | re.Pattern):
        yield name, _written(name, value)
    elif isinstance(value, Rubric):
        yield f"{name}.criteria", f"sha256 {_digest(value.content)}"
        yield from _told(f"{name}.column", value.column)
        yield from _told(f"{name}.judge", value.judge, {"limits", "replies"})
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield name, type(value).__qualname__
        for known in dataclasses.fields(value):
            if known.init and known.name not in without:  # others are what happened to it in this process
                yield from _told(f"{name}.{known.name}", getattr(value, known.name))
    else:
        yield name, getattr(value, "__qualname__", type(value).__qualname__)
        yield from _closed_over(name, value)


def _closed_over(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """The plain values that a function made by another one remembers."""
    if isinstance(value, FunctionType) and value.__closure__ is not None:
        for variable, cell in zip(value.__code__.co_freevars, value.__closure__, strict=True):
            if isinstance(cell.cell_contents, bool | int | float | str):
                yield f"{name}.{variable}", _written(f"{name}.{variable}", cell.cell_contents)


def _written(name: str, value: object) -> str:
    """A plain value as run.json may hold it: without secrets."""
    return redact(repr(hidden(name, value)))


def _objects(value: Any) -> Iterator[object]:
    """A value and what it is made of, down to its functions."""
    yield value
    if isinstance(value, functools.partial):
        yield from _objects([value.func, *value.args, *value.keywords.values()])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _objects(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from _objects([getattr(value, known.name) for known in dataclasses.fields(value)])
    elif isinstance(getattr(value, "__wrapped__", None), Callable):
        yield from _objects(value.__wrapped__)


def write_fingerprint(path: Path, name: str, known: Fingerprint, model: Model | None = None) -> None:
    """Keeps what the run `name` is made of in its directory, and where its model comes from (models/runs.py).

    A resume does not compare where the first weights came from, as it goes on from its own.
    """
    content: dict[str, Any] = {"name": name}
    if model is not None and model.origin is not None:
        content |= {"model": model.origin.base}
    if model is not None and model.tokenizer.template:
        content |= {"template": dict(model.tokenizer.template)}
    if model is not None and model.lora is not None:
        settings, base = dataclasses.asdict(model.lora), base_digest(model)
        content |= {"adapters": {"settings": settings, "base": base, "int8": model.in_int8}}
    if model is not None and model.first_weights is not None:
        content |= {"first_weights": model.first_weights}
    new = path / f"{RUN}.tmp"
    new.write_text(json.dumps(content | dataclasses.asdict(known), indent=1) + "\n", encoding="utf-8")
    new.replace(path / RUN)


def read_fingerprint(path: Path) -> Fingerprint | None:
    """What a run was made of; None for one that an earlier version wrote."""
    found = RunDirectory(path).identity()
    if "facts" not in found:
        return None
    fields = [known.name for known in dataclasses.fields(Fingerprint)]
    if missing := [name for name in fields if name not in found]:
        raise ValueError(f"{path / RUN} has no {missing[0]}; put a copy of it there, or start a new run.")
    return Fingerprint(*(found[name] for name in fields))


def changes(before: Fingerprint, now: Fingerprint) -> list[Change]:
    """Everything that is not what it was."""
    as_config = bool(before.settings and now.settings)
    old, new = (dict(each.settings if as_config else each.parts) | dict(each.facts) for each in (before, now))
    unset = set(before.defaults) | set(now.defaults)
    return [
        Change(name, old.get(name, "not there"), new.get(name, "not there"))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not (name in unset and (name not in old or name not in new))
    ]


def check_changes(path: Path, found: Sequence[Change], allow: bool) -> None:
    """Refuses changes of what is learned unless they are allowed, and says all that are taken."""
    refused = [change for change in found if not change.is_free]
    if refused and not allow:
        listed = "".join(f"\n  {change}" for change in refused)
        raise ValueError(
            f"{path} was trained with other settings, and what differs decides what is learned:{listed}\nUndo the"
            " changes, or take them with --allow-changes (allow_changes=True), or start a new run without --resume."
        )
    if store.is_first():
        for change in found:
            logging.getLogger("grpo_jax").warning("changed: %s", change)


def compare(path: Path, session: Session, config: str, allow: bool) -> Fingerprint:
    """What the run to be resumed is made of now, once its changes are allowed. All hosts compare with the same."""
    now = fingerprint(session, config)
    kept = json.loads(store.decide(lambda: json.dumps(_as_dict(read_fingerprint(path)))))
    if kept is not None:
        check_changes(path, changes(Fingerprint(**kept), now), allow)
    elif store.is_first():
        logging.getLogger("grpo_jax").warning(
            "%s was written by an earlier version, which did not keep what it was made of: nothing is compared", path
        )
    return now


def _as_dict(known: Fingerprint | None) -> dict[str, Any] | None:
    return None if known is None else dataclasses.asdict(known)


def check_start_over(path: Path, last: int, lost: bool, allow: bool) -> None:
    """Refuses to begin again, and to delete the metrics of `last` steps, where checkpoints have been lost.

    A run that ended before its first checkpoint was saved has lost none, and begins again.
    """
    if last == 0:
        return
    if not lost or allow or _confirmed(path, last):
        if store.is_first():
            logging.getLogger("grpo_jax").warning(
                "warning: %s has no checkpoint: it begins again, and its %d steps are replaced", path, last
            )
        return
    raise ValueError(
        f"{path} has the metrics of {last} steps, but no checkpoint: --resume would begin again and delete them. Put"
        " the checkpoints back, start a new run without --resume, or begin again with --allow-changes."
    )


def _confirmed(path: Path, last: int) -> bool:
    """Whether the person at the terminal, if there is one, agrees."""
    if store.host_count() > 1 or not sys.stdin.isatty():
        return False
    question = f"{path} has the metrics of {last} steps, but no checkpoint. Begin again, and delete them? [y/N] "
    return input(question).strip().lower() in ("y", "yes")
