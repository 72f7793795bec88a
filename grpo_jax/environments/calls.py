"""Calls of tools in what a model has written.

Models write calls in the form that they were trained on. These forms are read:

    <tool_call>{"name": "search", "arguments": {"query": "rain"}}</tool_call>    Qwen, SmolLM, Hermes; a list in it too
    [TOOL_CALLS][{"name": "search", "arguments": {"query": "rain"}}]            Mistral
    {"name": "search", "parameters": {"query": "rain"}}                         Llama: the whole reply; a list of it too

Marks such as [TOOL_CALLS] may be control tokens, which are no part of a reply's text. `arguments` and `parameters` mean
the same, and may be JSON in a string.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
LISTED = "[TOOL_CALLS]"
BEFORE = "<|python_tag|>"  # that Llama may write before a call
THOUGHTS = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool by its name."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class BadCall:
    """What should have been a call, and why it is none: a sentence for the model."""

    text: str
    why: str


def calls_in(reply: str) -> list[ToolCall | BadCall]:
    """The calls in a reply, in their order; none if it makes none. Thoughts in `<think>` tags call nothing."""
    return [call for text in _written(THOUGHTS.sub("", reply)) for call in _read(text)]


def _written(reply: str) -> Iterator[str]:
    """The texts that should be calls."""
    tagged = TAGGED.findall(reply)
    if tagged:
        yield from (text.strip() for text in tagged)
    elif LISTED in reply:
        yield reply.partition(LISTED)[2].strip()
    else:
        text = reply.strip().removeprefix(BEFORE).strip()
        if re.match(r'(?:\[\s*)?\{\s*"(?:name|type)"\s*:', text):
            yield text


def _read(text: str) -> Iterator[ToolCall | BadCall]:
    try:
        found = json.loads(text)
    except ValueError as error:
        yield BadCall(text, f"it is no JSON ({error})")
        return
    for each in found if isinstance(found, list) else [found]:
        yield _call_of(each, text)


def _call_of(found: Any, text: str) -> ToolCall | BadCall:
    found = found.get("function", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return BadCall(text, 'a call is {"name": ..., "arguments": {...}}')
    arguments = found.get("arguments", found.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            return BadCall(text, f"its arguments are no JSON ({error})")
    if not isinstance(arguments, dict):
        return BadCall(text, "its arguments are no JSON object with their names")
    return ToolCall(found["name"], arguments)
