"""Fitting the hls4ml estimator on results of synthesis: the constants that ship, and a user's own from three results on.

Constants stay positive (each is exp(u) times where it started) and are held to their start by a normal prior on u, so that few
results move all of them together and many settle each. Errors count as Huber's (1964) on logarithms: a result that is off for a
reason of its own does not bend the rest.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters import fields
from edgesdk_converters.errors import TargetError

from . import resources
from .hls4ml_constants import Constants, Placement, Region, Spread, area, departures, shipped
from .hls4ml_estimate import BRAM18_PER_TILE, IO_TYPES, LEVEL, STRATEGIES, TARGETS, check
from .hls4ml_terms import Cost, FixedLayer, cost

Floats = NDArray[np.float64]
FEWEST = 3
"""Results from which on a fit says anything."""
FAMILIES = 20
"""Networks from which on intervals come from leaving each out; below, the shipped intervals and the residuals are weighed."""
PRIOR = 3.0
"""Results that the start counts for, in scales and intervals."""
PRIOR_PLACED = 10.0
"""Layers that the start's shares of weights in block RAM count for."""
NOISE = {"lut": 0.04, "ff": 0.01}
"""Where Huber's loss turns from squares to absolutes, of log(measured / estimated)."""
PRIOR_DEVIATION = 0.5
"""Standard deviation of a constant's logarithm around its start, for a user's results."""
MOST_PLACED = 12
"""Layers whose placements are told apart by the tiles of the whole: all ways are tried."""
_EXACT = 0.01
_Z80 = 1.2816

ANALYTIC = Constants(
    source="counted from hls4ml's loops, nothing fitted", date="", n=0, families=0,
    lut={
        "layer": 100.0, "input_word": 16.0, "output_word": 64.0, "activation_word": 16.0, "multiplier": 100.0, "rom": 1.0,
        "adder_bits": 1.0, "product_bits": 1.1, "constant_bits": 0.7, "shift_register_bits": 1 / 32,
    },
    ff={
        "layer": 100.0, "input_word": 32.0, "output_word": 32.0, "activation_word": 32.0, "product_register_bits": 0.5,
        "shift_register_bits": 1 / 32,
    },
    scale={"dsp": 1.0, "bram": 1.0, "cycles": 1.0},
    spread={name: Spread(-0.7, 0.7) for name in ("lut", "ff", "bram", "clock")},
    placement={
        name: Placement(0.0, 0.0)
        for name in (
            "one_multiplier", "one_multiplier_many_outputs", "two_bits", "few_outputs", "few_outputs_wide", "eight_bits",
            "many_outputs", "unseen",
        )
    },
    clock={"logic": 0.8, "block_ram": 0.8, "many_outputs": 0.8}, regions=(),
)  # fmt: skip
"""Where the shipped fit starts: widths of words and adders. Constants that no result exercises stay as they are here."""


@dataclass(frozen=True)
class Record:
    """One result: the network, its settings, and what the tool reported.

    `measured` has any of lut, ff, dsp, bram (36-kbit tiles), cycles (worst case) and clock_est_ns.
    """

    layers: tuple[FixedLayer, ...]
    measured: dict[str, float]
    reuse_factor: int = 1
    strategy: str = "resource"
    clock_ns: float = 5.0
    io_type: str = "io_parallel"
    part: str = ""

    @property
    def family(self) -> tuple[tuple[str, int, int], ...]:
        """What is left out together: results of one network at other widths and reuse factors are no news of each other."""
        return tuple((layer.kind, layer.n_in, layer.n_out) for layer in self.layers)


@dataclass(frozen=True)
class _Counted:
    """A result with its counts, which do not depend on any constant, and the placements of weights that give its tiles.

    `placed` names the circumstances of each layer with weights to place, `choices` are the ways to place them. `lut` and `ff` are
    sums over layers; `rom` has what the weights of each layer take in LUTs if they lie there.
    """

    record: Record
    costs: tuple[Cost, ...]
    placed: tuple[str, ...]
    choices: tuple[tuple[bool, ...], ...]
    lut: Mapping[str, float]
    ff: Mapping[str, float]
    rom: tuple[tuple[str, float], ...]


def record(data: object, where: str = "a record") -> Record:
    """A record from JSON or TOML data. Raises TargetError for unknown names and for values that are no measurement."""
    found = fields.read(Record, data, where, TargetError)
    unknown = sorted(set(found.measured) - {*TARGETS, "clock_est_ns"})
    if unknown:
        raise TargetError(f"{where}: measured {unknown[0]!r} is none of {', '.join(TARGETS)}, clock_est_ns")
    for name, value in found.measured.items():
        if not 0 <= value < math.inf:
            raise TargetError(f"{where}: {name} = {value} is no measurement")
    if not found.layers or found.strategy not in STRATEGIES:
        raise TargetError(f"{where}: it needs layers and one of the strategies {', '.join(STRATEGIES)}")
    if found.io_type not in IO_TYPES:
        raise TargetError(f"{where}: io_type {found.io_type!r} is none of {', '.join(IO_TYPES)}")
    if found.reuse_factor < 1 or not 0.5 <= found.clock_ns <= 1000:
        told = f"a reuse factor of {found.reuse_factor} and a clock of {found.clock_ns:g} ns"
        raise TargetError(f"{where}: {told}; allowed: 1 and more, 0.5 to 1000 ns")
    check_possible(found, where)
    return found


def check_possible(given: Record, where: str) -> None:
    """Raise TargetError where a result has more than its part, or any, can hold: one such result would spoil the fit's intervals.

    Cycles are not bounded.
    """
    bounds = resources.bounds(given.part)
    for name in ("lut", "ff", "dsp", "bram"):
        most = bounds[name] / (BRAM18_PER_TILE if name == "bram" else 1)
        if given.measured.get(name, 0.0) > most:
            part = given.part or "any part"
            told = f"{name} = {given.measured[name]:g}, more than {resources.BEYOND} times what {part} has"
            raise TargetError(f"{where}: {told}", "correct the record, or leave it out")


def fit(records: Sequence[Record], base: Constants | None = None, source: str = "own results", date: str = "") -> Constants:
    """Constants for results like the given, shrunk towards `base` (None: as shipped) the more the fewer they are.

    What the base knew with other settings (strategy, io_type, clock, part) is outside of the data then: its constants have moved
    without its results. Raises TargetError for fewer than three results, Unsupported for a layer that has no formula.
    """
    start = shipped() if base is None else base
    if len(records) < FEWEST:
        raise TargetError(f"{len(records)} results are too few to fit on", f"give at least {FEWEST}, of different networks")
    counted = count(records)
    families = sorted({one.record.family for one in counted})
    found = constants(counted, start)
    spread = _left_out(counted, start, families) if len(families) >= FAMILIES else _weighed(counted, found, start)
    region = _region(counted)
    regions = (*(before for before in start.regions if _alike(before, region)), region)
    return replace(
        found, spread=spread, regions=regions, source=source if base is ANALYTIC else f"{source}; before them: {start.source}",
        date=date, n=len(records) + start.n, families=len(families) + start.families,
    )  # fmt: skip


def count(records: Iterable[Record]) -> list[_Counted]:
    """The records with what `constants` reads of them."""
    made = []
    for one in records:
        for layer in one.layers:
            check(layer)
        strategy = next(known for known in STRATEGIES if known == one.strategy)
        made.append(_counted(one, tuple(cost(layer, one.reuse_factor, strategy, one.clock_ns) for layer in one.layers)))
    return made


def constants(counted: Sequence[_Counted], start: Constants) -> Constants:
    """Everything but the intervals and regions."""
    found = replace(start, placement=_placements(counted, start))
    deviation = 3.0 if start.n == 0 else PRIOR_DEVIATION
    rows = [one for one in counted if one.record.measured.get("lut")]
    lut = _solve(_matrix(rows, "lut", found), _column(rows, "lut"), found.lut, NOISE["lut"], deviation)
    rows = [one for one in counted if one.record.measured.get("ff")]
    ff = _solve(_matrix(rows, "ff", found), _column(rows, "ff"), found.ff, NOISE["ff"], deviation)
    scale = {name: start.scale[name] * math.exp(_shift(_ratios(counted, name, found))) for name in ("dsp", "bram", "cycles")}
    clock = {
        path: share
        * math.exp(_shift(residuals([one for one in counted if found.longest_path(one.costs) == path], found, "clock")))
        for path, share in start.clock.items()
    }
    return replace(found, lut=lut, ff=ff, scale=scale, clock=clock)


def residuals(counted: Sequence[_Counted], known: Constants, target: str) -> list[float]:
    """log(measured / estimated) of the results that have the target, `clock` being that of the estimated period."""
    if target == "clock":
        return [
            math.log(one.record.measured["clock_est_ns"] / (known.clock[known.longest_path(one.costs)] * one.record.clock_ns))
            for one in counted if one.record.measured.get("clock_est_ns")
        ]  # fmt: skip
    return _ratios(counted, target, known)


def _matrix(rows: Sequence[_Counted], target: str, known: Constants) -> Floats:
    """(results, constants) of counts."""
    names = list(known.lut if target == "lut" else known.ff)
    tables = [one.lut if target == "lut" else one.ff for one in rows]
    made = np.array([[table.get(name, 0.0) for name in names] for table in tables]).reshape(len(rows), len(names))
    if target == "lut":
        in_luts = {name: 1 - placed.share for name, placed in known.placement.items()}
        made[:, names.index("rom")] = [sum(in_luts[name] * luts for name, luts in one.rom) for one in rows]
    return made


def _column(rows: Sequence[_Counted], target: str) -> Floats:
    return np.array([one.record.measured[target] for one in rows], float)


def _solve(counts: Floats, measured: Floats, start: Mapping[str, float], noise: float, deviation: float) -> dict[str, float]:
    """Constants by Gauss-Newton on their logarithms with Huber's weights; those that no result counts stay."""
    begun = np.array(list(start.values()))
    moved = np.zeros(len(begun))
    for _ in range(60 if len(measured) else 0):
        parts = counts * (begun * np.exp(moved))
        estimated = parts.sum(axis=1)
        error = np.log(measured / estimated)
        weight = np.minimum(1.0, noise / np.maximum(np.abs(error), 1e-12)) / noise**2
        slope = parts / estimated[:, None]
        normal = slope.T @ (weight[:, None] * slope) + np.eye(len(begun)) / deviation**2
        step = np.linalg.solve(normal, slope.T @ (weight * error) - moved / deviation**2)
        moved += np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < 1e-6:
            break
    return dict(zip(start, (begun * np.exp(moved)).tolist(), strict=True))


def _placements(counted: Sequence[_Counted], start: Constants) -> dict[str, Placement]:
    """Layers whose weights went to block RAM, counted by circumstances.

    A result's tiles mostly fit one choice of layers only; where several fit, each counts by its likelihood (EM, three rounds).
    """
    before = {}
    for name, known in start.placement.items():
        kept = min(1.0, PRIOR_PLACED / known.seen) if known.seen else 1.0
        before[name] = Placement(known.block * kept, known.seen * kept)
    found = before
    for _ in range(3):
        sums = {name: [one.block, one.seen] for name, one in before.items()}
        for one in counted:
            chances = _chances([found[name].share for name in one.placed], one.choices) if len(one.choices) > 1 else [1.0]
            for chance, row in zip(chances, one.choices, strict=False):
                for name, block in zip(one.placed, row, strict=True):
                    sums[name][0] += block * chance / sum(chances)
                    sums[name][1] += chance / sum(chances)
        found = {name: Placement(block, seen) for name, (block, seen) in sums.items()}
    return found


def _chances(shares: Sequence[float], choices: Iterable[tuple[bool, ...]]) -> list[float]:
    return [math.prod(share if block else 1 - share for share, block in zip(shares, row, strict=True)) for row in choices]


def _counted(given: Record, costs: tuple[Cost, ...]) -> _Counted:
    memories = [found.memory for found in costs if found.memory.weights]
    measured, fitting = given.measured.get("bram"), []
    if measured is not None and 0 < len(memories) <= MOST_PLACED:
        always = sum(found.memory.always for found in costs)
        for row in itertools.product((False, True), repeat=len(memories)):
            blocks = sum(memory.weights for memory, block in zip(memories, row, strict=True) if block)
            if abs(always + blocks - measured) < _EXACT:
                fitting.append(row)
    lut, ff = _summed(found.lut for found in costs), _summed(found.ff for found in costs)
    rom = tuple((found.memory.placement, found.memory.rom_luts) for found in costs if found.memory.placement)
    return _Counted(given, costs, tuple(memory.placement for memory in memories), tuple(fitting), lut, ff, rom)


def _summed(tables: Iterable[Mapping[str, float]]) -> Mapping[str, float]:
    sums: defaultdict[str, float] = defaultdict(float)
    for table in tables:
        for name, count in table.items():
            sums[name] += count
    return sums


def _ratios(counted: Sequence[_Counted], target: str, known: Constants) -> list[float]:
    rows = [one for one in counted if one.record.measured.get(target, 0.0) > 0]
    if target in ("lut", "ff"):
        table = known.lut if target == "lut" else known.ff
        estimated = (_matrix(rows, target, known) @ np.array(list(table.values()))).tolist()
    elif target == "bram":
        estimated = [sum(known.tiles(part) for part in one.costs) for one in rows]
    else:
        estimated = [sum(known.of(target, part) for part in one.costs) for one in rows]
    return [math.log(one.record.measured[target] / value) for one, value in zip(rows, estimated, strict=True) if value > 0]


def _shift(ratios: Sequence[float]) -> float:
    """Their median, shrunk to 0."""
    return float(np.median(ratios)) * len(ratios) / (len(ratios) + PRIOR) if ratios else 0.0


def _left_out(counted: Sequence[_Counted], start: Constants, families: Sequence[object]) -> dict[str, Spread]:
    """Conformal intervals: quantiles of the residuals of each family under the constants fitted without it."""
    found: dict[str, list[float]] = {name: [] for name in ("lut", "ff", "clock")}
    for family in families:
        without = constants([one for one in counted if one.record.family != family], start)
        mine = [one for one in counted if one.record.family == family]
        for name, residual in found.items():
            residual += residuals(mine, without, name)
    spreads = {"bram": Spread(0.0, 0.0)}
    for name, residual in found.items():
        low, high = np.quantile(residual, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)) if residual else (-0.7, 0.7)
        spreads[name] = Spread(min(0.0, float(low)), max(0.0, float(high)))
    return spreads


def _weighed(counted: Sequence[_Counted], found: Constants, start: Constants) -> dict[str, Spread]:
    """The start's intervals, widened as its estimates of such networks are, and the residuals, each by its number."""
    spreads = {}
    wider = float(np.mean([math.log(_wider(one, start)) for one in counted]))
    for name, before in start.spread.items():
        residual = residuals(counted, found, name)
        half = (before.high - before.low) / 2 + (wider if name in ("lut", "ff") else 0.0)
        squares = PRIOR * half**2 + sum((_Z80 * one) ** 2 for one in residual)
        half = math.sqrt(squares / (PRIOR + len(residual)))
        spreads[name] = Spread(-half, half) if half else before
    return spreads


def _wider(one: _Counted, known: Constants) -> float:
    if not known.regions:
        return 1.0
    given = one.record
    apart = departures(one.costs, given.reuse_factor, given.strategy, given.clock_ns, given.io_type, given.part, known)
    return area(apart)


def _region(counted: Sequence[_Counted]) -> Region:
    """The smallest box around most of the results: ranges of all, settings of the commonest kind."""
    records = [one.record for one in counted]
    weighted = [layer for one in records for layer in one.layers if layer.weighted]
    sizes, bits = [size for layer in weighted for size in (layer.n_in, layer.n_out)], [layer.weight_bits for layer in weighted]
    depths = [sum(layer.weighted for layer in one.layers) for one in records]
    reuse = [one.reuse_factor for one in records]
    kinds = {layer.described for one in records for layer in one.layers}
    return Region(
        (min(depths), max(depths)), (min(sizes), max(sizes)), (min(bits), max(bits)), (min(reuse), max(reuse)),
        max(found.multipliers for one in counted for found in one.costs),
        max(sum(layer.weights for layer in one.layers) for one in records),
        _commonest(one.strategy for one in records), _commonest(one.io_type for one in records),
        _commonest(one.clock_ns for one in records), _commonest(one.part for one in records),
        _commonest(layer.activation_bits for layer in weighted), tuple(sorted(kinds)), len(records),
    )  # fmt: skip


def _alike(before: Region, region: Region) -> bool:
    """Whether two have the same settings; a part that is not told is any."""
    parts = before.part == region.part or not (before.part and region.part)
    same = (before.strategy, before.io_type) == (region.strategy, region.io_type)
    return parts and same and math.isclose(before.clock_ns, region.clock_ns, rel_tol=0.01)


def _commonest(values: Iterable[Any]) -> Any:
    found = list(values)
    return max(sorted(set(found)), key=found.count)
