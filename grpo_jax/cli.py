"""The command line. The module of a command is imported when the command runs, so `grpo-jax --help` shows at once."""

import argparse
import importlib
import logging
import os
import re
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from grpo_jax import __version__
from grpo_jax.commands.completion import SHELLS, script
from grpo_jax.commands.modules import find_modules_in
from grpo_jax.commands.options import COMMANDS, GROUPS
from grpo_jax.commands.printing import NotRead, stdout_for_json, wrapped
from grpo_jax.devices.process import keep_pages, silence_tpu_library
from grpo_jax.hosts import codes
from grpo_jax.hosts.signals import INTERRUPTS, say
from grpo_jax.hosts.telling import announce
from grpo_jax.redaction import options_redacted, print_redacted, print_redacted_of_thread

if TYPE_CHECKING:
    from grpo_jax.config import Config

BARS = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
EXAMPLES = """examples:
  grpo-jax train quickstart
  grpo-jax generate runs/quickstart "What is 16 + 6?"

The options of a command: grpo-jax train --help"""


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
    except (NotRead, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would report it once more at its end
        return codes.NOT_READ
    finally:
        if listens:
            INTERRUPTS.close()


def run(argv: Sequence[str] | None = None) -> int:
    """Runs one command, and prints the errors that are mistakes of the config or its files as one line."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    keep_pages()
    _set_up_messages(getattr(arguments, "quiet", False))
    sys.excepthook, threading.excepthook = print_redacted, print_redacted_of_thread
    find_modules_in(os.getcwd())  # so that `use: my_module:my_reward` is found
    try:
        if getattr(arguments, "config", None) is not None:  # before the command is imported: a mistake is shown at once
            arguments.config = _read_config(arguments)
        silence_tpu_library()
        with stdout_for_json(arguments):
            return importlib.import_module(f"grpo_jax.commands.{arguments.command}").run(arguments)
    except SystemExit as error:
        say(f"error: code that the config names called sys.exit({error.code}) while it was imported")
        return codes.MISTAKE
    except (ValueError, FileNotFoundError) as error:
        if not _is_mistake(error):
            raise
        say(f"error: {error}")
        return codes.MISTAKE


def _is_mistake(error: ValueError | FileNotFoundError) -> bool:
    """Whether an error is about the config or its files. The reader of configs is not imported for that: it needs YAML,
    which may be missing where a command reads no config.
    """
    reader = sys.modules.get("grpo_jax.config.values")
    return isinstance(error, FileNotFoundError) or (reader is not None and isinstance(error, reader.ConfigError))


def _set_up_messages(quiet: bool) -> None:
    """What the library says goes to standard error: warnings alone if `quiet`, and then without bars of downloads."""
    announce(say, logging.WARNING if quiet else logging.INFO)
    if quiet:
        os.environ.update(dict.fromkeys(BARS, "1"))


def _read_config(arguments: argparse.Namespace) -> "Config":
    """The config of a command. Modules beside its file are found, too."""
    from grpo_jax.config import find_config, read

    arguments.path = find_config(arguments.config)
    find_modules_in(arguments.path.parent)
    sft = arguments.command == "sft" or getattr(arguments, "sft", False)
    return read(arguments.path, arguments.overrides, sft)


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
    parser = Parser(
        "grpo-jax",
        usage="grpo-jax [-h] [--version] [--print-completion SHELL] command ...",
        description=_overview(),
        epilog=EXAMPLES,
        allow_abbrev=False,
        formatter_class=Help,
    )
    parser.add_argument("--version", action="version", version=__version__, help="print the version")
    parser.add_argument(
        "--print-completion",
        action=PrintCompletion,
        choices=SHELLS,
        metavar="SHELL",
        help=f"print a script that completes commands, options, configs and runs in {', '.join(SHELLS)}",
    )
    commands = parser.add_subparsers(  # which the description lists, in groups
        dest="command", required=True, metavar="command", help=argparse.SUPPRESS, prog="grpo-jax"
    )
    for name, command in COMMANDS.items():
        known = commands.add_parser(name, help=command.summary, allow_abbrev=False, formatter_class=Help)
        if name in argv:
            known.description = f"{command.summary[0].upper()}{command.summary[1:]}."
            command.add_options(known)
            examples = "\n".join(["examples:", *(f"  {example}" for example in command.examples)])
            known.epilog = "\n\n".join(filter(None, [examples, known.epilog]))
    return parser


def _overview() -> str:
    """The commands in their groups, those that come first at the top."""
    groups = [
        "\n".join([f"{title}:", *(f"  {name:<12}{command.summary}" for name, command in group.items())])
        for title, group in GROUPS.items()
    ]
    return "\n\n".join(["Train language models by GRPO in JAX.", *groups])


class Help(argparse.RawDescriptionHelpFormatter):
    """Help whose lists are broken into lines that fit."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return wrapped(text, width)


class PrintCompletion(argparse.Action):
    """Prints the script for a shell, and ends."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        """What argparse calls."""
        print(script(parser_for(list(COMMANDS)), values))
        parser.exit()


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
    COMMANDS[command].add_options(parser)
    close = closest(unknown.partition("=")[0], re.findall(r"--[\w-]+", parser.format_help()))
    return "" if close is None else f", did you mean {close}?"
