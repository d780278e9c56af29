"""A small arm64 Linux to emulate bundles in: C library, Python, NumPy and ONNX Runtime as a board would install them.

Made on first use from Debian's packages and the wheels of this machine's package index, and kept in the user's cache. Debian's
signatures and the index's digests vouch for what is downloaded; SHA256SUMS, written last, for what is found there later.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edgesdk_converters.errors import MissingExtra, MissingTool, ToolError

from . import engine_cache

PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
"""Debian packages; what they depend on comes with them."""
WHEELS = ("numpy", "onnxruntime")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
TOOLS = {"apt-get": "a Debian or Ubuntu system", "dpkg-deb": "a Debian or Ubuntu system"}
SUMS = "SHA256SUMS"
UNFINISHED = "making-"
"""How a folder begins in which a sysroot is made."""
_APT = """
Acquire::Retries "2";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
APT::Architecture "arm64";
APT::Architectures {{ "arm64"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "";
Dir::State "{folder}";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}";
Debug::NoLocking "true";
"""


def place() -> Path:
    """Where the sysroot for this machine's versions of NumPy and ONNX Runtime lies, or would lie.

    They are the same as here, so that what differs is the processor alone. Raises MissingExtra where they are not here.
    """
    name = "-".join(f"{wheel}-{release}" for wheel, release in _releases().items())
    return engine_cache.root() / "sysroots" / f"arm64-{name}"


def is_made() -> bool:
    """Whether `made` would find it there: its files are not checked."""
    return (place() / SUMS).is_file()


def made(progress: Callable[[str], None]) -> Path:
    """The sysroot's folder, made now where it is not there or damaged. Raises ToolError for what stands in the way.

    One process makes it, others wait for it. What a killed one has left is removed.
    """
    folder = place()
    try:
        if _is_whole(folder, progress):
            return folder
        for tool, found_on in TOOLS.items():
            if shutil.which(tool) is None:
                raise MissingTool(tool, "is missing: the arm64 system is made of Debian packages", hint=f"use {found_on}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder.parent, progress):
            if not _is_whole(folder, progress):  # else another process was faster
                if is_made():
                    progress("the arm64 system is damaged: making it anew")
                for left in folder.parent.glob(f"{UNFINISHED}*"):
                    shutil.rmtree(left, ignore_errors=True)
                _make(folder, progress)
    except OSError as error:
        raise _refused(error) from error
    return folder


def _is_whole(folder: Path, progress: Callable[[str], None]) -> bool:
    """Whether a sysroot is there, and all of its files are as they were made."""
    if not (folder / SUMS).is_file():
        return False
    progress("checking the arm64 system")
    return sums(folder).encode() == (folder / SUMS).read_bytes()


def _make(folder: Path, progress: Callable[[str], None]) -> None:
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder.parent) as scratch:
        root = Path(scratch, "root")
        _unpack_packages(Path(scratch, "apt"), root, progress)
        _install_wheels(root, progress)
        root.joinpath(SUMS).write_text(sums(root), encoding="utf-8")
        if folder.exists():
            folder.rename(Path(scratch, "damaged"))
        root.rename(folder)


@contextlib.contextmanager
def _alone(folder: Path, progress: Callable[[str], None]) -> Iterator[None]:
    """While no other process makes a sysroot in this folder. The lock is in a file, as NFS locks no directory."""
    with folder.with_suffix(".lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another process that makes the arm64 system")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _refused(error: OSError) -> ToolError:
    """A disk that is full, or a folder that cannot be written."""
    named = "" if error.filename is None else f"{os.fspath(error.filename)!r}: "
    hint = "190 MB are needed; XDG_CACHE_HOME=/some/folder puts it elsewhere"
    return ToolError("the arm64 system", f"cannot be kept: {named}{error.strerror or error}", hint=hint)


def python(folder: Path) -> Path:
    """The interpreter in a sysroot, as its path on this machine."""
    found = sorted(folder.glob("usr/bin/python3.*[0-9]"))
    if not found:
        raise ToolError("sysroot", f"{folder} has no usr/bin/python3.N", hint="remove that folder: the next use makes it again")
    return found[-1]


def sums(folder: Path) -> str:
    """A line for each file in a folder and what lies under it: SHA-256 and path, sorted by path; links give where they point."""
    lines = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            lines.append(f"{hashlib.sha256(os.fsencode(path.readlink())).hexdigest()}  {name}")
        elif path.is_file() and name != SUMS:
            lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}")
    return "\n".join(lines) + "\n"


def _releases() -> Mapping[str, str]:
    found = {}
    for wheel in WHEELS:
        try:
            found[wheel] = version(wheel)
        except PackageNotFoundError as error:
            raise MissingExtra("cpu", wheel) from error
    return found


def _unpack_packages(scratch: Path, root: Path, progress: Callable[[str], None]) -> None:
    """Debian's packages and all that they depend on, by an apt of our own: the system's lists and settings stay as they are."""
    for folder in ("lists/partial", "archives/partial"):
        scratch.joinpath(folder).mkdir(parents=True)
    scratch.joinpath("status").touch()
    settings = scratch / "apt.conf"
    settings.write_text(_APT.format(folder=scratch), encoding="utf-8")
    environment = {**os.environ, "APT_CONFIG": str(settings), "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    progress("making an arm64 system, once: Debian's package lists")
    hint = "are Debian's package mirrors reachable? (on Ubuntu, arm64 needs the ports mirror among apt's sources)"
    _run(["apt-get", "update", "-qq"], environment, hint)
    progress("making an arm64 system, once: Debian packages")
    _run(["apt-get", "install", "-qq", "--yes", "--download-only", *PACKAGES], environment, hint)
    root.mkdir()
    archives = sorted(scratch.glob("archives/*.deb"))
    if not archives:
        raise ToolError("apt-get", "downloaded no package for arm64", hint=hint)
    for archive in archives:
        _run(["dpkg-deb", "--extract", str(archive), str(root)], environment, "is the disk full?")


def _install_wheels(root: Path, progress: Callable[[str], None]) -> None:
    release = python(root).name.removeprefix("python")
    wanted = [f"{wheel}=={number}" for wheel, number in _releases().items()]
    progress(f"making an arm64 system, once: {', '.join(wanted)}")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile"]
    command += ["--only-binary=:all:", "--python-version", release, "--target", str(root / "wheels")]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    hint = f"is the package index reachable, and has it these wheels for Python {release} on aarch64?"
    _run([*command, *wanted], dict(os.environ), hint, "pip")


def _run(command: Sequence[str], environment: Mapping[str, str], hint: str, name: str = "") -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(environment), stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        last = " ".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-3:])
        raise ToolError(name or command[0], f"ended with {done.returncode}", last, hint)
