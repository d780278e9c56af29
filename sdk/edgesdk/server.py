"""Server: a bundle at a REST and a gRPC port, until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesdk_converters.errors import LinkError, MissingExtra
from edgesdk_targets import runner as runners

from .rest import RestApplication
from .service import Service, open_service

if TYPE_CHECKING:
    from typing_extensions import Self

try:
    import uvicorn
except ImportError as _error:
    raise MissingExtra("server", "uvicorn") from _error

_CONNECTIONS = 1024


@dataclass(frozen=True)
class Doors:
    """Where and how a server listens. A port of 0 is any free one; `grpc_port` None is no gRPC. Times in seconds.

    `certificate` and `key` are PEM files; with them both doors speak TLS alone. `max_body` is in bytes, 0 for what the
    bundle's own tensors can need.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = 8001
    certificate: str = ""
    key: str = ""
    max_body: int = 0
    read_seconds: float = 30.0
    idle_seconds: float = 300.0
    stop_seconds: float = 10.0

    def __post_init__(self) -> None:
        for port in (self.port, self.grpc_port or 0):
            if not 0 <= port < 65536:
                raise LinkError(f"port {port}; allowed: 1 to 65535, or 0 for any free one")
        if bool(self.certificate) != bool(self.key):
            raise LinkError("TLS needs a certificate and its key; one is missing", "give --tls-cert and --tls-key")
        if self.max_body < 0 or min(self.read_seconds, self.idle_seconds, self.stop_seconds) <= 0:
            raise LinkError("limits of a server must be positive", "leave them out for the defaults")


class Listening:
    """An ASGI application at a port, in a thread of its own. Use it as a context manager, or call `stop`."""

    def __init__(self, application: Any, doors: Doors) -> None:
        self.doors = doors
        self._stopping = threading.Event()
        if doors.certificate:
            check_certificate(doors.certificate, doors.key)
        self._socket = _listen(doors.host, doors.port, "--port")
        try:
            self._rest = _rest_server(application, doors)
        except BaseException:
            self._socket.close()
            raise
        scheme, self._host = "https" if doors.certificate else "http", f"[{doors.host}]" if ":" in doors.host else doors.host
        self.url = f"{scheme}://{self._host}:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, name="edgesdk-rest", daemon=True)

    def wait(self, ready: Callable[[], object] = lambda: None) -> None:
        """Return when `stop` is called elsewhere or, in the main thread, at SIGINT or SIGTERM; then the server has stopped.

        `ready` is called once these signals are heeded: who is told of the server only then can stop it at once.
        """
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.signal(number, self._told) for number in (signal.SIGINT, signal.SIGTERM)}
            try:
                ready()
                self._stopping.wait()
                self.stop()
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)
        else:
            ready()
            self._stopping.wait()

    def stop(self) -> None:
        """Take nothing new, and answer what is in flight (`stop_seconds` at most)."""
        self._stopping.set()
        self._rest.should_exit = True
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _told(self, number: int, frame: object) -> None:
        self._stopping.set()

    def _run(self) -> None:
        try:
            asyncio.run(self._rest.serve(sockets=[self._socket]))
        finally:
            self._stopping.set()  # where it ends by itself, nobody must wait for it for ever


class Server(Listening):
    """A running server. Use it as a context manager, or call `stop`; requests in flight are answered first."""

    def __init__(self, service: Service, doors: Doors) -> None:
        self.service = service
        self._pool = ThreadPoolExecutor(service.workers, thread_name_prefix="edgesdk-infer")
        limit = doors.max_body or service.largest_request()
        super().__init__(RestApplication(service, self._pool, limit), doors)
        try:
            self._grpc = None if doors.grpc_port is None else self._grpc_server(limit, doors.grpc_port)
        except BaseException:
            self._socket.close()
            raise
        self.grpc_address = "" if self._grpc is None else f"{self._host}:{self._grpc[1]}"
        self._thread.start()
        if self._grpc is not None:
            self._grpc[0].start()

    def to_json(self) -> dict[str, Any]:
        """What is served, and where."""
        service = self.service
        found: dict[str, Any] = {
            "model": service.name, "digest": service.digest, "role": service.bundle.manifest.role, "runtime": str(service.facts),
            "rest": self.url, "grpc": self.grpc_address or None, "tls": bool(self.doors.certificate), "workers": service.workers,
        }  # fmt: skip
        if service.points:
            points = [{"model": one.name, "digest": one.digest, "channels": one.channels} for one in service.points]
            found |= {"channels": service.channels, "points": points}
        return found

    def stop(self) -> None:
        """Take nothing new, answer what is in flight (`stop_seconds` at most), and free everything."""
        self.service.ready = False
        waiting = None if self._grpc is None else self._grpc[0].stop(self.doors.stop_seconds)
        super().stop()
        if waiting is not None:
            waiting.wait()
        self._pool.shutdown()
        self.service.close()

    def _grpc_server(self, limit: int, port: int) -> tuple[Any, int]:
        from .grpc_server import grpc_server

        doors = self.doors
        if port:
            _listen(doors.host, port, "--grpc-port").close()  # grpc would print its own lines about a port that is taken
        pems = (Path(doors.key).read_bytes(), Path(doors.certificate).read_bytes()) if doors.certificate else None
        return grpc_server(self.service, doors.host, port, limit, pems)


def serve(
    path: str | os.PathLike[str],
    doors: Doors | None = None,
    *,
    workers: int = 2,
    threads: int = 0,
    allow_fallback: bool = False,
    token: str = "",
    progress: Callable[[str], None] = runners.silent,
) -> Server:
    """Serve a bundle (of a split one the tail) by Open Inference Protocol v2; returns when it answers.

    The operating points of a bottleneck are served beside its tail, each as a model of its own. At most `workers` inferences
    run at once, each with `threads` threads (0: the bundle's choice, or where that is all cores, a worker's share of them).
    With a `token` every request but those for health must carry it as `Authorization: Bearer TOKEN`. Raises LinkError where a
    port is taken, MissingExtra without uvicorn or grpcio, and what opening a bundle raises.
    """
    service = open_service(path, workers=workers, threads=threads, allow_fallback=allow_fallback, token=token, progress=progress)
    try:
        return Server(service, doors or Doors())
    except BaseException:
        service.close()
        raise


def doors_from(
    *,
    host: str,
    port: int,
    grpc_port: int,
    no_grpc: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    max_body: int | None,
    read_seconds: float,
) -> Doors:
    """Doors from what was typed. Raises LinkError as Doors does."""
    certificate, key = ("" if path is None else str(path) for path in (tls_cert, tls_key))
    grpc = None if no_grpc else grpc_port
    return Doors(host, port, grpc, certificate, key, max_body or 0, read_seconds)


def check_certificate(certificate: str, key: str) -> None:
    """Raise LinkError where these files are not a certificate and its key."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise LinkError(
            f"{certificate} and {key} cannot be used for TLS: {error}", "give a PEM certificate and its unencrypted key"
        ) from error


def _rest_server(application: Any, doors: Doors) -> uvicorn.Server:
    from .http_protocol import limited_protocol

    return uvicorn.Server(
        uvicorn.Config(
            application, http=limited_protocol(doors.read_seconds, _CONNECTIONS), ws="none", lifespan="off", loop="asyncio",
            interface="asgi3", log_config=None, log_level="error", access_log=False, proxy_headers=False,
            server_header=False, date_header=False, timeout_keep_alive=int(max(1, doors.idle_seconds)),
            timeout_graceful_shutdown=int(max(1, doors.stop_seconds)),
            ssl_certfile=doors.certificate or None, ssl_keyfile=doors.key or None,
        )
    )  # fmt: skip


def _listen(host: str, port: int, option: str) -> socket.socket:
    """Raises LinkError, naming the option that gives another port."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except (OSError, UnicodeError, OverflowError) as error:
        number = getattr(error, "errno", None)
        told = os.strerror(number) if isinstance(number, int) and number > 0 else error
        raise LinkError(
            f"cannot listen on {host!r} port {port}: {told}", f"give another --host or {option}; 0 is any free port"
        ) from error
