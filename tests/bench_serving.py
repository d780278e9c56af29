"""What serving costs over a bare ONNX Runtime call: latency, throughput and memory, by REST and gRPC, for 1 to 64 clients.

python -m tests.bench_serving [latency] [load] [session] [links] [memory]
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

import edgesdk
from edgesdk.remote_tail import Remote, RemoteTail
from edgesdk_targets.bundle import Bundle, open_bundle

from .bench_quantised import show
from .fashion import samples
from .relay import apart

ROOT = Path(__file__).parents[1]
VALUES = 2_500
"""10 kB each way: y = -x, so that what is timed is the way there and back."""
CLIENTS = (1, 8, 64)
SECONDS = 4.0
Call = Callable[[], object]


def negation(folder: Path) -> Bundle:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, VALUES]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"], name="neg")], "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 20)]), folder / "negation.onnx")
    return edgesdk.export(folder / "negation.onnx", target="server", out=folder / "negation.edge")


@contextlib.contextmanager
def served(path: Path) -> Iterator[tuple[dict[str, str], int]]:
    """`edgesdk serve` in a process of its own: where it is, and its process id."""
    command = [sys.executable, "-m", "edgesdk.cli", "serve", str(path), "--port", "0", "--grpc-port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or lines[-1] != "}\n":
        lines.append(process.stdout.readline())
    try:
        yield json.loads("".join(lines)), process.pid
    finally:
        process.terminate()
        process.wait()


def memory_mb(pid: int, name: str = "VmRSS") -> float:
    """Resident memory of a process now, or with VmHWM at its peak."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def triton_rest(told: dict[str, str], x: NDArray[np.float32]) -> Call:
    import tritonclient.http as triton

    client = triton.InferenceServerClient(told["rest"].removeprefix("http://"))

    def call() -> object:
        given = triton.InferInput("x", x.shape, "FP32").set_data_from_numpy(x)
        return client.infer("negation", [given]).as_numpy("y")

    return call


def triton_grpc(told: dict[str, str], x: NDArray[np.float32]) -> Call:
    import tritonclient.grpc as triton

    client = triton.InferenceServerClient(told["grpc"])

    def call() -> object:
        given = triton.InferInput("x", x.shape, "FP32").set_data_from_numpy(x)
        return client.infer("negation", [given]).as_numpy("y")

    return call


def own(bundle: Bundle, told: dict[str, str], x: NDArray[np.float32]) -> Call:
    far = RemoteTail(Remote(told["rest"], 60_000, "error"), bundle)
    far.connect()
    return lambda: far.run({"x": x})[0]


def bare(bundle: Bundle, x: NDArray[np.float32]) -> Call:
    session = ort.InferenceSession(bundle.read("model.onnx"), providers=["CPUExecutionProvider"])
    return lambda: session.run(["y"], {"x": x})[0]


def timed(call: Call, count: int) -> NDArray[np.float64]:
    """Milliseconds of each of so many calls."""
    for _ in range(100):
        call()
    found = np.empty(count)
    for index in range(count):
        begin = time.perf_counter()
        call()
        found[index] = 1e3 * (time.perf_counter() - begin)
    return found


@contextlib.contextmanager
def ways() -> Iterator[tuple[dict[str, Callable[[], Call]], int]]:
    """How to ask, by name: each makes a client of its own. And the server's process id."""
    x = np.random.default_rng(0).standard_normal((1, VALUES), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        bundle = negation(Path(folder))
        with served(bundle.path) as (told, pid):
            made: dict[str, Callable[[], Call]] = {
                "bare onnxruntime, no server": functools.partial(bare, bundle, x),
                "edgesdk's client, REST": functools.partial(own, bundle, told, x),
                "tritonclient, REST": functools.partial(triton_rest, told, x),
                "tritonclient, gRPC": functools.partial(triton_grpc, told, x),
            }
            for make in made.values():
                assert np.array_equal(make()(), -x)
            yield made, pid


def latency() -> None:
    """One client, 10 kB each way, 2,000 calls each, in five turns of all."""
    with ways() as (made, _):
        calls = {name: make() for name, make in made.items()}
        times: dict[str, list[NDArray[np.float64]]] = {name: [] for name in calls}
        for _ in range(5):
            for name, call in calls.items():
                times[name].append(timed(call, 400))
    least = np.median(np.concatenate(times["bare onnxruntime, no server"]))
    rows = []
    for name, parts in times.items():
        found = np.concatenate(parts)
        rows.append((name, f"{np.median(found):.3f}", f"{np.percentile(found, 99):.3f}", f"{np.median(found) - least:+.3f}"))
    show(("10 kB there and back", "p50 ms", "p99 ms", "over bare at p50"), rows)


def load() -> None:
    """Clients that ask as fast as they are answered, each a thread with a client of its own, all in one process."""
    rows = []
    with ways() as (made, pid):
        for name, make in list(made.items())[1:]:
            for clients in CLIENTS:
                found = together(make, clients)
                rows.append(
                    (name, str(clients), f"{len(found) / SECONDS:,.0f}", f"{np.median(found):.2f}",
                     f"{np.percentile(found, 99):.2f}", f"{memory_mb(pid):,.0f}")
                )  # fmt: skip
    show(("client", "at once", "requests/s", "p50 ms", "p99 ms", "server MB"), rows)


def together(make: Callable[[], Call], clients: int) -> NDArray[np.float64]:
    """Milliseconds of every call that so many clients made within SECONDS."""
    calls = [make() for _ in range(clients)]
    times: list[list[float]] = [[] for _ in calls]
    begin = threading.Barrier(clients + 1)

    def work(place: int) -> None:
        begin.wait()
        end = time.perf_counter() + SECONDS
        while (now := time.perf_counter()) < end:
            calls[place]()
            times[place].append(1e3 * (time.perf_counter() - now))

    threads = [threading.Thread(target=work, args=(place,)) for place in range(clients)]
    for thread in threads:
        thread.start()
    begin.wait()
    for thread in threads:
        thread.join()
    return np.concatenate([np.array(one) for one in times])


def split_net(net: str, folder: Path) -> Bundle:
    return edgesdk.export(
        ROOT / f"examples/fashion/fashion_{net}.onnx", device="raspberry-pi-4", split="auto", payload_bits=4, max_drop=5.0,
        data=samples("t10k", 0, 400), train=samples("train", 0, 300), out=folder / f"{net}.edge",
    )  # fmt: skip


def session() -> None:
    """A split Fashion-MNIST network: here, with its tail on a server on loopback, and as a stream; bytes at the socket."""
    images = [{"image": one[None]} for one in samples("t10k", 0, 100)["image"]]
    rows = []
    for net in ("cnn", "resnet", "mobilenet"):
        with (
            tempfile.TemporaryDirectory() as folder,
            served((made := split_net(net, Path(folder))).path) as (told, _),
            edgesdk.load(made.path, threads=1) as here,
            edgesdk.load(made.path, threads=1, remote=told["rest"], deadline_ms=10_000, on_late="error") as there,
        ):
            assert there.remote is not None
            payload = sum(int(np.prod(spec.shape)) for spec in open_bundle(made.path / "head.edge").manifest.signature.outputs)
            local = timed(functools.partial(here.run, images[0]), 300)
            remote = timed(functools.partial(there.run, images[0]), 300)
            sent, got = there.remote.counts.sent_bytes, there.remote.counts.received_bytes
            there.run(images[0])
            sent, got = there.remote.counts.sent_bytes - sent, there.remote.counts.received_bytes - got
            rows.append(
                (net, f"{payload:,}", f"{sent:,}", f"{got:,}", f"{np.median(local):.2f}", f"{np.median(remote):.2f}",
                 f"{per_second(there, images, 0):,.0f}", f"{per_second(there, images, 2):,.0f}")
            )  # fmt: skip
    show(("net", "payload", "sent", "received", "all here p50 ms", "tail there p50 ms", "one by one /s", "streamed /s"), rows)


def per_second(there: edgesdk.Session, images: list[dict[str, NDArray[np.float32]]], depth: int, count: int = 400) -> float:
    """Requests a second, one by one (depth 0) or as a stream."""
    many = [images[index % len(images)] for index in range(count)]
    begin = time.perf_counter()
    if depth:
        list(there.stream(many, depth=depth))
    else:
        for one in many:
            there.run(one)
    return count / (time.perf_counter() - begin)


def links() -> None:
    """The same over a relay with the rate and the delay of a link: one by one, and as a stream with 1 to 4 on the link."""
    images = [{"image": one[None]} for one in samples("t10k", 0, 100)["image"]]
    rows = []
    with tempfile.TemporaryDirectory() as folder, served((made := split_net("cnn", Path(folder))).path) as (told, _):
        port = int(told["rest"].rpartition(":")[2])
        for text in ("10mbit,20ms", "100mbit,5ms", "100mbit,50ms"):  # the relay gives each connection the whole rate
            with (
                apart(("127.0.0.1", port), text) as address,
                edgesdk.load(
                    made.path, threads=1, remote=f"http://127.0.0.1:{address[1]}", deadline_ms=10_000, on_late="error"
                ) as there,
            ):
                times = timed(functools.partial(there.run, images[0]), 50)
                found = [per_second(there, images, depth, 100) for depth in (0, 1, 2, 4)]
            rows.append((text, f"{np.median(times):.1f}", *(f"{one:,.1f}" for one in found)))
    show(("link", "p50 ms", "one by one /s", "depth 1", "depth 2", "depth 4"), rows)


def memory() -> None:
    """The server's memory over 50,000 requests on one connection, and over 2,000 connections."""
    with ways() as (made, pid):
        rows = [("at the start", f"{memory_mb(pid):,.1f}")]
        call = made["edgesdk's client, REST"]()
        for turn in range(1, 6):
            timed(call, 9_900)
            rows.append((f"after {10_000 * turn:,} requests", f"{memory_mb(pid):,.1f}"))
        for _ in range(2_000):
            made["edgesdk's client, REST"]()()
        rows.append(("and 2,000 connections", f"{memory_mb(pid):,.1f}"))
        rows.append(("at its peak", f"{memory_mb(pid, 'VmHWM'):,.1f}"))
    show(("server", "MB"), rows)


def main() -> None:
    """All tables, or those named."""
    tables = {"latency": latency, "load": load, "session": session, "links": links, "memory": memory}
    for name in sys.argv[1:] or tables:
        print(f"\n{name}: {tables[name].__doc__}")
        tables[name]()


if __name__ == "__main__":
    main()
