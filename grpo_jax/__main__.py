"""`python -m grpo_jax`, for where the `grpo-jax` script is not on the path."""

import sys

from grpo_jax.cli import main

sys.exit(main())
