"""How far estimates can be trusted, drawn: predicted over measured latencies of networks that the fit had not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgesdk_targets.latency_model import LEVEL

from .page_drawing import Axis, frame, mark, number, picture, plain

if TYPE_CHECKING:
    from edgesdk_targets.calibration_points import Calibration, Point

KINDS: tuple[tuple[str, Callable[[Point], bool]], ...] = (
    ("CPU, fp32", lambda point: point.backend == "cpu" and point.precision != "int8"),
    ("CPU, int8", lambda point: point.backend == "cpu" and point.precision == "int8"),
    ("GPU", lambda point: point.backend != "cpu"),
)
HEADS = ("errors of", "rows", "mean", "median", "in 20 %", "covered")
NEAR = 0.2


def svg(found: Calibration) -> str:
    """A square picture: on the line a prediction is right, the band is a fifth to either side."""
    measured = [point.measured_ms for point in found.points]
    both = [*measured, *(point.predicted_ms for point in found.points)]
    x, y = Axis.around(both, 58, 388), Axis.around(both, 352, 34)
    parts = frame(x, y, ("measured, ms", "predicted, ms"), (number, number))
    low, high = x.low, x.high
    more, less = 1 + NEAR, 1 - NEAR
    edges = [(low, low), (low, low * more), (high / more, high), (high, high), (high, high * less), (low / less, low)]
    band = "L".join(f"{x.at(across)} {y.at(up)}" for across, up in edges)
    parts.append(f'<path class="band" d="M{band}Z"/>')
    parts.append(f'<path class="axis" d="M{x.at(low)} {y.at(low)}L{x.at(high)} {y.at(high)}"/>')
    for series, (_, belongs) in enumerate(KINDS):
        for point in filter(belongs, found.points):
            parts.append(mark(series, x.at(point.measured_ms), y.at(point.predicted_ms), filled=False, size=1.7))
    told = f"{len(found.points)} published latencies, predicted over measured, each with its network's whole family left out"
    return picture(396, told, parts)


def legend() -> str:
    """What marks mean, as HTML."""
    items = [
        f'<li><svg class="sample" viewBox="0 0 16 16" aria-hidden="true">{mark(series, 8, 8, filled=False, size=4.2)}</svg> '
        f"{plain(name)}</li>"
        for series, (name, _) in enumerate(KINDS)
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'


def scores(found: Calibration) -> list[tuple[str, ...]]:
    """Rows under HEADS: all points, each kind, each device."""
    groups: list[tuple[str, Sequence[Point]]] = [("all", found.points)]
    groups += [(name, tuple(filter(belongs, found.points))) for name, belongs in KINDS]
    for device in sorted({point.device for point in found.points}):
        groups.append((device, [point for point in found.points if point.device == device]))
    return [_score(name, points) for name, points in groups if points]


def _score(name: str, points: Sequence[Point]) -> tuple[str, ...]:
    errors = np.array([point.error for point in points])
    return (
        name, f"{len(points):,}", f"{errors.mean():.0%}", f"{np.median(errors):.0%}", f"{(errors <= NEAR).mean():.0%}",
        f"{np.mean([point.covered for point in points]):.0%}",
    )  # fmt: skip


def told(found: Calibration) -> str:
    """What the picture is, in a sentence or two."""
    return (
        f"Each mark is one published measurement ({found.source}). {found.method.capitalize()}, so that the estimator knew "
        f"nothing of the network it predicts; its intervals are meant to cover {LEVEL:.0%}. Made on {found.date} by "
        f"{found.command}."
    )
