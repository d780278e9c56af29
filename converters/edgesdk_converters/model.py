"""Model: an ONNX graph with its signature and history, validated once when it is made and never changed in place."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as _replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .errors import MissingExtra, ModelError
from .signature import Input, Output, Processing, Signature

try:
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import numpy_helper
except ImportError as _error:
    raise MissingExtra("convert", "onnx") from _error

from . import external
from . import graph as graphs

OPSET_RANGE = (9, 24)
METADATA_KEY = "edgesdk.io"
_LARGE_BYTES = 4096
_FLOATS = {"FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ"}


@dataclass(frozen=True)
class Step:
    """One thing that was done to a model: its name, the options used, what came of it."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, eq=False)
class Model:
    """An ONNX graph, its signature and what was done to it.

    Make one with `load` or `from_proto`; both check the graph, infer shapes and read pre- and post-processing from the
    metadata key `edgesdk.io`. `proto` must not be changed: passes work on a copy and return `changed(...)`.
    """

    name: str
    proto: onnx.ModelProto
    signature: Signature
    history: tuple[Step, ...] = ()

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        shapes: Mapping[str, Sequence[int]] | None = None,
        constants: Mapping[str, float] | None = None,
        processing: Processing | None = None,
    ) -> Model:
        """Read an ONNX file of opset 9 to 24.

        `shapes` makes dynamic input dimensions static; `constants` turns an input into a constant of that value. External
        data is read from inside the file's own directory only. Raises ModelError for anything that is not a valid model.
        """
        path = Path(path)
        hint = "give the path of an .onnx file, a .pt2 program or package.module:callable"
        try:
            if path.is_dir():
                raise ModelError(f"{path} is a directory, not a model file", hint)
            if not path.exists():
                raise ModelError(f"{path} does not exist", hint)
            if not path.is_file():
                raise ModelError(f"{path} is a device or a pipe, not a model file", hint)
            size = path.stat().st_size
            if size > external.LIMIT_BYTES:
                raise ModelError(f"{path} has {size / 1e9:.1f} GB; protobuf and edgesdk end at 2 GB")
            data = path.read_bytes()
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}", "check its name and permissions") from error
        if not data:
            raise ModelError(f"{path} is empty", "export the model again")
        proto = onnx.ModelProto()
        try:
            proto.ParseFromString(data)
        except DecodeError as error:
            raise ModelError(f"{path} is not an ONNX file: {error}", "export the model again; is it cut short?") from error
        del data
        if not proto.HasField("graph") or not proto.graph.node:
            raise ModelError(f"{path} holds no ONNX graph with nodes", "is it really an ONNX model?")
        external.inline(proto, path.resolve().parent)
        history = _modernise(proto)
        if shapes:
            history += (_set_shapes(proto, shapes),)
        if constants:
            history += (_set_constants(proto, constants),)
        return cls.from_proto(proto, path.stem, processing=processing, history=history)

    @classmethod
    def from_proto(
        cls,
        proto: onnx.ModelProto,
        name: str,
        *,
        processing: Processing | None = None,
        history: tuple[Step, ...] = (),
    ) -> Model:
        """A Model from a ModelProto whose data is inline; takes the proto over."""
        _check_versions(proto)
        external.inline(proto, None)
        history += _modernise(proto)
        _check_nan(proto)
        _infer(proto)
        signature = _signature(proto)
        for entry in proto.metadata_props:
            if entry.key == METADATA_KEY:
                try:
                    data = json.loads(entry.value)
                except ValueError as error:
                    raise ModelError(f"metadata {METADATA_KEY} is no JSON: {error}") from error
                signature = signature.with_processing(Processing.from_metadata(data))
        if processing is not None:
            signature = signature.with_processing(processing)
        return cls(name, proto, signature, history)

    def with_shapes(self, shapes: Mapping[str, Sequence[int]]) -> Model:
        """The model with input dimensions made static. A dimension's name is replaced wherever inputs share it."""
        proto = self.copy_proto()
        step = _set_shapes(proto, shapes)
        return self.changed(proto, step)

    def with_constants(self, constants: Mapping[str, float]) -> Model:
        """The model with inputs replaced by constants of the given value (one value for all elements)."""
        proto = self.copy_proto()
        step = _set_constants(proto, constants)
        return self.changed(proto, step)

    def changed(self, proto: onnx.ModelProto, *steps: Step) -> Model:
        """A new Model around a changed copy of this one's graph; processing follows tensors by name."""
        old = self.signature
        signature_inputs = {info.name for info in proto.graph.input}
        signature_outputs = {info.name for info in proto.graph.output}
        processing = Processing(
            {i.name: i.preprocess for i in old.inputs if i.preprocess is not None and i.name in signature_inputs},
            {o.name: o.postprocess for o in old.outputs if o.postprocess is not None and o.name in signature_outputs},
        )
        entries = [entry for entry in proto.metadata_props if entry.key != METADATA_KEY]
        del proto.metadata_props[:]
        proto.metadata_props.extend(entries)
        made = Model.from_proto(proto, self.name, processing=processing)
        return _replace(made, history=(*self.history, *steps, *made.history))

    def copy_proto(self) -> onnx.ModelProto:
        """A ModelProto that may be changed."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        return proto

    def to_bytes(self) -> bytes:
        """The serialised graph; the same model always gives the same bytes."""
        return bytes(self.proto.SerializeToString(deterministic=True))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of `to_bytes()`."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an ONNX file that carries the processing along; the old file is replaced in one step."""
        path = Path(path)
        proto = self.copy_proto()
        kept = {
            "inputs": [i for i in self.signature.to_json()["inputs"] if "preprocess" in i],
            "outputs": [o for o in self.signature.to_json()["outputs"] if "postprocess" in o],
        }
        entries = [entry for entry in proto.metadata_props if entry.key != METADATA_KEY]
        del proto.metadata_props[:]
        proto.metadata_props.extend(entries)
        if kept["inputs"] or kept["outputs"]:
            proto.metadata_props.add(key=METADATA_KEY, value=json.dumps(kept, sort_keys=True))
        temporary = ""
        try:
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            os.fchmod(handle, 0o644)  # mkstemp lets nobody else read it
            with os.fdopen(handle, "wb") as stream:
                stream.write(proto.SerializeToString(deterministic=True))
            os.replace(temporary, path)
        except OSError as error:
            if temporary:
                Path(temporary).unlink(missing_ok=True)
            raise ModelError(f"{path} cannot be written: {error.strerror}") from error

    @property
    def opset(self) -> int:
        """Version of the standard operator set."""
        return graphs.opset(self.proto)


def _show(shape: Sequence[int | str]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _modernise(proto: onnx.ModelProto) -> tuple[Step, ...]:
    """Freeze initialisers that are graph inputs too (what IR version 3 demanded) and drop how the model was trained."""
    steps: tuple[Step, ...] = ()
    if proto.training_info:
        proto.ClearField("training_info")
        steps += (Step("drop training", note="the graphs that trained the model are left out"),)
    stored = {tensor.name for tensor in proto.graph.initializer}
    kept = [info for info in proto.graph.input if info.name not in stored]
    frozen = len(proto.graph.input) - len(kept)
    if frozen:
        del proto.graph.input[:]
        proto.graph.input.extend(kept)
        proto.ir_version = max(proto.ir_version, 8)
        steps += (Step("freeze", note=f"{frozen} initialisers were graph inputs as well: now constants"),)
    return steps


def _set_shapes(proto: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> Step:
    """Make input dimensions static in place; what was inferred before is forgotten."""
    by_name = {info.name: info for info in proto.graph.input}
    symbols: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in by_name:
            raise ModelError(f"--shape names input {name!r}; the model has: {', '.join(by_name)}")
        tensor = by_name[name].type.tensor_type
        old = graphs.value_type(by_name[name]).shape
        if old is not None and len(old) != len(shape):
            raise ModelError(f"--shape gives input {name!r} {len(shape)} axes; the model has {len(old)}: {_show(old)}")
        for axis, size in enumerate(shape):
            before = old[axis] if old is not None else "?"
            if size < 1:
                raise ModelError(f"--shape gives input {name!r} the size {size} in axis {axis}; allowed: 1 or more")
            if isinstance(before, int) and before > 0 and before != size:  # some exporters write 0 or -1 for "any"
                raise ModelError(
                    f"--shape makes axis {axis} of input {name!r} {size}; the model fixes it at {before}",
                    f"the model's own shape is {_show(old or ())}; only dynamic axes can be set",
                )
            if isinstance(before, str) and before != "?" and symbols.setdefault(before, size) != size:
                raise ModelError(f"--shape gives dimension {before!r} two sizes: {symbols[before]} and {size}")
        tensor.ClearField("shape")
        tensor.shape.SetInParent()
        for size in shape:
            tensor.shape.dim.add(dim_value=size)
    for info in proto.graph.input:
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_value = symbols[dim.dim_param]
    _forget_shapes(proto)
    return Step("static shapes", {name: list(shape) for name, shape in shapes.items()})


def _set_constants(proto: onnx.ModelProto, constants: Mapping[str, float]) -> Step:
    """Make inputs constants in place; what was inferred before is forgotten."""
    by_name = {info.name: info for info in proto.graph.input}
    for name, value in constants.items():
        if name not in by_name:
            raise ModelError(f"--constant names input {name!r}; the model has: {', '.join(by_name)}")
        kind = graphs.value_type(by_name[name])
        if kind.elements is None or kind.elements < 0:
            raise ModelError(
                f"--constant needs a static shape; input {name!r} has {_show(kind.shape or ('?',))}",
                f"give --shape {name}=... as well",
            )
        if (kind.nbytes or 0) > external.LIMIT_BYTES:
            raise ModelError(f"--constant makes {(kind.nbytes or 0) / 1e9:.1f} GB of input {name!r}; allowed: 2 GB")
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        filled = np.full([int(dim) for dim in kind.shape or ()], _exactly(value, dtype, name))
        proto.graph.input.remove(by_name[name])
        proto.graph.initializer.append(numpy_helper.from_array(filled, name))
    _forget_shapes(proto)
    return Step("constant inputs", dict(constants))


def _exactly(value: float, dtype: np.dtype[Any], name: str) -> Any:
    """The value in the input's own type. Raises ModelError where that would change it."""
    if dtype.kind in "biu":
        limits = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        if not float(value).is_integer() or not limits[0] <= value <= limits[1]:
            raise ModelError(f"--constant gives input {name!r} {value}; {dtype} holds {limits[0]} to {limits[1]}")
        return dtype.type(int(value))
    if dtype.kind in "OSU":
        raise ModelError(f"--constant gives input {name!r} {value}; the input holds text", "only numbers can be made constant")
    with np.errstate(over="ignore"):
        converted = np.asarray(value).astype(dtype)
    if not np.isfinite(converted.astype(np.float64, copy=False) if dtype.kind in "fV" else converted):
        raise ModelError(f"--constant gives input {name!r} {value}, which is not finite in {dtype}")
    return converted


def _check_versions(proto: onnx.ModelProto) -> None:
    low, high = OPSET_RANGE
    version = graphs.opset(proto)
    if not low <= version <= high:
        got = f"opset {version}" if version else "no opset of the standard operators"
        raise ModelError(f"the model imports {got}; allowed: {low} to {high}", "export it again with opset_version=20")
    if not 3 <= proto.ir_version <= 13:
        raise ModelError(f"the model has ONNX IR version {proto.ir_version}; allowed: 3 to 13")


def _check_nan(proto: onnx.ModelProto) -> None:
    for node in graphs.nodes(proto):
        for attribute in node.attribute:
            if math.isnan(attribute.f) or any(map(math.isnan, attribute.floats)):
                raise ModelError(
                    f"attribute {attribute.name} of node {graphs.node_label(node)!r} holds NaN",
                    "the training diverged; go back to a good checkpoint",
                )
    for name, tensor in graphs.tensors(proto):
        if graphs.type_name(tensor.data_type) in _FLOATS:
            values = numpy_helper.to_array(tensor)
            if np.isnan(values).any():
                count = int(np.isnan(values).sum())
                raise ModelError(
                    f"tensor {name!r} holds {count} NaN among {values.size} values",
                    "the training diverged; go back to a good checkpoint",
                )


def _forget_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Drop every inferred shape, so that it is inferred anew; outputs keep their rank, which a valid graph must state."""
    for graph in graphs.graphs(proto.graph):
        graph.ClearField("value_info")
    for info in proto.graph.output:
        for dim in info.type.tensor_type.shape.dim:
            dim.Clear()
    return proto


def _infer(proto: onnx.ModelProto) -> None:
    """Check the graph and infer all shapes, on a skeleton without the large weights: they play no part in it."""
    skeleton = onnx.ModelProto()
    for name, _ in proto.ListFields():
        if name.name != "graph":
            getattr(skeleton, name.name).extend(getattr(proto, name.name)) if name.is_repeated else setattr(
                skeleton, name.name, getattr(proto, name.name)
            )
    graph = proto.graph
    for info in graph.input:
        if not _has_rank(info):
            raise ModelError(f"input {info.name!r} has no rank", f"give --shape {info.name}=...")
    for scope in graphs.all_graphs(proto):
        names = [tensor.name for tensor in scope.initializer]
        if len(set(names)) != len(names):
            double = next(name for name in names if names.count(name) > 1)
            raise ModelError(f"two initialisers have the name {double!r}", "export the model again")
    small = [tensor for tensor in graph.initializer if tensor.ByteSize() <= _LARGE_BYTES]
    large = [tensor for tensor in graph.initializer if tensor.ByteSize() > _LARGE_BYTES]
    skeleton.graph.name = graph.name or "graph"
    skeleton.graph.node.extend(graph.node)
    skeleton.graph.input.extend(graph.input)
    skeleton.graph.input.extend(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in large)
    skeleton.graph.initializer.extend(small)
    skeleton.graph.output.extend(graph.output)
    skeleton.graph.value_info.extend(graph.value_info)
    skeleton.ir_version = max(skeleton.ir_version, 4)
    try:
        if not all(_has_rank(info) for info in graph.output):  # the checker wants what most runtimes do without
            guess = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
            skeleton.graph.ClearField("output")
            skeleton.graph.output.extend(guess.graph.output)
            for info in guess.graph.output:
                if not _has_rank(info):
                    raise ModelError(
                        f"output {info.name!r} has no shape, and none can be inferred", "export the model with its output shapes"
                    )
        onnx.checker.check_model(skeleton)
        inferred = onnx.shape_inference.infer_shapes(skeleton, check_type=True, strict_mode=True, data_prop=True)
    except onnx.checker.ValidationError as error:
        raise ModelError(*_explain(proto, str(error))) from error
    except UnicodeDecodeError as error:
        raise ModelError("a name in the graph is no UTF-8 text", "the file is damaged; export the model again") from error
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        text = str(error).replace("[ShapeInferenceError]", "").strip()
        hint = "look at the named node in a viewer (Netron)"
        if "op_type:If" in text:
            hint = "if that branch is never taken, make the input that decides constant: --constant sr=16000"
        raise ModelError(f"shapes do not fit together: {text}", hint) from error
    del graph.node[:]
    graph.node.extend(inferred.graph.node)
    del graph.value_info[:]
    graph.value_info.extend(inferred.graph.value_info)
    del graph.output[:]
    graph.output.extend(inferred.graph.output)
    graph.name = skeleton.graph.name
    for scope in graphs.graphs(inferred.graph):
        for name, kind in graphs.value_types(scope).items():
            size = kind.nbytes
            if size is not None and size > external.LIMIT_BYTES:
                raise ModelError(f"value {name!r} would take {size / 1e9:.1f} GB ({_show(kind.shape or ())}); allowed: 2 GB")


def _has_rank(info: onnx.ValueInfoProto) -> bool:
    return not info.type.HasField("tensor_type") or info.type.tensor_type.HasField("shape")


def _explain(proto: onnx.ModelProto, text: str) -> tuple[str, str]:
    """The checker's complaint as message and hint; a graph out of order is told from a cycle and a missing value."""
    if "topologically sorted" not in text:
        if "No Op registered for" in text or "no Op registered" in text:
            operator = text.split("registered for", 1)[1].split()[0]
            return (
                f"unknown operator {operator} (or unknown in opset {graphs.opset(proto)})",
                "check the exporter's opset and domain",
            )
        return "not a valid ONNX graph: " + text.split("\n")[0].strip(), "export the model again"
    produced = {name for node in proto.graph.node for name in node.output}
    known = {t.name for t in proto.graph.initializer} | {i.name for i in proto.graph.input} | {""}
    rest = list(proto.graph.node)
    for node in rest:
        for name in node.input:
            if name not in produced and name not in known:
                return (
                    f"input {name!r} of node {graphs.node_label(node)!r} is produced by nothing",
                    "export the model again",
                )
    while True:
        ready = [node for node in rest if all(name in known for name in node.input)]
        if not ready:
            break
        known.update(name for node in ready for name in node.output)
        rest = [node for node in rest if not any(node is other for other in ready)]
    if rest:
        names = ", ".join(graphs.node_label(node) for node in rest[:4])
        return (
            f"the graph has a cycle through {len(rest)} nodes: {names}",
            "ONNX graphs must be acyclic; use Loop or Scan",
        )
    return "the nodes are not in topological order", "sort the graph (onnx_ir: model.graph.sort()) and save it again"


def _signature(proto: onnx.ModelProto) -> Signature:
    def spec(kind: str, info: onnx.ValueInfoProto) -> tuple[str, str, tuple[int | str, ...]]:
        if not info.type.HasField("tensor_type"):
            found = info.type.WhichOneof("value") or "untyped"
            raise ModelError(f"{kind} {info.name!r} is {found}; only tensors can enter or leave a model")
        value = graphs.value_type(info)
        if value.shape is None:
            return info.name, graphs.numpy_name(value.elem_type), ("?",)
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, int) and dim < 1 and kind == "input":
                raise ModelError(
                    f"input {info.name!r} has size {dim} in axis {axis}; allowed: 1 or more, or a name",
                    f"give --shape {info.name}=... if that axis may have any size",
                )
        return info.name, graphs.numpy_name(value.elem_type), value.shape

    if not proto.graph.output:
        raise ModelError("the graph has no outputs; at least one is needed", "export the model again, and return something")
    return Signature(
        tuple(Input(*spec("input", info)) for info in proto.graph.input),
        tuple(Output(*spec("output", info)) for info in proto.graph.output),
    )
