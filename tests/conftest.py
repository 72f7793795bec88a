"""JAX runs strictly: silent broadcasting is an error, shapes are checked, eight CPU devices stand in for a slice."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["HF_HUB_OFFLINE"] = "1"

from jaxtyping import install_import_hook

hook = install_import_hook("grpo_jax", "beartype.beartype")
hook.__enter__()  # for the whole session: every annotated shape is checked where it is called

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
