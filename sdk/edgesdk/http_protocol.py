"""What uvicorn's HTTP leaves open: slow and broken requests end in a clean answer, and each answer is one write."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from edgesdk_converters.errors import MissingExtra

try:
    import httptools
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError as _error:
    raise MissingExtra("server", "uvicorn and httptools") from _error

if TYPE_CHECKING:
    from uvicorn.config import Config

__all__ = ["limited_protocol"]

_LONGEST_HEAD = 65_536
"""Bytes of a request line and its headers."""


def limited_protocol(read_seconds: float, connections: int) -> type[asyncio.Protocol]:
    """The class that serves one connection: a request must have come within `read_seconds` of its first byte, and of no more
    connections than `connections` at once.
    """

    class Limited(_Limited):
        _seconds = read_seconds
        _most = connections

    return Limited


class _OneWrite(asyncio.Transport):
    """A transport in which the head of an answer waits for its body: with two writes the body would be a packet of its own."""

    def __init__(self, inner: asyncio.Transport, seconds: float) -> None:
        super().__init__()
        self._inner = inner
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._head = b""

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        is_head = not self._head and bytes(data[:9]) == b"HTTP/1.1 " and bytes(data[-4:]) == b"\r\n\r\n"
        if is_head and bytes(data[9:12]) != b"100":
            self._head = bytes(data)
            self._loop.call_soon(self._flush)  # for answers without a body
            return
        head, self._head = self._head, b""
        self._inner.write(head + data if head else data)

    def close(self) -> None:
        self._flush()
        self._inner.close()
        if self._inner.get_write_buffer_size():  # who does not read must not keep the connection for ever
            self._loop.call_later(self._seconds, self._inner.abort)

    def _flush(self) -> None:
        if self._head:
            self._inner.write(self._head)
            self._head = b""

    def abort(self) -> None:
        self._inner.abort()

    def is_closing(self) -> bool:
        return self._inner.is_closing()

    def pause_reading(self) -> None:
        self._inner.pause_reading()

    def resume_reading(self) -> None:
        self._inner.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._inner.get_extra_info(name, default)


class _Limited(HttpToolsProtocol):
    _seconds: float
    _most: int

    def __init__(self, config: Config, *arguments: Any, **keywords: Any) -> None:
        super().__init__(config, *arguments, **keywords)
        self._timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._in_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_OneWrite(transport, self._seconds))
        if len(self.connections) > self._most:
            self._end(503, "too many connections")
        else:
            self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._start()
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > _LONGEST_HEAD:
            self._end(431, f"the headers have more than {_LONGEST_HEAD} bytes")

    def eof_received(self) -> bool:  # type: ignore[override]
        """A client that sends no more is answered what it has asked; TLS has no such half of a connection."""
        waits = self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        if waits:
            self.cycle.keep_alive = False
        return waits and self.scheme == "http"

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        lengths = [value for name, value in self.headers if name == b"content-length"]
        if any(len(value) > 18 or not value.isdigit() for value in lengths):
            raise httptools.HttpParserError("Content-Length is no number")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head = True
        self._stop()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._end(400, msg)

    def _start(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self._seconds, self._late)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self.flow.read_paused:  # it is the server that is late: what has come is not used up yet
            self._start()
        else:
            self._end(408, f"the request has not come within {self._seconds:g} s")

    def _end(self, status: int, message: str) -> None:
        """Answer, where no answer has begun, and close."""
        self._stop()
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = json.dumps({"error": message}).encode()
            headers = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close"
            self.transport.write(f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{headers}\r\n\r\n".encode() + body)
        self.transport.close()
