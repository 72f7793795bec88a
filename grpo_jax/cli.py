"""The command line. The module of a command is imported when the command runs, so `grpo-jax --help` shows at once."""

import argparse
import importlib
import os
import re
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

from grpo_jax import __version__
from grpo_jax.commands.options import COMMANDS
from grpo_jax.devices.process import keep_pages, silence_tpu_library
from grpo_jax.hosts import codes
from grpo_jax.hosts.signals import INTERRUPTS, say
from grpo_jax.hosts.telling import announce
from grpo_jax.redaction import options_redacted, print_redacted, print_redacted_of_thread


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; its exit status. A mistake in the config, or a missing file, is one line of text and status 2.

    Ctrl-C ends every command with status 130, also while it loads; 141 is that of a command whose output nobody reads
    any more, as in `| head`.
    """
    listens = INTERRUPTS.listen()
    try:
        try:
            return run(argv)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        say("\ninterrupted")
        return codes.INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would report it once more at its end
        return codes.NOT_READ
    finally:
        if listens:
            INTERRUPTS.close()


def run(argv: Sequence[str] | None = None) -> int:
    """Runs one command, and prints the errors that are mistakes of the config or its files as one line."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    keep_pages()
    announce(say)
    sys.excepthook, threading.excepthook = print_redacted, print_redacted_of_thread
    sys.path.append(os.getcwd())  # so that `use: my_module:my_reward` is found
    from grpo_jax.config import ConfigError, find_config, read

    try:
        if hasattr(arguments, "config"):  # before the command is imported, so that a mistake is shown at once
            path = find_config(arguments.config)
            sys.path.append(str(path.parent.absolute()))  # and a module beside the config
            sft = arguments.command == "sft" or getattr(arguments, "sft", False)
            arguments.config = read(path, arguments.overrides, sft)
        silence_tpu_library()
        return importlib.import_module(f"grpo_jax.commands.{arguments.command}").run(arguments)
    except SystemExit as error:
        say(f"error: code that the config names called sys.exit({error.code}) while it was imported")
        return codes.MISTAKE
    except (ConfigError, FileNotFoundError) as error:
        say(f"error: {error}")
        return codes.MISTAKE


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command. Overrides of a config may stand before or after its options."""
    parser = parser_for(argv)
    arguments, rest = parser.parse_known_args(argv)
    unknown = [item for item in rest if item.startswith("-") or not hasattr(arguments, "overrides")]
    if unknown:
        parser.error(
            f"unrecognized arguments: {' '.join(options_redacted(unknown))}{_meant(unknown[0], arguments.command)}"
        )
    if rest:
        arguments.overrides += rest  # argparse returns the overrides that follow an option here
    return arguments


def parser_for(argv: Sequence[str]) -> argparse.ArgumentParser:
    """A parser that knows all commands, and the options of those that are named in `argv`."""
    parser = Parser("grpo-jax", description="Train language models by GRPO in JAX.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, (summary, add_options) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, allow_abbrev=False)
        if name in argv:
            add_options(command)
    return parser


class Parser(argparse.ArgumentParser):
    """A parser whose message about an unknown command or choice names the most similar one."""

    def error(self, message: str) -> NoReturn:
        """Prints the usage and a message, and ends with exit status 2."""
        from grpo_jax.config.similar import closest

        found = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        close = None if found is None else closest(found[1], re.findall(r"[\w.-]+", found[2]))
        super().error(message if close is None else f"{message}, did you mean {close}?")


def _meant(unknown: str, command: str) -> str:
    """The end of a message about an option that a command does not have."""
    from grpo_jax.config.similar import closest

    if re.fullmatch(r"--?\w+[.\[].*", unknown):
        override = unknown.lstrip("-")
        return f"; an override has no dashes: {override if '=' in override else f'{override}=VALUE'}"
    parser = argparse.ArgumentParser(add_help=False)
    COMMANDS[command][1](parser)
    close = closest(unknown.partition("=")[0], re.findall(r"--[\w-]+", parser.format_help()))
    return "" if close is None else f", did you mean {close}?"
