"""Estimates before anything runs: of a target's own runtime, of another that was published, of a phone, of logic."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields as fields_of
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgesdk_converters.errors import DeviceError, RecipeError, TargetError
from edgesdk_targets import device as devices
from edgesdk_targets import efficiency
from edgesdk_targets.figure import counted
from edgesdk_targets.fpga.dense_spec import check_settings
from edgesdk_targets.report import Report
from edgesdk_targets.target import Target, make

if TYPE_CHECKING:
    from edgesdk_converters.cost import Layer
    from edgesdk_converters.model import Model
    from edgesdk_targets.figure import Figure
    from edgesdk_targets.latency_model import Fitted

Fit = str | os.PathLike[str]
BACKENDS = {"tensorrt": "gpu-tensorrt", "ncnn-vulkan": "gpu-vulkan", "onnxruntime-cuda": "gpu-cuda", "pytorch": "gpu-cuda"}
"""Of the runtimes that compute on a GPU; all others compute on the CPU."""
PHONES_RUNTIME = "ncnn"


def estimate(
    model: str | os.PathLike[str] | Model,
    *,
    target: str | None = None,
    device: str | None = None,
    precision: str = "",
    shapes: Mapping[str, Sequence[int]] | None = None,
    settings: Mapping[str, str] | None = None,
    threads: int = 0,
    runtime: str = "",
    fit: Fit | None = None,
) -> Report:
    """What a model, a layer list in JSON, or a line like `dense:16-64-32-5@8bit` will cost on a device, without running it.

    An FPGA takes of a model in fixed point its own integers. `runtime` is another than the target's own (ncnn, ncnn-vulkan,
    tensorrt, onnxruntime, …), `threads` 0 all cores; `fit` a file that `edgesdk fit` wrote. Phones, which have no target, are
    estimated in ncnn. Every figure has its interval. Raises DeviceError, TargetError, ModelError.
    """
    if isinstance(model, str) and model.startswith("dense:"):
        if target is None and device is not None and is_phone(device):
            raise TargetError(f"{device} is estimated with models; {model!r} is for fpga", "give a model, or an FPGA as --device")
        check_settings(model, settings or {})
        backend, precision = _asked(target, device, precision, settings, threads, fit)
        rows = backend.estimate_text(model)
        return Report(model, backend.name, backend.device.name, "", rows, notes=backend.estimate_notes(rows, model))
    return _estimated(
        lambda: _opened(model, shapes), target, device, precision, settings, threads, runtime, fit
    )  # fmt: skip


def of_layers(
    name: str,
    layers: Sequence[Layer],
    *,
    device: str,
    precision: str = "",
    settings: Mapping[str, str] | None = None,
    threads: int = 0,
    runtime: str = "",
    model: Model | None = None,
) -> Report:
    """The same of layers that were read already: what one network costs on many devices is asked with them.

    `model` is the network itself where it is at hand, whose layers these are.
    """
    return _estimated(lambda: (name, tuple(layers), model), None, device, precision, settings, threads, runtime, None)


Opened = tuple[str, tuple["Layer", ...], "Model | None"]
"""Name, layers, and the model that they are of; None for a layer list."""


def _opened(source: str | os.PathLike[str] | Model, shapes: Mapping[str, Sequence[int]] | None) -> Opened:
    from .sources import open_layers, open_model

    if isinstance(source, (str, os.PathLike)) and os.fspath(source).endswith(".json"):
        return (*open_layers(source), None)
    model = open_model(source, shapes=shapes)
    return (*open_layers(model), model)


def _estimated(
    opened: Callable[[], Opened],
    target: str | None,
    device: str | None,
    precision: str,
    settings: Mapping[str, str] | None,
    threads: int,
    runtime: str,
    fit: Fit | None,
) -> Report:
    """Of layers that are read once it is known that the device can be asked."""
    from edgesdk_converters.cost import total

    if device is not None and target is None and is_phone(device):
        if settings:
            raise RecipeError(f"{device} has no target, and so no option {next(iter(settings))!r}", "leave --set out")
        return _of_phone(opened, device, precision, threads, runtime, fit)
    # threads are an option of the target's own runtime; another has them of itself
    backend, precision = _asked(target, device, precision, settings, 0 if runtime else threads, fit)
    name, layers, model = opened()
    threads = threads or int(getattr(backend, "threads", 0))
    given = _precision(layers, precision)
    fitted = None if fit is None or _is_toml(fit) else _fitted(fit)
    way = runtime or own_runtime(backend)
    computes_on = _backend(way, backend.device, fitted)
    if runtime or fitted is not None:
        rows = _modelled(layers, backend.device, way, computes_on, threads, given, fitted)
    elif model is not None:
        rows = backend.estimate_model(model, layers, precision)
    else:
        rows = backend.estimate(layers, precision)
    told = () if runtime or fitted is not None else backend.estimate_notes(rows, model)
    sums = total(layers)
    rows = (
        *rows,
        counted("macs", sums.macs, "counted from the layers"),
        counted("params", sums.params, "counted from the layers"),
        counted("weight_bytes", sums.weight_bytes, "counted from the layers"),
    )
    if backend.name != "fpga":
        on_gpu = computes_on != "cpu"
        rows = (*rows, *efficiency.shares(rows, sums.macs, backend.device, precision=given, on_gpu=on_gpu, threads=threads))
    only = backend.device.estimate_only
    notes = (f"nothing can be exported to {backend.device.name}: {only}",) if only else ()
    return Report(name, backend.name, backend.device.name, "", rows, notes=(*notes, *told))


def _asked(
    target: str | None,
    device: str | None,
    precision: str,
    settings: Mapping[str, str] | None,
    threads: int,
    fit: Fit | None,
) -> tuple[Target, str]:
    """The target that estimates, and the precision. Raises TargetError for a precision that it does not have."""
    backend = _with(make(target, device, settings), threads, fit)
    precision = precision or backend.default_precision
    backend.recipe(precision)
    return backend, precision


def is_phone(device: str) -> bool:
    """Whether a device was measured, but has no target: only its latency can be estimated."""
    return device not in devices.names() and _is_published(device)


def _is_published(device: str) -> bool:
    from edgesdk_targets.latency_model import PUBLISHED

    return device in PUBLISHED


def _of_phone(
    opened: Callable[[], Opened],
    device: str,
    precision: str,
    threads: int,
    runtime: str,
    fit: Fit | None,
) -> Report:
    from edgesdk_targets.estimate import published_profile

    profile = published_profile(device)
    name, layers, _ = opened()
    fitted, way, given = _fitted(fit), runtime or PHONES_RUNTIME, _precision(layers, precision or "fp32")
    rows = _modelled(layers, profile, way, _backend(way, profile, fitted), threads, given, fitted)
    return Report(name, "", device, "", rows, notes=(f"nothing can be exported to {device}: {profile.estimate_only}",))


def _modelled(
    layers: Sequence[Layer],
    profile: devices.DeviceProfile,
    runtime: str,
    backend: str,
    threads: int,
    precision: str,
    fitted: Fitted | None,
) -> tuple[Figure, ...]:
    from edgesdk_targets.estimate import modelled, peak_memory
    from edgesdk_targets.latency_model import Setting, is_measured

    name = runtime.removesuffix("-vulkan").removesuffix("-cuda")
    cores = _cores(profile, threads)
    setting = Setting(name, backend, None if backend != "cpu" else threads or cores, precision)
    caution = unlike = ""
    if fitted is None and precision == "int8" and not is_measured(setting):
        caution = f"int8 was measured in ncnn, not in {name}"
    if name != "onnxruntime" or backend != "cpu":
        unlike = f"the memory of {runtime} was not measured"
    rows = modelled(layers, profile, setting, fitted=fitted, caution=caution)
    return (*rows, peak_memory(layers, profile, half_native=backend != "cpu", unlike=unlike))


def _backend(runtime: str, profile: devices.DeviceProfile, fitted: Fitted | None) -> str:
    """What a runtime computes on there. Raises TargetError for one that is not known, DeviceError for one of another GPU."""
    from edgesdk_targets.latency_model import published_runtimes

    known = sorted({*published_runtimes(), *BACKENDS, *([fitted.runtime] if fitted is not None else [])})
    if runtime not in known:
        raise TargetError(
            f"unknown runtime {runtime!r}; measurements are known of: {', '.join(known)}", "give one with --runtime"
        )
    backend = BACKENDS.get(runtime, "cpu")
    if backend in ("gpu-cuda", "gpu-tensorrt") and profile.get("compute_capability", str) is None:
        if runtime in published_runtimes():
            return "cpu"
        raise DeviceError(f"{runtime} computes on NVIDIA's GPUs, and {profile.name} has none", "leave --runtime out")
    return backend


def _cores(profile: devices.DeviceProfile, threads: int) -> int | None:
    """How many the device has, None where that is not known. Raises TargetError for more threads than that."""
    cores = profile.get("cores", int)
    if cores is not None and threads > cores:
        raise TargetError(f"threads is {threads}; {profile.name} has {cores} cores", "give 0 for all of them")
    return cores


def _precision(layers: Sequence[Layer], asked: str) -> str:
    """Of a layer list that says so itself: int8."""
    work = sum(layer.macs for layer in layers)
    integers = sum(layer.macs for layer in layers if layer.dtype == "int8")
    return "int8" if asked == "fp32" and work and integers > work / 2 else asked


def own_runtime(backend: Target) -> str:
    """What a target's bundles run in, as published latencies name it."""
    return "tensorrt" if backend.name == "jetson" else "onnxruntime"


def _is_toml(fit: Fit) -> bool:
    return os.fspath(fit).endswith(".toml")


def _with(backend: Target, threads: int, fit: Fit | None) -> Target:
    """The target with threads, and with constants of its own, where it takes them."""
    known = {field.name for field in fields_of(backend)}
    if threads:
        if "threads" not in known:
            raise TargetError(f"target {backend.name} has no threads to choose", "leave --threads out")
        _cores(backend.device, threads)
        backend = replace(backend, threads=threads)  # type: ignore[call-arg]
    if fit is not None and _is_toml(fit):
        if "constants" not in known:
            raise TargetError(f"{os.fspath(fit)} holds constants of logic; {backend.name} takes a .json that edgesdk fit wrote")
        backend = replace(backend, constants=os.fspath(fit))  # type: ignore[call-arg]
    return backend


def _fitted(fit: Fit | None) -> Fitted | None:
    from edgesdk_targets.latency_fit import fitted_from_json

    if fit is None:
        return None
    try:
        data = json.loads(Path(fit).read_text(encoding="utf-8"))
    except OSError as error:
        raise DeviceError(f"{os.fspath(fit)} is no fit: {error.strerror}", "make one with edgesdk fit") from error
    except ValueError as error:
        raise DeviceError(f"{os.fspath(fit)} is no fit: it is no JSON", "make one with edgesdk fit") from error
    return fitted_from_json(data)
