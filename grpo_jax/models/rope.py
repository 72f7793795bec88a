"""Rotary positions: the angles of each position, how long contexts scale them, and how a head is rotated by them."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array


@dataclass(frozen=True)
class Rope:
    """Rotary positions: the base, how the frequencies are scaled, and which channels rotate."""

    theta: float
    scaling: str = "default"  # default (none), linear, llama3 (by wavelength), yarn, or longrope
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_positions: int = 8192
    fast_cycles: float = 32.0  # yarn keeps frequencies of more cycles than this within `original_positions`
    slow_cycles: float = 1.0  # and divides those of fewer cycles than this by `factor`
    whole_channels: bool = True  # yarn's two limits are rounded to whole channels
    divisors: tuple[float, ...] = ()  # longrope: of each frequency
    amplitude: float = 1.0  # cosines and sines are multiplied by it (yarn, longrope)
    fraction: float = 1.0  # of each head's channels, the first; the others do not rotate
    interleaved: bool = False  # channel 2c is paired with channel 2c + 1, not c with c + C/2


@jax.named_scope("rotation")
def rotations(rope: Rope | None, channels: int, positions: Array) -> tuple[Array, Array]:
    """Cosines and sines of each position's angles: `[..., C/2]`, float32. Nothing rotates where `rope` is None."""
    if rope is None:
        ones = jnp.ones((*positions.shape, channels // 2), jnp.float32)
        return ones, jnp.zeros_like(ones)
    channels = int(channels * rope.fraction)
    exponent_C = jnp.arange(0, channels, 2, dtype=jnp.float32) / channels
    frequency_C = 1.0 / jnp.power(jnp.float32(rope.theta), exponent_C)
    if rope.scaling == "linear":
        frequency_C = frequency_C / rope.factor
    if rope.scaling == "llama3":
        frequency_C = _llama3(rope, frequency_C)
    if rope.scaling == "yarn":
        frequency_C = _yarn(rope, channels, frequency_C)
    if rope.scaling == "longrope":
        frequency_C = frequency_C / jnp.asarray(rope.divisors, jnp.float32)
    frequency_C = frequency_C.reshape((1,) * positions.ndim + (-1,))
    angles = positions[..., None].astype(jnp.float32) * frequency_C
    if rope.amplitude != 1.0:
        return jnp.cos(angles) * rope.amplitude, jnp.sin(angles) * rope.amplitude
    return jnp.cos(angles), jnp.sin(angles)


def _llama3(rope: Rope, frequency_C: Array) -> Array:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended (Llama 3.1)."""
    cycles_C = rope.original_positions * frequency_C / (2 * jnp.pi)
    blend_C = (cycles_C - rope.low_frequency_factor) / (rope.high_frequency_factor - rope.low_frequency_factor)
    blend_C = jnp.clip(blend_C, 0, 1)
    return (1 - blend_C) * frequency_C / rope.factor + blend_C * frequency_C


def _yarn(rope: Rope, channels: int, frequency_C: Array) -> Array:
    """As `_llama3`, but blended linearly in the channel, between those of `fast_cycles` and `slow_cycles` (YaRN)."""

    def channel(cycles: float) -> float:
        wavelengths = rope.original_positions / (cycles * 2 * math.pi)
        return channels * math.log(wavelengths) / (2 * math.log(rope.theta))

    low, high = channel(rope.fast_cycles), channel(rope.slow_cycles)
    if rope.whole_channels:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, channels - 1)
    width = high - low if high != low else 0.001  # as in the paper's code: no division by zero
    stretched_C = jnp.clip((jnp.arange(channels // 2, dtype=jnp.float32) - low) / width, 0, 1)
    return frequency_C / rope.factor * stretched_C + frequency_C * (1 - stretched_C)


@jax.named_scope("rotation")
def rotate(x_PGHTC: Array, cos_PGTC: Array, sin_PGTC: Array, interleaved: bool = False, platform: str = "") -> Array:
    """Each head rotated by its position: channel c is paired with channel c + C/2, as Hugging Face weights expect.

    With fewer angles than pairs of channels, the last channels stay as they are.
    """
    channels = 2 * cos_PGTC.shape[-1]
    if platform == "tpu" and not interleaved and channels == x_PGHTC.shape[4] and x_PGHTC.shape[3] > 1:
        cos, sin = jnp.concatenate([cos_PGTC, cos_PGTC], axis=-1), jnp.concatenate([-sin_PGTC, sin_PGTC], axis=-1)
        return _rotate_whole(x_PGHTC, cos[:, :, None], sin[:, :, None])
    x = x_PGHTC.astype(jnp.float32)
    still = x[..., channels:] if channels < x.shape[-1] else None
    x = x if still is None else x[..., :channels]
    left, right = (x[..., 0::2], x[..., 1::2]) if interleaved else jnp.split(x, 2, axis=-1)
    cos_PG1TC, sin_PG1TC = cos_PGTC[:, :, None], sin_PGTC[:, :, None]
    halves = [left * cos_PG1TC - right * sin_PG1TC, right * cos_PG1TC + left * sin_PG1TC]
    rotated = jnp.stack(halves, axis=-1).reshape(x.shape) if interleaved else jnp.concatenate(halves, axis=-1)
    rotated = rotated if still is None else jnp.concatenate([rotated, still], axis=-1)
    return rotated.astype(x_PGHTC.dtype)


@jax.custom_vjp
def _rotate_whole(x_PGHTC: Array, cos_PG1TC: Array, sin_PG1TC: Array) -> Array:
    """A rotation for a TPU, where half a head would take as much memory as a whole one of 128 channels.

    The halves change places by a product with a permutation, which is exact. The first half of the sines is negative.
    """
    return (x_PGHTC.astype(jnp.float32) * cos_PG1TC + _swapped(x_PGHTC) * sin_PG1TC).astype(x_PGHTC.dtype)


def _swapped(x_PGHTC: Array) -> Array:
    """The second half of the channels before the first, in float32."""
    C = x_PGHTC.shape[-1]
    swap_CC = jnp.roll(jnp.eye(C, dtype=x_PGHTC.dtype), C // 2, axis=0)
    precision = jax.lax.Precision.DEFAULT if x_PGHTC.dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST
    return jax.lax.dot_general(
        x_PGHTC, swap_CC, (((4,), (0,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
    )


def _rotate_whole_forward(x: Array, cos: Array, sin: Array) -> tuple[Array, tuple[Array, Array]]:
    return _rotate_whole(x, cos, sin), (cos, sin)


def _rotate_whole_backward(angles: tuple[Array, Array], grad: Array) -> tuple[Array, None, None]:
    cos, sin = angles
    return _rotate_whole(grad, cos, -sin), None, None  # positions are no parameters


_rotate_whole.defvjp(_rotate_whole_forward, _rotate_whole_backward)
