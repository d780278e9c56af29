"""What Link predicts beside what a request and its response take over a relay with the link's rate and delay, on loopback.

python -m tests.bench_link
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from edgesdk_targets.link import exchange, parse, rate_text

from .bench_quantised import show
from .relay import Address, apart

RATES = ("250kbit", "1mbit", "5mbit", "20mbit", "100mbit")
RTT_MS = 20
MESSAGES = ((100, 40), (784, 40), (9_408, 40), (38_400, 4_000), (150_528, 4_000), (602_112, 4_000), (4_000, 150_528))
"""Bytes up and down: a code, Fashion-MNIST's image, small cuts, 224 x 224 RGB as uint8 and float32, a picture as the answer."""
LONGEST_MS = 8_000.0
_SIZES = struct.Struct("<II")


def link() -> None:
    """Median of 5 to 15 exchanges on a warm connection; error in percent of the measured time."""
    rows, errors, inside = [], [], 0
    with echo() as server:
        for rate in RATES:
            text = f"{rate},{RTT_MS}ms"
            predicted = replace(parse(text), request_overhead_bytes=0, response_overhead_bytes=0)
            with apart(server, text) as address, socket.create_connection(address) as client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                ask(client, 1, 1)
                for up, down in MESSAGES:
                    expected = exchange(predicted, up, down)
                    assert expected.value is not None and expected.interval is not None
                    if expected.value > LONGEST_MS:
                        continue
                    count = 5 if expected.value > 300 else 15
                    got = float(np.median([ask(client, up, down) for _ in range(count)]))
                    error = 100 * (expected.value - got) / got
                    errors.append(error)
                    inside += expected.interval.low <= got <= expected.interval.high
                    rows.append(
                        (rate_text(predicted.up_bits_per_s), f"{up:,}", f"{down:,}", f"{got:,.1f}", f"{expected.value:,.1f}",
                         f"{error:+.1f}", str(count))
                    )  # fmt: skip
    show(("rate", "bytes up", "down", "measured ms", "predicted ms", "error %", "n"), rows)
    print(
        f"mean |error| {np.mean(np.abs(errors)):.1f} %, largest {np.max(np.abs(errors)):.1f} %; "
        f"{inside} of {len(errors)} inside the interval"
    )


def ask(client: socket.socket, up: int, down: int) -> float:
    """Milliseconds of one request of `up` bytes (8 of them say the sizes) and its response."""
    message = _SIZES.pack(max(up, _SIZES.size), down) + bytes(max(0, up - _SIZES.size))
    begin = time.perf_counter()
    client.sendall(message)
    left = down
    while left:
        left -= len(client.recv(min(left, 65_536)))
    return (time.perf_counter() - begin) * 1e3


@contextlib.contextmanager
def echo() -> Iterator[Address]:
    """A server that answers as many bytes as it is asked for."""

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, struct.error):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                up, down = _SIZES.unpack(_exactly(connection, _SIZES.size))
                _exactly(connection, up - _SIZES.size)
                connection.sendall(bytes(down))

    def take() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(door.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as door:
        threading.Thread(target=take, daemon=True).start()
        yield door.getsockname()


def _exactly(connection: socket.socket, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        data = connection.recv(min(65_536, count - len(found)))
        if not data:
            raise OSError("the other end has gone")
        found += data
    return bytes(found)


if __name__ == "__main__":
    link()
