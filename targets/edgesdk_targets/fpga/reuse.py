"""Reuse factors: how many times a multiplier is used in one inference of a layer; which are legal, and which to choose."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from edgesdk_converters.errors import DoesNotFit

from ..figure import Figure

if TYPE_CHECKING:
    from .hls4ml_types import Layers

Factors: TypeAlias = Mapping[str, int]
"""Reuse factors by layer."""
Estimator: TypeAlias = Callable[[Factors], Sequence[Figure]]
"""What a choice of reuse factors costs: figures of which those without a layer are totals."""
AXES = ("cycles", "lut", "ff", "dsp", "bram")
EXHAUSTIVE = 2000
"""Choices up to which all are tried; an estimate takes about a millisecond."""
MOST_ESTIMATES = 4000


@dataclass(frozen=True)
class Layer:
    """A layer with weights, by hls4ml's rule: `n_in` values behind each result (kernel x channels), `n_out` results.

    `most` bounds its reuse factors where hls4ml folds no further, None elsewhere.
    """

    name: str
    n_in: int
    n_out: int
    most: int | None = None

    @property
    def legal(self) -> tuple[int, ...]:
        return tuple(factor for factor in legal(self.n_in, self.n_out) if self.most is None or factor <= self.most)


@dataclass(frozen=True, eq=False)
class Point:
    """One choice. `figures` are the estimator's totals; `extrapolated` where one that counts lies outside the estimator's data.

    Those count that are searched over or limited.
    """

    reuse_factors: Factors
    figures: tuple[Figure, ...]
    extrapolated: bool

    def value(self, name: str) -> float:
        """Of a figure; infinite where the estimator could not tell."""
        found = next((figure.value for figure in self.figures if figure.name == name), None)
        return math.inf if found is None else float(found)

    def costs(self, axes: Iterable[str]) -> tuple[float, ...]:
        """What is to be little, axis by axis."""
        return tuple(self.value(name) for name in axes)


def foldable(network: Layers) -> tuple[Layer, ...]:
    """The layers of a network for hls4ml that have a reuse factor, by their nodes."""
    return tuple(Layer(layer.node, *layer.products) for layer in network.layers if layer.products is not None)


def legal(n_in: int, n_out: int) -> tuple[int, ...]:
    """The reuse factors that hls4ml's resource strategy takes for a matrix of n_in x n_out, ascending.

    hls4ml 1.3, `FPGABackend._validate_reuse_factor`: with m = min(n_in, rf) and L = ceil(n_in * n_out / m), L is a multiple of
    n_out or rf >= n_in; rf is a multiple of n_in or less; and rf divides n_in * n_out.
    """
    weights = n_in * n_out
    divisors = {one for low in range(1, math.isqrt(weights) + 1) if weights % low == 0 for one in (low, weights // low)}
    return tuple(factor for factor in sorted(divisors) if _is_legal(n_in, n_out, factor))


def _is_legal(n_in: int, n_out: int, factor: int) -> bool:
    if factor >= n_in:
        return factor % n_in == 0
    return math.ceil(n_in * n_out / factor) % n_out == 0


def closest(n_in: int, n_out: int, wanted: int) -> int:
    """The legal reuse factor nearest to the wanted one, of two the smaller, as hls4ml chooses it."""
    factors = legal(n_in, n_out)
    place = bisect.bisect_left(factors, wanted)
    return min(factors[max(0, place - 1) : place + 1], key=lambda factor: (abs(factor - wanted), factor))


def search(
    layers: Sequence[Layer],
    estimator: Estimator,
    limits: Mapping[str, float] | None = None,
    axes: Sequence[str] = AXES,
    exhaustive: int = EXHAUSTIVE,
    most_estimates: int = MOST_ESTIMATES,
) -> tuple[Point, ...]:
    """Choices within `limits` that no other one beats on all `axes`, by ascending first axis (cycles).

    `limits` are greatest values by figure: a latency in cycles, or what a part has. Up to `exhaustive` choices all are tried;
    beyond, a Pareto local search (Paquete, Chiarandini, Stuetzle 2004) starts from layers of equal reuse factors, whose intervals
    are balanced, and moves one layer by one legal step until nothing gets better or `most_estimates` are spent: then what is
    found is good, not proven best. Raises DoesNotFit where no choice that was tried is within the limits.
    """
    if not layers:
        raise ValueError("no layers to search over")
    choices = [layer.legal for layer in layers]
    names = [layer.name for layer in layers]
    bounds = limits or {}
    counting = {*axes, *bounds}
    seen: dict[tuple[int, ...], Point] = {}

    def point(factors: tuple[int, ...]) -> Point:
        if factors not in seen:
            given = dict(zip(names, factors, strict=True))
            totals = tuple(figure for figure in estimator(given) if figure.layer is None)
            far = any(figure.extrapolated for figure in totals if figure.name in counting)
            seen[factors] = Point(given, totals, far)
        return seen[factors]

    if math.prod(map(len, choices)) <= exhaustive:
        for factors in itertools.product(*choices):
            point(factors)
    else:
        _local(choices, point, seen, tuple(axes), most_estimates)
    within = [one for one in seen.values() if all(one.value(name) <= bound for name, bound in bounds.items())]
    if not within:
        raise _excess(seen.values(), bounds)
    best = front(within, axes)
    return tuple(sorted(best, key=lambda one: (*one.costs(axes), *one.reuse_factors.values())))


def _local(
    choices: Sequence[tuple[int, ...]], point: Callable[[tuple[int, ...]], Point], seen: Mapping[tuple[int, ...], Point],
    axes: tuple[str, ...], most: int,
) -> None:  # fmt: skip
    """Estimates choices around the best ones until none of the best has a neighbour that was not looked at."""
    levels = sorted({factor for legal_ones in choices for factor in legal_ones})
    for level in levels:
        point(tuple(legal_ones[max(0, bisect.bisect_right(legal_ones, level) - 1)] for legal_ones in choices))
    looked: set[tuple[int, ...]] = set()
    while len(seen) < most:
        best = {tuple(one.reuse_factors.values()) for one in front(list(seen.values()), axes)}
        waiting = sorted(best - looked)
        if not waiting:
            return
        for factors in waiting:
            looked.add(factors)
            for neighbour in _neighbours(factors, choices):
                if len(seen) < most:
                    point(neighbour)


def _neighbours(factors: tuple[int, ...], choices: Sequence[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
    """One layer one step up or down, or one up and another down."""
    places = [legal_ones.index(factor) for legal_ones, factor in zip(choices, factors, strict=True)]
    single = [{layer: step} for layer in range(len(places)) for step in (-1, 1)]
    double = [{up: 1, down: -1} for up, down in itertools.permutations(range(len(places)), 2)]
    for steps in (*single, *double):
        moved = [place + steps.get(layer, 0) for layer, place in enumerate(places)]
        if all(0 <= place < len(legal_ones) for place, legal_ones in zip(moved, choices, strict=True)):
            yield tuple(legal_ones[place] for legal_ones, place in zip(choices, moved, strict=True))


def front(points: Sequence[Point], axes: Sequence[str]) -> list[Point]:
    """Those that no other one beats: nowhere greater and somewhere less. Of equals all stay."""
    kept: list[tuple[tuple[float, ...], Point]] = []
    for one in sorted(points, key=lambda one: one.costs(axes)):
        costs = one.costs(axes)  # whatever beats it is less on the first axis that differs, so it came before
        if not any(other != costs and all(a <= b for a, b in zip(other, costs, strict=True)) for other, _ in kept):
            kept.append((costs, one))
    return [one for _, one in kept]


def _excess(points: Iterable[Point], limits: Mapping[str, float]) -> DoesNotFit:
    """The error that names the limit which even the best choice exceeds by most."""

    def worst(one: Point) -> tuple[float, str]:
        return max((one.value(name) / bound if bound else math.inf, name) for name, bound in limits.items())

    nearest = min(points, key=worst)
    name = worst(nearest)[1]
    hint = f"the nearest of the choices has {', '.join(f'{key} {nearest.value(key):g}' for key in limits)}"
    return DoesNotFit("the network, whatever its reuse factors,", nearest.value(name), limits[name], name, hint)
