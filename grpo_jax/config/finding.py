"""Finds a config by its name alone: `quickstart` is `configs/quickstart.yaml`."""

from pathlib import Path

from grpo_jax.config.similar import closest
from grpo_jax.config.values import ConfigError

CHECKOUT = Path(__file__).parents[2]  # where the package lies, which has configs if it is a clone of the repository


def find_config(name: str) -> Path:
    """The path of a config: a file, or the name of one in the current folder, in `configs/`, or in the checkout."""
    path = Path(name)
    try:
        if path.is_file() or path.name != name:
            return path
        found = next((each for each in _known() if name in (each.name, each.stem)), None)
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}; give the path of a config file") from error
    if found is not None or path.is_dir():
        return path if found is None else found
    stems = {each.stem: each for each in reversed(_known())}
    close = closest(path.stem, stems)
    known = f", did you mean {close} ({stems[close]})?" if close else f"; there are {', '.join(sorted(stems))}"
    raise FileNotFoundError(f"there is no config file {name}{known if stems else '; give the path of a YAML file'}")


def packaged() -> list[Path]:
    """The configs that come with the package, if it is a clone of the repository."""
    return sorted((CHECKOUT / "configs").glob("*.yaml")) if (CHECKOUT / "pyproject.toml").is_file() else []


def _known() -> list[Path]:
    """The configs that have a name, those of the current folder first."""
    here = [path for folder in (Path(), Path("configs")) for path in sorted(folder.glob("*.yaml"))]
    return here + packaged()
