"""Latency of logic from cycles and clock, and which designs fit a part."""

from __future__ import annotations

import pytest

from edgesdk.comparing_logic import fits, latency
from edgesdk_targets.device import profile
from edgesdk_targets.figure import Figure, Interval, unavailable


def row(name: str, value: float, low: float, high: float) -> Figure:
    return Figure(name, value, "estimated", "zcu102", "counted", interval=Interval(low, high, 0.8))


CYCLES = row("cycles", 1000, 500, 2000)


def test_cycles_run_at_the_clock_asked_for_where_the_design_can_be_faster() -> None:
    found = latency("zcu102", 200.0, {"cycles": CYCLES, "fmax_mhz": row("fmax_mhz", 264.0, 220.0, 300.0)})
    assert found.value == pytest.approx(1000 / 200e3) and "200 MHz, the clock asked for" in found.method
    assert found.interval is not None and found.interval.level == 0.8
    assert (found.interval.low, found.interval.high) == pytest.approx((500 / 200e3, 2000 / 200e3))


def test_simulated_cycles_at_a_clock_that_tools_reported_are_no_estimate() -> None:
    cycles = Figure("cycles", 1000, "simulated", "Verilator", "counted", n=1)
    fmax = Figure("fmax_mhz", 100.0, "tool-reported", "zcu102", "routed")
    found = latency("zcu102", 200.0, {"cycles": cycles, "fmax_mhz": fmax})
    assert found.value == pytest.approx(0.01) and (found.provenance, found.n) == ("simulated", 1)
    assert found.interval is None and "simulated" in found.method and "tool-reported" in found.method
    half = latency("zcu102", 200.0, {"cycles": cycles, "fmax_mhz": row("fmax_mhz", 100.0, 80.0, 120.0)})
    assert half.provenance == "estimated" and half.interval is not None


def test_a_design_that_is_slower_runs_at_its_own_clock_with_a_wider_interval() -> None:
    found = latency("zcu102", 200.0, {"cycles": CYCLES, "fmax_mhz": row("fmax_mhz", 100.0, 50.0, 400.0)})
    assert found.value == pytest.approx(1000 / 100e3) and "asked for" not in found.method
    assert found.interval is not None
    assert found.interval.low < 500 / 100e3 and found.interval.high > 2000 / 100e3


def test_the_estimators_own_latency_is_taken_as_it_is_even_where_it_is_a_gap() -> None:
    own = unavailable("latency_ms", "zcu102", "no clock")
    assert latency("zcu102", 200.0, {"cycles": CYCLES, "fmax_mhz": CYCLES, "latency_ms": own}) is own


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ({"cycles": CYCLES}, "neither cycles nor a clock"),
        ({"cycles": CYCLES, "fmax_mhz": unavailable("fmax_mhz", "zcu102", "no formula")}, "no formula"),
        ({}, "neither cycles nor a clock"),
    ],
)
def test_without_cycles_or_a_clock_there_is_no_latency(rows: dict[str, Figure], why: str) -> None:
    found = latency("zcu102", 200.0, rows)
    assert found.value is None and why in found.method


def test_a_design_fits_by_its_estimate_not_by_the_low_end_of_a_wide_interval() -> None:
    part = profile("ecp5-25k")
    have = part.need("lut", int)
    notes, refused = fits(part, {"lut": row("lut", have / 4, have / 8, have / 2)}, False)
    assert not notes and not refused
    notes, refused = fits(part, {"lut": row("lut", have / 2, have / 4, have * 2)}, False)
    assert "may not fit" in notes[0] and not refused
    notes, refused = fits(part, {"lut": row("lut", have * 2, have / 2, have * 9)}, False)
    assert not notes and refused.startswith("does not fit by estimate") and f"{have * 2:,}" in refused
    notes, refused = fits(part, {"lut": row("lut", have * 4, have * 2, have * 9)}, False)
    assert refused.startswith(f"does not fit: needs at least {have * 2:,} LUT4, ecp5-25k has {have:,}")


def test_block_ram_of_hls4ml_is_counted_in_halves_as_parts_are() -> None:
    part = profile("pynq-z2")
    tiles = part.need("bram", int) * 0.75
    rows = {"bram": row("bram", tiles, tiles, tiles)}
    assert fits(part, rows, False)[1] == ""
    assert f"{2 * tiles:,.0f} BRAM18" in fits(part, rows, True)[1]
