"""Any table as questions: files, data set libraries and Python functions. docs/data.md has an example of each."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo_jax.ranges import check_range
from grpo_jax.rewards.answers import exact
from grpo_jax.rewards.example import Example
from grpo_jax.rewards.mixing import Mix
from grpo_jax.rewards.puzzles import SolvesPuzzle
from grpo_jax.tasks.tables.filters import check_where, chosen, places, stays, tell
from grpo_jax.tasks.tables.functions import keeps
from grpo_jax.tasks.tables.opening import LIBRARIES, PUZZLES, Format, format_of, only, read_file, read_named, read_split
from grpo_jax.tasks.tables.puzzles import read_puzzles
from grpo_jax.tasks.tables.row import Row
from grpo_jax.tasks.tables.turning import Columns, LastTurn, example_of, question_of
from grpo_jax.tasks.task import Overlap, Task

NEEDED = {
    "jsonl": "It needs one JSON object a line.",
    "csv": "It needs a line with the names of the columns, and rows.",
    "tsv": "It needs a line with the names of the columns, and rows.",
}
TEXTS = ("jsonl", "json", "csv", "tsv")  # formats whose rows have a line


def data(
    path: str,  # a file, a folder, module:function, or a name on the hub, of a builder or in reasoning-gym
    format: Format = "auto",  # auto: from the path; a name needs datasets, tensorflow-datasets or reasoning-gym
    prompt: str = "prompt",  # column with a string or a list of messages; a.b is in another, "{a} {b}" several
    answer: str | None = "answer",  # column with a string or a number; null if no reward needs an answer
    answer_after: str | None = None,  # text in that column after which the answer stands, such as "####"
    held_out: str | None = None,  # for evaluation: a second path, or another split of a library's data set
    held_out_share: float = 0.0,  # or this share of the rows, chosen by their content
    overlap: Overlap = "refuse",  # held-out questions that are also trained on: refuse or count
    instruction: str = "",  # after each prompt that is a string
    system: str | None = None,  # before each prompt that is a string
    chat: bool = False,  # a prompt that is a string is the user's message of a chat, also without a system message
    system_column: str | None = None,  # column with a system message for each row
    shots: str | None = None,  # column with earlier turns: messages, or objects with question and answer
    last_turn: LastTurn = "answer",  # an assistant's message at the end of a prompt: answer, prefill or drop
    where: dict[str, Any] | None = None,  # rows that stay, such as {level: [1, 2], year: {least: 2020}}
    filter: str | None = None,  # module:function of a row that returns whether it stays
    columns: tuple[str, ...] = (),  # of the table that are read; none reads all
    json_columns: tuple[str, ...] = (),  # whose text is JSON, as in a CSV file with messages
    split: str = "train",  # of a library's data set
    subset: str | None = None,  # of a data set on the hub, its configuration
    options: dict[str, Any] | None = None,  # of a data set in reasoning-gym, such as {size: 1000, seed: 1}
) -> Task:
    """The rows of a table, with a reward for the exact answer, or the solved puzzle; rewards get all columns.

    A prompt that is a string stays one unless there is a system message or an earlier turn, or `chat` is true. A model
    with a chat template gets it as the user's message in any case.
    The same rows give the same examples in the same order, wherever they are stored.
    """
    check_range("task.held_out_share", held_out_share, least=0, below=1)
    if held_out is not None and held_out_share:
        raise ValueError("task.held_out and task.held_out_share both say what is held out. Leave one of them out.")
    kind = format_of(path) if format == "auto" else format
    turned = Columns(
        prompt, answer, instruction, system, system_column, shots, last_turn, answer_after, json_columns, chat
    )
    rows = _kept(_rows(path, kind, subset, split, columns, options), where, filter, path)
    tests: list[Row] = []
    if held_out_share:
        rows, tests = _divided(rows, turned, held_out_share)
    elif held_out is not None:
        tests = _kept(_held_out(path, held_out, kind, format, subset, columns), where, filter, held_out)
    _check_overlap(rows, tests, turned, overlap)
    reward = SolvesPuzzle() if kind == PUZZLES else exact
    return Task(_examples(rows, turned), _examples(tests, turned), Mix(((reward, 1.0),)))


def _rows(
    path: str,
    format: Format,
    subset: str | None,
    split: str,
    columns: Sequence[str],
    options: dict[str, Any] | None,
) -> list[Row]:
    """All rows of a table, of which there is at least one."""
    expanded = str(Path(path).expanduser())
    if options is not None and format != PUZZLES:
        raise ValueError(f"task.options are for {PUZZLES}; {path} is read as {format}.")
    if format in LIBRARIES:
        rows = list(read_split(expanded, format, subset, split, columns))
    elif subset is not None or split != "train":
        raise ValueError(f"task.split and task.subset are for {' and '.join(LIBRARIES)}; {path} is read as {format}.")
    elif format == "function":
        rows = list(read_named(path, columns))
    elif format == PUZZLES:
        rows = [only(row, columns) for row in read_puzzles(path, {} if options is None else options)]
    else:
        rows = list(read_file(Path(expanded), format, columns))
    absent = [name for name in columns if not any(name in row.values for row in rows)]
    if rows and absent:
        raise ValueError(
            f"{path} has no column {absent[0]!r}, which task.columns names. It takes whole columns: of a.b, name a."
        )
    if not rows:
        place = f"{path}:1" if format in TEXTS else path
        raise ValueError(f"{place}: there are no rows. {NEEDED.get(format, 'It needs at least one row.')}")
    return rows


def _held_out(
    path: str, held_out: str, kind: Format, format: Format, subset: str | None, columns: Sequence[str]
) -> list[Row]:
    """The rows for evaluation: of another split of the same data set, or of a second path."""
    if kind in LIBRARIES:
        return _rows(path, kind, subset, held_out, columns, None)
    if kind == PUZZLES:
        raise ValueError(f"{PUZZLES} makes one table from its options: set task.held_out_share instead of held_out.")
    return _rows(held_out, format_of(held_out, kind) if format == "auto" else format, None, "train", columns, None)


def _kept(rows: list[Row], where: dict[str, Any] | None, filter: str | None, path: str) -> list[Row]:
    if where is not None:
        check_where(where)
        rows = chosen(rows, lambda row: stays(row, where), "task.where")
    if filter is not None:
        rows = chosen(rows, keeps(filter), "task.filter")
    if not rows:
        raise ValueError(f"{path}: task.where and task.filter leave out every row. Look at their conditions.")
    return rows


def _divided(rows: Sequence[Row], columns: Columns, share: float) -> tuple[list[Row], list[Row]]:
    """Rows to train on, and rows held out. Neither its place nor the other rows decide on which side a row is."""
    sides: tuple[list[Row], list[Row]] = ([], [])
    for row in rows:
        digest = hashlib.sha256(question_of(row, columns).encode()).digest()
        sides[int.from_bytes(digest[:8], "big") < share * 2**64].append(row)
    if not all(sides):
        raise ValueError(
            f"task.held_out_share of {share:g} holds out {len(sides[1])} of {len(rows)} rows, and both sides need one:"
            " take another share, or name a second table in task.held_out."
        )
    return sides


def _check_overlap(rows: Sequence[Row], tests: Sequence[Row], columns: Columns, overlap: Overlap) -> None:
    """Refuses or counts held-out rows whose question is also trained on."""
    if not tests:
        return
    trained = {question_of(row, columns): row.place for row in rows}
    both = [row for row in tests if question_of(row, columns) in trained]
    if not both:
        return
    first = trained[question_of(both[0], columns)]
    text = (
        f"{len(both)} of {len(tests)} held-out questions are also trained on: {places([row.place for row in both])}."
        f" The first stands at {first}, too."
    )
    if overlap == "refuse":
        raise ValueError(f"{text} Take them out of one of the two, or set task.overlap: count.")
    tell("%s", text)


def _examples(rows: Sequence[Row], columns: Columns) -> tuple[Example, ...]:
    return tuple(_example(row, columns) for row in rows)


def _example(row: Row, columns: Columns) -> Example:
    try:
        return example_of(row, columns)
    except RecursionError as error:
        raise ValueError(f"{row.place}: a cell has too many levels of lists and mappings. Flatten it.") from error
