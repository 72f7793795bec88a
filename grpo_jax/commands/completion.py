"""Completion in shells: `grpo-jax --print-completion bash`. shtab writes the script, which then starts no Python."""

import argparse
from collections.abc import Iterator, Mapping

SHELLS = ("bash", "zsh", "fish")
RUNS = "runs"  # the folder that runs are in, unless run.root is another
CONFIG, RUN, MODEL, FOLDER, TASK = "config_files", "run_dirs", "model_dirs", "folder_dirs", "task_files"
COMPLETED = {"config": CONFIG, "run": RUN, "runs": RUN, "target": MODEL, "model": MODEL, "before": MODEL, "out": FOLDER}
LISTS = {"tasks": "task", "rewards": "rewards", "objectives": "objective"}  # commands, and the sections they list
BASH = """_grpo_jax_{kind}() {{
  compgen -W "{words}" -- "$1"
  {more}
}}"""
ZSH = """_grpo_jax_{kind}() {{ _alternative "words:{kind}:({words})" {more} }}"""
MORE = {
    CONFIG: ('compgen -f -X \'!*.yaml\' -- "$1"; compgen -d -- "$1"', "\"files:file:_files -g '*.yaml'\""),
    TASK: ('compgen -f -X \'!*.yaml\' -- "$1"; compgen -d -- "$1"', "\"files:file:_files -g '*.yaml'\""),
    RUN: (f'compgen -d -- "${{1:-{RUNS}/}}"', f'"runs:run:_files -/ -W {RUNS} -P {RUNS}/" "folders:folder:_files -/"'),
    MODEL: ('compgen -f -- "$1"', '"files:file:_files"'),
    FOLDER: ('compgen -f -- "$1"', '"files:file:_files"'),
}


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script that a shell reads to complete what this parser knows."""
    import shtab

    words = _words()
    for command, action in _actions(parser):
        kind = TASK if (command, action.dest) == ("eval", "task") else COMPLETED.get(action.dest)
        if command in LISTS and action.dest == "name":
            action.choices = words[LISTS[command]]
        elif kind is not None and action.choices is None:
            vars(action)["complete"] = _completer(kind, words.get(kind, ()))
    return shtab.complete(parser, shell)


def _actions(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    """The arguments of each command. The commands themselves are no longer hidden from the list of arguments."""
    for action in parser._actions:
        if isinstance(action.choices, Mapping):
            action.help = "command"
            for name, command in action.choices.items():
                yield from ((name, each) for each in command._actions)


def _words() -> dict[str, list[str]]:
    """What can be named without a path."""
    from grpo_jax.config import parameters
    from grpo_jax.config.finding import packaged
    from grpo_jax.config.listing import listed

    found = {section: [choice.name for choice in listed(section).choices] for section in LISTS.values()}
    default = parameters("grpo_jax.models:load")["name"].default
    return found | {CONFIG: [path.stem for path in packaged()], TASK: found["task"], MODEL: [default, "tiny"]}


def _completer(kind: str, words: list[str] | tuple[str, ...]) -> dict[str, object]:
    """How shtab wants it: the function that each shell calls, and the text that defines it."""
    bash, zsh = MORE[kind]
    text = " ".join(words)
    defined = {
        "bash": BASH.format(kind=kind, words=text, more=bash),
        "zsh": ZSH.format(kind=kind, words=text, more=zsh),
    }
    function = f"_grpo_jax_{kind}"
    fish = f"(printf '%s\\n' {text}; __fish_complete_path (commandline -ct))"
    return {"bash": function, "zsh": function, "fish": fish, "preamble": defined}
