"""Which part of a step an instruction belongs to, by the scopes that the code was traced in (`jax.named_scope`)."""

import re
from collections import Counter

from grpo_jax.commands.plan.instructions import Computation, Instruction, ProgramText

# The scopes of the code, and the programs, that a part consists of. The outermost counts: the product of a head is
# the head's.
SCOPES = {
    "optimiser": "optimiser",
    "choice": "choosing tokens",
    "head": "head",
    "embedding": "embedding",
    "attention": "attention",
    "cache": "attention",  # new keys and values are written
    "products": "products",
    "norm": "norms and rotations",
    "rotation": "norms and rotations",
}
REST = "the rest"
COLLECTIVES = "collectives"
PARTS = (*dict.fromkeys(SCOPES.values()), REST)
SELDOM = "seldom"  # the scope of a branch that hardly ever runs
PRODUCTS = ("convolution", "dot", "custom-call", "ragged-dot")
COLLECTIVE = re.compile(r"all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute")


def part_of(each: Instruction, program: ProgramText) -> str:
    """The part of an instruction: of a fusion that has products in it that of its products, else that of its result,
    else that of most of what it computes.
    """
    inner = program.computations.get(each.called("calls"), {})
    heavy = [part for one in inner.values() if one.op in PRODUCTS and (part := part_of_path(one.path))]
    if heavy:
        return Counter(heavy).most_common(1)[0][0]
    return part_of_path(each.path) or _most_common(inner) or REST


def part_of_path(path: str) -> str | None:
    """The part of the outermost scope in a path that has one."""
    return next((SCOPES[word] for word in re.findall(r"[\w.]+", path) if word in SCOPES), None)


def is_seldom(computation: Computation) -> bool:
    """Whether a branch of a conditional hardly ever runs."""
    return any(re.search(rf"\b{SELDOM}\b", each.path) for each in computation.values())


def _most_common(inner: Computation) -> str | None:
    found = Counter(part for each in inner.values() if (part := part_of_path(each.path)))
    return found.most_common(1)[0][0] if found else None
