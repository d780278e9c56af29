"""A fixed-point graph read as integers computes what the graph computes, to the bit; what cannot be is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesdk_converters import integer_program as ip
from edgesdk_converters import integer_reader
from edgesdk_converters.calibration import Samples, synthetic
from edgesdk_converters.errors import PassError, Unsupported
from edgesdk_converters.fold import Fold
from edgesdk_converters.integer_program import IntegerProgram
from edgesdk_converters.integer_tables import softmax_error
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given
from edgesdk_converters.quantize import Quantize
from edgesdk_converters.reference import Reference

from ..fashion import samples as fashion_samples
from ..sdk.test_real_models import MODELS, example
from .random_graphs import random_graph
from .test_fixed import ROUNDINGS, evaluate, inputs, net

__all__ = ["net"]  # a fixture
NETS = Path(__file__).parents[2] / "examples" / "fashion"
Feeds = list[dict[str, Any]]


def quantised(model: Model, count: int = 8, **options: Any) -> Model:
    return Quantize(flavour="fixed", **options)(model, Given(model, replace(synthetic(model, count), synthetic=False)))


def stacked(feeds: Feeds) -> dict[str, Any]:
    """Feeds of batch 1 as one batch."""
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


def differing(program: IntegerProgram, model: Model, feeds: Feeds) -> dict[str, int]:
    """How many values of each tensor that both have differ between the program and ONNX Runtime.

    Sums of nodes of which the notes say that channels stand still are left out: there only what is rounded is the same.
    """
    typed = {info.name for info in model.proto.graph.value_info}
    settled = {note.split(": ")[0] for note in program.notes}
    apart = {operation.result for operation in program.operations if operation.node in settled}
    apart |= {
        operation.result for operation in program.operations if isinstance(operation, ip.Clip) and operation.source in apart
    }
    names = [name for name in program.tensors if name in typed and name not in apart]
    reference = Reference(model, names)
    codes = program.run(program.encode(stacked(feeds)), keep=True)
    for name, tensor in program.tensors.items():
        assert tensor.low <= codes[name].min() and codes[name].max() <= tensor.high, name
    found = dict.fromkeys((*names, *program.outputs), 0)
    for index, feed in enumerate(feeds):
        wanted = reference.run(feed)
        for name in found:
            value = (codes[name][index] * program.tensors[name].step).astype(np.float32)
            found[name] += int((value.reshape(wanted[name].shape) != wanted[name]).sum())
    return found


def wild(model: Model, count: int, seed: int = 0) -> Feeds:
    """Inputs of which some lie on ties of any power-of-two grid and some far beyond every range."""
    rng = np.random.default_rng(seed)

    def one(shape: Any) -> Any:
        fine = rng.standard_normal(shape) * rng.choice([0.3, 1, 3])
        ties = np.rint(fine * 64) / 64 + rng.choice([0, 1 / 128, 1 / 256], shape)
        return np.where(rng.random(shape) < 0.02, 100 * np.sign(fine), np.where(rng.random(shape) < 0.5, ties, fine))

    return [{spec.name: one(spec.shape).astype(np.float32) for spec in model.signature.inputs} for _ in range(count)]


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("bits", range(2, 17))
def test_every_width_and_rounding_gives_what_plain_integers_give(net: tuple[Model, Given], bits: int, rounding: Any) -> None:
    model, given = net
    per_channel = (bits + ROUNDINGS.index(rounding)) % 2 == 0
    made = Quantize(flavour="fixed", bits=bits, rounding=rounding, per_channel=per_channel)(model, given)
    program = integer_reader.program(made)
    feed = {"x": inputs(min(bits, 12))}
    got = program.run(program.encode(feed))["y"] * program.tensors["y"].step
    np.testing.assert_array_equal(got, evaluate(made, feed)["y"])
    if all(program.exact.values()):
        assert not any(differing(program, made, [feed]).values())
    assert all(program.exact.values()) == ("more than the 24" not in made.history[-1].note)


@dataclass
class Growing:
    """A random net of the operators that have rules, on images (1, c, h, w), then rows."""

    rng: Any

    def __post_init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def add(self, kind: str, read: list[str], shape: tuple[int, ...], **options: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, read, [name], name=f"{kind}_{len(self.nodes)}", **options))
        self.shapes[name] = shape
        return name

    def store(self, values: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = values
        return name

    def normal(self, *shape: int) -> str:
        scale = np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 3
        spread = np.exp2(self.rng.integers(-3, 3, (shape[0], *(1,) * (len(shape) - 1))))
        return self.store((self.rng.standard_normal(shape) * spread / scale).astype(np.float32))

    def conv(self, x: str) -> str:
        _, channels, *space = self.shapes[x]
        groups = int(self.rng.choice([g for g in (1, 2, channels) if channels % g == 0]))
        outs = groups * int(self.rng.integers(1, 1 + max(1, 6 // groups)))
        kernel = [int(self.rng.integers(1, min(3, size) + 1)) for size in space]
        strides = [int(self.rng.integers(1, 3)) for _ in space]
        pads = [int(self.rng.integers(0, 1 + k // 2)) for k in (*kernel, *kernel)]
        rank = len(space)
        sizes = [(s + pads[i] + pads[i + rank] - kernel[i]) // strides[i] + 1 for i, s in enumerate(space)]
        read = [x, self.normal(outs, channels // groups, *kernel)] + ([self.normal(outs)] if self.rng.random() < 0.7 else [])
        if self.rng.random() < 0.3:
            kind = str(self.rng.choice(["SAME_UPPER", "SAME_LOWER"]))
            sizes = [-(-s // stride) for s, stride in zip(space, strides, strict=True)]
            return self.add("Conv", read, (1, outs, *sizes), group=groups, strides=strides, auto_pad=kind)
        return self.add("Conv", read, (1, outs, *sizes), group=groups, strides=strides, pads=pads)

    def activation(self, x: str) -> str:
        kind = str(self.rng.choice(["Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSwish", "none"]))
        if kind == "none":
            return x
        if kind == "Clip":
            return self.add("Clip", [x, self.store(np.float32(0)), self.store(np.float32(6))], self.shapes[x])
        options = {"alpha": float(self.rng.uniform(0.01, 0.4))} if kind == "LeakyRelu" else {}
        return self.add(kind, [x], self.shapes[x], **options)

    def between(self, x: str) -> str:
        """Something without weights that reads an image."""
        _, channels, *space = shape = self.shapes[x]
        kind = str(self.rng.choice(["pool", "mean", "sum", "scale", "split", "pad", "transpose", "square", "minus", "slice"]))
        kernel = [min(2, size) for size in space]
        half = (1, channels, *((size - k) // 2 + 1 for size, k in zip(space, kernel, strict=True)))
        if kind == "pool":
            return self.add("MaxPool", [x], half, kernel_shape=kernel, strides=[2] * len(space))
        if kind == "mean":
            kernel = [min(3, size) for size in space]
            sizes = (size - k + 1 for size, k in zip(space, kernel, strict=True))
            return self.add("AveragePool", [x], (1, channels, *sizes), kernel_shape=kernel)
        if kind == "sum":
            return self.add("Add", [x, self.normal(channels, *(1 for _ in space))], shape)
        if kind == "minus":
            return self.add("Sub", [self.activation(x), x], shape)
        if kind == "scale":
            return self.add("Mul", [x, self.normal(1, channels, *(1 for _ in space))], shape)
        if kind == "square":
            return self.add("Mul", [x, x], shape)
        if kind == "pad":
            pads = [0, 0, *(1 for _ in space), 0, 1, *(0 for _ in space)]
            wide = (1, channels + 1, *(size + 1 for size in space))
            return self.add("Pad", [x, self.store(np.array(pads, np.int64))], wide)
        if kind == "transpose":
            order = [0, *range(len(shape) - 1, 0, -1)]
            return self.add("Transpose", [x], tuple(shape[axis] for axis in order), perm=order)
        if kind == "slice":
            read = [x, *(self.store(np.array([value], np.int64)) for value in (-1, -99, 1, -1))]
            return self.add("Slice", read, shape)
        other = self.conv(x)
        if self.shapes[other][2:] == shape[2:]:
            total = self.shapes[other][1] + channels
            return self.add("Concat", [other, x], (1, total, *space), axis=1)
        return other


def grown(build: Callable[..., Any], seed: int) -> Model:
    rng = np.random.default_rng([seed, 7])
    grow = Growing(rng)
    space = [int(rng.integers(4, 9)) for _ in range(int(rng.integers(1, 3)))]
    grow.shapes["x"] = (1, int(rng.integers(1, 5)), *space)
    x = grow.conv("x")
    for _ in range(int(rng.integers(2, 5))):
        x = grow.activation(x)
        x = grow.conv(x) if rng.random() < 0.4 else grow.between(x)
    x = grow.activation(x)
    outputs = [x] if rng.random() < 0.3 else []
    if rng.random() < 0.5:
        axes = list(range(2, len(grow.shapes[x])))
        shape = (*grow.shapes[x][:2], *(1 for _ in axes))
        x = grow.add("ReduceMean", [x], shape, axes=axes) if rng.random() < 0.5 else grow.add("GlobalAveragePool", [x], shape)
    size = int(np.prod(grow.shapes[x]))
    x = grow.add("Flatten", [x], (1, size))
    if rng.random() < 0.5:
        x = grow.add("Gemm", [x, grow.normal(5, size), grow.normal(5)], (1, 5), transB=1)
    else:
        x = grow.add("MatMul", [x, grow.store((rng.standard_normal((size, 5)) / np.sqrt(size)).astype(np.float32))], (1, 5))
    x = grow.activation(x)
    ends: list[tuple[Any, ...]] = [(name, list(grow.shapes[name])) for name in (*outputs, x)]
    if rng.random() < 0.3:
        ends.append((grow.add("ArgMax", [x], (1, 1), axis=1), [1, 1], TensorProto.INT64))
    return Model.from_proto(build(grow.nodes, [("x", list(grow.shapes["x"]))], ends, grow.weights), f"grown{seed}")


@pytest.mark.parametrize("seed", range(40))
def test_random_nets_give_what_the_runtime_gives(build: Any, seed: int) -> None:
    model = grown(build, seed)
    rng = np.random.default_rng(seed)
    made = quantised(model, bits=int(rng.integers(2, 9)), rounding=str(rng.choice(ROUNDINGS)), per_channel=bool(rng.integers(2)))
    program = integer_reader.program(made)
    found = differing(program, made, wild(model, 6, seed))
    assert len(found) > 3
    if all(program.exact.values()):
        assert not any(found.values()), found
    else:
        assert sum(found[name] for name in program.outputs) <= 3, "a sum that float32 rounds differs now and then by one"


@pytest.mark.parametrize("seed", range(0, 48, 2))
def test_any_net_is_read_exactly_or_refused_by_node(seed: int) -> None:
    model = random_graph(seed)
    model = Fold()(model, Given(model, synthetic(model, 4)))
    try:
        made = quantised(model, bits=7, rounding=ROUNDINGS[seed % 3])
        program = integer_reader.program(made)
    except Unsupported as error:
        names = {node.name or f"{node.op_type}->{node.output[0]}" for node in made.proto.graph.node}
        assert error.node in names and error.reason
        return
    except PassError:
        return
    feeds = [{name: 3 * array for name, array in sample.items()} for sample in synthetic(model, 4)]
    found = differing(program, made, feeds)
    assert not all(program.exact.values()) or not any(found.values()), found


def qdq(name: str, result: str, step: float, kind: str = "int8", zero: int = 0) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    """A pair of quantiser nodes around a tensor, and what they read."""
    held = {f"{result}/step": np.float32(step), f"{result}/zero": np.array(zero, kind)}
    nodes = [
        helper.make_node("QuantizeLinear", [name, *held], [f"{result}/code"], name=f"{result}/q"),
        helper.make_node("DequantizeLinear", [f"{result}/code", *held], [result], name=f"{result}/d"),
    ]
    return nodes, held


def between(
    build: Callable[..., Any],
    nodes: list[onnx.NodeProto],
    shape: list[int],
    out: list[int],
    weights: Mapping[str, Any] | None = None,
    step: float = 1.0,
    opset: int = 17,
) -> Model:
    """A graph in which `nodes` compute from x, rounded to `r`, the tensor `t`, which is rounded to y in steps of a half."""
    before, held = qdq("x", "r", step)
    behind, more = qdq("t", "y", 0.5)
    stored = {**held, **more, **(weights or {})}
    proto = build([*before, *nodes, *behind], [("x", shape)], [("y", out)], stored, opset=opset)
    return Model.from_proto(proto, "m")


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("bits", [3, 8, 11, 16])
def test_ties_and_what_lies_beyond_the_range_are_rounded_as_the_graph_does(build: Any, bits: int, rounding: Any) -> None:
    """Sums in halves of a step, all residues and signs, and up to twice the range."""
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="dense")
    weights = {"w": np.eye(4, dtype=np.float32), "b": np.array([0, 0.5, -0.5, 0.25], np.float32)}
    model = Model.from_proto(build([node], [("x", [1, 4])], [("y", [1, 4])], weights), "m")
    top = 2.0 ** (bits - 1)
    calibrated = Samples({"x": np.array([[[-top, top - 1, 0, 0]]], np.float32)}, "chosen")
    made = Quantize(flavour="fixed", bits=bits, rounding=rounding, per_channel=False)(model, Given(model, calibrated))
    program = integer_reader.program(made)
    assert program.tensors["x"].exponent == 0 and program.tensors["y"].exponent >= 0
    values = np.unique(np.concatenate([np.arange(-16, 17) / 4, np.array([-3, -2, -1.25, -1, 1, 1.25, 2]) * top]))
    feeds = [{"x": np.full((1, 4), value, np.float32)} for value in values]
    assert not any(differing(program, made, feeds).values())
    codes = program.run(program.encode(stacked(feeds)))["y"]
    assert codes.min() == program.tensors["y"].low and codes.max() == program.tensors["y"].high


def test_a_wide_sum_that_leaves_the_graph_is_not_rounded(build: Any) -> None:
    held = {"w": np.array([[3, -5], [127, 64]], np.int8), "s": np.float32(0.125)}
    nodes = [helper.make_node("DequantizeLinear", ["w", "s"], ["v"]), helper.make_node("MatMul", ["r", "v"], ["s1"], name="m")]
    before, more = qdq("x", "r", 0.25)
    model = Model.from_proto(build([*before, *nodes], [("x", [1, 2])], [("s1", [1, 2])], {**held, **more}), "m")
    program = integer_reader.program(model)
    made = program.tensors["s1"]
    assert (made.exponent, made.low, made.high) == (-5, -128 * 130, 127 * 130)
    assert program.run({"x": np.array([[2, -3]])})["s1"].tolist() == [[2 * 3 - 3 * 127, -2 * 5 - 3 * 64]]
    assert not any(differing(program, model, wild(model, 8)).values())


def test_averages_over_any_number_of_places_are_rounded_exactly(build: Any) -> None:
    for rounding, size in [(rounding, size) for rounding in ROUNDINGS for size in ((5, 5), (7, 7), (3, 4), (1, 6), (4, 4))]:
        node = helper.make_node("GlobalAveragePool", ["x"], ["y"], name="mean")
        conv = helper.make_node("Conv", ["y", "w"], ["z"], name="conv")
        weights = {"w": np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)}
        model = Model.from_proto(build([node, conv], [("x", [1, 3, *size])], [("z", [1, 3, 1, 1])], weights), "m")
        made = quantised(model, bits=8, rounding=rounding)
        program = integer_reader.program(made)
        pooled = next(op for op in program.operations if isinstance(op, ip.Pool))
        divisor = program.tensors[pooled.result].divisor
        assert divisor == {25: 25, 49: 49, 12: 3, 6: 3, 16: 1}[size[0] * size[1]]
        assert all(program.exact.values())
        assert not any(differing(program, made, wild(model, 40)).values())


def test_where_float32_loses_what_rounding_needs_is_told(build: Any) -> None:
    """An average in sixteen bits may cross a tie, and a half added to a sum of 24 bits takes the 25th."""
    conv = helper.make_node("Conv", ["y", "w"], ["z"], name="conv")
    mean = helper.make_node("GlobalAveragePool", ["x"], ["y"], name="mean")
    weights = {"w": np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)}
    model = Model.from_proto(build([mean, conv], [("x", [1, 3, 13, 13])], [("z", [1, 3, 1, 1])], weights), "m")
    assert [integer_reader.program(quantised(model, bits=bits)).exact["mean"] for bits in (8, 16)] == [True, False]
    before, held = qdq("x", "r", 1.0)
    stored = {**held, "w": np.full((4, 1), 32767, np.int16), "s": np.float32(1), "inverse": np.float32(2.0**-11),
              "half": np.float32(0.5), "low": np.float32(-(2**15)), "high": np.float32(2**15 - 1), "z": np.int16(0),
              "step": np.float32(2.0**11)}  # fmt: skip
    for halves in (True, False):
        raised = "raised" if halves else "scaled"
        nodes = [
            helper.make_node("DequantizeLinear", ["w", "s"], ["v"]),
            helper.make_node("MatMul", ["r", "v"], ["t"], name="dense"),
            helper.make_node("Mul", ["t", "inverse"], ["scaled"]),
            helper.make_node("Add", ["scaled", "half"], ["raised"]),
            helper.make_node("Floor", [raised], ["whole"]),
            helper.make_node("Clip", ["whole", "low", "high"], ["clipped"]),
            helper.make_node("QuantizeLinear", ["clipped", "s", "z"], ["code"]),
            helper.make_node("DequantizeLinear", ["code", "step", "z"], ["y"]),
        ]
        program = integer_reader.program(
            Model.from_proto(build([*before, *nodes], [("x", [1, 4])], [("y", [1, 1])], stored, opset=21, ir=10), "m")
        )
        assert program.exact == {"dense": not halves}
        codes = program.run({"x": np.array([[-128, -128, -128, -128]])})["y"]
        assert codes.tolist() == [[-8192]], "-8191.75 to the nearest, or down"


def test_a_layer_may_read_averages_before_they_are_rounded(build: Any) -> None:
    """On planes of one value, whose averages float32 has exactly."""
    rng = np.random.default_rng(0)
    held = {"w": rng.integers(-9, 9, (4, 3, 1, 1)).astype(np.int8), "s": np.float32(0.25), "b": np.array([7, -3, 1, 0], np.int32),
            "bs": np.float32(0.5)}  # fmt: skip
    nodes = [
        helper.make_node("AveragePool", ["r"], ["a"], name="mean", kernel_shape=[3, 3]),
        helper.make_node("DequantizeLinear", ["w", "s"], ["v"]),
        helper.make_node("DequantizeLinear", ["b", "bs"], ["c"]),
        helper.make_node("Conv", ["a", "v", "c"], ["t"], name="conv"),
    ]
    model = between(build, nodes, [1, 3, 3, 3], [1, 4, 1, 1], held)
    program = integer_reader.program(model)
    assert program.tensors["t"].divisor == 9 and not program.exact["conv"]
    feeds = [
        {"x": np.broadcast_to(plane, (1, 3, 3, 3)).astype(np.float32)} for plane in rng.integers(-128, 128, (30, 1, 3, 1, 1))
    ]
    assert not any(differing(program, model, feeds).values())
    held = {"k": np.array([[[0.75]], [[-2]], [[5.25]]], np.float32)}
    nodes = [
        helper.make_node("AveragePool", ["r"], ["a"], name="all", kernel_shape=[3, 3]),
        helper.make_node("AveragePool", ["r"], ["b"], name="column", kernel_shape=[3, 1], strides=[1, 3]),
        helper.make_node("Sum", ["a", "k", "b"], ["t"], name="sum"),
    ]
    model = between(build, nodes, [1, 3, 3, 3], [1, 3, 1, 1], held)
    program = integer_reader.program(model)
    assert program.tensors["t"].divisor == 9 and not program.exact["sum"]
    assert not any(differing(program, model, feeds).values())


def test_zeros_around_an_image_count_in_the_range_of_sums(build: Any) -> None:
    """What a convolution reads has no zero among its values, its pads have: a sum may lie nearer to zero than any without."""
    held = {"w": np.full((1, 1, 2, 2), 3, np.int8), "s": np.float32(1), "low": np.float32(5), "high": np.float32(9)}
    nodes = [
        helper.make_node("Clip", ["r", "low", "high"], ["five"], name="five"),
        helper.make_node("DequantizeLinear", ["w", "s"], ["v"]),
    ]
    for pads in (1, 0):
        conv = helper.make_node("Conv", ["five", "v"], ["t"], name="conv", pads=[pads, pads, 0, 0])
        size = 2 + pads - 1
        model = between(build, [*nodes, conv], [1, 1, 2, 2], [1, 1, size, size], held)
        program = integer_reader.program(model)
        assert (program.tensors["t"].low, program.tensors["t"].high) == (0 if pads else 3 * 4 * 5, 3 * 4 * 9)
        assert not any(differing(program, model, wild(model, 20)).values())


def test_tables_hold_what_the_runtime_computes(build: Any) -> None:
    for kind in ("Sigmoid", "Tanh", "Erf", "HardSwish", "HardSigmoid", "Elu", "Exp", "Softplus", "Gelu"):
        node = helper.make_node(kind, ["r"], ["t"], name="f")
        model = between(build, [node], [1, 256], [1, 256], step=1 / 32, opset=20)
        program = integer_reader.program(model)
        (table,) = program.operations
        assert isinstance(table, ip.Table) and table.function == kind and len(table.values) == 256
        every = {"x": (np.arange(-128, 128, dtype=np.float32) / 32)[None]}
        assert not any(differing(program, model, [every]).values()), kind


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(("kind", "bits"), [("Gelu", 13), ("Gelu", 16), ("Sigmoid", 16), ("HardSwish", 14), ("Erf", 15)])
def test_functions_of_wide_codes_are_straight_lines_within_their_bound(build: Any, kind: str, bits: int, rounding: Any) -> None:
    nodes = [helper.make_node(kind, ["x"], ["h"], name="f"), helper.make_node("MatMul", ["h", "w"], ["y"], name="m")]
    weights = {"w": np.eye(64, 2, dtype=np.float32)}
    model = Model.from_proto(build(nodes, [("x", [1, 64])], [("y", [1, 2])], weights, opset=21), "m")
    made = quantised(model, bits=bits, rounding=rounding)
    program = integer_reader.program(made)
    (op,) = (op for op in program.operations if isinstance(op, ip.Curve))
    source, rounded = program.tensors[op.source], program.tensors["h"]
    assert source.bits == bits and 0 < op.error <= 1 / 8 and not program.exact["f"]
    assert any(f"f: {kind} of {bits} bits by" in note and f"within {op.error:.3f} steps" in note for note in program.notes)
    feeds = wild(made, 60)
    known = program.run(program.encode(stacked(feeds)), keep=True)
    reference = Reference(made, ["h"])
    apart = np.abs(known["h"] - np.concatenate([reference.run(feed)["h"] for feed in feeds]) / rounded.step)
    assert apart.max() <= 1 and (apart > 0).mean() <= op.error


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_tables_round_as_the_graph_does(build: Any, rounding: Any) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["s"], name="m"), helper.make_node("Tanh", ["s"], ["y"], name="f")]
    weights = {"w": np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)}
    model = Model.from_proto(build(nodes, [("x", [1, 4])], [("y", [1, 64])], weights), "m")
    made = quantised(model, bits=6, rounding=rounding)
    assert not any(differing(integer_reader.program(made), made, wild(model, 20)).values())


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_what_was_always_zero_saturates_when_it_is_not(build: Any, rounding: Any) -> None:
    """Its steps are so small that no shift of 64-bit integers reaches them."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["s"], name="m"), helper.make_node("Relu", ["s"], ["y"], name="relu")]
    model = Model.from_proto(build(nodes, [("x", [1, 2])], [("y", [1, 2])], {"w": np.eye(2, dtype=np.float32)}), "m")
    negative = Samples({"x": -np.ones((1, 1, 2), np.float32)}, "chosen")
    made = Quantize(flavour="fixed", rounding=rounding)(model, Given(model, negative))
    proto = made.copy_proto()
    for node in proto.graph.node:  # what reads x covers more than the samples, and y is of the finest steps
        steps = {"fixed/two_to_-7": "tiny", "fixed/two_to_7": "huge"} if node.output[0].startswith("y") else {
            "fixed/two_to_-7": "one", "fixed/two_to_7": "one",
        }  # fmt: skip
        node.input[:] = [steps.get(name, name) for name in node.input]
    scales = {"one": 1.0, "tiny": 2.0**-100, "huge": 2.0**100}
    proto.graph.initializer.extend([numpy_helper.from_array(np.float32(scale), name) for name, scale in scales.items()])
    wide = Model.from_proto(proto, "m")
    program = integer_reader.program(wide)
    feeds = [{"x": np.array([pair], np.float32)} for pair in [(3, -2), (0, 1), (100, 200), (0, 0)]]
    assert not any(differing(program, wide, feeds).values())
    codes = program.run(program.encode(stacked(feeds)))["y"]
    assert codes.tolist() == [[255, 0], [0, 255], [255, 255], [0, 0]]


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(("count", "bits"), [(3, 8), (10, 6), (49, 8), (5, 12)])
def test_softmax_is_within_its_bound(build: Any, count: int, bits: int, rounding: Any) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["l"], name="m"),
        helper.make_node("Softmax", ["l"], ["y"], name="soft", axis=-1),
    ]
    weights = {"w": (2 * np.random.default_rng(0).standard_normal((count, count))).astype(np.float32)}
    model = Model.from_proto(build(nodes, [("x", [1, 4, count])], [("y", [1, 4, count])], weights), "m")
    made = quantised(model, bits=bits, rounding=rounding)
    program = integer_reader.program(made)
    op = next(op for op in program.operations if isinstance(op, ip.Softmax))
    source, result = program.tensors[op.source], program.tensors["y"]
    bound = softmax_error(op.values, count, -result.exponent)
    assert bound < 0.5 and not program.exact["soft"]
    known = program.run(program.encode(stacked(wild(model, 200))), keep=True)
    powers = np.exp((known[op.source] - known[op.source].max(axis=-1, keepdims=True)) * source.step)
    exact = powers / powers.sum(axis=-1, keepdims=True) / result.step
    error = known["y"] - np.minimum(exact, result.high)
    slack = 1e-9
    if rounding == "truncate":
        assert -1 - bound - 2.0**-9 - slack <= error.min() and error.max() <= bound + 2.0**-9 + slack
    else:
        assert np.abs(error).max() <= 0.5 + bound + slack
    assert any("soft: softmax by a table" in note for note in program.notes)
    reference = Reference(made)
    feeds = wild(model, 40)
    wanted = np.concatenate([reference.run(feed)["y"] for feed in feeds]) / result.step
    assert np.abs(program.run(program.encode(stacked(feeds)))["y"] - wanted).max() <= 1


def test_dead_channels_do_not_widen_the_sums_of_others(build: Any) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 6)).astype(np.float32)
    weight[1] *= 2.0**-80
    node = helper.make_node("Gemm", ["x", "w", "b"], ["s"], transB=1, name="dense")
    relu = helper.make_node("Relu", ["s"], ["y"], name="relu")
    stored = {"w": weight, "b": np.array([0.1, 0.3, -0.2, 0.0], np.float32)}
    model = Model.from_proto(build([node, relu], [("x", [1, 6])], [("y", [1, 4])], stored), "m")
    made = quantised(model)
    program = integer_reader.program(made)
    assert "dense: 1 of 4 channels are the same for every input" in program.notes
    dense = next(op for op in program.operations if isinstance(op, ip.Dense))
    assert not dense.weight[1].any() and program.tensors[dense.result].bits <= 24
    assert not any(differing(program, made, wild(model, 50)).values())
    alone = Model.from_proto(build([node], [("x", [1, 6])], [("s", [1, 4])], stored), "m")
    bare = Quantize(flavour="fixed")(alone, Given(alone, replace(synthetic(alone, 8), synthetic=False)))
    assert integer_reader.program(bare).tensors["s"].bits == 8, "rounded at once it stands still as well"
    proto = bare.copy_proto()
    proto.graph.output[0].name = "s/wide"
    with pytest.raises(Unsupported, match=r"node 'dense' \(Gemm\): its sums take \d\d bits on one grid; allowed: 60"):
        integer_reader.program(Model.from_proto(proto, "m"))


def test_one_flipped_bit_of_one_weight_is_caught(net: tuple[Model, Given]) -> None:
    model, given = net
    made = Quantize(flavour="fixed")(model, given)
    program = integer_reader.program(made)
    feeds = wild(model, 50)
    wanted = program.run(program.encode(stacked(feeds)))["y"]
    reference = np.concatenate([Reference(made).run(feed)["y"] for feed in feeds]) / program.tensors["y"].step
    assert np.array_equal(wanted, reference)
    rng = np.random.default_rng(0)
    for place, operation in enumerate(program.operations):
        if not isinstance(operation, ip.Conv | ip.Dense):
            continue
        weight = operation.weight.copy()
        index = tuple(int(rng.integers(size)) for size in weight.shape)
        weight[index] ^= int(weight[index]) & -int(weight[index]) or 1  # the lowest bit that is set
        changed = replace(operation, weight=weight)
        flipped = replace(program, operations=(*program.operations[:place], changed, *program.operations[place + 1 :]))
        assert not np.array_equal(flipped.run(flipped.encode(stacked(feeds)))["y"], reference), operation.node


def test_several_inputs_and_outputs_have_their_names(build: Any) -> None:
    nodes = [
        helper.make_node("MatMul", ["a", "w"], ["p"], name="m"),
        helper.make_node("Add", ["p", "b"], ["s"], name="add"),
        helper.make_node("Identity", ["s"], ["same"], name="same"),
        helper.make_node("ArgMax", ["s"], ["top"], name="top", axis=-1, keepdims=0),
    ]
    stored = {"w": np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)}
    ends = [("same", [1, 5]), ("top", [1], TensorProto.INT64), ("s", [1, 5])]
    model = Model.from_proto(build(nodes, [("b", [1, 5]), ("a", [1, 3])], ends, stored), "m")
    made = quantised(model)
    program = integer_reader.program(made)
    assert program.inputs == ("b", "a") and program.outputs == ("same", "top", "s")
    assert program.tensors["top"].shape == () and program.tensors["top"].high == 4
    assert not any(differing(program, made, wild(model, 30)).values())


def test_tokens_that_lose_their_batch_axis_keep_their_rows(build: Any) -> None:
    """What exporters make of a dense layer on a sequence, attention's two products, and a class token before the others."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Reshape", ["x", "rows"], ["flat"], name="flat"),
        helper.make_node("Gemm", ["flat", "w", "b"], ["g"], name="g"),
        helper.make_node("Reshape", ["g", "tokens"], ["t3"], name="back"),
        helper.make_node("Transpose", ["t3"], ["turned"], name="turned", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["t3", "turned"], ["scores"], name="scores"),
        helper.make_node("Concat", ["token", "scores"], ["longer"], name="longer", axis=1),
        helper.make_node("ReduceMean", ["longer"], ["y"], name="mean", axes=[1], keepdims=0),
    ]
    stored = {"rows": np.array([6, 4]), "tokens": np.array([1, 6, 4]), "w": rng.standard_normal((4, 4)).astype(np.float32),
              "b": rng.standard_normal(4).astype(np.float32), "token": np.full((1, 1, 6), 0.75, np.float32)}  # fmt: skip
    model = Model.from_proto(build(nodes, [("x", [1, 6, 4])], [("y", [1, 6])], stored), "m")
    made = quantised(model)
    program = integer_reader.program(made)
    assert program.tensors["g"].shape == (6, 4) and program.tensors["scores"].shape == (6, 6)
    assert all(program.exact.values())
    assert not any(differing(program, made, wild(model, 30)).values())


def test_ordinary_qdq_whose_scales_are_powers_of_two_goes_through(build: Any) -> None:
    rng = np.random.default_rng(0)
    held = {"w": rng.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8), "ws": np.exp2(rng.integers(-9, -6, 4)).astype(np.float32),
            "wz": np.zeros(4, np.int8), "b": rng.integers(-99, 99, 4).astype(np.int32), "bs": np.float32(2**-12)}  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["v"], name="w/d", axis=0),
        helper.make_node("DequantizeLinear", ["b", "bs"], ["c"], name="b/d"),
        helper.make_node("Conv", ["r", "v", "c"], ["t"], name="conv", strides=[2, 1], pads=[0, 1, 2, 1]),
    ]
    model = between(build, nodes, [1, 3, 7, 6], [1, 4, 4, 6], held, step=2**-5)
    program = integer_reader.program(model)
    assert all(program.exact.values())
    assert not any(differing(program, model, wild(model, 30)).values())


def whole(*values: int) -> Any:
    return np.array(values, np.int64)


@pytest.mark.parametrize(("kind", "out", "stored", "options"), [
    ("Expand", [2, 4, 2, 3], {"s": whole(2, 1, 1, 1)}, {}),
    ("Tile", [1, 8, 2, 3], {"s": whole(1, 2, 1, 1)}, {}),
    ("DepthToSpace", [1, 1, 4, 6], {}, {"blocksize": 2}),
    ("Resize", [1, 4, 4, 6], {"": None, "s": np.array([1, 1, 2, 2], np.float32)}, {"mode": "nearest"}),
    ("Gather", [1, 3, 2, 3], {"s": whole(3, 0, 3)}, {"axis": 1}),
    ("GatherElements", [1, 1, 2, 3], {"s": whole(3, 0, 1, 2, 2, 1).reshape(1, 1, 2, 3)}, {"axis": 1}),
    ("Pad", [1, 4, 4, 5], {"s": whole(0, 0, 1, 0, 0, 0, 1, 2)}, {"mode": "reflect"}),
    ("Pad", [1, 4, 3, 3], {"s": whole(0, 0, 0, 0, 0, 0, 1, 0)}, {"mode": "edge"}),
    ("Pad", [1, 5, 2, 4], {"s": whole(0, 1, 0, 0, 0, 0, 0, 1)}, {}),
    ("Dropout", [1, 4, 2, 3], {}, {}),
    ("Unsqueeze", [1, 4, 1, 2, 3], {"s": whole(2)}, {}),
    ("Reshape", [2, 12], {"s": whole(2, -1)}, {}),
    ("Transpose", [2, 1, 3, 4], {}, {"perm": [2, 0, 3, 1]}),
    ("Slice", [1, 4, 1, 2], {"a": whole(1, 0), "b": whole(9, 3), "c": whole(2, 3), "d": whole(1, 2)}, {}),
    ("GlobalMaxPool", [1, 4, 1, 1], {}, {}),
    ("ReduceMax", [1, 4, 3], {}, {"axes": [2], "keepdims": 0}),
    ("ReduceSum", [1, 1, 2, 1], {"s": whole(1, -1)}, {}),
    ("ReduceMean", [1, 2], {}, {"axes": [1, 3], "keepdims": 0}),
    ("AveragePool", [1, 4, 2, 3], {}, {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1}),
    ("MaxPool", [1, 4, 2, 2], {}, {"kernel_shape": [2, 2], "strides": [1, 2], "auto_pad": "SAME_LOWER"}),
    ("Neg", [1, 4, 2, 3], {}, {}),
    ("Div", [1, 4, 2, 3], {"s": np.float32(4)}, {}),
    ("Sub", [1, 4, 2, 3], {"s": np.float32([[[0.75]], [[2]], [[-8]], [[0.125]]])}, {}),
])  # fmt: skip
def test_operators_without_weights_give_what_the_runtime_gives(
    build: Any, kind: str, out: list[int], stored: dict[str, Any], options: dict[str, Any]
) -> None:
    node = helper.make_node(kind, ["r", *stored], ["t"], name="node", **options)
    held = {name: values for name, values in stored.items() if name}
    model = between(build, [node], [1, 4, 2, 3], out, held, step=0.25, opset=17)
    program = integer_reader.program(model)
    assert all(program.exact.values())
    found = differing(program, model, wild(model, 20))
    assert ("t" in found) is (kind != "Dropout"), "what changes nothing takes no operation"
    assert not any(found.values())


def test_two_computed_matrices_are_multiplied(build: Any) -> None:
    """Of any ranks that numpy broadcasts, the batch axis kept or lost."""
    for turned in (False, True):
        nodes = [
            helper.make_node("Reshape", ["r", "rows"], ["left"], name="left"),
            helper.make_node("Transpose", ["r"], ["right"], name="right", perm=[0, 2, 1]),
            helper.make_node("MatMul", ["left", "right"] if not turned else ["r", "other"], ["t"], name="product"),
        ]
        if turned:
            nodes.insert(2, helper.make_node("Transpose", ["left"], ["other"], name="other", perm=[1, 0]))
        model = between(build, nodes, [1, 3, 4], [1, 3, 3], {"rows": whole(3, 4)}, step=0.25)
        program = integer_reader.program(model)
        assert all(program.exact.values())
        assert not any(differing(program, model, wild(model, 20)).values())


def test_four_bit_integers_of_onnx_are_read(build: Any) -> None:
    before, held = qdq("x", "r", 0.5)
    nodes = [
        *before, helper.make_node("DequantizeLinear", ["w", "s"], ["v"]), helper.make_node("MatMul", ["r", "v"], ["t"], name="m"),
        helper.make_node("QuantizeLinear", ["t", "o", "z"], ["c"]), helper.make_node("DequantizeLinear", ["c", "o", "z"], ["y"]),
    ]  # fmt: skip
    stored = {**held, "s": np.float32(0.25), "o": np.float32(2)}
    proto = build(nodes, [("x", [1, 4])], [("y", [1, 2])], stored, opset=21, ir=10)
    proto.graph.initializer.append(helper.make_tensor("w", TensorProto.INT4, [4, 2], [-8, 7, 1, 0, -3, 5, 6, -1]))
    proto.graph.initializer.append(helper.make_tensor("z", TensorProto.UINT4, [], [0]))
    model = Model.from_proto(proto, "m")
    program = integer_reader.program(model)
    dense = next(op for op in program.operations if isinstance(op, ip.Dense))
    assert dense.weight.tolist() == [[-8, 1, -3, 6], [7, 0, 5, -1]] and program.tensors["y"].high == 15
    assert not any(differing(program, model, wild(model, 30)).values())


def test_weights_that_the_graph_rounds_itself_are_constants(build: Any) -> None:
    """As quantisation-aware training exports them: floats, a pair of quantiser nodes, a layer."""
    pair, held = qdq("w", "v", 2.0**-6)
    weight = (np.random.default_rng(0).standard_normal((6, 5)) / 2).astype(np.float32)
    model = between(
        build, [*pair, helper.make_node("MatMul", ["r", "v"], ["t"], name="m")], [1, 6], [1, 5], {**held, "w": weight}
    )
    program = integer_reader.program(model)
    dense = next(op for op in program.operations if isinstance(op, ip.Dense))
    np.testing.assert_array_equal(dense.weight * 2.0 ** program.tensors["t"].exponent, np.rint(weight.T * 64) / 64)
    assert not any(differing(program, model, wild(model, 30)).values())


@pytest.mark.parametrize(("name", "bits"), [(name, bits) for name in ("cnn", "mobilenet", "resnet") for bits in (4, 6, 8)])
def test_trained_nets_are_read_to_the_bit(name: str, bits: int) -> None:
    source = Model.load(NETS / f"fashion_{name}.onnx")
    given = Given(source, Samples.from_arrays({"image": fashion_samples("train", 0, 16)["image"]}, source.signature, "images"))
    made = Quantize(flavour="fixed", bits=bits)(Fold()(source, given), given)
    program = integer_reader.program(made)
    assert all(program.exact.values()), [node for node, exact in program.exact.items() if not exact]
    feeds = [{"image": image[None]} for image in fashion_samples("t10k", 0, 8)["image"]]
    assert not any(differing(program, made, feeds).values())


@pytest.fixture(scope="module")
def real_models() -> ModuleType:
    return example("real_models")


def tiny(real_models: ModuleType, name: str, count: int, **options: Any) -> tuple[Model, Feeds]:
    """A net of MLPerf Tiny in fixed point, and inputs that it was not calibrated on."""
    source = Model.load(MODELS / f"{name}.onnx")
    feeds = real_models.sample_inputs(name, 8 + count, 0)
    calibrated = Samples.from_arrays({"input_1": np.concatenate([feed["input_1"] for feed in feeds[:8]])}, source.signature, "s")
    given = Given(source, calibrated)
    return Quantize(flavour="fixed", **options)(Fold()(source, given), given), feeds[8:]


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("name", ["resnet8", "ds-cnn", "mobilenet-vww", "autoencoder"])
def test_mlperf_tiny_is_read_to_the_bit(real_models: ModuleType, name: str, bits: int) -> None:
    made, feeds = tiny(real_models, name, 2, bits=bits, rounding=ROUNDINGS[bits % 3])
    program = integer_reader.program(made)
    assert all(program.exact.values()), [node for node, exact in program.exact.items() if not exact]
    assert not any(differing(program, made, feeds).values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet8", "ds-cnn", "mobilenet-vww", "autoencoder"])
def test_a_thousand_inputs_of_mlperf_tiny_give_the_same_bits(real_models: ModuleType, name: str) -> None:
    made, feeds = tiny(real_models, name, 1000)
    program = integer_reader.program(made)
    got = program.decode(program.run(program.encode(stacked(feeds))))
    reference = Reference(made)
    for index, feed in enumerate(feeds):
        for key, wanted in reference.run(feed).items():
            np.testing.assert_array_equal(got[key][index].reshape(wanted.shape), wanted)


def test_layers_may_have_widths_of_their_own(net: tuple[Model, Given]) -> None:
    model, given = net
    widths = ("one=4", "two=11", "dense=2", "mean=6")
    made = Quantize(flavour="fixed", bits=8, widths=widths)(model, given)
    assert "8 bits (one 4, two 11, dense 2 and 1 more)" in made.history[-1].note
    program = integer_reader.program(made)
    nodes = {op.node: op for op in program.operations}
    for name, bits in {"one": 4, "two": 11, "three": 8, "dense": 2}.items():
        layer: Any = nodes[name]
        rows = layer.weight.reshape(len(layer.weight), -1)
        odd = rows // np.maximum(1, np.gcd.reduce(rows, axis=1, keepdims=True))
        assert 2 ** (bits - 2) <= max(np.abs(odd).max(), 1) <= 2 ** (bits - 1), name
    wide = {"x": 4, "r1": 4, "c2": 11, "a": 8, "c3": 8, "p": 6, "y": 2}
    assert {name: program.tensors[name].bits for name in wide} == wide
    feed = {"x": inputs(8)}
    np.testing.assert_array_equal(program.run(program.encode(feed))["y"] * program.tensors["y"].step, evaluate(made, feed)["y"])


def test_slopes_become_fractions_in_fixed_point(build: Any) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["s"], name="m"),
        helper.make_node("LeakyRelu", ["s"], ["y"], name="leaky", alpha=0.1),
    ]
    stored = {"w": np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)}
    model = Model.from_proto(build(nodes, [("x", [1, 6])], [("y", [1, 5])], stored), "m")
    for rounding in ROUNDINGS:
        made = quantised(model, rounding=rounding, bits=6)
        assert "slopes rounded to 8 bits: leaky 0.1 to 0.100098" in made.history[-1].note
        program = integer_reader.program(made)
        leaky = next(op for op in program.operations if isinstance(op, ip.Leaky))
        assert (leaky.slope, leaky.shift) == (205, 11)
        assert all(program.exact.values())
        assert not any(differing(program, made, wild(model, 60)).values())


def one(
    build: Callable[..., Any],
    kind: str,
    shape: list[int],
    out: list[int],
    weights: Mapping[str, Any] | None = None,
    read: tuple[str, ...] = ("r",),
    **options: Any,
) -> Model:
    """One node between two roundings."""
    node = helper.make_node(kind, [*read, *(weights or {})], ["t"], name="node", **options)
    return between(build, [node], shape, out, weights)


def _dilated(build: Any) -> Model:
    return one(build, "Conv", [1, 1, 8, 8], [1, 1, 4, 4], {"w": np.ones((1, 1, 3, 3), np.float32)}, dilations=[2, 2])


def _volume(build: Any) -> Model:
    return one(build, "Conv", [1, 1, 4, 4, 4], [1, 1, 2, 2, 2], {"w": np.ones((1, 1, 3, 3, 3), np.float32)})


def _float_weights(build: Any) -> Model:
    return one(build, "Conv", [1, 1, 8, 8], [1, 1, 6, 6], {"w": np.full((1, 1, 3, 3), 0.1, np.float32)})


def _computed_weights(build: Any) -> Model:
    return one(build, "Gemm", [1, 1], [1, 1], read=("r", "r"))


def _transposed(build: Any) -> Model:
    return one(build, "ConvTranspose", [1, 1, 8, 8], [1, 1, 10, 10], {"w": np.ones((1, 1, 3, 3), np.float32)})


def _ceiling(build: Any) -> Model:
    return one(build, "MaxPool", [1, 1, 8, 8], [1, 1, 4, 4], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)


def _dilated_pool(build: Any) -> Model:
    return one(build, "MaxPool", [1, 1, 8, 8], [1, 1, 4, 4], kernel_shape=[3, 3], dilations=[2, 2])


def _uncounted(build: Any) -> Model:
    return one(build, "AveragePool", [1, 1, 8, 8], [1, 1, 8, 8], kernel_shape=[3, 3], pads=[1] * 4)


def _slopes(build: Any) -> Model:
    return one(build, "PRelu", [1, 2, 4, 4], [1, 2, 4, 4], {"s": np.array([[[0.25]], [[0.5]]], np.float32)})


def _leaky(build: Any) -> Model:
    return one(build, "LeakyRelu", [1, 4], [1, 4], alpha=0.01)


def _clipped(build: Any) -> Model:
    return one(build, "Clip", [1, 4], [1, 4], {"a": np.float32(0), "b": np.float32(2.5)})


def _norm(build: Any) -> Model:
    weights = {name: np.ones(2, np.float32) for name in "gbmv"}
    return one(build, "BatchNormalization", [1, 2, 4, 4], [1, 2, 4, 4], weights)


def _group_norm(build: Any) -> Model:
    weights = {"g": np.ones(4, np.float32), "b": np.zeros(4, np.float32)}
    return one(build, "InstanceNormalization", [1, 4, 3, 3], [1, 4, 3, 3], weights)


def _gru(build: Any) -> Model:
    weights = {"w": np.ones((1, 6, 3), np.float32), "u": np.ones((1, 6, 2), np.float32)}
    return one(build, "GRU", [1, 1, 3], [1, 1, 1, 2], weights, hidden_size=2)


def _lstm(build: Any) -> Model:
    weights = {"w": np.ones((1, 8, 3), np.float32), "u": np.ones((1, 8, 2), np.float32)}
    return one(build, "LSTM", [1, 1, 3], [1, 1, 1, 2], weights, hidden_size=2)


def _dynamic(build: Any) -> Model:
    return one(build, "Relu", [1, "length"], [1, "length"])  # type: ignore[list-item]


def _batch(build: Any) -> Model:
    return one(build, "Relu", [4, 3], [4, 3])


def _scale(build: Any) -> Model:
    before, held = qdq("x", "r", 0.3)
    node = helper.make_node("Relu", ["r"], ["y"], name="relu")
    return Model.from_proto(build([*before, node], [("x", [1, 3])], [("y", [1, 3])], held), "m")


def _zero_point(build: Any) -> Model:
    before, held = qdq("x", "r", 0.5, "uint8", 128)
    node = helper.make_node("Relu", ["r"], ["y"], name="relu")
    return Model.from_proto(build([*before, node], [("x", [1, 3])], [("y", [1, 3])], held), "m")


def _two_steps(build: Any) -> Model:
    before, held = qdq("x", "r", 0.5)
    before[1].input[1] = "other"
    stored = {**held, "other": np.float32(0.25)}
    return Model.from_proto(
        build([*before, helper.make_node("Relu", ["r"], ["y"])], [("x", [1, 3])], [("y", [1, 3])], stored), "m"
    )


def _unrounded(build: Any) -> Model:
    nodes = [helper.make_node("Relu", ["x"], ["y"], name="relu")]
    return Model.from_proto(build(nodes, [("x", [1, 3])], [("y", [1, 3])]), "m")


def _unrounded_table(build: Any) -> Model:
    before, held = qdq("x", "r", 0.5)
    node = helper.make_node("Tanh", ["r"], ["y"], name="tanh")
    return Model.from_proto(build([*before, node], [("x", [1, 3])], [("y", [1, 3])], held), "m")


def _wide_table(build: Any) -> Model:
    nodes = [helper.make_node("Mul", ["r", "r"], ["s"], name="square"), helper.make_node("Exp", ["s"], ["t"], name="exp")]
    return between(build, nodes, [1, 3], [1, 3])


def _wider_curve(build: Any) -> Model:
    nodes = [helper.make_node("Mul", ["r", "r"], ["s"], name="square"), helper.make_node("Mul", ["s", "s"], ["u"], name="again"),
             helper.make_node("Sigmoid", ["u"], ["t"], name="sigmoid")]  # fmt: skip
    return between(build, nodes, [1, 3], [1, 3])


def _fine_curve(build: Any, kind: str, step: float, result: float) -> Model:
    before, held = qdq("x", "r", step, "int16")
    behind, more = qdq("t", "y", result, "int16")
    node = helper.make_node(kind, ["r"], ["t"], name=kind.lower())
    return Model.from_proto(build([*before, node, *behind], [("x", [1, 3])], [("y", [1, 3])], {**held, **more}, opset=21), "m")


def _long_curve(build: Any) -> Model:
    return _fine_curve(build, "Softsign", 2.0**-8, 2.0**-15)


def _steep_curve(build: Any) -> Model:
    return _fine_curve(build, "Gelu", 2.0**-20, 2.0**-30)


def _undefined(build: Any) -> Model:
    return one(build, "Sqrt", [1, 3], [1, 3])


def _soft_channels(build: Any) -> Model:
    return one(build, "Softmax", [1, 3, 4], [1, 3, 4], axis=1)


def _scaled_gemm(build: Any) -> Model:
    return one(build, "Gemm", [1, 2], [1, 2], {"w": np.eye(2, dtype=np.float32)}, alpha=0.5)


def _division(build: Any) -> Model:
    return one(build, "Div", [1, 2], [1, 2], {"d": np.float32(3)})


def _computed_place(build: Any) -> Model:
    nodes = [
        helper.make_node("ArgMax", ["r"], ["i"], name="top", axis=1, keepdims=0),
        helper.make_node("Gather", ["r", "i"], ["t"], name="gather", axis=1),
    ]
    return between(build, nodes, [1, 3], [1, 1])


def _places(build: Any) -> Model:
    nodes = [helper.make_node("TopK", ["r", "k"], ["t", "i"], name="best")]
    return between(build, nodes, [1, 3], [1, 2], {"k": np.array([2], np.int64)})


def _over_batch(build: Any) -> Model:
    return one(build, "ReduceMean", [1, 3], [1, 3], axes=[0])


def _padded_by_one(build: Any) -> Model:
    return one(build, "Pad", [1, 3], [1, 5], {"p": np.array([0, 1, 0, 1]), "v": np.float32(1)})


def _blurred(build: Any) -> Model:
    node = helper.make_node("Resize", ["r", "", "s"], ["t"], name="node", mode="linear")
    return between(build, [node], [1, 1, 2, 2], [1, 1, 4, 4], {"s": np.array([1, 1, 2, 2], np.float32)})


def _foreign(build: Any) -> Model:
    nodes = [helper.make_node("Gelu", ["r"], ["t"], name="gelu", domain="com.microsoft")]
    before, held = qdq("x", "r", 1.0)
    behind, more = qdq("t", "y", 0.5)
    proto = build([*before, *nodes, *behind], [("x", [1, 3])], [("y", [1, 3])], {**held, **more}, domains=["com.microsoft"])
    proto.graph.value_info.append(helper.make_tensor_value_info("t", TensorProto.FLOAT, [1, 3]))
    return Model.from_proto(proto, "m")


def _integer_input(build: Any) -> Model:
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "s"], ["r"], name="d"),
        helper.make_node("Relu", ["r"], ["y"], name="relu"),
    ]
    return Model.from_proto(build(nodes, [("x", [1, 3], TensorProto.INT8)], [("y", [1, 3])], {"s": np.float32(0.5)}), "m")


def _eight_bit_floats(build: Any) -> Model:
    before, held = qdq("x", "r", 0.5)
    proto = build(
        [*before, helper.make_node("Relu", ["r"], ["y"], name="relu")], [("x", [1, 3])], [("y", [1, 3])], held, opset=21
    )
    zero = next(tensor for tensor in proto.graph.initializer if tensor.name == "r/zero")
    zero.CopyFrom(helper.make_tensor("r/zero", TensorProto.FLOAT8E4M3FN, [], [0.0]))
    return Model.from_proto(proto, "m")


REFUSED: list[tuple[Callable[[Any], Model], str, str, str]] = [
    (_dilated, "node", "Conv", r"dilations \[2, 2\]; allowed: 1"),
    (_volume, "node", "Conv", "it has 3 dimensions of space; allowed: 1 or 2"),
    (_float_weights, "node", "Conv", "its stored tensor 'w' is float: it was rounded nowhere"),
    (_computed_weights, "node", "Gemm", "its weights 'r' are computed; allowed: stored values"),
    (_transposed, "node", "ConvTranspose", "a transposed convolution has no integer form here"),
    (_ceiling, "node", "MaxPool", "ceil_mode makes windows that reach beyond the pads; allowed: 0"),
    (_dilated_pool, "node", "MaxPool", r"dilations \[2, 2\]; allowed: 1"),
    (_uncounted, "node", "AveragePool", "it pads and does not count the pads"),
    (_slopes, "node", "PRelu", "its slope for each channel has no integer form here"),
    (_leaky, "node", "LeakyRelu", "its slope 0.01 has 23 significant bits; allowed: 16"),
    (_clipped, "node", "Clip", "its upper bound 2.5 is no multiple of the step 1 of its input"),
    (_norm, "node", "BatchNormalization", "its statistics are float: they were rounded nowhere"),
    (_group_norm, "node", "InstanceNormalization", "there is no exact integer form of this operator"),
    (_gru, "node", "GRU", "its state goes around inside one node"),
    (_lstm, "node", "LSTM", "its state goes around inside one node"),
    (_dynamic, "r/d", "DequantizeLinear", "'x' has the dynamic shape 1xlength; logic has a fixed one"),
    (_batch, "r/d", "DequantizeLinear", "input 'x' is 4x3; allowed: a first axis of 1, the batch"),
    (_scale, "r/d", "DequantizeLinear", "its scale 0.3 is no power of two"),
    (_zero_point, "r/d", "DequantizeLinear", "its zero point is 128; allowed: 0"),
    (_two_steps, "r/d", "DequantizeLinear", r"it gives steps of 2\*\*-2 to codes that 'r/q' made in steps of 2\*\*-1"),
    (_integer_input, "d", "DequantizeLinear", "'x' enters the graph as integers; allowed: floats that the graph rounds"),
    (_eight_bit_floats, "r/q", "QuantizeLinear", "it rounds to float8_e4m3fn; allowed: integers"),
    (_unrounded, "relu", "Relu", "its input 'x' is float: it was rounded nowhere"),
    (_unrounded_table, "tanh", "Tanh", "its result is rounded nowhere"),
    (_wide_table, "exp", "Exp", "its input is 15 bits wide; a table takes up to 12"),
    (_wider_curve, "sigmoid", "Sigmoid", "its input is 29 bits wide; a table takes up to 12, straight lines up to 16"),
    (_long_curve, "softsign", "Softsign", "it takes 32,769 straight lines; allowed: 4,096"),
    (_steep_curve, "gelu", "Gelu", r"straight lines come within \d+\.\d+ steps of it, allowed: 0.125"),
    (_undefined, "node", "Sqrt", "it is not defined for -128, which its input can be"),
    (_soft_channels, "node", "Softmax", "axis 1 of 3; allowed: the last"),
    (_scaled_gemm, "node", "Gemm", "alpha = 0.5; allowed: 1"),
    (_division, "node", "Div", "it divides by what is no stored power of two"),
    (_computed_place, "gather", "Gather", "its option 'i' is computed; allowed: stored values"),
    (_places, "best", "TopK", "there is no exact integer form of this operator"),
    (_over_batch, "node", "ReduceMean", "it reduces the batch axis; allowed: all others"),
    (_padded_by_one, "node", "Pad", "it pads by a value that is not zero; allowed: 0"),
    (_blurred, "node", "Resize", "mode linear; allowed: nearest"),
    (_foreign, "gelu", "Gelu", "it is an operator of com.microsoft, not of ONNX itself"),
]


@pytest.mark.parametrize(("made", "node", "operator", "reason"), REFUSED, ids=[row[0].__name__ for row in REFUSED])
def test_what_has_no_exact_integer_form_is_refused_by_node(
    build: Any, made: Callable[[Any], Model], node: str, operator: str, reason: str
) -> None:
    with pytest.raises(Unsupported, match=reason) as caught:
        integer_reader.program(made(build))
    assert (caught.value.node, caught.value.operator) == (node, operator)
    assert caught.value.line().startswith(f"Unsupported: fpga cannot run node '{node}' ({operator}): ")
    assert caught.value.hint, "says what to do instead"


@pytest.mark.parametrize("flavour", ["u8s8", "s8s8", "tensorrt", "qoperator"])
def test_integers_with_other_scales_are_sent_to_fixed_point(net: tuple[Model, Given], flavour: Any) -> None:
    model, given = net
    with pytest.raises(Unsupported) as caught:
        integer_reader.program(Quantize(flavour=flavour)(model, given))
    assert (
        "power of two" in caught.value.reason or "zero point" in caught.value.reason or "not fixed point" in caught.value.reason
    )
    assert "--precision fixed" in caught.value.hint
    with pytest.raises(Unsupported, match="rounded nowhere"):
        integer_reader.program(model)


def test_a_slope_that_is_no_fraction_names_the_nearest(build: Any) -> None:
    with pytest.raises(Unsupported) as caught:
        integer_reader.program(_leaky(build))
    assert caught.value.hint == "take the nearest of 8 bits, 164/16384 = 0.0100098"
