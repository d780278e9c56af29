"""A two-minute fit to this machine, then real networks that it has not seen: predicted, and measured.

python -m tests.bench_fit [MINUTES]
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import edgesdk
from edgesdk import fit_table
from edgesdk.estimating import estimate
from edgesdk.fit_here import timed
from edgesdk_converters.model import Model
from edgesdk_targets.figure import Figure

from .bench_quantised import show

MODELS = (
    "resnet50", "densenet121", "squeezenet", "shufflenet", "inception_v1", "inception_v2", "efficientnet-lite0", "mobilenet-vww",
    "resnet8", "ds-cnn",
)  # fmt: skip
FOLDER = Path(__file__).parents[1] / "build" / "models"
MINUTES_EACH = 0.1


@dataclass(frozen=True)
class Row:
    """Milliseconds of a network: predicted before and after the fit; of the thread that runs it, and by the wall clock."""

    name: str
    before: Figure
    after: Figure
    thread_ms: float
    wall_ms: float


def main(minutes: float = 2.0) -> None:
    """Fit, predict, measure, print."""
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "this-machine.fit.json")
        found = edgesdk.fit(on="local", minutes=minutes, out=file)
        print(fit_table.shown(found), end="\n\n")
        rows = [_row(name, file, Path(folder)) for name in MODELS]
    heads = ("network", "before ms", "fitted ms", "interval", "thread ms", "wall ms", "error", "error of wall", "covered")
    show(heads, [_shown(row) for row in rows])
    for label, of in (("thread time", "thread_ms"), ("wall clock", "wall_ms")):
        measured = [getattr(row, of) for row in rows]
        errors = [f"{_mape(figures, measured):.1f} %" for figures in ([r.before for r in rows], [r.after for r in rows])]
        inside = sum(_covers(row.after, value) for row, value in zip(rows, measured, strict=True))
        print(f"{label}: MAPE {errors[0]} before, {errors[1]} fitted, in the interval {inside} of {len(rows)}")
    print(f"load {os.getloadavg()[0]:.1f}")


def _row(name: str, file: Path, folder: Path) -> Row:
    path = FOLDER / f"{name}.onnx"
    before, after = (
        _latency(estimate(path, device="this-machine", runtime="onnxruntime", threads=1, fit=fit)) for fit in (None, file)
    )
    (one,) = timed([Model.load(path)], minutes=MINUTES_EACH)
    bundle = folder / f"{name}.edge"
    edgesdk.export(path, device="this-machine", settings={"threads": "1"}, out=bundle)
    wall = _latency(edgesdk.measure(bundle, threads=1))
    return Row(name, before, after, one.record.latency_ms, float(wall.value or 0))


def _latency(report: edgesdk.Report) -> Figure:
    found = report.find("latency_ms")
    assert found is not None and found.value is not None
    return found


def _covers(figure: Figure, measured: float) -> bool:
    assert figure.interval is not None
    return figure.interval.low <= measured <= figure.interval.high


def _mape(figures: Sequence[Figure], measured: Sequence[float]) -> float:
    return 100 * float(np.mean([abs(float(f.value or 0) / value - 1) for f, value in zip(figures, measured, strict=True)]))


def _shown(row: Row) -> tuple[str, ...]:
    value, interval = float(row.after.value or 0), row.after.interval
    assert interval is not None
    return (
        row.name, f"{row.before.value:.4g}", f"{value:.4g}", f"{interval.low:.3g} to {interval.high:.3g}", f"{row.thread_ms:.4g}",
        f"{row.wall_ms:.4g}", f"{100 * (value / row.thread_ms - 1):+.0f} %", f"{100 * (value / row.wall_ms - 1):+.0f} %",
        "yes" if _covers(row.after, row.thread_ms) else "no",
    )  # fmt: skip


if __name__ == "__main__":
    main(*map(float, sys.argv[1:2]))
