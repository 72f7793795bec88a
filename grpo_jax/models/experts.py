"""A mixture of experts: a router gives each token a few of the experts, whose outputs are added up by its weights.

Pairs of a token and one of its experts are sorted by expert, and each expert computes its own pairs in one ragged
product. So no token is ever dropped, and no expert computes more than it was given. The router's scores and weights
are float32, and so is the sum over experts.

On a TPU the gradient of the weights has a kernel of its own: of the three ragged products of a training step, XLA has
no kernel for this one, and would multiply every pair with every expert.

The compiler cannot divide a sort among devices. On a mesh each device therefore computes the tokens of its own prompts
in one `shard_map`. `tensor` divides the units of each expert. Where `expert` divides the experts, a device computes
the tokens of all devices that share the experts with it, and only with the experts that it has.
"""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm
from jax.sharding import AbstractMesh, PartitionSpec

from grpo_jax.devices.mesh import prompt_axes, prompt_shards
from grpo_jax.devices.sharding import serving_spec
from grpo_jax.models.decoder import FeedForward, Shape, project, random_weight
from grpo_jax.models.remat import PRODUCT

TILE = (512, 1024, 1024)  # rows, outputs and inputs that the kernel of the weights' gradient holds at once


class Routing(NamedTuple):
    """The experts that the router would choose for each token, and its probability of every expert."""

    chosen_PGTe: Array
    probability_PGTE: Array


class MixtureOfExperts(nnx.Module):
    """Experts in place of a feed-forward block, with an expert that all tokens share if the shape has one."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs, platform: str):
        self.shape, self.platform = shape, platform
        if shape.experts is None:
            raise ValueError("A mixture needs experts; this shape has none.")
        D, E, F = shape.width, shape.experts.count, shape.experts.feedforward
        self.experts = shape.experts
        self.router_ED = random_weight(rngs, (E, D), D)
        self.gate_EFD = random_weight(rngs, (E, F, D), D)
        self.up_EFD = random_weight(rngs, (E, F, D), D)
        self.down_EDF = random_weight(rngs, (E, D, F), F)
        if shape.experts.shared is not None:
            self.shared = FeedForward(replace(shape, feedforward=shape.experts.shared), rngs, platform)
            self.shared_gate_1D = random_weight(rngs, (1, D), D)

    def __call__(self, x_PGTD: Array, given_PGTe: Array | None = None) -> tuple[Array, Routing]:
        """The output of the block, without the residual, and what the router says of each token.

        Experts that are given are used in place of those that it would choose, with the weights that it gives them.
        """
        dtype = x_PGTD.dtype
        logits_PGTE = project(x_PGTD, self.router_ED[...], 1, self.platform, jnp.float32)
        probability_PGTE = jax.nn.softmax(logits_PGTE, axis=-1)
        weight_PGTe, chosen_PGTe = jax.lax.top_k(probability_PGTE, self.experts.chosen)
        routing = Routing(chosen_PGTe, probability_PGTE)
        if given_PGTe is not None:
            chosen_PGTe = given_PGTe.astype(jnp.int32)
            weight_PGTe = jnp.take_along_axis(probability_PGTE, chosen_PGTe, axis=-1)
        if self.experts.normalized:
            weight_PGTe = weight_PGTe / jnp.sum(weight_PGTe, axis=-1, keepdims=True)
        weights = (weight[...].astype(dtype) for weight in (self.gate_EFD, self.up_EFD, self.down_EDF))
        output_PGTD = _on_mesh(x_PGTD, chosen_PGTe, weight_PGTe, *weights, self.platform)
        if self.experts.shared is None:
            return output_PGTD, routing
        gate_PGT1 = project(x_PGTD, self.shared_gate_1D[...], platform=self.platform)
        return output_PGTD + jax.nn.sigmoid(gate_PGT1) * self.shared(x_PGTD), routing


def usage(routing: Routing, valid_PGT: Array) -> tuple[Array, Array]:
    """How many of the valid tokens would go to each expert, and the sum of its probabilities over them."""
    E = routing.probability_PGTE.shape[-1]
    of_expert_PGTeE = routing.chosen_PGTe[..., None] == jnp.arange(E)[None, None, None, None]
    counts_E = jnp.sum(of_expert_PGTeE & valid_PGT[..., None, None], axis=(0, 1, 2, 3), dtype=jnp.float32)
    return counts_E, jnp.sum(routing.probability_PGTE * valid_PGT[..., None], axis=(0, 1, 2))


def recorded(routing: Routing) -> Array:
    """The experts of each token as a cache holds them."""
    return jnp.swapaxes(routing.chosen_PGTe, 2, 3).astype(jnp.int16)


def load_balance(counts_NE: Array, probability_NE: Array, tokens: Array) -> Array:
    """The load-balancing loss: E times the sum over experts of the fraction of tokens that go there and of the mean
    probability of it (Switch Transformer, arXiv:2101.03961, equation 4).

    As in transformers, fractions and probabilities are means over tokens and layers, and fractions add up to the number
    of experts of a token. So where all experts have as many tokens, the loss is that number.
    """
    N, E = counts_NE.shape
    number = N * jnp.maximum(tokens, 1)
    return E * jnp.sum(jnp.sum(counts_NE, axis=0) / number * (jnp.sum(probability_NE, axis=0) / number))


def _on_mesh(
    x_PGTD: Array,
    chosen_PGTe: Array,
    weight_PGTe: Array,
    gate_EFD: Array,
    up_EFD: Array,
    down_EDF: Array,
    platform: str,
) -> Array:
    """The weighted sum of the outputs of each token's experts, divided among the devices of the mesh, if there is one.

    An axis that does not divide is whole on all devices.
    """
    tokens, experts, mesh = (x_PGTD, chosen_PGTe, weight_PGTe), (gate_EFD, up_EFD, down_EDF), _mesh()
    if mesh is None:
        return _mixture(*tokens, *experts, platform).astype(x_PGTD.dtype)
    divided = x_PGTD.shape[0] % prompt_shards(mesh) == 0
    by_prompt = PartitionSpec(prompt_axes(mesh)) if divided else PartitionSpec()
    of_experts = [serving_spec(axes, a.shape, mesh) for axes, a in zip(("EFD", "EFD", "EDF"), experts, strict=True)]
    names = {name for axes in of_experts for name in axes if name is not None}
    on_device = partial(_on_device, platform=platform, divided=divided, names=frozenset(names))
    specs = (*(by_prompt for _ in tokens), *of_experts)
    on_devices = jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=by_prompt, check_vma=False)
    return on_devices(*tokens, *experts)


def _mesh() -> AbstractMesh | None:
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def _on_device(
    x_PGTD: Array,
    chosen_PGTe: Array,
    weight_PGTe: Array,
    gate_EFD: Array,
    up_EFD: Array,
    down_EDF: Array,
    platform: str,
    divided: bool,
    names: frozenset[str],
) -> Array:
    """The output for the tokens of one device. `names` are the mesh axes that divide the weights of experts, and
    `divided` says whether devices have different prompts.
    """
    tokens, first, dtype = (x_PGTD, chosen_PGTe, weight_PGTe), None, x_PGTD.dtype
    if "expert" in names:
        first = jax.lax.axis_index("expert") * len(gate_EFD)
        if divided:
            tokens = (jax.lax.all_gather(a, "expert", tiled=True) for a in tokens)
    output_PGTD = _mixture(*tokens, gate_EFD, up_EFD, down_EDF, platform, first)
    if "tensor" in names:
        output_PGTD = jax.lax.psum(output_PGTD, "tensor")
    if "expert" in names and divided:
        output_PGTD = jax.lax.psum_scatter(output_PGTD, "expert", tiled=True)
    elif "expert" in names:
        output_PGTD = jax.lax.psum(output_PGTD, "expert")
    return output_PGTD.astype(dtype)


def _mixture(
    x_PGTD: Array,
    chosen_PGTe: Array,
    weight_PGTe: Array,
    gate_EFD: Array,
    up_EFD: Array,
    down_EDF: Array,
    platform: str,
    first: Array | None = None,
) -> Array:
    """The float32 sum over those of each token's experts that are here: E of them, from `first` on; None: all are."""
    (E, _, D), chosen = gate_EFD.shape, chosen_PGTe.shape[-1]
    expert_X = chosen_PGTe.reshape(-1) - (0 if first is None else first)
    expert_X = jnp.where((expert_X >= 0) & (expert_X < E), expert_X, E)  # E: somewhere else, so behind all others
    order_X = jnp.argsort(expert_X)
    here_X1 = (expert_X[order_X] < E)[:, None]
    sizes_E = jnp.bincount(expert_X, length=E + 1)[:E].astype(jnp.int32)

    def product(x_XD: Array, weight_EFD: Array) -> Array:
        multiply = _tpu_product if platform == "tpu" else ragged_product
        return checkpoint_name(multiply(x_XD, weight_EFD, sizes_E), PRODUCT)

    x_XD = x_PGTD.reshape(-1, D)[order_X // chosen]
    # The rows behind the last group may hold anything, in gradients too.
    x_XD = x_XD if first is None else jnp.where(here_X1, x_XD, 0)
    units_XF = jax.nn.silu(product(x_XD, gate_EFD)) * product(x_XD, up_EFD)
    output_XD = product(units_XF, down_EDF)
    output_XD = output_XD if first is None else jnp.where(here_X1, output_XD, 0)
    output_XeD = output_XD[jnp.argsort(order_X)].reshape(-1, chosen, D).astype(jnp.float32)
    return jnp.sum(output_XeD * weight_PGTe.reshape(-1, chosen, 1), axis=1).reshape(x_PGTD.shape)


@jax.named_scope("products")
def ragged_product(x_XD: Array, weight_EFD: Array, sizes_E: Array) -> Array:
    """The rows of x times the transposed weight of their expert; `sizes_E` says how many rows each expert has."""
    return jax.lax.ragged_dot(x_XD, jnp.swapaxes(weight_EFD, 1, 2), sizes_E)


@jax.custom_vjp
def _tpu_product(x_XD: Array, weight_EFD: Array, sizes_E: Array) -> Array:
    """`ragged_product`, whose gradient of the weights is fast on a TPU."""
    return ragged_product(x_XD, weight_EFD, sizes_E)


def _tpu_product_forward(x_XD: Array, weight_EFD: Array, sizes_E: Array) -> tuple[Array, tuple[Array, ...]]:
    return ragged_product(x_XD, weight_EFD, sizes_E), (x_XD, weight_EFD, sizes_E)


def _tpu_product_backward(residuals: tuple[Array, ...], grad_XF: Array) -> tuple[Array, Array, None]:
    x_XD, weight_EFD, sizes_E = residuals
    return jax.lax.ragged_dot(grad_XF, weight_EFD, sizes_E), weight_gradient(x_XD, grad_XF, sizes_E), None


_tpu_product.defvjp(_tpu_product_forward, _tpu_product_backward)


@jax.named_scope("products")
def weight_gradient(x_XD: Array, grad_XF: Array, sizes_E: Array, interpret: bool = False) -> Array:
    """The gradient of each expert's weights from its rows, by a kernel for TPUs; rows of no expert count nothing."""
    rows = ((0, -len(x_XD) % TILE[0]), (0, 0))
    x_XD, grad_XF = jnp.pad(x_XD, rows), jnp.pad(grad_XF, rows)
    tile = (TILE[0], min(TILE[1], grad_XF.shape[1]), min(TILE[2], x_XD.shape[1]))
    return tgmm(grad_XF.T, x_XD, sizes_E, x_XD.dtype, tile, interpret=interpret)
