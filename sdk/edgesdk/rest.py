"""The REST door of a server: an ASGI application that speaks Open Inference Protocol v2."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from edgesdk_converters.errors import EdgeError, ModelError

from . import inference_protocol as protocol
from .service import Busy, Service

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = Mapping[bytes, bytes]
_JSON = b"application/json"
_DISCARDED = 64_000_000
"""Bytes of a body too large that are read and dropped, so that its sender is there to read why; beyond, it is cut off."""


class Gone(Exception):
    """The client has left before its request was complete."""


@dataclass(frozen=True)
class Answer:
    """What goes back: status, body, its type, and further headers."""

    status: int
    body: bytes = b""
    kind: bytes = _JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Refused(Exception):
    """A request that gets no inference; `answer` says why."""

    def __init__(self, status: int, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(message)
        self.answer = Answer(status, json.dumps({"error": message}).encode(), headers=headers)


class RestApplication:
    """ASGI 3. Inference and the reading of its tensors run in `pool`; `max_body` is in bytes."""

    def __init__(self, service: Service, pool: Executor, max_body: int) -> None:
        self._service, self._pool, self._max_body = service, pool, max_body
        self._models = {name.encode(): model for name, model in service.models.items()}

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = tuple(unquote_to_bytes(part) for part in scope["raw_path"].strip(b"/").split(b"/"))
        asked = self._models.get(path[2]) if path[:2] == (b"v2", b"models") and len(path) > 2 else None
        service = asked or self._service
        try:
            answer = await self._answer(path, asked, scope, receive)
        except Gone:
            return
        except Refused as refused:
            answer = refused.answer
        length = dict(scope["headers"]).get(b"content-length", b"0")
        service.metrics.answered("rest", str(answer.status), received=int(length), sent=len(answer.body))
        headers = [
            (b"content-type", answer.kind), (b"content-length", b"%d" % len(answer.body)),
            (protocol.DIGEST.encode(), service.digest.encode()), *answer.headers,
        ]  # fmt: skip
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _answer(self, path: tuple[bytes, ...], asked: Service | None, scope: Mapping[str, Any], receive: Receive) -> Answer:
        headers: Headers = dict(scope["headers"])
        if path[:2] == (b"v2", b"health") and len(path) == 3 and path[2] in (b"live", b"ready"):
            _only(scope, "GET", "HEAD")
            live = path[2] == b"live" or self._service.ready
            return _json({path[2].decode(): live}, 200 if live else 503)
        if not self._service.allows(headers.get(b"authorization", b"")):
            raise Refused(401, "a bearer token is needed", ((b"www-authenticate", b"Bearer"),))
        if path == (b"metrics",):
            _only(scope, "GET", "HEAD")
            return Answer(200, self._service.metrics_text().encode(), b"text/plain; version=0.0.4; charset=utf-8")
        if path == (b"v2",):
            _only(scope, "GET", "HEAD")
            return _json(self._service.server_metadata())
        if path[:2] == (b"v2", b"models"):
            return await self._model(path[3:], asked, scope, receive)
        raise Refused(404, f"there is nothing at {_shown(scope['raw_path'])}")

    async def _model(
        self, path: tuple[bytes, ...], service: Service | None, scope: Mapping[str, Any], receive: Receive
    ) -> Answer:
        """What is asked of a model; `path` is what follows its name."""
        if path[:2] == (b"versions", protocol.VERSION.encode()):
            path = path[2:]
        if service is not None and path == ():
            _only(scope, "GET", "HEAD")
            return _json(service.model_metadata())
        if service is not None and path == (b"ready",):
            _only(scope, "GET", "HEAD")
            return _json({"name": service.name, "ready": service.ready}, 200 if service.ready else 503)
        if service is not None and path == (b"infer",):
            _only(scope, "POST")
            return await self._infer(service, dict(scope["headers"]), receive)
        raise Refused(404, f"there is nothing at {_shown(scope['raw_path'])}; {self._service.told_models()}")

    async def _infer(self, service: Service, headers: Headers, receive: Receive) -> Answer:
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise Refused(415, "compressed bodies are not taken; send the tensors as they are")
        length = headers.get(protocol.JSON_LENGTH.encode())
        if length is not None and not (length.isdigit() and len(length) < 16):
            raise Refused(400, f"{protocol.JSON_LENGTH} is {_shown(length)}; a number of bytes is needed")
        body = await self._body(headers, receive)
        json_bytes, checksum = None if length is None else int(length), headers.get(protocol.CHECKSUM.encode())
        try:
            with service.place():
                answer = functools.partial(_run, service, body, json_bytes, checksum)
                return await asyncio.get_running_loop().run_in_executor(self._pool, answer)
        except Busy as busy:
            raise Refused(503, str(busy), ((b"retry-after", b"1"),)) from busy

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body. How long it may take is watched where the socket is read."""
        declared = int(headers.get(b"content-length", b"0"))
        if declared > _DISCARDED + self._max_body:
            raise self._too_large(declared)
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Gone("the client has left")
            part = message.get("body", b"")
            size += len(part)
            if size <= self._max_body:
                parts.append(part)
            elif size > _DISCARDED + self._max_body:
                raise self._too_large(size)
            if not message.get("more_body", False):
                break
        if size > self._max_body:
            raise self._too_large(size)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _too_large(self, size: int) -> Refused:
        return Refused(413, f"the body has {size} bytes or more; allowed: {self._max_body}", ((b"connection", b"close"),))


def _run(service: Service, body: bytes, json_bytes: int | None, checksum: bytes | None) -> Answer:
    """One inference, from the bytes of its request to those of its answer."""
    if checksum is not None and checksum != protocol.checksum(body).encode():
        raise Refused(400, f"the body is not what was sent: {protocol.CHECKSUM} says {_shown(checksum)}")
    try:
        request = protocol.read_request(body, json_bytes, service.signature)
        told, length = protocol.write_response(request, service.infer(request.feed), service.name)
    except ModelError as error:
        raise Refused(400, error.message) from error
    except EdgeError as error:
        raise Refused(500, error.message) from error
    if length is None:
        return Answer(200, told)
    added = ((protocol.JSON_LENGTH.encode(), b"%d" % length), (protocol.CHECKSUM.encode(), protocol.checksum(told).encode()))
    return Answer(200, told, b"application/octet-stream", added)


def _only(scope: Mapping[str, Any], *methods: str) -> None:
    if scope["method"] not in methods:
        raise Refused(405, f"{scope['method']} is not answered here; allowed: {methods[0]}", ((b"allow", methods[0].encode()),))


def _json(data: Mapping[str, Any], status: int = 200) -> Answer:
    return Answer(status, json.dumps(data).encode())


def _shown(raw: bytes) -> str:
    return repr(raw[:80].decode("ascii", "replace"))
