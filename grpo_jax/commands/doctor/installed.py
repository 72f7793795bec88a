"""Which packages are installed, and what each asks of the others, from their metadata: none of them is imported."""

import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

NAME = "grpo-jax"
ACCELERATOR = re.compile(r"libtpu|jax-(cuda|rocm)\d*-(plugin|pjrt)")  # packages that let JAX use an accelerator
EXTRAS = ("tpu", "cuda12", "cuda13", "rocm7-local")  # of jax, which say what versions of those it needs


def all_versions() -> dict[str, str]:
    """The version of each installed package, by its normal name. Of two with one name, Python imports the first."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        if distribution.metadata["Name"]:  # one that was half removed has none
            found.setdefault(normal(distribution.metadata["Name"]), distribution.version)
    return found


def normal(name: str) -> str:
    """The name of a package as the index normalizes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(checkout: Path) -> dict[str, list[str]]:
    """What this package asks for, and what each of those asks for; from pyproject.toml where it is not installed."""
    own = _requires(NAME) or _of_checkout(checkout)
    return {NAME: own} | {name: _requires(name) for name in names(own)}


def names(lines: list[str]) -> list[str]:
    """The packages that requirements name, but for those of extras."""
    found = [re.match(r"[\w.-]+", line) for line in lines if "extra ==" not in line]
    return [normal(name[0]) for name in found if name is not None]


def _requires(name: str) -> list[str]:
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def _of_checkout(checkout: Path) -> list[str]:
    try:
        import tomllib

        project: dict[str, Any] = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))
        return project["project"]["dependencies"]
    except (OSError, ImportError, KeyError):  # not a checkout, or a Python before 3.11
        return []


def unmet(versions: dict[str, str], asked: dict[str, list[str]]) -> Iterator[tuple[str, str, str, str | None]]:
    """Each requirement that does not hold: who asks, for which package, of which versions, and which is installed."""
    from packaging.requirements import Requirement

    for owner, lines in asked.items():
        if owner != NAME and owner not in versions:
            continue
        for wanted in map(Requirement, lines):
            if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
                continue
            found = versions.get(normal(wanted.name))
            if found is None or not wanted.specifier.contains(found, prereleases=True):
                yield owner, wanted.name, str(wanted.specifier), found


def unfit_plugins(versions: dict[str, str], of_jax: list[str]) -> Iterator[tuple[str, str, str, str]]:
    """Each installed package for an accelerator whose version JAX does not go with: name, version, wanted, extra."""
    from packaging.requirements import Requirement

    for wanted in map(Requirement, of_jax):
        name = normal(wanted.name)
        for extra in EXTRAS if ACCELERATOR.fullmatch(name) and name in versions else ():
            asks = wanted.marker is not None and wanted.marker.evaluate({"extra": extra})
            if asks and not wanted.specifier.contains(versions[name], prereleases=True):
                yield name, versions[name], str(wanted.specifier), extra


def matches(versions: dict[str, str], specifiers: dict[str, str]) -> bool:
    """Whether all packages that are named are installed in the versions that are named."""
    from packaging.specifiers import SpecifierSet

    return all(
        name in versions and SpecifierSet(specifier).contains(versions[name], prereleases=True)
        for name, specifier in specifiers.items()
    )
