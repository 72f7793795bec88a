"""Jitted functions that know the mesh of their arguments: `program` is `jax.jit` for a mesh of several devices."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial, update_wrapper
from typing import Any, Generic, ParamSpec, TypeVar, overload

import jax
from jax._src.core import trace_state_clean  # what jax.set_mesh itself asks; there is no public name for it

from grpo_jax.devices.mesh import mesh_of
from grpo_jax.devices.process import memory_maps, most_memory_maps

Inputs = ParamSpec("Inputs")
Output = TypeVar("Output")


class Program(Generic[Inputs, Output]):
    """A jitted function, called under the mesh of its arguments.

    Code inside that divides its work by hand, such as kernels, finds that mesh by `jax.sharding.get_abstract_mesh`.
    While another function is traced, this is the jitted function alone, and the mesh is that of the outer program.
    In multi-process CPU runs a call waits for its result: two programs in flight can deadlock in their collectives.
    """

    def __init__(self, function: Callable[Inputs, Output], jitted: Any) -> None:
        self._jitted = jitted
        update_wrapper(self, function)

    def __call__(self, *args: Inputs.args, **kwargs: Inputs.kwargs) -> Output:
        if not trace_state_clean():
            return self._jitted(*args, **kwargs)
        with _under_mesh(args, kwargs):
            result = self._jitted(*args, **kwargs)
        if jax.process_count() > 1 and jax.default_backend() == "cpu":
            jax.block_until_ready(result)
        return result

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """The program for such arguments, not yet compiled; they may be shapes with shardings."""
        with _under_mesh(args, kwargs):
            return self._jitted.lower(*args, **kwargs)

    def eval_shape(self, *args: Any, **kwargs: Any) -> Any:
        """The shapes and dtypes of the result, without shardings; the arguments may be shapes with shardings."""
        with _under_mesh(args, kwargs):
            return self._jitted.eval_shape(*args, **kwargs)

    def _cache_size(self) -> int:
        return self._jitted._cache_size()


@overload
def program(function: Callable[Inputs, Output], /) -> Program[Inputs, Output]: ...


@overload
def program(
    *, static_argnames: str | Sequence[str] = (), donate_argnames: str | Sequence[str] = ()
) -> Callable[[Callable[Inputs, Output]], Program[Inputs, Output]]: ...


def program(
    function: Callable[..., Any] | None = None,
    /,
    *,
    static_argnames: str | Sequence[str] = (),
    donate_argnames: str | Sequence[str] = (),
) -> Any:
    """Jits a function, as `jax.jit` does, and calls it under the mesh of its arguments."""
    if function is None:
        return partial(program, static_argnames=static_argnames, donate_argnames=donate_argnames)
    return Program(function, jax.jit(function, static_argnames=static_argnames, donate_argnames=donate_argnames))


def forget_if_many() -> bool:
    """Forgets all compiled programs if they hold half of the memory maps that a process may have; whether it did.

    A program for CPUs holds some of them for as long as JAX keeps it, and JAX keeps it for as long as the process runs.
    """
    many = memory_maps() > most_memory_maps() // 2
    if many:
        jax.clear_caches()
    return many


def _under_mesh(args: tuple[Any, ...], kwargs: dict[str, Any]) -> AbstractContextManager:
    mesh = mesh_of((args, kwargs)) if trace_state_clean() else None
    return nullcontext() if mesh is None else jax.set_mesh(mesh)
