"""Examples with their prompts as tokens, and what is checked of them before any is asked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from grpo_jax.algorithm import Algorithm
from grpo_jax.devices.mesh import mesh_of
from grpo_jax.devices.placing import prompts_of_host
from grpo_jax.environments import Begun, Bounded, Conversations, begin
from grpo_jax.models import Model
from grpo_jax.models.turns import TurnWriter
from grpo_jax.rewards import Example, check_examples
from grpo_jax.scoring import rehearse
from grpo_jax.structs import Prompts, bucket

MAX_PROMPT_TOKENS = 512


@dataclass(frozen=True)
class Chosen:
    """Prompts that are asked together, their examples, and the conversations that have begun about them, if any."""

    prompts: Prompts
    examples: list[Example]
    begun: Sequence[Begun] = ()


class Questions:
    """Examples with their prompts encoded once, padded for each batch only as far as it needs.

    With an `environment`, what it shows at the beginning of a conversation is added to the prompt each time.
    """

    def __init__(self, examples: Sequence[Example], model: Model, max_tokens: int, environment: Bounded | None = None):
        self.environment, self.tokenizer, self.max_tokens = environment, model.tokenizer, max_tokens
        self.writer = None if environment is None else TurnWriter(model.tokenizer)
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

    def begin(self, indices: Sequence[int], seed: Sequence[int]) -> Chosen:
        """What `choose` gives, and a conversation that has begun about each example, where there is an environment.

        The environment's seed is made of `seed` and the index of the example. All hosts begin all conversations, as all
        need the prompts.
        """
        if self.environment is None:
            return Chosen(*self.choose(indices))
        examples = [self.examples[index] for index in indices]
        seeds = [int(np.random.SeedSequence([*seed, index]).generate_state(1)[0]) for index in indices]
        begun = begin(self.environment, examples, seeds)
        pairs = zip(examples, begun, strict=True)
        examples = [self._continued(example, each) if each.messages else example for example, each in pairs]
        prompts, sources = [example.prompt for example in examples], [example.source for example in examples]
        return Chosen(self.tokenizer.encode_all(prompts, self.max_tokens, sources), examples, begun)

    def partner(self, chosen: Chosen, prompts: Prompts, responses: int | None) -> Conversations | None:
        """Who answers the model in so many responses to this host's prompts, which have been placed."""
        if self.environment is None or self.writer is None:
            return None
        if responses is None:
            raise ValueError(
                "Conversations need to know how many responses each prompt gets, and this engine does not say: give it"
                " an attribute `responses`."
            )
        own = [chosen.begun[index] for index in prompts_of_host(mesh_of(prompts), len(chosen.begun))]
        return Conversations(self.environment, own, responses, self.tokenizer.decode, self.writer)

    def _continued(self, example: Example, begun: Begun) -> Example:
        """The example with what its environment has shown."""
        prompt = [*map(dict, self.tokenizer.conversation(example.prompt)), *begun.messages]
        return replace(example, prompt=prompt, opened=self.tokenizer.opened(prompt))


def check_rewards(algorithm: Algorithm, model: Model, kind: str, examples: Sequence[Example]) -> None:
    """Shows every example to the rewards that say what they need, and tries all rewards on the first one."""
    if examples:
        check_examples(algorithm.reward, examples, kind)
        rehearse(algorithm, examples[0], [model.tokenizer.end_ids[0]])
