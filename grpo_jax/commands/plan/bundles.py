"""What the cores execute, read from the final bundles that the TPU compiler writes for every kernel.

A bundle is what a core begins in one cycle. The bundles of a loop times its trips are the cycles of a kernel without
any stall. A product of a packed tile keeps its matrix unit (MXU) busy for `Chip.product_cycles`, so a kernel also takes
at least as long as its busiest unit. A product of 8 rows counts half: in float32, or where the unit has transposed a
square of 128 x 128 (`lmr`), for which 8 tiles are pushed and 16 products run. Conditional code counts as if it ran, a
loop whose trips are not in the text counts once: `Kernel.open` says how many of these there are.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

BUNDLE = re.compile(r"\s*(?:0x[0-9a-f]+|0)\s+(LB|LH|LE|PB|PF|CT)?\s*: (>*) ?(.*)")
EXIT = re.compile(r"scmp\.\w+\.s32\.totalorder %\w+, (\d+) /\* loop exit test \*/")
PRODUCT = re.compile(r"vmatmul(\.lmr)?\S*?\.(bf16|f32|[suf]\w+)\S*?\.mxu(\d)")
FILE = re.compile(r"\d+-(.+)-\d+-final_bundles\.txt")
DELAY = 4  # bundles after a branch that are executed whether or not it is taken


@dataclass(frozen=True)
class Kernel:
    """The cycles of a kernel, and those in which its busiest matrix unit works, if a packed product takes one cycle."""

    bundles: int | float
    products: float
    open: int = 0  # loops whose trips are unknown, which count once
    open_bundles: int = 0  # of these, in one trip of each
    open_products: float = 0.0


@dataclass
class _Loop:
    trips: int | None = None
    bundles: int = 0
    products: dict[str, float] = field(default_factory=dict)  # by matrix unit
    inner: list["_Loop"] = field(default_factory=list)


def options(folder: str | Path) -> str:
    """The options of libtpu (`LIBTPU_INIT_ARGS`) with which it writes final bundles, and no other text, to a folder."""
    passes = "final_bundles|deduplication"
    return (
        f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_hlo_text=false"
        f" --xla_jf_dump_llo_pass_label_regex={passes}"
    )


def kernels(folder: str | Path) -> dict[str, Kernel]:
    """All kernels that were written to a folder, by the names of their instructions in the program's text."""
    found: dict[str, Kernel] = {}
    for path in sorted(Path(folder).glob("*-final_bundles.txt")):
        name = FILE.fullmatch(path.name)
        if name is None or name[1].startswith(("<", "TLP")) or "schedule-analysis" in path.name:
            continue  # the program's own start, end and order
        with path.open(errors="replace") as lines:
            found[name[1]] = kernel(lines)
    for path in Path(folder).glob("*-deduplication-map.txt"):
        for written, alike in _alike(path.read_text()):
            if written in found:
                found |= {name: found[written] for name in alike if name not in found}
    return found


def kernel(lines: Iterable[str]) -> Kernel:
    """The kernel of these lines of bundles."""
    whole = _Loop(trips=1)
    stack, open_loops, closing = [whole], 1, 0  # `closing`: bundles until the innermost loop's last branch is taken
    for line in lines:
        found = BUNDLE.match(line)
        if found is None:
            continue
        mark, depth, text = found[1], len(found[2]), found[3]
        closing = max(closing - 1, 0)
        if not closing:
            del stack[open_loops:]
        last = depth < len(stack) - 1 and not text.startswith("{}") and not closing
        if mark == "LB":
            del stack[max(depth, 1) :]
            stack[-1].inner.append(_Loop())
            stack.append(stack[-1].inner[-1])
            open_loops, closing = len(stack), 0
        elif last and "sbr.rel" in text:
            open_loops, closing = depth + 1, DELAY + 1
        elif last:
            del stack[depth + 1 :]
            open_loops = len(stack)
        _count(stack[-1], text)
    open_bundles, open_products, _ = _totals(_Loop(trips=1, inner=list(_open(whole))))
    return Kernel(*_totals(whole), open_bundles, open_products)


def _count(loop: _Loop, text: str) -> None:
    loop.bundles += 1
    if "loop exit test" in text and (found := EXIT.search(text)):
        loop.trips = int(found[1])
    if "vmatmul" in text:
        for transposed, kind, unit in PRODUCT.findall(text):
            loop.products[unit] = loop.products.get(unit, 0.0) + (0.5 if transposed or kind == "f32" else 1.0)


def _totals(loop: _Loop) -> tuple[int, float, int]:
    """Bundles, products of the busiest unit and loops of unknown trips of a loop with all that it contains."""
    bundles, products, unknown = _sums(loop)
    return bundles, max(products.values(), default=0.0), unknown


def _open(loop: _Loop) -> Iterator[_Loop]:
    """The outermost loops of unknown trips, as often as they begin."""
    for inner in loop.inner:
        yield from [inner] if inner.trips is None else inner.trips * list(_open(inner))


def _sums(loop: _Loop) -> tuple[int, dict[str, float], int]:
    trips, unknown = (1, 1) if loop.trips is None else (loop.trips, 0)
    bundles, products = loop.bundles, dict(loop.products)
    for inner in loop.inner:
        more, multiplied, unknown_inside = _sums(inner)
        products |= {unit: products.get(unit, 0.0) + count for unit, count in multiplied.items()}
        bundles, unknown = bundles + more, unknown + unknown_inside
    return bundles * trips, {unit: count * trips for unit, count in products.items()}, unknown


def _alike(text: str) -> Iterator[tuple[str, list[str]]]:
    """The instruction whose kernel was written, and all that share it."""
    for part in text.split("key:")[1:]:
        name, _, rest = part.partition("\n")
        yield name.strip(), re.findall(r"^ +(\S+)$", rest, re.MULTILINE)
