"""Examples with their prompts as tokens, and what is checked of them before any is asked."""

from collections.abc import Sequence
from dataclasses import replace

from grpo_jax.algorithm import Algorithm
from grpo_jax.models import Model
from grpo_jax.rewards import Example, check_examples
from grpo_jax.scoring import rehearse
from grpo_jax.structs import Prompts, bucket

MAX_PROMPT_TOKENS = 512


class Questions:
    """Examples with their prompts encoded once, padded for each batch only as far as it needs."""

    def __init__(self, examples: Sequence[Example], model: Model, max_tokens: int):
        prompts, sources = [example.prompt for example in examples], [example.source for example in examples]
        self.prompts = model.tokenizer.encode_all(prompts, max_tokens, sources)
        self.examples = [replace(example, opened=model.tokenizer.opened(example.prompt)) for example in examples]

    def choose(self, indices: Sequence[int]) -> tuple[Prompts, list[Example]]:
        """The prompts and examples at these indices."""
        indices = list(indices)
        valid_PL = self.prompts.valid_PL[indices]
        length = min(bucket(int(valid_PL.sum(axis=1).max())), valid_PL.shape[1])
        prompts = Prompts(self.prompts.tokens_PL[indices, -length:], valid_PL[:, -length:])
        return prompts, [self.examples[index] for index in indices]


def check_rewards(algorithm: Algorithm, model: Model, kind: str, examples: Sequence[Example]) -> None:
    """Shows every example to the rewards that say what they need, and tries all rewards on the first one."""
    if examples:
        check_examples(algorithm.reward, examples, kind)
        rehearse(algorithm, examples[0], [model.tokenizer.end_ids[0]])
