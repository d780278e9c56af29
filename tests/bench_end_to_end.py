"""EfficientNet-Lite0 on a slow device and a server over a link: measured beside what `edgesdk.plan` said, at five rates.

python -m tests.bench_end_to_end [RATE ...]      by default 250kbit 1mbit 5mbit 20mbit 100mbit; up to ten minutes

Local, each split that is the planner's best at one of the rates, and offload (uint8 pixels, which the server's graph normalises).
The relay sends at the link's rate, byte after byte, and holds everything back for half the round trip each way. Device and server
have a core each; the device's is made slower as tests/device_side.py says. Reports of the parts are measured first, alone, then
the planner is asked, then all is run. Times are the subject: what 4 bits cost in accuracy is not judged here.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import edgesdk
from edgesdk.planning import HANDLING_MS
from edgesdk_converters.signature import Processing
from edgesdk_targets.device import this_machine
from edgesdk_targets.link import parse, rate_text
from edgesdk_targets.plan import Plan
from edgesdk_targets.plan import plan as planned
from edgesdk_targets.report import Report

from .bench_quantised import MODELS, ROOT, show
from .bench_serving import served
from .device_side import SLOWDOWN, Device, network
from .relay import apart

NET = "efficientnet-lite0"
RATES = ("250kbit", "1mbit", "5mbit", "20mbit", "100mbit")
RTT_MS = 20
BITS = 4
HERE = "this-machine"
SECONDS = 3.0
"""Of requests for each way at each rate, but at least 3 of them and at most 15."""


@dataclass(frozen=True)
class Way:
    """A way to run the network: `kind` is local, split or offload; what the device opens, and what it sends."""

    name: str
    kind: str
    path: Path
    inputs: Path
    port: int = 0


@dataclass(frozen=True)
class Cell:
    """A way at a rate: milliseconds at p50 and at p90 of n requests, and what was predicted.

    `more_ms` is what was not: more of the device's networks, of what else it computes, and of link and server (medians).
    """

    way: str
    rate: str
    p50_ms: float
    p90_ms: float
    n: int
    predicted_ms: float
    more_ms: tuple[float, float, float]

    @property
    def error(self) -> float:
        """Percent of what was measured."""
        return 100 * (self.predicted_ms - self.p50_ms) / self.p50_ms


def offloaded(folder: Path) -> Path:
    """The network with a graph before it that normalises 224 x 224 x 3 pixels, under the same name: what offload sends to."""
    model = onnx.load(MODELS / f"{NET}.onnx")
    graph, name = model.graph, model.graph.input[0].name
    graph.initializer.append(numpy_helper.from_array(np.float32(127), "pixel_mean"))
    graph.initializer.append(numpy_helper.from_array(np.float32(1 / 128), "pixel_scale"))
    for place, node in enumerate(
        (
            helper.make_node("Transpose", ["pixels"], ["planes"], name="planes", perm=[0, 3, 1, 2]),
            helper.make_node("Cast", ["planes"], ["floats"], name="floats", to=TensorProto.FLOAT),
            helper.make_node("Sub", ["floats", "pixel_mean"], ["centred"], name="centred"),
            helper.make_node("Mul", ["centred", "pixel_scale"], [name], name="normalised"),
        )
    ):
        graph.node.insert(place, node)
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info("pixels", TensorProto.UINT8, [1, 224, 224, 3]))
    del model.metadata_props[:]  # it speaks of the input that was
    place_ = folder / "offload" / f"{NET}.onnx"
    place_.parent.mkdir()
    onnx.save(model, place_)
    return edgesdk.export(place_, device=HERE, processing=Processing(), out=folder / "offload.edge").path


def feeds(folder: Path) -> tuple[Path, Path, dict[str, np.ndarray]]:
    """An image as the network takes it, the same as pixels, and 32 to calibrate what crosses on."""
    sys.path.append(str(ROOT / "examples"))
    import real_models

    many = [feed["image"] for feed in real_models.sample_inputs(NET, 32, 1)]
    np.savez(folder / "image.npz", image=many[0])
    pixels = np.clip(np.rint(many[0] * 128 + 127), 0, 255).astype(np.uint8)
    np.savez(folder / "pixels.npz", pixels=np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)))
    return folder / "image.npz", folder / "pixels.npz", {"image": np.concatenate(many)}


def plans(rates: Sequence[str], heads: Mapping[str, Report], tails: Mapping[str, Report]) -> dict[str, Plan]:
    """The planner's word at each rate, from these reports."""
    return {
        rate: edgesdk.plan(
            MODELS / f"{NET}.onnx", device=HERE, server=HERE, link=f"{rate},{RTT_MS}ms", bits=BITS, device_reports=heads,
            server_reports=tails, handling_ms=HANDLING_MS * SLOWDOWN,
        )
        for rate in rates
    }  # fmt: skip


def best_splits(found: Mapping[str, Plan]) -> list[str]:
    """The tensors of the fastest split at each rate, each once."""
    best = []
    for one in found.values():
        splits = [option for option in one.options if option.way.kind == "split" and option.total.value is not None]
        best.append(min(splits, key=lambda option: option.total.value or 0.0).way.tensors[0])
    return list(dict.fromkeys(best))


def measured(rates: Sequence[str], ways: Sequence[Way], found: Mapping[str, Plan], device: Device, host: str) -> list[Cell]:
    """Every way at every rate, each over a relay of its own."""
    cells = []
    for rate in rates:
        for way in ways:
            option = found[rate].find(way.name)
            predicted, head = option.total.value, 0.0 if option.way.head is None else option.way.head.value
            assert predicted is not None and head is not None
            count = int(min(15, max(3, 1e3 * SECONDS / predicted)))
            with contextlib.ExitStack() as stack:
                url = ""
                if way.port:
                    address = stack.enter_context(apart(("127.0.0.1", way.port), f"{rate},{RTT_MS}ms", host))
                    url = f"http://{address[0]}:{address[1]}"
                times = device.run(way.kind, way.path, way.inputs, url, count)
            all_ms, networks_ms, rest_ms = times.T
            far_ms = float(np.median(all_ms - networks_ms - rest_ms))
            more = float(np.median(networks_ms)) - head, float(np.median(rest_ms)), far_ms - (predicted - head)
            cells.append(Cell(way.name, rate, float(np.median(all_ms)), float(np.percentile(all_ms, 90)), count, predicted, more))
            print(f"  {rate}, {way.name}: {cells[-1].p50_ms:,.1f} ms, predicted {predicted:,.1f}", file=sys.stderr)
    return cells


def crossovers(rates: Sequence[str], cells: Sequence[Cell]) -> list[tuple[str, str, float]]:
    """Where the fastest way changes as measured: from which, to which, at what rate (bit/s).

    Times are taken as straight over 1 / rate between two neighbouring rates, as they are where nothing but sending changes.
    """
    times = {(cell.way, cell.rate): cell.p50_ms for cell in cells}
    names = list(dict.fromkeys(cell.way for cell in cells))
    found = []
    for slow, fast in itertools.pairwise(rates):
        x, end = (1 / parse(f"{rate},{RTT_MS}ms").up_bits_per_s for rate in (slow, fast))
        start = x
        lines = {name: (times[name, slow], (times[name, fast] - times[name, slow]) / (end - start)) for name in names}
        here = min(names, key=lambda name: times[name, slow])
        while True:  # along the lower envelope, towards faster links
            meets = []
            for name in names:
                slope = lines[here][1] - lines[name][1]
                if name != here and slope != 0:
                    at = start + (lines[name][0] - lines[here][0]) / slope
                    if end <= at < x and lines[name][1] > lines[here][1]:
                        meets.append((at, name))
            if not meets:
                break
            x, name = max(meets)
            found.append((here, name, 1 / x))
            here = name
    return found


def tell(rates: Sequence[str], cells: Sequence[Cell], found: Mapping[str, Plan], ways: Sequence[Way]) -> None:
    """The tables."""
    rows = []
    for cell in cells:
        fastest = min((one for one in cells if one.rate == cell.rate), key=lambda one: one.p50_ms)
        picked = min((one for one in cells if one.rate == cell.rate), key=lambda one: one.predicted_ms)
        option = found[cell.rate].find(cell.way)
        marks = ", ".join(word for word, one in (("fastest", fastest), ("planned", picked)) if one is cell)
        interval = option.total.interval
        inside = "" if interval is None else ("yes" if interval.low <= cell.p50_ms <= interval.high else "no")
        rows.append(
            (cell.rate, cell.way, f"{option.way.up_bytes:,}", f"{cell.p50_ms:,.1f}", f"{cell.p90_ms:,.1f}", str(cell.n),
             f"{cell.predicted_ms:,.1f}", f"{cell.error:+.1f}", inside, marks)
        )  # fmt: skip
    show(("link", "way", "bytes up", "p50 ms", "p90 ms", "n", "predicted", "error %", "inside", ""), rows)
    errors = [abs(cell.error) for cell in cells]
    picked = [min((cell for cell in cells if cell.rate == rate), key=lambda cell: cell.predicted_ms) for rate in rates]
    print(
        f"mean |error| {np.mean(errors):.1f} %, largest {np.max(errors):.1f} %, of {len(cells)} cells; of the planned ones "
        f"{np.mean([abs(cell.error) for cell in picked]):.1f} %"
    )
    networks, rest, far = np.median([cell.more_ms for cell in cells if cell.way != "local"], axis=0)
    print(
        f"more than planned for what crosses the link (medians): {networks:+.1f} ms in the device's networks, {rest:+.1f} ms in "
        f"its client, {far:+.1f} ms on the link and the server"
    )
    names = {way.name for way in ways}
    any_plan = next(iter(found.values()))
    these = [option.way for option in any_plan.options if option.name in names]
    handled = next(option.handling for option in any_plan.options if option.handling is not None)
    expected = planned(these, any_plan.link, this_machine(), this_machine(), model=NET, handling=handled).crossovers
    seen = {(below, above): rate for below, above, rate in crossovers(rates, cells)}
    rows = []
    for pair in dict.fromkeys([*seen, *((one.below, one.above) for one in expected)]):
        told = next((one.rate_bits_per_s for one in expected if (one.below, one.above) == pair), None)
        got = seen.get(pair)
        error = "" if told is None or got is None else f"{100 * (told - got) / got:+.1f}"
        rows.append((*pair, *("none" if one is None else rate_text(one) for one in (got, told)), error))
    show(("slower links", "faster links", "measured", "predicted", "error %"), rows)


def main() -> None:
    """All of it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    rates, begin = sys.argv[1:] or RATES, time.monotonic()
    cores = sorted(os.sched_getaffinity(0))
    own, others = {cores[0]}, set(cores[1:]) or {cores[0]}
    os.sched_setaffinity(0, others)  # what is started from here inherits it: servers and relays
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        prefix, host = stack.enter_context(network())
        image, pixels, many = feeds(folder)
        whole = edgesdk.export(MODELS / f"{NET}.onnx", device=HERE, out=folder / "whole.edge").path
        raw = offloaded(folder)
        device = stack.enter_context(Device(prefix, own))
        heads, tails = {"": device.measure(whole)}, {"": edgesdk.measure(raw, threads=1)}
        ways = [Way("local", "local", whole, image)]
        made: dict[str, Path] = {}
        while new := [tensor for tensor in best_splits(plans(rates, heads, tails)) if tensor not in made][:1]:
            (tensor,) = new  # measured parts change what is best, so that the planner is asked again after each
            made[tensor] = edgesdk.export(
                MODELS / f"{NET}.onnx", device=HERE, split=tensor, payload_bits=BITS, train=many, max_relative_error=1.0,
                out=folder / f"{len(made)}.edge",
            ).path  # fmt: skip
            heads[tensor] = device.measure(made[tensor] / "head.edge")
            tails[tensor] = edgesdk.measure(made[tensor] / "tail.edge", threads=1)
        for tensor in best_splits(plans(rates, heads, tails)):
            ways.append(Way(f"split at {tensor}", "split", made[tensor], image, _port(stack, made[tensor])))
        ways.append(Way("offload", "offload", raw, pixels, _port(stack, raw)))
        found = plans(rates, heads, tails)
        cells = measured(rates, ways, found, device, host)
    where = "two network namespaces" if prefix else "loopback"
    print(
        f"{NET}, {BITS} bits across a cut, RTT {RTT_MS} ms, {where}; the device's core is {SLOWDOWN:g} times slower than it is "
        f"(asleep after each run)"
    )
    rows = [
        (
            key or "whole",
            *(f"{row.value or 0:.1f}" for row in (heads[key].find("latency_ms"), tails[key].find("latency_ms")) if row),
        )
        for key in heads
    ]
    show(("part measured alone", "device ms", "server ms"), rows)
    print()
    tell(rates, cells, found, ways)
    print(f"{time.monotonic() - begin:.0f} s; load average {', '.join(f'{one:.1f}' for one in os.getloadavg())}")


def _port(stack: contextlib.ExitStack, path: Path) -> int:
    """Of a server of this bundle, until the end."""
    told, _ = stack.enter_context(served(path))
    return int(told["rest"].rpartition(":")[2])


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; nothing is left behind")
