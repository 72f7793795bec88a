"""From a row to an example: which columns are the prompt, the answer, the system message and earlier turns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from grpo_jax.rewards.example import Example, Message
from grpo_jax.tasks.tables.json_rows import parsed
from grpo_jax.tasks.tables.row import SEVERAL, Row, cell, has_cell, type_name
from grpo_jax.tasks.task import messages, with_instruction

LastTurn = Literal["answer", "prefill", "drop"]
SPEAKERS = {"human": "user", "gpt": "assistant"}  # of messages with `from` and `value`, as ShareGPT has them
Prompt = str | list[Message]


@dataclass(frozen=True)
class Columns:
    """What the columns of a table are; `tasks.data` has their meaning."""

    prompt: str
    answer: str | None
    instruction: str
    system: str | None
    system_column: str | None = None
    shots: str | None = None
    last_turn: LastTurn = "answer"
    answer_after: str | None = None
    json_columns: Sequence[str] = ()
    chat: bool = False


def example_of(row: Row, columns: Columns) -> Example:
    """The example that a row is."""
    row = _with_json(row, columns.json_columns)
    asked, said = _divided(_prompt(row, columns.prompt), row, columns)
    answer = _answer(row, columns) if said is None else _marked(said, row, columns.answer_after)
    return Example(_conversation(asked, row, columns), answer, dict(row.values), row.place)


def question_of(row: Row, columns: Columns) -> str:
    """The text that tells one question from another: of the prompt alone, without case and layout."""
    asked, _ = _divided(_prompt(_with_json(row, columns.json_columns), columns.prompt), row, columns)
    turns = [] if isinstance(asked, str) else [turn for turn in asked if turn["role"] != "system"] or asked
    texts = [asked] if isinstance(asked, str) else [turn["content"] for turn in turns]
    return " ".join("\n".join(texts).casefold().split())


def _with_json(row: Row, names: Sequence[str]) -> Row:
    """The row, in which some cells are what their text says as JSON."""
    found = {name: cell(row, name, "json_columns") for name in names}
    texts = {name: text for name, text in found.items() if isinstance(text, str)}
    values = {name: parsed(text, f"{row.place}: column {name!r}") for name, text in texts.items()}
    return Row({**row.values, **values}, row.place) if values else row


def _prompt(row: Row, column: str) -> Prompt:
    value = _filled(row, column, "prompt")
    if isinstance(value, str) and value.strip():
        return value
    turns = [_message(turn, row, column) for turn in value] if isinstance(value, list) else []
    if turns and None not in turns and any(turn["content"].strip() for turn in turns if turn is not None):
        return [turn for turn in turns if turn is not None]
    first = f", whose message {turns.index(None)} is none, counted from 0" if None in turns else ""
    raise ValueError(
        f"{row.place}: column {column!r} must be a string that is not blank, or a list of messages with role and"
        f" content; got {type_name(value)}{first}: {str(value)[:60]!r}."
    )


def _filled(row: Row, column: str, parameter: str) -> Any:
    """The value of a column, or the text of a pattern such as `{document} {question}`."""
    if column in row.values or not SEVERAL.search(column):
        return cell(row, column, parameter)
    return SEVERAL.sub(lambda found: _as_text(cell(row, found[1], parameter), found[1], row), column)


def _as_text(value: Any, column: str, row: Row) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"{row.place}: column {column!r} must be a string or a number; got {type_name(value)}.")


def _message(value: Any, row: Row, column: str) -> Message | None:
    """A message without what is null in it, as Parquet has every key in every message; None if it is no message."""
    if isinstance(value, Mapping) and isinstance(value.get("from"), str) and "role" not in value:
        value = {"role": SPEAKERS.get(value["from"], value["from"]), "content": value.get("value")}
    if not isinstance(value, Mapping) or not isinstance(value.get("role"), str):
        return None
    kept = {name: item for name, item in value.items() if item is not None}
    content = kept.get("content")
    if isinstance(content, list) and content:
        kept["content"] = "".join(_part(part, row, column) for part in content)
    return kept if isinstance(kept.get("content"), str) else None


def _part(part: Any, row: Row, column: str) -> str:
    """The text of a part of a message's content."""
    text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
    if isinstance(text, str):
        return text
    kind = part.get("type", "no type") if isinstance(part, Mapping) else type_name(part)
    raise ValueError(
        f"{row.place}: column {column!r} has a message with a part that is no text ({kind}), and models read text only"
        " here. Leave such rows out with task.filter."
    )


def _divided(prompt: Prompt, row: Row, columns: Columns) -> tuple[Prompt, str | None]:
    """The prompt, without the assistant's message at its end unless that is a prefill; and that message, if it is the
    answer.
    """
    if isinstance(prompt, str) or prompt[-1]["role"] != "assistant" or columns.last_turn == "prefill":
        return prompt, None
    *asked, last = prompt
    if not asked:
        raise ValueError(
            f"{row.place}: column {columns.prompt!r} has an assistant's message and no question before it."
        )
    if columns.last_turn == "drop":
        return asked, None
    if columns.answer is not None and has_cell(row, columns.answer) and cell(row, columns.answer, "answer") is not None:
        raise ValueError(
            f"{row.place}: the messages end with the assistant's, and column {columns.answer!r} has an answer, too. Set"
            " task.last_turn: prefill if the message is the beginning of the answer, drop if it is left out, or"
            " task.answer: null if it is the answer itself."
        )
    return asked, last["content"]


def _answer(row: Row, columns: Columns) -> str:
    if columns.answer is None:
        return ""
    return _marked(_as_text(_filled(row, columns.answer, "answer"), columns.answer, row), row, columns.answer_after)


def _marked(text: str, row: Row, mark: str | None) -> str:
    """What stands after the last mark of an answer; all of it without a mark."""
    if mark is None:
        return text
    _, found, answer = text.rpartition(mark)
    if not found:
        raise ValueError(
            f"{row.place}: the answer has no {mark!r}, which task.answer_after asks for; got {text[-60:]!r}."
        )
    return answer.strip()


def _conversation(asked: Prompt, row: Row, columns: Columns) -> Prompt:
    """The prompt with its instruction, its system message and the turns before it."""
    system = columns.system if columns.system_column is None else _system(row, columns.system_column)
    shots = [] if columns.shots is None else _shots(row, columns)
    if isinstance(asked, str):
        if system is None and not shots and not columns.chat:
            return with_instruction(asked, columns.instruction)
        asked = messages(asked, columns.instruction, system)
    elif columns.instruction or system is not None:
        raise ValueError(f"{row.place}: instruction and system are for prompts that are strings; this one is messages.")
    if not shots:
        return asked
    head = [turn for turn in asked if turn["role"] == "system"]
    return [*head, *shots, *(turn for turn in asked if turn["role"] != "system")]


def _system(row: Row, column: str) -> str | None:
    """The system message of a row; None where the cell is null or blank."""
    value = cell(row, column, "system_column")
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str):
        return value
    raise ValueError(f"{row.place}: column {column!r} must be a string or null; got {type_name(value)}.")


def _shots(row: Row, columns: Columns) -> list[Message]:
    """Turns before the question: messages of user and assistant, or objects with a question and its answer."""
    column = str(columns.shots)
    value = cell(row, column, "shots")
    if value is None:
        return []
    if not isinstance(value, list):
        raise _no_shots(row, column, value)
    turns: list[Message] = []
    for item in value:
        message = _message(item, row, column)
        turns += [message] if message is not None else _pair(item, row, columns)
    roles = [turn["role"] for turn in turns]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise _no_shots(row, column, value)
    return turns


def _pair(item: Any, row: Row, columns: Columns) -> list[Message]:
    names = [(columns.prompt, columns.answer), ("question", "answer"), ("prompt", "answer")]
    for asked, said in names if isinstance(item, Mapping) else ():
        if said is not None and asked in item and said in item:
            return [
                {"role": "user", "content": with_instruction(_as_text(item[asked], asked, row), columns.instruction)},
                {"role": "assistant", "content": _as_text(item[said], said, row)},
            ]
    raise _no_shots(row, str(columns.shots), item)


def _no_shots(row: Row, column: str, value: Any) -> ValueError:
    return ValueError(
        f"{row.place}: column {column!r} must be a list of messages, of the user and the assistant in turn, or of"
        f" objects with {{'question': ..., 'answer': ...}}; got {type_name(value)}: {str(value)[:60]!r}."
    )
