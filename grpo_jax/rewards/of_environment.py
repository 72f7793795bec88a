"""The rewards that an environment gives turns, as a reward."""

from itertools import accumulate

from grpo_jax.rewards.conversation import Conversation
from grpo_jax.rewards.example import Example
from grpo_jax.rewards.steps import Steps, TokenCount


def environment(example: Example, conversation: Conversation) -> Steps | None:
    """What the environment gave: the sum over the turns, each at the last token of its reply.

    None if it could not score one of them.
    """
    rewards = [reward for reward in conversation.rewards if reward is not None]
    if len(rewards) < len(conversation.rewards):
        return None
    return Steps(rewards, [TokenCount(count) for count in accumulate(conversation.lengths)])


def calls_work(example: Example, conversation: Conversation) -> float:
    """The fraction of the calls of tools that could be read and did not fail; 0 if there was none."""
    calls, failed = (conversation.metrics.get(name, 0.0) for name in ("calls", "calls_failed"))
    return (calls - failed) / calls if calls else 0.0
