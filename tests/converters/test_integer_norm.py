"""LayerNormalization read off a fixed-point graph: within its bound of exact arithmetic, near ONNX Runtime, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesdk_converters import integer_reader
from edgesdk_converters.calibration import Samples
from edgesdk_converters.errors import Unsupported
from edgesdk_converters.integer_curves import LayerNorm
from edgesdk_converters.integer_program import IntegerProgram
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given
from edgesdk_converters.quantize import Quantize
from edgesdk_converters.reference import Reference

from .test_fixed import ROUNDINGS
from .test_integer_reader import between, qdq, stacked, wild
from .test_spelt_out import spelt


def model(build: Any, count: int, *, affine: bool = True, epsilon: float = 1e-5) -> Model:
    """Tokens (1, 3, 5), a dense layer, and its normalised results."""
    rng = np.random.default_rng(count)
    read = ["s", "gain", "bias"] if affine else ["s", "gain"]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["s"], name="m"),
             helper.make_node("LayerNormalization", read, ["y"], name="norm", epsilon=epsilon)]  # fmt: skip
    weights = {
        "w": rng.standard_normal((5, count)),
        "gain": 1 + rng.standard_normal(count) / 4,
        "bias": rng.standard_normal(count) / 3,
    }
    weights = {name: weights[name].astype(np.float32) for name in ("w", *read[1:])}
    return Model.from_proto(build(nodes, [("x", [1, 3, 5])], [("y", [1, 3, count])], weights), "m")


def quantised(source: Model, **options: Any) -> Model:
    rng = np.random.default_rng(4)
    x = rng.standard_normal((40, 1, 3, 5)) * np.exp2(rng.integers(-5, 3, (40, 1, 3, 1)))
    return Quantize(flavour="fixed", **options)(source, Given(source, Samples({"x": x.astype(np.float32)}, "chosen")))


def norm_of(program: IntegerProgram) -> LayerNorm:
    (found,) = (op for op in program.operations if isinstance(op, LayerNorm))
    return found


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(
    ("count", "bits", "epsilon"), [(4, 4, 1e-5), (12, 8, 1e-5), (33, 8, 1e-2), (16, 12, 0.0), (10, 16, 1e-5)]
)
def test_results_are_within_the_bound_and_near_the_runtime_s(
    build: Any, count: int, bits: int, epsilon: float, rounding: Any
) -> None:
    made = quantised(model(build, count, epsilon=epsilon), bits=bits, rounding=rounding)
    program = integer_reader.program(made)
    op = norm_of(program)
    source, result, y = (program.tensors[name] for name in (op.source, op.result, "y"))
    feeds = wild(made, 60)
    known = program.run(program.encode(stacked(feeds)), keep=True)
    values = known[op.source] * source.step
    deviation = np.sqrt(values.var(axis=-1, keepdims=True) + op.epsilon)
    far = values - values.mean(axis=-1, keepdims=True)
    normal = np.divide(far, deviation, out=np.zeros_like(far), where=deviation > 0)
    exact = normal * (op.gain * 2.0 ** (op.bits + op.up)) * result.step + op.bias * result.step
    assert np.abs(known[op.result] * result.step - exact).max() / y.step <= op.error < 0.15
    assert result.low <= known[op.result].min() and known[op.result].max() <= result.high
    assert not program.exact["norm"] and any("norm: layer normalisation by exact sums" in note for note in program.notes)
    reference = Reference(made)
    apart = np.abs(known["y"] - np.concatenate([reference.run(feed)["y"] for feed in feeds]) / y.step)
    if epsilon:  # else float32 divides nothing by nothing
        assert apart.max() <= (1 if bits <= 12 else 8), "in 16 bits float32 itself is some codes off"
        assert (apart > 0).mean() < 0.05


def test_scale_and_bias_are_stored_on_grids_and_the_bias_is_finer_than_the_result(build: Any) -> None:
    made = quantised(model(build, 12), bits=6)
    program = integer_reader.program(made)
    op = norm_of(program)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.proto.graph.initializer}
    assert stored["gain/code"].dtype == np.int8 and np.abs(stored["gain/code"]).max() <= 32
    assert stored["bias/code"].dtype == np.int32 and 2**12 < np.abs(stored["bias/code"]).max() <= 2**13
    assert np.array_equal(op.gain, stored["gain/code"])


def test_without_a_bias_and_spelt_out_by_older_exporters(build: Any) -> None:
    program = integer_reader.program(quantised(model(build, 8, affine=False)))
    assert not norm_of(program).bias.any()
    plain = spelt(build, square="Mul", opset=13)
    proto = plain.copy_proto()
    proto.graph.node.insert(0, helper.make_node("MatMul", ["image", "w"], ["x"], name="m"))
    proto.graph.input[0].CopyFrom(helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 5]))
    proto.graph.value_info.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 6]))
    proto.graph.initializer.append(
        numpy_helper.from_array(np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32), "w")
    )
    whole = Model.from_proto(proto, "whole")
    samples = Samples({"image": np.random.default_rng(1).standard_normal((20, 1, 3, 5)).astype(np.float32)}, "chosen")
    made = Quantize(flavour="fixed")(whole, Given(whole, samples))
    assert norm_of(integer_reader.program(made)).node == "shifted"


def test_a_scale_of_zeros_gives_the_bias(build: Any) -> None:
    source = model(build, 4)
    proto = source.copy_proto()
    gain = next(tensor for tensor in proto.graph.initializer if tensor.name == "gain")
    gain.CopyFrom(numpy_helper.from_array(np.zeros(4, np.float32), "gain"))
    made = quantised(Model.from_proto(proto, "zeros"))
    program = integer_reader.program(made)
    feeds = wild(made, 10)
    got = program.run(program.encode(stacked(feeds)))["y"] * program.tensors["y"].step
    np.testing.assert_array_equal(got, np.concatenate([Reference(made).run(feed)["y"] for feed in feeds]))


def _other_axis(build: Any) -> Model:
    node = helper.make_node("LayerNormalization", ["r", "g"], ["t"], name="norm", axis=1)
    return between(build, [node], [1, 3, 4], [1, 3, 4], {"g": np.ones((3, 4), np.float32)})


def _computed_scale(build: Any) -> Model:
    flat = helper.make_node("Reshape", ["r", "four"], ["flat"], name="flatten")
    node = helper.make_node("LayerNormalization", ["r", "flat"], ["t"], name="norm", axis=-1)
    return between(build, [flat, node], [1, 4], [1, 4], {"four": np.array([4])})


def _unrounded(build: Any) -> Model:
    before, held = qdq("x", "r", 0.5)
    node = helper.make_node("LayerNormalization", ["r", "g"], ["y"], name="norm")
    return Model.from_proto(build([*before, node], [("x", [1, 4])], [("y", [1, 4])], {**held, "g": np.ones(4, np.float32)}), "m")


def _mean_read(build: Any) -> Model:
    nodes = [helper.make_node("LayerNormalization", ["r", "g"], ["t", "mean"], name="norm"),
             helper.make_node("Relu", ["mean"], ["second"], name="relu")]  # fmt: skip
    before, held = qdq("x", "r", 1.0)
    behind, more = qdq("t", "y", 0.5)
    stored = {**held, **more, "g": np.ones(4, np.float32)}
    proto = build([*before, *nodes, *behind], [("x", [1, 4])], [("y", [1, 4]), ("second", [1, 1])], stored)
    return Model.from_proto(proto, "m")


def _wide(build: Any) -> Model:
    node = helper.make_node("LayerNormalization", ["w", "g"], ["t"], name="norm")
    wide = [helper.make_node("Mul", ["r", "r"], ["s"], name="square"), helper.make_node("Mul", ["s", "s"], ["w"], name="again")]
    return between(build, [*wide, node], [1, 64], [1, 64], {"g": np.ones(64, np.float32)})


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (_other_axis, "axis 1 of 3; allowed: the last"), (_computed_scale, "'flat' is computed; allowed: stored values"),
        (_unrounded, "its result is rounded nowhere"), (_mean_read, "its mean or deviation is read; allowed: its result alone"),
        (_wide, r"it needs \d+ bits inside; allowed: 62"),
    ],
)  # fmt: skip
def test_what_is_no_row_of_few_bits_is_refused(build: Any, made: Callable[[Any], Model], reason: str) -> None:
    with pytest.raises(Unsupported, match=reason) as caught:
        integer_reader.program(made(build))
    assert (caught.value.node, caught.value.operator) == ("norm", "LayerNormalization") and caught.value.hint


def test_the_finer_the_result_the_finer_the_root(build: Any) -> None:
    found = [norm_of(integer_reader.program(quantised(model(build, 12), bits=bits))) for bits in (5, 8, 12)]
    sizes = [len(op.root.base) for op in found]
    assert sizes == sorted(sizes) and sizes[0] < sizes[2] / 4
    assert found[0].bits < found[1].bits < found[2].bits
