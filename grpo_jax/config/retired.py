"""Keys that an earlier version read, and what to write instead.

The config.yaml of an old run directory lists every default. So an old key with its old default is ignored, and such a
run can be resumed; any other value is refused, because ignoring it would change what the user asked for.
"""

from dataclasses import dataclass
from typing import Any

import yaml

from grpo_jax.config.values import read_value, refusal


@dataclass(frozen=True)
class Retired:
    """The default that a key had, and a message that says what to write instead."""

    default: Any
    instead: str


RESPONSES_AT_ONCE = (
    "replaced by algorithm.responses_at_once, the responses that each device learns from at once (null: as many as its"
    " memory holds); remove this key, or write there: microbatch x rollout.responses / (group_parts x mesh.data x"
    " mesh.fsdp)"
)
CORRECTIONS = (
    "replaced by objective.corrections, one list of all corrections and masks of the current policy; remove this key,"
    " and write its value as an item of that list, such as corrections: [{use: TokenMask, ...}]"
)
RETIRED = {
    "algorithm.microbatch": Retired(None, RESPONSES_AT_ONCE),
    "algorithm.group_parts": Retired(1, RESPONSES_AT_ONCE),
    "objective.correction": Retired(None, CORRECTIONS),
    "objective.live_masks": Retired([], CORRECTIONS),
}


def is_ignored(node: yaml.Node, value: yaml.Node, key: str) -> bool:
    """Whether a key that its owner does not know is an old one with its old default; another value is refused."""
    retired = RETIRED.get(key)
    if retired is None:
        return False
    found = read_value(value, Any, key)
    if type(found) is not type(retired.default) or found != retired.default:
        raise refusal(node, key, retired.instead)
    return True
