"""How much faster a precision is than fp32 on a device, from published pairs of runs: what candidates are ranked by unmeasured.

Errors of a latency estimate that both forms of a network share cancel in the ratio, so it is known better than either time.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgesdk_converters import fields
from edgesdk_converters.errors import DeviceError

from .device import DeviceProfile
from .figure import Figure, Interval, unavailable

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from edgesdk_converters.cost import Layer

LEVEL = 0.9
WIDENING = 1.25
"""Of an interval whose ratios come from another runtime or board."""


@dataclass(frozen=True)
class Ratio:
    """Median, least and greatest ratio of n published pairs. `basis` is what they are unlike, empty for nothing."""

    device: str
    precision: str
    value: float
    low: float
    high: float
    n: int
    source: str
    basis: str = ""


@functools.cache
def ratios() -> tuple[Ratio, ...]:
    """All that is known."""
    rows = tomllib.loads(Path(__file__).with_name("precision_speed.toml").read_text(encoding="utf-8"))["ratio"]
    return tuple(fields.read(Ratio, row, "precision_speed.toml", DeviceError) for row in rows)


def speed_ratio(device: DeviceProfile, layers: Sequence[Layer], precision: str) -> Figure:
    """speed_ratio of the layers in a precision to their fp32 form: Amdahl's law over the share of MACs in that precision.

    What is left in float gains nothing. Unavailable where no pair is published, or the layers are not known.
    """
    if precision == "fp32":
        return Figure("speed_ratio", 1.0, "estimated", device.name, "fp32 itself", interval=Interval(1.0, 1.0, LEVEL))
    known = next((row for row in ratios() if (row.device, row.precision) == (device.name, precision)), None)
    if known is None:
        return unavailable("speed_ratio", device.name, f"no published pair of fp32 and {precision} on {device.name}")
    if not layers:
        return unavailable("speed_ratio", device.name, "the layers' sizes are not known: give --shape")
    share = _share(layers, precision)

    def overall(gain: float) -> float:
        return 1 / (share / gain + 1 - share)

    widen = WIDENING if known.basis else 1.0
    method = f"{known.n} published pairs, gain {known.value:g} on {share:.0%} of the MACs; {known.source}"
    if known.basis:
        method += f"; {known.basis}"
    return Figure(
        "speed_ratio", overall(known.value), "estimated", device.name, method, extrapolated=bool(known.basis),
        interval=Interval(overall(known.low / widen), overall(known.high * widen), LEVEL),
    )  # fmt: skip


def _share(layers: Sequence[Layer], precision: str) -> float:
    """Share of the MACs that are done in the precision, 0..1."""
    from edgesdk_converters.cost import integer_share

    if precision == "int8":
        return integer_share(layers)
    whole = sum(layer.macs for layer in layers)
    return sum(layer.macs for layer in layers if layer.dtype == "float16") / whole if whole else 0.0
