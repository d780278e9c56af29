"""Questions asked of a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesdk_converters import graph as graphs
from edgesdk_converters.graph import ValueType


@pytest.mark.parametrize(
    ("elem_type", "bits", "name"),
    [
        (TensorProto.FLOAT, 32, "float32"), (TensorProto.FLOAT16, 16, "float16"), (TensorProto.DOUBLE, 64, "float64"),
        (TensorProto.INT4, 4, "int4"), (TensorProto.BOOL, 8, "bool"), (TensorProto.STRING, 0, "string"),
        (TensorProto.BFLOAT16, 16, "bfloat16"), (TensorProto.COMPLEX128, 128, "complex128"), (0, 0, "undefined"), (999, 0, "?"),
    ],
)  # fmt: skip
def test_element_types(elem_type: int, bits: int, name: str) -> None:
    assert graphs.item_bits(elem_type) == bits
    assert graphs.numpy_name(elem_type) == name


def test_every_element_type_of_onnx_has_a_size() -> None:
    """FLOAT6 came with opset 26, above what edgesdk takes."""
    without = {n for n, v in TensorProto.DataType.items() if graphs.item_bits(v) == 0 and not n.startswith("FLOAT6")}
    assert without == {"UNDEFINED", "STRING"}
    for name, value in TensorProto.DataType.items():
        if graphs.item_bits(value) >= 8:
            assert helper.tensor_dtype_to_np_dtype(value).itemsize * 8 == graphs.item_bits(value), name


def test_sizes_are_known_only_where_every_dimension_is() -> None:
    assert ValueType(TensorProto.FLOAT, (2, 3)).nbytes == 24
    assert ValueType(TensorProto.INT4, (3,)).nbytes == 2
    assert ValueType(TensorProto.FLOAT, ()).elements == 1
    assert ValueType(TensorProto.FLOAT, (2, "n")).elements is None
    assert ValueType(TensorProto.FLOAT, None).nbytes is None


def nested() -> onnx.ModelProto:
    """An If in an If, a function with an If, each with an initialiser and a Constant."""

    def graph(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
        weight = numpy_helper.from_array(np.zeros(1, np.float32), f"{name}_w")
        constant = helper.make_node(
            "Constant", [], [f"{name}_c"], name=f"{name}_const", value=numpy_helper.from_array(np.zeros(1))
        )
        out = helper.make_tensor_value_info(f"{name}_c", 1, [1])
        return helper.make_graph([constant, *nodes], name, [], [out], [weight])

    def choose(name: str, then: onnx.GraphProto, other: onnx.GraphProto) -> onnx.NodeProto:
        return helper.make_node("If", ["c"], [f"{name}_y"], name=name, then_branch=then, else_branch=other)

    inner = choose("inner", graph("a"), graph("b"))
    function = helper.make_function("local", "F", ["c"], ["f_y"], [choose("f", graph("d"), graph("e"))], [])
    return helper.make_model(graph("main", choose("outer", graph("then", inner), graph("else"))), functions=[function])


def test_every_graph_node_and_tensor_is_found() -> None:
    model = nested()
    found = [graph.name for graph in graphs.graphs(model.graph)]
    assert found[0] == "main"
    assert sorted(found) == ["a", "b", "else", "main", "then"]
    assert sorted(graph.name for graph in graphs.all_graphs(model)) == ["a", "b", "d", "e", "else", "main", "then"]
    names = sorted(node.name for node in graphs.nodes(model))
    assert names == sorted(["outer", "inner", "f", *(f"{g}_const" for g in ("main", "then", "a", "b", "else", "d", "e"))])
    labels = [label for label, _ in graphs.tensors(model)]
    assert sorted(label for label in labels if label.endswith("_w")) == sorted(
        f"{g}_w" for g in ("main", "then", "a", "b", "else", "d", "e")
    )
    assert len(labels) == 14


def test_free_values_are_what_a_subgraph_takes_from_outside() -> None:
    add = helper.make_node("Add", ["outside", "w"], ["s"])
    relu = helper.make_graph([helper.make_node("Relu", ["s2"], ["r"])], "r", [], [helper.make_tensor_value_info("r", 1, None)])
    use = helper.make_graph(
        [helper.make_node("Mul", ["s", "deep"], ["u"])], "u", [], [helper.make_tensor_value_info("u", 1, None)]
    )
    choose = helper.make_node("If", ["flag"], ["y"], then_branch=use, else_branch=relu)
    outputs = [helper.make_tensor_value_info(name, 1, None) for name in ("y", "passed")]
    weight = numpy_helper.from_array(np.zeros(1, np.float32), "w")
    graph = helper.make_graph([add, choose], "g", [helper.make_tensor_value_info("s2", 1, None)], outputs, [weight])
    assert graphs.free_values(graph) == {"outside", "flag", "deep", "passed"}


def test_value_types_and_labels(build: Any) -> None:
    proto = build(
        [helper.make_node("Add", ["x", "w"], ["y"])], [("x", ["n", None, 3])], [("y", None)], {"w": np.zeros((2, 3), np.float32)}
    )
    types = graphs.value_types(proto.graph)
    assert types == {"x": ValueType(1, ("n", "?", 3)), "y": ValueType(1, None), "w": ValueType(1, (2, 3))}
    assert graphs.node_label(proto.graph.node[0]) == "Add->y"
    assert graphs.node_label(onnx.NodeProto(name="n", op_type="Add")) == "n"
    assert graphs.node_label(onnx.NodeProto(op_type="Add")) == "Add->?"
    assert (graphs.opset(proto), graphs.opset(proto, "other")) == (17, 0)
    proto.opset_import[0].domain = "ai.onnx"
    assert graphs.opset(proto) == 17
