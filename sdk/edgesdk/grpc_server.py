"""The gRPC door of a server: inference.GRPCInferenceService of the Open Inference Protocol v2."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters.errors import EdgeError, LinkError, MissingExtra, ModelError

from . import inference_protocol as protocol
from .grpc_messages import SERVICE, message
from .service import WAITING, Busy, Service

try:
    import grpc
    from google.protobuf.message import DecodeError
except ImportError as _error:
    raise MissingExtra("server", "grpcio") from _error

Array = NDArray[Any]
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents", "INT64": "int64_contents",
    "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents",
}  # fmt: skip
_UNREADABLE = object()
_SPARE = 65_536
"""Bytes of a message beside its tensors."""


def grpc_server(service: Service, host: str, port: int, max_body: int, pems: tuple[bytes, bytes] | None) -> tuple[Any, int]:
    """A server that is not started yet, and its port. `pems` are key and certificate.

    Raises LinkError where the port is taken.
    """
    server = grpc.server(
        ThreadPoolExecutor(service.workers + 2, thread_name_prefix="edgesdk-grpc"),
        options=(
            ("grpc.so_reuseport", 0),  # two servers on one port would each get some of the requests
            ("grpc.max_receive_message_length", max_body + _SPARE),
            ("grpc.max_send_message_length", -1),
        ),
        maximum_concurrent_rpcs=WAITING,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, _Calls(service).methods()),))
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if pems is None:
            found = server.add_insecure_port(place)
        else:
            found = server.add_secure_port(place, grpc.ssl_server_credentials([pems]))
    except RuntimeError as error:
        raise LinkError(
            f"cannot listen on {place} for gRPC: it is taken", "give another --grpc-port; --no-grpc for none"
        ) from error
    if not found:
        raise LinkError(f"cannot listen on {place} for gRPC", "give another --host or --grpc-port")
    return server, found


class _Refused(Exception):
    """A call that ends with a status other than OK."""

    def __init__(self, code: Any, told: str) -> None:
        super().__init__(told)
        self.code = code


def _reader(kind: Any) -> Callable[[bytes], Any]:
    """From bytes to a message, or to _UNREADABLE, so that what is none is answered as any other bad request."""

    def read(data: bytes) -> Any:
        try:
            return kind.FromString(data)
        except DecodeError:
            return _UNREADABLE

    return read


class _Calls:
    def __init__(self, service: Service) -> None:
        self._service, self._models = service, service.models
        names = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
        self._request = {name: message(f"{name}Request") for name in names}
        self._response = {name: message(f"{name}Response") for name in names}

    def methods(self) -> dict[str, Any]:
        calls: dict[str, Callable[[Any], Any]] = {
            "ServerLive": lambda _: self._response["ServerLive"](live=True),
            "ServerReady": lambda _: self._response["ServerReady"](ready=self._service.ready),
            "ModelReady": self._model_ready,
            "ServerMetadata": lambda _: self._response["ServerMetadata"](**self._service.server_metadata()),
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._infer,
        }
        return {
            name: grpc.unary_unary_rpc_method_handler(
                self._guarded(name, call), _reader(self._request[name]), self._response[name].SerializeToString
            )
            for name, call in calls.items()
        }

    def _guarded(self, name: str, call: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
        """The call behind the token, with what it raises as a status."""
        is_open = name in ("ServerLive", "ServerReady")

        def answer(request: Any, context: Any) -> Any:
            code, told, service = grpc.StatusCode.OK, "", self._service
            try:
                given = dict(context.invocation_metadata()).get("authorization", "")
                if not is_open and not self._service.allows(given if isinstance(given, bytes) else given.encode()):
                    raise _Refused(grpc.StatusCode.UNAUTHENTICATED, "a bearer token is needed")
                if request is _UNREADABLE:
                    raise _Refused(grpc.StatusCode.INVALID_ARGUMENT, "the message cannot be read")
                service = self._asked(request) or self._service
                context.send_initial_metadata(((protocol.DIGEST, service.digest),))
                response = call(request)
                service.metrics.answered("grpc", code.name, request.ByteSize(), response.ByteSize())
                return response
            except _Refused as refused:
                code, told = refused.code, str(refused)
            except ModelError as error:
                code, told = grpc.StatusCode.INVALID_ARGUMENT, error.message
            except Busy as busy:
                code, told = grpc.StatusCode.RESOURCE_EXHAUSTED, str(busy)
            except EdgeError as error:
                code, told = grpc.StatusCode.INTERNAL, error.message
            service.metrics.answered("grpc", code.name, 0 if request is _UNREADABLE else request.ByteSize())
            return context.abort(code, told)  # raises

        return answer

    def _asked(self, request: Any) -> Service | None:
        """The model that a request names; None where it names none that there is."""
        return self._models.get(getattr(request, "model_name", "") or getattr(request, "name", ""))

    def _model(self, request: Any, version: str) -> Service:
        """The model that a request names, at this version. Ends the call where there is none."""
        service = self._asked(request)
        if service is None or version not in ("", protocol.VERSION):
            name = request.model_name if hasattr(request, "model_name") else request.name
            told = f"there is no model {name[:80]!r} version {version[:20]!r}; {self._service.told_models()}"
            raise _Refused(grpc.StatusCode.NOT_FOUND, told)
        return service

    def _model_ready(self, request: Any) -> Any:
        return self._response["ModelReady"](ready=self._model(request, request.version).ready)

    def _model_metadata(self, request: Any) -> Any:
        told = self._model(request, request.version).model_metadata()
        parameters = told.pop("parameters")
        response = self._response["ModelMetadata"](**told)
        for name, value in parameters.items():
            response.parameters[name].string_param = value
        return response

    def _infer(self, request: Any) -> Any:
        service = self._model(request, request.model_version)
        with service.place():
            wanted = _wanted(service, request)
            outputs = service.infer(_feed(service, request))
        response = self._response["ModelInfer"](model_name=service.name, model_version=protocol.VERSION, id=request.id)
        response.parameters["digest"].string_param = service.digest
        for name in wanted:
            array = outputs[name]
            response.outputs.add(name=name, datatype=protocol.DATATYPES[array.dtype.name], shape=array.shape)
            response.raw_output_contents.append(protocol.to_bytes(array).tobytes())
        return response


def _wanted(service: Service, request: Any) -> list[str]:
    known = [spec.name for spec in service.signature.outputs]
    wanted = [entry.name for entry in request.outputs] or known
    for entry in request.outputs:
        if entry.name not in known:
            _refuse(f"unknown output {entry.name[:80]!r}; the model gives {', '.join(map(repr, known))}")
        _check_parameters(entry.parameters)
    if len(set(wanted)) != len(wanted):
        _refuse("an output is asked for twice")
    return wanted


def _feed(service: Service, request: Any) -> Mapping[str, Array]:
    known = {spec.name: protocol.DATATYPES[spec.dtype] for spec in service.signature.inputs}
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        _refuse(f"{len(request.inputs)} inputs, but {len(raw)} raw_input_contents")
    feed: dict[str, Array] = {}
    for place, entry in enumerate(request.inputs):
        if entry.name not in known:
            _refuse(f"unknown input {entry.name[:80]!r}; the model takes {', '.join(map(repr, known))}")
        if entry.name in feed:
            _refuse(f"input {entry.name!r} is given twice")
        if entry.datatype != known[entry.name]:
            _refuse(f"input {entry.name!r} has datatype {entry.datatype[:20]!r}; the model takes {known[entry.name]}")
        if len(entry.shape) > 32 or any(dim < 0 for dim in entry.shape):
            _refuse(f"input {entry.name!r} has shape {list(entry.shape[:8])}")
        _check_parameters(entry.parameters)
        try:
            if raw:
                feed[entry.name] = protocol.from_bytes(memoryview(raw[place]), entry.datatype, tuple(entry.shape))
            else:
                feed[entry.name] = _from_contents(entry)
        except ModelError as error:
            _refuse(f"input {entry.name!r}: {error.message}")
    return feed


def _from_contents(entry: Any) -> Array:
    """A tensor that came as numbers. Raises ModelError where they are not those of the shape and type."""
    field = _CONTENTS.get(entry.datatype)
    if field is None:
        raise ModelError(f"{entry.datatype} goes in raw_input_contents only")
    values, dtype = getattr(entry.contents, field), protocol.DTYPES[entry.datatype].newbyteorder("=")
    if len(values) != math.prod(entry.shape):
        raise ModelError(f"{field} has {len(values)} values; shape {list(entry.shape)} has {math.prod(entry.shape)}")
    found: Array = np.array(values, {"i": np.int64, "u": np.uint64, "b": np.bool_, "f": np.float64}[dtype.kind])
    if dtype.kind in "iu" and found.size and not (np.iinfo(dtype).min <= found.min() and found.max() <= np.iinfo(dtype).max):
        raise ModelError(f"values beyond {entry.datatype}")
    return found.astype(dtype).reshape(tuple(entry.shape))


def _check_parameters(parameters: Any) -> None:
    for name in parameters:
        if name == "classification" or name.startswith("shared_memory"):
            _refuse("this server knows neither classification nor shared memory")


def _refuse(told: str) -> NoReturn:
    raise ModelError(told)
