"""Your own questions, one JSON object a line: `data` under its older name, with fewer keys."""

from pathlib import Path

from grpo_jax.tasks.data import data
from grpo_jax.tasks.tables.opening import format_of
from grpo_jax.tasks.tables.turning import LastTurn
from grpo_jax.tasks.task import Task


def jsonl(
    path: str,  # a file with a JSON object a line; `data` says which others are read
    prompt: str = "prompt",  # column with a string, or with a list of messages
    answer: str | None = "answer",  # column with a string or a number; null if no reward needs an answer
    held_out: str | None = None,  # path of a second file, for evaluation
    instruction: str = "",  # after each prompt that is a string
    system: str | None = None,  # before each prompt that is a string
    last_turn: LastTurn = "answer",  # an assistant's message at the end of a prompt: answer, prefill or drop
) -> Task:
    """The lines of a file, with a reward for the exact answer; rewards get all columns.

    A prompt that is a string stays one unless there is a `system` message, which makes it a chat. A model with a chat
    template gets it as the user's message in any case. Prompts that are messages are used unchanged. `data` reads other
    tables, too, and has more keys.
    """
    return data(
        path,
        format_of(path, "jsonl") if Path(path).expanduser().is_file() else "jsonl",
        prompt,
        answer,
        held_out=held_out,
        overlap="count",
        instruction=instruction,
        system=system,
        last_turn=last_turn,
    )
