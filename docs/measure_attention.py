"""Counts what a TPU executes for a head of attention, by the compiler's final bundles. No TPU is needed, but libtpu.

usage: python docs/measure_attention.py v5e-1 128 768,256 [768x1024x512 256x512x512s ...]

The arguments are a slice of one chip, the channels of a head, and the lengths of a response and of its prompt; then
blocks of queries, keys, and keys at once, with an s for two backward kernels instead of one. Without blocks it takes
those that the library chooses.
"""

import os
import sys
import tempfile
from pathlib import Path

HEADS, KV_HEADS = 16, 8


def main(chip: str, channels: int, T: int, L: int, given: list[str], folder: Path) -> None:
    """Compiles attention with each of the blocks, and prints the cycles of a head."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    from grpo_jax.commands.plan.bundles import kernels, options

    os.environ["LIBTPU_INIT_ARGS"] = options(folder)
    import jax
    import jax.numpy as jnp

    from grpo_jax.commands.plan.topology import find_slice
    from grpo_jax.models.attention import KeyValues, Scope, fused
    from grpo_jax.models.attention.blocks import Blocks, choose_blocks, padded

    jax.config.update("jax_enable_compilation_cache", False)
    device = jax.sharding.SingleDeviceSharding(find_slice(chip).devices()[0])

    def array(*shape: int, dtype: object = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=device)

    def attend(query, key, value, prompt_key, prompt_value):
        scope = Scope(jnp.zeros((1, 1, T), jnp.int32), jnp.ones((1, 1, T), bool), jnp.ones((1, L), bool))
        prefix = KeyValues(prompt_key, prompt_value)
        return fused.splash_rows(query, KeyValues(key, value), scope, prefix, None, None).astype(jnp.float32).sum()

    own, prompt = array(1, 1, KV_HEADS, T, channels), array(1, KV_HEADS, L, channels)
    chosen, choose = choose_blocks(T, L, channels), Blocks.fused
    for each in given or ["x".join(map(str, chosen))]:
        blocks = Blocks(*map(int, each.rstrip("s").split("x")))
        fused.choose_blocks = lambda *_, blocks=blocks: blocks
        Blocks.fused = (lambda blocks, S: False) if each.endswith("s") else choose
        for file in folder.glob("*"):
            file.unlink()
        gradient = jax.jit(jax.grad(attend, (0, 1, 2, 3, 4)))
        gradient.lower(array(1, 1, HEADS, T, channels), own, own, prompt, prompt).compile()
        bundles = {name: kernel.bundles for name, kernel in kernels(folder).items() if "splash" in name}
        ends = range(blocks.queries, padded(T, blocks.queries) + 1, blocks.queries)
        seen = sum(-(-(L + min(end, T)) // blocks.keys) for end in ends)
        share = seen / (len(ends) * padded(L + T, blocks.keys) // blocks.keys)  # of the blocks: others are not computed
        found = {kind: sum(n for name, n in bundles.items() if f"_{kind}" in name) for kind in ("fwd", "d")}
        forward, backward = (round(count * share / HEADS) for count in found.values())
        print(f"{chip} {T} + {L}, {channels} channels, {each}: forward {forward:,}, backward {backward:,}")


if __name__ == "__main__":
    lengths = map(int, sys.argv[3].split(","))
    with tempfile.TemporaryDirectory() as temporary:
        main(sys.argv[1], int(sys.argv[2]), *lengths, sys.argv[4:], Path(temporary))
