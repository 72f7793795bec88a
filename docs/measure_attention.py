"""Counts what a TPU executes for a head of attention, by the compiler's final bundles. No TPU is needed, but libtpu.

usage: python docs/measure_attention.py v5e-1 128 768,256 [768x1024x512 256x512x512s ...]

The arguments are a slice of one chip, the channels of a head, and the lengths of a response and of its prompt; then
blocks of queries, keys, and keys at once, with an s for two backward kernels instead of one. Without blocks it takes
those that the library chooses.
"""

import os
import re
import sys
import tempfile
from pathlib import Path

HEADS, KV_HEADS = 16, 8


def cycles(bundles: str) -> int:
    """Cycles of a kernel without stalls: the bundles of each loop times its trips."""
    loops = [[0, 1]]  # bundles so far, trips
    for line in bundles.splitlines():
        if not (bundle := re.match(r"\s*(?:0x[0-9a-f]+|0)\s+(LB)?[^:]*:", line)):
            continue
        if bundle[1]:
            loops.append([0, 0])
        loops[-1][0] += 1
        if "loop exit test" in line and len(loops) > 1:
            trips = re.search(r"totalorder %s\w+, (\d+) /\* loop exit test", line)
            loops[-1][1] = int(trips[1]) if trips else 1
        if len(loops) > 1 and loops[-1][1] and "sbr.rel" in line and "target" in line:
            count, trips = loops.pop()
            loops[-1][0] += count * trips
    return sum(count * max(trips, 1) for count, trips in loops)


def main(chip: str, channels: int, T: int, L: int, given: list[str], folder: Path) -> None:
    """Compiles attention with each of the blocks, and prints the cycles of a head."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
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
        files = [f for f in folder.glob("*splash*final_bundles.txt") if "schedule" not in f.name]
        ends = range(blocks.queries, padded(T, blocks.queries) + 1, blocks.queries)
        seen = sum(-(-(L + min(end, T)) // blocks.keys) for end in ends)
        share = seen / (len(ends) * padded(L + T, blocks.keys) // blocks.keys)  # of the blocks: others are not computed
        found = {kind: sum(cycles(f.read_text()) for f in files if f"_{kind}" in f.name) for kind in ("fwd", "d")}
        forward, backward = (round(count * share / HEADS) for count in found.values())
        print(f"{chip} {T} + {L}, {channels} channels, {each}: forward {forward:,}, backward {backward:,}")


if __name__ == "__main__":
    lengths = map(int, sys.argv[3].split(","))
    with tempfile.TemporaryDirectory() as temporary:
        main(sys.argv[1], int(sys.argv[2]), *lengths, sys.argv[4:], Path(temporary))
