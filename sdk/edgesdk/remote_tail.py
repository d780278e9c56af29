"""RemoteTail: sends what crosses the cut to the tail's server and takes its answer, or says within the deadline that it cannot.

Where the server takes no connection, or has failed several requests in a row, the link is down: requests fail at once, without
waiting for a deadline each, while a thread in the background tries to connect, ever more seldom, until the server is there again.
"""

from __future__ import annotations

import math
import random
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters.errors import LinkError, ModelError
from edgesdk_converters.signature import Output
from edgesdk_targets.bundle import Bundle

from . import inference_protocol as protocol
from .client import Connection, Counts, Fault, Place, Reply, model_path

Array = NDArray[Any]
_STRIKES = 3
"""Faults in a row after which a server that still takes connections counts as down."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 5.0
_PROBE_S = 2.0
"""The least time that connecting and reading the server's metadata may take; a longer deadline of requests holds here too."""
_SPARE = 65_536
"""Bytes that the JSON of an answer may have."""
_UNKNOWN = 64_000_000
"""Bytes of an answer whose shapes are not known beforehand."""


@dataclass(frozen=True)
class Remote:
    """Where the tail runs. `deadline_ms` counts from the end of the head until the outputs are here.

    When it passes, or the server fails: `local` runs the tail here, `error` raises LinkError.
    """

    url: str
    deadline_ms: float = 1000.0
    on_late: Literal["local", "error"] = "local"
    token: str = ""
    ca: str = ""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.deadline_ms) and 0 < self.deadline_ms <= 86_400_000):
            raise LinkError(
                f"deadline_ms is {self.deadline_ms}; allowed: above 0, up to a day", "edgesdk plan says what a link needs"
            )
        if self.on_late not in ("local", "error"):
            raise LinkError(f"on_late is {self.on_late!r}; allowed: local (run the tail here), error (raise LinkError)")


class RemoteTail:
    """The way to one tail. `run` may be called from several threads; each request in flight has a connection of its own."""

    def __init__(self, remote: Remote, tail: Bundle) -> None:
        protocol.check_signature(tail.manifest.signature, str(tail.path))
        self.remote, self.counts = remote, Counts()
        self._place = Place(remote.url, remote.token, remote.ca)
        self._digest, self._signature = tail.digest, tail.manifest.signature
        self._model = model_path(tail.manifest.name)
        self._infer = f"{self._model}/infer"
        self._most = _largest(self._signature.outputs)
        self._prefix, self._numbers = secrets.token_hex(4), count()
        self._around: dict[tuple[tuple[int, ...], ...], tuple[bytes, bytes]] = {}
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._up, self._closed = False, False
        self._strikes, self._allowed = 0, _STRIKES
        self._pause_s = _FIRST_PAUSE_S
        self._why = "not connected yet"
        self._wake, self._ended = threading.Event(), threading.Event()
        self._watcher: threading.Thread | None = None

    @property
    def up(self) -> bool:
        """Whether requests are sent; while it is down they fail at once."""
        return self._up

    @property
    def why(self) -> str:
        """What the last fault was; empty where there was none."""
        return self._why

    def connect(self) -> None:
        """Connect and check the server's tail. Raises Fault; the link then goes on trying in the background."""
        try:
            self._probe()
        except Fault as fault:
            self.counts.add(fault.kind)
            self._fall(fault)
            raise

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        """The tail's outputs, in its signature's order. Raises Fault, by the deadline at the latest."""
        if not self._up:
            raise Fault("gone", f"{self.remote.url} is down ({self._why})")
        until = time.monotonic() + self.remote.deadline_ms / 1e3
        try:
            outputs = self._ask(feed, until)
        except Fault as fault:
            self.counts.add(fault.kind)
            self._strike(fault)
            raise
        self.counts.add("remote")
        with self._lock:
            if self._up:  # else others have failed meanwhile, and that stands
                self._strikes, self._allowed, self._pause_s, self._why = 0, _STRIKES, _FIRST_PAUSE_S, ""
        return outputs

    def close(self) -> None:
        """Close every connection and end the thread."""
        self._closed, self._up = True, False
        self._ended.set()
        self._wake.set()
        self._drop_idle()
        if self._watcher is not None:
            self._watcher.join(_PROBE_S)

    def _ask(self, feed: Mapping[str, Array], until: float) -> list[Array]:
        connection, fresh = self._connection(until)
        try:
            return self._exchange(connection, feed, until)
        except Fault as fault:
            if fresh or not fault.unanswered:
                raise
        # The server had closed the idle connection just when it was used, as servers do; nothing was answered.
        return self._exchange(Connection(self._place, until, self.counts), feed, until)

    def _exchange(self, connection: Connection, feed: Mapping[str, Array], until: float) -> list[Array]:
        before, after = self._json(feed)
        number = f"{self._prefix}-{next(self._numbers)}"
        told = b"".join((before, number.encode(), after))
        tensors = [protocol.to_bytes(feed[spec.name]) for spec in self._signature.inputs]
        try:
            reply = connection.post(self._infer, told, tensors, until, self._most)
            self._check(reply)
            try:
                if reply.headers.get(protocol.CHECKSUM) != protocol.checksum(reply.body):
                    raise ModelError(f"{protocol.CHECKSUM} is not that of the body")
                length = reply.headers.get(protocol.JSON_LENGTH, "")
                if not (length.isascii() and length.isdigit() and len(length) < 16):
                    raise ModelError(f"{protocol.JSON_LENGTH} is {length[:40]!r}")
                outputs = protocol.read_response(reply.body, int(length), number, self._signature, feed)
            except ModelError as error:
                raise Fault("malformed", f"{self.remote.url} answers malformed: {error.message}") from error
        except BaseException:
            connection.close()
            raise
        self._keep(connection)
        return outputs

    def _check(self, reply: Reply) -> None:
        """Raise Fault for an answer that holds no outputs of this tail."""
        if reply.status != 200:
            told = bytes(reply.body[:300]).decode("utf-8", "replace")
            raise Fault("refused", f"{self.remote.url} answers {reply.status}: {told}", final=reply.status < 500)
        found = reply.headers.get(protocol.DIGEST, "")
        if found != self._digest:
            raise Fault(
                "refused",
                f"{self.remote.url} serves another tail ({found[:12] or 'unnamed'}, not {self._digest[:12]})",
                final=True,
            )

    def _json(self, feed: Mapping[str, Array]) -> tuple[bytes, bytes]:
        shapes = tuple(feed[spec.name].shape for spec in self._signature.inputs)
        found = self._around.get(shapes)
        if found is None:
            if len(self._around) > 256:  # shapes that never come again must not fill the memory
                self._around.clear()
            found = protocol.request_around({spec.name: feed[spec.name] for spec in self._signature.inputs})
            self._around[shapes] = found
        return found

    def _connection(self, until: float) -> tuple[Connection, bool]:
        """A connection, and whether it is a new one."""
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return Connection(self._place, until, self.counts), True
            if connection.idle():
                return connection, False
            connection.close()

    def _keep(self, connection: Connection) -> None:
        with self._lock:
            if self._up:
                self._idle.append(connection)
                return
        connection.close()

    def _probe(self) -> None:
        """Connect, compare the server's metadata with the tail here, and be up. Raises Fault."""
        until = time.monotonic() + max(_PROBE_S, self.remote.deadline_ms / 1e3)
        connection = self._place.first(until, self.counts)
        try:
            reply = connection.get(self._model, until, _SPARE)
            self._check(reply)
            try:
                found = protocol.read_json(reply.body).get("parameters")
            except ModelError as error:
                raise Fault("malformed", f"{self.remote.url} answers malformed: {error.message}") from error
            if not isinstance(found, dict) or found.get("digest") != self._digest:
                raise Fault("refused", f"{self.remote.url} serves another tail than {self._digest[:12]}")
        except BaseException:
            connection.close()
            raise
        with self._lock:
            self._strikes, self._up, self._why = 0, not self._closed, ""
        self._keep(connection)

    def _strike(self, fault: Fault) -> None:
        with self._lock:
            self._why = fault.message
            self._strikes += 1
            down = fault.final or self._strikes >= self._allowed
        if down:
            self._fall(fault)

    def _fall(self, fault: Fault) -> None:
        """Be down, and let the thread in the background look for the server."""
        with self._lock:
            self._up, self._why = False, fault.message
            # What comes back after a fall is on trial: its first fault is its last, until it has answered once.
            self._allowed = 1
            if self._watcher is None and not self._closed:
                self._watcher = threading.Thread(target=self._watch, name="edgesdk-remote", daemon=True)
                self._watcher.start()
        self._drop_idle()
        self._wake.set()

    def _drop_idle(self) -> None:
        with self._lock:
            waiting, self._idle = self._idle, []
        for connection in waiting:
            connection.close()

    def _watch(self) -> None:
        while not self._closed:
            self._wake.wait()
            self._wake.clear()
            while not self._up and not self._closed:
                # Devices that lose one server must not all come back in the same moment.
                if self._ended.wait(self._pause_s * random.uniform(0.75, 1.25)):
                    return
                self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
                try:
                    self._probe()
                except Fault as fault:
                    self._why = fault.message
                else:
                    self.counts.add("reconnects")


def _largest(outputs: Sequence[Output]) -> int:
    """Bytes that the body of a right answer can have at most."""
    size = _SPARE
    for spec in outputs:
        dims = [dim for dim in spec.shape if isinstance(dim, int)]
        if len(dims) < len(spec.shape):
            return _UNKNOWN
        size += math.prod(dims) * np.dtype(spec.dtype).itemsize
    return size
