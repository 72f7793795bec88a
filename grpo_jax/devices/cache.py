"""The user's cache folder, and JAX's compilation cache in it, so that a second run need not compile again."""

import os
from pathlib import Path
from typing import Any, cast

import jax


def cache_folder() -> Path:
    """The folder for converted models and programs: $GRPO_JAX_CACHE, or grpo_jax in the user's cache folder."""
    if own := os.environ.get("GRPO_JAX_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "grpo_jax"


def keep_programs() -> None:
    """Turns on JAX's compilation cache, in the cache folder unless `JAX_COMPILATION_CACHE_DIR` names another.

    The commands call this; research code calls it once, before anything compiles.
    """
    if cast(Any, jax.config).jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "programs"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
