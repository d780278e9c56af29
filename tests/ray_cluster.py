"""A local Ray cluster with a Serve config file running on it, for tests and benchmarks; it leaves nothing behind.

The cluster is started by a process of its own, so that whoever tests imports no Ray and gets none of its signal handlers; it ends
on SIGINT, on SIGTERM, and when who started it is gone. No usage statistics, no dashboard, nothing beyond loopback.

    with running(config, nodes=2, cpus=1) as cluster: connect to cluster.url
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_MARK = "EDGESDK_TEST_CLUSTER"
_MEMORY = 80_000_000
"""Bytes of each node's object store; requests do not go through it."""
REPLICA = "ray::ServeReplica:"


@dataclass
class Running:
    """A cluster that answers at `url`. Its processes are those that have its mark in their environment."""

    url: str
    mark: str
    process: subprocess.Popen[str]
    folder: Path

    def processes(self) -> dict[int, str]:
        """Titles of all live processes of the cluster, by process id."""
        return {pid: title for pid, title in _marked(self.mark).items() if pid != os.getpid()}

    def replicas(self, application: str = "") -> set[int]:
        """Process ids of the replicas (of an application)."""
        return {pid for pid, title in self.processes().items() if title.startswith(f"{REPLICA}{application}")}

    def node_of(self, pid: int) -> int:
        """Process id of the raylet that has started a process."""
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

    def stop(self, number: int = signal.SIGINT, seconds: float = 60.0) -> dict[int, str]:
        """End it as Ctrl-C does; what is still there after so many seconds."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        self.process.wait(seconds)
        return self.left(seconds)

    def left(self, seconds: float) -> dict[int, str]:
        """What is still there after at most so many seconds."""
        end = time.monotonic() + seconds
        while (found := self.processes()) and time.monotonic() < end:
            time.sleep(0.1)
        return found


@contextlib.contextmanager
def running(
    config: Path, *, port: int, nodes: int = 2, cpus: float = 1, paths: tuple[str, ...] = ("/v2/health/ready",)
) -> Iterator[Running]:
    """A cluster of so many nodes with so many CPUs each, once `paths` are answered. Raises RuntimeError where they never are."""
    mark, folder = (
        secrets.token_hex(8),
        Path(tempfile.mkdtemp(prefix="edgesdk-ray-", dir="/tmp")),
    )  # Ray's sockets need short paths
    (folder / "ray").mkdir()
    environment = os.environ | {
        _MARK: mark, "RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0",
        "RAY_DISABLE_IMPORT_WARNING": "1", "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    with open(folder / "told", "w") as told:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.ray_cluster", str(config), str(nodes), str(cpus)], cwd=ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=told, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    found = Running(f"http://127.0.0.1:{port}", mark, process, folder)
    try:
        for path in paths:
            _await(found, path)
        yield found
    finally:
        if process.poll() is None:
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        for pid in found.left(20):  # what a test has found wrong must not stay for the next one
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as door:
        return int(door.getsockname()[1])


def _await(found: Running, path: str, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(found.url + path, timeout=5) as answer:
            if answer.status == 200:
                return
        if found.process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{path} is not answered; the cluster said:\n{(found.folder / 'told').read_text()}")
        time.sleep(0.1)


def _marked(mark: str) -> dict[int, str]:
    found = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            with contextlib.suppress(OSError):
                if f"{_MARK}={mark}".encode() in (place / "environ").read_bytes().split(b"\0"):
                    found[int(place.name)] = (
                        (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    )
    return found


def _address(place: int) -> str:
    """Of a node, on loopback: for 127.0.0.1 Ray takes the machine's own address."""
    return f"127.0.0.{place + 2}"


def main() -> None:
    """The cluster, until told to end."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    from ray.cluster_utils import Cluster

    config, nodes, cpus = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    one = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _MEMORY}
    cluster = None
    try:
        cluster = Cluster(initialize_head=True, head_node_args=one | {"node_ip_address": _address(0)})
        for place in range(1, nodes):
            cluster.add_node(**one, node_ip_address=_address(place))
        command = [sys.executable, "-m", "ray.serve.scripts", "run", config, "--address", cluster.address, "--non-blocking"]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        sys.stdin.read()
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if cluster is not None:
            cluster.shutdown()


if __name__ == "__main__":
    main()
