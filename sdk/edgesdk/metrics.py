"""Counts and times of a server, as the text that Prometheus reads."""

from __future__ import annotations

import threading
from collections import Counter

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

    def entered(self) -> int:
        """One inference more is waiting or running; how many there are now."""
        with self._lock:
            self._waiting += 1
            return self._waiting

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

    def text(self) -> str:
        """The exposition format of Prometheus, version 0.0.4."""
        with self._lock:
            answers, buckets, seconds = sorted(self._answers.items()), list(self._buckets), self._seconds
            waiting, received, sent = self._waiting, self._bytes["received"], self._bytes["sent"]
        lines = [
            "# HELP edgesdk_model_info The bundle that is served.",
            "# TYPE edgesdk_model_info gauge",
            f'edgesdk_model_info{{{self._labels},digest="{self._digest}"}} 1',
            "# HELP edgesdk_requests_total Requests answered, by protocol and status.",
            "# TYPE edgesdk_requests_total counter",
            *(f'edgesdk_requests_total{{{self._labels},protocol="{p}",code="{c}"}} {n}' for (p, c), n in answers),
            "# HELP edgesdk_inferences_waiting Inferences that wait for a worker or run.",
            "# TYPE edgesdk_inferences_waiting gauge",
            f"edgesdk_inferences_waiting{{{self._labels}}} {waiting}",
            "# HELP edgesdk_body_bytes_total Bytes of bodies, without what the protocol adds.",
            "# TYPE edgesdk_body_bytes_total counter",
            f'edgesdk_body_bytes_total{{{self._labels},direction="received"}} {received}',
            f'edgesdk_body_bytes_total{{{self._labels},direction="sent"}} {sent}',
            "# HELP edgesdk_inference_seconds Time the model ran.",
            "# TYPE edgesdk_inference_seconds histogram",
        ]
        total = 0
        for bound, count in zip([*map(str, _BOUNDS_S), "+Inf"], buckets, strict=True):
            total += count
            lines.append(f'edgesdk_inference_seconds_bucket{{{self._labels},le="{bound}"}} {total}')
        lines.append(f"edgesdk_inference_seconds_sum{{{self._labels}}} {seconds:.9f}")
        lines.append(f"edgesdk_inference_seconds_count{{{self._labels}}} {total}")
        return "\n".join(lines) + "\n"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
