"""Model data that lies outside the model file: read by us, from inside the model's own directory only, and bounded.

The onnx package has been led out of that directory more than once (CVE-2024-27318, CVE-2025-51480 and their
successors), so it never gets to see an external reference: this module reads every one and stores the bytes inline.
"""

from __future__ import annotations

import errno
import math
import os
import stat
from pathlib import Path, PurePosixPath

import numpy as np
import onnx
from onnx import numpy_helper

from . import graph as graphs
from .errors import ModelError

LIMIT_BYTES = 2**31 - 1
"""The largest model that protobuf can hold, and so the most that data may come to."""


def inline(model: onnx.ModelProto, directory: Path | None) -> None:
    """Replace every external and sparse tensor of a freshly parsed `model` by plain inline data.

    `directory` is where the model file lies; None means that there is none, and external data is refused.

    Raises ModelError for a path that leaves `directory` (absolute, `..`, links), data that is missing or of the wrong
    length, and more than LIMIT_BYTES in all. Tensors that are inline already are checked for size as well: a file that
    declares more than it holds is refused before anything allocates what it declares.
    """
    total = 0
    for name, tensor in graphs.tensors(model):
        total += declared_bytes(name, tensor)
        if total > LIMIT_BYTES:
            raise ModelError(
                f"the model's tensors declare more than {LIMIT_BYTES / 1e9:.1f} GB (at {name!r})",
                "edgesdk works on models under 2 GB; reduce or split the model first",
            )
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _read(name, tensor, directory)
        tensor.ClearField("external_data")
        _check_length(name, tensor)
    _densify(model, total)


def declared_bytes(name: str, tensor: onnx.TensorProto) -> int:
    """How many bytes the declared shape and type come to."""
    if any(dim < 0 for dim in tensor.dims):
        raise ModelError(f"tensor {name!r} has a negative dimension: {list(tensor.dims)}", _BROKEN)
    bits = graphs.item_bits(tensor.data_type)
    if bits == 0 and tensor.data_type != onnx.TensorProto.STRING:
        raise ModelError(f"tensor {name!r} has the unknown element type {tensor.data_type}", _BROKEN)
    elements: int = math.prod(tensor.dims)
    return math.ceil(elements * bits / 8)


_BROKEN = "the file is damaged or was not written by an ONNX exporter; export it again"


def _check_length(name: str, tensor: onnx.TensorProto) -> None:
    if tensor.HasField("segment"):
        raise ModelError(f"tensor {name!r} is one segment of a tensor; allowed: whole tensors", _BROKEN)
    declared = declared_bytes(name, tensor)
    own = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    used = [field for field in _TYPED_FIELDS if len(getattr(tensor, field))]
    if used not in ([], [own]) or (used and tensor.HasField("raw_data")):
        fields = ", ".join([*used, "raw_data"] if tensor.HasField("raw_data") else used)
        raise ModelError(f"tensor {name!r} holds data in {fields}; allowed: {own} or raw_data, one of them", _BROKEN)
    if tensor.HasField("raw_data") and tensor.data_type != onnx.TensorProto.STRING:
        held = len(tensor.raw_data)
        if held != declared:
            raise ModelError(f"tensor {name!r} declares {declared} bytes but holds {held}", _BROKEN)
        return
    elements = math.prod(tensor.dims)
    bits = graphs.item_bits(tensor.data_type)
    if tensor.data_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128):
        elements *= 2
    elif 0 < bits < 8:
        elements = math.ceil(elements * bits / 8)
    held = len(getattr(tensor, own))
    if held != elements:
        raise ModelError(f"tensor {name!r} declares {elements} values but holds {held}", _BROKEN)


_TYPED_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


def _read(name: str, tensor: onnx.TensorProto, directory: Path | None) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if len(entries) != len(tensor.external_data):
        raise ModelError(f"tensor {name!r}: external data gives a key twice: {[e.key for e in tensor.external_data]}", _BROKEN)
    location = entries.get("location", "")
    if directory is None:
        raise ModelError(
            f"tensor {name!r} lies outside the model, in {location!r}; only a file can have external data",
            "save the model and its data to files and use Model.load",
        )
    declared = declared_bytes(name, tensor)
    if tensor.data_type == onnx.TensorProto.STRING:
        raise ModelError(f"tensor {name!r} holds strings; external data can only hold numbers", _BROKEN)
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", str(declared)))
    except ValueError:
        raise ModelError(f"tensor {name!r}: external offset or length is no number: {entries}", _BROKEN) from None
    if offset < 0 or length != declared:
        raise ModelError(
            f"tensor {name!r} declares {declared} bytes; its external data has offset {offset}, length {length}",
            _BROKEN,
        )
    data = _read_inside(name, directory, location, offset, length)
    for field in (*_TYPED_FIELDS, "data_location"):
        tensor.ClearField(field)
    tensor.raw_data = data


def _read_inside(name: str, directory: Path, location: str, offset: int, length: int) -> bytes:
    """Bytes of a file below `directory`, walking component by component so that no link is ever followed."""
    hint = "external data must lie beside the model as a plain file; copy it there (cp -L) and export again"
    parts = PurePosixPath(location).parts
    if not location or "\\" in location or "\0" in location or ":" in location or location.startswith("/"):
        raise ModelError(f"tensor {name!r}: external data path {location!r} is not a plain relative path", hint)
    if any(part in ("..", "/") for part in parts) or not parts:
        raise ModelError(f"tensor {name!r}: external data path {location!r} leaves the model's directory", hint)
    handle = -1
    try:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        for part in parts[:-1]:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)
            os.close(handle)
            handle = inner
        file = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=handle)
    except OSError as error:
        reasons = {errno.ELOOP: "is a link", errno.ENOTDIR: "goes through a link or a file"}
        reason = reasons.get(error.errno or 0) or (error.strerror or "cannot be opened")
        raise ModelError(f"tensor {name!r}: external data file {location!r}: {reason}", hint) from error
    finally:
        if handle >= 0:
            os.close(handle)
    try:
        facts = os.fstat(file)
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1:
            raise ModelError(f"tensor {name!r}: external data {location!r} is a hard link or no regular file", hint)
        short = ModelError(
            f"tensor {name!r} wants bytes {offset}..{offset + length} of {location!r}, which has {facts.st_size}",
            "the data file is cut short or belongs to another model",
        )
        if offset + length > facts.st_size:
            raise short
        with os.fdopen(os.dup(file), "rb") as stream:
            stream.seek(offset)
            data = stream.read(length)
        if len(data) != length:
            raise short
        return data
    except OSError as error:
        raise ModelError(f"tensor {name!r}: external data file {location!r}: {error.strerror}", hint) from error
    finally:
        os.close(file)


def _densify(model: onnx.ModelProto, total: int) -> None:
    """Turn sparse initialisers and sparse Constant nodes into plain tensors, within the size limit."""
    for graph in graphs.all_graphs(model):
        for sparse in graph.sparse_initializer:
            dense, size = _dense(sparse, LIMIT_BYTES - total)
            total += size
            graph.initializer.append(dense)
        graph.ClearField("sparse_initializer")
    for node in graphs.nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                if node.op_type != "Constant" or not attribute.HasField("sparse_tensor"):
                    raise ModelError(f"node {graphs.node_label(node)!r} has a sparse attribute {attribute.name!r}", _BROKEN)
                dense, size = _dense(attribute.sparse_tensor, LIMIT_BYTES - total)
                total += size
                attribute.Clear()
                attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
                attribute.t.CopyFrom(dense)


def _dense(sparse: onnx.SparseTensorProto, room: int) -> tuple[onnx.TensorProto, int]:
    """The plain tensor and its size in bytes; values and indices are inline and of the declared length already."""
    name, dims = sparse.values.name, tuple(sparse.dims)
    shell = onnx.TensorProto(name=name, data_type=sparse.values.data_type, dims=dims)
    size = declared_bytes(name, shell)
    if sparse.values.data_type == onnx.TensorProto.STRING:
        raise ModelError(f"sparse tensor {name!r} holds strings; allowed: numbers", _BROKEN)
    elements = math.prod(dims)
    if max(size, elements) > room:
        raise ModelError(
            f"sparse tensor {name!r} would be {size / 1e9:.1f} GB when dense; {room / 1e9:.1f} GB are left",
            "edgesdk works on models under 2 GB",
        )
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    linear = indices.shape == values.shape
    if values.ndim != 1 or indices.dtype != np.int64 or not (linear or indices.shape == (len(values), len(dims))):
        raise ModelError(
            f"sparse tensor {name!r} has values of shape {values.shape} and indices {indices.dtype}{indices.shape}; "
            f"allowed: (n,) and int64 (n,) or (n, {len(dims)})",
            _BROKEN,
        )
    limits = np.array([elements] if linear else dims, dtype=np.int64)
    rows = indices.reshape(len(values), len(limits))
    if (rows < 0).any() or (rows >= limits).any():
        raise ModelError(f"sparse tensor {name!r}: its indices lie outside its shape {list(dims)}", _BROKEN)
    steps = [math.prod(limits[axis + 1 :].tolist()) for axis in range(len(limits))]
    dense = np.zeros(elements, dtype=values.dtype)
    dense[rows @ np.array(steps, dtype=np.int64)] = values
    made = numpy_helper.from_array(dense, name)
    del made.dims[:]
    made.dims.extend(dims)
    return made, size
