"""Low rank: what is of low rank loses nothing, the budget is met, one threshold decides for all layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from edgesdk_converters.accuracy import relative_error
from edgesdk_converters.calibration import Samples, synthetic
from edgesdk_converters.errors import PassError
from edgesdk_converters.fold import Fold
from edgesdk_converters.low_rank import LowRank
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given
from edgesdk_converters.reference import Reference
from edgesdk_converters.rotate import Rotate, hadamard

NETS = Path(__file__).parents[2] / "examples" / "fashion"
Fashion = Callable[[str, int], tuple[Any, Any]]


def thin(rows: int, columns: int, rank: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns))).astype(np.float32)


def given(model: Model) -> Given:
    return Given(model, synthetic(model, 4))


def difference(model: Model, made: Model) -> float:
    pairs = [(Reference(made).run(row), Reference(model).run(row)) for row in synthetic(model, 4, seed=7)]
    return max(relative_error(a, b) for a, b in pairs)


def weights(model: Model) -> int:
    return sum(int(np.prod(tensor.dims)) for tensor in model.proto.graph.initializer if len(tensor.dims) > 1)


@pytest.mark.parametrize("options", [{}, {"transB": 1}, {"alpha": 0.5, "beta": 2.0}, {"transB": 1, "alpha": 3.0}, None], ids=str)
def test_a_dense_layer_of_low_rank_loses_nothing(build: Any, options: dict[str, Any] | None) -> None:
    turned = bool(options and options.get("transB"))
    stored = {"w": thin(24, 32, 4) if turned else thin(32, 24, 4), "b": np.arange(24, dtype=np.float32)}
    if options is None:
        nodes = [helper.make_node("MatMul", ["x", "w"], ["a"], name="dense"), helper.make_node("Add", ["a", "b"], ["y"])]
    else:
        nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="dense", **options)]
    model = Model.from_proto(build(nodes, [("x", [3, 32])], [("y", [3, 24])], stored), "m")
    made = LowRank(removed=0.7)(model, given(model))
    assert difference(model, made) < 1e-5 and weights(made) <= 0.3 * weights(model)
    assert [node.name for node in made.proto.graph.node][:2] == ["dense/down", "dense"]
    assert "1 of 1 layers factorised" in made.history[-1].note


@pytest.mark.parametrize(
    ("rank", "options"),
    [
        (1, {"pads": [1, 1]}), (2, {"pads": [1, 0, 2, 1], "strides": [2, 1]}), (2, {"dilations": [2, 1]}),
        (2, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}), (3, {}),
    ],
)  # fmt: skip
def test_a_convolution_of_low_rank_loses_nothing(build: Any, rank: int, options: dict[str, Any]) -> None:
    kernel = (3,) * rank
    values = thin(16, 8 * 3**rank, 3).reshape(16, 8, *kernel)
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv", **options)]
    stored = {"w": values, "b": np.arange(16, dtype=np.float32)}
    model = Model.from_proto(build(nodes, [("x", [1, 8, *(9,) * rank])], [("y", [1, 16, *[None] * rank])], stored), "m")
    made = LowRank(removed=0.5)(model, given(model))
    assert difference(model, made) < 1e-5 and weights(made) <= 0.5 * weights(model)
    assert [node.op_type for node in made.proto.graph.node] == ["Conv", "Conv"]


def two(build: Any, steep: Any, flat: Any) -> Model:
    nodes = [
        helper.make_node("MatMul", ["x", "steep"], ["a"], name="one"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "flat"], ["y"], name="two"),
    ]
    return Model.from_proto(build(nodes, [("x", [1, 32])], [("y", [1, 32])], {"steep": steep, "flat": flat}), "two")


def test_the_budget_is_met_with_the_least_threshold(build: Any) -> None:
    rng = np.random.default_rng(1)
    model = two(build, rng.standard_normal((32, 32)).astype(np.float32), rng.standard_normal((32, 32)).astype(np.float32))
    for removed in (0.1, 0.3, 0.6, 0.9):
        made = LowRank(removed=removed)(model, given(model))
        left = weights(made) / weights(model)
        assert left <= 1 - removed < left + 2 * 64 / weights(model) + 1e-9, "one rank more in a layer would be too much"


def test_one_threshold_takes_more_from_the_matrix_whose_spectrum_falls_faster(build: Any) -> None:
    rng = np.random.default_rng(2)
    u, v = (np.linalg.qr(rng.standard_normal((32, 32)))[0] for _ in range(2))
    steep, flat = ((u * np.exp(-np.arange(32) / fall)) @ v for fall in (3.0, 30.0))
    model = two(build, steep.astype(np.float32), flat.astype(np.float32))
    names = {node.name for node in LowRank(removed=0.4)(model, given(model)).proto.graph.node}
    assert "one/down" in names and "two/down" not in names
    with pytest.raises(PassError, match=r"95% of the weights cannot go; rank 1 everywhere removes 93\.8%"):
        LowRank(removed=0.95)(model, given(model))


def test_shared_and_grouped_weights_stay_whole(build: Any) -> None:
    rng = np.random.default_rng(3)
    stored = {
        "g": rng.standard_normal((8, 4, 3, 3)), "s": rng.standard_normal((8, 8, 1, 1)),
        "w": thin(16, 8 * 9, 2).reshape(16, 8, 3, 3),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "g"], ["a"], name="grouped", group=2, pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "s"], ["b"], name="first"),
        helper.make_node("Conv", ["b", "s"], ["c"], name="again"),
        helper.make_node("Conv", ["c", "w"], ["y"], name="last"),
    ]
    values = {name: np.asarray(value, np.float32) for name, value in stored.items()}
    model = Model.from_proto(build(nodes, [("x", [1, 8, 8, 8])], [("y", [1, 16, 6, 6])], values), "m")
    made = LowRank(removed=0.5)(model, given(model))
    assert [node.name for node in made.proto.graph.node] == ["grouped", "first", "again", "last/down", "last"]
    assert difference(model, made) < 1e-5


def test_what_cannot_be_asked_for(build: Any) -> None:
    with pytest.raises(PassError, match="removed is 1; allowed: above 0, below 1"):
        LowRank(removed=1)
    bare = Model.from_proto(build([helper.make_node("Relu", ["x"], ["y"])], [("x", [1, 4])], [("y", [1, 4])]), "bare")
    with pytest.raises(PassError, match="no layer that could be factorised"):
        LowRank()(bare, given(bare))
    net = Model.load(NETS / "fashion_cnn.onnx")
    with pytest.raises(PassError, match="finetune learns from data"):
        LowRank(removed=0.3, finetune=1)(net, given(net))


def test_fine_tuning_brings_back_what_was_lost(fashion: Fashion) -> None:
    source = Model.load(NETS / "fashion_cnn.onnx")
    images, labels = fashion("train", 600)
    lessons = Samples({"image": images}, "training images", labels, leading_axis={"image": True})
    everything = Given(source, lessons.take(np.arange(16)), lessons=lessons)
    folded = Fold()(source, everything)
    bare, repaired = (LowRank(removed=0.5, finetune=epochs)(folded, everything) for epochs in (0, 2))
    test_images, test_labels = fashion("t10k", 300)

    def accuracy(model: Model) -> float:
        reference = Reference(model)
        found = [reference.run({"image": image[None]})["logits"][0].argmax() for image in test_images]
        return float(np.mean(np.array(found) == test_labels))

    assert accuracy(repaired) > accuracy(bare) + 0.1
    assert [step.name for step in repaired.history] == ["fold", "low_rank", "train"]
    shapes = [{t.name: tuple(t.dims) for t in m.proto.graph.initializer} for m in (bare, repaired)]
    assert shapes[0] == shapes[1]
    assert all(np.isfinite(numpy_helper.to_array(tensor)).all() for tensor in repaired.proto.graph.initializer)


def test_a_flat_spectrum_gives_up_nothing_before_others(build: Any) -> None:
    """An orthogonal matrix has singular values that differ by rounding alone: these differences mean nothing."""
    model = two(build, thin(32, 32, 6), hadamard(32, 32).astype(np.float32))
    made = LowRank(removed=0.44)(model, given(model))
    assert [node.name for node in made.proto.graph.node] == ["one/down", "one", "relu", "two"]


def test_rotations_stay_whole(build: Any) -> None:
    rng = np.random.default_rng(4)
    model = two(build, *(rng.standard_normal((32, 32)).astype(np.float32) for _ in range(2)))
    rotated = Rotate(threshold=0.0)(model, given(model))
    made = LowRank(removed=0.9)(rotated, given(rotated))
    assert "90.6% of 2,048 weights gone" in made.history[-1].note
    names = [node.name for node in made.proto.graph.node]
    assert "one/rotate" in names and "one/rotate/down" not in names
