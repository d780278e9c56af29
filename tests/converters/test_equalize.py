"""Equalize: the same function, its channels on a level, so that one scale fits them all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgesdk_converters.accuracy import relative_error
from edgesdk_converters.calibration import Samples, synthetic
from edgesdk_converters.equalize import Equalize
from edgesdk_converters.errors import PassError
from edgesdk_converters.fold import Fold
from edgesdk_converters.model import Model
from edgesdk_converters.observe import channel_peaks
from edgesdk_converters.passes import Given
from edgesdk_converters.quantize import Quantize
from edgesdk_converters.reference import Reference

from .outliers import plant_outliers

NETS = Path(__file__).parents[2] / "examples" / "fashion"
rng = np.random.default_rng(7)


def normal(*shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


def parity(before: Model, after: Model, samples: Samples) -> float:
    a, b = Reference(before), Reference(after)
    return max(relative_error(b.run(sample), a.run(sample)) for sample in samples)


@pytest.fixture
def fashion_samples(fashion: Callable[[str, int], tuple[Any, Any]]) -> Callable[[Model, int], Samples]:
    return lambda model, count: Samples.from_arrays({"image": fashion("train", count)[0]}, model.signature, "images")


@pytest.mark.parametrize("net", ["cnn", "mobilenet", "resnet", "vit"])
def test_trained_nets_compute_the_same(net: str, fashion_samples: Callable[[Model, int], Samples]) -> None:
    source = Model.load(NETS / f"fashion_{net}.onnx")
    samples = fashion_samples(source, 16)
    model = Fold()(source, Given(source, samples))
    made = Equalize()(model, Given(source, samples))
    assert parity(model, made, samples) <= 1e-5
    if net in ("cnn", "resnet", "vit"):
        assert made.to_bytes() != model.to_bytes()


@pytest.mark.parametrize("net", ["cnn", "resnet"])
def test_planted_outliers_go_and_integers_work_again(
    net: str, fashion: Callable[[str, int], tuple[Any, Any]], fashion_samples: Callable[[Model, int], Samples]
) -> None:
    benign = Model.load(NETS / f"fashion_{net}.onnx")
    source = benign.changed(plant_outliers(benign.proto, 256.0))
    samples = fashion_samples(source, 48)
    given = Given(source, samples)
    images, labels = fashion("t10k", 300)

    def accuracy(model: Model) -> float:
        made = Reference(model)
        return float(np.mean([made.run({"image": i[None]})["logits"].argmax() == n for i, n in zip(images, labels, strict=True)]))

    model = Fold()(source, given)
    level = Equalize()(model, given)
    assert parity(model, level, samples) <= 1e-5
    assert accuracy(Quantize()(model, given)) < accuracy(model) - 0.10
    assert accuracy(Quantize()(level, given)) >= accuracy(model) - 0.01


def test_peaks_and_weights_meet_in_the_middle(build: Any) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], name="one"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["y"], name="two"),
    ]
    scale = np.exp2(np.arange(8) - 4).astype(np.float32)
    weights = {
        "w1": normal(8, 3, 1, 1) * scale[:, None, None, None],
        "b1": normal(8) * scale,
        "w2": normal(4, 8, 1, 1) / scale[:, None, None],
    }
    model = Model.from_proto(build(nodes, [("x", [1, 3, 6, 6])], [("y", [1, 4, 6, 6])], weights), "m")
    samples = synthetic(model, 8)
    made = Equalize()(model, Given(model, samples))
    before, after = (channel_peaks(m, samples, ["r"])["r"] for m in (model, made))
    assert before.max() / before.min() > 50 and after.max() / after.min() < 16
    np.testing.assert_array_equal(*(Reference(m).run(next(iter(samples)))["y"] for m in (model, made)))  # powers of two


@pytest.mark.parametrize(
    "chain",
    [
        ("Relu",), ("LeakyRelu",), (), ("Relu", "MaxPool"), ("AveragePool",), ("Relu", "GlobalAveragePool", "Flatten"),
        ("Relu", "Flatten"), ("Depthwise", "Relu"),
    ],
)  # fmt: skip
def test_every_chain_stays_the_same_function(build: Any, chain: tuple[str, ...]) -> None:
    weights = {"w1": normal(6, 3, 3, 3) * np.exp2(np.arange(6) * 2 - 6).astype(np.float32)[:, None, None, None], "b1": normal(6)}
    nodes = [helper.make_node("Conv", ["x", "w1", "b1"], ["t0"], name="one")]
    size, flat = 8, False
    for index, op in enumerate(chain):
        source, result = f"t{index}", f"t{index + 1}"
        if op == "Depthwise":
            weights["wd"] = normal(6, 1, 3, 3)
            nodes.append(helper.make_node("Conv", [source, "wd"], [result], group=6, name="dw"))
            size -= 2
        elif op in ("MaxPool", "AveragePool"):
            nodes.append(helper.make_node(op, [source], [result], kernel_shape=[2, 2], strides=[2, 2]))
            size //= 2
        else:
            nodes.append(helper.make_node(op, [source], [result]))
            size = 1 if op == "GlobalAveragePool" else size
            flat |= op == "Flatten"
    last = f"t{len(chain)}"
    if flat:
        weights["w2"] = normal(6 * size * size, 5)
        nodes.append(helper.make_node("Gemm", [last, "w2"], ["y"], name="two"))
        shape = [1, 5]
    else:
        weights["w2"] = normal(5, 6, 1, 1)
        nodes.append(helper.make_node("Conv", [last, "w2"], ["y"], name="two"))
        shape = [1, 5, size, size]
    model = Model.from_proto(build(nodes, [("x", [1, 3, 10, 10])], [("y", shape)], weights), "m")
    samples = synthetic(model, 6)
    made = Equalize()(model, Given(model, samples))
    assert made.to_bytes() != model.to_bytes(), "nothing was scaled"
    assert parity(model, made, samples) <= 1e-6


def test_a_layer_norm_gives_its_outliers_to_the_matrices_after_it(build: Any) -> None:
    gamma = np.ones(16, np.float32)
    gamma[3] = 128
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gamma", "beta"], ["n"], axis=-1, name="norm"),
        helper.make_node("MatMul", ["n", "wq"], ["q"], name="query"),
        helper.make_node("MatMul", ["n", "wk"], ["k"], name="key"),
    ]
    weights = {"gamma": gamma, "beta": normal(16) * gamma, "wq": normal(16, 8), "wk": normal(16, 8)}
    weights["wq"][3] /= 128
    weights["wk"][3] /= 128
    model = Model.from_proto(build(nodes, [("x", [1, 5, 16])], [("q", [1, 5, 8]), ("k", [1, 5, 8])], weights), "m")
    samples = synthetic(model, 8)
    made = Equalize()(model, Given(model, samples))
    assert parity(model, made, samples) <= 1e-6
    before, after = (channel_peaks(m, samples, ["n"], axis=-1)["n"] for m in (model, made))
    assert before[3] > 20 * np.median(before) and after[3] < 8 * np.median(after)


@pytest.mark.parametrize("why", ["two readers of which one is no layer", "an output", "a clipped ReLU", "a residual sum"])
def test_what_must_not_be_scaled_is_left(build: Any, why: str) -> None:
    weights = {
        "w1": normal(4, 3, 1, 1) * np.exp2(np.arange(4) * 3).astype(np.float32)[:, None, None, None],
        "w2": normal(4, 4, 1, 1),
    }
    nodes = [helper.make_node("Conv", ["x", "w1"], ["a"], name="one")]
    outputs: list[tuple[Any, ...]] = [("y", [1, 4, 5, 5])]
    if why == "a clipped ReLU":
        weights |= {"zero": np.float32(0), "six": np.float32(6)}
        nodes.append(helper.make_node("Clip", ["a", "zero", "six"], ["r"]))
    else:
        nodes.append(helper.make_node("Relu", ["a"], ["r"]))
    nodes.append(helper.make_node("Conv", ["r", "w2"], ["c"], name="two"))
    if why == "two readers of which one is no layer":
        nodes.append(helper.make_node("Sigmoid", ["r"], ["s"]))
        nodes.append(helper.make_node("Add", ["c", "s"], ["y"]))
    elif why == "a residual sum":
        nodes.append(helper.make_node("Add", ["c", "r"], ["y"]))
    else:
        nodes.append(helper.make_node("Identity", ["c"], ["y"]))
    if why == "an output":
        outputs.append(("r", [1, 4, 5, 5]))
    model = Model.from_proto(build(nodes, [("x", [1, 3, 5, 5])], outputs, weights), "m")
    samples = synthetic(model, 4)
    made = Equalize()(model, Given(model, samples))
    assert parity(model, made, samples) <= 1e-6
    values = {t.name: numpy_helper.to_array(t) for t in made.proto.graph.initializer}
    first = next(node for node in made.proto.graph.node if node.name == "one")
    np.testing.assert_array_equal(values[first.input[1]], weights["w1"])


def test_shared_weights_part_before_they_change(build: Any) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="one"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "w"], ["y"], name="two"),
    ]
    weights = {"w": normal(4, 4, 1, 1) * np.exp2(np.arange(4) * 3).astype(np.float32)[:, None, None, None]}
    model = Model.from_proto(build(nodes, [("x", [1, 4, 5, 5])], [("y", [1, 4, 5, 5])], weights), "m")
    samples = synthetic(model, 4)
    assert parity(model, Equalize()(model, Given(model, samples)), samples) <= 1e-6


def test_strength_is_checked() -> None:
    with pytest.raises(PassError, match="strength"):
        Equalize(strength=0)


def test_a_second_time_the_new_weights_have_new_names(conv_net: onnx.ModelProto, given: Any) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(conv_net)
    model = Model.from_proto(proto, "m")
    what = given(model)
    weaker = Equalize(strength=0.25)(Fold()(model, what), what)
    made = Equalize(strength=1.0)(weaker, what)
    assert made.to_bytes() != weaker.to_bytes() and parity(model, made, what.train) <= 1e-5
