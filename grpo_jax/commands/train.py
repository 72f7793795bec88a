"""`grpo-jax train`: a config file in, a run directory out."""

import argparse

from grpo_jax.config import ConfigError, build, locate, render
from grpo_jax.devices.cache import keep_programs
from grpo_jax.hosts import ending, meeting
from grpo_jax.hosts.codes import COMPLETE, INTERRUPTED, RESUMABLE, STEP_FAILED
from grpo_jax.hosts.signals import INTERRUPTS
from grpo_jax.hosts.telling import tell
from grpo_jax.training import finish, start
from grpo_jax.training.loop import Started

MISTAKES = (ConfigError, FileNotFoundError)  # which the command line, too, prints as one line


@ending.end_all_hosts_on_error(*MISTAKES)
def run(arguments: argparse.Namespace) -> int:
    """Trains as the config says; the exit code. On several hosts, all of them run this at once."""
    started = _start(arguments)
    try:
        return COMPLETE if finish(started).complete else RESUMABLE
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        return tell(error, otherwise=STEP_FAILED)[0]


def _start(arguments: argparse.Namespace) -> Started:
    """The run that the config describes. Whatever keeps it from starting is a mistake in the config or in its files."""
    text = render(arguments.config)
    if not arguments.resume and (arguments.strict or arguments.allow_changes):
        raise ConfigError("--strict and --allow-changes say how a run is resumed: add --resume, or leave them out.")
    try:
        meeting.join()
        same = {"config": text, "version of the code": meeting.code_version()}
        how = {"resume": arguments.resume, "strict": arguments.strict, "allow_changes": arguments.allow_changes}
        meeting.check_same(same | {"choice of --resume": str(how)})
        keep_programs()
        INTERRUPTS.check()
        return start(**build(arguments.config), **how)
    except SystemExit as error:
        raise ConfigError(f"Code that the config names called sys.exit({error.code}): nothing was trained.") from error
    except ConfigError:
        raise
    except (ValueError, OSError) as error:
        raise ConfigError(locate(arguments.config, str(error))) from error
