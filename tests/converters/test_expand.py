"""Expand: operators replaced by ONNX's own definition compute the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesdk_converters.accuracy import relative_error
from edgesdk_converters.errors import EdgeError, PassError
from edgesdk_converters.expand import Expand
from edgesdk_converters.model import Model
from edgesdk_converters.reference import Reference

F = np.float32


def ops(model: Model) -> set[str]:
    return {node.op_type for node in model.proto.graph.node}


@pytest.mark.parametrize(
    ("op", "attributes", "opset"),
    [
        ("Gelu", {}, 20),
        ("Gelu", {"approximate": "none"}, 22),
        ("Gelu", {"approximate": "tanh"}, 20),
        ("Mish", {}, 18),
        ("Mish", {}, 22),
        ("HardSwish", {}, 14),
        ("HardSwish", {}, 21),
        ("Elu", {}, 22),
        ("LeakyRelu", {"alpha": 0.3}, 20),
        ("Softplus", {}, 20),
        ("ReduceSumSquare", {"keepdims": 1}, 18),
    ],
)
def test_an_operator_becomes_others_of_the_same_value(
    build: Any, given: Any, op: str, attributes: dict[str, Any], opset: int
) -> None:
    model = Model.from_proto(
        build([helper.make_node(op, ["x"], ["y"], **attributes)], [("x", [2, 5])], [("y", None)], opset=opset), "m"
    )
    what = given(model)
    expanded = Expand((op,))(model, what)
    assert op not in ops(expanded)
    assert not expanded.proto.functions
    assert {entry.domain for entry in expanded.proto.opset_import} == {""}
    assert expanded.signature == model.signature
    assert expanded.history[-1].note == "1 nodes by ONNX's own definition"
    for sample in what.train:
        assert relative_error(Reference(expanded).run(sample), Reference(model).run(sample)) < 1e-5


def test_layer_normalization_keeps_scale_bias_axis_and_epsilon(build: Any, given: Any) -> None:
    weights = {"s": np.arange(1, 13, dtype=F).reshape(3, 4), "b": np.ones((3, 4), F)}
    node = helper.make_node("LayerNormalization", ["x", "s", "b"], ["y"], axis=1, epsilon=0.5)
    model = Model.from_proto(build([node], [("x", [2, 3, 4])], [("y", [2, 3, 4])], weights), "m")
    expanded = Expand(("LayerNormalization",))(model, given(model))
    assert "LayerNormalization" not in ops(expanded)
    for sample in given(model).train:
        x = sample["x"]
        mean, var = x.mean((1, 2), keepdims=True), x.var((1, 2), keepdims=True)
        wanted = (x - mean) / np.sqrt(var + 0.5) * weights["s"] + weights["b"]
        assert np.allclose(Reference(expanded).run(sample)["y"], wanted, atol=1e-5)


def test_several_nodes_and_those_of_subgraphs_are_expanded(build: Any, given: Any) -> None:
    def branch(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph(list(nodes), name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3])])

    nodes = [
        helper.make_node("HardSwish", ["x"], ["h"]),
        helper.make_node("HardSwish", ["h"], ["k"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branch("t", helper.make_node("HardSwish", ["k"], ["t"])),
                         else_branch=branch("e", helper.make_node("Neg", ["k"], ["e"]))),
    ]  # fmt: skip
    model = Model.from_proto(build(nodes, [("x", [3]), ("c", [], TensorProto.BOOL)], [("y", [3])]), "m")
    expanded = Expand(("HardSwish",))(model, given(model))
    assert b"HardSwish" not in expanded.to_bytes().replace(b"_HardSwish", b"").replace(b"HardSwish_", b"")
    for sample in given(model, count=8).train:
        assert relative_error(Reference(expanded).run(sample), Reference(model).run(sample)) < 1e-5


def test_nothing_to_expand_gives_the_same_model(build: Any, given: Any) -> None:
    model = Model.from_proto(build([helper.make_node("Relu", ["x"], ["y"])], [("x", [3])], [("y", [3])]), "m")
    assert Expand(("Gelu",))(model, given(model)) is model
    assert Expand()(model, given(model)) is model


def test_an_operator_without_definition_is_a_pass_error_that_names_the_node(conv_net: onnx.ModelProto, given: Any) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(conv_net)
    model = Model.from_proto(proto, "m")
    with pytest.raises(PassError, match=r"ONNX defines Conv by no function of other operators \(node conv1\)") as caught:
        Expand(("Conv",))(model, given(model))
    assert caught.value.node == "conv1"


def test_every_definition_of_the_operator_tests_holds_or_is_refused(node_cases: list[Any], given: Any) -> None:
    compared, differs = 0, []
    for case in node_cases:
        if len(case.model.proto.graph.node) > 1:
            continue
        try:
            reference = Reference(case.model).run(case.feeds)
        except EdgeError:
            continue  # ONNX Runtime has no kernel: nothing to compare with
        operators = tuple({node.op_type for node in case.model.proto.graph.node})
        before = case.model.to_bytes()
        try:
            expanded = Expand(operators)(case.model, given(case.model, case.samples))
        except PassError:
            continue
        assert case.model.to_bytes() == before
        assert not ops(expanded) & set(operators) or expanded.proto.graph.node[0].op_type != operators[0], case.model.name
        got = Reference(expanded).run(case.feeds)
        assert [*got] == [*reference]
        if relative_error(got, reference) > 1e-3:
            differs.append(case.model.name)
        compared += 1
    assert compared >= 250
    # ONNX Runtime writes -inf, the definition the least float, into the masked part of this debugging output
    assert all("qk_matmul_bias" in name and "causal" in name for name in differs), differs


@pytest.mark.parametrize(("operators", "opset"), [(("Elu", "LayerNormalization"), 17), (("Clip", "HardSigmoid"), 20)])
@pytest.mark.parametrize("stored", [True, False])
def test_a_definition_of_another_opset_reads_stored_tensors_and_constants(
    build: Any, given: Any, operators: tuple[str, ...], opset: int, stored: bool
) -> None:
    """The inliner converts all definitions when it converts one; it must know the types of what they read, and read it once."""
    weights = {"a": np.float32(0.5) if operators[0] == "Clip" else np.ones(6, F), "b": np.float32(1.0)}
    first = helper.make_node(*{"Clip": ("Clip", ["x", "a", "b"])}.get(operators[0], ("LayerNormalization", ["x", "a"])), ["h"])
    nodes = [first, helper.make_node(operators[1] if operators[0] == "Clip" else operators[0], ["h"], ["y"])]
    if not stored:
        constants = [helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value), name))
                     for name, value in weights.items()]  # fmt: skip
        nodes = [*constants, *nodes]
    proto = build(nodes, [("x", [2, 6])], [("y", [2, 6])], weights if stored else {}, opset=opset)
    model = Model.from_proto(proto, "m")
    what = given(model)
    expanded = Expand(operators)(model, what)
    assert not ops(expanded) & set(operators)
    for sample in what.train:
        assert relative_error(Reference(expanded).run(sample), Reference(model).run(sample)) < 1e-5


def test_two_nodes_of_one_operator_take_the_definition_of_their_opset(build: Any, given: Any) -> None:
    nodes = [
        helper.make_node("Softmax", ["x"], ["a"]),
        helper.make_node("Softmax", ["a"], ["b"]),
        helper.make_node("Elu", ["b"], ["y"]),
    ]
    for opset in (13, 17, 18, 20):
        model = Model.from_proto(build(nodes, [("x", [2, 6])], [("y", [2, 6])], opset=opset), "m")
        what = given(model)
        expanded = Expand(("Softmax",))(model, what)
        assert "Softmax" not in ops(expanded)
        for sample in what.train:
            assert relative_error(Reference(expanded).run(sample), Reference(model).run(sample)) < 1e-5


def test_an_opset_without_the_operators_of_a_definition_is_named(build: Any, given: Any) -> None:
    model = Model.from_proto(build([helper.make_node("HardSigmoid", ["x"], ["y"])], [("x", [2])], [("y", [2])], opset=13), "m")
    with pytest.raises(PassError, match="ONNX's definitions use operators that opset 13 does not have"):
        Expand(("HardSigmoid",))(model, given(model))
