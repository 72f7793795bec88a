"""The text of a compiled program as instructions, each with the scopes of the code that it was made of."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
BYTES |= {"s64": 8, "u64": 8, "f64": 8, "f8e4m3fn": 1, "f8e5m2": 1}
INSTRUCTION = re.compile(r"\s+(ROOT )?%([\w.\-<>]+) = (.*?) ([a-z][\w\-]*)\((.*)")
ARRAY = re.compile(r"(pred|bf16|f8\w+|[suf]\d+)\[([\d,]*)\](\{[^{}]*\})?")
HEAD = re.compile(r"(ENTRY )?%?([\w.\-<>]+) \(.*\{\s*")


@dataclass(frozen=True)
class ArrayType:
    """An array as the compiler has laid it out."""

    kind: str
    sizes: tuple[int, ...]
    layout: str

    @property
    def in_hbm(self) -> bool:
        """Whether it is in the chip's large memory: not in that of the core, nor in the host's."""
        return "S(" not in self.layout

    @property
    def bytes(self) -> int:
        """Its bytes with what tiles are padded by: the last axes of a tile of (8, 128) are multiples of 8 and 128."""
        tile, order = re.search(r"T\(([\d,]+)\)", self.layout), re.match(r"\{([\d,]+)", self.layout)
        sizes = list(self.sizes)
        if tile and sizes:
            minor_first = [int(axis) for axis in order[1].split(",")] if order else list(range(len(sizes)))[::-1]
            for axis, side in zip(minor_first, reversed([int(n) for n in tile[1].split(",")]), strict=False):
                sizes[axis] = -(-sizes[axis] // side) * side
        return math.prod(sizes) * BYTES.get(self.kind, 4)


def array_types(text: str) -> list[ArrayType]:
    """All arrays of a result's type, which is a tuple if they are several."""
    return [
        ArrayType(kind, tuple(int(n) for n in sizes.split(",") if n), layout or "")
        for kind, sizes, layout in ARRAY.findall(text)
    ]


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    arguments: str  # between the parentheses
    attributes: str
    root: bool

    @cached_property
    def results(self) -> list[ArrayType]:
        """The arrays that it makes."""
        return array_types(self.type)

    @property
    def hbm_bytes(self) -> int:
        """The bytes of its results that are in the chip's large memory."""
        return sum(a.bytes for a in self.results if a.in_hbm)

    @property
    def all_bytes(self) -> int:
        """The bytes of its results, wherever they are."""
        return sum(a.bytes for a in self.results)

    @cached_property
    def path(self) -> str:
        """The path of scopes and functions that the code was traced in."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    def called(self, what: str) -> str:
        """The computation that it names as its `what` (`calls`, `body`); empty if it names none."""
        found = re.search(rf"\b{what}=%?([\w.\-<>]+)", self.attributes)
        return found[1] if found else ""

    def branches(self) -> list[str]:
        """The computations of a conditional."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        if listed:
            return [name.strip().lstrip("%") for name in listed[1].split(",")]
        return [name for name in (self.called("true_computation"), self.called("false_computation")) if name]


Computation = dict[str, Instruction]


@dataclass(frozen=True)
class ProgramText:
    """The computations of a program by their names."""

    computations: dict[str, Computation] = field(default_factory=dict)
    entry: str = ""

    def trips(self, loop: Instruction) -> int | None:
        """How often a loop runs: as the compiler notes it, else the constant that its counter is compared with."""
        if noted := re.search(r"known_trip_count\D+(\d+)", loop.attributes):
            return int(noted[1])
        condition = self.computations.get(loop.called("condition"), {})
        root = next((each for each in condition.values() if each.root), None)
        if root is None or root.op != "compare" or "direction=LT" not in root.attributes:
            return None
        limit = condition.get(root.operands[-1])
        return int(limit.arguments) if limit is not None and limit.op == "constant" else None


def parse(text: str) -> ProgramText:
    """A program as its computations."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in _joined(text.splitlines()):
        if head := HEAD.fullmatch(line):
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif current is not None and (found := _instruction(line)):
            current[found.name] = found
    return ProgramText(computations, entry)


def _joined(lines: list[str]) -> Iterator[str]:
    """The lines of a text, each instruction in one: kernels that were written by hand have text of several lines."""
    whole = ""
    for line in lines:
        if HEAD.fullmatch(line) or line == "}" or INSTRUCTION.match(line):
            yield whole
            whole = line
        else:
            whole += line
    yield whole


def _instruction(line: str) -> Instruction | None:
    found = INSTRUCTION.match(line)
    if found is None:
        return None
    root, name, type_, op, rest = found.groups()
    depth, end = 1, 0
    while end < len(rest) and depth:
        depth += (rest[end] == "(") - (rest[end] == ")")
        end += 1
    arguments = rest[: end - 1]
    operands = tuple(re.findall(r"%([\w.\-<>]+)", arguments))
    return Instruction(name, type_, op, operands, arguments, rest[end:], bool(root))
