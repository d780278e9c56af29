"""Quantize: integers in the form that was asked for, close to the float model, the same bytes each time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesdk_converters.accuracy import relative_error
from edgesdk_converters.calibration import Samples, synthetic
from edgesdk_converters.errors import PassError
from edgesdk_converters.fold import Fold
from edgesdk_converters.half import Half
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given
from edgesdk_converters.quantize import Flavour, Quantize, named, weighted
from edgesdk_converters.reference import Reference

NETS = Path(__file__).parents[2] / "examples" / "fashion"
FLAVOURS: tuple[Flavour, ...] = ("u8s8", "s8s8", "tensorrt", "qoperator", "dynamic", "weights", "stored")
Fashion = Callable[[str, int], tuple[Any, Any]]


def real(model: Model, count: int = 16, seed: int = 0) -> Samples:
    """Random inputs that pass for a user's own."""
    made = synthetic(model, count, seed)
    return Samples(made.arrays, "made for a test", leading_axis=made.leading_axis)


@pytest.fixture(scope="module")
def net(conv_net: onnx.ModelProto) -> tuple[Model, Given]:
    proto = onnx.ModelProto()
    proto.CopyFrom(conv_net)
    source = Model.from_proto(proto, "net")
    given = Given(source, real(source))
    return Fold()(source, given), given


@pytest.fixture(scope="module", params=["cnn", "mobilenet", "resnet", "vit"])
def trained(request: pytest.FixtureRequest, fashion: Fashion) -> tuple[Model, Given, Any]:
    source = Model.load(NETS / f"fashion_{request.param}.onnx")
    train = Samples.from_arrays({"image": fashion("train", 64)[0]}, source.signature, "training images")
    given = Given(source, train)
    return Fold()(source, given), given, fashion("t10k", 200)


def answers(model: Model, images: Any) -> Any:
    reference = Reference(model)
    return np.stack([reference.run({"image": image[None]})["logits"][0] for image in images])


def stored(model: Model) -> dict[str, Any]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.proto.graph.initializer}


def producers(model: Model) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.proto.graph.node for name in node.output}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_trained_nets_keep_their_answers(trained: tuple[Model, Given, Any], flavour: Flavour) -> None:
    model, given, (images, labels) = trained
    made = Quantize(flavour=flavour, reduce_range=flavour == "qoperator")(model, given)  # this CPU may saturate there
    before, after = answers(model, images), answers(made, images)
    assert (before.argmax(1) == after.argmax(1)).mean() >= 0.96
    assert (after.argmax(1) == labels).mean() >= (before.argmax(1) == labels).mean() - 0.02
    assert not np.array_equal(before, after), "nothing was quantised"
    assert made.signature == model.signature


@pytest.mark.parametrize("flavour", ["u8s8", "s8s8", "tensorrt", "qoperator"])
def test_weights_are_stored_in_eight_bits(trained: tuple[Model, Given, Any], flavour: Flavour) -> None:
    model, given, _ = trained
    made = Quantize(flavour=flavour)(model, given)
    quantised = [a for n, a in stored(made).items() if n.endswith("_quantized") and a.ndim > 1]
    assert {a.dtype for a in quantised} <= {np.dtype(np.int8), np.dtype(np.uint8)}  # uint8: tensors that are added
    assert sum(a.size for a in quantised) >= 0.94 * sum(a.size for a in stored(model).values() if a.ndim > 1)
    before = sum(array.nbytes for array in stored(model).values())
    narrow = any(node.op_type == "LayerNormalization" for node in model.proto.graph.node)  # rows of 64: more scales for a weight
    assert sum(array.nbytes for array in stored(made).values()) <= (0.32 if narrow else 0.30) * before


def test_weights_are_rounded_to_the_nearest_step_of_their_channel(net: tuple[Model, Given]) -> None:
    model, given = net
    made = Quantize(flavour="u8s8")(model, given)
    makers, values, floats = producers(made), stored(made), stored(model)
    for name in weighted(model):
        node = next(n for n in made.proto.graph.node if n.name == name)
        weight = makers[node.input[1]]
        assert weight.op_type == "DequantizeLinear"
        codes, scale = values[weight.input[0]], values[weight.input[1]]
        original = floats[next(n for n in model.proto.graph.node if n.name == name).input[1]]
        axis = next((a.i for a in weight.attribute if a.name == "axis"), 1)
        shape = [1] * codes.ndim
        shape[axis] = -1
        steps = np.asarray(scale).reshape(shape if np.ndim(scale) else [1] * codes.ndim)
        assert np.abs(codes * steps - original).max() <= 0.5001 * steps.max()
        assert np.abs(codes).max() == 127


def test_seven_bits_keep_every_sum_of_two_products_in_sixteen_bits(net: tuple[Model, Given]) -> None:
    model, given = net
    made = Quantize(flavour="u8s8", reduce_range=True)(model, given)
    codes = [a for a in stored(made).values() if a.dtype == np.int8 and a.ndim > 1]
    assert codes
    for array in codes:
        assert 2 * 255 * int(np.abs(array.astype(int)).max()) <= 32767


def test_tensorrt_gets_symmetric_pairs_and_float_biases(trained: tuple[Model, Given, Any]) -> None:
    model, given, _ = trained
    made = Quantize(flavour="tensorrt")(model, given)
    values = stored(made)
    for node in made.proto.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert not values[node.input[2]].any() and values[node.input[2]].dtype == np.int8, node.name
    makers = producers(made)
    for node in made.proto.graph.node:
        if node.op_type in ("Conv", "Gemm") and len(node.input) > 2:
            assert node.input[2] not in makers, f"the bias of {node.name} is computed"
            assert values[node.input[2]].dtype == np.float32


def test_integer_operators_and_pairs_are_different_graphs_of_one_function(net: tuple[Model, Given]) -> None:
    model, given = net
    operators = {n.op_type for n in Quantize(flavour="qoperator")(model, given).proto.graph.node}
    assert "QLinearConv" in operators and "Conv" not in operators
    pairs = {n.op_type for n in Quantize(flavour="u8s8")(model, given).proto.graph.node}
    assert "QLinearConv" not in pairs and {"Conv", "QuantizeLinear", "DequantizeLinear"} <= pairs
    dynamic = {n.op_type for n in Quantize(flavour="dynamic")(model, given).proto.graph.node}
    assert {"DynamicQuantizeLinear", "MatMulInteger", "Conv"} <= dynamic


def test_kept_layers_stay_as_they_were(net: tuple[Model, Given]) -> None:
    model, given = net
    kept = weighted(model)[0]
    made = Quantize(keep=(kept,))(model, given)
    node = next(n for n in made.proto.graph.node if n.name == kept)
    assert stored(made)[node.input[1]].dtype == np.float32
    all_kept = tuple(weighted(model))
    with pytest.raises(PassError, match="no weighted layers"):
        Quantize(keep=all_kept)(model, given)


def test_only_quantises_the_named_layer_and_is_closer_to_the_source(net: tuple[Model, Given]) -> None:
    model, given = net
    whole = Quantize()(model, given)
    reference = Reference(model)
    for name in weighted(model):
        one = Quantize(only=(name,))(model, given)
        quantised = [a for a in stored(one).values() if a.dtype == np.int8 and a.ndim > 1]
        assert len(quantised) == 1
        error = max(relative_error(Reference(one).run(s), reference.run(s)) for s in given.train)
        assert 0 < error <= max(relative_error(Reference(whole).run(s), reference.run(s)) for s in given.train) * 1.5


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_same_export_gives_the_same_bytes(net: tuple[Model, Given], flavour: Flavour) -> None:
    model, given = net
    step = Quantize(flavour=flavour)
    assert step(model, given).to_bytes() == step(model, Given(given.source, real(given.source))).to_bytes()


@pytest.mark.parametrize("flavour", ["u8s8", "s8s8", "tensorrt", "qoperator"])
def test_random_ranges_are_refused(net: tuple[Model, Given], flavour: Flavour) -> None:
    model, given = net
    with pytest.raises(PassError, match="seeded random inputs") as caught:
        Quantize(flavour=flavour)(model, Given(given.source, synthetic(model, 4)))
    assert "--train" in caught.value.hint


def test_what_needs_no_data_takes_none(net: tuple[Model, Given]) -> None:
    model, given = net
    for flavour in ("dynamic", "weights", "stored"):
        Quantize(flavour=flavour)(model, Given(given.source, synthetic(model, 2)))  # type: ignore[arg-type]


def test_calibration_changes_the_ranges(net: tuple[Model, Given]) -> None:
    model, given = net
    made = {how: Quantize(calibration=how)(model, given).to_bytes() for how in ("minmax", "percentile", "entropy", "mse")}  # type: ignore[arg-type]
    assert len(set(made.values())) == 4


def test_an_old_opset_is_raised_and_computes_the_same(build: Any) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    source = Model.from_proto(build(nodes, [("x", [1, 3, 8, 8])], [("y", [1, 4, 6, 6])], {"w": weight}, opset=9, ir=8), "old")
    raised = named(source)
    assert raised.opset == 17 and raised.proto.graph.node[0].name
    sample = next(iter(real(source, 1)))
    np.testing.assert_array_equal(Reference(raised).run(sample)["y"], Reference(source).run(sample)["y"])
    made = Quantize()(source, Given(source, real(source)))
    assert "opset" in [step.name for step in made.history]


def test_names_become_unique_and_stay_where_they_are(build: Any) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="same"),
        helper.make_node("Relu", ["a"], ["b"], name="same"),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    names = [n.name for n in named(Model.from_proto(build(nodes, [("x", [2])], [("y", [2])]), "m")).proto.graph.node]
    assert names[0] == "same" and len(set(names)) == 3 and all(names)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"keep": ("nowhere",)}, "nowhere"),
        ({"only": ("nowhere",)}, "nowhere"),
        ({"flavour": "fixed", "widths": ("nowhere=4",)}, "widths names the node 'nowhere', which is not there"),
    ],
)
def test_unknown_layers_are_named(net: tuple[Model, Given], options: dict[str, Any], told: str) -> None:
    with pytest.raises(PassError, match=told):
        Quantize(**options)(*net)


def test_a_node_that_was_merged_is_answered_with_those_that_are_there(build: Any) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"], name="fc"), helper.make_node("Mul", ["a", "s"], ["b"], name="scale"),
        helper.make_node("Relu", ["b"], ["y"], name="relu"),
    ]  # fmt: skip
    stored = {"w": np.eye(3, dtype=np.float32), "s": np.full(3, 0.3, np.float32)}
    model = Model.from_proto(build(nodes, [("x", [1, 3])], [("y", [1, 3])], stored), "m")
    samples = Samples({"x": np.ones((4, 1, 3), np.float32)}, "chosen")
    merged = Quantize(flavour="fixed", keep=("nothing",))
    with pytest.raises(PassError, match=r"'nothing', which is not there, or was folded or merged.*there are fc, relu$"):
        merged(model, Given(model, samples))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"bits": 4}, "allowed: 8"),
        ({"flavour": "weights", "bits": 5}, "4 or 8"),
        ({"percentile": 10.0}, "percentile"),
        ({"widths": ("a=8",)}, "flavour u8s8 with widths"),
        ({"flavour": "fixed", "widths": ("a=17",)}, "widths has the entry 'a=17'; allowed: NODE=BITS, BITS 2 to 16"),
        ({"flavour": "fixed", "widths": ("a",)}, "widths has the entry 'a'"),
        ({"flavour": "fixed", "widths": ("=4",)}, "widths has the entry '=4'"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(PassError, match=told):
        Quantize(**options)


def test_a_model_without_weights_has_nothing_to_quantise(build: Any) -> None:
    source = Model.from_proto(build([helper.make_node("Relu", ["x"], ["y"])], [("x", [1, 4])], [("y", [1, 4])]), "m")
    with pytest.raises(PassError, match="to quantise"):
        Quantize()(source, Given(source, real(source)))


def test_integers_of_the_model_itself_are_left_alone(build: Any) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="gather"),
        helper.make_node("MatMul", ["rows", "w"], ["y"], name="dense"),
    ]
    rng = np.random.default_rng(0)
    weights = {"table": rng.standard_normal((5, 4)).astype(np.float32), "w": rng.standard_normal((4, 3)).astype(np.float32)}
    source = Model.from_proto(build(nodes, [("ids", [2], TensorProto.INT64)], [("y", [2, 3])], weights), "m")
    made = Quantize()(source, Given(source, real(source)))
    assert made.signature.inputs[0].dtype == "int64"
    sample = next(iter(real(source, 1)))
    assert relative_error(Reference(made).run(sample), Reference(source).run(sample)) < 0.05


# --- graphs that the quantiser underneath cannot take as they are ------------------------------------


def close(model: Model, made: Model, samples: Samples) -> float:
    ours, theirs = Reference(made), Reference(model)
    return max(relative_error(ours.run(sample), theirs.run(sample)) for sample in samples)


STATIC: tuple[Flavour, ...] = ("u8s8", "s8s8", "tensorrt", "qoperator")


def unsaturated(flavour: Flavour) -> Quantize:
    """Integer operators saturate at 8-bit weights on x86 CPUs without VNNI, whatever the maths of the graph."""
    return Quantize(flavour=flavour, reduce_range=flavour == "qoperator")


@pytest.mark.parametrize("flavour", STATIC)
@pytest.mark.parametrize("shape", [(5,), (1, 5), (1,), (), (3, 5), (3, 1)])
def test_a_gemm_may_add_what_gemm_allows(build: Any, flavour: Flavour, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(5)
    weights = {"w": rng.standard_normal((8, 5)).astype(np.float32), "c": (3 * rng.standard_normal(shape)).astype(np.float32)}
    nodes = [helper.make_node("Gemm", ["x", "w", "c"], ["y"], name="dense", beta=0.5)]
    model = Model.from_proto(build(nodes, [("x", [3, 8])], [("y", [3, 5])], weights), "m")
    samples = real(model)
    made = unsaturated(flavour)(model, Given(model, samples))
    assert 0 < close(model, made, samples) < 0.03


@pytest.mark.parametrize("flavour", STATIC)
def test_shared_biases_and_weights_whose_copies_have_names_that_are_taken(build: Any, flavour: Flavour) -> None:
    rng = np.random.default_rng(6)
    weights = {"w": rng.standard_normal((4, 4, 3, 3)).astype(np.float32) / 6, "b": rng.standard_normal(4).astype(np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["b2"], name="one", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["b2", "w", "b"], ["b3"], name="two", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["b3", "w", "b"], ["y"], name="three", pads=[1, 1, 1, 1]),
    ]
    model = Model.from_proto(build(nodes, [("x", [1, 4, 6, 6])], [("y", [1, 4, 6, 6])], weights), "m")
    samples = real(model)
    made = unsaturated(flavour)(model, Given(model, samples))
    assert 0 < close(model, made, samples) < 0.05
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    ort.InferenceSession(made.to_bytes(), options, providers=["CPUExecutionProvider"])


def inside(model: Model, flavour: Flavour = "u8s8") -> set[str]:
    return set(Quantize(flavour=flavour).nodes(named(model)))


def test_what_lies_between_layers_is_quantised_and_what_floats_read_is_not(build: Any) -> None:
    """A residual sum that a normalisation reads, its epsilon and a GELU's cube stay in float; a ResNet's sum does not."""
    rng = np.random.default_rng(7)
    weights = {name: rng.standard_normal((8, 8)).astype(np.float32) for name in ("w1", "w2", "w3", "w4")}
    weights |= {"eps": np.float32(1e-5), "third": np.float32(0.044)}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w2"], ["b"], name="second"),
        helper.make_node("Add", ["r", "b"], ["s"], name="between"),
        helper.make_node("MatMul", ["s", "w3"], ["c"], name="third"),
        helper.make_node("Mul", ["c", "third"], ["d"], name="scaled"),
        helper.make_node("Tanh", ["d"], ["t"], name="tanh"),
        helper.make_node("Add", ["c", "t"], ["e"], name="stream"),
        helper.make_node("ReduceMean", ["e"], ["m"], name="mean", axes=[-1]),
        helper.make_node("Add", ["m", "eps"], ["v"], name="epsilon"),
        helper.make_node("Sqrt", ["v"], ["q"], name="root"),
        helper.make_node("Mul", ["e", "q"], ["n"], name="normal"),
        helper.make_node("MatMul", ["n", "w4"], ["y"], name="last"),
    ]
    model = Model.from_proto(build(nodes, [("x", [3, 8])], [("y", [3, 8])], weights), "m")
    layers = {"first", "second", "third", "last"}
    assert inside(model) == layers | {"relu", "between"}
    assert inside(model, "tensorrt") == layers | {"between"}


def test_a_residual_net_is_quantised_throughout() -> None:
    model = named(Model.load(NETS / "fashion_resnet.onnx"))
    sums = {node.name for node in model.proto.graph.node if node.op_type == "Add"}
    assert len(sums) >= 3 and sums <= inside(model) and sums <= inside(model, "tensorrt")


def test_an_average_has_a_scale_of_its_own(build: Any) -> None:
    """With the scale of what it averages, whose peaks are many times as high, a pooled feature would be a few steps high."""
    rng = np.random.default_rng(8)
    weights = {
        "w": rng.standard_normal((8, 3, 1, 1)).astype(np.float32),
        "v": rng.standard_normal((4, 8, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Conv", ["p", "v"], ["y"], name="second"),
    ]
    model = Model.from_proto(build(nodes, [("x", [1, 3, 16, 16])], [("y", [1, 4, 1, 1])], weights), "m")
    samples = real(model)
    for flavour in ("u8s8", "s8s8", "tensorrt"):
        made = Quantize(flavour=flavour)(model, Given(model, samples))
        scales = {n.input[0]: float(stored(made)[n.input[1]]) for n in made.proto.graph.node if n.op_type == "QuantizeLinear"}
        assert scales["p"] < 0.4 * scales["r" if flavour != "tensorrt" else "x"]
        assert close(model, made, samples) < 0.02


# --- graphs that another pass was at before ----------------------------------------------------------


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_fp16_stays_fp16(net: tuple[Model, Given], flavour: Flavour) -> None:
    model, given = net
    half = Half()(model, given)
    with pytest.raises(PassError, match="to quantise; its 3 layers are kept, are no float32"):
        Quantize(flavour=flavour)(half, given)


@pytest.mark.parametrize("first", FLAVOURS)
@pytest.mark.parametrize("second", FLAVOURS)
def test_what_is_quantised_is_not_quantised_again(build: Any, first: Flavour, second: Flavour) -> None:
    rng = np.random.default_rng(9)
    weights = {name: rng.standard_normal((32, 32)).astype(np.float32) / 6 for name in ("a", "b")}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"], name="one"),
        helper.make_node("Relu", ["p"], ["q"], name="relu"),
        helper.make_node("MatMul", ["q", "b"], ["y"], name="two"),
    ]
    model = Model.from_proto(build(nodes, [("x", [4, 32])], [("y", [4, 32])], weights), "m")
    samples = real(model)
    given = Given(model, samples)
    part = Quantize(flavour=first, keep=("two",), reduce_range=True)(model, given)
    assert Quantize(flavour=second).layers(part) == ["two"]
    both = Quantize(flavour=second, reduce_range=True)(part, given)
    assert 0 < close(model, both, samples) < 0.06
    with pytest.raises(PassError, match="to quantise"):
        Quantize(flavour=second)(both, given)
    names = [node.name for node in both.proto.graph.node]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("factors", [{"alpha": 0.5}, {"beta": 2.0}, {"alpha": 2.0, "beta": 0.5, "transB": 1}], ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_dynamic_takes_layers_with_factors(build: Any, factors: dict[str, Any], biased: bool) -> None:
    rng = np.random.default_rng(5)
    weights = {"w": rng.standard_normal((8, 8)).astype(np.float32), "c": rng.standard_normal(8).astype(np.float32)}
    node = helper.make_node("Gemm", ["x", "w", "c"][: 3 if biased else 2], ["y"], name="dense", **factors)
    model = Model.from_proto(build([node], [("x", [3, 8])], [("y", [3, 8])], weights), "m")
    samples = real(model)
    made = Quantize(flavour="dynamic", reduce_range=True)(model, Given(model, samples))
    assert "MatMulInteger" in [node.op_type for node in made.proto.graph.node]
    assert 0 < close(model, made, samples) < 0.05


def test_dynamic_shares_no_integers(build: Any) -> None:
    weights = {"w": np.random.default_rng(5).standard_normal((8, 8)).astype(np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w"], ["y"], name="two"),
    ]
    model = Model.from_proto(build(nodes, [("x", [3, 8])], [("y", [3, 8])], weights), "m")
    made = Quantize(flavour="dynamic")(model, Given(model, real(model)))
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    ort.InferenceSession(made.to_bytes(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_constants_that_are_nodes_are_quantised_like_stored_ones(build: Any, flavour: Flavour) -> None:
    rng = np.random.default_rng(5)
    weights = {"w": rng.standard_normal((16, 16, 1, 1)).astype(np.float32), "c": rng.standard_normal(16).astype(np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "w", "c"], ["y"], name="conv"),
        helper.make_node("Flatten", ["y"], ["f"], name="flat"),
    ]
    if flavour == "dynamic":
        weights["w"] = weights["w"].reshape(16, 16)
        nodes = [helper.make_node("Gemm", ["x", "w", "c"], ["f"], name="dense")]
    constants = [helper.make_node("Constant", [], [name], name=name, value=numpy_helper.from_array(value, name))
                 for name, value in weights.items()]  # fmt: skip
    shape = [1, 16] if flavour == "dynamic" else [1, 16, 1, 1]
    made = []
    for stored_ones, first in ((weights, []), ({}, constants)):
        proto = build([*first, *nodes], [("x", shape)], [("f", [1, 16])], stored_ones)
        model = Model.from_proto(proto, "m")
        made.append(Quantize(flavour=flavour)(model, Given(model, real(model))))
    assert made[0].to_bytes() == made[1].to_bytes()


def test_there_is_no_integer_operator_for_a_transposed_convolution(build: Any) -> None:
    weights = {"w": np.random.default_rng(5).standard_normal((4, 4, 3, 3)).astype(np.float32)}
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="up")
    model = Model.from_proto(build([node], [("x", [1, 4, 4, 4])], [("y", [1, 4, 6, 6])], weights), "m")
    assert Quantize(flavour="u8s8").layers(model) == ["up"]
    with pytest.raises(PassError, match="to quantise"):
        Quantize(flavour="qoperator")(model, Given(model, real(model)))
