"""What a compiled program moves between devices, read from its text."""

import math
import re

COLLECTIVES = r"all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8}


def collective_bytes(program: str, turns: int = 1) -> int:
    """Bytes that collectives give to each device in one run; the body of a loop counts as often as it runs.

    A loop whose count the compiler does not know, such as that of decoding, counts `turns` times.
    """
    bodies = {part.lstrip("%").split(" ")[0]: part for part in re.split(r"\n(?=\S.*\{\n)", program)}
    entry = next(part for part in bodies.values() if part.startswith("ENTRY"))
    return _bytes(entry, bodies, turns)


def _bytes(body: str, bodies: dict[str, str], turns: int) -> int:
    total = 0
    for line in body.splitlines():
        if re.search(rf" (?:{COLLECTIVES})(?:-start)?\(", line):
            total += _result_bytes(line)
        elif " while(" in line:
            count = re.search(r"known_trip_count\D+(\d+)", line)
            inner = re.search(r"body=%?([\w.\-]+)", line)
            total += (int(count[1]) if count else turns) * _bytes(bodies.get(inner[1], ""), bodies, turns)
        elif called := re.search(r" (?:call|conditional)\(.*(?:to_apply|calls)=%?([\w.\-]+)", line):
            total += _bytes(bodies.get(called[1], ""), bodies, turns)
    return total


def _result_bytes(line: str) -> int:
    """The size of what an instruction gives; of a started one, which lists its operands first, the larger half."""
    result = re.split(rf" (?:{COLLECTIVES})", line.partition(" = ")[2])[0]
    sizes = [
        BYTES.get(kind, 4) * math.prod(int(n) for n in shape.split(",") if n)
        for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", result)
    ]
    return max(sizes, default=0) if "-start(" in line else sum(sizes)
