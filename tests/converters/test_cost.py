"""Costs: MACs, parameters and bytes against hand counts and published totals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgesdk_converters.cost import Layer, layers, load_layers, total
from edgesdk_converters.errors import ModelError
from edgesdk_converters.model import Model

F = np.float32
LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"


def one(build: Any, node: onnx.NodeProto, inputs: Any, weights: dict[str, tuple[int, ...]], opset: int = 20) -> Layer:
    """The layer of a model of one node; weights by shape, float32."""
    outputs = [(name, None) for name in node.output if name]
    proto = build([node], inputs, outputs, {name: np.zeros(shape, F) for name, shape in weights.items()}, opset=opset)
    (layer,) = layers(Model.from_proto(proto, "m"))
    return layer


@pytest.mark.parametrize(
    ("name", "macs"),
    [
        ("resnet50", 4_089_184_256),  # published 4.09 G
        ("vgg19", 19_632_062_464),  # 19.6 G
        ("densenet121", 2_834_161_664),  # 2.83 G
        ("squeezenet", 349_151_936),  # 0.35 G (1.1)
        ("inception_v1", 1_431_556_352),  # 1.43 G
        ("shufflenet", 124_664_528),  # 0.12-0.14 G
        ("bvlc_alexnet", 654_560_384),  # 0.65 G (grouped)
    ],
)
def test_known_networks_have_their_published_macs(name: str, macs: int) -> None:
    records = layers(Model.load(LIGHT / f"light_{name}.onnx"))
    assert total(records).macs == macs
    assert sum(total(records).by_kind.values()) == macs


CONV = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}


@pytest.mark.parametrize(
    ("node", "inputs", "weights", "kind", "macs", "params"),
    [
        (helper.make_node("Conv", ["x", "w", "b"], ["y"], strides=[2, 2], **CONV), [("x", [1, 3, 8, 8])],
         {"w": (6, 3, 3, 3), "b": (6,)}, "conv", 6 * 4 * 4 * 27, 168),
        (helper.make_node("Conv", ["x", "w"], ["y"], group=2, **CONV), [("x", [1, 4, 8, 8])], {"w": (6, 2, 3, 3)},
         "groupconv", 6 * 64 * 18, 108),
        (helper.make_node("Conv", ["x", "w"], ["y"], group=4, **CONV), [("x", [1, 4, 8, 8])], {"w": (8, 1, 3, 3)},
         "dwconv", 8 * 64 * 9, 72),
        (helper.make_node("Conv", ["x", "w"], ["y"]), [("x", [2, 4, 8, 8])], {"w": (8, 4, 1, 1)}, "conv1x1", 2 * 8 * 64 * 4, 32),
        (helper.make_node("Conv", ["x", "w"], ["y"]), [("x", [1, 4, 10])], {"w": (8, 4, 3)}, "conv", 8 * 8 * 12, 96),
        (helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2]), [("x", [1, 4, 5, 5])], {"w": (4, 3, 2, 2)},
         "deconv", 25 * 4 * 3 * 4, 48),
        (helper.make_node("ConvTranspose", ["x", "w"], ["y"], group=2), [("x", [1, 4, 5, 5])], {"w": (4, 3, 2, 2)},
         "deconv", 25 * 4 * 3 * 4, 48),
        (helper.make_node("Gemm", ["x", "w", "b"], ["y"]), [("x", [2, 5])], {"w": (5, 7), "b": (7,)}, "fc", 70, 42),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transA=1, transB=1), [("x", [5, 2])], {"w": (7, 5)}, "fc", 70, 35),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), [("x", [3, 2, 5])], {"w": (5, 7)}, "gemm", 3 * 2 * 5 * 7, 35),
        (helper.make_node("MatMul", ["x", "z"], ["y"]), [("x", [3, 4, 2, 5]), ("z", [3, 4, 5, 6])], {},
         "matmul", 12 * 2 * 5 * 6, 0),
        (helper.make_node("LSTM", ["x", "w", "r", "b"], ["y"], hidden_size=6), [("x", [10, 2, 5])],
         {"w": (1, 24, 5), "r": (1, 24, 6), "b": (1, 48)}, "rnn", 20 * (24 * 5 + 24 * 6), 24 * 11 + 48),
        (helper.make_node("GRU", ["x", "w", "r"], ["y"], hidden_size=6, direction="bidirectional"), [("x", [10, 2, 5])],
         {"w": (2, 18, 5), "r": (2, 18, 6)}, "rnn", 20 * 2 * 18 * 11, 2 * 18 * 11),
        (helper.make_node("Einsum", ["x", "z"], ["y"], equation="bij, bjk -> bik"), [("x", [2, 3, 4]), ("z", [2, 4, 5])], {},
         "matmul", 2 * 3 * 4 * 5, 0),
        (helper.make_node("Einsum", ["x", "z"], ["y"], equation="...ij,...jk->...ik"),
         [("x", [6, 2, 3, 4]), ("z", [6, 2, 4, 5])], {},
         "matmul", 12 * 3 * 4 * 5, 0),
        (helper.make_node("Einsum", ["x"], ["y"], equation="ij->ji"), [("x", [2, 3])], {}, "matmul", 0, 0),
        (helper.make_node("Relu", ["x"], ["y"]), [("x", [2, 3])], {}, "act", 0, 0),
    ],
    ids=lambda value: value.op_type if isinstance(value, onnx.NodeProto) else None,
)  # fmt: skip
def test_macs_and_parameters_by_hand(build: Any, node: Any, inputs: Any, weights: Any, kind: str, macs: int, params: int) -> None:
    layer = one(build, node, inputs, weights)
    assert (layer.kind, layer.macs, layer.params) == (kind, macs, params)
    assert layer.weight_bytes == 4 * params


def test_attention_counts_both_products(build: Any) -> None:
    inputs = [("q", [1, 8, 10, 16]), ("k", [1, 2, 20, 16]), ("v", [1, 2, 20, 12])]
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"])
    assert one(build, node, inputs, {}, opset=23).macs == 8 * 10 * 20 * (16 + 12)
    inputs = [("q", [1, 10, 128]), ("k", [1, 20, 32]), ("v", [1, 20, 24])]
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], q_num_heads=8, kv_num_heads=2)
    assert one(build, node, inputs, {}, opset=23).macs == 8 * 10 * 20 * (16 + 12)


def test_shapes_strides_and_bytes_are_recorded(build: Any) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 1], dilations=[1, 2], name="stem")
    layer = one(build, node, [("x", [1, 3, 9, 9])], {"w": (4, 3, 3, 3)})
    assert (layer.name, layer.op, layer.inputs, layer.outputs) == ("stem", "Conv", ("x",), ("y",))
    assert (layer.in_shapes, layer.out_shapes) == (((1, 3, 9, 9),), ((1, 4, 4, 5),))
    assert (layer.kernel, layer.stride, layer.dilation, layer.dtype) == ((3, 3), (2, 1), (1, 2), "float32")
    assert (layer.in_bytes, layer.out_bytes, layer.elem_ops) == (4 * 243, 4 * 80, 0)


def test_elementwise_operations_are_counted_by_output_and_reshapes_are_free(build: Any) -> None:
    nodes = [
        helper.make_node("Add", ["x", "b"], ["s"]),
        helper.make_node("Flatten", ["s"], ["f"]),
        helper.make_node("Softmax", ["f"], ["y"]),
    ]
    add, flatten, soft = layers(Model.from_proto(build(nodes, [("x", [2, 3, 4])], [("y", [2, 12])], {"b": np.zeros(4, F)}), "m"))
    assert (add.elem_ops, add.kind, add.params) == (24, "eltwise", 4)
    assert (flatten.elem_ops, flatten.in_bytes, flatten.out_bytes) == (0, 0, 0)
    assert (soft.elem_ops, soft.kind) == (24, "softmax")


def test_shared_weights_are_paid_once_and_indices_are_no_parameters(build: Any) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Reshape", ["b", "shape"], ["y"]),
    ]
    weights = {"w": np.zeros((4, 4), F), "shape": np.array([4])}
    sums = total(layers(Model.from_proto(build(nodes, [("x", [1, 4])], [("y", [4])], weights), "m")))
    assert (sums.params, sums.weight_bytes, sums.macs, sums.by_kind) == (16, 64 + 8, 32, {"gemm": 32})


def test_of_an_if_the_dearer_branch_counts_with_weights_from_outside(build: Any) -> None:
    def branch(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph(list(nodes), name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4])])

    cheap = branch("t", helper.make_node("MatMul", ["x", "w"], ["t"]))
    dear = branch("e", helper.make_node("MatMul", ["x", "w"], ["e1"]), helper.make_node("MatMul", ["e1", "v"], ["e"]))
    node = helper.make_node("If", ["c"], ["y"], then_branch=cheap, else_branch=dear)
    weights = {"w": np.zeros((4, 4), F), "v": np.zeros((4, 4), F)}
    proto = build([node], [("x", [1, 4]), ("c", [], TensorProto.BOOL)], [("y", [1, 4])], weights)
    records = layers(Model.from_proto(proto, "m"))
    assert (total(records).macs, total(records).params) == (32, 32)
    assert [layer.op for layer in records] == ["MatMul", "MatMul", "If"]


def test_local_functions_are_counted_by_their_body(build: Any) -> None:
    body = [helper.make_node("MatMul", ["a", "w"], ["m"]), helper.make_node("Relu", ["m"], ["r"])]
    function = helper.make_function("local", "F", ["a", "w"], ["r"], body, [helper.make_opsetid("", 17)])
    proto = build([helper.make_node("F", ["x", "w"], ["y"], domain="local")], [("x", [2, 4])], [("y", [2, 5])],
                  {"w": np.zeros((4, 5), F)}, functions=[function], domains=["local"])  # fmt: skip
    assert total(layers(Model.from_proto(proto, "m"))).macs == 40


def test_unknown_sizes_are_an_error_that_says_what_to_give(build: Any) -> None:
    proto = build(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], [("x", ["n", 4])], [("y", ["n", 4])], {"w": np.zeros((4, 4), F)}
    )
    with pytest.raises(ModelError, match=r"value 'x' .* has no static shape \(nx4\)") as caught:
        layers(Model.from_proto(proto, "m"))
    assert "--shape" in caught.value.hint


def test_peak_activation_by_hand_on_a_branchy_graph(build: Any) -> None:
    """x 400 B; a, b, c 400 B each; a reshape keeps its input's memory; a split is divided by size."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),  # x + a = 800, x stays for the sum
        helper.make_node("Exp", ["a"], ["b"]),  # x + a + b = 1200
        helper.make_node("Add", ["a", "b"], ["c"]),  # x + a + b + c = 1600: the peak
        helper.make_node("Add", ["c", "x"], ["y"]),  # c + x + y = 1200
    ]
    proto = build(nodes, [("x", [100])], [("y", [100])])
    assert total(layers(Model.from_proto(proto, "m"))).peak_activation_bytes == 1600

    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),  # x + a = 800
        helper.make_node("Reshape", ["a", "s"], ["r"]),  # a = 400, kept by r
        helper.make_node("Gemm", ["r", "w"], ["y"]),  # a + y = 400 + 4000
    ]
    proto = build(nodes, [("x", [100])], [("y", [1, 1000])], {"s": np.array([1, 100]), "w": np.zeros((100, 1000), F)})
    assert total(layers(Model.from_proto(proto, "m"))).peak_activation_bytes == 4400

    nodes = [
        helper.make_node("Split", ["x", "parts"], ["p", "q"], axis=0),  # x + p + q = 800
        helper.make_node("Tile", ["p", "times"], ["t"]),  # p (40) + q (360) + t (800) = 1200
        helper.make_node("Concat", ["t", "q"], ["y"], axis=0),  # t + q + y = 800 + 360 + 1160 = 2320
    ]
    proto = build(nodes, [("x", [100])], [("y", [290])], {"parts": np.array([10, 90]), "times": np.array([20])})
    assert total(layers(Model.from_proto(proto, "m"))).peak_activation_bytes == 2320


def test_layer_lists_are_read(tmp_path: Path) -> None:
    conv = {"name": "c", "op": "Convolution", "kind": "conv", "inputs": ["d"], "outputs": ["c"], "in_shapes": [[3, 8, 8]],
            "out_shapes": [[4, 8, 8]], "kernel": [3, 3], "stride": [1, 1], "dilation": 1, "groups": 1, "int8": True,
            "macs": 6912, "params": 112, "weight_bytes_fp32": 448, "in_bytes_fp32": 768, "out_bytes_fp32": 1024}  # fmt: skip
    relu = {"name": "r", "kind": "act", "inputs": ["c"], "outputs": ["r"], "out_shapes": [[4, 8, 8]], "elem_ops": 256,
            "in_bytes_fp32": 1024, "out_bytes_fp32": 1024}  # fmt: skip
    (tmp_path / "n.json").write_text(json.dumps({"name": "n", "int8": True, "layers": [conv, relu]}))
    first, second = load_layers(tmp_path / "n.json")
    assert (first.macs, first.weight_bytes, first.dtype, first.dilation) == (6912, 112, "int8", (1,))
    assert (second.elem_ops, second.dtype) == (256, "float32")
    sums = total((first, second))
    assert (sums.macs, sums.params, sums.peak_activation_bytes) == (6912, 112, 2048)
    (tmp_path / "n.json").write_text(json.dumps({"layers": [{**conv, "int8": False}]}))
    assert load_layers(tmp_path / "n.json")[0].weight_bytes == 448


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"layers": 3}', '{"layers": [3]}', '{"layers": [{"name": "a"}]}',
                                  '{"layers": [{"name": "a", "kind": "b", "macs": "many"}]}', '{"layers": null}'])  # fmt: skip
def test_what_is_no_layer_list_is_a_model_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "n.json").write_text(text)
    with pytest.raises(ModelError, match="is no layer list"):
        load_layers(tmp_path / "n.json")
    with pytest.raises(ModelError, match="cannot be read"):
        load_layers(tmp_path / "absent.json")


def test_nothing_costs_nothing() -> None:
    sums = total(())
    assert (sums.macs, sums.params, sums.peak_activation_bytes, sums.by_kind) == (0, 0, 0, {})
