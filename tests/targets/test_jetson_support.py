# ruff: noqa: E501 - a table reads better in rows
"""What TensorRT on a Jetson takes: each rule refuses a small model, names its node, and lets a twin of it pass."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgesdk_converters.errors import TargetError, Unsupported
from edgesdk_converters.model import Model
from edgesdk_targets import jetson_rules, jetson_support
from edgesdk_targets.jetson_support import Problem, dla_problems, jetpack, problems, refuse

F, H, D, I32, I64, U8, I8, B = (
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64,
    TensorProto.UINT8, TensorProto.INT8, TensorProto.BOOL,
)  # fmt: skip
Build = Callable[..., Model]
Value = tuple[int, list[Any] | None]


@dataclass(frozen=True)
class One:
    """A model of one node called `it`."""

    op: str
    inputs: dict[str, Value]
    outputs: dict[str, Value]
    attributes: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Any] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    opset: int = 17

    def model(self, build: Build) -> Model:
        names = self.order or (*self.inputs, *self.weights)
        node = helper.make_node(self.op, list(names), list(self.outputs), name="it", **self.attributes)
        return build([node], self.inputs, {k: v for k, v in self.outputs.items() if k}, self.weights, opset=self.opset, ir=10)


@dataclass(frozen=True)
class Rule:
    """A refused model, its twin that passes, and what the reason says."""

    bad: One
    good: One
    says: str
    release: str = "6.2"


X4, Y4 = {"x": (F, [1, 2, 8, 8])}, {"y": (F, None)}
i64 = lambda *v: np.array(v, np.int64)  # noqa: E731
f32 = lambda *v: np.array(v, np.float32)  # noqa: E731


def pool(
    op: str, opset: int = 19, outputs: dict[str, Value] | None = None, shape: list[int] | None = None, **attributes: Any
) -> One:
    return One(op, {"x": (F, shape or [1, 2, 8, 8])}, outputs or Y4, {"kernel_shape": [2, 2]} | attributes, opset=opset)


def resize(opset: int = 19, **attributes: Any) -> One:
    weights = {"s": f32(1, 1, 2, 2)} if "axes" not in attributes or len(attributes["axes"]) == 4 else {"s": f32(2, 2)}
    return One("Resize", X4, Y4, attributes, weights, ("x", "", "s"), opset)


def lstm(op: str = "LSTM", directions: int = 1, **attributes: Any) -> One:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    batch_first = attributes.get("layout", 0)
    shape = [1, 3, 2] if batch_first else [3, 1, 2]
    weights = {"w": np.zeros((directions, gates * 4, 2), np.float32), "r": np.zeros((directions, gates * 4, 4), np.float32)}
    given = {"hidden_size": 4} | ({"direction": "bidirectional"} if directions == 2 else {}) | attributes
    return One(op, {"x": (F, shape)}, Y4, given, weights, opset=14)


def reduce(op: str, computed: bool, opset: int = 20) -> One:
    axes = {"axes": (I64, [1])} if computed else {}
    stored = {} if computed else {"axes": i64(1)}
    return One(op, {"x": (F, [2, 3]), **axes}, {"y": (F, ["m", "n"])}, {"keepdims": 1}, stored, ("x", "axes"), opset)


def quantise(zero: Any, computed: bool = False) -> One:
    inputs: dict[str, Value] = {"x": (F, [4])}
    weights: dict[str, Any] = {"s": f32(0.5)[0]}
    order: tuple[str, ...] = ("x", "s")
    if zero is not None:
        order = ("x", "s", "z")
        if computed:
            inputs["z"] = (I8, [])
        else:
            weights["z"] = zero
    kind = U8 if zero is None or zero.dtype == np.uint8 else I8
    return One("QuantizeLinear", inputs, {"y": (kind, [4])}, {}, weights, order)


def dequantise(kind: int, zero: Any) -> One:
    weights: dict[str, Any] = {"s": f32(0.5)[0]} | ({} if zero is None else {"z": zero})
    return One(
        "DequantizeLinear", {"x": (kind, [4])}, {"y": (F, [4])}, {}, weights, ("x", "s", *(["z"] if zero is not None else []))
    )


def einsum(equation: str, *shapes: list[int]) -> One:
    return One("Einsum", {f"x{i}": (F, shape) for i, shape in enumerate(shapes)}, Y4, {"equation": equation})


def topk(k: int, size: int = 8000, **attributes: Any) -> One:
    return One("TopK", {"x": (F, [1, size])}, {"v": (F, None), "i": (I64, None)}, attributes, {"k": i64(k)})


def dropout(value: Any, computed: bool = False) -> One:
    inputs: dict[str, Value] = {"x": (F, [4])} | ({"t": (B, [])} if computed else {})
    weights = {"r": f32(0.5)[0]} | ({} if computed else {"t": np.array(value)})
    return One("Dropout", inputs, Y4, {}, weights, ("x", "r", "t"))


def deform(pads: list[int]) -> One:
    weights = {"w": np.zeros((2, 2, 3, 3), np.float32), "o": np.zeros((1, 18, 8, 8), np.float32)}
    return One("DeformConv", X4, Y4, {"kernel_shape": [3, 3], "pads": pads}, weights, opset=19)


def scatter(op: str, reduction: str) -> One:
    index = i64([[0], [2]]) if op == "ScatterND" else i64(0, 2)
    return One(op, {"x": (F, [4])}, Y4, {"reduction": reduction}, {"i": index, "u": f32(1, 2)}, opset=18)


def pad(axes: bool, **attributes: Any) -> One:
    weights = {"p": i64(1, 1, 1, 1), "": 0, "a": i64(2, 3)} if axes else {"p": i64(0, 0, 1, 1, 0, 0, 1, 1)}
    order = ("x", "p", "", "a") if axes else ("x", "p")
    return One("Pad", X4, Y4, attributes, {k: v for k, v in weights.items() if k}, order, 19)


def attention(rank: int = 4, past: bool = False, **attributes: Any) -> One:
    shape = [1, 2, 3, 4] if rank == 4 else [1, 3, 8]
    heads = {} if rank == 4 else {"q_num_heads": 2, "kv_num_heads": 2}
    inputs: dict[str, Value] = dict.fromkeys(("q", "k", "v"), (F, shape))
    order: tuple[str, ...] = ("q", "k", "v")
    outputs: dict[str, Value] = {"y": (F, None)}
    if past:
        inputs |= {"pk": (F, [1, 2, 3, 4]), "pv": (F, [1, 2, 3, 4])}
        order = ("q", "k", "v", "", "pk", "pv")
        outputs |= {"a": (F, None), "b": (F, None)}
    return One("Attention", inputs, outputs, heads | attributes, {}, order, 23)


def tensor_scatter(axis: int, shape: tuple[int, ...] = (1, 2, 8, 4)) -> One:
    update = list(shape)
    update[axis] = 1
    return One("TensorScatter", {"c": (F, list(shape)), "u": (F, update)}, Y4, {"axis": axis}, {}, opset=24)


def stft(computed: bool) -> One:
    inputs: dict[str, Value] = {"x": (F, [1, 64, 1])} | ({"w": (F, [16])} if computed else {})
    weights: dict[str, Any] = {"f": np.int64(8)} | ({} if computed else {"w": np.ones(16, np.float32)})
    return One("STFT", inputs, Y4, {}, weights, ("x", "f", "w"), 17)


RULES = {
    "dilated max pooling": Rule(pool("MaxPool", dilations=[2, 2]), pool("MaxPool", dilations=[1, 1]), "dilated pooling"),
    "dilated average pooling": Rule(pool("AveragePool", dilations=[1, 2]), pool("AveragePool"), "dilated pooling"),
    "dilated LpPool": Rule(pool("LpPool", 18, dilations=[2, 1]), pool("LpPool", 18), "dilated pooling"),
    "pooling in one dimension": Rule(
        pool("MaxPool", shape=[1, 2, 8], kernel_shape=[2]), pool("MaxPool", shape=[1, 2, 8, 8, 8], kernel_shape=[2, 2, 2]), "1-dimensional"
    ),
    "indices of MaxPool": Rule(pool("MaxPool", outputs={"y": (F, None), "i": (I64, None)}), pool("MaxPool"), "the Indices output"),
    "cubic Resize": Rule(resize(mode="cubic"), resize(mode="linear"), "mode cubic; TensorRT has nearest, linear"),
    "Resize coordinates": Rule(
        resize(coordinate_transformation_mode="half_pixel_symmetric"), resize(coordinate_transformation_mode="align_corners"),
        "coordinate mode half_pixel_symmetric",
    ),
    "antialiased Resize": Rule(resize(mode="linear", antialias=1), resize(mode="linear", antialias=0), "antialiasing"),
    "Resize of some axes": Rule(resize(axes=[2, 3]), resize(axes=[0, 1, 2, 3]), r"scales for axes \[2, 3\] only"),
    "Resize that keeps the ratio": Rule(
        One("Resize", X4, Y4, {"keep_aspect_ratio_policy": "not_larger"}, {"s": i64(1, 2, 16, 12)}, ("x", "", "", "s"), 19),
        One("Resize", X4, Y4, {"keep_aspect_ratio_policy": "stretch"}, {"s": i64(1, 2, 16, 12)}, ("x", "", "", "s"), 19), "not_larger",
    ),
    "cubic Upsample": Rule(
        One("Upsample", X4, Y4, {"mode": "cubic"}, {"s": f32(1, 1, 2, 2)}, opset=9),
        One("Upsample", X4, Y4, {"mode": "linear"}, {"s": f32(1, 1, 2, 2)}, opset=9), "mode cubic",
    ),
    "Pad mode": Rule(pad(False, mode="strange"), pad(False, mode="wrap"), "mode strange"),
    "Pad axes": Rule(pad(True), pad(False), "an axes input"),
    "unsorted TopK": Rule(topk(3, sorted=0), topk(3, sorted=1), "sorted = 0"),
    "TopK of many": Rule(topk(3840), topk(3839), "K = 3840; TensorRT ends at 3839"),
    "even LRN": Rule(One("LRN", X4, Y4, {"size": 4}), One("LRN", X4, Y4, {"size": 5}), "size 4"),
    "wide LRN": Rule(One("LRN", X4, Y4, {"size": 17}), One("LRN", X4, Y4, {"size": 15}), "size 17"),
    "LSTM layout": Rule(lstm(layout=1), lstm(layout=0), "layout 1"),
    "GRU layout": Rule(lstm("GRU", layout=1), lstm("GRU"), "layout 1"),
    "RNN layout": Rule(lstm("RNN", layout=1), lstm("RNN"), "layout 1"),
    "LSTM input_forget": Rule(lstm(input_forget=1), lstm(input_forget=0), "input_forget"),
    "LSTM activations": Rule(
        lstm(directions=2, activations=["Sigmoid", "Tanh", "Tanh", "Sigmoid", "Tanh", "Relu"]),
        lstm(directions=2, activations=["Sigmoid", "Tanh", "Tanh"] * 2), "other activations forward than backward",
    ),
    "ScatterND reduction": Rule(scatter("ScatterND", "add"), scatter("ScatterND", "none"), "reduction add"),
    "ScatterElements reduction": Rule(scatter("ScatterElements", "mul"), scatter("ScatterElements", "none"), "reduction mul"),
    "LayerNormalization statistics": Rule(
        One("LayerNormalization", {"x": (F, [2, 4])}, {"y": (F, None), "m": (F, None)}, {}, {"s": f32(1, 1, 1, 1)}),
        One("LayerNormalization", {"x": (F, [2, 4])}, Y4, {}, {"s": f32(1, 1, 1, 1)}), "more than the first output",
    ),
    "CumSum axis": Rule(
        One("CumSum", {"x": (F, [4]), "a": (I64, [])}, Y4), One("CumSum", {"x": (F, [4])}, Y4, {}, {"a": np.int64(0)}), "an axis that is computed"
    ),
    **{
        f"{op} axes": Rule(reduce(op, True), reduce(op, False), "axes that is computed")
        for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum",
                   "ReduceLogSumExp", "ReduceSumSquare")
    },
    "Squeeze axes": Rule(
        One("Squeeze", {"x": (F, [1, 4]), "a": (I64, [1])}, {"y": (F, ["n"])}), One("Squeeze", {"x": (F, [1, 4])}, Y4, {}, {"a": i64(0)}), "axes that is computed"
    ),
    "Unsqueeze axes": Rule(
        One("Unsqueeze", {"x": (F, [4]), "a": (I64, [1])}, {"y": (F, ["m", "n"])}), One("Unsqueeze", {"x": (F, [4])}, Y4, {}, {"a": i64(0)}), "axes that is computed"
    ),
    "Einsum ellipsis": Rule(einsum("...i,ij->...j", [2, 3, 4], [4, 5]), einsum("bci,ij->bcj", [2, 3, 4], [4, 5]), "an ellipsis"),
    "Einsum diagonal": Rule(einsum("ii->i", [3, 3]), einsum("ij->ji", [3, 3]), "a diagonal"),
    "Einsum broadcasting": Rule(einsum("ab,ab->ab", [1, 3], [2, 3]), einsum("ab,ab->ab", [2, 3], [2, 3]), "broadcasting over 'a'"),
    "GridSample in 3D": Rule(
        One("GridSample", {"x": (F, [1, 2, 4, 4, 4]), "g": (F, [1, 4, 4, 4, 3])}, Y4, {"mode": "linear"}, opset=20),
        One("GridSample", {"x": (F, [1, 2, 4, 4]), "g": (F, [1, 4, 4, 2])}, Y4, {"mode": "linear"}, opset=20), "input 0 has 5 axes",
    ),
    "DeformConv pads": Rule(deform([1, 1, 1, 1]), deform([1, 1, 1, 1]), ""),
    "Hardmax over a dynamic axis": Rule(
        One("Hardmax", {"x": (F, [2, "n"])}, Y4, {"axis": 1}), One("Hardmax", {"x": (F, [2, 3])}, Y4, {"axis": 1}), "its axis is dynamic"
    ),
    "EyeLike of a dynamic input": Rule(
        One("EyeLike", {"x": (F, [2, "n"])}, Y4), One("EyeLike", {"x": (F, [2, 3])}, Y4), "its input is dynamic"
    ),
    "ConstantOfShape of integers": Rule(
        One("ConstantOfShape", {}, {"y": (I64, None)}, {"value": helper.make_tensor("v", I64, [1], [0])}, {"s": i64(2)}),
        One("ConstantOfShape", {}, {"y": (F, None)}, {"value": helper.make_tensor("v", F, [1], [0.0])}, {"s": i64(2)}), "it makes int64",
    ),
    "Constant of uint8": Rule(
        One("Constant", {}, {"y": (U8, None)}, {"value": helper.make_tensor("v", U8, [1], [1])}),
        One("Constant", {}, {"y": (I64, None)}, {"value_int": 3}), "uint8",
    ),
    "Dropout while training": Rule(dropout(True), dropout(False), "training_mode"),
    "Dropout that may train": Rule(dropout(None, computed=True), dropout(False), "training_mode"),
    "OneHot depth": Rule(
        One("OneHot", {"i": (I64, [3]), "d": (I64, [])}, Y4, {}, {"v": f32(0, 1)}, ("i", "d", "v")),
        One("OneHot", {"i": (I64, [3])}, Y4, {}, {"d": np.int64(5), "v": f32(0, 1)}), "a depth that is computed",
    ),
    "QuantizeLinear to uint8": Rule(quantise(np.uint8(0)), quantise(np.int8(0)), "it quantises to uint8"),
    "QuantizeLinear without a zero point": Rule(quantise(None), quantise(np.int8(0)), "it quantises to uint8"),
    "QuantizeLinear zero point": Rule(quantise(np.int8(3)), quantise(np.int8(0)), "a zero point that is not a constant 0"),
    "QuantizeLinear computed zero point": Rule(quantise(np.int8(0), True), quantise(np.int8(0)), "a zero point that is not"),
    "DequantizeLinear zero point": Rule(dequantise(I8, np.int8(1)), dequantise(I8, np.int8(0)), "a zero point that is not"),
    "DequantizeLinear of int32": Rule(dequantise(I32, None), dequantise(I8, None), "it quantises to int32"),
    "Pow of an integer": Rule(
        One("Pow", {"x": (I64, [3])}, {"y": (I64, None)}, {}, {"e": f32(2)}), One("Pow", {"x": (F, [3])}, Y4, {}, {"e": f32(2)}), "int64"
    ),
    "Pow with an integer": Rule(
        One("Pow", {"x": (F, [3])}, Y4, {}, {"e": i64(2)}), One("Pow", {"x": (F, [3])}, Y4, {}, {"e": f32(2)}), "an exponent of type int64"
    ),
    "seeded RandomNormal": Rule(
        One("RandomNormal", {}, {"y": (F, [2])}, {"shape": [2], "seed": 1.0}), One("RandomNormal", {}, {"y": (F, [2])}, {"shape": [2]}), "a seed"
    ),
    "seeded RandomUniformLike": Rule(
        One("RandomUniformLike", {"x": (F, [2])}, Y4, {"seed": 1.0}), One("RandomUniformLike", {"x": (F, [2])}, Y4), "a seed"
    ),
    "float64": Rule(One("Relu", {"x": (D, [2])}, {"y": (D, [2])}), One("Relu", {"x": (F, [2])}, Y4), "float64; TensorRT clamps it to float32"),
    "float64 where types are free": Rule(
        One("Where", {"c": (B, [2]), "a": (D, [2]), "b": (D, [2])}, {"y": (D, [2])}),
        One("Where", {"c": (B, [2]), "a": (F, [2]), "b": (F, [2])}, Y4), "float64",
    ),
    "text": Rule(
        One("Identity", {"x": (TensorProto.STRING, [2])}, {"y": (TensorProto.STRING, [2])}), One("Identity", {"x": (F, [2])}, Y4), "is string"
    ),
    "uint16": Rule(
        One("Cast", {"x": (TensorProto.UINT16, [2])}, Y4, {"to": F}), One("Cast", {"x": (U8, [2])}, Y4, {"to": F}), "is uint16"
    ),
    "uint8 inside": Rule(
        One("Gather", {"x": (U8, [4]), "i": (I64, [2])}, {"y": (U8, [2])}), One("Gather", {"x": (F, [4]), "i": (I64, [2])}, Y4), "uint8"
    ),
    "type of an operator": Rule(
        One("Sigmoid", {"x": (H, [2])}, {"y": (H, [2])}), One("Sigmoid", {"x": (F, [2])}, Y4), ""
    ),
    "int32 MatMul": Rule(
        One("MatMul", {"a": (I32, [2, 2]), "b": (I32, [2, 2])}, {"y": (I32, [2, 2])}),
        One("MatMul", {"a": (F, [2, 2]), "b": (F, [2, 2])}, Y4), "is int32; TensorRT 10.3.0 takes",
    ),
    "NonZero of truth values": Rule(
        One("NonZero", {"x": (B, [4])}, {"y": (I64, None)}), One("NonZero", {"x": (F, [4])}, {"y": (I64, None)}), "is bool"
    ),
    "nine axes": Rule(
        One("Relu", {"x": (F, [1] * 9)}, Y4), One("Relu", {"x": (F, [1] * 8)}, Y4), "has 9 axes; TensorRT ends at 8"
    ),
    "an operator it lacks": Rule(
        One("DFT", {"x": (F, [1, 8, 1])}, Y4), One("Relu", {"x": (F, [1, 8, 1])}, Y4), "TensorRT 10.3.0 has no such operator"
    ),
    "an operator that is undocumented in 10.3": Rule(
        One("Gelu", {"x": (F, [4])}, Y4, opset=20), One("Erf", {"x": (F, [4])}, Y4, opset=20), "no such operator"
    ),
    "Attention in 3D": Rule(attention(3), attention(4), "input 0 has 3 axes", "7.2"),
    "Attention with a past": Rule(attention(past=True), attention(), "past keys and values", "7.2"),
    "Attention softcap": Rule(attention(softcap=2.0), attention(softcap=0.0), "softcap", "7.2"),
    "TensorScatter axis": Rule(tensor_scatter(-3), tensor_scatter(-2), "axis -3", "7.2"),
    "TensorScatter rank": Rule(tensor_scatter(-2, (1, 8, 4)), tensor_scatter(-2), "input 0 has 3 axes", "7.2"),
    "STFT window": Rule(stft(True), stft(False), "a window that is computed", "7.2"),
}  # fmt: skip
RULES["DeformConv pads"] = Rule(
    One("DeformConv", {"x": (F, [1, 2, 8, 8])}, Y4, {"kernel_shape": [3, 3], "pads": [2, 1, 0, 1]},
        {"w": np.zeros((2, 2, 3, 3), np.float32), "o": np.zeros((1, 18, 8, 8), np.float32)}, opset=19),
    deform([1, 1, 1, 1]), "differ between begin and end",
)  # fmt: skip
del RULES["type of an operator"]


@pytest.mark.parametrize("name", list(RULES))
def test_a_model_that_breaks_a_rule_is_refused_and_its_twin_passes(model_of: Build, name: str) -> None:
    rule = RULES[name]
    release = jetpack(rule.release)
    assert problems(rule.good.model(model_of), release) == []
    found = problems(rule.bad.model(model_of), release)
    own = [problem for problem in found if problem.operator != "input"]
    assert own, "nothing was found"
    assert {(problem.node, problem.operator) for problem in own} == {("it", rule.bad.op)}
    with pytest.raises(Unsupported, match=rule.says) as caught:
        refuse("jetson", own, "do something")
    assert (caught.value.node, caught.value.operator) == ("it", rule.bad.op)


def test_every_rule_of_the_table_is_tried_here() -> None:
    tried = {rule.bad.op for rule in RULES.values()} | {"If", "Loop", "DFT", "Scatter", "RandomNormalLike", "RandomUniform"}
    assert jetson_rules.RULES.keys() - tried == set()


def test_rules_that_a_later_tensorrt_dropped_fall_with_it(model_of: Build) -> None:
    for name in ("Einsum ellipsis", "Einsum diagonal", "Einsum broadcasting", "Pad axes", "Pow of an integer", "Pow with an integer",
                 "ConstantOfShape of integers", "an operator that is undocumented in 10.3"):  # fmt: skip
        model = RULES[name].bad.model(model_of)
        assert problems(model, jetpack("6.2")) != []
        assert problems(model, jetpack("7.2")) == []
    in_3d = RULES["GridSample in 3D"].bad.model(model_of)
    assert problems(in_3d, jetpack("7.2")) != []
    assert problems(in_3d, jetpack("7.2.2")) == []


@pytest.mark.parametrize("op", ["Scatter"])
def test_old_scatter_passes(model_of: Build, op: str) -> None:
    node = One(op, {"x": (F, [4])}, Y4, {}, {"i": i64(0), "u": f32(1)}, opset=9)
    assert problems(node.model(model_of), jetpack("6.2")) == []


def branch(name: str, shape: list[int]) -> onnx.GraphProto:
    node = helper.make_node("ConstantOfShape", [f"s_{name}"], [name])
    return helper.make_graph(
        [node],
        "b",
        [],
        [helper.make_tensor_value_info(name, F, shape)],
        [helper.make_tensor(f"s_{name}", I64, [len(shape)], shape)],
    )


@pytest.mark.parametrize(
    ("then", "other", "says"),
    [
        (branch("a", [2, 2]), branch("b", [2, 2]), ""),
        (branch("a", [2]), branch("b", [2, 2]), "have 1 and 2 axes"),
        (branch("a", [2]), branch("a", [2]), "both branches name an output 'a'"),
    ],
)
def test_branches_of_if_need_other_names_and_one_rank(
    model_of: Build, then: onnx.GraphProto, other: onnx.GraphProto, says: str
) -> None:
    node = helper.make_node("If", ["c"], ["y"], name="it", then_branch=then, else_branch=other)
    size = helper.make_node("Size", ["y"], ["n"], name="size")
    found = problems(model_of([node, size], {"c": (B, [])}, {"n": (I64, [])}), jetpack("6.2"))
    assert [p.operator for p in found] == (["If"] if says else [])
    assert all(says in p.reason for p in found)


def looped(trips: str, carried: list[int], scan: bool) -> onnx.NodeProto:
    grow = helper.make_node("Identity", ["v"], ["w"]) if carried == [2] else helper.make_node("Concat", ["v", "v"], ["w"], axis=0)
    outputs = [helper.make_tensor_value_info("c2", B, []), helper.make_tensor_value_info("w", F, carried)]
    nodes = [helper.make_node("Identity", ["c"], ["c2"]), grow]
    if scan:
        nodes.append(helper.make_node("Identity", ["v"], ["s"]))
        outputs.append(helper.make_tensor_value_info("s", F, [2]))
    body = helper.make_graph(
        nodes, "body",
        [helper.make_tensor_value_info("i", I64, []), helper.make_tensor_value_info("c", B, []), helper.make_tensor_value_info("v", F, [2])],
        outputs,
    )  # fmt: skip
    return helper.make_node("Loop", [trips, "", "x"], ["y", *(["all"] if scan else [])], name="it", body=body)


@pytest.mark.parametrize(
    ("trips", "carried", "scan", "says"),
    [
        ("m", [2], True, ""),
        ("n", [2], False, ""),
        ("n", [2], True, "a scan output whose length"),
        ("m", [4], False, "changes its shape"),
    ],
)
def test_loops_need_fixed_lengths_and_shapes(model_of: Build, trips: str, carried: list[int], scan: bool, says: str) -> None:
    outputs: dict[str, Value] = {"n_y": (I64, [])} | ({"all": (F, ["t", 2])} if scan else {})
    inputs: dict[str, Value] = {"x": (F, [2])} | ({"n": (I64, [])} if trips == "n" else {})
    found = problems(
        model_of([looped(trips, carried, scan), helper.make_node("Size", ["y"], ["n_y"])], inputs, outputs, {"m": np.int64(3)}),
        jetpack("6.2"),
    )
    assert [p.operator for p in found] == (["Loop"] if says else [])
    assert all(says in p.reason for p in found)


def test_nodes_inside_a_subgraph_are_checked_too(model_of: Build) -> None:
    then = branch("a", [2])
    then.node.append(helper.make_node("Det", ["a"], ["z"], name="deep"))
    then.node[0].output[0] = "a"
    bad = helper.make_graph(
        [helper.make_node("Det", ["m"], ["d"], name="deep")], "t", [], [helper.make_tensor_value_info("d", F, [])]
    )
    good = helper.make_graph(
        [helper.make_node("ReduceSum", ["m"], ["e"], name="sum", keepdims=0)],
        "e",
        [],
        [helper.make_tensor_value_info("e", F, [])],
    )
    node = helper.make_node("If", ["c"], ["y"], name="it", then_branch=bad, else_branch=good)
    found = problems(model_of([node], {"c": (B, []), "m": (F, [2, 2])}, {"y": (F, None)}), jetpack("6.2"))
    assert found == [Problem("deep", "Det", "TensorRT 10.3.0 has no such operator")]


def test_dynamic_inputs_newer_opsets_and_other_domains_are_refused(model_of: Build, small_convnet: Callable[..., Model]) -> None:
    dynamic = One("Relu", {"x": (F, ["batch", 3])}, Y4).model(model_of)
    (problem,) = problems(dynamic, jetpack("6.2"))
    assert (problem.node, problem.operator) == ("x", "input")
    assert "its dimension 'batch' is dynamic" in problem.reason
    for opset, refused in ((20, False), (21, True)):
        found = problems(small_convnet(opset, 10), jetpack("6.2"))
        assert [p.operator for p in found] == (["opset"] if refused else [])
    assert problems(small_convnet(21, 10), jetpack("7.2")) == []
    proto = small_convnet().copy_proto()
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    proto.graph.node[1].op_type, proto.graph.node[1].domain = "Gelu", "com.microsoft"
    found = problems(Model("m", proto, small_convnet().signature), jetpack("6.2"))
    assert found == [Problem("relu", "Gelu", "TensorRT has no operators of domain com.microsoft")]


def test_an_ordinary_network_passes_everywhere_strong_typing_is(small_convnet: Callable[..., Model]) -> None:
    for version in jetson_support.versions():
        release = jetpack(version)
        if release.strongly_typed:
            assert problems(small_convnet(), release) == []


def test_refusing_says_how_many_more_there_are() -> None:
    refuse("jetson", [], "hint")
    with pytest.raises(Unsupported, match=r"jetson cannot run node 'a' \(Det\): no \(and 2 more\)") as caught:
        refuse("jetson", [Problem("a", "Det", "no"), Problem("b", "X", "y"), Problem("c", "X", "y")], "hint")
    assert caught.value.hint == "hint"


def test_an_unknown_jetpack_lists_the_known_ones() -> None:
    with pytest.raises(TargetError, match=r"unknown JetPack '9\.9'; known: 4\.6, 5\.1, 6\.0, 6\.1, 6\.2"):
        jetpack("9.9")


def test_data_dependent_operators_are_found(model_of: Build, small_convnet: Callable[..., Model]) -> None:
    assert jetson_support.data_dependent(small_convnet()) == ()
    model = One("NonZero", {"x": (F, [4])}, {"y": (I64, None)}).model(model_of)
    assert jetson_support.data_dependent(model) == ("NonZero",)


def half_net(build: Build, middle: onnx.NodeProto, mid: int = H, weights: dict[str, Any] | None = None) -> Model:
    """Cast in, one node, Cast out."""
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], name="in", to=mid),
        middle,
        helper.make_node("Cast", ["b"], ["y"], name="out", to=F),
    ]
    return build(nodes, {"x": (F, [1, 2, 8, 8])}, {"y": (F, None)}, weights or {})


def test_the_dla_takes_its_operators_in_fp16_and_no_others(model_of: Build) -> None:
    relu = helper.make_node("Relu", ["a"], ["b"], name="it")
    assert dla_problems(half_net(model_of, relu)) == []
    (lacking,) = dla_problems(half_net(model_of, helper.make_node("Erf", ["a"], ["b"], name="it")))
    assert (lacking.node, lacking.operator) == ("it", "Erf")
    assert "the DLA runs only Abs, Add" in lacking.reason
    (kept,) = dla_problems(half_net(model_of, relu, mid=F))
    assert (kept.node, kept.operator) == ("it", "Relu")
    assert "it is fp32" in kept.reason


def test_a_cast_is_taken_only_at_the_edge_of_a_model_for_the_dla(model_of: Build) -> None:
    inner = [
        helper.make_node("Cast", ["x"], ["a"], name="in", to=H),
        helper.make_node("Relu", ["a"], ["b"], name="r"),
        helper.make_node("Cast", ["b"], ["c"], name="inner", to=F),
        helper.make_node("Cast", ["c"], ["d"], name="back", to=H),
        helper.make_node("Relu", ["d"], ["e"], name="r2"),
        helper.make_node("Cast", ["e"], ["y"], name="out", to=F),
    ]
    found = dla_problems(model_of(inner, {"x": (F, [4])}, {"y": (F, None)}))
    assert {problem.node for problem in found} == {"inner", "back"}


def test_the_tables_hold_together() -> None:
    tables = jetson_support._tables()
    for row in tables["jetpack"]:
        release = jetpack(row["version"])
        assert release.source if hasattr(release, "source") else row["source"]
        if release.strongly_typed:
            assert len(release.operators) > 100
            assert release.opset_max >= 20
        assert release.boards
    lists = jetpack("6.2").operators
    assert lists["Conv"] == {"float32", "float16", "bfloat16"}
    assert "Det" not in lists
    assert jetpack("7.2").operators["Conv"] == lists["Conv"]
    assert "Gelu" in jetpack("7.2").operators
    assert jetpack("7.2.2").operators["DFT"] == {"float32", "float16"}
    assert tables["dla"]["operators"].keys() <= lists.keys()


def test_operators_in_the_code_are_operators_of_the_table() -> None:
    known = set().union(*(jetpack(v).operators for v in jetson_support.versions()))
    named = jetson_support._OTHER_OUTPUT | jetson_support._OWN_TYPES | jetson_rules.RULES.keys()
    assert named - known == set()
    ast.parse(Path(jetson_rules.__file__).read_text())
