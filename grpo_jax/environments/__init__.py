"""Environments: what answers a model's replies in a conversation of several turns, and functions that it may call."""

from grpo_jax.environments.conversations import Begun, Conversations, begin
from grpo_jax.environments.environment import Bounded, Environment, Turn, as_bounded
from grpo_jax.environments.tools import Tools, tools

__all__ = ["Begun", "Bounded", "Conversations", "Environment", "Tools", "Turn", "as_bounded", "begin", "tools"]
