"""The JSON files of a model directory, read strictly: what is wrong with one is a sentence that names it."""

import json
import sys
from pathlib import Path
from typing import Any

AGAIN = "Copy or download the model again."


def read_json(path: Path) -> dict[str, Any]:
    """The keys and values of a JSON file. A key whose value is null is left out, as if it were not written."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}). {AGAIN}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold keys and values, and holds a {type(content).__name__}. {AGAIN}")
    return {key: value for key, value in content.items() if value is not None}


def read_index(path: Path) -> dict[str, Path]:
    """The file in which each weight is, from a `*.safetensors.index.json`; all of them lie beside the index."""
    names = read_json(path).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{path} must have a weight_map, which names the file of each weight. {AGAIN}")
    for name in names.values():
        require_beside(name, path)
    return {weight: path.parent / name for weight, name in names.items()}


def require_beside(name: str, path: Path) -> None:
    """Refuses the name of a file that does not lie in the folder of `path`, which lists it."""
    if not name or Path(name).name != name or "\\" in name or "\0" in name:
        raise ValueError(
            f"{path} names {name!r}, and the files of a model lie in one folder: nothing outside {path.parent} is"
            f" read. Move the file there and write its plain name."
        )


def whole_number(path: Path, values: dict[str, Any], key: str, least: int = 1, most: int = 2**31 - 1) -> int:
    """The whole number under a key of a JSON file."""
    value = values[key]
    if type(value) is not int or value < least:
        raise ValueError(f"{path}: {key} must be a whole number, at least {least}; got {value!r}. {AGAIN}")
    if value > most:
        raise ValueError(f"{path}: {key} must be at most {most}; got a number of {len(str(value))} digits. {AGAIN}")
    return value


def positive_number(path: Path, values: dict[str, Any], key: str) -> float:
    """The finite number above 0 under a key of a JSON file."""
    value = values[key]
    if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:  # NaN fails every comparison
        raise ValueError(f"{path}: {key} must be a finite number above 0; got {value!r}. {AGAIN}")
    return float(value)


def switch(path: Path, values: dict[str, Any], key: str) -> bool:
    """The true or false under a key of a JSON file."""
    value = values[key]
    if type(value) is not bool:
        raise ValueError(f"{path}: {key} must be true or false; got {value!r}. {AGAIN}")
    return value


def token_ids(path: Path, values: dict[str, Any], key: str) -> list[int]:
    """The token ids under a key of a JSON file, which may be one id, or a list, or missing."""
    value = values.get(key, [])
    ids = value if isinstance(value, list) else [value]
    if not all(type(each) is int and each >= 0 for each in ids):
        raise ValueError(f"{path}: {key} must be a token id or a list of them; got {value!r}. {AGAIN}")
    return ids
