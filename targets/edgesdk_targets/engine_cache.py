"""Where engines that a runtime builds on the device are kept: the user's cache, keyed by all that an engine depends on."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from edgesdk_converters.errors import DeviceError


def root() -> Path:
    """edgesdk's directory in the user's cache (XDG_CACHE_HOME, else ~/.cache)."""
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if chosen.is_absolute():  # others must be ignored, says the XDG Base Directory Specification
        return chosen / "edgesdk"
    try:
        return Path.home() / ".cache" / "edgesdk"
    except RuntimeError as error:
        raise DeviceError("this user has no home directory to cache engines in", "set XDG_CACHE_HOME=/some/folder") from error


def folder(digest: str) -> Path:
    """The directory for the engines of one bundle on this board, made where it is not there.

    The key is the bundle's digest, the board, the L4T release (which fixes GPU driver and TensorRT of a JetPack) and the
    TensorRT libraries found: an engine built under other ones is never picked up. Raises DeviceError where it cannot be made.
    """
    place = _place(digest)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeviceError(
            f"{place} cannot be made: {error.strerror}", "set XDG_CACHE_HOME to a folder that can be written"
        ) from error
    return place


def _place(digest: str) -> Path:
    key = hashlib.sha256("\n".join((digest, *platform_facts().values())).encode()).hexdigest()[:32]
    return root() / "engines" / key


def is_built(digest: str) -> bool:
    """Whether an engine for this bundle lies in the cache of this board."""
    return any(_place(digest).glob("*.engine"))


def platform_facts() -> dict[str, str]:
    """Board, L4T release, GPU driver and TensorRT version, as far as files of the system tell; empty strings elsewhere."""
    return {
        "board": _first_line("/proc/device-tree/model"),
        "l4t": _first_line("/etc/nv_tegra_release"),
        "driver": _first_line("/proc/driver/nvidia/version"),
        "tensorrt": _library_versions("libnvinfer.so"),
    }


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").split("\n")[0].strip("\0 ")
    except OSError:
        return ""


def _library_versions(name: str) -> str:
    folders = [
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib/x86_64-linux-gnu",
        *os.environ.get("LD_LIBRARY_PATH", "").split(":"),
    ]
    versions = {
        match.group(1)
        for path in folders
        if path and Path(path).is_dir()
        for entry in os.listdir(path)
        if (match := re.fullmatch(re.escape(name) + r"\.([0-9.]+)", entry))
    }
    return " ".join(sorted(versions))
