"""Some arrays of a saved step, without those that were saved beside them."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp


def described(tree: Any) -> dict[str, str]:
    """The shape and type of every array of a tree, by its path: "params/layers/up_DF": "float32 (64, 128)"."""
    arrays, _ = jax.tree.flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{a.dtype} {tuple(a.shape)}"
        for path, a in arrays
        if hasattr(a, "shape")
    }


def saved_shapes(checkpoints: Path, step: int) -> dict[str, str]:
    """The shape and type of every array of a saved step, by its path. Reads no array."""
    with _manager(checkpoints) as manager:
        return described(manager.item_metadata(step).tree)


def read_arrays(checkpoints: Path, step: int, like: dict[str, Any]) -> dict[str, Any]:
    """The part of a saved tree that `like` describes: shapes with shardings, by which the arrays are placed."""
    places = jax.tree.map(
        lambda a: ocp.ArrayRestoreArgs(sharding=a.sharding, global_shape=a.shape, dtype=a.dtype), like
    )
    arguments = ocp.args.PyTreeRestore(item=like, restore_args=places, partial_restore=True)
    with _manager(checkpoints) as manager:
        return manager.restore(step, args=arguments)


def _manager(checkpoints: Path) -> ocp.CheckpointManager:
    """A manager that is not told to delete or to create anything: a training may be writing to the same directory."""
    options = ocp.CheckpointManagerOptions(create=False, max_to_keep=None)
    return ocp.CheckpointManager(checkpoints.absolute(), options=options, item_handlers=ocp.PyTreeCheckpointHandler())
