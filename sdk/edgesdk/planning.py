"""Planning: the ways to run a model on a device and a server, with their times and bytes, and the best of them over a link."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgesdk_converters.errors import ModelError
from edgesdk_targets import link as links
from edgesdk_targets import runner
from edgesdk_targets.device import THIS_MACHINE, DeviceProfile
from edgesdk_targets.figure import Figure, Interval
from edgesdk_targets.link import Link
from edgesdk_targets.plan import Plan, Way, bounds, in_ms
from edgesdk_targets.plan import plan as planned
from edgesdk_targets.report import Report
from edgesdk_targets.target import Target, make

from .part_times import PartTimes, read_reports

if TYPE_CHECKING:
    from edgesdk_converters.model import Model
    from edgesdk_converters.signature import Input
    from edgesdk_converters.split import Cut

Reports = Mapping[str, str | os.PathLike[str] | Report]
AS_IS = 32
LOCAL, OFFLOAD = "local", "offload"
HANDLING_MS = 0.75
"""CPU time of the device's session for a request beside its networks, on an x86-64 core: python -m tests.bench_end_to_end."""
HANDLING_CLOCK_GHZ = 3.5
"""Of that core, about."""


def plan(
    model: str | os.PathLike[str] | Model,
    *,
    device: str,
    server: str = "this-machine",
    link: str | Link,
    bits: int = AS_IS,
    max_latency_ms: float = math.inf,
    max_drop: float = math.inf,
    drops: Mapping[str, float] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    constants: Mapping[str, float] | None = None,
    fold: bool = False,
    every: bool = False,
    input_bytes: int | None = None,
    data: str | os.PathLike[str] | None = None,
    device_reports: Reports | None = None,
    server_reports: Reports | None = None,
    bundles: Sequence[str | os.PathLike[str]] = (),
    handling_ms: float | None = None,
    progress: Callable[[str], None] = runner.silent,
) -> Plan:
    """Local, every cut at one tensor and offload over a link (`10mbit,20ms`, `wifi`, or a Link), and which is the fastest.

    `bits` (2 to 8; 32: as it is) a value of what crosses a cut; `drops` points of accuracy that a cut at a tensor is known to
    lose. `input_bytes` is what the input has where it is captured; `data` (.npz) lets it be measured as PNG and WebP. Reports
    measured on the machines count before estimates: by the tensor of a cut, or "" for the whole model. Where parts are timed
    on this machine, and not `every` one is asked for, only cuts that no other beats are considered. Split `bundles` of the
    model are added, at each of their operating points. `handling_ms` is what the device's CPU needs for a request beside its
    network where that is known; by default it goes by the clock. Raises LinkError, DeviceError, ModelError, BundleError.
    """
    from edgesdk_converters.split import cuts, front

    from . import bundle_ways
    from .cut_table import opened

    found_link = links.parse(link) if isinstance(link, str) else link
    targets = (_machine(device), _machine(server))
    _check(bits, input_bytes)
    source = opened(model, shapes=shapes, constants=constants, fold=fold, progress=progress)
    found = cuts(source)
    for name in drops or {}:
        if name not in {cut.tensors[0] for cut in found}:
            raise ModelError(f"a drop is given for {name!r}, which is no cut of {source.name}", "edgesdk cuts MODEL lists them")
    heads = PartTimes(targets[0], source, "head", read_reports(device_reports), progress)
    tails = PartTimes(targets[1], source, "tail", read_reports(server_reports), progress)
    considered = found if every or not (heads.is_timed or tails.is_timed) else front(found)
    progress("planning")
    made = [*_offloads(source, heads, tails, input_bytes, data)]
    made += [_split(cut, bits, source, heads, tails, drops or {}) for cut in considered]
    for bundle in bundles:
        made += bundle_ways.ways(bundle, source.name, *targets, progress)
    made += [Way(LOCAL, "local", 0, 0, heads.whole(), None, told="the device computes all")]
    more = handling(targets[0].device, handling_ms)
    notes = _notes(source, input_bytes, len(found) - len(considered), found_link, bits)
    ends = bounds(more)
    notes.append(
        f"whatever crosses the link costs the device {in_ms(more.value or 0.0)} ({ends.low:.3g} to {ends.high:.3g}) beside its "
        f"network: {more.method}"
    )
    return planned(
        made, found_link, targets[0].device, targets[1].device, model=source.name, max_latency_ms=max_latency_ms,
        max_drop=max_drop, handling=more, notes=notes,
    )  # fmt: skip


def handling(device: DeviceProfile, known_ms: float | None = None) -> Figure:
    """latency_ms of what the device computes for a request that crosses the link, beside its network."""
    if known_ms is not None:
        if not 0 <= known_ms < math.inf:
            raise ModelError(f"handling a request takes {known_ms:g} ms; allowed: 0 or more")
        return Figure(
            "latency_ms", known_ms, "estimated", device.name, "as given", segment="handling",
            interval=Interval(known_ms, known_ms, 0.9),
        )  # fmt: skip
    clock_ghz = device.get("clock_ghz", float)
    if device.name == THIS_MACHINE:
        value, low, high, told = HANDLING_MS, 0.5 * HANDLING_MS, 2 * HANDLING_MS, "measured on another x86-64 core"
    elif clock_ghz is not None:  # an Arm core does up to three times less in a cycle of what Python does than a large x86 core
        least = HANDLING_MS * HANDLING_CLOCK_GHZ / clock_ghz
        value, low, high, told = 1.7 * least, least, 4 * least, f"from {HANDLING_MS:g} ms on an x86-64 core, by the clock"
    else:
        value, low, high, told = 3 * HANDLING_MS, HANDLING_MS, 12 * HANDLING_MS, f"from {HANDLING_MS:g} ms on an x86-64 core"
    return Figure(
        "latency_ms", value, "estimated", device.name, f"edgesdk's session on the device, {told}", segment="handling",
        interval=Interval(low, high, 0.9),
    )  # fmt: skip


def chosen_by_plan(
    model: Model,
    device: Target,
    server: Target,
    link: Link,
    *,
    bits: int = AS_IS,
    max_latency_ms: float = math.inf,
    progress: Callable[[str], None] = runner.silent,
) -> tuple[Cut, str]:
    """The cut with the least expected latency of a model over a link, and why: what `--split auto --link` takes.

    Raises LinkError for a link that is for planning only, ModelError where there is no cut, none of which the time is known,
    or none within the limit. Where local or offload would be faster the sentence says so: a split was asked for.
    """
    from edgesdk_converters.split import cuts, front

    link.for_session()
    _check(bits, None)
    heads, tails = (PartTimes(target, model, side, {}, progress) for target, side in ((device, "head"), (server, "tail")))  # type: ignore[arg-type]
    found = cuts(model)
    if not found:
        raise ModelError(f"{model.name} has no tensor through which all paths go", "edgesdk cuts MODEL --pairs lists pairs")
    if heads.is_timed or tails.is_timed:
        found = front(found)
    ways = [_split(cut, bits, model, heads, tails, {}) for cut in found]
    more = handling(device.device)
    best = planned(ways, link, device.device, server.device, model=model.name, max_latency_ms=max_latency_ms, handling=more)
    if best.winner is None:
        raise ModelError(f"{best.why}, over {link}", "give a faster link, another device, or a higher limit")
    option = best.find(best.winner)
    cut = next(cut for cut in found if cut.tensors == option.way.tensors)
    parts = " + ".join(f"{row.segment} {row.value:.3g}" for row in option.figures[1:5] if row.value is not None)
    why = f"the fastest of {len(found)} cuts over {link}: {in_ms(option.total.value or 0.0)} expected ({parts}; estimated)"
    beaten = []
    for way in (Way(LOCAL, "local", 0, 0, heads.whole(), None), *_offloads(model, heads, tails, None, None)):
        other = planned([*ways, way], link, device.device, server.device, model=model.name, handling=more)
        if other.winner == way.name:
            beaten.append(f"{way.name} {in_ms(other.find(way.name).total.value or 0.0)}")
    return cut, f"{why}; without a split it would be less: {', '.join(beaten)}" if beaten else why


def _check(bits: int, input_bytes: int | None) -> None:
    if bits != AS_IS and not 2 <= bits <= 8:
        raise ModelError(f"the payload has {bits} bits a value; allowed: 2 to 8, or 32 for the tensor as it is")
    if input_bytes is not None and input_bytes < 1:
        raise ModelError(f"the input has {input_bytes} bytes; allowed: 1 or more")


def _machine(name: str) -> Target:
    """The target for a device's name, or a target's own, which means its default device."""
    from edgesdk_targets import known

    return make(name, None) if name in known() else make(None, name)


def _split(cut: Cut, bits: int, model: Model, heads: PartTimes, tails: PartTimes, drops: Mapping[str, float]) -> Way:
    name = cut.tensors[0]
    sent = cut.bytes if bits == AS_IS else cut.bytes_at(bits)
    lossless = sent == cut.bytes
    told = f"{'x'.join(map(str, cut.shapes[0])) or 'scalar'} {cut.dtypes[0] if lossless else f'{bits} bits'}"
    return Way(
        f"split at {name}", "split", sent, _response(model), heads.part(cut), tails.part(cut), cut.tensors,
        drops.get(name, 0.0 if lossless else None), told,
    )  # fmt: skip


def _offloads(
    model: Model, heads: PartTimes, tails: PartTimes, input_bytes: int | None, data: str | os.PathLike[str] | None
) -> list[Way]:
    whole, response = tails.whole(), _response(model)
    sizes, told = zip(*(_raw(spec) for spec in model.signature.inputs), strict=True)
    size, what = (sum(sizes), ", ".join(dict.fromkeys(told))) if input_bytes is None else (input_bytes, "bytes as given")
    found = [Way(OFFLOAD, "offload", size, response, None, whole, told=what)]
    if data is not None:
        from .image_bytes import encoded

        for form, (mean, count) in encoded(model, data).items():
            measured = f"mean of {count} images measured; what coding takes is not counted"
            found.append(Way(f"{OFFLOAD} as {form}", "offload", mean, response, None, whole, told=measured))
    return found


def _raw(spec: Input) -> tuple[int, str]:
    """Bytes of an input where it is captured, and what they are: an image's 8-bit pixels, else the tensor as it is."""
    count = math.prod(dim if isinstance(dim, int) else 1 for dim in spec.shape)
    image = spec.preprocess is not None and spec.preprocess.layout != "flat"
    return (count, "uint8 pixels") if image else (count * np.dtype(spec.dtype).itemsize, f"{spec.dtype} input")


def _response(model: Model) -> int:
    return sum(
        math.prod(dim if isinstance(dim, int) else 1 for dim in spec.shape) * np.dtype(spec.dtype).itemsize
        for spec in model.signature.outputs
    )


def _may_be_image(spec: Input) -> bool:
    return spec.preprocess is None and spec.dtype == "float32" and len(spec.shape) == 4 and bool({1, 3} & set(spec.shape[1:]))


def _notes(model: Model, input_bytes: int | None, left_out: int, link: Link, bits: int) -> list[str]:
    told = []
    if link.planning_only:
        told.append(f"{link.name} is for planning only: {link.planning_only}")
    pictures = [spec for spec in model.signature.inputs if _may_be_image(spec)]
    if pictures and input_bytes is None:
        told.append(
            "the input may be images, but its processing does not say so: as uint8 pixels offload has a quarter of the bytes"
        )
    if bits != AS_IS:
        told.append(f"packing to {bits} bits and unpacking take time that is not counted, some operators on tensors of that size")
    if left_out:
        told.append(f"{left_out} cuts that others beat in bytes and in the head's work are not timed: --all times them")
    return told
