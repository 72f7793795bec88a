"""The countdown game with a calculator: the model tries expressions, reads what they are, and then answers."""

import json
from typing import Any

from grpo_jax.environments.environment import Bounded
from grpo_jax.environments.tools import Tools
from grpo_jax.ranges import check_range
from grpo_jax.rewards.example import Example, Message
from grpo_jax.rewards.expressions import evaluate, reaches_target
from grpo_jax.rewards.mixing import Mix
from grpo_jax.rewards.of_environment import calls_work
from grpo_jax.tasks.countdown import asked, puzzles
from grpo_jax.tasks.task import Task, check_sizes, messages

MOST_SHOTS = 8


def calculate(expression: str) -> str:
    """Computes an arithmetic expression.

    Args:
        expression: Numbers with + - * / and parentheses, such as 3 * (4 + 5).
    """
    value = evaluate(expression)
    if value is None:
        raise ValueError(f"{expression!r:.80} is no expression of whole numbers, + - * / and parentheses")
    return str(value)


def calculator(
    train: int = 400,  # examples
    held_out: int = 64,  # examples, none of which is in train
    numbers: int = 2,  # how many are given
    largest: int = 20,  # of the given numbers, which start at 1
    largest_target: int = 100,
    shots: int = 0,  # worked conversations in each prompt, which show how a call is written
    worked: bool = False,  # each prompt goes on to the answer, for `grpo-jax sft` with turns: all
    turns: int = 4,  # replies of the model, at most
    instruction: str = "",
    system: str | None = None,
    seed: int = 0,
) -> Task:
    """Countdown puzzles with a tool `calculate`. A reply that calls nothing is the answer: an expression.

    The correct expression earns 1, and the calls that worked up to 0.2.
    """
    check_sizes(train, held_out)
    check_range("task.seed", seed, least=0)
    check_range("task.shots", shots, least=0, most=MOST_SHOTS)
    rows = puzzles(train + held_out + shots, numbers, largest, largest_target, seed)
    shown = [message for row in rows[:shots] for message in solved(row)]
    examples = [_example(row, shown, instruction, system, worked) for row in rows[shots:]]
    reward = Mix(((reaches_target, 1.0), (calls_work, 0.2)))
    return Task(examples[:train], examples[train:], reward, Bounded(Tools(calculate), turns=turns))


def _example(row: dict[str, Any], shown: list[Message], instruction: str, system: str | None, worked: bool) -> Example:
    *head, question = messages(asked(row), instruction, system)
    tried = solved(row)[1:-1] if worked else []
    return Example([*head, *shown, question, *tried], row["solution"], row)


def solved(row: dict[str, Any]) -> list[Message]:
    """A conversation about a puzzle: a try that misses in every second puzzle, the solution, and the answer."""
    first, second = (str(number) for number in row["numbers"][:2])
    others = [text for sign in "+*-" if evaluate(text := f"{first} {sign} {second}") != row["target"]]
    misses = others[: row["target"] % 2]
    tries = [message for text in (*misses, row["solution"]) for message in _tried(text)]
    return [{"role": "user", "content": asked(row)}, *tries, {"role": "assistant", "content": row["solution"]}]


def _tried(expression: str) -> list[Message]:
    call = json.dumps({"name": "calculate", "arguments": {"expression": expression}})
    return [
        {"role": "assistant", "content": f"<tool_call>{call}</tool_call>"},
        {"role": "tool", "content": calculate(expression)},
    ]
