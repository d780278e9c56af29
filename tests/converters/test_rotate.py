"""Rotate: the same function, without outlier channels before its dense layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from edgesdk_converters.accuracy import relative_error
from edgesdk_converters.calibration import Samples, synthetic
from edgesdk_converters.errors import PassError
from edgesdk_converters.fold import Fold
from edgesdk_converters.model import Model
from edgesdk_converters.observe import channel_peaks
from edgesdk_converters.passes import Given
from edgesdk_converters.quantize import Quantize
from edgesdk_converters.reference import Reference
from edgesdk_converters.rotate import Rotate, hadamard

VIT = Path(__file__).parents[2] / "examples" / "fashion" / "fashion_vit.onnx"


def parity(before: Model, after: Model, samples: Samples) -> float:
    a, b = Reference(before), Reference(after)
    return max(relative_error(b.run(sample), a.run(sample)) for sample in samples)


@pytest.fixture
def outliers(build: Any) -> tuple[Model, Samples]:
    """Two dense layers on 64 channels of which two are 40 times as large as the others, as in transformers."""
    rng = np.random.default_rng(0)
    scale = np.ones(64, np.float32)
    scale[[5, 40]] = 40
    weights = {
        "s": scale,
        "w1": rng.standard_normal((64, 32)).astype(np.float32),
        "w2": rng.standard_normal((16, 64)).astype(np.float32),
    }
    weights["w1"] /= scale[:, None]
    nodes = [
        helper.make_node("Mul", ["x", "s"], ["m"], name="scale"),
        helper.make_node("MatMul", ["m", "w1"], ["y1"], name="one"),
        helper.make_node("Gemm", ["m", "w2"], ["y2"], name="two", transB=1),
    ]
    model = Model.from_proto(build(nodes, [("x", [8, 64])], [("y1", [8, 32]), ("y2", [8, 16])], weights), "m")
    made = synthetic(model, 16)
    return model, Samples(made.arrays, "a test", leading_axis=made.leading_axis)


def test_the_matrix_is_orthogonal() -> None:
    for size, block in ((64, 64), (192, 64), (6, 2)):
        matrix = hadamard(size, block)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-12)


def test_outliers_are_spread_and_the_function_stays(outliers: tuple[Model, Samples]) -> None:
    model, samples = outliers
    made = Rotate()(model, Given(model, samples))
    assert parity(model, made, samples) <= 1e-5
    assert [node.op_type for node in made.proto.graph.node].count("MatMul") == 2, "both layers share one rotation"
    before = channel_peaks(model, samples, ["m"], axis=-1)["m"]
    after = channel_peaks(made, samples, ["one/rotate"], axis=-1)["one/rotate"]
    assert before.max() > 20 * np.median(before) and after.max() < 3 * np.median(after)


def test_integers_lose_far_less(outliers: tuple[Model, Samples]) -> None:
    model, samples = outliers
    given = Given(model, samples)
    plain, rotated = (parity(model, Quantize(keep=("scale",))(m, given), samples) for m in (model, Rotate()(model, given)))
    assert rotated < 0.3 * plain


def test_rotations_stay_in_float(outliers: tuple[Model, Samples]) -> None:
    model, samples = outliers
    given = Given(model, samples)
    made = Quantize()(Rotate()(model, given), given)
    turn = next(node for node in made.proto.graph.node if node.name == "one/rotate")
    assert turn.input[1] == "one/rotate/matrix"


@pytest.mark.parametrize("threshold", [0.0, 8.0])
def test_a_transformer_computes_the_same(threshold: float) -> None:
    source = Model.load(VIT)
    samples = synthetic(source, 4)
    model = Fold()(source, Given(source, samples))
    made = Rotate(threshold=threshold)(model, Given(source, samples))
    assert parity(model, made, samples) <= 1e-5
    turns = sum(node.name.endswith("/rotate") for node in made.proto.graph.node)
    assert turns > 4 if threshold == 0 else turns <= 4


def test_options_are_checked() -> None:
    for options in ({"block": 48}, {"block": 1}, {"threshold": -1.0}):
        with pytest.raises(PassError):
            Rotate(**options)  # type: ignore[arg-type]


def test_what_is_rotated_is_not_rotated_again(outliers: tuple[Model, Samples]) -> None:
    model, samples = outliers
    given = Given(model, samples)
    once = Rotate(threshold=0.0)(model, given)
    assert Rotate(threshold=0.0)(once, given).to_bytes() == once.to_bytes()


def test_names_that_are_taken_stay_what_they_name(outliers: tuple[Model, Samples]) -> None:
    model, samples = outliers
    proto = model.copy_proto()
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(64, np.float32), "one/rotate/matrix"))
    proto.graph.node.insert(1, helper.make_node("Mul", ["m", "one/rotate/matrix"], ["one/rotate"], name="other"))
    proto.graph.node[2].input[0] = "one/rotate"
    named = model.changed(proto)
    made = Rotate()(named, Given(named, samples))
    assert parity(named, made, samples) <= 1e-5
    assert sum(node.name.endswith("/rotate") for node in made.proto.graph.node) == 2


@pytest.mark.parametrize("flavour", ["u8s8", "s8s8", "tensorrt"])
def test_a_relu_before_a_rotation_stays_when_the_rest_is_quantised(build: Any, flavour: Any) -> None:
    """Integers behind a Relu would clip at zero for it; before a rotation there are none."""
    rng = np.random.default_rng(1)
    weights = {name: rng.standard_normal((16, 16)).astype(np.float32) / 4 for name in ("a", "b")}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"], name="one"),
        helper.make_node("Relu", ["p"], ["q"], name="relu"),
        helper.make_node("MatMul", ["q", "b"], ["y"], name="two"),
    ]
    model = Model.from_proto(build(nodes, [("x", [4, 16])], [("y", [4, 16])], weights), "m")
    random = synthetic(model, 16)
    samples = Samples(random.arrays, "a test", leading_axis=random.leading_axis)
    given = Given(model, samples)
    rotated = Rotate(threshold=0.0)(model, given)
    made = Quantize(flavour=flavour)(rotated, given)
    assert "relu" in [node.name for node in made.proto.graph.node]
    assert parity(model, made, samples) < 0.05
