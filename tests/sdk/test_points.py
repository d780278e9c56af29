"""Operating points at run time: a server has a tail for each, and the device sends what the link has time for."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

import edgesdk
from edgesdk import moving, remote_runner, remote_tail
from edgesdk import service as services
from edgesdk.client import Fault
from edgesdk.moving import Prefer
from edgesdk.server import Doors, Server
from edgesdk.service import Service
from edgesdk.session import Session
from edgesdk_converters.bottlenecks import leakage
from edgesdk_converters.errors import BundleError, EdgeError, LinkError
from edgesdk_targets import runner as runners
from edgesdk_targets import triton
from edgesdk_targets.bundle import Bundle, draft, nested
from edgesdk_targets.split_runner import point_tails

from ..fashion import samples
from .conftest import run_here
from .fake_server import Act, Asked, FakeServer, message, metadata, outputs
from .slow_tail import slowed
from .test_serve import Gated, address, ask

NET = Path(__file__).parents[2] / "examples" / "fashion" / "fashion_cnn.onnx"
QUICK = {"bottleneck.mimic": "1", "bottleneck.tune": "0", "bottleneck.decoder_width": "32", "bottleneck.batch": "32"}
BYTES = {4: 98, 2: 49, 1: 25}
NAMES = {4: "fashion_cnn", 2: "fashion_cnn-2ch", 1: "fashion_cnn-1ch"}
REST = Doors(port=0, grpc_port=None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """A bottleneck of four channels, hardly trained, with operating points of one and two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(leakage, "SAMPLES", 100)
        yield edgesdk.export(
            NET, device="raspberry-pi-4", split="auto", bottleneck=(1, 2, 4), payload_bits=4, max_drop=100.0, settings=QUICK,
            out=tmp_path_factory.mktemp("points") / "cnn.edge", data=samples("t10k", 0, 300), train=samples("train", 0, 400),
        )  # fmt: skip


@pytest.fixture(scope="module")
def tails(made: Bundle) -> dict[int, Bundle]:
    return point_tails(made)


@pytest.fixture(scope="module")
def images() -> list[dict[str, np.ndarray]]:
    return [{"image": one[None]} for one in samples("t10k", 0, 40)["image"]]


@pytest.fixture(scope="module")
def crossing(made: Bundle, images: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    head = runners.load(nested(made, "head.edge"))
    return [head.run(one)[0] for one in images]


@pytest.fixture(scope="module")
def wants(tails: dict[int, Bundle], crossing: list[np.ndarray]) -> dict[int, list[np.ndarray]]:
    """What each tail makes of each image, in this process; all differ."""
    found = {}
    for channels, tail in tails.items():
        loaded, (spec,) = runners.load(tail), tail.manifest.signature.inputs
        found[channels] = [loaded.run({spec.name: np.ascontiguousarray(one[:, : BYTES[channels]])})[0] for one in crossing]
    for place in range(len(crossing)):
        assert len({found[channels][place].tobytes() for channels in BYTES}) == 3
    return found


@pytest.fixture(scope="module")
def server(made: Bundle) -> Iterator[Server]:
    with edgesdk.serve(made.path, Doors(port=0, grpc_port=0)) as running:
        yield running


# The bundle and the server


def test_a_bundle_has_a_tail_of_its_own_name_for_each_point(made: Bundle, tails: dict[int, Bundle]) -> None:
    assert {channels: tail.manifest.name for channels, tail in tails.items()} == NAMES
    assert {channels: tail.manifest.signature.inputs[0].shape for channels, tail in tails.items()} == {
        channels: (1, count) for channels, count in BYTES.items()
    }
    assert list(tails) == [4, 2, 1] and tails[4].digest == made.manifest.model["tail"]
    for change in ({"points": {"2": "0" * 64}}, {"points": {"x": ""}}, {"points": [1]}, {"channels": None}):
        with pytest.raises(BundleError, match=r"is not the tail for 2 channels|does not say which operating points"):
            point_tails(replace(made, manifest=replace(made.manifest, model=made.manifest.model | change)))


@pytest.mark.parametrize("channels", BYTES)
def test_every_point_is_a_model_of_its_own_by_rest(
    server: Server, tails: dict[int, Bundle], crossing: list[np.ndarray], wants: dict[int, list[np.ndarray]], channels: int
) -> None:
    client, tail = triton_http.InferenceServerClient(server.url.removeprefix("http://")), tails[channels]
    name, (spec,) = NAMES[channels], tail.manifest.signature.inputs
    assert client.is_server_ready() and client.is_model_ready(name) and client.is_model_ready(name, "1")
    told = client.get_model_metadata(name)
    assert told["name"] == name and told["inputs"][0]["shape"] == [1, BYTES[channels]]
    assert told["parameters"]["digest"] == tail.digest and told["parameters"]["channels"] == str(channels)
    for one, want in zip(crossing[:5], wants[channels], strict=False):
        part = np.ascontiguousarray(one[:, : BYTES[channels]])
        given = triton_http.InferInput(spec.name, part.shape, "UINT8").set_data_from_numpy(part)
        answer = client.infer(name, [given])
        assert np.array_equal(answer.as_numpy("logits"), want) and answer.get_response()["model_name"] == name
    status, headers, _ = ask(server, "GET", f"/v2/models/{name}")
    assert status == 200 and headers["edgesdk-digest"] == tail.digest


@pytest.mark.parametrize("channels", BYTES)
def test_every_point_is_a_model_of_its_own_by_grpc(
    server: Server, tails: dict[int, Bundle], crossing: list[np.ndarray], wants: dict[int, list[np.ndarray]], channels: int
) -> None:
    client, tail = triton_grpc.InferenceServerClient(server.grpc_address), tails[channels]
    name, (spec,) = NAMES[channels], tail.manifest.signature.inputs
    assert client.is_model_ready(name)
    assert list(client.get_model_metadata(name).inputs[0].shape) == [1, BYTES[channels]]
    for one, want in zip(crossing[:5], wants[channels], strict=False):
        part = np.ascontiguousarray(one[:, : BYTES[channels]])
        given = triton_grpc.InferInput(spec.name, part.shape, "UINT8").set_data_from_numpy(part)
        answer = client.infer(name, [given])
        assert np.array_equal(answer.as_numpy("logits"), want)
        assert answer.get_response().parameters["digest"].string_param == tail.digest
    whole = triton_grpc.InferInput(spec.name, (1, 98 if channels < 4 else 49), "UINT8")
    whole.set_data_from_numpy(crossing[0][:, : whole.shape()[1]].copy())
    with pytest.raises(triton_grpc.InferenceServerException, match="has shape"):
        client.infer(name, [whole])


def test_who_asks_for_another_model_is_told_which_there_are(server: Server) -> None:
    told = "the models are 'fashion_cnn', 'fashion_cnn-2ch', 'fashion_cnn-1ch', version 1"
    for path in ("fashion_cnn-3ch", "fashion_cnn-2ch/versions/2", "fashion_cnn-2ch/infer/x"):
        status, _, body = ask(server, "GET", f"/v2/models/{path}")
        assert status == 404 and told in json.loads(body)["error"]
    with pytest.raises(triton_grpc.InferenceServerException, match=re.escape(told)):
        triton_grpc.InferenceServerClient(server.grpc_address).get_model_metadata("fashion_cnn-3ch")


def test_the_metrics_name_each_metric_once_and_count_each_model(made: Bundle, crossing: list[np.ndarray]) -> None:
    with edgesdk.serve(made.path, REST) as server:
        client = triton_http.InferenceServerClient(server.url.removeprefix("http://"))
        for channels, times in ((4, 1), (2, 3), (1, 2)):
            part = np.ascontiguousarray(crossing[0][:, : BYTES[channels]])
            for _ in range(times):
                name = server.service.signature.inputs[0].name
                client.infer(NAMES[channels], [triton_http.InferInput(name, part.shape, "UINT8").set_data_from_numpy(part)])
        text = ask(server, "GET", "/metrics")[2].decode()
    family, heads, seen = "", Counter[str](), set()
    for line in text.splitlines():
        if line.startswith("#"):
            family = line.split()[2]
            heads[line[:7] + family] += 1
        else:
            sample = line.rpartition(" ")[0]
            assert line.startswith(family) and sample not in seen, line
            seen.add(sample)
    assert set(heads.values()) == {1} and len(heads) == 10
    for channels, times in ((4, 1), (2, 3), (1, 2)):
        assert f'edgesdk_inference_seconds_count{{model="{NAMES[channels]}"}} {times}' in text
        assert f'edgesdk_requests_total{{model="{NAMES[channels]}",protocol="rest",code="200"}} {times}' in text


def test_all_models_share_the_workers_and_the_queue(
    tails: dict[int, Bundle], crossing: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "WAITING", 4)
    gated = [Gated(runners.load(tails[channels])) for channels in (4, 2)]
    service = Service(tails[4], gated[0], 2)  # type: ignore[arg-type]
    service.add(tails[2], gated[1], 2)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="as another tail of its bundle"):
        service.add(tails[2], gated[1], 2)  # type: ignore[arg-type]

    def infer(number: int) -> str:
        channels = 4 if number % 2 else 2
        client = triton_http.InferenceServerClient(server.url.removeprefix("http://"))
        part = np.ascontiguousarray(crossing[0][:, : BYTES[channels]])
        given = triton_http.InferInput(service.signature.inputs[0].name, part.shape, "UINT8").set_data_from_numpy(part)
        try:
            client.infer(NAMES[channels], [given])
        except triton_http.InferenceServerException as error:
            return str(error)
        return "right"

    with Server(service, REST) as server, ThreadPoolExecutor(10) as pool:
        asked = [pool.submit(infer, number) for number in range(10)]
        wait_for(lambda: sum(one.done() for one in asked) == 6)
        for one in gated:
            one.gate.set()
        told = [one.result(30) for one in asked]
        assert told.count("right") == 4 and sum("4 inferences are waiting" in one for one in told) == 6
        service.ready = False
        assert ask(server, "GET", "/v2/models/fashion_cnn-2ch/ready")[0] == ask(server, "GET", "/v2/health/ready")[0] == 503


def test_the_command_lists_all_models(made: Bundle, tails: dict[int, Bundle], tmp_path: Path) -> None:
    done = run_here(f"serve {made.path} --port 0 --no-grpc --check --json", tmp_path)
    told = json.loads(done.out)
    assert (told["model"], told["digest"], told["channels"]) == ("fashion_cnn", tails[4].digest, 4), done.err
    assert told["points"] == [{"model": NAMES[k], "digest": tails[k].digest, "channels": k} for k in (2, 1)]
    done = run_here(f"serve {made.path} --port 0 --no-grpc --check", tmp_path)
    assert "and for 2 channels instead of 4 the tail fashion_cnn-2ch, bundle" in " ".join(done.out.split())


def test_a_triton_repository_has_a_model_for_each_point(
    made: Bundle, tails: dict[int, Bundle], crossing: list[np.ndarray], wants: dict[int, list[np.ndarray]], tmp_path: Path
) -> None:
    done = run_here(f"triton {made.path} repository --json", tmp_path)
    told = json.loads(done.out)
    assert [told["name"], *(one["name"] for one in told["points"])] == list(NAMES.values()), done.err
    for channels, name in NAMES.items():
        folder, (spec,) = tmp_path / "repository" / name, tails[channels].manifest.signature.inputs
        config = text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
        assert (config.name, list(config.input[0].dims)) == (name, [1, BYTES[channels]])
        assert config.parameters["edgesdk_digest"].string_value == tails[channels].digest
        session = ort.InferenceSession(folder / "1" / "model.onnx")
        got = session.run(["logits"], {spec.name: crossing[0][:, : BYTES[channels]]})[0]
        assert np.allclose(got, wants[channels][0], rtol=1e-4, atol=1e-4)
    (tmp_path / "other" / NAMES[1]).mkdir(parents=True)
    with pytest.raises(BundleError, match="it is left alone"):
        triton.write_repository(made.path, tmp_path / "other")
    assert [place.name for place in (tmp_path / "other").iterdir()] == [NAMES[1]]  # nothing is written where one cannot be


# The device


def wait_for(condition: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


class Link:
    """A server behind a link whose rate changes: an answer takes so many ms for each byte that came, or never comes."""

    def __init__(self, tails: dict[int, Bundle], wants: dict[int, list[np.ndarray]], crossing: list[np.ndarray]) -> None:
        self.tails, self.wants = tails, wants
        self.channels = {count: channels for channels, count in BYTES.items()}
        self.ms_per_byte, self.fault = 0.0, ""
        self.rng, self.lock, self.asked = np.random.default_rng(0), threading.Lock(), Counter[int]()
        self.parts = {
            (channels, one[:, :count].tobytes()): place for place, one in enumerate(crossing) for channels, count in BYTES.items()
        }

    def script(self, asked: Asked) -> Sequence[Act]:
        path = asked.head.split(" ")[1]
        if asked.head.startswith("GET"):
            found = [tail for channels, tail in self.tails.items() if path == f"/v2/models/{NAMES[channels]}"]
            return [metadata(found[0])] if found else [message(b"{}")]
        channels = self.channels[len(asked.payload)]
        assert path == f"/v2/models/{NAMES[channels]}/infer"
        self.asked[channels] += 1
        if self.fault == "hang":
            return [30.0]
        wait = self.ms_per_byte * len(asked.payload) / 1e3
        # Where two images have the same first bytes they have the same answer.
        right = outputs(asked, self.tails[channels], self.wants[channels][self.parts[channels, asked.payload]])
        return [wait, *self.acts(right)]

    def acts(self, right: bytes) -> Sequence[Act]:
        if self.fault != "chaos":
            return [right]
        with self.lock:
            kind, place = int(self.rng.integers(24)), int(self.rng.integers(len(right)))
        changed = right[:place] + bytes([right[place] ^ 1]) + right[place + 1 :]
        bad: list[Sequence[Act]] = [
            ["close"], ["reset"], [right[:place], "close"], [changed, "close"], [0.3, right],
            [message(b'{"error":"busy"}', "503 Service Unavailable")],
        ]  # fmt: skip
        return bad[kind] if kind < len(bad) else [right]


@pytest.fixture
def link(tails: dict[int, Bundle], wants: dict[int, list[np.ndarray]], crossing: list[np.ndarray]) -> Link:
    return Link(tails, wants, crossing)


class Asking:
    """Asks a session for one image after another; every answer must be that of a tail, and is counted for it."""

    def __init__(self, session: Session, images: list[dict[str, np.ndarray]], wants: dict[int, list[np.ndarray]]) -> None:
        self.session, self.images = session, images
        self.whose = [{wants[k][place].tobytes(): k for k in wants} for place in range(len(images))]
        self.number, self.found = 0, Counter[int]()

    def one(self) -> None:
        place = self.number % len(self.images)
        self.number += 1
        got = self.session.run(self.images[place])["logits"]
        self.found[self.whose[place][got.tobytes()]] += 1  # KeyError: an answer that no tail gives

    def until(self, point: int, most: int = 2_000) -> None:
        assert self.session.remote is not None
        for _ in range(most):
            self.one()
            if self.session.remote.point == point:
                return
            if self.session.remote.point == 0:
                time.sleep(0.005)
        raise AssertionError(f"never at {point}: {self.session.remote.moves}")

    def check(self) -> None:
        """What the session says that it has done is what the answers say."""
        far = self.session.remote
        assert far is not None
        counts = far.counts
        assert counts.remote + counts.local == self.number and sum(far.answered.values()) == counts.remote
        assert self.found == Counter(far.answered) + Counter({4: counts.local}), (self.found, far.answered, counts)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried now and then is tried often."""
    monkeypatch.setattr(moving, "RETRY_S", 0.05)
    monkeypatch.setattr(moving, "LONGEST_RETRY_S", 0.4)
    monkeypatch.setattr(remote_tail, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(remote_tail, "_LONGEST_PAUSE_S", 0.2)
    monkeypatch.setattr(remote_tail, "_PING_S", 0.2)


def test_a_real_server_gets_all_channels_of_a_fast_link(
    made: Bundle, server: Server, images: list[dict[str, np.ndarray]], wants: dict[int, list[np.ndarray]]
) -> None:
    with edgesdk.load(made.path, remote=server.url, deadline_ms=20_000, prefer="remote") as session:
        asking = Asking(session, images, wants)
        for _ in images:
            asking.one()
        asking.check()
        far = session.remote
        assert far is not None and far.point == 4 and far.moves == () and far.missing == []
        assert dict(far.answered) == {4: len(images)} and far.counts.connects == 1
        got = [one["logits"] for one in session.stream(images)]
        assert all(np.array_equal(one, want) for one, want in zip(got, wants[4], strict=True))


@pytest.mark.parametrize("channels", BYTES)
def test_a_point_that_is_given_is_kept(
    made: Bundle, server: Server, images: list[dict[str, np.ndarray]], wants: dict[int, list[np.ndarray]], channels: int
) -> None:
    sizes = []
    with edgesdk.load(made.path, remote=server.url, points=channels, deadline_ms=20_000, on_late="error") as session:
        far = session.remote
        assert far is not None and far.point == channels and far.moves == ()
        for one, want in zip(images, wants[channels], strict=True):
            before = far.counts.sent_bytes
            assert np.array_equal(session.run(one)["logits"], want)
            sizes.append(far.counts.sent_bytes - before)
        assert dict(far.answered) == {channels: len(images)}
    assert max(sizes) < BYTES[channels] + 460


def test_it_moves_down_when_slow_to_local_when_dead_and_back_up(
    made: Bundle, link: Link, images: list[dict[str, np.ndarray]], wants: dict[int, list[np.ndarray]], soon: None
) -> None:
    with FakeServer(link.script) as fake:
        session = edgesdk.load(made.path, remote=fake.url, deadline_ms=3_000, target_ms=300, prefer="remote")
        far, asking = session.remote, Asking(session, images, wants)
        assert far is not None
        for _ in range(20):
            asking.one()
        assert far.point == 4
        link.ms_per_byte = 6.0  # 588, 294 and 150 ms: the last alone is in time
        asking.until(1)
        link.ms_per_byte = 0.0
        asking.until(4)
        wait_for(lambda: any("GET /v2/health/live" in asked.head for asked in fake.seen))
        ups = [move.after for move in far.moves if move.after > move.before]
        assert ups[-2:] == [2, 4] and all(move.why for move in far.moves)
    for _ in range(30):
        asking.one()
    assert far.point == 0 and not far.up and far.counts.local >= 30
    with FakeServer(link.script, port=fake.port), session:
        asking.until(4)
        assert far.up and far.counts.reconnects >= 1
        asking.check()
        assert [move.before for move in far.moves[1:]] == [move.after for move in far.moves[:-1]]  # none is missing


def test_a_server_that_hangs_is_soon_left_alone_and_found_again(
    made: Bundle, link: Link, images: list[dict[str, np.ndarray]], wants: dict[int, list[np.ndarray]], soon: None
) -> None:
    with FakeServer(link.script) as fake, edgesdk.load(made.path, remote=fake.url, deadline_ms=150, prefer="remote") as session:
        asking, far = Asking(session, images, wants), session.remote
        assert far is not None
        link.fault = "hang"
        asking.until(0)
        for _ in range(300):
            asking.one()
        # At most one request a point, then some that look whether the link is back, each after a longer time.
        assert 1 <= far.counts.late <= 20 and far.counts.remote == 0
        link.fault = ""
        asking.until(4)
        asking.check()


def test_without_a_tail_here_the_least_point_is_the_lowest(
    made: Bundle, link: Link, images: list[dict[str, np.ndarray]], wants: dict[int, list[np.ndarray]], soon: None
) -> None:
    with FakeServer(link.script) as fake:
        with edgesdk.load(made.path, remote=fake.url, deadline_ms=2_000, target_ms=60, on_late="error") as session:
            asking, far = Asking(session, images, wants), session.remote
            assert far is not None
            link.ms_per_byte = 4.0  # not even one channel is in the time aimed at, all are before the deadline
            asking.until(1)
            for _ in range(5):
                asking.one()
            assert far.point == 1 and far.counts.local == far.counts.late == 0
            asking.check()
            fake.__exit__()
            with pytest.raises(LinkError):
                session.run(images[0])
            assert far.point == 1
        fake.__enter__()


@pytest.mark.parametrize("there", [(4,), (2,), (1, 4), (2, 1)])
def test_points_that_the_server_lacks_are_not_taken(
    made: Bundle, link: Link, images: list[dict[str, np.ndarray]], wants: dict[int, list[np.ndarray]], there: tuple[int, ...]
) -> None:
    full = dict(link.tails)

    def script(asked: Asked) -> Sequence[Act]:
        path = asked.head.split(" ")[1]
        if any(path.removesuffix("/infer") == f"/v2/models/{NAMES[channels]}" for channels in there):
            return link.script(asked)
        return [message(b'{"error":"no such model"}', "404 Not Found", edgesdk_digest=full[4].digest)]

    with FakeServer(script) as fake:
        with pytest.warns(RuntimeWarning, match="does not serve all operating points"):
            session = edgesdk.load(made.path, remote=fake.url, deadline_ms=20_000, prefer="remote")
        with session:
            asking, far = Asking(session, images, wants), session.remote
            assert far is not None and far.missing == sorted(set(BYTES) - set(there))
            for _ in range(10):
                asking.one()
            asking.check()
            assert dict(far.answered) == {max(there): 10}
        for channels in set(BYTES) - set(there):
            with pytest.raises(LinkError, match="answers 404"):
                edgesdk.load(made.path, remote=fake.url, points=channels, on_late="error")


def test_a_tail_that_is_another_after_a_while_is_not_asked_again(
    made: Bundle, link: Link, images: list[dict[str, np.ndarray]], wants: dict[int, list[np.ndarray]], soon: None
) -> None:
    """The server's tail for four channels is exchanged while it runs: its answers are refused, then the others are taken."""
    older = link.tails[4]
    with FakeServer(link.script) as fake, edgesdk.load(made.path, remote=fake.url, deadline_ms=5_000, prefer="remote") as session:
        asking, far = Asking(session, images, wants), session.remote
        assert far is not None
        for _ in range(5):
            asking.one()
        manifest = replace(older.manifest, made_by="somebody else")
        link.tails = link.tails | {4: draft(Path("x.edge"), manifest, {name: older.read(name) for name in manifest.files})}
        asking.until(0)
        asking.until(2)
        for _ in range(100):
            asking.one()
        assert far.point == 2 and far.missing == [4] and far.answered[4] == 5 and far.counts.refused == 1
        asking.check()


def load_here(made: Bundle, fake: FakeServer, prefer: Prefer) -> Session:
    return edgesdk.load(made.path, remote=fake.url, deadline_ms=120, threads=1, prefer=prefer)


@pytest.mark.parametrize("prefer", ["remote", "accuracy", "speed"])
def test_chaos_at_every_point(
    made: Bundle, link: Link, images: list[dict[str, np.ndarray]], wants: dict[int, list[np.ndarray]], soon: None, prefer: Prefer
) -> None:
    """Four threads, a rate that changes and a quarter of all answers bad: none is lost, none is wrong, all are counted."""
    whose = [{wants[k][place].tobytes(): k for k in wants} for place in range(len(images))]
    with FakeServer(link.script) as fake, load_here(made, fake, prefer) as session:
        far = session.remote
        assert far is not None
        link.fault = "chaos"

        def one(number: int) -> int:
            link.ms_per_byte = (0.0, 0.6, 2.0)[number // 100 % 3]
            for _ in range(20 if number % 4 else 0):  # most wait until there is a link, so that it has its chances
                if far.point:
                    break
                time.sleep(0.005)
            place = number % len(images)
            return whose[place][session.run(images[place])["logits"].tobytes()]

        with ThreadPoolExecutor(4) as pool:
            found = Counter(pool.map(one, range(900)))
        counts = far.counts
        assert counts.remote + counts.local == 900, counts
        assert found == Counter(far.answered) + Counter({4: counts.local}), (found, far.answered, counts)
        assert len(far.went) == 900 and Counter(one.way for one in far.went) == Counter(far.to_json()["ways"])
        if prefer == "remote":  # else the tail here, which takes next to no time, has most
            assert counts.remote > 50 and counts.local > 50 and len(far.answered) > 1 and len(far.moves) > 2


# Policies


class Clock(threading.local):
    """What the tail here is timed with: each thread's own runs are all that takes time on it."""

    now_ms = 0.0

    def wait(self, ms: float) -> None:
        self.now_ms += ms


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(remote_runner, "time", SimpleNamespace(perf_counter=lambda: found.now_ms / 1e3))
    return found


@pytest.fixture
def slow_here(clock: Clock) -> Iterator[list[float]]:
    """How many ms the tail here takes, at first less than any answer of a server; the list may be changed."""
    took = [0.01]
    with slowed(lambda: clock.wait(took[0])):
        yield took


def set_quiet(monkeypatch: pytest.MonkeyPatch, deadline_ms: float) -> None:
    """Nobody is taken to wait after 50 ms, whatever the deadline."""
    monkeypatch.setattr(remote_tail, "_QUIET_S", 0.05 - 2 * deadline_ms / 1e3)


def test_with_a_quick_tail_here_the_server_is_left_and_it_is_said_why(
    made: Bundle, link: Link, images: list[dict[str, np.ndarray]], wants: dict[int, list[np.ndarray]], soon: None,
    slow_here: list[float],
) -> None:  # fmt: skip
    link.ms_per_byte = 0.5  # 49 ms with all channels
    with FakeServer(link.script) as fake, edgesdk.load(made.path, remote=fake.url, deadline_ms=30_000) as session:
        asking, far = Asking(session, images, wants), session.remote
        assert far is not None and far.way == "server, 4 channels"
        told = far.to_json()["estimates"]
        assert told["prefer"] == "accuracy" and told["here_ms"] == pytest.approx(slow_here[0])  # timed before anybody asked
        asking.until(0)
        for _ in range(20):
            asking.one()
        asking.check()
        assert far.way == "here" and far.counts.late == 0 and far.counts.remote == moving.LEAVE_AFTER
        (move,) = far.moves
        assert (move.before, move.after) == (4, 0) and re.fullmatch(r"\d+ ms here, \d+ ms there", move.why)
        ways = [one.way for one in far.went]
        assert ways == ["server, 4 channels"] * moving.LEAVE_AFTER + ["here"] * 20
        assert far.to_json()["ways"] == {"here": 20, "server, 4 channels": moving.LEAVE_AFTER}
        assert all(one.why == "" and one.took_ms > 0 for one in far.went)


def test_a_tail_here_that_gets_slow_is_left_and_found_again_when_it_is_quick(
    made: Bundle, link: Link, images: list[dict[str, np.ndarray]], wants: dict[int, list[np.ndarray]], soon: None,
    slow_here: list[float], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    set_quiet(monkeypatch, 10_000)
    link.ms_per_byte = 0.5
    with FakeServer(link.script) as fake, edgesdk.load(made.path, remote=fake.url, deadline_ms=10_000) as session:
        asking, far = Asking(session, images, wants), session.remote
        assert far is not None
        asking.until(0)
        slow_here[0] = 2_000.0
        asking.until(4)
        for _ in range(moving.LEAVE_AFTER + 5):
            asking.one()
        assert far.point == 4 and far.counts.late == 0
        slow_here[0] = 0.01

        def known_ms() -> float:
            return float(far.to_json()["estimates"]["here_ms"])

        before, local, end = known_ms(), far.counts.local, time.monotonic() + 30
        while known_ms() >= before:  # nobody asks for a while, then the tail here is timed again
            assert time.monotonic() < end
            asking.one()
            time.sleep(0.3)
        assert far.counts.local == local
        while far.point != 0:
            assert time.monotonic() < end and far.counts.local == local
            asking.one()
            time.sleep(0.3)
        asking.check()


def test_a_tail_that_fails_while_it_is_timed_does_not_end_the_search_for_the_server(
    made: Bundle, link: Link, images: list[dict[str, np.ndarray]], soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_quiet(monkeypatch, 3_000)
    timed = threading.Event()
    with FakeServer(link.script) as fake:
        session = edgesdk.load(made.path, remote=fake.url, deadline_ms=3_000, prefer="remote")
        far = session.remote
        assert far is not None
        far.timed_here(1.0)

        def fail() -> None:
            timed.set()
            raise EdgeError("the model failed on these inputs")

        far.when_quiet = fail
        end = time.monotonic() + 30
        while not timed.is_set():
            assert time.monotonic() < end
            session.run(images[0])
            time.sleep(0.3)
    while far.up:
        assert time.monotonic() < end
        session.run(images[0])
    with FakeServer(link.script, port=fake.port), session:
        wait_for(lambda: far.up)
        assert far.counts.reconnects >= 1


def test_the_tail_here_is_closed_only_when_it_is_no_longer_timed(
    made: Bundle, link: Link, images: list[dict[str, np.ndarray]], soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_quiet(monkeypatch, 3_000)
    monkeypatch.setattr(remote_tail, "_PROBE_S", 0.05)
    entered, gate, runs = threading.Event(), threading.Event(), []

    def wait() -> None:
        if threading.current_thread().name == "edgesdk-remote":
            runs.append("timed")
            entered.set()
            assert gate.wait(60)

    link.ms_per_byte = 0.5
    with FakeServer(link.script) as fake:
        with slowed(wait):
            session = edgesdk.load(made.path, remote=fake.url, deadline_ms=3_000)
        runner: Any = session._runner
        close = runner._tail.close

        def closed() -> None:
            runs.append("closed")
            close()

        monkeypatch.setattr(runner._tail, "close", closed)
        end = time.monotonic() + 30
        while not entered.is_set():
            assert time.monotonic() < end
            session.run(images[0])
            time.sleep(0.3)
        closing = threading.Thread(target=session.close)
        closing.start()
        closing.join(0.5)
        assert closing.is_alive() and runs == ["timed"]
        gate.set()
        closing.join(30)
        assert not closing.is_alive() and runs == ["timed", "closed"]  # and no further run


def test_speed_is_wanted_of_a_plain_split_only_where_it_is_said(split: Bundle, images: list[dict[str, np.ndarray]]) -> None:
    with edgesdk.serve(split.path, REST) as server:
        for prefer, way in ((None, "server"), ("remote", "server"), ("speed", "here"), ("accuracy", "here")):
            with edgesdk.load(split.path, remote=server.url, deadline_ms=20_000, prefer=prefer) as session:  # type: ignore[arg-type]
                far = session.remote
                assert far is not None
                wanted = [session.run(one)["logits"] for one in images]
                for one, want in zip(images, wanted, strict=True):
                    assert np.allclose(session.run(one)["logits"], want, rtol=1e-4, atol=1e-4)
                told = far.to_json()
                assert far.way == way and far.point is None and told["way"] == way and set(told["ways"]) <= {"server", "here"}
                assert ("moves" in told) == ("estimates" in told) == (way == "here")
                assert sum(told["ways"].values()) == 2 * len(images)


def test_what_the_server_failed_says_which_way_the_request_went_and_why(
    made: Bundle, link: Link, images: list[dict[str, np.ndarray]], soon: None
) -> None:
    link.fault = "hang"
    with FakeServer(link.script) as fake, edgesdk.load(made.path, remote=fake.url, deadline_ms=60, prefer="remote") as session:
        session.run(images[0])
        (went,) = session.remote.went  # type: ignore[union-attr]
        assert (went.way, went.why) == ("here", "late")


def test_a_request_that_the_server_failed_took_the_wait_too_and_the_tail_its_own_time_alone(
    made: Bundle, link: Link, images: list[dict[str, np.ndarray]], slow_here: list[float], clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    slow_here[0] = 5.0
    with FakeServer(link.script) as fake, edgesdk.load(made.path, remote=fake.url, deadline_ms=1_000) as session:
        far = session.remote
        assert far is not None

        def late(*_: object) -> None:
            clock.wait(1_000)
            raise Fault("late", "no answer within 1000 ms")

        monkeypatch.setattr(far, "run", late)
        session.run(images[0])
        (went,) = far.went
        assert (went.way, went.why) == ("here", "late") and went.took_ms == pytest.approx(1_005)
        assert far.to_json()["estimates"]["here_ms"] == pytest.approx(5)


# What is said


def test_what_cannot_be_meant_is_said(made: Bundle, split: Bundle, server: Server) -> None:
    for bundle, given, told in (
        (made, {"points": 3}, "no operating point of 3 channels; allowed: auto, 1, 2, 4"),
        (made, {"points": 0}, "no operating point of 0 channels"),
        (made, {"points": "most"}, "points is 'most'; allowed: auto, or a number"),
        (made, {"points": True}, "points is True"),
        (made, {"points": 2, "target_ms": 5}, "one point is never moved from"),
        (made, {"target_ms": 0}, "target_ms is 0; allowed: above 0, up to deadline_ms"),
        (made, {"target_ms": 2_000}, "target_ms is 2000"),
        (made, {"target_ms": float("nan")}, "target_ms is nan"),
        (split, {"points": 2}, "has no operating points"),
        (split, {"target_ms": 5}, "has no operating points between which"),
        (made, {"prefer": "here"}, "prefer is 'here'; allowed: accuracy, speed, remote"),
        (made, {"points": 2, "prefer": "speed"}, "prefer is for points='auto'"),
        (split, {"prefer": "speed", "on_late": "error"}, "there is one way alone"),
    ):
        with pytest.raises(LinkError, match=told):
            edgesdk.load(bundle.path, remote=server.url, **given)  # type: ignore[arg-type]
    for given in ({"points": 2}, {"target_ms": 5}, {"prefer": "speed"}):
        with pytest.raises(LinkError, match="are for a remote tail"):
            edgesdk.load(made.path, **given)  # type: ignore[arg-type]


def test_the_command_runs_at_a_point(
    made: Bundle, server: Server, images: list[dict[str, np.ndarray]], wants: dict[int, list[np.ndarray]], tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", **images[0])
    host, port = address(server)
    common = f"run {made.path} --inputs x.npz --outputs y.npz --remote http://{host}:{port} --deadline-ms 20000"
    done = run_here(f"{common} --points 2", tmp_path)
    assert f"tail ran at {server.url} for 2 channels" in done.out, done.err
    assert np.array_equal(np.load(tmp_path / "y.npz")["logits"], wants[2][0])
    told = json.loads(run_here(f"{common} --points auto --target-ms 15000 --json", tmp_path).out)["remote"]
    assert (told["point"], told["answered"], told["moves"], told["remote"]) == (4, {"4": 1}, [], 1)
    assert np.array_equal(np.load(tmp_path / "y.npz")["logits"], wants[4][0])
    done = run_here(f"{common} --points many", tmp_path)
    assert done.code == 2 and "expected auto or a number of channels" in done.err
    assert run_here(f"{common} --points 3", tmp_path).error["kind"] == "LinkError"
