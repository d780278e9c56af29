"""How near the latency estimator came to each published measurement when it knew nothing of that network's family.

`python -m tests.bench_latency --write-calibration` computes the points and writes latency_calibration.json; here they are read.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgesdk_converters import fields
from edgesdk_converters.errors import DeviceError

from . import latency_model

FILE = Path(__file__).with_name("latency_calibration.json")
FORMAT = "edgesdk-latency-calibration/1"


@dataclass(frozen=True)
class Point:
    """A published row: least measured time where the source has it, prediction and interval with its whole family left out."""

    device: str
    network: str
    runtime: str
    backend: str
    precision: str
    measured_ms: float
    predicted_ms: float
    low_ms: float
    high_ms: float

    @property
    def error(self) -> float:
        """|predicted / measured - 1|."""
        return abs(self.predicted_ms / self.measured_ms - 1)

    @property
    def covered(self) -> bool:
        return self.low_ms <= self.measured_ms <= self.high_ms


@dataclass(frozen=True)
class Calibration:
    """All points, where the measurements are from, and when and by what the predictions were made."""

    points: tuple[Point, ...]
    source: str
    method: str
    command: str
    date: str
    constants_sha256: str
    format: str = FORMAT


def constants_digest() -> str:
    """Of the constants that are shipped: points of other ones are those of another estimator."""
    return hashlib.sha256(latency_model.CONSTANTS.read_bytes()).hexdigest()


@functools.cache
def read() -> Calibration:
    """The points that are shipped. Raises DeviceError where the file is damaged."""
    try:
        data = json.loads(FILE.read_text(encoding="utf-8"))
        columns = data.pop("columns")
        data["points"] = [dict(zip(columns, row, strict=True)) for row in data["points"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DeviceError(f"{FILE.name} cannot be read: {error}", "install edgesdk again") from error
    return fields.read(Calibration, data, FILE.name, DeviceError)


def to_json(points: Sequence[Point], source: str, method: str, command: str, date: str) -> str:
    """The text of the file: one line a point, its values in the order of `columns`, times with four digits."""
    columns = list(Point.__dataclass_fields__)
    head = {
        "format": FORMAT, "source": source, "method": method, "command": command, "date": date,
        "constants_sha256": constants_digest(), "columns": columns,
    }  # fmt: skip
    lines = ",\n".join(json.dumps([_short(getattr(point, name)) for name in columns]) for point in points)
    return json.dumps(head, indent=1)[:-2] + ',\n "points": [\n' + lines + "\n]}\n"


def _short(value: str | float) -> str | float:
    return value if isinstance(value, str) else float(f"{value:.4g}")
