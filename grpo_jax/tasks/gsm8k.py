"""Grade-school word problems: Cobbe et al., "Training Verifiers to Solve Math Word Problems" (2021).

Either of two libraries reads the same problems: 7473 to train on, and 1319 held out (the test split).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

from grpo_jax import network
from grpo_jax.rewards.answers import last_number
from grpo_jax.rewards.example import Example
from grpo_jax.rewards.mixing import Mix
from grpo_jax.tasks.task import Task, messages

MARK = "#### "  # the number after it is the answer
Rows = Iterable[Mapping[str, Any]]


def gsm8k(
    source: Literal["datasets", "tensorflow-datasets"] = "datasets",
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
        tuple(_example(row, f"{origin}, train, row {n}", instruction, system) for n, row in enumerate(train)),
        tuple(_example(row, f"{origin}, test, row {n}", instruction, system) for n, row in enumerate(test)),
        Mix(((last_number, 1.0),)),
    )


def _example(row: Mapping[str, Any], location: str, instruction: str, system: str | None) -> Example:
    absent = [column for column in ("question", "answer") if column not in row]
    if absent:
        raise ValueError(f"{location}: no column {absent[0]}; the row has {', '.join(row)}. Is this a copy of GSM8K?")
    columns = {name: _text(value) for name, value in row.items()}
    _, mark, answer = columns["answer"].rpartition(MARK)
    if not mark:
        raise ValueError(f"{location}: the answer must end in {MARK!r} and a number; got {columns['answer'][-60:]!r}.")
    return Example(messages(columns["question"], instruction, system), answer.strip(), columns, location)


def _text(value: Any) -> Any:
    """Bytes as a string: tensorflow-datasets returns bytes from files, but strings from its mock data."""
    return value.decode() if isinstance(value, bytes) else value


def _by_datasets(path: str | None) -> tuple[Rows, Rows]:
    from huggingface_hub import constants

    if path is None and not constants.HF_HUB_OFFLINE:  # before the import below, which takes seconds
        _require_network(constants.ENDPOINT, " If datasets has it in its cache, set HF_HUB_OFFLINE=1.")
    import datasets

    name = "openai/gsm8k" if path is None else path
    try:
        # A copy of the hub's repository has two configurations, main and socratic; a plain folder of files has one.
        main = "main" if path is None or "main" in datasets.get_dataset_config_names(path) else None
        splits = cast(Mapping[str, Rows], datasets.load_dataset(name, main))
    except ConnectionError as error:
        raise _unavailable(f"{error}.") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There are no JSON or Parquet files, named train and test, in {name}.") from error
    if not {"train", "test"} <= set(splits):
        raise ValueError(f"GSM8K has the splits train and test; {name} has {', '.join(splits)}.")
    return splits["train"], splits["test"]


def _by_tensorflow_datasets(path: str | None) -> tuple[Rows, Rows]:
    import tensorflow_datasets as tfds

    builder: Any = _prepared_builder() if path is None else tfds.builder_from_directory(path)
    try:
        return builder.as_data_source(split="train"), builder.as_data_source(split="test")
    except NotImplementedError as error:
        raise ValueError(
            f"The copy of GSM8K at {path} can only be read with TensorFlow. Prepare it again with"
            " tfds.builder('gsm8k', file_format='array_record').download_and_prepare()."
        ) from error


def _prepared_builder() -> Any:
    import tensorflow_datasets as tfds
    import tensorflow_datasets.text.gsm8k  # tfds.builder finds gsm8k only after this import

    # ArrayRecord is the only format that can be read without TensorFlow.
    builder: Any = tfds.builder("gsm8k", file_format=tfds.core.FileFormat.ARRAY_RECORD)
    if not builder.is_prepared():
        _require_network("https://raw.githubusercontent.com")
        builder.download_and_prepare()
    return builder


def _require_network(url: str, way_out: str = "") -> None:
    """Fails at once if `url` cannot be reached; the libraries would retry for half a minute."""
    if not network.reachable(url):
        raise _unavailable(f"{url} is out of reach.{way_out}")


def _unavailable(reason: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"GSM8K cannot be downloaded: {reason} If this machine has a copy elsewhere, name its folder in task.path."
    )
