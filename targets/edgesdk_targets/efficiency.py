"""Metrics of the papers on efficiency, where they mean something: how much of a device a run uses, and what compression keeps.

After EfficientLLM's utilisation (achieved over peak, memory used over memory there) and its model compression rate (the ratio of
sizes x the ratio of performances). A metric whose parts are not all known is left out. Each has the provenance of the
latency, memory or accuracy in it: its other parts are exact.
"""

from __future__ import annotations

from collections.abc import Sequence

from .device import DeviceProfile
from .figure import Figure, Interval

GPU_PEAKS = {"fp16": "gpu_fp16_gflops", "int8": "gpu_int8_gops"}
"""Facts with the peak of a GPU. In fp32 libraries choose TF32 or not by themselves, and so which peak is theirs."""


def shares(
    rows: Sequence[Figure], macs: int, device: DeviceProfile, *, precision: str, on_gpu: bool, threads: int = 0
) -> tuple[Figure, ...]:
    """peak_share and memory_share of a run, from its latency_ms and peak_memory_bytes; `threads` 0 is all cores."""
    return (*_peak_share(rows, macs, _peak(device, precision, on_gpu, threads)), *_memory_share(rows, device))


def compression(rows: Sequence[Figure]) -> tuple[Figure, ...]:
    """size_ratio_times_retention of an export that measured the accuracy of source and artefact; empty for others.

    Sizes are counted and the source's accuracy is always measured: it has the provenance of the artefact's accuracy.
    """
    before, after = _whole(rows, "source_bytes"), _whole(rows, "artifact_bytes")
    had, kept = _whole(rows, "source_accuracy"), _whole(rows, "accuracy")
    if before is None or after is None or had is None or kept is None or not (before.value and after.value and had.value):
        return ()
    assert kept.value is not None
    smaller, retained = before.value / after.value, kept.value / had.value
    told = f"{smaller:.3g}x smaller x {retained:.4g} of the accuracy; 1 is the source"
    return (Figure("size_ratio_times_retention", smaller * retained, kept.provenance, kept.where, told, n=kept.n),)


def _whole(rows: Sequence[Figure], name: str) -> Figure | None:
    found = (row for row in rows if row.name == name and row.layer is None and row.segment == "whole")
    return next((row for row in found if row.value is not None), None)


def _peak(device: DeviceProfile, precision: str, on_gpu: bool, threads: int) -> tuple[float, str] | None:
    """GFLOP/s (or GOP/s) and how they come about; None where no source tells, or the arithmetic has a peak of its own."""
    if on_gpu:
        fact = GPU_PEAKS.get(precision)
        peak = device.get(fact, float) if fact else None
        return (peak, f"{peak:,.0f} G/s in {precision} of the GPU") if peak else None
    cores, clock = device.get("cores", int), device.get("clock_ghz", float)
    each = device.facts.get("fp32_flop_per_cycle_per_core")
    if precision != "fp32" or not cores or not clock or each is None or not isinstance(each.value, int | float):
        return None  # of integers and halves the runtime decides by kernel, and phones have several kinds of cores
    used = min(threads or cores, cores)
    return used * clock * each.value, f"{used} x {clock:g} GHz x {each.value:g} FLOP a cycle"


def _peak_share(rows: Sequence[Figure], macs: int, peak: tuple[float, str] | None) -> tuple[Figure, ...]:
    latency = _whole(rows, "latency_ms")
    if latency is None or not latency.value or not macs or peak is None:
        return ()
    gflop = 2e-9 * macs

    def share(latency_ms: float) -> float:
        return gflop / (latency_ms * 1e-3 * peak[0])

    around = latency.interval and Interval(share(latency.interval.high), share(latency.interval.low), latency.interval.level)
    told = f"2 x MACs / latency over {peak[1]}; above 1 where Winograd's algorithm spares multiplications"
    return (
        Figure(
            "peak_share", share(latency.value), latency.provenance, latency.where, told, interval=around,
            extrapolated=latency.extrapolated, n=latency.n,
        ),
    )  # fmt: skip


def _memory_share(rows: Sequence[Figure], device: DeviceProfile) -> tuple[Figure, ...]:
    used, there = _whole(rows, "peak_memory_bytes"), device.get("memory_bytes", int)
    if used is None or used.value is None or not there:
        return ()
    around = used.interval and Interval(used.interval.low / there, used.interval.high / there, used.interval.level)
    smallest = " of the smallest variant" if device.get("memory_bytes_variants", list) else ""
    return (
        Figure(
            "memory_share", used.value / there, used.provenance, used.where, f"peak memory over {there / 1e9:.3g} GB{smallest}",
            interval=around, extrapolated=used.extrapolated, n=used.n,
        ),
    )  # fmt: skip
