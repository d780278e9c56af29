"""RemoteRunner: the head of a split model here, its tail on a server, and the tail here as well where it may be needed."""

from __future__ import annotations

import statistics
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters.errors import DeviceError, LinkError
from edgesdk_targets import golden
from edgesdk_targets import runner as runners
from edgesdk_targets.bundle import Bundle
from edgesdk_targets.runner import DEFAULTS, RunOptions
from edgesdk_targets.split_runner import head_and_tail, point_tails

from .client import Fault
from .remote import Remote
from .remote_tail import RemoteTail

Array = NDArray[Any]
TIMED_RUNS, TIMED_MS = 9, 100.0
"""Of the tail here, to know its time: so many runs, or as many as take so long."""


class RemoteRunner:
    """Runs the head, then the tail at the other end of a link; each answer is the tail's, from there or from here.

    With `on_late="error"` no tail is loaded here, and a server that does not answer at once is an error at once. Of a bottleneck
    with operating points a Mover says how many channels are sent, or none: then the tail runs here, where there is one; where
    not, the least point is the lowest. The tail here is always that for all channels. Where its time plays a part it is taken
    when it is loaded, before anybody asks, and again when there have been no requests for a while.
    """

    def __init__(self, bundle: Bundle, remote: Remote, options: RunOptions = DEFAULTS) -> None:
        if bundle.manifest.role != "split":
            raise DeviceError(
                f"{bundle.path} is not split; only a split model has a tail that can run elsewhere", "export it with --split"
            )
        head, tail = head_and_tail(bundle)
        self._names = [spec.name for spec in head.manifest.signature.outputs]
        self._outputs = [spec.name for spec in bundle.manifest.signature.outputs]
        self.remote = RemoteTail(remote, tail, _chosen(remote, bundle))
        self._head: runners.Runner = runners.load(head, options)
        self._tail: runners.Runner | None = None
        self._timing = threading.Lock()
        try:
            if remote.on_late == "local":
                self._tail = runners.load(tail, options)
                if self.remote.times_here:
                    self._feeds = golden.load(tail, "inputs")
                    if self._feeds:
                        self._time_here()
                        self.remote.when_quiet = self._time_here
            self._connect()
        except BaseException:
            self.close()
            raise
        self.facts = self._head.facts

    def _connect(self) -> None:
        try:
            self.remote.connect()
        except Fault as fault:
            if self._tail is None:
                raise LinkError(fault.message, fault.hint) from fault
            warnings.warn(f"the tail runs here until its server answers: {fault.message}", RuntimeWarning, stacklevel=4)
        if missing := self.remote.missing:
            told = f"{self.remote.remote.url} does not serve all operating points: those of {missing} channels are not taken"
            warnings.warn(told, RuntimeWarning, stacklevel=4)

    def _time_here(self) -> None:
        """Time the tail here, once to warm up and then for a while, the median being what counts; not to the end once closed."""
        assert self._tail is not None
        took: list[float] = []
        with self._timing:
            while len(took) <= TIMED_RUNS and sum(took[1:]) < TIMED_MS:
                if self.remote.closed:
                    return
                begin = time.perf_counter()
                self._tail.run(self._feeds[0])
                took.append(1e3 * (time.perf_counter() - begin))
        self.remote.timed_here(statistics.median(took[1:]))

    def run(self, feed: Mapping[str, Array]) -> Sequence[Array]:
        return self.finish(self.crossing(feed))

    def crossing(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """What the head gives: the tensors that cross, by name."""
        return dict(zip(self._names, self._head.run(feed), strict=True))

    def finish(self, crossing: Mapping[str, Array]) -> Sequence[Array]:
        """The tail's outputs, from the server or from here. Raises LinkError where there is no tail here."""
        asked = time.perf_counter()
        point, why = self.remote.next_tail(), ""
        if point is not None:
            try:
                return self.remote.run(crossing, point)
            except Fault as fault:
                if self._tail is None:
                    raise LinkError(fault.message, fault.hint) from fault
                why = fault.kind
        assert self._tail is not None  # only with it there is a point of no channels
        begin = time.perf_counter()
        outputs = self._tail.run(crossing)
        end = time.perf_counter()
        self.remote.ran_here(1e3 * (end - asked), 1e3 * (end - begin), why)
        return outputs

    def run_into(self, feed: Mapping[str, Array], out: Mapping[str, Array]) -> None:
        for name, array in zip(self._outputs, self.run(feed), strict=True):
            np.copyto(out[name], array)

    def count_nodes(self, feed: Mapping[str, Array]) -> Mapping[str, int]:
        return self._head.count_nodes(feed)

    def close(self) -> None:
        self.remote.close()
        self._head.close()
        if self._tail is not None:
            with self._timing:  # the thread that times it may have a slow run to end
                self._tail.close()


def _chosen(remote: Remote, bundle: Bundle) -> dict[int, Bundle]:
    """Tails of the operating points that may be taken, by channels; {} where the bundle has none. Raises LinkError."""
    points = point_tails(bundle)
    if remote.points == "auto":
        if not points and remote.prefer not in (None, "remote") and remote.on_late == "error":
            told = f"{bundle.path} has no operating points, and with on_late='error' no tail here: there is one way alone"
            raise LinkError(told, 'leave --prefer out, or give --on-late local (on_late="local")')
        if remote.target_ms is not None and not points and remote.prefer in (None, "remote"):
            raise LinkError(
                f"{bundle.path} has no operating points between which target_ms could choose",
                "leave it out, or give prefer: then the tail here is a choice too",
            )
        return points
    if not points:
        raise LinkError(
            f"{bundle.path} has no operating points", "leave points out, or export with --bottleneck and several numbers"
        )
    if remote.points not in points:
        allowed = ", ".join(map(str, sorted(points)))
        raise LinkError(f"{bundle.path} has no operating point of {remote.points!r} channels; allowed: auto, {allowed}")
    for name in ("target_ms", "prefer"):
        if getattr(remote, name) is not None:
            raise LinkError(f"{name} is for points='auto'; one point is never moved from", "leave one of them out")
    return {remote.points: points[remote.points]}
