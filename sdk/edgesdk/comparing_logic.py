"""What a comparison makes of an FPGA's estimates: a latency from cycles and clock, and whether the design fits the part."""

from __future__ import annotations

import math
from collections.abc import Mapping

from edgesdk_converters.errors import DoesNotFit
from edgesdk_targets.device import DeviceProfile
from edgesdk_targets.figure import Figure, Interval, unavailable
from edgesdk_targets.fpga import resources
from edgesdk_targets.fpga.hls4ml_estimate import in_bram18

LATENCY = "latency_ms"
LOGIC = ("lut", "ff", "dsp", "bram", "cycles", "initiation_interval", "fmax_mhz")
AREA = LOGIC[:4]


def latency(device: str, clock_mhz: float, totals: Mapping[str, Figure]) -> Figure:
    """The estimator's own latency, or its cycles at the clock that tools aim at, or at fmax where that is slower.

    Of cycles and a clock that are no estimates it is "simulated", as the flow that builds the design calls it.

    Unavailable, with the estimator's reason, where it gives no cycles or no clock.
    """
    if LATENCY in totals:
        return totals[LATENCY]
    cycles, fmax = totals.get("cycles"), totals.get("fmax_mhz")
    if cycles is None or not cycles.value or fmax is None or not fmax.value:
        gap = next((row for row in (cycles, fmax) if row is not None and row.value is None), None)
        return unavailable(LATENCY, device, gap.method if gap else "neither cycles nor a clock are estimated")
    around, rates = cycles.interval or Interval(cycles.value, cycles.value, 0.8), fmax.interval
    slow, mhz, fast = (
        min(clock_mhz, rate) for rate in (rates.low if rates else fmax.value, fmax.value, rates.high if rates else 0)
    )
    fast = max(fast, mhz)
    value = cycles.value / mhz / 1e3
    at_clock = f"{cycles.value:,} cycles at {mhz:g} MHz{', the clock asked for' if mhz == clock_mhz else ''}"
    if "estimated" not in (cycles.provenance, fmax.provenance):
        told = f"{at_clock} ({cycles.provenance}: {cycles.method}; {fmax.provenance}: {fmax.method}); none on a board"
        return Figure(LATENCY, value, "simulated", device, told, n=1)
    told = f"{at_clock}; {cycles.method}"
    down = math.hypot(math.log(cycles.value / max(1.0, around.low)), math.log(fast / mhz))
    up = math.hypot(math.log(around.high / cycles.value), math.log(mhz / slow))
    return Figure(
        LATENCY, value, "estimated", device, told, extrapolated=cycles.extrapolated or fmax.extrapolated,
        interval=Interval(value * math.exp(-down), value * math.exp(up), around.level),
    )  # fmt: skip


def fits(profile: DeviceProfile, totals: Mapping[str, Figure], in_hls4ml: bool) -> tuple[tuple[str, ...], str]:
    """Notes on what fills the part, and why the design does not fit it, empty where it does.

    A design whose estimate is more than the part has is no candidate, even where the low end of a wide interval would fit.
    """
    rows = {name: totals[name] for name in AREA if name in totals and totals[name].value is not None}
    if in_hls4ml and "bram" in rows:
        rows["bram"] = in_bram18(rows["bram"])
    values = {name: float(row.value) for name, row in rows.items() if row.value is not None}
    try:
        notes = resources.check(profile, {name: row.interval or values[name] for name, row in rows.items()})
    except DoesNotFit as error:
        return (), f"does not fit: needs at least {_told(error, profile)}"
    try:
        resources.check(profile, values)
    except DoesNotFit as error:
        return (), f"does not fit by estimate, though the interval begins lower: needs {_told(error, profile)}"
    return notes, ""


def _told(error: DoesNotFit, profile: DeviceProfile) -> str:
    return f"{error.need:,.0f} {error.unit}, {profile.name} has {error.have:,.0f} -> {error.hint}"
