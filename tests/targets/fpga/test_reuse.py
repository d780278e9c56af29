from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import pytest

from edgesdk_converters.errors import DoesNotFit
from edgesdk_targets.figure import Figure, Interval
from edgesdk_targets.fpga import hls4ml_rules, reuse
from edgesdk_targets.fpga.hls4ml_backends import BACKENDS
from edgesdk_targets.fpga.reuse import Layer

from .integer_nets import dense_net

PAIRS = [(1, 1), (1, 7), (16, 64), (64, 32), (32, 5), (27, 16), (13, 11), (12, 18), (64, 1)]


def by_hls4ml() -> object:
    from hls4ml.backends import get_backend

    return get_backend("Vitis")


@pytest.mark.parametrize(("n_in", "n_out"), PAIRS)
def test_legal_reuse_factors_and_the_closest_are_hls4mls_own(n_in: int, n_out: int) -> None:
    backend = by_hls4ml()
    known = backend.get_valid_reuse_factors(n_in, n_out)  # type: ignore[attr-defined]
    assert list(reuse.legal(n_in, n_out)) == known
    for wanted in range(1, n_in * n_out + 3):
        assert reuse.closest(n_in, n_out, wanted) == backend.get_closest_reuse_factor(known, wanted)  # type: ignore[attr-defined]


def test_of_two_equally_close_the_smaller_is_taken() -> None:
    assert reuse.legal(4, 2) == (1, 2, 4, 8)
    assert reuse.closest(4, 2, 3) == 2
    assert reuse.closest(4, 2, 6) == 4
    assert reuse.closest(4, 2, 1000) == 8


def test_layers_with_weights_are_those_that_fold() -> None:
    program = dense_net((16, 12, 5), 6, "half_even")
    found = reuse.foldable(hls4ml_rules.layers(program, BACKENDS["vitis"]))
    assert [(layer.n_in, layer.n_out) for layer in found] == [(16, 12), (12, 5)]
    assert {layer.name for layer in found} <= {operation.node for operation in program.operations}


LAYERS = (Layer("a", 8, 6), Layer("b", 6, 4), Layer("c", 4, 3))


def additive(layers: Sequence[Layer], extrapolated_from: int = 10**9) -> reuse.Estimator:
    """Cycles and LUTs that add up over layers: what folding saves grows slower than what it costs."""

    def estimate(factors: Mapping[str, int]) -> tuple[Figure, ...]:
        cycles = sum(factors[layer.name] + 3 for layer in layers)
        lut = sum(20 * math.ceil(layer.n_in * layer.n_out / factors[layer.name]) + 5 * layer.n_out for layer in layers)
        far = max(factors.values()) >= extrapolated_from
        around = {"interval": None if far else Interval(0.5 * lut, 2.0 * lut, 0.8), "extrapolated": far}
        return (
            Figure("cycles", cycles, "estimated", "here", "a sum", interval=Interval(cycles, cycles, 0.8)),
            Figure("lut", lut, "estimated", "here", "a sum", **around),  # type: ignore[arg-type]
            Figure("initiation_interval", 1, "estimated", "here", "searched by nobody", extrapolated=True),
            Figure("lut", 1, "estimated", "here", "a layer's", layer="a", interval=Interval(1, 1, 0.8)),
        )

    return estimate


def brute_force(layers: Sequence[Layer], limits: Mapping[str, float]) -> set[tuple[float, float]]:
    estimate, found = additive(layers), []
    for factors in itertools.product(*(reuse.legal(layer.n_in, layer.n_out) for layer in layers)):
        figures = estimate(dict(zip([layer.name for layer in layers], factors, strict=True)))
        found.append((float(figures[0].value or 0), float(figures[1].value or 0)))
    found = [one for one in found if one[0] <= limits.get("cycles", math.inf) and one[1] <= limits.get("lut", math.inf)]
    return {one for one in found if not any(o != one and o[0] <= one[0] and o[1] <= one[1] for o in found)}


@pytest.mark.parametrize("limits", [{}, {"cycles": 40}, {"lut": 300}, {"cycles": 60, "lut": 500}], ids=str)
def test_all_choices_of_a_small_network_give_the_same_front_as_brute_force(limits: dict[str, float]) -> None:
    found = reuse.search(LAYERS, additive(LAYERS), limits, ("cycles", "lut"))
    assert {point.costs(("cycles", "lut")) for point in found} == brute_force(LAYERS, limits)
    assert [point.value("cycles") for point in found] == sorted(point.value("cycles") for point in found)
    for point in found:
        assert all(point.reuse_factors[layer.name] in reuse.legal(layer.n_in, layer.n_out) for layer in LAYERS)


def test_the_local_search_finds_the_front_of_a_network_that_is_still_small_enough_to_try_all() -> None:
    layers = (*LAYERS, Layer("d", 12, 8))
    best = brute_force(layers, {})
    found = {point.costs(("cycles", "lut")) for point in reuse.search(layers, additive(layers), None, ("cycles", "lut"), 0)}
    assert len(found & best) >= 0.95 * len(best)
    assert {min(best), max(best)} <= found


def test_the_local_search_ends_within_its_estimates() -> None:
    layers = tuple(Layer(str(number), 64, 64) for number in range(10))
    count = 0

    def counting(factors: Mapping[str, int]) -> Sequence[Figure]:
        nonlocal count
        count += 1
        return additive(layers)(factors)

    points = reuse.search(layers, counting, None, ("cycles", "lut"), most_estimates=300)
    assert count <= 300
    assert len(points) >= 10


def test_points_say_whether_a_figure_lies_outside_the_estimators_data() -> None:
    points = reuse.search(LAYERS, additive(LAYERS, extrapolated_from=24), None, ("cycles", "lut"))
    assert {point.extrapolated for point in points} == {False, True}
    for point in points:
        assert point.extrapolated == (max(point.reuse_factors.values()) >= 24)
        assert [figure.layer for figure in point.figures] == [None, None, None]


def test_a_limit_that_no_choice_keeps_is_named_with_need_and_have() -> None:
    with pytest.raises(DoesNotFit, match="lut") as caught:
        reuse.search(LAYERS, additive(LAYERS), {"lut": 80, "cycles": 10**6}, ("cycles", "lut"))
    assert caught.value.have == 80
    assert caught.value.need > 80
    assert "cycles" in caught.value.hint


def test_a_figure_that_the_estimator_cannot_tell_keeps_no_limit() -> None:
    with pytest.raises(DoesNotFit, match="dsp"):
        reuse.search(LAYERS, additive(LAYERS), {"dsp": 10})
