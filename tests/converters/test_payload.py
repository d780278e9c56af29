"""Payload: bytes cross a cut, what is restored is within half a step, and the packing is that which it says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesdk_converters.calibration import synthetic
from edgesdk_converters.errors import PassError
from edgesdk_converters.graph import value_types
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given
from edgesdk_converters.payload import Payload, packed_bytes
from edgesdk_converters.reference import Reference


@pytest.fixture
def model(build: Any) -> Model:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Tanh", ["c"], ["t"], name="tanh"),
        helper.make_node("ReduceMean", ["t"], ["m"], name="mean", axes=[2, 3], keepdims=0),
        helper.make_node("Add", ["m", "b"], ["y"], name="add"),
    ]
    weights = {"w": rng.standard_normal((3, 2, 2, 2)).astype(np.float32), "b": np.float32([1, 2, 3])}
    return Model.from_proto(build(nodes, [("x", [1, 2, 6, 8])], [("y", [1, 3])], weights), "m")


def given(model: Model) -> Given:
    return Given(model, replace(synthetic(model, 16), synthetic=False, origin="made for a test"))


@pytest.mark.parametrize("bits", range(2, 9))
def test_as_many_bits_cross_as_were_asked_for_and_come_back_within_half_a_step(model: Model, bits: int) -> None:
    made = Payload(at="t", bits=bits, calibration="minmax")(model, given(model))
    kind = value_types(made.proto.graph)["t/payload"]
    assert kind.elem_type == TensorProto.UINT8 and kind.elements == packed_bytes(3 * 5 * 7, bits)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.proto.graph.initializer}
    step = float(stored["t/payload/scale"])
    run = Reference(made, ["t", "t/restored"])
    worst = max(float(np.abs(got["t"] - got["t/restored"]).max()) for got in map(run.run, given(model).train))
    assert 0.2 * step < worst <= 0.5 * step + 1e-6
    assert made.history[-1].options == {"at": "t", "bits": bits}


@pytest.mark.parametrize("bits", range(2, 8))
def test_codes_lie_one_after_another_as_a_little_endian_stream_of_bits(model: Model, bits: int) -> None:
    made = Payload(at="t", bits=bits)(model, given(model))
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.proto.graph.initializer}
    scale, zero = float(stored["t/payload/scale"]), int(stored["t/payload/zero"])
    for case in given(model).train.take(range(3)):
        got = Reference(made, ["t", "t/payload"]).run(case)
        codes = np.clip(np.rint(got["t"].reshape(-1).astype(np.float64) / scale) + zero, 0, 2**bits - 1).astype(int)
        stream = "".join(format(code, f"0{bits}b")[::-1] for code in codes)
        stream += "0" * (-len(stream) % 8)
        wanted = [int(stream[place : place + 8][::-1], 2) for place in range(0, len(stream), 8)]
        assert got["t/payload"].reshape(-1).tolist() == wanted


def test_values_outside_the_range_saturate(model: Model) -> None:
    few = given(model)
    made = Payload(at="c", bits=3)(model, few)
    case = {"x": np.full((1, 2, 6, 8), 50, np.float32)}
    got = Reference(made, ["c", "c/restored"]).run(case)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.proto.graph.initializer}
    scale, zero = float(stored["c/payload/scale"]), int(stored["c/payload/zero"])
    assert set(np.unique(got["c/restored"])) <= {np.float32(-zero * scale), np.float32((7 - zero) * scale)}


def test_more_bits_are_nearer(model: Model) -> None:
    wanted = [Reference(model).run(case)["y"] for case in given(model).train]
    errors = []
    for bits in range(2, 9):
        run = Reference(Payload(at="t", bits=bits)(model, given(model)))
        errors.append(max(float(np.abs(run.run(c)["y"] - y).max()) for c, y in zip(given(model).train, wanted, strict=True)))
    assert errors == sorted(errors, reverse=True) and errors[0] > 5 * errors[-1]


@pytest.mark.parametrize(
    ("at", "told"), [("nothing", "no tensor inside"), ("x", "no tensor inside"), ("y", "is an output"), ("", "no tensor inside")]
)
def test_what_cannot_cross_is_refused(model: Model, at: str, told: str) -> None:
    with pytest.raises(PassError, match=told):
        Payload(at=at)(model, given(model))


def test_made_up_data_and_widths_out_of_range_are_refused(model: Model) -> None:
    with pytest.raises(PassError, match="ranges are taken from data"):
        Payload(at="t")(model, Given(model, synthetic(model, 4)))
    for bits in (1, 9):
        with pytest.raises(PassError, match=f"bits is {bits}; allowed: 2 to 8"):
            Payload(at="t", bits=bits)


def test_integers_and_dynamic_shapes_are_refused(build: Any) -> None:
    nodes = [helper.make_node("ArgMax", ["x"], ["i"], axis=1), helper.make_node("Relu", ["x"], ["r"]),
             helper.make_node("Cast", ["i"], ["y"], to=1), helper.make_node("Neg", ["r"], ["z"])]  # fmt: skip
    model = Model.from_proto(build(nodes, [("x", ["n", 4])], [("y", None), ("z", None)]), "m")
    rows = Given(model, given(model.with_shapes({"x": [1, 4]})).train)
    with pytest.raises(PassError, match="has type INT64; only float32"):
        Payload(at="i")(model, rows)
    with pytest.raises(PassError, match="not static"):
        Payload(at="r")(model, rows)
