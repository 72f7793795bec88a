"""The responses that are scored together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from grpo_jax.rewards.conversation import Conversation
from grpo_jax.rewards.example import Example


@dataclass(frozen=True)
class Batch:
    """Examples, with a group of responses to each, all of one size.

    `tokens`, nested like `responses`, and `step` are for functions written for TRL that ask for them. Where responses
    have several turns, `responses` are their last replies, and `conversations` have all that was said.
    """

    examples: Sequence[Example]
    responses: Sequence[Sequence[str]]
    tokens: Sequence[Sequence[Sequence[int]]] | None = None
    step: int | None = None
    conversations: Sequence[Sequence[Conversation]] | None = None

    def __post_init__(self) -> None:
        sizes = [len(group) for group in self.responses]
        if not self.examples or len(sizes) != len(self.examples) or len(set(sizes)) != 1 or sizes[0] == 0:
            raise ValueError(
                "Scoring needs at least one example and a group of responses for each, all of one size;"
                f" got {len(self.examples)} examples and groups of {sizes}."
            )

    @property
    def count(self) -> int:
        """The number of responses."""
        return len(self.responses) * len(self.responses[0])

    def pairs(self) -> Iterator[tuple[Example, str]]:
        """Each response with its example, group after group."""
        for example, group in zip(self.examples, self.responses, strict=True):
            for response in group:
                yield example, response

    def conversation(self, p: int, g: int) -> Conversation:
        """What was said in a response; a response of one turn is a conversation of one reply."""
        if self.conversations is not None:
            return self.conversations[p][g]
        ids = () if self.tokens is None else self.tokens[p][g]
        return Conversation([{"role": "assistant", "content": self.responses[p][g]}], [0.0], [len(ids)])

    def place(self, n: int) -> str:
        """What a message calls the response of this index, counted over all groups."""
        p, g = divmod(n, len(self.responses[0]))
        return place_of(self.examples[p], p, g)


def place_of(example: Example, p: int, g: int | None = None) -> str:
    """What a message calls a prompt, or a response to it: by its index, and by where it was read."""
    index = f"example {p}" if g is None else f"example {p}, response {g}"
    return f"{index} ({example.source})" if example.source else index
