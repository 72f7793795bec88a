"""The page of the commands: what `--help` says of each."""

import contextlib
import io
import os
from unittest import mock

from grpo_jax.cli import COMMANDS, main

WIDTH = "100"  # characters of a line


def page() -> str:
    """The help of every command, in the order in which `grpo-jax --help` lists them."""
    parts = ["# Commands", _block([]), "`python -m grpo_jax` is the same command."]
    for name in COMMANDS:
        parts += [f"## grpo-jax {name}", _block([name])]
    return "\n\n".join(parts) + "\n"


def _block(words: list[str]) -> str:
    return f"```text\n$ grpo-jax {' '.join([*words, '--help'])}\n{help_of(words).rstrip()}\n```"


def help_of(words: list[str]) -> str:
    """What a command prints with `--help`."""
    printed, plain = io.StringIO(), {"COLUMNS": WIDTH, "NO_COLOR": "1", "TERM": "dumb"}
    with mock.patch.dict(os.environ, plain), contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return printed.getvalue()
