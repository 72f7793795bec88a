"""A language model by name: a directory, a Hugging Face name, a run, the embedded model, or `tiny`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from grpo_jax.devices.sharding import weight_shardings
from grpo_jax.models.decoder import Shape
from grpo_jax.models.digest import digest_of
from grpo_jax.models.hub import check, check_adapter, is_adapter, locate
from grpo_jax.models.lora import Lora, adapted_policy, first_adapters, merged, quantized, read_lora
from grpo_jax.models.model_config import read_shape
from grpo_jax.models.peft.modules import stored_names
from grpo_jax.models.peft.reading import adapters_in, read_folder
from grpo_jax.models.policy import decoder_policy
from grpo_jax.models.remat import Remat
from grpo_jax.models.runs import TrainedRun, find_run, manifest_digest, read_adapters, read_weights
from grpo_jax.models.shapes import TINY, known_shape
from grpo_jax.models.tokenizer import Tokenizer, byte_tokenizer, check_vocabulary, load_tokenizer
from grpo_jax.models.weights import load_weights
from grpo_jax.saved.directory import RUN
from grpo_jax.structs import Params, Policy

WEIGHTS = ("float32", "bfloat16")  # types of weights that are trained


@dataclass(frozen=True)
class Origin:
    """Where a model comes from: its base by name, the base's directory (`tiny` has none), and the run, or the adapter
    of PEFT's, if it is one.
    """

    base: str
    directory: Path | None = None
    run: TrainedRun | None = None
    adapter: Path | None = None


@dataclass(frozen=True)
class Model:
    """A policy, its tokenizer, and how to get its parameters onto a mesh."""

    policy: Policy
    shape: Shape
    tokenizer: Tokenizer
    params: Callable[[Mesh], Params]
    origin: Origin | None = None  # None for a model made in Python
    lora: Lora | None = None  # the settings of its adapters, if only these are trained
    adapters: Callable[[Mesh], Params] | None = None  # these alone, where there are any

    @property
    def in_int8(self) -> bool:
        """Whether the frozen weights are in 8 bits."""
        return any(a.dtype == jnp.int8 for a in jax.tree.leaves(self.policy.shapes))

    @property
    def first_weights(self) -> str | None:
        """The run and the step, or the adapter of PEFT's, whose weights these are; None for those of a model."""
        origin = Origin("") if self.origin is None else self.origin
        return origin.run.name if origin.run is not None else None if origin.adapter is None else str(origin.adapter)


def load(
    name: str = "smollm2-135m-instruct",  # a directory, a GGUF file, org/name, a run, smollm2-135m-instruct, or tiny
    activations: Literal["auto", "float32", "bfloat16"] = "auto",  # auto: float32 on CPU, bfloat16 elsewhere
    weights: Literal["auto", "float32", "bfloat16", "int8"] = "auto",  # auto: float32, or as activations with lora
    remat: Remat = "auto",  # what the backward pass computes again: what has to be; see docs/training.md
    template: dict[str, Any]
    | None = None,  # of the chat template, e.g. {enable_thinking: false}; null: as a run had them
    replay_experts: bool = False,  # learn with the experts that computed each token when it was sampled
    lora: dict[str, Any] | None = None,  # train adapters alone: {rank: 16, alpha: 32, targets: all}; null: all weights
) -> Model:
    """The model, with everything but its weights read and checked; `params` reads those later.

    A run that trained adapters, and an adapter of PEFT's, is its base with them added. With `lora` of the same settings
    they are trained on.
    """
    settings = None if lora is None else read_lora(lora)
    dtype = _dtype(activations)
    stored = storage(weights, dtype, settings)
    options = {"activations": dtype, "remat": remat, "replay_experts": replay_experts, "weights": stored.weights}
    model, base = _found(name, template, stored.int8, **options)
    if base is None:
        return model if settings is None else with_adapters(model, settings, stored.int8)
    if settings is None:
        return with_adapters_added(model, base)
    if settings != model.lora:
        raise ValueError(
            f"{name} has adapters with other settings: to go on with them, write model.lora: {model.lora}. To train all"
            f" weights, leave model.lora out. For other adapters, first write the whole model: grpo-jax export {name}"
            " --out DIRECTORY."
        )
    return model


def load_apart(name: str) -> Model:
    """A model with its adapters apart, as `load` gives it with `lora` of their settings. One without is refused."""
    model, base = _found(name, None, int8=False)
    if base is None:
        raise ValueError(f"{name} has no adapters, so --adapter has nothing to write. Leave it out: all weights are.")
    return model


def _dtype(activations: str) -> DTypeLike:
    known = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
    return known.get(activations, jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)


def _found(name: str, template: dict[str, Any] | None, int8: bool, **options: Any) -> tuple[Model, Model | None]:
    """The model of a name, and its base where it has adapters, which are then apart; with `int8`, so is the base."""
    run = find_run(name)
    if run is not None:
        return _load_run(run, template, int8, **options)
    directory = None if name == "tiny" else locate(name)
    if directory is None or not is_adapter(directory):
        return _load(name, directory, template, **options), None
    return _load_adapter(directory, template, int8, **options)


def _load_run(
    run: TrainedRun, template: dict[str, Any] | None, int8: bool, **options: Any
) -> tuple[Model, Model | None]:
    """The model of a run: its base, with the weights of one of its steps, or with their adapters."""
    template = dict(run.template) if template is None else template
    try:
        base = _load_whole(run.base, template, **options)
    except (FileNotFoundError, ValueError) as error:
        what = "gives the tokenizer" if run.lora is None else "its adapters belong to"
        moved = f' If it has moved, write its new path into {run.path / RUN}, as "model".'
        said = moved if isinstance(error, FileNotFoundError) else ""
        raise type(error)(f"{run.path} was trained from {run.base}, which {what}. {error}{said}") from error
    if run.lora is None:
        origin = None if base.origin is None else replace(base.origin, run=run)
        return replace(base, params=partial(read_weights, run, base.policy.shapes), origin=origin), None
    model = with_adapters(base, read_lora(run.lora), int8 or run.int8, partial(read_adapters, run))
    check_base(model, run.digest, str(run.path))
    return replace(model, origin=None if model.origin is None else replace(model.origin, run=run)), base


def _load_adapter(directory: Path, template: dict[str, Any] | None, int8: bool, **options: Any) -> tuple[Model, Model]:
    """The model of an adapter of PEFT's, and its base."""
    check_adapter(directory)
    folder = read_folder(directory)
    try:
        base = _load_whole(folder.base, template, **options)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{directory} is an adapter of {folder.base}. {error}") from error
    source = None if base.origin is None else base.origin.directory
    settings, read = adapters_in(folder, base.policy.shapes, stored_names(source, folder.shapes))
    model = with_adapters(base, settings, int8, read)
    check_base(model, folder.digest, str(directory))
    return replace(model, origin=None if model.origin is None else replace(model.origin, adapter=directory)), base


def _load_whole(name: str, template: dict[str, Any] | None, **options: Any) -> Model:
    """A model that others belong to, with its adapters added if it is a run that has some."""
    run = find_run(name)
    if run is None:
        return _load(name, None if name == "tiny" else locate(name), template, **options)
    model, base = _load_run(run, template, False, **options)
    return model if base is None else with_adapters_added(model, base)


def _load(name: str, directory: Path | None, template: dict[str, Any] | None, **options: Any) -> Model:
    """The model of a name that is not that of a run. `tiny` has no directory."""
    if directory is None:
        model = tiny(**options)
        return model if template is None else replace(model, tokenizer=replace(model.tokenizer, template=template))
    check(directory)
    shape = read_shape(directory)
    tokenizer = load_tokenizer(directory, template)
    check_vocabulary(tokenizer, shape.vocabulary, directory)
    policy = decoder_policy(shape, **options)

    def params(mesh: Mesh) -> Params:
        return load_weights(directory, policy.shapes, weight_shardings(policy.shapes, mesh))

    path = Path(name).expanduser()
    base = str(path.absolute()) if path.exists() else name
    return Model(policy, shape, tokenizer, params, Origin(base, directory))


class Storage(NamedTuple):
    """How parameters are stored: the type of matrices, and whether those that may be adapted become int8."""

    weights: DTypeLike
    int8: bool


def storage(weights: str, activations: DTypeLike, settings: Lora | None) -> Storage:
    """How a model's parameters are stored. Those that are never trained need be no wider than activations."""
    if weights not in (*WEIGHTS, "int8", "auto"):
        raise ValueError(f"model.weights is auto, {', '.join(WEIGHTS)} or int8; got {weights!r}.")
    if weights == "int8" and settings is None:
        raise ValueError(
            "model.weights is int8, and such weights cannot be trained: train adapters beside them (model.lora), or"
            " choose bfloat16."
        )
    if weights in ("auto", "int8"):
        return Storage(jnp.dtype(jnp.float32 if settings is None else activations), weights == "int8")
    return Storage(jnp.dtype(weights), False)


def with_adapters(
    model: Model, settings: Lora, int8: bool = False, read: Callable[[Params, Mesh], Params] | None = None
) -> Model:
    """The model with its weights frozen, and adapters to train: new ones, or those that `read` gives for their shapes.

    Where the weights are those of a run, this run is the base. With `int8` its matrices are.
    """
    policy, base = adapted_policy(model.policy, settings, int8), model.policy.shapes

    def adapters(mesh: Mesh) -> Params:
        shapes = policy.shapes["lora"]
        first = jax.jit(partial(first_adapters, base, settings), out_shardings=weight_shardings(shapes, mesh))
        return first(jax.random.key(0)) if read is None else read(shapes, mesh)

    def params(mesh: Mesh) -> Params:
        weights = model.params(mesh)
        return {"base": _in_int8(weights, mesh) if int8 else weights, "lora": adapters(mesh)}

    origin = model.origin
    if origin is not None and origin.run is not None:
        origin = Origin(str(origin.run.path.absolute()) + f"@{origin.run.step}", origin.directory)
    return replace(model, policy=policy, params=params, origin=origin, lora=settings, adapters=adapters)


def _in_int8(base: Params, mesh: Mesh) -> Params:
    shardings = weight_shardings(jax.eval_shape(quantized, base), mesh)
    return jax.jit(quantized, out_shardings=shardings)(base)


def with_adapters_added(model: Model, base: Model) -> Model:
    """A model with adapters as one of the same kind as its base: the adapters are added to its weights."""
    settings, origin, shapes = model.lora or Lora(), base.origin, base.policy.shapes

    def add(base: Params, adapters: Params) -> Params:
        whole = merged({"base": base, "lora": adapters}, settings)
        return jax.tree.map(lambda a, wanted: a.astype(wanted.dtype), whole, shapes)

    def params(mesh: Mesh) -> Params:
        freed = () if model.in_int8 else (0,)  # int8 arrays have no room for the sums
        whole = jax.jit(add, out_shardings=weight_shardings(shapes, mesh), donate_argnums=freed)
        return whole(*model.params(mesh).values())

    if origin is not None and model.origin is not None:
        origin = replace(origin, run=model.origin.run, adapter=model.origin.adapter)
    return replace(base, params=params, origin=origin)


def base_digest(model: Model) -> str:
    """What the weights are known by that the adapters of a model belong to."""
    if model.origin is None:
        return ""
    run, directory = find_run(model.origin.base), model.origin.directory
    if run is not None:
        return manifest_digest(run)
    return model.origin.base if directory is None else digest_of(directory)


def check_base(model: Model, digest: str, whose: str) -> None:
    """Refuses adapters that belong to other weights than those of the model's base."""
    if digest and (found := base_digest(model)) != digest:
        name = "" if model.origin is None else model.origin.base
        raise ValueError(
            f"The adapters in {whose} were trained on other weights than {name} has now: its digest is {found}, theirs"
            f" {digest}. Put back the model that they were trained on, or train new ones."
        )


def find_shape(name: str) -> Shape:
    """The shape of a model by its name, without its weights; nothing is downloaded for one that is in `SHAPES`."""
    run = None if name.startswith("random:") else find_run(name)
    if run is not None:
        return find_shape(run.base)
    known = known_shape(name)
    if known is not None:
        return known
    directory = locate(name)
    return find_shape(read_folder(directory).base) if is_adapter(directory) else read_shape(directory)


def tiny(seed: int = 0, **options: Any) -> Model:
    """A random two-layer model that reads bytes, for tests and for learning a small task from scratch.

    Its options are those of `decoder_policy`.
    """
    policy = decoder_policy(TINY, **options)

    def params(mesh: Mesh) -> Params:
        shardings = weight_shardings(policy.shapes, mesh)
        return jax.jit(policy.init, out_shardings=shardings)(jax.random.key(seed))

    return Model(policy, TINY, byte_tokenizer(), params, Origin("tiny"))
