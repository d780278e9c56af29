"""Records for a fit, timed on this machine: small networks in ONNX Runtime, in turn, so that what disturbs one disturbs all.

On one thread it is the thread's own time that counts: while others use the machine it is what an idle one would take, where the
wall clock would show every network of more than a few milliseconds with the others' time slices in it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgesdk_converters import calibration
from edgesdk_converters.cost import layers
from edgesdk_converters.errors import DeviceError
from edgesdk_targets import board_facts, device, measure, runner
from edgesdk_targets import bundle as bundles
from edgesdk_targets.bundle import Manifest
from edgesdk_targets.latency_fit import Record
from edgesdk_targets.latency_model import Setting
from edgesdk_targets.target import Segment, make

from .probe_networks import networks

if TYPE_CHECKING:
    from edgesdk_converters.model import Model

ROUNDS = 3
"""Turns in which the networks are timed."""
EXAMPLES = ("fashion_cnn", "fashion_mobilenet", "fashion_resnet")
"""Trained networks of a checkout, timed beside the others where they are there."""


@dataclass
class _Timed:
    """A network that is loaded, and its times in milliseconds so far."""

    model: Model
    once: Callable[[], float]
    close: Callable[[], None]
    runs_ms: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Timed:
    """A network's name and record, and whether something else ran meanwhile (`measure.Timing.noisy`)."""

    name: str
    record: Record
    noisy: bool


def timed(
    models: Sequence[Model] | None = None,
    *,
    minutes: float = 2.0,
    threads: int = 1,
    progress: Callable[[str], None] = runner.silent,
) -> list[Timed]:
    """The p50 of each network, in about so many minutes; None: the networks made for this. Raises DeviceError for bad options."""
    cores = device.usable_cores()
    if not 1 <= threads <= cores:
        raise DeviceError(f"threads is {threads}; this machine has {cores} cores", f"give 1 to {cores}")
    if not (math.isfinite(minutes) and 0 < minutes <= 60):
        raise DeviceError(f"{minutes:g} minutes of timing; allowed: above 0, to 60")
    emulator = board_facts.emulator()
    if emulator:
        raise DeviceError(f"an emulator ({emulator}) runs this: nothing timed can be fitted", "fit on the machine itself")
    begin = time.monotonic()
    loaded: list[_Timed] = []
    try:
        for model in [*networks(), *_examples()] if models is None else models:
            progress(f"loading {model.name}")
            loaded.append(_load(model, threads))
        for turn in range(ROUNDS):
            progress(f"timing {len(loaded)} networks, turn {turn + 1} of {ROUNDS}")
            for index, one in enumerate(loaded):
                turns_left = (ROUNDS - turn) * len(loaded) - index
                _run(one, (begin + 60 * minutes - time.monotonic()) / turns_left)
    finally:
        for one in loaded:
            one.close()
    setting = Setting("onnxruntime", "cpu", threads)
    found = []
    for one in loaded:
        p50 = float(np.median(one.runs_ms))
        noisy = min(one.runs_ms) / p50 < measure.NOISY_BELOW
        found.append(Timed(one.model.name, Record(layers(one.model), p50, setting), noisy))
    return found


def _run(one: _Timed, seconds: float) -> None:
    """For so long, the first runs not counted: they pay for what the other networks left in the caches."""
    end = time.monotonic() + seconds
    one.once()
    measure.warm_up(one.once, limit_s=seconds / 4)
    one.runs_ms.append(one.once())
    while time.monotonic() < end:
        one.runs_ms.append(one.once())


def _load(model: Model, threads: int) -> _Timed:
    target = make("server", device.THIS_MACHINE, {"threads": str(threads)})
    compiled = target.compile(Segment(model))
    manifest = Manifest(
        name=model.name, target=target.name, device=target.device.name, precision="fp32", signature=model.signature,
        runtime=compiled.runtime,
    )  # fmt: skip
    running = runner.load(bundles.draft(Path(model.name), manifest, compiled.files))
    feed = next(iter(calibration.synthetic(model, 1)))

    clock = time.thread_time if threads == 1 else time.perf_counter

    def once() -> float:
        start = clock()
        running.run(feed)
        return (clock() - start) * 1e3

    return _Timed(model, once, running.close)


def _examples() -> Iterator[Model]:
    from edgesdk_converters.model import Model

    folder = Path(__file__).parents[2] / "examples" / "fashion"
    for name in EXAMPLES:
        if (path := folder / f"{name}.onnx").is_file():
            yield Model.load(path)
