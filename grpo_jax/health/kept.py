"""What a run directory keeps of the health of its run: what the checks have to know, and the warnings so far.

health.json      the fields of `Setup`, as the run began or was last resumed
warnings.jsonl   one line a warning: `step`, `warning` (the name of the check), `text`, `answers`
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo_jax.health.seen import Setup

SETUP, WARNINGS = "health.json", "warnings.jsonl"
GIVE_NOTHING = ("verifiable", "prorl_v2", "maxrl")  # presets that give nothing to responses that are cut off


def write_setup(path: Path, setup: Setup) -> None:
    """Keeps in a run directory what the checks have to know of the run."""
    (path / SETUP).write_text(json.dumps(dataclasses.asdict(setup)) + "\n", encoding="utf-8")


def read_setup(path: Path) -> Setup | None:
    """What `write_setup` has kept; None for a run of an earlier version, and if the file cannot be read."""
    try:
        kept = json.loads((path / SETUP).read_text(encoding="utf-8"))
        bounds = {name: (float(most), str(metric)) for name, (most, metric) in kept.pop("bounds").items()}
        return Setup(**kept | {"rewards": tuple(kept["rewards"]), "bounds": bounds})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def setup_from(settings: Mapping[str, str], names: tuple[str, ...]) -> Setup:
    """The setup as far as the texts of a config's settings tell it. `names` are those of the rewards that were seen."""
    held_out = [number for key in ("train.evaluate_prompts", "task.held_out") if (number := _whole(settings.get(key)))]
    return Setup(
        _whole(settings.get("train.steps")) or 0,
        names,
        _whole(settings.get("rollout.responses")),
        min(held_out, default=0),
        settings.get("objective.use") in GIVE_NOTHING,
    )


def _whole(text: Any) -> int | None:
    return int(text) if isinstance(text, str) and text.isdecimal() else None
