"""Cells of the FPGA bench: what is not known is no zero."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edgesdk_targets.figure import Figure, unavailable

from . import bench_fpga
from .targets.fpga.integer_nets import dense_net


def test_figures_that_are_unavailable_are_dashes(monkeypatch: pytest.MonkeyPatch) -> None:
    known = [Figure(name, value, "simulated", "x", "y") for name, value in (("lut", 1200), ("ff", 7), ("dsp", 0), ("cycles", 5))]
    rows = (*known, *(unavailable(name, "x", "no") for name in ("bram", "initiation_interval", "fmax_mhz")))
    monkeypatch.setattr(bench_fpga, "estimate", lambda *_, **__: rows)
    made: Any = SimpleNamespace(counts=SimpleNamespace(multipliers=0))
    case: Any = SimpleNamespace(program=dense_net((3, 2), 4, "half_up"), made=made, choice=SimpleNamespace(name="net"))
    assert bench_fpga.by_estimate(case) == ("net", "latency", "1", "1,200", "7", "0", "-", "5", "-", "-", "-")
