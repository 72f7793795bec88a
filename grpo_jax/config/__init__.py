"""Reads YAML strictly into calls. Nothing else in the package turns names into objects."""

from grpo_jax.config.building import build, locate
from grpo_jax.config.finding import find_config
from grpo_jax.config.loading import find_modules_in
from grpo_jax.config.reading import read
from grpo_jax.config.rendering import render
from grpo_jax.config.sections import SECTIONS, Call, Config, RewardPart, Section
from grpo_jax.config.signatures import Default, Parameter, parameters
from grpo_jax.config.values import ConfigError

__all__ = [
    "SECTIONS",
    "Call",
    "Config",
    "ConfigError",
    "Default",
    "Parameter",
    "RewardPart",
    "Section",
    "build",
    "find_config",
    "find_modules_in",
    "locate",
    "parameters",
    "read",
    "render",
]
