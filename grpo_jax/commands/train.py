"""`grpo-jax train`: a config file in, a run directory out."""

import argparse

from grpo_jax.config import ConfigError, build, locate, render
from grpo_jax.devices.cache import keep_programs
from grpo_jax.hosts import ending, meeting
from grpo_jax.training import finish, start


@ending.end_all_hosts_on_error(ConfigError, FileNotFoundError)  # the command line, too, prints these as one line
def run(arguments: argparse.Namespace) -> int:
    """Trains as the config says; the exit code. On several hosts, all of them run this at once."""
    text = render(arguments.config)
    try:
        meeting.join()
        same = {"config": text, "version of the code": meeting.code_version()}
        meeting.check_same(same | {"choice of --resume": str(arguments.resume)})
        keep_programs()
        started = start(**build(arguments.config), resume=arguments.resume)
    except ConfigError:
        raise
    except (ValueError, OSError) as error:
        raise ConfigError(locate(arguments.config, str(error))) from error
    try:
        return 0 if finish(started).complete else ending.RESUMABLE
    except KeyboardInterrupt:
        return 130
