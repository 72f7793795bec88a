"""What is wrong with a text that is not YAML, in words that say what to write instead."""

import re

import yaml

QUOTE = "put the whole value in quotes"
INDENT = "begin each key of a section in the same column, and indent with spaces"
# What PyYAML says, and what that means here. A message about an opening sign stands where that sign is.
MEANINGS = (
    (r"found character '\\t' that", "a tab cannot indent a line or stand before a value; indent with spaces", False),
    (r"found character (.*) that cannot start any token", r"a plain value cannot begin with \1; " + QUOTE, False),
    (r"scanning an? (anchor|alias).*but found", f"a plain value cannot begin with & or *; {QUOTE}", True),
    (r"scanning a directive|<document start>", f"a line cannot begin with % or stand before ---; {QUOTE}", False),
    (r"(scanning|parsing) a tag|tag handle", f"a plain value cannot begin with !; {QUOTE}", True),
    (r"sequence entries are not allowed", "a list cannot begin here; write - on a line of its own, or [a, b]", False),
    (r"mapping keys are not allowed", f"a plain value cannot begin with ?; {QUOTE}", False),
    (r"mapping values are not allowed", f"a second ': ' belongs to no key: {QUOTE}, or {INDENT}", False),
    (r"could not find expected ':'", "this line has no ': ' after its key; write key: value", True),
    (r"flow sequence", r"this list is not closed, or lacks a comma between two items; write [a, b]", True),
    (r"flow mapping", r"this mapping is not closed, or lacks a comma between two keys; write {a: 1, b: 2}", True),
    (r"parsing a (flow|block) node", "a value is missing here, or a sign too many; write one value", False),
    (r"quoted scalar.*unexpected", "this quote is never closed; end the text with the same quote", True),
    (r"unknown escape|escape sequence", r"a \\ in double quotes begins an escape; use single quotes, or \\\\", False),
    (
        r"block scalar",
        f"the text after | or > begins on the next line; or {QUOTE}",
        True,
    ),
    (
        r"expected <block end>, but found '-'",
        "this item is indented otherwise than those above; begin all items in the same column",
        False,
    ),
    (
        r"expected <block end>",
        f"this line is indented otherwise than those above, or text follows a quote; {INDENT}",
        False,
    ),
    (r"single document", "a second document begins here; keep one, without ---", False),
)
GLUED = re.compile(r"\s*(?:- )?([A-Za-z_][\w-]*):([^\s:/].*)")


def explain(error: yaml.MarkedYAMLError, text: str) -> tuple[yaml.Mark | None, str]:
    """The place of a mistake, and a sentence about it."""
    if type(error) is yaml.MarkedYAMLError:  # our own, from the loader
        return error.problem_mark, str(error.problem)
    said = ", ".join(part for part in (error.context, error.problem) if part)
    glued = _glued(error.problem_mark, text) if "':'" in said or "mapping values" in said else None
    if glued is not None:
        return glued
    for pattern, meaning, at_start in MEANINGS:
        found = re.search(pattern, said, re.DOTALL)
        if found is not None:
            return error.context_mark if at_start and error.context_mark else error.problem_mark, found.expand(meaning)
    return error.problem_mark, "this is not YAML; compare quotes, brackets and indentation with a file in configs/"


def _glued(mark: yaml.Mark | None, text: str) -> tuple[yaml.Mark, str] | None:
    """The place and the correction of a `key:value`, on the line of a mark or on the last one above that has text."""
    if mark is None:
        return None
    lines = text.splitlines()
    above = [number for number in range(min(mark.line, len(lines) - 1) + 1) if lines[number].strip()]
    for number in above[:-3:-1]:
        correction = without_blank(lines[number])
        if correction:
            column = len(lines[number]) - len(lines[number].lstrip())
            return yaml.Mark(mark.name, 0, number, column, None, None), correction.removeprefix("; ")
    return None


def without_blank(text: str) -> str:
    """The end of a message about a text that is a key and a value without a blank between; empty for another text."""
    found = GLUED.match(text)
    return f"; write a blank after the colon: {found[1]}: {found[2].strip()}" if found else ""
