"""Names to commands. A command's module is imported when the command runs, so `grpo-jax --help` waits for nothing."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from grpo_jax import __version__
from grpo_jax.devices.process import keep_pages, silence_tpu_library

REMAT = "what learning keeps of a layer; default: %(default)s"
OVERRIDES = "section.key=value: replaces what the config says, e.g. train.steps=20"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; a config that cannot be used, or a file that is not there, is one line and exit status 2."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    keep_pages()
    sys.path.append(os.getcwd())  # so that `use: my_module:my_reward` finds the user's code
    from grpo_jax.config import ConfigError, read

    try:
        if hasattr(arguments, "config"):  # before the command is imported, so that a mistake shows at once
            arguments.config = read(arguments.config, arguments.overrides)
        silence_tpu_library()
        return importlib.import_module(f"grpo_jax.commands.{arguments.command}").run(arguments)
    except (ConfigError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = parser_of_all_commands()
    arguments, rest = parser.parse_known_args(argv)
    if any(item.startswith("-") for item in rest) or not hasattr(arguments, "overrides"):
        return parser.parse_args(argv)
    arguments.overrides += rest  # argparse leaves here the overrides that follow an option
    return arguments


def parser_of_all_commands() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "grpo-jax", description="Train language models by GRPO in JAX.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    train = commands.add_parser("train", help="train the model of a config", allow_abbrev=False)
    add_config(train)
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of this run")

    config = commands.add_parser("config", help="show a config with every default filled in", allow_abbrev=False)
    add_config(config)

    plan = commands.add_parser("plan", help="what a config needs on a TPU slice, without one", allow_abbrev=False)
    add_config(plan)
    plan.add_argument("--topology", required=True, help="a slice: v5e-8 (or v5litepod-8), v6e-4, v5p-8, v4-8, ...")
    plan.add_argument("--json", metavar="FILE", help="also write the figures there")

    objectives = commands.add_parser("objectives", help="what can be learned from rewards", allow_abbrev=False)
    objectives.add_argument("name", nargs="?", help="one preset, with its formula and source; default: a table of all")
    objectives.add_argument("--markdown", action="store_true", help="the table for a page")

    generate = commands.add_parser("generate", help="answer a prompt", allow_abbrev=False)
    generate.add_argument("model", help="a directory, a name on the Hugging Face hub, or smollm2-135m-instruct")
    generate.add_argument("prompt")
    generate.add_argument("--max-tokens", type=int, default=256, help="default: %(default)s")
    generate.add_argument("--temperature", type=float, default=0.0, help="default: %(default)s, always the likeliest")
    generate.add_argument("--top-k", type=int, default=0, help="so many likeliest tokens; default: all")
    generate.add_argument("--top-p", type=float, default=1.0, help="likeliest tokens of this probability; default: 1")
    generate.add_argument("--seed", type=int, default=0, help="default: %(default)s")

    bench = commands.add_parser("bench", help="measure this machine", allow_abbrev=False)
    bench.add_argument("what", choices=["rollout", "train", "step"], help="sampling, learning, or both")
    bench.add_argument(
        "--model", default="random:smollm2-135m", help="a directory, a name, or random:SHAPE; default: %(default)s"
    )
    bench.add_argument("--prompts", type=count, default=4, help="default: %(default)s")
    bench.add_argument("--responses", type=count, default=8, help="to each prompt; default: %(default)s")
    bench.add_argument("--prompt-tokens", type=count, default=48, help="default: %(default)s")
    bench.add_argument(
        "--response-tokens", type=count, default=64, help="of every response, or at most; default: %(default)s"
    )
    bench.add_argument("--mean-tokens", type=count, help="responses end at random, after so many tokens on average")
    bench.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="of activations; default: %(default)s"
    )
    bench.add_argument("--int8-cache", action="store_true", help="keys and values in 8 bits; what it does to log-probs")
    bench.add_argument("--remat", choices=["full", "products", "offload", "none"], default="products", help=REMAT)
    bench.add_argument(
        "--responses-at-once", type=count, help="responses a device learns from at once; default: found from memory"
    )
    bench.add_argument("--repeat", type=count, default=3, help="runs, of which the median counts; default: %(default)s")
    bench.add_argument("--json", metavar="FILE", help="also write the figures there")
    return parser


def count(text: str) -> int:
    """A number of things, at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number, at least 1, is needed; got {text!r}")
    return int(text)


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help=OVERRIDES)
