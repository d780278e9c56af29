"""One run of a tool: its output followed line by line as progress, time and memory taken, and nothing left running behind it."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edgesdk_converters.errors import DeviceError, ToolError

TELL_S = 1.0
"""Between two lines of progress."""
LAST_LINES = 8
ROOM = "make room there, or give another folder: TMPDIR for what is temporary, --out for what stays"
# Linux hands the peak of a process down to what it executes: a tool started by a large Python would seem as large. As a child of
# this small one it is measured alone.
_LAUNCHER = """
import os, sys
os.set_inheritable(int(sys.argv[1]), False)
_, status, used = os.wait4(os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ), 0)
os.write(int(sys.argv[1]), str(used.ru_maxrss).encode())
code = os.waitstatus_to_exitcode(status)
sys.exit(code if code >= 0 else 128 - code)
"""
_KIB = 1 if sys.platform == "darwin" else 1024
_PASS = re.compile(r"^[\d.]+\. Executing (.+?)(?: pass| command)?(?: \(.*\))?(?:: .*)?\.?$")
_ITERATION = re.compile(r"^Info:\s+at iteration #(\d+)(, type \w+)?.*?wirelen (?:solved )?= (\d+)")
_ARCS = re.compile(r"^Info:\s+\d+ \|.*\|\s*(\d+)\|[^|]*\|$")
_TOLD = re.compile(r"^(?:Info: )([A-Z].*)|^(Preparing .*)")
_ERROR = re.compile(r"error", re.IGNORECASE)


class TookTooLong(ToolError):
    """A tool was stopped at its deadline."""


@dataclass(frozen=True)
class Limit:
    """When to stop, on time.monotonic's clock, and how long that was from the beginning, for the message."""

    deadline: float
    timeout_s: float

    @classmethod
    def of(cls, timeout_s: float) -> Limit:
        """From now on."""
        return cls(time.monotonic() + timeout_s, timeout_s)


@dataclass(frozen=True)
class Ended:
    """How it ended. `exit_code` is 128 + N after signal N; the peak is that of the largest among the tool and its children."""

    exit_code: int
    seconds: float
    peak_memory_bytes: int
    last_lines: str


def run(
    argv: Sequence[str],
    label: str,
    folder: Path,
    log: Path,
    environment: Mapping[str, str],
    limit: Limit,
    progress: Callable[[str], None],
) -> Ended:
    """Run a program in a folder; all that it prints goes to `log`. Raises TookTooLong when it was stopped at the deadline, and
    DeviceError where the log cannot be written."""
    began = time.monotonic()
    with writing(log):
        sink = log.open("wb", buffering=0)
    receiver, sender = os.pipe()
    try:
        with sink:
            command = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(sender), *argv]
            with subprocess.Popen(
                command, cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, start_new_session=True, pass_fds=(sender,),
            ) as child:  # fmt: skip
                try:
                    lines = _follow(child, sink, label, began, limit, progress)
                finally:
                    _stop(child)
        os.set_blocking(receiver, False)
        with contextlib.suppress(BlockingIOError):  # it was killed together with its launcher
            return Ended(child.returncode, time.monotonic() - began, int(os.read(receiver, 32)) * _KIB, _telling(lines))
        return Ended(child.returncode, time.monotonic() - began, 0, _telling(lines))
    finally:
        os.close(receiver)
        os.close(sender)


@contextlib.contextmanager
def writing(place: str | os.PathLike[str], hint: str = ROOM) -> Iterator[None]:
    """Raise DeviceError that names the file where it cannot be written: of a full disk the system's own error does not."""
    try:
        yield
    except OSError as error:
        raise DeviceError(f"{place} cannot be written: {error.strerror or error}", hint) from error


def phase(line: str) -> str | None:
    """What a tool says it is doing in a line of its output, None where it says nothing of that."""
    found = _PASS.match(line)
    if found:
        return found[1]
    found = _ITERATION.match(line)
    if found:
        return f"{'placing' if found[2] else 'refining the placement'}, iteration {found[1]}, wire length {int(found[3]):,}"
    found = _ARCS.match(line)
    if found:
        return f"routing, {int(found[1]):,} arcs left"
    found = _TOLD.match(line)
    return (found[1] or found[2]).rstrip(". ") if found else None


def _follow(
    child: subprocess.Popen[bytes], sink: IO[bytes], label: str, began: float, limit: Limit, progress: Callable[[str], None]
) -> deque[str]:
    assert child.stdout is not None
    kept: deque[str] = deque(maxlen=200)
    doing, rest, told = "", b"", began
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            now = time.monotonic()
            if now >= limit.deadline:
                at = f"{label}: {doing}" if doing else label
                raise TookTooLong(
                    label, f"stopped after {limit.timeout_s:,.6g} s, in {at}", hint="a longer limit, or a smaller design"
                )
            if now - told >= TELL_S:
                progress(f"{label}: {doing or 'running'}, {now - began:.0f} s")
                told = now
            if not selector.select(min(TELL_S / 2, limit.deadline - now)):
                if child.poll() is not None:  # it has ended, and something that it started keeps its output open
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(child.pid, signal.SIGKILL)
                    break
                continue
            data = os.read(child.stdout.fileno(), 1 << 16)
            if not data:
                break
            with writing(sink.name):
                sink.write(data)
            *lines, rest = (rest + data).split(b"\n")
            for raw in lines:
                line = raw.decode(errors="replace").rstrip()
                if line:
                    kept.append(line)
                    doing = phase(line) or doing
    if rest.strip():
        kept.append(rest.decode(errors="replace").rstrip())
    child.wait()  # its output ends when it does: the launcher holds it, too
    return kept


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End all of the child's session, if it still runs: its files are in a folder that is removed, so nothing needs a grace."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _telling(lines: deque[str]) -> str:
    """The last line that speaks of an error and those before it, which say what is wrong; or the last ones."""
    told = list(lines)
    last = next((index for index in range(len(told) - 1, -1, -1) if _ERROR.match(told[index])), len(told) - 1)
    return "\n".join(told[: last + 1][-LAST_LINES:])
