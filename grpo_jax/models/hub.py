"""Where a model is: a name the library knows, a directory, a GGUF file, or a repository of the Hugging Face hub.

`locate` finds the directory. It uses the network only for a model that is not in a local cache. `check` refuses a
directory that could not be loaded or should not be: no code that comes with a model is ever run, so weights are
safetensors and never pickles, and classes are this library's.
"""

import difflib
import re
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from grpo_jax import network
from grpo_jax.models import smollm2
from grpo_jax.models.families import FAMILIES
from grpo_jax.models.files import AGAIN, read_index, read_json, require_beside
from grpo_jax.models.from_gguf.folder import find_gguf, unpack

WANTED = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]
WANTED += ["LICENSE*", "NOTICE*"]  # which an export copies
UNWANTED = ["*/*", "consolidated*"]  # subfolders hold other formats, and consolidated* is Mistral's second copy
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
ADAPTER = "adapter_config.json"  # of an adapter of PEFT's
PICKLES = ("*.bin", "*.pt", "*.pth")
# What a broken connection raises: of the HTTP library of huggingface-hub, which is another one in each of its versions.
HTTP_ERRORS = tuple(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception))
ON_THE_HUB = {smollm2.NAME: "HuggingFaceTB/SmolLM2-135M-Instruct"}
CHECKSUM = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")  # a line of sha256sum, or of sha256sum -b


def locate(name: str) -> Path:
    """The directory of the model, or of PEFT's adapter, called `name`, downloaded or converted first if need be."""
    if name == smollm2.NAME:
        return smollm2.fetch()
    directory = Path(name).expanduser()
    file = None if (directory / "config.json").exists() else find_gguf(directory)
    if file is not None:
        return unpack(file)
    if directory.is_dir():
        return directory
    if not REPOSITORY.fullmatch(name):
        raise FileNotFoundError(
            f"A model is {smollm2.NAME!r}, a directory, a GGUF file, a run, or 'org/name' on the Hugging Face hub;"
            f" {name!r} is none of them.{_suggestion(name)}{_beside(directory)}"
        )
    cached = _cached_snapshot(name)
    return _fresh_snapshot(name) if cached is None else cached


def hub_name(name: str) -> str:
    """The name of a model for others: on the hub, where it has one there."""
    return ON_THE_HUB.get(name, name)


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter of PEFT's, and no whole model."""
    whole = ("model.safetensors", "model.safetensors.index.json")
    return (directory / ADAPTER).is_file() and not any((directory / name).exists() for name in whole)


def check(directory: Path) -> None:
    """Refuses a model directory that cannot, or must not, be loaded."""
    config_file = directory / "config.json"
    if not config_file.is_file():
        raise FileNotFoundError(
            f"{directory} has no config.json, so it is not a model directory. Name the folder that holds config.json,"
            f" the *.safetensors weights and the tokenizer."
        )
    if _asks_for_code(read_json(config_file)):
        raise ValueError(
            f"{config_file} asks for code of its own (auto_map), and code that comes with a model is never run. Use a"
            f" model of a standard class, or delete auto_map if the weights are those of one."
        )
    _require_safetensors(directory)
    _require_all_shards(directory)
    _require_checksums(directory)


def check_adapter(directory: Path) -> None:
    """Refuses the directory of an adapter that cannot, or must not, be loaded."""
    _require_safetensors(directory)
    _require_checksums(directory)


def _asks_for_code(config: dict[str, Any]) -> bool:
    """Whether a model needs code of its own. Some only name copies of what transformers has; none is ever run."""
    family, named = FAMILIES.get(str(config.get("model_type"))), config.get("auto_map")
    if named is None:
        return False
    copies = frozenset() if family is None else family.copies
    if not isinstance(named, dict) or not copies:
        return True
    return not all(named[key] in copies for key in named if key != "AutoTokenizer")


def _suggestion(name: str) -> str:
    close = difflib.get_close_matches(name.lower(), [smollm2.NAME], cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def _beside(path: Path) -> str:
    """What there is in the folder in which a directory or a run of this name would be."""
    if path.parent == Path() or not path.parent.is_dir():
        return ""
    names = sorted(each.name for each in path.parent.iterdir() if each.is_dir() and not each.name.startswith("."))
    close = difflib.get_close_matches(path.name, names, 5, cutoff=0.3)
    return f" There is no {path.name} in {path.parent}: it holds {', '.join(close or names[:5]) or 'no folder'}."


def _cached_snapshot(repository: str) -> Path | None:
    try:
        cached = _download(repository, local_files_only=True)
        wanted = check_adapter if is_adapter(cached) else check
        wanted(cached)  # an interrupted download leaves files in the cache, too
    except FileNotFoundError:
        return None
    return cached


def _fresh_snapshot(repository: str) -> Path:
    unreachable = (
        f"The model {repository} is not a directory here, it is not complete in the local cache, and the Hugging Face"
        f" hub ({constants.ENDPOINT}) cannot be reached. Name a directory that holds the model, or {smollm2.NAME!r},"
        f" which comes from the Python package index; or check the network and HF_HUB_OFFLINE."
        f"{_beside(Path(repository))}"
    )
    if constants.HF_HUB_OFFLINE or not network.reachable(constants.ENDPOINT):
        raise FileNotFoundError(unreachable)
    try:
        return _download(repository, local_files_only=False)
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(unreachable) from error
    except HfHubHTTPError as error:
        raise FileNotFoundError(
            f"The Hugging Face hub does not give out {repository}: {str(error).splitlines()[0]}. Check the name; if the"
            f" model is gated or private, accept its terms on the hub and set HF_TOKEN."
        ) from error


def _download(repository: str, local_files_only: bool) -> Path:
    folder = snapshot_download(
        repository, allow_patterns=WANTED, ignore_patterns=UNWANTED, local_files_only=local_files_only
    )
    return Path(folder)


def _require_safetensors(directory: Path) -> None:
    weights = sorted(directory.glob("*.safetensors"))
    pickles = sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))
    if pickles and not weights:
        raise ValueError(
            f"{directory} has its weights only as pickles ({', '.join(pickles)}), and a pickle can run any code when it"
            f" is loaded. Convert them to safetensors, or use a revision of the model that has *.safetensors."
        )
    if not weights and find_gguf(directory) is None:
        raise FileNotFoundError(f"{directory} has no *.safetensors, the only weights that can be loaded. Add them.")
    for path in weights:
        _require_complete(path)


def _require_complete(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path} must be a file with weights, and is a folder. {AGAIN}")
    try:
        with safe_open(path, framework="np"):
            pass
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a complete safetensors file ({error}): it was cut short, or is a git-lfs pointer. Copy or"
            f" download it again."
        ) from error


def _require_all_shards(directory: Path) -> None:
    for index in sorted(directory.glob("*.safetensors.index.json")):
        missing = {path.name for path in read_index(index).values() if not path.is_file()}
        if missing:
            raise FileNotFoundError(
                f"{index} lists weights that are not there: {', '.join(sorted(missing))}. Copy or download the model"
                f" again."
            )


def _require_checksums(directory: Path) -> None:
    """Compares the files with SHA256SUMS, if the directory has one."""
    manifest = directory / smollm2.CHECKSUMS
    for number, line in enumerate(manifest.read_text(encoding="utf-8").splitlines() if manifest.is_file() else (), 1):
        match = CHECKSUM.fullmatch(line)
        if match is None:
            raise ValueError(
                f"{manifest}:{number} must be a SHA-256 sum and the name of a file, as sha256sum writes it; got"
                f" {line!r}. Make it again with `sha256sum * > {manifest.name}`, or delete it."
            )
        expected, name = match.groups()
        require_beside(name, manifest)
        if not (directory / name).is_file() or smollm2.sha256(directory / name) != expected.lower():
            raise ValueError(
                f"{directory / name} is not the file that {manifest} lists: it is damaged, changed or missing."
                f" Delete {directory} and get the model again, or delete {manifest.name} if you changed it yourself."
            )


def check_push(repository: str) -> None:
    """Refuses what is not the name of a repository on the hub."""
    if not REPOSITORY.fullmatch(repository):
        raise ValueError(f"A repository of the Hugging Face hub is named org/name; got {repository!r}.")


def push(directory: Path, repository: str) -> str:
    """Sends a model directory to the hub, into a private repository if there is none yet; the address of its commit."""
    check_push(repository)
    written = f"{directory} is written, but the Hugging Face hub ({constants.ENDPOINT})"
    if constants.HF_HUB_OFFLINE or not network.reachable(constants.ENDPOINT):
        raise ValueError(
            f"{written} cannot be reached. Check the network and HF_HUB_OFFLINE, then run `hf upload {repository}"
            f" {directory}`."
        )
    try:
        api = HfApi()
        api.create_repo(repository, private=True, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=directory, commit_message="Add the model")
        return str(commit.commit_url)
    except (HfHubHTTPError, OSError, RuntimeError, *HTTP_ERRORS) as error:  # RuntimeError: a file was not taken
        raise ValueError(
            f"{written} did not take it as {repository}: {_reason(error)}. Set HF_TOKEN to a token that may write"
            f" there, then run `hf upload {repository} {directory}`."
        ) from error


def _reason(error: Exception) -> str:
    """What an error says in its first line, and what the hub says in its answer, without a full stop."""
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        return f"{str(error).rstrip('.')} ({_reason(error.__cause__)})"
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    said = error.server_message if isinstance(error, HfHubHTTPError) else None
    reason = first if said is None or said in first else f"{first}: {' '.join(said.split())}"
    return reason.rstrip(".")
