"""The weights that a layer computes with on a TPU are those that are stored, cast, and have the same gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from grpo_jax.devices.mesh import Layout
from grpo_jax.devices.sharding import serving_shardings, weight_shardings, weight_spec
from grpo_jax.models import tiny
from grpo_jax.models.layer_weights import gathered, ready
from grpo_jax.models.lora import adapted_policy, joined, read_lora

MODEL = tiny()
FSDP = partial(Layout, data=1, fsdp=8, tensor=1)


def a_layer(policy):
    """The weights of the first of some random layers."""
    return jax.tree.map(lambda a: a[0], policy.init(jax.random.key(0))["layers"])


def plain(dtype, weights):
    """Matrices cast, and vectors as they are."""
    return jax.tree.map(lambda a: a.astype(dtype) if a.ndim > 1 else a, weights)


def gradient_of(prepare, weights):
    """The gradient of a function in which every weight is rounded to bfloat16 and counts differently."""

    def value(weights):
        leaves = jax.tree.leaves(prepare(jnp.bfloat16, weights))
        return sum(jnp.sum(jnp.sin(a.astype(jnp.float32) * (n + 1))) for n, a in enumerate(leaves))

    return jax.jit(jax.grad(value))(weights)


def same(found, expected):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_the_weights_of_a_layer_and_their_gradients_are_those_of_the_cast_alone():
    weights = a_layer(MODEL.policy)
    same(jax.jit(partial(ready, jnp.bfloat16))(weights), plain(jnp.bfloat16, weights))
    same(gradient_of(ready, weights), gradient_of(plain, weights))


@pytest.mark.parametrize("layout", [FSDP(), Layout(2, 2, 2)], ids=["fsdp", "all"])
def test_every_device_has_the_weights_it_multiplies_with_and_its_part_of_their_gradients(layout):
    weights, mesh = a_layer(MODEL.policy), layout.mesh()
    divided, whole = weight_shardings(weights, mesh), serving_shardings(weights, mesh)
    with jax.set_mesh(mesh):
        placed = jax.device_put(weights, divided)
        found, gradient = jax.jit(partial(ready, jnp.bfloat16))(placed), gradient_of(ready, placed)
    same(found, plain(jnp.bfloat16, weights))
    same(gradient, gradient_of(plain, weights))
    for a, sharding, grad, own in zip(*map(jax.tree.leaves, (found, whole, gradient, divided)), strict=True):
        assert a.sharding.is_equivalent_to(sharding, a.ndim)
        assert grad.sharding.is_equivalent_to(own, grad.ndim)


@pytest.mark.parametrize("letters", ["EFD", "EDF", "HSD", "DHS"])
def test_a_gradient_is_the_product_of_all_devices_divided_as_its_weight(letters):
    mesh = Layout(data=1, fsdp=2, expert=2, tensor=2).mesh()
    rng = np.random.default_rng(0)
    x_XA, y_XB = (jnp.asarray(rng.normal(size=(16, n)), jnp.float32) for n in (4 * 8, 16))
    spec = weight_spec(letters, (4, 8, 16), mesh)

    def value(weight, x_XA, y_XB):
        whole_AB = gathered(letters, weight).reshape(x_XA.shape[1], y_XB.shape[1])
        return jnp.sum((x_XA @ whole_AB) * y_XB)

    with jax.set_mesh(mesh):
        rows = [jax.device_put(a, NamedSharding(mesh, PartitionSpec(("fsdp", "expert")))) for a in (x_XA, y_XB)]
        weight = jax.device_put(jnp.zeros((4, 8, 16)), NamedSharding(mesh, spec))
        gradient = jax.jit(jax.grad(value))(weight, *rows)
    assert gradient.sharding.is_equivalent_to(NamedSharding(mesh, spec), 3)
    expected = (np.asarray(x_XA).T @ np.asarray(y_XB)).reshape(4, 8, 16)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
def test_the_parts_of_an_adapted_weight_are_whole_and_have_the_same_numbers(int8):
    settings = read_lora({"rank": 2})
    policy, mesh = adapted_policy(MODEL.policy, settings, int8), FSDP().mesh()
    params = jax.jit(policy.init, out_shardings=weight_shardings(policy.shapes, mesh))(jax.random.key(0))

    def both(params):
        weights = jax.tree.map(lambda a: a[0], joined(params, settings.factor)["layers"])
        return weights, ready(jnp.float32, weights)

    with jax.set_mesh(mesh):
        weights, found = jax.jit(both)(params)
    same(found, weights)
    assert all(a.is_fully_replicated for a in jax.tree.leaves(found))
