"""Measurements that wait for the board: one at a time, each in a process of its own that is ended when its time is over."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .preflight import environment
from .service import Busy

KEPT = 64
"""Measurements that have ended of which the outcome is remembered."""
ABANDONED_S = 120.0
"""A measurement that waits, and that nobody has asked after for so long, is not begun."""
_LONGEST_LINE = 64_000_000
_START = "import sys; sys.path[:] = {path!r}; from edgesdk.agent_job import main; sys.exit(main())"


@dataclass
class Job:
    """One measurement. `version` grows with everything that a client may want to know; `outcome` is the last of it.

    `task` is what its process is told; `digests` what must not be thrown away before it has ended.
    """

    id: str
    task: Mapping[str, Any]
    digests: tuple[str, ...]
    state: str = "waiting"
    told: str = ""
    version: int = 0
    outcome: dict[str, Any] = field(default_factory=dict)
    asked_at: float = field(default_factory=time.monotonic)
    listeners: set[Callable[[], None]] = field(default_factory=set)


class Queue:
    """A thread that takes one job after another.

    `seconds` is what each may take, `waiting` how many may wait or run; `corner` is an empty folder that their processes run in.
    """

    def __init__(self, seconds: float, waiting: int, corner: Path) -> None:
        self._seconds, self._most, self._corner = seconds, waiting, corner
        self._jobs: dict[str, Job] = {}
        self._line: deque[Job] = deque()
        self._changed = threading.Condition()
        self._running: tuple[Job, subprocess.Popen[bytes]] | None = None
        self._closed = False
        self.ended: dict[str, int] = {"done": 0, "failed": 0, "cancelled": 0}
        self._thread = threading.Thread(target=self._work, name="edgesdk-measure", daemon=True)
        self._thread.start()

    def add(self, task: Mapping[str, Any], digests: tuple[str, ...]) -> Job:
        """Put a measurement at the end of the line. Raises Busy where the line is full."""
        with self._changed:
            if self._closed or self.waiting >= self._most:
                raise Busy(f"{self.waiting} measurements wait already; try again later")
            job = Job(secrets.token_hex(16), task, digests)
            self._jobs[job.id] = job
            for old in [one for one in self._jobs.values() if one.outcome][: max(0, len(self._jobs) - KEPT)]:
                del self._jobs[old.id]
            self._line.append(job)
            self._changed.notify_all()
            return job

    def find(self, name: str) -> Job | None:
        """The job of that id, which is then known to be asked after."""
        with self._changed:
            job = self._jobs.get(name)
            if job is not None:
                job.asked_at = time.monotonic()
            return job

    def shown(self, job: Job) -> dict[str, Any]:
        """A job as its client sees it; `ahead` counts those before it."""
        with self._changed:
            ahead = self._line.index(job) + (self._running is not None) if job in self._line else 0
            told = f"waiting: {ahead} ahead" if job.state == "waiting" else job.told
            return {"id": job.id, "state": job.state, "version": job.version, "told": told, "ahead": ahead, **job.outcome}

    def cancel(self, job: Job) -> None:
        """Take a job out of the line, or end its process."""
        with self._changed:
            if job in self._line:
                self._line.remove(job)
                self._end(job, "cancelled", {"error": {"kind": "DeviceError", "message": "cancelled", "hint": ""}})
            elif self._running is not None and self._running[0] is job:
                job.told = "cancelled"
                _kill(self._running[1])

    @contextlib.contextmanager
    def listening(self, job: Job, call: Callable[[], None]) -> Iterator[None]:
        """While this is called whenever there is something new about a job."""
        with self._changed:
            job.listeners.add(call)
        try:
            yield
        finally:
            with self._changed:
                job.listeners.discard(call)

    @property
    def waiting(self) -> int:
        """How many wait or run."""
        return len(self._line) + (self._running is not None)

    def holds(self, digest: str) -> bool:
        """Whether something that waits or runs needs this."""
        with self._changed:
            running = [self._running[0]] if self._running is not None else []
            return any(digest in job.digests for job in (*self._line, *running))

    def close(self) -> None:
        """End what runs, and forget what waits."""
        with self._changed:
            self._closed = True
            while self._line:
                self.cancel(self._line[0])
            if self._running is not None:
                self.cancel(self._running[0])
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._line) or self._closed)
                if not self._line:
                    return
                job = self._line.popleft()
                if time.monotonic() - job.asked_at > ABANDONED_S:
                    self._end(job, "cancelled", _failure(f"nobody has asked after it for {ABANDONED_S:.0f} s"))
                    continue
                try:
                    process = _begin(self._corner)
                except OSError as error:
                    self._end(job, "failed", _failure(f"no process can be started: {error.strerror}", "free memory on the board"))
                    continue
                self._running = job, process
                self._news(job, "running", "measuring")
                for other in self._line:
                    self._news(other, "waiting", "")
            outcome = self._follow(job, process)
            with self._changed:
                self._running = None
                state = "cancelled" if job.told == "cancelled" else "failed" if "error" in outcome else "done"
                self._end(job, state, outcome)

    def _follow(self, job: Job, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        """Give a process its task, pass on what it tells, and its last word."""
        assert process.stdin is not None and process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            _kill(process)

        timer = threading.Timer(self._seconds, end)
        timer.start()
        last: dict[str, Any] = {}
        lines: deque[str] = deque(maxlen=3)
        try:
            with contextlib.suppress(OSError):  # it has ended already
                process.stdin.write(json.dumps(dict(job.task)).encode())
                process.stdin.close()
            while line := process.stdout.readline(_LONGEST_LINE):
                said = _said(line)
                if "progress" in said:
                    with self._changed:
                        self._news(job, "running", str(said["progress"])[:200])
                elif said:
                    last = said
                else:
                    lines.append(line.decode(errors="replace").strip()[:300])
        finally:
            timer.cancel()
            _kill(process)  # what it has started must not outlive it
            code = process.wait()
            process.stdout.close()
        if job.told == "cancelled":
            return _failure("cancelled")
        if late.is_set():
            return _failure(
                f"it took more than {self._seconds:g} s and was ended", "ask for less, or start the agent with --seconds"
            )
        if "report" in last or "error" in last:
            return last
        ended = signal.Signals(-code).name if code < 0 else str(code)
        end_told = f": {' '.join(lines)}" if lines else ""
        return _failure(f"the process ended with {ended}{end_told}", "was it killed for want of memory? see edgesdk doctor --on")

    def _news(self, job: Job, state: str, told: str) -> None:
        if job.told != "cancelled":
            job.state, job.told = state, told
        job.version += 1
        for call in job.listeners:
            call()

    def _end(self, job: Job, state: str, outcome: dict[str, Any]) -> None:
        job.outcome = outcome
        self.ended[state] += 1
        self._news(job, state, "")
        job.state = state


def _begin(corner: Path) -> subprocess.Popen[bytes]:
    # -I: nothing in the working directory may pass for a module; a group of its own, so that all it starts can be ended
    command = [sys.executable, "-I", "-c", _START.format(path=sys.path)]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=corner,
        start_new_session=True,
        env=environment(),
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)


def _said(line: bytes) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _failure(message: str, hint: str = "") -> dict[str, Any]:
    return {"error": {"kind": "DeviceError", "message": message, "hint": hint}}
