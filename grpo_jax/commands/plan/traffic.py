"""The bytes that each instruction of a compiled program reads from and writes to the chip's large memory (HBM).

Tiles count with their padding. A slice of an array, and an update in place, count as what they touch. Copies into the
core's memory that run beside other instructions (prefetches) belong to the instruction that uses what they bring.
"""

from collections import defaultdict

from grpo_jax.commands.plan.instructions import Computation, Instruction, ProgramText

PREFETCHES = ("copy-start", "slice-start")
# These move nothing themselves: their operands are where their results are, or another line counts what they move.
COLLECTIVES = ("collective-permute", "all-gather", "all-reduce", "reduce-scatter", "all-to-all")
FREE = {
    *COLLECTIVES,
    *("parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while", "conditional", "call", "after-all"),
    *("opt-barrier", "partition-id", "replica-id", "copy-done", "slice-done", "async-update", "async-done", "domain"),
    *("send", "recv", "send-done", "recv-done", "all-gather-done", "all-reduce-done", "collective-permute-done"),
    *("async-start", "collective-permute-start", "all-gather-start", "all-reduce-start", *PREFETCHES),
}
FREE_CALLS = ("ConcatBitcast", "AllocateBuffer", "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape")
SLICES = ("dynamic-slice", "slice", "gather")


def is_free(each: Instruction) -> bool:
    """Whether an instruction neither computes nor moves anything itself."""
    return each.op in FREE or (each.op == "custom-call" and any(f'"{name}"' in each.attributes for name in FREE_CALLS))


def moved(each: Instruction, around: Computation, program: ProgramText) -> int:
    """The bytes that one run of an instruction reads and writes."""
    if is_free(each):
        return 0
    operands = [around[name].hbm_bytes if name in around else 0 for name in each.operands]
    inner = program.computations.get(each.called("calls"))
    if inner:
        return _read(inner, operands, program) + _written(inner, each)
    if each.op == "dynamic-update-slice":
        update = around.get(each.operands[1])
        return 2 * update.all_bytes if update is not None and each.hbm_bytes else 0
    if each.op in SLICES:
        return min(each.all_bytes, operands[0]) + each.hbm_bytes if operands else each.hbm_bytes
    return sum(operands) + each.hbm_bytes


def read(each: Instruction, around: Computation) -> int:
    """The bytes of all operands of an instruction that are in the large memory."""
    return sum(around[name].hbm_bytes for name in each.operands if name in around)


def prefetched(each: Instruction) -> int:
    """The bytes that a prefetch, or a copy back, moves through the chip's large memory."""
    if each.op not in PREFETCHES or len(each.results) < 2:
        return 0
    # a copy has its target and its source, a slice the whole source and its part
    source, target = each.results[:2]
    return target.bytes * (source.in_hbm + target.in_hbm)


def users(around: Computation) -> dict[str, list[Instruction]]:
    """The instructions that use the result of each."""
    found: dict[str, list[Instruction]] = defaultdict(list)
    for each in around.values():
        for name in each.operands:
            found[name].append(each)
    return found


def user_of(each: Instruction, used_by: dict[str, list[Instruction]]) -> Instruction | None:
    """The first instruction that computes with what a prefetch brings; None if it goes elsewhere."""
    for user in used_by.get(each.name, []):
        if user.op == "tuple":
            continue
        found = user_of(user, used_by) if is_free(user) else user
        if found is not None:
            return found
    return None


def _read(inner: Computation, operands: list[int], program: ProgramText) -> int:
    total = 0
    for each in inner.values():
        if each.op == "parameter" and int(each.arguments) < len(operands):
            whole = operands[int(each.arguments)]
            touched = _touched(each.name, inner, program)
            total += whole if touched is None else min(touched, whole)
    return total


def _touched(name: str, inner: Computation, program: ProgramText) -> int | None:
    """The bytes that a fusion, and fusions in it, read of one of its operands; None if all of them. Nothing is read of
    what it only hands on, nor of what a collective in it brings from other chips beside its own work.
    """
    if inner[name].root:  # what is around uses all of it
        return None
    total = 0
    for user in users(inner).get(name, []):
        if user.op in COLLECTIVES or (user.op == "tuple" and user.root):
            continue
        within = program.computations.get(user.called("calls")) if user.op == "fusion" else None
        if user.op == "bitcast" or within:
            parts = [_touched(*place, program) for place in _places(name, user, inner, within)]
            if any(part is None for part in parts):
                return None
            total += sum(part for part in parts if part is not None)
        elif user.op in SLICES and user.operands[0] == name:
            total += user.all_bytes
        elif user.op != "dynamic-update-slice" or user.operands[0] != name:
            return None
    return total


def _places(
    name: str, user: Instruction, inner: Computation, within: Computation | None
) -> list[tuple[str, Computation]]:
    """Where an array goes on: as the result of a bitcast, or as parameters of a fusion."""
    if within is None:
        return [(user.name, inner)]
    indices = {str(index) for index, operand in enumerate(user.operands) if operand == name}
    return [(each.name, within) for each in within.values() if each.op == "parameter" and each.arguments in indices]


def _written(inner: Computation, fusion: Instruction) -> int:
    root = next((each for each in inner.values() if each.root), None)
    if root is None:
        return fusion.hbm_bytes
    results = [inner[name] for name in root.operands if name in inner] if root.op == "tuple" else [root]
    if len(results) != len(fusion.results):
        return fusion.hbm_bytes
    pairs = zip(results, fusion.results, strict=True)
    return sum(min(_updated(each, inner, whole.bytes), whole.bytes) for each, whole in pairs if whole.in_hbm)


def _updated(each: Instruction, inner: Computation, whole: int) -> int:
    """What an update in place writes of its array, and nothing of an operand or of what a collective brings; else all
    of it.
    """
    while each.op == "bitcast" and each.operands[0] in inner:
        each = inner[each.operands[0]]
    if each.op == "parameter" or each.op in COLLECTIVES:
        return 0
    update = inner.get(each.operands[1]) if each.op == "dynamic-update-slice" else None
    return whole if update is None else update.all_bytes
