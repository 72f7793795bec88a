"""TPU slices by their usual names, as devices that programs are compiled for where there is no TPU; and any other
device by its memory, for which nothing is compiled.
"""

import difflib
import math
import re
from dataclasses import dataclass
from importlib.util import find_spec

import jax

from grpo_jax.devices.process import silence_tpu_library

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """A generation of TPU: bytes of memory that a program may use, FLOP/s in bfloat16, bytes/s of its memory, bytes/s
    that it receives from its neighbours, and the cycles of its cores.

    Sources: the compiler's own out-of-memory limit for memory, Google Cloud's pages of each kind for rates. How many
    cycles a matrix unit (MXU) is busy with one packed tile of 16 rows in bfloat16 follows from its sides (16 rows of
    128 x 128, or of 256 x 256 at twice the rate), and the clock from that, the number of units in the compiler's
    bundles and the FLOP/s: 197e12 / (4 units x 2 x 128 x 128) = 1.5 GHz for v5e.
    """

    memory: float
    flops: float
    bandwidth: float
    links: float
    platform: str  # the compiler's name for it
    units: int = 1  # matrix units of all its cores
    side: int = 128  # of a matrix unit
    product_cycles: int = 16
    options: tuple[tuple[str, str], ...] = ()  # further options of the compiler
    cores: int = 1  # names of v4 and v5p slices count cores, two a chip
    axes: int = 2

    @property
    def clock(self) -> float:
        """Cycles a second."""
        return self.flops * self.product_cycles / (self.units * 2 * 16 * self.side**2)


CHIPS = {
    "v4": Chip(
        30.75 * GIB, 275e12, 1228e9, 300e9, "v4", 8, options=(("chip_config_name", "megacore"),), cores=2, axes=3
    ),
    "v5e": Chip(15.75 * GIB, 197e12, 819e9, 200e9, "v5e", 4),
    "v5p": Chip(95.74 * GIB, 459e12, 2765e9, 600e9, "v5p", 8, cores=2, axes=3),
    "v6e": Chip(31.25 * GIB, 918e12, 1640e9, 400e9, "v6e", 2, 256, 8),
}
UNITS = {"GIB": GIB, "GB": 10**9, "MIB": 2**20, "MB": 10**6}
SPELLINGS = {"v5litepod": "v5e", "v5lite": "v5e"}
FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
SOLID = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8"}


@dataclass(frozen=True)
class Slice:
    """Some chips, and how they are connected."""

    name: str
    chip: Chip
    chips: int
    grid: str

    @property
    def hosts(self) -> int:
        """How many hosts it has: one for up to 8 chips of v5e or v6e or 4 of v4 or v5p, else one for each 4 chips."""
        return 1 if self.chips <= (8 if self.chip.axes == 2 else 4) else self.chips // 4

    @property
    def host(self) -> "Slice":
        """The part that one host has."""
        chips = self.chips // self.hosts
        grids = FLAT if self.chip.axes == 2 else SOLID
        return self if self.hosts == 1 else Slice(f"a host of {self.name}", self.chip, chips, grids[chips])

    def devices(self) -> list[jax.Device]:
        """Devices to compile for. They cannot run anything."""
        if find_spec("libtpu") is None:
            raise ValueError('Planning needs the TPU compiler: pip install -e ".[tpu]".')
        from jax.experimental import topologies

        silence_tpu_library()
        sides = [int(side) for side in self.grid.split("x")]
        one = {"chips_per_host_bounds": (*sides, *[1] * (3 - len(sides)))} if self.hosts == 1 else {}
        name, more = f"{self.chip.platform}:{self.grid}", one | dict(self.chip.options)
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **more).devices)


@dataclass(frozen=True)
class AnyDevice(Slice):
    """One device of any kind, of which only the memory is known."""

    def devices(self) -> list[jax.Device]:
        """A CPU in its place: shapes are laid out over it, and nothing is compiled for it."""
        return jax.devices("cpu")[:1]


def device_with(memory: str) -> AnyDevice:
    """A device that a program may use so much memory of, such as 24GiB or 24GB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GiB|GB|MiB|MB)", memory.strip(), re.IGNORECASE)
    if found is None or float(found[1]) == 0:
        raise ValueError(f"--memory is a size with its unit, such as 24GiB or 24GB; got {memory!r}.")
    return AnyDevice(
        f"a device of {memory}", Chip(float(found[1]) * UNITS[found[2].upper()], 0.0, 0.0, 0.0, "any"), 1, "1x1"
    )


def find_slice(name: str) -> Slice:
    """The slice of a name such as v5e-8, v5litepod-8, v6e-4, v5p-8 or v4-8 (v4 and v5p count two cores a chip)."""
    kind, _, size = name.lower().partition("-")
    kind = SPELLINGS.get(kind, kind)
    if kind in CHIPS and size.isdecimal():
        chip = CHIPS[kind]
        chips, rest = divmod(int(size), chip.cores)
        grids = FLAT if chip.axes == 2 else SOLID
        if not rest and chips in grids:
            return Slice(name, chip, chips, grids[chips])
        sizes = sorted(grids, key=lambda n: abs(math.log(n * chip.cores / max(int(size), 1))))[:2]
        raise ValueError(
            f"There is no slice {name!r}; the nearest are"
            f" {' and '.join(f'{kind}-{n * chip.cores}' for n in sorted(sizes))}."
        )
    close = difflib.get_close_matches(kind, CHIPS, 1, cutoff=0)
    raise ValueError(f"There is no slice {name!r}; a name is a kind and a size, such as {close[0]}-8.")
