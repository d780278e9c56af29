"""Scales and shifts of single elements or channels (batch norm; Mul, Div, Add, Sub, Neg of stored numbers), merged into layers.

Fixed point needs it: what is merged is rounded once, with the layer; what stands alone is one Mul and one Add, rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from . import graph as graphs
from .affine_layers import Array, Scaling, added_by, along, forth, is_turned, packed, pads, scaled_inputs, spread, undone
from .errors import MissingExtra
from .graph import fresh_names
from .model import Model, Step

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as _error:
    raise MissingExtra("convert", "onnx") from _error

LAYERS = ("Conv", "Gemm", "MatMul")
MOVES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Dropout")
"""Operators that scales and shifts can be taken through, one element of the input for one of the output."""
HOMOGENEOUS = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
"""Operators that give a multiple of their result for a multiple of their input, if it is positive."""
_AFFINE = "Affine"
_OPERATORS = ("BatchNormalization", "Mul", "Div", "Add", "Sub", "Neg")
WIDEST_SPREAD = 4.0
"""Of the range of a tensor to that of its smallest channel: beyond it, an input of the model is scaled on its own."""
MOST_ELEMENTS = 1 << 24


def merged(model: Model, keep: Collection[str] = (), alone: Collection[str] = ()) -> Model:
    """The model with scales and shifts merged: those in a row into one, then into the Conv, Gemm or MatMul before or behind them.

    Layers need stored float32 weights, and tensors between no other reader; Reshape, Transpose and the like may lie between.
    A shift is not merged into what pads with zeros behind it. Positive scales behind a ReLU or a pooling go into the layer
    before that, so that all channels come to one size. What is left of a BatchNormalization, a Div or several nodes is a Mul,
    an Add or both, with the last one's name. Gemm loses alpha and beta. Layers keep their names, results those of the last
    node merged. Nodes named in `keep` stay, those in `alone` are merged with nothing, but a BatchNormalization or Div among them
    is spelt out too. A model that has QuantizeLinear nodes already stays as it is.
    """
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.proto.graph.node):
        return model
    merging = _Merging(model, frozenset(keep), frozenset(alone))
    merging.run()
    if not merging.told:
        return model
    note = "; ".join(f"{count} {what}" for what, count in merging.told.items())
    return model.changed(merging.finished(), Step("merge scales", note=note))


class _Merging:
    """One graph on which scales are placeholders until all are where they stay."""

    def __init__(self, model: Model, keep: frozenset[str], alone: frozenset[str]) -> None:
        self.proto = model.copy_proto()
        self.graph = self.proto.graph
        self.keep, self.alone = keep, alone
        self.stored = {t.name: t for t in self.graph.initializer if t.data_type == TensorProto.FLOAT}
        self.types = graphs.value_types(self.graph)
        self.inputs = {info.name for info in self.graph.input}
        self.outputs = {info.name for info in self.graph.output}
        self.scalings: dict[str, Scaling] = {}
        self.told: dict[str, int] = {}
        self.fresh = fresh_names(self.proto)

    def run(self) -> None:
        for node in self.graph.node:
            if node.domain not in ("", "ai.onnx"):
                continue
            if node.op_type == "Gemm":
                self._plain(node)
            elif node.op_type in _OPERATORS and node.name not in self.keep and (found := self._scaling(node)) is not None:
                self.scalings[node.output[0]] = found
                node.CopyFrom(helper.make_node(_AFFINE, [self._scaled(node)], [node.output[0]], name=node.name))
        self._index()
        while any(self._step(node) for node in self.graph.node if node.op_type == _AFFINE and node.name not in self.alone):
            self._index()
        nodes: list[onnx.NodeProto] = []
        for node in self.graph.node:
            nodes.extend(self._spelt(node) if node.op_type == _AFFINE else [node])
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del self.graph.node[:]
        self.graph.node.extend(copies)

    def finished(self) -> onnx.ModelProto:
        """The graph without what nothing reads any more."""
        held = {t.name: t for t in self.graph.initializer} | self.stored
        read = {name for part in graphs.graphs(self.graph) for node in part.node for name in node.input} | self.outputs
        kept = [TensorProto.FromString(t.SerializeToString()) for name, t in held.items() if name in read]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)
        made = {name for node in self.graph.node for name in node.output}
        infos = [info for info in self.graph.value_info if info.name in made]
        copied = [onnx.ValueInfoProto.FromString(info.SerializeToString()) for info in infos]
        del self.graph.value_info[:]
        self.graph.value_info.extend(copied)
        return self.proto

    # --- reading

    def _index(self) -> None:
        self.makers = {name: node for node in self.graph.node for name in node.output if name}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for part in graphs.graphs(self.graph):
            for node in part.node:
                for name in node.input:
                    self.readers.setdefault(name, []).append(node)

    def _count(self, what: str) -> None:
        self.told[what] = self.told.get(what, 0) + 1

    def _shape(self, name: str) -> tuple[int, ...] | None:
        """Of a tensor, with 1 for a batch of any size; None where it is not known or too large."""
        kind = self.types.get(name)
        if kind is None or not kind.shape or kind.elem_type != TensorProto.FLOAT:
            return None
        first = kind.shape[0] if isinstance(kind.shape[0], int) else 1
        shape = [first, *(size for size in kind.shape[1:] if isinstance(size, int))]
        return tuple(shape) if len(shape) == len(kind.shape) and 0 < np.prod(shape) <= MOST_ELEMENTS else None

    def _scaled(self, node: onnx.NodeProto) -> str:
        """What it scales: that of its inputs which is not stored."""
        return str(next(name for name in node.input if name not in self.stored))

    def _scaling(self, node: onnx.NodeProto) -> Scaling | None:
        """What a node does to each element, if it does no more than that."""
        held = [self._values(name) for name in node.input]
        source = [name for name, values in zip(node.input, held, strict=True) if values is None]
        if len(source) != 1 or (shape := self._shape(source[0])) is None or self._shape(node.output[0]) != shape:
            return None
        scale, shift = np.ones(()), np.zeros(())
        if node.op_type == "BatchNormalization":
            given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            if held[0] is not None or len(shape) < 2 or given.get("training_mode", 0) or any(node.output[1:]):
                return None
            gamma, beta, mean, variance = (
                np.reshape(np.asarray(values), (-1, *(1,) * (len(shape) - 2))) for values in held[1:] if values is not None
            )
            with np.errstate(invalid="ignore", divide="ignore"):
                scale = gamma / np.sqrt(variance + given.get("epsilon", 1e-5))
            shift = beta - mean * scale
        elif node.op_type == "Neg":
            scale = -scale
        else:
            values = next((found for found in held if found is not None), None)
            if values is None or (node.op_type == "Div" and (held[0] is not None or not values.all())):
                return None
            if node.op_type in ("Mul", "Div"):
                scale = values if node.op_type == "Mul" else 1 / values
            else:
                scale = -scale if held[0] is not None and node.op_type == "Sub" else scale
                shift = -values if held[1] is not None and node.op_type == "Sub" else values
        if not np.isfinite(scale).all() or not np.isfinite(shift).all():
            return None
        if np.broadcast_shapes(shape, scale.shape, shift.shape) != shape:
            return None
        kept = onnx.NodeProto.FromString(node.SerializeToString())
        return Scaling(np.broadcast_to(scale, shape), np.broadcast_to(shift, shape), kept)

    def _values(self, name: str) -> Array | None:
        return numpy_helper.to_array(self.stored[name]).astype(np.float64) if name in self.stored else None

    def _alone(self, name: str) -> onnx.NodeProto | None:
        """The one node that reads a tensor which nobody else sees."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs and readers[0].input[0] == name else None

    def _is_root(self, name: str) -> bool:
        """Whether a tensor is an input of the model, moved at most."""
        while name in self.makers and self.makers[name].op_type in MOVES:
            name = self.makers[name].input[0]
        return name in self.inputs

    # --- changing

    def _step(self, node: onnx.NodeProto) -> bool:
        """Merges one placeholder with what is before or behind it, if it can be."""
        return self._before(node) or self._through(node) or self._behind(node)

    def _before(self, node: onnx.NodeProto) -> bool:
        found, name = self._back(self.scalings[node.output[0]], node.input[0])
        maker = self.makers.get(name)
        if found is None or maker is None or self._alone(name) is None:
            return False
        if maker.op_type == _AFFINE:
            if maker.name in self.alone:
                return False
            first = self.scalings[name]
            self.scalings[name] = Scaling(first.scale * found.scale, first.shift * found.scale + found.shift, None)
            self._count("merged with others")
        elif not self._into(maker, found, node):
            return False
        if maker.op_type == "MatMul" and found.shift.any():  # it took the scale alone
            kept = self.scalings[node.output[0]]
            self.scalings[node.output[0]] = Scaling(np.ones_like(kept.scale), kept.shift, None)
            return True
        if maker.op_type == _AFFINE:
            maker.name = node.name
        self._remove(node)
        return True

    def _into(self, layer: onnx.NodeProto, by: Scaling, node: onnx.NodeProto) -> bool:
        """Scales the results of a layer."""
        if not self._is_weighted(layer):
            return False
        axis = 1 if layer.op_type == "Conv" else by.scale.ndim - 1
        scale, shift = along(by.scale, axis), along(by.shift, axis)
        if scale is None:
            return False
        if layer.op_type == "MatMul" and by.scale.ndim > 2:
            if (scale == 1).all():
                return False
            self._reweighted(layer, 1, lambda w: w * scale)
        elif shift is None or not self._adds_stored(layer, len(scale)):
            return False
        else:
            turned = layer.op_type == "Conv" or is_turned(layer)
            self._reweighted(layer, 1, lambda w: w * (scale.reshape(-1, *(1,) * (w.ndim - 1)) if turned else scale))
            self._add(layer, self._bias(layer, len(scale)) * scale + shift)
        self._count("into the layers before them")
        return True

    def _behind(self, node: onnx.NodeProto) -> bool:
        """Merges into the layer that follows what can be: all, or the scales alone where it pads with zeros."""
        name, found = node.output[0], self.scalings[node.output[0]]
        reader = self._alone(name)
        while reader is not None and reader.op_type in MOVES:
            to = self._shape(reader.output[0])
            if to is None or np.prod(to) != found.scale.size:  # a batch that is not known
                return False
            found, name = found.moved(forth(reader, to)), reader.output[0]
            reader = self._alone(name)
        if reader is None or reader.op_type not in LAYERS or not self._is_weighted(reader):
            return False
        scale, shift = (along(part, 1 if reader.op_type == "Conv" else part.ndim - 1) for part in (found.scale, found.shift))
        if scale is None or any(a.name == "transA" and a.i for a in reader.attribute):
            return False
        wide = spread(self.scalings[node.output[0]]) > WIDEST_SPREAD
        if wide and self._is_root(node.input[0]):
            return False
        weight = np.asarray(self._values(reader.input[1]))
        outs = weight.shape[0] if reader.op_type == "Conv" or is_turned(reader) else weight.shape[-1]
        rest = None
        if found.shift.any():
            padded = reader.op_type == "Conv" and pads(reader)
            takes = self._adds_stored(reader, outs) and not (reader.op_type == "MatMul" and found.scale.ndim > 2)
            if padded or shift is None or not takes:
                if wide or (scale == 1).all() or not scale.all():
                    return False
                kept = self.scalings[node.output[0]]
                rest = Scaling(np.ones_like(kept.scale), kept.shift / kept.scale, None)
            else:
                added = added_by(reader, weight, shift)
                self._add(reader, self._bias(reader, outs) + added)
        self._reweighted(reader, 1, lambda w: scaled_inputs(reader, w, scale))
        self._count("into the layers behind them" if rest is None else "but for a shift, into padded layers behind them")
        if rest is None:
            self._remove(node)
        else:
            self.scalings[node.output[0]] = rest
        return True

    def _through(self, node: onnx.NodeProto) -> bool:
        """Takes the size of scales through a ReLU or pooling, into the layer before."""
        found, name = self._back(self.scalings[node.output[0]], node.input[0])
        seen = False
        while found is not None and name in self.makers and self._alone(name) is not None:
            maker = self.makers[name]
            if maker.op_type not in HOMOGENEOUS:
                break
            name, seen = maker.input[0], True
            shape = self._shape(name)
            if shape is None or any(maker.output[1:]):
                return False
            if maker.op_type not in ("Relu", "LeakyRelu"):  # a pooling, perhaps to the same shape
                channel = along(found.scale, 1)
                if channel is None:
                    return False
                wide = np.broadcast_to(channel.reshape(-1, *(1,) * (len(shape) - 2)), shape)
                found = Scaling(wide, np.zeros(shape), None)
            found, name = self._back(found, name)
        layer = self.makers.get(name)
        if not seen or found is None or layer is None or self._alone(name) is None:
            return False
        sizes = np.where(found.scale != 0, np.abs(found.scale), 1.0)
        if (sizes == 1).all() or layer.op_type not in LAYERS:
            return False
        if not self._into(layer, Scaling(sizes, np.zeros_like(sizes), None), node):
            return False
        kept = self.scalings[node.output[0]]
        self.scalings[node.output[0]] = Scaling(np.sign(kept.scale), kept.shift, None)
        return True

    def _back(self, found: Scaling, name: str) -> tuple[Scaling | None, str]:
        """The same scaling in front of the moves that make a tensor, and what it scales there."""
        while name in self.makers and self.makers[name].op_type in MOVES and self._alone(name) is not None:
            move = self.makers[name]
            shape = self._shape(move.input[0])
            if shape is None or np.prod(shape) != found.scale.size:  # a batch that is not known
                return None, name
            found, name = found.moved(undone(move, shape)), move.input[0]
        return found, name

    def _remove(self, node: onnx.NodeProto) -> None:
        """Drops a placeholder: what it read has its result's name now, or, being an input of the model, is read itself."""
        source, result = node.input[0], node.output[0]
        del self.scalings[result]
        self.graph.node.remove(node)
        maker = self.makers.get(source)
        if maker is not None and self._alone(source) is not None:
            maker.output[list(maker.output).index(source)] = result
            if source in self.scalings:
                self.scalings[result] = self.scalings.pop(source)
        else:
            for reader in self.readers[result]:
                reader.input[list(reader.input).index(result)] = source

    # --- layers

    def _is_weighted(self, node: onnx.NodeProto) -> bool:
        """Whether it is a layer whose weights are stored, and not twice as wide as an axis of channels needs."""
        if node.op_type not in LAYERS or len(node.input) < 2 or node.input[1] not in self.stored:
            return False
        read = self.types.get(node.input[0])
        ranked = read is not None and read.shape is not None and len(read.shape) > 1
        return node.op_type == "Conv" or (ranked and len(self.stored[node.input[1]].dims) == 2)

    def _adds_stored(self, layer: onnx.NodeProto, outs: int) -> bool:
        """Whether what a layer adds is nothing, or one stored row."""
        if len(layer.input) < 3 or not layer.input[2]:
            return True
        bias = self._values(layer.input[2])
        return bias is not None and bias.size in (1, outs) and max(bias.shape[:-1], default=1) == 1

    def _plain(self, gemm: onnx.NodeProto) -> None:
        """Takes alpha and beta into what is stored."""
        factors = {a.name: a.f for a in gemm.attribute if a.name in ("alpha", "beta") and a.f != 1.0}
        added = gemm.input[2] if len(gemm.input) > 2 else ""
        if not factors or not self._is_weighted(gemm) or (added and "beta" in factors and added not in self.stored):
            return
        self._reweighted(gemm, 1, lambda w: w * factors.get("alpha", 1.0))
        if added and "beta" in factors:
            self._reweighted(gemm, 2, lambda b: b * factors["beta"])
        kept = [a for a in gemm.attribute if a.name not in factors]
        del gemm.attribute[:]
        gemm.attribute.extend(kept)
        self._count("factors of Gemm into its weights")

    def _reweighted(self, layer: onnx.NodeProto, place: int, change: Callable[[Array], Array]) -> None:
        name = layer.input[place]
        layer.input[place] = self._store(f"{name.removesuffix('/merged')}/merged", change(np.asarray(self._values(name))))

    def _bias(self, layer: onnx.NodeProto, outs: int) -> Array:
        held = self._values(layer.input[2]) if len(layer.input) > 2 and layer.input[2] else None
        return np.zeros(outs) if held is None else np.broadcast_to(held.reshape(-1), (outs,)).copy()

    def _add(self, layer: onnx.NodeProto, bias: Array) -> None:
        """Gives a layer the bias; a MatMul becomes a Gemm."""
        name = self._store(f"{layer.name or layer.output[0]}/bias", bias)
        kind = "Gemm" if layer.op_type == "MatMul" else layer.op_type
        made = helper.make_node(kind, [*layer.input[:2], name], list(layer.output), name=layer.name)
        made.attribute.extend(layer.attribute)
        layer.CopyFrom(made)

    def _store(self, wished: str, values: Array) -> str:
        name = self.fresh(wished)
        self.stored[name] = numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name)
        return name

    def _spelt(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The nodes that a placeholder stands for."""
        found, result = self.scalings[node.output[0]], node.output[0]
        if found.original is not None and found.original.op_type not in ("BatchNormalization", "Div"):
            found.original.input[list(found.original.input).index(self._scaled(found.original))] = node.input[0]
            found.original.output[0] = result
            return [found.original]
        self._count("on their own")
        parts: list[tuple[str, Array | None]] = [("Mul", found.scale)] if (found.scale != 1).any() else []
        parts += [("Add", found.shift)] if found.shift.any() else []
        parts = parts or [("Identity", None)]
        made, source = [], node.input[0]
        for place, (kind, values) in enumerate(parts):
            last = place == len(parts) - 1
            name = result if last else self.fresh(f"{result}/products")
            read = [source] if values is None else [source, self._store(f"{name}/{kind.lower()}", packed(values))]
            made.append(helper.make_node(kind, read, [name], name=node.name if last else self.fresh(f"{node.name}/scale")))
            source = name
        return made
