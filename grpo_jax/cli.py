"""The command line. The module of a command is imported when the command runs, so `grpo-jax --help` shows at once."""

import argparse
import importlib
import os
import re
import sys
import threading
import typing
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from grpo_jax import __version__
from grpo_jax.devices.process import keep_pages, silence_tpu_library
from grpo_jax.hosts import codes
from grpo_jax.hosts.signals import INTERRUPTS, say
from grpo_jax.hosts.telling import announce
from grpo_jax.redaction import options_redacted, print_redacted, print_redacted_of_thread

OVERRIDES = "section.key=value: replaces a value of the config, e.g. train.steps=20"
EVALUATION = (
    "section.key=value: replaces a value of the config, e.g. evaluation.responses=8, train.evaluate_prompts=500"
)
A_MODEL = (
    "a run (runs/quickstart, or runs/quickstart@24), a directory of a model or of an adapter of PEFT's, a GGUF file,"
    " org/name on the hub,"
    " smollm2-135m-instruct, or tiny"
)
LOAD, SAMPLER = "grpo_jax.models:load", "grpo_jax.rollout:Sampler"  # owners of settings that are options here, too


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
    try:
        if hasattr(arguments, "config"):  # before the command is imported, so that a mistake is shown at once
            from grpo_jax.config import find_config, read

            path = find_config(arguments.config)
            sys.path.append(str(path.parent.absolute()))  # and a module beside the config
            sft = arguments.command == "sft" or getattr(arguments, "sft", False)
            arguments.config = read(path, arguments.overrides, sft)
        silence_tpu_library()
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
    which may be what `grpo-jax doctor` is to find missing.
    """
    reader = sys.modules.get("grpo_jax.config.values")
    return isinstance(error, FileNotFoundError) or (reader is not None and isinstance(error, reader.ConfigError))


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


def add_config(parser: argparse.ArgumentParser) -> None:
    """A config file, and overrides of its values."""
    parser.add_argument("config", help="a YAML file, or its name, such as quickstart")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help=OVERRIDES)


def add_sft(parser: argparse.ArgumentParser) -> None:
    """Whether the config is that of `grpo-jax sft`."""
    parser.add_argument("--sft", action="store_true", help="of `grpo-jax sft`, in place of `grpo-jax train`")


def add_shown(parser: argparse.ArgumentParser) -> None:
    """The options of `grpo-jax config`."""
    add_config(parser)
    add_sft(parser)


def add_train(parser: argparse.ArgumentParser) -> None:
    """The options of `grpo-jax train` and `grpo-jax sft`."""
    add_config(parser)
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of this run")
    parser.add_argument("--strict", action="store_true", help="with --resume: a damaged checkpoint is an error")
    parser.add_argument(
        "--allow-changes", action="store_true", help="with --resume: take settings that change what is learned"
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"exit codes:\n{codes.table()}"


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """The options of `grpo-jax checkpoint`."""
    parser.add_argument(
        "action", choices=["list", "verify"], help="show the checkpoints of a run, or compare all files"
    )
    parser.add_argument("run", help="a run directory, such as runs/quickstart")


def add_report(parser: argparse.ArgumentParser) -> None:
    """The options of `grpo-jax report`."""
    parser.add_argument("runs", nargs="+", metavar="run", help="a run directory; several are compared on one page")
    parser.add_argument(
        "--out", metavar="FILE", help="default: report.html in the run, or comparison.html here for several runs"
    )


def add_watch(parser: argparse.ArgumentParser) -> None:
    """The options of `grpo-jax watch`."""
    parser.add_argument("run", help="a run directory, such as runs/quickstart")
    parser.add_argument("--once", action="store_true", help="print the run as it is now, and end")
    parser.add_argument("--seconds", type=count, default=5, help="between two looks at its files; default: %(default)s")


def add_plan(parser: argparse.ArgumentParser) -> None:
    """The options of `grpo-jax plan`."""
    add_config(parser)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--topology", help="a slice: v5e-8 (or v5litepod-8), v6e-4, v5p-8, v4-8, ...")
    where.add_argument("--memory", metavar="SIZE", help="of one device of any kind, e.g. 24GiB: an estimate")
    add_sft(parser)
    add_json(parser)


def add_data(parser: argparse.ArgumentParser) -> None:
    """The options of `grpo-jax data`."""
    add_config(parser)
    parser.add_argument("--show", type=number, default=3, help="prompts to show; default: %(default)s")
    parser.add_argument(
        "--probes", type=number, default=32, help="examples to probe rewards with; default: %(default)s"
    )
    parser.add_argument("--judge", action="store_true", help="ask the judge of the config, too")


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """The options of `grpo-jax doctor`."""
    from grpo_jax.commands.doctor.probe import SECONDS  # `setting` would need YAML, which may be missing

    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="that JAX has to find its devices; default: %(default)s"
    )
    add_json(parser)


def add_objectives(parser: argparse.ArgumentParser) -> None:
    """The options of `grpo-jax objectives`."""
    parser.add_argument("name", nargs="?", help="a preset, shown with its formula and source; default: a table of all")
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")


def add_rewards(parser: argparse.ArgumentParser) -> None:
    """The options of `grpo-jax rewards`."""
    parser.add_argument("name", nargs="?", help="a reward, shown with all that is written about it; default: all")


def add_tasks(parser: argparse.ArgumentParser) -> None:
    """The options of `grpo-jax tasks`."""
    parser.add_argument("name", nargs="?", help="a task, shown with all that is written about it; default: all")


def add_generate(parser: argparse.ArgumentParser) -> None:
    """The options of `grpo-jax generate`."""
    top_k, top_p = setting(SAMPLER, "top_k"), setting(SAMPLER, "top_p")
    parser.add_argument("model", help=A_MODEL)
    parser.add_argument("prompt", nargs="?", help="a text to answer; without one, a conversation in the terminal")
    parser.add_argument("--system", metavar="TEXT", help="a system prompt; default: that of a run's task, else none")
    parser.add_argument("--max-tokens", **setting(SAMPLER, "max_tokens"), help="default: %(default)s")
    parser.add_argument("--temperature", type=float, default=0.0, help="default: %(default)s, the likeliest token")
    parser.add_argument("--top-k", **top_k, help="sample from this many of the likeliest tokens; 0, the default: all")
    parser.add_argument(
        "--top-p", **top_p, help="sample from the likeliest tokens with this probability together; default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")


def add_eval(parser: argparse.ArgumentParser) -> None:
    """The options of `grpo-jax eval`."""
    parser.add_argument("target", help=f"a config, or {A_MODEL}")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help=EVALUATION)
    parser.add_argument(
        "--task",
        action="append",
        metavar="NAME",
        help="a task, or a config with one; may be given several times; default: the task of the run or config",
    )
    parser.add_argument("--before", metavar="MODEL", help="compare with this model; default: the base model of a run")
    parser.add_argument("--out", metavar="DIR", help="keep the answers here; default: in the directory of a run")
    add_json(parser)


def add_export(parser: argparse.ArgumentParser) -> None:
    """The options of `grpo-jax export`."""
    dtype = setting("grpo_jax.models.exporting:export", "dtype")
    parser.add_argument("model", help=A_MODEL)
    parser.add_argument("--out", required=True, metavar="DIR", help="a directory that does not exist yet")
    parser.add_argument(
        "--step", type=int, help="the step of the run to export; default: its newest that can be verified"
    )
    parser.add_argument("--dtype", **dtype, help="of the weights; default: %(default)s, as they were trained")
    parser.add_argument(
        "--adapter",
        action="store_true",
        help="write the adapters alone, as PEFT loads them; default: add them to the weights",
    )
    parser.add_argument("--push", metavar="ORG/NAME", help="then send it to this repository of the Hugging Face hub")


def add_bench(parser: argparse.ArgumentParser) -> None:
    """The options of `grpo-jax bench`."""
    parser.add_argument("what", choices=["rollout", "train", "step"], help="sampling, learning, or both")
    parser.add_argument(
        "--model", default="random:smollm2-135m", help="a directory, a name, or random:SHAPE; default: %(default)s"
    )
    add_bench_sizes(parser)
    dtypes = [dtype for dtype in setting(LOAD, "activations")["choices"] if dtype != "auto"]
    parser.add_argument("--dtype", choices=dtypes, default="float32", help="of activations; default: %(default)s")
    parser.add_argument(
        "--int8-cache", action="store_true", help="keys and values in 8 bits, and what this changes in log-probs"
    )
    kept = setting(LOAD, "remat")["choices"]
    parser.add_argument(  # memory is rarely short in a benchmark
        "--remat",
        choices=kept,
        default="products",
        help="kept of each layer for the backward pass; default: %(default)s",
    )
    parser.add_argument(
        "--responses-at-once", type=count, help="responses a device learns from at once; default: found from memory"
    )
    parser.add_argument("--repeat", type=count, default=3, help="runs, whose median is shown; default: %(default)s")
    add_json(parser)


def add_bench_sizes(parser: argparse.ArgumentParser) -> None:
    """How many prompts and responses `grpo-jax bench` makes, and of how many tokens."""
    parser.add_argument("--prompts", type=count, default=4, help="default: %(default)s")
    parser.add_argument("--responses", type=count, default=8, help="to each prompt; default: %(default)s")
    parser.add_argument("--prompt-tokens", type=count, default=48, help="default: %(default)s")
    parser.add_argument(
        "--response-tokens", type=count, default=64, help="of each response, at most; default: %(default)s"
    )
    parser.add_argument("--mean-tokens", type=count, help="end responses at random, after this many tokens on average")


def add_json(parser: argparse.ArgumentParser) -> None:
    """A file for the figures of a command."""
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")


def setting(target: str, name: str) -> dict[str, Any]:
    """The default of a parameter of `target`, and its choices or its type, as `add_argument` takes them."""
    from grpo_jax.config import parameters  # reads source text, so that JAX is not imported

    parameter = parameters(target)[name]
    choices = typing.get_args(parameter.type)
    return {"default": parameter.default, **({"choices": choices} if choices else {"type": parameter.type})}


def count(text: str) -> int:
    """A whole number, at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number, at least 1; got {text!r}")
    return int(text)


def number(text: str) -> int:
    """A whole number, at least zero."""
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"expected a whole number, at least 0; got {text!r}")
    return int(text)


COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "train": ("train the model of a config", add_train),
    "sft": ("train the model of a config on given answers: supervised fine-tuning", add_train),
    "checkpoint": ("list and verify the checkpoints of a run", add_checkpoint),
    "report": ("show a run as a page, or compare several", add_report),
    "watch": ("show a run in the terminal", add_watch),
    "config": ("show a config with every default filled in", add_shown),
    "doctor": ("look at this machine and what is installed on it, and say what is wrong", add_doctor),
    "plan": ("show what a config needs on a TPU slice or another device, without one", add_plan),
    "data": ("show the prompts of a config, and what its rewards give for known answers", add_data),
    "objectives": ("list the objectives that can be trained with", add_objectives),
    "rewards": ("list the rewards, with their settings", add_rewards),
    "tasks": ("list the tasks, with their settings", add_tasks),
    "eval": ("measure a model, or a run beside its base model, on held-out prompts", add_eval),
    "generate": ("answer a prompt, or talk", add_generate),
    "export": ("write a run as a model that others load", add_export),
    "bench": ("measure this machine", add_bench),
}
