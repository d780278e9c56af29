"""What was sent to an agent: bundles and check samples by their digests, each piece checked, whole ones verified, within a quota.

A bundle is announced by its manifest, then its payload comes in pieces, each at the offset where the last one ended; samples
are announced by digest and length. Files are named by digests alone. What is not whole yet is a `.part`; only after every digest
holds it is renamed, so that what has its name can be run.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import math
import os
import re
import shutil
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgesdk_converters.errors import BundleError, DeviceError, EdgeError
from edgesdk_targets import packed
from edgesdk_targets.bundle import Manifest

DIGEST = re.compile(r"[0-9a-f]{64}")
DATA = ".npz"
_SPARE = 64_000_000
"""Bytes of the disk that are left to others."""
_PIECE = 1 << 20
_LONGEST_DIRECTORY = 1 << 20
_REMEMBERED = 64
"""Manifests that need not be judged again."""


@dataclass(frozen=True)
class Limits:
    """What an agent takes. Bytes, seconds, and how many measurements wait or run at once."""

    bundle_bytes: int = 1 << 30
    data_bytes: int = 1 << 29
    quota_bytes: int = 4 << 30
    manifest_bytes: int = 4 << 20
    chunk_bytes: int = 4 << 20
    seconds: float = 1800.0
    waiting: int = 16

    def __post_init__(self) -> None:
        if min(vars(self).values()) <= 0:
            raise DeviceError("limits of an agent must be positive", "leave them out for the defaults")


@dataclass(frozen=True)
class Stored:
    """How much of something is here: `offset` of `bytes`; it is `complete` when all of it was verified."""

    digest: str
    bytes: int
    offset: int
    complete: bool


class Absent(EdgeError):
    """What is asked for was never sent here, or has made room for others."""


class Misplaced(EdgeError):
    """A piece begins elsewhere than where the last one ended: at `stored.offset`."""

    def __init__(self, stored: Stored, offset: int) -> None:
        super().__init__(f"the piece begins at {offset}, the next one at {stored.offset}", "go on there")
        self.stored = stored


class Full(EdgeError):
    """There is no room, whatever is thrown away."""


class Store:
    """A folder that is one agent's alone while it runs. Any thread may call.

    `in_use` says which digests must stay although others need room.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder, self.limits = Path(os.path.abspath(folder)), limits
        self._lock = threading.RLock()
        self._sizes: dict[str, int] = {}
        self._known: dict[bytes, Manifest] = {}
        self.in_use: Callable[[str], bool] = lambda digest: False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
            self._alone = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DeviceError(f"{folder} cannot hold what is sent here: {error.strerror}", "give another --store") from error
        try:
            fcntl.flock(self._alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._alone)
            raise DeviceError(f"{folder} is another agent's, which runs", "stop that one, or give another --store") from error

    def close(self) -> None:
        """Leave the folder to others. It may be called again."""
        if self._alone >= 0:
            os.close(self._alone)
            self._alone = -1

    def announce_bundle(self, raw: bytes) -> Stored:
        """Take note of a bundle by its manifest. Raises BundleError, DeviceError for one that cannot be run here, Full."""
        with self._lock:
            manifest = self._judged(raw)
        digest, size = manifest.digest, packed.payload_bytes(manifest)
        if size > self.limits.bundle_bytes:
            raise Full(f"the bundle has {size} bytes; allowed: {self.limits.bundle_bytes}", "start the agent with a higher limit")
        with self._lock:
            if not self._path(digest, packed.MANIFEST_SUFFIX).exists():
                self._make_room(size + len(raw), digest)
                part = self._path(digest, packed.MANIFEST_SUFFIX + ".part")
                _write(part, 0, raw)
                part.replace(self._path(digest, packed.MANIFEST_SUFFIX))
            self._sizes[digest + packed.PAYLOAD] = size
            return self._state(digest, packed.PAYLOAD)

    def announce_data(self, digest: str, size: int) -> Stored:
        """Take note of samples. Raises ValueError for what is no digest, Full."""
        _check(digest)
        if not 0 < size <= self.limits.data_bytes:
            raise Full(f"the samples have {size} bytes; allowed: 1 to {self.limits.data_bytes}", "give fewer samples")
        with self._lock:
            if not self._path(digest, DATA).exists():
                self._make_room(size, digest)
            self._sizes[digest + DATA] = size
            return self._state(digest, DATA)

    def append(self, kind: str, digest: str, offset: int, piece: bytes) -> Stored:
        """Add a piece to what was announced; `kind` is packed.PAYLOAD or DATA.

        Raises Absent where nothing was announced, Misplaced for a piece of elsewhere, BundleError where the whole is not what
        was announced (then it must be sent again), and DeviceError for a bundle that is not run here.
        """
        _check(digest)
        with self._lock:
            if digest + kind not in self._sizes:
                raise Absent(f"{digest[:12]} was not announced", "announce it, then send it")
            state = self._state(digest, kind)
            if state.complete:
                return state
            if offset != state.offset:
                raise Misplaced(state, offset)
            if not piece or offset + len(piece) > state.bytes:
                raise BundleError(f"{len(piece)} bytes at {offset}; {state.bytes} were announced", "send what was announced")
            part = self._path(digest, kind + ".part")
            try:
                _write(part, offset, piece)
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.truncate(part, offset)
                raise Full(f"the board cannot store it: {error.strerror}", "free space on the board") from error
            if offset + len(piece) == state.bytes:
                self._finish(digest, kind)
            return self._state(digest, kind)

    def path(self, kind: str, digest: str) -> Path:
        """Where something whole lies. Raises Absent."""
        _check(digest)
        with self._lock:
            path = self._path(digest, kind)
            if not path.exists():
                raise Absent(f"{digest[:12]} is not here, or not whole", "send it again")
            for near in self.folder.glob(f"{digest}.*"):
                os.utime(near)
            return path

    def _judged(self, raw: bytes) -> Manifest:
        """A manifest that can be run here; one that was judged before is not read again."""
        key = hashlib.sha256(raw).digest()
        if key in self._known:
            return self._known[key]
        manifest = packed.read_manifest(raw, "the manifest sent")
        packed.check_runtime(manifest)
        if packed.payload_bytes(manifest) == 0:
            raise BundleError("the bundle has no payload", "export it anew")
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[key] = manifest
        return manifest

    def bytes_used(self) -> int:
        """Of all files, and what is still to come of those announced."""
        with self._lock:
            return sum(self._sizes_by_digest().values())

    def _path(self, digest: str, suffix: str) -> Path:
        return self.folder / f"{digest}{suffix}"

    def _state(self, digest: str, kind: str) -> Stored:
        size = self._sizes[digest + kind]
        if self._path(digest, kind).exists():
            return Stored(digest, size, size, True)
        part = self._path(digest, kind + ".part")
        return Stored(digest, size, part.stat().st_size if part.exists() else 0, False)

    def _finish(self, digest: str, kind: str) -> None:
        """Verify what is whole, and give it its name; throw away what is not what was announced."""
        part, whole = self._path(digest, kind + ".part"), self._path(digest, kind)
        try:
            if kind == DATA:
                if _sha256(part) != digest:
                    raise BundleError("the samples are not what was announced", "send them again")
                check_plain(part)
            else:
                trial = self._path(digest, packed.TRIAL)
                part.replace(trial)
                part = trial
                manifest = self._judged(self._path(digest, packed.MANIFEST_SUFFIX).read_bytes())
                packed.check_foreign(packed.open_packed(trial, manifest))
        except EdgeError:
            part.unlink(missing_ok=True)
            self._path(digest, packed.MANIFEST_SUFFIX).unlink(missing_ok=True)
            del self._sizes[digest + kind]
            raise
        _sync(part)
        part.replace(whole)
        _sync(self.folder)

    def _sizes_by_digest(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for path in self.folder.iterdir():
            digest = path.name.partition(".")[0]
            if DIGEST.fullmatch(digest):
                found[digest] = found.get(digest, 0) + path.stat().st_size
        for name, size in self._sizes.items():
            digest = name.partition(".")[0]
            found[digest] = max(found.get(digest, 0), size)
        return found

    def _make_room(self, need: int, digest: str) -> None:
        """Remove what was used longest ago until `need` bytes fit. Raises Full."""
        sizes = self._sizes_by_digest()
        sizes.pop(digest, None)
        free = shutil.disk_usage(self.folder).free - _SPARE
        ages = {one: max((p.stat().st_mtime for p in self.folder.glob(f"{one}.*")), default=0.0) for one in sizes}
        for oldest in sorted(sizes, key=lambda one: ages[one]):
            if sum(sizes.values()) + need <= self.limits.quota_bytes and need <= free:
                break
            if not self.in_use(oldest):
                free += sizes.pop(oldest)
                for kind in (packed.PAYLOAD, DATA):
                    self._sizes.pop(oldest + kind, None)
                for path in self.folder.glob(f"{oldest}.*"):
                    path.unlink()
        if sum(sizes.values()) + need > self.limits.quota_bytes or need > free:
            left = self.limits.quota_bytes - sum(sizes.values())
            raise Full(
                f"{need} bytes do not fit: {left} of the quota and {max(0, free)} of the disk are free",
                "make room on the board's disk, or give the agent a --store on another"
                if need > free
                else "wait for measurements to end, or give the agent a larger --quota-mb",
            )


def check_plain(path: Path) -> None:
    """Raise BundleError for an .npz that could be more in memory than it is on the disk, or that holds objects."""
    hint = "send what numpy.savez writes: plain arrays, not compressed"
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            stream.seek(max(0, size - 42))
            end = stream.read()
        # zipfile would read a directory of millions of entries; that of a few arrays is short, and at the very end
        if end[-22:-18] != b"PK\5\6" or b"PK\6\7" in end or int.from_bytes(end[-10:-6], "little") > _LONGEST_DIRECTORY:
            raise BundleError("the samples have no directory, or a long one", hint)
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            packed_ones = [one for one in members if one.compress_type != zipfile.ZIP_STORED or one.flag_bits & 1]
            if not members or packed_ones or sum(one.file_size for one in members) > size:
                raise BundleError("the samples are packed, or overlap, or are none", hint)
            for member in members:
                with archive.open(member) as stream:
                    major, _ = np.lib.format.read_magic(stream)
                    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
                    shape, _, dtype = read(stream)
                    if dtype.hasobject or math.prod(shape) * dtype.itemsize != member.file_size - stream.tell():
                        raise BundleError(
                            "an array of the samples has another length than its header says, or holds objects", hint
                        )
    except (ValueError, zipfile.BadZipFile, NotImplementedError, EOFError, OSError, RecursionError) as error:
        raise BundleError(f"the samples are no .npz of plain arrays: {error}", hint) from error


def _check(digest: str) -> None:
    if not DIGEST.fullmatch(digest):
        raise ValueError(f"{digest[:80]!r} is no SHA-256 digest")


def _write(path: Path, offset: int, data: bytes) -> None:
    """Write at the end of a file that has `offset` bytes; links are not followed."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, offset)
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, offset)
            offset, view = offset + written, view[written:]
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
