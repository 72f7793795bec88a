"""Reads the rotary positions of a `config.json`, from the keys of transformers 4 or of transformers 5."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpo_jax.models.files import AGAIN, positive_number, switch, whole_number
from grpo_jax.models.rope import Rope

KINDS = ("full_attention", "sliding_attention")  # layers whose rotary positions may differ


def read_rope(
    file: Path, config: dict[str, Any], kind: str, local_theta: str | None, channels: int, interleaved: bool
) -> Rope:
    """The rotary positions of layers of a kind. With `local_theta`, the key of their own base, nothing scales them."""
    fields = {"rope_theta": config.get("rope_theta" if local_theta is None else local_theta, 10000.0)}
    fields |= {key: config[key] for key in ("partial_rotary_factor",) if key in config}
    for key in ("rope_scaling", "rope_parameters"):
        given = config.get(key, {})
        if not isinstance(given, dict):
            raise ValueError(f"{file}: {key} must hold keys and values; got {given!r}.")
        by_kind = any(name in given for name in KINDS)
        given = given.get(kind, {}) if by_kind else {} if local_theta is not None else given
        if not isinstance(given, dict):
            raise ValueError(f"{file}: {kind} in {key} must hold keys and values; got {given!r}.")
        fields |= {name: value for name, value in given.items() if value is not None}
    fields |= {key: config[key] for key in (_ORIGINAL,) if key in config}  # outside, it is what transformers takes
    scaling = fields.get("rope_type", fields.get("type", "default"))
    if not isinstance(scaling, str) or scaling not in READERS:
        raise ValueError(f"{file}: rope type {scaling!r} is not supported; {', '.join(READERS)} are.")
    fraction = positive_number(file, {"partial_rotary_factor": 1.0} | fields, "partial_rotary_factor")
    rotating = int(channels * fraction)
    if fraction > 1 or rotating % 2 or rotating == 0:
        raise ValueError(
            f"{file}: partial_rotary_factor must leave an even number of the {channels} channels; got {fraction!r}."
        )
    more: dict[str, Any] = {} if fraction == 1 else {"fraction": fraction}
    more |= {"interleaved": True} if interleaved else {}
    longest = whole_number(file, config, "max_position_embeddings")
    more |= READERS[scaling](file, fields, longest, rotating)
    return Rope(positive_number(file, fields, "rope_theta"), **more)


Fields = dict[str, Any]


def _default(file: Path, fields: Fields, longest: int, rotating: int) -> Fields:
    return {}


def _linear(file: Path, fields: Fields, longest: int, rotating: int) -> Fields:
    return {"scaling": "linear", "factor": positive_number(file, fields, "factor")}


def _dynamic(file: Path, fields: Fields, longest: int, rotating: int) -> Fields:
    """Frequencies change only in texts beyond `max_position_embeddings`, and there are none here."""
    positive_number(file, fields, "factor")
    return {}


def _llama3(file: Path, fields: Fields, longest: int, rotating: int) -> Fields:
    low, high = (positive_number(file, fields, f"{end}_freq_factor") for end in ("low", "high"))
    if low >= high:
        raise ValueError(f"{file}: low_freq_factor must be below high_freq_factor; got {low} and {high}.")
    return {
        "scaling": "llama3",
        "factor": positive_number(file, fields, "factor"),
        "low_frequency_factor": low,
        "high_frequency_factor": high,
        "original_positions": whole_number(file, fields, "original_max_position_embeddings"),
    }


def _yarn(file: Path, fields: Fields, longest: int, rotating: int) -> Fields:
    original = whole_number(file, {"original_max_position_embeddings": longest} | fields, _ORIGINAL)
    if positive_number(file, fields, "rope_theta") <= 1:
        raise ValueError(f"{file}: rope_theta must be above 1 with yarn; got {fields['rope_theta']!r}. {AGAIN}")
    factor = positive_number(file, {"factor": longest / original} | fields, "factor")

    def length(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    amplitude = length(1.0)
    if "mscale" in fields and "mscale_all_dim" in fields:
        whole, all_dim = (positive_number(file, fields, key) for key in ("mscale", "mscale_all_dim"))
        amplitude = length(whole) / length(all_dim)
    given = {"attention_factor": amplitude, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": True} | fields
    return {
        "scaling": "yarn",
        "factor": factor,
        "original_positions": original,
        "fast_cycles": positive_number(file, given, "beta_fast"),
        "slow_cycles": positive_number(file, given, "beta_slow"),
        "whole_channels": switch(file, given, "truncate"),
        "amplitude": positive_number(file, given, "attention_factor"),
    }


def _longrope(file: Path, fields: Fields, longest: int, rotating: int) -> Fields:
    """The frequencies of short texts: `max_positions` is then the length up to which these are used."""
    original = whole_number(file, fields, _ORIGINAL, least=2)
    factor = positive_number(file, {"factor": longest / original} | fields, "factor")
    amplitude = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    divisors = fields["short_factor"]
    if not isinstance(divisors, list) or len(divisors) != rotating // 2:
        raise ValueError(f"{file}: short_factor must be a list of {rotating // 2} numbers; got {divisors!r}.")
    return {
        "scaling": "longrope",
        "factor": factor,
        "original_positions": original,
        "divisors": tuple(positive_number(file, {"short_factor": each}, "short_factor") for each in divisors),
        "amplitude": positive_number(file, {"attention_factor": amplitude} | fields, "attention_factor"),
    }


_ORIGINAL = "original_max_position_embeddings"
READERS: dict[str, Callable[[Path, Fields, int, int], Fields]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,  # its older name
}
