"""JAX's compilation cache in the user's cache folder, so that a second run need not compile again."""

import os
from typing import Any, cast

import jax

from grpo_jax.devices.folders import programs_folder


def keep_programs() -> None:
    """Turns on JAX's compilation cache, in the cache folder unless `JAX_COMPILATION_CACHE_DIR` names another.

    The commands call this; research code calls it once, before anything compiles.
    """
    if cast(Any, jax.config).jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(programs_folder()))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
