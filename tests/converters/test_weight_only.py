"""Weight-only integers: what is stored is what is computed with, and the runtime's own operator agrees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesdk_converters.calibration import Samples
from edgesdk_converters.errors import PassError
from edgesdk_converters.model import Model
from edgesdk_converters.packing import packed_bytes, unpack
from edgesdk_converters.quantize import Quantize, weighted
from edgesdk_converters.reference import Reference
from edgesdk_converters.rotate import Rotate
from edgesdk_converters.weight_only import coded, weight_only

from .. import fashion

BITS = [4, 8]
NETS = Path(__file__).parents[2] / "examples" / "fashion"


def stored(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in proto.graph.initializer}


def run(proto: onnx.ModelProto, feed: dict[str, Any]) -> list[Any]:
    found: list[Any] = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)
    return found


@pytest.fixture
def dense(build: Any) -> Model:
    """A MatMul and Gemms with and without transposed weights and biases, 100 inputs (no multiple of a block) to 24 outputs."""
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape).astype(np.float32)
               for name, shape in {"m": (100, 24), "t": (24, 100), "n": (100, 24), "b": (24,)}.items()}  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "m"], ["y1"], name="matmul"),
        helper.make_node("Gemm", ["x", "t", "b"], ["y2"], name="turned", transB=1),
        helper.make_node("Gemm", ["x", "n"], ["y3"], name="plain"),
    ]
    outputs = [(f"y{n}", [3, 24]) for n in (1, 2, 3)]
    return Model.from_proto(build(nodes, [("x", [3, 100])], outputs, weights), "dense")


@pytest.mark.parametrize("bits", BITS)
def test_codes_are_whole_in_range_and_near(bits: int) -> None:
    rows = np.random.default_rng(1).standard_normal((50, 40)).astype(np.float32)
    made = coded(rows, bits)
    top = 2 ** (bits - 1) - 1
    assert made.codes.dtype == np.int8 and -top - 1 <= made.codes.min() and made.codes.max() <= top
    error = made.codes * made.scales[:, None] - rows
    plain = np.abs(rows).max(1, keepdims=True) / top
    nearest = np.round(rows / plain) * plain - rows
    assert (np.square(error).sum(1) <= np.square(nearest).sum(1) * 1.0001).all(), "worse than the scale of the largest value"
    if bits == 4:
        assert np.square(error).sum() < 0.95 * np.square(nearest).sum(), "the search for a scale found nothing"


def test_a_row_of_zeros_stays_zero() -> None:
    made = coded(np.zeros((2, 8), np.float32), 4)
    assert not made.codes.any() and np.isfinite(made.scales).all()


@pytest.mark.parametrize("bits", BITS)
def test_packed_layers_compute_with_the_stored_codes(dense: Model, bits: int) -> None:
    """MatMulNBits in ONNX Runtime against numpy on weights decoded by hand."""
    proto, note = weight_only(dense, bits)
    assert [n.op_type for n in proto.graph.node].count("MatMulNBits") == 3 and f"{bits} bits" in note
    x = np.random.default_rng(2).standard_normal((3, 100)).astype(np.float32)
    got = run(proto, {"x": x})
    tensors = stored(proto)
    for index, node in enumerate(n for n in proto.graph.node if n.op_type == "MatMulNBits"):
        packed, scales = (numpy_helper.to_array(tensors[name]) for name in node.input[1:3])
        codes = packed if bits == 8 else np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:2], -1)
        values = (codes.astype(np.float32) - 2 ** (bits - 1)) * scales.reshape(*codes.shape[:2], 1)
        wanted = x @ values.reshape(24, -1)[:, :100].T
        if node.name == "turned":
            wanted = wanted + numpy_helper.to_array(tensors["b"])
        np.testing.assert_allclose(got[index], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", BITS)
def test_stored_weights_come_back_within_half_a_step(conv_net: onnx.ModelProto, bits: int) -> None:
    source = onnx.ModelProto()
    source.CopyFrom(conv_net)
    model = Model.from_proto(source, "m")
    proto, note = weight_only(model, bits, packed=False)
    onnx.checker.check_model(proto, full_check=True)
    assert "file size alone" in note
    before, tensors = stored(model.proto), stored(proto)
    backs = [n for n in proto.graph.node if n.op_type == "DequantizeLinear"]
    assert backs
    for back in backs:
        name = back.input[0].partition("/int")[0]
        original = numpy_helper.to_array(before[name])
        probe = helper.make_model(
            helper.make_graph([back], "g", [], [helper.make_tensor_value_info(back.output[0], TensorProto.FLOAT, original.shape)],
                              [tensors[name] for name in back.input]),
            opset_imports=proto.opset_import, ir_version=proto.ir_version,
        )  # fmt: skip
        (values,) = run(probe, {})
        axis = next(a.i for a in back.attribute if a.name == "axis")
        steps = numpy_helper.to_array(tensors[back.input[1]])
        shape = [1] * original.ndim
        shape[axis] = -1
        inside = np.abs(original) <= steps.reshape(shape) * (2 ** (bits - 1) - 1)
        assert (np.abs(values - original) <= 0.5001 * steps.reshape(shape))[inside].all()
        assert tensors[back.input[0]].data_type == (TensorProto.INT4 if bits == 4 else TensorProto.INT8)
        assert len(tensors[back.input[0]].raw_data) == -(-original.size * bits // 8)


@pytest.mark.parametrize("bits", [2, 3, 5, 6, 7])
def test_any_other_width_is_packed_and_unpacked_by_the_graph(build: Any, bits: int) -> None:
    rng = np.random.default_rng(bits)
    weights = {"w": rng.standard_normal((9, 13, 3, 3)).astype(np.float32), "d": rng.standard_normal((81, 17)).astype(np.float32)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), helper.make_node("Flatten", ["c"], ["f"], name="flat"),
             helper.make_node("Gemm", ["f", "d"], ["y"], name="dense")]  # fmt: skip
    model = Model.from_proto(build(nodes, [("x", [1, 13, 5, 5])], [("y", [1, 17])], weights, opset=13), "m")
    proto, note = weight_only(model, bits, packed=False)
    onnx.checker.check_model(proto, full_check=True)
    assert f"2 layers with weights stored in {bits} bits" in note
    for name, axis in (("w", 0), ("d", 1)):
        made = coded(np.moveaxis(weights[name], axis, 0).reshape(weights[name].shape[axis], -1), bits)
        data = numpy_helper.to_array(stored(proto)[f"{name}/int{bits}"])
        assert data.dtype == np.uint8 and data.size == packed_bytes(weights[name].size, bits)
        codes = unpack(data.tobytes(), bits, weights[name].size, signed=False) - 2 ** (bits - 1)
        moved = np.moveaxis(codes.reshape(weights[name].shape), axis, 0)
        np.testing.assert_array_equal(moved.reshape(made.codes.shape), made.codes)
        weights[name] = np.moveaxis((moved.astype(np.float32).T * made.scales).T, 0, axis)
    wanted = build(nodes, [("x", [1, 13, 5, 5])], [("y", [1, 17])], weights, opset=13)
    x = rng.standard_normal((1, 13, 5, 5)).astype(np.float32)
    np.testing.assert_allclose(run(proto, {"x": x})[0], run(wanted, {"x": x})[0], rtol=1e-5, atol=1e-5)


def test_four_bits_in_storage_raise_the_opset_and_eight_do_not(conv_net: onnx.ModelProto) -> None:
    for bits, opset in ((8, 17), (4, 21)):
        source = onnx.ModelProto()
        source.CopyFrom(conv_net)
        proto, _ = weight_only(Model.from_proto(source, "m"), bits, packed=False)
        assert next(o.version for o in proto.opset_import if not o.domain) == opset


def test_thin_layers_keep_eight_bits(build: Any) -> None:
    """Nine weights a channel are too few for four bits each: a depthwise convolution is small anyhow."""
    weights = {"d": np.ones((64, 1, 3, 3), np.float32), "w": np.ones((64, 64, 1, 1), np.float32)}
    nodes = [helper.make_node("Conv", ["x", "d"], ["c"], name="depthwise", group=64),
             helper.make_node("Conv", ["c", "w"], ["y"], name="pointwise")]  # fmt: skip
    model = Model.from_proto(build(nodes, [("x", [1, 64, 5, 5])], [("y", [1, 64, 3, 3])], weights), "m")
    proto, note = weight_only(model, 4)
    kinds = {name: tensor.data_type for name, tensor in stored(proto).items()}
    assert kinds["d/int8"] == TensorProto.INT8 and kinds["w/int4"] == TensorProto.INT4
    assert "(1 thin ones in 8)" in note


@pytest.mark.parametrize(("bits", "share"), [(8, 0.85), (4, 0.85)])
def test_bias_correction_takes_the_mean_error_off(given: Any, bits: int, share: float) -> None:
    model = Model.load(NETS / "fashion_mobilenet.onnx")
    train = Samples.from_arrays({"image": fashion.samples("train", 0, 64)["image"]}, model.signature, "images")
    check = fashion.samples("t10k", 0, 40)["image"]
    reference = Reference(model)
    errors = []
    for corrects in (False, True):
        made = Reference(Quantize(flavour="stored", bits=bits, bias_correction=corrects)(model, given(model, train)))
        rows = [made.run({"image": x[None]})["logits"] - reference.run({"image": x[None]})["logits"] for x in check]
        errors.append(float(np.sqrt(np.mean(np.square(rows)))))
    assert errors[1] < share * errors[0]


def test_bias_correction_wants_real_data(given: Any) -> None:
    model = Model.load(NETS / "fashion_cnn.onnx")
    with pytest.raises(
        PassError, match="takes the means of activations for bias correction from data, and there are only seeded"
    ):
        Quantize(flavour="stored", bias_correction=True)(model, given(model))
    with pytest.raises(PassError, match="flavour dynamic has no bias correction"):
        Quantize(flavour="dynamic", bias_correction=True)


def test_small_weights_and_kept_layers_stay_in_float(dense: Model, build: Any) -> None:
    proto, _ = weight_only(dense, 8, keep=("matmul",))
    assert [n.op_type for n in proto.graph.node if n.name == "matmul"] == ["MatMul"]
    proto, _ = weight_only(dense, 8, only=("matmul",))
    assert [n.op_type for n in proto.graph.node].count("MatMulNBits") == 1
    tiny = build([helper.make_node("MatMul", ["x", "w"], ["y"], name="m")], [("x", [1, 8])], [("y", [1, 8])],
                 {"w": np.eye(8, dtype=np.float32)})  # fmt: skip
    proto, _ = weight_only(Model.from_proto(tiny, "tiny"), 4)
    assert [n.op_type for n in proto.graph.node] == ["MatMul"]


def test_a_gemm_that_scales_is_left_as_it_is(build: Any) -> None:
    weights = {"w": np.ones((32, 32), np.float32)}
    node = helper.make_node("Gemm", ["x", "w"], ["y"], name="g", alpha=0.5)
    proto, _ = weight_only(Model.from_proto(build([node], [("x", [1, 32])], [("y", [1, 32])], weights), "m"), 8)
    assert [n.op_type for n in proto.graph.node] == ["Gemm"]


@pytest.mark.parametrize(
    ("flavour", "net", "bits", "most"),
    [
        ("weights", "vit", 8, 0.35),
        ("weights", "vit", 4, 0.23),
        ("stored", "resnet", 8, 0.28),
        ("stored", "resnet", 4, 0.15),
        ("stored", "resnet", 3, 0.14),
    ],
)
def test_a_real_net_gets_nearly_as_small_as_its_bits(given: Any, flavour: Any, net: str, bits: int, most: float) -> None:
    model = Model.load(NETS / f"fashion_{net}.onnx")
    made = Quantize(flavour=flavour, bits=bits)(model, given(model))
    share = len(made.to_bytes()) / len(model.to_bytes())
    assert bits / 32 < share <= most
    assert made.signature == model.signature


def test_a_flavour_that_finds_nothing_says_so(build: Any, given: Any) -> None:
    model = Model.from_proto(build([helper.make_node("Relu", ["x"], ["y"])], [("x", [1, 8])], [("y", [1, 8])]), "m")
    assert weighted(model) == []
    with pytest.raises(PassError, match="no weighted layers in m to quantise"):
        Quantize(flavour="weights")(model, given(model))
    with pytest.raises(PassError, match=r"bits = 3; allowed: 4 or 8"):
        Quantize(flavour="weights", bits=3)


@pytest.mark.parametrize("bits", [8, 4])
def test_what_layers_share_is_loaded_where_integers_change_their_sign(build: Any, given: Any, bits: int) -> None:
    """On x86 with exact sums; zero points must be spelt out there, and 8-bit integers have one reader."""
    weights = {"w": np.random.default_rng(0).standard_normal((16, 16, 3, 3)).astype(np.float32) / 12}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="one", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w"], ["y"], name="two", pads=[1, 1, 1, 1]),
    ]
    model = Model.from_proto(build(nodes, [("x", [1, 16, 6, 6])], [("y", [1, 16, 6, 6])], weights), "m")
    what = given(model)
    made = Quantize(flavour="stored", bits=bits)(model, what)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = ort.InferenceSession(made.to_bytes(), options, providers=["CPUExecutionProvider"])
    sample = next(iter(what.train))
    np.testing.assert_allclose(session.run(None, sample)[0], Reference(made).run(sample)["y"], atol=0.05)


@pytest.mark.parametrize("flavour", ["weights", "stored"])
def test_only_layers_that_are_quantised_are_counted(build: Any, given: Any, flavour: Any) -> None:
    rng = np.random.default_rng(0)
    weights = {"big": rng.standard_normal((32, 32)).astype(np.float32), "small": rng.standard_normal((32, 4)).astype(np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "big"], ["a"], name="one"),
        helper.make_node("MatMul", ["a", "small"], ["y"], name="two"),
    ]
    model = Model.from_proto(build(nodes, [("x", [1, 32])], [("y", [1, 4])], weights), "m")
    step = Quantize(flavour=flavour)
    assert step.nodes(model) == ["one"]
    assert "1 weighted layers quantised, 1 left in float" in step(model, given(model)).history[-1].note
    with pytest.raises(PassError, match="its 2 layers are kept, are no float32, or too small"):
        Quantize(flavour=flavour, keep=("one",))(model, given(model))


def test_rotations_are_no_weights(build: Any, given: Any) -> None:
    weights = {"w": np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)}
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="one")
    model = Model.from_proto(build([node], [("x", [1, 32])], [("y", [1, 32])], weights), "m")
    rotated = Rotate(threshold=0.0)(model, given(model))
    made = Quantize(flavour="weights", bits=4)(rotated, given(model))
    assert [node.op_type for node in made.proto.graph.node] == ["MatMul", "MatMulNBits"]
