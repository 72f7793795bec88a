"""The commands of `grpo-jax`, and the options of each. Nothing here imports JAX, so that `--help` shows at once."""

import argparse
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

from grpo_jax.hosts import codes

OVERRIDES = "section.key=value: replaces a value of the config, e.g. train.steps=20"
EVALUATION = (
    "section.key=value: replaces a value of the config, e.g. evaluation.responses=8, train.evaluate_prompts=500"
)
A_MODEL = (
    "a run (runs/quickstart, or runs/quickstart@24), a directory of a model or of an adapter of PEFT's, a GGUF file,"
    " org/name on the hub,"
    " smollm2-135m-instruct, or tiny"
)
PROGRESS = "print errors, warnings and the result only"
LOAD, SAMPLER = "grpo_jax.models:load", "grpo_jax.rollout:Sampler"  # owners of settings that are options here, too


class Command(NamedTuple):  # the module of dataclasses takes as long to import as all of this
    """What a command does, in a line; its options; and examples of its use."""

    summary: str
    add_options: Callable[[argparse.ArgumentParser], None]
    examples: tuple[str, ...]


def add_config(parser: argparse.ArgumentParser) -> None:
    """A config file, and overrides of its values."""
    parser.add_argument(
        "config", help="a YAML file, or the name of one here, in configs/, or in the package: quickstart"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help=OVERRIDES)


def add_sft(parser: argparse.ArgumentParser) -> None:
    """Whether the config is that of `grpo-jax sft`."""
    parser.add_argument("--sft", action="store_true", help="of `grpo-jax sft`, in place of `grpo-jax train`")


def add_json(parser: argparse.ArgumentParser) -> None:
    """One document of JSON in place of text."""
    parser.add_argument(
        "--json", action="store_true", help="print one document of JSON on standard output, and nothing else there"
    )


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """Nothing but the result."""
    parser.add_argument("--quiet", action="store_true", help=PROGRESS)


def add_shown(parser: argparse.ArgumentParser) -> None:
    """The options of `grpo-jax config`."""
    parser.add_argument(
        "config", nargs="?", help="a YAML file, or the name of one here, in configs/, or in the package: quickstart"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help=OVERRIDES)
    parser.add_argument(
        "--all", action="store_true", help="list every setting that a config can have, and what it means"
    )
    add_sft(parser)
    add_json(parser)


def add_train(parser: argparse.ArgumentParser) -> None:
    """The options of `grpo-jax train` and `grpo-jax sft`."""
    add_config(parser)
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of this run")
    parser.add_argument("--strict", action="store_true", help="with --resume: a damaged checkpoint is an error")
    parser.add_argument(
        "--allow-changes", action="store_true", help="with --resume: take settings that change what is learned"
    )
    add_quiet(parser)
    parser.epilog = f"exit codes:\n{codes.table()}"


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """The options of `grpo-jax checkpoint`."""
    parser.add_argument(
        "action", choices=["list", "verify"], help="show the checkpoints of a run, or compare all files"
    )
    parser.add_argument("run", help="a run directory, such as runs/quickstart")
    add_json(parser)


def add_report(parser: argparse.ArgumentParser) -> None:
    """The options of `grpo-jax report`."""
    parser.add_argument("runs", nargs="+", metavar="run", help="a run directory; several are compared on one page")
    parser.add_argument(
        "--out", metavar="FILE", help="default: report.html in the run, or comparison.html here for several runs"
    )
    add_json(parser)


def add_watch(parser: argparse.ArgumentParser) -> None:
    """The options of `grpo-jax watch`."""
    parser.add_argument("run", help="a run directory, such as runs/quickstart")
    parser.add_argument("--once", action="store_true", help="print the run as it is now, and end")
    parser.add_argument(
        "--seconds", type=count, metavar="N", default=5, help="between two looks at its files; default: %(default)s"
    )


def add_plan(parser: argparse.ArgumentParser) -> None:
    """The options of `grpo-jax plan`."""
    add_config(parser)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--topology", metavar="SLICE", help="a slice: v5e-8 (or v5litepod-8), v6e-4, v5p-8, v4-8, ...")
    where.add_argument("--memory", metavar="SIZE", help="of one device of any kind, e.g. 24GiB: an estimate")
    parser.add_argument(
        "--time",
        action="store_true",
        help="show at least how long each part of a step takes on the slice, by the compiler's own code; no memory",
    )
    parser.add_argument(
        "--lengths",
        metavar="TOKENS",
        help="of answers: a mean such as 300; a mean and a spread (of logarithms) such as 300,0.5; a file with a number"
        " in each line; or the directory of a run; default: all as long as rollout.max_tokens",
    )
    add_sft(parser)
    add_quiet(parser)
    add_json(parser)


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """The options of `grpo-jax doctor`."""
    from grpo_jax.commands.doctor.probe import SECONDS  # `setting` would need YAML, which may be missing

    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="that JAX has to find its devices; default: %(default)s"
    )
    add_json(parser)


def add_data(parser: argparse.ArgumentParser) -> None:
    """The options of `grpo-jax data`."""
    add_config(parser)
    parser.add_argument("--show", type=number, metavar="N", default=3, help="prompts to show; default: %(default)s")
    parser.add_argument(
        "--probes", type=number, metavar="N", default=32, help="examples to probe rewards with; default: %(default)s"
    )
    parser.add_argument("--judge", action="store_true", help="ask the judge of the config, too")
    add_quiet(parser)
    add_json(parser)


def add_objectives(parser: argparse.ArgumentParser) -> None:
    """The options of `grpo-jax objectives`."""
    parser.add_argument("name", nargs="?", help="an objective, shown with its formula and settings; default: all")
    parser.add_argument("--table", action="store_true", help="print what each is made of, side by side")
    parser.add_argument("--markdown", action="store_true", help="print this table in Markdown")
    add_json(parser)


def add_rewards(parser: argparse.ArgumentParser) -> None:
    """The options of `grpo-jax rewards`."""
    parser.add_argument("name", nargs="?", help="a reward, shown with its settings; default: all")
    add_json(parser)


def add_tasks(parser: argparse.ArgumentParser) -> None:
    """The options of `grpo-jax tasks`."""
    parser.add_argument("name", nargs="?", help="a task, shown with its settings; default: all")
    add_json(parser)


def add_generate(parser: argparse.ArgumentParser) -> None:
    """The options of `grpo-jax generate`."""
    top_k, top_p = setting(SAMPLER, "top_k"), setting(SAMPLER, "top_p")
    parser.add_argument("model", help=A_MODEL)
    parser.add_argument("prompt", nargs="?", help="a text to answer; without one, a conversation in the terminal")
    parser.add_argument("--system", metavar="TEXT", help="a system prompt; default: that of a run's task, else none")
    parser.add_argument(
        "--max-tokens",
        **setting(SAMPLER, "max_tokens"),
        metavar="N",
        help="of the answer, at most; default: %(default)s",
    )
    parser.add_argument(
        "--temperature", type=float, metavar="T", default=0.0, help="default: %(default)s, the likeliest token"
    )
    parser.add_argument(
        "--top-k", **top_k, metavar="K", help="sample from this many of the likeliest tokens; 0, the default: all"
    )
    parser.add_argument(
        "--top-p",
        **top_p,
        metavar="P",
        help="sample from the likeliest tokens with this probability together; default: %(default)s",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", default=0, help="of what is sampled at random; default: %(default)s"
    )


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
    add_quiet(parser)
    add_json(parser)


def add_export(parser: argparse.ArgumentParser) -> None:
    """The options of `grpo-jax export`."""
    dtype = setting("grpo_jax.models.exporting:export", "dtype")
    parser.add_argument("model", help=A_MODEL)
    parser.add_argument("--out", required=True, metavar="DIR", help="a directory that does not exist yet")
    parser.add_argument(
        "--step", type=int, metavar="N", help="the step of the run to export; default: its newest that can be verified"
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
        "--model",
        metavar="NAME",
        default="random:smollm2-135m",
        help="a directory, a name, or random:SHAPE; default: %(default)s",
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
        metavar="KEPT",
        default="products",
        help=f"kept of each layer for the backward pass: {', '.join(kept)}; default: %(default)s",
    )
    parser.add_argument(
        "--responses-at-once",
        type=count,
        metavar="N",
        help="responses a device learns from at once; default: found from memory",
    )
    parser.add_argument(
        "--repeat", type=count, metavar="N", default=3, help="runs, whose median is shown; default: %(default)s"
    )
    add_quiet(parser)
    add_json(parser)


def add_bench_sizes(parser: argparse.ArgumentParser) -> None:
    """How many prompts and responses `grpo-jax bench` makes, and of how many tokens."""
    parser.add_argument(
        "--prompts", type=count, metavar="N", default=4, help="that are asked at once; default: %(default)s"
    )
    parser.add_argument("--responses", type=count, metavar="N", default=8, help="to each prompt; default: %(default)s")
    parser.add_argument(
        "--prompt-tokens", type=count, metavar="N", default=48, help="of each prompt; default: %(default)s"
    )
    parser.add_argument(
        "--response-tokens", type=count, metavar="N", default=64, help="of each response, at most; default: %(default)s"
    )
    parser.add_argument(
        "--mean-tokens", type=count, metavar="N", help="end responses at random, after this many tokens on average"
    )


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


GROUPS: dict[str, dict[str, Command]] = {
    "start here": {
        "train": Command(
            "train the model of a config",
            add_train,
            ("grpo-jax train quickstart", "grpo-jax train quickstart train.steps=20 run.name=short"),
        ),
        "generate": Command(
            "answer a prompt, or talk",
            add_generate,
            ('grpo-jax generate runs/quickstart "What is 16 + 6?"', "grpo-jax generate smollm2-135m-instruct"),
        ),
        "eval": Command(
            "measure a model, or a run beside its base model, on held-out prompts",
            add_eval,
            ("grpo-jax eval runs/quickstart", "grpo-jax eval smollm2-135m-instruct --task arithmetic"),
        ),
        "report": Command(
            "show a run as a page, or compare several",
            add_report,
            ("grpo-jax report runs/quickstart", "grpo-jax report runs/quickstart runs/short --out both.html"),
        ),
    },
    "to prepare a training": {
        "tasks": Command("list the tasks", add_tasks, ("grpo-jax tasks", "grpo-jax tasks countdown")),
        "rewards": Command("list the rewards", add_rewards, ("grpo-jax rewards", "grpo-jax rewards MathEqual")),
        "objectives": Command(
            "list the objectives that can be trained with",
            add_objectives,
            ("grpo-jax objectives", "grpo-jax objectives dapo"),
        ),
        "config": Command(
            "show a config with every default filled in, or all settings there are",
            add_shown,
            ("grpo-jax config quickstart train.steps=20", "grpo-jax config --all"),
        ),
        "data": Command(
            "show the prompts of a config, and what its rewards give for known answers",
            add_data,
            ("grpo-jax data quickstart", "grpo-jax data travel --show 1"),
        ),
        "plan": Command(
            "show what a config needs on a TPU slice or another device, without one",
            add_plan,
            (
                "grpo-jax plan quickstart --memory 8GiB",
                "grpo-jax plan gemma3_1b_v5e-1 --topology v5e-1",
                "grpo-jax plan gemma3_1b_v5e-1 --topology v5e-1 --time --lengths 300,0.5",
            ),
        ),
    },
    "and more": {
        "sft": Command(
            "train the model of a config on given answers: supervised fine-tuning",
            add_train,
            ("grpo-jax sft sft_then_grpo", "grpo-jax sft sft_then_grpo train.steps=20"),
        ),
        "watch": Command("show a run in the terminal", add_watch, ("grpo-jax watch runs/quickstart",)),
        "export": Command(
            "write a run as a model that others load",
            add_export,
            ("grpo-jax export runs/quickstart --out quickstart-model",),
        ),
        "checkpoint": Command(
            "list and verify the checkpoints of a run",
            add_checkpoint,
            ("grpo-jax checkpoint list runs/quickstart",),
        ),
        "doctor": Command(
            "look at this machine and what is installed on it, and say what is wrong",
            add_doctor,
            ("grpo-jax doctor", "grpo-jax doctor --json"),
        ),
        "bench": Command(
            "measure this machine",
            add_bench,
            ("grpo-jax bench step", "grpo-jax bench rollout --model random:qwen3-0.6b"),
        ),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}
