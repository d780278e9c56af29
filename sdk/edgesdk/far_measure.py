"""Measure a bundle on a board where an agent runs: send what is not there yet, ask, and fetch the report."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters import errors
from edgesdk_converters.calibration import Samples, read_npz
from edgesdk_converters.errors import DeviceError, EdgeError, LinkError, ModelError
from edgesdk_targets import measure, packed, runner
from edgesdk_targets.bundle import Bundle
from edgesdk_targets.conditions import Conditions
from edgesdk_targets.report import Report

from .client import Connection, Counts, Fault, Place, Reply

FORMAT = "edgesdk-agent/1"
FIRST_PIECE, LEAST_PIECE = 1 << 18, 1 << 14
PATIENCE_S = 60.0
"""How long a link may be broken before it is given up."""
_CALL_S = 30.0
_POLL_S = 40.0
_DOCTOR_S = 320.0
_MOST = 64_000_000
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Shown:
    """What an agent answered to a request: its status and its JSON."""

    status: int
    data: dict[str, Any]


class Far:
    """An agent, asked over one connection that is made anew where it breaks. Use it as a context manager."""

    def __init__(self, url: str, token: str = "", ca: str = "") -> None:
        if not token:
            raise LinkError("an agent wants a token", "give --token-file FILE, or set EDGESDK_TOKEN to what the agent printed")
        self.counts = Counts()
        self._place = Place(url, token, ca)
        self._connection: Connection | None = None

    def __enter__(self) -> Far:
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()

    def about(self) -> dict[str, Any]:
        """What the agent says of itself. Raises LinkError where there is none, or none that this edgesdk knows."""
        found = self.get("/agent/v1").data
        if found.get("format") != FORMAT or not isinstance(found.get("limits"), dict):
            raise LinkError(
                f"{self._place.url} is no agent of the format {FORMAT}", "start edgesdk agent there, of the same version"
            )
        return found

    def get(self, path: str, seconds: float = _CALL_S) -> Shown:
        """GET, again where the link broke, until PATIENCE_S have gone without an answer."""
        return self._ask(lambda connection, until: connection.get(path, until, _MOST), seconds)

    def post(self, path: str, body: bytes, seconds: float = _CALL_S) -> Shown:
        """POST, again where the link broke: only for what may be done twice."""
        return self._ask(lambda connection, until: connection.post(path, b"", [memoryview(body)], until, _MOST), seconds)

    def once(self, path: str, body: bytes | memoryview, seconds: float) -> Shown:
        """POST, once. Raises Fault where the link broke."""
        try:
            connection = self._connected(time.monotonic() + seconds)
            return self._shown(connection.post(path, b"", [memoryview(body)], time.monotonic() + seconds, _MOST))
        except Fault:
            self._broken()
            raise

    def _ask(self, call: Callable[[Connection, float], Reply], seconds: float) -> Shown:
        begin, pause = time.monotonic(), 0.1
        while True:
            try:
                connection = self._connected(time.monotonic() + seconds)
                return self._shown(call(connection, time.monotonic() + seconds))
            except Fault as fault:
                self._broken()
                never = self._place.address is None or self.counts.received_bytes == 0
                if never or fault.kind == "malformed" or time.monotonic() - begin + pause > PATIENCE_S:
                    raise
                time.sleep(pause)
                pause = min(5.0, 2 * pause)

    def _connected(self, until: float) -> Connection:
        if self._connection is not None and not self._connection.idle():
            self._broken()
        if self._connection is None:
            known = self._place.address is not None
            self._connection = Connection(self._place, until, self.counts) if known else self._place.first(until, self.counts)
        return self._connection

    def _broken(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _shown(self, reply: Reply) -> Shown:
        """The JSON of an answer. Raises what the agent says went wrong, as the class that it was there."""
        try:
            data = json.loads(bytes(reply.body))
        except (ValueError, RecursionError) as error:
            raise Fault("malformed", f"{self._place.url} answers {reply.status} and no JSON") from error
        if not isinstance(data, dict):
            raise Fault("malformed", f"{self._place.url} answers {reply.status} and no JSON object")
        if reply.status == 401:
            raise LinkError(f"{self._place.url} does not take this token", "give the one that the agent printed or was given")
        if reply.status not in (200, 202, 409):
            raise_told({"message": data.get("error"), "kind": data.get("kind"), "hint": data.get("hint")}, self._place.url)
        return Shown(reply.status, data)


def far_measure(
    path: str | os.PathLike[str],
    url: str,
    *,
    token: str = "",
    ca: str = "",
    runs: int | None = None,
    threads: int = 0,
    data: str | os.PathLike[str] | None = None,
    allow_fallback: bool = False,
    conditions: Conditions | None = None,
    progress: Progress = runner.silent,
) -> Report:
    """The report of a measurement on the board where an agent listens at `url`.

    The bundle travels once: what is there already is not sent, and an upload that broke off goes on where it was. Raises
    DeviceError for what no agent takes, before anything is sent; LinkError for the way there; and whatever the measurement
    raises on the board, as the same class.
    """
    bundle = measure.opened(path)
    measure.check_timed(bundle)
    for part in packed.parts(bundle):
        packed.check_runtime(part.manifest)
    samples = None if data is None else _samples(data, bundle)
    asked = conditions or Conditions()
    with _plainly("measure again to go on"), Far(url, token, ca) as far:
        about = far.about()
        send_bundle(far, bundle, about["limits"], progress)
        digest = None
        if samples is not None:
            digest = hashlib.sha256(samples).hexdigest()
            send_data(far, samples, digest, about["limits"], progress)
        task = {
            "bundle": bundle.digest, "data": digest, "runs": runs, "threads": threads, "allow_fallback": allow_fallback,
            "search": asked.search, "minutes": asked.minutes, "cold": asked.cold,
        }  # fmt: skip
        outcome = _await(far, task, progress)
    if digest is not None and data is not None:
        outcome = json.loads(json.dumps(outcome).replace(f"{digest}.npz", json.dumps(Path(data).name)[1:-1]))
    found = Report.from_json(outcome)
    if found.bundle != bundle.digest:
        raise LinkError(f"{url} measured another bundle ({found.bundle[:12]})", "measure again")
    return replace(found, machine={**found.machine, "agent": url})


@contextlib.contextmanager
def _plainly(then: str) -> Iterator[None]:
    """What fails on the way as a plain LinkError: a Fault has advice for sessions, which this is none of. `then`: what to do."""
    try:
        yield
    except Fault as fault:
        raise LinkError(fault.message, f"does edgesdk agent run there, at that address? {then}") from fault


def send_bundle(far: Far, bundle: Bundle, limits: Mapping[str, Any], progress: Progress = runner.silent) -> int:
    """Send what of a bundle is not there yet; how many bytes of its payload went."""
    announced = far.post("/agent/v1/bundles", bundle.manifest.to_bytes()).data
    total = packed.payload_bytes(bundle.manifest)
    return _send(far, f"/agent/v1/bundles/{bundle.digest}", announced, _From(packed.pieces(bundle)), total, limits, progress)


def send_data(far: Far, samples: bytes, digest: str, limits: Mapping[str, Any], progress: Progress = runner.silent) -> int:
    """The same for an .npz of samples."""
    told = json.dumps({"sha256": digest, "bytes": len(samples)}).encode()
    announced = far.post("/agent/v1/data", told).data
    return _send(far, f"/agent/v1/data/{digest}", announced, _From(iter([samples])), len(samples), limits, progress)


def far_doctor(url: str, token: str = "", ca: str = "") -> dict[str, Any]:
    """What `edgesdk doctor` says on the board, and the board's facts."""
    with _plainly("ask its doctor again"), Far(url, token, ca) as far:
        far.about()
        found = far.get("/agent/v1/doctor", _DOCTOR_S).data
    if not isinstance(found.get("checks"), list):
        raise LinkError(
            f"the doctor at {url} gave no diagnosis: {str(found.get('error', 'nothing'))[:200]}", "run it on the board"
        )
    return found


class _From:
    """Pieces of any length from a stream of files, from any offset on that is not before the last one."""

    def __init__(self, files: Iterator[bytes]) -> None:
        self._files, self._begin, self._file = files, 0, b""

    def read(self, offset: int, length: int) -> memoryview:
        begin = offset - self._begin
        if begin + length <= len(self._file):
            return memoryview(self._file)[begin : begin + length]
        found = bytearray()
        while len(found) < length:
            if offset >= self._begin + len(self._file):
                self._begin += len(self._file)
                if (following := next(self._files, None)) is None:
                    break
                self._file = following
                continue
            piece = self._file[offset - self._begin : offset - self._begin + length - len(found)]
            found += piece
            offset += len(piece)
        return memoryview(found)


def _send(
    far: Far, path: str, state: Mapping[str, Any], source: _From, total: int, limits: Mapping[str, Any], progress: Progress
) -> int:
    """Send from where the other side is to the end, in pieces as large as pass in about a second."""
    most = int(limits["chunk_bytes"])
    length, sent, broken_at = min(FIRST_PIECE, most), 0, 0.0
    offset, complete = _place_of(state, total)
    while not complete:
        progress(f"sending: {offset / 1e6:.1f} of {total / 1e6:.1f} MB")
        piece = source.read(offset, length)
        begin = time.monotonic()
        try:
            shown = far.once(f"{path}/{offset}", piece, _CALL_S)
        except Fault as fault:
            # Whether the piece came through is not known: the next answer says where to go on.
            broken_at = broken_at or begin
            if fault.kind in ("malformed", "refused") or time.monotonic() - broken_at > PATIENCE_S:
                raise
            length = max(LEAST_PIECE, length // 2)
            time.sleep(0.2)
            continue
        broken_at = 0.0
        further, complete = _place_of(shown.data, total)
        if further < offset:
            raise LinkError("what was sent is gone from the board: it made room for something else", "send it again")
        sent += len(piece) if further == offset + len(piece) else 0  # else another one has sent it
        offset = further
        took = time.monotonic() - begin
        length = min(most, 2 * length) if took < 0.5 else max(LEAST_PIECE, length // 2) if took > 2 else length
    return sent


def _place_of(state: Mapping[str, Any], total: int) -> tuple[int, bool]:
    offset, complete, size = (state.get(name) for name in ("offset", "complete", "bytes"))
    if type(offset) is not int or type(complete) is not bool or size != total or not 0 <= offset <= total:
        raise LinkError("the agent answers with no offset, or that of something else", "is it an edgesdk agent of this version?")
    return offset, complete


def _await(far: Far, task: Mapping[str, Any], progress: Progress) -> Any:
    """Ask for a measurement and wait for it; cancel it where this is interrupted."""
    shown = far.once("/agent/v1/measurements", json.dumps(task).encode(), _CALL_S).data
    name = str(shown.get("id", ""))
    if not (name.isascii() and name.isalnum()):
        raise LinkError("the agent gave the measurement no id", "is it an edgesdk agent of this version?")
    path, before = f"/agent/v1/measurements/{name}", ""
    try:
        while "report" not in shown and "error" not in shown:
            told = str(shown.get("told", ""))[:200]
            if told != before:
                progress(f"on the board: {told}")
            before = told
            shown = far.get(f"{path}?after={int(shown.get('version', -1))}", _POLL_S).data
    except BaseException:
        _cancel(far, path)
        raise
    if "error" in shown:
        raise_told(shown["error"], "the board")
    return shown["report"]


def _cancel(far: Far, path: str) -> None:
    try:
        far.once(f"{path}/cancel", b"", 2.0)
    except (EdgeError, OSError):
        return


def raise_told(told: object, origin: str) -> None:
    """Raise an error as an agent tells it: of the same class where it is one of edgesdk's, a DeviceError otherwise."""
    told = told if isinstance(told, dict) else {}
    message, hint = (str(told.get(name) or "")[:2000] for name in ("message", "hint"))
    kind = getattr(errors, str(told.get("kind")), None)
    plain = isinstance(kind, type) and issubclass(kind, EdgeError) and kind.__init__ is EdgeError.__init__
    error: type[EdgeError] = kind if plain and kind is not None else DeviceError
    raise error(f"{origin}: {message or 'it failed and does not say why'}", hint)


def _samples(data: str | os.PathLike[str], bundle: Bundle) -> bytes:
    """An .npz as it travels: checked here, uncompressed, the same bytes for the same arrays. Raises ModelError."""
    arrays = read_npz(data)
    if Samples.from_arrays(arrays, bundle.manifest.signature, Path(data).name).labels is None:
        raise ModelError(f"{Path(data).name} has no labels, so there is no accuracy to measure", "add an array named labels")
    return npz(arrays)


def npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """An uncompressed .npz that depends on nothing but its arrays."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name in sorted(arrays):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(arrays[name]), allow_pickle=False)
    return sink.getvalue()
