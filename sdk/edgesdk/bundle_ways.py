"""Split bundles as ways to run their model: with all that crosses, and at each operating point of a learned bottleneck."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgesdk_converters.errors import BundleError, DeviceError, ModelError
from edgesdk_targets import runner
from edgesdk_targets.bundle import Bundle, nested, open_bundle
from edgesdk_targets.figure import Figure
from edgesdk_targets.plan import Way
from edgesdk_targets.split_runner import head_and_tail, point_tail
from edgesdk_targets.target import Role, Target

from .part_times import PartTimes
from .split_figures import bytes_of

if TYPE_CHECKING:
    from edgesdk_converters.model import Model
    from edgesdk_targets.report import Report


def ways(
    path: str | os.PathLike[str], name: str, device: Target, server: Target, progress: Callable[[str], None] = runner.silent
) -> list[Way]:
    """One way, or one for each operating point, of the split bundle of the model called `name`; times of its own parts.

    Accuracy drops are those of the report beside it, where there is one. Raises BundleError, ModelError or DeviceError where
    it is no split bundle, of another model, or its head is for another device.
    """
    bundle = open_bundle(path)
    manifest = bundle.manifest
    if manifest.role != "split":
        raise BundleError(f"{os.fspath(path)} is no split bundle", "edgesdk export MODEL --device NAME --split auto makes one")
    if manifest.name != name:
        raise ModelError(f"{os.fspath(path)} is of {manifest.name!r}, not of {name!r}", "export this model")
    if manifest.device != device.device.name:
        raise DeviceError(
            f"the head of {os.fspath(path)} is for {manifest.device}, not for {device.device.name}", "export it anew"
        )
    head, tail = head_and_tail(bundle)
    tails = {int(point): nested(bundle, point_tail(int(point))) for point in manifest.model.get("points", {})}
    report = _report(bundle)
    title, most = Path(path).name, manifest.model.get("channels")
    response = sum(bytes_of(spec) for spec in manifest.signature.outputs)
    computing = _time(head, device, "head", progress)
    found = []
    for point, part in [*tails.items(), (most, tail)]:
        called = f"{title}, {point} channels" if tails else title
        spec = part.manifest.signature.inputs[0]
        size, told = bytes_of(spec), f"{'x'.join(map(str, spec.shape))} {spec.dtype}"
        drop = _drop(report, "whole" if part is tail else f"{point} channels")
        serving = _time(part, server, "tail", progress)
        found.append(Way(called, "bundle", size, response, computing, serving, (spec.name,), drop, told))
    return found


def _time(part: Bundle, target: Target, side: Role, progress: Callable[[str], None]) -> Figure:
    precision = part.manifest.precision
    found = PartTimes(target, _model(part), side, progress=progress, precision=precision).whole()
    return replace(found, segment=side)


def _model(part: Bundle) -> Model:
    """The network in a bundle. Raises BundleError where it is none in ONNX."""
    import onnx
    from google.protobuf.message import DecodeError

    from edgesdk_converters.model import Model

    try:
        proto = onnx.load_model_from_string(part.read(part.manifest.runtime.file))
    except (DecodeError, ValueError) as error:
        raise BundleError(f"{part.path}: {part.manifest.runtime.file} is no ONNX model, so its time is not known") from error
    return Model.from_proto(proto, part.manifest.name)


def _report(bundle: Bundle) -> Report | None:
    try:
        return bundle.report()
    except BundleError:
        return None


def _drop(report: Report | None, segment: str) -> float | None:
    """Points of accuracy lost, None where the report does not say."""
    if report is None:
        return None
    stated = report.find("accuracy_drop", segment)
    if stated is not None:
        return stated.value
    before, after = report.find("source_accuracy"), report.find("accuracy", segment)
    if before is None or after is None or before.value is None or after.value is None:
        return None
    return 100 * (before.value - after.value)
