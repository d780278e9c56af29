"""The points of the calibration plot: they are what the leave-out code computes, of the constants that are shipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgesdk_converters.errors import DeviceError
from edgesdk_targets import calibration_points
from edgesdk_targets.calibration_points import Point, constants_digest, read, to_json
from edgesdk_targets.latency_fit import rows

from ..bench_latency import points

AGAIN = "run `python -m tests.bench_latency --write-calibration`"


def test_the_points_are_of_the_constants_that_are_shipped() -> None:
    assert read().constants_sha256 == constants_digest(), AGAIN
    assert len(read().points) == len(rows()), AGAIN


def test_the_points_are_what_leaving_families_out_gives() -> None:
    for kept, computed in zip(read().points, points(rows()), strict=True):
        assert (kept.device, kept.network, kept.runtime, kept.backend, kept.precision) == (
            computed.device, computed.network, computed.runtime, computed.backend, computed.precision,
        )  # fmt: skip
        for name in ("measured_ms", "predicted_ms", "low_ms", "high_ms"):
            assert getattr(kept, name) == pytest.approx(getattr(computed, name), rel=2e-3), AGAIN


def test_the_intervals_hold_about_as_many_as_they_promise() -> None:
    known = read().points
    covered = sum(point.covered for point in known) / len(known)
    assert 0.85 <= covered <= 0.96
    assert all(point.low_ms <= point.predicted_ms <= point.high_ms and point.measured_ms > 0 for point in known)


def test_what_is_written_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = Point("D", "n", "ncnn", "cpu", "fp32", 10.0, 12.345678, 9.0, 15.0)
    place = tmp_path / "points.json"
    place.write_text(to_json([point, point], "s", "m", "c", "2026-01-01"))
    monkeypatch.setattr(calibration_points, "FILE", place)
    read.cache_clear()
    try:
        found = read()
        assert found.points == (Point("D", "n", "ncnn", "cpu", "fp32", 10.0, 12.35, 9.0, 15.0),) * 2
        assert (found.source, found.method, found.command, found.date) == ("s", "m", "c", "2026-01-01")
        assert found.points[0].error == pytest.approx(0.235)
        for damage in ("", "[]", "{}", json.dumps({**json.loads(place.read_text()), "date": 3})):
            place.write_text(damage)
            read.cache_clear()
            with pytest.raises(DeviceError):
                read()
    finally:
        read.cache_clear()
