"""Prints the facts and the findings."""

import argparse
import dataclasses
from typing import Any

from grpo_jax import __version__
from grpo_jax.commands.doctor.checks import Finding, check
from grpo_jax.commands.doctor.facts import Facts, GiB, look
from grpo_jax.commands.doctor.installed import ACCELERATOR
from grpo_jax.commands.printing import print_json, show

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "datasets", "numpy")
OTHERS = ("jax-metal", "torch-xla", "tensorflow", "tensorflow-tpu")  # which may take an accelerator for themselves


def run(arguments: argparse.Namespace) -> int:
    """Looks at this machine and prints what was found; 1 if something keeps training from working, else 0."""
    facts = look(arguments.seconds)
    findings = check(facts)
    if arguments.json:
        print_json(arguments, as_data(facts, findings))
    else:
        show("\n".join([*described(facts), "", *(map(told, findings) if findings else ["no problem found"])]))
    return int(any(finding.level == "error" for finding in findings))


def told(finding: Finding) -> str:
    """A finding as a line."""
    return f"{finding.level}: {finding.what}. To do: {finding.do}."


def as_data(facts: Facts, findings: list[Finding]) -> dict[str, Any]:
    """The facts and findings for a program; of the packages, those that are printed."""
    seen = dataclasses.asdict(facts)
    del seen["asked"]
    seen["versions"] = {name: facts.versions.get(name) for name in (*PACKAGES, *_accelerators(facts))}
    return {"grpo_jax": __version__, **seen, "findings": [dataclasses.asdict(finding) for finding in findings]}


def described(facts: Facts) -> list[str]:
    """The facts as lines of text."""
    memory = "" if facts.memory is None else f", {facts.memory / GiB:.1f} GiB of memory free"
    versions = [f"{name} {facts.versions.get(name, '(missing)')}" for name in PACKAGES]
    lines = {
        "grpo_jax": f"{__version__}, from {facts.package}",
        "python": f"{'.'.join(map(str, facts.python))} on {facts.named}, {facts.processors} processor(s){memory}",
        "packages": ", ".join(versions),
        "for devices": ", ".join(f"{name} {facts.versions[name]}" for name in _accelerators(facts)) or "nothing",
        "devices": _devices(facts),
        **{name: f"{folder.path}, {folder.free / GiB:.0f} GiB free" for name, folder in facts.folders.items()},
        "sandbox": "works" if facts.sandbox is None else f"not for code of responses: {facts.sandbox}",
        "variables": ", ".join(f"{name}={value}" for name, value in facts.variables.items()) or "none that matter",
    }
    return [f"{name:<17} {line}" for name, line in lines.items()]


def _accelerators(facts: Facts) -> list[str]:
    return sorted(name for name in facts.versions if ACCELERATOR.fullmatch(name) or name in OTHERS)


def _devices(facts: Facts) -> str:
    """What JAX found, beside what the machine has."""
    has = [f"{len(facts.chips)} TPU chip(s)"] if facts.chips else []
    driver = "" if facts.driver is None else f" with driver {facts.driver}"
    has += [f"{len(facts.gpus)} NVIDIA GPU(s){driver}"] if facts.gpus else []
    machine = f" (the machine has {', '.join(has)})" if has else ""
    found, took = facts.jax.found, facts.jax.seconds
    if facts.jax.platform is None:
        return f"JAX found none{machine}"
    memory = "" if found["memory"] is None else f" of {found['memory'] / GiB:.1f} GiB each"
    hosts = f", one of {found['hosts']} hosts" if found["hosts"] > 1 else ""
    return (
        f"JAX chose {facts.jax.platform}: {found['devices']} x {', '.join(found['kinds'])}{memory}{hosts}, in"
        f" {sum(took.values()):.1f} s{machine}"
    )
