"""A prompt as the model reads it, with the borders of its tokens, for people."""

from collections.abc import Iterator, Sequence

from grpo_jax.models.tokenizer import Tokenizer
from grpo_jax.rewards import Example

FIRST, LAST = 300, 100  # tokens of a long prompt that are shown
BORDER = "│"
NOT_A_CHARACTER = "\ufffd"  # what a tokenizer decodes a part of a character to


def shown(example: Example, tokenizer: Tokenizer) -> str:
    """The name of an example, its gold answer, and its prompt with a line between any two tokens."""
    ids = tokenizer.encode(example.prompt)
    answer = f", answer {printable(example.answer[:200])!r}" if example.answer else ", no answer"
    lines = marked(ids, tokenizer).split("\n")
    return f"{example.label}: {len(ids)} tokens{answer}\n" + "\n".join(f"    {line}" for line in lines)


def marked(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The text of tokens with their borders; the middle of many is left out."""
    if len(ids) <= FIRST + LAST:
        return BORDER.join(map(printable, pieces(ids, tokenizer)))
    first, last = (BORDER.join(map(printable, pieces(part, tokenizer))) for part in (ids[:FIRST], ids[-LAST:]))
    return f"{first}\n... {len(ids) - FIRST - LAST} tokens ...\n{last}"


def pieces(ids: Sequence[int], tokenizer: Tokenizer) -> Iterator[str]:
    """The text that each token adds. Tokens that are parts of one character come together, with their number."""
    before, waiting = "", 0
    for count in range(1, len(ids) + 1):
        waiting += 1
        text = _decoded(ids[:count], tokenizer)
        if text.endswith(NOT_A_CHARACTER) and count < len(ids) and waiting < 4:
            continue
        added = text[len(before) :] if text.startswith(before) else text
        yield added if waiting == 1 else f"{added}({waiting} tokens)"
        before, waiting = text, 0


def _decoded(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    text = tokenizer.backend.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return str(text)


def printable(text: str) -> str:
    """The text with line ends shown, and without characters that would control a terminal."""
    return "".join("\\n\n" if c == "\n" else c if c.isprintable() else repr(c)[1:-1] for c in text)
