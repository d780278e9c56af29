"""The yardstick: ONNX Runtime, one thread, unoptimised."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgesdk_converters.errors import ModelError
from edgesdk_converters.model import Model
from edgesdk_converters.reference import Reference, run_all

F = np.float32


@pytest.fixture
def add(build: Any) -> Model:
    nodes = [helper.make_node("Add", ["x", "one"], ["s"]), helper.make_node("Mul", ["s", "s"], ["y"])]
    return Model.from_proto(build(nodes, [("x", ["n"])], [("y", ["n"])], {"one": np.ones(1, F)}), "m")


def test_all_outputs_come_by_name_and_inner_values_on_demand(add: Model) -> None:
    assert {k: v.tolist() for k, v in Reference(add).run({"x": np.array([1, 2], F)}).items()} == {"y": [4, 9]}
    got = Reference(add, ["s"]).run({"x": np.array([1], F)})
    assert {name: value.tolist() for name, value in got.items()} == {"y": [4], "s": [2]}
    assert [info.name for info in add.proto.graph.output] == ["y"]


def test_runs_repeat_to_the_bit(conv_net: onnx.ModelProto) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(conv_net)
    model = Model.from_proto(proto, "m")
    x = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(F)
    first, second = (row["logits"] for row in run_all(model, [{"x": x}, {"x": x}]))
    assert first.tobytes() == second.tobytes() == Reference(model).run({"x": x})["logits"].tobytes()


@pytest.mark.parametrize(
    "sample", [{}, {"z": np.ones(1, F)}, {"x": np.ones((1, 2), F)}, {"x": np.ones(1)}, {"x": np.ones(1, int)}]
)
def test_inputs_that_do_not_fit_are_model_errors(add: Model, sample: Any) -> None:
    with pytest.raises(ModelError):
        Reference(add).run(sample)


def test_a_model_that_onnx_runtime_cannot_run_is_a_model_error_of_one_line(build: Any) -> None:
    proto = build([helper.make_node("Secret", ["x"], ["y"], domain="mine")], [("x", [1])], [("y", [1])], domains=["mine"])
    with pytest.raises(ModelError, match=r"ONNX Runtime .* cannot run the model: .*Secret") as caught:
        Reference(Model.from_proto(proto, "m"))
    assert "\n" not in caught.value.line()
    proto = build(
        [helper.make_node("Gather", ["t", "i"], ["y"])], [("i", [1], TensorProto.INT64)], [("y", [1])], {"t": np.zeros(3, F)}
    )
    with pytest.raises(ModelError, match="the model fails on these inputs"):
        Reference(Model.from_proto(proto, "m")).run({"i": np.array([7])})
