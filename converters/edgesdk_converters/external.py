"""Model data that lies outside the model file: read by us, from inside the model's own directory only, and bounded.

The onnx package has been led out of that directory more than once (CVE-2024-27318, CVE-2025-51480 and their
successors), so it never gets to see an external reference: this module reads every one and stores the bytes inline.
"""

from __future__ import annotations

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


def inline(model: onnx.ModelProto, directory: Path) -> None:
    """Replace every external and sparse tensor of a freshly parsed `model` by plain inline data.

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
        _check_length(name, tensor)
    _densify(model, directory, total)


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
    if tensor.data_type == onnx.TensorProto.STRING:
        count, held = math.prod(tensor.dims), len(tensor.string_data)
        if count != held:
            raise ModelError(f"tensor {name!r} declares {count} strings but holds {held}", _BROKEN)
        return
    declared = declared_bytes(name, tensor)
    if tensor.HasField("raw_data"):
        held = len(tensor.raw_data)
        if held != declared:
            raise ModelError(f"tensor {name!r} declares {declared} bytes but holds {held}", _BROKEN)
        return
    elements = math.prod(tensor.dims)
    if tensor.data_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128):
        elements *= 2
    bits = graphs.item_bits(tensor.data_type)
    if bits < 8:
        elements = math.ceil(elements * bits / 8)
    held = max(
        len(tensor.float_data), len(tensor.int32_data), len(tensor.int64_data), len(tensor.double_data),
        len(tensor.uint64_data),
    )  # fmt: skip
    if held != elements:
        raise ModelError(f"tensor {name!r} declares {elements} values but holds {held}", _BROKEN)


def _read(name: str, tensor: onnx.TensorProto, directory: Path) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    declared = declared_bytes(name, tensor)
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
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    tensor.raw_data = data


def _read_inside(name: str, directory: Path, location: str, offset: int, length: int) -> bytes:
    """Bytes of a file below `directory`, walking component by component so that no link is ever followed."""
    hint = "external data must lie beside the model as a plain file; copy it there (cp -L) and export again"
    parts = PurePosixPath(location).parts
    if not location or "\\" in location or "\0" in location or ":" in location or location.startswith("/"):
        raise ModelError(f"tensor {name!r}: external data path {location!r} is not a plain relative path", hint)
    if any(part in ("..", "/") for part in parts) or not parts:
        raise ModelError(f"tensor {name!r}: external data path {location!r} leaves the model's directory", hint)
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)
            os.close(handle)
            handle = inner
        file = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=handle)
    except OSError as error:
        reason = "is a link" if error.errno in (40, 20) else (error.strerror or "cannot be opened")
        raise ModelError(f"tensor {name!r}: external data file {location!r} {reason}", hint) from error
    finally:
        os.close(handle)
    try:
        facts = os.fstat(file)
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1:
            raise ModelError(f"tensor {name!r}: external data {location!r} is a hard link or no regular file", hint)
        if offset + length > facts.st_size:
            raise ModelError(
                f"tensor {name!r} wants bytes {offset}..{offset + length} of {location!r}, which has {facts.st_size}",
                "the data file is cut short or belongs to another model",
            )
        with os.fdopen(os.dup(file), "rb") as stream:
            stream.seek(offset)
            return stream.read(length)
    finally:
        os.close(file)


def _densify(model: onnx.ModelProto, directory: Path, total: int) -> None:
    """Turn sparse initialisers and sparse Constant nodes into plain tensors, within the size limit."""
    for graph in graphs.graphs(model.graph):
        for sparse in graph.sparse_initializer:
            dense, size = _dense(sparse, directory, LIMIT_BYTES - total)
            total += size
            graph.initializer.append(dense)
        graph.ClearField("sparse_initializer")
    for node in graphs.nodes(model):
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.SPARSE_TENSOR:
                dense, size = _dense(attribute.sparse_tensor, directory, LIMIT_BYTES - total)
                total += size
                if node.op_type != "Constant":
                    raise ModelError(f"node {graphs.node_label(node)!r} has a sparse attribute {attribute.name!r}", _BROKEN)
                attribute.Clear()
                attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
                attribute.t.CopyFrom(dense)


def _dense(sparse: onnx.SparseTensorProto, directory: Path, room: int) -> tuple[onnx.TensorProto, int]:
    name = sparse.values.name
    shell = onnx.TensorProto(name=name, data_type=sparse.values.data_type, dims=sparse.dims)
    size = declared_bytes(name, shell)
    if size > room:
        raise ModelError(
            f"sparse tensor {name!r} would be {size / 1e9:.1f} GB when dense; {room / 1e9:.1f} GB are left",
            "edgesdk works on models under 2 GB",
        )
    for part, tensor in ((name, sparse.values), (f"indices of {name}", sparse.indices)):
        declared_bytes(part, tensor)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _read(part, tensor, directory)
        _check_length(part, tensor)
    values, indices = numpy_helper.to_array(sparse.values).reshape(-1), numpy_helper.to_array(sparse.indices)
    dims = tuple(sparse.dims)
    rows = indices.reshape(len(values), -1) if len(values) else indices.reshape(0, 1)
    dense = np.zeros(dims, dtype=values.dtype)
    if len(values):
        limits = np.array(dims if rows.shape[1] > 1 or len(dims) == 1 else (dense.size,))
        if rows.shape[1] not in (1, len(dims)) or (rows < 0).any() or (rows >= limits).any():
            raise ModelError(f"sparse tensor {name!r}: its indices lie outside its shape {list(dims)}", _BROKEN)
        flat = rows[:, 0] if rows.shape[1] == 1 else np.ravel_multi_index(tuple(rows.T), dims)
        dense.reshape(-1)[flat] = values
    return numpy_helper.from_array(dense, name), size
