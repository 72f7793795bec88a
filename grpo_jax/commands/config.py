"""`grpo-jax config`: prints a config with every default and where each value was written, or all settings there are."""

import argparse

from grpo_jax.commands.listing import all_settings, plain
from grpo_jax.commands.printing import print_json, show
from grpo_jax.config import ConfigError, render
from grpo_jax.config.listing import settings
from grpo_jax.config.rendering import values


def run(arguments: argparse.Namespace) -> int:
    """Prints the config, or all settings; returns the exit code."""
    if arguments.all and arguments.config is not None:
        raise ConfigError("--all lists the settings that any config can have. Leave out the config, or --all.")
    if arguments.all and arguments.json:
        print_json(arguments, [plain(each) for each in settings()])
    elif arguments.all:
        show(all_settings(settings()))
    elif arguments.config is None:
        raise ConfigError("name a config, such as quickstart, or list all settings with --all")
    elif arguments.json:
        print_json(arguments, values(arguments.config))
    else:
        print(render(arguments.config), end="")  # not broken into lines: it is a config itself
    return 0
