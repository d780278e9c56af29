"""Agent: runs on a board, takes bundles and check samples, and measures them there, one after another.

    GET  /v2/health/live                      whether it is there; the only thing that needs no token
    GET  /agent/v1                            format, limits, runtimes, and the emulator where one runs it
    GET  /agent/v1/doctor                     what `edgesdk doctor` says on the board
    POST /agent/v1/bundles                    a manifest; the answer says how much of its payload is here
    POST /agent/v1/bundles/DIGEST/OFFSET      a piece of the payload, which is its files in the order of their names
    POST /agent/v1/data                       {"sha256", "bytes"} of an .npz;   POST /agent/v1/data/DIGEST/OFFSET
    POST /agent/v1/measurements               {"bundle", "data", "runs", …}: it gets an id, and waits for its turn
    GET  /agent/v1/measurements/ID?after=N    answers when there is something newer than N, after 20 s at the latest
    POST /agent/v1/measurements/ID/cancel

Nothing that is sent is executed or becomes the name of a file: a bundle's files lie in one payload, under its digest.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from edgesdk_converters import fields
from edgesdk_converters.errors import BundleError, DeviceError, EdgeError
from edgesdk_targets import board_facts, engine_cache, packed
from edgesdk_targets.conditions import Conditions

from . import __version__
from . import inference_protocol as protocol
from .agent_queue import Job, Queue
from .agent_store import DATA, Absent, Full, Limits, Misplaced, Store, Stored
from .bearer import checked_token
from .preflight import environment
from .rest import Answer, Gone, Receive, Refused, Send
from .server import Doors, Listening
from .service import Busy

FORMAT = "edgesdk-agent/1"
POLL_SECONDS = 20.0
_DISCARDED = 16_000_000
"""Bytes of a body too large that are read and dropped, so that its sender is there to read why; beyond, it is cut off."""
_LEAST_TOKEN = 16
_DOCTOR = "import sys; sys.path[:] = {path!r}; from edgesdk.cli import main; sys.argv = ['edgesdk', 'doctor', '--json']; main()"
_DOCTOR_SECONDS = 300.0
_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (Absent, 404), (Misplaced, 409), (Full, 507), (Busy, 503), (ValueError, 400), (EdgeError, 422),
)  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """A measurement as it is asked for; `bundle` and `data` are digests."""

    bundle: str
    data: str | None = None
    runs: int | None = None
    threads: int = 0
    allow_fallback: bool = False
    search: bool = False
    minutes: float = 0.0
    cold: bool = False

    def __post_init__(self) -> None:
        if not (self.runs is None or 1 <= self.runs <= 1_000_000) or not 0 <= self.threads <= 1024:
            raise DeviceError(f"{self.runs} runs on {self.threads} threads; allowed: 1 to 1000000 runs, 0 to 1024 threads")

    @property
    def conditions(self) -> Conditions:
        return Conditions(self.search, self.minutes, self.cold)


class Agent(Listening):
    """A running agent. Use it as a context manager, or call `stop`: what is measured then is ended."""

    def __init__(self, doors: Doors, store: Store, token: str) -> None:
        if len(checked_token(token, "the agent")) < _LEAST_TOKEN:
            raise DeviceError(f"the token has {len(token)} characters; needed: {_LEAST_TOKEN} or more", "make a longer one")
        corner = store.folder / "corner"
        corner.mkdir(exist_ok=True)
        self.store = store
        self.queue = Queue(store.limits.seconds, store.limits.waiting, corner)
        store.in_use = self.queue.holds
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="edgesdk-agent")
        try:
            super().__init__(AgentApplication(store, self.queue, self._pool, token), doors)
        except BaseException:
            self.queue.close()
            self._pool.shutdown()
            raise
        self._thread.start()

    def to_json(self) -> dict[str, Any]:
        """Where it is, and where it keeps what is sent."""
        return {"url": self.url, "tls": bool(self.doors.certificate), "store": str(self.store.folder)}

    def stop(self) -> None:
        self.queue.close()
        super().stop()
        self._pool.shutdown()
        self.store.close()


def start_agent(
    token: str, doors: Doors | None = None, *, store: str | os.PathLike[str] = "", limits: Limits | None = None
) -> Agent:
    """Start an agent; returns when it listens. `store` is a folder, by default one in the user's cache.

    Raises LinkError where a port is taken, DeviceError where the folder is another agent's or the token is short.
    """
    kept = Store(Path(store) if store else engine_cache.root() / "agent", limits or Limits())
    try:
        return Agent(doors or Doors(port=7860), kept, token)
    except BaseException:
        kept.close()
        raise


class AgentApplication:
    """ASGI 3. What touches the disk runs in `pool`."""

    def __init__(self, store: Store, queue: Queue, pool: ThreadPoolExecutor, token: str) -> None:
        self._store, self._queue, self._pool, self._token = store, queue, pool, b"Bearer " + token.encode()
        self._answers: Counter[int] = Counter()
        self._examined = asyncio.Lock()

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            answer = await self._answer(scope, receive)
        except Gone:
            return
        except Refused as refused:
            answer = refused.answer
        except (EdgeError, Busy, ValueError, RecursionError) as error:
            answer = _told(error)
        self._answers[answer.status] += 1
        headers = [(b"content-type", answer.kind), (b"content-length", b"%d" % len(answer.body)), *answer.headers]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _answer(self, scope: Mapping[str, Any], receive: Receive) -> Answer:
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        method, path = scope["method"], scope["raw_path"]
        if path in (b"/v2/health/live", b"/v2/health/ready"):
            return _json({path.rpartition(b"/")[2].decode(): True})
        if not hmac.compare_digest(headers.get(b"authorization", b""), self._token):
            raise Refused(401, "a bearer token is needed", ((b"www-authenticate", b"Bearer"), (b"connection", b"close")))
        match (method, *path.strip(b"/").split(b"/")):
            case ("GET", b"agent", b"v1"):
                return _json(self._about())
            case ("GET", b"agent", b"v1", b"doctor"):
                return await self._doctor()
            case ("GET", b"metrics"):
                return Answer(200, self._metrics().encode(), b"text/plain; version=0.0.4; charset=utf-8")
            case ("GET", b"agent", b"v1", b"measurements", name):
                return await self._follow(self._job(name), _after(scope["query_string"]))
            case ("POST", b"agent", b"v1", *what):
                body = await self._body(headers, receive)
                return await self._take(what, headers, body)
        raise Refused(404, f"there is nothing at {method[:16]} {path[:80].decode('ascii', 'replace')!r}")

    async def _take(self, what: list[bytes], headers: Mapping[bytes, bytes], body: bytes) -> Answer:
        """What a POST asks for."""
        store, checksum = self._store, headers.get(protocol.CHECKSUM.encode())
        if checksum is not None and checksum != protocol.checksum(body).encode():
            raise Refused(400, "the body is not what was sent: its checksum is another")
        match what:
            case [b"bundles"]:
                return _stored(await self._aside(store.announce_bundle, body))
            case [b"data"]:
                asked = fields.read(_Announced, _object(body), "data", DeviceError)
                return _stored(await self._aside(store.announce_data, asked.sha256, asked.bytes))
            case [(b"bundles" | b"data") as kind, digest, offset]:
                if checksum is None:
                    raise Refused(400, f"a piece needs the header {protocol.CHECKSUM}: the CRC-32 of it, as 8 hex digits")
                suffix = packed.PAYLOAD if kind == b"bundles" else DATA
                return _stored(await self._aside(store.append, suffix, _text(digest), _number(offset), body))
            case [b"measurements"]:
                return _json(await self._aside(self._measure, _object(body)), 202)
            case [b"measurements", name, b"cancel"]:
                job = self._job(name)
                self._queue.cancel(job)
                return _json(self._queue.shown(job))
        raise Refused(404, "there is nothing to post to at that path")

    def _measure(self, data: dict[str, Any]) -> dict[str, Any]:
        """Put a measurement in the line."""
        wanted = fields.read(Wanted, data, "measurement", DeviceError)
        if wanted.conditions.seconds > self._store.limits.seconds:
            raise DeviceError(
                f"this takes about {wanted.conditions.seconds:.0f} s; the agent allows {self._store.limits.seconds:g}",
                "ask for fewer minutes, or start the agent with --seconds",
            )
        digests = tuple(filter(None, (wanted.bundle, wanted.data)))
        samples = None if wanted.data is None else str(self._store.path(DATA, wanted.data))
        bundle = str(self._store.path(packed.PAYLOAD, wanted.bundle))
        task = vars(wanted) | {"bundle": bundle, "data": samples}
        return self._queue.shown(self._queue.add(task, digests))

    async def _follow(self, job: Job, after: int) -> Answer:
        """The state of a job when it is newer than what the client knows."""
        changed, loop = asyncio.Event(), asyncio.get_running_loop()

        def tell() -> None:
            loop.call_soon_threadsafe(changed.set)

        with self._queue.listening(job, tell):
            if job.version <= after and not job.outcome:
                try:
                    await asyncio.wait_for(changed.wait(), POLL_SECONDS)
                except asyncio.TimeoutError:  # another class than TimeoutError before Python 3.11
                    pass
        return _json(self._queue.shown(job))

    def _job(self, name: bytes) -> Job:
        job = self._queue.find(_text(name))
        if job is None:
            raise Absent("there is no such measurement: the agent was started anew, or has forgotten it", "measure again")
        return job

    async def _doctor(self) -> Answer:
        """In a process of its own: what it imports may end it."""
        async with self._examined:
            done = await self._aside(_examine)
        found = _object(done.stdout) if done.returncode == 0 else {"error": f"the doctor ended with {done.returncode}"}
        return _json(found | {"facts": await self._aside(board_facts.facts)})

    def _about(self) -> dict[str, Any]:
        return {
            "format": FORMAT, "version": __version__, "limits": vars(self._store.limits), "waiting": self._queue.waiting,
            "runtimes": list(packed.RUNTIMES), "emulator": board_facts.emulator() or None,
        }  # fmt: skip

    def _metrics(self) -> str:
        """As Prometheus reads them."""
        lines = ["# TYPE edgesdk_agent_answers_total counter"]
        lines += [f'edgesdk_agent_answers_total{{code="{code}"}} {count}' for code, count in sorted(self._answers.items())]
        lines.append("# TYPE edgesdk_agent_measurements_total counter")
        lines += [f'edgesdk_agent_measurements_total{{state="{name}"}} {count}' for name, count in self._queue.ended.items()]
        for name, value in (("measurements_waiting", self._queue.waiting), ("stored_bytes", self._store.bytes_used())):
            lines += [f"# TYPE edgesdk_agent_{name} gauge", f"edgesdk_agent_{name} {value}"]
        return "\n".join(lines) + "\n"

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        """The whole body. How long it may take is watched where the socket is read."""
        limits = self._store.limits
        most = max(limits.manifest_bytes, limits.chunk_bytes)
        if int(headers.get(b"content-length", b"0")) > _DISCARDED:
            raise _too_large(most)
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Gone("the client has left")
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if size <= most:
                parts.append(part)
            elif size > _DISCARDED:
                raise _too_large(most)
        if size > most:
            raise _too_large(most)
        return b"".join(parts)

    async def _aside(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call, *arguments)


@dataclass(frozen=True)
class _Announced:
    """Samples that are to come."""

    sha256: str
    bytes: int


def _examine() -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-I", "-c", _DOCTOR.format(path=sys.path)]
    try:
        return subprocess.run(
            command, capture_output=True, check=False, timeout=_DOCTOR_SECONDS, stdin=subprocess.DEVNULL, env=environment()
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(
            f"the doctor took more than {_DOCTOR_SECONDS:.0f} s on the board", "run edgesdk doctor there"
        ) from error


def _too_large(most: int) -> Refused:
    return Refused(413, f"the body is too large; allowed: {most} bytes", ((b"connection", b"close"),))


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except RecursionError as error:
        raise BundleError("the body is JSON without a bottom", "send what edgesdk measure sends") from error
    if not isinstance(found, dict):
        raise ValueError(f"a JSON object is needed; got {type(found).__name__}")
    return found


def _text(raw: bytes) -> str:
    return raw[:80].decode("ascii")


def _number(raw: bytes) -> int:
    if not raw.isdigit() or len(raw) > 15:
        raise ValueError(f"{raw[:40]!r} is no offset")
    return int(raw)


def _after(query: bytes) -> int:
    """The version that a client knows."""
    found = parse_qs(query[:200].decode("ascii"), max_num_fields=4).get("after", ["-1"])[0]
    return int(found) if found.isdigit() and len(found) < 16 else -1


def _stored(state: Stored) -> Answer:
    return _json(vars(state))


def _told(error: Exception) -> Answer:
    """An error as its client gets it, with the class that edgesdk raises for it."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 400)
    told = {"error": str(error)[:1000], "kind": type(error).__name__, "hint": str(getattr(error, "hint", ""))}
    if isinstance(error, Misplaced):
        told |= vars(error.stored)
    return Answer(status, json.dumps(told).encode(), headers=((b"retry-after", b"5"),) if status == 503 else ())


def _json(data: Mapping[str, Any], status: int = 200) -> Answer:
    return Answer(status, json.dumps(data).encode())
