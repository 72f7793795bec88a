"""The config.json and generation_config.json of a model that is exported: those of its source, brought up to date."""

import json
import logging
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from grpo_jax.models.decoder import Shape
from grpo_jax.models.families import FAMILIES, Config, Family
from grpo_jax.models.files import read_json
from grpo_jax.models.model_config import read_shape
from grpo_jax.models.rope_config import KINDS

log = logging.getLogger(__name__)
_ORIGINAL = "original_max_position_embeddings"


def write_config(source: Path | None, directory: Path, shape: Shape, dtype: str) -> None:
    """Writes config.json, and reads it again: it must describe the very shape of the model."""
    config = _described(shape) if source is None else json.loads((source / "config.json").read_text(encoding="utf-8"))
    if "text_config" in config:  # only the language part is trained and exported
        config = {"model_type": f"{config['model_type']}_text"} | config["text_config"] | {"architectures": None}
    if config.get("architectures") is None:  # vLLM goes by it
        config |= {"architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config["model_type"]]]}
    config |= {"vocab_size": shape.vocabulary, "tie_word_embeddings": shape.tied}
    config |= {"torch_dtype": dtype, "dtype": dtype}  # transformers 4 and 5
    family = FAMILIES[config["model_type"]]
    for names in family.renamed.items():
        config |= {name: config[known] for known in names if known in config for name in names}
    _write(directory / "config.json", config | with_both_ropes(config, family))
    if read_shape(directory) != shape:
        raise ValueError(
            f"{source}: its config.json, brought up to date, describes another model than the one that is exported. Was"
            " it changed after the model had been loaded? Load the model again."
        )


def with_both_ropes(config: Config, family: Family) -> dict[str, Any]:
    """The rotary settings as transformers 4 reads them (`rope_theta`, `rope_scaling`) and as 5 does.

    Version 4 knows no `rope_parameters`, and would use a theta of 10,000 without a word. Version 5 takes `rope_scaling`
    for the whole of `rope_parameters` if both are there, so theta stands in it, too. A theta that is left out means
    another one in each family, and in some of them in each version, so it is always written.
    """
    whole = _settings(config, family, "full_attention", "rope_theta")
    found = {"rope_theta": whole["rope_theta"], "rope_scaling": _scaling(whole, family), "rope_parameters": whole}
    outside = ["partial_rotary_factor"] + ([_ORIGINAL] if whole["rope_type"] == "longrope" else [])
    found |= {key: whole[key] for key in outside if key in whole}  # where version 4 reads them
    if family.local_theta is None:
        return found
    near = _settings(config, family, "sliding_attention", family.local_theta)
    if near != {"rope_type": "default", "rope_theta": near["rope_theta"]} or (
        family.local_theta == "rope_theta" and near["rope_theta"] != whole["rope_theta"]
    ):
        log.warning(
            "The layers with a window have rotary settings (%s) that transformers 4 cannot have in this family: load"
            " the export with version 5.",
            json.dumps(near),
        )
    kinds = {"full_attention": whole, "sliding_attention": near}
    return {family.local_theta: near["rope_theta"]} | found | {"rope_parameters": kinds}


def _settings(config: Config, family: Family, kind: str, theta: str) -> dict[str, Any]:
    """All rotary settings of one kind of layer, from the keys of both versions; its theta has the key `theta`."""
    known: dict[str, Any] = {"rope_theta": 10000.0} | {
        key: value for key, value in family.meanings.items() if key not in config
    }
    known |= {key: value for key, value in config.items() if value is not None}
    fields: dict[str, Any] = {"rope_theta": known[theta]}
    fields |= {key: known[key] for key in ("partial_rotary_factor",) if key in known}
    for key in ("rope_scaling", "rope_parameters"):
        given = known.get(key, {})
        if any(name in given for name in KINDS):
            given = given.get(kind, {})
        elif kind == "sliding_attention":
            given = {}
        fields |= {name: value for name, value in given.items() if value is not None}
    older = fields.pop("type", "default")
    rope_type = fields.pop("rope_type", older)
    if rope_type != "default" and _ORIGINAL in known:
        fields[_ORIGINAL] = known[_ORIGINAL]
    return {"rope_type": "longrope" if rope_type == "su" else rope_type} | fields


def _scaling(settings: dict[str, Any], family: Family) -> dict[str, Any] | None:
    """The `rope_scaling` of a model; where the original length has a key of its own, only three keys are allowed."""
    if settings["rope_type"] == "default":
        return None
    if _ORIGINAL not in family.meanings:
        return settings
    outside = ("rope_type", "rope_theta", "partial_rotary_factor", _ORIGINAL)
    return {"type": settings["rope_type"]} | {key: value for key, value in settings.items() if key not in outside}


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


def write_tokenizer(backend: PreTrainedTokenizerBase, directory: Path) -> None:
    """Writes the files of a tokenizer that has none.

    Version 5 names a class in them that version 4 does not know, and version 4 would add `token_type_ids` to a prompt,
    which `generate` refuses.
    """
    backend.save_pretrained(directory)
    file = directory / "tokenizer_config.json"
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
    _write(file, read_json(file) | names)


def _described(shape: Shape) -> dict[str, Any]:
    """The config of a model that has no files: `tiny`, which is a Llama."""
    return {
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
