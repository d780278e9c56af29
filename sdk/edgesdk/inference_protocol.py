"""Open Inference Protocol v2 as bytes: tensors in JSON and in the binary tensor data extension.

Both ends use it; standard library and numpy only. Documents: kserve/open-inference-protocol (REST), and Triton's
extension_binary_data.md: a JSON object of `Inference-Header-Content-Length` bytes, then the tensors one after the other.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters.errors import BundleError, ModelError
from edgesdk_converters.signature import Input, Output, Signature

Array = NDArray[Any]
JSON_LENGTH = "inference-header-content-length"
DIGEST = "edgesdk-digest"
"""Header of every answer of a server: the digest of the bundle that gave it."""
CHECKSUM = "edgesdk-crc32"
"""Header of requests and answers that carry tensors: CRC-32 of the body, 8 hexadecimal digits. TCP's own sum misses some."""
VERSION = "1"
DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "float16": "FP16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip
DTYPES = {datatype: np.dtype(dtype).newbyteorder("<") for dtype, datatype in DATATYPES.items()}


@dataclass(frozen=True)
class Request:
    """One inference asked for: inputs by name, and the outputs wanted, each with whether it goes back as bytes."""

    id: str
    feed: dict[str, Array]
    wanted: tuple[tuple[str, bool], ...]


def check_signature(signature: Signature, name: str) -> None:
    """Raise BundleError where a tensor has a type that the protocol lacks."""
    specs: tuple[Input | Output, ...] = (*signature.inputs, *signature.outputs)
    for spec in specs:
        if spec.dtype not in DATATYPES:
            raise BundleError(
                f"{name}: tensor {spec.name!r} is {spec.dtype}; the protocol carries {', '.join(DATATYPES)}",
                "serve a bundle whose inputs and outputs have one of these types",
            )


def tensors(specs: Sequence[Input | Output]) -> list[dict[str, Any]]:
    """The inputs or outputs of a signature as metadata has them; a dimension that may vary is -1."""
    return [
        {"name": s.name, "datatype": DATATYPES[s.dtype], "shape": [d if isinstance(d, int) else -1 for d in s.shape]}
        for s in specs
    ]


def from_bytes(data: memoryview, datatype: str, shape: Sequence[int]) -> Array:
    """A tensor from its bytes (little endian, C order). Raises ModelError where the count is not that of the shape."""
    dtype = DTYPES[datatype]
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ModelError(f"{datatype} {list(shape)} is {math.prod(shape) * dtype.itemsize} bytes; got {len(data)}")
    array: Array = np.frombuffer(data, dtype).reshape(shape)
    if datatype == "BOOL" and array.size and array.view(np.uint8).max() > 1:
        raise ModelError("a BOOL tensor holds bytes that are neither 0 nor 1")
    return array if array.flags.aligned and dtype.isnative else array.astype(dtype.newbyteorder("="))


def checksum(*parts: bytes | memoryview) -> str:
    """CRC-32 over parts of a body, as the header has it."""
    found = 0
    for part in parts:
        found = zlib.crc32(part, found)
    return f"{found:08x}"


def to_bytes(array: Array) -> memoryview:
    """The bytes of a tensor (little endian, C order), without a copy where it lies so already."""
    fitting = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return memoryview(fitting.reshape(-1).view(np.uint8).data)


def read_json(data: bytes | memoryview) -> dict[str, Any]:
    """A JSON object. Raises ModelError for anything else; NaN and Infinity are no JSON."""
    try:
        found = json.loads(str(data, "utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"not JSON: {str(error)[:200]}") from error
    if not isinstance(found, dict):
        raise ModelError(f"a JSON object is needed; got {type(found).__name__}")
    return found


def read_request(body: bytes, json_bytes: int | None, signature: Signature) -> Request:
    """What a client asks. `json_bytes` is the header of that name, None where the body is JSON alone.

    Raises ModelError for what the protocol or the signature forbids; shapes are checked by the session that runs it.
    """
    if json_bytes is not None and json_bytes > len(body):
        raise ModelError(f"{JSON_LENGTH} is {json_bytes}; the body has {len(body)} bytes")
    view = memoryview(body)
    end = len(body) if json_bytes is None else json_bytes
    asked = read_json(view[:end])
    rest = view[end:]
    told = asked.get("id", "")
    if not isinstance(told, str):
        raise ModelError(f"id must be a string; got {type(told).__name__}")
    known = {spec.name: spec.dtype for spec in signature.inputs}
    feed: dict[str, Array] = {}
    for entry in _entries(asked, "inputs"):
        name = entry["name"]
        if name not in known:
            raise ModelError(f"unknown input {name!r}; the model takes {', '.join(map(repr, known))}")
        if name in feed:
            raise ModelError(f"input {name!r} is given twice")
        feed[name], used = _input(entry, known[name], rest)
        rest = rest[used:]
    if len(rest):
        raise ModelError(f"{len(rest)} bytes follow the last tensor")
    return Request(told, feed, _wanted(asked, signature))


def _input(entry: Mapping[str, Any], dtype: str, rest: memoryview) -> tuple[Array, int]:
    """The tensor of one entry, and how many of the bytes at the front of `rest` it has taken."""
    name, shape, datatype = entry["name"], entry.get("shape"), entry.get("datatype")
    if datatype != DATATYPES[dtype]:
        raise ModelError(f"input {name!r} has datatype {datatype!r}; the model takes {DATATYPES[dtype]}")
    if not isinstance(shape, list) or not all(type(dim) is int and 0 <= dim < 2**40 for dim in shape) or len(shape) > 32:
        raise ModelError(f"input {name!r}: shape must be a list of whole numbers")
    given = _parameters(entry)
    if any(key.startswith("shared_memory") for key in given):
        raise ModelError(f"input {name!r} is in shared memory, which this server does not take")
    size = given.get("binary_data_size")
    if (size is None) == ("data" not in entry):
        raise ModelError(f"input {name!r} needs data, or binary_data_size, and not both")
    try:
        if size is None:
            return _from_list(entry["data"], datatype, shape), 0
        if type(size) is not int or not 0 <= size <= len(rest):
            raise ModelError(f"binary_data_size is {size!r}; {len(rest)} bytes are left")
        return from_bytes(rest[:size], datatype, shape), size
    except ModelError as error:
        raise ModelError(f"input {name!r}: {error.message}") from error


def _from_list(data: object, datatype: str, shape: Sequence[int]) -> Array:
    """A tensor from numbers in JSON, flat or nested as the shape."""
    dtype = DTYPES[datatype].newbyteorder("=")
    try:
        found = np.array(data if isinstance(data, list) else [data])
    except (ValueError, OverflowError) as error:
        raise ModelError("data is neither flat nor nested as the shape says") from error
    if found.size == 0:
        found = found.astype(dtype)
    if dtype.kind in "iu":
        # What holds numbers beyond int64 beside smaller ones becomes floats in numpy's eyes, and may be right all the same.
        values = np.array(data, object).reshape(-1) if found.dtype.kind in "fO" else found
        if found.dtype.kind not in "iu" and not all(type(value) is int for value in values):
            raise ModelError(f"data holds something else than {datatype}")
        limits = np.iinfo(dtype)
        if found.size and not (limits.min <= int(values.min()) and int(values.max()) <= limits.max):
            raise ModelError(f"data has values beyond {datatype}")
        found = values.reshape(found.shape)
    elif found.dtype.kind not in {"b": "b", "f": "iuf"}[dtype.kind]:
        raise ModelError(f"data holds something else than {datatype}")
    if found.size != math.prod(shape) or (found.ndim != 1 and found.shape != tuple(shape)):
        raise ModelError(f"data has shape {list(found.shape)}; shape says {list(shape)}")
    with np.errstate(over="ignore"):
        return found.astype(dtype).reshape(shape)


def _wanted(asked: Mapping[str, Any], signature: Signature) -> tuple[tuple[str, bool], ...]:
    everything = _parameters(asked).get("binary_data_output", False) is True
    names = [spec.name for spec in signature.outputs]
    if "outputs" not in asked:
        return tuple((name, everything) for name in names)
    wanted = []
    for entry in _entries(asked, "outputs"):
        if entry["name"] not in names:
            raise ModelError(f"unknown output {entry['name']!r}; the model gives {', '.join(map(repr, names))}")
        given = _parameters(entry)
        if any(key == "classification" or key.startswith("shared_memory") for key in given):
            raise ModelError(f"output {entry['name']!r}: this server knows neither classification nor shared memory")
        wanted.append((entry["name"], given.get("binary_data", everything) is True))
    if len({name for name, _ in wanted}) != len(wanted):
        raise ModelError("an output is asked for twice")
    return tuple(wanted) or tuple((name, everything) for name in names)


def _entries(asked: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    found = asked.get(kind)
    if not isinstance(found, list) or not all(isinstance(e, dict) and isinstance(e.get("name"), str) for e in found):
        raise ModelError(f"{kind} must be a list of objects that have a name")
    return found


def _parameters(entry: Mapping[str, Any]) -> dict[str, Any]:
    found = entry.get("parameters", {})
    if not isinstance(found, dict):
        raise ModelError(f"parameters must be an object; got {type(found).__name__}")
    return found


def write_response(request: Request, outputs: Mapping[str, Array], model: str) -> tuple[bytes, int | None]:
    """The body of an answer, and how many bytes of it are JSON where tensors follow.

    Raises ModelError where a value is not finite and JSON was asked for.
    """
    entries, chunks = [], [b""]
    for name, binary in request.wanted:
        array = outputs[name]
        entry: dict[str, Any] = {"name": name, "datatype": DATATYPES[array.dtype.name], "shape": list(array.shape)}
        if binary:
            entry["parameters"] = {"binary_data_size": array.nbytes}
            chunks.append(to_bytes(array))  # type: ignore[arg-type]
        else:
            entry["data"] = array.reshape(-1).tolist()
        entries.append(entry)
    told = {"model_name": model, "model_version": VERSION} | ({"id": request.id} if request.id else {}) | {"outputs": entries}
    try:
        chunks[0] = json.dumps(told, separators=(",", ":"), allow_nan=False).encode()
    except ValueError as error:
        raise ModelError("an output holds NaN or infinity, which JSON cannot: ask for it with binary_data") from error
    return b"".join(chunks), len(chunks[0]) if any(binary for _, binary in request.wanted) else None


def request_around(feed: Mapping[str, Array]) -> tuple[bytes, bytes]:
    """The JSON of a request with binary tensors both ways: what stands before its id, and what after."""
    entries = [
        {
            "name": name, "shape": list(array.shape), "datatype": DATATYPES[array.dtype.name],
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in feed.items()
    ]  # fmt: skip
    told = json.dumps({"parameters": {"binary_data_output": True}, "inputs": entries}, separators=(",", ":"))
    return b'{"id":"', f'",{told[1:]}'.encode()


def read_response(
    body: memoryview, json_bytes: int, wanted_id: str, signature: Signature, feed: Mapping[str, Array]
) -> list[Array]:
    """The outputs in the signature's order. Raises ModelError for an answer to anything but this request.

    A dimension that has a name in the signature must be what it was in `feed`, where it stands there.
    """
    if not 0 <= json_bytes <= len(body):
        raise ModelError(f"{JSON_LENGTH} is {json_bytes}; the body has {len(body)} bytes")
    told = read_json(body[:json_bytes])
    if told.get("id") != wanted_id:
        raise ModelError(f"the answer is to request {str(told.get('id'))[:40]!r}, not to {wanted_id!r}")
    dims = {
        dim: size
        for spec in signature.inputs
        for dim, size in zip(spec.shape, feed[spec.name].shape, strict=True)
        if isinstance(dim, str)
    }
    found: dict[str, Array] = {}
    rest, specs = body[json_bytes:], {spec.name: spec for spec in signature.outputs}
    for entry in _entries(told, "outputs"):
        name, shape, size = entry["name"], entry.get("shape"), _parameters(entry).get("binary_data_size")
        if name not in specs or name in found:
            raise ModelError(f"output {name[:40]!r} was not asked for")
        spec = specs[name]
        if entry.get("datatype") != DATATYPES[spec.dtype]:
            raise ModelError(f"output {name!r} is {str(entry.get('datatype'))[:40]}, not {DATATYPES[spec.dtype]}")
        fits = isinstance(shape, list) and len(shape) == len(spec.shape) and all(type(d) is int and d >= 0 for d in shape)
        if not fits or any(
            d != dims.get(w, d) if isinstance(w, str) else d != w for w, d in zip(spec.shape, shape or (), strict=True)
        ):
            raise ModelError(f"output {name!r} has shape {str(shape)[:80]}, not {list(spec.shape)}")
        if type(size) is not int or not 0 <= size <= len(rest):
            raise ModelError(f"output {name!r}: binary_data_size is {str(size)[:40]}; {len(rest)} bytes are left")
        found[name] = from_bytes(rest[:size], DATATYPES[spec.dtype], shape or ())
        rest = rest[size:]
    if len(found) != len(specs) or len(rest):
        raise ModelError(f"{len(found)} of {len(specs)} outputs, {len(rest)} bytes too many")
    return [found[spec.name] for spec in signature.outputs]


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
