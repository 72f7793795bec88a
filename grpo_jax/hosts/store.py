"""What the hosts of a run tell each other: they leave word on a board that all of them read.

It is the key-value store of jax.distributed, which lives on the first host and needs no device: where one fails, the
others are not stuck in a program that waits for it. On one host the only one talks to itself.
"""

import itertools
import time
from collections.abc import Callable

from jax._src import distributed  # the one way to the key-value store of jax.distributed

ROOM = "grpo_jax/"

_turns = itertools.count()  # what they say one after another; all hosts count alike


def number() -> int:
    """How many hosts there are; 1 where this one has met no others."""
    return distributed.global_state.num_processes


def own() -> int:
    """Which of them this is."""
    return distributed.global_state.process_id


def is_first() -> bool:
    """Whether this is the host that writes what is written once."""
    return own() == 0


def put(place: str, text: str) -> None:
    """Leaves word of this host, in place of what it said there before."""
    distributed.global_state.client.key_value_set(f"{ROOM}{place}/{own()}", text, allow_overwrite=True)


def read(place: str) -> dict[int, str]:
    """What the hosts have put there so far, by their number."""
    found = distributed.global_state.client.key_value_dir_get(f"{ROOM}{place}/")
    return {int(key.rpartition("/")[2]): text for key, text in found}


def gather(text: str) -> list[str]:
    """What every host says, in their order. It waits for all of them, however long they take."""
    place = f"turn_{next(_turns)}"
    if number() == 1:
        return [text]
    put(place, text)
    while len(said := read(place)) < number():
        time.sleep(0.1)
    return [said[index] for index in range(number())]


def decide(choose: Callable[[], str]) -> str:
    """What the first host chooses, on every host."""
    return gather(choose() if is_first() else "")[0]
