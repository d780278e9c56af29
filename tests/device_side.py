"""The device's side of a link, for benchmarks: a slower processor, and a network of its own where that can be had.

`Device` is a process that measures and runs bundles as it is told. Its processor is made slower by sleeping: after each run of a
network for SLOWDOWN - 1 times the CPU time that it took, and after each request for as many times what else it took. Reports that
it measures are of the network alone, as those of `edgesdk measure`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgesdk
from edgesdk.remote_tail import Remote, RemoteTail
from edgesdk_converters.errors import EdgeError
from edgesdk_targets import measure, runner
from edgesdk_targets.bundle import Bundle, open_bundle
from edgesdk_targets.onnx_runner import OnnxRunner
from edgesdk_targets.report import Report
from edgesdk_targets.runner import RunOptions

ROOT = Path(__file__).parents[1]
SLOWDOWN = 16.0
_PREFIX = "edgesdk-"
_START = "from tests.device_side import main; main()"
LATE_MS = 120_000.0


class SlowRunner(OnnxRunner):
    """ONNX Runtime as a processor SLOWDOWN times slower would run it. `used_s` is the CPU time that its runs took."""

    used_s = 0.0

    def run(self, feed: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        begin = time.process_time()
        outputs = super().run(feed)
        used_s = time.process_time() - begin
        SlowRunner.used_s += used_s
        time.sleep((SLOWDOWN - 1) * used_s)
        return outputs


class Device:
    """A process on the device's side; commands go to it one after another. Ends with `close`, or when this process is gone."""

    def __init__(self, prefix: Sequence[str], cores: set[int]) -> None:
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-c", _START, ",".join(map(str, sorted(cores)))], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def measure(self, path: Path) -> Report:
        """Its report of a bundle, on one thread."""
        return Report.from_json(self._ask(do="measure", path=str(path)))

    def run(self, way: str, path: Path, inputs: Path, url: str, count: int) -> NDArray[np.float64]:
        """Milliseconds of `count` requests, after one that is not counted: `local`, `split` (tail at `url`) or `offload`.

        A row for each: all of it, its networks on the device, what else the device computed for it.
        """
        found = self._ask(do="run", way=way, path=str(path), inputs=str(inputs), url=url, count=count)
        return np.array(found["ms"], np.float64)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, **command: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the device's side has ended with {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise RuntimeError(f"on the device's side: {found['error']}")
        return found


@contextlib.contextmanager
def network() -> Iterator[tuple[list[str], str]]:
    """How to start a process on the device's side, and this side's address as seen from there.

    Root gets a network namespace with a pair of virtual Ethernet devices; without root or `ip` both sides are on loopback.
    """
    remove_stale()
    name, number = f"{_PREFIX}{os.getpid()}", os.getpid() % 16_384
    near, far = f"edge{os.getpid()}", f"edge{os.getpid()}d"
    here, there = (f"198.18.{number >> 6}.{(number & 63) * 4 + place}" for place in (1, 2))  # RFC 2544: for benchmarks
    inside = ["ip", "netns", "exec", name]
    steps = (
        ["ip", "netns", "add", name],
        ["ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", name],
        ["ip", "addr", "add", f"{here}/30", "dev", near],
        ["ip", "link", "set", near, "up"],
        [*inside, "ip", "addr", "add", f"{there}/30", "dev", far],
        [*inside, "ip", "link", "set", far, "up"],
        [*inside, "ip", "link", "set", "lo", "up"],
    )
    try:
        made = os.geteuid() == 0 and all(_done(step) for step in steps)
        yield (inside, here) if made else ([], "127.0.0.1")
    finally:
        _done(["ip", "netns", "del", name])


def remove_stale() -> None:
    """Remove namespaces of processes that could not do it themselves."""
    for place in Path("/run/netns").glob(f"{_PREFIX}*"):
        if not Path("/proc", place.name.removeprefix(_PREFIX)).exists():
            _done(["ip", "netns", "del", place.name])


def _done(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False, start_new_session=True).returncode == 0
    except OSError:
        return False


def _measured(path: Path) -> Report:
    bundle = open_bundle(path)
    timing = measure.take(path, None, RunOptions(threads=1))
    facts = measure.machine_facts()
    where = f"{facts['cpu']}, one core, {SLOWDOWN:g} times slower"
    manifest = bundle.manifest
    return Report(manifest.name, manifest.target, manifest.device, bundle.digest, measure.figures(timing, where), machine=facts)


def _requests(way: str, bundle: Bundle, feed: Mapping[str, NDArray[Any]], url: str, count: int) -> list[list[float]]:
    if way == "offload":
        far = RemoteTail(Remote(url, LATE_MS, "error"), bundle)
        far.connect()
        return _timed(lambda: far.run(feed), count, far.close)
    remote = {"remote": url, "deadline_ms": LATE_MS, "on_late": "error"} if way == "split" else {}
    session = edgesdk.load(bundle.path, threads=1, **remote)  # type: ignore[arg-type]
    return _timed(lambda: session.run(feed), count, session.close)


def _timed(once: Callable[[], object], count: int, close: Callable[[], None]) -> list[list[float]]:
    found = []
    try:
        for _ in range(count + 1):
            begin, used_s, networks_s = time.perf_counter(), time.process_time(), SlowRunner.used_s
            once()
            networks_s = SlowRunner.used_s - networks_s
            rest_s = max(0.0, time.process_time() - used_s - networks_s)
            time.sleep((SLOWDOWN - 1) * rest_s)
            found.append([1e3 * one for one in (time.perf_counter() - begin, SLOWDOWN * networks_s, SLOWDOWN * rest_s)])
    finally:
        close()
    return found[1:]


def main() -> None:
    """The process: a command a line in, an answer a line out."""
    cores = {int(one) for one in sys.argv[1].split(",")}
    os.sched_setaffinity(0, cores)
    runner.RUNNERS["onnxruntime"] = "tests.device_side:SlowRunner"
    for line in sys.stdin:
        command = json.loads(line)
        path = Path(command["path"])
        try:
            if command["do"] == "measure":
                answer: Any = _measured(path).to_json()
            else:
                with np.load(command["inputs"]) as stored:
                    feed = dict(stored)
                answer = {"ms": _requests(command["way"], open_bundle(path), feed, command["url"], command["count"])}
        except EdgeError as error:
            answer = {"error": error.line()}
        print(json.dumps(answer), flush=True)
