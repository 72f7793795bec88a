"""What is wrong with a machine or a Python, each in a line: what, and what to do. Pure functions of the facts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from grpo_jax.commands.doctor.child import PRODUCT
from grpo_jax.commands.doctor.facts import Facts, GiB
from grpo_jax.commands.doctor.installed import NAME, matches, names, unfit_plugins, unmet
from grpo_jax.commands.doctor.known import KNOWN

OLDEST_PYTHON = (3, 11)  # as requires-python in pyproject.toml says
OLDEST_DRIVER = {"cuda12": 525, "cuda13": 580}  # as JAX's page of its installation says
LEAST_FREE = 1 * GiB  # bytes of a disk: less is soon full of programs and checkpoints
DOING = {
    "start Python": "started Python",
    "import jax": "imported jax",
    "import grpo_jax": "imported grpo_jax and the libraries that it uses",
    "find devices": "looked for its devices",
    "compute": "computed on a device",
}


@dataclass(frozen=True)
class Finding:
    """Something wrong. An error keeps training from working, on this machine or on its accelerator."""

    level: Literal["error", "warning"]
    what: str
    do: str


def check(facts: Facts) -> list[Finding]:
    """All that is wrong, the errors first."""
    checks = (of_python, of_packages, of_plugins, of_known, of_jax, of_tpu, of_gpu, of_folders)
    found = [finding for look in checks for finding in look(facts)]
    return sorted(found, key=lambda finding: finding.level)


def of_python(facts: Facts) -> Iterator[Finding]:
    """A Python or a system for which there is no JAX."""
    version, oldest = ".".join(map(str, facts.python)), ".".join(map(str, OLDEST_PYTHON))
    if facts.python[:2] < OLDEST_PYTHON:
        yield Finding(
            "error", f"Python {version} is too old", f"make an environment with Python {oldest} or newer: {VENV}"
        )
    if facts.bits != 64:
        yield Finding("error", "there is no jaxlib for this Python of 32 bits", f"install one of 64 bits, then {VENV}")
    if facts.system == "Windows":
        yield Finding("error", "grpo_jax does not run on Windows", "install WSL2 (wsl --install), and work inside it")
    if (facts.system, facts.machine) == ("Darwin", "x86_64"):
        yield Finding(
            "error",
            "there is no jaxlib for Macs with Intel processors since 0.5.0",
            "on an Apple processor install a Python for arm64; on an Intel one use another machine, or Colab",
        )


VENV = "python3.13 -m venv .venv"


def of_packages(facts: Facts) -> Iterator[Finding]:
    """Packages that are missing, or of versions that this package or one that it uses does not go with."""
    if "packaging" not in facts.versions:  # which compares versions
        missing = [name for name in names(facts.asked.get(NAME, [])) if name not in facts.versions]
        yield Finding("error", f"packages are missing: {', '.join(missing)}", _install(*missing))
        return
    for owner, name, wanted, found in unmet(facts.versions, facts.asked):
        state = f"{name} is missing" if found is None else f"{name} {found} is installed"
        weighs = found is None or owner in (NAME, "jax", "jaxlib")  # elsewhere an upper bound may be caution alone
        yield Finding(
            "error" if weighs else "warning", f"{state}, and {owner} needs {name}{wanted}", _install(name + wanted)
        )


def of_plugins(facts: Facts) -> Iterator[Finding]:
    """Libraries of an accelerator that are of another version than JAX."""
    if "packaging" not in facts.versions or "jax" not in facts.versions:
        return
    jax = facts.versions["jax"]
    for name, found, wanted, extra in unfit_plugins(facts.versions, facts.asked.get("jax", [])):
        unused = name == "libtpu" and not facts.chips
        yield Finding(
            "warning" if unused else "error",
            f"{name} {found} is installed, and jax {jax} goes with {name}{wanted}"
            + ("" if name == "libtpu" else "; others can end the process, also on CPUs (jax-ml/jax#24901)"),
            _install(f"jax[{extra}]=={jax}"),
        )


def of_known(facts: Facts) -> Iterator[Finding]:
    """Versions that are known to go wrong."""
    if "packaging" not in facts.versions:
        return
    kinds = " ".join(facts.jax.found.get("kinds", ()))
    for known in KNOWN:
        here = known.on in (None, facts.jax.platform) and known.kind in kinds
        if here and matches(facts.versions, known.versions):
            yield Finding("error" if known.stops else "warning", known.what, known.do)


def of_jax(facts: Facts) -> Iterator[Finding]:
    """JAX does not answer, fails, or computes wrongly."""
    answer = facts.jax
    if answer.hung is not None:
        yield Finding(
            "error",
            f"JAX {DOING[answer.hung]}, and was not done after {facts.seconds:.0f} seconds",
            _way_out_of_hanging(facts),
        )
    if answer.died is not None:
        yield Finding(
            "error",
            f"the process that {DOING[answer.died]} was ended {answer.complaint}",
            _way_out_of_death(facts),
        )
    for stage, error in answer.errors.items():
        if stage != "import jax" or "jax" in facts.versions:  # else it is already said that jax is missing
            yield Finding("error", f"cannot {stage}: {_line(error)}", _way_out_of_error(facts, stage))
    computed = answer.found.get("computed", PRODUCT)
    if computed != PRODUCT:
        yield Finding(
            "error",
            f"the {answer.platform} computes {computed} where {PRODUCT} is right",
            "try another version of jax, then another machine: this device or its driver is broken",
        )


def _way_out_of_hanging(facts: Facts) -> str:
    if facts.jax.hung not in ("find devices", "compute"):
        return "a disk may be slow or on the network: try again with --seconds 300"
    if facts.holders:
        return _end_holders(facts)
    if facts.chips:
        return (
            "on a slice of several hosts run this on all hosts at once; on one host look for a process that uses the"
            " chips (sudo lsof -w /dev/accel* /dev/vfio/*), or restart the machine"
        )
    return "JAX_PLATFORMS=cpu grpo-jax doctor tells whether it is the accelerator; if so, restart the machine"


def _way_out_of_death(facts: Facts) -> str:
    if "XLA_FLAGS" in facts.jax.complaint:
        return f"take that flag out of XLA_FLAGS, which is {facts.variables.get('XLA_FLAGS', 'not set')}"
    return (
        f"install jax, jaxlib and the library of the accelerator anew in one command: {_install(f'jax{_same(facts)}')}"
    )


def _way_out_of_error(facts: Facts, stage: str) -> str:
    if stage == "import grpo_jax":
        return "bring the packages to versions that go together: pip install -U jax flax optax orbax-checkpoint"
    if facts.holders:
        return _end_holders(facts)
    if stage == "find devices" and "JAX_PLATFORMS" in facts.variables:
        return f"JAX_PLATFORMS is {facts.variables['JAX_PLATFORMS']}: unset it, and JAX chooses what there is"
    return "install jax and jaxlib anew: pip install --force-reinstall jax"


def of_tpu(facts: Facts) -> Iterator[Finding]:
    """TPU chips that JAX does not use."""
    if not facts.chips or facts.jax.platform in (None, "tpu"):
        return
    what = f"this machine has {len(facts.chips)} TPU chip(s), and JAX uses the {facts.jax.platform}"
    if "libtpu" not in facts.versions:
        yield Finding("error", f"{what}: libtpu is missing", _install(f"jax[tpu]{_same(facts)}"))
    elif "tpu" not in facts.variables.get("JAX_PLATFORMS", "tpu"):
        yield Finding("warning", f"{what}, as JAX_PLATFORMS says", "unset JAX_PLATFORMS to train on the TPU")
    elif facts.holders:
        yield Finding("error", f"{what}: other processes use the chips", _end_holders(facts))
    else:
        yield Finding(
            "error",
            f"{what}{_reason(facts, 'tpu')}",
            "end programs that import tensorflow or torch_xla, which take the TPU for themselves; then"
            f" {_install(f'jax[tpu]{_same(facts)}')}",
        )


def of_gpu(facts: Facts) -> Iterator[Finding]:
    """NVIDIA GPUs that JAX does not use, and drivers that are too old for its library."""
    plugins = sorted({name.split("-")[1] for name in facts.versions if name.startswith("jax-cuda")})
    for plugin in plugins if facts.gpus and facts.driver else ():
        oldest = OLDEST_DRIVER.get(plugin, 0)
        if int(str(facts.driver).split(".")[0]) < oldest:
            yield Finding(
                "error",
                f"NVIDIA's driver {facts.driver} is too old for JAX with {plugin}, which needs {oldest} or newer",
                "install a newer driver"
                + (f", or {_install(f'jax[cuda12]{_same(facts)}')}" if plugin != "cuda12" else ""),
            )
    if not facts.gpus or facts.jax.platform in (None, "gpu", "tpu"):
        return
    what = f"this machine has {len(facts.gpus)} NVIDIA GPU(s), and JAX uses the {facts.jax.platform}"
    if not plugins:
        yield Finding("error", f"{what}: it has no library for them", _install(f"jax[cuda12]{_same(facts)}"))
    elif not {"cuda", "gpu"} & set(facts.variables.get("JAX_PLATFORMS", "cuda").split(",")):
        yield Finding("warning", f"{what}, as JAX_PLATFORMS says", "unset JAX_PLATFORMS to train on the GPU")
    else:
        path = "LD_LIBRARY_PATH" in facts.variables
        yield Finding(
            "error",
            f"{what}{_reason(facts, 'cuda')}",
            ("unset LD_LIBRARY_PATH, which can hide the CUDA libraries that pip installed; then " if path else "")
            + _install(f"jax[{plugins[0]}]{_same(facts)}"),
        )


def of_folders(facts: Facts) -> Iterator[Finding]:
    """Folders that are full, or that cannot be written to."""
    elsewhere = {
        "runs": "start from another folder, or set run.root",
        "programs": "set JAX_COMPILATION_CACHE_DIR",
        "converted models": "set GRPO_JAX_CACHE",
        "downloads": "set HF_HOME",
    }
    for name, folder in facts.folders.items():
        if not folder.writable:
            yield Finding("warning", f"{folder.path} cannot be written to; {name} go there", elsewhere[name])
        elif folder.free < LEAST_FREE:
            free = f"{folder.free / GiB:.1f} GiB"
            yield Finding(
                "warning", f"{folder.path} has {free} left; {name} go there", f"free some, or {elsewhere[name]}"
            )


def _install(*requirements: str) -> str:
    return "pip install " + " ".join(f'"{requirement}"' for requirement in requirements)


def _same(facts: Facts) -> str:
    """The installed version of jax, as the end of a requirement."""
    return f"=={facts.versions['jax']}" if "jax" in facts.versions else ""


def _end_holders(facts: Facts) -> str:
    return f"end, or wait for, the process that uses the chips: {', '.join(facts.holders)}"


def _reason(facts: Facts, platform: str) -> str:
    """What JAX says about a platform that it could not use."""
    texts = [text for text in facts.jax.reasons if f"'{platform}'" in text]
    return f": {_line(texts[-1])}" if texts else ""


def _line(text: str) -> str:
    """A text as one line, without its end if it is long."""
    flat = " ".join(text.split())
    return flat if len(flat) <= 300 else f"{flat[:300]} ..."
