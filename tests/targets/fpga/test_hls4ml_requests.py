"""Reuse factors of single layers: which requests give them, and when they count as inside the results."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesdk_converters.errors import RecipeError
from edgesdk_targets.fpga import hls4ml_constants, reuse
from edgesdk_targets.fpga.dense_spec import parse
from edgesdk_targets.fpga.hls4ml_constants import Constants, departures, shipped
from edgesdk_targets.fpga.hls4ml_fit import ANALYTIC
from edgesdk_targets.fpga.hls4ml_requests import ANY, APART, of_layers, requests, unlike
from edgesdk_targets.fpga.hls4ml_terms import Cost, cost

LAYERS = parse("dense:48-72-16@8bit")
U250 = "xcu250-figd2104-2L-e"


def counted(*own: int, strategy: str = "resource") -> list[Cost]:
    factors = dict(zip(("dense_1", "dense_2"), own, strict=True))
    return [cost(layer, factors.get(layer.name, 1), strategy, 5.0) for layer in LAYERS]  # type: ignore[arg-type]


def told(*own: int, constants: Constants | None = None) -> list[str]:
    known = shipped() if constants is None else constants
    return [one.told for one in unlike(counted(*own), "resource", 5.0, "io_parallel", U250, known)]


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40))
def test_requests_of_a_layer_are_those_that_hls4mls_rule_takes_to_its_reuse_factor(n_in: int, n_out: int) -> None:
    found = [requests(n_in, n_out, factor) for factor in reuse.legal(n_in, n_out)]
    assert found[0].least == 1 and found[-1].greatest == ANY
    assert all(before.greatest + 1 == after.least for before, after in itertools.pairwise(found))
    for factor, one in zip(reuse.legal(n_in, n_out), found, strict=True):
        for wanted in {one.least, min(one.greatest, 2000)}:
            assert reuse.closest(n_in, n_out, wanted) == factor


@pytest.mark.parametrize("request_", [1024, 1500, 2047, 4000])
def test_what_one_request_inside_the_results_gives_is_inside_as_well(request_: int) -> None:
    own = [reuse.closest(layer.n_in, layer.n_out, request_) for layer in LAYERS if layer.weighted]
    assert told(*own) == []


def test_mixed_reuse_factors_are_apart_from_all_results() -> None:
    """3456 takes a request above 2,592, the second layer's 576 one below 864."""
    assert told(3456, 576) == ["reuse factor 576 below 1024", APART.told]
    assert told(3456, 1152) == []
    assert told(1152, 1152) == []


def test_below_and_above_the_results_are_told_each() -> None:
    import dataclasses

    (region,) = shipped().regions
    narrow = dataclasses.replace(shipped(), regions=(dataclasses.replace(region, reuse=(500, 1200)),))
    assert told(3456, 24, constants=narrow) == [
        "reuse factor 24 below 500", "48 multipliers in a layer, more than 16", "reuse factor 3456 above 1200", APART.told,
    ]  # fmt: skip


@settings(deadline=None)
@given(st.integers(1, 5000))
def test_equal_requests_widen_no_less_than_the_request_itself(request_: int) -> None:
    own = [reuse.closest(layer.n_in, layer.n_out, request_) for layer in LAYERS if layer.weighted]
    apart = unlike(counted(*own), "resource", 5.0, "io_parallel", U250, shipped())
    asked = departures(counted(*own), request_, "resource", 5.0, "io_parallel", U250, shipped())
    assert APART not in apart
    assert hls4ml_constants.area(apart) <= hls4ml_constants.area(asked)


def test_where_nothing_is_folded_reuse_factors_do_not_matter() -> None:
    apart = unlike(counted(1, 2, strategy="latency"), "latency", 5.0, "io_parallel", U250, shipped())
    assert [one.told for one in apart] == [
        one.told for one in departures(counted(1, 1, strategy="latency"), 1, "latency", 5.0, "io_parallel", U250, shipped())
    ]
    assert "strategy latency" in [one.told for one in apart]


def test_without_results_there_is_nothing_to_be_inside_of() -> None:
    assert told(1152, 1152, constants=ANALYTIC) == ["no result to compare with"]
    assert told(48, 1152, constants=ANALYTIC) == ["no result to compare with", APART.told]


def test_what_is_asked_of_single_layers_replaces_what_is_asked_of_all() -> None:
    assert of_layers(LAYERS, 7, {"dense_2": 16}) == [7, 7, 16]
    for wrong, message in (({"dense_9": 4}, "dense_1, dense_2"), ({"relu_1": 4}, "'relu_1'"), ({"dense_1": 0}, "below 1")):
        with pytest.raises(RecipeError, match=message):
            of_layers(LAYERS, 7, wrong)
