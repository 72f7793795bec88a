"""Data sets that a library reads: `datasets` of Hugging Face, and `tensorflow-datasets` without TensorFlow.

Without a local path they are downloaded once and then read from the cache. Whether there is a network is found out
first, because the libraries would retry for half a minute.
"""

import importlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from grpo_jax import network

Rows = Iterable[Mapping[str, Any]]
REPOSITORY = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
ORIGIN = "https://storage.googleapis.com"  # where tensorflow-datasets looks first
ORIGINS = {"gsm8k": "https://raw.githubusercontent.com"}
LOCAL = " If this machine has a copy elsewhere, name its folder in task.path."


def _datasets() -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise _not_installed("datasets") from error
    return datasets


def _tfds() -> Any:
    try:
        import tensorflow_datasets
    except ModuleNotFoundError as error:
        raise _not_installed("tensorflow-datasets") from error
    return tensorflow_datasets


def _not_installed(package: str) -> ValueError:
    return ValueError(f"This table is read by {package}, which is not installed: pip install {package}")


def is_saved(folder: Path) -> bool:
    """Whether a folder is one that `save_to_disk` of datasets has written."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def is_builder(folder: Path) -> bool:
    """Whether a folder is one that a builder of tensorflow-datasets has prepared."""
    return (folder / "features.json").is_file() and (folder / "dataset_info.json").is_file()


def by_datasets(path: str, subset: str | None) -> Mapping[str, Rows]:
    """The splits of a data set: a name on the hub, a folder with its files, or one that `save_to_disk` has written."""
    folder = Path(path)
    if folder.is_dir() and is_saved(folder):
        return _saved(path)
    if not folder.is_dir():
        _check_hub(path)
    datasets = _datasets()
    try:
        return cast(Mapping[str, Rows], datasets.load_dataset(path, subset))
    except ConnectionError as error:
        raise unavailable(path, f"{_line(error)}.") from error
    except FileNotFoundError as error:
        if not folder.is_dir():
            raise unavailable(path, f"{_line(error)}.") from error
        raise FileNotFoundError(
            f"There are no data files that datasets could read in {path}: {_line(error)}."
        ) from error
    except Exception as error:  # of a file that is damaged, of a subset that does not exist, and of many other kinds
        raise ValueError(f"{path} cannot be read by datasets: {type(error).__name__}: {_line(error)}.") from error


def subsets(path: str) -> list[str]:
    """The names of the configurations of a data set on the hub or in a folder."""
    return list(_datasets().get_dataset_config_names(path))


def by_builder(path: str) -> Mapping[str, Rows]:
    """The splits of a builder of tensorflow-datasets, by its name or the folder that it has prepared."""
    builder = _prepared_before(path) if Path(path).is_dir() else _prepared(path)
    try:
        return {str(split): builder.as_data_source(split=split) for split in builder.info.splits}
    except NotImplementedError as error:
        raise ValueError(
            f"The copy of {builder.name} at {path} can only be read with TensorFlow. Prepare it again with"
            f" tfds.builder({builder.name!r}, file_format='array_record').download_and_prepare()."
        ) from error


def _prepared_before(folder: str) -> Any:
    tfds = _tfds()
    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # each kind of damage raises another class
        raise ValueError(
            f"{folder} cannot be read by tensorflow-datasets: {type(error).__name__}: {_line(error)}. Name the folder"
            " with dataset_info.json that a builder has prepared, such as .../gsm8k/1.0.0."
        ) from error


def _prepared(name: str) -> Any:
    """A builder by its name, which downloads and prepares its data if it has not yet."""
    if not (_tfds_folder() / re.split(r"[:/]", name)[0]).is_dir():
        _require_origin(name)  # before the library is imported, which takes seconds
    tfds = _tfds()
    _import_builder(name)
    # ArrayRecord is the only format that can be read without TensorFlow.
    try:
        builder: Any = tfds.builder(name, file_format=tfds.core.FileFormat.ARRAY_RECORD)
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(f"tensorflow-datasets has no builder {name!r}, and no folder is called so.") from error
    if not builder.is_prepared():
        _require_origin(name)
        _prepare(builder)
    return builder


def _tfds_folder() -> Path:
    """Where tensorflow-datasets keeps what it has prepared."""
    return Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def _require_origin(name: str) -> None:
    origin = ORIGINS.get(name, ORIGIN)
    if not network.reachable(origin):
        raise unavailable(name, f"{origin} is out of reach.")


def _import_builder(name: str) -> None:
    """Imports the module of a builder: some are known to tfds.builder only then."""
    folder = Path(str(_tfds().__file__)).parent
    module = re.split(r"[:/]", name)[0]
    for found in sorted(folder.glob(f"*/{module}/{module}.py")) if module.isidentifier() else ():
        topic = found.parent.parent.name
        if topic not in ("core", "testing", "scripts"):
            importlib.import_module(f"tensorflow_datasets.{topic}.{module}")


def _prepare(builder: Any) -> None:
    try:
        builder.download_and_prepare()
    except Exception as error:  # builders run code of their own, and some need TensorFlow
        raise ValueError(
            f"tensorflow-datasets cannot prepare {builder.name} here: {type(error).__name__}: {_line(error)}. Prepare"
            " it elsewhere with file_format='array_record', and name its folder in task.path."
        ) from error


def _saved(path: str) -> Mapping[str, Rows]:
    datasets = _datasets()
    try:
        found = datasets.load_from_disk(path)
    except Exception as error:  # each kind of damage raises another class
        raise ValueError(
            f"{path} cannot be read: {type(error).__name__}: {_line(error)}. Write it again with save_to_disk."
        ) from error
    return found if isinstance(found, Mapping) else {"train": found}


def _check_hub(name: str) -> None:
    """Refuses a name that is none, and a hub that cannot be reached."""
    if not REPOSITORY.fullmatch(name):
        raise FileNotFoundError(
            f"{name} is no folder, and no name of a data set on the Hugging Face hub, such as openai/gsm8k."
        )
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        _check_cache(name, constants.HF_HUB_CACHE)
    elif not network.reachable(constants.ENDPOINT):  # before datasets is imported, which takes seconds
        way_out = " If datasets has it in its cache, set HF_HUB_OFFLINE=1."
        raise unavailable(name, f"{constants.ENDPOINT} is out of reach.{way_out}")


def _check_cache(name: str, hub_cache: str) -> None:
    """Refuses a data set that is in no cache, where the network must not be used."""
    datasets = _datasets()
    owner, _, rest = name.rpartition("/")
    folders = [
        Path(datasets.config.HF_DATASETS_CACHE) / (f"{owner}___{rest}" if owner else rest).lower(),
        Path(hub_cache) / f"datasets--{name.replace('/', '--')}",
    ]
    if not any(folder.is_dir() for folder in folders):
        raise unavailable(name, "HF_HUB_OFFLINE is set, and it is not in the cache of datasets.")


def unavailable(name: str, reason: str) -> FileNotFoundError:
    """The error that a data set cannot be downloaded, with the way out."""
    return FileNotFoundError(f"The data set {name} cannot be downloaded: {reason}{LOCAL}")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(". ")
