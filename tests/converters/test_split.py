"""Split: head and tail compute together what the model computes, to the bit; what is no cut is refused with the reason."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from edgesdk_converters import dataflow
from edgesdk_converters.accuracy import distance
from edgesdk_converters.calibration import synthetic
from edgesdk_converters.cost import layers, total
from edgesdk_converters.errors import ModelError
from edgesdk_converters.model import Model
from edgesdk_converters.reference import Reference
from edgesdk_converters.signature import Postprocess, Preprocess, Processing
from edgesdk_converters.split import Cut, cuts, extremes, front, split

NETS = Path(__file__).parents[2] / "examples" / "fashion"
node = helper.make_node


def rewritten(model: Model, sample: Any) -> dict[str, Any]:
    """Outputs with all that ONNX Runtime does to a graph."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, dict(sample)), strict=True))


def checked(model: Model, tensors: tuple[str, ...], samples: Any = None, *, bound: float = 1e-5) -> tuple[Model, Model]:
    """Head and tail, which are held against the whole; `bound` for where ONNX Runtime rewrites the graph."""
    head, tail = split(model, tensors)
    assert [spec.name for spec in head.signature.inputs] == [spec.name for spec in model.signature.inputs]
    assert [spec.name for spec in head.signature.outputs] == list(tensors) == [spec.name for spec in tail.signature.inputs]
    assert [spec.name for spec in tail.signature.outputs] == [spec.name for spec in model.signature.outputs]
    for sample in samples or synthetic(model, 2):
        wanted, got = Reference(model).run(sample), Reference(tail).run(Reference(head).run(sample))
        assert all(np.array_equal(got[name], wanted[name]) for name in wanted)
        fast = rewritten(tail, rewritten(head, sample))
        assert distance([fast], [rewritten(model, sample)]).relative <= bound
    return head, tail


def weighed(cut: Cut, parts: tuple[Model, Model]) -> None:
    """What a cut says of its sides is what they have."""
    for part, macs, params, nodes in zip(
        parts, (cut.head_macs, cut.tail_macs), (cut.head_params, cut.tail_params), (cut.head_nodes, cut.tail_nodes), strict=True
    ):
        sums = total(layers(part))
        assert (sums.macs, sums.params, len(part.proto.graph.node)) == (macs, params, nodes)


def names_of(model: Model, *, pairs: bool = False) -> list[tuple[str, ...]]:
    return [cut.tensors for cut in cuts(model, pairs=pairs)]


@pytest.mark.parametrize("net", ["cnn", "mobilenet", "resnet", "vit"])
def test_head_and_tail_are_the_model_at_every_cut(net: str) -> None:
    model = Model.load(NETS / f"fashion_{net}.onnx")
    found = cuts(model, pairs=True)
    single = [cut for cut in found if len(cut.tensors) == 1]
    assert len(single) >= 10 and single == list(cuts(model))
    sums = total(layers(model))
    for cut in (*single, *[cut for cut in found if cut not in single][::6]):
        weighed(cut, checked(model, cut.tensors))
        assert cut.head_macs + cut.tail_macs == sums.macs
        assert cut.bytes_at(32) == cut.bytes and cut.bytes_at(8) == cut.elements
    assert [cut.head_macs for cut in single] == sorted(cut.head_macs for cut in single)


def test_the_front_has_no_cut_that_another_beats() -> None:
    found = cuts(Model.load(NETS / "fashion_resnet.onnx"))
    best = front(found)
    assert 1 <= len(best) < len(found)
    for cut in found:
        assert any(one.bytes <= cut.bytes and one.head_macs <= cut.head_macs for one in best)
    for one, two in itertools.pairwise(best):
        assert one.head_macs <= two.head_macs and one.bytes > two.bytes
    offload, local = extremes(Model.load(NETS / "fashion_resnet.onnx"))
    assert (offload.bytes, offload.head_macs) == (4 * 28 * 28, 0) and (local.bytes, local.tail_macs) == (40, 0)


def test_of_cuts_with_equal_information_the_last_is_on_the_front(conv_net: onnx.ModelProto) -> None:
    found = cuts(Model.from_proto(conv_net, "net"))
    assert [cut.tensors for cut in found] == [("c1",), ("n1",), ("r1",), ("c2",), ("a2",), ("p",), ("f",)]
    assert [cut.tensors for cut in front(found)] == [("r1",), ("f",)]
    assert found[0].bytes == found[2].bytes and found[0].head_macs == found[2].head_macs


# --- graphs ----------------------------------------------------------------------------------------------


@pytest.fixture
def branched(build: Any) -> Model:
    """x -> a -> (b, c) -> d -> y: b and c only together."""
    nodes = [node("Relu", ["x"], ["a"]), node("Neg", ["a"], ["b"]), node("Exp", ["a"], ["c"]),
             node("Add", ["b", "c"], ["d"]), node("Mul", ["d", "w"], ["y"], name="last")]  # fmt: skip
    return Model.from_proto(build(nodes, [("x", [1, 4])], [("y", [1, 4])], {"w": np.float32([1, 2, 3, 4])}), "m")


def test_branches_are_cut_at_two_tensors_only_when_asked(branched: Model) -> None:
    assert names_of(branched) == [("a",), ("d",)]
    pairs = names_of(branched, pairs=True)
    assert pairs == [("a",), ("a", "b"), ("a", "c"), ("b", "c"), ("d",)]
    for tensors in pairs:
        checked(branched, tensors)
    checked(branched, ("c", "b"))


def test_an_input_that_the_tail_needs_makes_it_no_cut(build: Any) -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("Add", ["a", "z"], ["b"]), node("Neg", ["b"], ["y"])]
    model = Model.from_proto(build(nodes, [("x", [1, 4]), ("z", [1, 4])], [("y", [1, 4])]), "m")
    assert names_of(model, pairs=True) == [("b",)]
    checked(model, ("b",))
    with pytest.raises(ModelError, match=r"'z' would cross too: node 'Add->b' reads it") as caught:
        split(model, "a")
    assert caught.value.hint == "the nearest cuts are 'b' behind it"


def test_two_inputs_join_as_a_pair(build: Any) -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("Neg", ["z"], ["b"]), node("Add", ["a", "b"], ["c"]), node("Exp", ["c"], ["y"])]
    model = Model.from_proto(build(nodes, [("x", [1, 4]), ("z", [1, 4])], [("y", [1, 4])]), "m")
    assert names_of(model, pairs=True) == [("a", "b"), ("c",)]
    checked(model, ("a", "b"))


def test_an_output_of_the_head_makes_it_no_cut(build: Any) -> None:
    """An early exit: behind it nothing can be cut, since the tail gives all outputs."""
    nodes = [node("Relu", ["x"], ["a"]), node("Neg", ["a"], ["early"]), node("Exp", ["a"], ["b"]), node("Abs", ["b"], ["late"])]
    model = Model.from_proto(build(nodes, [("x", [1, 4])], [("early", [1, 4]), ("late", [1, 4])]), "m")
    assert names_of(model) == [("a",)]
    assert names_of(model, pairs=True) == [("a",), ("a", "b")], "the tail has the nodes of the early exit"
    checked(model, ("a", "b"))
    with pytest.raises(ModelError, match="'early' is no place to cut m: it is an output, and the head gives none"):
        split(model, "early")
    with pytest.raises(ModelError, match="'a' would cross too: node 'Neg->early' reads it"):
        split(model, "b")


def test_an_output_that_the_tail_reads_is_none_of_its_inputs(build: Any) -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("Neg", ["a"], ["b"]), node("Abs", ["b"], ["c"])]
    model = Model.from_proto(build(nodes, [("x", [1, 4])], [("b", [1, 4]), ("c", [1, 4])]), "m")
    assert names_of(model, pairs=True) == [("a",)]


def test_outputs_of_one_node_cross_together(build: Any) -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("Split", ["a"], ["p", "q"], axis=1), node("Neg", ["p"], ["r"]),
             node("Concat", ["r", "q"], ["y"], axis=1)]  # fmt: skip
    model = Model.from_proto(build(nodes, [("x", [1, 4])], [("y", [1, 4])], opset=11), "m")
    assert names_of(model, pairs=True) == [("a",), ("p", "q"), ("q", "r")]
    for cut in cuts(model, pairs=True):
        weighed(cut, checked(model, cut.tensors))


def test_an_output_of_a_node_that_nobody_reads_does_not_cross(build: Any) -> None:
    nodes = [node("MaxPool", ["x"], ["m", "unread"], kernel_shape=[2, 2]), node("Relu", ["m"], ["y"]),
             node("Neg", ["m"], ["dead"])]  # fmt: skip
    model = Model.from_proto(build(nodes, [("x", [1, 1, 4, 4])], [("y", [1, 1, 3, 3])]), "m")
    (cut,) = cuts(model)
    assert (cut.tensors, cut.head_nodes, cut.tail_nodes) == (("m",), 1, 1)
    weighed(cut, checked(model, ("m",)))
    with pytest.raises(ModelError, match="'dead' is no place to cut m: it is needed by no output"):
        split(model, "dead")


def test_weights_that_both_sides_read_are_in_both(build: Any) -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["b"]), node("MatMul", ["b", "w"], ["c"]),
             node("MatMul", ["c", "v"], ["y"])]  # fmt: skip
    weights = {"w": np.eye(4, dtype=np.float32), "v": np.ones((4, 2), np.float32), "unused": np.zeros(9, np.float32)}
    model = Model.from_proto(build(nodes, [("x", [1, 4])], [("y", [1, 2])], weights), "m")
    head, tail = split(model, "b")
    assert [t.name for t in head.proto.graph.initializer] == ["w"]
    assert [t.name for t in tail.proto.graph.initializer] == ["w", "v"]
    for cut in cuts(model):
        weighed(cut, checked(model, cut.tensors))
    found = {cut.tensors: (cut.head_params, cut.tail_params) for cut in cuts(model)}
    assert found == {("a",): (16, 24), ("b",): (16, 24), ("c",): (16, 8)}


def test_constants_go_to_whoever_needs_them(build: Any) -> None:
    """Sizes that are computed from static shapes, of tensors that the tail does not have, are no obstacle."""
    nodes = [
        node("Constant", [], ["two"], value=onnx.numpy_helper.from_array(np.float32([2]))),
        node("Mul", ["two", "w"], ["both"]),
        node("Mul", ["x", "both"], ["a"]),
        node("Shape", ["a"], ["size"], name="size of a"),
        node("Flatten", ["a"], ["b"]),
        node("Relu", ["b"], ["c"]),
        node("Reshape", ["c", "size"], ["d"]),
        node("Shape", ["a"], ["last"], start=-1),
        node("Size", ["x"], ["count"]),
        node("Cast", ["last"], ["wide"], to=TensorProto.FLOAT),
        node("Cast", ["count"], ["many"], to=TensorProto.FLOAT),
        node("Mul", ["d", "wide"], ["e"]),
        node("Add", ["e", "many"], ["f"]),
        node("Mul", ["f", "both"], ["y"]),
    ]
    model = Model.from_proto(build(nodes, [("x", [1, 2, 3])], [("y", [1, 2, 3])], {"w": np.float32([3])}), "m")
    assert names_of(model) == [("a",), ("b",), ("c",), ("d",), ("e",), ("f",)]
    for cut in cuts(model):
        head, tail = checked(model, cut.tensors)
        assert (len(head.proto.graph.node), len(tail.proto.graph.node)) == (cut.head_nodes, cut.tail_nodes)
    _, tail = split(model, "c")
    assert [n.op_type for n in tail.proto.graph.node if n.name == "size of a"] == ["Constant"]
    with pytest.raises(ModelError, match="'both' is no place to cut m: it is constant"):
        split(model, "both")


def test_random_numbers_are_drawn_once(build: Any) -> None:
    """Constants may be computed twice; what differs each time may not, and stands where it is first read."""
    nodes = [
        node("RandomNormal", [], ["r"], shape=[1, 4], seed=1.0),
        node("RandomNormal", [], ["late"], shape=[1, 4], seed=2.0),
        *(node("Relu", ["x"], ["a"]), node("Add", ["a", "r"], ["b"]), node("Neg", ["b"], ["c"])),
        *(node("Mul", ["c", "r"], ["d"]), node("Abs", ["d"], ["e"]), node("Add", ["e", "late"], ["y"])),
    ]
    model = Model.from_proto(build(nodes, [("x", [1, 4])], [("y", [1, 4])]), "m")
    assert names_of(model, pairs=True) == [("a",), ("d",), ("e",)]
    head, tail = split(model, "e")
    assert [n.output[0] for n in head.proto.graph.node] == ["r", "a", "b", "c", "d", "e"]
    assert [n.output[0] for n in tail.proto.graph.node] == ["late", "y"]
    with pytest.raises(ModelError, match="'r' would cross too"):
        split(model, "b")
    with pytest.raises(ModelError, match="'r' is no place to cut m: it cannot cross: it is random"):
        split(model, "r")


def test_values_that_a_branch_takes_from_outside_cross_too(build: Any) -> None:
    def branch(name: str, operator: str) -> Any:
        inner = [node(operator, ["a"], [f"{name}1"]), node("Mul", [f"{name}1", "w"], [name])]
        return helper.make_graph(inner, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4])])

    nodes = [
        node("Relu", ["x"], ["a"]),
        node("ReduceSum", ["a"], ["s"], keepdims=0),
        node("Cast", ["s"], ["yes"], to=TensorProto.BOOL),
        node("If", ["yes"], ["i"], then_branch=branch("p", "Exp"), else_branch=branch("q", "Neg")),
        node("Abs", ["i"], ["j"]),
        node("Neg", ["j"], ["y"]),
    ]
    proto = build(nodes, [("x", [1, 4])], [("y", [1, 4])], {"w": np.float32([1, 2, 3, 4])})
    model = Model.from_proto(proto, "m")
    assert names_of(model) == [("a",), ("i",), ("j",)]
    for cut in cuts(model, pairs=True):
        weighed(cut, checked(model, cut.tensors))
    assert ("a", "yes") in names_of(model, pairs=True)
    with pytest.raises(ModelError, match="'p1' is no place to cut m: it is inside a subgraph"):
        split(model, "p1")


def test_layers_within_branches_are_counted_where_the_branch_is(build: Any) -> None:
    def branch(name: str, weight: str) -> Any:
        stored = [onnx.numpy_helper.from_array(np.ones((4, 4), np.float32), weight)]
        out = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4])]
        return helper.make_graph([node("MatMul", ["a", weight], [name])], name, [], out, stored)

    nodes = [node("MatMul", ["x", "v"], ["a"]), node("ReduceSum", ["x"], ["s"], keepdims=0),
             node("Cast", ["s"], ["yes"], to=TensorProto.BOOL),
             node("If", ["yes"], ["i"], then_branch=branch("p", "w1"), else_branch=branch("q", "w2")),
             node("Neg", ["i"], ["y"])]  # fmt: skip
    model = Model.from_proto(build(nodes, [("x", [1, 2])], [("y", [1, 4])], {"v": np.ones((2, 4), np.float32)}), "m")
    (cut,) = cuts(model)
    assert (cut.tensors, cut.head_macs, cut.tail_macs) == (("i",), 8 + 16, 0)
    assert (cut.head_params, cut.tail_params) == (8 + 2 * 16, 0), "both branches are stored"
    checked(model, ("i",))


def test_quantised_values_cross_as_integers(build: Any) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        node("DequantizeLinear", ["w", "ws", "wz"], ["wd"]),
        node("Conv", ["xd", "wd"], ["c"]),
        node("QuantizeLinear", ["c", "s", "z"], ["cq"]),
        node("DequantizeLinear", ["cq", "s", "z"], ["cd"]),
        node("Conv", ["cd", "wd"], ["e"]),
        node("Relu", ["e"], ["y"]),
    ]
    weights = {
        "s": np.float32(0.1), "z": np.uint8(100), "w": rng.integers(-9, 9, (3, 3, 1, 1)).astype(np.int8),
        "ws": np.float32(0.05), "wz": np.int8(0),
    }  # fmt: skip
    model = Model.from_proto(build(nodes, [("x", [1, 3, 8, 8])], [("y", [1, 3, 8, 8])], weights), "m")
    found = {cut.tensors[0]: cut for cut in cuts(model)}
    assert list(found) == ["xq", "xd", "c", "cq", "cd", "e"]
    assert (found["cq"].dtypes, found["cq"].bytes, found["cq"].bytes_at(8), found["cq"].bytes_at(4)) == (("uint8",), *[192] * 3)
    assert (found["cd"].bytes, found["cd"].bytes_at(8), found["cd"].bytes_at(4)) == (768, 192, 96)
    for cut in found.values():  # a cut within what the runtime would fuse to integer arithmetic moves it by a step or two
        weighed(cut, checked(model, cut.tensors, bound=1e-5 if cut.tensors[0] in ("xq", "cq", "e") else 0.2))
    head, tail = split(model, "cq")
    assert head.signature.outputs[0].dtype == tail.signature.inputs[0].dtype == "uint8"
    assert "wd" in [n.output[0] for n in tail.proto.graph.node] and "wd" in [n.output[0] for n in head.proto.graph.node]


def test_a_recurrent_model_is_cut_before_and_behind_its_cell(build: Any) -> None:
    rng = np.random.default_rng(0)
    nodes = [node("MatMul", ["x", "m"], ["a"]), node("Relu", ["a"], ["b"]),
             node("LSTM", ["b", "w", "r"], ["", "h", "c"], hidden_size=5, name="cell"),
             node("Squeeze", ["h", "axis"], ["s"]), node("Gemm", ["s", "k"], ["y"])]  # fmt: skip
    weights = {
        "m": rng.standard_normal((6, 4)).astype(np.float32), "w": rng.standard_normal((1, 20, 4)).astype(np.float32),
        "r": rng.standard_normal((1, 20, 5)).astype(np.float32), "axis": np.array([0]), "k": np.ones((5, 3), np.float32),
    }  # fmt: skip
    model = Model.from_proto(build(nodes, [("x", [7, 1, 6])], [("y", [1, 3])], weights), "m")
    found = cuts(model)
    assert [cut.tensors for cut in found] == [("a",), ("b",), ("h",), ("s",)]
    assert found[2].head_macs - found[1].head_macs == 7 * (20 * 4 + 20 * 5)
    for cut in found:
        weighed(cut, checked(model, cut.tensors))


def test_a_state_is_an_input_as_any_other(build: Any) -> None:
    """The state enters at the cell: nothing before it can be cut, and behind it old and new state part for good."""
    rng = np.random.default_rng(0)
    nodes = [node("Relu", ["x"], ["b"]), node("GRU", ["b", "w", "r", "", "", "state"], ["", "new"], hidden_size=5),
             node("Squeeze", ["new", "axis"], ["s"]), node("Gemm", ["s", "k"], ["y"])]  # fmt: skip
    weights = {
        "w": rng.standard_normal((1, 15, 4)).astype(np.float32), "r": rng.standard_normal((1, 15, 5)).astype(np.float32),
        "axis": np.array([0]), "k": np.ones((5, 3), np.float32),
    }  # fmt: skip
    inputs, outputs = [("x", [1, 1, 4]), ("state", [1, 1, 5])], [("y", [1, 3])]
    assert names_of(Model.from_proto(build(nodes, inputs, outputs, weights), "m")) == [("new",), ("s",)]
    assert names_of(Model.from_proto(build(nodes, inputs, [*outputs, ("new", [1, 1, 5])], weights), "m"), pairs=True) == []


def test_functions_are_kept_where_they_are_called(build: Any) -> None:
    def function(name: str, nodes: Sequence[onnx.NodeProto]) -> onnx.FunctionProto:
        return helper.make_function(
            "own", name, ["p"], ["q"], nodes, [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        )

    eye = onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32))
    functions = [
        function(
            "Dense", [node("Constant", [], ["w"], value=eye), node("MatMul", ["p", "w"], ["t"]), node("Relu", ["t"], ["q"])]
        ),
        function("Twice", [node("Dense", ["p"], ["t"], domain="own"), node("Dense", ["t"], ["q"], domain="own")]),
        function("Other", [node("Neg", ["p"], ["q"])]),
    ]
    nodes = [node("Twice", ["x"], ["a"], domain="own"), node("Relu", ["a"], ["b"]), node("Other", ["b"], ["c"], domain="own"),
             node("MatMul", ["c", "w"], ["y"])]  # fmt: skip
    proto = build(nodes, [("x", [1, 4])], [("y", [1, 2])], {"w": np.ones((4, 2), np.float32)}, functions=functions,
                  domains=["own"])  # fmt: skip
    proto.graph.value_info.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "abc")
    model = Model.from_proto(proto, "m")
    found = cuts(model)
    assert [cut.tensors for cut in found] == [("a",), ("b",), ("c",)]
    assert [(cut.head_macs, cut.tail_macs) for cut in found] == [(32, 8)] * 3
    assert [(cut.head_params, cut.tail_params) for cut in found] == [(32, 8)] * 3
    for cut in found:
        checked(model, cut.tensors)
    head, tail = split(model, "b")
    assert [f.name for f in head.proto.functions] == ["Dense", "Twice"]
    assert [f.name for f in tail.proto.functions] == ["Other"]


def test_shapes_that_are_not_static_have_no_costs_but_can_be_split(build: Any) -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Shape", ["a"], ["size"]), node("Relu", ["a"], ["b"]),
             node("Reshape", ["b", "size"], ["c"]), node("Neg", ["c"], ["y"])]  # fmt: skip
    proto = build(nodes, [("x", ["n", 4])], [("y", ["n", 4])], {"w": np.eye(4, dtype=np.float32)})
    model = Model.from_proto(proto, "m")
    with pytest.raises(ModelError, match="static") as caught:
        cuts(model)
    assert "--shape" in caught.value.hint
    rows = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    for name in ("a", "c"):
        head, _ = checked(model, (name,), [{"x": rows}])
    assert head.signature.inputs[0].shape == ("n", 4)
    with pytest.raises(ModelError, match="'a' would cross too: node 'Shape->size' reads it"):
        split(model, "b")
    assert ("b",) in names_of(model.with_shapes({"x": (1, 4)}))


def test_what_is_known_of_a_model_goes_along(conv_net: onnx.ModelProto) -> None:
    proto = onnx.ModelProto.FromString(conv_net.SerializeToString())
    proto.metadata_props.add(key="author", value="somebody")
    proto.producer_name, proto.graph.doc_string = "a tool", "a net"
    processing = Processing({"x": Preprocess(layout="NCHW", scale=2.0)}, {"logits": Postprocess(softmax=True)})
    model = Model.from_proto(proto, "net", processing=processing)
    head, tail = split(model, "r1")
    assert head.signature.inputs == model.signature.inputs and tail.signature.outputs == model.signature.outputs
    assert head.signature.outputs[0].postprocess is None and tail.signature.inputs[0].preprocess is None
    for part, kind in ((head, "head"), (tail, "tail")):
        assert part.history[-1].name == "split" and part.history[-1].options == {"at": ["r1"], "part": kind}
        assert part.proto.metadata_props[0].key == "author" and part.proto.producer_name == "a tool"
        assert part.proto.graph.doc_string == "a net" and part.opset == model.opset and part.name == "net"
        assert part.proto.ir_version == model.proto.ir_version
    assert [n.name for n in (*head.proto.graph.node, *tail.proto.graph.node)] == [n.name for n in proto.graph.node]
    assert split(model, "r1")[0].digest == head.digest


# --- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensors", "says", "hint"),
    [
        ("b", "b' is no cut of m: 'a' would cross too: node 'Exp->c' reads it", "'a' before it and 'd' behind it"),
        ("x", "is an input: all would be tail", "between 'a' and 'd'"),
        ("y", "is an output: all would be head", "'d' before it"),
        ("w", "is constant: it depends on no input", "between 'a' and 'd'"),
        ("nothing", "is no tensor of it", "between 'a' and 'd'"),
        ("aa", "is no tensor of it", "the most alike: 'a'"),
        (("a", "d"), "nothing behind the cut reads 'a': 'd' would do", ""),
        ((), "one or more different tensors; got none", ""),
        (("a", "a"), "got 'a', 'a'", ""),
    ],
)
def test_what_is_no_cut_is_refused(branched: Model, tensors: Any, says: str, hint: str) -> None:
    with pytest.raises(ModelError) as caught:
        split(branched, tensors)
    assert says in caught.value.message and hint in caught.value.hint
    assert caught.value.hint or "got" in caught.value.message


def test_a_refusal_offers_the_pair_that_crosses(branched: Model) -> None:
    with pytest.raises(ModelError) as caught:
        split(branched, "c")
    assert "or cut at both 'a' and 'c'" in caught.value.hint
    checked(branched, ("a", "c"))


def test_where_no_tensor_crosses_alone_pairs_are_named(build: Any) -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("Add", ["a", "x"], ["y"])]
    model = Model.from_proto(build(nodes, [("x", [1, 4])], [("y", [1, 4])]), "m")
    assert names_of(model, pairs=True) == []
    with pytest.raises(ModelError, match="'x' would cross too") as caught:
        split(model, "a")
    assert "no tensor crosses alone here" in caught.value.hint


def test_too_many_pairs_are_refused_before_they_are_weighed(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def chain(begin: str, names: Sequence[str], operator: str) -> list[onnx.NodeProto]:
        return [node(operator, [a], [b]) for a, b in itertools.pairwise((begin, *names))]

    left, right = [f"l{i}" for i in range(8)], [f"r{i}" for i in range(8)]
    nodes = [*chain("x", left, "Relu"), *chain("x", right, "Neg"), node("Add", ["l7", "r7"], ["y"])]
    model = Model.from_proto(build(nodes, [("x", [1, 4])], [("y", [1, 4])]), "m")
    assert set(names_of(model, pairs=True)) == set(itertools.product(left, right))
    monkeypatch.setattr(dataflow, "MOST_PAIRS", 63)
    with pytest.raises(ModelError, match="more than 63 cuts of two tensors"):
        cuts(model, pairs=True)


# --- against the definition ------------------------------------------------------------------------------


def random_net(seed: int, build: Any) -> Model:
    """Elementwise nodes, some of two outputs, on values of earlier ones; recent ones are read the most."""
    rng = np.random.default_rng(seed)
    inputs = [f"x{i}" for i in range(rng.integers(1, 3))]
    values, nodes = list(inputs), []

    def some() -> str:
        return values[max(0, len(values) - 1 - int(rng.geometric(0.5)))] if rng.random() < 0.9 else str(rng.choice(values))

    for count in range(rng.integers(6, 20)):
        kind = rng.choice(["one", "one", "two", "two", "fork", "scaled"])
        if kind == "one":
            nodes.append(node(str(rng.choice(["Relu", "Neg", "Abs"])), [some()], [f"v{count}"]))
        elif kind == "two":
            nodes.append(node("Add", [some(), some()], [f"v{count}"]))
        elif kind == "scaled":
            nodes.append(node("Mul", [some(), str(rng.choice(["w", "u"]))], [f"v{count}"]))
        else:
            nodes += [node("Split", [some()], [f"p{count}", f"q{count}"], axis=1),
                      node("Concat", [f"q{count}", str(rng.choice(["p", "q"])) + str(count)], [f"v{count}"], axis=1)]  # fmt: skip
        values.append(f"v{count}")
    outputs = [values[-1], *rng.choice(values[len(inputs) : -1], rng.integers(0, 2), replace=False)]
    weights = {"w": np.float32([1, 2, 3, 4]), "u": np.float32([0.5])}
    return Model.from_proto(
        build(nodes, [(x, [1, 4]) for x in inputs], [(str(y), [1, 4]) for y in outputs], weights, opset=11), "m"
    )


def by_definition(model: Model, count: int) -> set[tuple[str, ...]]:
    """Every choice of tensors inside the graph that is all that crosses behind what they depend on."""
    graph = model.proto.graph
    inputs, outputs = {i.name for i in graph.input}, {o.name for o in graph.output}
    stored = {t.name for t in graph.initializer}
    made_by = {name: index for index, n in enumerate(graph.node) for name in n.output}

    def behind(names: set[str]) -> set[int]:
        """Nodes that these values depend on."""
        found: set[int] = set()
        look = [made_by[name] for name in names if name in made_by]
        while look:
            if (index := look.pop()) not in found:
                found.add(index)
                look += [made_by[name] for name in graph.node[index].input if name in made_by]
        return found

    needed = behind(outputs)
    inside = [name for name in made_by if made_by[name] in needed and name not in outputs]
    found = set()
    for names in itertools.combinations(inside, count):
        head = behind(set(names))
        made = inputs | {name for index in head for name in graph.node[index].output}
        read = {name for index in needed - head for name in graph.node[index].input if name not in stored}
        if (read | outputs) & made == set(names):
            found.add(names)
    return found


def test_cuts_are_what_the_definition_says(build: Any) -> None:
    seen = [0, 0]
    for seed in range(150):
        model = random_net(seed, build)
        found = cuts(model, pairs=True)
        assert len({frozenset(cut.tensors) for cut in found}) == len(found)
        for count in (1, 2):
            got = {frozenset(cut.tensors) for cut in found if len(cut.tensors) == count}
            assert got == {frozenset(names) for names in by_definition(model, count)}, seed
            seen[count - 1] += len(got)
        for cut in found[:: max(1, len(found) // 2)] if seed < 30 else ():
            weighed(cut, checked(model, cut.tensors))
    assert min(seen) > 200
