"""Environments: what answers a model's replies in a conversation of several turns, and functions that it may call."""

from grpo_jax.environments.adapters import from_openenv, from_trl
from grpo_jax.environments.configured import Configured
from grpo_jax.environments.conversations import Begun, Conversations, begin
from grpo_jax.environments.environment import Bounded, Environment, Turn, as_bounded
from grpo_jax.environments.tools import Tools, tools

__all__ = [
    "Begun",
    "Bounded",
    "Configured",
    "Conversations",
    "Environment",
    "Tools",
    "Turn",
    "as_bounded",
    "begin",
    "from_openenv",
    "from_trl",
    "tools",
]
