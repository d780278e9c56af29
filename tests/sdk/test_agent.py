"""The agent: what its clients get, and that 200 hostile requests get nothing, leave nothing, and stop nothing."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgesdk
from edgesdk import agent as agents
from edgesdk import inference_protocol as protocol
from edgesdk.agent import Agent, start_agent
from edgesdk.agent_store import Limits
from edgesdk.far_measure import npz
from edgesdk.server import Doors
from edgesdk_converters.errors import DeviceError, LinkError
from edgesdk_targets import bundle as bundles
from edgesdk_targets import packed
from edgesdk_targets.bundle import Bundle, open_bundle

from .arm64 import emulated_agent
from .conftest import tree

TOKEN = "a-token-of-twenty-and-more"
RIGHT = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def older(template: Path) -> Bundle:
    return open_bundle(template / "older.edge")


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with start_agent(TOKEN, Doors(port=0), store=tmp_path_factory.mktemp("agent") / "store") as running:
        yield running


@dataclass(frozen=True)
class Got:
    status: int
    data: dict[str, Any]
    headers: dict[str, str]


def ask(port: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Got:
    """One request on a connection of its own, the checksum added."""
    given = RIGHT | {protocol.CHECKSUM: protocol.checksum(body)} if headers is None else headers
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, given)
        answer = connection.getresponse()
        raw = answer.read()
        kind = answer.getheader("content-type") or ""
        data = json.loads(raw) if kind == "application/json" and raw else {"text": raw.decode()}
        return Got(answer.status, data, {k.lower(): v for k, v in answer.getheaders()})
    finally:
        connection.close()


def port_of(agent: Agent) -> int:
    return int(agent.url.rpartition(":")[2])


def payload_of(bundle: Bundle) -> bytes:
    return b"".join(packed.pieces(bundle))


def send(port: int, bundle: Bundle) -> None:
    assert ask(port, "POST", "/agent/v1/bundles", bundle.manifest.to_bytes()).status == 200
    payload = payload_of(bundle)
    got = ask(port, "POST", f"/agent/v1/bundles/{bundle.digest}/0", payload)
    assert got.status == 200 and got.data["complete"], got


def wait_for(port: int, name: str) -> dict[str, Any]:
    version = -1
    while True:
        got = ask(port, "GET", f"/agent/v1/measurements/{name}?after={version}")
        assert got.status == 200
        if "report" in got.data or "error" in got.data:
            return got.data
        version = got.data["version"]


# What clients get


def test_it_says_what_it_is(agent: Agent) -> None:
    got = ask(port_of(agent), "GET", "/agent/v1")
    assert got.status == 200 and got.data["format"] == agents.FORMAT and got.data["version"] == edgesdk.__version__
    assert got.data["limits"]["chunk_bytes"] == Limits().chunk_bytes and got.data["runtimes"][0] == "onnxruntime"
    assert got.data["emulator"] is None
    assert ask(port_of(agent), "GET", "/v2/health/live", headers={}).status == 200


def test_a_bundle_is_measured_and_its_report_has_the_boards_facts(agent: Agent, older: Bundle) -> None:
    port = port_of(agent)
    send(port, older)
    got = ask(port, "POST", "/agent/v1/measurements", json.dumps({"bundle": older.digest, "runs": 5, "threads": 1}).encode())
    assert got.status == 202 and got.data["state"] in ("waiting", "running")
    report = wait_for(port, got.data["id"])["report"]
    rows = {(row["name"], row["segment"]): row for row in report["rows"]}
    assert report["bundle"] == older.digest and rows["latency_ms", "whole"]["n"] == 5
    assert rows["latency_ms", "whole"]["provenance"] == "measured"
    assert rows["relative_error", "repeat"]["value"] <= 1e-4 and rows["relative_error", "repeat"]["n"] > 0
    machine = report["machine"]
    assert machine["versions"]["numpy"] == np.__version__ and machine["cpu_features"] and "before" in machine
    assert machine["is_device"] is False and rows["latency_ms", "device"]["provenance"] == "unavailable"
    metrics = ask(port, "GET", "/metrics").data["text"]
    assert 'edgesdk_agent_measurements_total{state="done"}' in metrics and "edgesdk_agent_measurements_waiting 0" in metrics


def test_a_measurement_that_fails_says_why_as_the_class_it_is(agent: Agent, template: Path) -> None:
    jetson = open_bundle(template / "jetson.edge")
    port = port_of(agent)
    send(port, jetson)
    got = ask(port, "POST", "/agent/v1/measurements", json.dumps({"bundle": jetson.digest, "runs": 1}).encode())
    error = wait_for(port, got.data["id"])["error"]
    assert error["kind"] == "DeviceError" and "TensorrtExecutionProvider" in error["message"] and error["hint"]


def test_a_measurement_is_cancelled(agent: Agent, older: Bundle) -> None:
    port = port_of(agent)
    send(port, older)
    task = {"bundle": older.digest, "minutes": 10}
    got = ask(port, "POST", "/agent/v1/measurements", json.dumps(task).encode())
    assert ask(port, "POST", f"/agent/v1/measurements/{got.data['id']}/cancel").status == 200
    assert wait_for(port, got.data["id"])["error"]["message"] == "cancelled"


def test_a_long_poll_answers_when_there_is_something_new(agent: Agent, older: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "POLL_SECONDS", 0.2)
    port = port_of(agent)
    send(port, older)
    name = ask(port, "POST", "/agent/v1/measurements", json.dumps({"bundle": older.digest, "minutes": 10}).encode()).data["id"]
    version = 0
    for _ in range(200):  # until the process says nothing new any more
        got = ask(port, "GET", f"/agent/v1/measurements/{name}?after={version}")
        if got.data["version"] == version and got.data["told"].startswith("running for"):
            break
        version = got.data["version"]
    assert got.data["state"] == "running" and "report" not in got.data
    for after in ("", "?after=x", "?after=-5", "?after=1&after=2", "?" + "a" * 300):
        assert ask(port, "GET", f"/agent/v1/measurements/{name}{after}").status in (200, 400)
    ask(port, "POST", f"/agent/v1/measurements/{name}/cancel")


def test_the_doctor_answers_from_a_process_of_its_own(agent: Agent) -> None:
    got = ask(port_of(agent), "GET", "/agent/v1/doctor")
    assert got.status == 200 and {"python", "numpy wheel", "onnxruntime"} <= {check["name"] for check in got.data["checks"]}
    assert got.data["facts"]["python"] == sys.version.split()[0]


def test_it_speaks_tls(tmp_path: Path) -> None:
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -days 2"
    command += " -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    doors = Doors(port=0, certificate=str(tmp_path / "cert.pem"), key=str(tmp_path / "key.pem"))
    with start_agent(TOKEN, doors, store=tmp_path / "store") as running:
        assert running.url.startswith("https://") and running.to_json()["tls"] is True
        trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
        connection = http.client.HTTPSConnection("127.0.0.1", port_of(running), timeout=30, context=trusting)
        connection.request("GET", "/agent/v1", headers=RIGHT)
        assert connection.getresponse().status == 200
        connection.close()


def test_a_short_token_or_a_port_that_is_taken_is_refused_and_the_folder_left_free(agent: Agent, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="has 5 characters"):
        start_agent("short", Doors(port=0), store=tmp_path / "store")
    with pytest.raises(LinkError, match="cannot listen") as caught:
        start_agent(TOKEN, Doors(port=port_of(agent)), store=tmp_path / "store")
    assert caught.value.hint == "give another --host or --port; 0 is any free port"
    with start_agent(TOKEN, Doors(port=0), store=tmp_path / "store"):
        pass


def test_it_stops_at_once_while_something_is_measured_and_someone_waits(older: Bundle, tmp_path: Path) -> None:
    running = start_agent(TOKEN, Doors(port=0), store=tmp_path / "store")
    port = port_of(running)
    send(port, older)
    name = ask(port, "POST", "/agent/v1/measurements", json.dumps({"bundle": older.digest, "minutes": 10}).encode()).data["id"]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait_for, port, name)
        while running.queue.find(name).state != "running":  # type: ignore[union-attr]
            time.sleep(0.01)
        running.stop()
        assert waiting.result(30)["error"]["message"] == "cancelled"


# What everybody else gets


@dataclass(frozen=True)
class Hostile:
    """Bytes on a connection of their own, and the statuses that may answer; 0: the connection is closed without one."""

    name: str
    data: bytes
    allowed: tuple[int, ...]
    hold: bool = False


def message(method: str, path: str, body: bytes = b"", token: str | None = f"Bearer {TOKEN}", **headers: str) -> bytes:
    lines = {"Host": "x", "Content-Length": str(len(body)), protocol.CHECKSUM: protocol.checksum(body)}
    lines |= {} if token is None else {"Authorization": token}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value != "-")
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def archive(names: dict[str, bytes], compressed: bool = False, link: bool = False) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as made:
        for name, data in names.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
            info.external_attr = (0o120777 if link else 0o100644) << 16
            made.writestr(info, data)
    return sink.getvalue()


NAMES = (
    "../evil", "../../evil", "..%2fevil", "%2e%2e/evil", "..\\evil", "/etc/passwd", "//evil", "evil%00", "%2e%2e%2f" * 8 + "evil",
    "....//evil", "~/evil", "C:\\evil", "\u202eevil", "evil\n", "." , "..", "%c0%ae%c0%ae/evil", "a" * 5000,
)  # fmt: skip


def tampered(older: Bundle, **changes: Any) -> bytes:
    """A manifest that is right in itself, with other content."""
    return replace(older.manifest, **changes).sealed({name: older.read(name) for name in older.manifest.files}).to_bytes()


def forged(older: Bundle, name: str) -> bytes:
    """A manifest with right digests whose payload has a name that leaves the bundle."""
    data = json.loads(older.manifest.to_bytes())
    data["files"][name] = {"bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}
    body = {key: value for key, value in data.items() if key != "digest"}
    data["digest"] = hashlib.sha256(bundles._canonical(body)).hexdigest()
    return bundles._canonical(data)


def hostile(older: Bundle, announced: Bundle) -> list[Hostile]:
    """`announced` is a bundle of which a manifest but no payload was sent."""
    post, get = "POST", "GET"
    base, refused = "/agent/v1", (400, 404, 422)
    digest, payload = announced.digest, payload_of(announced)
    found: list[Hostile] = []

    def add(name: str, data: bytes, *allowed: int, hold: bool = False) -> None:
        found.append(Hostile(f"{name} ({len(found)})", data, allowed, hold))

    # Tokens: none, another, nearly the right one, the right one in another place.
    tokens = (
        None, "", "Bearer", "Bearer ", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"bearer {TOKEN}", f"Basic {TOKEN}", TOKEN,
        f"Bearer {TOKEN.upper()}", f"Bearer  {TOKEN}", "Bearer " + "a" * 4000, "Bearer \x80\xff",
    )  # fmt: skip
    places = ((get, base), (post, f"{base}/bundles"), (post, f"{base}/bundles/{digest}/0"), (post, f"{base}/measurements"))
    for token in tokens:
        for method, path in places:
            add("token", message(method, path, payload if method == post else b"", token=token), 401)
    add("token in the query", message(get, f"{base}?token={TOKEN}", token=None), 401)
    add("doctor without token", message(get, f"{base}/doctor", token=None), 401)
    add("metrics without token", message(get, "/metrics", token=None), 401)

    # Names, digests and offsets that are none.
    for name in NAMES:
        raw = name.encode("utf-8").decode("latin-1").replace("\n", "%0a")
        add("bundle of a name", message(post, f"{base}/bundles/{raw}/0", b"abc"), *refused, 409)
        add("samples of a name", message(post, f"{base}/data/{raw}/0", b"abc"), *refused)
        add("measurement of a name", message(get, f"{base}/measurements/{raw}"), *refused)
        add(
            "samples announced by a name",
            message(post, f"{base}/data", json.dumps({"sha256": name, "bytes": 3}).encode()),
            *refused,
        )
        task = {"bundle": name, "data": name}
        add("measurement of names", message(post, f"{base}/measurements", json.dumps(task).encode()), *refused)
        if len(name) < 1000:  # a long name does no harm where no name becomes that of a file
            add("manifest with a name", message(post, f"{base}/bundles", forged(older, name)), 422)
    for offset in ("-1", "1e3", "9" * 30, "0x0", " 0", "", "%30", "1", str(len(payload))):
        add("offset", message(post, f"{base}/bundles/{digest}/{offset}", payload), 400, 404, 409)
    for other in ("0" * 64, digest[:-1], digest.upper(), digest + "0"):
        add("digest", message(post, f"{base}/bundles/{other}/0", payload), 400, 404)
        add("samples never announced", message(post, f"{base}/data/{other}/0", payload), 400, 404)

    # Bodies that are not what they say.
    add("checksum of something else", message(post, f"{base}/bundles/{digest}/0", payload, edgesdk_crc32="00000000"), 400)
    add("no checksum", message(post, f"{base}/bundles/{digest}/0", payload, edgesdk_crc32="-"), 400)
    add("more than announced", message(post, f"{base}/bundles/{digest}/0", payload + b"x"), 422)
    add("nothing", message(post, f"{base}/bundles/{digest}/0", b""), 422)
    add("announced with another length", message(post, f"{base}/bundles/{digest}/0", payload, Content_Length=str(10**15)), 413)
    add("a length beyond all bounds", message(post, f"{base}/bundles", b"", Content_Length="9" * 40), 400)
    for length in ("-1", "abc", "1 2", "0x10", "1e9", "+5", "\u0661"):
        raw = length.encode().decode("latin-1")
        add("a length that is none", message(post, f"{base}/bundles", b"x", Content_Length=raw), 400)
    add("two lengths", message(post, f"{base}/bundles", b"xyz").replace(b"Host: x", b"Content-Length: 1"), 400, 422)
    add("a body too large", message(post, f"{base}/bundles", b"x" * (5 << 20)), 413)
    add("cut off", message(post, f"{base}/bundles/{digest}/0", payload[:-50], Content_Length=str(len(payload))), 0, 400, 408)
    add("slow", message(post, f"{base}/bundles/{digest}/0", payload[:9], Content_Length=str(len(payload))), 408, hold=True)
    add("slow head", b"POST /agent/v1/bundles HTTP/1.1\r\nHost: x\r\n", 408, hold=True)
    add("slow first byte", b"P", 408, hold=True)
    bodies = (
        b"", b"{", b"[]", b"null", b"1", b'"x"', b"\xff\xfe", b"[" * 200_000, b'{"a":' * 100_000, b"NaN", b"1" * 10_000,
        b'{"bundle": 1}', b'{"bundle": null}', b'{"bundle": {}}', b'{"code": "import os"}', b'{"bundle": "\\ud800"}',
    )  # fmt: skip
    for body in bodies:
        for path in ("bundles", "data", "measurements"):
            add("a body of nonsense", message(post, f"{base}/{path}", body), *refused)
    wrong: tuple[dict[str, Any], ...] = (
        {"runs": 0}, {"runs": -1}, {"runs": 10**9}, {"runs": "5"}, {"runs": True}, {"threads": -1}, {"threads": 5000},
        {"minutes": -1}, {"minutes": 1e308}, {"minutes": float("nan")}, {"minutes": float("inf")}, {"minutes": "1"},
        {"search": "yes"}, {"path": "/etc/passwd"}, {"data": "../x"}, {"data": 7}, {"minutes": 600.0},
    )  # fmt: skip
    for change in wrong:
        add("an option", message(post, f"{base}/measurements", json.dumps({"bundle": older.digest} | change).encode()), *refused)
    add("not whole yet", message(post, f"{base}/measurements", json.dumps({"bundle": digest}).encode()), 404)

    # Archives and manifests that are traps.
    links, bomb = (
        archive({"manifest.json": b"/etc/passwd"}, link=True),
        archive({"model.onnx": bytes(4_000_000)}, compressed=True),
    )
    for trap in (links, bomb, archive({"../evil": b"x"}), archive({"/evil": b"x"}), payload, b"PK\x05\x06" + bytes(18)):
        add("an archive for a manifest", message(post, f"{base}/bundles", trap), 422)
    for name, trap in (("links", links), ("a bomb", bomb)):
        told = json.dumps({"sha256": hashlib.sha256(trap).hexdigest(), "bytes": len(trap) + 10**9}).encode()
        add(f"{name} as samples that are too large", message(post, f"{base}/data", told), 507)
    runtime = older.manifest.runtime
    library = bundles.Provider("TensorrtExecutionProvider", {"trt_extra_plugin_lib_paths": "/x"})
    more: tuple[dict[str, Any], ...] = (
        {"runtime": replace(runtime, name="pickle")}, {"runtime": replace(runtime, config={"ep.context_file_path": "/evil"})},
        {"runtime": replace(runtime, providers=(library,))}, {"runtime": replace(runtime, file="../evil")},
        {"format": "edgesdk-bundle/2"},
    )  # fmt: skip
    for changes in more:
        add("a manifest that asks for more", message(post, f"{base}/bundles", tampered(older, **changes)), 422)
    add("a manifest that was changed", message(post, f"{base}/bundles", older.manifest.to_bytes().replace(b"fp32", b"fp16")), 422)

    # Methods, places, and what is no HTTP.
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "GET", "HEAD"):
        add(f"method {method}", message(method, f"{base}/bundles/{digest}/0"), 400, 404, *([0] if method == "HEAD" else []))
    for path in (
        "/",
        "/agent",
        "/agent/v2",
        "/agent/v1/",
        "/agent/v1/exec",
        "/agent/v1/../../etc/passwd",
        "/v2/models/x/infer",
        "/%00",
    ):
        add("a place", message(get if path != "/agent/v1/" else post, path), 400, 404)
    noise = random.Random(7)
    for _ in range(8):
        add("garbage", noise.randbytes(300), 400)
    for data in (
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nA\r\n\r\n",
    ):
        add("no HTTP", data, 0, 400, 401)
    add("a head without end", b"GET /agent/v1 HTTP/1.1\r\n" + b"X: " + b"a" * 70_000, 400, 431)
    chunked = message(post, f"{base}/bundles", Content_Length="-", Transfer_Encoding="chunked")
    add("chunks that are none", chunked + b"zz\r\nabc\r\n", 400)
    add("a chunk without end", chunked + b"ffffffff\r\nabc", 0, 400, 408, 422)
    add("chunks of a length", message(post, f"{base}/bundles", b"0\r\n\r\n", Transfer_Encoding="chunked"), 400, 422)
    return found


def attack(port: int, one: Hostile) -> int:
    """Send, and read the first status that comes; 0 where the connection closes without one."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        with contextlib.suppress(OSError):  # it may refuse before everything is sent
            connection.sendall(one.data)
            if not one.hold:
                connection.shutdown(socket.SHUT_WR)
        received = b""
        with contextlib.suppress(OSError):
            while b"\r\n" not in received and (part := connection.recv(65536)):
                received += part
        return int(received.split()[1]) if received.startswith(b"HTTP/1.1 ") else 0


@contextlib.contextmanager
def apart(folder: Path) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """`edgesdk agent` in a process of its own, home, working and temporary directory below `folder`: its port."""
    places = {name: folder / name for name in ("home", "work", "tmp")}
    for place in places.values():
        place.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("XDG_")} | {
        "HOME": str(places["home"]), "TMPDIR": str(places["tmp"]), "EDGESDK_TOKEN": TOKEN, "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    code = (
        "import edgesdk.agent_verb as verb, edgesdk.server as server, dataclasses; real = server.doors_from\n"
        "server.doors_from = lambda **given: dataclasses.replace(real(**given), read_seconds=2.0)\n"
        "import sys; from edgesdk.cli import main; main()"
    )  # what is slow is cut off sooner, so that the test is
    process = subprocess.Popen(
        [sys.executable, "-c", code, "agent", "--port", "0", "--store", str(folder / "store"), "--json", "--max-data-mb", "5"],
        cwd=places["work"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or lines[-1] != "}\n":
            lines.append(process.stdout.readline())
            assert lines[-1], process.stderr.read() if process.stderr is not None else ""
        yield int(json.loads("".join(lines))["url"].rpartition(":")[2]), process
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert "Traceback" not in errors, errors
        assert process.returncode == 0


def test_200_hostile_requests_are_refused_with_nothing_written_and_the_agent_goes_on(older: Bundle, tmp_path: Path) -> None:
    announced = bundles.draft(older.path, replace(older.manifest, name="announced", files={}, digest=""), {
        name: older.read(name) for name in older.manifest.files
    })  # fmt: skip
    with apart(tmp_path) as (port, process):
        send(port, older)
        assert ask(port, "POST", "/agent/v1/bundles", announced.manifest.to_bytes()).status == 200
        before = tree(tmp_path)
        requests = hostile(older, announced)
        assert len(requests) >= 200 and len({one.data for one in requests}) >= 200
        wrong = {one.name: status for one in requests if (status := attack(port, one)) not in one.allowed}
        assert not wrong
        assert tree(tmp_path) == before

        with ThreadPoolExecutor(48) as pool:  # the same at once, three times over, in any order
            many = [one for one in requests if not one.hold] * 3
            random.Random(1).shuffle(many)
            statuses = list(pool.map(lambda one: attack(port, one), many))
        wrong = {one.name: status for one, status in zip(many, statuses, strict=True) if status not in (*one.allowed, 503)}
        assert not wrong
        assert tree(tmp_path) == before

        assert ask(port, "POST", f"/agent/v1/bundles/{announced.digest}/0", payload_of(announced)).data["complete"] is True
        got = ask(
            port, "POST", "/agent/v1/measurements", json.dumps({"bundle": announced.digest, "runs": 2, "threads": 1}).encode()
        )
        assert wait_for(port, got.data["id"])["report"]["bundle"] == announced.digest
        outside = {name: entry for name, entry in tree(tmp_path).items() if not name.startswith("store")}
        assert outside == {name: entry for name, entry in before.items() if not name.startswith("store")}
        metrics = ask(port, "GET", "/metrics").data["text"]
        assert 'code="500"' not in metrics and 'code="401"' in metrics
        assert process.poll() is None


def test_a_wrong_whole_is_refused_and_thrown_away(agent: Agent, older: Bundle) -> None:
    bad = bundles.draft(older.path, replace(older.manifest, name="bad", files={}, digest=""), {
        name: older.read(name) for name in older.manifest.files
    })  # fmt: skip
    port, payload = port_of(agent), payload_of(bad)
    ask(port, "POST", "/agent/v1/bundles", bad.manifest.to_bytes())
    got = ask(port, "POST", f"/agent/v1/bundles/{bad.digest}/0", payload[:-1] + b"\x00")
    assert got.status == 422 and "is not what the manifest says" in got.data["error"]
    assert not list(agent.store.folder.glob(f"{bad.digest}*"))
    bomb = io.BytesIO()
    np.savez_compressed(bomb, x=np.zeros((1000, 1000)))
    for data, told in (
        (bomb.getvalue(), "packed"),
        (b"no archive", "no directory"),
        (npz({"x": np.zeros(2)})[:-1], "no directory"),
    ):
        digest = hashlib.sha256(data).hexdigest()
        assert ask(port, "POST", "/agent/v1/data", json.dumps({"sha256": digest, "bytes": len(data)}).encode()).status == 200
        got = ask(port, "POST", f"/agent/v1/data/{digest}/0", data)
        assert got.status == 422 and told in got.data["error"], got
        assert not list(agent.store.folder.glob(f"{digest}*"))


def test_a_full_line_answers_503_and_when_to_come_again(older: Bundle, tmp_path: Path) -> None:
    with start_agent(TOKEN, Doors(port=0), store=tmp_path / "store", limits=Limits(waiting=1)) as running:
        port = port_of(running)
        send(port, older)
        task = json.dumps({"bundle": older.digest, "minutes": 5}).encode()
        assert ask(port, "POST", "/agent/v1/measurements", task).status == 202
        got = ask(port, "POST", "/agent/v1/measurements", task)
        assert got.status == 503 and got.headers["retry-after"] == "5" and "wait already" in got.data["error"]


def test_a_token_is_compared_in_constant_time(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    class Watching:
        @staticmethod
        def compare_digest(a: bytes, b: bytes) -> bool:
            compared.append((a, b))
            return a == b

    monkeypatch.setattr(agents, "hmac", Watching)
    assert ask(port_of(agent), "GET", "/agent/v1").status == 200
    assert ask(port_of(agent), "GET", "/agent/v1", headers={"Authorization": "Bearer x"}).status == 401
    assert compared == [(f"Bearer {TOKEN}".encode(),) * 2, (b"Bearer x", f"Bearer {TOKEN}".encode())]


@pytest.mark.slow
def test_inside_the_emulated_arm64_system_it_measures_and_says_that_it_is_emulated(split: Bundle, tmp_path: Path) -> None:
    """Export -> measure --on -> report, with the agent, its runtime and its measuring on an emulated Cortex-A72."""
    from ..fashion import samples

    whole = edgesdk.export(
        Path(__file__).parents[2] / "examples/fashion/fashion_cnn.onnx", device="raspberry-pi-4", data=samples("t10k", 0, 300),
        max_drop=2.0, out=tmp_path / "whole.edge",
    )  # fmt: skip
    check = tmp_path / "check.npz"
    np.savez(check, **samples("t10k", 0, 300))
    with emulated_agent(tmp_path, "raspberry-pi-4", TOKEN) as told:
        report = edgesdk.measure(whole.path, on=told["url"], token=TOKEN, data=check, threads=1)
        again = edgesdk.measure(split.path, on=told["url"], token=TOKEN, threads=1)
    for found in (report, again):
        rows = {(row.name, row.segment): row for row in found.rows}
        for name in ("latency_ms", "first_run_ms", "load_ms", "throughput_per_s", "peak_memory_bytes"):
            assert rows[name, "whole"].provenance == "unavailable" and "qemu-aarch64" in rows[name, "whole"].method
        assert not [row for row in found.rows if row.provenance == "measured" and row.where != "artifact"]
        repeat = rows["relative_error", "repeat"]
        assert repeat.provenance == "emulated" and repeat.value is not None and repeat.value <= 5e-2
        machine = found.machine
        assert machine["architecture"] == "aarch64" and machine["emulator"] == "qemu-aarch64" and machine["is_device"] is False
        assert machine["clusters"] == [{"cpus": [0, 1, 2, 3], "part": "Cortex-A72"}]
    accuracy = report.find("accuracy")
    assert accuracy is not None and accuracy.provenance == "emulated" and accuracy.n == 300 and (accuracy.value or 0) > 0.8
    assert report.contract.status == "passed"
