"""Equalize: channels that are far larger than the others are scaled down where they are made, and up where they are used.

One scale for a whole tensor of activations leaves few integer steps to the small channels. Between two layers with nothing but
positively homogeneous operators, a channel can be divided by any s > 0 if the next layer's weights for it are multiplied by s
(Nagel et al. 2019, arXiv 1906.04721); a LayerNormalization can be divided in its scale and bias (Xiao et al. 2022,
SmoothQuant, arXiv 2211.10438). Scales are powers of two, so that the function stays the same but for the order of rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from . import graph as graphs
from .errors import MissingExtra, PassError
from .model import Model, Step
from .observe import channel_peaks
from .passes import Given
from .quantize import named

try:
    import onnx
    from onnx import TensorProto, numpy_helper
except ImportError as _error:
    raise MissingExtra("convert", "onnx") from _error

Array = NDArray[Any]
HOMOGENEOUS = {"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity", "Dropout"}
"""Operators with f(s x) = s f(x) for s > 0, channel by channel."""
RESHAPING = {"Flatten", "Reshape", "Squeeze"}
SWEEPS = 10


@dataclass(frozen=True)
class Equalize:
    """Balances the peaks of activations against the weights that read them: s = (activation / weight) ** `strength`.

    Activations are judged on the calibration inputs. A tensor is left alone where something else reads it too, or where an
    operator between the layers is not homogeneous (a clipped ReLU, say).
    """

    name: ClassVar[str] = "equalize"
    strength: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise PassError(self.name, f"strength is {self.strength}; allowed: above 0, up to 1")

    def __call__(self, model: Model, given: Given) -> Model:
        model = named(model)
        surgery = _Surgery(model.copy_proto())
        joints = list(_joints(surgery))
        given.progress("reading channel peaks")
        tensors = {joint.tensor: joint.axis for joint in joints}
        peaks: dict[str, Array] = {}
        for axis in sorted(set(tensors.values())):
            names = [name for name, own in tensors.items() if own == axis]
            peaks |= channel_peaks(model, given.train, names, axis=axis, progress=given.progress)
        moved: dict[str, float] = {}
        for _ in range(SWEEPS):
            largest = 1.0
            for joint in joints:
                scale = self._scale(surgery, joint, peaks[joint.tensor])
                if scale is None:
                    continue
                surgery.divide(joint, scale)
                peaks[joint.tensor] = peaks[joint.tensor] / scale
                ratio = float(scale.max() / scale.min())
                largest = max(largest, ratio)
                moved[joint.tensor] = max(moved.get(joint.tensor, 1.0), ratio)
            if largest <= 1.0:
                break
        note = f"{len(moved)} of {len(joints)} tensors between layers"
        if moved:
            note += f", channels scaled by up to {max(moved.values()):g} against each other"
        return model.changed(surgery.finished(), Step(self.name, {"strength": self.strength}, note))

    def _scale(self, surgery: _Surgery, joint: _Joint, peak: Array) -> Array | None:
        """What each channel is divided by: powers of two, their middle at 1; None where nothing is to be done."""
        weight = np.max([surgery.reading(reader) for reader in joint.readers], axis=0)
        if len(peak) != joint.channels or len(weight) != joint.channels:
            return None
        alive = (peak > 0) & (weight > 0)
        if not alive.any():
            return None
        wanted = np.zeros(joint.channels)
        wanted[alive] = self.strength * (np.log2(peak[alive]) - np.log2(weight[alive]))
        exponent = np.where(alive, np.round(wanted - np.median(wanted[alive])), 0.0)
        return np.exp2(exponent) if exponent.any() else None


@dataclass(frozen=True)
class _Reader:
    """A layer that reads a tensor: its weight, the axis of input channels in it, and values of the weight a channel."""

    weight: tuple[str, int]
    axis: int
    repeat: int = 1


@dataclass(frozen=True)
class _Joint:
    """A tensor between layers: who makes its channels (weights and the axis of output channels), and who reads them."""

    tensor: str
    axis: int
    channels: int
    makers: tuple[tuple[str, int, int], ...]
    readers: tuple[_Reader, ...] = field(default_factory=tuple)


class _Surgery:
    """A graph whose weights are changed node by node; a weight that several nodes share gets a copy for each."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto
        self.stored = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.nodes = {node.name: node for node in proto.graph.node}
        self.makers = {name: node for node in proto.graph.node for name in node.output}
        self.users: dict[str, list[onnx.NodeProto]] = {}
        for node in proto.graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.outputs = {output.name for output in proto.graph.output}
        infos = (*proto.graph.value_info, *proto.graph.input, *proto.graph.output)
        self.ranks = {info.name: len(info.type.tensor_type.shape.dim) for info in infos}
        self._values: dict[tuple[str, int], Array] = {}

    def value(self, node: str, index: int) -> Array:
        """The stored array at an input of a node, its own from then on."""
        key = (node, index)
        if key not in self._values:
            self._values[key] = numpy_helper.to_array(self.stored[self.nodes[node].input[index]]).astype(np.float64)
        return self._values[key]

    def reading(self, reader: _Reader) -> Array:
        """The largest weight that each channel meets."""
        values = np.abs(np.moveaxis(self.value(*reader.weight), reader.axis, 0))
        return np.asarray(values.reshape(-1, reader.repeat * values[0].size).max(axis=1))

    def divide(self, joint: _Joint, scale: Array) -> None:
        """Channels become 1/scale of what they were, and the weights that read them scale times as large."""
        for node, index, axis in joint.makers:
            values = self.value(node, index)
            shape = [1] * values.ndim
            shape[axis] = -1
            self._values[(node, index)] = values / scale.reshape(shape)
        for reader in joint.readers:
            values = self.value(*reader.weight)
            shape = [1] * values.ndim
            shape[reader.axis] = -1
            self._values[reader.weight] = values * np.repeat(scale, reader.repeat).reshape(shape)

    def finished(self) -> onnx.ModelProto:
        """The graph with its new weights."""
        fresh = graphs.fresh_names(self.proto)
        for (node, index), values in sorted(self._values.items()):
            name = fresh(f"{node}/equalized_{index}")
            self.proto.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
            self.nodes[node].input[index] = name
        used = {name for node in self.proto.graph.node for name in node.input} | self.outputs
        kept = [TensorProto.FromString(t.SerializeToString()) for t in self.proto.graph.initializer if t.name in used]
        del self.proto.graph.initializer[:]
        self.proto.graph.initializer.extend(kept)
        return self.proto


def _joints(surgery: _Surgery) -> list[_Joint]:
    """Every tensor between layers whose channels may be scaled, in the graph's order."""
    found = []
    for node in surgery.proto.graph.node:
        made = _made(surgery, node)
        if made is None:
            continue
        makers, channels = made
        tensor = node.output[0]
        while True:
            users = surgery.users.get(tensor, [])
            if tensor in surgery.outputs or len(users) != 1 or users[0].op_type not in HOMOGENEOUS | RESHAPING:
                break
            if users[0].op_type in RESHAPING and surgery.ranks.get(users[0].output[0]) != 2:
                break
            tensor = users[0].output[0]
        users = surgery.users.get(tensor, [])
        readers = [_read(surgery, user, tensor, channels) for user in users]
        if tensor in surgery.outputs or not readers or any(reader is None for reader in readers):
            continue
        whole = tuple(reader for reader in readers if reader is not None)
        if whole[0].repeat > 1:  # flattened: the channels are seen before that
            source = surgery.makers[tensor].input[0]
            found.append(_Joint(source, 1, channels, makers, whole))
            continue
        last = surgery.ranks.get(tensor, 0) - 1
        axis = last if node.op_type in ("MatMul", "LayerNormalization") else 1
        found.append(_Joint(tensor, axis, channels, makers, whole))
    return found


def _made(surgery: _Surgery, node: onnx.NodeProto) -> tuple[tuple[tuple[str, int, int], ...], int] | None:
    """Which stored inputs of a node make its output channels (node, input, axis), and how many there are."""
    stored = surgery.stored
    if len(node.input) < 2 or node.input[1] not in stored or stored[node.input[1]].data_type != TensorProto.FLOAT:
        return None
    dims = stored[node.input[1]].dims
    attributes = {a.name: a for a in node.attribute}
    if node.op_type == "Conv":
        axis = 0
    elif node.op_type == "Gemm":
        if any(name in attributes and attributes[name].f != 1.0 for name in ("alpha", "beta")):
            return None
        axis = 0 if "transB" in attributes and attributes["transB"].i else 1
    elif node.op_type == "LayerNormalization":
        if len(dims) != 1 or ("axis" in attributes and attributes["axis"].i not in (-1, surgery.ranks.get(node.input[0], 0) - 1)):
            return None
        axis = 0
    else:
        return None
    channels = int(dims[axis])
    makers = [(node.name, 1, axis)]
    if len(node.input) > 2 and node.input[2]:
        bias = stored.get(node.input[2])
        if bias is None or list(bias.dims) != [channels]:
            return None
        makers.append((node.name, 2, 0))
    return tuple(makers), channels


def _read(surgery: _Surgery, node: onnx.NodeProto, tensor: str, channels: int) -> _Reader | None:
    """How a node reads the channels of a tensor; None where they cannot be scaled there."""
    stored = surgery.stored
    if len(node.input) < 2 or node.input[0] != tensor or node.input[1] not in stored:
        return None
    weight = stored[node.input[1]]
    attributes = {a.name: a for a in node.attribute}
    if weight.data_type != TensorProto.FLOAT or list(node.input).count(tensor) > 1:
        return None
    if node.op_type == "Conv":
        groups = attributes["group"].i if "group" in attributes else 1
        if groups == 1 and weight.dims[1] == channels:
            return _Reader((node.name, 1), 1)
        if groups == channels and weight.dims[0] == channels:
            return _Reader((node.name, 1), 0)
        return None
    if node.op_type == "Gemm" and not ("transA" in attributes and attributes["transA"].i):
        axis = 1 if "transB" in attributes and attributes["transB"].i else 0
    elif node.op_type == "MatMul" and len(weight.dims) == 2:
        axis = 0
    else:
        return None
    inner = int(weight.dims[axis])
    repeat = inner // channels if inner % channels == 0 else 0
    plain = surgery.ranks.get(tensor) == 2 or node.op_type == "MatMul"
    return _Reader((node.name, 1), axis, repeat) if repeat == 1 or (repeat > 1 and plain and node.op_type == "Gemm") else None
