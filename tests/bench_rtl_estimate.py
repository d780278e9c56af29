"""The estimate of the flow rtl beside designs that were synthesised and routed, families left out of the fit; and the fit.

python -m tests.bench_rtl_estimate                       scores, each family of networks left out in turn
python -m tests.bench_rtl_estimate --designs             and every design, estimated without its family
python -m tests.bench_rtl_estimate --write DATE          refits the shipped constants

The table is rtl_results.csv, which tests/sweep_rtl.py writes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from edgesdk_converters.errors import EdgeError
from edgesdk_targets.fpga import rtl_constants
from edgesdk_targets.fpga.constants_file import Spread, text
from edgesdk_targets.fpga.rtl_constants import CONSTANT_SHARE, RARE, Constants, Family
from edgesdk_targets.fpga.rtl_counts import Terms, total
from edgesdk_targets.fpga.rtl_estimate import AREA, FOLDED, WIDER_CONSTANT
from edgesdk_targets.fpga.rtl_terms import terms

from . import rtl_fit, sweep_rtl, sweep_rtl_designs
from .bench_hls4ml_estimate import r2, smape
from .bench_quantised import show
from .rtl_fit import START, TARGETS, Result, fit, left_out, predicted, spread, spreads, with_spread

CONSTANTS = Path(rtl_constants.__file__).with_name("rtl_constants.toml")
OTHER_SEEDS, SEEDED_EVERY = (1001, 1002, 1003), 4
"""Weights that a design's network also gets, to see what they alone change; for one design in so many."""


def counts(text: str) -> dict[str, float]:
    return {name: float(count) for name, count in (entry.split("=") for entry in text.split())}


def result(row: Mapping[str, str]) -> Result:
    """What the fit needs of a row of the table."""
    found = Terms(
        row["name"], counts(row["lut_terms"]), counts(row["ff_terms"]), int(row["dsp_terms"]), int(row["bram_terms"]),
        [counts(path) for path in row["paths"].split(";") if path.strip()], round(1000 * float(row["constant_share"] or 0)), 1000,
    )  # fmt: skip
    measured = {name: float(row[name]) for name in (*AREA, "fmax_mhz") if row[name]}
    if row["simulated_cycles"]:
        latency, interval = map(float, row["simulated_cycles"].split())
        measured |= {"cycles": latency} | ({"initiation_interval": interval} if interval else {})
    bits, operations = sweep_rtl_designs.made_of(row["name"])
    folded = FOLDED in [layer.split()[0] for layer in row["layers"].split(";")]
    return Result(
        row["family"], found, int(row["latency_cycles"]), int(row["interval_cycles"]), bits, folded, operations & set(RARE),
        measured,
    )  # fmt: skip


def scores(title: str, results: Sequence[Result], apart: Sequence[Constants], inside: Sequence[dict[str, Spread]]) -> None:
    """R2, SMAPE, and of intervals coverage and median high / low; `inside` are each result's spreads, made without its family."""
    print(f"{title}: {len(results)} designs of {len({one.family for one in results})} networks")
    lines = list[tuple[str, ...]]()
    for name in TARGETS:
        mine = [place for place, one in enumerate(results) if name in one.measured]
        if not mine:
            continue
        measured = np.array([results[place].measured[name] for place in mine])
        guess = np.array([predicted(results[place], apart[place])[name] for place in mine])
        low, high = np.array([ends(name, g, inside[p][name]) for g, p in zip(guess, mine, strict=True)]).T
        covered = np.mean((low <= measured) & (measured <= high))
        ratio = np.median(np.where(low > 0, high / np.where(low > 0, low, 1), 1.0))
        exact = np.mean(np.abs(measured - guess) < 0.5)
        lines.append((name, str(len(mine)), f"{smape(measured, guess):.2f}", f"{r2(measured, guess):.4f}", f"{100 * exact:.0f}",
                      f"{100 * covered:.0f}", f"{ratio:.3f}"))  # fmt: skip
    show(("figure", "n", "SMAPE %", "R2", "exact %", "in 80 % interval", "high/low"), lines)


def ends(name: str, guess: float, around: Spread) -> tuple[float, float]:
    """Of an interval, as the estimate rounds it: counts are whole."""
    low, high = guess * math.exp(around.low), guess * math.exp(around.high)
    return (low, high) if name == "fmax_mhz" else (math.floor(low + 1e-9), math.ceil(high - 1e-9))


def nested(results: Sequence[Result], apart: Sequence[Constants]) -> list[dict[str, Spread]]:
    """For each result the spreads that all other families give."""
    made: dict[tuple[str, bool], dict[str, Spread]] = {}
    for family, folded in {(one.family, one.folded) for one in results}:
        others = [place for place, one in enumerate(results) if one.family != family]
        made[family, folded] = spreads([results[place] for place in others], [apart[place] for place in others], folded)
    return [_widened(made[one.family, one.folded], one) for one in results]


def _widened(around: dict[str, Spread], one: Result) -> dict[str, Spread]:
    """As the estimate widens the intervals of designs with constant parts."""
    if one.terms.constant_share <= CONSTANT_SHARE:
        return around
    return around | {
        name: Spread(-math.hypot(around[name].low, wider), math.hypot(around[name].high, wider))
        for name, wider in WIDER_CONSTANT.items()
    }


def weights_unknown(rows: Sequence[Mapping[str, str]], known: Constants) -> dict[str, float]:
    """Deviation of log(figure) among networks that differ in their weights alone, by the generator, without tools."""
    by_name = {one.name: one for one in sweep_rtl_designs.wanted()}
    found: dict[str, list[float]] = {name: [] for name in ("lut", "ff", "dsp", "bram", "fmax_mhz", "cycles")}
    for row in rows[::SEEDED_EVERY]:
        one = by_name.get(row["name"])
        if one is None:
            continue
        made = []
        for seed in OTHER_SEEDS:
            try:
                design = sweep_rtl_designs.Wanted(
                    one.network, one.bits, one.form, one.multipliers, one.cutoff, one.rounding, one.device, seed
                ).design()
            except EdgeError:
                continue
            whole = total(terms(design.files))
            laid_out = Result("", whole, design.latency_cycles, design.interval_cycles, one.bits, False, frozenset(), {})
            made.append(predicted(laid_out, known))
        if len(made) < 2:
            continue
        for name, deviations in found.items():
            deviations.append(float(np.std(np.log([max(each[name], 0.5) for each in made]), ddof=1)))
    return {name: round(float(np.sqrt(np.mean(np.square(each)))), 6) for name, each in found.items()}


def families_apart(rows: Sequence[Mapping[str, str]]) -> dict[str, Family]:
    """Ratios of other families' counts to those of ECP5."""
    made = {}
    for family in ("xc7", "xcup"):
        mine = [row for row in rows if row.get(family)]
        if len(mine) < rtl_fit.FEWEST_APART:
            continue
        ratios: dict[str, list[float]] = {name: [] for name in AREA}
        for row in mine:
            for name, count in zip(AREA, row[family].split(), strict=True):
                if float(row[name]) > 0 and float(count) > 0:
                    ratios[name].append(float(count) / float(row[name]))
        middle = {name: float(np.median(each)) if each else 1.0 for name, each in ratios.items()}
        around = {name: spread([math.log(one / middle[name]) for one in each]) for name, each in ratios.items()}
        made[family] = Family(len(mine), **middle, spread=around)
    return made


def head(rows: Sequence[Mapping[str, str]], known: Constants) -> str:
    """The comment above the constants: which of them are not fitted, and which designs of the table the fit leaves out."""
    kinds = {"lut": (known.lut, START.lut), "ff": (known.ff, START.ff), "delay_ns": (known.delay_ns, START.delay_ns)}
    pairs = [(f"{kind}.{name}", found[name], start[name]) for kind, (found, start) in kinds.items() for name in start]
    same = [name for name, found, start in pairs if math.isclose(found, start)]
    done = [row for row in rows if row["status"] == "done"]
    stopped = sum("stopped after" in row["status"] for row in rows)
    constant = sum(result(row).terms.constant_share > CONSTANT_SHARE for row in done)
    return (
        "# Written by tests/bench_rtl_estimate.py --write DATE; what they multiply: rtl_terms.py.\n"
        f"# Not fitted, but as they start (START in tests/rtl_fit.py):\n# {', '.join(same) or 'none'}.\n"
        f"# Left out of {len(rows)} designs: {stopped} that were stopped at the limit of {sweep_rtl.LIMIT_S:g} s, "
        f"{len(rows) - len(done) - stopped} that failed otherwise,\n"
        f"# {constant} with constant parts (above {CONSTANT_SHARE:.0%} of what kernels give).\n"
    )


def main(arguments: Sequence[str]) -> int:
    rows = [row for row in sweep_rtl.read() if row["status"] == "done"]
    results = [result(row) for row in rows]
    apart = left_out(results)
    if "--write" in arguments:
        date = arguments[arguments.index("--write") + 1]
        tools = ", ".join(sorted({row["tools"] for row in rows}))
        source = f"fitted on rtl_results.csv, networks of tests/sweep_rtl.py, made with {tools}"
        known = with_spread(fit(results, source, date, sweep_rtl.CLOCK_MHZ), results, apart)
        known = rtl_fit.completed(known, weights_unknown(rows, known), families_apart(rows))
        written = head(sweep_rtl.read(), known) + text(known)
        CONSTANTS.write_text(written, encoding="utf-8")
        return 0
    scores("family left out", results, apart, nested(results, apart))
    changing = [place for place, one in enumerate(results) if one.terms.constant_share <= CONSTANT_SHARE]
    parts = [[found[place] for place in changing] for found in (results, apart, nested(results, apart))]
    scores("of these, without those of which parts are constant", *parts)  # type: ignore[arg-type]
    known = fit(results)
    each = {folded: spreads(results, apart, folded) for folded in (False, True)}
    scores("in sample", results, [known] * len(results), [each[one.folded] for one in results])
    listed = {one.name for one in sweep_rtl_designs.LISTED}
    groups: dict[str, Callable[[Mapping[str, str]], bool]] = {
        "only unrolled and streaming forms": lambda row: " unrolled " in row["name"] or " streaming " in row["name"],
        "folded and auto": lambda row: " folded " in row["name"] or " auto " in row["name"],
        "no layer folded": lambda row: not result(row).folded,
        "with layer normalisation, functions or softmax, listed by hand": lambda row: row["name"] in listed,
        "dense networks": lambda row: "x" not in row["family"].split("-")[0],
        "convolutions": lambda row: "x" in row["family"].split("-")[0],
    }
    around = nested(results, apart)
    for title, holds in groups.items():
        mine = [place for place, row in enumerate(rows) if holds(row)]
        scores(f"of these, {title}", [results[p] for p in mine], [apart[p] for p in mine], [around[p] for p in mine])
    if "--designs" in arguments:
        show(("design", *TARGETS), [_line(*one) for one in zip(rows, results, apart, strict=True)])
    return 0


def _line(row: Mapping[str, str], one: Result, known: Constants) -> tuple[str, ...]:
    made = predicted(one, known)
    return (row["name"], *(f"{one.measured[n]:.0f}/{made[n]:.0f}" if n in one.measured else "-" for n in TARGETS))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
