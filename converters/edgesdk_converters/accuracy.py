"""Accuracy as arithmetic: metrics, agreement and the contract's verdict. Arrays in, numbers out; numpy only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import EdgeError, ModelError

Array = NDArray[Any]
Outputs = Mapping[str, Array]


@dataclass(frozen=True)
class Contract:
    """What an export promises. Points are percentage points.

    `max_drop_points` bounds the loss of top-1 against labels, of a user's metric (times 100), or, without labels under task
    classify, top-1 disagreement with the source. `max_slice_drop_points` bounds the same for the worst slice of the data.
    `max_relative_error` bounds the numerical distance to the source.
    """

    max_drop_points: float | None = None
    max_slice_drop_points: float | None = None
    max_relative_error: float | None = None
    task: Literal["auto", "classify", "numeric"] = "auto"
    metric: str = ""

    def __post_init__(self) -> None:
        for option, value in (
            ("--max-drop", self.max_drop_points),
            ("--max-slice-drop", self.max_slice_drop_points),
            ("--max-relative-error", self.max_relative_error),
        ):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ModelError(f"{option} is {value}; allowed: 0 or more, and finite")


@dataclass(frozen=True)
class Drop:
    """Loss of accuracy in points, with the upper end of its paired 95 % interval."""

    source: float
    converted: float
    drop_points: float
    bound_points: float
    n: int
    what: str

    @property
    def retention(self) -> float:
        """Share of the source's accuracy that is left; 1 where the source had none to lose."""
        return self.converted / self.source if self.source > 0 else 1.0


def by_slice(slices: Array, drop: Callable[[Array], Drop]) -> dict[str, Drop]:
    """The drop of each slice by its name, `drop` being given the indices of its samples; in the order of names."""
    names = np.asarray([str(one) for one in slices.tolist()])
    return {str(name): drop(np.flatnonzero(names == name)) for name in sorted(set(names.tolist()))}


def check_slices(slices: Array, max_drop_points: float) -> None:
    """Raise ModelError where a slice has too few samples to resolve the promised drop: 100 / max_drop is the least."""
    if max_drop_points <= 0:
        return
    least = math.ceil(100 / max_drop_points)
    names, counts = np.unique(np.asarray([str(one) for one in slices.tolist()]), return_counts=True)
    smallest = int(counts.argmin())
    if counts[smallest] < least:
        raise ModelError(
            f"slice {str(names[smallest])!r} has {counts[smallest]} check samples, which cannot show a drop of "
            f"{max_drop_points:g} points; at least {least} are needed",
            "give more --data, join small slices, or a larger --max-slice-drop",
        )


@dataclass
class Distance:
    """How far outputs lie from the wanted ones, over any number of samples; `add` takes one sample's.

    An output's scale is that over all samples: a classifier's near tie, whose scores are all small, is no error of its own.
    """

    absolute: dict[str, float] = field(default_factory=dict)
    scale: dict[str, float] = field(default_factory=dict)

    def add(self, got: Outputs, wanted: Outputs) -> None:
        """Count one sample in. Infinity where one side has NaN that the other lacks, or the shapes differ."""
        for name in wanted:
            self.absolute[name] = max(self.absolute.get(name, 0.0), _absolute(got[name], wanted[name]))
            self.scale[name] = max(self.scale.get(name, 0.0), _largest(wanted[name]))

    def relative_of(self, name: str) -> float:
        """max |a - b| / max |b| of one output."""
        if self.absolute[name] == 0.0:
            return 0.0
        return self.absolute[name] / self.scale[name] if self.scale[name] > 0 else math.inf

    @property
    def relative(self) -> float:
        """max |a - b| / max |b| of each output, the worst output."""
        return max(map(self.relative_of, self.absolute), default=0.0)

    @property
    def worst(self) -> str:
        """The output that is furthest off for its scale."""
        return max(self.absolute, key=self.relative_of)


def distance(got: Iterable[Outputs], wanted: Iterable[Outputs]) -> Distance:
    """The distance over matching samples."""
    found = Distance()
    for a, b in zip(got, wanted, strict=True):
        found.add(a, b)
    return found


def relative_error(got: Outputs, wanted: Outputs) -> float:
    """max |a - b| / max |b| of each output of one sample, the worst output."""
    return distance([got], [wanted]).relative


def max_abs_error(got: Outputs, wanted: Outputs) -> float:
    """max |a - b| over all outputs."""
    return max((_absolute(got[name], wanted[name]) for name in wanted), default=0.0)


def top1(logits: Array) -> Array:
    """Index of the largest value of each sample, its other axes taken as one; -1, which is no class, where it holds NaN."""
    rows = logits.reshape(len(logits), -1)
    best = np.asarray(rows.argmax(axis=1), dtype=np.int64)
    if rows.dtype.kind == "f":
        best[np.isnan(rows).any(axis=1)] = -1
    return best


def check_sample_count(samples: int, max_drop_points: float) -> None:
    """Raise ModelError where so few samples cannot resolve the promised drop: 100 / max_drop is the least."""
    if max_drop_points <= 0:
        return
    least = math.ceil(100 / max_drop_points)
    if samples < least:
        raise ModelError(
            f"{samples} check samples cannot show a drop of {max_drop_points} points; at least {least} are needed",
            "give more --data, or a larger --max-drop",
        )


def top1_drop(source: Array, converted: Array, labels: Array) -> Drop:
    """Loss of top-1 accuracy, paired: both sides saw the same samples."""
    right_before = top1(source) == labels
    right_after = top1(converted) == labels
    return _paired(right_before.astype(float), right_after.astype(float), "top-1 accuracy")


def disagreement(source: Array, converted: Array) -> Drop:
    """Share of samples on which the top-1 answers differ, as a drop from full agreement."""
    same = (top1(source) == top1(converted)).astype(float)
    return _paired(np.ones_like(same), same, "top-1 agreement")


def metric_drop(metric: Callable[[Array, Array], float], source: Array, converted: Array, labels: Array) -> Drop:
    """Loss of a user's metric (higher is better, 1.0 is perfect); its bound is a paired bootstrap of 200 draws.

    Draws on which the metric fails (one class only, say) are left out; with fewer than 100 left, the bound is infinite.
    """
    before, after = float(metric(source, labels)), float(metric(converted, labels))
    rng = np.random.default_rng(0)
    drops = []
    for _ in range(200):
        pick = rng.integers(0, len(labels), len(labels))
        try:
            drops.append(float(metric(source[pick], labels[pick])) - float(metric(converted[pick], labels[pick])))
        except (EdgeError, ArithmeticError, ValueError, IndexError):
            continue
    bound = float(np.quantile(drops, 0.95)) if len(drops) >= 100 else math.inf
    name = getattr(metric, "__name__", "metric")
    return Drop(before, after, 100 * (before - after), 100 * bound, len(labels), name)


def _paired(before: Array, after: Array, what: str) -> Drop:
    difference = before - after
    n = len(difference)
    mean = float(difference.mean())
    spread = float(difference.std(ddof=1)) if n > 1 else 0.0
    bound = mean + 1.645 * spread / math.sqrt(n)
    if spread == 0.0:
        bound = max(bound, mean + 3.0 / n)  # rule of three: nothing seen in n samples
    return Drop(float(before.mean()), float(after.mean()), 100 * mean, 100 * bound, n, what)


def _largest(values: Array) -> float:
    if values.dtype.kind not in "fiub" or values.size == 0:
        return 1.0
    finite = np.abs(values.astype(np.float64))[np.isfinite(values.astype(np.float64))]
    return float(finite.max()) if finite.size else 0.0


def _absolute(got: Array, wanted: Array) -> float:
    if got.shape != wanted.shape:
        return math.inf
    if got.size == 0:
        return 0.0
    if wanted.dtype.kind not in "fiub":
        return 0.0 if bool((got == wanted).all()) else math.inf
    a, b = got.astype(np.float64), wanted.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    with np.errstate(invalid="ignore"):  # infinity minus infinity is no number, and counts as infinitely far
        difference = np.abs(a[~same] - b[~same])
    return float(difference.max()) if np.isfinite(difference).all() else math.inf
