"""Figure: one number about a model on a device, which cannot be made without saying where it comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

Provenance = Literal["measured", "emulated", "simulated", "tool-reported", "estimated", "unavailable"]

UNITS = {
    "latency_ms": "ms", "first_run_ms": "ms", "load_ms": "ms", "build_ms": "ms", "export_s": "s",
    "throughput_per_s": "1/s", "peak_memory_bytes": "bytes", "artifact_bytes": "bytes", "bundle_bytes": "bytes",
    "export_peak_memory_bytes": "bytes", "source_bytes": "bytes", "link_bytes": "bytes", "link_ms": "ms",
    "macs": "MAC", "params": "", "weight_bytes": "bytes", "energy_mj": "mJ", "fmax_mhz": "MHz", "accuracy": "",
    "source_accuracy": "", "accuracy_drop": "points", "max_abs_error": "", "relative_error": "", "provider_nodes": "",
    "speed_ratio": "", "instructions": "", "instruction_ratio": "", "source_speed_ratio": "",
    "source_instruction_ratio": "", "retention": "", "leakage_psnr_db": "dB", "leakage_ssim": "", "worst_slice_retention": "",
    "lut": "", "ff": "", "dsp": "", "bram": "", "uram": "", "io": "", "cycles": "cycles", "initiation_interval": "cycles",
    "mismatches": "", "peak_share": "", "memory_share": "", "size_ratio_times_retention": "",
}  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """Where the value lies with probability `level` (0..1)."""

    low: float
    high: float
    level: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high and 0 < self.level < 1):
            raise ValueError(f"no interval: {self}")


@dataclass(frozen=True)
class Figure:
    """One row of a report.

    `layer` None means the total of the segment. `where` is the hardware (or file) it was obtained on, `method` how.
    `value` is the p50 for latencies; `percentiles` hold the others. An estimate needs an interval or the mark
    `extrapolated`; a measurement needs n; an unavailable figure has no value and its method says why. Raises ValueError
    otherwise: a figure without provenance is a bug, not a user's mistake.
    """

    name: str
    value: int | float | None
    provenance: Provenance
    where: str
    method: str
    unit: str = ""
    segment: str = "whole"
    layer: str | None = None
    interval: Interval | None = None
    extrapolated: bool = False
    percentiles: Mapping[str, float] = field(default_factory=dict)
    n: int | None = None

    def __post_init__(self) -> None:
        if not self.unit:
            object.__setattr__(self, "unit", UNITS.get(self.name, ""))
        if self.provenance not in get_args(Provenance):
            raise ValueError(f"figure {self.name}: provenance {self.provenance!r} is none of {get_args(Provenance)}")
        if not self.name or not self.where or not self.method:
            raise ValueError(f"figure {self.name!r} needs a name, where and method")
        if self.provenance == "unavailable":
            if self.value is not None:
                raise ValueError(f"figure {self.name}: unavailable, yet it has the value {self.value}")
            return
        if self.value is None or not math.isfinite(self.value):
            raise ValueError(f"figure {self.name}: {self.provenance}, but its value is {self.value}")
        if self.provenance == "estimated" and self.interval is None and not self.extrapolated:
            raise ValueError(f"figure {self.name}: an estimate needs an interval or the mark extrapolated")
        if self.interval is not None and not self.interval.low <= self.value <= self.interval.high:
            raise ValueError(f"figure {self.name}: {self.value} lies outside its own {self.interval}")
        if not all(map(math.isfinite, self.percentiles.values())):
            raise ValueError(f"figure {self.name}: a percentile of {dict(self.percentiles)} is no number")
        if self.provenance == "measured" and (self.n is None or self.n < 1):
            raise ValueError(f"figure {self.name}: a measurement needs n, the number of runs")


def counted(name: str, value: int, method: str, segment: str = "whole", layer: str | None = None) -> Figure:
    """A figure counted exactly from the artefact itself."""
    return Figure(name, value, "measured", "artifact", method, segment=segment, layer=layer, n=1)


def unavailable(name: str, where: str, reason: str, segment: str = "whole") -> Figure:
    """A figure that cannot be had here, and why."""
    return Figure(name, None, "unavailable", where, reason, segment=segment)
