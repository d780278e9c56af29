"""What a Ray Serve application of edgesdk is told: the arguments of `edgesdk.ray_app:app`, and the config file that holds them.

Documents: Ray Serve's "Serve Config Files" for the keys. The file is YAML whose values are written as JSON, which YAML contains.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgesdk_converters import fields
from edgesdk_converters.errors import BundleError, DeviceError
from edgesdk_targets.bundle import nested, open_bundle
from edgesdk_targets.report import write_beside
from edgesdk_targets.split_runner import TAIL

APPLICATION = "edgesdk.ray_app:app"
_MARK = "# Written by edgesdk"
_IDLE_SECONDS = 300
"""That Ray's proxies keep a connection without requests, as `edgesdk serve` does: devices keep theirs for a minute."""


@dataclass(frozen=True)
class Replicas:
    """The `args` of the application: a bundle, and how often and with what each node loads it. Paths are those on every node.

    A replica has `cpus` of its node for itself and runs `workers` inferences at once, each with `threads` threads (0: its share
    of the cpus). With a `digest` it loads no other bundle than that (of a split one: the tail). Without a `token_file` the token
    is that in EDGESDK_TOKEN where the replica runs, or none. Raises DeviceError for values that cannot be.
    """

    bundle: str
    replicas: int = 1
    cpus: float = 1.0
    workers: int = 1
    threads: int = 0
    token_file: str = ""
    digest: str = ""
    allow_fallback: bool = False

    def __post_init__(self) -> None:
        for name, least, most in (("replicas", 1, 100_000), ("workers", 1, 1024), ("threads", 0, 1024)):
            if not least <= getattr(self, name) <= most:
                raise DeviceError(f"{name} is {getattr(self, name)}; allowed: {least} to {most}")
        if not (math.isfinite(self.cpus) and 0 < self.cpus <= 1024) or (self.cpus > 1 and self.cpus != int(self.cpus)):
            raise DeviceError(f"cpus is {self.cpus:g}; allowed: a share of one (0.5) or whole ones, up to 1024")

    @property
    def share(self) -> int:
        """Threads of one inference."""
        return self.threads or max(1, int(self.cpus) // self.workers)


def read(args: Mapping[str, Any]) -> Replicas:
    """What a config file gives as `args`. Raises DeviceError for unknown names, missing ones and wrong types."""
    return fields.read(Replicas, args, "args", DeviceError)


@dataclass(frozen=True)
class Config:
    """A config file that was written: where, the name of its application, and the paths that it answers."""

    path: Path
    name: str
    route: str


def write_config(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    replicas: int = 1,
    cpus: float = 1.0,
    workers: int = 1,
    threads: int = 0,
    token_file: str | os.PathLike[str] = "",
    host: str = "127.0.0.1",
    port: int = 8000,
    shared: bool = False,
) -> Config:
    """Write the config file with which `serve run OUT` or `serve deploy OUT` serves a bundle (of a split one the tail).

    `shared`: answer only the paths of this model, so that other applications fit beside it. An older file is replaced where
    edgesdk wrote it. Raises BundleError for anything else in its place, DeviceError for a head or values that cannot be.
    """
    bundle = open_bundle(path)
    if shared and bundle.manifest.model.get("points"):
        raise DeviceError(f"the operating points of {path} are models of their own", "leave out --shared: they need all paths")
    if bundle.manifest.role == "split":
        bundle = nested(bundle, TAIL)
    if bundle.manifest.role == "head":
        raise DeviceError(f"{path} is the head of a split model, which runs on the device", "give the tail, or the split bundle")
    if not 1 <= port < 65536:
        raise DeviceError(f"port {port}; allowed: 1 to 65535")
    token = os.path.abspath(token_file) if os.fspath(token_file) else ""
    told = Replicas(os.path.abspath(path), replicas, cpus, workers, threads, token, bundle.digest)
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", bundle.manifest.name)
    route = f"/v2/models/{bundle.manifest.name}" if shared else "/"  # Ray compares it with decoded paths
    place = Path(os.path.abspath(out))
    if os.path.lexists(place) and not _is_ours(place):
        raise BundleError(f"{place} exists and is no config file that edgesdk wrote; it is left alone", "give another path")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(f"{place.parent} cannot be made: {error.strerror}", "check the path and its permissions") from error
    write_beside(place, text(told, name, route, host, port).encode())
    return Config(place, name, route)


def text(told: Replicas, name: str, route: str, host: str, port: int) -> str:
    """The config file. Ray starts the proxies once: `host` and `port` of the first file on a cluster stay."""
    lines = [
        f"{_MARK} from bundle {told.digest}. Every node needs edgesdk with its [ray] extra, and the bundle at the same path.",
        "proxy_location: EveryNode",
        "http_options:",
        f"  host: {json.dumps(host)}",
        f"  port: {port}",
        f"  keep_alive_timeout_s: {_IDLE_SECONDS}",
        "applications:",
        f"- name: {json.dumps(name)}",
        f"  route_prefix: {json.dumps(route)}",
        f"  import_path: {APPLICATION}",
        "  args:",
        *(f"    {key}: {json.dumps(value)}" for key, value in asdict(told).items() if value),
    ]
    return "\n".join(lines) + "\n"


def _is_ours(place: Path) -> bool:
    try:
        return place.is_file() and not place.is_symlink() and place.read_text(encoding="utf-8").startswith(_MARK)
    except (OSError, UnicodeDecodeError):
        return False
