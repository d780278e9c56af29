"""One connection to a server: bounded in time and in size, whatever is at the other end."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgesdk import client
from edgesdk.client import Connection, Counts, Fault, Place, model_path
from edgesdk_converters.errors import LinkError

from .fake_server import FakeServer, message


def soon(seconds: float = 10) -> float:
    return time.monotonic() + seconds


@pytest.fixture
def silent() -> Iterator[str]:
    """HOST:PORT of something that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    held.append(listener.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        for one in held:
            one.close()


def test_every_message_is_one_write() -> None:
    with FakeServer(lambda asked: [message(b"{}")]) as fake:
        place = Place(fake.url)
        connection = place.first(time.monotonic() + 10, Counts())
        writes: list[int] = []

        class Watched:
            def __init__(self, inner: Any) -> None:
                self._inner = inner

            def sendall(self, data: bytes) -> None:
                writes.append(len(data))
                self._inner.sendall(data)

            def __getattr__(self, name: str) -> Any:
                return getattr(self._inner, name)

        connection._socket = Watched(connection._socket)  # type: ignore[assignment]
        connection.post("/x", b"{}", [memoryview(b"a" * 100_000), memoryview(b"b" * 5)], time.monotonic() + 10, 1000)
        connection.get("/x", time.monotonic() + 10, 1000)
        assert len(writes) == 2 and writes == [asked.size for asked in fake.seen]
        assert connection._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        connection.close()


def test_silence_ends_with_the_deadline(silent: str) -> None:
    counts = Counts()
    for scheme in ("http", "https"):  # https: not even the handshake comes to an end
        begin = time.monotonic()
        with pytest.raises(Fault, match=r"in time|timed out") as caught:
            Place(f"{scheme}://{silent}").first(soon(0.2), counts).get("/x", soon(0.2), 100)
        assert caught.value.kind == "late" and time.monotonic() - begin < 5
    assert counts.connects == 1 and counts.received_bytes == 0


def test_a_deadline_that_has_passed_sends_nothing() -> None:
    with FakeServer(lambda asked: [message(b"{}")]) as fake:
        counts = Counts()
        connection = Place(fake.url).first(soon(), counts)
        with pytest.raises(Fault) as caught:
            connection.get("/x", time.monotonic() - 1, 100)
        assert caught.value.kind == "late" and counts.sent_bytes == 0 and not fake.seen
        with pytest.raises(Fault, match="has passed"):
            Connection(connection._place, time.monotonic() - 1, counts)


def test_after_a_fault_the_connection_is_closed() -> None:
    with FakeServer(lambda asked: [0.3, message(b"{}")]) as fake:
        connection = Place(fake.url).first(soon(), Counts())
        with pytest.raises(Fault):
            connection.get("/x", soon(0.05), 100)
        assert connection._socket.fileno() == -1 and not connection.idle()
        with pytest.raises(Fault):
            connection.get("/x", soon(), 100)


def test_an_answer_may_come_in_any_pieces() -> None:
    whole = message(b"0123456789" * 20_000, x_first="a  b")
    for cuts in ([1, 2, 3], [40, 60, 70, 100_000], list(range(1, 90))):
        parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
        with FakeServer(lambda asked, parts=parts: [act for part in parts for act in (part, 0.001)]) as fake:  # type: ignore[misc]
            counts = Counts()
            reply = Place(fake.url).first(soon(), counts).get("/x", soon(), 200_000)
            assert reply.status == 200 and bytes(reply.body) == b"0123456789" * 20_000 and reply.headers["x-first"] == "a  b"
            assert counts.received_bytes == len(whole)


def test_no_more_is_read_than_can_be_right() -> None:
    with (
        FakeServer(lambda asked: [message(b"x" * 101)]) as fake,
        pytest.raises(Fault, match="101 bytes; at most 100 can be right"),
    ):
        Place(fake.url).first(soon(), Counts()).get("/x", soon(), 100)
    with FakeServer(lambda asked: [b"HTTP/1.1 200 OK\r\n"] + [b"x: y\r\n" * 1000] * 1000) as fake:
        counts = Counts()
        with pytest.raises(Fault, match="no end of the headers"):
            Place(fake.url).first(soon(), counts).get("/x", soon(), 100)
        assert counts.received_bytes < 200_000


def test_a_connection_that_the_server_wants_closed_is_not_kept() -> None:
    for answer in (message(b"{}", connection="close"), message(b"{}").replace(b"HTTP/1.1", b"HTTP/1.0")):
        with FakeServer(lambda asked, answer=answer: [answer]) as fake:  # type: ignore[misc]
            connection = Place(fake.url).first(soon(), Counts())
            assert bytes(connection.get("/x", soon(), 100).body) == b"{}"
            assert not connection.idle()


def test_a_connection_that_was_idle_for_long_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeServer(lambda asked: [message(b"{}")]) as fake:
        connection = Place(fake.url).first(soon(), Counts())
        connection.get("/x", soon(), 100)
        assert connection.idle()
        monkeypatch.setattr(client, "_LONGEST_IDLE_S", -1.0)
        assert not connection.idle()


def test_every_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """As localhost, which is ::1 first on many machines while servers listen on 127.0.0.1."""
    with FakeServer(lambda asked: [message(b"{}")]) as fake:
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 1)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", fake.port)),
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        place = Place("http://two.addresses:1")
        assert place.first(soon(), Counts()).get("/x", soon(), 100).status == 200
        assert place.address == (socket.AF_INET, ("127.0.0.1", fake.port))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a name was looked up within a deadline"))
        assert Connection(place, soon(), Counts()).get("/x", soon(), 100).status == 200


def test_addresses_and_what_they_mean(tmp_path: Path) -> None:
    for url, host, port in (
        ("http://a:5", "a", 5), ("http://a", "a", 80), ("https://a/", "a", 443), ("http://[::1]:7", "::1", 7),
    ):  # fmt: skip
        place = Place(url)
        assert (place.host, place.port, place.tls is not None) == (host, port, url.startswith("https"))
    assert Place("http://[::1]:7", "t0ken").lines == "Host: [::1]:7\r\nAuthorization: Bearer t0ken"
    for url in ("", "a", "grpc://a:1", "http://u:p@a:1", "http://a:1/x", "http://a:1?x", "http://a:x", "http://[::1"):
        with pytest.raises(LinkError, match="is no address of a server"):
            Place(url)
    assert model_path("a b/c") == "/v2/models/a%20b%2Fc"


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("127.0.0.1:8000", "put http:// before it: http://127.0.0.1:8000"),
        ("localhost:8000", "put http:// before it: http://localhost:8000"),
        ("pi", "put http:// before it: http://pi"),
        ("", "give http://HOST:PORT"),
        ("http://", "give http://HOST:PORT"),
        ("grpc://a:1", "give http://HOST:PORT"),
        ("http://u:p@a:1", "leave out the user; --token-file (token=) gives a token"),
        ("http://a:1/x", "leave out the path"),
        ("http://a:1?x", "leave out the path"),
    ],
)
def test_an_address_that_is_none_is_told_what_is_wrong_with_it(url: str, hint: str) -> None:
    with pytest.raises(LinkError, match="is no address of a server") as caught:
        Place(url)
    assert caught.value.hint == hint


def test_a_fault_names_the_way_out_for_both_the_command_line_and_python() -> None:
    hint = Fault("late", "it was late").hint
    assert "--on-late local" in hint and 'on_late="local"' in hint


def test_a_connection_needs_an_address_that_is_known() -> None:
    with pytest.raises(Fault, match="is not known yet"):
        Connection(Place("http://127.0.0.1:1"), time.monotonic() + 1, Counts())
