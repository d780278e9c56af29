"""Batch norm merged into the layer before it: fewer nodes, the same function."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from edgesdk_converters.batch_norm import merged
from edgesdk_converters.calibration import Samples
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given
from edgesdk_converters.quantize import Quantize
from edgesdk_converters.reference import Reference

from .test_integer_reader import quantised, wild


def normed(build: Any, kind: str, biased: bool = True, **options: Any) -> Model:
    rng = np.random.default_rng(0)
    shapes = {
        "Gemm": ((1, 6), (6, 5), (1, 5)),
        "MatMul": ((1, 6), (6, 5), (1, 5)),
        "Conv": ((1, 6, 4, 4), (5, 6, 3, 3), (1, 5, 2, 2)),
    }
    x, w, y = shapes[kind]
    w = w[::-1] if options.get("transB") else w
    stored: dict[str, Any] = {
        "w": rng.standard_normal(w), "b": rng.standard_normal(5), "gamma": rng.uniform(-2, 2, 5), "beta": rng.standard_normal(5),
        "mean": rng.standard_normal(5), "var": rng.uniform(0.1, 3, 5),
    }  # fmt: skip
    if not biased:
        del stored["b"]
    read = ["x", "w", *(["b"] if biased else [])]
    nodes = [
        helper.make_node(kind, read, ["s"], name="layer", **options),
        helper.make_node("BatchNormalization", ["s", "gamma", "beta", "mean", "var"], ["n"], name="norm", epsilon=1e-3),
        helper.make_node("Relu", ["n"], ["y"], name="relu"),
    ]
    stored = {name: array.astype(np.float32) for name, array in stored.items()}
    return Model.from_proto(build(nodes, [("x", list(x))], [("y", list(y))], stored), "m")


@pytest.mark.parametrize(("kind", "options"), [("Gemm", {}), ("Gemm", {"transB": 1}), ("Gemm", {"biased": False}),
                         ("MatMul", {"biased": False}), ("Conv", {}), ("Conv", {"biased": False})])  # fmt: skip
def test_layer_and_norm_become_one_layer(build: Any, kind: str, options: dict[str, Any]) -> None:
    model = normed(build, kind, **options)
    made = merged(model)
    names = {node.name: node.op_type for node in made.proto.graph.node}
    assert names == {"layer": "Gemm" if kind == "MatMul" else kind, "relu": "Relu"}
    assert made.history[-1].note == "1 into the layers before them"
    assert {tensor.name for tensor in made.proto.graph.initializer} == {"w/merged", "n/bias"}
    for feed in wild(model, 10):
        np.testing.assert_allclose(Reference(made).run(feed)["y"], Reference(model).run(feed)["y"], rtol=1e-4, atol=1e-3)


def test_what_others_read_and_what_is_kept_stays(build: Any) -> None:
    model = normed(build, "Gemm")
    assert merged(model, keep=("norm",)) is model
    assert merged(normed(build, "Gemm", beta=0.5)).proto.graph.node[1].op_type == "BatchNormalization"
    proto = model.copy_proto()
    proto.graph.output.append(helper.make_tensor_value_info("s", 1, [1, 5]))
    both = Model.from_proto(proto, "both")
    assert merged(both) is both


def test_fixed_point_rounds_layer_and_norm_once(build: Any) -> None:
    model = normed(build, "Gemm")
    made = quantised(model)
    assert [node.op_type for node in made.proto.graph.node].count("QuantizeLinear") == 2, "the input and behind the Relu"
    assert "BatchNormalization" not in [node.op_type for node in made.proto.graph.node]
    kept = quantised(model, keep=("norm",))
    assert "BatchNormalization" in [node.op_type for node in kept.proto.graph.node]
    given = Given(model, Samples({"x": np.stack([feed["x"] for feed in wild(model, 4)])}, "chosen"))
    assert "BatchNormalization" in [node.op_type for node in Quantize()(model, given).proto.graph.node], (
        "other flavours as before"
    )
