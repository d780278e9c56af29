"""Gains of a precision from published pairs: Amdahl's law, marked as what they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgesdk_converters.cost import Layer, layers
from edgesdk_converters.model import Model
from edgesdk_targets.device import names, profile
from edgesdk_targets.precision_speed import WIDENING, ratios, speed_ratio

NET = Path(__file__).parents[2] / "examples" / "fashion" / "fashion_cnn.onnx"


@pytest.fixture(scope="module")
def float_layers() -> tuple[Layer, ...]:
    return layers(Model.load(NET))


def test_every_row_is_of_a_known_board_and_ordered() -> None:
    assert {row.device for row in ratios()} <= set(names())
    for row in ratios():
        assert 0 < row.low <= row.value <= row.high and row.n > 0 and row.source, row
    assert len({(row.device, row.precision) for row in ratios()}) == len(ratios())


def test_a_network_that_is_all_integers_gains_what_was_published(float_layers: tuple[Layer, ...]) -> None:
    row = next(row for row in ratios() if (row.device, row.precision) == ("raspberry-pi-4", "int8"))
    whole = tuple(replace(layer, op="QLinearConv") for layer in float_layers)
    figure = speed_ratio(profile("raspberry-pi-4"), whole, "int8")
    assert figure.provenance == "estimated" and figure.value == pytest.approx(row.value)
    assert figure.interval is not None
    assert (figure.interval.low, figure.interval.high) == pytest.approx((row.low / WIDENING, row.high * WIDENING))
    assert figure.extrapolated and "ncnn" in figure.method


def test_what_is_left_in_float_gains_nothing(float_layers: tuple[Layer, ...]) -> None:
    figure = speed_ratio(profile("raspberry-pi-4"), float_layers, "int8")
    assert figure.value == pytest.approx(1)
    heavy = max(float_layers, key=lambda layer: layer.macs)
    share = heavy.macs / sum(layer.macs for layer in float_layers)
    partly = tuple(replace(layer, op="QLinearConv") if layer is heavy else layer for layer in float_layers)
    row = next(row for row in ratios() if (row.device, row.precision) == ("raspberry-pi-4", "int8"))
    assert speed_ratio(profile("raspberry-pi-4"), partly, "int8").value == pytest.approx(1 / (share / row.value + 1 - share))


def test_without_a_published_pair_there_is_no_figure(float_layers: tuple[Layer, ...]) -> None:
    figure = speed_ratio(profile("jetson-orin-nx"), float_layers, "w4")
    assert figure.provenance == "unavailable" and figure.value is None and "no published pair" in figure.method
    assert speed_ratio(profile("raspberry-pi-4"), (), "int8").provenance == "unavailable"
    assert speed_ratio(profile("raspberry-pi-4"), float_layers, "fp32").value == 1.0
