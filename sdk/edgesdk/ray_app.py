"""An application for Ray Serve: replicas of one bundle behind the same REST door as `edgesdk serve` opens, over a cluster.

    serve run model.yaml            the file that `edgesdk ray BUNDLE model.yaml` writes
    serve run edgesdk.ray_app:app bundle=/models/model.edge replicas=4

Ray starts the replicas, spreads requests over them, watches them and replaces those that die; a device sees one address.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from edgesdk_converters.errors import BundleError, DeviceError, MissingExtra

from .bearer import read_token
from .ray_config import Replicas, read
from .rest import RestApplication
from .service import WAITING, open_service

try:
    from ray import serve
except ImportError as _error:
    raise MissingExtra("ray", "ray") from _error


class Replica:
    """One loaded bundle in a process of its own. Raises what opening a bundle raises, BundleError for another digest."""

    def __init__(self, told: Replicas) -> None:
        token = read_token(Path(told.token_file) if told.token_file else None)
        self._service = open_service(
            told.bundle, workers=told.workers, threads=told.share, allow_fallback=told.allow_fallback, token=token
        )
        if told.digest not in ("", self._service.digest):
            found = self._service.digest
            self._service.close()
            raise BundleError(
                f"{told.bundle} is {found[:12]} here, not {told.digest[:12]}",
                "copy the bundle to every node, or write the file anew",
            )
        self._pool = ThreadPoolExecutor(told.workers, thread_name_prefix="edgesdk-infer")

    def __serve_build_asgi_app__(self) -> RestApplication:
        """What Ray calls when the replica has been made (`serve.ingress` without an application)."""
        return RestApplication(self._service, self._pool, self._service.largest_request())

    async def check_health(self) -> None:
        """Return when a worker is free: where all hang, Ray waits in vain, and replaces the replica."""
        await asyncio.get_running_loop().run_in_executor(self._pool, int)
        if not self._service.ready:
            raise DeviceError(f"{self._service.name} is not ready")

    def __del__(self) -> None:
        """What Ray calls at the end of a replica, when its requests are answered."""
        if hasattr(self, "_pool"):
            self._service.ready = False
            self._pool.shutdown()
            self._service.close()


def app(args: Mapping[str, Any]) -> serve.Application:
    """The application for what a Serve config file gives as `args`: the fields of Replicas. Raises DeviceError.

    A replica is brought one request more than it runs, for each worker; what else comes waits in Ray's proxies.
    """
    told = read(args)
    deployment = serve.deployment(
        name="edgesdk", num_replicas=told.replicas, ray_actor_options={"num_cpus": told.cpus},
        max_ongoing_requests=2 * told.workers, max_queued_requests=WAITING,
    )  # fmt: skip
    found: serve.Application = deployment(serve.ingress()(Replica)).bind(told)
    return found
