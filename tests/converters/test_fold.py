"""Fold: the same function with fewer nodes, and never a changed face."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from edgesdk_converters.accuracy import relative_error
from edgesdk_converters.calibration import synthetic
from edgesdk_converters.errors import EdgeError, PassError
from edgesdk_converters.fold import Fold
from edgesdk_converters.graph import value_types
from edgesdk_converters.model import Model
from edgesdk_converters.quantize import Quantize
from edgesdk_converters.reference import Reference

F = np.float32


def ops(model: Model) -> list[str]:
    return [node.op_type for node in model.proto.graph.node]


@pytest.fixture
def fold(given: Any) -> Any:
    """Fold a proto; returns (before, after) with parity checked on seeded inputs."""

    def run(proto: onnx.ModelProto, limit: float = 1e-5) -> tuple[Model, Model]:
        before = Model.from_proto(proto, "m")
        what = given(before)
        after = Fold()(before, what)
        old, new = Reference(before), Reference(after)
        for sample in list(what.train) or [{}]:
            assert relative_error(new.run(sample), old.run(sample)) <= limit
        assert [i.name for i in after.signature.inputs] == [i.name for i in before.signature.inputs]
        assert [o.name for o in after.signature.outputs] == [o.name for o in before.signature.outputs]
        return before, after

    return run


def test_batch_norm_is_fused_into_the_convolution(conv_net: onnx.ModelProto, fold: Any) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(conv_net)
    before, after = fold(proto)
    assert "BatchNormalization" in ops(before)
    assert "BatchNormalization" not in ops(after)
    assert ops(after).count("Conv") == 2
    assert after.history[-1].name == "fold"
    assert after.history[-1].note == f"8 nodes to {len(ops(after))}"


def test_shape_arithmetic_of_a_static_model_is_computed(build: Any, fold: Any) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Concat", ["n", "rest"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["y"]),
    ]
    weights = {"zero": np.array([0]), "rest": np.array([-1])}
    _, after = fold(build(nodes, [("x", [2, 3, 4])], [("y", [2, 12])], weights))
    assert ops(after) == ["Reshape"]


def test_inputs_that_nothing_reads_stay(build: Any, fold: Any) -> None:
    proto = build([helper.make_node("Relu", ["b"], ["y"])], [("a", [1]), ("b", [2]), ("c", [3])], [("y", [2])])
    assert len(fold(proto)[1].signature.inputs) == 3


def test_outputs_that_are_inputs_weights_or_constants_stay(build: Any, fold: Any) -> None:
    proto = build(
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Add", ["w", "w"], ["z"])],
        [("x", [1, 2])], [("z", [2, 2]), ("x", [1, 2]), ("w", [2, 2]), ("y", [1, 2])], {"w": np.eye(2, dtype=F) * 2},
    )  # fmt: skip
    fold(proto)


def test_outputs_that_are_the_same_expression_stay_apart_and_in_order(build: Any, fold: Any) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["x", "w"], ["b"]),
        helper.make_node("Identity", ["a"], ["c"]),
        helper.make_node("Identity", ["c"], ["d"]),
    ]
    shapes = [(name, [1, 2]) for name in "dbca"]
    fold(build(nodes, [("x", [1, 2])], shapes, {"w": np.eye(2, dtype=F) * 3}))


def test_a_model_without_inputs_folds(build: Any, fold: Any) -> None:
    fold(build([helper.make_node("Add", ["w", "w"], ["y"])], [], [("y", [2])], {"w": np.ones(2, F)}))


def test_dynamic_dimensions_stay_dynamic(build: Any, fold: Any) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Shape", ["a"], ["s"]),
        helper.make_node("ConstantOfShape", ["s"], ["z"]),
        helper.make_node("Add", ["a", "z"], ["y"]),
    ]
    w = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(F)
    _, after = fold(build(nodes, [("x", ["n", 3, "h", "w_"])], [("y", ["n", 4, "h", "w_"])], {"w": w}))
    run = Reference(after).run
    assert run({"x": np.ones((2, 3, 5, 7), F)})["y"].shape == (2, 4, 5, 7)
    assert after.signature.inputs[0].shape == ("n", 3, "h", "w_")


def test_subgraphs_keep_what_they_take_from_outside(build: Any, fold: Any) -> None:
    def branch(name: str, op: str, *inputs: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3])
        return helper.make_graph([helper.make_node(op, list(inputs), [name])], name, [], [out])

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Greater", ["m", "limit"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branch("t", "MatMul", "a", "w"), else_branch=branch("e", "Neg", "a")),
    ]
    weights = {"w": np.eye(3, dtype=F) * 2, "limit": np.array(0.5, F)}
    _, after = fold(build(nodes, [("x", [1, 3])], [("y", [1, 3])], weights))
    assert "If" in ops(after)


def test_a_small_file_cannot_fold_into_a_large_one(build: Any, fold: Any) -> None:
    nodes = [
        helper.make_node("ConstantOfShape", ["n"], ["big"], value=helper.make_tensor("v", 1, [1], [2.0])),
        helper.make_node("Mul", ["big", "two"], ["big2"]),
        helper.make_node("ReduceMean", ["big2"], ["m"]),
        helper.make_node("Add", ["x", "m"], ["y"]),
    ]
    weights = {"n": np.array([20_000_000]), "two": np.full(1, 2, F)}
    _, after = fold(build(nodes, [("x", [1])], [("y", [1])], weights))
    assert len(after.to_bytes()) < 100_000


def test_metadata_survives(conv_net: onnx.ModelProto, given: Any) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(conv_net)
    proto.metadata_props.add(key="author", value="somebody")
    model = Model.from_proto(proto, "m")
    folded = Fold()(model, given(model))
    assert {entry.key: entry.value for entry in folded.proto.metadata_props} == {"author": "somebody"}
    assert folded.opset == model.opset


def test_local_functions_keep_their_meaning(build: Any, fold: Any) -> None:
    body = [helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Add", ["r", "a"], ["b"])]
    function = helper.make_function("local", "F", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    proto = build([helper.make_node("F", ["x"], ["y"], domain="local")], [("x", [3])], [("y", [3])],
                  functions=[function], domains=["local"])  # fmt: skip
    fold(proto)


def test_what_onnxslim_raises_becomes_a_pass_error(
    conv_net: onnx.ModelProto, given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(conv_net)
    model = Model.from_proto(proto, "m")
    monkeypatch.setattr("onnxslim.slim", lambda *_, **__: 1 / 0)
    with pytest.raises(PassError, match="pass fold: onnxslim failed: ZeroDivisionError"):
        Fold()(model, given(model))


def test_a_changed_output_is_a_pass_error(conv_net: onnx.ModelProto, given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(conv_net)
    model = Model.from_proto(proto, "m")

    def rename(proto: onnx.ModelProto, **_: Any) -> onnx.ModelProto:
        proto.graph.output[0].name = "other"
        return proto

    monkeypatch.setattr("onnxslim.slim", rename)
    with pytest.raises(PassError, match=r"outputs changed from \['logits'\] to \['other'\]"):
        Fold()(model, given(model))


def test_a_result_that_is_no_valid_model_is_a_pass_error(
    conv_net: onnx.ModelProto, given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(conv_net)
    model = Model.from_proto(proto, "m")

    def lose_a_node(proto: onnx.ModelProto, **_: Any) -> onnx.ModelProto:
        del proto.graph.node[2]
        return proto

    monkeypatch.setattr("onnxslim.slim", lose_a_node)
    with pytest.raises(PassError, match="pass fold"):
        Fold()(model, given(model))


def test_onnx_operator_tests_compute_the_same_after_folding(node_cases: list[Any], given: Any) -> None:
    compared, refused = 0, []
    for index, case in enumerate(node_cases):
        try:
            reference = Reference(case.model).run(case.feeds)
        except EdgeError:
            continue  # ONNX Runtime has no kernel: nothing to compare with
        before = case.model.to_bytes()
        what = given(case.model, case.samples)
        try:
            folded = Fold()(case.model, what)
        except EdgeError as error:
            assert isinstance(error, PassError), (case.model.name, error)
            refused.append(case.model.name)
            continue
        assert case.model.to_bytes() == before, case.model.name
        got = Reference(folded).run(case.feeds)
        assert [*got] == [*reference], case.model.name
        limit = 2e-3 if any(a.dtype == np.float16 for a in reference.values()) else 1e-5
        assert relative_error(got, reference) <= limit, case.model.name
        if index % 4 == 0:
            assert Fold()(case.model, what).to_bytes() == folded.to_bytes(), case.model.name
        compared += 1
    assert compared >= 1150
    assert len(refused) <= 4, refused


def test_equal_integers_of_two_layers_stay_apart(build: Any, given: Any) -> None:
    """ONNX Runtime fails on shared integers where it changes their sign at loading."""
    weights = {"w": np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype(np.float32) / 6}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="one", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "w"], ["y"], name="two", pads=[1, 1, 1, 1]),
    ]
    model = Model.from_proto(build(nodes, [("x", [1, 4, 6, 6])], [("y", [1, 4, 6, 6])], weights), "m")
    what = given(model, dataclasses.replace(synthetic(model, 4), synthetic=False))
    for flavour in ("u8s8", "qoperator"):
        folded = Fold()(Quantize(flavour=flavour)(model, what), what)  # type: ignore[arg-type]
        options = ort.SessionOptions()
        options.add_session_config_entry("session.x64quantprecision", "1")
        ort.InferenceSession(folded.to_bytes(), options, providers=["CPUExecutionProvider"])


def test_types_that_nobody_can_infer_are_kept(build: Any, given: Any) -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((32, 32)).astype(np.float32) / 6 for name in ("a", "b")}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"], name="one"),
        helper.make_node("MatMul", ["p", "b"], ["q"], name="two"),
        helper.make_node("Identity", ["q"], ["y"], name="same"),
    ]
    model = Model.from_proto(build(nodes, [("x", [1, 32])], [("y", [1, 32])], weights), "m")
    what = given(model)
    packed = Quantize(flavour="weights")(model, what)
    folded = Fold()(packed, what)
    assert [node.op_type for node in folded.proto.graph.node] == ["MatMulNBits", "MatMulNBits"]
    assert value_types(folded.proto.graph)["p"] == value_types(packed.proto.graph)["p"]
    for sample in what.train:
        np.testing.assert_array_equal(Reference(folded).run(sample)["y"], Reference(packed).run(sample)["y"])
