"""Finds a config by its name alone: `quickstart` is `quickstart.yaml`.

Every command looks in the same order: the path that was given, then, for a name without a folder, the current folder,
its folder `configs`, and the configs that come with the package.
"""

from pathlib import Path

from grpo_jax.config.similar import closest
from grpo_jax.config.values import ConfigError

PACKAGE = Path(__file__).parents[1]


def find_config(name: str) -> Path:
    """The path of a config: a file, or the name of one in the current folder, in `configs/`, or of the package."""
    path = Path(name)
    try:
        found = path if path.is_file() else None if path.name != name else _named(name, [*_here(), *packaged()])
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}; give the path of a config file") from error
    if found is not None or path.is_dir():
        return path if found is None else found
    raise FileNotFoundError(f"there is no config file {name}{instead_of(path)}")


def find_base(name: str, config: Path) -> Path:
    """The path of the file that a config is based on: a path from its own folder, or the name of one of the package."""
    beside = config.parent / Path(name).expanduser()
    found = None if beside.is_file() or Path(name).name != name else _named(name, packaged())
    return beside if found is None else found


def packaged() -> list[Path]:
    """The configs that come with the package: in its own folder where it is installed, beside it in a clone."""
    clone = PACKAGE.parent
    folder = clone if (clone / "pyproject.toml").is_file() else PACKAGE
    return sorted((folder / "configs").glob("*.yaml"))


def instead_of(path: Path) -> str:
    """The end of a message about a config that is not there: the one that may be meant, or those of the package."""
    shipped = packaged()
    if path.name != str(path) and _named(path.name, shipped) is not None:
        return f"; {path.stem} comes with the package, so write its name alone: {path.stem}"
    beside = _here() if path.parent == Path() else sorted(path.parent.glob("*.yaml"))
    known = {each.stem: each for each in [*shipped, *reversed(beside)]}
    close = closest(path.stem, known)
    if close is not None:
        return f", did you mean {close} ({known[close]})?"
    names = ", ".join(each.stem for each in shipped)
    return f"; give the path of a YAML file, or the name of one that comes with the package: {names}"


def _here() -> list[Path]:
    return [path for folder in (Path(), Path("configs")) for path in sorted(folder.glob("*.yaml"))]


def _named(name: str, configs: list[Path]) -> Path | None:
    return next((each for each in configs if name in (each.name, each.stem)), None)
