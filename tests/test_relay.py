"""The relay: every byte, in order, as late as the link makes it, and the ways in which links fail."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Iterator

import pytest

from edgesdk_targets.link import Link, parse

from .bench_link import ask, echo
from .relay import Address, Relay, apart

FAST = Link(1e9, 1e9, 0.0)


@contextlib.contextmanager
def mirror() -> Iterator[Address]:
    """A server that sends back what comes, until the other end stops."""

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(10_000):
                connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)

    def take() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(door.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as door:
        threading.Thread(target=take, daemon=True).start()
        yield door.getsockname()


def through(address: Address, data: bytes, seed: int) -> bytes:
    """What comes back of data sent in pieces of random length."""

    def send() -> None:
        draw, at = random.Random(seed), 0
        while at < len(data):
            size = draw.choice((1, 7, 1448, 5000, 60_000))
            client.sendall(data[at : at + size])
            at += size
        client.shutdown(socket.SHUT_WR)

    with socket.create_connection(address, timeout=60) as client:
        sender = threading.Thread(target=send)
        sender.start()
        found = bytearray()
        while piece := client.recv(65_536):
            found += piece
        sender.join()
    return bytes(found)


@pytest.mark.parametrize("text", ["1gbit,0ms", "100mbit,4ms,jitter=2ms", "2mbit/50mbit,1ms"])
@pytest.mark.parametrize("seed", [0, 1])
def test_all_bytes_arrive_in_order_both_ways_and_the_end_too(text: str, seed: int) -> None:
    data = random.Random(seed).randbytes(200_000)
    with mirror() as server, Relay(server, parse(text), seed=seed) as relay:
        assert through(relay.address, data, seed) == data
        assert relay.sent_bytes == [len(data), len(data)]


def test_connections_do_not_mix() -> None:
    datas = [bytes([i]) * 30_000 for i in range(6)]
    found: dict[int, bytes] = {}
    with mirror() as server, Relay(server, FAST) as relay:
        workers = [
            threading.Thread(target=lambda i=i: found.__setitem__(i, through(relay.address, datas[i], i))) for i in range(6)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert [found[i] for i in range(6)] == datas


def test_a_process_of_its_own_does_the_same() -> None:
    data = random.Random(3).randbytes(50_000)
    with mirror() as server, apart(server, "100mbit,2ms") as address:
        assert through(address, data, 0) == data


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(("text", "size"), [("250kbit,20ms", 784), ("1mbit,100ms", 1448), ("10mbit,0ms", 10)])
def test_a_message_arrives_after_its_bits_and_half_a_round_trip(text: str, size: int) -> None:
    clock, link = Clock(), parse(text)
    with (
        socket.create_server(("127.0.0.1", 0)) as door,
        Relay(door.getsockname(), link, clock=clock) as relay,
        socket.create_connection(relay.address, timeout=60) as client,
        door.accept()[0] as far,
    ):
        client.sendall(bytes(size))
        left = size
        while left:
            left -= len(far.recv(left))
        assert clock.now - 1000 == pytest.approx(8 * (size + 66) / link.up_bits_per_s + link.rtt_ms / 2e3)


def test_who_sends_feels_that_the_link_is_slow() -> None:
    """Of eight megabytes a sender that never waits gets rid of what buffers hold, and no more."""
    link = Link(800, 800, 0)
    with (
        socket.create_server(("127.0.0.1", 0)) as door,
        Relay(door.getsockname(), link, buffer_bytes=4096) as relay,
        socket.socket() as client,
    ):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
        client.connect(relay.address)
        client.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < 8_000_000:
                sent += client.send(bytes(10_000))
    assert sent < 1_000_000


def test_a_stall_holds_bytes_back_and_loses_none() -> None:
    data = random.Random(5).randbytes(20_000)
    with mirror() as server, Relay(server, FAST) as relay:
        relay.stall(0.05)
        assert through(relay.address, data, 0) == data


def test_dropped_and_refused_connections_are_errors_and_the_next_one_works() -> None:
    with echo() as server, Relay(server, FAST) as relay:
        with socket.create_connection(relay.address, timeout=60) as client:
            assert ask(client, 100, 10) > 0
            relay.drop()
            with pytest.raises(OSError):
                while True:
                    client.sendall(bytes(1000))
        relay.refuse = True
        with pytest.raises(OSError), socket.create_connection(relay.address, timeout=60) as client:
            while client.recv(1) or client.sendall(b"x") is None:
                pass
        relay.refuse = False
        with socket.create_connection(relay.address, timeout=60) as client:
            assert ask(client, 100, 10) > 0
