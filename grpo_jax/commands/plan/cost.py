"""What a compiled program costs on a chip, by part: cycles of cores and matrix units, and bytes of memory.

A kernel takes the longest of three times: its bundles, what its busiest matrix unit multiplies, and its bytes over the
bandwidth. Prefetches run beside other kernels, so a part takes the sum over its kernels or its bytes with those of its
prefetches over the bandwidth, whichever is longer. All of them are lower bounds: nothing waits.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from grpo_jax.commands.plan.bundles import Kernel
from grpo_jax.commands.plan.instructions import Computation, Instruction, ProgramText
from grpo_jax.commands.plan.parts import COLLECTIVE, is_seldom, part_of
from grpo_jax.commands.plan.topology import Chip
from grpo_jax.commands.plan.traffic import PREFETCHES, is_free, moved, prefetched, read, user_of, users
from grpo_jax.models.attention import KERNEL

NOTHING = Kernel(0, 0.0)


class Live(NamedTuple):
    """What the kernel that reads only what lives of its caches does in the mean: the share that it reads of them, and
    the trips of its loop over blocks.
    """

    share: float
    trips: float


SMALL = 4096  # bytes; numbers of up to a tile are computed without a kernel


@dataclass(frozen=True)
class Cost:
    """Seconds of the cores, of their matrix units, and of the longest of all by kernel; bytes of memory; kernels, and
    those of them whose bundles are unknown.
    """

    core: float = 0.0
    products: float = 0.0
    kernels: float = 0.0
    bytes: float = 0.0
    count: float = 0.0
    unknown: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Cost(*(a + b for a, b in pairs))

    def times(self, n: int | float) -> "Cost":
        """That of n runs."""
        return Cost(*(a * n for a in vars(self).values()))

    def seconds(self, chip: Chip) -> float:
        """At least so long it takes."""
        return max(self.kernels, self.bytes / chip.bandwidth)


@dataclass
class Costs:
    """The cost of each part of a program."""

    parts: dict[str, Cost] = field(default_factory=dict)

    def add(self, part: str, cost: Cost) -> None:
        """Adds to one part."""
        self.parts[part] = self.parts.get(part, Cost()) + cost

    def __add__(self, other: "Costs") -> "Costs":
        names = dict.fromkeys((*self.parts, *other.parts))
        return Costs({name: self.parts.get(name, Cost()) + other.parts.get(name, Cost()) for name in names})

    def times(self, n: int | float) -> "Costs":
        """Those of n runs."""
        return Costs({name: cost.times(n) for name, cost in self.parts.items()})

    def seconds(self, chip: Chip) -> float:
        """The sum of the times of all parts."""
        return sum(cost.seconds(chip) for cost in self.parts.values())


def costs(
    program: ProgramText, kernels: Mapping[str, Kernel], chip: Chip, iterations: int = 1, live: Live | None = None
) -> Costs:
    """The costs of one run. A loop whose trips the text does not tell, such as that of decoding, runs `iterations`
    times.
    """
    total = Costs()
    kernels = kernels if live is None else {name: _looped(name, each, live) for name, each in kernels.items()}
    for each, times, around in _executed(program.entry, program, 1, iterations, kernels, chip):
        if each.op in PREFETCHES:
            total.add(_owner(each, around, program), Cost(bytes=float(times * prefetched(each))))
        elif not is_free(each):
            cost = _kernel(each, around, program, kernels, chip, 1.0 if live is None else live.share)
            total.add(part_of(each, program), cost.times(times))
    return total


def _looped(name: str, kernel: Kernel, live: Live) -> Kernel:
    """The kernel as it is, or that of live caches with the trips of its loop."""
    if not name.startswith(KERNEL):
        return kernel
    more = live.trips - 1
    bundles, products = kernel.bundles + more * kernel.open_bundles, kernel.products + more * kernel.open_products
    return replace(kernel, bundles=bundles, products=products, open=0)


def _kernel(
    each: Instruction,
    around: Computation,
    program: ProgramText,
    kernels: Mapping[str, Kernel],
    chip: Chip,
    share: float = 1.0,
) -> Cost:
    known = kernels.get(each.name)
    # a kernel that reads only what lives gives its caches back where they were, and writes next to nothing
    touched = share * read(each, around) if each.name.startswith(KERNEL) else moved(each, around, program)
    kernel = known or NOTHING
    core = kernel.bundles / chip.clock
    products = kernel.products * chip.product_cycles / chip.clock
    longest = max(core, products, touched / chip.bandwidth)
    unknown = known is None and each.all_bytes > SMALL
    return Cost(core, products, longest, float(touched), 1.0, float(unknown))


def _executed(
    name: str, program: ProgramText, times: int, iterations: int, kernels: Mapping[str, Kernel], chip: Chip
) -> Iterator[tuple[Instruction, int, Computation]]:
    """The instructions that a computation executes, how often, and where they are."""
    around = program.computations.get(name, {})
    inside = (times, iterations, kernels, chip)
    for each in around.values():
        if each.op == "while":
            trips = program.trips(each)
            runs = times * (iterations if trips is None else trips)
            yield from _executed(each.called("body"), program, runs, *inside[1:])
        elif each.op == "call":
            yield from _executed(each.called("to_apply"), program, *inside)
        elif each.op == "conditional":
            branches = [name for name in each.branches() if not is_seldom(program.computations.get(name, {}))]
            weights = {name: _kernel_seconds(name, program, kernels, chip) for name in branches}
            if weights:
                yield from _executed(max(branches, key=lambda name: weights[name]), program, *inside)
        elif each.op == "async-start" and not COLLECTIVE.search(each.attributes):
            yield from _executed(each.called("calls"), program, *inside)
        else:
            yield each, times, around


def _kernel_seconds(name: str, program: ProgramText, kernels: Mapping[str, Kernel], chip: Chip) -> float:
    executed = _executed(name, program, 1, 1, kernels, chip)
    return sum(_kernel(each, around, program, kernels, chip).kernels for each, _, around in executed)


def _owner(each: Instruction, around: Computation, program: ProgramText) -> str:
    """The part of what uses a prefetch; of what made it, if it is a copy back."""
    user = user_of(each, users(around))
    if user is None and each.operands and each.operands[0] in around:
        source = around[each.operands[0]]
        while is_free(source) and source.operands and source.operands[0] in around:
            source = around[source.operands[0]]
        user = source
    return part_of(user or each, program)
