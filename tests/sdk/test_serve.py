"""The server: what public clients of the Open Inference Protocol get from it, and what everybody else gets."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import random
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from onnx import TensorProto, helper
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

import edgesdk
from edgesdk import inference_protocol as protocol
from edgesdk import service as services
from edgesdk.grpc_messages import _MESSAGES, message
from edgesdk.http_protocol import _OneWrite
from edgesdk.remote_tail import Remote, RemoteTail
from edgesdk.server import Doors, Server
from edgesdk.service import Service, open_service
from edgesdk_converters.errors import BundleError, DeviceError, LinkError
from edgesdk_targets import runner as runners
from edgesdk_targets.bundle import Bundle, nested, open_bundle
from edgesdk_targets.runner import RunnerFacts

from .conftest import COMMAND, dense, run_here

ANY = Doors(port=0, grpc_port=0)
TYPES = {
    "bool": TensorProto.BOOL, "uint8": TensorProto.UINT8, "uint16": TensorProto.UINT16, "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64, "int8": TensorProto.INT8, "int16": TensorProto.INT16, "int32": TensorProto.INT32,
    "int64": TensorProto.INT64, "float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE,
}  # fmt: skip


@pytest.fixture(scope="module")
def tail(split: Bundle) -> Bundle:
    return nested(split, "tail.edge")


@pytest.fixture(scope="module")
def server(split: Bundle) -> Iterator[Server]:
    with edgesdk.serve(split.path, ANY) as running:
        yield running


@pytest.fixture(scope="module")
def types(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model that gives every type back as it came, in batches of any size."""
    folder = tmp_path_factory.mktemp("types")
    ends = [[helper.make_tensor_value_info(f"{end}_{name}", kind, ["batch", 3]) for name, kind in TYPES.items()] for end in "xy"]
    nodes = [helper.make_node("Identity", [f"x_{name}"], [f"y_{name}"], name=f"n_{name}") for name in TYPES]
    model = helper.make_model(helper.make_graph(nodes, "g", *ends), ir_version=9, opset_imports=[helper.make_opsetid("", 20)])
    onnx.save(model, folder / "types.onnx")
    edgesdk.export(folder / "types.onnx", target="server", out=folder / "types.edge")
    with edgesdk.serve(folder / "types.edge", ANY) as running:
        yield running


def payloads(tail: Bundle, count: int, seed: int = 0) -> list[np.ndarray]:
    (spec,) = tail.manifest.signature.inputs
    return [np.random.default_rng(seed + i).integers(0, 256, spec.shape, np.uint8) for i in range(count)]


def expected(tail: Bundle, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    loaded = runners.load(tail)
    (spec,) = tail.manifest.signature.inputs
    return [loaded.run({spec.name: one})[0] for one in inputs]


def address(server: Server) -> tuple[str, int]:
    host, _, port = server.url.rpartition("//")[2].rpartition(":")
    return host, int(port)


def ask(server: Server, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection(*address(server), timeout=30)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def raw(server: Server, data: bytes, wait: float = 10.0) -> bytes:
    """What comes back until the server closes, for bytes as they are."""
    with socket.create_connection(address(server), timeout=wait) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
        return b"".join(parts)


def one_request(tail: Bundle, value: np.ndarray, **extra: Any) -> tuple[bytes, int]:
    """A binary inference request and the length of its JSON."""
    (spec,) = tail.manifest.signature.inputs
    entry = {"name": spec.name, "shape": list(value.shape), "datatype": "UINT8", "parameters": {"binary_data_size": value.nbytes}}
    told = json.dumps({"id": "7", "parameters": {"binary_data_output": True}, "inputs": [entry]} | extra).encode()
    return told + value.tobytes(), len(told)


# What clients get


def test_health_and_metadata_by_rest(server: Server, tail: Bundle) -> None:
    client = triton_http.InferenceServerClient(server.url.removeprefix("http://"))
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("fashion_cnn") and client.is_model_ready("fashion_cnn", "1")
    assert not client.is_model_ready("another") and not client.is_model_ready("fashion_cnn", "2")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    told = client.get_model_metadata("fashion_cnn", "1")
    assert told["versions"] == ["1"] and told["platform"] == "edgesdk_onnxruntime"
    assert told["inputs"] == [{"name": tail.manifest.signature.inputs[0].name, "datatype": "UINT8", "shape": [1, 2352]}]
    assert told["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [1, 10]}]
    assert told["parameters"]["digest"] == tail.digest == server.service.digest


def test_health_and_metadata_by_grpc(server: Server, tail: Bundle) -> None:
    client = triton_grpc.InferenceServerClient(server.grpc_address)
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("fashion_cnn", "1")
    assert client.get_server_metadata().name == "edgesdk"
    told = client.get_model_metadata("fashion_cnn")
    assert [(t.name, t.datatype, list(t.shape)) for t in told.outputs] == [("logits", "FP32", [1, 10])]
    call = grpc.insecure_channel(server.grpc_address).unary_unary(
        "/inference.GRPCInferenceService/ModelMetadata", message("ModelMetadataRequest").SerializeToString,
        message("ModelMetadataResponse").FromString,
    )  # fmt: skip
    answer, info = call.with_call(message("ModelMetadataRequest")(name="fashion_cnn"))
    assert answer.parameters["digest"].string_param == tail.digest
    assert dict(info.initial_metadata())[protocol.DIGEST] == tail.digest


def test_our_messages_are_those_of_the_protocol() -> None:
    ours_only = {("ModelMetadataResponse", "parameters")}
    seen = set()
    for name in _MESSAGES:
        ours, theirs = message(name).DESCRIPTOR, service_pb2.DESCRIPTOR.pool.FindMessageTypeByName(f"inference.{name}")
        assert ours.full_name == theirs.full_name and ours is not theirs
        known = {field.number: field for field in theirs.fields}
        for field in ours.fields:
            if field.number not in known:
                seen.add((name, field.name))
                continue
            other = known[field.number]
            assert (field.name, field.type, field.is_repeated) == (other.name, other.type, other.is_repeated), name
    assert seen == ours_only


@pytest.mark.parametrize("binary", [True, False])
def test_inference_by_rest(server: Server, tail: Bundle, binary: bool) -> None:
    client = triton_http.InferenceServerClient(server.url.removeprefix("http://"))
    inputs = payloads(tail, 5)
    for one, want in zip(inputs, expected(tail, inputs), strict=True):
        given = triton_http.InferInput(tail.manifest.signature.inputs[0].name, one.shape, "UINT8")
        given.set_data_from_numpy(one, binary_data=binary)
        wanted = triton_http.InferRequestedOutput("logits", binary_data=binary)
        answer = client.infer("fashion_cnn", [given], outputs=[wanted], request_id="a b")
        assert np.array_equal(answer.as_numpy("logits"), want)
        assert answer.get_response()["id"] == "a b" and answer.get_response()["model_version"] == "1"


def test_inference_by_grpc(server: Server, tail: Bundle) -> None:
    client = triton_grpc.InferenceServerClient(server.grpc_address)
    inputs = payloads(tail, 5)
    for one, want in zip(inputs, expected(tail, inputs), strict=True):
        given = triton_grpc.InferInput(tail.manifest.signature.inputs[0].name, one.shape, "UINT8")
        given.set_data_from_numpy(one)
        answer = client.infer("fashion_cnn", [given], request_id="a b")
        assert np.array_equal(answer.as_numpy("logits"), want)
        assert answer.get_response().id == "a b"
        assert answer.get_response().parameters["digest"].string_param == tail.digest


def arrays(rows: int) -> dict[str, np.ndarray]:
    """Values at the ends of every type."""
    rng, found = np.random.default_rng(rows), {}
    for name in TYPES:
        dtype = np.dtype(name)
        if dtype.kind == "f":
            found[name] = (rng.standard_normal((rows, 3)) * 100).astype(dtype)
        else:
            low, high = (0, 1) if name == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
            found[name] = rng.choice(np.array([low, high, 1], np.bool_ if name == "bool" else dtype), (rows, 3))
    return found


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("binary", [True, False])
def test_every_type_goes_there_and_back_by_rest(types: Server, rows: int, binary: bool) -> None:
    client = triton_http.InferenceServerClient(types.url.removeprefix("http://"))
    sent, given = arrays(rows), []
    for name, array in sent.items():
        entry = triton_http.InferInput(f"x_{name}", array.shape, protocol.DATATYPES[name])
        entry.set_data_from_numpy(array, binary_data=binary or name == "float16")
        given.append(entry)
    wanted = [triton_http.InferRequestedOutput(f"y_{name}", binary_data=binary or name == "float16") for name in reversed(sent)]
    answer = client.infer("types", given, outputs=wanted)
    assert [entry["name"] for entry in answer.get_response()["outputs"]] == [f"y_{name}" for name in reversed(sent)]
    for name, array in sent.items():
        got = answer.as_numpy(f"y_{name}")
        assert got.dtype == array.dtype and np.array_equal(got, array), name


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("as_bytes", [True, False])
def test_every_type_goes_there_and_back_by_grpc(types: Server, rows: int, as_bytes: bool) -> None:
    from edgesdk.grpc_server import _CONTENTS

    request, sent = message("ModelInferRequest")(model_name="types"), arrays(rows)
    for name, array in sent.items():
        datatype = protocol.DATATYPES[name]
        entry = request.inputs.add(name=f"x_{name}", datatype=datatype, shape=array.shape)
        if as_bytes:
            request.raw_input_contents.append(array.tobytes())
        elif name == "float16":
            request.inputs.pop()
        else:
            getattr(entry.contents, _CONTENTS[datatype]).extend(array.reshape(-1).tolist())
    call = grpc.insecure_channel(types.grpc_address).unary_unary(
        "/inference.GRPCInferenceService/ModelInfer", message("ModelInferRequest").SerializeToString,
        message("ModelInferResponse").FromString,
    )  # fmt: skip
    if not as_bytes:  # FP16 has no field of its own, so that input is missing
        with pytest.raises(grpc.RpcError) as caught:
            call(request)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT and "missing 'x_float16'" in caught.value.details()
        return
    answer = call(request)
    for entry, data in zip(answer.outputs, answer.raw_output_contents, strict=True):
        name = entry.name.removeprefix("y_")
        assert np.array_equal(np.frombuffer(data, name).reshape(tuple(entry.shape)), sent[name])


def test_numbers_instead_of_bytes_by_grpc(server: Server, tail: Bundle) -> None:
    (one,) = payloads(tail, 1)
    request = message("ModelInferRequest")(model_name="fashion_cnn")
    entry = request.inputs.add(name=tail.manifest.signature.inputs[0].name, datatype="UINT8", shape=one.shape)
    entry.contents.uint_contents.extend(one.reshape(-1).tolist())
    call = grpc.insecure_channel(server.grpc_address).unary_unary(
        "/inference.GRPCInferenceService/ModelInfer", message("ModelInferRequest").SerializeToString,
        message("ModelInferResponse").FromString,
    )  # fmt: skip
    (data,) = call(request).raw_output_contents
    assert np.array_equal(np.frombuffer(data, np.float32).reshape(1, 10), expected(tail, [one])[0])


def test_many_clients_at_once_each_get_their_own_answer(split: Bundle, tail: Bundle) -> None:
    """16 threads by REST and by gRPC, every value compared; the counts of the metrics are the requests."""
    inputs = payloads(tail, 64)
    wants = expected(tail, inputs)
    name = tail.manifest.signature.inputs[0].name
    with edgesdk.serve(split.path, ANY, workers=3) as server:

        def by_rest(start: int) -> int:
            client = triton_http.InferenceServerClient(server.url.removeprefix("http://"))
            right = 0
            for place in range(start, start + 40):
                given = triton_http.InferInput(name, (1, 2352), "UINT8").set_data_from_numpy(inputs[place % 64])
                right += np.array_equal(client.infer("fashion_cnn", [given]).as_numpy("logits"), wants[place % 64])
            return right

        def by_grpc(start: int) -> int:
            client = triton_grpc.InferenceServerClient(server.grpc_address)
            right = 0
            for place in range(start, start + 40):
                given = triton_grpc.InferInput(name, (1, 2352), "UINT8").set_data_from_numpy(inputs[place % 64])
                right += np.array_equal(client.infer("fashion_cnn", [given]).as_numpy("logits"), wants[place % 64])
            return right

        with ThreadPoolExecutor(16) as pool:
            right = sum(pool.map(lambda i: (by_rest if i % 2 else by_grpc)(5 * i), range(16)))
        assert right == 16 * 40
        status, headers, body = ask(server, "GET", "/metrics")
    text = body.decode()
    assert status == 200 and headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'edgesdk_requests_total{model="fashion_cnn",protocol="rest",code="200"} 320' in text
    assert 'edgesdk_requests_total{model="fashion_cnn",protocol="grpc",code="OK"} 320' in text
    assert 'edgesdk_inference_seconds_count{model="fashion_cnn"} 640' in text
    assert 'edgesdk_inferences_waiting{model="fashion_cnn"} 0' in text
    assert f'digest="{tail.digest}"' in text


# What is refused


def changed(tail: Bundle, **extra: Any) -> dict[str, Any]:
    entry = {"name": tail.manifest.signature.inputs[0].name, "shape": [1, 2352], "datatype": "UINT8", "data": [0] * 2352}
    return {"inputs": [entry | extra]}


BAD_INPUTS: dict[str, tuple[dict[str, Any], str]] = {
    "another name": ({"name": "nonsense"}, "unknown input 'nonsense'"),
    "another type": ({"datatype": "FP32"}, "has datatype 'FP32'; the model takes UINT8"),
    "no such type": ({"datatype": "BYTES"}, "has datatype 'BYTES'"),
    "a type that is no text": ({"datatype": 5}, "has datatype 5"),
    "another shape": ({"shape": [2, 1176]}, "has shape (2, 1176); the model takes (1, 2352)"),
    "too few values": ({"data": [0] * 5}, "data has shape [5]; shape says [1, 2352]"),
    "a shape of text": ({"shape": ["1", "2352"]}, "shape must be a list of whole numbers"),
    "a negative shape": ({"shape": [-1, -2352]}, "shape must be a list of whole numbers"),
    "a shape beyond all bounds": ({"shape": [10**30]}, "shape must be a list of whole numbers"),
    "a huge shape": ({"shape": [2**39, 2**39]}, "shape says"),
    "a shape of truths": ({"shape": [True, 2352]}, "shape must be a list of whole numbers"),
    "no shape": ({"shape": None}, "shape must be a list of whole numbers"),
    "a hundred dimensions": ({"shape": [1] * 99 + [2352]}, "shape must be a list of whole numbers"),
    "values beyond the type": ({"data": [256] * 2352}, "data has values beyond UINT8"),
    "negative values": ({"data": [-1] * 2352}, "data has values beyond UINT8"),
    "fractions": ({"data": [0.5] * 2352}, "data holds something else than UINT8"),
    "truths": ({"data": [True] * 2352}, "data holds something else than UINT8"),
    "texts": ({"data": ["a"] * 2352}, "data holds something else than UINT8"),
    "nothing in between": ({"data": [None] * 2352}, "data holds something else than UINT8"),
    "numbers beyond 64 bits": ({"data": [10**30] * 2352}, "data has values beyond UINT8"),
    "ragged": ({"data": [[1, 2], [3]]}, "neither flat nor nested"),
    "an object": ({"data": {"a": 1}}, "data holds something else than UINT8"),
    "nested otherwise": ({"data": [[0] * 1176] * 2}, "data has shape [2, 1176]"),
    "bytes that are not there": ({"data": [], "parameters": {"binary_data_size": 2352}}, "and not both"),
    "shared memory": ({"parameters": {"shared_memory_region": "x"}}, "shared memory"),
    "parameters of text": ({"parameters": "x"}, "parameters must be an object"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_a_bad_input_is_a_400_that_says_what_is_wrong(server: Server, tail: Bundle, case: str) -> None:
    change, told = BAD_INPUTS[case]
    status, headers, body = ask(server, "POST", "/v2/models/fashion_cnn/infer", json.dumps(changed(tail, **change)).encode())
    assert status == 400 and headers["content-type"] == "application/json"
    assert told in json.loads(body)["error"], body


BAD_BODIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not JSON"),
    "no JSON": (b"{", "not JSON"),
    "no object": (b"[1]", "a JSON object is needed; got list"),
    "bottomless": (b"[" * 100_000, "not JSON"),
    "no UTF-8": (b'{"id":"\xff"}', "not JSON"),
    "NaN": (b'{"inputs":NaN}', "NaN is no JSON"),
    "no inputs": (b"{}", "inputs must be a list"),
    "inputs of numbers": (b'{"inputs":[1]}', "inputs must be a list of objects"),
    "none of the inputs": (b'{"inputs":[]}', "missing 'max_pool2d/payload'"),
    "id of a number": (b'{"id":1,"inputs":[]}', "id must be a string"),
    "a number of a million digits": (b'{"inputs":' + b"1" * 10_000 + b"}", "not JSON"),
    "outputs of text": (b'{"inputs":[],"outputs":"x"}', "outputs must be a list"),
    "an output nobody has": (b'{"inputs":[],"outputs":[{"name":"x"}]}', "unknown output 'x'"),
    "an output twice": (b'{"inputs":[],"outputs":[{"name":"logits"},{"name":"logits"}]}', "asked for twice"),
    "classes": (b'{"inputs":[],"outputs":[{"name":"logits","parameters":{"classification":3}}]}', "neither classification"),
}


@pytest.mark.parametrize("case", BAD_BODIES)
def test_a_bad_body_is_a_400_that_says_what_is_wrong(server: Server, case: str) -> None:
    body, told = BAD_BODIES[case]
    status, _, answer = ask(server, "POST", "/v2/models/fashion_cnn/infer", body)
    assert status == 400 and told in json.loads(answer)["error"], answer


def test_binary_lengths_that_do_not_add_up(server: Server, tail: Bundle) -> None:
    (one,) = payloads(tail, 1)
    body, length = one_request(tail, one)
    path, header = "/v2/models/fashion_cnn/infer", "Inference_Header_Content_Length"
    for sent, told, words in (
        (body, str(length + 1), "not JSON"),
        (body, str(len(body) + 1), "the body has"),
        (body, "-1", "a number of bytes is needed"),
        (body, "1e2", "a number of bytes is needed"),
        (body, "9" * 40, "a number of bytes is needed"),
        (body[:-1], str(length), "2351 bytes are left"),
        (body + b"x", str(length), "1 bytes follow the last tensor"),
    ):
        status, _, answer = ask(server, "POST", path, sent, **{header: told})
        assert status == 400 and words in json.loads(answer)["error"], answer
    assert ask(server, "POST", path, body, **{header: str(length)})[0] == 200
    status, _, answer = ask(server, "POST", path, body, **{header: str(length), "edgesdk_crc32": "00000000"})
    assert status == 400 and "not what was sent" in json.loads(answer)["error"]
    assert ask(server, "POST", path, body, **{header: str(length), "edgesdk_crc32": protocol.checksum(body)})[0] == 200


def test_places_and_methods_that_are_none(server: Server) -> None:
    for method, path, status in (
        ("GET", "/", 404), ("GET", "/v3", 404), ("GET", "/v2/models/another", 404),
        ("GET", "/v2/models/fashion_cnn/versions/2", 404), ("GET", "/v2/models/fashion_cnn/infer", 405), ("POST", "/v2", 405),
        ("DELETE", "/v2/models/fashion_cnn", 405),
        ("POST", "/v2/models/fashion_cnn/versions/1/infer/x", 404), ("GET", "/%00%ff", 404), ("GET", "/v2/health/other", 404),
        ("POST", "/v2/repository/models/fashion_cnn/load", 404),
    ):  # fmt: skip
        found, headers, body = ask(server, method, path)
        assert found == status and list(json.loads(body)) == ["error"], (path, found, body)
        assert status != 405 or headers["allow"] in ("GET", "POST")
    assert ask(server, "HEAD", "/v2")[0] == 200 and ask(server, "GET", "/v2/")[0] == 200


def test_a_body_too_large_is_a_413_and_the_sender_can_read_it(server: Server) -> None:
    limit = server.service.largest_request()
    assert limit == 1_000_000
    status, headers, body = ask(server, "POST", "/v2/models/fashion_cnn/infer", b"x" * (limit + 1))
    assert status == 413 and "allowed: 1000000" in json.loads(body)["error"] and headers["connection"] == "close"
    head = b"POST /v2/models/fashion_cnn/infer HTTP/1.1\r\nHost: x\r\n"
    assert b" 413 " in raw(server, head + b"Content-Length: 99999999999\r\n\r\n").split(b"\r\n")[0]
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n" + (b"10000\r\n" + b"x" * 65536 + b"\r\n") * 20 + b"0\r\n\r\n"
    assert b" 413 " in raw(server, chunked).split(b"\r\n")[0]
    assert ask(server, "POST", "/v2/models/fashion_cnn/infer", b"{}", Content_Encoding="gzip")[0] == 415


def test_a_body_in_chunks_is_a_body(server: Server, tail: Bundle) -> None:
    (one,) = payloads(tail, 1)
    body, length = one_request(tail, one)
    parts = b"".join(b"%x\r\n" % len(body[i : i + 700]) + body[i : i + 700] + b"\r\n" for i in range(0, len(body), 700))
    head = b"POST /v2/models/fashion_cnn/infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"
    answer = raw(server, head + b"Inference-Header-Content-Length: %d\r\n\r\n" % length + parts + b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(expected(tail, [one])[0].tobytes())


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x00" * 200, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
        b"hello there\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", b"POST /v2 HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /v2 HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nContent-Length: five\r\n\r\nhello",
        b"POST /v2/models/fashion_cnn/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v2/models/fashion_cnn/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n", b"GET / HTTP/1.1\r\n: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"CONNECT x:1 HTTP/1.1\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_http_is_a_clean_400(server: Server, data: bytes) -> None:
    head, _, body = raw(server, data).partition(b"\r\n\r\n")
    status = int(head.split(b" ")[1])
    assert status in (400, 404, 405) and list(json.loads(body)) == ["error"], (head, body)
    assert ask(server, "GET", "/v2/health/ready")[0] == 200


def test_headers_without_end_are_cut_off(server: Server) -> None:
    answer = raw(server, b"GET /v2 HTTP/1.1\r\n" + b"x: y\r\n" * 20_000)
    assert answer.startswith(b"HTTP/1.1 431 ") and b'"error"' in answer


def test_random_damage_never_hurts(server: Server, tail: Bundle) -> None:
    """300 requests with bytes changed, cut off or put in: an answer is right or a refusal, and none is the server's fault."""
    (one,) = payloads(tail, 1)
    body, length = one_request(tail, one)
    head = f"POST /v2/models/fashion_cnn/infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    good = f"{head}Inference-Header-Content-Length: {length}\r\nedgesdk-crc32: {protocol.checksum(body)}\r\n\r\n".encode() + body
    want, rng, codes = expected(tail, [one])[0].tobytes(), random.Random(3), []
    for _ in range(300):
        data = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(data)) if rng.random() < 0.3 else rng.randrange(400)
            kind = rng.random()
            if kind < 0.6:
                data[place] = rng.randrange(256)
            elif kind < 0.8:
                del data[place : place + rng.randint(1, 9)]
            else:
                data[place:place] = rng.randbytes(rng.randint(1, 9))
        answer = raw(server, bytes(data))
        code = int(answer.split(b" ")[1]) if answer else 0
        codes.append(code)
        assert code != 200 or answer.endswith(want) or b'"outputs"' not in answer
    assert not any(code >= 500 for code in codes), codes
    assert codes.count(400) > 50
    assert raw(server, good).endswith(want)


def test_slow_senders_are_told_so_and_cost_nobody_else_anything(split: Bundle) -> None:
    with edgesdk.serve(split.path, Doors(port=0, grpc_port=None, read_seconds=0.5)) as server:
        starts = [
            b"",
            b"G",
            b"GET /v2 HTTP/1.1\r\nHost:",
            b"\r\n",
            b"POST /v2/models/fashion_cnn/infer HTTP/1.1\r\nContent-Length: 9\r\n\r\n{",
        ]
        slow = [socket.create_connection(address(server), timeout=20) for _ in starts]
        for connection, start in zip(slow, starts, strict=True):
            connection.sendall(start)
        assert ask(server, "GET", "/v2/health/live")[0] == 200
        for connection in slow:
            answer = b""
            while part := connection.recv(4096):
                answer += part
            assert answer.startswith(b"HTTP/1.1 408 ") and b"within 0.5 s" in answer
            connection.close()
        assert ask(server, "GET", "/v2/health/live")[0] == 200


def test_requests_one_after_another_on_one_connection(server: Server, tail: Bundle) -> None:
    """Good and bad ones in turn, and two sent at once."""
    (one,) = payloads(tail, 1)
    body, length = one_request(tail, one)
    connection = http.client.HTTPConnection(*address(server), timeout=30)
    for turn in range(20):
        headers = {"Inference-Header-Content-Length": str(length)} if turn % 2 else {}
        connection.request("POST", "/v2/models/fashion_cnn/infer", body, headers)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == (200 if turn % 2 else 400)
    connection.close()
    answer_bytes = raw(
        server, b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\nGET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    assert answer_bytes.count(b"HTTP/1.1 200 OK") == 2


def call_infer(server: Server, data: bytes) -> tuple[Any, str]:
    """The status of a gRPC call whose message are these bytes."""
    with grpc.insecure_channel(server.grpc_address) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer", lambda sent: sent, lambda got: got)
        try:
            call(data, timeout=30)
        except grpc.RpcError as error:
            return error.code(), error.details() or ""  # type: ignore[attr-defined]
    return grpc.StatusCode.OK, ""


def test_bad_grpc_requests_end_in_a_status_that_says_why(server: Server, tail: Bundle) -> None:
    name = tail.manifest.signature.inputs[0].name
    make = message("ModelInferRequest")

    def request(raw_bytes: Sequence[bytes] = (b"\0" * 2352,), model: str = "fashion_cnn", **entry: Any) -> bytes:
        given = {"name": name, "datatype": "UINT8", "shape": [1, 2352]} | entry
        return make(model_name=model, inputs=[given], raw_input_contents=raw_bytes).SerializeToString()  # type: ignore[no-any-return]

    bad = grpc.StatusCode.INVALID_ARGUMENT
    for data, code, told in (
        (b"\xff\xff\xff", bad, "cannot be read"),
        (b"", grpc.StatusCode.NOT_FOUND, "there is no model ''"),
        (request(model="other"), grpc.StatusCode.NOT_FOUND, "there is no model 'other'"),
        (request(name="other"), bad, "unknown input 'other'"),
        (request(datatype="FP32"), bad, "the model takes UINT8"),
        (request(shape=[1, -2352]), bad, "has shape"),
        (request(shape=[2352]), bad, "has shape (2352,); the model takes (1, 2352)"),
        (request(shape=[2**40, 2**40]), bad, "is 1208925819614629174706176 bytes; got 2352"),
        (request([b"\0" * 5]), bad, "got 5"),
        (request([]), bad, "uint_contents has 0 values"),
        (request([b"", b""]), bad, "1 inputs, but 2 raw_input_contents"),
        (make(model_name="fashion_cnn").SerializeToString(), bad, f"missing {name!r}"),
    ):
        assert call_infer(server, data) == (code, (found := call_infer(server, data)[1])) and told in found, (data, found)
    rng = random.Random(5)
    good = request()
    for _ in range(100):
        data = bytearray(good)
        data[rng.randrange(60)] = rng.randrange(256)
        assert call_infer(server, bytes(data))[0] in (grpc.StatusCode.OK, bad, grpc.StatusCode.NOT_FOUND)
    too_much = request([b"\0" * 3_000_000])
    assert call_infer(server, too_much)[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert call_infer(server, good)[0] == grpc.StatusCode.OK


def test_values_that_json_cannot_hold_are_refused_and_go_as_bytes(types: Server) -> None:
    sent = arrays(1) | {"float32": np.array([[np.nan, np.inf, 1]], np.float32)}
    client = triton_http.InferenceServerClient(types.url.removeprefix("http://"))
    given = [triton_http.InferInput(f"x_{n}", a.shape, protocol.DATATYPES[n]).set_data_from_numpy(a) for n, a in sent.items()]
    answer = client.infer("types", given, outputs=[triton_http.InferRequestedOutput("y_float32", binary_data=True)])
    assert np.array_equal(answer.as_numpy("y_float32"), sent["float32"], equal_nan=True)
    with pytest.raises(InferenceServerException, match="NaN or infinity"):
        client.infer("types", given, outputs=[triton_http.InferRequestedOutput("y_float32", binary_data=False)])


# Who may ask


def test_with_a_token_only_health_is_for_everybody(split: Bundle, tail: Bundle) -> None:
    (one,) = payloads(tail, 1)
    body, length = one_request(tail, one)
    infer = ("POST", "/v2/models/fashion_cnn/infer", body)
    with edgesdk.serve(split.path, ANY, token="s3cret") as server:
        assert ask(server, "GET", "/v2/health/live")[0] == ask(server, "GET", "/v2/health/ready")[0] == 200
        for token in ("", "Bearer", "Bearer s3cre", "Bearer s3crets", "Basic s3cret", "s3cret"):
            for method, path, data in (
                infer,
                ("GET", "/v2", b""),
                ("GET", "/metrics", b""),
                ("GET", "/v2/models/fashion_cnn", b""),
            ):
                status, headers, answer = ask(server, method, path, data, Authorization=token)
                assert status == 401 and headers["www-authenticate"] == "Bearer" and "token" in json.loads(answer)["error"]
        status, _, answer = ask(server, *infer, Authorization="Bearer s3cret", Inference_Header_Content_Length=str(length))
        assert status == 200 and answer.endswith(expected(tail, [one])[0].tobytes())
        client = triton_grpc.InferenceServerClient(server.grpc_address)
        assert client.is_server_live()
        given = triton_grpc.InferInput(tail.manifest.signature.inputs[0].name, (1, 2352), "UINT8").set_data_from_numpy(one)
        for wrong in ({}, {"authorization": "Bearer s3cre"}):
            with pytest.raises(InferenceServerException) as caught:
                client.infer("fashion_cnn", [given], headers=wrong)
            assert caught.value.status() == "StatusCode.UNAUTHENTICATED"
        assert client.infer("fashion_cnn", [given], headers={"authorization": "Bearer s3cret"}).as_numpy("logits").shape == (
            1,
            10,
        )


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


def test_tls_at_both_ports(split: Bundle, tail: Bundle, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    (one,) = payloads(tail, 1)
    want = expected(tail, [one])[0]
    name = tail.manifest.signature.inputs[0].name
    with edgesdk.serve(split.path, Doors(port=0, grpc_port=0, certificate=str(cert), key=str(key))) as server:
        assert server.url.startswith("https://127.0.0.1:")
        assert raw(server, b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")[:5] != b"HTTP/"
        connection = http.client.HTTPSConnection(
            *address(server), timeout=30, context=ssl.create_default_context(cafile=str(cert))
        )
        body, length = one_request(tail, one)
        connection.request("POST", "/v2/models/fashion_cnn/infer", body, {"Inference-Header-Content-Length": str(length)})
        assert connection.getresponse().read().endswith(want.tobytes())
        connection.close()
        client = triton_grpc.InferenceServerClient(server.grpc_address, ssl=True, root_certificates=str(cert))
        given = triton_grpc.InferInput(name, (1, 2352), "UINT8").set_data_from_numpy(one)
        assert np.array_equal(client.infer("fashion_cnn", [given]).as_numpy("logits"), want)
        with edgesdk.load(split.path, remote=server.url, ca=str(cert), on_late="error", deadline_ms=10_000) as session:
            image = np.zeros((1, 1, 28, 28), np.float32)
            with edgesdk.load(split.path) as local:
                assert np.array_equal(session.run({"image": image})["logits"], local.run({"image": image})["logits"])
        with pytest.raises(LinkError, match="certificate verify failed"):
            edgesdk.load(split.path, remote=server.url, on_late="error")


def test_it_listens_to_this_machine_alone_unless_told_otherwise(server: Server) -> None:
    assert Doors().host == "127.0.0.1" and server.url.startswith("http://127.0.0.1:")
    with socket.socket() as probe, pytest.raises(OSError):  # 127.0.0.2 is this machine too, and another address
        probe.settimeout(5)
        probe.connect(("127.0.0.2", address(server)[1]))


def test_a_name_of_any_characters_is_found(tmp_path: Path) -> None:
    name = 'a model\u00e4 100%+"x'
    onnx.save(dense(np.eye(4)), tmp_path / f"{name}.onnx")
    made = edgesdk.export(tmp_path / f"{name}.onnx", target="server", out=tmp_path / "m.edge")
    x = np.arange(4, dtype=np.float32)[None]
    with edgesdk.serve(made.path, ANY) as server:
        client = triton_http.InferenceServerClient(server.url.removeprefix("http://"))
        given = triton_http.InferInput("x", x.shape, "FP32").set_data_from_numpy(x)
        assert client.is_model_ready(name) and np.array_equal(client.infer(name, [given]).as_numpy("y"), x)
        far = RemoteTail(Remote(server.url, 10_000), made)
        far.connect()
        assert np.array_equal(far.run({"x": x})[0], x)
        far.close()
        text = ask(server, "GET", "/metrics")[2].decode()
        assert 'edgesdk_inference_seconds_count{model="a model\u00e4 100%+\\"x"} 2' in text


def test_metrics_are_what_prometheus_reads(server: Server) -> None:
    """Each line a comment or a sample; buckets never fall and end at the count; names as they should be."""
    buckets: list[int] = []
    for line in ask(server, "GET", "/metrics")[2].decode().splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# (HELP edgesdk_\w+ \S.*|TYPE edgesdk_\w+ (gauge|counter|histogram))", line), line
            continue
        match = re.fullmatch(r'(edgesdk_\w+)\{(\w+="[^"]*"(?:,\w+="[^"]*")*)\} (\d+(?:\.\d+)?)', line)
        assert match is not None, line
        if match[1].endswith("_bucket"):
            buckets.append(int(match[3]))
        if match[1].endswith("_seconds_count"):
            assert int(match[3]) == buckets[-1]
    assert buckets == sorted(buckets) and len(buckets) == 14


# How it begins and ends


class Gated:
    """A runner that waits for a gate before it answers, and says when it has begun."""

    def __init__(self, inner: runners.Runner) -> None:
        self.inner, self.facts = inner, RunnerFacts("gated", "1", ("here",))
        self.begun, self.gate = threading.Semaphore(0), threading.Event()

    def run(self, feed: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        self.begun.release()
        assert self.gate.wait(60)
        return self.inner.run(feed)

    def run_into(self, feed: Mapping[str, np.ndarray], out: Mapping[str, np.ndarray]) -> None:
        raise NotImplementedError

    def count_nodes(self, feed: Mapping[str, np.ndarray]) -> Mapping[str, int]:
        return {}

    def close(self) -> None:
        self.inner.close()


def gated(tail: Bundle, workers: int) -> tuple[Service, Gated]:
    runner = Gated(runners.load(tail))
    return Service(tail, runner, workers), runner  # type: ignore[arg-type]


def test_stopping_answers_what_is_in_flight(tail: Bundle) -> None:
    (one,) = payloads(tail, 1)
    body, length = one_request(tail, one)
    service, runner = gated(tail, 1)
    server = Server(service, Doors(port=0, grpc_port=0))
    with ThreadPoolExecutor(4) as pool:
        header = {"Inference_Header_Content_Length": str(length)}
        by_rest = pool.submit(ask, server, "POST", "/v2/models/fashion_cnn/infer", body, **header)
        client = triton_grpc.InferenceServerClient(server.grpc_address)
        given = triton_grpc.InferInput(tail.manifest.signature.inputs[0].name, (1, 2352), "UINT8").set_data_from_numpy(one)
        assert runner.begun.acquire(timeout=30)
        by_grpc = pool.submit(client.infer, "fashion_cnn", [given])
        while service.metrics._waiting < 2:
            time.sleep(0.01)
        stopping = pool.submit(server.stop)
        while service.ready:
            time.sleep(0.01)
        runner.gate.set()
        stopping.result(30)
        want = expected(tail, [one])[0]
        assert by_rest.result(30)[0] == 200 and by_rest.result()[2].endswith(want.tobytes())
        assert np.array_equal(by_grpc.result(30).as_numpy("logits"), want)
    with pytest.raises(OSError):
        ask(server, "GET", "/v2")


def test_what_is_too_much_is_turned_away_and_the_rest_is_answered(tail: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "WAITING", 4)
    (one,) = payloads(tail, 1)
    body, length = one_request(tail, one)
    service, runner = gated(tail, 2)
    with Server(service, Doors(port=0, grpc_port=None)) as server, ThreadPoolExecutor(12) as pool:
        header = {"Inference_Header_Content_Length": str(length)}
        asked = [pool.submit(ask, server, "POST", "/v2/models/fashion_cnn/infer", body, **header) for _ in range(12)]
        while sum(one.done() for one in asked) < 8:
            time.sleep(0.01)
        assert ask(server, "GET", "/v2/health/ready")[0] == 200
        runner.gate.set()
        codes = sorted(one.result(30)[0] for one in asked)
    assert codes == [200] * 4 + [503] * 8


def test_the_command_serves_until_it_is_told_to_stop(split: Bundle, tail: Bundle, tmp_path: Path) -> None:
    (one,) = payloads(tail, 1)
    for number in (signal.SIGTERM, signal.SIGINT):
        process = subprocess.Popen(
            [*COMMAND, "serve", str(split.path), "--port", "0", "--grpc-port", "0", "--json"], cwd=tmp_path,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        lines = []
        while not lines or lines[-1] != "}\n":
            lines.append(process.stdout.readline())
        told = json.loads("".join(lines))
        assert told["digest"] == tail.digest and told["role"] == "tail" and told["tls"] is False
        client = triton_http.InferenceServerClient(told["rest"].removeprefix("http://"))
        given = triton_http.InferInput(tail.manifest.signature.inputs[0].name, (1, 2352), "UINT8").set_data_from_numpy(one)
        assert np.array_equal(client.infer("fashion_cnn", [given]).as_numpy("logits"), expected(tail, [one])[0])
        assert triton_grpc.InferenceServerClient(told["grpc"]).is_server_ready()
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0 and "Traceback" not in err and "every request that had come was answered" in err, err


def test_what_cannot_be_served_is_one_line(split: Bundle, tmp_path: Path, certificate: tuple[Path, Path], server: Server) -> None:
    taken = address(server)[1]
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "spaces").write_text("a b\n")
    for line, hint in (
        (f"--port {taken}", "give another --host or --port; 0 is any free port"),
        (f"--port 0 --grpc-port {taken}", "give another --host or --grpc-port; 0 is any free port"),
    ):
        assert run_here(f"serve {split.path} {line} --check", tmp_path).error["hint"] == hint
    for line, kind, told in (
        ("nothing.edge", "BundleError", "nothing.edge"),
        (f"{split.path}/head.edge", "DeviceError", "is the head of a split model"),
        (f"{split.path} --port {taken}", "LinkError", "Address already in use"),
        (f"{split.path} --port 0 --grpc-port {taken}", "LinkError", f"port {taken}: Address already in use"),
        (f"{split.path} --host no.such.host.invalid", "LinkError", "cannot listen on 'no.such.host.invalid'"),
        (f"{split.path} --tls-cert {certificate[0]}", "LinkError", "a certificate and its key"),
        (f"{split.path} --port 0 --tls-cert {certificate[1]} --tls-key {certificate[0]}", "LinkError", "cannot be used for TLS"),
        (f"{split.path} --port 0 --tls-cert x --tls-key y", "LinkError", "cannot be used for TLS"),
        (f"{split.path} --token-file x", "DeviceError", "cannot be read"),
        (f"{split.path} --token-file empty", "DeviceError", "is empty"),
        (f"{split.path} --token-file spaces", "DeviceError", "has spaces"),
    ):
        done = run_here(f"serve {line} --check", tmp_path)
        assert done.code == 1, done.err
        assert done.error["kind"] == kind and told in done.error["message"], done.err


def test_a_fallback_is_asked_for_and_told(folder: Path) -> None:
    done = run_here("serve jetson.edge --port 0 --no-grpc --check", folder)
    assert done.error["kind"] == "DeviceError" and "TensorrtExecutionProvider" in done.error["message"]
    done = run_here("serve jetson.edge --port 0 --no-grpc --check --allow-fallback", folder)
    assert done.code == 0 and "warning: TensorrtExecutionProvider is missing; serving on" in done.err, done.err


def test_only_types_of_the_protocol_are_served(split: Bundle) -> None:
    bundle = open_bundle(split.path)
    strange = Bundle(bundle.path, _with_dtype(nested(bundle, "tail.edge"), "bfloat16"), None)
    with pytest.raises(BundleError, match="is bfloat16; the protocol carries"):
        protocol.check_signature(strange.manifest.signature, "strange.edge")
    with pytest.raises(DeviceError, match="workers is 0"):
        open_service(split.path, workers=0)


def _with_dtype(bundle: Bundle, dtype: str) -> Any:
    from dataclasses import replace

    signature = bundle.manifest.signature
    return replace(bundle.manifest, signature=replace(signature, inputs=(replace(signature.inputs[0], dtype=dtype),)))


def test_without_its_packages_serving_says_what_to_install(split: Bundle) -> None:
    code = f"""
import sys
for name in ("uvicorn", "grpc"):
    sys.modules[name] = None
import edgesdk
try:
    edgesdk.serve({str(split.path)!r})
except ImportError as error:
    print(type(error).__name__, error.hint)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.stdout.startswith("MissingExtra ") and "[server]" in done.stdout, done.stderr


def test_an_answer_is_one_write_and_who_does_not_read_it_is_cut_off() -> None:
    class Written:
        def __init__(self) -> None:
            self.parts: list[bytes] = []

        def write(self, data: bytes) -> None:
            self.parts.append(bytes(data))

        def close(self) -> None:
            self.parts.append(b"closed")

        def get_write_buffer_size(self) -> int:
            return 1

        def abort(self) -> None:
            self.parts.append(b"aborted")

    async def answers() -> list[bytes]:
        inner = Written()
        transport = _OneWrite(inner, 0.01)  # type: ignore[arg-type]
        for data in (
            b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", b"ok",
            b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 a body\r\n\r\n",
            b"HTTP/1.1 204 to HEAD\r\n\r\n",
        ):  # fmt: skip
            transport.write(data)
        await asyncio.sleep(0)
        transport.write(b"HTTP/1.1 204 last\r\n\r\n")
        transport.close()
        await asyncio.sleep(0.1)
        return inner.parts

    assert asyncio.run(answers()) == [
        b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 a body\r\n\r\n",
        b"HTTP/1.1 204 to HEAD\r\n\r\n", b"HTTP/1.1 204 last\r\n\r\n", b"closed", b"aborted",
    ]  # fmt: skip
