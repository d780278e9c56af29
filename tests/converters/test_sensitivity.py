"""Sensitivity: the layer that was made fragile is found, and noise is counted as the textbook does."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgesdk_converters.calibration import Samples, synthetic
from edgesdk_converters.errors import ModelError
from edgesdk_converters.fold import Fold
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given
from edgesdk_converters.quantize import Quantize
from edgesdk_converters.sensitivity import costliest, divergence, sensitivity, sqnr_db


def test_noise_is_counted_in_decibels() -> None:
    signal = [np.array([3.0, 4.0]), np.array([0.0, 0.0])]
    assert sqnr_db([signal[0] + [0.3, 0.4], signal[1]], signal) == pytest.approx(20)
    assert sqnr_db(signal, signal) == math.inf
    assert sqnr_db([signal[0] * np.nan, signal[1]], signal) == -math.inf


@pytest.fixture
def net(build: Any) -> tuple[Model, Given]:
    """Three dense layers; the inputs of the middle one have a channel 200 times as large as the others."""
    rng = np.random.default_rng(0)
    weights = {f"w{n}": (rng.standard_normal((32, 32)) / 6).astype(np.float32) for n in range(3)}
    weights["w0"][:, 7] *= 200
    weights["w1"][7] /= 200
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["ra"], name="relu"),
        helper.make_node("MatMul", ["ra", "w1"], ["b"], name="second"),
        helper.make_node("MatMul", ["b", "w2"], ["y"], name="third"),
    ]
    model = Model.from_proto(build(nodes, [("x", [1, 32])], [("y", [1, 32])], weights), "net")
    samples = replace(synthetic(model, 32), synthetic=False)
    given = Given(model, samples)
    return Fold()(model, given), given


def test_the_layer_behind_an_outlier_channel_costs_most(net: tuple[Model, Given]) -> None:
    model, given = net
    found = sensitivity(model, given.train, lambda names: Quantize(only=names)(model, given), ["third", "first", "second"])
    assert [one.layer for one in found] == ["first", "second", "third"], "graph order"
    by_name = {one.layer: one for one in found}
    assert by_name["second"].output_sqnr_db < by_name["third"].output_sqnr_db - 6
    assert by_name["second"].outlier_channels == (7,) and by_name["third"].outlier_channels == ()
    assert costliest(found)[0].layer in ("first", "second") and costliest(found)[-1].layer == "third"
    assert all(one.macs == 1024 and one.accuracy is None for one in found)
    reached = Samples(given.train.arrays, "all", leading_axis=given.train.leading_axis)
    low, high = by_name["first"].input_range
    assert (low, high) == (reached.arrays["x"].min(), reached.arrays["x"].max())
    weights = {t.name: numpy_helper.to_array(t) for t in model.proto.graph.initializer}
    stored = weights[next(n for n in model.proto.graph.node if n.name == "first").input[1]]
    assert by_name["first"].weight_range == (stored.min(), stored.max())


def test_with_labels_the_accuracy_of_each_layer_alone_is_told(net: tuple[Model, Given]) -> None:
    from edgesdk_converters.reference import Reference

    model, given = net
    reference = Reference(model)
    labels = np.array([reference.run(sample)["y"].argmax() for sample in given.train])
    labels[0] = (labels[0] + 1) % 32
    samples = replace(given.train, labels=labels)
    found = sensitivity(model, samples, lambda names: Quantize(only=names)(model, given), ["third"])
    (third,) = found
    assert third.accuracy is not None and 0.8 <= third.accuracy <= 31 / 32 < 1
    assert third.agreement >= third.accuracy


def test_a_layer_without_an_integer_form_is_left_out(net: tuple[Model, Given]) -> None:
    model, given = net
    found = sensitivity(model, given.train, lambda names: Quantize(only=names)(model, given), ["relu", "third"])
    assert [one.layer for one in found] == ["third"]


def test_two_models_part_where_one_was_changed(net: tuple[Model, Given]) -> None:
    model, given = net
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    weight = next(n for n in proto.graph.node if n.name == "second").input[1]
    tensor = next(t for t in proto.graph.initializer if t.name == weight)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.1), tensor.name))
    rows = divergence(model, Model.from_proto(proto, "other"), given.train.take([0, 1]))
    far = {row.tensor: row.relative_error for row in rows}
    assert far["a"] == far["ra"] == 0
    assert far["b"] == pytest.approx(0.1, rel=1e-3) and far["y"] == pytest.approx(0.1, rel=1e-3)
    assert [row.made_by for row in rows] == ["first", "relu", "second", "third"]


def test_models_that_share_nothing_cannot_be_compared(net: tuple[Model, Given], build: Any) -> None:
    model, given = net
    other = build([helper.make_node("Relu", ["x"], ["z"])], [("x", [1, 32])], [("z", [1, 32])])
    with pytest.raises(ModelError, match="no tensor of one name and shape"):
        divergence(model, Model.from_proto(other, "other"), given.train)
