"""Sparsify: a share of the weights becomes zero, in NVIDIA's N:M form or wherever they are worth least."""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from . import graph as graphs
from .errors import MissingExtra, ModelError, PassError
from .model import Model, Step
from .passes import Given

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as _error:
    raise MissingExtra("convert", "onnx") from _error

Array = NDArray[Any]
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
INTEGER_LAYERS = ("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "MatMulNBits")
_NO_FLOATS = "with weights that are no floats"


@dataclass(frozen=True)
class Sparsify:
    """Makes weights of Conv, Gemm and MatMul zero; the others keep their bits, and the graph its nodes.

    Of every `of` consecutive weights along a layer's input axis (Conv: the input channels of its group, for each output channel
    and place in the kernel) the `kept` largest stay, of equal ones the first: 2:4 by default. With `removed` (0..1) instead, that
    share of all those layers' weights goes, by LAMP (Lee et al. 2021, arXiv 2010.07611): a weight's square over the sum of the
    squares in its layer that are no smaller. So layers of unlike scale compare, and the largest weight of each goes last.

    Left alone and counted: depthwise and transposed convolutions, rotations, weights that several nodes share, that come first in
    a MatMul, are vectors or no floats, and input axes that are no multiple of `of`. `finetune` is how many epochs of learning the
    source model's answers follow, at `learning_rate`, through which zeros stay, as they do in those of later passes.
    """

    name: ClassVar[str] = "sparsify"
    kept: int = 2
    of: int = 4
    removed: float = 0.0
    finetune: int = 0
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.removed < 1:
            raise PassError(self.name, f"removed is {self.removed}; allowed: 0 for {self.kept}:{self.of}, or more, below 1")
        if not 1 <= self.kept < self.of:
            raise PassError(self.name, f"kept is {self.kept} of {self.of}; allowed: 1 or more, and fewer than of")
        if self.removed and (self.kept, self.of) != (2, 4):
            raise PassError(self.name, f"removed = {self.removed} and {self.kept}:{self.of} were given", "give one of them")
        if self.finetune < 0:
            raise PassError(self.name, f"finetune is {self.finetune}; allowed: 0 or more epochs")

    def __call__(self, model: Model, given: Given) -> Model:
        given.progress("making weights sparse")
        proto = model.copy_proto()
        layers, alone = _layers(proto, 1 if self.removed else self.of)
        left = ", ".join(f"{count} {why}" for why, count in sorted(alone.items()))
        if not layers:
            hint = "put sparsify before quantize" if alone[_NO_FLOATS] else "take it out of the recipe"
            raise PassError(self.name, f"{model.name} has no layer that can be sparse ({left or 'none has weights'})", hint)
        if self.removed:
            masks = _least_removed([layer.values for layer in layers], self.removed)
        else:
            masks = [_n_of_m(layer.values, layer.axis, self.kept, self.of) for layer in layers]
        total = zeros = 0
        for layer, mask in zip(layers, masks, strict=True):
            values = np.where(mask, layer.values, layer.values.dtype.type(0))
            total, zeros = total + values.size, zeros + int((values == 0).sum())
            _put(layer.tensor, values)
        pattern = "zeros by LAMP" if self.removed else f"{self.kept}:{self.of}"
        note = f"{pattern} in {len(layers)} of {len(layers) + sum(alone.values())} layers, "
        note += f"{zeros / total:.1%} of their {total:,} weights are zero"
        note += f"; left alone: {left}. " if left else ". "
        note += self._use(model, proto)
        options = {"removed": self.removed} if self.removed else {"kept": self.kept, "of": self.of}
        try:
            made = model.changed(proto, Step(self.name, options, note))
        except ModelError as error:
            raise PassError(self.name, f"the sparse model is not valid: {error.message}") from error
        return self._learned(made, given) if self.finetune else made

    def _use(self, model: Model, proto: onnx.ModelProto) -> str:
        """What the zeros are good for."""
        before, after = (len(zlib.compress(data.SerializeToString(deterministic=True))) for data in (model.proto, proto))
        told = f"Deflated (zlib) the model has {after:,} bytes, {before:,} before: zeros buy size where the file is compressed, "
        told += "and no time on CPU runtimes; "
        if not self.removed and self.of == 4 and self.kept <= 2:
            return told + "2:4 is what TensorRT's sparse tensor cores take (Ampere and later), and nothing else here uses it"
        return told + "nothing here uses them: TensorRT's sparse tensor cores (Ampere and later) take 2:4 alone"

    def _learned(self, made: Model, given: Given) -> Model:
        from .train import Training, learned

        return learned(made, given, Training(epochs=self.finetune, learning_rate=self.learning_rate))


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer's stored weights, and which of their axes are its inputs."""

    tensor: onnx.TensorProto
    values: Array
    axis: int


def _layers(proto: onnx.ModelProto, multiple: int) -> tuple[list[_Layer], Counter[str]]:
    """Layers of the main graph that can be sparse, in its order, and how many others there are, by reason."""
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    integers = {node.output[0] for node in proto.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in stored}
    reads = Counter(name for node in graphs.nodes(proto) for name in node.input)
    reads.update(output.name for output in proto.graph.output)
    found: list[_Layer] = []
    alone: Counter[str] = Counter()
    for node in proto.graph.node:
        inputs = set(node.input[:2])
        if node.op_type in INTEGER_LAYERS or (node.op_type in LAYERS and inputs & integers):
            alone[_NO_FLOATS] += 1
        elif node.op_type in LAYERS and inputs & set(stored):
            why = _why_not(node, stored, reads)
            axis = 0
            if not why:
                dims = stored[node.input[1]].dims
                axis = _input_axis(node, len(dims))
                why = f"with an input axis that is no multiple of {multiple}" if dims[axis] % multiple else ""
            if why:
                alone[why] += 1
            else:
                found.append(_Layer(stored[node.input[1]], numpy_helper.to_array(stored[node.input[1]]), axis))
    return found, alone


def _why_not(node: onnx.NodeProto, stored: dict[str, onnx.TensorProto], reads: Counter[str]) -> str:
    """Why a layer stays as it is whatever the pattern; nothing where it need not."""
    if node.input[1] not in stored:
        return "with weights as first factor"
    tensor = stored[node.input[1]]
    if node.name.endswith(graphs.ROTATION):
        return "rotations"
    if node.op_type == "ConvTranspose":
        return "transposed convolutions"
    if tensor.data_type not in FLOATS:
        return _NO_FLOATS
    if reads[tensor.name] > 1:
        return "with weights that are shared"
    if len(tensor.dims) < 2:
        return "with a vector as weights"
    if node.op_type == "Conv" and tensor.dims[1] == 1 and _attribute(node, "group", 1) > 1:
        return "depthwise convolutions"
    return ""


def _input_axis(node: onnx.NodeProto, rank: int) -> int:
    """Of stored weights: the axis that is summed over."""
    if node.op_type == "Conv":
        return 1
    return 1 if node.op_type == "Gemm" and _attribute(node, "transB", 0) else rank - 2


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(helper.get_attribute_value(one)) for one in node.attribute if one.name == name), default)


def _n_of_m(values: Array, axis: int, kept: int, of: int) -> Array:
    """True for the weights that stay."""
    moved = np.moveaxis(np.abs(values), axis, -1)
    groups = moved.reshape(*moved.shape[:-1], -1, of)
    order = np.argsort(-groups, axis=-1, kind="stable")
    mask = np.ones(groups.shape, dtype=bool)
    np.put_along_axis(mask, order[..., kept:], False, axis=-1)
    return np.moveaxis(mask.reshape(moved.shape), -1, axis)


def _least_removed(weights: list[Array], removed: float) -> list[Array]:
    """True for the weights that stay, of each layer; of equal scores the first go."""
    scores = np.concatenate([_lamp(values) for values in weights])
    mask = np.ones(scores.size, dtype=bool)
    mask[np.argsort(scores, kind="stable")[: round(removed * scores.size)]] = False
    parts = np.split(mask, np.cumsum([values.size for values in weights])[:-1])
    return [part.reshape(values.shape) for part, values in zip(parts, weights, strict=True)]


def _lamp(values: Array) -> Array:
    squares = np.square(values.astype(np.float64)).reshape(-1)
    order = np.argsort(squares, kind="stable")
    rising = squares[order]
    no_smaller = np.cumsum(rising[::-1])[::-1]
    scores = np.empty_like(squares)
    scores[order] = np.divide(rising, no_smaller, out=np.zeros_like(rising), where=no_smaller > 0)
    return scores


def _put(tensor: onnx.TensorProto, values: Array) -> None:
    """New values in a stored tensor; its name and whatever else it says stay."""
    made = numpy_helper.from_array(np.ascontiguousarray(values), tensor.name)
    for kind in ("float_data", "double_data", "int32_data"):
        tensor.ClearField(kind)
    tensor.raw_data = made.raw_data
