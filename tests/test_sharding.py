"""Meshes: the order of devices in them, the sizes that a layout leaves out, and what is refused."""

import itertools
import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.commands.plan.case import find_policy
from grpo_jax.commands.plan.topology import find_slice
from grpo_jax.config import read
from grpo_jax.devices.mesh import Layout, check_hosts, host_mesh, hosts_of, own_mesh, prompt_shards
from grpo_jax.devices.placing import prompts_of_host
from grpo_jax.devices.sharding import (
    PROMPTS,
    check_experts,
    devices_per_group,
    even_vocabulary,
    fit,
    serving_shardings,
    weight_shardings,
)
from grpo_jax.structs import axes_of
from grpo_jax.training.overview import copy_bytes


@dataclass(frozen=True)
class Chip:
    """A stand-in for a TPU chip, with the attributes that a mesh reads."""

    id: int
    process_index: int
    coords: tuple[int, int, int]
    slice_index: int = 0
    platform: str = "tpu"

    def memory_stats(self) -> dict[str, int]:
        if self.process_index != jax.process_index():
            raise jax.errors.JaxRuntimeError("MemoryStats is only supported for addressable devices")
        return {"bytes_limit": 16}


def chips_of(slices: int = 1, wide: int = 4, high: int = 4) -> list[Chip]:
    """Chips in a plane, listed row by row; a host has two by two of them, so its chips are not next to each other."""
    positions = itertools.product(range(slices), range(high), range(wide))
    return [
        Chip(number, slice_index * 100 + (y // 2) * (wide // 2) + x // 2, (x, y, 0), slice_index)
        for number, (slice_index, y, x) in enumerate(positions)
    ]


def hosts_of_shards(mesh) -> list[set[int]]:
    return [{chip.process_index for chip in row} for row in mesh.devices.reshape(-1, mesh.shape["tensor"])]


@pytest.mark.parametrize("tensor", [1, 2, 4])
@pytest.mark.parametrize("wide", [4, 8])
def test_chips_that_compute_a_layer_together_are_neighbours_on_one_host(wide, tensor):
    mesh = Layout(data=1, fsdp=-1, tensor=tensor).mesh(chips_of(wide=wide, high=wide))
    check_hosts(mesh)
    for row in mesh.devices.reshape(-1, tensor):
        apart = [sum(abs(a - b) for a, b in zip(one.coords, other.coords, strict=True)) for one in row for other in row]
        assert max(apart) <= tensor / 2
    hosts = [min(row) for row in hosts_of_shards(mesh)]
    assert hosts == sorted(hosts)  # a host's shards of the prompts are next to each other


def test_a_tensor_size_above_the_chips_of_a_host_is_refused():
    mesh = Layout(data=1, fsdp=2, tensor=8).mesh(chips_of())
    with pytest.raises(ValueError, match=r"must divide the 4 devices of a host; got 8. Choose one of 1, 2, 4"):
        check_hosts(mesh)


def test_the_mesh_of_a_host_has_its_devices_in_order_and_the_tensor_size_of_the_whole():
    whole = Layout(data=1, fsdp=8, tensor=2).mesh(chips_of())
    own = whole.devices.reshape(-1)[4:8]
    assert {chip.process_index for chip in own} == {1}
    mesh = host_mesh(whole, own)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "tensor": 2} and list(mesh.devices.flat) == list(own)


def test_what_a_host_has_for_itself_is_divided_over_all_of_its_devices():
    whole = Layout(data=1, fsdp=8, tensor=2).mesh(chips_of())
    mesh = own_mesh(whole, 1)
    assert dict(mesh.shape) == {"data": 1, "fsdp": 2, "tensor": 2}
    assert {chip.process_index for chip in mesh.devices.flat} == {1}
    assert own_mesh(mesh, 1) is mesh


def test_devices_that_share_experts_are_on_one_host_and_each_has_prompts_of_its_own():
    whole = Layout(data=1, fsdp=4, tensor=2, expert=2).mesh(chips_of())
    check_hosts(whole)
    assert prompt_shards(whole) == 8
    mesh = host_mesh(whole, whole.devices.reshape(-1)[4:8])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "expert": 2, "tensor": 2}
    with pytest.raises(ValueError, match=r"mesh.expert x mesh.tensor must divide the 4 devices of a host; got 8"):
        check_hosts(Layout(data=1, tensor=2, expert=4).mesh(chips_of()))
    with pytest.raises(ValueError, match=r"data, fsdp, expert, tensor = \(1, 3, 2, 2\) does not cover 16"):
        Layout(1, 3, 2, 2).mesh(chips_of())


def test_arrays_are_divided_by_the_axes_that_the_mesh_has():
    plain, mesh = Layout(1, 4, 2).mesh(), Layout(1, 2, 2, 2).mesh()
    names = ("gate_FD", "gate_EFD", "down_EDF")
    tree = {name: jax.ShapeDtypeStruct((3, *(8 for _ in axes_of(name))), "float32") for name in names}
    found = [{name: tuple(s.spec)[1:] for name, s in weight_shardings(tree, of).items()} for of in (plain, mesh)]
    both = ("fsdp", "expert")
    assert found == [
        {"gate_FD": ("tensor", "fsdp"), "gate_EFD": (None, "tensor", "fsdp"), "down_EDF": (None, "fsdp", "tensor")},
        {
            "gate_FD": ("tensor", both),
            "gate_EFD": ("expert", "tensor", "fsdp"),
            "down_EDF": ("expert", "fsdp", "tensor"),
        },
    ]
    assert tuple(serving_shardings(tree, mesh)["down_EDF"].spec) == (None, "expert", None, "tensor")
    assert [tuple(fit(PROMPTS, (8,), of).spec) for of in (plain, mesh)] == [(("data", "fsdp"),), (("data", *both),)]


@pytest.mark.parametrize(
    ("experts", "words"),
    [(60, r"it is 8, and the model has 60 experts: choose one of 1, 2, 3, 4"), (None, "has no experts: leave it out")],
)
def test_an_expert_axis_that_does_not_divide_the_experts_is_refused(experts, words):
    tree = {"gate_FD": jax.ShapeDtypeStruct((2, 8, 8), "float32")}
    tree |= {} if experts is None else {"gate_EFD": jax.ShapeDtypeStruct((2, experts, 8, 8), "float32")}
    with pytest.raises(ValueError, match=words):
        check_experts(tree, Layout(1, 1, 1, 8).mesh())
    check_experts(tree, Layout(1, 8, 1).mesh())


def test_each_slice_has_a_copy_of_the_weights():
    mesh = Layout().mesh(chips_of(slices=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 16, "tensor": 1}
    assert [{chip.slice_index for chip in copy.flat} for copy in mesh.devices] == [{0}, {1}]


@pytest.mark.parametrize(
    ("layout", "copy", "sizes"),
    [
        (Layout(), 5, (1, 16, 1)),  # a third of 16 bytes holds the copy
        (Layout(), 6, (1, 8, 2)),
        (Layout(), 11, (1, 4, 4)),
        (Layout(), 99, (1, 4, 4)),  # no more than a host has
        (Layout(data=1, fsdp=16), 99, (1, 16, 1)),
        (Layout(fsdp=8), 0, (2, 8, 1)),
        (Layout(fsdp=8), 6, (1, 8, 2)),
        (Layout(fsdp=8, tensor=1), 6, (2, 8, 1)),
        (Layout(fsdp=-1), 6, (1, 8, 2)),
        (Layout(data=-1), 6, (8, 1, 2)),
        (Layout(data=-1, fsdp=4), 6, (2, 4, 2)),
        (Layout(tensor=4), 0, (1, 4, 4)),
        (Layout(data=16), 6, (16, 1, 1)),
        (Layout(expert=2), 0, (1, 8, 2, 1)),  # data, fsdp, expert, tensor
        (Layout(expert=2), 11, (1, 4, 2, 2)),
        (Layout(expert=4), 99, (1, 4, 4, 1)),
        (Layout(expert=-1), 0, (1, 1, 16, 1)),
        (Layout(fsdp=4, expert=2), 0, (2, 4, 2, 1)),
        (Layout(data=1, fsdp=4, expert=2), 0, (1, 4, 2, 2)),
        (Layout(data=1, fsdp=4, expert=-1), 0, (1, 4, 4, 1)),
    ],
)
def test_sizes_that_a_layout_leaves_out_are_chosen_to_cover_the_devices(layout, copy, sizes):
    assert tuple(layout.mesh(chips_of(), copy_bytes=copy).shape.values()) == sizes


@pytest.mark.parametrize(
    ("sizes", "nearest"),
    [((3, 2, 2), "(4, 2, 2)"), ((1, 16, 2), "(1, 8, 2)"), ((1, 5, -1), "(1, 4, 4)"), ((64, 1, 1), "(16, 1, 1)")],
)
def test_a_mesh_that_does_not_cover_the_devices_is_refused_with_the_nearest_that_does(sizes, nearest):
    with pytest.raises(ValueError, match=re.escape(f"make the product 16, as {nearest} does")):
        Layout(*sizes).mesh(chips_of())


def test_a_group_stays_on_one_host():
    mesh = Layout(data=1, fsdp=16).mesh(chips_of())
    assert hosts_of(mesh) == 4
    assert [devices_per_group(prompts, 8, mesh) for prompts in (16, 8, 4)] == [1, 2, 4]
    with pytest.raises(ValueError, match=r"must be a multiple of the 4 hosts; got 6\. Choose 4 or 8 prompts"):
        devices_per_group(6, 8, mesh)
    with pytest.raises(ValueError, match=r"got 2\. Choose 4 prompts"):
        devices_per_group(2, 16, mesh)


def test_a_process_that_controls_every_host_has_all_prompts():
    assert jax.process_count() == 1
    assert prompts_of_host(Layout(data=1, fsdp=16).mesh(chips_of()), 32).tolist() == list(range(32))


def test_the_mesh_of_every_config_covers_its_slice(tpu_config):
    pytest.importorskip("libtpu", reason="libtpu is large, and only tests of TPUs need it")
    path, topology = tpu_config
    found, settings = find_slice(topology), read(path, ())
    size = copy_bytes(find_policy(settings.model)[1])
    mesh = settings.mesh.build().mesh(found.devices(), size, found.chip.memory)
    assert (mesh.size, hosts_of(mesh)) == (found.chips, found.hosts)
    check_hosts(mesh)


def test_a_vocabulary_that_tensor_does_not_divide_gets_rows_of_zeros_in_the_copy_for_sampling():
    mesh = Layout(data=1, fsdp=4, tensor=2).mesh()
    params = {"embed_VD": jnp.ones((49_159, 16)), "layers": {"up_FD": jnp.ones((3, 10, 16))}}
    even = even_vocabulary(params, mesh)
    assert even["layers"]["up_FD"] is params["layers"]["up_FD"]
    np.testing.assert_array_equal(even["embed_VD"][:-1], params["embed_VD"])
    np.testing.assert_array_equal(even["embed_VD"][-1], 0.0)
    assert serving_shardings(even, mesh)["embed_VD"].shard_shape(even["embed_VD"].shape) == (24_580, 16)
    assert weight_shardings(params, mesh)["embed_VD"].shard_shape((49_159, 16)) == (49_159, 4)
    for unchanged in (None, Layout(data=1, fsdp=8, tensor=1).mesh()):
        assert even_vocabulary(params, unchanged)["embed_VD"] is params["embed_VD"]
