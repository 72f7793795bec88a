"""The user's cache folder, and compiled programs kept there, so that a second run starts at once."""

import os
from pathlib import Path

import jax


def cache_folder() -> Path:
    """Where converted models are kept: $GRPO_JAX_CACHE, or grpo_jax in the user's cache folder."""
    if own := os.environ.get("GRPO_JAX_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "grpo_jax"


def keep_programs() -> None:
    """Lets JAX keep what it compiles in the cache folder, unless `JAX_COMPILATION_CACHE_DIR` says where.

    The commands do so by themselves; research code calls it once, before anything compiles.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "programs"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
