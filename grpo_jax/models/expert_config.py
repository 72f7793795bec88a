"""The experts of a model, from its `config.json`: how many there are, and which layers have them."""

from pathlib import Path
from typing import Any

from grpo_jax.models.decoder import Experts
from grpo_jax.models.families import Family
from grpo_jax.models.files import switch, whole_number


def read_experts(file: Path, family: Family, config: dict[str, Any], layers: int) -> Experts | None:
    """The experts in place of each feed-forward block; None if the model has none."""
    if "num_experts" not in family.reads:
        return None
    plain = _layers_without(file, config, layers)
    if len(plain) == layers:
        return None
    if plain:
        named = "mlp_only_layers" if config["mlp_only_layers"] else "decoder_sparse_step"
        raise ValueError(
            f"{file}: {named} is {config[named]!r}, so layer {plain[0]} and {len(plain) - 1} more of {layers} have no"
            f" experts, and the layers of a model must all have the same weights here. Choose another model."
        )
    count, chosen = (whole_number(file, config, key) for key in ("num_experts", "num_experts_per_tok"))
    if chosen > count:
        raise ValueError(f"{file}: num_experts_per_tok is {chosen}, more than the {count} experts of num_experts.")
    shared = "shared_expert_intermediate_size"
    return Experts(
        count=count,
        chosen=chosen,
        feedforward=whole_number(file, config, "moe_intermediate_size"),
        normalized=switch(file, config, "norm_topk_prob"),
        shared=whole_number(file, config, shared) if shared in family.reads else None,
    )


def _layers_without(file: Path, config: dict[str, Any], layers: int) -> list[int]:
    """The layers that have a plain feed-forward block."""
    dense, every = config["mlp_only_layers"], whole_number(file, config, "decoder_sparse_step")
    if not isinstance(dense, list | tuple) or not all(type(n) is int for n in dense):
        raise ValueError(f"{file}: mlp_only_layers must be a list of layers; got {dense!r}.")
    none = whole_number(file, config, "num_experts", least=0) == 0
    return [n for n in range(layers) if none or n in dense or (n + 1) % every]
