"""Texts that the hosts of a run exchange, through the key-value store of jax.distributed.

The store lives on the first host and needs no device: hosts can still read it when another one has failed and every
program on the devices would wait for that one. On a single host the functions that wait for all hosts return at once.
"""

import itertools
import time
from collections.abc import Callable
from typing import Any

from jax._src import distributed  # JAX has no public name for its key-value store
from jax.errors import JaxRuntimeError

PREFIX = "grpo_jax/"
PREEMPTED = "RECEIVED_PREEMPTION_NOTICE"  # the key under which JAX notes that a host has got SIGTERM

_rounds = itertools.count()  # of `gather`; every host calls it in the same order, so all count alike


def host_count() -> int:
    """The number of hosts; 1 before this host has joined others."""
    return distributed.global_state.num_processes


def host_index() -> int:
    """The index of this host."""
    return distributed.global_state.process_id


def is_first() -> bool:
    """Whether this host is the first, which writes the files that are written once."""
    return host_index() == 0


def put(key: str, text: str) -> None:
    """Stores this host's text under a key, in place of the one before."""
    _client().key_value_set(f"{PREFIX}{key}/{host_index()}", text, allow_overwrite=True)


def read(key: str) -> dict[int, str]:
    """The texts that hosts have stored under a key so far, by host index."""
    found = _client().key_value_dir_get(f"{PREFIX}{key}/")
    return {int(path.rpartition("/")[2]): text for path, text in found}


def gather(text: str) -> list[str]:
    """The texts of all hosts, by host index. Waits until every host has called this, however long that takes."""
    key = f"round_{next(_rounds)}"
    if host_count() == 1:
        return [text]
    put(key, text)
    while len(texts := read(key)) < host_count():
        time.sleep(0.1)
    return [texts[index] for index in range(host_count())]


def decide(choose: Callable[[], str]) -> str:
    """What the first host chooses, returned on every host."""
    return gather(choose() if is_first() else "")[0]


def stop_requested() -> bool:
    """Whether JAX has noted a SIGTERM to any host."""
    try:
        return bool(_client().key_value_try_get(PREEMPTED))
    except JaxRuntimeError:  # there is no such key
        return False


def _client() -> Any:
    client = distributed.global_state.client
    if client is None:
        raise ConnectionError("This host has not joined other hosts, or has left them again.")
    return client
