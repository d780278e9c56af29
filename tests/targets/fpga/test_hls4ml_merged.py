"""What costs nothing behind a layer with weights, since an export merges it: biases, scales, batch normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesdk_converters.affine import merged
from edgesdk_converters.cost import layers
from edgesdk_converters.model import Model
from edgesdk_targets.fpga.hls4ml_merged import unmerged

IMAGE, VECTOR = (1, 2, 4, 4), (1, 6)


def net(nodes: Sequence[onnx.NodeProto], shape: Sequence[int], **stored: Sequence[int]) -> Model:
    """From `x` to `y`, with random stored tensors of the given shapes."""
    rng = np.random.default_rng(3)
    held = [numpy_helper.from_array(rng.uniform(0.5, 1.5, size).astype(np.float32), name) for name, size in stored.items()]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in (("x", shape), ("y", None))]
    graph = helper.make_graph(nodes, "net", infos[:1], infos[1:], held)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return Model.from_proto(onnx.shape_inference.infer_shapes(proto), "net")


def node(op: str, *names: str) -> onnx.NodeProto:
    """Inputs, then the result, which names the node too."""
    return helper.make_node(op, names[:-1], names[-1:], name=names[-1])


def left(model: Model) -> list[str]:
    return [layer.op for layer in unmerged(layers(model))]


NORM = dict.fromkeys(("g", "b", "m", "v"), (3,))
MERGED = {
    "bias of a MatMul": net([node("MatMul", "x", "w", "p"), node("Add", "p", "c", "y")], VECTOR, w=(6, 5), c=(5,)),
    "bias on the left": net([node("MatMul", "x", "w", "p"), node("Add", "c", "p", "y")], VECTOR, w=(6, 5), c=(1, 5)),
    "one number": net([node("Gemm", "x", "w", "p"), node("Mul", "p", "c", "y")], VECTOR, w=(6, 5), c=()),
    "bias and scale": net(
        [node("MatMul", "x", "w", "p"), node("Add", "p", "c", "q"), node("Mul", "q", "d", "y")], VECTOR, w=(6, 5), c=(5,), d=(5,)
    ),
    "channels": net([node("Conv", "x", "w", "p"), node("Sub", "p", "c", "y")], IMAGE, w=(3, 2, 2, 2), c=(1, 3, 1, 1)),
    "norm, bias": net(
        [node("Conv", "x", "w", "p"), node("BatchNormalization", "p", "g", "b", "m", "v", "q"), node("Add", "q", "c", "y")],
        IMAGE, w=(3, 2, 2, 2), c=(3, 1, 1), **NORM,
    ),
}  # fmt: skip
KEPT = {
    "read twice": (
        net([node("MatMul", "x", "w", "p"), node("Add", "p", "c", "q"), node("Add", "p", "q", "y")], VECTOR, w=(6, 5), c=(5,)),
        ["MatMul", "Add", "Add"],
    ),
    "two computed": (net([node("MatMul", "x", "w", "p"), node("Add", "p", "p", "y")], VECTOR, w=(6, 5)), ["MatMul", "Add"]),
    "elements": (
        net([node("Conv", "x", "w", "p"), node("Add", "p", "c", "y")], IMAGE, w=(3, 2, 2, 2), c=(3, 3, 3)), ["Conv", "Add"],
    ),
    "behind a ReLU": (
        net([node("MatMul", "x", "w", "p"), node("Relu", "p", "r"), node("Add", "r", "c", "y")], VECTOR, w=(6, 5), c=(5,)),
        ["MatMul", "Relu", "Add"],
    ),
    "more elements after it": (
        net([node("MatMul", "x", "w", "p"), node("Add", "p", "c", "y")], (1, 6), w=(6, 1), c=(5,)), ["MatMul", "Add"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MERGED)
def test_what_an_export_merges_is_no_layer(name: str) -> None:
    """The export's own pass leaves the same nodes."""
    model = MERGED[name]
    assert len(left(model)) == 1
    assert [one.op_type for one in merged(model).proto.graph.node] in ([left(model)[0]], ["Gemm"])


@pytest.mark.parametrize("name", KEPT)
def test_what_it_cannot_merge_stays(name: str) -> None:
    model, expected = KEPT[name]
    assert left(model) == expected
