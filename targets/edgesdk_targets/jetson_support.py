"""What TensorRT on a Jetson takes, checked on the graph before anything travels: tables from jetson_support.toml."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesdk_converters.errors import TargetError, Unsupported

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
    return tomllib.loads(Path(__file__).with_name("jetson_support.toml").read_text(encoding="utf-8"))


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


def _scopes(model: Model) -> Iterator[tuple[onnx.GraphProto, dict[str, ValueType], set[str]]]:
    """Each graph with the types and constants that are visible in it."""
    from edgesdk_converters import graph as graphs

    types: dict[str, ValueType] = {}
    constants: set[str] = set()
    for graph in graphs.graphs(model.proto.graph):
        types = types | graphs.value_types(graph)
        constants = constants | {t.name for t in graph.initializer}
        constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
        yield graph, types, constants


def _node_problems(node: onnx.NodeProto, types: Mapping[str, ValueType], constants: set[str], release: JetPack) -> Iterator[str]:
    from edgesdk_converters import graph as graphs

    if node.domain not in ("", "ai.onnx"):
        yield f"TensorRT has no operators of domain {node.domain}"
        return
    dtypes = release.operators.get(node.op_type)
    if dtypes is None:
        yield f"TensorRT {release.tensorrt} has no such operator"
        return
    for name in (*node.input[:1], *node.output):
        kind = types.get(name)
        if kind is None or node.op_type in _MIXED:
            continue
        dtype = graphs.numpy_name(kind.elem_type)
        if dtype not in dtypes:
            yield f"value {name!r} is {dtype}; TensorRT {release.tensorrt} takes {', '.join(sorted(dtypes))}"
            break
    for name in (*node.input, *node.output):
        kind = types.get(name)
        if kind is not None and kind.shape is not None and len(kind.shape) > _tables()["limits"]["rank_max"]["value"]:
            yield f"value {name!r} has {len(kind.shape)} axes; TensorRT ends at 8"
            break
    yield from _attribute_problems(node, types, constants)


_MIXED = {"Shape", "Size", "Gather", "Where", "QuantizeLinear", "DequantizeLinear", "NonZero", "TopK", "ArgMax", "ArgMin",
          "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "IsNaN", "IsInf", "Loop", "Scan", "If", "OneHot",
          "NonMaxSuppression", "EyeLike", "ConstantOfShape", "Constant", "RandomNormal", "RandomUniform"}  # fmt: skip
"""Operators whose output has another type than their first input, so that the table's dtypes cannot be held against both."""


def _attribute_problems(node: onnx.NodeProto, types: Mapping[str, ValueType], constants: set[str]) -> Iterator[str]:
    attributes = {a.name: a for a in node.attribute}
    limits = _tables()["limits"]
    op = node.op_type

    def text(name: str, default: str) -> str:
        return attributes[name].s.decode() if name in attributes else default

    if op in ("MaxPool", "AveragePool", "LpPool"):
        if any(value != 1 for value in (attributes["dilations"].ints if "dilations" in attributes else ())):
            yield "dilated pooling"
        if "kernel_shape" in attributes and len(attributes["kernel_shape"].ints) not in (2, 3):
            yield f"{len(attributes['kernel_shape'].ints)}-dimensional pooling; TensorRT has 2D and 3D"
        if op == "MaxPool" and len(node.output) > 1 and node.output[1]:
            yield "the Indices output"
    elif op == "Resize":
        mode = text("mode", "nearest")
        coordinates = text("coordinate_transformation_mode", "half_pixel")
        if mode not in limits["resize_modes"]["value"]:
            yield f"mode {mode}; TensorRT has {', '.join(limits['resize_modes']['value'])}"
        if coordinates not in limits["resize_coordinate_modes"]["value"]:
            yield f"coordinate mode {coordinates}"
        if "antialias" in attributes and attributes["antialias"].i:
            yield "antialiasing"
    elif op == "Pad":
        mode = text("mode", "constant")
        if mode not in limits["pad_modes"]["value"]:
            yield f"mode {mode}"
    elif op == "TopK":
        if "sorted" in attributes and not attributes["sorted"].i:
            yield "sorted = 0"
    elif op == "LRN":
        if attributes["size"].i % 2 == 0 or attributes["size"].i > 15:
            yield f"size {attributes['size'].i}; TensorRT takes odd sizes up to 15"
    elif op in ("LSTM", "GRU", "RNN"):
        if "layout" in attributes and attributes["layout"].i:
            yield "layout 1; TensorRT takes layout 0"
        if "input_forget" in attributes and attributes["input_forget"].i:
            yield "input_forget"
    elif op in ("Scatter", "ScatterND", "ScatterElements"):
        if text("reduction", "none") != "none":
            yield f"reduction {text('reduction', 'none')}"
    elif op == "LayerNormalization" and any(node.output[1:]):
        yield "more than the first output"
    takes_axes = op == "CumSum" or op.startswith("Reduce") or op in ("Squeeze", "Unsqueeze")
    if takes_axes and len(node.input) > 1 and node.input[1] and node.input[1] not in constants:
        yield "axes that are computed, not constant"


def refuse(target: str, found: Sequence[Problem], hint: str) -> None:
    """Raise Unsupported for the first problem, saying how many more there are."""
    if found:
        first = found[0]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise Unsupported(target, first.node, first.operator, first.reason + more, hint)


def versions() -> tuple[str, ...]:
    """All JetPack releases in the table."""
    return tuple(row["version"] for row in _tables()["jetpack"])
