"""Expand: operators that a runtime lacks, replaced by the definition that ONNX itself gives for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from . import graph as graphs
from .errors import MissingExtra, ModelError, PassError
from .model import Model, Step
from .passes import Given

try:
    import onnx
    import onnx.inliner
except ImportError as _error:
    raise MissingExtra("convert", "onnx") from _error

_DOMAIN = "edgesdk.expanded"


@dataclass(frozen=True)
class Expand:
    """Replace every node of `operators` by the function body in ONNX's operator schema (Gelu becomes Mul, Erf, Add, …).

    The mathematics is ONNX's own definition; results differ by rounding only. Raises PassError for an operator without a
    definition. Nodes inside local functions are left alone.
    """

    name: ClassVar[str] = "expand"
    operators: tuple[str, ...] = ()

    def __call__(self, model: Model, given: Given) -> Model:
        wanted = set(self.operators)
        proto = model.copy_proto()
        count = 0
        for graph in graphs.graphs(proto.graph):
            graphs.store_constants(graph)  # where it converts a definition, the inliner makes them twice
            types = graphs.value_types(proto.graph) | graphs.value_types(graph)
            for node in graph.node:
                if node.op_type in wanted and node.domain in ("", "ai.onnx"):
                    function = self._definition(node, types, model.opset)
                    schema = onnx.defs.get_schema(node.op_type, model.opset, "")
                    defaults = {name: attribute.default_value for name, attribute in schema.attributes.items()}
                    function.domain, function.name = _DOMAIN, f"{node.op_type}_{count}"
                    function.ClearField("overload")
                    proto.functions.append(function)
                    node.domain, node.op_type = _DOMAIN, function.name
                    kept = {attribute.name: attribute for attribute in node.attribute if attribute.name in function.attribute}
                    for name in function.attribute:  # the definition asks for them, the node may leave defaults out
                        if name not in kept and defaults[name].HasField("type"):
                            kept[name] = defaults[name]
                    del node.attribute[:]
                    node.attribute.extend(kept.values())
                    count += 1
        if not count:
            return model
        proto.opset_import.add(domain=_DOMAIN, version=1)
        for graph in graphs.graphs(proto.graph):  # there it wants types as well, of stored tensors too
            stored = [onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in graph.initializer]
            graph.value_info.extend(stored)
        try:
            inlined = onnx.inliner.inline_local_functions(proto)
            if _left(inlined):  # definitions written for another opset; converting them does not work with subgraphs
                inlined = onnx.inliner.inline_local_functions(proto, True)
        except RuntimeError as error:
            if "No Previous Version" in str(error):
                told = f"ONNX's definitions use operators that opset {model.opset} does not have"
                raise PassError(self.name, told, "export the model with opset 20") from error
            raise PassError(self.name, f"ONNX's own inliner failed: {error}", "expand fewer operators") from error
        if left := _left(inlined):
            raise PassError(
                self.name, f"ONNX's definition of {left[0]} does not fit opset {model.opset}", "export the model with opset 20"
            )
        proto = inlined
        kept_imports = [entry for entry in proto.opset_import if entry.domain != _DOMAIN]
        del proto.opset_import[:]
        proto.opset_import.extend(kept_imports)
        for graph in graphs.graphs(proto.graph):
            stored_names = {tensor.name for tensor in graph.initializer}
            kept_infos = [info for info in graph.value_info if info.name not in stored_names]
            del graph.value_info[:]
            graph.value_info.extend(kept_infos)
        step = Step(self.name, {"operators": sorted(wanted)}, f"{count} nodes by ONNX's own definition")
        try:
            return model.changed(proto, step)
        except ModelError as error:
            raise PassError(
                self.name, f"ONNX's definition gives a model that is not valid: {error.message}", "expand fewer operators"
            ) from error

    def _definition(self, node: onnx.NodeProto, types: dict[str, graphs.ValueType], opset: int) -> onnx.FunctionProto:
        label = graphs.node_label(node)
        try:
            schema = onnx.defs.get_schema(node.op_type, opset, "")
        except onnx.defs.SchemaError as error:
            raise PassError(self.name, f"opset {opset} has no operator {node.op_type}", node=label) from error
        function = onnx.FunctionProto()
        if schema.has_context_dependent_function:  # type: ignore[attr-defined]
            inputs = [
                onnx.helper.make_tensor_type_proto(types[name].elem_type, None).SerializeToString() if name in types else b""
                for name in node.input
            ]
            version = _nearest(schema.context_dependent_function_opset_versions, opset)  # type: ignore[attr-defined]
            data = schema.get_context_dependent_function_with_opset_version(version, node.SerializeToString(), inputs)  # type: ignore[attr-defined]
            function.ParseFromString(data)
        elif schema.has_function:  # type: ignore[attr-defined]
            version = _nearest(schema.function_opset_versions, opset)  # type: ignore[attr-defined]
            function.ParseFromString(schema.get_function_with_opset_version(version))  # type: ignore[attr-defined]
        else:
            raise PassError(self.name, f"ONNX defines {node.op_type} by no function of other operators", node=label)
        for entry in function.opset_import:
            if entry.domain == "" and all(_unchanged(inner.op_type, entry.version, opset) for inner in function.node):
                entry.version = opset  # written for an older opset, means the same in this one
        return function


def _nearest(versions: Sequence[int], opset: int) -> int:
    """The newest that the opset knows, else the oldest."""
    return max((version for version in versions if version <= opset), default=min(versions))


def _unchanged(operator: str, old: int, new: int) -> bool:
    try:
        old_schema, new_schema = (onnx.defs.get_schema(operator, version, "") for version in (old, new))
    except onnx.defs.SchemaError:
        return False
    return bool(old_schema.since_version == new_schema.since_version)


def _left(proto: onnx.ModelProto) -> list[str]:
    """Operators whose definitions were not put in their place."""
    return [node.op_type.rsplit("_", 1)[0] for node in graphs.nodes(proto) if node.domain == _DOMAIN]
