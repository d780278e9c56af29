"""What TensorRT on a Jetson takes, checked on the graph before anything travels: tables from jetson_support.toml."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesdk_converters.errors import TargetError, Unsupported

from .jetson_rules import Look, reasons
from .onnxruntime_support import version_key

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    import onnx

    from edgesdk_converters.graph import ValueType
    from edgesdk_converters.model import Model


@dataclass(frozen=True)
class JetPack:
    """One release, with the operators of its TensorRT: name to dtypes (numpy names)."""

    version: str
    tensorrt: str
    python: str
    onnxruntime_min: str
    strongly_typed: bool
    opset_max: int
    dla: bool
    boards: tuple[str, ...]
    operators: Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Problem:
    """A node that TensorRT does not take, and why."""

    node: str
    operator: str
    reason: str


@functools.cache
def _tables() -> dict[str, Any]:
    tables: dict[str, Any] = tomllib.loads(Path(__file__).with_name("jetson_support.toml").read_text(encoding="utf-8"))
    return tables


def jetpack(version: str) -> JetPack:
    """The release of that version. Raises TargetError for an unknown one, listing the known."""
    rows = {row["version"]: row for row in _tables()["jetpack"]}
    if version not in rows:
        raise TargetError(f"unknown JetPack {version!r}; known: {', '.join(rows)}", "give one with --set jetpack=6.2")
    row = rows[version]
    return JetPack(
        version, row["tensorrt"], row["python"], row["onnxruntime_min"], row["strongly_typed"], row["opset_max"],
        row["dla"], tuple(row["boards"]), _operators(row["tensorrt"]),
    )  # fmt: skip


def strongly_typed_onnxruntime() -> str:
    """The oldest ONNX Runtime that is known to build strongly typed networks with TensorRT 10."""
    return str(_tables()["onnxruntime_strongly_typed"]["onnxruntime_known_from"])


def _operators(tensorrt: str) -> Mapping[str, frozenset[str]]:
    version = tensorrt.rsplit(".", 1)[0]
    table = _tables()["tensorrt"].get(version)
    if table is None:
        return {}
    found = dict(_operators(table["base"] + ".0")) if "base" in table else {}
    for group in ("operators", "operators_changed"):
        found |= {name: frozenset(entry["dtypes"]) for name, entry in table.get(group, {}).items()}
    for name in table["unsupported"]:
        found.pop(name, None)
    return found


def problems(model: Model, release: JetPack) -> list[Problem]:
    """Everything about a model that the release's TensorRT is known not to take; empty for none."""
    from edgesdk_converters import graph as graphs

    found = []
    if model.opset > release.opset_max:
        found.append(
            Problem(
                "(model)",
                "opset",
                f"opset {model.opset}; TensorRT {release.tensorrt} of JetPack {release.version} reads up to {release.opset_max}",
            )
        )
    for spec in model.signature.inputs:
        dynamic = [str(dim) for dim in spec.shape if not isinstance(dim, int)]
        if dynamic:
            found.append(
                Problem(
                    spec.name,
                    "input",
                    f"its dimension {dynamic[0]!r} is dynamic: every new size would build a new engine",
                )
            )
    for graph, types, constants in _scopes(model):
        for node in graph.node:
            found += [
                Problem(graphs.node_label(node), node.op_type, reason)
                for reason in _node_problems(node, types, constants, release)
            ]
    return found


def data_dependent(model: Model) -> tuple[str, ...]:
    """Operators of the model whose output's length is known only when they run."""
    from edgesdk_converters import graph as graphs

    listed = _tables()["limits"]["data_dependent_shapes"]["value"]
    return tuple(sorted({node.op_type for node in graphs.nodes(model.proto)} & set(listed)))


def dla_problems(model: Model) -> list[Problem]:
    """What of an fp16 model a DLA cannot run: operators, and fp32 that weak typing would turn into fp16."""
    from edgesdk_converters import graph as graphs

    table = _tables()["dla"]["operators"]
    found = []
    for graph, types, _ in _scopes(model):
        inputs = {info.name for info in graph.input}
        outputs = {info.name for info in graph.output}
        for node in graph.node:
            label = graphs.node_label(node)
            if node.op_type == "Cast" and (node.input[0] in inputs or node.output[0] in outputs):
                continue
            if node.op_type in ("Constant", "ConstantOfShape", "Shape"):
                continue
            if node.op_type not in table:
                found.append(Problem(label, node.op_type, f"the DLA runs only {', '.join(sorted(table))}"))
            elif any(types[name].elem_type == 1 for name in node.output if name in types):
                found.append(Problem(label, node.op_type, "it is fp32; through ONNX Runtime the DLA would turn it into fp16"))
    return found


def _scopes(
    model: Model,
) -> Iterator[tuple[onnx.GraphProto, dict[str, ValueType], dict[str, onnx.TensorProto | None]]]:
    """Each graph with the types and stored constants that are visible in it or in its subgraphs' results."""
    from edgesdk_converters import graph as graphs

    types: dict[str, ValueType] = {}
    constants: dict[str, onnx.TensorProto | None] = {}
    everything = list(graphs.graphs(model.proto.graph))
    for graph in everything:
        types |= graphs.value_types(graph)
        constants |= {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                constants[node.output[0]] = next((a.t for a in node.attribute if a.name == "value"), None)
    for graph in everything:
        yield graph, types | graphs.value_types(graph), constants


def _node_problems(
    node: onnx.NodeProto,
    types: Mapping[str, ValueType],
    constants: Mapping[str, onnx.TensorProto | None],
    release: JetPack,
) -> Iterator[str]:
    if node.domain not in ("", "ai.onnx"):
        yield f"TensorRT has no operators of domain {node.domain}"
        return
    dtypes = release.operators.get(node.op_type)
    if dtypes is None:
        yield f"TensorRT {release.tensorrt} has no such operator"
        return
    limits = _tables()["limits"]
    look = Look(node, types, constants, version_key(release.tensorrt), dtypes, limits)
    yield from _type_problems(look, release)
    for name in (*node.input, *node.output):
        shape = look.shape(name)
        if shape is not None and len(shape) > limits["rank_max"]["value"]:
            yield f"value {name!r} has {len(shape)} axes; TensorRT ends at {limits['rank_max']['value']}"
            break
    yield from reasons(look)


def _type_problems(look: Look, release: JetPack) -> Iterator[str]:
    """At most one: a type that TensorRT lacks or changes, or that it lacks for this operator."""
    node = look.node
    for name in (*node.input, *node.output):
        dtype = look.dtype(name)
        if dtype == "float64":
            yield f"value {name!r} is float64; TensorRT clamps it to float32, which changes the result"
            return
        if dtype and dtype not in _TYPES:
            yield f"value {name!r} is {dtype}; TensorRT has no such type"
            return
        if dtype == "uint8" and node.op_type not in ("Cast", "CastLike", "QuantizeLinear", "DequantizeLinear"):
            yield f"value {name!r} is uint8; TensorRT takes it only where it enters or leaves the model, and at Cast"
            return
    if node.op_type in _OWN_TYPES:
        return
    for name in (*node.input[:1], *(() if node.op_type in _OTHER_OUTPUT else node.output)):
        dtype = look.dtype(name)
        if dtype and dtype not in look.dtypes:
            yield f"value {name!r} is {dtype}; TensorRT {release.tensorrt} takes {', '.join(sorted(look.dtypes))}"
            return


_TYPES = {"float32", "float16", "bfloat16", "int32", "int64", "int8", "int4", "uint8", "bool"}
"""Types of values that TensorRT on Orin has, uint8 only at the edges (limits.uint8, limits.orin_precisions)."""
_OTHER_OUTPUT = {"Shape", "Size", "NonZero", "TopK", "ArgMax", "ArgMin", "Equal", "Less", "Greater", "LessOrEqual",
                 "GreaterOrEqual", "IsNaN", "IsInf", "NonMaxSuppression", "MaxPool", "Dropout"}  # fmt: skip
"""Operators whose output has another type than their first input: the table's dtypes are held against the input alone."""
_OWN_TYPES = {"Loop", "Scan", "If", "Where", "OneHot", "EyeLike", "ConstantOfShape", "Constant", "RandomNormal", "RandomUniform",
              "QuantizeLinear", "DequantizeLinear"}  # fmt: skip
"""Operators whose types their rules check, or whose first input is none of the table's."""


def refuse(target: str, found: Sequence[Problem], hint: str) -> None:
    """Raise Unsupported for the first problem, saying how many more there are."""
    if found:
        first = found[0]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise Unsupported(target, first.node, first.operator, first.reason + more, hint)


def versions() -> tuple[str, ...]:
    """All JetPack releases in the table."""
    return tuple(row["version"] for row in _tables()["jetpack"])
