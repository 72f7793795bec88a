"""What a compiled program moves between devices, read from its text."""

import math
import re

COLLECTIVES = r"all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8}


def collective_bytes(program: str, iterations: int = 1) -> int:
    """The bytes that each device receives from collectives in one run; loops count as often as they run.

    A loop that does not count up to a constant, such as that of decoding, counts `iterations` times.
    """
    parts = re.split(r"\n(?=\S.*\{\n)", program)
    bodies = {part.removeprefix("ENTRY ").lstrip("%").partition(" ")[0]: part for part in parts}
    entry = next(name for name, part in bodies.items() if part.startswith("ENTRY"))
    straight, looped = _moved(entry, bodies, iterations, {})
    return sum(straight.values()) + looped


def _moved(name: str, bodies: dict[str, str], iterations: int, known: dict) -> tuple[dict[str, int], int]:
    """The bytes that a computation moves, by channel, and the bytes that its loops move. A collective that overlaps
    with other work is written in several pieces with the same channel, some of them inside loops.
    """
    if name in known:
        return known[name]
    straight: dict[str, int] = {}
    looped, loops = 0, []
    for line in bodies.get(name, "").splitlines()[1:]:
        if re.search(rf" (?:{COLLECTIVES})(?:-start)?\(", line):
            channel = re.search(r"channel_id=\d+", line)
            key = channel[0] if channel else line
            straight[key] = max(straight.get(key, 0), _result_bytes(line))
        elif " while(" in line:
            inside, deeper = _moved(_named("body", line), bodies, iterations, known)
            loops.append((_count(line, bodies, iterations), inside, deeper))
        else:
            for called in re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", line):
                inside, deeper = _moved(called, bodies, iterations, known)
                straight |= {key: max(straight.get(key, 0), size) for key, size in inside.items()}
                looped += deeper
    for count, inside, deeper in loops:
        looped += count * (sum(size for key, size in inside.items() if key not in straight) + deeper)
    known[name] = straight, looped
    return known[name]


def _count(line: str, bodies: dict[str, str], iterations: int) -> int:
    """How often a loop runs: as the compiler notes it, else the constant that its counter is compared with."""
    if noted := re.search(r"known_trip_count\D+(\d+)", line):
        return int(noted[1])
    condition = bodies.get(_named("condition", line), "")
    compared = re.search(r"ROOT .* compare\(%?[\w.\-]+, %?([\w.\-]+)\), direction=LT", condition)
    limit = compared and re.search(rf"%?{re.escape(compared[1])} = \S+ constant\((\d+)\)", condition)
    return int(limit[1]) if limit else iterations


def _named(what: str, line: str) -> str:
    """The computation that an instruction names as its `what`; empty if it names none."""
    found = re.search(rf"{what}=%?([\w.\-]+)", line)
    return found[1] if found else ""


def _result_bytes(line: str) -> int:
    """The bytes of an instruction's result. A `-start` lists its operands too, so only its largest array counts."""
    result = re.split(rf" (?:{COLLECTIVES})", line.partition(" = ")[2])[0]
    sizes = [
        BYTES.get(dtype, 4) * math.prod(int(n) for n in shape.split(",") if n)
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", result)
    ]
    return max(sizes, default=0) if "-start(" in line else sum(sizes)
