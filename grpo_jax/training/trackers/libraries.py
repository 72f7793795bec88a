"""Weights & Biases and trackio. Each library runs in a process of its own (child.py), as both have threads and exit
handlers that wait for a network.
"""

import importlib.util
import os
from dataclasses import dataclass
from typing import ClassVar, Literal

from grpo_jax.training.trackers.child import Child
from grpo_jax.training.trackers.tracker import TrackedRun

UPLOADS = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")  # variables that make trackio send what it would keep here


@dataclass(frozen=True)
class WeightsAndBiases:
    """Weights & Biases. Its key comes from the environment (WANDB_API_KEY, or `wandb login`), never from a config."""

    project: str = "grpo-jax"
    entity: str | None = None  # the team or user; null: the key's default
    group: str | None = None
    tags: tuple[str, ...] = ()
    mode: Literal["online", "offline"] | None = None  # null: what WANDB_MODE says, and else online
    library: ClassVar[str] = "wandb"

    @property
    def label(self) -> str:
        """The library and the project."""
        return f"wandb {self.project if self.entity is None else f'{self.entity}/{self.project}'}"

    def check(self, place: str) -> None:
        """Refuses to start without the library."""
        check_installed(self.library, place)

    def open(self, run: TrackedRun) -> Child:
        """The process that logs to the run with this id, which goes on if it is there."""
        named = {"project": self.project, "entity": self.entity, "group": self.group, "tags": list(self.tags)}
        return Child(self.label, self.library, run, named | {"mode": self.mode})


@dataclass(frozen=True)
class Trackio:
    """trackio, which keeps its numbers on this machine unless a `space` of Hugging Face is named."""

    project: str = "grpo-jax"
    space: str | None = None  # of Hugging Face, as owner/name; null: none, nothing is uploaded
    group: str | None = None
    library: ClassVar[str] = "trackio"

    @property
    def label(self) -> str:
        """The library and the project."""
        return f"trackio {self.project if self.space is None else f'{self.space}/{self.project}'}"

    def check(self, place: str) -> None:
        """Refuses to start without the library, and an upload that only a variable of the environment asks for."""
        check_installed(self.library, place)
        found = [name for name in UPLOADS if os.environ.get(name)]
        if self.space is None and found:
            raise ValueError(
                f"{place}: the variable {found[0]} makes trackio upload, and no `space` is named here. Name it,"
                f" {{use: trackio, space: owner/name}}, or unset the variable."
            )

    def open(self, run: TrackedRun) -> Child:
        """The process that logs to the run of this name, which goes on if it is there."""
        return Child(
            self.label, self.library, run, {"project": self.project, "space_id": self.space, "group": self.group}
        )


def is_installed(library: str) -> bool:
    """Whether a library can be imported. A folder of its name, such as wandb writes, is none."""
    spec = importlib.util.find_spec(library)
    return spec is not None and spec.origin is not None


def check_installed(library: str, place: str) -> None:
    """Refuses a library that is not installed, with the command that installs it."""
    if not is_installed(library):
        raise ValueError(f'{place} is {library}, which is not installed. Install it: pip install "grpo-jax[{library}]"')
