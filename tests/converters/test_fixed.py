"""Fixed point: the graph computes, bit for bit, what integers and shifts compute."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from edgesdk_converters.calibration import Samples, synthetic
from edgesdk_converters.errors import PassError
from edgesdk_converters.fixed import fixed_point
from edgesdk_converters.fixed_weights import best, codes
from edgesdk_converters.fixed_widths import Format, covering, tensor_bits
from edgesdk_converters.fold import Fold
from edgesdk_converters.graph import value_types
from edgesdk_converters.integer_reader import program as integer_program
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given
from edgesdk_converters.quantize import Quantize
from edgesdk_converters.reference import Reference

from ..fashion import samples as fashion_samples

ROUNDINGS = ["half_even", "half_up", "truncate"]
NETS = Path(__file__).parents[2] / "examples" / "fashion"


@dataclass
class Dyadic:
    """codes * 2**exponent, exactly: an evaluator of the graph that knows no floating point."""

    codes: Any
    exponent: int

    @classmethod
    def of(cls, values: Any) -> Dyadic:
        exact = np.asarray(values, np.float64)
        exponent = 0
        while not np.array_equal(exact, np.rint(exact)):
            exact, exponent = exact * 2, exponent - 1
        return cls(exact.astype(np.int64).astype(object), exponent)

    def at(self, exponent: int) -> Any:
        """The codes on a finer grid."""
        assert exponent <= self.exponent
        return self.codes * 2 ** (self.exponent - exponent)

    def shifted(self, by: int) -> Dyadic:
        return Dyadic(self.codes, self.exponent + by)

    def rounded(self, how: str) -> Any:
        """Whole numbers nearest to the values."""
        if self.exponent >= 0:
            return self.at(0)
        whole = 2**-self.exponent
        down = self.codes // whole
        twice = 2 * (self.codes - down * whole)
        return down + np.where((twice > whole) | ((twice == whole) & (down % 2 == 1)), 1, 0) if how == "half_even" else down

    def value(self) -> Any:
        return self.codes.astype(np.float64) * 2.0**self.exponent


def power_of(scale: Any) -> int:
    mantissa, exponent = np.frexp(np.float64(scale))
    assert mantissa == 0.5, f"{scale} is no power of two"
    return int(exponent) - 1


def scaled(held: Any, scales: Any, axis: int) -> Dyadic:
    """Integers times a power of two for each index along an axis."""
    powers = np.array([power_of(scale) for scale in scales])
    around = [1] * held.ndim
    around[axis] = -1
    finest = int(powers.min())
    return Dyadic(held.astype(object) * (2 ** (powers - finest)).astype(object).reshape(around), finest)


def convolve(x: Any, w: Any, strides: list[int], pads: list[int], group: int) -> Any:
    """Plain loops over Python integers: x (1, c, h, w), w (m, c/g, kh, kw)."""
    x = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    out = tuple((x.shape[2 + i] - w.shape[2 + i]) // strides[i] + 1 for i in range(2))
    result = np.zeros((1, len(w), *out), dtype=object)
    wide = w.shape[1]
    for m, kernel in enumerate(w):
        first = m // (len(w) // group) * wide
        for i, j in np.ndindex(*out):
            patch = x[0, first : first + wide, i * strides[0] :, j * strides[1] :][:, : w.shape[2], : w.shape[3]]
            result[0, m, i, j] = (patch * kernel).sum()
    return result


def evaluate(model: Model, feed: dict[str, Any]) -> dict[str, Any]:
    """Outputs of a fixed-point graph in exact arithmetic."""
    values = {t.name: numpy_helper.to_array(t) for t in model.proto.graph.initializer}
    known: dict[str, Dyadic] = {name: Dyadic.of(array) for name, array in feed.items()}

    def get(name: str) -> Dyadic:
        return known[name] if name in known else Dyadic.of(values[name])

    for node in model.proto.graph.node:
        attribute = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        first = get(node.input[0])
        if node.op_type == "QuantizeLinear":
            limits = np.iinfo(values[node.input[2]].dtype)
            whole = first.shifted(-power_of(values[node.input[1]])).rounded("half_even")
            done = Dyadic(np.clip(whole, limits.min, limits.max), 0)
        elif node.op_type == "DequantizeLinear":
            scale = values[node.input[1]]
            done = scaled(values[node.input[0]], scale, attribute["axis"]) if scale.ndim else first.shifted(power_of(scale))
        elif node.op_type == "Clip":
            low, high = (Dyadic.of(values[name]) for name in node.input[1:3])
            grid = min(first.exponent, low.exponent, high.exponent)
            done = Dyadic(np.minimum(np.maximum(first.at(grid), low.at(grid)), high.at(grid)), grid)
        elif node.op_type == "Floor":
            done = Dyadic(first.rounded("down"), 0)
        elif node.op_type == "Relu":
            done = Dyadic(np.maximum(first.codes, 0), first.exponent)
        elif node.op_type == "Add":
            second = get(node.input[1])
            grid = min(first.exponent, second.exponent)
            done = Dyadic(first.at(grid) + second.at(grid), grid)
        elif node.op_type == "Mul":
            second = get(node.input[1])
            done = Dyadic(first.codes * second.codes, first.exponent + second.exponent)
        elif node.op_type == "GlobalAveragePool":
            count = int(np.prod(first.codes.shape[2:]))
            done = Dyadic(first.codes.sum(axis=(2, 3), keepdims=True), first.exponent - power_of(count))
        elif node.op_type == "Flatten":
            done = Dyadic(first.codes.reshape(len(first.codes), -1), first.exponent)
        elif node.op_type in ("Conv", "Gemm", "MatMul"):
            weight = get(node.input[1])
            if node.op_type == "Conv":
                strides, pads = attribute.get("strides", [1, 1]), attribute.get("pads", [0] * 4)
                sums = convolve(first.codes, weight.codes, strides, pads, attribute.get("group", 1))
            else:
                sums = first.codes @ (weight.codes.T if attribute.get("transB") else weight.codes)
            done = Dyadic(sums, first.exponent + weight.exponent)
            if len(node.input) > 2:
                bias = get(node.input[2]).at(done.exponent)
                done.codes = done.codes + (bias.reshape(1, -1, 1, 1) if node.op_type == "Conv" else bias)
        else:
            raise AssertionError(f"no exact {node.op_type}")
        known[node.output[0]] = done
    return {output.name: known[output.name].value() for output in model.proto.graph.output}


@pytest.fixture
def net(build: Any) -> tuple[Model, Given]:
    """Convolutions (one grouped, with stride), a residual sum, a mean over 16 places, a dense layer."""
    rng = np.random.default_rng(3)

    def normal(*shape: int) -> Any:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1], name="one"),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1, 1, 1, 1], group=2, name="two"),
        helper.make_node("Add", ["r1", "c2"], ["a"], name="sum"),
        helper.make_node("Conv", ["a", "w3", "b3"], ["c3"], pads=[0, 0, 1, 1], strides=[2, 2], name="three"),
        helper.make_node("GlobalAveragePool", ["c3"], ["p"], name="mean"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w4", "b4"], ["y"], transB=1, name="dense"),
    ]
    weights = {"w1": normal(6, 2, 3, 3), "b1": normal(6), "w2": normal(6, 3, 3, 3), "w3": normal(8, 6, 3, 3), "b3": normal(8),
               "w4": normal(5, 8), "b4": normal(5)}  # fmt: skip
    model = Model.from_proto(build(nodes, [("x", [1, 2, 8, 8])], [("y", [1, 5])], weights), "net")
    return model, Given(model, replace(synthetic(model, 32), synthetic=False))


def inputs(bits: int) -> Any:
    """On a grid two bits finer than the input's: a quarter of all values are ties."""
    rng = np.random.default_rng(5)
    return (rng.integers(-(2 ** (bits + 2)), 2 ** (bits + 2), (1, 2, 8, 8)) / 2.0**bits).astype(np.float32)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("bits", range(2, 17))
def test_the_runtime_computes_what_integers_compute(
    net: tuple[Model, Given], bits: int, rounding: Any, per_channel: bool
) -> None:  # fmt: skip
    model, given = net
    made = Quantize(flavour="fixed", bits=bits, rounding=rounding, per_channel=per_channel)(model, given)
    scales = {t.name: t for t in made.proto.graph.initializer if t.name.endswith("/scale")}
    assert bool(scales) is per_channel
    exact = "more than the 24" not in made.history[-1].note
    assert exact or bits > 8
    x = inputs(min(bits, 12))
    got, wanted = Reference(made).run({"x": x})["y"], evaluate(made, {"x": x})["y"]
    if exact:
        np.testing.assert_array_equal(got, wanted)
    else:
        step = output_step(made)
        assert np.abs(got - wanted).max() <= 2 * step


def output_step(model: Model) -> float:
    last = next(n for n in model.proto.graph.node if n.output[0] == "y")
    return float(next(numpy_helper.to_array(t) for t in model.proto.graph.initializer if t.name == last.input[1]))


@pytest.mark.parametrize("bits", [2, 3, 5, 8, 9, 16])
def test_every_stored_value_fits_its_width(net: tuple[Model, Given], bits: int) -> None:
    model, given = net
    made = Quantize(flavour="fixed", bits=bits)(model, given)
    stored = {t.name: numpy_helper.to_array(t) for t in made.proto.graph.initializer}
    weights = [a for name, a in stored.items() if name.endswith("/code") and a.dtype != np.int32]
    assert len(weights) == 4
    for array in weights:
        assert array.dtype == (np.int8 if bits <= 8 else np.int16)
        assert -(2 ** (bits - 1)) <= array.min() and array.max() <= 2 ** (bits - 1) - 1
        assert np.abs(array.astype(int)).max() >= 2 ** (bits - 2), "half of the codes are not used"
    held = [n.output[0] for n in made.proto.graph.node if n.op_type == "QuantizeLinear"]
    clipped = {n.input[0]: n.output[0] for n in made.proto.graph.node if n.op_type == "Clip"}
    reference = Reference(made, [clipped.get(name, name) for name in held])
    values = reference.run({"x": inputs(min(bits, 12))})
    for name in held:
        array = values[clipped.get(name, name)].astype(int)
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if array.min() < 0 else (0, 2**bits - 1)
        assert low <= array.min() and array.max() <= high, name


def test_the_ways_to_round_differ_in_what_they_say_they_do(build: Any) -> None:
    values = np.array([-1.5, -0.5, 0.5, 1.5, 2.5, 0.49, -0.49])
    wanted = {"half_even": [-2, 0, 0, 2, 2, 0, 0], "half_up": [-1, 0, 1, 2, 3, 0, 0], "truncate": [-2, -1, 0, 1, 2, 0, -1]}
    node = helper.make_node("Identity", ["x"], ["i"], name="i")
    add = helper.make_node("Add", ["i", "zero"], ["y"], name="add")
    ranges = dict.fromkeys(("x", "i", "y"), (-128.0, 127.0))
    rounding: Any
    for rounding, expected in wanted.items():
        proto = build([node, add], [("x", [7])], [("y", [7])], {"zero": np.zeros(7, np.float32)})
        model = Model.from_proto(proto, "m")
        made, _ = fixed_point(model, ranges, ["add"], bits=8, rounding=rounding)
        got = Reference(Model.from_proto(made, "m")).run({"x": values.astype(np.float32)})["y"]
        np.testing.assert_array_equal(got, expected, err_msg=rounding)


def test_formats_cover_their_ranges_with_the_smallest_step() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        low, high = sorted(rng.uniform(-1, 1, 2) * 10.0 ** rng.uniform(-6, 6))
        bits = int(rng.integers(2, 17))
        form = covering(min(low, 0.0), max(high, 0.0), bits)
        assert form.low * form.step <= low and high <= form.high * form.step
        half = replace(form, exponent=form.exponent - 1)
        assert half.low * half.step > low or half.high * half.step < high
        assert form.signed == (low < 0)
    assert covering(0.0, 255.0, 8) == Format(8, 0, signed=False)
    assert covering(-128.0, 127.0, 8) == Format(8, 0, signed=True)
    assert covering(-128.0, 127.1, 8) == Format(8, 1, signed=True)


def test_tensors_have_the_width_of_what_computes_them_or_of_their_widest_reader(build: Any) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["xt"], name="turn"),
        helper.make_node("MatMul", ["xt", "w"], ["a"], name="narrow"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("LeakyRelu", ["a"], ["c"], name="leaky"),
        helper.make_node("MatMul", ["x", "w"], ["d"], name="wide"),
        helper.make_node("Add", ["b", "d"], ["y"], name="sum"),
    ]
    proto = build(nodes, [("x", [3, 3])], [("y", [3, 3]), ("c", [3, 3])], {"w": np.eye(3, dtype=np.float32)})
    model = Model.from_proto(proto, "m")
    found = tensor_bits(model, [node.name for node in nodes], 8, {"narrow": 3, "wide": 9, "leaky": 5})
    assert {name: found[name] for name in ("x", "xt", "a", "b", "c", "d", "y")} == {
        "x": 9, "xt": 3, "a": 3, "b": 3, "c": 5, "d": 9, "y": 8,
    }  # fmt: skip
    alone = tensor_bits(model, ["narrow"], 8, {"narrow": 3})
    assert alone["x"] == 3 and alone["a"] == 3


def test_outliers_of_weights_are_clipped_where_that_loses_less() -> None:
    values = np.random.default_rng(0).normal(0, 1, 4096).astype(np.float32)
    values[0] = 17.0
    form = best(values, 4)
    assert form.exponent < covering(float(values.min()), float(values.max()), 4).exponent
    assert np.array_equal(codes(np.array([1e9, -1e9]), form), [form.high, form.low])


@pytest.mark.parametrize(("net_name", "bits", "most"), [("cnn", 8, 0.01), ("cnn", 6, 0.03),
                         ("resnet", 8, 0.02), ("vit", 8, 0.02), ("mobilenet", 8, 0.03), ("mobilenet", 16, 0.005)])  # fmt: skip
def test_trained_nets_keep_their_accuracy(net_name: str, bits: int, most: float) -> None:
    source = Model.load(NETS / f"fashion_{net_name}.onnx")
    given = Given(source, Samples.from_arrays({"image": fashion_samples("train", 0, 64)["image"]}, source.signature, "images"))
    model = Fold()(source, given)
    made = Quantize(flavour="fixed", bits=bits)(model, given)
    check = fashion_samples("t10k", 0, 300)

    def accuracy(which: Model) -> float:
        reference = Reference(which)
        right = [reference.run({"image": image[None]})["logits"].argmax() == label
                 for image, label in zip(check["image"], check["labels"], strict=True)]  # fmt: skip
        return float(np.mean(right))

    assert accuracy(made) >= accuracy(model) - most
    assert made.signature == model.signature


def test_nodes_have_names_of_their_own_where_nodes_are_named_after_their_outputs(net: tuple[Model, Given]) -> None:
    model, given = net
    proto = model.copy_proto()
    for node in proto.graph.node:
        node.name = node.output[0]
    model = model.changed(proto)
    names = [n.name for n in Quantize(flavour="fixed")(model, given).proto.graph.node]
    assert len(set(names)) == len(names)


def test_layers_that_are_kept_stay_in_float_and_one_alone_can_be_fixed(net: tuple[Model, Given]) -> None:
    model, given = net
    kept = Quantize(flavour="fixed", keep=("two",))(model, given)
    node = next(n for n in kept.proto.graph.node if n.name == "two")
    stored = {t.name: t.data_type for t in kept.proto.graph.initializer}
    assert stored[node.input[1]] == onnx.TensorProto.FLOAT
    alone = Quantize(flavour="fixed", only=("three",))(model, given)
    assert [n.op_type for n in alone.proto.graph.node].count("QuantizeLinear") == 2, "its input and its output"
    assert "1 weighted layers quantised, 3 left in float" in alone.history[-1].note


def test_what_fixed_point_cannot_hold_is_refused(build: Any) -> None:
    weights = {"w": np.ones((8, 8), np.float32), "b": np.ones(8, np.float32)}
    node = helper.make_node("Gemm", ["x", "w", "c"], ["y"], name="g", beta=0.5)
    model = Model.from_proto(build([node], [("x", [1, 8]), ("c", [1, 8])], [("y", [1, 8])], {"w": weights["w"]}), "m")
    given = Given(model, replace(synthetic(model, 4), synthetic=False))
    with pytest.raises(PassError, match="Gemm g scales by alpha or beta"):
        Quantize(flavour="fixed")(model, given)
    for bits in (1, 17):
        with pytest.raises(PassError, match=rf"flavour fixed with bits = {bits}; allowed: 2 to 16"):
            Quantize(flavour="fixed", bits=bits)


@pytest.mark.parametrize("shape", [(1,), (1, 5), (3, 5), (3, 1), ()])
@pytest.mark.parametrize("per_channel", [True, False])
def test_a_gemm_may_add_what_gemm_allows(build: Any, shape: tuple[int, ...], per_channel: bool) -> None:
    rng = np.random.default_rng(5)
    weights = {"w": rng.standard_normal((8, 5)).astype(np.float32), "c": (3 * rng.standard_normal(shape)).astype(np.float32)}
    node = helper.make_node("Gemm", ["x", "w", "c"], ["y"], name="dense")
    model = Model.from_proto(build([node], [("x", [3, 8])], [("y", [3, 5])], weights), "m")
    given = Given(model, replace(synthetic(model, 16), synthetic=False))
    made = Quantize(flavour="fixed", per_channel=per_channel)(model, given)
    for sample in given.train:
        got, wanted = Reference(made).run(sample)["y"], Reference(model).run(sample)["y"]
        assert np.abs(got - wanted).max() < 0.03 * np.abs(wanted).max()


def test_what_two_nodes_share_is_loaded_where_integers_change_their_sign(build: Any) -> None:
    weights = {"w": np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype(np.float32) / 6, "half": np.float32(0.5)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="one", pads=[1, 1, 1, 1]),
        helper.make_node("Mul", ["a", "half"], ["b"], name="less"),
        helper.make_node("Conv", ["b", "w"], ["c"], name="two", pads=[1, 1, 1, 1]),
        helper.make_node("Mul", ["c", "half"], ["d"], name="least"),
        helper.make_node("Add", ["b", "d"], ["y"], name="sum"),
    ]
    model = Model.from_proto(build(nodes, [("x", [1, 4, 6, 6])], [("y", [1, 4, 6, 6])], weights), "m")
    made = Quantize(flavour="fixed")(model, Given(model, replace(synthetic(model, 16), synthetic=False)))
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    ort.InferenceSession(made.to_bytes(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_what_is_rounded_already_is_not_rounded_again(net: tuple[Model, Given], rounding: Any) -> None:
    model, given = net
    once = Quantize(flavour="fixed", rounding=rounding, keep=("dense",))(model, given)
    twice = Quantize(flavour="fixed", bits=4)(once, given)
    whole = Quantize(flavour="fixed", bits=4, only=("dense",))(once, given)
    assert twice.to_bytes() == whole.to_bytes(), "another node than the one that was left took part"
    assert Quantize(flavour="fixed", bits=4).nodes(once) == ["dense"]


def test_integers_of_another_form_are_refused(net: tuple[Model, Given]) -> None:
    model, given = net
    dynamic = Quantize(flavour="dynamic")(model, given)
    with pytest.raises(PassError, match="DynamicQuantizeLinear computes on integers already"):
        Quantize(flavour="fixed")(dynamic, given)


def test_outputs_of_foreign_operators_keep_their_types(build: Any) -> None:
    weights = {"a": np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "a"], ["p"], name="one"), helper.make_node("MatMul", ["p", "p"], ["y"], name="two")]
    model = Model.from_proto(build(nodes, [("x", [32, 32])], [("y", [32, 32])], weights), "m")
    given = Given(model, replace(synthetic(model, 4), synthetic=False))
    packed = Quantize(flavour="weights")(model, given)
    made, _ = fixed_point(packed, dict.fromkeys(("x", "p", "y"), (-8.0, 7.0)), ["one", "two"], bits=8, rounding="half_even")
    assert "p/wide" in value_types(Model.from_proto(made, "m").proto.graph)


TABLES = ("LayerNormalization", "Sigmoid", "Gelu", "Tanh", "Softmax", "HardSwish", "Softplus", "Elu", "Mish", "Exp")


@pytest.mark.parametrize("following", ["Relu", "LeakyRelu", "Clip"])
@pytest.mark.parametrize("function", TABLES)
def test_what_comes_out_of_a_table_is_rounded_before_its_activation(build: Any, function: str, following: str) -> None:
    rng = np.random.default_rng(0)
    stored = {
        "w": rng.normal(0, 1, (4, 5)), "b": rng.normal(0, 1, 5), "g": np.ones(5), "z": np.zeros(5), "v": rng.normal(0, 1, (5, 3)),
        "low": np.array(0.0), "high": np.array(0.5),
    }  # fmt: skip
    read = ["a", "g", "z"] if function == "LayerNormalization" else ["a"]
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["a"], name="fc"), helper.make_node(function, read, ["l"], name="function"),
        helper.make_node(following, ["l", "low", "high"] if following == "Clip" else ["l"], ["y"], name="activation"),
        helper.make_node("MatMul", ["y", "v"], ["s"], name="last"),
    ]  # fmt: skip
    used = {name for node in nodes for name in node.input}
    held = {name: array.astype(np.float32) for name, array in stored.items() if name in used}
    model = Model.from_proto(build(nodes, [("x", [1, 4])], [("s", [1, 3])], held, opset=20), "m")
    samples = Samples({"x": rng.normal(0, 1, (60, 1, 4)).astype(np.float32)}, "chosen")
    given = Given(model, samples)
    made = Quantize(flavour="fixed")(Fold()(model, given), given)
    program, quantised, reference = integer_program(made), Reference(made), Reference(model)
    wanted = np.concatenate([reference.run(sample)["s"] for sample in samples])
    found = np.concatenate([quantised.run(sample)["s"] for sample in samples])
    exact = program.decode(program.run(program.encode({"x": samples.arrays["x"][:, 0]})))["s"]
    ties = 0.02 if function == "LayerNormalization" else 0.0  # where float32 and integers may round to different sides
    assert (found != exact).mean() <= ties
    assert np.square(found - wanted).mean() < 0.1**2 * np.square(wanted).mean() + 1e-6


@pytest.mark.parametrize("bias", [-9.0, 0.0])
def test_a_tensor_that_is_zero_on_all_samples_has_a_usable_step_and_is_named(build: Any, bias: float) -> None:
    """A layer that is dead behind its Relu on the samples: other inputs may wake it."""
    weight = np.array([[1.0, 0.5], [0.5, 1.0]], np.float32) * (bias != 0)
    held = {"w": weight, "b": np.full(2, bias, np.float32), "v": np.eye(2, dtype=np.float32), "c": np.ones(2, np.float32)}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["a"], name="fc"), helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "v", "c"], ["y"], name="last"),
    ]  # fmt: skip
    model = Model.from_proto(build(nodes, [("x", [1, 2])], [("y", [1, 2])], held), "m")
    x = np.random.default_rng(0).uniform(-1, 1, (20, 1, 2)).astype(np.float32)
    given = Given(model, Samples({"x": x}, "chosen"))
    made = Quantize(flavour="fixed")(model, given)
    codes = next(one for name, one in integer_program(made).tensors.items() if name == "r")
    assert -10 <= codes.exponent <= 0 and codes.low == 0
    assert "zero on all samples" in made.history[-1].note and "guesses: r;" in made.history[-1].note
