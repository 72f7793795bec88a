"""The config.json and generation_config.json of a model that is exported: those of its source, brought up to date."""

import json
from pathlib import Path
from typing import Any

from grpo_jax.models.decoder import Shape
from grpo_jax.models.files import read_json
from grpo_jax.models.model_config import read_shape

ARCHITECTURES = {"gemma3_text": ["Gemma3ForCausalLM"]}  # of the language part of a model that also sees


def write_config(source: Path | None, directory: Path, shape: Shape, dtype: str) -> None:
    """Writes config.json, and reads it again: it must describe the very shape of the model."""
    config = _described(shape) if source is None else json.loads((source / "config.json").read_text(encoding="utf-8"))
    if "text_config" in config:  # only the language part is trained and exported
        config = config["text_config"]
        config |= {"architectures": ARCHITECTURES.get(config.get("model_type"), config.get("architectures"))}
    config |= {"vocab_size": shape.vocabulary, "tie_word_embeddings": shape.tied}
    config |= {"torch_dtype": dtype, "dtype": dtype}  # transformers 4 and 5
    for ropes in (with_both_ropes(config), {}):  # kept as they are where one family means another thing by them
        _write(directory / "config.json", config | ropes)
        if read_shape(directory) == shape:
            return
    raise ValueError(
        f"{source}: its config.json, brought up to date, describes another model than the one that is exported. Was it"
        " changed after the model had been loaded? Load the model again."
    )


def with_both_ropes(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary settings as transformers 4 reads them (`rope_theta`, `rope_scaling`) and as 5 does.

    Version 4 knows no `rope_parameters`, and would use a theta of 10,000 without a word. Version 5 takes `rope_scaling`
    for the whole of `rope_parameters` if both are there, so theta stands in it, too. A config that names no theta means
    that of its family, which differs, and is left as it is.
    """
    given = config.get("rope_parameters") or {}
    if any(isinstance(value, dict) for value in given.values()):  # one for each kind of layer
        return _of_kinds(given)
    fields: dict[str, Any] = {}
    for each in ({"rope_theta": config.get("rope_theta")}, config.get("rope_scaling") or {}, given):
        fields |= {name: value for name, value in each.items() if value is not None}
    if "rope_theta" not in fields:
        return {}
    fields["rope_type"] = fields.get("rope_type", fields.pop("type", "default"))
    scaling = None if fields["rope_type"] == "default" else fields
    if (local := config.get("rope_local_base_freq")) is not None:
        kinds = {"full_attention": fields, "sliding_attention": {"rope_theta": local, "rope_type": "default"}}
        return {"rope_theta": fields["rope_theta"], "rope_scaling": scaling, "rope_parameters": kinds}
    return {"rope_theta": fields["rope_theta"], "rope_scaling": scaling, "rope_parameters": fields}


def _of_kinds(given: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings of each kind of layer, and the older keys beside them."""
    kinds = {kind: value for kind, value in given.items() if isinstance(value, dict)}
    whole = kinds.get("full_attention", next(iter(kinds.values())))
    found: dict[str, Any] = {"rope_theta": whole.get("rope_theta", 10000.0), "rope_parameters": given}
    if whole.get("rope_type", "default") != "default":
        found["rope_scaling"] = whole
    if "sliding_attention" in kinds and "rope_theta" in kinds["sliding_attention"]:
        found["rope_local_base_freq"] = kinds["sliding_attention"]["rope_theta"]
    return found


def write_generation_config(source: Path | None, directory: Path, ends: tuple[int, ...]) -> None:
    """Writes generation_config.json, in which every token that ends a response here does there, too."""
    file = None if source is None else source / "generation_config.json"
    found = read_json(file) if file is not None and file.is_file() else {}
    known = found.get("eos_token_id", [])
    known = known if isinstance(known, list) else [known]
    missing = [end for end in ends if end not in known]
    all_ends = [*known, *missing]
    _write(
        directory / "generation_config.json",
        found if not missing else found | {"eos_token_id": all_ends[0] if len(all_ends) == 1 else all_ends},
    )


def _described(shape: Shape) -> dict[str, Any]:
    """The config of a model that has no files: `tiny`, which is a Llama."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.feedforward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.channels,
        "rms_norm_eps": shape.norm_epsilon,
        "max_position_embeddings": shape.max_positions,
        "rope_theta": shape.rope.theta,
        "hidden_act": "silu",
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
