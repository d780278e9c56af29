"""A relay with the rate and the delay of a link, in user space, for tests and benchmarks: TCP in, TCP out.

Each direction is one queue with true serialisation, without tokens saved up for bursts: n bytes leave n x 8 / rate seconds after
what was before them has left, and arrive half a round trip later. Packet headers of the link count. At most `buffer_bytes` wait
to leave, then nothing more is read, and sockets have small buffers: who sends feels the rate too. Losses are not made.

    with Relay(("127.0.0.1", port), link) as relay: connect to relay.address
    python -m tests.relay HOST:PORT 1mbit,20ms [LISTEN]   the same as a process; prints its port
"""

from __future__ import annotations

import contextlib
import math
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgesdk_targets.link import Link, parse

Address = tuple[str, int]
BUFFER_BYTES = 65_536
_KERNEL_BYTES = 16_384
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on, for no time: closing resets the connection."""


class Relay:
    """Takes connections at `address` and joins each to a new one to `server`, over `link`.

    `stall` holds back all bytes for some seconds, `drop` resets the connections that are there, `refuse` those that come.
    """

    def __init__(
        self, server: Address, link: Link, *, buffer_bytes: int = BUFFER_BYTES, host: str = "127.0.0.1", port: int = 0,
        seed: int = 0, clock: Any = time,
    ) -> None:  # fmt: skip
        self.server, self.link, self.buffer_bytes, self.clock = server, link, buffer_bytes, clock
        self.refuse = False
        self.sent_bytes = [0, 0]
        """Bytes passed on, up and down."""
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._stalled_until = 0.0
        self._closed = False
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._door = socket.socket()
        self._door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _KERNEL_BYTES)
        self._door.bind((host, port))
        self._door.listen(64)
        self.address: Address = self._door.getsockname()
        threading.Thread(target=self._take, name="relay", daemon=True).start()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        self.drop()

    def stall(self, seconds: float) -> None:
        """Nothing arrives for so long; what was on its way comes after it, in order."""
        self._stalled_until = self.clock.monotonic() + seconds

    def drop(self) -> None:
        """Reset all connections: both ends get an error."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for one in pair:
                _reset(one)

    def _take(self) -> None:
        while not self._closed:
            try:
                near, _ = self._door.accept()
            except OSError:
                return
            if self.refuse or self._closed:
                _reset(near)
                continue
            far = socket.socket()
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _KERNEL_BYTES)
            try:
                far.connect(self.server)
            except OSError:
                _reset(near)
                continue
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._pairs.append((near, far))
            for way, (source, sink) in enumerate(((near, far), (far, near))):
                _Direction(self, way, source, sink).start()

    def delay_s(self) -> float:
        """Of one way, from the end of sending to arrival."""
        jitter = self._random.gauss(0.0, self.link.jitter_ms / math.sqrt(2)) if self.link.jitter_ms else 0.0
        return max(0.0, self.link.rtt_ms / 2 + jitter) / 1e3

    def held_s(self) -> float:
        """Seconds until a stall ends."""
        return self._stalled_until - self.clock.monotonic()


class _Direction:
    """One way of one connection: what is read is given the time at which it arrives, and is written then."""

    def __init__(self, relay: Relay, way: int, source: socket.socket, sink: socket.socket) -> None:
        link = relay.link
        self._relay, self._way, self._source, self._sink = relay, way, source, sink
        self._rate = (link.up_bits_per_s, link.down_bits_per_s)[way]
        packets = max(1, min(40, int(self._rate / 8e3 / link.packet_bytes)))  # of a millisecond, as whole packets
        self._most = packets * link.packet_bytes
        on_its_way = self._rate / 8e3 * link.rtt_ms / 2
        self._room = relay.buffer_bytes + math.ceil(on_its_way)
        self._queue: deque[tuple[float, bytes]] = deque()
        self._waiting = 0
        self._changed = threading.Condition()

    def start(self) -> None:
        for work in (self._read, self._write):
            threading.Thread(target=work, name=f"relay {'up' if self._way == 0 else 'down'}", daemon=True).start()

    def _read(self) -> None:
        link, clock, free, last = self._relay.link, self._relay.clock, 0.0, 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting < self._room)
            try:
                data = self._source.recv(self._most)
            except OSError:
                data = b""
            now = clock.monotonic()
            wire = len(data) + math.ceil(len(data) / link.packet_bytes) * link.packet_overhead_bytes
            free = max(now, free) + 8 * wire / self._rate
            last = max(last, free + self._relay.delay_s())
            with self._changed:
                self._queue.append((last, data))
                self._waiting += len(data)
                self._changed.notify_all()
            if not data:
                return

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue)
                due, data = self._queue[0]
            clock = self._relay.clock
            while (wait := max(due - clock.monotonic(), self._relay.held_s())) > 0:
                clock.sleep(wait)
            try:
                if data:
                    self._sink.sendall(data)
                    self._relay.sent_bytes[self._way] += len(data)
                else:
                    self._sink.shutdown(socket.SHUT_WR)
            except OSError:
                _reset(self._source)
                data = b""
            with self._changed:
                self._queue.popleft()
                self._waiting -= len(data)
                if not data:
                    self._waiting = 0
                self._changed.notify_all()
            if not data:
                return


def _reset(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        one.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        one.close()


@contextlib.contextmanager
def apart(server: Address, link: str, host: str = "127.0.0.1") -> Iterator[Address]:
    """A relay in a process of its own, which shares no interpreter lock with who measures; its address."""
    command = [sys.executable, "-m", "tests.relay", f"{server[0]}:{server[1]}", link, host]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    try:
        assert process.stdout is not None
        yield host, int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def main() -> None:
    """The relay as a process, until it is ended."""
    host, _, port = sys.argv[1].rpartition(":")
    listen = sys.argv[3] if len(sys.argv) > 3 else "127.0.0.1"
    with contextlib.suppress(KeyboardInterrupt), Relay((host, int(port)), parse(sys.argv[2]), host=listen) as relay:
        print(relay.address[1], flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
