"""Counts and times of a server, as the text that Prometheus reads."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

_BOUNDS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """What has been served since the start; every method may be called from any thread."""

    def __init__(self, model: str, digest: str) -> None:
        self._labels = f'model="{_escaped(model)}"'
        self._digest = digest
        self._lock = threading.Lock()
        self._answers: Counter[tuple[str, str]] = Counter()
        self._buckets = [0] * (len(_BOUNDS_S) + 1)
        self._seconds = 0.0
        self._waiting = 0
        self._bytes: Counter[str] = Counter()

    def entered(self) -> None:
        """One inference more is waiting or running."""
        with self._lock:
            self._waiting += 1

    def left(self) -> None:
        """That inference has ended, whatever came of it."""
        with self._lock:
            self._waiting -= 1

    def ran(self, seconds: float) -> None:
        """The model has run once, for so long."""
        place = next((index for index, bound in enumerate(_BOUNDS_S) if seconds <= bound), len(_BOUNDS_S))
        with self._lock:
            self._buckets[place] += 1
            self._seconds += seconds

    def answered(self, protocol: str, code: str, received: int = 0, sent: int = 0) -> None:
        """A request was answered over `protocol` (rest, grpc) with its status; bytes of both bodies."""
        with self._lock:
            self._answers[protocol, code] += 1
            self._bytes["received"] += received
            self._bytes["sent"] += sent

    def info(self) -> Iterator[str]:
        yield f'edgesdk_model_info{{{self._labels},digest="{self._digest}"}} 1'

    def requests(self) -> Iterator[str]:
        with self._lock:
            answers = sorted(self._answers.items())
        for (protocol, code), count in answers:
            yield f'edgesdk_requests_total{{{self._labels},protocol="{protocol}",code="{code}"}} {count}'

    def waiting(self) -> Iterator[str]:
        yield f"edgesdk_inferences_waiting{{{self._labels}}} {self._waiting}"

    def bodies(self) -> Iterator[str]:
        for direction in ("received", "sent"):
            yield f'edgesdk_body_bytes_total{{{self._labels},direction="{direction}"}} {self._bytes[direction]}'

    def times(self) -> Iterator[str]:
        with self._lock:
            buckets, seconds = list(self._buckets), self._seconds
        total = 0
        for bound, count in zip([*map(str, _BOUNDS_S), "+Inf"], buckets, strict=True):
            total += count
            yield f'edgesdk_inference_seconds_bucket{{{self._labels},le="{bound}"}} {total}'
        yield f"edgesdk_inference_seconds_sum{{{self._labels}}} {seconds:.9f}"
        yield f"edgesdk_inference_seconds_count{{{self._labels}}} {total}"


_FAMILIES: tuple[tuple[str, str, str, Callable[[Metrics], Iterator[str]]], ...] = (
    ("edgesdk_model_info", "gauge", "The bundle that is served.", Metrics.info),
    ("edgesdk_requests_total", "counter", "Requests answered, by protocol and status.", Metrics.requests),
    ("edgesdk_inferences_waiting", "gauge", "Inferences that wait for a worker or run.", Metrics.waiting),
    ("edgesdk_body_bytes_total", "counter", "Bytes of bodies, without what the protocol adds.", Metrics.bodies),
    ("edgesdk_inference_seconds", "histogram", "Time the model ran.", Metrics.times),
)


def exposition(models: Sequence[Metrics]) -> str:
    """The exposition format of Prometheus, version 0.0.4: each metric once, with the samples of every model."""
    lines = []
    for name, kind, told, samples in _FAMILIES:
        lines += [f"# HELP {name} {told}", f"# TYPE {name} {kind}"]
        for model in models:
            lines += samples(model)
    return "\n".join(lines) + "\n"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
