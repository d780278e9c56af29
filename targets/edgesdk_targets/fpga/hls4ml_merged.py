"""Which layers of a float network an export merges into the weights before them, so that they cost no logic of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgesdk_converters.cost import Layer

WEIGHTED = ("fc", "gemm", "matmul", "conv", "conv1x1", "dwconv", "groupconv")
SCALING = ("Add", "Sub", "Mul")
"""With a stored vector. A Div may have its vector on either side, which layers do not tell, and is left."""


def unmerged(layers: Sequence[Layer]) -> Iterator[Layer]:
    """Layers without the biases, scales and batch normalisations directly behind a layer with stored weights.

    As `edgesdk_converters.affine` merges them: the tensor between has no other reader, and what is stored has one value, or one
    for each channel. A chain of them is merged whole. Layers that do not say what they read are left.
    """
    readers = Counter(name for layer in layers for name in layer.inputs)
    channels: dict[str, int] = {}
    for layer in layers:
        source = layer.inputs[0] if len(layer.inputs) == 1 else ""
        is_behind = source in channels and readers[source] == 1 and bool(layer.outputs)
        if is_behind and (layer.op == "BatchNormalization" or _is_along(layer, channels[source])):
            channels[layer.outputs[0]] = channels[source]
            continue
        if source and layer.kind in WEIGHTED and layer.outputs and len(layer.in_shapes) == 1:
            channels[layer.outputs[0]] = _channels(layer)
        yield layer


def _is_along(layer: Layer, channels: int) -> bool:
    """Whether it scales or shifts channels, and no single elements. What another layer stores already counts no parameters."""
    same = bool(layer.in_shapes) and layer.in_shapes[0] == layer.out_shapes[0]
    return layer.op in SCALING and same and layer.params in (0, 1, channels)


def _channels(layer: Layer) -> int:
    """Of the results: behind the batch axis of an image, the last of a matrix."""
    shape = layer.out_shapes[0]
    return shape[1] if layer.kernel and len(shape) > 1 else shape[-1]
