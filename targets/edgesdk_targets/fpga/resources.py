"""What a part has of LUTs, flip-flops, multipliers, memories and pins, and whether a design's needs fit into it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgesdk_converters.errors import DeviceError, DoesNotFit

from ..device import DeviceProfile, of_target
from ..figure import Figure, Interval

FILL = 0.7
"""Beyond this share of a part routing is slow and clocks fall; FINN bounds LUTs alike (Xilinx/finn util/platforms.py)."""
XILINX = {"lut": "LUT6", "ff": "flip-flops", "bram": "BRAM18", "uram": "URAM288", "io": "pins"}
LARGEST: Mapping[str, int] = {"lut": 4_085_760, "ff": 8_171_520, "dsp": 12_288, "bram": 5_376}
"""Of any UltraScale+ part: LUTs and flip-flops of the VU19P, DSPs and BRAM18 of the VU13P (AMD DS890)."""
BEYOND = 10
UNITS: Mapping[str, Mapping[str, str]] = {
    "xc7": {**XILINX, "dsp": "DSP48E1"},
    "xcup": {**XILINX, "dsp": "DSP48E2"},
    "ecp5": {"lut": "LUT4", "ff": "flip-flops", "dsp": "MULT18X18D", "bram": "EBR (18 kbit)", "uram": "URAM288", "io": "pins"},
}
"""What is counted, by family and resource. A block RAM of 36 kbit counts as two BRAM18; EBR are Lattice's DP16KD."""


@dataclass(frozen=True)
class Capacity:
    """How many of a resource a part has."""

    have: int
    unit: str


def family(device: DeviceProfile) -> str:
    """The family, as yosys calls it: xc7, xcup or ecp5. Raises DeviceError for a device of none of them."""
    found = device.need("family", str)
    if found not in UNITS:
        raise DeviceError(f"device {device.name} is of the family {found!r}; known are: {', '.join(UNITS)}")
    return found


def capacities(device: DeviceProfile) -> Mapping[str, Capacity]:
    """By resource; those of which the profile says nothing are left out, but LUTs, flip-flops, DSPs and memories must be there.

    Of a card with a shell (Alveo) it is the whole die, of which the shell takes a part. Raises DeviceError for a profile that
    lacks any.
    """
    units = UNITS[family(device)]
    found = {name: Capacity(device.need(name, int), units[name]) for name in ("lut", "ff", "dsp", "bram")}
    for name in ("uram", "io"):
        have = device.get(name, int)
        if have is not None:
            found[name] = Capacity(have, units[name])
    return found


def check(device: DeviceProfile, needs: Mapping[str, Interval | float]) -> tuple[str, ...]:
    """Warnings about what fills a part beyond FILL, or fits only if the low end of an interval comes true.

    `needs` are counts by resource (`lut`, `ff`, `dsp`, `bram`, `uram`, `io`), in the units of `capacities`. Raises DoesNotFit for
    the resource that is short by most where even the low end is more than the part has; its hint names the others.
    """
    known, short, notes = capacities(device), [], []
    for name, need in needs.items():
        low, high = (need.low, need.high) if isinstance(need, Interval) else (need, need)
        if name not in UNITS["xc7"] or not 0 <= low <= high < math.inf:
            raise ValueError(f"{name} = {need} is no count of {', '.join(UNITS['xc7'])}")
        capacity = known.get(name)
        if capacity is None:
            if low > 0:
                notes.append(
                    f"{device.name}: its profile does not say how many {UNITS[family(device)][name]} it has, not checked"
                )
            continue
        have, unit = capacity.have, f"{device.name}: of {capacity.have:,} {capacity.unit}"
        if low > have:
            short.append((low / have if have else math.inf, name, low, capacity))
        elif high > have:
            notes.append(f"{unit} it needs {low:,.0f} to {high:,.0f}: may not fit")
        elif high > FILL * have:
            told = f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"
            notes.append(f"{unit} it needs {told}: {high / have:.0%}, above {FILL:.0%} routing is slow and clocks fall")
        left = device.get(f"shell_leaves_{name}", int)
        if left is not None and left < high <= have:
            notes.append(f"{device.name}: beside the card's shell {left:,} {capacity.unit} are free, it needs {high:,.0f}")
    if short:
        _, name, low, capacity = max(short, key=lambda entry: entry[0])
        also = "; ".join(f"{n}: need {need:,g}, have {c.have:,} {c.unit}" for _, n, need, c in short if n != name)
        raise DoesNotFit(
            f"{name} on {device.name}", low, capacity.have, capacity.unit,
            "fewer bits, pruning, more reuse (folding) or a larger part" + (f"; also short of {also}" if also else ""),
        )  # fmt: skip
    return tuple(notes)


def notes(device: DeviceProfile, rows: Sequence[Figure]) -> tuple[str, ...]:
    """Of an estimate, block RAM in the units of `capacities`: what `check` warns of, or in what the design does not fit."""
    told: list[str] = []
    for row in rows:
        if row.layer is not None or row.name not in UNITS["xc7"] or row.value is None:
            continue
        try:
            told += check(device, {row.name: row.interval or float(row.value)})
        except DoesNotFit as error:
            low = ", at the low end of the estimate's interval" if row.interval is not None else ""
            told.append(f"DoesNotFit{low}: {error.message}; {error.hint}")
    return tuple(told)


def bounds(part: str) -> Mapping[str, float]:
    """Of a part by its full name, of another for any part: more than a result of synthesis can need, by resource of LARGEST.

    It is BEYOND times what the part has, since synthesis counts designs that are too large as well.
    """
    profile = next((one for one in of_target("fpga") if part and one.get("part", str) == part), None)
    have = LARGEST if profile is None else {name: one.have for name, one in capacities(profile).items()}
    return {name: BEYOND * have[name] for name in LARGEST}
