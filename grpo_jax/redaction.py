"""Secrets: values that reach the object that needs them, and no file, log or traceback.

A setting is secret if its name says so (`api_key`, `hf_token`, `password`), or if its value is `env:NAME`, which stands
for the environment variable NAME. Where settings are written, `env:NAME` stays as it is and any other secret is `***`.
Where errors are printed, `redact` replaces the secrets that this process knows, and those of its environment.
"""

import json
import os
import re
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any
from urllib.parse import quote

HIDDEN = "***"
SHORTEST = 6  # characters of a secret that `redact` looks for: shorter ones would be found in ordinary words
VARIABLE = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")
SECRET_NAME = re.compile(r"key|token|secret|passw|passphrase|credential|authorization", re.IGNORECASE)
PLAIN_WORD = re.compile(r"keyword|keyboard|monkey|tokens|tokeni", re.IGNORECASE)  # max_tokens, tokenizer
PLAIN_END = re.compile(r"_(ids?|path|file|dir)$", re.IGNORECASE)  # token_id is a number, key_file where a key is
BACKSLASHES, ESCAPE = re.compile(r"\\+"), r"\\{1,15}"  # each writing inside another one doubles them
NEVER_A_NUMBER = re.compile(r"secret|passw|api_?key", re.IGNORECASE)  # so digits alone are a secret, too

_known: set[str] = set()  # secrets that this process has been given


def is_secret(name: str) -> bool:
    """Whether a setting or a variable of this name holds a secret."""
    return PLAIN_END.search(name) is None and SECRET_NAME.search(PLAIN_WORD.sub("", name)) is not None


def revealed(name: str, value: Any) -> Any:
    """The value of a setting, with the variable's value in place of `env:NAME`. `redact` knows it from now on."""
    if isinstance(value, Mapping):
        return {key: revealed(f"{name}.{key}", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(revealed(name, item) for item in value)
    variable = VARIABLE.fullmatch(value) if isinstance(value, str) else None
    if variable is None and not _is_secret_value(name, value):
        return value
    if value == HIDDEN:
        raise ValueError(
            f"{name} is {HIDDEN}, which config.yaml of a run has in place of a secret. Write env:NAME, so that it comes"
            f" from the environment variable NAME, or the secret itself."
        )
    if variable is not None:
        value = _from_environment(name, variable[1])
    _known.add(str(value))
    return value


def hidden(name: str, value: Any) -> Any:
    """The value of a setting as it may be written: secrets are `***`, and `env:NAME` stays as it is."""
    if isinstance(value, Mapping):
        return {key: hidden(f"{name}.{key}", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(hidden(name, item) for item in value)
    if not _is_secret_value(name, value) or VARIABLE.fullmatch(str(value)):
        return value
    return HIDDEN


def redact(text: str) -> str:
    """The text with `***` in place of every secret that this process knows or has in its environment.

    A secret is also found as `repr`, JSON and URLs write it, as a KeyError or a failed request shows it so.
    """
    secrets = {secret.strip() for secret in _known | _of_environment(os.environ)}
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= SHORTEST:
            text = re.sub("".join(map(_written_forms, secret)), HIDDEN, text)
    return text


def print_redacted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints a traceback as Python does, without secrets: a `sys.excepthook`."""
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))
    sys.stderr.flush()


def print_redacted_of_thread(arguments: threading.ExceptHookArgs) -> None:
    """As `print_redacted`, for an error that ends a thread: a `threading.excepthook`."""
    if arguments.exc_type is not SystemExit and arguments.exc_value is not None:
        name = arguments.thread.name if arguments.thread is not None else "unknown"
        sys.stderr.write(f"Exception in thread {name}:\n")
        print_redacted(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)


def options_redacted(arguments: Sequence[str]) -> list[str]:
    """Arguments of a command line with `***` for the values of options whose names say that they are secret."""
    shown, before = [], ""
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if equals and is_secret(name):
            argument = f"{name}={HIDDEN}"
        elif before.startswith("-") and "=" not in before and is_secret(before) and not argument.startswith("-"):
            argument = HIDDEN
        shown.append(argument)
        before = argument
    return shown


def _written_forms(character: str) -> str:
    """A regular expression for a character as it is, escaped (once, or again within another text), or in a URL."""
    if character.isascii() and character.isalnum():
        return character
    encoded = character.encode("utf-8", "surrogatepass")
    escaped = {ascii(character)[1:-1], json.dumps(character)[1:-1], repr(encoded)[2:-1]}
    forms = {character, quote(encoded, safe=""), *escaped, *({"\\'"} if character == "'" else ())}
    return f"(?:{'|'.join(sorted({ESCAPE.join(map(re.escape, BACKSLASHES.split(form))) for form in forms}))})"


def _is_secret_value(name: str, value: Any) -> bool:
    last = name.rpartition(".")[2]
    if isinstance(value, str):
        return bool(value) and is_secret(last)
    return type(value) in (int, float) and NEVER_A_NUMBER.search(last) is not None and is_secret(last)


def _from_environment(name: str, variable: str) -> str:
    if variable not in os.environ:
        raise ValueError(
            f"{name} is to come from the environment variable {variable}, and there is none. Export it before the start"
            f" (on each host), or write the value itself."
        )
    return os.environ[variable]


def _of_environment(variables: Mapping[str, str]) -> set[str]:
    return {value for name, value in variables.items() if is_secret(name)}
