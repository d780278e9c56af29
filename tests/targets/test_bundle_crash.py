"""Bundles survive a kill at any system call, a full disk, a read-only place: what opens is whole, the next write tidies up."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import random
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgesdk_converters.errors import BundleError
from edgesdk_targets import bundle as bundles
from edgesdk_targets.bundle import Manifest, open_bundle, write

Content = Callable[[int], tuple[Manifest, dict[str, bytes]]]
PTRACE_TRACEME, PTRACE_SYSCALL, PTRACE_SETOPTIONS = 0, 24, 0x4200
TRACESYSGOOD, EXITKILL = 1, 0x100000
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.ptrace.restype = ctypes.c_long
LIBC.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
RANDOM_KILLS = 50


def in_child(work: Callable[[], object]) -> int:
    """Fork and work there; the child's pid. It ends with 0, or 1 where the work raised."""
    pid = os.fork()
    if pid:
        return pid
    try:
        gc.disable()
        work()
        os._exit(0)
    except BaseException:
        os._exit(1)


def outcome(work: Callable[[], object]) -> int:
    """The exit code of work done in a child."""
    return os.waitstatus_to_exitcode(os.waitpid(in_child(work), 0)[1])


def killed_before_call(number: int, work: Callable[[], object]) -> bool:
    """Run `work` in a child and kill it when it is about to make its system call `number`; False where it ended before."""

    def traced() -> None:
        if LIBC.ptrace(PTRACE_TRACEME, 0, None, None) != 0:
            os._exit(77)
        os.kill(os.getpid(), signal.SIGSTOP)
        work()

    pid = in_child(traced)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSTOPPED(status), "this machine does not permit ptrace: crash safety cannot be tested here"
    assert LIBC.ptrace(PTRACE_SETOPTIONS, pid, None, TRACESYSGOOD | EXITKILL) == 0
    calls, entering, handed_on = 0, True, 0
    while True:
        assert LIBC.ptrace(PTRACE_SYSCALL, pid, None, handed_on) == 0
        _, status = os.waitpid(pid, 0)
        if not os.WIFSTOPPED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            return False
        handed_on = 0
        if os.WSTOPSIG(status) == signal.SIGTRAP | 0x80:
            calls += entering
            if entering and calls == number:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return True
            entering = not entering
        else:
            handed_on = os.WSTOPSIG(status)


def hidden(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


def whole(path: Path) -> str:
    """The name of the bundle at `path`; every file of it says the same number."""
    bundle = open_bundle(path)
    number = bundle.manifest.name.removeprefix("n")
    assert bundle.read("notes.txt") == number.encode()
    assert bundle.read("data/a.bin") == f"a {number}".encode()
    return bundle.manifest.name


@pytest.mark.parametrize(
    ("name", "older", "exchange"),
    [("a.edge", False, True), ("a.edge", True, True), ("a.edge", True, False), ("a.zip", False, True), ("a.zip", True, True)],
    ids=["new directory", "directory over older", "directory over older, no exchange", "new zip", "zip over older"],
)
def test_killed_at_any_system_call_the_older_or_the_newer_is_there_and_whole(
    tmp_path: Path, numbered: Content, monkeypatch: pytest.MonkeyPatch, name: str, older: bool, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(bundles, "_exchange", lambda a, b: False)
    seen: dict[str, int] = {}
    content = numbered(2)
    for number in range(1, 1000):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / name
        if older:
            write(path, *numbered(1))
        killed = killed_before_call(number, lambda path=path: write(path, *content))
        try:
            state = whole(path)
        except BundleError as error:
            assert "does not exist" in error.message
            if older:
                assert not exchange, "the older bundle is gone"
                kept = folder / f".{name}.old"
                assert error.hint == f"an interrupted export left the older one: mv {kept} {path}"
                assert whole(kept) == "n1"
                state = "moved away"
            else:
                state = "none"
        seen[state] = seen.get(state, 0) + 1
        write(path, *numbered(3))
        assert whole(path) == "n3"
        assert [p.name for p in folder.iterdir()] == [name]
        shutil.rmtree(folder)
        if not killed:
            assert state == "n2"
            break
    assert not killed
    assert number > 40, "so few system calls cannot be a safe write"
    wanted = {"n2", "none"} if not older else {"n1", "n2"}
    assert seen.keys() - {"moved away"} == wanted
    assert ("moved away" in seen) == (not exchange)


@pytest.mark.parametrize("name", ["a.edge", "a.zip"])
def test_killed_at_random_moments_an_endless_writer_leaves_a_whole_bundle(tmp_path: Path, numbered: Content, name: str) -> None:
    rng = random.Random(5)
    path = tmp_path / name
    write(path, *numbered(0))
    even, odd = numbered(2), numbered(1)

    def forever() -> None:
        while True:
            write(path, *even)
            write(path, *odd)

    for _ in range(RANDOM_KILLS):
        pid = in_child(forever)
        time.sleep(rng.uniform(0.001, 0.03))
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        assert whole(path) in ("n0", "n1", "n2")
    write(path, *numbered(9))
    assert whole(path) == "n9"
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("exchange", [True, False])
def test_writers_in_many_processes_leave_one_whole_bundle(
    tmp_path: Path, numbered: Content, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(bundles, "_exchange", lambda a, b: False)
    path = tmp_path / "a.edge"
    pids = [in_child(lambda n=n: [write(path, *numbered(n)) for _ in range(15)]) for n in range(6)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert codes == [0] * 6
    assert whole(path) in {f"n{number}" for number in range(6)}
    assert hidden(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system of 256 kB; where mounting is not permitted, a directory whose writes fail after as much."""
    place = tmp_path / "disk"
    place.mkdir()
    if LIBC.mount(b"tmpfs", os.fsencode(place), b"tmpfs", 0, b"size=256k") == 0:
        yield place
        assert LIBC.umount(os.fsencode(place)) == 0
        return
    left = 256 * 1024
    real = os.write

    def limited(descriptor: int, data: bytes) -> int:
        nonlocal left
        if left < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left -= len(data)
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", limited)
    yield place


@pytest.mark.parametrize("name", ["a.edge", "a.zip"])
@pytest.mark.parametrize("told_free", [True, False], ids=["seen before", "met while writing"])
def test_a_full_disk_is_one_error_and_the_older_bundle_stays(
    small_disk: Path, numbered: Content, monkeypatch: pytest.MonkeyPatch, name: str, told_free: bool
) -> None:
    path = small_disk / name
    write(path, *numbered(1))
    if not told_free:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 0, 10**12))
    manifest, files = numbered(2)
    with pytest.raises(BundleError, match="cannot be written: No space left on device") as caught:
        write(path, manifest, files | {"big.bin": b"x" * 300_000})
    assert caught.value.hint == "check free space and permissions, or give another --out"
    assert whole(path) == "n1"
    assert hidden(small_disk) == []
    write(path, *numbered(2))
    assert whole(path) == "n2"


def test_a_file_larger_than_the_process_may_write_is_one_error(tmp_path: Path, numbered: Content) -> None:
    manifest, files = numbered(2)
    for name in ("a.edge", "a.zip"):
        write(tmp_path / name, *numbered(1))

        def work(path: Path = tmp_path / name) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            with pytest.raises(BundleError, match="File too large"):
                write(path, manifest, files | {"big.bin": b"x" * 300_000})

        assert outcome(work) == 0
        assert whole(tmp_path / name) == "n1"
    assert hidden(tmp_path) == []


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can reach."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


def test_a_folder_that_may_not_be_written_is_one_error_and_stays_as_it_was(open_folder: Path, numbered: Content) -> None:
    path = open_folder / "a.edge"
    write(path, *numbered(1))
    content = numbered(2)

    def work() -> None:
        if os.geteuid() == 0:
            os.setuid(65534)
        else:
            open_folder.chmod(0o555)
        for place in (path, open_folder / "b.zip"):
            with pytest.raises(BundleError, match="cannot be written"):
                write(place, *content)

    assert outcome(work) == 0
    open_folder.chmod(0o755)
    assert whole(path) == "n1"
    assert [p.name for p in open_folder.iterdir()] == ["a.edge"]


def test_what_may_not_be_read_is_a_bundle_error(open_folder: Path, numbered: Content) -> None:
    path = write(open_folder / "a.edge", *numbered(1)).path
    archive = write(open_folder / "b.zip", *numbered(1)).path
    closed = open_folder / "closed"
    closed.mkdir()
    os.rename(write(open_folder / "c.edge", *numbered(1)).path, closed / "c.edge")

    def work() -> None:
        if os.geteuid() == 0:
            os.setuid(65534)
        for place in (path, archive, closed / "c.edge"):
            with pytest.raises(BundleError, match="cannot be read: Permission denied"):
                open_bundle(place)
        with pytest.raises(BundleError, match="cannot be written: no permission"):
            write(closed / "c.edge", *numbered(2))

    for target, mode in ((path / "data", 0), (archive, 0), (closed, 0)):
        target.chmod(mode)
    assert outcome(work) == 0
    for target in (path / "data", archive, closed):
        target.chmod(0o755)
    (path / "model.bin").chmod(0)

    def one_file() -> None:
        if os.geteuid() == 0:
            os.setuid(65534)
        with pytest.raises(BundleError, match=r"model\.bin cannot be read: Permission denied"):
            open_bundle(path)

    assert outcome(one_file) == 0
