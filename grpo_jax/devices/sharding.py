"""Shardings: one table says which mesh axes divide an array, by the axis letters at the end of its name."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from grpo_jax.devices.mesh import PROMPT_AXES, hosts_of, prompt_shards
from grpo_jax.structs import axes_of

MeshAxes = str | tuple[str, ...] | None
# The mesh axes that divide an array's axes, by letter. `tensor` divides heads, feed-forward units and vocabulary.
# Those that a mesh lacks, or that divide an earlier axis of the array, are left out.
RULES: dict[str, MeshAxes] = {
    "P": PROMPT_AXES,
    "E": "expert",
    "D": ("fsdp", "expert"),
    "H": "tensor",
    "K": "tensor",
    "F": "tensor",
    "V": "tensor",
}
# The copy of the weights for sampling is not divided along D: each token would gather the weights again.
SERVING = {letter: axes for letter, axes in RULES.items() if letter != "D"}


def spec(letters: str) -> PartitionSpec:
    """The partition spec of an array with these axes."""
    return PartitionSpec(*(RULES.get(letter) for letter in letters))


PROMPTS = spec("P")
PREFIX = spec("PKL")  # keys and values of prompts
CACHE = spec("PGKS")  # keys and values of responses
LOGITS = spec("PGV")


def weight_shardings(tree: Any, mesh: Mesh) -> Any:
    """The sharding of every array in a tree of parameters or optimiser state, from the letters at the end of its name.

    Arrays stacked by layer have one axis more, which stays whole; so do vectors, and axes that do not divide evenly.
    """
    return _by_letters(tree, mesh, RULES)


def even_vocabulary(tree: Any, mesh: Mesh | None) -> Any:
    """The tree with rows of zeros after each vocabulary that `tensor` does not divide, which is then divided evenly.

    These rows are in the copy of the weights for sampling, never in the weights themselves, so that a checkpoint has
    none. `unembed` cuts their logits off: they are not sampled, and are in no sum.
    """
    shards = 1 if mesh is None else mesh.shape.get("tensor", 1)

    def pad(path: tuple, a: Any) -> Any:
        extra = -a.shape[0] % shards if _letters(path).startswith("V") else 0
        return jnp.pad(a, ((0, extra), *((0, 0) for _ in a.shape[1:]))) if extra else a

    return jax.tree_util.tree_map_with_path(pad, tree)


def logits_sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """The sharding of logits within a program, where the compiler divides every vocabulary, evenly or not."""
    if shape[2] % mesh.shape.get("tensor", 1) == 0:
        return fit(LOGITS, shape, mesh)
    rows = [*_trimmed(list(LOGITS)[:2], shape[:2], mesh), None, None][:2]
    return NamedSharding(mesh, PartitionSpec(*rows, LOGITS[2]))


def serving_shardings(tree: Any, mesh: Mesh) -> Any:
    """The sharding of every array in the copy of the parameters that sampling reads."""
    return _by_letters(tree, mesh, SERVING)


def serving_spec(letters: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The partition spec, in the copy for sampling, of an array with these axes."""
    return _trimmed([SERVING.get(letter) for letter in letters], shape, mesh)


def weight_spec(letters: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The partition spec of a weight, or of its gradient, with these axes."""
    return _trimmed([RULES.get(letter) for letter in letters], shape, mesh)


def with_shardings(tree: Any, shardings: Any) -> Any:
    """The shapes of a tree with these shardings, for programs that are compiled and not run."""
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shardings)


def fit(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding by `spec` of an array of this shape, without axes that it lacks or that do not divide evenly."""
    return NamedSharding(mesh, _trimmed(list(spec)[: len(shape)], shape, mesh))


def prefix_sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """The sharding of what decoding keeps of prompts: keys and values by prompt and head, the rest by prompt."""
    return fit(PREFIX if len(shape) > 2 else PROMPTS, shape, mesh)


def check_experts(shapes: Any, mesh: Mesh) -> None:
    """Refuses a mesh whose `expert` does not divide the experts of these parameters."""
    shards, counts = mesh.shape.get("expert", 1), set()
    for path, a in jax.tree_util.tree_leaves_with_path(shapes):
        letters = axes_of(str(path[-1].key) if path and isinstance(path[-1], jax.tree_util.DictKey) else "")
        counts |= {a.shape[len(a.shape) - len(letters) + letters.index("E")]} if "E" in letters else set()
    if shards > 1 and any(count % shards for count in counts or {1}):
        count = max(counts, default=0)
        choices = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        way = f"choose one of {choices}" if counts else "leave it out, and use mesh.fsdp or mesh.tensor"
        raise ValueError(
            f"mesh.expert divides the experts of a layer evenly; it is {shards}, and the model has"
            f" {count or 'no'} experts: {way}."
        )


def _by_letters(tree: Any, mesh: Mesh, rules: dict[str, MeshAxes]) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, a: NamedSharding(mesh, _spec(path, a.shape, mesh, rules)), tree
    )


def _spec(path: tuple, shape: tuple[int, ...], mesh: Mesh, rules: dict[str, MeshAxes]) -> PartitionSpec:
    letters = _letters(path)
    if len(letters) < 2 or len(shape) < len(letters):
        return PartitionSpec()
    stacked: list[MeshAxes] = [None] * (len(shape) - len(letters))
    return _trimmed(stacked + [rules.get(letter) for letter in letters], shape, mesh)


def _letters(path: tuple) -> str:
    """The axes of an array in a tree, from the last name on its path."""
    names = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
    return axes_of(names[-1]) if names else ""


def _trimmed(axes: list[MeshAxes], shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """A spec in canonical form: `P("x")` and `P("x", None)` are the same layout but different jit keys."""
    kept: list[MeshAxes] = []
    for axis, size in zip(axes, shape, strict=False):
        used = [name for other in kept for name in _names(other)]
        names = [name for name in _names(axis) if name in mesh.shape and name not in used]
        found = names[0] if len(names) == 1 else tuple(names)
        kept.append(found if names and _divides(mesh, found, size) else None)
    while kept and kept[-1] is None:
        kept.pop()
    return PartitionSpec(*kept)


def _names(axes: MeshAxes) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else (axes or ())


def _divides(mesh: Mesh | AbstractMesh, axis: str | tuple[str, ...], size: int) -> bool:
    shards = math.prod(mesh.shape[name] for name in _names(axis))
    return shards > 1 and size % shards == 0


def shards_per_group(prompts: int, shards: int) -> int:
    """The fewest shards that each group is spread over, so that all shards have equally many subgroups."""
    return shards // math.gcd(prompts, shards)


def devices_per_group(prompts: int, responses: int, mesh: Mesh | None) -> int:
    """The number of devices that each group is spread over, so that all devices have equally many responses: 1 if
    the devices divide the prompts. Refuses numbers that cannot be spread evenly.
    """
    shards = 1 if mesh is None else prompt_shards(mesh)
    spread, hosts = shards_per_group(prompts, shards), hosts_of(mesh)
    if spread > 1 and prompts % hosts:
        raise ValueError(
            f"A group stays on one host, so prompts must be a multiple of the {hosts} hosts; got {prompts}."
            f" Choose {' or '.join(str(n * hosts) for n in (prompts // hosts, prompts // hosts + 1) if n)} prompts"
            " (train.prompts)."
        )
    if responses % spread == 0:
        return spread
    nearest = sorted({max(prompts // shards, 1) * shards, (prompts // shards + 1) * shards})
    raise ValueError(
        f"The devices share prompts, or the responses to each, in {shards} equal parts: their number must be a multiple"
        f" of {shards}, or the responses to each a multiple of {spread}; got {prompts} prompts and {responses}"
        f" responses. Choose {' or '.join(map(str, nearest))} prompts (train.prompts)."
    )
