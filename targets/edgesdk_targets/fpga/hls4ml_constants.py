"""The constants of the hls4ml estimator: what turns counts into figures, where it comes from, and for what it holds."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import constants_file
from .constants_file import Spread as Spread
from .hls4ml_terms import WIDE_CHOICE, Cost


@dataclass(frozen=True)
class Region:
    """What results are known of, ranges as (least, most); everything else is extrapolation. `reuse` is what was
    asked for, `multipliers` the most of a layer, `weights` the most of a network."""

    depth: tuple[int, ...]
    sizes: tuple[int, ...]
    bits: tuple[int, ...]
    reuse: tuple[int, ...]
    multipliers: int
    weights: int
    strategy: str
    io_type: str
    clock_ns: float
    part: str
    activation_bits: int
    kinds: tuple[str, ...]
    n: int


@dataclass(frozen=True)
class Placement:
    """How often the weights of a layer went to block RAM in some circumstances: `block` of `seen` (parts of one: unsure)."""

    block: float
    seen: float

    @property
    def share(self) -> float:
        """With one result of each kind added, halved, so that few results do not make it certain."""
        return (self.block + 0.5) / (self.seen + 1.0)


@dataclass(frozen=True)
class Constants:
    """What turns counts into figures.

    `scale` multiplies counted figures (1.0 as shipped; a user's results may say otherwise). `clock` is the estimated period as a
    share of the one asked for, by what the longest path runs through.
    """

    source: str
    date: str
    n: int
    families: int
    lut: Mapping[str, float]
    ff: Mapping[str, float]
    scale: Mapping[str, float]
    spread: Mapping[str, Spread]
    placement: Mapping[str, Placement]
    clock: Mapping[str, float]
    regions: tuple[Region, ...]

    def counts(self, target: str, found: Cost) -> Mapping[str, float]:
        """What the constants of `lut` or `ff` multiply: LUTs that hold weights count by how likely the weights are there."""
        if target == "ff" or not found.memory.placement:
            return found.lut if target == "lut" else found.ff
        return {**found.lut, "rom": (1 - self.placement[found.memory.placement].share) * found.memory.rom_luts}

    def of(self, target: str, found: Cost) -> float:
        """A layer's part of lut, ff, dsp or cycles."""
        if target in ("lut", "ff"):
            table = self.lut if target == "lut" else self.ff
            return sum(table[name] * count for name, count in self.counts(target, found).items())
        return (found.dsp if target == "dsp" else found.worst_cycles) * self.scale[target]

    def longest_path(self, found: Sequence[Cost]) -> str:
        """What sets the clock: the choice among very many outputs, weights that come from block RAM, or other logic."""
        if any(one.outputs >= WIDE_CHOICE for one in found):
            return "many_outputs"
        return "block_ram" if any(self.tiles(one) > one.memory.always * self.scale["bram"] for one in found) else "logic"

    def tiles(self, found: Cost) -> float:
        """A layer's part of bram, its weights where they are likelier to be."""
        memory = found.memory
        there = bool(memory.weights) and self.placement[memory.placement].share >= 0.5
        return (memory.always + (memory.weights if there else 0.0)) * self.scale["bram"]


@dataclass(frozen=True)
class Departure:
    """One way in which a network is unlike the results, and by what its intervals widen: in area, and in cycles.

    The factors are judgement. Where results let them be tried (another depth, another reuse factor), they are generous. `clock`
    is the clock's own, one way only: above 1 it may be so many times faster, below 1 slower.
    """

    told: str
    area: float
    cycles: float
    clock: float = 1.0


@functools.cache
def shipped() -> Constants:
    """The constants in this package."""
    return read_constants(Path(__file__).with_name("hls4ml_constants.toml"))


def read_constants(path: Path) -> Constants:
    """Constants from a file, as `edgesdk fit` writes them. Raises TargetError for anything else."""
    return constants_file.read(Constants, path, "give a file that `edgesdk fit` wrote")


def departures(
    found: Sequence[Cost], reuse_factor: int, strategy: str, clock_ns: float, io_type: str, part: str, constants: Constants
) -> tuple[Departure, ...]:
    """In what the network is unlike the region that is most like it, empty for inside."""
    each = (_apart(found, reuse_factor, strategy, clock_ns, io_type, part, region) for region in constants.regions)
    return min(each, key=area, default=(Departure("no result to compare with", 2.0, 1.2),))


def area(apart: Iterable[Departure]) -> float:
    """By how much they widen an interval of lut, ff or bram together, on either side, as independent errors do."""
    return math.exp(math.hypot(*(math.log(one.area) for one in apart)))


def cycles(apart: Iterable[Departure]) -> float:
    """The same of cycles."""
    return math.exp(math.hypot(*(math.log(one.cycles) for one in apart)))


def clock(apart: Iterable[Departure]) -> tuple[float, float]:
    """By how much they widen the clock's interval: downwards, and upwards. What widens area counts by its fourth root."""
    listed = tuple(apart)
    common = math.log(area(listed)) / 4
    ways = [[max(0.0, way * math.log(one.clock)) for one in listed] for way in (-1, 1)]
    down, up = (math.exp(common + math.hypot(*way)) for way in ways)
    return down, up


def _apart(
    found: Sequence[Cost], reuse_factor: int, strategy: str, clock_ns: float, io_type: str, part: str, region: Region
) -> tuple[Departure, ...]:
    layers = [one.layer for one in found]
    weighted = [layer for layer in layers if layer.weighted]
    sizes, bits = [size for layer in weighted for size in (layer.n_in, layer.n_out)], [layer.weight_bits for layer in weighted]
    strange = sorted({layer.described for layer in layers} - set(region.kinds))
    widths = {width for layer in weighted for width in (layer.activation_bits, layer.accumulator_bits)} - {region.activation_bits}
    asked, most = strategy == "resource", max(one.multipliers for one in found)
    slower = clock_ns / region.clock_ns  # a design can be as fast as there all the same, or no faster
    root = math.sqrt(max(slower, 1 / slower))  # of area and cycles: registers and the depth of pipelines alone follow the clock
    listed: tuple[tuple[bool, str, float, float, float], ...] = (
        (bool(strange), f"layers of kind {', '.join(strange)}", 2.0, 1.5, 1.0),
        (strategy != region.strategy, f"strategy {strategy}", 3.0, 2.0, 1.0),
        (asked and reuse_factor < region.reuse[0], f"reuse factor {reuse_factor} below {region.reuse[0]}", 2.0, 1.1, 1.0),
        (asked and reuse_factor > region.reuse[1], f"reuse factor {reuse_factor} above {region.reuse[1]}", 1.2, 1.02, 1.0),
        (asked and most > region.multipliers, f"{most} multipliers in a layer, more than {region.multipliers}", 1.5, 1.1, 1.0),
        (sum(layer.weights for layer in layers) > region.weights, f"more than {region.weights:,} weights", 1.15, 1.0, 1.0),
        (io_type != region.io_type, io_type, 1.5, 1.3, 1.0),
        (part not in ("", region.part), f"part {part}", 1.2, 1.05, 1.0),
        (abs(clock_ns / region.clock_ns - 1) > 0.01, f"clock of {clock_ns:g} ns", 1.15 * root, 1.1 * root, slower),
        (bool(widths), f"values of {', '.join(map(str, sorted(widths)))} bits", 1.4, 1.0, 1.0),
        (_outside(sizes, region.sizes), f"sizes outside {_told(region.sizes)}", 1.2, 1.0, 1.0),
        (_outside(bits, region.bits), f"weights outside {_told(region.bits)} bits", 1.3, 1.0, 1.0),
        (_outside([len(weighted)], region.depth), f"{len(weighted)} layers with weights", 1.15, 1.0, 1.0),
    )
    return tuple(Departure(told, area, cycles, clock) for holds, told, area, cycles, clock in listed if holds)


def _outside(values: Iterable[int], known: tuple[int, ...]) -> bool:
    return any(not known[0] <= value <= known[1] for value in values)


def _told(known: tuple[int, ...]) -> str:
    return f"{known[0]} to {known[1]}"
