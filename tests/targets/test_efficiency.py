"""Shares of a device's peak and memory, and what compression keeps: by hand, with the provenance of their parts."""

from __future__ import annotations

import pytest

from edgesdk_targets import device as devices
from edgesdk_targets.efficiency import compression, shares
from edgesdk_targets.estimate import published_profile
from edgesdk_targets.figure import Figure, Interval, counted

PI = devices.profile("raspberry-pi-4")  # 4 x 1.8 GHz x 8 FLOP, 1 GiB in the smallest variant
TIMED = Figure("latency_ms", 50.0, "measured", "a Pi", "timed", n=20)
GUESSED = Figure("latency_ms", 50.0, "estimated", PI.name, "guessed", interval=Interval(25.0, 100.0, 0.9), extrapolated=True)
MEMORY = Figure("peak_memory_bytes", 1 << 28, "measured", "a Pi", "read", n=1)
MACS = 360_000_000
LAYER = Figure("latency_ms", 1.0, "measured", "a Pi", "timed", layer="conv", n=20)


def test_shares_are_work_over_time_and_peak_and_memory_over_memory() -> None:
    peak, memory = shares((LAYER, TIMED, MEMORY), MACS, PI, precision="fp32", on_gpu=False)
    assert (peak.name, peak.provenance, peak.where, peak.n) == ("peak_share", "measured", "a Pi", 20)
    assert peak.value == pytest.approx(2 * MACS / 50e-3 / (4 * 1.8e9 * 8))
    assert "4 x 1.8 GHz x 8 FLOP" in peak.method
    assert (memory.name, memory.value) == ("memory_share", pytest.approx(0.25)) and "smallest variant" in memory.method
    alone = shares((TIMED,), MACS, PI, precision="fp32", on_gpu=False, threads=1)
    assert [row.value for row in alone] == [pytest.approx(4 * (peak.value or 0))]


def test_an_estimate_stays_one_with_its_interval_turned_round() -> None:
    (peak,) = shares((GUESSED,), MACS, PI, precision="fp32", on_gpu=False)
    assert peak.provenance == "estimated" and peak.extrapolated and peak.interval is not None and peak.value is not None
    assert (peak.interval.low, peak.interval.high) == (pytest.approx(peak.value / 2), pytest.approx(peak.value * 2))
    assert peak.interval.level == 0.9


def test_a_gpu_has_the_peak_of_its_precision() -> None:
    orin = devices.profile("jetson-orin-nano")
    half, whole = (shares((TIMED,), MACS, orin, precision=p, on_gpu=True) for p in ("fp16", "int8"))
    assert half[0].value == pytest.approx(2 * (whole[0].value or 0)) == pytest.approx(2e-9 * MACS / 50e-3 / 10240)


def test_what_has_no_meaning_is_left_out() -> None:
    orin, phone = devices.profile("jetson-orin-nano"), published_profile("phone-snapdragon-835")
    assert not shares((TIMED,), MACS, orin, precision="fp32", on_gpu=True)  # TF32 or not: the library decides
    assert not shares((TIMED,), MACS, PI, precision="int8", on_gpu=False)
    assert not shares((TIMED,), MACS, phone, precision="fp32", on_gpu=False)  # cores of two kinds
    assert not shares((TIMED,), 0, PI, precision="fp32", on_gpu=False)
    assert not shares((LAYER,), MACS, PI, precision="fp32", on_gpu=False)


def test_compression_counts_for_what_it_keeps() -> None:
    rows = [
        counted("source_bytes", 4000, "counted"),
        counted("artifact_bytes", 1000, "counted"),
        Figure("source_accuracy", 0.8, "measured", "here", "top-1", n=500),
        Figure("accuracy", 0.6, "simulated", "Verilator", "top-1", n=400),
    ]
    (found,) = compression(rows)
    assert found.value == pytest.approx(4 * 0.75) and (found.provenance, found.where, found.n) == ("simulated", "Verilator", 400)
    for gone in range(4):
        assert compression(rows[:gone] + rows[gone + 1 :]) == ()
