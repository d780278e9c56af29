"""Scales and shifts merged into the layers beside them: fewer nodes, the same function, and less lost in fixed point."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesdk_converters import integer_reader
from edgesdk_converters.affine import merged
from edgesdk_converters.calibration import Samples, synthetic
from edgesdk_converters.errors import PassError, Unsupported
from edgesdk_converters.fold import Fold
from edgesdk_converters.integer_program import Round, Scale, Sum
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given
from edgesdk_converters.quantize import Quantize
from edgesdk_converters.reference import Reference
from edgesdk_converters.spelt_out import joined

from .test_integer_reader import differing, quantised, wild

Shape = tuple[int | str, ...]


def op(kind: str, read: str, result: str, name: str = "", **options: Any) -> Any:
    return helper.make_node(kind, read.split(), [result], name=name or f"{kind}_{result}".lower(), **options)


def norm(source: str, result: str, name: str = "norm", **options: Any) -> Any:
    return op("BatchNormalization", f"{source} gamma beta mean var", result, name, epsilon=1e-3, **options)


def of(build: Any, nodes: list[Any], x: Shape, y: Shape, opset: int = 17, **others: Any) -> Model:
    """Nodes from `x` to `y` with the stored tensors that they read; statistics with negative scales and one of zero."""
    rng = np.random.default_rng(0)
    gamma = rng.uniform(0.3, 2, 5)
    gamma[0], gamma[1] = -gamma[0], 0
    stored = {
        "gamma": gamma, "beta": rng.standard_normal(5), "mean": rng.standard_normal(5),
        "var": rng.uniform(0.1, 3, 5), "w": rng.standard_normal((6, 5)), "b": rng.standard_normal(5),
        "v": rng.standard_normal((5, 4)), "c": rng.standard_normal(4), "k": rng.standard_normal((5, 6, 3, 3)),
        "l": rng.standard_normal((4, 5, 3, 3)), "depth": rng.standard_normal((6, 1, 3, 3)), **others,
    }  # fmt: skip
    used = {name for node in nodes for name in node.input}
    held = {
        name: array if array.dtype == np.int64 else array.astype(np.float32) for name, array in stored.items() if name in used
    }
    return Model.from_proto(build(nodes, [("x", list(x))], [("y", list(y))], held, opset=opset), "m")


def kinds(model: Model) -> list[str]:
    return [node.op_type for node in model.proto.graph.node]


def same(made: Model, model: Model) -> None:
    (x,) = model.signature.inputs
    for feed in wild(model.with_shapes({"x": [1, *(int(size) for size in x.shape[1:])]}), 10):
        np.testing.assert_allclose(Reference(made).run(feed)["y"], Reference(model).run(feed)["y"], rtol=1e-4, atol=2e-3)


def normed(build: Any, kind: str, biased: bool = True, **options: Any) -> Model:
    read = {"Gemm": "x w", "MatMul": "x w", "Conv": "x k"}[kind] + (" b" if biased else "")
    if options.get("transB"):
        options["w"] = np.random.default_rng(1).standard_normal((5, 6))
    others = {name: options.pop(name) for name in ("w",) if name in options}
    x, y = ((1, 6, 4, 4), (1, 5, 2, 2)) if kind == "Conv" else ((1, 6), (1, 5))
    return of(build, [op(kind, read, "s", "layer", **options), norm("s", "n"), op("Relu", "n", "y", "relu")], x, y, **others)


@pytest.mark.parametrize(("kind", "options"), [("Gemm", {}), ("Gemm", {"transB": 1}), ("Gemm", {"biased": False}),
                         ("Gemm", {"alpha": 0.5, "beta": 3.0}), ("MatMul", {"biased": False}), ("Conv", {}),
                         ("Conv", {"biased": False})])  # fmt: skip
def test_layer_and_norm_become_one_layer(build: Any, kind: str, options: dict[str, Any]) -> None:
    model = normed(build, kind, **options)
    made = merged(model)
    assert {node.name: node.op_type for node in made.proto.graph.node} == {
        "layer": "Gemm" if kind == "MatMul" else kind, "relu": "Relu",
    }  # fmt: skip
    assert "1 into the layers before them" in made.history[-1].note
    assert len(made.proto.graph.initializer) == 2
    same(made, model)


def test_what_others_read_and_what_is_kept_stays(build: Any) -> None:
    model = normed(build, "Gemm")
    assert merged(model, keep=("norm",)) is model
    proto = model.copy_proto()
    proto.graph.output.append(helper.make_tensor_value_info("s", 1, [1, 5]))
    both = Model.from_proto(proto, "both")
    assert kinds(merged(both)) == ["Gemm", "Mul", "Add", "Relu"]
    same(merged(both), both)
    assert kinds(merged(model, alone=("norm",))) == ["Gemm", "Mul", "Add", "Relu"]
    assert kinds(merged(model, alone=("layer",))) == ["Gemm", "Relu"], "a layer is given its own width, not left alone"


@pytest.mark.parametrize(("nodes", "x", "y", "left"), [
    ([norm("x", "n"), op("MatMul", "n v", "y")], ("batch", 5), ("batch", 4), ["Mul", "Add", "MatMul"]),
    ([op("Gemm", "x w b", "s"), op("Relu", "s", "r"), norm("r", "n"), op("Gemm", "n v c", "y")], (1, 6), (1, 4),
     ["Gemm", "Relu", "Gemm"]),
    ([op("Conv", "x k b", "s"), op("Relu", "s", "r"), norm("r", "n"), op("MaxPool", "n", "y", kernel_shape=[2, 2])],
     (1, 6, 6, 6), (1, 5, 3, 3), ["Conv", "Relu", "Mul", "Add", "MaxPool"]),
    ([op("Conv", "x k b", "s"), op("LeakyRelu", "s", "r"), op("AveragePool", "r", "p", kernel_shape=[2, 2]), norm("p", "n"),
      op("Conv", "n l c", "y")], (1, 6, 6, 6), (1, 4, 1, 1), ["Conv", "LeakyRelu", "AveragePool", "Conv"]),
    ([op("Conv", "x k b", "s"), op("Relu", "s", "r"), norm("r", "n"), op("Conv", "n l c", "y", pads=[1] * 4)],
     (1, 6, 4, 4), (1, 4, 2, 2), ["Conv", "Relu", "Mul", "Add", "Conv"]),
    ([op("Conv", "x k b", "s"), op("Transpose", "s", "t", perm=[0, 2, 3, 1]), op("Mul", "t gamma", "m"),
      op("Add", "m beta", "y")], (1, 6, 4, 4), (1, 2, 2, 5), ["Conv", "Transpose"]),
    ([op("Gemm", "x w b", "s"), op("Reshape", "s shape", "r"), op("Mul", "r half", "y")], (1, 6), (1, 5, 1), ["Gemm", "Reshape"]),
    ([op("MatMul", "x w", "s"), op("Add", "s b", "a"), op("Mul", "a gamma", "y")], (1, 3, 6), (1, 3, 5), ["MatMul", "Add"]),
    ([op("Sub", "x beta", "s"), op("Div", "s var", "d"), op("Neg", "d", "n"), op("Sub", "half n", "m"), op("Relu", "m", "r"),
      op("Gemm", "r v c", "y")], (1, 5), (1, 4), ["Mul", "Add", "Relu", "Gemm"]),
    ([op("Conv", "x depth", "s", group=6), op("Relu", "s", "r"), op("Mul", "r six", "m"), op("Conv", "m depth", "y", group=6)],
     (1, 6, 5, 5), (1, 6, 1, 1), ["Conv", "Relu", "Conv"]),
    ([op("Div", "x byte", "d"), op("Conv", "d k b", "y", pads=[1] * 4)], (1, 6, 4, 4), (1, 5, 4, 4), ["Conv"]),
    ([op("Sub", "x third", "s"), op("Div", "s byte", "d"), op("Conv", "d k b", "y", pads=[1] * 4)], (1, 6, 4, 4), (1, 5, 4, 4),
     ["Add", "Conv"]),
], ids=["at the input", "behind a ReLU", "at the end", "behind a pooling", "before pads", "behind a transpose",
        "behind a reshape", "on tokens", "spelt out", "depthwise", "before pads, no shift", "before pads, one size"])  # fmt: skip
def test_each_place_of_a_scale(build: Any, nodes: list[Any], x: Shape, y: Shape, left: list[str]) -> None:
    others: dict[str, Any] = {
        "half": np.array(0.5), "byte": np.array(255.0), "six": np.linspace(0.5, 3, 6).reshape(6, 1, 1), "third": np.array(0.3),
        "shape": np.array([0, 5, 1]),
    }  # fmt: skip
    model = of(build, nodes, x, y, **others)
    made = merged(model)
    assert kinds(made) == left
    same(made, model)
    assert merged(made) is made or kinds(merged(made)) == left, "again it changes nothing"


def test_channels_behind_a_relu_come_to_one_size(build: Any) -> None:
    """With one step for all of them, those that the norm enlarges would have few codes."""
    channels: dict[str, Any] = {"gamma": np.array([64.0, 1, 1, 1, -64]), "var": np.ones(5), "mean": np.zeros(5)}
    nodes = [op("Gemm", "x w b", "s"), op("Relu", "s", "r"), norm("r", "n"), op("Gemm", "n v c", "y", "last")]
    made = merged(of(build, nodes, (1, 6), (1, 4), **channels))
    last = next(tensor for tensor in made.proto.graph.initializer if tensor.name == made.proto.graph.node[-1].input[1])
    weights = np.frombuffer(last.raw_data, np.float32).reshape(5, 4)
    assert np.abs(weights).max() < 8, "64 times as much, were it not in the first layer"


def test_a_norm_of_its_batch_and_other_numbers_stay(build: Any) -> None:
    model = of(build, [op("Gemm", "x w b", "s"), norm("s", "y", training_mode=0)], (1, 6), (1, 5), var=-np.ones(5))
    assert merged(model) is model, "the root of a negative number is none"
    divided = of(build, [op("Gemm", "x w b", "s"), op("Div", "s gamma", "y")], (1, 6), (1, 5))
    assert merged(divided) is divided, "a scale of one by zero"
    inverse = of(build, [op("Gemm", "x w b", "s"), op("Div", "b s", "y")], (1, 6), (1, 5))
    assert merged(inverse) is inverse
    wider = of(build, [op("Gemm", "x w b", "s"), op("Add", "s rows", "y")], (1, 6), (3, 5), rows=np.ones((3, 5)))
    assert merged(wider) is wider, "it makes three rows of one"


def test_a_rounded_model_stays(build: Any) -> None:
    model = quantised(normed(build, "Gemm"), rounding="half_up")
    assert merged(model) is model


def test_fixed_point_rounds_layer_and_norm_once(build: Any) -> None:
    model = normed(build, "Gemm")
    made = quantised(model)
    assert kinds(made).count("QuantizeLinear") == 2, "the input and behind the Relu"
    assert "BatchNormalization" not in kinds(made)
    assert "BatchNormalization" in kinds(quantised(model, keep=("norm",)))
    given = Given(model, Samples({"x": np.stack([feed["x"] for feed in wild(model, 4)])}, "chosen"))
    assert "BatchNormalization" in kinds(Quantize()(model, given)), "other flavours as before"


@pytest.mark.parametrize("rounding", ["half_even", "half_up", "truncate"])
@pytest.mark.parametrize("place", ["end", "middle"])
def test_a_norm_on_its_own_is_rounded_once_and_exact(build: Any, place: str, rounding: str) -> None:
    behind = [op("Relu", "n", "q"), op("Conv", "q l c", "y", pads=[1] * 4)] if place == "middle" else []
    nodes = [op("Conv", "x k b", "s"), op("Relu", "s", "r"), norm("r", "n" if behind else "y"), *behind]
    model = of(build, nodes, (1, 6, 4, 4), (1, 4 if behind else 5, 2, 2))
    made = quantised(model, rounding=rounding)
    program = integer_reader.program(made)
    names = [type(operation).__name__ for operation in program.operations]
    assert names[:6] == ["Conv", "Clip", "Round", "Scale", "Sum", "Clip" if behind else "Round"]
    assert all(program.exact.values()) and "more than the 24" not in made.history[-1].note
    assert not any(differing(program, made, wild(model, 20)).values())


def test_widths_reach_a_norm_on_its_own(build: Any) -> None:
    nodes = [op("Conv", "x k b", "s"), op("Relu", "s", "r"), norm("r", "n"), op("Conv", "n l c", "y", pads=[1] * 4)]
    model = of(build, nodes, (1, 6, 4, 4), (1, 4, 2, 2))
    program = integer_reader.program(quantised(model, widths=("norm=5",)))
    (scaled,) = (operation for operation in program.operations if isinstance(operation, Scale))
    whole = [int(factor) for factor in scaled.constant.ravel() if factor]
    assert max(abs(factor) // (factor & -factor) for factor in whole) < 16, "4 bits and a sign, on a grid each"
    (rounded,) = (one.result for one in program.operations if isinstance(one, Round) and one.result.startswith("n"))
    assert program.tensors[rounded].bits == 5


def test_inputs_of_several_sizes_get_the_bits_that_their_norm_needs(build: Any) -> None:
    """A momentum of hundreds beside an angle below one, as a trigger sees them: with one step of 8 bits the angle is lost."""
    rng = np.random.default_rng(3)
    sizes = np.array([200.0, 100.0, 0.5, 0.4, 1.0])
    nodes = [norm("x", "n"), op("Gemm", "n v c", "s"), op("Relu", "s", "y")]
    statistics: dict[str, Any] = {"gamma": np.ones(5), "beta": np.zeros(5), "mean": sizes, "var": sizes**2}
    model = of(build, nodes, (1, 5), (1, 4), opset=13, **statistics)
    x = (sizes + sizes * rng.standard_normal((400, 1, 5))).astype(np.float32)
    given = Given(model, Samples({"x": x}, "chosen"))
    wanted = np.concatenate([Reference(model).run({"x": one})["y"] for one in x])

    def off(**options: Any) -> tuple[int, str, float]:
        made = Quantize(flavour="fixed", **options)(Fold()(model, given), given)
        program = integer_reader.program(made)
        found = program.decode(program.run(program.encode({"x": x[:, 0]})))["y"]
        error = float(np.sqrt(np.square(found - wanted).mean() / np.square(wanted).mean()))
        return program.tensors["x"].bits, made.history[-1].note, error

    bits, note, error = off()
    assert 14 <= bits <= 16 and f"(x {bits})" in note and error < 0.03
    bits, _, error = off(widths=("norm=8",))
    assert bits == 8 and error > 0.2, "what was asked for by name stays so"
    assert off(bits=6)[0] >= 12
    even = of(build, nodes, (1, 5), (1, 4), **statistics | {"mean": np.zeros(5), "var": np.ones(5)})
    assert integer_reader.program(quantised(even)).tensors["x"].bits == 8


def test_statistics_of_the_batch_are_refused_by_name(build: Any) -> None:
    proto = normed(build, "Gemm").copy_proto()
    proto.graph.node[1].output.extend(["m", "v"])
    proto.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1))
    proto.graph.node[1].attribute.append(helper.make_attribute("momentum", 0.9))
    model = Model.from_proto(proto, "m")
    with pytest.raises(
        Unsupported, match=r"'norm' \(BatchNormalization\): training_mode = 1: its statistics are those"
    ) as caught:
        integer_reader.program(quantised(model))
    assert "model.eval()" in caught.value.hint


def test_other_floats_are_refused_by_name(build: Any) -> None:
    proto = normed(build, "Gemm").copy_proto()
    for kind, name in ((TensorProto.FLOAT16, "float16"), (TensorProto.DOUBLE, "float64")):
        for tensor in proto.graph.initializer:
            values = np.ones(tuple(tensor.dims), name)
            tensor.CopyFrom(helper.make_tensor(tensor.name, kind, tensor.dims, values.tobytes(), raw=True))
        for info in (*proto.graph.input, *proto.graph.output):
            info.type.tensor_type.elem_type = kind
        del proto.graph.value_info[:]
        with pytest.raises(PassError, match=rf"Gemm computes in {name}; fixed point begins with float32 \(node layer\)"):
            quantised(Model.from_proto(proto, "m"))


@pytest.mark.parametrize("rounding", ["half_even", "half_up", "truncate"])
def test_bounds_between_steps_are_rounded_as_the_results_are(build: Any, rounding: str) -> None:
    """Rounding is monotone: with the bound that was given, the rounded results would be the same."""
    stored: dict[str, Any] = {"low": np.array(-0.7), "high": np.array(1.3)}
    nodes = [op("Gemm", "x w b", "s"), op("Clip", "s low high", "y", "bounded")]
    made = quantised(of(build, nodes, (1, 6), (1, 5), **stored), rounding=rounding)
    program = integer_reader.program(made)
    proto = made.copy_proto()
    clip = next(node for node in proto.graph.node if node.name == "bounded")
    assert list(clip.input[1:]) == ["y/low_bound", "y/high_bound"]
    for tensor in proto.graph.initializer:
        if tensor.name in clip.input[1:]:
            tensor.CopyFrom(numpy_helper.from_array(np.array(-0.7 if "low" in tensor.name else 1.3, np.float32), tensor.name))
    as_given = Reference(Model.from_proto(proto, "m"))
    for feed in wild(made, 20):
        np.testing.assert_array_equal(program.decode(program.run(program.encode(feed)))["y"], as_given.run(feed)["y"])


def test_greatest_and_least_with_a_number_are_clips(build: Any) -> None:
    nodes = [op("Gemm", "x w b", "s"), op("Max", "none s", "m"), op("Min", "m six", "r"), op("Max", "r s", "y")]
    stored: dict[str, Any] = {"none": np.zeros(1), "six": np.array(6.0)}
    model = of(build, nodes, (1, 6), (1, 5), **stored)
    made = joined(model)
    assert kinds(made) == ["Gemm", "Clip", "Clip", "Max"]
    same(made, model)
    assert kinds(joined(model, keep=("max_m",))) == ["Gemm", "Max", "Clip", "Max"]
    program = integer_reader.program(quantised(of(build, [*nodes[:2], op("Min", "m six", "y")], (1, 6), (1, 5), **stored)))
    assert program.tensors["y"].high <= 6 / program.tensors["y"].step


def test_a_stored_summand_is_finer_than_what_it_is_added_to(build: Any) -> None:
    """Eight bits of a mean of hundreds would be off by several steps of a narrow tensor."""
    nodes = [op("Gemm", "x w b", "s"), op("Sigmoid", "s", "g"), op("Sub", "g middle", "t"), op("Exp", "t", "y")]
    middle = 1 / 3 + np.arange(5) / 7
    made = quantised(of(build, nodes, (1, 6), (1, 5), middle=middle))
    program = integer_reader.program(made)
    (total,) = (one for one in program.operations if isinstance(one, Sum))
    (source,) = total.sources
    step = program.tensors[source].step
    assert total.constant is not None
    assert np.abs(-total.constant * program.tensors[total.result].step - middle).max() <= step / 32 + 1e-9


def test_results_are_rounded_behind_a_transpose_and_its_activation(build: Any) -> None:
    nodes = [op("Conv", "x k b", "s"), op("Transpose", "s", "t", perm=[0, 2, 3, 1]), op("Relu", "t", "y")]
    model = of(build, nodes, (1, 6, 4, 4), (1, 2, 2, 5))
    made = quantised(model)
    program = integer_reader.program(made)
    assert [type(operation).__name__ for operation in program.operations] == ["Conv", "Move", "Clip", "Round"]
    assert not any(differing(program, made, wild(model, 10)).values())


@pytest.mark.parametrize(("nodes", "x", "y", "left"), [
    ([op("Reshape", "x rows", "r"), op("MatMul", "r w", "s"), op("Reshape", "s back", "t"), op("Add", "t b", "y")],
     ("N", 4, 6), ("N", 4, 5), ["Reshape", "MatMul", "Reshape", "Add"]),
    ([op("Mul", "x six", "m"), op("Reshape", "m rows", "r"), op("MatMul", "r w", "y")], ("N", 4, 6), ("M", 5),
     ["Mul", "Reshape", "MatMul"]),
    ([op("Gemm", "x wide", "g"), op("Reshape", "g image", "r"),
      op("MaxPool", "r", "p", kernel_shape=[3, 3], pads=[1] * 4), op("Mul", "p plane", "y")], (1, 6), (1, 2, 4, 4),
     ["Gemm", "Reshape", "MaxPool", "Mul"]),
    ([op("MatMul", "x w", "s"), op("Add", "s b", "y")], (6,), (5,), ["MatMul", "Add"]),
], ids=["unknown batch before", "unknown batch behind", "a pooling to the same shape", "a vector"])  # fmt: skip
def test_what_cannot_be_merged_stays_as_it_is(build: Any, nodes: list[Any], x: Shape, y: Shape, left: list[str]) -> None:
    rng = np.random.default_rng(2)
    others: dict[str, Any] = {
        "rows": np.array([-1, 6]), "back": np.array([-1, 4, 5]), "six": np.linspace(0.5, 3, 6), "image": np.array([1, 2, 4, 4]),
        "wide": rng.standard_normal((6, 32)), "plane": rng.uniform(0.5, 3, (4, 4)),
    }  # fmt: skip
    model = of(build, nodes, x, y, **others)
    made = merged(model)
    assert kinds(made) == left
    feed = {"x": rng.standard_normal([3 if size == "N" else size for size in x]).astype(np.float32)}
    np.testing.assert_allclose(Reference(made).run(feed)["y"], Reference(model).run(feed)["y"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("place", [(5, 4, 4), (1, 4, 4), (5, 1, 1), (5, 5, 5)])
def test_a_summand_of_a_convolution_lies_on_the_grids_of_its_channels(build: Any, place: tuple[int, ...]) -> None:
    rng, wide = np.random.default_rng(4), 5 if place[-1] == 5 else 4
    others = {"k": rng.standard_normal((5, 3, 3, 3)) * np.exp2(np.arange(5)).reshape(5, 1, 1, 1), "a": rng.standard_normal(place)}
    nodes = [op("Conv", "x k", "s", "conv"), op("Add", "s a", "z", "add"), op("Relu", "z", "r", "relu"),
             op("Neg", "s", "n", "neg"), op("Concat", "r n", "y", "join", axis=1)]  # fmt: skip
    if place[0] == 1 or place[-1] > 1:
        nodes = [*nodes[:2], op("Relu", "z", "y", "relu")]
    model = of(build, nodes, (1, 3, wide + 2, wide + 2), (1, 5 if len(nodes) == 3 else 10, wide, wide), **others)
    made = quantised(model)
    lost, power = 0.0, 0.0
    for feed in synthetic(model, 8):
        real = Reference(model).run(feed)["y"]
        lost += float(np.square(Reference(made).run(feed)["y"] - real).sum())
        power += float(np.square(real).sum())
    assert lost < 1e-3 * power
    (held,) = (one for one in made.proto.graph.node if one.op_type == "DequantizeLinear" and one.output[0].startswith("a"))
    is_rounded_before = len(nodes) > 3  # as two read it: the products' grids are gone
    assert [one.i for one in held.attribute if one.name == "axis"] == ([] if is_rounded_before else [0])


def test_inputs_that_are_joined_first_are_quantised(build: Any) -> None:
    nodes = [op("Concat", "x z", "e", axis=1), op("Mul", "e gamma", "m"), op("Add", "m beta", "a"), op("Gemm", "a v c", "y")]
    rng = np.random.default_rng(6)
    shapes = {"gamma": 5, "beta": 5, "v": (5, 4), "c": 4}
    held = {name: rng.uniform(0.2, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    model = Model.from_proto(build(nodes, [("x", [1, 3]), ("z", [1, 2])], [("y", [1, 4])], held, opset=17), "joined")
    made = quantised(model)
    for feed in synthetic(model, 4):
        np.testing.assert_allclose(Reference(made).run(feed)["y"], Reference(model).run(feed)["y"], atol=0.3)


def test_a_layer_of_half_floats_may_be_kept(build: Any) -> None:
    nodes = [op("Gemm", "x w b", "s", "first"), op("Cast", "s", "h", to=TensorProto.FLOAT16), op("MatMul", "h half", "p", "last"),
             op("Cast", "p", "y", to=TensorProto.FLOAT)]  # fmt: skip
    rng = np.random.default_rng(7)
    held = {"w": rng.standard_normal((6, 5)), "b": rng.standard_normal(5)}
    stored = {name: values.astype(np.float32) for name, values in held.items()} | {"half": np.ones((5, 4), np.float16)}
    model = Model.from_proto(build(nodes, [("x", [1, 6])], [("y", [1, 4])], stored, opset=17), "half")
    with pytest.raises(PassError, match="computes in float16"):
        quantised(model)
    assert "QuantizeLinear" in kinds(quantised(model, keep=("last",)))
