"""`program` gives what `jax.jit` gives, and lets the function find the mesh of its arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from grpo_jax.devices import programs
from grpo_jax.devices.mesh import Layout, mesh_of
from grpo_jax.devices.programs import program

MESH = Layout(data=1, fsdp=8, tensor=1).mesh()
BY_FSDP = NamedSharding(MESH, PartitionSpec("fsdp"))


def laid_out(size: int = 16) -> jax.Array:
    return jax.device_put(jnp.arange(float(size)), BY_FSDP)


def scaled(x_D, factor: float, seen: list | None = None):
    """Scales an array, and notes the mesh that it finds while it is traced."""
    if seen is not None:
        seen.append(dict(jax.sharding.get_abstract_mesh().shape))
    return {"scaled": x_D * factor, "total": x_D.sum()}


class Seen(list):
    """A list that may be a static argument."""

    __hash__ = object.__hash__


def test_a_program_returns_what_jit_returns_in_the_same_layout():
    expected = jax.jit(scaled, static_argnames="factor")(laid_out(), factor=3.0)
    found = program(static_argnames="factor")(scaled)(laid_out(), factor=3.0)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert jax.tree.map(lambda a: a.sharding, found) == jax.tree.map(lambda a: a.sharding, expected)


def test_a_program_keeps_name_and_docstring():
    wrapped = program(scaled)
    assert (wrapped.__name__, wrapped.__doc__, wrapped.__wrapped__) == ("scaled", scaled.__doc__, scaled)


def test_a_program_finds_the_mesh_of_its_arguments_wherever_they_stand():
    run = program(static_argnames="seen")(scaled)
    first, second = Seen(), Seen()
    run(laid_out(), 2.0, seen=first)
    run(factor=laid_out(), x_D=np.ones(16), seen=second)
    assert first == second == [dict(MESH.shape)]
    assert jax.sharding.get_abstract_mesh().empty  # the call has left no mesh behind


def test_a_program_on_one_device_sees_no_mesh():
    seen = Seen()
    program(static_argnames="seen")(scaled)(jnp.ones(4), 2.0, seen=seen)
    assert seen == [{}]


def test_a_program_keeps_the_mesh_of_the_caller_where_its_arguments_have_none():
    seen = Seen()
    with jax.set_mesh(MESH):
        program(static_argnames="seen")(scaled)(np.ones(16), 2.0, seen=seen)
    assert seen == [dict(MESH.shape)]


def test_a_program_compiles_once_for_equal_shapes_and_layouts():
    run = program(static_argnames="factor")(lambda x_D, factor: x_D * factor)
    for factor in (2.0, 2.0, 3.0):
        run(laid_out(), factor=factor)
    assert run._cache_size() == 2


def test_a_program_is_traced_inside_of_another_program_under_the_mesh_of_the_outer_one():
    seen = Seen()
    inner = program(static_argnames="seen")(scaled)
    constant = laid_out()

    @program
    def outer(x_D):
        return inner(x_D, 2.0, seen=seen)["scaled"] + inner(constant, 3.0, seen=seen)["scaled"]

    np.testing.assert_array_equal(outer(laid_out()), 5 * np.arange(16.0))
    assert seen and all(found == dict(MESH.shape) for found in seen)


def test_a_program_may_be_transformed():
    total = program(lambda x_D: jnp.sum(x_D**2))
    np.testing.assert_array_equal(jax.grad(total)(laid_out()), 2 * np.arange(16.0))
    np.testing.assert_array_equal(jax.vmap(total)(laid_out()[:, None]), np.arange(16.0) ** 2)
    assert jax.jit(total)(laid_out()) == np.sum(np.arange(16.0) ** 2)
    assert jax.eval_shape(total, laid_out()).shape == ()


def test_a_program_donates_what_it_is_told_to():
    add = program(donate_argnames="total_D")(lambda total_D, x_D: total_D + x_D)
    total_D, x_D = laid_out(), laid_out()
    np.testing.assert_array_equal(add(total_D, x_D), 2 * np.arange(16.0))
    assert total_D.is_deleted() and not x_D.is_deleted()


def test_a_program_is_lowered_and_its_shapes_are_found_under_the_mesh_of_the_shapes():
    shape, lowered, found = jax.ShapeDtypeStruct((16,), jnp.float32, sharding=BY_FSDP), Seen(), Seen()
    run = program(static_argnames="seen")(scaled)
    assert "16xf32" in run.lower(shape, 2.0, seen=lowered).as_text()
    assert run.eval_shape(shape, 2.0, seen=found)["scaled"].shape == (16,)
    assert lowered == found == [dict(MESH.shape)]


@pytest.mark.parametrize(("processes", "waits"), [(1, False), (2, True)])
def test_a_program_waits_for_its_result_where_several_processes_run_on_cpus(monkeypatch, processes, waits):
    waited = []
    run = program(scaled)
    run(laid_out(), 2.0)
    monkeypatch.setattr(programs.jax, "process_count", lambda: processes)
    monkeypatch.setattr(programs.jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(programs.jax, "block_until_ready", waited.append)
    result = run(laid_out(), 2.0)
    assert bool(waited) == waits and all(tree is result for tree in waited)


def test_the_mesh_of_a_tree_is_that_of_its_first_array_on_several_devices():
    alone = jax.device_put(jnp.ones(2), jax.devices()[0])
    assert mesh_of({"a": np.ones(2), "b": alone, "c": laid_out()}) == MESH
    assert mesh_of({"a": alone}) is None and mesh_of({}) is None


@pytest.mark.faults
def test_programs_are_forgotten_once_half_of_the_memory_maps_are_used(monkeypatch):
    doubled = program(lambda x_D: x_D * 2)
    doubled(jnp.ones(3))
    assert doubled._cache_size() == 1
    monkeypatch.setattr(programs, "memory_maps", lambda: 500)
    monkeypatch.setattr(programs, "most_memory_maps", lambda: 1000)
    assert not programs.forget_if_many()
    assert doubled._cache_size() == 1
    monkeypatch.setattr(programs, "memory_maps", lambda: 501)
    assert programs.forget_if_many()
    assert doubled._cache_size() == 0
    np.testing.assert_array_equal(doubled(jnp.ones(3)), 2 * np.ones(3))


@pytest.mark.faults
def test_the_memory_maps_of_this_process_are_counted_below_what_linux_allows():
    assert 0 < programs.memory_maps() < programs.most_memory_maps()
