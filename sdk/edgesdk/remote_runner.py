"""RemoteRunner: the head of a split model here, its tail on a server, and the tail here as well where it may be needed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters.errors import DeviceError, LinkError
from edgesdk_targets import runner as runners
from edgesdk_targets.bundle import Bundle
from edgesdk_targets.runner import DEFAULTS, RunOptions
from edgesdk_targets.split_runner import head_and_tail

from .client import Fault
from .remote_tail import Remote, RemoteTail

Array = NDArray[Any]


class RemoteRunner:
    """Runs the head, then the tail at the other end of a link; each answer is the tail's, from there or from here.

    With `on_late="error"` no tail is loaded here, and a server that does not answer at once is an error at once.
    """

    def __init__(self, bundle: Bundle, remote: Remote, options: RunOptions = DEFAULTS) -> None:
        if bundle.manifest.role != "split":
            raise DeviceError(
                f"{bundle.path} is not split; only a split model has a tail that can run elsewhere", "export it with --split"
            )
        head, tail = head_and_tail(bundle)
        self._names = [spec.name for spec in head.manifest.signature.outputs]
        self._outputs = [spec.name for spec in bundle.manifest.signature.outputs]
        self.remote = RemoteTail(remote, tail)
        self._head: runners.Runner = runners.load(head, options)
        self._tail: runners.Runner | None = None
        try:
            if remote.on_late == "local":
                self._tail = runners.load(tail, options)
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

    def run(self, feed: Mapping[str, Array]) -> Sequence[Array]:
        return self.finish(self.crossing(feed))

    def crossing(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """What the head gives: the tensors that cross, by name."""
        return dict(zip(self._names, self._head.run(feed), strict=True))

    def finish(self, crossing: Mapping[str, Array]) -> Sequence[Array]:
        """The tail's outputs, from the server or from here. Raises LinkError where there is no tail here."""
        try:
            return self.remote.run(crossing)
        except Fault as fault:
            if self._tail is None:
                raise LinkError(fault.message, fault.hint) from fault
        self.remote.counts.add("local")
        return self._tail.run(crossing)

    def run_into(self, feed: Mapping[str, Array], out: Mapping[str, Array]) -> None:
        for name, array in zip(self._outputs, self.run(feed), strict=True):
            np.copyto(out[name], array)

    def count_nodes(self, feed: Mapping[str, Array]) -> Mapping[str, int]:
        return self._head.count_nodes(feed)

    def close(self) -> None:
        self.remote.close()
        self._head.close()
        if self._tail is not None:
            self._tail.close()
