"""Connection: one keep-alive HTTP/1.1 connection to a tail's server, one request at a time, each with a deadline.

Standard library only. Every message is one write, TCP_NODELAY is on, and what is read is bounded. A connection on which
anything went wrong is closed and never used again: an answer that comes too late meets nobody.
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from dataclasses import dataclass, fields
from typing import Any, Literal
from urllib.parse import SplitResult, quote, urlsplit

from edgesdk_converters.errors import LinkError

from .bearer import checked_token
from .inference_protocol import CHECKSUM, checksum

Kind = Literal["late", "gone", "malformed", "refused"]
Address = tuple[socket.AddressFamily, Any]
_MOST_HEAD = 16_384
_LONGEST_IDLE_S = 60.0
"""Routers on the way forget a connection that is idle for long, and what is sent then meets silence."""
_INSTEAD = '--on-late local (on_late="local") runs the tail here instead; session.remote.counts tells how often it failed'


class Fault(LinkError):
    """A request that the link or the server failed; `kind` says how.

    `unanswered`: no byte of an answer had come. `final`: another request would fare no better.
    """

    def __init__(self, kind: Kind, message: str, *, unanswered: bool = False, final: bool = False) -> None:
        super().__init__(message, _INSTEAD)
        self.kind = kind
        self.unanswered = unanswered
        self.final = final


@dataclass
class Counts:
    """What a link has carried, and how its requests ended. Bytes are those given to and taken from the socket."""

    remote: int = 0
    local: int = 0
    late: int = 0
    gone: int = 0
    malformed: int = 0
    refused: int = 0
    connects: int = 0
    reconnects: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def add(self, name: str, count: int = 1) -> None:
        with self._lock:
            setattr(self, name, getattr(self, name) + count)

    def to_json(self) -> dict[str, int]:
        with self._lock:
            return {one.name: getattr(self, one.name) for one in fields(self)}


@dataclass(frozen=True)
class Reply:
    """An answer: its status, its headers (names in lower case), its body."""

    status: int
    headers: dict[str, str]
    body: memoryview


class Place:
    """Where a server is, and what every request to it says. Names are looked up by `first` alone, never within a deadline.

    Raises LinkError for anything but http://HOST:PORT and https://HOST:PORT. `ca` is a PEM file of certificates to trust
    instead of the system's.
    """

    def __init__(self, url: str, token: str = "", ca: str = "") -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise LinkError(f"{url!r} is no address of a server: {error}", "http://HOST:PORT") from error
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or parts.username
            or parts.path not in ("", "/")
            or parts.query
        ):
            raise LinkError(
                f"{url!r} is no address of a server; allowed: http://HOST:PORT, https://HOST:PORT", _remedy(url, parts)
            )
        self.url, self.host, self.port = url, parts.hostname, port or (443 if parts.scheme == "https" else 80)
        self.tls: ssl.SSLContext | None = _trusting(ca) if parts.scheme == "https" else None
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [f"Host: {host}:{self.port}"]
        if checked_token(token, "token"):
            lines.append(f"Authorization: Bearer {token}")
        self.lines = "\r\n".join(lines)
        self.address: Address | None = None

    def first(self, until: float, counts: Counts) -> Connection:
        """A connection to the first of the name's addresses that takes one; later connections go there at once.

        Raises Fault. Looking the name up may take as long as the system's resolver, beyond `until`.
        """
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise Fault("gone", f"{self.host!r} has no address: {_text(error)}") from error
        last: Fault | None = None
        for place, (family, _, _, _, address) in enumerate(found):
            self.address = family, address
            share = (until - time.monotonic()) / (len(found) - place)  # an address that is silent leaves time for the others
            try:
                return Connection(self, time.monotonic() + share, counts)
            except Fault as fault:
                last = fault
        assert last is not None
        raise last


class Connection:
    """One connection. Not for several threads at once. Raises Fault where it cannot be made by `until` (time.monotonic)."""

    def __init__(self, place: Place, until: float, counts: Counts) -> None:
        self._place, self._counts = place, counts
        self._since = time.monotonic()
        if place.address is None:
            raise Fault("gone", f"the address of {place.url} is not known yet")
        family, address = place.address
        plain = socket.socket(family, socket.SOCK_STREAM)
        try:
            plain.settimeout(_left(until))
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.connect(address)
            self._socket = plain
            if place.tls is not None:
                plain.settimeout(_left(until))
                self._socket = place.tls.wrap_socket(plain, server_hostname=place.host)
        except (OSError, ValueError) as error:  # ssl.SSLError and TimeoutError are OSErrors
            plain.close()
            kind: Kind = "late" if isinstance(error, TimeoutError) else "gone"
            raise Fault(kind, f"no connection to {place.url}: {_text(error)}", final=kind == "gone") from error
        except BaseException:
            plain.close()
            raise
        counts.add("connects")

    def idle(self) -> bool:
        """Whether it can be used again: nothing has come that nobody asked for, not even its end."""
        if self._socket.fileno() < 0 or time.monotonic() - self._since > _LONGEST_IDLE_S:
            return False
        watch = select.poll()
        watch.register(self._socket, select.POLLIN)
        return not watch.poll(0)

    def get(self, path: str, until: float, most: int) -> Reply:
        """GET a document of at most `most` bytes."""
        return self._exchange(f"GET {path} HTTP/1.1\r\n{self._place.lines}\r\n\r\n".encode(), until, most)

    def post(self, path: str, told: bytes, chunks: list[memoryview], until: float, most: int) -> Reply:
        """POST JSON and the tensors that follow it; the answer's body has at most `most` bytes."""
        length = len(told) + sum(map(len, chunks))
        head = (
            f"POST {path} HTTP/1.1\r\n{self._place.lines}\r\nContent-Type: application/octet-stream\r\n"
            f"Inference-Header-Content-Length: {len(told)}\r\nContent-Length: {length}\r\n"
            f"{CHECKSUM}: {checksum(told, *chunks)}\r\n\r\n"
        )
        return self._exchange(b"".join((head.encode(), told, *chunks)), until, most)

    def close(self) -> None:
        self._socket.close()

    def _exchange(self, message: bytes, until: float, most: int) -> Reply:
        received = bytearray()
        try:
            self._socket.settimeout(_left(until))
            self._socket.sendall(message)
            self._counts.add("sent_bytes", len(message))
            reply = self._read(received, until, most)
        except TimeoutError as error:
            self.close()
            raise Fault("late", f"{self._place.url} has not answered in time") from error
        except OSError as error:
            self.close()
            raise Fault("gone", f"{self._place.url} has gone: {_text(error)}", unanswered=not received) from error
        except BaseException:
            self.close()
            raise
        self._since = time.monotonic()
        if reply.headers.get("connection", "").lower() == "close":
            self.close()
        return reply

    def _read(self, received: bytearray, until: float, most: int) -> Reply:
        """One answer. Raises Fault where it is no HTTP, has another length than it says, or is followed by something."""
        while (end := received.find(b"\r\n\r\n")) < 0:
            if len(received) > _MOST_HEAD:
                raise self._malformed(f"no end of the headers in {len(received)} bytes")
            received += self._receive(until, 65_536)
        status, headers = self._head(bytes(received[:end]))
        length = headers.get("content-length", "")
        if not (length.isascii() and length.isdigit()) or len(length) > 18 or "transfer-encoding" in headers:
            raise self._malformed(f"Content-Length is {length[:40]!r}")
        size = int(length)
        if size > most:
            raise self._malformed(f"the body has {size} bytes; at most {most} can be right")
        body = bytearray(size)
        early = memoryview(received)[end + 4 :]
        if len(early) > size:
            raise self._malformed(f"{len(early) - size} bytes follow the body")
        body[: len(early)] = early
        view, have = memoryview(body), len(early)
        while have < size:
            self._socket.settimeout(_left(until))
            got = self._socket.recv_into(view[have:])
            if got == 0:
                raise self._malformed(f"the body ends after {have} of {size} bytes")
            self._counts.add("received_bytes", got)
            have += got
        return Reply(status, headers, view)

    def _receive(self, until: float, most: int) -> bytes:
        self._socket.settimeout(_left(until))
        data = self._socket.recv(most)
        if not data:
            raise ConnectionResetError("it closed the connection")
        self._counts.add("received_bytes", len(data))
        return data

    def _head(self, raw: bytes) -> tuple[int, dict[str, str]]:
        first, *lines = raw.decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        if (
            version not in ("HTTP/1.1", "HTTP/1.0")
            or not (rest[:3].isascii() and rest[:3].isdigit())
            or rest[3:4] not in ("", " ")
        ):
            raise self._malformed(f"no HTTP: {first[:60]!r}")
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            name = name.lower()
            if not colon or name in headers:
                raise self._malformed(f"header {line[:60]!r}")
            headers[name] = value.strip()
        if version == "HTTP/1.0":
            headers["connection"] = "close"
        return int(rest[:3]), headers

    def _malformed(self, message: str) -> Fault:
        return Fault("malformed", f"{self._place.url} answers malformed: {message}")


def model_path(name: str) -> str:
    """The path of a model on a server."""
    return f"/v2/models/{quote(name, safe='')}"


def _remedy(url: str, parts: SplitResult) -> str:
    """What makes an address of something that is none."""
    if url and "://" not in url:
        return f"put http:// before it: http://{url}"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "give http://HOST:PORT"
    return "leave out the user; --token-file (token=) gives a token" if parts.username else "leave out the path"


def _trusting(ca: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca or None)
    except (OSError, ValueError) as error:
        raise LinkError(f"{ca} holds no certificates to trust: {_text(error)}", "give a PEM file") from error


def _left(until: float) -> float:
    """Seconds that are left. Raises TimeoutError where none are: a timeout of 0 would mean not to wait at all."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline has passed")
    return left


def _text(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
