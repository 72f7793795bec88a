"""Tools in prompts: by the model's chat template if it knows them, or else in words, as a system message."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from grpo_jax.environments import Bounded, as_bounded, begin
from grpo_jax.models import Model
from grpo_jax.models.turns import offering, schemas
from grpo_jax.rewards import Example
from grpo_jax.tasks import Task

TOLD = (
    "You can call these functions, whose results you are then shown:\n{functions}\nTo call one, write"
    ' <tool_call>{{"name": "...", "arguments": {{...}}}}</tool_call>'
)


def with_environment(model: Model, task: Task) -> tuple[Model, Task, Bounded | None]:
    """The model and the task, in whose prompts the tools of the task's environment are offered; and the environment."""
    if task.environment is None:
        return model, task, None
    bounded = as_bounded(task.environment)
    functions = list(getattr(bounded.environment, "offered", ()))
    if not functions:
        return model, task, bounded
    tokenizer = offering(model.tokenizer, functions)
    if tokenizer is not None:
        return replace(model, tokenizer=tokenizer), task, bounded
    train, held_out = ([told(example, functions) for example in each] for each in (task.train, task.held_out))
    return model, replace(task, train=train, held_out=held_out), bounded


def told(example: Example, functions: Sequence[Callable[..., Any]]) -> Example:
    """The example with a system message that describes functions, before what its own says."""
    text = TOLD.format(functions="\n".join(json.dumps(schema["function"]) for schema in schemas(functions)))
    prompt = [{"role": "user", "content": example.prompt}] if isinstance(example.prompt, str) else list(example.prompt)
    if prompt and prompt[0]["role"] == "system":
        text, prompt = f"{text}\n{prompt[0]['content']}", prompt[1:]
    return replace(example, prompt=[{"role": "system", "content": text}, *map(dict, prompt)])


def rehearse_environment(environment: Bounded | None, examples: Sequence[Example]) -> None:
    """Begins a conversation about the first example, to find what cannot work before anything is compiled."""
    if environment is None or not examples:
        return
    (begun,) = begin(environment, examples[:1], [0])
    if begun.error is not None:
        raise ValueError(f"Environment {environment.name} cannot begin with {examples[0].label}: {begun.error}.")
