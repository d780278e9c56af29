"""A server that does on each request what a test tells it: wait, answer whatever bytes, break off."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgesdk import inference_protocol as protocol
from edgesdk_targets.bundle import Bundle

Act = bytes | float | str
"""Bytes are sent, a number is waited for (seconds), "close" and "reset" end the connection."""
Script = Callable[["Asked"], Sequence[Act]]


@dataclass
class Asked:
    """One request as it came: its number over all connections, its head, its JSON, its tensors, and its whole length."""

    number: int
    head: str
    told: dict[str, Any]
    payload: bytes
    size: int


@dataclass
class FakeServer:
    """Listens on a free port of this machine while it is entered."""

    script: Script
    seen: list[Asked] = field(default_factory=list)
    connections: int = 0
    sent_bytes: int = 0
    port: int = 0

    def __enter__(self) -> FakeServer:
        self._socket = socket.create_server(("127.0.0.1", self.port))
        self.port = self._socket.getsockname()[1]
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # it has ended already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for connection in self._open:
            reset(connection)
        self._thread.join(5)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            while (asked := self._read(connection)) is not None:
                for act in self.script(asked):
                    if isinstance(act, bytes):
                        self.sent_bytes += len(act)
                        connection.sendall(act)
                    elif isinstance(act, str):
                        connection.close() if act == "close" else reset(connection)
                        return
                    else:
                        time.sleep(act)
        except OSError:
            return

    def _read(self, connection: socket.socket) -> Asked | None:
        data = b""
        while b"\r\n\r\n" not in data:
            part = connection.recv(65536)
            if not part:
                return None
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head.decode().split("\r\n")[1:])}
        more = 0
        while len(body) < int(headers.get("content-length", 0)):
            part = connection.recv(65536)
            if not part:
                return None
            body += part
            more += len(part)
        end = int(headers.get(protocol.JSON_LENGTH, 0))
        with self._lock:
            asked = Asked(len(self.seen), head.decode(), json.loads(body[:end] or b"{}"), body[end:], len(data) + more)
            self.seen.append(asked)
        return asked


def reset(connection: socket.socket) -> None:
    """Close with RST instead of FIN."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    except OSError:
        return


def message(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    """An HTTP answer; headers may replace the one of its length."""
    lines = {"content-length": str(len(body))} | {name.replace("_", "-"): value for name, value in headers.items()}
    return f"HTTP/1.1 {status}\r\n".encode() + "".join(f"{k}: {v}\r\n" for k, v in lines.items()).encode() + b"\r\n" + body


def outputs(asked: Asked, tail: Bundle, value: np.ndarray, **changes: Any) -> bytes:
    """A right answer to a request, or with changes to its JSON ("output" to that of its output) or its headers."""
    (spec,) = tail.manifest.signature.outputs
    output = {"name": spec.name, "datatype": "FP32", "shape": list(value.shape), "parameters": {"binary_data_size": value.nbytes}}
    headers: dict[str, str] = changes.pop("headers", {})
    output |= changes.pop("output", {})
    extra: bytes = changes.pop("extra", b"")
    told = json.dumps({"id": asked.told.get("id"), "outputs": [output]} | changes).encode()
    body = told + value.tobytes() + extra
    right = {
        "edgesdk_digest": tail.digest,
        "edgesdk_crc32": protocol.checksum(body),
        "inference_header_content_length": str(len(told)),
    }
    return message(body, **(right | headers))


def metadata(tail: Bundle, digest: str = "") -> bytes:
    """What a server says of its model."""
    digest = digest or tail.digest
    return message(json.dumps({"name": tail.manifest.name, "parameters": {"digest": digest}}).encode(), edgesdk_digest=digest)
