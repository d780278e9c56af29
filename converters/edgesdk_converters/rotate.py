"""Rotate: inputs of dense layers with outlier channels are multiplied by an orthogonal matrix that spreads the outliers out.

y = x W = (x R)(R' W): after a Hadamard rotation with random signs no channel stands out, and one scale fits all (Ashkboos et al.
2024, QuaRot, arXiv 2404.00456, in its online form). The rotation itself stays in float; it costs a matrix product of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
    from onnx import TensorProto, helper, numpy_helper
except ImportError as _error:
    raise MissingExtra("convert", "onnx") from _error

Array = NDArray[Any]
SEED = 0


@dataclass(frozen=True)
class Rotate:
    """Rotates the inputs of Gemm and MatMul with stored weights whose largest channel peak is over `threshold` times the median.

    Peaks are taken on the calibration inputs; 0 rotates all. Channels are rotated in blocks of at most `block`, the largest
    power of two that divides their number: with an odd number nothing can be rotated. What is rotated already stays so.
    """

    name: ClassVar[str] = "rotate"
    threshold: float = 8.0
    block: int = 64

    def __post_init__(self) -> None:
        if self.threshold < 0 or self.block < 2 or self.block & (self.block - 1):
            raise PassError(self.name, "threshold must be 0 or more, block a power of two from 2 on")

    def __call__(self, model: Model, given: Given) -> Model:
        model = named(model)
        proto = model.copy_proto()
        stored = {tensor.name: tensor for tensor in proto.graph.initializer}
        turns = {name for node in proto.graph.node if node.name.endswith(graphs.ROTATION) for name in node.output}
        layers = [node for node in proto.graph.node if _dense(node, stored) and not turns & {*node.input, *node.output}]
        given.progress("reading channel peaks")
        inputs = [node.input[0] for node in layers if node.input[0] not in stored]
        peaks = channel_peaks(model, given.train, inputs, axis=-1, progress=given.progress) if inputs else {}
        rotated: dict[str, str] = {}
        fresh = graphs.fresh_names(proto)
        done = 0
        for node in layers:
            source = node.input[0]
            peak = peaks.get(source)
            size = _block(len(peak), self.block) if peak is not None else 0
            if peak is None or size < 2 or not _stands_out(peak, self.threshold):
                continue
            matrix = hadamard(len(peak), size)
            if source not in rotated:
                rotated[source] = _insert(proto, node, source, matrix, fresh)
            node.input[0] = rotated[source]
            weight = numpy_helper.to_array(stored[node.input[1]]).astype(np.float64)
            transposed = node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)
            turned = weight @ matrix if transposed else matrix.T @ weight
            name = fresh(f"{node.name}/rotated_weight")
            proto.graph.initializer.append(numpy_helper.from_array(turned.astype(np.float32), name))
            node.input[1] = name
            done += 1
        used = {name for node in proto.graph.node for name in node.input} | {output.name for output in proto.graph.output}
        kept = [TensorProto.FromString(t.SerializeToString()) for t in proto.graph.initializer if t.name in used]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)
        note = f"{done} of {len(layers)} dense layers, {len(rotated)} rotations"
        return model.changed(proto, Step(self.name, {"threshold": self.threshold, "block": self.block}, note))


def hadamard(size: int, block: int) -> Array:
    """An orthogonal (size, size) matrix: Sylvester's Hadamard blocks, normalised, with seeded random signs of the rows."""
    small = np.ones((1, 1))
    while len(small) < block:
        small = np.block([[small, small], [small, -small]])
    signs = np.random.default_rng([SEED, size]).choice([-1.0, 1.0], size)
    return np.asarray(signs[:, None] * np.kron(np.eye(size // block), small / np.sqrt(block)))


def _block(channels: int, most: int) -> int:
    return min(most, channels & -channels)


def _stands_out(peak: Array, threshold: float) -> bool:
    alive = peak[peak > 0]
    return bool(alive.size) and float(peak.max()) > threshold * float(np.median(alive))


def _dense(node: onnx.NodeProto, stored: dict[str, onnx.TensorProto]) -> bool:
    if node.op_type not in ("Gemm", "MatMul") or len(node.input) < 2 or node.input[1] not in stored:
        return False
    weight = stored[node.input[1]]
    turned = any(a.name in ("transA",) and a.i for a in node.attribute)
    return len(weight.dims) == 2 and weight.data_type == TensorProto.FLOAT and not turned


def _insert(proto: onnx.ModelProto, node: onnx.NodeProto, source: str, matrix: Array, fresh: Callable[[str], str]) -> str:
    """A MatMul by the rotation before a layer; the name of what it gives."""
    name = f"{node.name}{graphs.ROTATION}"
    while (unique := fresh(name)) != name:  # the ending tells quantisation what it is
        name = unique + graphs.ROTATION
    stored = fresh(f"{name}/matrix")
    proto.graph.initializer.append(numpy_helper.from_array(matrix.astype(np.float32), stored))
    place = next(index for index, other in enumerate(proto.graph.node) if other.name == node.name)
    proto.graph.node.insert(place, helper.make_node("MatMul", [source, stored], [name], name=name))
    known = next((i for i in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output) if i.name == source), None)
    if known is not None:
        proto.graph.value_info.add().CopyFrom(known)
        proto.graph.value_info[-1].name = name
    return name
