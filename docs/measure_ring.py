"""Counts what the decoding kernel executes on a TPU, beside the bytes that it moves. No TPU is needed, but libtpu.

usage: python docs/measure_ring.py v5e-1 2x6x128 [1x4x256 ...]

The arguments are a slice of one chip, and heads of keys, queries of each and channels. Counted are final bundles of the
compiler for 64 rows with lengths as in docs/measure_decoding.py (log-normal, a mean of 300 of at most 1,024 tokens).
"""

import os
import sys
import tempfile

import numpy as np

P, G, S, TILE = 8, 8, 1024, 16


def main(chip: str, shapes: list[str], folder: str) -> None:
    """Compiles the kernel for each shape, and prints its time by bundles over the time of its bytes."""
    from grpo_jax.commands.plan.bundles import kernels, options

    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["LIBTPU_INIT_ARGS"] = options(folder)
    import jax
    import jax.numpy as jnp

    from grpo_jax.commands.plan.lengths import Lengths
    from grpo_jax.commands.plan.topology import find_slice
    from grpo_jax.models.attention import AT_ONCE, LANES, KeyValues, attend_ring, block_size, live_positions

    jax.config.update("jax_enable_compilation_cache", False)
    found = find_slice(chip)
    device, ages = jax.sharding.SingleDeviceSharding(found.devices()[0]), []
    for length in Lengths(300.0, 0.5).draw(P, G, S).reshape(-1):
        ages.append(np.arange(2, length + 1))

    def array(*shape: int, dtype: object = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=device)

    def attend(query, new, cached, count_PG, index):
        return attend_ring(query, new, cached, live_positions(count_PG, index, cached.key), index, None)

    for shape in shapes:
        K, Q, C = map(int, shape.split("x"))
        lanes = max(C, LANES)
        new, cached = array(P, G, K, 1, C), array(P, G, K * C // lanes, S, lanes)
        numbers = array(P, G, dtype=jnp.int32), array(dtype=jnp.int32)
        inputs = array(P, G, K, Q, C), KeyValues(new, new), KeyValues(cached, cached), *numbers
        jax.jit(attend, donate_argnums=2).lower(*inputs).compile()
        kernel = next(kernel for name, kernel in kernels(folder).items() if name.startswith("attend_ring"))
        block = block_size(K * C // lanes, S, lanes)
        blocks = sum(np.sum(-(-age // block)) for age in ages)
        cores = kernel.open_bundles * blocks / AT_ONCE / found.chip.clock
        moved = sum(np.sum(-(-age // TILE) * TILE) for age in ages) * 2 * K * C * 2 / found.chip.bandwidth
        print(f"| {chip} | {shape} | {block} | {kernel.open_bundles / AT_ONCE:.0f} | {cores / moved:.2f} |")
        for file in os.scandir(folder):
            os.remove(file.path)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(sys.argv[1], sys.argv[2:], temporary)
