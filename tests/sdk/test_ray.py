"""A bundle behind Ray Serve, on a local cluster of two nodes: the same answers, and none lost when a worker dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.http as triton_http
import yaml

import edgesdk
from edgesdk import ray_config
from edgesdk.ray_config import Replicas, write_config
from edgesdk_converters.errors import BundleError, DeviceError
from edgesdk_targets.bundle import Bundle, nested, open_bundle

from ..fashion import samples
from ..ray_cluster import Running, free_port, running
from .conftest import dense, run_here

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pydantic, where Ray is loaded
TOKEN = "a-token-for-ray"
THREADS = 4
IMAGES = samples("t10k", 0, 64)["image"]


@pytest.fixture(scope="module")
def place(split: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """split.yaml: two replicas, one to a node, with a token; whole.yaml: another model beside it; both.yaml: both."""
    folder = tmp_path_factory.mktemp("ray")
    (folder / "token").write_text(f"{TOKEN}\n")
    onnx.save(dense(np.eye(8, 4)), folder / "eye.onnx")
    edgesdk.export(folder / "eye.onnx", target="server", out=folder / "eye.edge")
    port = free_port()
    write_config(split.path, folder / "split.yaml", replicas=2, cpus=0.9, token_file=folder / "token", port=port)
    write_config(folder / "eye.edge", folder / "whole.yaml", cpus=0.1, port=port, shared=True)
    first, second = (yaml.safe_load((folder / name).read_text()) for name in ("split.yaml", "whole.yaml"))
    first["applications"] += second["applications"]
    (folder / "both.yaml").write_text(yaml.safe_dump(first))
    return folder


@pytest.fixture(scope="module")
def cluster(place: Path) -> Iterator[Running]:
    port = yaml.safe_load((place / "both.yaml").read_text())["http_options"]["port"]
    with running(place / "both.yaml", port=port, paths=("/v2/health/ready", "/v2/models/eye/ready")) as found:
        _until(lambda: len(found.replicas("fashion_cnn")) == 2, "two replicas")
        yield found


@pytest.fixture(scope="module")
def expected(split: Bundle) -> list[np.ndarray]:
    with edgesdk.load(split.path) as local:
        return [local.run({"image": one[None]})["logits"] for one in IMAGES]


def _until(found: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(0.1)


def _get(url: str, token: str = "") -> tuple[int, Mapping[str, str], bytes]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def test_a_device_gets_what_it_would_compute_itself_from_replicas_on_two_nodes(
    cluster: Running, split: Bundle, expected: list[np.ndarray]
) -> None:
    assert len({cluster.node_of(pid) for pid in cluster.replicas("fashion_cnn")}) == 2
    with edgesdk.load(split.path, remote=cluster.url, token=TOKEN, deadline_ms=30_000, on_late="error") as there:
        found = list(there.stream([{"image": one[None]} for one in IMAGES], depth=4))
        assert there.remote is not None
        counts = there.remote.counts.to_json()
    for one, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(one["logits"], wanted, rtol=1e-5, atol=1e-5)
    assert (counts["remote"], counts["local"], counts["refused"], counts["malformed"]) == (len(IMAGES), 0, 0, 0)
    assert counts["connects"] <= 4, "connections are kept"


def test_what_ray_brings_is_the_door_that_serve_opens(cluster: Running, split: Bundle) -> None:
    tail = nested(split, "tail.edge")
    with edgesdk.serve(split.path, edgesdk.Doors(port=0, grpc_port=None), token=TOKEN) as server:
        for path in (
            "/v2",
            "/v2/models/fashion_cnn",
            "/v2/models/fashion_cnn/versions/1/ready",
            "/v2/health/live",
            "/v2/nothing",
        ):
            (code, headers, body), (wanted, _, told) = (_get(url + path, TOKEN) for url in (cluster.url, server.url))
            assert (code, json.loads(body)) == (wanted, json.loads(told)), path
            assert headers["edgesdk-digest"] == tail.digest
    assert _get(f"{cluster.url}/v2/models/fashion_cnn")[0] == 401
    code, _, body = _get(f"{cluster.url}/metrics", TOKEN)
    assert code == 200 and b"edgesdk" in body


def test_applications_of_several_bundles_share_a_cluster(cluster: Running) -> None:
    client = triton_http.InferenceServerClient(cluster.url.removeprefix("http://"))
    x = np.random.default_rng(0).standard_normal((1, 8), np.float32)
    for binary in (True, False):
        given = triton_http.InferInput("x", x.shape, "FP32").set_data_from_numpy(x, binary_data=binary)
        wanted = triton_http.InferRequestedOutput("y", binary_data=binary)
        np.testing.assert_allclose(client.infer("eye", [given], outputs=[wanted]).as_numpy("y"), x[:, :4], rtol=1e-6)


def _under_load(
    cluster: Running, split: Bundle, expected: list[np.ndarray], harm: Callable[[], None], healed: Callable[[], bool]
) -> tuple[dict[str, int], int]:
    """Requests of THREADS threads without a pause: 100 before `harm` is done, then until it is healed, then 100 more.

    The session's counts and the number of requests, each of which has been answered, rightly.
    """
    done, wrong, stop = [0] * THREADS, [], threading.Event()
    with edgesdk.load(split.path, remote=cluster.url, token=TOKEN, deadline_ms=5_000) as session:
        assert session.remote is not None

        def work(number: int) -> None:
            try:
                while not stop.is_set():
                    index = (done[number] * THREADS + number) % len(IMAGES)
                    found = session.run({"image": IMAGES[index][None]})["logits"]
                    if not np.allclose(found, expected[index], rtol=1e-5, atol=1e-5):
                        wrong.append(f"image {index}: {found}")
                    done[number] += 1
            except Exception as error:
                wrong.append(repr(error))
                raise

        threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        try:
            remote = session.remote.counts
            _until(lambda: remote.remote >= 100 or bool(wrong), "100 answers from the cluster")
            harm()
            _until(lambda: healed() or bool(wrong), "healed")
            after = remote.remote
            _until(lambda: remote.remote >= after + 100 or bool(wrong), "100 answers after it")
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        counts = session.remote.counts.to_json()
    assert not wrong, wrong[:3]
    return counts, sum(done)


def _check(counts: dict[str, int], requests: int) -> None:
    print(f"\n{requests} requests: {counts['remote']} answered by the cluster, {counts['local']} here; {counts}")
    assert counts["remote"] + counts["local"] == requests, "each is answered once, there or here"
    assert counts["malformed"] == 0
    assert counts["remote"] >= 200


def test_a_replica_killed_under_load_costs_no_answer(cluster: Running, split: Bundle, expected: list[np.ndarray]) -> None:
    before = cluster.replicas("fashion_cnn")
    victim = min(before)

    def healed() -> bool:
        now = cluster.replicas("fashion_cnn")
        return victim not in now and len(now) == 2

    def harm() -> None:
        os.kill(victim, signal.SIGSTOP)  # so that it surely holds requests when it dies
        time.sleep(0.5)
        os.kill(victim, signal.SIGKILL)

    counts, requests = _under_load(cluster, split, expected, harm, healed)
    _check(counts, requests)
    faults = counts["late"] + counts["gone"] + counts["refused"]
    assert counts["local"] >= faults, "each fault is covered here"


@pytest.mark.slow
def test_a_node_killed_under_load_costs_no_answer(cluster: Running, split: Bundle, expected: list[np.ndarray]) -> None:
    """The node that is not the head: its replica and its proxy die with it, and the other node carries on."""
    raylets = sorted(pid for pid, title in cluster.processes().items() if "raylet/raylet " in title)
    assert len(raylets) == 2
    node = {raylets[-1], *(pid for pid in cluster.processes() if cluster.node_of(pid) == raylets[-1])}
    assert node & cluster.replicas() and cluster.replicas() - node

    def harm() -> None:
        for pid in node:
            os.kill(pid, signal.SIGKILL)

    counts, requests = _under_load(cluster, split, expected, harm, lambda: not node & set(cluster.processes()))
    _check(counts, requests)


def test_ctrl_c_leaves_no_process(cluster: Running) -> None:
    """The last of the tests that need the cluster."""
    assert len(cluster.processes()) > 8
    assert cluster.stop(signal.SIGINT) == {}
    assert cluster.process.returncode == 0


def test_the_file_is_what_ray_reads(place: Path, split: Bundle) -> None:
    from ray.serve.schema import ServeDeploySchema

    from edgesdk.ray_app import app

    written = yaml.safe_load((place / "split.yaml").read_text())
    found = ServeDeploySchema.model_validate(written)
    (one,) = found.applications
    assert one.import_path == ray_config.APPLICATION and one.route_prefix == "/"
    told = ray_config.read(one.args)
    assert told.bundle == str(split.path) and told.replicas == 2 and told.digest == nested(split, "tail.edge").digest
    deployment = app(one.args)._bound_deployment
    assert deployment.num_replicas == 2 and deployment.ray_actor_options["num_cpus"] == 0.9
    assert yaml.safe_load((place / "whole.yaml").read_text())["applications"][0]["route_prefix"] == "/v2/models/eye"


def test_writing_again_replaces_only_what_is_ours(folder: Path) -> None:
    for count in (1, 3):
        assert run_here(f"ray older.edge a.yaml --replicas {count}", folder).code == 0
        assert yaml.safe_load((folder / "a.yaml").read_text())["applications"][0]["args"]["replicas"] == count
    (folder / "b.yaml").write_text("mine: 1\n")
    refused = run_here("ray older.edge b.yaml", folder)
    assert refused.code == 1 and refused.error["kind"] == "BundleError"
    assert (folder / "b.yaml").read_text() == "mine: 1\n"
    assert not [one.name for one in folder.iterdir() if one.name.endswith(".tmp")]


def test_a_shared_application_has_one_model_only(split: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = replace(split.manifest, model={**split.manifest.model, "points": {"8": "0" * 64}})
    monkeypatch.setattr(ray_config, "open_bundle", lambda path: replace(split, manifest=points))
    with pytest.raises(DeviceError, match="models of their own"):
        write_config(split.path, folder / "e.yaml", shared=True)
    assert write_config(split.path, folder / "e.yaml").route == "/"


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({}, "'bundle' is missing"),
        ({"bundle": "m", "replica": 2}, "unknown name 'replica'"),
        ({"bundle": "m", "replicas": "many"}, "args.replicas"),
        ({"bundle": "m", "replicas": 0}, "replicas is 0; allowed: 1 to"),
        ({"bundle": "m", "cpus": 0}, "cpus is 0"),
        ({"bundle": "m", "cpus": 1.5}, "cpus is 1.5"),
        ({"bundle": "m", "workers": 0}, "workers is 0"),
    ],
)
def test_arguments_that_cannot_be_are_one_clear_error(args: dict[str, Any], told: str) -> None:
    from edgesdk.ray_app import app

    with pytest.raises(DeviceError, match=told):
        app(args)


def test_a_replica_loads_no_other_bundle_than_the_file_says(split: Bundle, folder: Path) -> None:
    from edgesdk.ray_app import Replica

    with pytest.raises(BundleError, match="here, not 000000000000"):
        Replica(Replicas(str(folder / "older.edge"), digest="0" * 64))
    with pytest.raises(DeviceError, match="head of a split model"):
        write_config(split.path / "head.edge", folder / "c.yaml")
    assert Replica(Replicas(str(folder / "older.edge"), digest=open_bundle(folder / "older.edge").digest))


def test_threads_are_the_share_of_a_worker() -> None:
    assert [Replicas("m", cpus=cpus, workers=workers).share for cpus, workers in ((1, 1), (8, 2), (0.5, 1), (2, 4))] == [
        1,
        4,
        1,
        1,
    ]
    assert Replicas("m", cpus=8, threads=3).share == 3


def test_without_ray_the_file_is_written_and_the_application_says_what_is_missing(folder: Path) -> None:
    program = """
import sys
sys.modules["ray"] = None
from edgesdk.ray_config import write_config
write_config("older.edge", "d.yaml")
try:
    import edgesdk.ray_app
except Exception as error:
    print(type(error).__name__, error.hint)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("MissingExtra ") and "[ray]" in done.stdout, done.stderr
    assert (folder / "d.yaml").is_file()
