"""Records for a fit from reports that `edgesdk measure` wrote on one board; what says nothing about that board is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgesdk_converters.errors import BundleError, DeviceError
from edgesdk_targets import device as devices
from edgesdk_targets.report import Report

from .sources import open_layers

if TYPE_CHECKING:
    from edgesdk_converters.cost import Layer
    from edgesdk_targets.latency_fit import Record
    from edgesdk_targets.latency_model import DeviceFacts, Setting

SHARE_OF_WEIGHTS = 0.7
"""Of a network's fp32 weights: a smaller artefact holds another precision, or another network."""


PRECISIONS = ("fp32", "fp16", "int8")
"""Those that the estimator has costs of."""


@dataclass(frozen=True)
class Read:
    """A network's name and record, and the report that it is from; `unsaid` is what that leaves to be taken for granted."""

    name: str
    record: Record
    path: Path
    noisy: bool
    unsaid: str = ""


def device_of(texts: Sequence[str]) -> tuple[str, DeviceFacts]:
    """Name and facts of the one device that `MODEL=REPORT.json` are of. Raises BundleError for no reports, DeviceError."""
    from edgesdk_targets.latency_model import PUBLISHED, DeviceFacts, published_facts

    named = sorted({_report(path).device for _, path in map(_parted, texts)})
    if len(named) > 1:
        raise DeviceError(f"reports are of several devices: {', '.join(named)}", "fit each by itself")
    name = named[0]
    return name, published_facts(PUBLISHED[name]) if name in PUBLISHED else DeviceFacts.from_profile(devices.profile(name))


def of_reports(
    texts: Sequence[str], facts: DeviceFacts, threads: int | None, precision: str | None, progress: Callable[[str], None]
) -> list[Read]:
    """Records from `MODEL=REPORT.json`, which say how they were run; where one does not, with `threads` (None: one for each
    core) in `precision` (None: fp32).

    Raises DeviceError for figures that are not measured, not on that device, or not as `threads` and `precision` say;
    BundleError for reports of other models.
    """
    from edgesdk_targets.latency_fit import record

    found = []
    for source, path in map(_parted, texts):
        report = _report(path)
        _check_place(path, report)
        progress(f"reading {source}")
        name, layers = open_layers(source)
        if report.model != name:
            raise BundleError(f"{path} is of the model {report.model!r}, not of {name!r}", "name the model that was measured")
        setting = _setting(path, report, facts, threads, precision)
        _check_size(path, report, layers, setting.precision)
        unsaid = _unsaid(report, setting, threads, precision)
        found.append(Read(name, record(report, layers, setting), path, bool(report.machine.get("noisy")), unsaid))
    return found


def _parted(text: str) -> tuple[str, Path]:
    source, _, path = text.rpartition("=")
    return source, Path(path)


def _report(path: Path) -> Report:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"{path} is no report: {error.strerror}", "edgesdk measure BUNDLE --out FILE writes one") from error
    except ValueError as error:
        raise BundleError(f"{path} is no report: it is no JSON", "edgesdk measure BUNDLE --out FILE writes one") from error
    return Report.from_json(data)


def _check_place(path: Path, report: Report) -> None:
    """Raises DeviceError unless a latency was measured, and on the device itself."""
    figure = report.find("latency_ms")
    if figure is None or figure.provenance != "measured" or figure.value is None:
        told = f"its latency_ms is {figure.provenance}" if figure is not None else "it has no latency_ms"
        raise DeviceError(f"{path}: nothing to fit on: {told}", "edgesdk measure BUNDLE --out FILE, on the board itself")
    machine, here = report.machine, report.device == devices.THIS_MACHINE
    elsewhere = machine.get("cpu") != devices.cpu_model() if here else machine.get("is_device") is not True
    if elsewhere:
        raise DeviceError(
            f"{path} was measured on {figure.where} ({machine.get('architecture', '?')}), which is no {report.device}",
            f"run edgesdk measure on {'this machine' if here else 'the board'}",
        )


def _check_size(path: Path, report: Report, layers: Sequence[Layer], precision: str) -> None:
    """Raises DeviceError where an artefact is too small to hold the network's weights in fp32."""
    found, weights = report.find("artifact_bytes"), sum(layer.weight_bytes for layer in layers)
    if precision == "fp32" and found is not None and found.value is not None and found.value < SHARE_OF_WEIGHTS * weights:
        raise DeviceError(
            f"{path} is of an artefact of {found.value / 1e6:.3g} MB, and the model has {weights / 1e6:.3g} MB of weights",
            "name the model that was measured, as it was exported; of a report that says no precision give --precision",
        )


def _setting(path: Path, report: Report, facts: DeviceFacts, threads: int | None, precision: str | None) -> Setting:
    """How a report was run: from its runtime (`onnxruntime 1.32.0, CPUExecutionProvider`), threads and precision."""
    from edgesdk_targets.latency_model import Setting

    told = str(report.machine.get("runtime", ""))
    kind = str(_agreed(path, "precision", report.machine.get("precision"), precision) or "fp32")
    if kind not in PRECISIONS:
        raise DeviceError(
            f"{path} is of {kind}, of which nothing is estimated; allowed: {', '.join(PRECISIONS)}", "leave this report out"
        )
    if "TensorrtExecutionProvider" in told:
        return Setting("tensorrt", "gpu-tensorrt", None, kind)
    if "CUDAExecutionProvider" in told:
        return Setting("onnxruntime", "gpu-cuda", None, kind)
    runtime = told.partition(" ")[0]
    if not runtime:
        raise DeviceError(f"{path} does not say which runtime it measured", "measure again with this edgesdk")
    count = _agreed(path, "threads", report.machine.get("threads"), threads)
    if count is None:
        count = facts.cores
    if type(count) is not int or not 1 <= count <= facts.cores:
        raise DeviceError(
            f"{path}: threads is {count}; {facts.name} has {facts.cores} cores", f"fit on runs of 1 to {facts.cores} threads"
        )
    return Setting(runtime, "cpu", count, kind)


def _agreed(path: Path, what: str, told: object, given: object) -> object:
    """What a report tells, or else what was given. Raises DeviceError where they are not the same."""
    if told is not None and given is not None and told != given:
        raise DeviceError(f"{path} was measured with {what} {told}, and --{what} says {given}", f"leave --{what} out")
    return given if told is None else told


def _unsaid(report: Report, setting: Setting, threads: int | None, precision: str | None) -> str:
    """What neither the report nor its reader has said, and what is taken for granted then."""
    parts = []
    if setting.threads is not None and threads is None and report.machine.get("threads") is None:
        parts.append(f"how many threads ran; {setting.threads} are taken for granted (--threads)")
    if precision is None and report.machine.get("precision") is None:
        parts.append("in which precision; fp32 is taken for granted (--precision)")
    return "; ".join(parts)
