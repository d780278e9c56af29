"""FarModel: a tail on a server as the device knows it: its path and digest there, what is asked of it, what may be its answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters.errors import ModelError
from edgesdk_converters.signature import Output
from edgesdk_targets.bundle import Bundle

from . import inference_protocol as protocol
from .client import Fault, Reply, model_path

Array = NDArray[Any]
SPARE = 65_536
"""Bytes that the JSON of an answer may have."""
_HEAD = 250
"""Bytes of the headers of a request, about."""
_UNKNOWN = 64_000_000
"""Bytes of an answer whose shapes are not known beforehand."""


class FarModel:
    """A tail that the server at `url` should have; with `part` it takes the first part of what crosses, along its second axis."""

    def __init__(self, tail: Bundle, url: str, *, part: bool = False) -> None:
        protocol.check_signature(tail.manifest.signature, str(tail.path))
        self.name, self.digest, self.signature = tail.manifest.name, tail.digest, tail.manifest.signature
        self.path = model_path(self.name)
        self.infer = f"{self.path}/infer"
        self.most = _largest(self.signature.outputs)
        self._url, self._part = url, part
        self._around: dict[tuple[tuple[int, ...], ...], tuple[bytes, bytes]] = {}

    @property
    def request_bytes(self) -> int:
        """Of a request, about; dimensions that vary count as one."""
        feed = {
            spec.name: np.zeros([d if isinstance(d, int) else 1 for d in spec.shape], spec.dtype)
            for spec in self.signature.inputs
        }
        told, tensors = self.request(feed, "0" * 12)
        return _HEAD + len(told) + sum(map(len, tensors))

    def part_of(self, crossing: Mapping[str, Array]) -> Mapping[str, Array]:
        """What it takes of what crosses."""
        if not self._part:
            return crossing
        return {spec.name: np.ascontiguousarray(crossing[spec.name][:, : spec.shape[1]]) for spec in self.signature.inputs}

    def request(self, feed: Mapping[str, Array], number: str) -> tuple[bytes, list[memoryview]]:
        """The JSON of a request with this id, and the tensors that follow it."""
        shapes = tuple(feed[spec.name].shape for spec in self.signature.inputs)
        found = self._around.get(shapes)
        if found is None:
            if len(self._around) > 256:  # shapes that never come again must not fill the memory
                self._around.clear()
            found = protocol.request_around({spec.name: feed[spec.name] for spec in self.signature.inputs})
            self._around[shapes] = found
        told = b"".join((found[0], number.encode(), found[1]))
        return told, [protocol.to_bytes(feed[spec.name]) for spec in self.signature.inputs]

    def check(self, reply: Reply) -> None:
        """Raise Fault for an answer that is not this tail's."""
        if reply.status != 200:
            told = bytes(reply.body[:300]).decode("utf-8", "replace")
            raise Fault("refused", f"{self._url} answers {reply.status}: {told}", final=reply.status < 500)
        found = reply.headers.get(protocol.DIGEST, "")
        if found != self.digest:
            told = f"{self._url} serves another tail ({found[:12] or 'unnamed'}, not {self.digest[:12]})"
            raise Fault("refused", told, final=True)

    def check_metadata(self, reply: Reply) -> None:
        """Raise Fault where the server's metadata are not of this tail."""
        self.check(reply)
        try:
            found = protocol.read_json(reply.body).get("parameters")
        except ModelError as error:
            raise Fault("malformed", f"{self._url} answers malformed: {error.message}") from error
        if not isinstance(found, dict) or found.get("digest") != self.digest:
            raise Fault("refused", f"{self._url} serves another tail than {self.digest[:12]}", final=True)

    def outputs(self, reply: Reply, number: str, feed: Mapping[str, Array]) -> list[Array]:
        """The outputs in the signature's order. Raises Fault for anything but the answer to this request."""
        self.check(reply)
        try:
            if reply.headers.get(protocol.CHECKSUM) != protocol.checksum(reply.body):
                raise ModelError(f"{protocol.CHECKSUM} is not that of the body")
            length = reply.headers.get(protocol.JSON_LENGTH, "")
            if not (length.isascii() and length.isdigit() and len(length) < 16):
                raise ModelError(f"{protocol.JSON_LENGTH} is {length[:40]!r}")
            return protocol.read_response(reply.body, int(length), number, self.signature, feed)
        except ModelError as error:
            raise Fault("malformed", f"{self._url} answers malformed: {error.message}") from error


def _largest(outputs: Sequence[Output]) -> int:
    """Bytes that the body of a right answer can have at most."""
    size = SPARE
    for spec in outputs:
        dims = [dim for dim in spec.shape if isinstance(dim, int)]
        if len(dims) < len(spec.shape):
            return _UNKNOWN
        size += math.prod(dims) * np.dtype(spec.dtype).itemsize
    return size
