"""Settings that make a step smaller, and the bytes that each saves on a device."""

from typing import Any

from grpo_jax.commands.plan.case import Case
from grpo_jax.commands.plan.programs import Phase
from grpo_jax.commands.plan.search import fits
from grpo_jax.devices.mesh import prompt_shards

Saved = dict[str, int | float]


def advice(case: Case, figures: dict[str, Any], sample: Phase, train: Phase) -> list[str]:
    """The three settings that save most of what is too much, in that order; none that is set already."""
    found = _for_state(case, figures)
    if not fits(case, sample):
        found |= _for_sampling(case, figures)
    if not fits(case, train):
        found |= _for_learning(case, figures, train)
    ranked = sorted((name for name, saved in found.items() if saved > 0), key=lambda name: found[name], reverse=True)
    return [*ranked, "a larger slice"][:3]


def _for_state(case: Case, figures: dict[str, Any]) -> Saved:
    """Settings that make smaller what is always in memory."""
    weights, optimizer = figures["weights_bytes"], case.config.optimizer
    found: Saved = {}
    if "moments" in optimizer.arguments:
        found["optimizer.use=adafactor"] = 2 * weights
        if optimizer.arguments["moments"] == "float32":
            found["optimizer.moments=bfloat16"] = weights / 2
    if figures["reference_bytes"]:
        found["an objective without KL"] = weights
    if data := case.mesh.shape["data"] - 1:
        saved = (weights + figures["optimizer_bytes"]) * data / (data + 1)
        found[f"mesh.fsdp={case.mesh.size // case.mesh.shape['tensor']} mesh.data=1"] = saved
    return found


def _for_sampling(case: Case, figures: dict[str, Any]) -> Saved:
    sampler, caches = case.sampler, figures["kv_cache_bytes"]
    found: Saved = {
        f"rollout.max_tokens={sampler.max_tokens // 2}": caches * sampler.responses / (2 * sampler.responses + 1)
    }
    rows, _, rounds = case.sampled
    if rows > prompt_shards(case.host_mesh):
        held = -(-case.settings.prompts // rounds)
        found[f"rollout.at_once={held // 2}"] = caches / 2
    if not sampler.int8_cache:
        found["rollout.int8_cache=true"] = caches / 2
    return found


def _for_learning(case: Case, figures: dict[str, Any], train: Phase) -> Saved:
    sampler, shape, now = case.sampler, case.shape, case.responses_at_once
    temporary = train.temporary or case.slice.chip.memory  # the compiler does not say by how much it failed
    found: Saved = {f"rollout.max_tokens={sampler.max_tokens // 2}": temporary / 2}
    second_gradient = figures["weights_bytes"] if now == case.choices[0] else 0
    fewer = figures["largest_responses_at_once"] or next((n for n in case.choices if n < now), None)
    if fewer is not None and fewer < now:
        found[f"algorithm.responses_at_once={fewer}"] = temporary * (1 - fewer / now) - second_gradient
    tokens = now * (case.length / sampler.responses + sampler.max_tokens)
    inputs = 2 * tokens * shape.width * shape.layers
    remat = case.config.model.arguments["remat"]
    if remat in ("none", "products"):
        wide = 2 * (shape.heads + shape.kv_heads) * shape.channels + 2 * shape.width + 3 * shape.feedforward
        found["model.remat=full"] = min(2 * tokens * wide * shape.layers / case.mesh.shape["tensor"], temporary)
    elif remat == "full":
        found["model.remat=offload"] = min(inputs, temporary)
    return found
