"""Bundle: what travels to a device. A directory (or .zip) with a manifest, a payload and a digest of everything.

Standard library only. `open_bundle` reads every byte and refuses whatever is not exactly what was written: a changed byte,
a missing or an extra file, another format. Writing goes beside the place and is put there in one step; a bundle that was
there before is exchanged, never overwritten. A half-written one is locked by its writer, so that the next writer can tell
what a dead one has left behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import glob
import hashlib
import io
import json
import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from edgesdk_converters import fields
from edgesdk_converters.errors import BundleError, ModelError
from edgesdk_converters.signature import Signature

from .report import Report, check_can_make, temporary

FORMAT = "edgesdk-bundle/1"
MANIFEST = "manifest.json"
CPU = "CPUExecutionProvider"
"""The provider of ONNX Runtime that every device has."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_DAMAGED = "copy the bundle again, or export it anew"
_NOT_WRITTEN = "check free space and permissions, or give another --out"

Optimization = Literal["all", "extended", "basic"]


@dataclass(frozen=True)
class Provider:
    """An execution provider of the runtime, with its options."""

    name: str
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Runtime:
    """What runs the payload: `name` of the runner, the `file` it loads, and how.

    `minimum` is the least version of the runtime, `threads` 0 means all usable cores, `config` are session settings by the
    runtime's own names. `optimization` is how far the runtime may rewrite the graph: `all` includes layouts of its own.
    Providers are asked in order, and nothing else is: there is no silent fallback.
    """

    name: str
    file: str
    minimum: str = ""
    providers: tuple[Provider, ...] = ()
    threads: int = 0
    arena: bool = True
    optimization: Optimization = "all"
    config: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Golden:
    """A few inputs with the artefact's outputs and the source's: files by tensor name, one case a row.

    `tolerance` bounds the relative error of a later run against the artefact's outputs; `source_error` is the relative error
    of the artefact against the source when it was made, None where it was not finite. `runtime` says what computed the
    artefact's outputs.
    """

    cases: int
    inputs: dict[str, str]
    outputs: dict[str, str]
    source_outputs: dict[str, str]
    tolerance: float
    source_error: float | None
    runtime: str
    inputs_origin: str


@dataclass(frozen=True)
class FileEntry:
    """Size and SHA-256 of one payload file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything about a bundle but its payload. Nothing in it is timed, so the same recipe gives the same digest."""

    name: str
    target: str
    device: str
    precision: str
    signature: Signature
    runtime: Runtime
    role: Literal["whole", "head", "tail", "split"] = "whole"
    golden: Golden | None = None
    model: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    history: tuple[dict[str, Any], ...] = ()
    contract: dict[str, Any] = field(default_factory=dict)
    plan: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    made_by: str = ""
    files: dict[str, FileEntry] = field(default_factory=dict)
    format: str = FORMAT
    digest: str = ""

    def to_bytes(self) -> bytes:
        """The one way to write this manifest."""
        return _canonical(fields.plain(self) | {"format": self.format})

    def sealed(self, files: Mapping[str, bytes]) -> Manifest:
        """With entries for the payload, and the digest over all of it."""
        entries = {name: FileEntry(len(data), hashlib.sha256(data).hexdigest()) for name, data in sorted(files.items())}
        unsealed = replace(self, files=entries, digest="")
        return replace(unsealed, digest=hashlib.sha256(unsealed.to_bytes()).hexdigest())


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: every byte has been checked against the manifest's digest.

    `files` is set for a draft only: a bundle that is not written yet and lives in memory.
    """

    path: Path
    manifest: Manifest
    files: Mapping[str, bytes] | None = None

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def payload_bytes(self) -> int:
        return sum(entry.bytes for entry in self.manifest.files.values())

    def report(self) -> Report:
        """The report that the export wrote beside the bundle. Raises BundleError where it is gone or another bundle's."""
        place = report_path(self.path)
        try:
            found = Report.from_json(json.loads(place.read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(f"{place} cannot be read: {error}", "export again") from error
        if found.bundle != self.digest:
            raise BundleError(f"{place} is the report of another bundle ({found.bundle[:12]})", "export again")
        return found

    def read(self, name: str) -> bytes:
        """One payload file, checked once more: what is returned is what the digest covers."""
        entry = self.manifest.files.get(name)
        if entry is None:
            raise BundleError(f"{self.path} has no file {name!r}; it has: {', '.join(self.manifest.files)}")
        if self.files is not None:
            return self.files[name]
        with _store(self.path) as store:
            data = store.read(name)
        _check(self.path, name, data, entry)
        return data


def draft(path: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Bundle:
    """A bundle in memory, to be tried before it is written."""
    return Bundle(path, manifest.sealed(files), files)


def nested(bundle: Bundle, name: str) -> Bundle:
    """A bundle that lies inside another, e.g. head.edge in that of a split model. Raises BundleError where there is none."""
    manifest = _parse(bundle.path / name, bundle.read(f"{name}/{MANIFEST}"))
    return Bundle(bundle.path / name, manifest, {file: bundle.read(f"{name}/{file}") for file in manifest.files})


def inside(bundle: Bundle, name: str) -> dict[str, bytes]:
    """The files of a draft as they lie inside another bundle, by their names there."""
    assert bundle.files is not None
    return {f"{name}/{MANIFEST}": bundle.manifest.to_bytes()} | {f"{name}/{file}": data for file, data in bundle.files.items()}


def report_path(path: Path) -> Path:
    """Where the report of a bundle lies: NAME.report.json beside NAME.edge."""
    stem = path.name.removesuffix(".zip").removesuffix(".edge")
    return path.with_name(f"{stem}.report.json")


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Open and check a bundle. Raises BundleError for anything but an intact one."""
    path = Path(path)
    with _store(path) as store:
        raw = store.read(MANIFEST)
        manifest = _parse(path, raw)
        present, wanted = set(store.names()), {MANIFEST, *manifest.files}
        if missing := sorted(wanted - present):
            raise BundleError(f"{path}: file {missing[0]!r} is missing", _DAMAGED)
        if extra := sorted(present - wanted):
            raise BundleError(f"{path}: {extra[0]!r} is not part of the bundle", "remove it; a bundle holds nothing else")
        contents = {}
        for name, entry in manifest.files.items():
            data = store.read(name)
            _check(path, name, data, entry)
            if isinstance(store, _Zip):
                contents[name] = data
        if isinstance(store, _Zip) and store.data != _zip({MANIFEST: raw, **contents}):
            raise BundleError(f"{path}: the archive's own records were changed", _DAMAGED)
    return Bundle(path, manifest)


def write(path: str | os.PathLike[str], manifest: Manifest, files: Mapping[str, bytes], report: bytes | None = None) -> Bundle:
    """Write a bundle (a .zip where `path` ends so), and its report beside it, and put them in place in one step.

    A bundle already at `path` is exchanged for the new one; anything else there is refused. Raises BundleError when the disk
    is full or the directory cannot be written; then nothing has changed.
    """
    path = Path(os.path.abspath(path))
    _check_names(files)
    _check_folder(path)
    sealed = manifest.sealed(files)
    _check_references(sealed)
    everything = {MANIFEST: sealed.to_bytes(), **files}
    size = sum(map(len, everything.values())) + len(report or b"")
    new, new_report = temporary(path), temporary(path)
    held: list[int] = []
    try:
        with _alone(path.parent):
            _check_free(path)
            _sweep(path)
            free = shutil.disk_usage(path.parent).free
            if free < size + 65536:
                raise OSError(errno.ENOSPC, f"No space left on device ({size / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free)")
            if path.suffix == ".zip":
                held.append(_create(new))
            else:
                new.mkdir()
                held.append(os.open(new, os.O_RDONLY | os.O_DIRECTORY))
            if report is not None:
                held.append(_create(new_report))
            for descriptor in held:
                _lock(descriptor, fcntl.LOCK_EX)
        if report is not None:
            _write_all(held[1], report)
        if path.suffix == ".zip":
            _write_all(held[0], _zip(everything))
        else:
            _write_directory(new, everything)
        with _alone(path.parent):
            _check_free(path)
            _sweep(path)
            if report is None:
                _put(new, path)
            else:
                with _report_in_place(new_report, report_path(path)):
                    _put(new, path)
            _sync(path.parent)
    except OSError as error:
        raise BundleError(
            f"{path} cannot be written: {error.strerror or error}",
            _NOT_WRITTEN,
        ) from error
    finally:
        _remove(new)
        _remove(new_report)
        for descriptor in held:
            os.close(descriptor)
    return Bundle(path, sealed)


def _create(path: Path) -> int:
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)


@contextlib.contextmanager
def _report_in_place(new: Path, place: Path) -> Iterator[None]:
    """Put the report in place; take it back where what follows fails."""
    older = place.read_bytes() if place.exists() else None
    os.replace(new, place)
    try:
        yield
    except BaseException:
        if older is None:
            _remove(place)
        else:
            place.write_bytes(older)
        raise


def check_place(path: Path) -> None:
    """Raise BundleError where no bundle can be written at `path`, before hours go into what was to be written there.

    Something else is there or at its report's place, or no file can be made beside it: one is made, and removed.
    """
    _check_free(path)
    check_can_make(path, _NOT_WRITTEN)


def _check_free(path: Path) -> None:
    """Raise BundleError where `path` cannot become a bundle: something else is there or at its report's place."""
    _check_folder(path)
    try:
        is_link, is_there = path.is_symlink(), path.exists()
    except OSError as error:
        raise BundleError(f"{path} cannot be written: {error.strerror}", "give another --out") from error
    if is_link:
        raise BundleError(f"{path} is a link; a bundle is not written through links", "give another --out")
    if is_there and not _looks_like_bundle(path):
        raise BundleError(f"{path} exists and is not an edgesdk bundle; it is left alone", "give another --out")
    beside = report_path(path)
    try:
        is_folder, is_there = beside.is_dir(), beside.exists()
    except OSError as error:
        raise BundleError(f"{beside} cannot be written: {error.strerror}", "give another --out") from error
    if is_folder:
        raise BundleError(f"{beside} is a directory; the report would go there", "give another --out")
    if is_there and not _looks_like_report(beside):
        raise BundleError(f"{beside} exists and is not an edgesdk report; it is left alone", "give another --out")


def _looks_like_report(path: Path) -> bool:
    try:
        with open(path, "rb") as stream:
            return b"edgesdk-report/" in stream.read(4096)
    except OSError:
        return False


def _check_folder(path: Path) -> None:
    try:
        is_there = path.parent.is_dir()
        file = next((place for place in path.parents if place.exists() and not place.is_dir()), None)
    except OSError as error:
        raise BundleError(f"{path} cannot be written: {error.strerror}", "give another --out") from error
    if file is not None:
        raise BundleError(f"the directory {path.parent} cannot be there: {file} is a file", "give another --out")
    if not is_there:
        raise BundleError(f"the directory {path.parent} does not exist", "create it, or give another --out")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise BundleError(f"{path} cannot be written: no permission to write in {path.parent}", "give another --out")


def _looks_like_bundle(path: Path) -> bool:
    try:
        with _store(path) as store:
            return FORMAT.split("/")[0].encode() in store.read(MANIFEST)
    except BundleError:
        return False


def _parse(path: Path, raw: bytes) -> Manifest:
    try:
        data = json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: {MANIFEST} is no JSON: {error}", _DAMAGED) from error
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise BundleError(
            f"{path} has format {found!r}; this edgesdk reads {FORMAT!r}",
            "use the edgesdk that wrote it, or export anew",
        )
    claimed = data.get("digest")
    body = {key: value for key, value in data.items() if key != "digest"}
    try:
        intact = raw == _canonical(data) and claimed == hashlib.sha256(_canonical(body)).hexdigest()
    except (ValueError, RecursionError):  # half a surrogate pair, a number beyond all bounds, bottomless nesting
        intact = False
    if not intact:
        raise BundleError(f"{path}: {MANIFEST} was changed after it was written", _DAMAGED)
    try:
        manifest = fields.read(Manifest, data, f"{path.name} {MANIFEST}", BundleError)
        _check_names(manifest.files)
        _check_references(manifest)
    except (ModelError, ValueError) as error:
        raise BundleError(f"{path}: {MANIFEST} is not valid: {error}", "export it anew") from error
    return manifest


def _check_names(names: Iterable[str]) -> None:
    """Raise ValueError for a payload name that could leave the bundle, or that is the folder of another one."""
    taken = {MANIFEST, *names}
    for name in names:
        folders = {str(folder) for folder in PurePosixPath(name).parents}
        if not _NAME.fullmatch(name) or name == MANIFEST or folders & taken:
            raise ValueError(f"bad payload name {name!r}")


def _check_references(manifest: Manifest) -> None:
    """Raise ValueError where the manifest refers to a file that it does not list."""
    golden = manifest.golden
    tables = (golden.inputs, golden.outputs, golden.source_outputs) if golden is not None else ()
    for name in (manifest.runtime.file, *(name for table in tables for name in table.values())):
        if name not in manifest.files:
            raise ValueError(f"{name!r} is not among the files of the bundle")


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _check(path: Path, name: str, data: bytes, entry: FileEntry) -> None:
    if len(data) != entry.bytes:
        raise BundleError(f"{path}: {name} has {len(data)} bytes, {entry.bytes} were written", _DAMAGED)
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise BundleError(f"{path}: {name} was changed after it was written", _DAMAGED)


def _canonical(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


class _Folder:
    """Files of a directory, links and odd files refused."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> Iterator[str]:
        waiting = [""]
        while waiting:
            prefix = waiting.pop()
            try:
                with os.scandir(self.path / prefix) as entries:
                    found = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                raise BundleError(f"{self.path}: {prefix} cannot be read: {error.strerror}", _DAMAGED) from error
            if prefix and not found:
                yield prefix
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{prefix}{entry.name}/")
                elif entry.is_file(follow_symlinks=False):
                    yield prefix + entry.name
                else:
                    raise BundleError(f"{self.path}: {prefix + entry.name!r} is a link or a special file", _DAMAGED)

    def read(self, name: str) -> bytes:
        try:
            # without O_NONBLOCK a pipe of that name would be waited for
            descriptor = os.open(self.path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise BundleError(f"{self.path}: {name!r} is no file", _DAMAGED)
                with open(descriptor, "rb", closefd=False) as stream:
                    data: bytes = stream.read()
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            raise BundleError(f"{self.path}: file {name!r} is missing", _DAMAGED) from None
        except OSError as error:
            raise BundleError(f"{self.path}: {name} cannot be read: {error.strerror}") from error
        return data


class _Zip:
    """Files of an archive; only stored entries, so that nothing can unpack to more than it is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.data = path.read_bytes()
            self.archive = zipfile.ZipFile(io.BytesIO(self.data))
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}") from error
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise BundleError(f"{path} is no intact zip archive: {error}", _DAMAGED) from error

    def names(self) -> Iterator[str]:
        found = self.archive.namelist()
        if len(set(found)) != len(found):
            raise BundleError(f"{self.path} holds a file twice", _DAMAGED)
        yield from found

    def read(self, name: str) -> bytes:
        try:
            info = self.archive.getinfo(name)
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > len(self.data) or info.flag_bits & 1:
                raise BundleError(f"{self.path}: {name} is packed; bundles store files as they are", _DAMAGED)
            return self.archive.read(info)
        except KeyError:
            raise BundleError(f"{self.path}: file {name!r} is missing", _DAMAGED) from None
        except (zipfile.BadZipFile, zlib.error, ValueError, NotImplementedError, EOFError, OSError, RuntimeError) as error:
            raise BundleError(f"{self.path}: {name} cannot be read: {error}", _DAMAGED) from error


@contextlib.contextmanager
def _store(path: Path) -> Iterator[_Folder | _Zip]:
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    if is_folder:
        yield _Folder(path)
    elif is_file:
        yield _Zip(path)
    else:
        older = path.parent / f".{path.name}.old"
        left = older.exists()
        hint = f"an interrupted export left the older one: mv {older} {path}" if left else "give the path of a bundle"
        raise BundleError(f"{path} does not exist", hint)


def _zip(files: Mapping[str, bytes]) -> bytes:
    """An archive that depends on nothing but names and bytes."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16
            archive.writestr(info, files[name])
    return sink.getvalue()


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.fsync(descriptor)


def _write_directory(path: Path, files: Mapping[str, bytes]) -> None:
    folders = {path}
    for name, data in files.items():
        place = path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        folders |= {folder for folder in place.parents if path in folder.parents}
        descriptor = os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        try:
            _write_all(descriptor, data)
        finally:
            os.close(descriptor)
    for folder in folders:
        _sync(folder)


def _put(new: Path, place: Path) -> None:
    """Move what is finished to its place; what is there already is exchanged and then lies where the new one was."""
    if not place.exists() or not (place.is_dir() or new.is_dir()):
        os.replace(new, place)
    elif not _exchange(new, place):
        older = place.parent / f".{place.name}.old"
        try:
            os.rename(place, older)
            os.rename(new, place)
        finally:
            _settle(older, place)


def _settle(older: Path, place: Path) -> None:
    """What was moved away goes back where nothing has taken its place, and goes for good where something has."""
    if place.exists():
        _remove(older)
    else:
        with contextlib.suppress(OSError):
            os.rename(older, place)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two places atomically (Linux renameat2); False where the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    at_cwd, exchange_flag = -100, 2
    if libc.renameat2(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), exchange_flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number))


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # file systems that do not sync directories
            raise
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While no other writer places or sweeps in this folder. The lock leaves nothing behind and ends with the process."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, how: int) -> bool:
    """False where another process holds the lock, or where the file system has none (then nothing is protected)."""
    try:
        fcntl.flock(descriptor, how)
    except OSError:
        return False
    return True


def _sweep(path: Path) -> None:
    """Remove what writers of this bundle that are dead have left behind; put an older bundle back that they moved away."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if not re.fullmatch(r"[0-9a-f]{16}", leftover.name.removeprefix(f".{path.name}.").removesuffix(".tmp")):
            continue
        with contextlib.suppress(OSError):
            descriptor = os.open(leftover, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    _remove(leftover)
            finally:
                os.close(descriptor)
    older = path.parent / f".{path.name}.old"
    if older.exists():
        if path.exists():
            _remove(older)
        else:
            with contextlib.suppress(OSError):
                os.rename(older, path)
