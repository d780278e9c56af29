"""Service: a bundle, loaded once, answering from several threads; what the REST and the gRPC door share.

The operating points of a split bundle are models of their own beside its tail; they share its workers, its queue and its token.
"""

from __future__ import annotations

import contextlib
import hmac
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from edgesdk_converters.errors import BundleError, DeviceError
from edgesdk_targets import runner as runners
from edgesdk_targets.bundle import Bundle, nested, open_bundle
from edgesdk_targets.split_runner import TAIL, point_tails

from . import __version__
from . import inference_protocol as protocol
from .metrics import Metrics, exposition
from .session import Session

Array = NDArray[Any]
WAITING = 256
"""The most inferences that wait or run at once; one more is turned away (503, RESOURCE_EXHAUSTED)."""


class Busy(Exception):
    """More is asked at once than the service keeps waiting; whoever asked is told to try again."""


class _Shared:
    """What all models of a server share: workers, places (WAITING wait or run), and whether they are ready."""

    def __init__(self, workers: int) -> None:
        self.slots = threading.BoundedSemaphore(workers)
        self._lock, self._taken = threading.Lock(), 0
        self.ready = True

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        with self._lock:
            self._taken += 1
            full = self._taken > WAITING
        try:
            if full:
                raise Busy(f"{WAITING} inferences are waiting already; try again later")
            yield
        finally:
            with self._lock:
                self._taken -= 1


class Service:
    """A bundle that answers. `infer` may be called from any thread; at most `workers` run at once.

    `points` are further models, each with how many `channels` of a bottleneck it takes; 0 where there are no points.
    """

    def __init__(self, bundle: Bundle, runner: runners.Runner, workers: int = 2, token: str = "", channels: int = 0) -> None:
        protocol.check_signature(bundle.manifest.signature, str(bundle.path))
        self.bundle, self.signature = bundle, bundle.manifest.signature
        self.name, self.digest, self.workers = bundle.manifest.name, bundle.digest, workers
        self.facts = runner.facts
        self.metrics = Metrics(self.name, self.digest)
        self.channels = channels
        self.points: tuple[Service, ...] = ()
        self._session = Session(bundle, runner, 0.0)
        self._shared = _Shared(workers)
        self._token = token.encode()

    def add(self, bundle: Bundle, runner: runners.Runner, channels: int) -> None:
        """Serve an operating point as well. Raises BundleError where there is a model of its name."""
        if bundle.manifest.name in self.models:
            raise BundleError(
                f"{bundle.path} is called {bundle.manifest.name!r}, as another tail of its bundle", "export it anew"
            )
        point = Service(bundle, runner, self.workers, channels=channels)
        point._shared = self._shared
        self.points = (*self.points, point)

    @property
    def ready(self) -> bool:
        """Whether requests are welcome, those to points as well."""
        return self._shared.ready

    @ready.setter
    def ready(self, value: bool) -> None:
        self._shared.ready = value

    @property
    def models(self) -> dict[str, Service]:
        """This one and its points, by their names."""
        return {one.name: one for one in (self, *self.points)}

    def told_models(self) -> str:
        """Which models there are, for who asks for another."""
        names = [repr(name) for name in self.models]
        return f"the model is {names[0]}, version 1" if len(names) == 1 else f"the models are {', '.join(names)}, version 1"

    def allows(self, authorization: bytes) -> bool:
        """Whether a request with this Authorization header may be served; in constant time."""
        return not self._token or hmac.compare_digest(authorization, b"Bearer " + self._token)

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue of all models. Raises Busy where there is none left."""
        self.metrics.entered()
        try:
            with self._shared.place():
                yield
        finally:
            self.metrics.left()

    def infer(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name. Raises ModelError for inputs that are not the signature's."""
        with self._shared.slots:
            begin = time.perf_counter()
            outputs = self._session.run(feed)
            self.metrics.ran(time.perf_counter() - begin)
        return outputs

    def server_metadata(self) -> dict[str, Any]:
        return {"name": "edgesdk", "version": __version__, "extensions": ["binary_tensor_data"]}

    def model_metadata(self) -> dict[str, Any]:
        """What REST and gRPC say of the model; `parameters` hold the digest by which a device knows its tail."""
        manifest = self.bundle.manifest
        return {
            "name": self.name,
            "versions": [protocol.VERSION],
            "platform": f"edgesdk_{manifest.runtime.name}",
            "inputs": protocol.tensors(self.signature.inputs),
            "outputs": protocol.tensors(self.signature.outputs),
            "parameters": {"digest": self.digest, "role": manifest.role, "precision": manifest.precision}
            | ({"channels": str(self.channels)} if self.channels else {}),
        }

    def metrics_text(self) -> str:
        """Of all models, as Prometheus reads them; requests to no model are counted with the first."""
        return exposition([one.metrics for one in (self, *self.points)])

    def largest_request(self) -> int:
        """Bytes that a body may have: room for every value as JSON text where shapes are fixed, otherwise 64 MB.

        No point takes more than the tail for all channels.
        """
        if not self.signature.is_static:
            return 64_000_000
        values = sum(math.prod(d for d in spec.shape if isinstance(d, int)) for spec in self.signature.inputs)
        return max(1_000_000, 32 * values)

    def close(self) -> None:
        for one in (self, *self.points):
            one._session.close()


def open_service(
    path: str | os.PathLike[str],
    *,
    workers: int = 2,
    threads: int = 0,
    allow_fallback: bool = False,
    token: str = "",
    progress: Callable[[str], None] = runners.silent,
) -> Service:
    """Load a bundle to serve it: a whole one, a tail, or of a split one the tail and those of its operating points.

    `threads` are those of one inference; 0: the bundle's choice, or where that is all cores, a worker's share of them.
    Raises BundleError, DeviceError and MissingExtra as `load`.
    """
    if not 1 <= workers <= 1024:
        raise DeviceError(f"workers is {workers}; allowed: 1 to 1024")
    if threads < 0:
        raise DeviceError(f"threads is {threads}; allowed: 0 (the bundle's choice) or more")
    bundle = open_bundle(path)
    points: dict[int, Bundle] = {}
    if bundle.manifest.role == "split":
        points, bundle = point_tails(bundle), nested(bundle, TAIL)
    if bundle.manifest.role == "head":
        raise DeviceError(f"{path} is the head of a split model, which runs on the device", "serve the tail, or the split bundle")
    protocol.check_signature(bundle.manifest.signature, str(path))
    # Threads of one inference wait in a loop for the next: more of them than cores, over all workers, only hold each other up.
    chosen = threads or bundle.manifest.runtime.threads or max(1, len(os.sched_getaffinity(0)) // workers)
    options = runners.RunOptions(chosen, allow_fallback, progress=progress)
    channels, *fewer = points or (0,)
    service = Service(bundle, runners.load(bundle, options), workers, token, channels)
    try:
        for point in fewer:
            service.add(points[point], runners.load(points[point], options), point)
    except BaseException:
        service.close()
        raise
    return service
