"""Where the user's cache is. Imports no JAX."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder for converted models and programs: $GRPO_JAX_CACHE, or grpo_jax in the user's cache folder."""
    if own := os.environ.get("GRPO_JAX_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "grpo_jax"


def programs_folder() -> Path:
    """The folder of compiled programs, in the cache folder unless `JAX_COMPILATION_CACHE_DIR` names another."""
    own = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    return Path(own) if own else cache_folder() / "programs"
