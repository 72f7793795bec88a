"""`python -m grpo_jax`, for where the `grpo-jax` script is not on the path."""

import sys

if not sys.flags.safe_path:
    del sys.path[0]  # the current folder, which is searched last, as it is by the script: its files hide no package

from grpo_jax.cli import main

sys.exit(main())
