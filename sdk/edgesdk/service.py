"""Service: one bundle, loaded once, answering from several threads; what the REST and the gRPC door share."""

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

from edgesdk_converters.errors import DeviceError
from edgesdk_targets import runner as runners
from edgesdk_targets.bundle import Bundle, nested, open_bundle
from edgesdk_targets.split_runner import TAIL

from . import __version__
from . import inference_protocol as protocol
from .metrics import Metrics
from .session import Session

Array = NDArray[Any]
WAITING = 256
"""The most inferences that wait or run at once; one more is turned away (503, RESOURCE_EXHAUSTED)."""


class Busy(Exception):
    """More is asked at once than the service keeps waiting; whoever asked is told to try again."""


class Service:
    """A bundle that answers. `infer` may be called from any thread; at most `workers` run at once."""

    def __init__(self, bundle: Bundle, runner: runners.Runner, workers: int = 2, token: str = "") -> None:
        protocol.check_signature(bundle.manifest.signature, str(bundle.path))
        self.bundle, self.signature = bundle, bundle.manifest.signature
        self.name, self.digest, self.workers = bundle.manifest.name, bundle.digest, workers
        self.facts = runner.facts
        self.metrics = Metrics(self.name, self.digest)
        self.ready = True
        self._session = Session(bundle, runner, 0.0)
        self._slots = threading.BoundedSemaphore(workers)
        self._token = token.encode()

    def allows(self, authorization: bytes) -> bool:
        """Whether a request with this Authorization header may be served; in constant time."""
        return not self._token or hmac.compare_digest(authorization, b"Bearer " + self._token)

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue. Raises Busy where there is none left."""
        try:
            if self.metrics.entered() > WAITING:
                raise Busy(f"{WAITING} inferences are waiting already; try again later")
            yield
        finally:
            self.metrics.left()

    def infer(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name. Raises ModelError for inputs that are not the signature's."""
        with self._slots:
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
            "parameters": {"digest": self.digest, "role": manifest.role, "precision": manifest.precision},
        }

    def largest_request(self) -> int:
        """Bytes that a body may have: room for every value as JSON text where shapes are fixed, otherwise 64 MB."""
        if not self.signature.is_static:
            return 64_000_000
        values = sum(math.prod(d for d in spec.shape if isinstance(d, int)) for spec in self.signature.inputs)
        return max(1_000_000, 32 * values)

    def close(self) -> None:
        self._session.close()


def open_service(
    path: str | os.PathLike[str],
    *,
    workers: int = 2,
    threads: int = 0,
    allow_fallback: bool = False,
    token: str = "",
    progress: Callable[[str], None] = runners.silent,
) -> Service:
    """Load a bundle to serve it: a whole one, a tail, or of a split one the tail.

    `threads` are those of one inference; 0: the bundle's choice, or where that is all cores, a worker's share of them.
    Raises BundleError, DeviceError and MissingExtra as `load`.
    """
    if not 1 <= workers <= 1024:
        raise DeviceError(f"workers is {workers}; allowed: 1 to 1024")
    if threads < 0:
        raise DeviceError(f"threads is {threads}; allowed: 0 (the bundle's choice) or more")
    bundle = open_bundle(path)
    if bundle.manifest.role == "split":
        bundle = nested(bundle, TAIL)
    if bundle.manifest.role == "head":
        raise DeviceError(f"{path} is the head of a split model, which runs on the device", "serve the tail, or the split bundle")
    protocol.check_signature(bundle.manifest.signature, str(path))
    # Threads of one inference wait in a loop for the next: more of them than cores, over all workers, only hold each other up.
    chosen = threads or bundle.manifest.runtime.threads or max(1, len(os.sched_getaffinity(0)) // workers)
    return Service(bundle, runners.load(bundle, runners.RunOptions(chosen, allow_fallback, progress=progress)), workers, token)
