"""Prune: what is left computes what the whole computes with zeros in it; budgets are met; the least worth goes first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesdk_converters import find
from edgesdk_converters.accuracy import distance
from edgesdk_converters.calibration import Samples, synthetic
from edgesdk_converters.cost import layers, total
from edgesdk_converters.errors import PassError
from edgesdk_converters.fold import Fold
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given
from edgesdk_converters.prune import Prune
from edgesdk_converters.pruning.pst import pst
from edgesdk_converters.pruning.scores import exploration, magnitude, taylor
from edgesdk_converters.pruning.structure import Structure
from edgesdk_converters.quantize import Quantize
from edgesdk_converters.reference import Reference

from .masking import masked

NETS = Path(__file__).parents[2] / "examples" / "fashion"
Fashion = Callable[[str, int], tuple[Any, Any]]
rng = np.random.default_rng(7)


def w(*shape: int) -> Any:
    fan = max(1, int(np.prod(shape[1:])))
    return (rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32)


@pytest.fixture
def small_cnn(conv_net: Any) -> Model:
    return Model.from_proto(conv_net, "net")


def given_for(model: Model, **more: Any) -> Given:
    return Given(model, synthetic(model, 4), **more)


def same_as_masked(model: Model, gone: Any = None, **options: Any) -> Structure:
    """Takes out a random part of every family and holds the result against the whole with zeros."""
    structure = Structure(model, **options)
    if gone is None:
        pick = np.random.default_rng(3)
        gone = np.concatenate([pick.permutation(f.labels)[: max(1, len(f) // 2)] for f in structure.families])
    made = structure.model.changed(structure.without(gone))
    small, wanted = Reference(made), Reference(masked(structure, gone))
    samples = list(synthetic(model, 3))
    assert distance(map(small.run, samples), map(wanted.run, samples)).relative < 1e-5
    whole = Reference(model)
    assert distance(map(whole.run, samples), map(wanted.run, samples)).relative > 1e-3, "the masks changed nothing"
    return structure


def sizes(structure: Structure) -> list[int]:
    return sorted(len(family) for family in structure.families)


# --- what goes together ------------------------------------------------------------------------------


def test_a_chain_of_layers_has_a_family_each(small_cnn: Model) -> None:
    structure = same_as_masked(small_cnn)
    assert sizes(structure) == [8, 16]


def test_a_sum_ties_what_it_adds_and_depthwise_filters_go_with_their_channels(build: Any) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["p"], pads=[1] * 4),
        helper.make_node("Relu", ["p"], ["q"]),
        helper.make_node("Conv", ["q", "b"], ["r"], pads=[1] * 4, group=6),
        helper.make_node("BatchNormalization", ["r", "s", "t", "m", "v"], ["n"]),
        helper.make_node("Conv", ["n", "c"], ["u"]),
        helper.make_node("Add", ["u", "p"], ["z"]),
        helper.make_node("GlobalAveragePool", ["z"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "d", "e"], ["y"], transB=1),
    ]
    weights = {"a": w(6, 3, 3, 3), "b": w(6, 1, 3, 3), "c": w(6, 6, 1, 1), "d": w(4, 6), "e": w(4),
               "s": w(6) + 1, "t": w(6), "m": w(6), "v": w(6) ** 2 + 1}  # fmt: skip
    model = Model.from_proto(build(nodes, [("x", [1, 3, 8, 8])], [("y", [1, 4])], weights), "m")
    structure = same_as_masked(model)
    assert sizes(structure) == [6], "the block's channels are one family"
    tensors = {slot.tensor for slot in structure.slots}
    assert tensors == {"a", "b", "c", "d", "s", "t", "m", "v"}


def test_concat_split_slice_pad_and_gather_keep_their_parts_apart(build: Any) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["p"]),
        helper.make_node("Conv", ["x", "b"], ["q"]),
        helper.make_node("Concat", ["p", "q"], ["c"], axis=1),
        helper.make_node("Split", ["c", "parts"], ["s1", "s2"], axis=1),
        helper.make_node("Slice", ["c", "from", "to", "axes"], ["l"]),
        helper.make_node("Gather", ["c", "picked"], ["g"], axis=1),
        helper.make_node("Pad", ["s1", "pads"], ["s3"]),
        helper.make_node("Conv", ["s3", "d"], ["t1"]),
        helper.make_node("Conv", ["s2", "e"], ["t2"], pads=[1] * 4),
        helper.make_node("Conv", ["l", "f"], ["t3"], pads=[1] * 4),
        helper.make_node("Conv", ["g", "h"], ["t4"], pads=[1] * 4),
        helper.make_node("Sum", ["t1", "t2", "t3", "t4"], ["y"]),
    ]
    weights = {"a": w(6, 3, 1, 1), "b": w(10, 3, 1, 1), "d": w(2, 9, 3, 3), "e": w(2, 7, 3, 3), "f": w(2, 8, 3, 3),
               "h": w(2, 5, 3, 3), "parts": np.array([9, 7]), "from": np.array([4]), "to": np.array([12]), "axes": np.array([1]),
               "picked": np.array([15, 3, 0, 9, 8]), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}  # fmt: skip
    model = Model.from_proto(build(nodes, [("x", [1, 3, 8, 8])], [("y", [1, 2, 8, 8])], weights), "m")
    structure = same_as_masked(model)
    assert len(structure.families) >= 3, "channels that go to other places are other families"


@pytest.mark.parametrize("heads", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_attention_loses_whole_heads_or_an_equal_part_of_each(build: Any, heads: bool, fused: bool) -> None:
    structure = same_as_masked(attention(build, fused), heads=heads)
    lengths = {family.length for family in structure.families if len(family) in (4, 8)}
    names = sizes(structure)
    if heads:  # 4 heads of 8, and the 24 hidden of the MLP
        assert names == [4, 24] and lengths == {24 if fused else 8}
    else:  # 8 indices of q and k, 8 of v; of one product for all three the same
        assert names == ([8, 24] if fused else [8, 8, 24]) and lengths == {12 if fused else 4}


def attention(build: Any, fused: bool, width: int = 32, heads: int = 4, tokens: int = 5) -> Model:
    part = width // heads
    nodes: list[Any] = [helper.make_node("LayerNormalization", ["x", "gain"], ["n"])]
    weights: dict[str, Any] = {"gain": w(width) + 1, "o": w(width, width), "u": w(width, 24), "v": w(24, width),
                               "split": np.array([1, tokens, heads, part]), "merge": np.array([1, tokens, width]),
                               "root": np.float32(part**-0.5)}  # fmt: skip
    if fused:
        weights |= {"qkv": w(width, 3 * width), "three": np.array([1, tokens, 3, heads, part])}
        weights |= {f"i{index}": np.array(index) for index in range(3)}
        nodes += [
            helper.make_node("MatMul", ["n", "qkv"], ["all"]),
            helper.make_node("Reshape", ["all", "three"], ["all5"]),
            helper.make_node("Transpose", ["all5"], ["turned"], perm=[2, 0, 3, 1, 4]),
            *(helper.make_node("Gather", ["turned", f"i{i}"], [name], axis=0) for i, name in enumerate(("q", "k", "vv"))),
        ]
    else:
        for name in ("q", "k", "vv"):
            weights |= {f"w{name}": w(width, width), f"b{name}": w(width)}
            nodes += [
                helper.make_node("MatMul", ["n", f"w{name}"], [f"{name}1"]),
                helper.make_node("Add", [f"{name}1", f"b{name}"], [f"{name}2"]),
                helper.make_node("Reshape", [f"{name}2", "split"], [f"{name}3"]),
                helper.make_node("Transpose", [f"{name}3"], [name], perm=[0, 2, 1, 3]),
            ]
    nodes += [
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q", "kt"], ["s"]),
        helper.make_node("Mul", ["s", "root"], ["s2"]),
        helper.make_node("Softmax", ["s2"], ["p"]),
        helper.make_node("MatMul", ["p", "vv"], ["z"]),
        helper.make_node("Transpose", ["z"], ["z2"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["z2", "merge"], ["z3"]),
        helper.make_node("MatMul", ["z3", "o"], ["z4"]),
        helper.make_node("Add", ["z4", "x"], ["r"]),
        helper.make_node("MatMul", ["r", "u"], ["h"]),
        helper.make_node("Relu", ["h"], ["h2"]),
        helper.make_node("MatMul", ["h2", "v"], ["y"]),
    ]
    return Model.from_proto(build(nodes, [("x", [1, tokens, width])], [("y", [1, tokens, width])], weights), "attention")


def test_grouped_convolutions_lose_as_many_channels_in_every_group_and_shuffles_stay_whole(build: Any) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["p"]),
        helper.make_node("Conv", ["p", "b"], ["q"], group=4),
        helper.make_node("Relu", ["q"], ["r"]),
        helper.make_node("Reshape", ["r", "five"], ["s"]),
        helper.make_node("Transpose", ["s"], ["t"], perm=[0, 2, 1, 3, 4]),
        helper.make_node("Reshape", ["t", "four"], ["u"]),
        helper.make_node("Conv", ["u", "c"], ["v"], group=24),
        helper.make_node("Conv", ["v", "d"], ["y"]),
    ]
    weights = {"a": w(16, 3, 1, 1), "b": w(24, 4, 1, 1), "c": w(24, 1, 3, 3), "d": w(2, 24, 1, 1),
               "five": np.array([1, 4, 6, 8, 8]), "four": np.array([1, -1, 8, 8])}  # fmt: skip
    model = Model.from_proto(build(nodes, [("x", [1, 3, 8, 8])], [("y", [1, 2, 6, 6])], weights), "m")
    structure = same_as_masked(model)
    assert sizes(structure) == [4, 6]


@pytest.mark.parametrize("operator", ["Softmax", "LRN", "LayerNormalization", "ReduceSum", "TopK", "DepthToSpace"])
def test_what_needs_all_channels_keeps_them(build: Any, operator: str) -> None:
    options: dict[str, Any] = {
        "Softmax": {"axis": 1}, "LRN": {"size": 3}, "LayerNormalization": {"axis": 1}, "ReduceSum": {"keepdims": 1},
        "TopK": {"axis": 1}, "DepthToSpace": {"blocksize": 2},
    }[operator]  # fmt: skip
    weights = {"a": w(8, 3, 1, 1), "gain": w(8, 4, 4), "axes": np.array([1]), "k": np.array([2])}
    more = {"LayerNormalization": ["gain"], "ReduceSum": ["axes"], "TopK": ["k"]}.get(operator, [])
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["p"]),
        helper.make_node(operator, ["p", *more], ["q", "places"] if operator == "TopK" else ["q"], **options),
        helper.make_node("ReduceMean", ["q"], ["y"], axes=[2, 3]),
    ]
    used = {name for node in nodes for name in node.input}
    kept = {name: value for name, value in weights.items() if name in used}
    model = Model.from_proto(build(nodes, [("x", [1, 3, 4, 4])], [("y", None)], kept), "m")
    assert sizes(Structure(model)) == []
    with pytest.raises(PassError, match="no channels"):
        Prune(criterion="magnitude")(model, given_for(model))


def test_normalised_lets_channels_go_that_a_layer_norm_sees(build: Any) -> None:
    model = attention(build, fused=True)
    proto = model.copy_proto()
    proto.graph.initializer.append(numpy_helper.from_array(w(32, 32), "embed"))
    proto.graph.initializer.append(numpy_helper.from_array(w(32, 10), "head"))
    proto.graph.node.insert(0, helper.make_node("MatMul", ["image", "embed"], ["x"]))
    proto.graph.node[-1].output[0] = "z9"
    proto.graph.node.append(helper.make_node("MatMul", ["z9", "head"], ["y"]))
    proto.graph.input[0].name = "image"
    del proto.graph.value_info[:], proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5, 10]))
    whole = Model.from_proto(proto, "m")
    assert sizes(Structure(whole)).count(32) == 1, "what the last layer reads is seen by no LayerNormalization"
    assert sizes(Structure(whole, normalised=True)).count(32) == 2
    made = Prune(removed=0.5, normalised=True, criterion="magnitude")(whole, given_for(whole))
    assert total(layers(made)).params <= 0.5 * total(layers(whole)).params
    assert np.isfinite(Reference(made).run(next(iter(synthetic(made, 1))))["y"]).all()


def test_a_dynamic_batch_is_no_obstacle(build: Any) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["p"]),
        helper.make_node("MaxPool", ["p"], ["q"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["q"], ["f"]),
        helper.make_node("Gemm", ["f", "d"], ["y"]),
    ]
    proto = build(nodes, [("x", ["n", 3, 8, 8])], [("y", ["n", 4])], {"a": w(6, 3, 1, 1), "d": w(96, 4)})
    model = Model.from_proto(proto, "m")
    structure = Structure(model)
    assert [(len(f), f.length) for f in structure.families] == [(6, 16)]
    made = model.changed(structure.without(structure.families[0].labels[:2]))
    out = Reference(made).run({"x": np.ones((2, 3, 8, 8), np.float32)})["y"]
    assert out.shape == (2, 4)


@pytest.mark.parametrize("flavour", ["u8s8", "s8s8", "tensorrt", "fixed", "qoperator", "weights", "stored"])
def test_a_quantised_graph_is_cut_with_its_scales_or_left_whole(small_cnn: Model, flavour: Any) -> None:
    samples = replace(synthetic(small_cnn, 8), synthetic=False)
    made = Quantize(flavour=flavour)(small_cnn, Given(small_cnn, samples))
    structure = Structure(made)
    if flavour in ("qoperator", "stored", "weights"):
        return  # operators without a rule: whatever is free must still be cut exactly
    assert sizes(structure) == [8, 16]
    gone = np.concatenate([family.labels[::2] for family in structure.families])
    cut = made.changed(structure.without(gone))
    small, wanted = Reference(cut), Reference(masked(structure, gone))
    cases = list(samples)
    assert distance(map(small.run, cases), map(wanted.run, cases)).relative < 1e-5


@pytest.mark.parametrize("net", ["cnn", "mobilenet", "resnet", "vit"])
def test_real_networks_are_cut_exactly(net: str) -> None:
    model = Model.load(NETS / f"fashion_{net}.onnx")
    same_as_masked(Fold()(model, given_for(model)))


# --- how much goes, and which -------------------------------------------------------------------------


@pytest.mark.parametrize("budget", ["params", "macs", "channels"])
@pytest.mark.parametrize("removed", [0.2, 0.5, 0.75])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_budget_is_met_and_not_by_much_more(budget: Any, removed: float, scope: Any) -> None:
    model = Model.load(NETS / "fashion_resnet.onnx")
    made = Prune(removed=removed, budget=budget, scope=scope, criterion="magnitude", least=0.05)(model, given_for(model))
    before, after = total(layers(model)), total(layers(made))
    if budget == "channels":
        gone = int(made.history[-1].note.split(" of ")[0].replace(",", ""))
        share = gone / sum(len(f) for f in Structure(model).families)
    else:
        share = 1 - getattr(after, budget) / getattr(before, budget)
    assert removed - 1e-9 <= share < removed + 0.05
    assert f"{1 - after.macs / before.macs:.1%} of {before.macs:,} MACs" in made.history[-1].note


def test_units_of_equal_worth_do_not_all_go_at_once(build: Any) -> None:
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("Relu", ["h"], ["r"]),
             helper.make_node("MatMul", ["r", "b"], ["y"])]  # fmt: skip
    alike = {"a": np.ones((6, 40), np.float32), "b": np.ones((40, 4), np.float32)}
    model = Model.from_proto(build(nodes, [("x", [1, 6])], [("y", [1, 4])], alike), "m")
    made = Prune(removed=0.25, budget="channels", criterion="magnitude")(model, given_for(model))
    assert {t.name: list(t.dims) for t in made.proto.graph.initializer} == {"a": [6, 30], "b": [30, 4]}


def test_widths_come_in_multiples_and_every_layer_keeps_some() -> None:
    model = Model.load(NETS / "fashion_mobilenet.onnx")
    made = Prune(removed=0.6, criterion="magnitude", multiple=8, least=0.2)(model, given_for(model))
    for before, after in zip(convolutions(model), convolutions(made), strict=True):
        assert after % 8 == 0 and after >= 0.2 * before
    target = Prune(removed=0.6, criterion="magnitude", least=0.2)(model, given_for(model, width_multiple=8))
    assert target.digest == made.digest
    with pytest.raises(PassError, match="90% of params cannot go; all that may go is"):
        Prune(removed=0.9, criterion="magnitude", least=0.5)(model, given_for(model))


def convolutions(model: Model) -> list[int]:
    stored = {tensor.name: tensor for tensor in model.proto.graph.initializer}
    return [stored[node.input[1]].dims[0] for node in model.proto.graph.node if node.op_type == "Conv"]


def test_a_cost_decides_where_there_is_one_and_its_outcome_can_be_repeated_without() -> None:
    model = Model.load(NETS / "fashion_cnn.onnx")
    asked: list[int] = []

    def cost(one: Model) -> float:
        asked.append(1)
        return float(total(layers(one)).macs) ** 0.5

    made = Prune(removed=0.4, budget="cost", criterion="magnitude")(model, given_for(model, cost=cost))
    share = total(layers(made)).macs / total(layers(model)).macs
    assert 0.5 < share**0.5 / 0.6 <= 1.0 and 3 < len(asked) < 40
    taken = made.history[-1].options["taken"]
    again = Prune(removed=0.4, budget="cost", criterion="magnitude", taken=(taken,))(model, given_for(model, cost=lambda m: 1.0))
    assert again.digest == made.digest
    with pytest.raises(PassError, match="budget cost needs"):
        Prune(budget="cost", criterion="magnitude")(model, given_for(model))


def test_magnitude_does_not_see_how_scale_is_shared_between_layers(small_cnn: Model) -> None:
    """A channel made ten times larger and read ten times smaller is worth the same."""
    proto = small_cnn.copy_proto()
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    for name, axis, factor in (("w2", 0, 10.0), ("b2", 1, 10.0), ("w3", 0, 0.1)):
        values = numpy_helper.to_array(stored[name]).copy()
        values[(slice(None),) * axis + (5,)] *= np.float32(factor)
        stored[name].CopyFrom(numpy_helper.from_array(values, name))
    scaled = Model.from_proto(proto, "m")

    def order(model: Model) -> list[list[int]]:
        return [np.argsort(worth).tolist() for worth in magnitude(Structure(model), given_for(model))]

    assert len(order(scaled)[1]) == 16
    assert order(scaled)[1] == order(small_cnn)[1]


def dead_channels(build: Any, dead: tuple[int, ...]) -> Model:
    """x -> 12 hidden -> 4 scores; what reads the dead ones is nearly zero, though they are made by large weights."""
    a, b = w(6, 12), w(12, 4)
    a[:, list(dead)] *= 5
    b[list(dead)] *= 1e-4
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("Relu", ["h"], ["r"]),
             helper.make_node("MatMul", ["r", "b"], ["y"])]  # fmt: skip
    return Model.from_proto(build(nodes, [("x", [1, 6])], [("y", [1, 4])], {"a": a, "b": b}), "m")


def lessons(model: Model, count: int = 96, labels: bool = True) -> Samples:
    made = synthetic(model, count)
    reference = Reference(model)
    answers = np.array([reference.run(case)["y"].argmax() for case in made])
    return replace(made, synthetic=False, labels=answers if labels else None, origin="made for a test")


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "pst", "exploration"])
def test_channels_that_nothing_reads_go_first(build: Any, criterion: Any, labels: bool) -> None:
    dead = (1, 4, 8, 11)
    model = dead_channels(build, dead)
    samples = lessons(model, labels=labels)
    if criterion == "exploration" and not labels:
        with pytest.raises(PassError, match="learns from labels"):
            Prune(removed=0.3, criterion=criterion)(model, Given(model, samples))
        return
    made = Prune(removed=0.33, budget="channels", criterion=criterion)(model, Given(model, samples))
    left = {t.name: numpy_helper.to_array(t) for t in made.proto.graph.initializer}["b"]
    assert left.shape == (8, 4)
    if criterion == "pst":  # which moves weights too: what was dead need not be any more
        scores, _ = pst(Structure(model), Given(model, samples), 0.33, False)
        assert len(set(np.argsort(scores[0])[:4].tolist()) & set(dead)) >= 3
        return
    assert np.abs(left).max(axis=1).min() > 1e-2, "one of those left is dead"


def test_criteria_that_learn_give_the_same_each_time_and_refuse_made_up_data(build: Any) -> None:
    model = dead_channels(build, (0, 1))
    given = Given(model, lessons(model))
    for criterion in ("taylor", "pst", "exploration"):
        made = [Prune(removed=0.4, criterion=criterion)(model, given) for _ in range(2)]  # type: ignore[arg-type]
        assert made[0].digest == made[1].digest
        with pytest.raises(PassError, match="learns from data"):
            Prune(removed=0.4, criterion=criterion)(model, given_for(model))  # type: ignore[arg-type]
    assert made[0].history[-1].options["criterion"] == "exploration"
    assert Prune(removed=0.4)(model, given_for(model)).history[-1].options["criterion"] == "magnitude"
    assert Prune(removed=0.4)(model, given).history[-1].options["criterion"] == "taylor"


def test_taylor_is_the_square_of_what_removal_does_to_first_order(build: Any) -> None:
    """Against finite differences: the loss when one unit's readers shrink a little."""
    model = dead_channels(build, ())
    samples = lessons(model, 8)
    structure = Structure(model)
    found = taylor(structure, Given(model, samples))[0]
    assert samples.labels is not None
    stored = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.proto.graph.initializer}
    x = samples.arrays["x"].reshape(8, 6).astype(np.float64)

    def loss(b: Any) -> float:
        scores = np.maximum(x @ stored["a"], 0) @ b
        log = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        return float(-log[np.arange(8), samples.labels].mean())

    readers = next(slot.labels for slot in structure.slots if slot.tensor == "b" and slot.axis == 0)
    place = {int(label): index for index, label in enumerate(readers)}
    for worth, label in zip(found, structure.families[0].labels, strict=True):
        moved = stored["b"].copy()
        moved[place[int(label)]] *= 1 - 1e-6
        assert worth == pytest.approx(((loss(moved) - loss(stored["b"])) / 1e-6) ** 2, rel=1e-2, abs=1e-9)


def test_exploration_keeps_what_training_moves(build: Any) -> None:
    model = dead_channels(build, (2, 3))
    worth = exploration(Structure(model), Given(model, lessons(model)))[0]
    assert worth.shape == (12,) and (worth >= 0).all() and worth.max() > 0


# --- with training ------------------------------------------------------------------------------------


def test_fine_tuning_and_rounds_win_back_what_was_lost(fashion: Fashion) -> None:
    model = Model.load(NETS / "fashion_cnn.onnx")
    images, labels = fashion("train", 700)
    samples = Samples.from_arrays({"image": images[:600], "labels": labels[:600]}, model.signature, "images")
    given = Given(model, samples.take(np.arange(32)), lessons=samples, width_multiple=8)
    check, wanted = images[600:], labels[600:]

    def right(one: Model) -> float:
        reference = Reference(one)
        return float(
            np.mean([reference.run({"image": x[None]})["logits"].argmax() == y for x, y in zip(check, wanted, strict=True)])
        )

    plain = Prune(removed=0.6, budget="macs")(model, given)
    tuned = Prune(removed=0.6, budget="macs", finetune=2)(model, given)
    stepwise = Prune(removed=0.6, budget="macs", finetune=2, rounds=2)(model, given)
    assert right(tuned) > right(plain) + 0.05 and right(tuned) > 0.75
    assert [step.name for step in stepwise.history].count("prune") == 2
    assert total(layers(stepwise)).macs <= 0.4 * total(layers(model)).macs
    assert right(stepwise) > right(plain) + 0.05


@pytest.mark.parametrize(
    "options",
    [{"removed": 0.0}, {"removed": 1.0}, {"least": 0.0}, {"rounds": 0}, {"rounds": 3}, {"multiple": -1}, {"taken": (1, 2)}],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(PassError, match="allowed"):
        Prune(**options)


def test_it_is_found_by_name() -> None:
    assert find("prune") is Prune
