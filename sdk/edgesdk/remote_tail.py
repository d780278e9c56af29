"""RemoteTail: sends what crosses the cut to the tail's server and takes its answer, or says within the deadline that it cannot.

Where the server takes no connection, or has failed several requests in a row, the link is down: requests fail at once, without
waiting for a deadline each, while a thread in the background tries to connect, ever more seldom, until the server is there again.

A bottleneck with operating points has a tail for each, all on one server and on the same connections; a Mover says which of them
takes the next request, or that the tail here does, from what requests take and, now and then, what one without payload does.
"""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

from numpy.typing import NDArray

from edgesdk_converters.errors import EdgeError
from edgesdk_targets.bundle import Bundle

from .client import Connection, Counts, Fault, Place
from .connection_pool import Pool
from .far_model import SPARE, FarModel
from .moving import Move
from .remote import Remote

__all__ = ["Remote", "RemoteTail"]

Array = NDArray[Any]
_STRIKES = 3
"""Faults in a row after which a server that still takes connections counts as down."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 5.0
_PROBE_S = 2.0
"""The least time that connecting and reading the server's metadata may take; a longer deadline of requests holds here too."""
_PING_S = 5.0
"""How long after the last ping a request lets another follow it."""
_QUIET_S = 1.0
"""How long after two deadlines without a request nobody is taken to wait for one: then the tail here is timed."""
WHOLE = 0
"""The key of a tail that has no operating points."""
_ONLY = 1
"""What a mover calls such a tail, 0 being here."""
REMEMBERED = 1000
HERE = "here"


@dataclass(frozen=True)
class Went:
    """Which way a request went that was answered: `here`, `server`, or `server, N channels`; how long after its head; and why,
    where it was to go another: what failed before (`late`, `gone`, `malformed`, `refused`)."""

    way: str
    took_ms: float
    why: str = ""


class RemoteTail:
    """The way to a tail. `run` may be called from several threads; each request in flight has a connection of its own.

    `points` are its operating points by channels, where it has any; one alone is never moved from.
    """

    def __init__(self, remote: Remote, tail: Bundle, points: Mapping[int, Bundle] | None = None) -> None:
        self.remote, self.counts = remote, Counts()
        self.answered: Counter[int] = Counter()
        """Requests answered by the server, by channels that were sent."""
        self._models = {key: FarModel(part, remote.url, part=True) for key, part in (points or {}).items()}
        if not self._models:
            self._models = {WHOLE: FarModel(tail, remote.url)}
        self.went: deque[Went] = deque(maxlen=REMEMBERED)
        """The ways of the last requests that were answered, oldest first."""
        self._ways: Counter[str] = Counter()
        self._mover = remote.mover({key or _ONLY: model.request_bytes for key, model in self._models.items()})
        self.when_quiet: Callable[[], None] | None = None
        """Called in the background when there has been no request for a while."""
        self._asked = 0.0
        self._there = set(self._models)
        self._place = Place(remote.url, remote.token, remote.ca)
        self._prefix, self._numbers = secrets.token_hex(4), count()
        self._lock = threading.Lock()
        self._pool = Pool(self._place, self.counts)
        self._up, self._closed = False, False
        self._strikes, self._allowed = 0, _STRIKES
        self._pause_s = _FIRST_PAUSE_S
        self._why = "not connected yet"
        self._pinged = 0.0
        self._wake, self._ended = threading.Event(), threading.Event()
        self._watcher: threading.Thread | None = None

    @property
    def up(self) -> bool:
        """Whether requests are sent; while it is down they fail at once."""
        return self._up

    @property
    def closed(self) -> bool:
        """Whether it was closed: nothing is timed any more."""
        return self._closed

    @property
    def why(self) -> str:
        """What the last fault was; empty where there was none."""
        return self._why

    @property
    def moves(self) -> tuple[Move, ...]:
        """Changes of the operating point, oldest first; the last thousand."""
        return () if self._mover is None else tuple(self._mover.moves)

    @property
    def point(self) -> int | None:
        """Channels that are sent now; 0: the tail runs here. None: it has no operating points."""
        if WHOLE in self._models:
            return None
        if self._mover is not None:
            return self._mover.point
        (only,) = self._models
        return only

    @property
    def way(self) -> str:
        """Which way the next request goes, where nothing is tried: `here`, `server`, or `server, N channels`."""
        if self._mover is None:
            return HERE if not self._up and self.remote.on_late == "local" else self._way(max(self._models))
        at = self._mover.point
        return self._way(at) if at else HERE

    def _way(self, tail: int) -> str:
        return "server" if WHOLE in self._models else f"server, {tail} channels"

    @property
    def told(self) -> str:
        """Where the tail is asked, and with what."""
        channels = max(self.answered, default=WHOLE)
        return f"at {self.remote.url}" + (f" for {channels} channels" if channels else "")

    def to_json(self) -> dict[str, Any]:
        """Counts, and of how many requests each way was; of operating points also which is taken, and what each has answered;
        where there are ways to choose from, the moves and what is known of each way."""
        with self._lock:
            found: dict[str, Any] = self.counts.to_json() | {"way": self.way, "ways": dict(sorted(self._ways.items()))}
            answered = {str(key): number for key, number in sorted(self.answered.items())}
        if self.point is not None:
            found |= {"point": self.point, "answered": answered}
        if self.point is not None or self._mover is not None:
            found["moves"] = [move.to_json() for move in self.moves]
        if self._mover is not None:
            found["estimates"] = self._mover.estimates()
        return found

    @property
    def missing(self) -> list[int]:
        """Operating points that the server was found not to serve."""
        return sorted(set(self._models) - self._there)

    def next_tail(self) -> int | None:
        """Which tail the next request is for, as `run` takes it; None: the tail here."""
        if self._mover is None:
            (only,) = self._models
            return only
        self._asked = time.monotonic()
        self._let_ping()
        point = self._mover.next_point()
        return None if point == 0 else WHOLE if WHOLE in self._models else point

    @property
    def times_here(self) -> bool:
        """Whether the time of the tail here plays a part."""
        return self._mover is not None and self._mover.prefer != "remote"

    def ran_here(self, took_ms: float, tail_ms: float, why: str = "") -> None:
        """The tail here has answered a request, so long after its head, and took `tail_ms` of that itself; `why` is the fault of
        the server before it, if there was one."""
        self.counts.add("local")
        self._remember(Went(HERE, took_ms, why))
        self.timed_here(tail_ms)

    def timed_here(self, took_ms: float) -> None:
        """The tail here took so long."""
        if self._mover is not None:
            self._mover.took_here(took_ms)

    def _remember(self, went: Went) -> None:
        with self._lock:
            self.went.append(went)
            self._ways[went.way] += 1

    def connect(self) -> None:
        """Connect and check the server's tail. Raises Fault; the link then goes on trying in the background."""
        try:
            self._probe()
        except Fault as fault:
            self.counts.add(fault.kind)
            self._fall(fault)
            raise

    def run(self, crossing: Mapping[str, Array], tail: int | None = None) -> list[Array]:
        """The tail's outputs, in its signature's order; `tail` as `next_tail` gave it.

        Raises Fault, by the deadline at the latest.
        """
        if not self._up:
            raise Fault("gone", f"{self.remote.url} is down ({self._why})")
        tail = max(self._models) if tail is None else tail
        model, begin = self._models[tail], time.monotonic()
        try:
            outputs = self._ask(model, model.part_of(crossing), begin + self.remote.deadline_ms / 1e3)
        except Fault as fault:
            self.counts.add(fault.kind)
            if not self._lower(tail, fault):
                self._strike(fault)
            raise
        self.counts.add("remote")
        with self._lock:
            self.answered[tail] += 1
            if self._up:  # else others have failed meanwhile, and that stands
                self._strikes, self._allowed, self._pause_s, self._why = 0, _STRIKES, _FIRST_PAUSE_S, ""
        took_ms = 1e3 * (time.monotonic() - begin)
        self._remember(Went(self._way(tail), took_ms))
        if self._mover is not None:
            self._mover.took(tail or _ONLY, took_ms)
        return outputs

    def _lower(self, tail: int, fault: Fault) -> bool:
        """Tell the mover of a fault; whether fewer channels could be in time."""
        if self._mover is None:
            return False
        late = fault.kind == "late"
        if late or fault.kind == "gone" or self._mover.point == 0:
            self._mover.failed(tail or _ONLY, self.remote.deadline_ms if late else None)
        return late and (tail or _ONLY) > self._mover.least

    def close(self) -> None:
        """Close every connection and end the thread."""
        self._closed, self._up = True, False
        self._ended.set()
        self._wake.set()
        self._pool.drop()
        if self._watcher is not None:
            self._watcher.join(_PROBE_S)

    def _ask(self, model: FarModel, feed: Mapping[str, Array], until: float) -> list[Array]:
        connection, fresh = self._pool.take(until)
        try:
            return self._exchange(connection, model, feed, until)
        except Fault as fault:
            if fresh or not fault.unanswered:
                raise
        # The server had closed the idle connection just when it was used, as servers do; nothing was answered.
        return self._exchange(Connection(self._place, until, self.counts), model, feed, until)

    def _exchange(self, connection: Connection, model: FarModel, feed: Mapping[str, Array], until: float) -> list[Array]:
        number = f"{self._prefix}-{next(self._numbers)}"
        told, tensors = model.request(feed, number)
        try:
            outputs = model.outputs(connection.post(model.infer, told, tensors, until, model.most), number, feed)
        except BaseException:
            connection.close()
            raise
        self._keep(connection)
        return outputs

    def _keep(self, connection: Connection) -> None:
        with self._lock:
            if self._up:
                self._pool.keep(connection)
                return
        connection.close()

    def _probe(self) -> None:
        """Connect, compare the server's metadata with the tails here, and be up. Raises Fault where it has none of them."""
        until = time.monotonic() + max(_PROBE_S, self.remote.deadline_ms / 1e3)
        connection = self._place.first(until, self.counts)
        there: set[int] = set()
        refused: Fault | None = None
        try:
            for key, model in sorted(self._models.items(), reverse=True):
                if there or refused:  # a server may close after a refusal
                    connection = self._pool.again(connection, until)
                begin = time.monotonic()
                try:
                    model.check_metadata(connection.get(model.path, until, SPARE))
                    there.add(key)
                except Fault as fault:
                    if not fault.final or fault.kind != "refused":
                        raise
                    refused = refused or fault
                if self._mover is not None:
                    self._mover.ping(1e3 * (time.monotonic() - begin))
            if refused and not there:
                raise refused
        except BaseException:
            connection.close()
            raise
        with self._lock:
            if self._mover is not None:
                self._mover.back({key or _ONLY for key in there})
            self._strikes, self._up, self._why, self._there = 0, not self._closed, "", there
            self._pinged = time.monotonic()
        self._keep(connection)

    def _let_ping(self) -> None:
        """Where the last ping is long ago, let the thread in the background send one."""
        with self._lock:
            now = time.monotonic()
            if not self._up or now - self._pinged < _PING_S:
                return
            self._pinged = now
            self._watched()
        self._wake.set()

    def _ping(self) -> None:
        """Time a request without payload. What goes wrong is seen by the next request with one."""
        until = time.monotonic() + max(_PROBE_S, self.remote.deadline_ms / 1e3)
        try:
            connection, _ = self._pool.take(until)
            begin = time.monotonic()
            connection.get("/v2/health/live", until, SPARE)
        except Fault:
            return
        if self._mover is not None:
            self._mover.ping(1e3 * (time.monotonic() - begin))
        self._keep(connection)

    def _time_when_quiet(self) -> None:
        """Have the tail here timed once nobody has asked for a while, where who asked then would still be answered in time."""
        if self.when_quiet is None or self._mover is None:
            return
        while (left := self._asked + _QUIET_S + 2 * self.remote.deadline_ms / 1e3 - time.monotonic()) > 0:
            if self._wake.wait(left):
                return
        if self._mover.may_time_here and not self._closed:
            with suppress(EdgeError):  # a request that runs the tail here meets it too, and somebody hears of it
                self.when_quiet()

    def _strike(self, fault: Fault) -> None:
        with self._lock:
            self._why = fault.message
            self._strikes += 1
            down = fault.final or self._strikes >= self._allowed
        if down:
            self._fall(fault)

    def _fall(self, fault: Fault) -> None:
        """Be down, and let the thread in the background look for the server."""
        with self._lock:
            self._up, self._why = False, fault.message
            # What comes back after a fall is on trial: its first fault is its last, until it has answered once.
            self._allowed = 1
            self._watched()
            if self._mover is not None:
                self._mover.lost(fault.message)
        self._pool.drop()
        self._wake.set()

    def _watched(self) -> None:
        """Have a thread in the background; the lock is held."""
        if self._watcher is None and not self._closed:
            self._watcher = threading.Thread(target=self._watch, name="edgesdk-remote", daemon=True)
            self._watcher.start()

    def _watch(self) -> None:
        while not self._closed:
            self._wake.wait()
            self._wake.clear()
            if self._up:
                self._ping()
                self._time_when_quiet()
            while not self._up and not self._closed:
                # Devices that lose one server must not all come back in the same moment.
                if self._ended.wait(self._pause_s * random.uniform(0.75, 1.25)):
                    return
                self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
                try:
                    self._probe()
                except Fault as fault:
                    self._why = fault.message
                else:
                    self.counts.add("reconnects")
