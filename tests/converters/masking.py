"""What a pruned network must compute: the whole one, with zeros wherever a channel that went would have been read."""

from __future__ import annotations

from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgesdk_converters import graph as graphs
from edgesdk_converters.model import Model, Step
from edgesdk_converters.pruning.structure import Structure

Array = NDArray[Any]


def masked(structure: Structure, gone: Array) -> Model:
    """The model of a structure with the inputs of every Conv, Gemm and MatMul multiplied by 0 where the groups `gone` are."""
    kept = structure.kept(gone)
    proto = onnx.ModelProto()
    proto.CopyFrom(structure.proto)
    types = graphs.value_types(proto.graph)
    made: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        for place, axis in _read(node, structure):
            axes = structure.tracer.of(node.input[place])
            atoms = None if axes is None else axes[axis]
            if atoms is None or kept[atoms].all() or node.input[place] in structure.tracer.stored:
                continue
            shape = [1] * len(axes or ())
            shape[axis] = len(atoms)
            name = f"{node.input[place]}/{node.output[0]}/{place}"
            kind = helper.tensor_dtype_to_np_dtype(types[node.input[place]].elem_type)
            values = kept[atoms].reshape(shape).astype(kind)
            proto.graph.initializer.append(numpy_helper.from_array(values, f"{name}/mask"))
            made.append(helper.make_node("Mul", [node.input[place], f"{name}/mask"], [f"{name}/masked"], name=f"{name}/masked"))
            node.input[place] = f"{name}/masked"
        made.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del proto.graph.node[:]
    proto.graph.node.extend(made)
    return structure.model.changed(proto, Step("mask"))


def _read(node: onnx.NodeProto, structure: Structure) -> list[tuple[int, int]]:
    """Inputs of a node that are summed over, and along which axis."""
    turned = {attribute.name: attribute.i for attribute in node.attribute if attribute.name in ("transA", "transB", "group")}
    if node.op_type in ("Conv", "ConvTranspose"):
        x = structure.tracer.of(node.input[0])
        depthwise = x is not None and x[1] is not None and turned.get("group", 1) == len(x[1]) > 1
        return [] if depthwise else [(0, 1)]
    if node.op_type == "Gemm":
        return [(0, 0 if turned.get("transA") else 1), (1, 1 if turned.get("transB") else 0)]
    if node.op_type == "MatMul":
        ranks = [len(structure.tracer.of(name) or ()) for name in node.input]
        return [(0, ranks[0] - 1), (1, max(0, ranks[1] - 2))]
    return []
