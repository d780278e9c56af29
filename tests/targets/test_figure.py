"""Figures: none can be made without provenance, and none that contradicts itself."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_args

import pytest

from edgesdk_targets.figure import UNITS, Figure, Interval, Provenance, counted, unavailable

GOOD: dict[str, Any] = {"name": "latency_ms", "value": 3.0, "provenance": "measured", "where": "here", "method": "timed", "n": 5}


def test_a_measured_figure_keeps_what_it_was_given_and_finds_its_unit() -> None:
    figure = Figure(**GOOD, percentiles={"p50": 3.0, "p90": 4.0})
    assert (figure.value, figure.unit, figure.segment, figure.layer, figure.n) == (3.0, "ms", "whole", None, 5)


@pytest.mark.parametrize(
    "change",
    [
        {"provenance": "guessed"}, {"provenance": ""}, {"name": ""}, {"where": ""}, {"method": ""}, {"value": None},
        {"value": math.nan}, {"value": math.inf}, {"n": None}, {"n": 0}, {"n": -1},
        {"provenance": "unavailable"}, {"provenance": "estimated"}, {"provenance": "simulated", "value": None},
        {"provenance": "estimated", "interval": Interval(4.0, 5.0, 0.9)},
        {"provenance": "estimated", "interval": Interval(1.0, 2.0, 0.9)},
        {"percentiles": {"p50": math.nan}},
    ],
)  # fmt: skip
def test_a_figure_that_contradicts_itself_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="figure"):
        Figure(**GOOD | change)


@pytest.mark.parametrize(
    "change",
    [
        {"provenance": "estimated", "interval": Interval(2.0, 4.0, 0.9)}, {"provenance": "estimated", "extrapolated": True},
        {"provenance": "estimated", "interval": Interval(3.0, 3.0, 0.5), "n": None}, {"provenance": "emulated", "n": None},
        {"provenance": "simulated", "n": None}, {"provenance": "tool-reported", "n": None},
        {"provenance": "unavailable", "value": None, "n": None}, {"value": 0}, {"value": -1.5, "name": "accuracy_drop"},
    ],
)  # fmt: skip
def test_a_figure_that_says_enough_is_accepted(change: dict[str, Any]) -> None:
    assert Figure(**GOOD | change).provenance in get_args(Provenance)


@pytest.mark.parametrize(
    ("low", "high", "level"), [(2, 1, 0.9), (math.nan, 1, 0.9), (0, math.inf, 0.9), (0, 1, 0), (0, 1, 1), (0, 1, 90)]
)
def test_an_interval_that_is_none_is_refused(low: float, high: float, level: float) -> None:
    with pytest.raises(ValueError, match="no interval"):
        Interval(low, high, level)


def test_figures_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Figure(**GOOD).value = 4.0  # type: ignore[misc]


def test_counting_and_lacking_name_themselves() -> None:
    figure = counted("macs", 12, "counted from the layers", layer="conv")
    assert (figure.provenance, figure.where, figure.n, figure.unit, figure.layer) == ("measured", "artifact", 1, "MAC", "conv")
    lacking = unavailable("latency_ms", "jetson-orin-nano", "no board here", "device")
    assert (lacking.provenance, lacking.value, lacking.unit, lacking.segment) == ("unavailable", None, "ms", "device")


def test_names_that_end_in_a_unit_have_it() -> None:
    for ending, unit in (("_ms", "ms"), ("_bytes", "bytes"), ("_mj", "mJ"), ("_mhz", "MHz"), ("_per_s", "1/s")):
        named = [name for name in UNITS if name.endswith(ending)]
        assert named
        assert {UNITS[name] for name in named} == {unit}
