"""What an agent costs beside the bytes that travel and the measurement itself: per call, per bundle by size, per measurement.

python -m tests.bench_agent [calls] [bundles] [measurement]

The floor of an upload is the same bytes over the same loopback to a process that checks, writes and hashes them and answers a
byte. On a machine that does other things as well, the 10th percentile is nearest to what a call takes by itself.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import edgesdk
from edgesdk.far_measure import Far, send_bundle
from edgesdk_targets import bundle as bundles
from edgesdk_targets import packed
from edgesdk_targets.bundle import Bundle

from .bench_quantised import show

TOKEN = "a-token-for-the-benchmark"
MEGABYTES = (0.01, 0.1, 1.0, 10.0, 100.0)
PIECE = 4 << 20


@contextlib.contextmanager
def agent(folder: Path) -> Iterator[str]:
    """`edgesdk agent` in a process of its own: its address."""
    (folder / "token").write_text(TOKEN, encoding="ascii")
    command = [sys.executable, "-m", "edgesdk.cli", "agent", "--port", "0", "--store", str(folder / "store"), "--json"]
    process = subprocess.Popen([*command, "--token-file", str(folder / "token")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or lines[-1] != "}\n":
        lines.append(process.stdout.readline())
    try:
        yield json.loads("".join(lines))["url"]
    finally:
        process.terminate()
        process.wait()


def model(folder: Path, megabytes: float) -> Bundle:
    """y = x @ w with so many bytes of weights."""
    width = max(8, int((megabytes * 1e6 / 4) ** 0.5))
    weights = np.random.default_rng(0).standard_normal((width, width)).astype(np.float32)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width]) for name in "xy"]
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="dense")
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [numpy_helper.from_array(weights, "w")])
    onnx.save(helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 20)]), folder / "m.onnx")
    return edgesdk.export(folder / "m.onnx", target="server", out=folder / f"{megabytes:g}.edge")


def times_ms(call: Callable[[], object], count: int = 300) -> tuple[float, float, float]:
    """10th percentile, median and 90th percentile."""
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1e3)
    times.sort()
    return times[count // 10], times[count // 2], times[9 * count // 10]


@contextlib.contextmanager
def floor(folder: Path) -> Iterator[Callable[[bytes], None]]:
    """Bytes over loopback to a process that does with them what an agent must: CRC-32, write, SHA-256 at the end."""
    code = (
        "import socket, sys, zlib, hashlib, os\n"
        "door = socket.create_server(('127.0.0.1', 0)); print(door.getsockname()[1], flush=True)\n"
        "link, _ = door.accept(); link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)\n"
        "while head := link.recv(9, socket.MSG_WAITALL):\n"
        "    size, last = int.from_bytes(head[:8], 'big'), head[8]\n"
        "    data = link.recv(size, socket.MSG_WAITALL); zlib.crc32(data)\n"
        "    if size:\n"
        "        with open(sys.argv[1], 'ab') as out: out.write(data)\n"
        "    if size and last:\n"
        "        hashlib.sha256(open(sys.argv[1], 'rb').read())\n"
        "        fd = os.open(sys.argv[1], os.O_RDONLY); os.fsync(fd); os.close(fd)\n"
        "        os.unlink(sys.argv[1])\n"
        "    link.sendall(b'.')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder / "floor")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    link = socket.create_connection(("127.0.0.1", int(process.stdout.readline())))
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(data: bytes) -> None:
        for offset in range(0, max(1, len(data)), PIECE):
            piece = data[offset : offset + PIECE]
            zlib.crc32(piece)
            link.sendall(len(piece).to_bytes(8, "big") + bytes([offset + PIECE >= len(data)]) + piece)
            link.recv(1)

    try:
        yield send
    finally:
        link.close()
        process.wait()


def calls(folder: Path) -> None:
    """Calls that carry next to nothing."""
    bundle = model(folder, 0.01)
    rows = []
    with agent(folder) as url, Far(url, TOKEN) as far:
        limits = far.about()["limits"]
        send_bundle(far, bundle, limits)
        manifest = bundle.manifest.to_bytes()
        for name, call in (
            ("health", lambda: far.get("/v2/health/live")),
            ("about", lambda: far.get("/agent/v1")),
            (f"a manifest of {len(manifest)} bytes that is there", lambda: far.post("/agent/v1/bundles", manifest)),
            ("the whole of a bundle that is there", lambda: send_bundle(far, bundle, limits)),
        ):
            rows.append((name, *(f"{value:.2f}" for value in times_ms(call))))
        with floor(folder) as send:
            rows.append(("floor: ten bytes there and one back", *(f"{value:.2f}" for value in times_ms(lambda: send(b"")))))
    show(("call", "p10 ms", "p50 ms", "p90 ms"), rows)


def uploads(folder: Path) -> None:
    """Bundles by size: sent anew, and announced when they are there; each beside the floor."""
    rows = []
    with agent(folder) as url, Far(url, TOKEN) as far, floor(folder) as send:
        limits = far.about()["limits"]
        for megabytes in MEGABYTES:
            made = model(folder, megabytes)
            files = {name: made.read(name) for name in made.manifest.files}
            payload = b"".join(packed.pieces(made))
            sent, least = [], []
            count = 15 if megabytes < 5 else 5 if megabytes < 50 else 3
            for index in range(count):
                fresh = bundles.draft(made.path, replace(made.manifest, name=f"n{index}", files={}, digest=""), files)
                begin = time.perf_counter()
                assert send_bundle(far, fresh, limits) == len(payload)
                sent.append(time.perf_counter() - begin)
                begin = time.perf_counter()
                send(payload)
                least.append(time.perf_counter() - begin)
            there, *_ = times_ms(lambda bundle=fresh: send_bundle(far, bundle, limits), 50)  # type: ignore[misc]
            pieces, best = calls_of(len(payload)), (min(sent) * 1e3, min(least) * 1e3)
            rows.append(
                (
                    f"{len(payload) / 1e6:.2f}", f"{best[0]:.1f}", f"{best[1]:.1f}", str(pieces),
                    f"{(best[0] - best[1]) / pieces:.2f}", f"{there:.2f}",
                )
            )  # fmt: skip
    show(("bundle MB", "sent anew, best ms", "floor, best ms", "calls", "over the floor, ms a call", "is there, p10 ms"), rows)


def calls_of(size: int) -> int:
    """How many calls an upload takes on a fast link: the manifest, and pieces that double up to the limit."""
    count, offset, length = 1, 0, 1 << 18
    while offset < size:
        count, offset, length = count + 1, offset + length, min(PIECE, 2 * length)
    return count


def measurement(folder: Path) -> None:
    """`measure` of 20 runs on an agent by the bundle's size: with its upload, again by its digest, and the same one here."""
    rows: list[tuple[str, ...]] = []
    with agent(folder) as url:
        for megabytes in MEGABYTES:
            bundle = model(folder, megabytes)

            def there(path: Path) -> None:
                edgesdk.measure(path, on=url, token=TOKEN, runs=20, threads=1)

            first = seconds(lambda path=bundle.path: there(path))  # type: ignore[misc]
            again = min(seconds(lambda path=bundle.path: there(path)) for _ in range(3))  # type: ignore[misc]
            here = min(seconds(lambda path=bundle.path: edgesdk.measure(path, runs=20, threads=1)) for _ in range(3))  # type: ignore[misc]
            rows.append((f"{megabytes:g}", f"{first:.2f}", f"{again:.2f}", f"{here:.2f}", f"{again - here:+.2f}"))
    show(("bundle MB", "first s", "again, best s", "here, best s", "more than here s"), rows)


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def main() -> None:
    wanted = sys.argv[1:] or ["calls", "bundles", "measurement"]
    for name, part in (("calls", calls), ("bundles", uploads), ("measurement", measurement)):
        if name in wanted:
            print(f"\n{part.__doc__}")
            with tempfile.TemporaryDirectory() as folder:
                part(Path(folder))


if __name__ == "__main__":
    main()
