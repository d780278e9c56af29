"""The hls4ml estimator beside results of synthesis, networks left out of the fit; and the fit that ships.

EDGESDK_HLS4ML_RESULTS=TABLE.csv python -m tests.bench_hls4ml_estimate        (or the table as the first argument)
python -m tests.bench_hls4ml_estimate TABLE.csv --score                       the shipped constants on a table
python -m tests.bench_hls4ml_estimate TABLE.csv --write DATE                  refits the shipped constants

A table has the columns kind, model_string, prec, rf, strategy, clock_target_ns, clock_est_ns, latency_best, latency_worst,
bram18k, dsp, ff and lut, as the results of jdweitz/wa-hls4ml have them. It is not part of this project: its licence differs.
"""

from __future__ import annotations

import csv
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgesdk_targets.figure import Figure
from edgesdk_targets.fpga import dense_spec
from edgesdk_targets.fpga.constants_file import text
from edgesdk_targets.fpga.hls4ml_constants import Constants, shipped
from edgesdk_targets.fpga.hls4ml_estimate import estimate
from edgesdk_targets.fpga.hls4ml_fit import ANALYTIC, Record, fit

from .bench_quantised import show

VARIABLE = "EDGESDK_HLS4ML_RESULTS"
PART = "xcu250-figd2104-2L-e"
TARGETS = ("lut", "ff", "dsp", "bram", "cycles", "fmax_mhz")
SOURCE = (
    "fitted on results of dense networks through hls4ml and Vivado/Vitis 2023.2 from github.com/jdweitz/wa-hls4ml (commit "
    "2e49d33b, data/concatenated_*_json_to_csv.csv), sampled; the part is not stated there, the data set's card says Alveo U250"
)
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """A dense network's result."""

    kind: str
    family: str
    sizes: tuple[int, ...]
    record: Record

    @property
    def bits(self) -> int:
        return self.record.layers[0].weight_bits

    def measured(self, target: str) -> float:
        known = self.record.measured
        return 1000 / known["clock_est_ns"] if target == "fmax_mhz" else known[target]


def read(path: Path) -> tuple[list[Row], Counter[str]]:
    """Rows of dense networks, and how many there are of other kinds, whose strings lack what an estimate needs."""
    rows, others = [], Counter[str]()
    with path.open(newline="", encoding="utf-8") as file:
        for one in csv.DictReader(file):
            if not one["kind"].startswith("dense"):
                others[one["kind"]] += 1
                continue
            layers = dense_spec.parse(f"dense:{one['model_string']}@{one['prec']}bit")
            measured = {
                "lut": float(one["lut"]), "ff": float(one["ff"]), "dsp": float(one["dsp"]), "bram": float(one["bram18k"]),
                "cycles": float(one["latency_worst"]), "clock_est_ns": float(one["clock_est_ns"]),
            }  # fmt: skip
            record = Record(layers, measured, int(one["rf"]), one["strategy"], float(one["clock_target_ns"]), part=PART)
            sizes = tuple(map(int, one["model_string"].split("-")))
            rows.append(Row(one["kind"], one["model_string"], sizes, record))
    return rows, others


def figures(row: Row, known: Constants) -> dict[str, Figure]:
    """The totals."""
    given = row.record
    made = estimate(
        given.layers, reuse_factor=given.reuse_factor, strategy=given.strategy, clock_ns=given.clock_ns, part=given.part,
        constants=known,
    )  # fmt: skip
    return {figure.name: figure for figure in made if figure.layer is None}


def fitted(rows: Sequence[Row]) -> Constants:
    return fit([row.record for row in rows], ANALYTIC)


def left_out(rows: Sequence[Row], group: Callable[[Row], object]) -> list[dict[str, Figure]]:
    """Totals of each row under constants that were fitted without its group, intervals included."""
    found: dict[int, dict[str, Figure]] = {}
    groups = sorted({group(row) for row in rows}, key=str)
    for name in groups:
        known = fitted([row for row in rows if group(row) != name])
        found |= {index: figures(row, known) for index, row in enumerate(rows) if group(row) == name}
    return [found[index] for index in range(len(rows))]


def without(rows: Sequence[Row], out: Callable[[Row], bool]) -> tuple[list[Row], list[dict[str, Figure]]]:
    """Rows that meet a condition, under constants fitted on the rest."""
    known, chosen = fitted([row for row in rows if not out(row)]), [row for row in rows if out(row)]
    return chosen, [figures(row, known) for row in chosen]


def baseline(rows: Sequence[Row], group: Callable[[Row], object]) -> dict[str, Floats]:
    """A plain log-linear fit, same split: log(1 + y) on logs of inputs, hidden sum, outputs, weights, bits, rf, and on depth."""
    features = np.array(
        [
            [1.0, np.log(row.sizes[0]), np.log(sum(row.sizes[1:-1])), np.log(row.sizes[-1]),
             np.log(sum(layer.weights for layer in row.record.layers)), np.log(row.bits), np.log(row.record.reuse_factor),
             len(row.sizes)]
            for row in rows
        ]
    )  # fmt: skip
    made = {}
    groups = np.array([str(group(row)) for row in rows])
    for target in TARGETS:
        logs = np.log1p([row.measured(target) for row in rows])
        guess = np.zeros(len(rows))
        for name in set(groups):
            out = groups == name
            guess[out] = features[out] @ np.linalg.lstsq(features[~out], logs[~out], rcond=None)[0]
        made[target] = np.maximum(0.0, np.expm1(guess))
    return made


def smape(measured: Floats, guess: Floats) -> float:
    both = np.abs(measured) + np.abs(guess)
    return float(100 * np.mean(np.where(both > 0, 2 * np.abs(measured - guess) / np.where(both > 0, both, 1), 0.0)))


def r2(measured: Floats, guess: Floats) -> float:
    spread = float(((measured - measured.mean()) ** 2).sum())
    return 1 - float(((measured - guess) ** 2).sum()) / spread if spread else float("nan")


def table(
    title: str, rows: Sequence[Row], made: Sequence[Mapping[str, Figure]], plain: Mapping[str, Floats] | None = None
) -> None:
    """SMAPE, R2, and of the intervals their coverage and median high / low, by kind and target."""
    print(f"{title}: {len(rows)} results, {len({row.family for row in rows})} networks")
    lines = list[tuple[str, ...]]()
    for kind in (*sorted({row.kind for row in rows}), "dense"):
        mine = [index for index, row in enumerate(rows) if row.kind == kind or kind == "dense"]
        for target in TARGETS:
            measured = np.array([rows[index].measured(target) for index in mine])
            guess = np.array([made[index][target].value for index in mine], float)
            low, high = np.array([_interval(made[index][target]) for index in mine]).T
            slack = 1e-9 * high
            inside = float(np.mean((low - slack <= measured) & (measured <= high + slack)))
            ratio = float(np.median(np.where(low > 0, high / np.where(low > 0, low, 1), np.where(high > 0, np.inf, 1.0))))
            exact = float(np.mean(np.abs(measured - guess) < 1e-6))
            base = "" if plain is None else f"{smape(measured, plain[target][mine]):.1f}"
            lines.append(
                (kind, target, str(len(mine)), f"{smape(measured, guess):.2f}", f"{r2(measured, guess):.4f}",
                 f"{100 * exact:.0f}", f"{100 * inside:.0f}", f"{ratio:.3f}", base)
            )  # fmt: skip
    show(("kind", "target", "n", "SMAPE %", "R2", "exact %", "in 80 % interval", "high/low", "log-linear SMAPE %"), lines)


def _interval(figure: Figure) -> tuple[float, float]:
    assert figure.interval is not None
    return figure.interval.low, figure.interval.high


def report(rows: Sequence[Row]) -> None:
    def family(row: Row) -> object:
        return row.family

    table("family left out", rows, left_out(rows, family), baseline(rows, family))
    known = fitted(rows)
    table("in sample", rows, [figures(row, known) for row in rows])
    table("kind left out (dense2 from dense3, and back)", rows, left_out(rows, lambda row: row.kind))
    weights = np.quantile([sum(layer.weights for layer in row.record.layers) for row in rows], 0.8)
    table("largest fifth left out", *without(rows, lambda row: sum(layer.weights for layer in row.record.layers) > weights))
    table("deepest left out", *without(rows, lambda row: len(row.sizes) == max(len(one.sizes) for one in rows)))
    table("one width of weights left out, each in turn", rows, left_out(rows, lambda row: row.bits))
    table("reuse factor 1024 left out", *without(rows, lambda row: row.record.reuse_factor == 1024))
    table("one reuse factor left out, each in turn", rows, left_out(rows, lambda row: row.record.reuse_factor))


def main(arguments: Sequence[str]) -> int:
    paths = [argument for argument in arguments if not argument.startswith("--")]
    given = paths[0] if paths else os.environ.get(VARIABLE, "")
    if not given or not Path(given).is_file():
        print(f"no table of results at {given!r}: give its path as argument or in {VARIABLE} (see the head of this file)")
        return 1
    rows, others = read(Path(given))
    for kind, n in others.items():
        print(f"{kind}: {n} rows are refused: their strings have neither kernels nor image sizes. Each counts as a miss.\n")
    if "--write" in arguments:
        target = Path(dense_spec.__file__).with_name("hls4ml_constants.toml")
        made = fit([row.record for row in rows], ANALYTIC, SOURCE, arguments[arguments.index("--write") + 1])
        head = "# Written by tests/bench_hls4ml_estimate.py TABLE --write DATE; what they multiply: hls4ml_terms.py.\n"
        target.write_text(head + text(made), encoding="utf-8")
    elif "--score" in arguments:
        table("shipped constants", rows, [figures(row, shipped()) for row in rows])
    else:
        report(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
