"""Decoding attention on a TPU, which reads of each row's ring buffer only the blocks that the row uses.

One Pallas kernel computes scores, softmax and values of one token of each row, and writes the token's keys and values.
The caches stay in the chip's main memory. The blocks of all rows are one list, of which each step of a loop takes
`AT_ONCE`, so that their computations overlap; while it computes some, the next are copied to the chip's own memory.
Rows that have ended have no block in the list. A block is read in whole tiles, from the first position in use to the
last. Where these are is computed outside of the kernel, once for all layers, and a step waits for all its copies at
once: else the scalar unit, which starts and awaits copies, takes longest.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from grpo_jax.devices.mesh import prompt_axes, prompt_shards
from grpo_jax.distribution import EXCLUDED
from grpo_jax.models.attention.formula import KeyValues
from grpo_jax.models.attention.parts import Part

KERNEL = "attend_ring"  # its name in a compiled program
BLOCK = 128  # positions; a ring buffer is a multiple of it
SEVERAL = 2  # of these are one block of the kernel if there are few heads: a block costs time beside its bytes
FEW = 512  # lanes of all heads of a position
LANES = 128
AT_ONCE = 4  # blocks
TILES = {2: 16, 4: 8}  # positions in a tile, by the bytes of a number
ROW_BITS = 8  # an entry of the list of blocks is a row and, in so many bits, how many blocks ago
NEW_BITS = 4  # an entry of the list of steps is its tiles to read and, in so many bits, its tiles to write before
SIZE_BITS = 6  # an entry of the list of spans is where its tiles begin and, in so many bits, how many there are
VMEM_BYTES = 48 * 2**20  # for all that the kernel keeps on the chip

Number = Array | int


class Live(NamedTuple):
    """What is read of the ring buffers: how many positions of each row `[P, G]` up to the present one, none of rows
    that have ended; the list of blocks; the tiles in use of each; and for each step of the kernel, how many tiles it
    reads and how many new ones the step before has written. Lists have a row for each shard of the prompts.
    """

    counts: Array
    blocks: Array
    spans: Array
    steps: Array
    lengths: Array


def heads_side_by_side(K: int, C: int) -> int:
    """How many heads of C channels the cache keeps in one row of lanes; 0 if the kernel takes no such heads."""
    if C % LANES == 0:
        return 1
    return 2 if 2 * C == LANES and K % 2 == 0 else 0


def takes(shape: tuple[int, ...], channels: int, dtype: DTypeLike, rows: int, heads: int) -> bool:
    """Whether the kernel takes a cache of this shape `[P, G, K, S, C]` and type, with so many rows and query heads on
    each device.
    """
    (K, S, C), size = shape[2:], jnp.dtype(dtype).itemsize
    if S % BLOCK or S // BLOCK >= 2**ROW_BITS or C % LANES or C not in (channels, 2 * channels) or size not in TILES:
        return False
    buffers = 2 * 2 * AT_ONCE * K * block_size(K, S, C) * C * size
    return buffers + rows * C * (4 * heads + size * (heads + 2 * max(K, 8))) < VMEM_BYTES - 8 * 2**20


def block_size(K: int, S: int, C: int) -> int:
    """Positions of a block of ring buffers of S positions, with K heads of C channels on each device."""
    return SEVERAL * BLOCK if K * C <= FEW and S % (SEVERAL * BLOCK) == 0 else BLOCK


def live_positions(count_PG: Array, index: Array, cached: Array) -> Live:
    """The blocks of ring buffers `[P, G, K, S, C]`, of which each row uses so many up to the position `index`."""
    shards, heads = mesh_parts(len(count_PG), cached.shape[2])
    K, S, C = cached.shape[2:]
    size, tile = block_size(K // heads, S, C), TILES[cached.dtype.itemsize]
    lists = jax.vmap(partial(_blocks, index=index, S=S, size=size, tile=tile))(count_PG.reshape(shards, -1))
    return Live(count_PG, *lists)


def _blocks(counts: Array, index: Array, S: int, size: int, tile: int) -> tuple[Array, Array, Array, Array]:
    """The blocks of each row, the newest first; their tiles; what each step reads and wrote; and how many blocks."""
    most = (-(-len(counts) * (S // size) // AT_ONCE) + 1) * AT_ONCE  # the loop reads ahead
    inside, n = index % size, jnp.arange(most)
    used = jnp.minimum((counts + 2 * (size - 1) - inside) // size, S // size)
    used = jnp.where(counts > 0, used, 0)
    end = jnp.cumsum(used)
    row = jnp.repeat(jnp.arange(len(counts)), used, total_repeat_length=most)
    ago, valid = n - (end - used)[row], n < end[-1]
    low = jnp.maximum(inside + ago * size - counts[row] + 1, 0)
    high = jnp.where(ago == 0, inside + 1, size)
    shared = (ago == 0) & (counts[row] > S - size + inside + 1)  # the row's oldest are in the block of its newest
    low, high = jnp.where(shared, 0, low // tile), jnp.where(shared, size // tile, -(-high // tile))
    begin = (index // size - ago) % (S // size) * (size // tile) + low
    begin, tiles = jnp.where(valid, begin, 0), jnp.where(valid, high - low, 1)
    newest = jnp.pad(valid & (ago == 0), (AT_ONCE, 0))[:most]
    steps = _sums(tiles) << NEW_BITS | _sums(newest)
    blocks, spans = row << ROW_BITS | jnp.minimum(ago, 2**ROW_BITS - 1), begin << SIZE_BITS | tiles
    return blocks.astype(jnp.int32), spans.astype(jnp.int32), steps.astype(jnp.int32), end[-1]


def _sums(a: Array) -> Array:
    return jnp.sum(a.reshape(-1, AT_ONCE), axis=1, dtype=jnp.int32)


def attend_ring(
    query_PGKQC: Array, new: KeyValues, cached: KeyValues, live: Live, index: Array, softcap: float | None
) -> tuple[Part, KeyValues]:
    """Attention of one token of each row to its cache and to itself, and the cache with its keys and values in it.

    Queries are multiplied by C ** -0.5. Where two heads are side by side, each query has zeros beside it, and of what
    it reads its own half is kept.
    """
    (P, G, K, Q, C), lanes = query_PGKQC.shape, cached.key.shape[4]
    pairs = lanes // C if C < lanes else 1
    query = _spread(query_PGKQC, pairs).reshape(P, G, K * Q, lanes)
    new_key, new_value = (a.reshape(P, G, K // pairs, lanes) for a in _side_by_side(new, pairs))
    arrays = (*live, index, query, new_key, new_value, cached.key, cached.value)
    output, logsum, key, value = _on_mesh(partial(_attend_rows, softcap), arrays)
    seen_PG11 = (live.counts > 0)[:, :, None, None]
    output = _own_half(jnp.where(seen_PG11, output, 0.0).reshape(P, G, K, Q, lanes), pairs)
    logsum = jnp.where(seen_PG11, logsum[..., None], EXCLUDED).reshape(P, G, K, Q, 1)
    return Part(output, logsum), cached._replace(key=key, value=value)


def _side_by_side(new: KeyValues, pairs: int) -> tuple[Array, Array]:
    return (new.key, new.value) if pairs == 1 else (paired(new.key), paired(new.value))


def paired(a_PGKSC: Array) -> Array:
    """Two heads side by side: `[P, G, K / 2, S, 2 C]`."""
    P, G, K, S, C = a_PGKSC.shape
    return jnp.swapaxes(a_PGKSC.reshape(P, G, K // 2, 2, S, C), 3, 4).reshape(P, G, K // 2, S, 2 * C)


def unpaired(a_PGKSC: Array) -> Array:
    """Heads that are side by side, one after the other: `[P, G, 2 K, S, C / 2]`."""
    P, G, K, S, C = a_PGKSC.shape
    return jnp.swapaxes(a_PGKSC.reshape(P, G, K, S, 2, C // 2), 3, 4).reshape(P, G, 2 * K, S, C // 2)


def _spread(query_PGKQC: Array, pairs: int) -> Array:
    """Queries as wide as two heads, with zeros where the other head's channels are."""
    if pairs == 1:
        return query_PGKQC
    odd_K = (jnp.arange(query_PGKQC.shape[2]) % 2 == 1)[None, None, :, None, None]
    zero = jnp.zeros_like(query_PGKQC)
    halves = jnp.where(odd_K, zero, query_PGKQC), jnp.where(odd_K, query_PGKQC, zero)
    return jnp.concatenate(halves, axis=-1)


def _own_half(output: Array, pairs: int) -> Array:
    if pairs == 1:
        return output
    odd_K = (jnp.arange(output.shape[2]) % 2 == 1)[None, None, :, None, None]
    first, second = jnp.split(output, 2, axis=-1)
    return jnp.where(odd_K, second, first)


def mesh_parts(P: int, K: int) -> tuple[int, int]:
    """Into how many parts the mesh divides P prompts and K heads."""
    mesh = jax.sharding.get_abstract_mesh()
    shards, heads = (1, 1) if mesh.empty else (prompt_shards(mesh), mesh.shape["tensor"])
    return shards if P % shards == 0 else 1, heads if K % heads == 0 else 1


def _on_mesh(attention: Any, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
    """The attention of each device's prompts and heads."""
    mesh, counts, key = jax.sharding.get_abstract_mesh(), arrays[0], arrays[9]
    if mesh.empty or mesh.size == 1:
        return attention(*arrays)
    shards, heads = mesh_parts(len(counts), key.shape[2])
    by_prompt, by_head = prompt_axes(mesh) if shards > 1 else None, "tensor" if heads > 1 else None
    of_rows, of_heads = PartitionSpec(by_prompt), PartitionSpec(by_prompt, None, by_head)
    specs = (*(of_rows,) * 5, PartitionSpec(), *(of_heads,) * 5)
    return jax.shard_map(attention, mesh=mesh, in_specs=specs, out_specs=(of_heads,) * 4, check_vma=False)(*arrays)


def _attend_rows(
    softcap: float | None,
    counts: Array,
    blocks: Array,
    spans: Array,
    steps: Array,
    lengths: Array,
    index: Array,
    query: Array,
    new_key: Array,
    new_value: Array,
    key: Array,
    value: Array,
) -> tuple[Array, ...]:
    """The kernel on one device: outputs `[P, G, H, C]`, the logarithms `[P, G, H]`, and both caches."""
    (P, G, K, S, C), H = key.shape, query.shape[2]
    query, new_key, new_value, *rings = (
        a.reshape(P * G, *a.shape[2:]) for a in (query, new_key, new_value, key, value)
    )
    numbers = jnp.stack([index, lengths[0]]).astype(jnp.int32)
    float32, groups = jnp.float32, -(-P * G // LANES)
    scalar, vmem, hbm = (pl.BlockSpec(memory_space=space) for space in (pltpu.SMEM, pltpu.VMEM, pltpu.HBM))
    rings_like = [pltpu.HBM(a.shape, a.dtype) for a in rings]  # or XLA would put some into VMEM, and move them back
    sums = [jax.ShapeDtypeStruct((P * G, H, C), float32), jax.ShapeDtypeStruct((groups, H, LANES), float32)]
    size = block_size(K, S, C)
    buffer = pltpu.VMEM((2, 2, K, AT_ONCE * size, C), rings[0].dtype)  # of keys and values
    output, logsum, key, value = pl.pallas_call(
        partial(_kernel, softcap, S),
        in_specs=[scalar] * 5 + [vmem] * 3 + [hbm] * 2,
        out_specs=[vmem] * 2 + [hbm] * 2,
        out_shape=[*sums, *rings_like],
        scratch_shapes=[buffer, pltpu.SemaphoreType.DMA((2,)), pltpu.SemaphoreType.DMA((2,))],
        input_output_aliases={8: 2, 9: 3},
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=VMEM_BYTES, disable_bounds_checks=True),
        name=KERNEL,
    )(blocks[0], spans[0], steps[0], counts.reshape(-1), numbers, query, new_key, new_value, *rings)
    logsum = jnp.swapaxes(logsum, 1, 2).reshape(-1, H)[: P * G]
    return output.reshape(P, G, H, C), logsum.reshape(P, G, H), key.reshape(P, G, K, S, C), value.reshape(P, G, K, S, C)


def _kernel(softcap: float | None, S: int, *refs: Any) -> None:
    blocks, spans, steps, counts, numbers, query, new_key, new_value, _, _, output, logsum, *rest = refs
    reader = _Reader(S, (blocks, spans, steps), counts, numbers, (new_key, new_value), *rest)
    values = reader.buffer.at[:, 1]
    values[...] = jnp.zeros_like(values)  # values that are never read are multiplied by zero, and must be numbers
    reader.fetch(0, 0)
    H, C = query.shape[1:]
    lane = jax.lax.broadcasted_iota(jnp.int32, (H, LANES), 1)

    def step(n: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        place = n & 1
        reader.wait_written(n, 1 - place)
        reader.fetch(n + 1, 1 - place)
        reader.wait_fetched(n, place)
        reader.write(n, place)
        parts = [_attend_block(reader, softcap, query, n * AT_ONCE + u, place, u) for u in range(AT_ONCE)]
        for u, part in enumerate(parts):
            row, ago = reader.entry(n * AT_ONCE + u)
            carry = _merged(carry, part, ago == 0)
            top_H1, total_H1, sum_HC = carry
            output[row] = sum_HC / total_H1  # of a row's blocks up to this one: the last is the one that stays
            group = logsum[jax.lax.div(row, LANES)]
            logsum[jax.lax.div(row, LANES)] = jnp.where(
                lane == jax.lax.rem(row, LANES), top_H1 + jnp.log(total_H1), group
            )
        return carry

    zero_H1 = jnp.zeros((H, 1), jnp.float32)
    end = jax.lax.div(reader.total + AT_ONCE - 1, AT_ONCE)
    jax.lax.fori_loop(0, end, step, (zero_H1 + EXCLUDED, zero_H1, jnp.zeros((H, C), jnp.float32)))
    reader.wait_fetched(end, end & 1)
    reader.wait_written(end, 1 - (end & 1))


def _attend_block(
    reader: "_Reader", softcap: float | None, query: Any, n: Array, place: Array, u: int
) -> tuple[Array, ...]:
    """Of one block, for all heads of a row: the largest score, and the sums of exponentials and of weighted values."""
    row, ago = reader.entry(n)
    count = jnp.where(n < reader.total, reader.counts[row], 0)
    query_HC, (key, value) = query[row], (reader.buffer[place, kind, :, reader.block(u), :] for kind in (0, 1))
    K, H = key.shape[0], query_HC.shape[0]
    head_H1 = jax.lax.broadcasted_iota(jnp.int32, (H, 1), 0)

    def product(left: Array, right_K: Array, contracted: int) -> Array:
        """A product with each head's array, of which each query keeps that of its own head."""
        axes, kept = (((1,), (contracted,)), ((), ())), jnp.float32
        total = jax.lax.dot_general(left, right_K[0], axes, preferred_element_type=kept)
        for k in range(1, K):
            total = jnp.where(
                head_H1 >= k * (H // K), jax.lax.dot_general(left, right_K[k], axes, preferred_element_type=kept), total
            )
        return total

    scores_HS = product(query_HC, key, 1)
    scores_HS = scores_HS if softcap is None else jnp.tanh(scores_HS / softcap) * softcap
    age_1S = reader.inside + ago * reader.size - jax.lax.broadcasted_iota(jnp.int32, (1, reader.size), 1)
    age_1S = jnp.where(age_1S < 0, age_1S + reader.S, age_1S)
    scores_HS = jnp.where(age_1S < count, scores_HS, EXCLUDED)
    top_H1 = jnp.max(scores_HS, axis=1, keepdims=True)
    exps_HS = jnp.exp(scores_HS - top_H1)
    return top_H1, jnp.sum(exps_HS, axis=1, keepdims=True), product(exps_HS.astype(query_HC.dtype), value, 0)


def _merged(carry: tuple[Array, ...], part: tuple[Array, ...], first: Array) -> tuple[Array, ...]:
    """The sums of a row's blocks so far and of one more, relative to the largest score."""
    top_H1, total_H1, sum_HC = (
        jnp.where(first, start, a) for a, start in zip(carry, (EXCLUDED, 0.0, 0.0), strict=True)
    )
    more_top_H1, more_total_H1, more_HC = part
    best_H1 = jnp.maximum(top_H1, more_top_H1)
    old_H1, new_H1 = jnp.exp(top_H1 - best_H1), jnp.exp(more_top_H1 - best_H1)
    return best_H1, total_H1 * old_H1 + more_total_H1 * new_H1, sum_HC * old_H1 + more_HC * new_H1


class _Reader:
    """The copies between both caches in main memory and two sets of `AT_ONCE` blocks on the chip."""

    def __init__(self, S: int, lists: tuple[Any, ...], counts: Any, numbers: Any, new: tuple[Any, Any], *refs: Any):
        key, value, self.buffer, self.fetched, self.written = refs
        self.S, (self.blocks, self.spans, self.steps), self.counts, self.new = S, lists, counts, new
        self.index, self.total = numbers[0], numbers[1]
        self.size, self.tile = self.buffer.shape[3] // AT_ONCE, TILES[key.dtype.itemsize]
        self.inside = self.index & (self.size - 1)  # position of the newest in its block
        self.rings = key, value

    def entry(self, n: Number) -> tuple[Array, Array]:
        """The row of a block in the list, and how many blocks ago it was written."""
        return self.blocks[n] >> ROW_BITS, self.blocks[n] & (2**ROW_BITS - 1)

    def block(self, u: int) -> slice:
        """The positions of a block on the chip."""
        return slice(u * self.size, (u + 1) * self.size)

    def fetch(self, step: Number, place: Number) -> None:
        """Starts to copy the blocks of a step."""
        for n, u in self._blocks(step):
            begin, size = self._span(n)
            low = pl.multiple_of(u * self.size + (begin & (self.size - 1)), self.tile)
            for kind, ring in enumerate(self.rings):
                block = ring.at[self.entry(n)[0], :, pl.ds(begin, size), :]
                to = self.buffer.at[place, kind, :, pl.ds(low, size), :]
                pltpu.make_async_copy(block, to, self.fetched.at[place]).start()

    def wait_fetched(self, step: Number, place: Number) -> None:
        """Waits for all of them: one semaphore counts the bytes of all."""
        size = pl.multiple_of((self.steps[step] >> NEW_BITS) * self.tile, self.tile)
        self._wait(self.buffer.at[place, :, :, pl.ds(0, size), :], self.fetched.at[place])

    def write(self, step: Number, place: Number) -> None:
        """Puts new keys and values into the newest block of each row, and starts to copy the tile that they are in."""
        for n, u in self._blocks(step):
            newest = (n < self.total) & (self.blocks[n] & (2**ROW_BITS - 1) == 0)
            pl.when(newest)(partial(self._insert, n, place, u))

    def wait_written(self, step: Number, place: Number) -> None:
        """Waits until the tiles of the step before are in main memory."""
        count = self.steps[step] & (2**NEW_BITS - 1)
        tiles = self.buffer.at[place, :, :, pl.ds(0, pl.multiple_of(count * self.tile, self.tile)), :]
        pl.when(count > 0)(partial(self._wait, tiles, self.written.at[place]))

    def _blocks(self, step: Number) -> list[tuple[Any, int]]:
        return [(step * AT_ONCE + u, u) for u in range(AT_ONCE)]

    def _insert(self, n: Number, place: Number, u: int) -> None:
        row, begin = self.entry(n)[0], self._tile_of(self.index)
        for kind, (new, ring) in enumerate(zip(self.new, self.rings, strict=True)):
            inside = pl.multiple_of(u * self.size + self._tile_of(self.inside), self.tile)
            tile = self.buffer.at[place, kind, :, pl.ds(inside, self.tile), :]
            here = jax.lax.broadcasted_iota(jnp.int32, tile.shape, 1) == (self.index & (self.tile - 1))
            new_K1C = new[row].astype(jnp.float32)[:, None, :]
            tile[...] = jnp.where(here, jnp.broadcast_to(new_K1C, tile.shape).astype(tile.dtype), tile[...])
            to = ring.at[row, :, pl.ds(begin, self.tile), :]
            pltpu.make_async_copy(tile, to, self.written.at[place]).start()

    def _wait(self, part: Any, semaphore: Any) -> None:
        """Waits for copies of as many bytes as a part of the buffer has."""
        pltpu.make_async_copy(part, part, semaphore).wait()

    def _tile_of(self, position: Array) -> Array:
        return pl.multiple_of(position & -self.tile, self.tile)

    def _span(self, n: Number) -> tuple[Array, Array]:
        """Where the tiles in use of a block begin in the ring, and how many positions they have."""
        span = self.spans[n]
        begin, size = (span >> SIZE_BITS) * self.tile, (span & (2**SIZE_BITS - 1)) * self.tile
        return pl.multiple_of(begin, self.tile), pl.multiple_of(size, self.tile)
