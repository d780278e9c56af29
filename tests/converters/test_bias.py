"""Bias correction: the mean of every output channel is what it was before the weights were rounded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgesdk_converters.bias import corrected, mean_errors
from edgesdk_converters.calibration import Samples, synthetic
from edgesdk_converters.fold import Fold
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given
from edgesdk_converters.quantize import Quantize, named
from edgesdk_converters.reference import Reference

NETS = Path(__file__).parents[2] / "examples" / "fashion"


def coarse(model: Model, bits: int) -> Model:
    """The model with every stored matrix rounded to `bits` bits an output channel, still in float: a crude quantiser."""
    proto = model.copy_proto()
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim > 1 and values.dtype == np.float32:
            axes = tuple(range(1, values.ndim))
            step = np.abs(values).max(axis=axes, keepdims=True) / (2 ** (bits - 1) - 1)
            tensor.CopyFrom(numpy_helper.from_array((np.round(values / step) * step).astype(np.float32), tensor.name))
    for node in proto.graph.node:  # the quantised weight is another tensor than the float one
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            old = next((t for t in proto.graph.initializer if t.name == node.input[1]), None)
            if old is not None:
                renamed = onnx.TensorProto()
                renamed.CopyFrom(old)
                renamed.name = f"{old.name}/coarse"
                proto.graph.initializer.append(renamed)
                node.input[1] = renamed.name
    return model.changed(proto)


@pytest.mark.parametrize("net", ["cnn", "mobilenet", "resnet", "vit"])
def test_four_bit_nets_come_closer_to_their_source(net: str, fashion: Callable[[str, int], tuple[Any, Any]]) -> None:
    source = Model.load(NETS / f"fashion_{net}.onnx")
    samples = Samples.from_arrays({"image": fashion("train", 48)[0]}, source.signature, "training images")
    others = Samples.from_arrays({"image": fashion("t10k", 100)[0]}, source.signature, "test images")
    model = named(Fold()(source, Given(source, samples)))
    rough = coarse(model, 4)
    moved = coarse(model.changed(corrected(model, rough, samples)), 4)
    wanted = [Reference(model).run(s)["logits"] for s in others]

    def squared_error(other: Model) -> float:
        made = Reference(other)
        return float(np.mean([np.square(made.run(s)["logits"] - w) for s, w in zip(others, wanted, strict=True)]))

    assert squared_error(moved) < squared_error(rough)


def test_the_first_layer_gets_its_means_back(conv_net: onnx.ModelProto) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(conv_net)
    source = Model.from_proto(proto, "m")
    samples = synthetic(source, 16)
    model = named(Fold()(source, Given(source, samples)))
    rough = coarse(model, 3)
    first = next(node for node in model.proto.graph.node if node.op_type == "Conv").output[0]

    def means(other: Model) -> Any:
        made = Reference(other, [first])
        return np.mean([made.run(s)[first] for s in samples], axis=(0, 1, 3, 4))

    wanted = means(model)
    assert np.abs(means(rough) - wanted).max() > 1e-3
    moved = coarse(model.changed(corrected(model, rough, samples)), 3)
    np.testing.assert_allclose(means(moved), wanted, atol=1e-5)


def test_a_layer_without_bias_gets_one_and_shared_biases_part(build: Any) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="one"),
        helper.make_node("Conv", ["a", "w2", "b"], ["c"], name="two"),
        helper.make_node("Conv", ["c", "w3", "b"], ["y"], name="three"),
    ]
    weights = {f"w{i}": rng.standard_normal((4, 4, 1, 1)).astype(np.float32) for i in (1, 2, 3)}
    weights["b"] = np.ones(4, np.float32)
    model = Model.from_proto(build(nodes, [("x", [1, 4, 5, 5])], [("y", [1, 4, 5, 5])], weights), "m")
    samples = synthetic(model, 8)
    rough = coarse(model, 3)
    made = corrected(model, rough, samples)
    inputs = {node.name: list(node.input) for node in made.graph.node}
    assert len(inputs["one"]) == 3 and inputs["two"][2] != inputs["three"][2]
    stored = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    shift = mean_errors(model, rough, samples)
    np.testing.assert_allclose(stored[inputs["one"][2]], -shift["one"], rtol=1e-5)
    np.testing.assert_allclose(stored[inputs["two"][2]], 1 - shift["two"], rtol=1e-5)
    assert "b" not in stored


def test_the_pass_says_so_and_its_biases_are_those(conv_net: onnx.ModelProto) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(conv_net)
    source = Model.from_proto(proto, "m")
    samples = Samples(synthetic(source, 8).arrays, "a test", leading_axis={"x": True})
    given = Given(source, samples)
    model = named(Fold()(source, given))
    plain, moved = (Quantize(flavour="tensorrt", bias_correction=on)(model, given) for on in (False, True))
    assert "biases corrected" in moved.history[-1].note and "biases corrected" not in plain.history[-1].note
    shift = mean_errors(model, plain, samples)
    for name, error in shift.items():
        before, after = (_bias(made, name) for made in (plain, moved))
        np.testing.assert_allclose(after, before - error, atol=1e-6)


def _bias(model: Model, name: str) -> Any:
    node = next(node for node in model.proto.graph.node if node.name == name)
    return numpy_helper.to_array(next(t for t in model.proto.graph.initializer if t.name == node.input[2]))


def test_what_cannot_take_a_bias_is_left(build: Any) -> None:
    weights = {"w": np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="dense")]
    model = Model.from_proto(build(nodes, [("x", [3, 4])], [("y", [3, 4])], weights), "m")
    made = corrected(model, coarse(model, 3), synthetic(model, 4))
    assert [node.op_type for node in made.graph.node] == ["MatMul"]


def test_a_factor_that_went_into_the_weights_is_not_applied_twice(build: Any) -> None:
    rng = np.random.default_rng(2)
    weights = {"w": rng.standard_normal((16, 8)).astype(np.float32), "b": rng.standard_normal(8).astype(np.float32)}
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="dense", alpha=0.25)
    model = Model.from_proto(build([node], [("x", [4, 16])], [("y", [4, 8])], weights), "m")
    random = synthetic(model, 16)
    samples = Samples(random.arrays, "a test", leading_axis=random.leading_axis)
    errors = mean_errors(model, Quantize()(model, Given(model, samples)), samples)
    assert np.abs(errors["dense"]).max() < 0.01
