"""A head here and its tail elsewhere: every answer is the right one, whatever the server or the link does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgesdk
from edgesdk import remote_tail
from edgesdk.client import Fault
from edgesdk.server import Doors, Server
from edgesdk_converters.errors import DeviceError, LinkError, ModelError
from edgesdk_targets import runner as runners
from edgesdk_targets.bundle import Bundle, nested

from ..fashion import samples
from .conftest import COMMAND, run_here
from .fake_server import Act, Asked, FakeServer, message, metadata, outputs
from .test_device_cut import fresh

REST = Doors(port=0, grpc_port=None)


@pytest.fixture(scope="module")
def tail(split: Bundle) -> Bundle:
    return nested(split, "tail.edge")


@pytest.fixture(scope="module")
def images() -> list[dict[str, np.ndarray]]:
    return [{"image": one[None]} for one in samples("t10k", 0, 60)["image"]]


@pytest.fixture(scope="module")
def wants(split: Bundle, images: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    with edgesdk.load(split.path) as session:
        return [session.run(one)["logits"] for one in images]


@pytest.fixture(scope="module")
def server(split: Bundle) -> Iterator[Server]:
    with edgesdk.serve(split.path, REST) as running:
        yield running


def wait_for(condition: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


# With a server


def test_every_answer_is_the_servers_and_what_it_is_here(
    split: Bundle, server: Server, images: list[dict[str, np.ndarray]], wants: list[np.ndarray]
) -> None:
    before = server.service.metrics._answers["rest", "200"]
    with edgesdk.load(split.path, remote=server.url, deadline_ms=10_000) as session:
        assert session.remote is not None and session.remote.up
        for one, want in zip(images, wants, strict=True):
            got = session.run(one)["logits"]
            assert np.array_equal(got, want) and got.flags.writeable
        counts = session.remote.counts
        assert (counts.remote, counts.local, counts.connects) == (60, 0, 1)
        assert server.service.metrics._answers["rest", "200"] == before + 61  # one for its metadata
        out = {"logits": np.empty((1, 10), np.float32)}
        assert session.run(images[3], out=out)["logits"] is out["logits"] and np.array_equal(out["logits"], wants[3])
        raw = session.run({"image": np.zeros((28, 28), np.uint8)}, raw=True)["logits"]
        assert raw.sum() == pytest.approx(1, rel=1e-5)
        with pytest.raises(ModelError, match="unknown 'x'"):
            session.run({"x": images[0]["image"]})
    with pytest.raises(edgesdk.EdgeError, match="closed"):
        session.run(images[0])


def test_a_stream_is_in_order_and_its_head_runs_while_the_tail_is_away(
    split: Bundle, server: Server, images: list[dict[str, np.ndarray]], wants: list[np.ndarray]
) -> None:
    for depth in (1, 2, 5):
        with edgesdk.load(split.path, remote=server.url, deadline_ms=10_000) as session:
            assert session.remote is not None
            got = list(session.stream(iter(images), depth=depth))
            assert len(got) == 60 and all(np.array_equal(g["logits"], w) for g, w in zip(got, wants, strict=True))
            assert session.remote.counts.remote == 60 and session.remote.counts.connects <= depth + 1
            assert list(session.stream([])) == []
            some = session.stream(iter(images), depth=depth)
            assert np.array_equal(next(some)["logits"], wants[0])
            some.close()
            with pytest.raises(ModelError, match="missing 'image'"):
                list(session.stream([images[0], {}]))
            with pytest.raises(ModelError, match="depth is 0"):
                next(session.stream(images, depth=0))
    with edgesdk.load(split.path) as here:
        assert all(np.array_equal(g["logits"], w) for g, w in zip(here.stream(images), wants, strict=True))


def test_the_head_of_the_next_runs_before_the_answer_to_the_last_is_here(
    split: Bundle, tail: Bundle, images: list[dict[str, np.ndarray]], wants: list[np.ndarray]
) -> None:
    """The server holds every answer back until the next request's head has run: one after the other it could not end."""
    gate = threading.Semaphore(0)

    def script(asked: Asked) -> Sequence[Act]:
        if asked.head.startswith("GET"):
            return [metadata(tail)]
        assert gate.acquire(timeout=20)
        return [outputs(asked, tail, wants[asked.number - 1])]

    with FakeServer(script) as fake, edgesdk.load(split.path, remote=fake.url, deadline_ms=30_000) as session:
        runner: Any = session._runner
        inner = runner.crossing
        runner.crossing = lambda feed: (inner(feed), gate.release())[0]
        stream = session.stream(iter(images[:10]), depth=1)
        gate_less = [next(stream)["logits"]]  # has run the head of the second
        gate.release()  # nobody runs a head after the last
        gate_less += [one["logits"] for one in stream]
        assert all(np.array_equal(g, w) for g, w in zip(gate_less, wants[:10], strict=True))
        assert session.remote is not None and session.remote.counts.remote == 10


def test_many_threads_share_a_session(
    split: Bundle, server: Server, images: list[dict[str, np.ndarray]], wants: list[np.ndarray]
) -> None:
    with edgesdk.load(split.path, remote=server.url, deadline_ms=30_000) as session, ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda i: session.run(images[i % 60])["logits"], range(400)))
        assert all(np.array_equal(one, wants[i % 60]) for i, one in enumerate(got))
        assert session.remote is not None and session.remote.counts.remote == 400 and session.remote.counts.connects <= 9


def test_a_token_opens_the_server(split: Bundle, images: list[dict[str, np.ndarray]], wants: list[np.ndarray]) -> None:
    with edgesdk.serve(split.path, REST, token="s3cret") as server:
        with edgesdk.load(split.path, remote=server.url, token="s3cret", on_late="error", deadline_ms=10_000) as session:
            assert np.array_equal(session.run(images[0])["logits"], wants[0])
        with pytest.raises(LinkError, match="answers 401"):
            edgesdk.load(split.path, remote=server.url, token="other", on_late="error")


def test_the_bytes_counted_are_those_on_the_wire(
    split: Bundle, tail: Bundle, images: list[dict[str, np.ndarray]], wants: list[np.ndarray]
) -> None:
    def script(asked: Asked) -> Sequence[Act]:
        return [metadata(tail) if asked.head.startswith("GET") else outputs(asked, tail, wants[asked.number - 1])]

    with FakeServer(script) as fake, edgesdk.load(split.path, remote=fake.url, deadline_ms=10_000) as session:
        assert session.remote is not None
        for one, want in zip(images[:5], wants, strict=False):
            assert np.array_equal(session.run(one)["logits"], want)
        assert session.remote.counts.sent_bytes == sum(asked.size for asked in fake.seen)
        assert session.remote.counts.received_bytes == fake.sent_bytes
        ids = [asked.told["id"] for asked in fake.seen[1:]]
        assert len(set(ids)) == 5
        # What crosses is 2,352 bytes; all else that a request sends stays below 450.
        assert max(asked.size for asked in fake.seen[1:]) < 2352 + 450


# Without one, or with a bad one


def test_no_server_at_all(split: Bundle, images: list[dict[str, np.ndarray]], wants: list[np.ndarray]) -> None:
    with FakeServer(lambda asked: []) as fake:
        gone = fake.url
    with pytest.warns(RuntimeWarning, match="runs here until its server answers: .*refused") as told:
        session = edgesdk.load(split.path, remote=gone)
    assert told[0].filename == __file__
    with session:
        assert session.remote is not None
        for one, want in zip(images, wants, strict=True):
            assert np.array_equal(session.run(one)["logits"], want)
        assert (session.remote.counts.remote, session.remote.counts.local) == (0, 60) and not session.remote.up
        assert "refused" in session.remote.why
    with pytest.raises(LinkError, match="refused"):
        edgesdk.load(split.path, remote=gone, on_late="error")


def test_another_tail_is_never_asked(split: Bundle, tail: Bundle, images: list[dict[str, np.ndarray]]) -> None:
    with FakeServer(lambda asked: [metadata(tail, "0" * 64)]) as fake:
        with pytest.raises(LinkError, match="serves another tail \\(000000000000, not"):
            edgesdk.load(split.path, remote=fake.url, on_late="error")
        with pytest.warns(RuntimeWarning, match="another tail"), edgesdk.load(split.path, remote=fake.url) as session:
            session.run(images[0])
            assert session.remote is not None and session.remote.counts.local == 1
        assert not [asked for asked in fake.seen if asked.head.startswith("POST")]


BAD: dict[str, Any] = {
    "the answer to another request": lambda a, t, v: outputs(a, t, v, id="another-1"),
    "no id": lambda a, t, v: outputs(a, t, v, id=None),
    "another tail's": lambda a, t, v: outputs(a, t, v, headers={"edgesdk_digest": "0" * 64}),
    "nobody's": lambda a, t, v: message(b"{}"),
    "another shape": lambda a, t, v: outputs(a, t, v, output={"shape": [10, 1]}),
    "a shape that is none": lambda a, t, v: outputs(a, t, v, output={"shape": [1, "10"]}),
    "a negative shape": lambda a, t, v: outputs(a, t, v, output={"shape": [-1, -10]}),
    "no shape": lambda a, t, v: outputs(a, t, v, output={"shape": None}),
    "another type": lambda a, t, v: outputs(a, t, v, output={"datatype": "FP64"}),
    "another name": lambda a, t, v: outputs(a, t, v, output={"name": "other"}),
    "too few bytes": lambda a, t, v: outputs(a, t, v, output={"parameters": {"binary_data_size": 36}}),
    "bytes that are not there": lambda a, t, v: outputs(a, t, v, output={"parameters": {"binary_data_size": 400}}),
    "a size that is none": lambda a, t, v: outputs(a, t, v, output={"parameters": {"binary_data_size": "40"}}),
    "no size": lambda a, t, v: outputs(a, t, v, output={"parameters": {}}),
    "bytes too many": lambda a, t, v: outputs(a, t, v, extra=b"x"),
    "no outputs": lambda a, t, v: outputs(a, t, v, outputs=[]),
    "outputs of text": lambda a, t, v: outputs(a, t, v, outputs="x"),
    "another checksum": lambda a, t, v: outputs(a, t, v, headers={"edgesdk_crc32": "00000000"}),
    "a byte changed": lambda a, t, v: outputs(a, t, v)[:-1] + bytes([outputs(a, t, v)[-1] ^ 1]),
    "JSON that is none": lambda a, t, v: message(b"x" * 50, edgesdk_digest=t.digest, inference_header_content_length="50"),
    "a JSON length of NaN": lambda a, t, v: outputs(a, t, v, headers={"inference_header_content_length": "nan"}),
    "a JSON length beyond all": lambda a, t, v: outputs(a, t, v, headers={"inference_header_content_length": "9" * 15}),
    "a length of NaN": lambda a, t, v: outputs(a, t, v, headers={"content_length": "nan"}),
    "a negative length": lambda a, t, v: outputs(a, t, v, headers={"content_length": "-5"}),
    "a length beyond all": lambda a, t, v: outputs(a, t, v, headers={"content_length": "9" * 12}),
    "a length too short": lambda a, t, v: outputs(a, t, v, headers={"content_length": "20"}),
    "chunks": lambda a, t, v: outputs(a, t, v, headers={"transfer_encoding": "chunked"}),
    "no HTTP": lambda a, t, v: b"\x00\x01\x02\x03\r\n\r\n",
    "a status of letters": lambda a, t, v: b"HTTP/1.1 abc OK\r\n\r\n",
    "a header that is none": lambda a, t, v: b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n",
    "a header twice": lambda a, t, v: b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\nContent-Length: 1\r\n\r\nx",
    "a head without end": lambda a, t, v: b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 5000,
    "an error": lambda a, t, v: message(b'{"error":"no"}', "500 Internal Server Error", edgesdk_digest=t.digest),
    "a redirection": lambda a, t, v: message(b"", "302 Found", location="http://elsewhere/"),
    "an interim answer": lambda a, t, v: b"HTTP/1.1 100 Continue\r\n\r\n",
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_answer_is_never_taken(
    split: Bundle, tail: Bundle, images: list[dict[str, np.ndarray]], wants: list[np.ndarray], case: str
) -> None:
    """Wrong values stand in each: were one taken, it would be seen."""
    wrong = wants[0] + 1
    with FakeServer(lambda asked: [metadata(tail) if asked.head.startswith("GET") else BAD[case](asked, tail, wrong)]) as fake:
        with edgesdk.load(split.path, remote=fake.url, deadline_ms=10_000) as session:
            assert np.array_equal(session.run(images[0])["logits"], wants[0])
            assert session.remote is not None
            counts = session.remote.counts
            assert (counts.remote, counts.local, counts.malformed + counts.refused) == (0, 1, 1), counts
        with edgesdk.load(split.path, remote=fake.url, deadline_ms=10_000, on_late="error") as session:
            with pytest.raises(LinkError) as caught:
                session.run(images[0])
            assert type(caught.value) is LinkError and isinstance(caught.value.__cause__, Fault)
            assert caught.value.__cause__.kind in ("malformed", "refused")


@pytest.mark.parametrize("ending", ["close", "reset"])
@pytest.mark.parametrize("sent", [0, 1, 30, 200, -1])
def test_an_answer_that_breaks_off_is_never_taken(
    split: Bundle, tail: Bundle, images: list[dict[str, np.ndarray]], wants: list[np.ndarray], ending: str, sent: int
) -> None:
    def script(asked: Asked) -> Sequence[Act]:
        return [metadata(tail)] if asked.head.startswith("GET") else [outputs(asked, tail, wants[0] + 1)[:sent], ending]

    with FakeServer(script) as fake, edgesdk.load(split.path, remote=fake.url, deadline_ms=10_000) as session:
        assert np.array_equal(session.run(images[0])["logits"], wants[0])
        assert session.remote is not None and session.remote.counts.local == 1 and session.remote.counts.remote == 0


def test_a_late_answer_meets_nobody(
    split: Bundle, tail: Bundle, images: list[dict[str, np.ndarray]], wants: list[np.ndarray]
) -> None:
    """The answer to the first request comes after its deadline, while the second waits: on a connection that is closed."""

    def script(asked: Asked) -> Sequence[Act]:
        if asked.head.startswith("GET"):
            return [metadata(tail)]
        if len([a for a in fake.seen if a.head.startswith("POST")]) == 1:
            return [0.4, outputs(asked, tail, wants[0] + 1)]
        return [0.2, outputs(asked, tail, wants[1])]

    with FakeServer(script) as fake, edgesdk.load(split.path, remote=fake.url, deadline_ms=300) as session:
        assert session.remote is not None
        begin = time.monotonic()
        assert np.array_equal(session.run(images[0])["logits"], wants[0])
        assert time.monotonic() - begin >= 0.3
        assert session.remote.counts.late == 1 and session.remote.up
        assert np.array_equal(session.run(images[1])["logits"], wants[1])
        assert (session.remote.counts.remote, session.remote.counts.local, fake.connections) == (1, 1, 2)


def test_an_answer_that_drips_ends_with_the_deadline_all_the_same(
    split: Bundle, tail: Bundle, images: list[dict[str, np.ndarray]], wants: list[np.ndarray]
) -> None:
    def script(asked: Asked) -> Sequence[Act]:
        if asked.head.startswith("GET"):
            return [metadata(tail)]
        return [part for i in range(300) for part in (outputs(asked, tail, wants[0] + 1)[i : i + 1], 0.05)]

    with FakeServer(script) as fake, edgesdk.load(split.path, remote=fake.url, deadline_ms=200) as session:
        begin = time.monotonic()
        assert np.array_equal(session.run(images[0])["logits"], wants[0])
        assert time.monotonic() - begin < 5  # the drip takes 15 s
        assert session.remote is not None and session.remote.counts.late == 1


def test_a_server_that_hangs_costs_three_deadlines_and_then_none(
    split: Bundle, tail: Bundle, images: list[dict[str, np.ndarray]], wants: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_tail, "_FIRST_PAUSE_S", 60.0)

    def script(asked: Asked) -> Sequence[Act]:
        return [metadata(tail)] if asked.head.startswith("GET") else [30.0]

    with FakeServer(script) as fake, edgesdk.load(split.path, remote=fake.url, deadline_ms=50) as session:
        for one, want in zip(images, wants, strict=True):
            assert np.array_equal(session.run(one)["logits"], want)
        assert session.remote is not None
        assert (session.remote.counts.late, session.remote.counts.local, session.remote.up) == (3, 60, False)


def test_the_way_is_here_while_the_link_is_down_and_there_is_a_tail_here(
    split: Bundle, images: list[dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_tail, "_FIRST_PAUSE_S", 60.0)
    for on_late, down in (("local", "here"), ("error", "server")):
        with edgesdk.serve(split.path, REST) as server:
            session = edgesdk.load(split.path, remote=server.url, deadline_ms=5_000, on_late=on_late)  # type: ignore[arg-type]
            far = session.remote
            assert far is not None
            session.run(images[0])
            assert far.way == "server"
        with session:
            try:
                session.run(images[0])
            except LinkError:
                assert on_late == "error"
            assert not far.up and far.way == far.to_json()["way"] == down
            if on_late == "local":
                assert far.went[-1].way == down


def test_a_server_that_comes_back_is_used_again(
    split: Bundle, images: list[dict[str, np.ndarray]], wants: list[np.ndarray]
) -> None:
    """Stopped and started three times on the same port: no answer is lost or wrong, and the tail always moves back."""
    server = edgesdk.serve(split.path, REST)
    port = int(server.url.rpartition(":")[2])
    with edgesdk.load(split.path, remote=server.url, deadline_ms=5_000) as session:
        assert session.remote is not None
        counts = session.remote.counts
        for turn in range(1, 4):
            assert np.array_equal(session.run(images[0])["logits"], wants[0]) and counts.remote == turn
            server.stop()
            for one, want in zip(images[:20], wants, strict=False):
                assert np.array_equal(session.run(one)["logits"], want)
            assert counts.local == 20 * turn and not session.remote.up
            server = edgesdk.serve(split.path, Doors(port=port, grpc_port=None))
            wait_for(lambda: session.remote is not None and session.remote.up)
            assert counts.reconnects == turn
        assert np.array_equal(session.run(images[1])["logits"], wants[1])
        server.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "edgesdk-remote"]


def test_the_pause_between_tries_grows_and_is_reset_by_an_answer(
    split: Bundle, tail: Bundle, images: list[dict[str, np.ndarray]], wants: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that says it is well and then answers wrongly is tried ever more seldom, with one request each time."""
    monkeypatch.setattr(remote_tail, "_FIRST_PAUSE_S", 0.01)
    good = threading.Event()

    def script(asked: Asked) -> Sequence[Act]:
        if asked.head.startswith("GET"):
            return [metadata(tail)]
        return [outputs(asked, tail, wants[0]) if good.is_set() else message(b"{}")]

    with FakeServer(script) as fake, edgesdk.load(split.path, remote=fake.url, deadline_ms=5_000) as session:
        far = session.remote
        assert far is not None
        pauses = []
        for turn in range(1, 5):
            wait_for(lambda: far.up)
            assert np.array_equal(session.run(images[0])["logits"], wants[0])
            assert (far.counts.refused, far.up) == (turn, False)
            pauses.append(far._pause_s)
        assert pauses == sorted(pauses) and pauses[-1] >= 8 * 0.01
        good.set()
        wait_for(lambda: far.up)
        session.run(images[0])
        assert far.counts.remote == 1 and far._pause_s == 0.01 and far.why == ""


def test_a_connection_that_the_server_closed_while_idle_costs_nothing(
    split: Bundle, tail: Bundle, images: list[dict[str, np.ndarray]], wants: list[np.ndarray]
) -> None:
    def script(asked: Asked) -> Sequence[Act]:
        if asked.head.startswith("GET"):
            return [metadata(tail)]
        return [outputs(asked, tail, wants[0]), "close"]

    with FakeServer(script) as fake, edgesdk.load(split.path, remote=fake.url, deadline_ms=10_000, on_late="error") as session:
        for _ in range(5):
            assert np.array_equal(session.run(images[0])["logits"], wants[0])
        assert session.remote is not None
        assert session.remote.counts.remote == 5 and session.remote.counts.gone == 0 and fake.connections == 5


def test_what_came_unasked_is_not_read_as_an_answer(
    split: Bundle, tail: Bundle, images: list[dict[str, np.ndarray]], wants: list[np.ndarray]
) -> None:
    """A second answer follows the right one later: the connection is not used again."""

    def script(asked: Asked) -> Sequence[Act]:
        if asked.head.startswith("GET"):
            return [metadata(tail)]
        right = outputs(asked, tail, wants[0])
        return [right, 0.05, outputs(asked, tail, wants[0] + 1)]

    with FakeServer(script) as fake, edgesdk.load(split.path, remote=fake.url, deadline_ms=10_000) as session:
        for _ in range(3):
            assert np.array_equal(session.run(images[0])["logits"], wants[0])
            time.sleep(0.2)
        assert session.remote is not None and session.remote.counts.remote == 3 and fake.connections == 3


def start(split: Bundle, port: int = 0) -> tuple[subprocess.Popen[str], str]:
    """`edgesdk serve` in a process of its own, and its address."""
    process = subprocess.Popen(
        [*COMMAND, "serve", str(split.path), "--port", str(port), "--no-grpc", "--json"], stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or lines[-1] not in ("}\n", ""):
        lines.append(process.stdout.readline())
    return process, json.loads("".join(lines))["rest"]


def states(pid: int) -> set[str]:
    """Those of a process's threads; T is stopped (proc(5))."""
    return {place.read_text().rpartition(")")[2].split()[0] for place in Path(f"/proc/{pid}/task").glob("*/stat")}


def test_a_real_server_that_is_paused_killed_and_started_again(
    split: Bundle, images: list[dict[str, np.ndarray]], wants: list[np.ndarray]
) -> None:
    process, url = start(split)
    try:
        with edgesdk.load(split.path, remote=url, deadline_ms=500) as session:
            far = session.remote
            assert far is not None

            def right() -> None:
                for one, want in zip(images, wants, strict=True):
                    assert np.array_equal(session.run(one)["logits"], want)

            right()
            before = far.counts.remote
            assert before > 0
            os.kill(process.pid, signal.SIGSTOP)
            wait_for(lambda: states(process.pid) == {"T"})
            right()
            assert far.counts.remote == before and far.counts.late == 60 - before + 3 and not far.up
            os.kill(process.pid, signal.SIGCONT)
            wait_for(lambda: far.up)
            right()
            assert far.counts.remote > before
            process.kill()
            process.wait()
            before = far.counts.remote
            right()
            assert far.counts.remote == before and not far.up
            process, again = start(split, int(url.rpartition(":")[2]))
            assert again == url
            wait_for(lambda: far.up)
            right()
            assert far.counts.remote > before and far.counts.reconnects >= 2
    finally:
        process.kill()
        process.wait()


# Chaos


CHANCES = {
    "right": 0.7, "slow": 0.04, "hang": 0.02, "close": 0.03, "reset": 0.03, "cut": 0.04, "older": 0.03, "byte": 0.04,
    "garbage": 0.03, "drip": 0.02, "503": 0.02,
}  # fmt: skip


class Chaos:
    """What a server does to each request, by chance: mostly right, sometimes slow, silent, broken off, another's, garbage."""

    def __init__(self, tail: Bundle, answer: Any, seed: int) -> None:
        self.tail, self.answer = tail, answer
        self.rng, self.lock = np.random.default_rng(seed), threading.Lock()
        self.older: bytes = b""
        self.done: dict[str, int] = {}

    def script(self, asked: Asked) -> Sequence[Act]:
        with self.lock:
            kind = str(self.rng.choice(list(CHANCES), p=list(CHANCES.values())))
            place, junk = int(self.rng.integers(1 << 30)), self.rng.bytes(200)
            self.done[kind] = self.done.get(kind, 0) + 1
        if asked.head.startswith("GET"):
            return [metadata(self.tail)] if kind == "right" else [b"HTTP/1.1 ", "close"]
        right = outputs(asked, self.tail, self.answer(asked))
        older, self.older = self.older or right, right
        place %= len(right)
        changed = right[:place] + bytes([right[place] ^ (1 << place % 8)]) + right[place + 1 :]
        acts: dict[str, Sequence[Act]] = {
            "right": [right], "slow": [0.04, right], "hang": [0.5, right], "close": ["close"], "reset": ["reset"],
            "cut": [right[:place], "close"], "older": [older] if older is not right else ["close"],
            "byte": [changed, 0.01, "close"], "garbage": [junk, "close"],
            "drip": [part for i in range(40) for part in (right[i : i + 1], 0.01)],
            "503": [message(b'{"error":"busy"}', "503 Service Unavailable")],
        }  # fmt: skip
        return acts[kind]


def chaos(split: Bundle, tail: Bundle, images: list[Any], wants: list[np.ndarray], requests: int, seed: int) -> dict[str, Any]:
    """So many requests from four threads, the server killed and started again in between; each answer is compared."""
    crossing = {}
    head = runners.load(nested(split, "head.edge"))
    for place, one in enumerate(images):
        crossing[head.run(one)[0].tobytes()] = place
    deadline_ms, wrong, lost, over = 60.0, [], [], []
    acting = Chaos(tail, lambda asked: wants[crossing[asked.payload]], seed)
    fake = FakeServer(acting.script).__enter__()
    stop = threading.Event()

    def kill_and_start() -> None:
        nonlocal fake
        while not stop.wait(0.5):
            fake.__exit__()
            if stop.wait(0.1):
                return
            fake = FakeServer(acting.script, port=fake.port).__enter__()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        session = edgesdk.load(split.path, remote=fake.url, deadline_ms=deadline_ms, threads=1)
    far = session.remote
    assert far is not None

    def one(number: int) -> None:
        place = number % len(images)
        for _ in range(40 if number % 4 else 0):  # most requests wait until there is a server, so that it has its chances
            if far.up:
                break
            time.sleep(0.005)
        begin = time.monotonic()
        try:
            got = session.run(images[place])["logits"]
        except Exception as error:
            lost.append(repr(error))
            return
        over.append(1e3 * (time.monotonic() - begin))
        if not np.array_equal(got, wants[place]):
            wrong.append(number)

    killer = threading.Thread(target=kill_and_start)
    killer.start()
    try:
        with session, ThreadPoolExecutor(4) as pool:
            list(pool.map(one, range(requests)))
            counts = far.counts.to_json()
    finally:
        stop.set()
        killer.join()
        fake.__exit__()
    past = sum(took > deadline_ms + 50 for took in over)
    return {"wrong": wrong, "lost": lost, "past deadline + 50 ms": past, "slowest_ms": max(over), "done": acting.done, **counts}


def check_chaos(found: dict[str, Any], requests: int) -> None:
    print(found)
    assert found["wrong"] == [] and found["lost"] == []
    assert found["remote"] + found["local"] == requests
    assert found["remote"] > requests // 4 and found["local"] > requests // 20
    assert found["slowest_ms"] < 5_000


def test_chaos(
    split: Bundle, tail: Bundle, images: list[dict[str, np.ndarray]], wants: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_tail, "_LONGEST_PAUSE_S", 0.1)
    monkeypatch.setattr(remote_tail, "_FIRST_PAUSE_S", 0.01)
    check_chaos(chaos(split, tail, images, wants, 600, 1), 600)


@pytest.mark.slow
def test_chaos_ten_thousand_times(
    split: Bundle, tail: Bundle, images: list[dict[str, np.ndarray]], wants: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_tail, "_LONGEST_PAUSE_S", 0.1)
    monkeypatch.setattr(remote_tail, "_FIRST_PAUSE_S", 0.01)
    check_chaos(chaos(split, tail, images, wants, 10_000, 2), 10_000)


# What it needs


def test_what_cannot_be_meant_is_said(split: Bundle, folder: Path) -> None:
    for given, told in (
        ({"remote": "ftp://x:1"}, "is no address of a server"),
        ({"remote": "http://"}, "is no address of a server"),
        ({"remote": "http://x:99999"}, "is no address of a server"),
        ({"remote": "http://x:1/v2"}, "is no address of a server"),
        ({"remote": "x:1"}, "is no address of a server"),
        ({"remote": "http://x:1", "deadline_ms": 0}, "deadline_ms is 0"),
        ({"remote": "http://x:1", "deadline_ms": float("nan")}, "deadline_ms is nan"),
        ({"remote": "http://x:1", "on_late": "wait"}, "on_late is 'wait'"),
        ({"remote": "https://x:1", "ca": "nothing.pem"}, "nothing.pem holds no certificates"),
        ({"remote": "http://no.such.host.invalid:1", "on_late": "error"}, "has no address"),
        ({"deadline_ms": 5}, "are for a remote tail"),
        ({"token": "x"}, "are for a remote tail"),
    ):
        with pytest.raises(LinkError, match=told):
            edgesdk.load(split.path, **given)  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match="the token from token has spaces"):
        edgesdk.load(split.path, remote="http://x:1", token="a b")
    with pytest.raises(DeviceError, match="is not split"):
        edgesdk.load(folder / "older.edge", remote="http://127.0.0.1:1")


def test_the_command(split: Bundle, server: Server, images: list[dict[str, np.ndarray]], tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **images[0])
    done = run_here(f"run {split.path} --inputs x.npz --outputs y.npz --remote {server.url} --deadline-ms 10000", tmp_path)
    assert done.code == 0 and f"tail ran at {server.url}" in done.out and "warning" not in done.err, done.err
    here = run_here(f"run {split.path} --inputs x.npz --outputs z.npz", tmp_path)
    assert here.code == 0
    assert np.array_equal(np.load(tmp_path / "y.npz")["logits"], np.load(tmp_path / "z.npz")["logits"])
    done = run_here(f"run {split.path} --inputs x.npz --remote http://127.0.0.1:1", tmp_path)
    assert done.code == 0 and "tail ran here" in done.out and "warning: the tail ran here: no connection" in done.err
    done = run_here(f"run {split.path} --inputs x.npz --remote http://127.0.0.1:1 --on-late error", tmp_path)
    assert done.code == 1 and done.error["kind"] == "LinkError"


def test_a_device_needs_nothing_but_numpy_and_the_runtime(split: Bundle, server: Server) -> None:
    """In a process where the server's packages and those of the workshop cannot be imported."""
    code = f"""
        import sys
        before = set(sys.modules)
        import numpy, onnxruntime
        known = {{name.split(".")[0] for name in sys.modules}}
        import edgesdk
        with edgesdk.load({str(split.path)!r}, remote={server.url!r}, on_late="error", deadline_ms=10_000) as session:
            x = numpy.zeros((1, 1, 28, 28), numpy.float32)
            out = list(session.stream([{{"image": x}}] * 3))
            print(len(out), session.remote.counts.remote)
        new = {{name.split(".")[0] for name in sys.modules}} - known
        print(sorted(name for name in new if name not in sys.stdlib_module_names))
    """
    done = fresh(code)
    assert done.stdout.split("\n")[:2] == ["3 3", "['edgesdk', 'edgesdk_converters', 'edgesdk_targets']"], done.stderr
