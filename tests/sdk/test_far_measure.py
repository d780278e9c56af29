"""Measuring on a board from afar: what travels travels once, what breaks goes on, and who answers nonsense is told so."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import edgesdk
from edgesdk import far_measure as far
from edgesdk.agent import FORMAT, Agent, start_agent
from edgesdk.agent_store import DATA, Limits
from edgesdk.client import Fault
from edgesdk.far_measure import Far, far_doctor, npz, raise_told, send_bundle, send_data
from edgesdk.server import Doors
from edgesdk_converters.errors import BundleError, ContractBroken, DeviceError, EdgeError, LinkError, ModelError
from edgesdk_targets import bundle as bundles
from edgesdk_targets import packed
from edgesdk_targets.bundle import Bundle, open_bundle
from edgesdk_targets.conditions import Conditions
from edgesdk_targets.link import parse
from edgesdk_targets.report import Report

from ..relay import Relay
from .conftest import dense, run_apart, run_here
from .fake_server import Act, Asked, FakeServer, message

TOKEN = "a-token-of-twenty-and-more"
LIMITS = Limits()


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(far, "PATIENCE_S", 5.0)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with start_agent(TOKEN, Doors(port=0), store=tmp_path_factory.mktemp("agent") / "store") as running:
        yield running


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """4 MB of weights."""
    folder = tmp_path_factory.mktemp("large")
    onnx.save(dense(np.random.default_rng(0).standard_normal((1000, 1000))), folder / "m.onnx")
    return edgesdk.export(folder / "m.onnx", target="server", out=folder / "m.edge")


def address(agent: Agent) -> tuple[str, int]:
    return "127.0.0.1", int(agent.url.rpartition(":")[2])


def renamed(bundle: Bundle, name: str) -> Bundle:
    """The same payload under another name, and so another bundle."""
    files = {file: bundle.read(file) for file in bundle.manifest.files}
    return bundles.draft(bundle.path, replace(bundle.manifest, name=name, files={}, digest=""), files)


# The way there


def test_a_report_comes_back_with_accuracy_contract_and_facts(agent: Agent, template: Path) -> None:
    told: list[str] = []
    report = edgesdk.measure(
        template / "judged.edge", on=agent.url, token=TOKEN, data=template / "check.npz", runs=5, threads=1, progress=told.append
    )
    latency, accuracy = report.find("latency_ms"), report.find("accuracy")
    assert latency is not None and latency.provenance == "measured" and latency.n == 5
    assert accuracy is not None and accuracy.value == 1.0 and accuracy.n == 200
    assert "check.npz" in accuracy.method
    assert report.contract.status == "passed" and report.machine["agent"] == agent.url and report.machine["is_device"] is True
    assert report.bundle == open_bundle(template / "judged.edge").digest
    there = [line for line in told if line.startswith("on the board: ")]
    assert "on the board: measuring in a fresh process" in there and len(there) == len(set(there))
    before = {path.name: path.stat().st_mtime_ns for path in agent.store.folder.glob("*")}
    with Far(agent.url, TOKEN) as link:
        assert send_bundle(link, open_bundle(template / "judged.edge"), LIMITS.__dict__) == 0
    assert {path.name: path.stat().st_mtime_ns for path in agent.store.folder.glob("*")} == before


def test_the_conditions_of_a_measurement_travel(agent: Agent, template: Path) -> None:
    report = far.far_measure(
        template / "older.edge", agent.url, token=TOKEN, runs=3, threads=1, conditions=Conditions(minutes=0.03, cold=True)
    )
    assert {"sustained, first sixth", "sustained, last sixth", "cold"} <= {row.segment for row in report.rows}
    assert report.machine["sustained"] and any(note.startswith("on end: ") for note in report.notes)


def test_a_zip_and_a_folder_are_the_same_bundle_there(agent: Agent, template: Path) -> None:
    folder, archive = open_bundle(template / "older.edge"), open_bundle(template / "older.zip")
    assert folder.digest == archive.digest
    with Far(agent.url, TOKEN) as there:
        send_bundle(there, archive, LIMITS.__dict__)
        assert send_bundle(there, folder, LIMITS.__dict__) == 0
    found = packed.open_packed(agent.store.path(packed.PAYLOAD, folder.digest))
    assert found.read("model.onnx") == folder.read("model.onnx")


def test_an_upload_that_was_cut_goes_on_where_it_was(agent: Agent, large: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is reset in the middle, and nothing listens any more; later only the rest is sent."""
    bundle = renamed(large, "cut")
    total = bundle.payload_bytes
    monkeypatch.setattr(far, "PATIENCE_S", 0.3)
    with Relay(address(agent), parse("400mbit,1ms")) as relay:

        def cut(message: str) -> None:
            if not message.startswith("sending: 0.0"):
                relay.refuse = True
                relay.drop()

        with Far(f"http://127.0.0.1:{relay.address[1]}", TOKEN) as there, pytest.raises(LinkError):
            send_bundle(there, bundle, LIMITS.__dict__, cut)
    part = agent.store.folder / f"{bundle.digest}{packed.PAYLOAD}.part"
    here = part.stat().st_size
    assert 0 < here < total
    with Far(agent.url, TOKEN) as there:
        assert send_bundle(there, bundle, LIMITS.__dict__) == total - here
        assert there.counts.sent_bytes < total - here + 20_000
    assert packed.open_packed(agent.store.path(packed.PAYLOAD, bundle.digest)).digest == bundle.digest


def test_a_link_that_breaks_again_and_again_is_made_anew_and_nothing_is_sent_twice(agent: Agent, large: Bundle) -> None:
    bundle = renamed(large, "broken")
    breaks: list[str] = []
    with Relay(address(agent), parse("100mbit,2ms")) as relay:

        def now_and_then(message: str) -> None:
            breaks.append(message)
            if len(breaks) in (3, 4, 5):
                threading.Timer(0.02, relay.drop).start()  # in the middle of a piece, which takes 80 ms

        with Far(f"http://127.0.0.1:{relay.address[1]}", TOKEN) as there:
            sent = send_bundle(there, bundle, LIMITS.__dict__, now_and_then)
            assert there.counts.connects >= 2  # where the machine is busy, a break can fall between two connections
    assert sent == bundle.payload_bytes and len(breaks) >= 5
    assert packed.open_packed(agent.store.path(packed.PAYLOAD, bundle.digest)).digest == bundle.digest


def test_pieces_grow_on_a_fast_link_and_never_beyond_what_the_agent_takes(agent: Agent, large: Bundle) -> None:
    bundle = renamed(large, "growing")
    steps: list[str] = []
    with Far(agent.url, TOKEN) as there:
        send_bundle(there, bundle, {"chunk_bytes": 600_000}, steps.append)
    assert len(steps) == 2 + -(-(bundle.payload_bytes - 262_144 - 524_288) // 600_000)


def test_two_who_send_the_same_share_the_work(agent: Agent, large: Bundle) -> None:
    bundle = renamed(large, "shared")
    with Far(agent.url, TOKEN) as one, Far(agent.url, TOKEN) as other:
        sent: list[int] = []

        def in_between(message: str) -> None:
            if not sent:
                sent.append(0)
                sent[0] = send_bundle(other, bundle, LIMITS.__dict__)

        mine = send_bundle(one, bundle, LIMITS.__dict__, in_between)
    assert (mine, sent) == (0, [bundle.payload_bytes])


def test_samples_travel_once_and_the_same_arrays_are_the_same_file(agent: Agent, tmp_path: Path) -> None:
    arrays: dict[str, np.ndarray] = {"x": np.arange(24, dtype=np.float32).reshape(3, 8), "labels": np.arange(3)}
    data = npz(arrays)
    assert data == npz({name: arrays[name] for name in reversed(list(arrays))})
    (tmp_path / "again.npz").write_bytes(data)
    with np.load(tmp_path / "again.npz") as found:
        assert {name: found[name].tolist() for name in found.files} == {name: a.tolist() for name, a in arrays.items()}
    digest = hashlib.sha256(data).hexdigest()
    with Far(agent.url, TOKEN) as there:
        assert send_data(there, data, digest, LIMITS.__dict__) == len(data)
        assert send_data(there, data, digest, LIMITS.__dict__) == 0
    assert agent.store.path(DATA, digest).read_bytes() == data


def test_samples_are_judged_before_anything_is_sent(agent: Agent, template: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "unlabelled.npz", x=np.zeros((3, 8), np.float32))
    np.savez(tmp_path / "wrong.npz", y=np.zeros(3))
    before = agent.store.bytes_used()
    for name, told in (("unlabelled", "has no labels"), ("wrong", "the model's inputs are x"), ("gone", "cannot be read")):
        with pytest.raises(ModelError, match=told):
            edgesdk.measure(template / "older.edge", on=agent.url, token=TOKEN, data=tmp_path / f"{name}.npz")
    assert agent.store.bytes_used() == before


def test_what_no_board_can_run_is_refused_before_a_byte_is_sent(template: Path, tmp_path: Path) -> None:
    """Logic, which a board would need a simulator for, alone or as the head of a split; a runtime and a setting of others."""
    older = open_bundle(template / "older.edge")
    files, runtime = {name: older.read(name) for name in older.manifest.files}, older.manifest.runtime
    logic = replace(older.manifest, runtime=replace(runtime, name="fpga"), device="ecp5-85k", files={}, digest="")
    head = bundles.draft(Path("head.edge"), logic, files)
    for name, manifest, payload, told in (
        ("logic", logic, files, "logic for ecp5-85k: here it is only simulated"),
        ("split", replace(older.manifest, files={}, digest=""), files | bundles.inside(head, "head.edge"), "logic for ecp5-85k"),
        ("strange", replace(logic, runtime=replace(runtime, name="abacus")), files, "runs in 'abacus'; taken from elsewhere are"),
        ("file", replace(logic, runtime=replace(runtime, config={"ep.context_file_path": "/x"})), files, "ep.context_file_path"),
    ):
        bundles.write(tmp_path / f"{name}.edge", manifest, payload)
        with FakeServer(Script(about=[ABOUT])) as server:
            with pytest.raises(DeviceError, match=told):
                edgesdk.measure(tmp_path / f"{name}.edge", on=server.url, token=TOKEN)
            assert server.connections == 0


def test_what_fails_on_the_board_is_raised_here_as_what_it_is(agent: Agent, template: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="the board: the bundle runs on TensorrtExecutionProvider") as caught:
        edgesdk.measure(template / "jetson.edge", on=agent.url, token=TOKEN, runs=1)
    assert "--allow-fallback" in caught.value.hint
    with np.load(template / "check.npz") as arrays:
        np.savez(tmp_path / "bad.npz", x=arrays["x"], labels=(arrays["labels"] + 1) % 4)
    report = edgesdk.measure(template / "judged.edge", on=agent.url, token=TOKEN, data=tmp_path / "bad.npz", runs=1, threads=1)
    assert report.contract.status == "none"  # other data than the contract's
    with pytest.raises(DeviceError, match="the agent allows"):
        edgesdk.measure(template / "older.edge", on=agent.url, token=TOKEN, minutes=600)


def test_an_artefact_that_computes_something_else_there_breaks_the_contract(agent: Agent, template: Path, tmp_path: Path) -> None:
    older = open_bundle(template / "older.edge")
    files = {name: older.read(name) for name in older.manifest.files}
    name = next(file for file in files if file.startswith("golden/outputs/"))
    files[name] = files[name][:-4] + np.float32(1e6).tobytes()
    bundles.write(tmp_path / "off.edge", replace(older.manifest, files={}, digest=""), files)
    with pytest.raises(ContractBroken, match="relative from the golden ones"):
        edgesdk.measure(tmp_path / "off.edge", on=agent.url, token=TOKEN, runs=1, threads=1)


def test_an_interrupted_measurement_is_cancelled_on_the_board(agent: Agent, template: Path) -> None:
    def interrupt(message: str) -> None:
        if "running for" in message:
            raise KeyboardInterrupt

    cancelled = agent.queue.ended["cancelled"]
    with pytest.raises(KeyboardInterrupt):
        edgesdk.measure(template / "older.edge", on=agent.url, token=TOKEN, minutes=5, progress=interrupt)
    end = time.monotonic() + 30
    while agent.queue.waiting:
        assert time.monotonic() < end, "it still runs"
        time.sleep(0.01)
    assert agent.queue.ended["cancelled"] == cancelled + 1
    done = agent.queue.ended["done"]
    edgesdk.measure(template / "older.edge", on=agent.url, token=TOKEN, runs=1, threads=1)
    assert agent.queue.ended["done"] == done + 1


def test_tokens_and_addresses_that_are_wrong(agent: Agent, template: Path) -> None:
    for token, told in (("", "wants a token"), ("nonsense", "does not take this token"), ("two words", "spaces")):
        with pytest.raises(EdgeError, match=told):
            edgesdk.measure(template / "older.edge", on=agent.url, token=token)
    for url in ("http://127.0.0.1:1", "http://127.0.0.1:1/path", "http://user@host:1", "http://", "http://host:99999"):
        with pytest.raises(LinkError):
            edgesdk.measure(template / "older.edge", on=url, token=TOKEN)
    with pytest.raises(DeviceError, match="allowed: local, emulator, http://HOST:PORT"):
        edgesdk.measure(template / "older.edge", on="pi:7860")


def test_a_board_that_is_not_there_is_told_without_advice_for_sessions(template: Path) -> None:
    for call, verb in (
        (lambda: edgesdk.measure(template / "older.edge", on="http://127.0.0.1:1", token=TOKEN), "measure again to go on"),
        (lambda: far_doctor("http://127.0.0.1:1", TOKEN), "ask its doctor again"),
    ):
        with pytest.raises(LinkError, match=r"no connection to http://127\.0\.0\.1:1: Connection refused") as caught:
            call()
        assert type(caught.value) is LinkError and "does edgesdk agent run there" in caught.value.hint
        assert caught.value.hint.endswith(verb)


def test_a_report_that_cannot_be_written_is_told_before_anything_is_measured(template: Path, tmp_path: Path) -> None:
    for place in ("nowhere/r.json", "."):
        done = run_apart(["measure", str(template / "older.edge"), "--out", place], tmp_path)
        assert (done.code, done.error["kind"]) == (1, "BundleError") and "cannot be written" in done.error["message"]
        assert "measuring" not in done.err
    (tmp_path / "closed").mkdir(mode=0o500)
    done = run_apart(["measure", str(template / "older.edge"), "--out", "closed/r.json"], tmp_path, obeying=True)
    assert done.code == 1 and "measuring" not in done.err and "closed" in done.error["message"]


def test_what_was_measured_is_told_where_the_disk_turns_out_to_be_full(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(report: Report, path: Path) -> None:
        raise BundleError(f"{path} cannot be written: No space left on device")

    monkeypatch.setattr(Report, "save", full)
    done = run_here(["measure", str(template / "older.edge"), "--runs", "2", "--threads", "1", "--out", "r.json"], tmp_path)
    assert done.code == 1 and "No space left" in done.error["message"] and "latency_ms" in done.out


def test_the_doctor_of_the_board(agent: Agent) -> None:
    found = far_doctor(agent.url, TOKEN)
    assert {"python", "numpy wheel"} <= {check["name"] for check in found["checks"]} and found["facts"]["libc"]


def test_the_command_line_measures_and_asks_the_doctor_there(agent: Agent, template: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    words = ["measure", str(template / "older.edge"), "--on", agent.url, "--runs", "3", "--threads", "1", "--json"]
    done = run_apart([*words, "--token-file", "token"], tmp_path)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["machine"]["agent"] == agent.url
    assert {row["name"]: row["n"] for row in found["rows"] if row["segment"] == "whole"}["latency_ms"] == 3
    done = run_apart(["doctor", "--on", agent.url], tmp_path, environment={"EDGESDK_TOKEN": TOKEN})
    assert done.code == 0 and "numpy wheel" in done.out and "kernel: " in done.out
    done = run_apart(words, tmp_path, environment={"EDGESDK_TOKEN": "something-else-entirely"})
    assert done.code == 1 and done.error["kind"] == "LinkError" and "does not take this token" in done.error["message"]


# Who answers nonsense


class Script:
    """Answers by path; each is what a test says, the last one again and again."""

    def __init__(self, **answers: list[bytes]) -> None:
        self.answers = {name: list(given) for name, given in answers.items()}

    def __call__(self, asked: Asked) -> list[Act]:
        name, *rest = asked.head.split(" ")[1].removeprefix("/agent/v1").strip("/").split("/")
        given = self.answers["pieces" if rest and name != "measurements" else name or "about"]
        return [given.pop(0) if len(given) > 1 else given[0]]


def told(data: Any, status: str = "200 OK") -> bytes:
    return message(json.dumps(data).encode(), status)


ABOUT = told({"format": FORMAT, "limits": {"chunk_bytes": 1 << 20}})


def complete(bundle: Bundle, **changes: Any) -> bytes:
    size = bundle.payload_bytes
    return told({"digest": bundle.digest, "bytes": size, "offset": size, "complete": True} | changes)


@pytest.mark.parametrize(
    ("about", "words"),
    [
        (message(b"<html>"), "no JSON"),
        (told([1]), "no JSON object"),
        (told({"name": "edgesdk"}), "is no agent of the format"),
        (told({"format": "edgesdk-agent/9", "limits": {}}), "is no agent of the format"),
        (told({"format": FORMAT, "limits": 3}), "is no agent of the format"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "malformed"),
        (told({"error": "boom"}, "500 Internal Server Error"), "boom"),
    ],
)
def test_what_is_no_agent_is_told(template: Path, about: bytes, words: str) -> None:
    with FakeServer(Script(about=[about])) as server, pytest.raises(EdgeError, match=words):
        edgesdk.measure(template / "older.edge", on=server.url, token=TOKEN)


@pytest.mark.parametrize(
    "changes", [{"offset": -1}, {"offset": 10**9}, {"offset": "0"}, {"offset": None}, {"bytes": 1}, {"complete": 1}]
)
def test_offsets_that_cannot_be_are_an_error(template: Path, changes: dict[str, Any]) -> None:
    older = open_bundle(template / "older.edge")
    script = Script(about=[ABOUT], bundles=[complete(older, **changes)])
    with FakeServer(script) as server, pytest.raises(LinkError, match="answers with no offset"):
        edgesdk.measure(older.path, on=server.url, token=TOKEN)


def test_a_board_that_forgets_what_was_sent_is_no_endless_upload(template: Path) -> None:
    older = open_bundle(template / "older.edge")
    state = {"offset": 0, "complete": False}
    answers = [complete(older, offset=100, complete=False), complete(older, **state)]
    with FakeServer(Script(about=[ABOUT], bundles=[complete(older, **state)], pieces=answers)) as server:
        with pytest.raises(LinkError, match="made room for something else"):
            edgesdk.measure(older.path, on=server.url, token=TOKEN)
        assert len(server.seen) == 4


@pytest.mark.parametrize(
    ("outcome", "kind", "words"),
    [
        ({"id": "a/../b"}, LinkError, "gave the measurement no id"),
        ({"id": "a", "report": {}}, BundleError, "report"),
        ({"id": "a", "report": None}, BundleError, "report"),
        ({"id": "a", "error": {"kind": "SystemExit", "message": "boo"}}, DeviceError, "the board: boo"),
        ({"id": "a", "error": "boo"}, DeviceError, "does not say why"),
        ({"id": "a", "error": {"kind": "ContractBroken", "message": "by 3"}}, ContractBroken, "by 3"),
    ],
)
def test_outcomes_that_are_none(template: Path, outcome: dict[str, Any], kind: type[EdgeError], words: str) -> None:
    older = open_bundle(template / "older.edge")
    script = Script(about=[ABOUT], bundles=[complete(older)], measurements=[told(outcome, "202 Accepted")])
    with FakeServer(script) as server, pytest.raises(kind, match=words):
        edgesdk.measure(older.path, on=server.url, token=TOKEN)


def test_the_report_of_another_bundle_is_none(agent: Agent, template: Path) -> None:
    other = edgesdk.measure(template / "judged.edge", runs=1, threads=1)
    older = open_bundle(template / "older.edge")
    answer = told({"id": "a", "report": other.to_json()}, "202 Accepted")
    script = Script(about=[ABOUT], bundles=[complete(older)], measurements=[answer])
    with FakeServer(script) as server, pytest.raises(LinkError, match="measured another bundle"):
        edgesdk.measure(older.path, on=server.url, token=TOKEN)


@pytest.mark.parametrize("kind", ["MissingExtra", "PassError", "Unsupported", "EdgeError", "Exception", "ClassVar", "", None, 3])
def test_only_plain_classes_of_ours_are_raised_by_name(kind: object) -> None:
    with pytest.raises(EdgeError) as caught:
        raise_told({"kind": kind, "message": "m", "hint": "h"}, "the board")
    assert type(caught.value) in (EdgeError, DeviceError) and caught.value.hint == "h"


def test_a_link_that_stays_down_is_given_up(template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(far, "PATIENCE_S", 0.2)
    older = open_bundle(template / "older.edge")
    scripted: list[list[Act]] = [[ABOUT], ["reset"]]

    def script(asked: Asked) -> list[Act]:
        return scripted[min(asked.number, 1)]

    with FakeServer(script) as server, pytest.raises(LinkError, match="has gone") as caught:
        edgesdk.measure(older.path, on=server.url, token=TOKEN)
    assert isinstance(caught.value.__cause__, Fault) and server.connections > 1
