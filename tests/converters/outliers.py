"""Plant outlier channels into a network without changing what it computes: what breaks per-tensor integers in the field."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper


def plant_outliers(proto: onnx.ModelProto, factor: float, every: int = 8) -> onnx.ModelProto:
    """A copy in which every eighth channel between two convolutions (with a Relu or nothing between them) is `factor` larger.

    The next convolution's weights for these channels are smaller by as much; exact for powers of two.
    """
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    graph = made.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    planted = 0
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        tensor = node.output[0]
        while len(users.get(tensor, [])) == 1 and users[tensor][0].op_type in ("Relu", "MaxPool"):
            tensor = users[tensor][0].output[0]
        following = users.get(tensor, [])
        if len(following) != 1 or following[0].op_type != "Conv":
            continue
        channels = stored[node.input[1]].dims[0]
        scale = np.ones(channels, np.float32)
        scale[planted % every :: every] = factor
        _multiply(stored[node.input[1]], scale, 0)
        if len(node.input) > 2:
            _multiply(stored[node.input[2]], scale, 0)
        groups = next((a.i for a in following[0].attribute if a.name == "group"), 1)
        _multiply(stored[following[0].input[1]], 1 / scale, 0 if groups == channels else 1)
        planted += 1
    if not planted:
        raise ValueError("no pair of convolutions to plant outliers between")
    return made


def _multiply(tensor: onnx.TensorProto, scale: np.ndarray, axis: int) -> None:
    values = numpy_helper.to_array(tensor)
    shape = [1] * values.ndim
    shape[axis] = -1
    tensor.CopyFrom(numpy_helper.from_array((values * scale.reshape(shape)).astype(np.float32), tensor.name))
