"""How well latency is predicted for networks and chips that the fit has not seen, beside the plain roofline on the same rows.

python -m tests.bench_latency                        prints the tables
python -m tests.bench_latency --write-calibration    writes the points of the first split for the page of edgesdk compare
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters.cost import Layer
from edgesdk_targets import calibration_points, latency_fit
from edgesdk_targets.calibration_points import Point
from edgesdk_targets.latency_fit import TOO_FEW, Row, few_networks, network, parts, residuals, rows, spread
from edgesdk_targets.latency_model import constants, used_cores

from .bench_quantised import show

Array = NDArray[np.float64]
NO_FACTS = float("nan")
HEAD = ("", "n", "MAPE %", "median %", "in 10 %", "in 20 %", "covered %", "high/low")


@dataclass(frozen=True)
class Predicted:
    """Milliseconds by row: value and interval; not a number where it was refused."""

    value: Array
    low: Array
    high: Array


def roofline(sample: Sequence[Row]) -> Predicted:
    """The estimate before this model: max(operations / peak, bytes / bandwidth) + launch, times a factor, and its spread."""
    found = np.full((3, len(sample)), NO_FACTS)
    for i, row in enumerate(sample):
        facts, setting = row.facts, row.setting
        if setting.backend == "cpu":
            used = used_cores(facts, setting)
            peak, bandwidth, launch, spread_of = (
                len(used) * used[0].gflops,
                0.45 * facts.bandwidth_gb_per_s,
                0.02,
                (2.0, 0.6, 4.5),
            )
        else:
            half = setting.precision == "fp16"
            peak = facts.gpu_fp16_gflops if half else facts.gpu_fp32_gflops
            bandwidth, launch, spread_of = facts.bandwidth_gb_per_s, 0.01, (1.3, 0.7, 4.0) if half else (0.9, 0.35, 4.0)
        if peak > 0:
            size = {"fp32": 1.0, "fp16": 0.5, "int8": 0.25}[setting.precision]
            found[:, i] = np.array(spread_of) * sum(
                _bound_ms(layer, peak, bandwidth, launch, size) for layer in network(row.network)
            )
    return Predicted(found[0], found[1], found[2])


def _bound_ms(layer: Layer, gflops: float, gb_per_s: float, launch_ms: float, size: float) -> float:
    moved = layer.in_bytes + layer.out_bytes + layer.weight_bytes * size
    if not (moved or layer.macs):
        return 0.0
    return max((2 * layer.macs + layer.elem_ops) / (gflops * 1e6), moved / (gb_per_s * 1e6)) + launch_ms


def left_out(sample: Sequence[Row], key: Callable[[Row], str]) -> Predicted:
    """Each row by a fit and by intervals that knew no row of its key."""
    errors, groups = residuals(sample, key)
    measured = np.array([row.latency_ms for row in sample])
    value = measured / np.exp(errors)
    keys = [key(row) for row in sample]
    bounds: dict[tuple[str, str], tuple[float, float]] = {}
    for group, name in dict.fromkeys(zip(groups, keys, strict=True)):
        pool = [(e, k) for e, g, k in zip(errors, groups, keys, strict=True) if g == group and k != name]
        if len({k for _, k in pool}) < TOO_FEW:  # as in `calibrate`: a stranger's errors
            pool = [(e, k) for e, g, k in zip(errors, groups, keys, strict=True) if g[:5] in ("unkno", "other") and k != name]
        bounds[group, name] = spread(np.array([e for e, _ in pool]), len({k for _, k in pool}))
    ends = np.array([bounds[pair] for pair in zip(groups, keys, strict=True)])
    return Predicted(value, value * np.exp(-ends[:, 0]), value * np.exp(ends[:, 1]))


def score(label: str, sample: Sequence[Row], found: Predicted, members: Sequence[int]) -> tuple[str, ...]:
    """One row of the table. A refusal counts as an error of 100 % that no interval covers."""
    here = list(members)
    measured = np.array([sample[i].latency_ms for i in here])
    error = np.nan_to_num(np.abs(found.value[here] / measured - 1), nan=1.0)
    inside = (found.low[here] <= measured) & (measured <= found.high[here])
    ratio = np.nanmedian(found.high[here] / found.low[here]) if np.isfinite(found.low[here]).any() else NO_FACTS
    return (
        label, str(len(here)), f"{100 * error.mean():.1f}", f"{100 * np.median(error):.1f}", f"{100 * np.mean(error <= 0.1):.0f}",
        f"{100 * np.mean(error <= 0.2):.0f}", f"{100 * inside.mean():.0f}", f"{ratio:.2f}",
    )  # fmt: skip


def tables(title: str, sample: Sequence[Row], found: Predicted) -> None:
    """Scores by stage, then by device and runtime."""
    print(f"\n{title}")
    lines = [score("all", sample, found, range(len(sample)))]
    for of in (_stage, _place):
        for name in sorted({of(row) for row in sample}):
            lines.append(score(name, sample, found, [i for i, row in enumerate(sample) if of(row) == name]))
    show(HEAD, lines)


def _stage(row: Row) -> str:
    stage = latency_fit.stage(row)
    return {"plain": "= ncnn cpu fp32", "int8": "= ncnn cpu int8", "other": "= other cpu runtimes"}.get(stage, f"= {stage}")


def _place(row: Row) -> str:
    return f"{row.facts.name} {row.setting.runtime} {row.setting.backend}"


def noise(sample: Sequence[Row]) -> None:
    """What repeats of one network on one device differ by: no predictor can be nearer than that."""
    print("\nnoise of the source: repeats that facts and layers cannot tell apart")
    lines: list[tuple[str, ...]] = []
    for label, on_cpu in (("GPU, ncnn: other date or threads on the host", False), ("CPU, ncnn: the same setting again", True)):
        places: dict[tuple[object, ...], list[float]] = {}
        for row in sample:
            if row.setting.runtime == "ncnn" and (row.setting.backend == "cpu") == on_cpu:
                threads = row.setting.threads if on_cpu else None
                key = (row.facts.name, row.facts.config, row.network, row.setting.precision, threads, row.setting.powersave)
                places.setdefault(key, []).append(row.latency_ms)
        ratios = np.array([max(times) / min(times) for times in places.values() if len(times) > 1])
        lines.append(
            (label, str(len(ratios)), f"{np.median(ratios):.2f}", f"{np.quantile(ratios, 0.9):.2f}", f"{ratios.max():.2f}")
        )
    boards = ({}, {})  # type: tuple[dict[tuple[str, int | None], float], dict[tuple[str, int | None], float]]
    for row in sample:
        for times_of, (name, clock) in zip(boards, (("Raspberry Pi Zero 2 W", 1.0), ("Raspberry Pi 3B+", 1.4)), strict=True):
            if row.facts.name == name and row.setting.precision == "fp32":
                times_of[row.network, row.setting.threads] = row.latency_ms * clock
    pairs = np.array([time / boards[1][way] for way, time in boards[0].items()])
    ratios = np.maximum(pairs, 1 / pairs)
    lines.append(("Cortex-A53 on Pi Zero 2 W and 3B+, times clock", str(len(ratios)), f"{np.median(ratios):.2f}",
                  f"{np.quantile(ratios, 0.9):.2f}", f"{ratios.max():.2f}"))  # fmt: skip
    show(("repeats", "n", "median ratio", "90 %", "greatest"), lines)


def own_reports(sample: Sequence[Row]) -> None:
    """A chip that was never measured, before and after `refit` on three of its networks."""
    print("\na chip left out, and three of its networks given to refit (mean over draws; the rest of its networks is scored)")
    lines: list[tuple[str, ...]] = []
    for name, members in zip(("CPU", "GPU"), parts(sample), strict=True):
        for label, errors in zip(("after", "before"), few_networks([sample[i] for i in members]), strict=True):
            error = np.abs(np.exp(-errors) - 1)
            lines.append((f"{name} {label}", str(len(errors)), f"{100 * error.mean():.1f}", f"{100 * np.median(error):.1f}"))
    show(("", "n", "MAPE %", "median %"), lines)


def points(sample: Sequence[Row]) -> list[Point]:
    """Each row predicted by a fit that knew no row of its network's family, as the page of `edgesdk compare` draws them."""
    found = left_out(sample, lambda row: row.family)
    return [
        Point(
            row.facts.name, row.network, row.setting.runtime, row.setting.backend, row.setting.precision, row.latency_ms,
            float(value), float(low), float(high),
        )
        for row, value, low, high in zip(sample, found.value, found.low, found.high, strict=True)
    ]  # fmt: skip


def write_calibration() -> None:
    """Replace latency_calibration.json, which a test holds against what this computes."""
    text = calibration_points.to_json(
        points(rows()), constants().source,
        "each row predicted with all rows of its network's family (its sizes, its int8 twin) left out of the fit and of the "
        "intervals",
        "python -m tests.bench_latency --write-calibration", datetime.date.today().isoformat(),
    )  # fmt: skip
    calibration_points.FILE.write_text(text, encoding="utf-8")
    print(f"wrote {calibration_points.FILE.name}, {len(text):,} bytes")


def main() -> None:
    asked = argparse.ArgumentParser(description="Errors of the latency estimator on what it has not seen.")
    asked.add_argument("--write-calibration", action="store_true", help="Write latency_calibration.json instead.")
    if asked.parse_args().write_calibration:
        write_calibration()
        return
    sample = rows()
    effects = constants().effects
    shared = [name for name in effects if not any(row.facts.name in name for row in sample)]
    print(f"{len(sample)} published rows; {len(effects)} constants, {len(shared)} of them shared by all devices")
    noise(sample)
    tables("plain roofline, as it was before (nothing fitted to a family or chip)", sample, roofline(sample))
    tables("model, whole families left out", sample, left_out(sample, lambda row: row.family))
    tables("model, whole chips left out: facts alone", sample, left_out(sample, lambda row: row.soc))
    own_reports(sample)


if __name__ == "__main__":
    main()
