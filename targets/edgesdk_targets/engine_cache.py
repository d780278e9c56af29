"""Where engines that a runtime builds on the device are kept: the user's cache, keyed by all that an engine depends on."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path


def root() -> Path:
    """edgesdk's directory in the user's cache (XDG_CACHE_HOME, else ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgesdk"


def folder(digest: str) -> Path:
    """The directory for the engines of one bundle on this board, made where it is not there.

    The key is the bundle's digest, the board, the L4T release (which fixes GPU driver and TensorRT of a JetPack) and the
    TensorRT library found: an engine built under other ones is never picked up.
    """
    key = hashlib.sha256("\n".join((digest, *platform_facts().values())).encode()).hexdigest()[:32]
    place = root() / "engines" / key
    place.mkdir(parents=True, exist_ok=True)
    return place


def is_built(digest: str) -> bool:
    """Whether an engine for this bundle lies in the cache of this board."""
    return any(folder(digest).glob("*.engine"))


def platform_facts() -> dict[str, str]:
    """Board, L4T release, GPU driver and TensorRT version, as far as files of the system tell; empty strings elsewhere."""
    return {
        "board": _first_line("/proc/device-tree/model"),
        "l4t": _first_line("/etc/nv_tegra_release"),
        "driver": _first_line("/proc/driver/nvidia/version"),
        "tensorrt": _library_version("libnvinfer.so"),
    }


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").split("\n")[0].strip("\0 ")
    except OSError:
        return ""


def _library_version(name: str) -> str:
    folders = [
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib/x86_64-linux-gnu",
        *os.environ.get("LD_LIBRARY_PATH", "").split(":"),
    ]
    versions = [
        match.group(1)
        for path in folders
        if path and Path(path).is_dir()
        for entry in os.listdir(path)
        if (match := re.fullmatch(re.escape(name) + r"\.([0-9.]+)", entry))
    ]
    return max(versions, key=len, default="")
