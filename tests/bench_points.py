"""What moving between the ways of a request is worth on a link that changes: python -m tests.bench_points [WAY …]

A bottleneck of 16 channels with points of 8 and 2 is asked one request after another over a relay whose link gets slow, dead and
fast again; once by each policy, once at all channels, once at the fewest. Late requests are answered by the tail here. That takes
next to no time on this machine, so it is also made to wait before it computes (HERE_MS), for the times of slower devices.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import edgesdk
from edgesdk.server import Doors
from edgesdk_converters.bottlenecks import leakage
from edgesdk_targets.bundle import Bundle
from edgesdk_targets.link import parse

from .fashion import samples
from .relay import Relay
from .sdk.slow_tail import slowed

NET = Path(__file__).parents[1] / "examples" / "fashion" / "fashion_cnn.onnx"
QUICK = {"bottleneck.mimic": "1", "bottleneck.tune": "0", "bottleneck.decoder_width": "32", "bottleneck.batch": "32"}
PHASES = (("10mbit,20ms", 6.0), ("200kbit,20ms", 8.0), ("80kbit,20ms", 8.0), ("", 6.0), ("10mbit,20ms", 12.0))
"""Links, and for how many seconds; one without a name refuses connections."""
DEADLINE_MS = 300.0
HERE_MS = (0.0, 45.0, 120.0)
"""What a run of the tail here waits: nothing; more than a request on the fast link takes; nearly what is in time."""
WAYS: dict[str, dict[str, Any]] = {
    "accuracy": {"prefer": "accuracy"}, "speed": {"prefer": "speed"}, "remote": {"prefer": "remote"},
    "16": {"points": 16}, "2": {"points": 2},
}  # fmt: skip


def bundle(folder: Path) -> Bundle:
    leakage.SAMPLES = 100
    return edgesdk.export(
        NET, device="raspberry-pi-4", split="auto", bottleneck=(2, 8, 16), payload_bits=32, max_drop=100.0, settings=QUICK,
        out=folder / "points.edge", data=samples("t10k", 0, 300), train=samples("train", 0, 400),
    )  # fmt: skip


def follow(made: Bundle, port: int, way: dict[str, Any]) -> list[tuple[str, Counter[int], int, float, float]]:
    """For each phase: answers by channels (0: here), how many were late, p50 and p95 in ms."""
    image, found = {"image": samples("t10k", 0, 1)["image"][:1]}, []
    with Relay(("127.0.0.1", port), parse(PHASES[0][0])) as relay, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        host, door = relay.address
        with edgesdk.load(made.path, remote=f"http://{host}:{door}", deadline_ms=DEADLINE_MS, threads=1, **way) as session:
            far = session.remote
            assert far is not None
            for link, seconds in PHASES:
                relay.refuse = not link
                if link:
                    relay.link = parse(link)
                relay.drop()
                before, here, late, took = Counter(far.answered), far.counts.local, far.counts.late, []
                end = time.monotonic() + seconds
                while (begin := time.monotonic()) < end:
                    session.run(image)
                    took.append(1e3 * (time.monotonic() - begin))
                    time.sleep(0.02)
                answers = Counter(far.answered) - before + Counter({0: far.counts.local - here})
                p50, p95 = np.percentile(took, [50, 95])
                found.append((link or "dead", answers, far.counts.late - late, float(p50), float(p95)))
            for move in far.moves:
                print(f"    {move.before} -> {move.after}: {move.why}")
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        made = bundle(Path(folder))
        with edgesdk.serve(made.path, Doors(port=0, grpc_port=None)) as server:
            port = int(server.url.rpartition(":")[2])
            for wait_ms in HERE_MS:
                with slowed(partial(time.sleep, wait_ms / 1e3)):
                    for name in sys.argv[1:] or WAYS:
                        print(f"{name}; here over {wait_ms:g} ms, deadline {DEADLINE_MS:g} ms, in time {DEADLINE_MS / 2:g} ms")
                        show(follow(made, port, WAYS[name]))


def show(rows: list[tuple[str, Counter[int], int, float, float]]) -> None:
    for link, answers, late, p50, p95 in rows:
        told = ", ".join(f"{'here' if k == 0 else k}: {n}" for k, n in sorted(answers.items(), reverse=True))
        print(f"  {link:14} answers {told:40} late {late:3}  p50 {p50:6.1f} ms  p95 {p95:6.1f} ms", flush=True)


if __name__ == "__main__":
    main()
