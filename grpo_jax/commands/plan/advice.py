"""Settings with which a device needs less memory, and the bytes that each saves."""

from typing import Any

from grpo_jax.commands.plan.case import Case
from grpo_jax.commands.plan.programs import Phase
from grpo_jax.commands.plan.search import FAR_TOO_MUCH, fits
from grpo_jax.commands.plan.topology import AnyDevice
from grpo_jax.devices.mesh import prompt_shards
from grpo_jax.devices.sharding import devices_per_group
from grpo_jax.rollout.sizes import prompts_held, subgroups_at_once

Saved = dict[str, int | float]
IN_BYTES = 2 * (1 + 4 / 128)  # bytes of a parameter's two moments in 8 bits, with a scale for each 128


def advice(case: Case, figures: dict[str, Any], sample: Phase, learned: dict[int, Phase]) -> list[str]:
    """At most three changes of settings, those first that save most; a larger slice comes last.

    `learned` is what learning needs, by the number of responses at once, for the numbers that were tried.
    """
    found = _for_state(case, figures)
    if not fits(case, sample):
        found |= _for_sampling(case, figures)
    if not fits(case, learned[case.responses_at_once]):
        found |= _for_learning(case, figures, learned)
    ranked = sorted((name for name, saved in found.items() if saved > 0), key=lambda name: found[name], reverse=True)
    return [*ranked, "a device with more memory" if isinstance(case.slice, AnyDevice) else "a larger slice"][:3]


def _for_state(case: Case, figures: dict[str, Any]) -> Saved:
    """Settings that make smaller what is always in memory."""
    weights, optimizer = figures["weights_bytes"], case.config.optimizer
    on_a_slice = not isinstance(case.slice, AnyDevice)  # whose chips read the host's memory; other devices may not
    found: Saved = {}
    if optimizer.arguments.get("moments_in") == "device":
        found["optimizer.use=adafactor"] = figures["optimizer_bytes"]
        of_one = {"float32": 8, "bfloat16": 6, "int8": IN_BYTES}[optimizer.arguments["moments"]]  # bytes a parameter
        found["optimizer.moments=int8"] = figures["optimizer_bytes"] * (1 - IN_BYTES / of_one)
        found["optimizer.moments_in=host"] = figures["optimizer_bytes"] if on_a_slice else 0
    if case.algorithm.policy.frozen and "int8" not in figures["weights_type"]:
        found["model.weights=int8"] = weights / 2
    elif "float32" in figures["weights_type"]:
        found["model.weights=bfloat16"] = weights / 2
    if figures["reference_bytes"]:
        found["an objective without KL"] = weights
    if data := case.mesh.shape["data"] - 1:
        saved = (weights + figures["optimizer_bytes"]) * data / (data + 1)
        found[f"mesh.fsdp={case.mesh.shape['fsdp'] * (data + 1)} mesh.data=1"] = saved
    return found


def _for_sampling(case: Case, figures: dict[str, Any]) -> Saved:
    """Settings that make the caches smaller."""
    sampler, caches = case.sampler, figures["kv_cache_bytes"]
    found: Saved = {}
    if sampler.max_tokens > 1:
        saved = caches * sampler.responses / (2 * sampler.responses + 1)
        found[f"{case.longest}={sampler.max_tokens // 2}"] = saved
    if not sampler.int8_cache:
        found["rollout.int8_cache=true"] = caches / 2
    held, fewer = case.sampled[0], _half_of_the_prompts(case)
    if fewer is not None:
        found[f"rollout.at_once={fewer[0]}"] = caches * (1 - fewer[1] / held)
    return found


def _half_of_the_prompts(case: Case) -> tuple[int, int] | None:
    """An `at_once` of half the prompts held now, and how many subgroups a host then holds; None if not fewer."""
    held, hosts = case.sampled[0], case.mesh.size // case.host_mesh.size
    spread = devices_per_group(case.settings.prompts, case.sampler.responses, case.mesh)
    at_once = max(held * hosts // spread // 2, 1)
    subgroups = prompts_held(held, subgroups_at_once(at_once, spread, hosts), prompt_shards(case.host_mesh))
    return (at_once, subgroups) if subgroups < held else None


def _for_learning(case: Case, figures: dict[str, Any], learned: dict[int, Phase]) -> Saved:
    """Settings that make the temporaries of the backward pass smaller."""
    sampler, shape, now = case.sampler, case.shape, case.responses_at_once
    temporary = learned[now].temporary or case.slice.chip.memory  # the compiler does not say by how much it failed
    found = _for_microbatches(case, learned)
    if sampler.max_tokens > 1:
        found[f"{case.longest}={sampler.max_tokens // 2}"] = temporary / 2
    tokens = now * (case.length / sampler.responses + sampler.max_tokens)
    if case.algorithm.gradients == "whole" and case.algorithm.policy.layered and not case.algorithm.policy.frozen:
        gradient = figures["weights_bytes"]
        found["algorithm.gradients=by_layer"] = gradient - gradient / shape.layers
    remat = case.remat
    if remat in ("none", "products", "attention"):
        heads, products = shape.heads * shape.channels, 2 * shape.width + 3 * shape.feedforward
        wide = heads if remat == "attention" else 2 * heads + 2 * shape.kv_heads * shape.channels + products
        found["model.remat=full"] = min(2 * tokens * wide * shape.layers / case.mesh.shape["tensor"], temporary)
    elif remat == "full":
        found["model.remat=offload"] = min(2 * tokens * shape.width * shape.layers, temporary)
    return found


def _for_microbatches(case: Case, learned: dict[int, Phase]) -> Saved:
    """Another number of responses at once: the most that fit, else that of the lowest peak of those that were tried.

    Fewer may need more, as the gradients of several microbatches are added up. Where nothing else was tried, peaks are
    estimated.
    """
    now, memory = case.responses_at_once, case.slice.chip.memory
    peaks = {n: phase.peak for n, phase in learned.items() if phase.peak is not None}
    present = peaks.pop(now, FAR_TOO_MUCH * memory)
    if len(learned) == 1:
        present = case.estimated_peak(now)
        peaks = {n: case.estimated_peak(n) for n in case.choices if n < now}
    if not peaks:
        return {}
    fitting = [n for n, peak in peaks.items() if peak <= memory]
    best = max(fitting) if fitting else min(peaks, key=lambda n: peaks[n])
    return {f"algorithm.responses_at_once={best}": present - peaks[best]}
