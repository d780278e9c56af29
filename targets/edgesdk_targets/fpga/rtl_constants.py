"""The constants of the estimate for the flow rtl: what turns counted terms into figures, and for what it holds."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import constants_file
from .constants_file import Spread
from .rtl_counts import Terms, Way

CONSTANT_SHARE = 0.02
"""Of the bits that kernels give, from which on a design is unlike those of the fit: some of 2 bits have dead channels."""

RARE = ("LayerNorm", "Curve", "Table", "Softmax", "ArgMax", "Product", "Scale")
"""Operations with logic of their own that only some networks have."""


@dataclass(frozen=True)
class Region:
    """What results are known of: the most of each count in one design, of bits of its weights and values, of simulated cycles.

    `operations`: of those that few networks have, the most bits of a design with each; what is not there was never seen.
    """

    lut: int
    ff: int
    dsp: int
    bram: int
    bits: int
    latency_cycles: int
    operations: Mapping[str, int]


@dataclass(frozen=True)
class Family:
    """What another family takes for each one of an ECP5, by counts of yosys alone, and how that spreads."""

    n: int
    lut: float
    ff: float
    dsp: float
    bram: float
    spread: dict[str, Spread]


@dataclass(frozen=True)
class Constants:
    """`lut` and `ff` multiply terms; `delay_ns` what a path passes, of which `clock` is passed once by each path and `spread_out`
    once for each doubling of a design's LUTs. `spread` is of estimates with known weights, by figure, where a design has folded
    layers, `spread_unrolled` where it has none; `weights_unknown` is the deviation of log(count) between networks that differ
    only in their weights, by figure.
    """

    source: str
    date: str
    n: int
    families: int
    clock_mhz: float
    lut: Mapping[str, float]
    ff: Mapping[str, float]
    delay_ns: Mapping[str, float]
    spread: Mapping[str, Spread]
    spread_unrolled: Mapping[str, Spread]
    weights_unknown: Mapping[str, float]
    region: Region
    families_apart: Mapping[str, Family]

    def around(self, folded: bool) -> Mapping[str, Spread]:
        """How estimates spread of designs with folded layers, or without."""
        return self.spread if folded else self.spread_unrolled

    def luts(self, terms: Iterable[Terms]) -> float:
        return sum(self.lut.get(name, 0.0) * count for one in terms for name, count in one.lut.items())

    def ffs(self, terms: Iterable[Terms]) -> float:
        return sum(self.ff.get(name, 0.0) * count for one in terms for name, count in one.ff.items())

    def way_ns(self, way: Way) -> float:
        """A path's delay without what all paths have."""
        return sum(self.delay_ns.get(name, 0.0) * count for name, count in way.items())

    def period_ns(self, ways: Iterable[Way], luts: float) -> float:
        """Of the slowest path in a design of so many LUTs."""
        return max(map(self.way_ns, ways), default=0.0) + self.delay_ns["clock"] + self.delay_ns["spread_out"] * doublings(luts)


def doublings(luts: float) -> float:
    """Of a design's LUTs, from 100 on: the larger it is, the farther apart lie its parts."""
    return max(0.0, math.log2(max(luts, 1.0) / 100))


@functools.cache
def shipped() -> Constants:
    """The constants in this package."""
    return read_constants(Path(__file__).with_name("rtl_constants.toml"))


def read_constants(path: Path) -> Constants:
    """Constants from a file. Raises TargetError for anything else."""
    return constants_file.read(Constants, path)
