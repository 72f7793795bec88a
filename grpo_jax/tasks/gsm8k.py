"""Grade-school word problems: Cobbe et al., "Training Verifiers to Solve Math Word Problems" (2021).

Either of two libraries reads the same problems: 7473 to train on, and 1319 held out (the test split).
"""

from pathlib import Path
from typing import Literal

from grpo_jax.rewards.answers import last_number
from grpo_jax.rewards.example import Example
from grpo_jax.rewards.mixing import Mix
from grpo_jax.tasks.tables.libraries import Rows, by_builder, by_datasets, is_saved, subsets
from grpo_jax.tasks.tables.opening import numbered
from grpo_jax.tasks.tables.row import Row
from grpo_jax.tasks.task import Task, messages

MARK = "#### "  # the number after it is the answer


def gsm8k(
    source: Literal["datasets", "tensorflow-datasets"] = "datasets",  # the library that reads it
    path: str | None = None,  # local copy: a folder of JSON or Parquet files, or that of a tfds builder
    instruction: str = "Reason step by step, then write the answer as a number after ####.",
    system: str | None = None,
) -> Task:
    """GSM8K, with a reward for the final number. Without `path` it is downloaded once and then read from the cache."""
    if path is not None and not Path(path).expanduser().is_dir():
        raise FileNotFoundError(f"task.path must be a folder with a copy of GSM8K; there is none at {path}.")
    load = _by_datasets if source == "datasets" else _by_tensorflow_datasets
    train, test = load(None if path is None else str(Path(path).expanduser()))
    origin = source if path is None else path
    return Task(
        tuple(_example(row, instruction, system) for row in numbered(train, f"{origin}, train")),
        tuple(_example(row, instruction, system) for row in numbered(test, f"{origin}, test")),
        Mix(((last_number, 1.0),)),
    )


def _example(row: Row, instruction: str, system: str | None) -> Example:
    columns, location = dict(row.values), row.place
    absent = [column for column in ("question", "answer") if column not in columns]
    if absent:
        raise ValueError(f"{location}: no column {absent[0]}; the row has {', '.join(columns)}. Is it a copy of GSM8K?")
    _, mark, answer = columns["answer"].rpartition(MARK)
    if not mark:
        raise ValueError(f"{location}: the answer must end in {MARK!r} and a number; got {columns['answer'][-60:]!r}.")
    return Example(messages(columns["question"], instruction, system), answer.strip(), columns, location)


def _by_datasets(path: str | None) -> tuple[Rows, Rows]:
    if path is None:
        splits = by_datasets("openai/gsm8k", "main")
    else:
        # A copy of the hub's repository has two configurations, main and socratic; a plain folder of files has one.
        splits = by_datasets(path, "main" if not is_saved(Path(path)) and "main" in subsets(path) else None)
    if not {"train", "test"} <= set(splits):
        raise ValueError(f"GSM8K has the splits train and test; {path} has {', '.join(splits)}.")
    return splits["train"], splits["test"]


def _by_tensorflow_datasets(path: str | None) -> tuple[Rows, Rows]:
    splits = by_builder("gsm8k" if path is None else path)
    return splits["train"], splits["test"]
