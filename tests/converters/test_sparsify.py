"""Sparsify: exactly the weights that must go are zero, nothing else changes, and training keeps it so."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesdk_converters.calibration import Samples, synthetic
from edgesdk_converters.errors import PassError
from edgesdk_converters.fold import Fold
from edgesdk_converters.low_rank import LowRank
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given
from edgesdk_converters.quantize import Quantize
from edgesdk_converters.reference import Reference
from edgesdk_converters.sparsify import Sparsify

NETS = Path(__file__).parents[2] / "examples" / "fashion"
Fashion = Callable[[str, int], tuple[Any, Any]]


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def given(model: Model, count: int = 4, **more: Any) -> Given:
    return Given(model, synthetic(model, count), **more)


def stored(model: Model) -> dict[str, Any]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.proto.graph.initializer}


def one(build: Any, kind: str, weights: Any, image: tuple[int, ...] = (), **options: Any) -> Model:
    """A model of one layer and its bias; `image` is the shape of its input where it is none of vectors."""
    turned = options.get("transB", 0)
    inputs = weights.shape[1] * options.get("group", 1) if kind == "Conv" else weights.shape[-1 if turned else -2]
    shape = [1, inputs, *image] if kind == "Conv" else [*weights.shape[:-2], 3, inputs]
    rank = len(shape)
    nodes = [helper.make_node(kind, ["x", "w"] + (["b"] if kind != "MatMul" else []), ["y"], name="layer", **options)]
    outputs = weights.shape[0] if kind == "Conv" or turned else weights.shape[-1]
    values = {"w": weights} | ({"b": normal(outputs, seed=9)} if kind != "MatMul" else {})
    return Model.from_proto(build(nodes, [("x", shape)], [("y", [None] * rank)], values), "one")


def least_gone(weights: Any, axis: int, kept: int, of: int) -> Any:
    """The weights with all but the largest of each group set to zero, one group after another."""
    found = weights.copy()
    for place in np.ndindex(*[size for index, size in enumerate(weights.shape) if index != axis]):
        where: list[Any] = list(place)
        where.insert(axis, slice(None))
        row = found[tuple(where)]
        for first in range(0, len(row), of):
            group = sorted(range(first, first + of), key=lambda index, row=row: (-abs(row[index]), index))
            row[group[kept:]] = 0
        found[tuple(where)] = row
    return found


LAYERS = {
    "conv 1x1": ("Conv", (8, 16, 1, 1), (5, 5), {}, 1),
    "conv 3x3": ("Conv", (6, 8, 3, 3), (7, 7), {"pads": [1, 1, 1, 1]}, 1),
    "conv grouped": ("Conv", (6, 8, 3, 3), (7, 7), {"group": 2}, 1),
    "conv of signals": ("Conv", (5, 8, 3), (9,), {}, 1),
    "gemm": ("Gemm", (16, 6), (), {}, 0),
    "gemm turned": ("Gemm", (6, 16), (), {"transB": 1, "alpha": 0.5}, 1),
    "matmul": ("MatMul", (24, 5), (), {}, 0),
    "matmul of many": ("MatMul", (2, 8, 5), (), {}, 1),
}


@pytest.mark.parametrize(("kept", "of"), [(2, 4), (1, 4), (3, 4), (1, 2), (2, 8)])
@pytest.mark.parametrize("layer", LAYERS)
def test_the_largest_of_each_group_stay_and_nothing_else_changes(build: Any, layer: str, kept: int, of: int) -> None:
    kind, shape, image, options, axis = LAYERS[layer]
    weights = normal(*shape)
    model = one(build, kind, weights, image, **options)
    made = Sparsify(kept=kept, of=of)(model, given(model))
    assert np.array_equal(stored(made)["w"], least_gone(weights, axis, kept, of))
    groups = np.moveaxis(stored(made)["w"], axis, -1).reshape(-1, of)
    assert ((groups != 0).sum(1) == kept).all()
    step = made.history[-1]
    assert step.name == "sparsify" and step.options == {"kept": kept, "of": of}
    assert f"{kept}:{of} in 1 of 1 layers, {1 - kept / of:.1%} of their {weights.size} weights are zero. " in step.note
    back = made.copy_proto()
    tensor = next(tensor for tensor in back.graph.initializer if tensor.name == "w")
    tensor.raw_data = weights.tobytes()
    assert back.SerializeToString(deterministic=True) == model.to_bytes()
    assert Sparsify(kept=kept, of=of)(made, given(made)).to_bytes() == made.to_bytes(), "twice is once"


def test_of_equal_weights_the_first_stay(build: Any) -> None:
    weights = np.array([[1, -1, 1, 1, 0, 2, -2, 2], [0, 0, 0, 0, 3, 0, 0, 0]], np.float32).T.copy()
    model = one(build, "MatMul", weights)
    found = stored(Sparsify()(model, given(model)))["w"].T
    assert found.tolist() == [[1, -1, 0, 0, 0, 2, -2, 0], [0, 0, 0, 0, 3, 0, 0, 0]]


@pytest.mark.parametrize("kind", [np.float16, np.float64])
@pytest.mark.parametrize("raw", [True, False])
def test_other_floats_keep_their_type(build: Any, kind: Any, raw: bool) -> None:
    weights = normal(8, 4).astype(kind)
    code = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    proto = build([helper.make_node("MatMul", ["x", "w"], ["y"])], [("x", [1, 8], code)], [("y", [1, 4], code)], {"w": weights})
    if not raw:
        proto.graph.initializer[0].CopyFrom(helper.make_tensor("w", code, weights.shape, weights.reshape(-1)))
    proto.graph.initializer[0].doc_string = "kept"
    model = Model.from_proto(proto, "m")
    made = Sparsify()(model, given(model))
    assert stored(made)["w"].dtype == kind and np.array_equal(stored(made)["w"], least_gone(weights, 0, 2, 4))
    assert made.proto.graph.initializer[0].doc_string == "kept"


def test_layers_that_cannot_be_sparse_are_left_alone_and_counted(build: Any) -> None:
    values = {
        "odd": normal(8, 3, 3, 3), "deep": normal(8, 1, 3, 3), "shared": normal(8, 8, 1, 1), "up": normal(8, 4, 2, 2),
        "good": normal(4, 4, 1, 1), "vector": normal(12), "first": normal(4, 4), "turn": np.eye(4, dtype=np.float32),
        "whole": np.ones((4, 4), np.int32), "codes": np.ones((4, 4), np.int8), "scale": np.float32(0.1),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "odd"], ["a"], name="odd axis"),
        helper.make_node("Conv", ["a", "deep"], ["b"], name="depthwise", group=8),
        helper.make_node("Conv", ["b", "shared"], ["c"], name="one"),
        helper.make_node("Conv", ["c", "shared"], ["d"], name="two"),
        helper.make_node("ConvTranspose", ["d", "up"], ["e"], name="turned"),
        helper.make_node("Conv", ["e", "good"], ["y"], name="good"),
        helper.make_node("MatMul", ["v", "vector"], ["z"], name="vector"),
        helper.make_node("MatMul", ["first", "q"], ["f"], name="first"),
        helper.make_node("MatMul", ["i", "whole"], ["j"], name="whole"),
        helper.make_node("MatMul", ["q", "turn"], ["k"], name="dense/rotate"),
        helper.make_node("DequantizeLinear", ["codes", "scale"], ["float"], name="back"),
        helper.make_node("MatMul", ["q", "float"], ["g"], name="coded"),
    ]
    inputs = [("x", [1, 3, 6, 6]), ("v", [2, 12]), ("q", [4, 4]), ("i", [1, 4], TensorProto.INT32)]
    outputs = [
        ("y", [1, 4, None, None]),
        ("z", [2]),
        ("f", [4, 4]),
        ("j", [1, 4], TensorProto.INT32),
        ("g", [4, 4]),
        ("k", [4, 4]),
    ]
    model = Model.from_proto(build(nodes, inputs, outputs, values), "m")
    made = Sparsify()(model, given(model))
    changed = [name for name, value in stored(made).items() if not np.array_equal(value, values[name])]
    assert changed == ["good"]
    told = "2:4 in 1 of 11 layers, 50.0% of their 16 weights are zero; left alone: 1 depthwise convolutions, "
    told += "1 rotations, 1 transposed convolutions, 1 with a vector as weights, 1 with an input axis that is no multiple of 4, "
    told += "1 with weights as first factor, 2 with weights that are no floats, 2 with weights that are shared. Deflated"
    assert made.history[-1].note.startswith(told)


def test_weights_that_leave_the_model_or_are_read_inside_a_branch_stay(build: Any) -> None:
    inner = helper.make_graph(
        [helper.make_node("Relu", ["w"], ["r"])], "then", [], [helper.make_tensor_value_info("r", 1, [8, 4])]
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["v"], ["s"])], "else", [], [helper.make_tensor_value_info("s", 1, [8, 4])]
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        helper.make_node("MatMul", ["x", "u"], ["b"], name="two"),
        helper.make_node("MatMul", ["x", "t"], ["c"], name="three"),
        helper.make_node("If", ["which"], ["d"], name="if", then_branch=inner, else_branch=other),
    ]
    inputs = [("x", [1, 8]), ("which", [], TensorProto.BOOL), ("v", [8, 4])]
    outputs = [("a", [1, 4]), ("b", [1, 4]), ("c", [1, 4]), ("d", [8, 4]), ("u", [8, 4])]
    values = {name: normal(8, 4, seed=seed) for seed, name in enumerate("wut")}
    model = Model.from_proto(build(nodes, inputs, outputs, values), "m")
    made = Sparsify()(model, given(model))
    assert [name for name in values if not np.array_equal(stored(made)[name], values[name])] == ["t"]
    assert "1 of 3 layers" in made.history[-1].note and "2 with weights that are shared" in made.history[-1].note


# --- unstructured -----------------------------------------------------------------------------------


def chain(build: Any, *weights: Any) -> Model:
    names = [f"w{index}" for index in range(len(weights))]
    ways = ["x", *(f"h{index}" for index in range(len(weights) - 1)), "y"]
    nodes = [helper.make_node("MatMul", [a, w], [b], name=w) for w, (a, b) in zip(names, pairwise(ways), strict=True)]
    shapes = [("x", [1, len(weights[0])])], [("y", [1, weights[-1].shape[1]])]
    return Model.from_proto(build(nodes, *shapes, dict(zip(names, weights, strict=True))), "chain")


@pytest.mark.parametrize("removed", [0.1, 0.5, 0.9, 0.97])
def test_a_share_of_all_weights_goes_by_lamp(build: Any, removed: float) -> None:
    weights = [normal(6, 10), 100 * normal(10, 7, seed=1), normal(7, 3, seed=2) ** 3]
    model = chain(build, *weights)
    made = Sparsify(removed=removed)(model, given(model))
    found = [stored(made)[f"w{index}"] for index in range(3)]
    scores = []
    for layer, values in enumerate(weights):
        squares = values.astype(np.float64).reshape(-1) ** 2
        scores += [(square / squares[squares >= square].sum(), layer, place) for place, square in enumerate(squares)]
    total = sum(values.size for values in weights)
    wanted = [values.copy() for values in weights]
    for _, layer, place in sorted(scores)[: round(removed * total)]:
        wanted[layer].reshape(-1)[place] = 0
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert all(np.abs(a).max() == np.abs(b).max() for a, b in zip(found, weights, strict=True)), "the largest goes last"
    step = made.history[-1]
    assert step.options == {"removed": removed} and "zeros by LAMP in 3 of 3 layers" in step.note
    assert "nothing here uses them" in step.note and "take 2:4 alone" in step.note


def test_the_scale_of_a_layer_plays_no_part(build: Any) -> None:
    weights = [normal(8, 8), normal(8, 8, seed=1)]
    masks = []
    for factor in (1.0, 64.0):
        model = chain(build, weights[0], np.float32(factor) * weights[1])
        masks.append([value != 0 for value in stored(Sparsify(removed=0.6)(model, given(model))).values()])
    assert all(np.array_equal(a, b) for a, b in zip(*masks, strict=True))


def test_a_layer_of_nothing_but_zeros_goes_first(build: Any) -> None:
    model = chain(build, normal(8, 8), np.zeros((8, 8), np.float32))
    made = Sparsify(removed=0.5)(model, given(model))
    assert np.array_equal(stored(made)["w0"], stored(model)["w0"]) and "50.0% of their 128 weights" in made.history[-1].note


# --- what it says, and what cannot be ---------------------------------------------------------------


def test_the_note_says_what_zeros_buy_in_bytes() -> None:
    net = Model.load(NETS / "fashion_cnn.onnx")
    made = Sparsify()(net, given(net))
    before, after = (len(zlib.compress(model.to_bytes())) for model in (net, made))
    told = re.search(r"Deflated \(zlib\) the model has ([\d,]+) bytes, ([\d,]+) before", made.history[-1].note)
    assert told is not None and int(told[2].replace(",", "")) == before
    assert int(told[1].replace(",", "")) == pytest.approx(after, rel=0.01)
    assert "no time on CPU runtimes" in made.history[-1].note and "TensorRT's sparse tensor cores" in made.history[-1].note
    assert after < 0.65 * before


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"kept": 4}, "kept is 4 of 4; allowed: 1 or more, and fewer than of"), ({"kept": 0}, "kept is 0 of 4"),
        ({"of": 1}, "kept is 2 of 1"), ({"removed": 1.0}, r"removed is 1.0; allowed: 0 for 2:4, or more, below 1"),
        ({"removed": -0.1}, "removed is -0.1"), ({"removed": float("nan")}, "removed is nan"),
        ({"removed": 0.5, "kept": 1}, "removed = 0.5 and 1:4 were given"), ({"finetune": -1}, "finetune is -1"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(PassError, match=told):
        Sparsify(**options)


def test_a_model_without_such_layers_is_refused(build: Any) -> None:
    bare = Model.from_proto(build([helper.make_node("Relu", ["x"], ["y"])], [("x", [1, 4])], [("y", [1, 4])]), "bare")
    with pytest.raises(PassError, match=r"bare has no layer that can be sparse \(none has weights\)") as caught:
        Sparsify()(bare, given(bare))
    assert "take it out" in caught.value.hint
    odd = chain(build, normal(6, 6))
    with pytest.raises(PassError, match="1 with an input axis that is no multiple of 4"):
        Sparsify()(odd, given(odd))
    even = chain(build, normal(16, 16))
    data = Samples({"x": normal(8, 16)}, "made for a test", leading_axis={"x": True})
    for flavour in ("u8s8", "qoperator", "weights"):
        coded = Quantize(flavour=flavour)(even, Given(even, data))
        with pytest.raises(PassError, match="1 with weights that are no floats") as caught:
            Sparsify()(coded, given(coded))
        assert caught.value.hint == "put sparsify before quantize"


# --- training keeps it ------------------------------------------------------------------------------


def fits(weights: Any, axis: int, kept: int = 2, of: int = 4) -> bool:
    return bool(((np.moveaxis(weights, axis, -1).reshape(-1, of) != 0).sum(1) <= kept).all())


@pytest.mark.parametrize("options", [{"kept": 1}, {"removed": 0.9}], ids=str)
def test_fine_tuning_brings_back_what_was_lost_and_keeps_the_zeros(fashion: Fashion, options: dict[str, Any]) -> None:
    source = Model.load(NETS / "fashion_cnn.onnx")
    images, labels = fashion("train", 600)
    lessons = Samples({"image": images}, "training images", labels, leading_axis={"image": True})
    everything = Given(source, lessons.take(np.arange(16)), lessons=lessons)
    folded = Fold()(source, everything)
    bare, repaired = (Sparsify(finetune=epochs, **options)(folded, everything) for epochs in (0, 2))
    before, after = stored(bare), stored(repaired)
    assert [step.name for step in repaired.history] == ["fold", "sparsify", "train"]
    assert repaired.history[-1].options["zeros_stay"] is True
    for name, values in before.items():
        if values.ndim > 1:
            assert not after[name][values == 0].any() and not np.array_equal(values, after[name])

    test_images, test_labels = fashion("t10k", 300)

    def accuracy(model: Model) -> float:
        reference = Reference(model)
        found = [reference.run({"image": image[None]})["logits"][0].argmax() for image in test_images]
        return float(np.mean(np.array(found) == test_labels))

    assert accuracy(repaired) > accuracy(bare) + 0.1


def test_fine_tuning_wants_data() -> None:
    net = Model.load(NETS / "fashion_cnn.onnx")
    with pytest.raises(PassError, match="pass sparsify: finetune learns from data, and there are only seeded random inputs"):
        Sparsify(finetune=1)(net, given(net))


@pytest.mark.parametrize(("flavour", "bits"), [("tensorrt", 8), ("s8s8", 8), ("fixed", 6)])
def test_integers_and_their_training_keep_the_zeros(conv_net: onnx.ModelProto, flavour: Any, bits: int) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(conv_net)
    source = Model.from_proto(proto, "net")
    data = replace(synthetic(source, 64), synthetic=False)
    everything = Given(source, data.take(np.arange(16)), lessons=data)
    sparse = Sparsify()(Fold()(source, everything), everything)
    assert "2 of 3 layers" in sparse.history[-1].note
    floats = {name: values for name, values in stored(sparse).items() if values.shape in ((16, 8, 3, 3), (16, 10), (10, 16))}
    plain, trained = (
        Quantize(flavour=flavour, bits=bits, qat=epochs, qat_learning_rate=5e-3)(sparse, everything) for epochs in (0, 1)
    )
    assert trained.history[-1].name == "train" and trained.history[-1].options["zeros_stay"] is True
    moved = 0
    for values in floats.values():
        axis = 1 if values.ndim == 4 else values.shape.index(16)
        pairs = [
            (before, stored(trained)[name])
            for name, before in stored(plain).items()
            if before.dtype.kind == "i" and before.shape == values.shape and before.any()
        ]
        assert len(pairs) == 1
        for found in pairs[0]:
            assert not found[values == 0].any() and fits(found, axis)
        moved += int((pairs[0][0] != pairs[0][1]).sum())
    assert moved, "nothing was learned"


def test_a_pattern_that_was_lost_is_not_held(build: Any) -> None:
    """Factors of a sparse matrix are dense again; there is nothing to keep, and training them works."""
    model = chain(build, normal(16, 16), normal(16, 5, seed=1))
    data = Samples({"x": normal(40, 16)}, "made for a test", leading_axis={"x": True})
    made = LowRank(removed=0.4, finetune=1)(Sparsify()(model, Given(model, data)), Given(model, data))
    assert [step.name for step in made.history] == ["sparsify", "low_rank", "train"]
