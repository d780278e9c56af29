"""Integer programs for networks of which only layers and sizes are known, with random weights (`rtl_sketch`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgesdk_converters.errors import Unsupported
from edgesdk_converters.integer_curves import RAMPS, TABLE_BITS, TURNED
from edgesdk_converters.integer_program import IntegerProgram, Shape

from .hls4ml_terms import FixedLayer
from .rtl_sketch import Sketch

if TYPE_CHECKING:
    from edgesdk_converters.cost import Layer

BY = "the rtl estimate"
SEED = 1
SAMPLES = 4
"""Random inputs that choose the scales: few, since an estimate has to be quick."""
_OF_KIND = {
    "conv": "Conv", "conv1x1": "Conv", "dwconv": "Conv", "fc": "Gemm", "gemm": "Gemm", "matmul": "MatMul", "act": "Relu",
    "pool": "MaxPool", "eltwise": "Add", "concat": "Concat", "reshape": "Reshape", "norm": "BatchNormalization",
}  # fmt: skip
"""What a layer without an operator's name (of a layer list) is taken for."""
_SAME = frozenset({"Identity", "Dropout", "BatchNormalization", "Cast", "QuantizeLinear", "DequantizeLinear"})
"""Operators that cost nothing of their own: they are folded into others, or choose a format."""
_TABLES = frozenset({*RAMPS, *TURNED, "Elu", "Selu"})


def of_fixed(layers: Sequence[FixedLayer], seed: int = SEED) -> IntegerProgram:
    """A program of dense layers and what stands between them. Weights and values both have the bits of the weights.

    Raises Unsupported for layers over pixels, whose images are not known here.
    """
    weighted = [layer for layer in layers if layer.weighted]
    if not weighted:
        raise Unsupported(BY, layers[0].name if layers else "", "network", "it has no layer with weights")
    net = Sketch(seed, weighted[0].weight_bits, samples=SAMPLES)
    last = net.input((weighted[0].n_in,))
    for layer in layers:
        if layer.positions != 1 or layer.kind not in ("dense", "activation", "table"):
            raise Unsupported(BY, layer.name, layer.described, "it is laid out for dense layers of vectors only")
        if layer.kind == "activation":
            last = net.relu(last)
            continue
        last = _narrow(net, last)
        last = net.table(last) if layer.kind == "table" else net.dense(last, layer.n_out, layer.weight_bits)
    return net.program(_narrow(net, last))


def of_layers(layers: Sequence[Layer], bits: int, seed: int = SEED) -> IntegerProgram:
    """A program of a model's layers, weights and values of `bits`. Raises Unsupported for an operator that it cannot lay out."""
    net = Sketch(seed, bits, samples=SAMPLES)
    known: dict[str, str] = {}
    last, read, constants = "", set[str](), set[str]()
    for number, layer in enumerate(layers):
        op = layer.op or _OF_KIND.get(layer.kind, layer.kind)
        names = layer.inputs or (f"result {number - 1}",)
        if op in _SAME:
            if names[0] in known and layer.outputs:
                known[layer.outputs[0]] = known[names[0]]
            elif not layer.inputs or names[0] in constants:
                constants.update(layer.outputs)
            continue
        if layer.kind == "const" or not layer.out_shapes:
            constants.update(layer.outputs)
            continue
        wanted = 1 if op in ("Conv", "Gemm", "MatMul", "LayerNormalization") else len(names)
        if op == "MatMul" and len(names) > 1 and all(name in known for name in names):
            raise Unsupported(BY, layer.name, op, "both sides are computed; edgesdk export says whether there is logic for it")
        sources = []
        for place, name in enumerate(names[:wanted]):
            if name not in known:
                shape = _inner(layer.in_shapes[place] if place < len(layer.in_shapes) else ())
                fixed = name in constants or shape != _inner(layer.out_shapes[0])
                if op == "Add" and fixed and any(one in known for one in names):
                    continue  # a constant (layer lists name them too), folded into the layer before
                known[name] = last if last and not layer.inputs else net.input(shape or (1,))
            sources.append(known[name])
        last = _laid_out(net, layer, op, sources)
        read.update(sources)
        for name in layer.outputs[:1] or (f"result {number}",):
            known[name] = last
    if not last:
        raise Unsupported(BY, "", "network", "it has no layer that computes")
    ends = list(dict.fromkeys(name for name in known.values() if name not in read and name not in net.inputs)) or [last]
    return net.program(*(_narrow(net, name) for name in ends))


def _laid_out(net: Sketch, layer: Layer, op: str, sources: Sequence[str]) -> str:
    """The layer's result."""
    source, out = sources[0], _inner(layer.out_shapes[0])
    if op == "Conv":
        if max(layer.dilation, default=1) > 1:
            raise Unsupported(BY, layer.name, op, f"its windows have holes (dilation {layer.dilation})")
        kernel = layer.kernel or (1,) * (len(out) - 1)
        return net.conv(_narrow(net, source), out[0], kernel, layer.stride or None, _pads(layer, out), layer.groups)
    if op in ("Gemm", "MatMul"):
        return net.dense(_vector(net, _narrow(net, source), out), out[-1])
    if op in ("Relu", "Clip"):
        return net.relu(source)
    if op == "LeakyRelu":
        return net.leaky(source)
    if op in _TABLES:
        if net.bits > TABLE_BITS and op not in (*RAMPS, *TURNED):
            raise Unsupported(BY, layer.name, op, f"a table of {net.bits} bits; allowed: {TABLE_BITS}")
        return net.table(_narrow(net, source), "Gelu" if op in RAMPS else "Sigmoid")
    if op == "LayerNormalization":
        return net.layer_norm(_narrow(net, source))
    if op == "Softmax":
        if net.bits > TABLE_BITS:
            raise Unsupported(BY, layer.name, op, f"a table of {net.bits} bits; allowed: {TABLE_BITS}")
        return net.softmax(_narrow(net, source))
    if op in ("MaxPool", "AveragePool"):
        if op == "AveragePool" and any(_pads(layer, out)):
            raise Unsupported(BY, layer.name, op, "an average with zeros around the image")
        narrow = _narrow(net, source)
        if op == "AveragePool":
            return net.mean(narrow, layer.kernel, layer.stride or None)
        return net.pool(narrow, layer.kernel, layer.stride or None, _pads(layer, out))
    if op in ("GlobalAveragePool", "GlobalMaxPool", "ReduceMean"):
        narrow = _narrow(net, source)
        shape = net.tensors[narrow].shape
        if op == "ReduceMean" and len(shape) == 2 and math.prod(out) == shape[1] != shape[0]:
            narrow = net.turned(narrow)  # over tokens, not over what each of them has
        if math.prod(out) != net.tensors[narrow].shape[0]:
            raise Unsupported(BY, layer.name, op, f"{shape} to {out}")
        whole = net.tensors[narrow].shape[1:]
        return net.pool(narrow, whole) if op == "GlobalMaxPool" else net.mean(narrow, whole)
    if op == "Add":
        return net.add([_narrow(net, one) for one in sources]) if len(sources) > 1 else source
    if op == "Concat":
        return net.concat([_narrow(net, one) for one in sources])
    if op in ("Flatten", "Reshape", "Squeeze", "Unsqueeze"):
        if len(out) != 1 and math.prod(out) != net.tensors[source].size:
            raise Unsupported(BY, layer.name, op, f"{net.tensors[source].shape} to {out}")
        return _vector(net, source, out)
    if op == "ArgMax":
        return net.argmax(_narrow(net, source))
    raise Unsupported(BY, layer.name, op, "no layout for it here; edgesdk export says whether there is logic for it")


def _narrow(net: Sketch, source: str) -> str:
    """The tensor with the bits of a value: what is wider is rounded."""
    known = net.tensors[source]
    return net.round(source, signed=known.low < 0) if known.bits > net.bits or known.divisor != 1 else source


def _vector(net: Sketch, source: str, out: Shape) -> str:
    return net.flatten(source) if len(out) == 1 else source


def _pads(layer: Layer, out: Shape) -> Shape:
    """Zeros around an image, as many as its result's size needs, halved."""
    have = _inner(layer.in_shapes[0])[1:] if layer.in_shapes else ()
    kernel, strides = layer.kernel, layer.stride or (1,) * len(layer.kernel)
    total = [max(0, (o - 1) * s + k - h) for o, s, k, h in zip(out[1:], strides, kernel, have, strict=False)]
    return (*(one // 2 for one in total), *(one - one // 2 for one in total)) if total else (0,) * 2 * len(kernel)


def _inner(shape: Shape) -> Shape:
    """Without a batch axis of one."""
    return shape[1:] if len(shape) > 1 and shape[0] == 1 else shape
