"""Rematerialisation: what of each layer is kept for the backward pass, and what is computed again.

`INPUT`, `WEIGHT`, `PRODUCT` and `ATTENTION` are names that layers and attention give to arrays by `checkpoint_name`;
the policies in `REMAT` refer to them.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax

Remat = Literal["auto", "full", "attention", "products", "offload", "none"]
FASTER: tuple[Remat, ...] = ("products", "attention")  # than full, the fastest first: auto takes what fits

INPUT = "layer_input"
WEIGHT = "weight"  # a weight as a product takes it, on a TPU
PRODUCT = "product"  # results of matrix products, and what attention reads
ATTENTION = "attention"  # what attention returns, and the logarithm of each softmax's sum

_POLICIES = jax.checkpoint_policies

REMAT: dict[str, Callable[..., Any] | None] = {
    "full": _POLICIES.save_only_these_names(INPUT),  # keeps the layer's input: least memory, a third more arithmetic
    "attention": _POLICIES.save_only_these_names(INPUT, ATTENTION),  # computes all but attention again
    "products": _POLICIES.save_only_these_names(INPUT, PRODUCT, ATTENTION),  # computes norms and activations again
    "offload": _POLICIES.save_and_offload_only_these_names(  # keeps the layer's input in the host's memory
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
    "none": None,  # keeps everything
}


def check_remat(remat: str, platform: str) -> None:
    """Refuses a remat policy that does not exist, or that the platform cannot follow."""
    choices = get_args(Remat)
    if remat not in choices:
        raise ValueError(f"There is no remat policy {remat!r}; choose one of {', '.join(choices)}.")
    if remat == "offload" and platform == "cpu":
        raise ValueError("remat offload moves activations from a device to its host; on a CPU choose full.")
