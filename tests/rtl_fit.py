"""Fitting the constants of the flow rtl on designs that were synthesised, placed and routed.

Constants stay positive and are held to their start (what a cell of that kind takes by its description) by a normal prior, so that
kinds that few designs have do not run away. Residuals are relative; those beyond HUBER count by their size, not its square
(Huber 1964). Intervals come from leaving families out: all designs of one topology together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgesdk_targets.fpga.constants_file import Spread
from edgesdk_targets.fpga.rtl_constants import CONSTANT_SHARE, RARE, Constants, Family, Region, doublings
from edgesdk_targets.fpga.rtl_counts import Terms, Way

Floats = NDArray[np.float64]
LEVEL = 0.8
HUBER = 0.05
PRIOR = 0.01
"""Weight of (constant / start - 1)**2 beside one design's squared relative error."""
FEWEST_APART = 30
"""Designs from which on another family's ratio is known."""
ROUNDS = 8
"""Of finding each design's slowest path and fitting its delay."""
TARGETS = ("lut", "ff", "dsp", "bram", "fmax_mhz", "cycles", "initiation_interval")

START = Constants(
    source="what a cell of that kind takes by its description, nothing fitted", date="", n=0, families=0, clock_mhz=100.0,
    lut={
        "carry_bits": 1.0, "carry_chains": 4.0, "narrow_sum_bits": 1.5, "merged_sum_bits": 0.5, "comparators": 1.0,
        "limit_bits": 0.8, "choice_bits": 1.0, "gate_luts": 1.0, "table_luts": 0.5, "skid_bits": 1.0, "narrow_bits": 1.0,
        "pad_bits": 0.8, "distributed_ram": 6.0, "distributed_choice": 1.0, "block_choice": 0.8, "bypass_bits": 1.2,
        "logic_ram_bits": 1.0, "rom_luts": 0.9, "counter_bits": 1.5, "address_bits": 1.0, "accumulator_bits": 1.0,
        "shift_bits": 0.6, "control": 1.0, "modules": 3.0,
    },
    ff={
        "kernel_bits": 1.0, "beat_bits": 1.0, "counter_bits": 1.0, "control": 1.0, "memory_word_bits": 1.0, "operand_bits": 1.0,
        "product_bits": 1.0, "sum_bits": 1.0, "tree_bits": 1.0, "window_bits": 1.0, "logic_ram_bits": 1.0, "bypass_bits": 1.0,
    },
    delay_ns={
        "clock": 3.0, "spread_out": 0.2, "kernel": 0.1, "sum": 1.2, "carry_bits": 0.04, "choice": 0.8, "logic": 0.8,
        "multiplier": 4.0, "fan_out": 0.2, "lanes": 0.1, "enable": 0.5, "table": 0.8,
        "rom": 1.0, "block_ram": 4.0, "reader": 1.5, "window": 1.5,
    },
    spread=dict.fromkeys(TARGETS, Spread(-0.3, 0.3)), spread_unrolled=dict.fromkeys(TARGETS, Spread(-0.3, 0.3)),
    weights_unknown={}, region=Region(0, 0, 0, 0, 0, 0, {}), families_apart={},
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Result:
    """A design: its terms and schedule, whether layers of it are folded, which of RARE operations it has, and what the tools said
    of it (lut, ff, dsp, bram, fmax_mhz; by simulation cycles and initiation_interval)."""

    family: str
    terms: Terms
    cycles: int
    interval_cycles: int
    bits: int
    folded: bool
    operations: frozenset[str]
    measured: Mapping[str, float]


def fit(results: Sequence[Result], source: str = "", date: str = "", clock_mhz: float = 100.0) -> Constants:
    """Constants without their spread, which `with_spread` adds. Designs of which parts are constant say nothing of others."""
    results = [one for one in results if one.terms.constant_share <= CONSTANT_SHARE]
    known = replace(
        START, source=source, date=date, n=len(results), families=len({one.family for one in results}), clock_mhz=clock_mhz,
        lut=_sums([one.terms.lut for one in results], [one.measured["lut"] for one in results], START.lut),
        ff=_sums([one.terms.ff for one in results], [one.measured["ff"] for one in results], START.ff),
        region=_region(results),
    )  # fmt: skip
    return replace(known, delay_ns=_delays(results))


def left_out(results: Sequence[Result]) -> list[Constants]:
    """For each result the constants fitted without its family."""
    made = {family: fit([one for one in results if one.family != family]) for family in {one.family for one in results}}
    return [made[one.family] for one in results]


def predicted(one: Result, known: Constants) -> dict[str, float]:
    """Figures of a result under some constants."""
    luts = known.luts([one.terms])
    return {
        "lut": luts, "ff": known.ffs([one.terms]), "dsp": one.terms.dsp, "bram": one.terms.bram,
        "fmax_mhz": 1e3 / known.period_ns(one.terms.paths, luts), "cycles": one.cycles,
        "initiation_interval": one.interval_cycles,
    }  # fmt: skip


def with_spread(known: Constants, results: Sequence[Result], apart: Sequence[Constants]) -> Constants:
    """The constants with intervals that hold LEVEL of the results when their own family is left out of the fit."""
    return replace(known, spread=spreads(results, apart, True), spread_unrolled=spreads(results, apart, False))


def completed(known: Constants, weights_unknown: Mapping[str, float], families_apart: Mapping[str, Family]) -> Constants:
    """The constants with what other weights and other families change."""
    return replace(known, weights_unknown=weights_unknown, families_apart=families_apart)


def spreads(results: Sequence[Result], apart: Sequence[Constants], folded: bool) -> dict[str, Spread]:
    """Of the results with folded layers, or of those without."""
    ratios: dict[str, list[float]] = {name: [] for name in TARGETS}
    for one, without in zip(results, apart, strict=True):
        if one.folded != folded or one.terms.constant_share > CONSTANT_SHARE:
            continue
        for name, value in predicted(one, without).items():
            if name in one.measured:
                ratios[name].append(math.log(max(one.measured[name], 0.5) / max(value, 0.5)))
    return {name: spread(found) for name, found in ratios.items()}


def spread(ratios: Sequence[float]) -> Spread:
    """Conformal quantiles: of n + 1 cases, with the new one, LEVEL lie inside (Vovk et al. 2005)."""
    if not ratios:
        return START.spread["lut"]
    found = np.sort(np.asarray(ratios))
    tail = round((1 - LEVEL) / 2 * (len(found) + 1), 9)
    low = found[max(0, math.floor(tail) - 1)]
    high = found[min(len(found) - 1, math.ceil(len(found) + 1 - tail) - 1)]
    return Spread(min(0.0, float(low)), max(0.0, float(high)))


def _region(results: Sequence[Result]) -> Region:
    def most(name: str) -> int:
        return max((round(one.measured[name]) for one in results), default=0)

    return Region(
        most("lut"), most("ff"), most("dsp"), most("bram"), bits=max((one.bits for one in results), default=0),
        latency_cycles=max((one.cycles for one in results if "cycles" in one.measured), default=0),
        operations={name: max(one.bits for one in results if name in one.operations) for name in RARE
                    if any(name in one.operations for one in results)},
    )  # fmt: skip


def _sums(counts: Sequence[Mapping[str, float]], measured: Sequence[float], start: Mapping[str, float]) -> dict[str, float]:
    """Constants by which sums of counts come near what was measured."""
    names = list(start)
    table = np.array([[one.get(name, 0.0) for name in names] for one in counts])
    return dict(zip(names, _positive(table, np.asarray(measured, float), np.array(list(start.values()))).tolist(), strict=True))


def _positive(table: Floats, wanted: Floats, start: Floats) -> Floats:
    """Minimises Huber's loss of relative errors plus the prior, over constants of at least 0."""
    scaled = table * start / wanted[:, None]
    weights, factors = np.ones(len(wanted)), np.ones(len(start))
    for _ in range(ROUNDS):
        squares = (scaled.T * weights) @ scaled + PRIOR * np.eye(len(start))
        factors = _non_negative(squares, scaled.T @ weights + PRIOR)
        errors = np.abs(scaled @ factors - 1)
        weights = np.minimum(1.0, HUBER / np.maximum(errors, 1e-12))
    return np.asarray(factors * start)


def _non_negative(squares: Floats, linear: Floats) -> Floats:
    """Least squares over x >= 0, of normal equations (Lawson and Hanson 1974, chapter 23)."""
    free, found = np.zeros(len(linear), bool), np.zeros(len(linear))
    while True:
        helps = np.where(free, 0.0, linear - squares @ found)
        if helps.max() <= 1e-9 * np.abs(linear).max():
            return found
        free[int(helps.argmax())] = True
        while True:
            wanted = np.zeros(len(linear))
            wanted[free] = np.linalg.solve(squares[np.ix_(free, free)], linear[free])
            below = free & (wanted <= 0)
            if not below.any():
                found = wanted
                break
            step = float((found[below] / (found[below] - wanted[below])).min())
            found = found + step * (wanted - found)
            free &= found > 1e-12
            found[~free] = 0.0


def _delays(results: Sequence[Result]) -> dict[str, float]:
    """Delays by which the slowest path of each design takes its measured period: in turns, which path is slowest, and a fit."""
    names = list(START.delay_ns)
    start = np.array(list(START.delay_ns.values()))
    delays = start.copy()
    timed = [one for one in results if one.measured.get("fmax_mhz")]
    periods = np.array([1e3 / one.measured["fmax_mhz"] for one in timed])
    tables = [_ways(one.terms.paths, one.measured["lut"], names) for one in timed]
    if not timed:
        return dict(START.delay_ns)
    for _ in range(ROUNDS):
        slowest = np.array([table[int(np.argmax(table @ delays))] for table in tables])
        delays = (delays + _positive(slowest, periods, start)) / 2
    return dict(zip(names, delays.tolist(), strict=True))


def _ways(paths: Sequence[Way], luts: float, names: Sequence[str]) -> Floats:
    """A row for each path of a design."""
    rows = [{**one, "clock": 1.0, "spread_out": doublings(luts)} for one in paths or [{}]]
    return np.array([[row.get(name, 0.0) for name in names] for row in rows])
