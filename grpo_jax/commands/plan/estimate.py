"""What a config needs on one device of any kind, estimated from shapes: nothing is compiled.

Weights, optimiser and caches are counted exactly. Temporaries are those of an attention that is fused, as on TPUs and
GPUs, and a compiler may need more or fewer.
"""

from grpo_jax.commands.plan.case import Case
from grpo_jax.commands.plan.programs import Phase, decoding_inputs
from grpo_jax.devices.memory import device_bytes
from grpo_jax.learner.room import MARGIN

ACCURACY = "the compiler may need a tenth more, so keep that much free"


def estimated(case: Case) -> tuple[Phase, dict[int, Phase]]:
    """What sampling needs, and learning by the number of responses at once."""
    return estimated_sampling(case), {n: estimated_learning(case, n) for n in case.choices}


def estimated_sampling(case: Case) -> Phase:
    """The train state, the copy for sampling and the longest caches, beside the logits of all rows or a layer of all
    prompts, whichever needs more.
    """
    shape, (P, G, _) = case.shape, case.sampled
    arguments = device_bytes(decoding_inputs(case))
    logits = 2 * 4 * P * G * shape.vocabulary
    wide = 3 * shape.feedforward + 2 * shape.width + (shape.heads + 2 * shape.kv_heads) * shape.channels
    temporary = int(MARGIN * max(logits, 2 * P * case.length * wide))
    return Phase(device_bytes(case.state) + case.other_bytes + arguments + temporary, arguments, temporary)


def estimated_learning(case: Case, responses_at_once: int) -> Phase:
    """The peak of learning from so many responses at once."""
    peak = case.estimated_peak(responses_at_once) - _offloaded(case, responses_at_once)
    held = device_bytes(case.state) + case.other_bytes
    return Phase(peak, held, peak - held)


def _offloaded(case: Case, responses_at_once: int) -> int:
    """The bytes of the inputs of all layers, if they are kept in the host's memory."""
    if case.remat != "offload" or case.algorithm.gradients == "by_layer":
        return 0
    tokens = responses_at_once * (case.length / case.sampler.responses + case.sampler.max_tokens)
    return int(MARGIN * 2 * tokens * case.shape.width * case.shape.layers)
