"""Whether numbers are finite. Weights that are not are neither learned, nor saved, nor loaded."""

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.devices.programs import program
from grpo_jax.structs import Params


@program
def all_finite(tree: Any) -> Array:
    """Whether no floating-point array of a tree holds a NaN or an infinity. One pass, which copies nothing."""
    floats = [array for array in jax.tree.leaves(tree) if jnp.issubdtype(array.dtype, jnp.inexact)]
    return reduce(jnp.logical_and, (jnp.all(jnp.isfinite(array)) for array in floats), jnp.array(True))


def check_weights(params: Params, whose: str) -> None:
    """Refuses weights that hold a NaN or an infinity, and names the first arrays that do. `whose` they are is said."""
    if all_finite(params):
        return
    arrays, _ = jax.tree_util.tree_flatten_with_path(params)
    bad = [jax.tree_util.keystr(path, simple=True, separator="/") for path, a in arrays if not all_finite(a)]
    listed = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
    raise ValueError(
        f"The weights of {whose} must be finite numbers; {len(bad)} of {len(arrays)} arrays hold a NaN or an infinity:"
        f" {listed}. Training cannot mend them: take another copy of the model, or an older checkpoint."
    )
