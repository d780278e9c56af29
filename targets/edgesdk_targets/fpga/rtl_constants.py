"""The constants of the estimate for the flow rtl: what turns counted terms into figures, and for what it holds."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgesdk_converters import fields
from edgesdk_converters.errors import TargetError

from .rtl_terms import Terms, Way

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


CONSTANT_SHARE = 0.02
"""Of the bits that kernels give, from which on a design is unlike those of the fit: some of 2 bits have dead channels."""


@dataclass(frozen=True)
class Spread:
    """Where measured / estimated lies in eight of ten cases, as natural logarithms: low <= 0 <= high."""

    low: float
    high: float


@dataclass(frozen=True)
class Region:
    """What results are known of: the most of each count in one design, of bits of its weights and values, of simulated cycles."""

    lut: int
    ff: int
    dsp: int
    bram: int
    bits: int
    latency_cycles: int


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
    once for each doubling of a design's LUTs. `spread` is of estimates with known weights, by figure; `weights_unknown` is the
    deviation of log(count) between networks that differ only in their weights, by figure.
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
    weights_unknown: Mapping[str, float]
    region: Region
    families_apart: Mapping[str, Family]

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
    """Constants from a file, as `text` writes them. Raises TargetError for anything else."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as reason:
        raise TargetError(f"{path.name} holds no constants: {reason}") from reason
    return fields.read(Constants, data, path.name, TargetError)


def text(known: Constants) -> str:
    """Constants as TOML, as `read_constants` reads them."""
    data: dict[str, Any] = fields.plain(known)
    lines = [f"{name} = {_value(value)}" for name, value in data.items() if not isinstance(value, dict)]
    for name, table in ((name, value) for name, value in data.items() if isinstance(value, dict)):
        lines += ["", f"[{name}]", *(f"{key} = {_value(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(one)}" for key, one in value.items()) + " }"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") + '"'
    return f"{value:.5g}" if isinstance(value, float) else str(value)
