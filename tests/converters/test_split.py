"""Split: head and tail compute together what the model computes, to the bit; what is no cut is refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from edgesdk_converters.accuracy import distance
from edgesdk_converters.calibration import synthetic
from edgesdk_converters.cost import layers, total
from edgesdk_converters.errors import ModelError
from edgesdk_converters.model import Model
from edgesdk_converters.reference import Reference
from edgesdk_converters.split import cuts, extremes, front, split

NETS = Path(__file__).parents[2] / "examples" / "fashion"


def rewritten(model: Model, sample: Any) -> dict[str, Any]:
    """Outputs with all that ONNX Runtime does to a graph."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, dict(sample)), strict=True))


def checked(model: Model, tensors: tuple[str, ...]) -> None:
    head, tail = split(model, tensors)
    assert [spec.name for spec in head.signature.outputs] == list(tensors) == [spec.name for spec in tail.signature.inputs]
    assert [spec.name for spec in tail.signature.outputs] == [spec.name for spec in model.signature.outputs]
    for sample in synthetic(model, 2):
        wanted, got = Reference(model).run(sample), Reference(tail).run(Reference(head).run(sample))
        assert all(np.array_equal(got[name], wanted[name]) for name in wanted)
        fast = rewritten(tail, rewritten(head, sample))
        assert distance([fast], [rewritten(model, sample)]).relative < 1e-5


@pytest.mark.parametrize("net", ["cnn", "mobilenet", "resnet", "vit"])
def test_head_and_tail_are_the_model_at_every_cut(net: str) -> None:
    model = Model.load(NETS / f"fashion_{net}.onnx")
    found = cuts(model)
    assert len(found) >= 10
    sums = total(layers(model))
    for cut in found:
        checked(model, cut.tensors)
        assert cut.head_macs + cut.tail_macs == sums.macs
        assert cut.bytes_at(32) == cut.bytes and cut.bytes_at(8) == cut.elements
    assert [cut.head_macs for cut in found] == sorted(cut.head_macs for cut in found)


def test_the_front_has_no_cut_that_another_beats() -> None:
    found = cuts(Model.load(NETS / "fashion_resnet.onnx"))
    best = front(found)
    assert 1 <= len(best) < len(found)
    for cut in found:
        assert any(one.bytes <= cut.bytes and one.head_macs <= cut.head_macs for one in best)
    offload, local = extremes(Model.load(NETS / "fashion_resnet.onnx"))
    assert (offload.bytes, offload.head_macs) == (4 * 28 * 28, 0) and (local.bytes, local.tail_macs) == (40, 0)


@pytest.fixture
def branched(build: Any) -> Model:
    """x -> a -> (b, c) -> d -> y: b and c only together."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Neg", ["a"], ["b"]),
        helper.make_node("Exp", ["a"], ["c"]),
        helper.make_node("Add", ["b", "c"], ["d"]),
        helper.make_node("Mul", ["d", "w"], ["y"]),
    ]
    return Model.from_proto(build(nodes, [("x", [1, 4])], [("y", [1, 4])], {"w": np.float32([1, 2, 3, 4])}), "m")


def test_branches_are_cut_at_two_tensors_only_when_asked(branched: Model) -> None:
    assert [cut.tensors for cut in cuts(branched)] == [("a",), ("d",)]
    pairs = [cut.tensors for cut in cuts(branched, pairs=True)]
    assert ("b", "c") in pairs
    for tensors in pairs:
        checked(branched, tensors)


@pytest.mark.parametrize("name", ["b", "x", "y", "w", "nothing"])
def test_what_is_no_cut_is_refused(branched: Model, name: str) -> None:
    with pytest.raises(ModelError) as caught:
        split(branched, (name,))
    assert name in caught.value.message and (caught.value.hint or "a" in caught.value.message)


def test_an_input_that_the_tail_needs_makes_it_no_cut(build: Any) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Add", ["a", "z"], ["b"]),
             helper.make_node("Neg", ["b"], ["y"])]  # fmt: skip
    model = Model.from_proto(build(nodes, [("x", [1, 4]), ("z", [1, 4])], [("y", [1, 4])]), "m")
    assert [cut.tensors for cut in cuts(model)] == [("b",)]
    checked(model, ("b",))
    with pytest.raises(ModelError, match="z"):
        split(model, ("a",))


def test_values_that_a_branch_takes_from_outside_cross_too(build: Any) -> None:
    def branch(name: str, operator: str) -> Any:
        node = helper.make_node(operator, ["a"], [name])
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4])])

    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("ReduceSum", ["a"], ["s"], keepdims=0),
        helper.make_node("Cast", ["s"], ["yes"], to=TensorProto.BOOL),
        helper.make_node("If", ["yes"], ["i"], then_branch=branch("p", "Exp"), else_branch=branch("q", "Neg")),
        helper.make_node("Abs", ["i"], ["y"]),
    ]
    model = Model.from_proto(build(nodes, [("x", [1, 4])], [("y", [1, 4])]), "m")
    found = [cut.tensors for cut in cuts(model)]
    assert ("a",) in found and ("i",) in found and ("yes",) not in found
    for tensors in found:
        checked(model, tensors)


def test_shapes_that_are_not_static_are_said(build: Any) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["b"]),
             helper.make_node("Neg", ["b"], ["y"])]  # fmt: skip
    model = Model.from_proto(build(nodes, [("x", ["n", 4])], [("y", ["n", 4])], {"w": np.eye(4, dtype=np.float32)}), "m")
    with pytest.raises(ModelError, match="static"):
        cuts(model)
