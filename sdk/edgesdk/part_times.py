"""Times of a model's parts on one machine: measured there, measured here, a share of what was measured there, or estimated."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesdk_converters import calibration
from edgesdk_converters.cost import layers
from edgesdk_converters.errors import BundleError, DeviceError, ModelError
from edgesdk_converters.split import Cut, split
from edgesdk_targets import bundle as bundles
from edgesdk_targets import measure, runner
from edgesdk_targets.bundle import Manifest
from edgesdk_targets.device import THIS_MACHINE
from edgesdk_targets.figure import Figure, Interval
from edgesdk_targets.plan import bounds
from edgesdk_targets.report import Report
from edgesdk_targets.target import Role, Segment, Target

if TYPE_CHECKING:
    from edgesdk_converters.cost import Layer
    from edgesdk_converters.model import Model

SECONDS = 0.5
"""Of timing, for each part."""
SHARE_LOW, SHARE_HIGH = 0.5, 2.5
"""Of a part's computed share of the time of the whole: where 90 % of 91 heads of 13 networks lay in ONNX Runtime on x86-64."""
WHOLE = ""
"""The key under which a report of the whole model is given; those of parts are under the tensor of their cut."""


@dataclass
class PartTimes:
    """latency_ms of the whole and of the `side` (head or tail) of each cut of a model, on the target's device.

    A report of the part itself counts first, then one of the whole, of which the part is a share; then this machine is timed
    where it is the device; else the target estimates.
    """

    target: Target
    model: Model
    side: Role
    reports: Mapping[str, Report] = field(default_factory=dict)
    progress: Callable[[str], None] = runner.silent
    precision: str = "fp32"

    def __post_init__(self) -> None:
        self._layers = layers(self.model)
        self._made = {name: index for index, layer in enumerate(self._layers) for name in layer.outputs}
        self._measured = {key: self._checked(key, report) for key, report in self.reports.items()}
        self._feed: dict[str, Any] = {}
        self._whole: Figure | None = None

    @property
    def is_timed(self) -> bool:
        """Whether each part is run here, which takes a second or so for each."""
        return WHOLE not in self._measured and self.target.device.name == THIS_MACHINE

    def whole(self) -> Figure:
        if self._whole is None:
            if WHOLE in self._measured:
                self._whole = self._measured[WHOLE]
            elif self.is_timed:
                self._whole = self._timed(self.model, self._inputs(), "whole")
            else:
                self._whole = self._estimated(self._layers, "whole")
        return self._whole

    def part(self, cut: Cut) -> Figure:
        """The part on this side of a cut at one tensor."""
        name = cut.tensors[0]
        if name in self._measured:
            return self._measured[name]
        if self.is_timed:
            return self._run(cut)
        end = self._made[name] + 1
        own = self._layers[:end] if self.side == "head" else self._layers[end:]
        return self._share(own) if WHOLE in self._measured else self._estimated(own, self.side)

    def _estimated(self, own: Sequence[Layer], segment: str) -> Figure:
        found = self.target.estimate(own, self.precision)
        figure = next(row for row in found if row.name == "latency_ms" and row.layer is None)
        if figure.value is None and segment != "whole" and (whole := self.whole()).value is not None:
            return Figure(
                "latency_ms", 0.0, "estimated", whole.where, "no layer of it takes time", segment=segment,
                interval=Interval(0.0, 0.0, bounds(whole).level),
            )  # fmt: skip
        return replace(figure, segment=segment)

    def _share(self, own: Sequence[Layer]) -> Figure:
        """Of the time of the whole: as the target's estimates are to each other, else as MACs and bytes are."""
        whole = self.whole()
        assert whole.value is not None
        parts = [self.target.estimate(one, self.precision) for one in (own, self._layers)]
        values = [next(row.value for row in rows if row.name == "latency_ms" and row.layer is None) for rows in parts]
        if values[1] is not None:
            share, told = (values[0] or 0.0) / values[1], "its share by estimate"
        else:
            share, told = _work(own) / max(_work(self._layers), 1e-12), "its share by operations and bytes moved"
        ends = bounds(whole)
        low, high = ends.low * share * SHARE_LOW, min(ends.high, ends.high * share * SHARE_HIGH)
        value = min(whole.value * share, high)
        return Figure(
            "latency_ms", value, "estimated", whole.where, f"{share:.1%} of {whole.value:.4g} ms measured for the whole: {told}",
            segment=self.side, interval=Interval(min(low, value), high, 0.9),
        )  # fmt: skip

    def _run(self, cut: Cut) -> Figure:
        head, tail = split(self.model, cut.tensors)
        if self.side == "head":
            return self._timed(head, self._inputs(), "head")
        loaded = self._loaded(head)
        try:
            names = [output.name for output in head.signature.outputs]
            between = dict(zip(names, loaded.run(self._inputs()), strict=True))
        finally:
            loaded.close()
        return self._timed(tail, between, "tail")

    def _timed(self, part: Model, feed: Mapping[str, Any], segment: Role) -> Figure:
        import time

        self.progress(f"timing the {segment} here: {', '.join(output.name for output in part.signature.outputs)}")
        begin = time.perf_counter()
        loaded = self._loaded(part)
        load_ms = (time.perf_counter() - begin) * 1e3

        def once() -> float:
            start = time.perf_counter()
            loaded.run(feed)
            return (time.perf_counter() - start) * 1e3

        try:
            first_ms = once()
            warmed = measure.warm_up(once, limit_s=SECONDS)
            count = int(min(500, max(7, 1e3 * SECONDS / max(once(), 1e-3))))
            timing = measure.Timing(load_ms, first_ms, tuple(once() for _ in range(count)), warmed, 0, str(loaded.facts))
        finally:
            loaded.close()
        facts = measure.machine_facts()
        return replace(measure.figures(timing, f"this machine ({facts['cpu']}, {facts['cores']} cores)")[0], segment=segment)

    def _loaded(self, part: Model) -> runner.Runner:
        compiled = self.target.compile(Segment(part))
        manifest = Manifest(
            name=part.name, target=self.target.name, device=self.target.device.name, precision="fp32", signature=part.signature,
            runtime=compiled.runtime,
        )  # fmt: skip
        return runner.load(bundles.draft(Path(part.name), manifest, compiled.files), runner.RunOptions(allow_fallback=True))

    def _inputs(self) -> dict[str, Any]:
        if not self._feed:
            self._feed = next(iter(calibration.synthetic(self.model, 1)))
        return self._feed

    def _checked(self, key: str, report: Report) -> Figure:
        """The measured latency in a report. Raises DeviceError or ModelError where it is another's."""
        told, device = f"the report of {key or 'the whole model'}", self.target.device
        if report.model != self.model.name:
            raise ModelError(f"{told} is of {report.model!r}, not of {self.model.name!r}", "measure a bundle of this model")
        if report.device != device.name:
            raise DeviceError(
                f"{told} is of a bundle for {report.device}, not for {device.name}", f"name {report.device}, or leave it out"
            )
        found = report.find("latency_ms")
        if found is None or found.provenance != "measured" or found.value is None:
            raise DeviceError(f"{told} has no measured latency_ms", "edgesdk measure BUNDLE --out FILE, on the machine itself")
        where = str(report.machine.get("architecture", ""))
        if device.name != THIS_MACHINE and where.lower() in ("x86_64", "amd64"):
            raise DeviceError(
                f"{told} was measured on {found.where} ({where}), which is no {device.name}", "run edgesdk measure there"
            )
        if key != WHOLE and key not in self._made:
            raise ModelError(f"a report is given for {key!r}, which is no tensor of {self.model.name}", "edgesdk cuts MODEL")
        return replace(found, segment=self.side if key else "whole")


def read_reports(given: Mapping[str, str | os.PathLike[str] | Report] | None) -> dict[str, Report]:
    """Reports by the tensor of their cut, WHOLE for the whole. Raises BundleError for files that are none."""
    found = {}
    for key, source in (given or {}).items():
        if isinstance(source, Report):
            found[key] = source
            continue
        import json

        try:
            data = json.loads(Path(source).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BundleError(
                f"{os.fspath(source)} is no report: {error}", "edgesdk measure BUNDLE --out FILE writes one"
            ) from error
        found[key] = Report.from_json(data)
    return found


def _work(own: Sequence[Layer]) -> float:
    """Milliseconds on a machine of 50 GFLOP/s and 10 GB/s: only their ratios mean anything."""
    moved = sum(layer.in_bytes + layer.out_bytes + layer.weight_bytes for layer in own)
    return max(sum(2 * layer.macs + layer.elem_ops for layer in own) / 50e6, moved / 10e6)
