"""Layers with reuse factors of their own against results that had one request for the whole network: what is unlike them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgesdk_converters.errors import RecipeError

from .hls4ml_constants import Constants, Departure, area, departures
from .hls4ml_terms import Cost, FixedLayer
from .reuse import legal

ANY = 2**31 - 1
"""A request that gives every layer the greatest reuse factor that it has."""
APART = Departure("reuse factors that no single request gives", 1.1, 1.0)
"""A figure is a sum over layers, each known at its own reuse factor: that no result mixed them is all that is unlike."""


@dataclass(frozen=True)
class Requests:
    """The least and the greatest reuse factor that can be asked for so that a layer, or each of several, gets its own."""

    least: int
    greatest: int

    def nearest(self, own: int, known: tuple[int, ...]) -> int:
        """One of them inside `known` where there is one, else the layer's own reuse factor, so far as it is among them."""
        inside = min(max(self.least, known[0]), self.greatest)
        return inside if known[0] <= inside <= known[1] else min(max(self.least, own), self.greatest)


def of_layers(layers: Sequence[FixedLayer], reuse_factor: int, reuse_factors: Mapping[str, int]) -> list[int]:
    """What is asked for, layer by layer. Raises RecipeError for a layer that has no weights, or does not exist."""
    weighted = [layer.name for layer in layers if layer.weighted]
    for name, factor in reuse_factors.items():
        if name not in weighted:
            raise RecipeError(f"a reuse factor for {name!r}, which is no layer with weights; those are: {', '.join(weighted)}")
        if factor < 1:
            raise RecipeError(f"reuse factor {factor} of {name} is below 1, which computes everything at once")
    return [reuse_factors.get(layer.name, reuse_factor) for layer in layers]


@functools.cache
def requests(n_in: int, n_out: int, factor: int) -> Requests:
    """Of one layer whose legal reuse factor is `factor`: up to half-way to its neighbours, of which the lower one is taken."""
    factors = legal(n_in, n_out)
    place = factors.index(factor)
    least = (factors[place - 1] + factor) // 2 + 1 if place else 1
    greatest = (factor + factors[place + 1]) // 2 if place + 1 < len(factors) else ANY
    return Requests(least, greatest)


def unlike(
    found: Sequence[Cost], strategy: str, clock_ns: float, io_type: str, part: str, constants: Constants
) -> tuple[Departure, ...]:
    """In what a network whose layers have reuse factors of their own is unlike the results, empty for inside.

    Where one request would have given the same reuse factors it is compared as if that had been asked for. Otherwise the lowest
    and the highest count, and that they are mixed.
    """

    def compared(request: int) -> tuple[Departure, ...]:
        return departures(found, request, strategy, clock_ns, io_type, part, constants)

    if strategy != "resource":  # no result has it, whatever is asked for
        return compared(1)
    each = [(requests(one.layer.n_in, one.layer.n_out, one.reuse), one.reuse) for one in found if one.layer.weighted]
    common = Requests(max(one.least for one, _ in each), min(one.greatest for one, _ in each))
    known = [region.reuse for region in constants.regions] or [(1, ANY)]
    if common.least <= common.greatest:
        most_reused = max(reuse for _, reuse in each)
        return min((compared(common.nearest(most_reused, span)) for span in known), key=area)
    choices = []
    for least, most in known:
        asked = [one.nearest(reuse, (least, most)) for one, reuse in each]
        lowest, highest = compared(min(asked)), (compared(max(asked)) if max(asked) > most else ())
        choices.append((*dict.fromkeys((*lowest, *highest)), APART))
    return min(choices, key=area)
