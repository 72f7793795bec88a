"""How a judge behind an endpoint is asked, and what its reply says: a JSON object with a reason and then an answer for
each criterion. What cannot be read, or gives no reason first, is no verdict, and never a low one.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from grpo_jax.judges.asking import about, enclosed
from grpo_jax.rewards.rubrics import Asked, Sheet

LONGEST = 100_000  # characters of a reply that are looked at
_END = re.compile(r"[\s`]*(?:</\w{1,20}>\s*)?")  # what may follow the object: a fence, or a tag that closes
MOST_OBJECTS = 1000  # places of a reply at which an object may begin
TASK = (
    "You judge answers by criteria. For each criterion give first the reason, in one or two sentences, and then one of"
    ' its allowed answers. Reply with one JSON object and nothing else, such as {"first": {"reason": "...", "answer":'
    ' "..."}, "second": {"reason": "...", "answer": "..."}}, with the names of the criteria as keys.'
)


def messages(sheet: Sheet) -> list[dict[str, str]]:
    """What is sent: one request for all criteria of an answer."""
    return [{"role": "system", "content": TASK}, {"role": "user", "content": about(enclosed(sheet))}]


def verdicts(reply: str, criteria: Sequence[Asked]) -> list[float | None]:
    """The value of each criterion; None where the reply has no answer to it that is allowed."""
    found = _object(reply[-LONGEST:], {asked.name for asked in criteria})
    return [_value(found.get(asked.name), asked.answers) for asked in criteria]


def _value(verdict: Any, answers: Sequence[str]) -> float | None:
    names = list(verdict) if isinstance(verdict, dict) else []
    if "reason" not in names or "answer" not in names[names.index("reason") :]:
        return None  # a reason that comes after the answer has not led to it
    reason, answer = verdict["reason"], verdict["answer"]
    if not isinstance(reason, str) or not reason.strip() or not isinstance(answer, str):
        return None
    places = [place for place, known in enumerate(answers) if known.casefold() == answer.strip(" .\n").casefold()]
    return places[0] / (len(answers) - 1) if places else None


def _object(reply: str, names: set[str]) -> dict[str, Any]:
    """The object that a reply ends with, if it has one of the names as a key: a judge may think aloud before it."""
    decoder, last, position = json.JSONDecoder(object_pairs_hook=_without_repetition), None, 0
    for found in list(re.finditer(r"\{", reply))[-MOST_OBJECTS:]:
        if found.start() < position:  # within the object before
            continue
        try:
            value, position = decoder.raw_decode(reply, found.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and names & set(value):
            last = value, position
    return last[0] if last is not None and _END.fullmatch(reply, last[1]) else {}


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict whose keys with several values have none: an answer and its opposite are no verdict."""
    count = Counter(key for key, _ in pairs)
    return {key: value if count[key] == 1 else None for key, value in pairs}
