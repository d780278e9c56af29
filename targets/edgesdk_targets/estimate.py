"""Prediction from Layers and a device's facts: the fitted model or a roofline for time, liveness for memory, with intervals.

`modelled` asks latency_model, whose constants published measurements gave. `latency` is the plain roofline, for devices of
which less is known: a layer takes at least max(operations / peak, bytes / bandwidth) plus the time to start it (Williams et
al., Roofline, 2009), times a factor that is stated in each figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgesdk_converters.errors import DeviceError, TargetError

from .device import DeviceProfile, Fact
from .figure import Figure, Interval, unavailable
from .latency_model import LEVEL, PUBLISHED, DeviceFacts, Fitted, Setting, predict, published_devices, published_facts

if TYPE_CHECKING:
    from edgesdk_converters.cost import Layer

SEEN_KINDS = frozenset(
    [
        "conv",
        "conv1x1",
        "dwconv",
        "groupconv",
        "deconv",
        "fc",
        "gemm",
        "pool",
        "eltwise",
        "act",
        "norm",
        "softmax",
        "concat",
        "slice",
        "shuffle",
        "permute",
        "reshape",
        "pad",
        "interp",
        "split",
        "const",
        "input",
        "detpost",
        "cast",
    ]
)
"""Kinds of layers in the networks whose published latencies stand behind the factors."""

RUNTIME_BYTES = 70_000_000
"""Interpreter, numpy and ONNX Runtime 1.32 with a session of five nodes: highest resident size measured on x86-64."""


@dataclass(frozen=True)
class Roofline:
    """A device as an estimator sees it. `factor` is what a runtime typically makes of the bound; `low`/`high` its spread."""

    peak_gflops: float
    bandwidth_gb_per_s: float
    launch_us: float
    factor: float
    low: float
    high: float
    source: str
    level: float = 0.9


def latency(layers: Sequence[Layer], roofline: Roofline, device: DeviceProfile) -> tuple[Figure, ...]:
    """latency_ms of the whole and of each layer that takes time.

    Layers of a kind that no published network behind the factors has (attention, recurrence) widen the interval threefold
    and mark the figure extrapolated.
    """
    known = all(layer.kind in SEEN_KINDS for layer in layers)
    times_ms = [_bound_ms(layer, roofline) for layer in layers]
    bound = sum(times_ms)
    if bound <= 0:
        return (unavailable("latency_ms", device.name, "no layer that takes time"),)
    widen = 1.0 if known else 3.0
    method = f"roofline x {roofline.factor:g}; {roofline.source}"
    if not known:
        strange = sorted({layer.kind for layer in layers} - SEEN_KINDS)
        method += f"; kinds outside the published networks: {', '.join(strange)}"
    rows = [
        Figure(
            "latency_ms", bound * roofline.factor, "estimated", device.name, method, extrapolated=not known,
            interval=Interval(bound * roofline.low / widen, bound * roofline.high * widen, roofline.level),
        )
    ]  # fmt: skip
    for layer, time_ms in zip(layers, times_ms, strict=True):
        if time_ms > 0:
            rows.append(
                Figure(
                    "latency_ms", time_ms * roofline.factor, "estimated", device.name, "its share of the roofline",
                    layer=layer.name, extrapolated=layer.kind not in SEEN_KINDS,
                    interval=Interval(time_ms * roofline.low / widen, time_ms * roofline.high * widen, roofline.level),
                )
            )  # fmt: skip
    return tuple(rows)


def modelled(
    layers: Sequence[Layer], device: DeviceProfile, setting: Setting, *, fitted: Fitted | None = None, caution: str = ""
) -> tuple[Figure, ...]:
    """latency_ms of the whole and of each layer that takes time, then energy_mj, by the fitted model.

    Networks unlike the measured ones (attention where only CNNs ran, far other sizes) get a wider interval, the mark
    extrapolated and the reason; so do runs with a `caution`, which says what about them was never measured.
    """
    facts = _facts(device)
    if fitted is not None:
        _check_fit(fitted, facts, setting)
    try:
        found = predict(layers, facts, setting, fitted=fitted)
    except TargetError as error:
        return (unavailable("latency_ms", device.name, str(error)),)
    threads = f", {setting.threads} thread{'s' if setting.threads != 1 else ''}" if setting.threads else ""
    way = f"{setting.runtime} {setting.backend}{threads}, {setting.precision}"
    reasons = [*found.strange, *([caution] if caution else [])]
    whose = "" if fitted is None else f", then to {fitted.records} measurement{'s' if fitted.records > 1 else ''} of your own"
    method = f"costs of layers fitted to published measurements{whose}; {way}; interval: {WHENCE[found.group]}"
    method = "; ".join((method, *reasons))
    widen = 1.5 if caution else 1.0
    low = found.total_ms * (found.low_ms / found.total_ms) ** widen
    high = found.total_ms * (found.high_ms / found.total_ms) ** widen
    rows = [
        Figure(
            "latency_ms", found.total_ms, "estimated", device.name, method, interval=Interval(low, high, LEVEL),
            extrapolated=bool(reasons),
        )
    ]  # fmt: skip
    for layer, time_ms in zip(layers, found.layers_ms, strict=True):
        if time_ms > 0:
            share = time_ms / found.total_ms
            rows.append(
                Figure(
                    "latency_ms", time_ms, "estimated", device.name, "its share by the fitted costs", layer=layer.name,
                    interval=Interval(low * share, high * share, LEVEL), extrapolated=bool(reasons),
                )
            )  # fmt: skip
    return (*rows, _energy(rows[0], device))


WHENCE = {
    "measured": "other networks on this device and runtime, left out in turn",
    "int8": "other int8 networks on this device and runtime, left out in turn",
    "other measured": "other networks on devices of which this runtime is known, left out in turn",
    "other": "this device was measured in other runtimes only",
    "unknown": "chips left out in turn: this one was never measured",
    "unknown int8": "chips left out in turn, int8: this one was never measured",
    "unknown gpu": "GPUs left out in turn: this one was never measured so",
    "unknown gpu without peak": "GPUs left out in turn: this one was never measured so, and no source gives its peak",
    "gpu vulkan": "other networks on this GPU, left out in turn",
    "gpu cuda": "other networks on this GPU, left out in turn",
    "gpu tensorrt": "GPUs left out in turn: one family alone was measured on this one",
    "fitted": "published chips, each left out but for three of its networks, as this fit has a few of yours",
    "fitted few": "the networks fitted to, each left out, or published chips left out but for three networks: the wider",
    "fitted own": "the networks fitted to, each left out in turn",
}


def _check_fit(fitted: Fitted, facts: DeviceFacts, setting: Setting) -> None:
    """Raise DeviceError for a fit that says nothing of a run: of another device or way, or of other arithmetic."""
    if (fitted.device, fitted.runtime, fitted.backend) != (facts.name, setting.runtime, setting.backend):
        raise DeviceError(
            f"the fit is of {fitted.runtime} on {fitted.device} ({fitted.backend}), not of {setting.runtime} on {facts.name} "
            f"({setting.backend})",
            "fit anew with reports of this device and runtime",
        )
    if fitted.precisions and (setting.precision == "int8") not in {one == "int8" for one in fitted.precisions}:
        raise DeviceError(
            f"the fit is of {' and '.join(fitted.precisions)}, not of {setting.precision}: integers have costs of their own",
            f"fit anew with reports of {setting.precision} bundles, or leave --fit out",
        )


def published_profile(name: str) -> DeviceProfile:
    """A profile for estimates alone of a device that was measured but has no target, as phones. Raises DeviceError."""
    if name not in PUBLISHED:
        raise DeviceError(f"no published measurements of {name!r}; known: {', '.join(PUBLISHED)}")
    row = published_devices()[PUBLISHED[name]]
    told = f'published-latency devices.csv row "{row["device"]}"'
    facts = {
        fact: Fact(kind(row[column]), f"{told}: {column}" + (f" ({row[source]})" if row[source] else ""))
        for fact, column, kind, source in (
            ("soc", "soc", str, "src_cpu"), ("cpu", "cpu_clusters", str, "src_cpu"), ("cores", "cpu_total_cores", int, "src_cpu"),
            ("clock_ghz", "cpu_max_ghz", float, "src_cpu"),
            ("fp32_flop_per_cycle_per_core", "fp32_flop_per_cycle", str, "src_simd"),
            ("fp16_arithmetic", "cpu_fp16_arith", _flag, "src_simd"), ("int8_dot_product", "int8_sdot", _flag, "src_simd"),
            ("memory", "mem_type", str, "src_mem"), ("memory_bandwidth_gb_per_s", "mem_bw_peak_gbs", float, "src_mem"),
            ("gpu", "gpu", str, "src_gpu"), ("gpu_clock_mhz", "gpu_clock_mhz", float, "src_gpu"),
            ("gpu_fp32_tflops", "gpu_peak_fp32_tflops", float, "src_gpu"),
            ("power_idle_w", "power_idle_w", float, "power_source"), ("power_load_w", "power_load_w", float, "power_source"),
        )
        if row[column]
    }  # fmt: skip
    return DeviceProfile(name, "", row["device"], "latency is only estimated: there is no target for it", facts)


def _flag(text: str) -> bool:
    return text == "1"


def _facts(device: DeviceProfile) -> DeviceFacts:
    return published_facts(PUBLISHED[device.name]) if device.name in PUBLISHED else DeviceFacts.from_profile(device)


def _energy(time: Figure, device: DeviceProfile) -> Figure:
    """Between idle power for the least time and full load for the most; the board's, not the network's share of it."""
    idle, load = device.get("power_idle_w", float), device.get("power_load_w", float)
    if idle is None or load is None:
        return unavailable("energy_mj", device.name, "the profile has no power at idle and at load")
    assert time.value is not None and time.interval is not None
    return Figure(
        "energy_mj", load * time.value, "estimated", device.name, f"{load:g} W at load x time; least: {idle:g} W at idle",
        interval=Interval(idle * time.interval.low, load * time.interval.high, time.interval.level),
        extrapolated=time.extrapolated,
    )  # fmt: skip


def peak_memory(layers: Sequence[Layer], device: DeviceProfile, *, half_native: bool = False, unlike: str = "") -> Figure:
    """peak_memory_bytes while the model is loaded and run once: runtime, weights (read, parsed, packed), activations.

    The factors are fitted to the highest resident sizes of ten fp32 networks of 5 to 575 MB in ONNX Runtime 1.32 on x86-64,
    with and without its arena, which lie at 0.89 to 1.21 of the value; the interval holds all of them with room for other
    kernels. Without `half_native` fp16 layers weigh what they would in fp32, as which a CPU computes them (three networks,
    0.88 to 0.92 of the value). `unlike` says what about the device is unlike all that, and marks the figure extrapolated.
    """
    from edgesdk_converters.cost import total

    sums = total(layers)
    half = 0 if half_native else sum(layer.weight_bytes for layer in layers if layer.dtype == "float16")
    weights = sums.weight_bytes + half
    activations = sums.peak_activation_bytes * (weights / sums.weight_bytes if sums.weight_bytes else 1)
    value = RUNTIME_BYTES + 3.0 * weights + 4.5 * activations
    low = RUNTIME_BYTES * 0.75 + 2.0 * sums.weight_bytes + 1.5 * sums.peak_activation_bytes
    high = RUNTIME_BYTES * 1.3 + 3.6 * weights + 9.0 * activations
    method = "70 MB runtime + 3 x weights + 4.5 x live activations, fitted to ONNX Runtime on x86-64"
    return Figure(
        "peak_memory_bytes", int(value), "estimated", device.name, f"{method}; {unlike}" if unlike else method,
        interval=Interval(low, high, 0.9), extrapolated=bool(unlike),
    )  # fmt: skip


def _bound_ms(layer: Layer, roofline: Roofline) -> float:
    moved = layer.in_bytes + layer.out_bytes + layer.weight_bytes
    if moved == 0 and layer.macs == 0:
        return 0.0
    work_ms = (2 * layer.macs + layer.elem_ops) / (roofline.peak_gflops * 1e6)
    traffic_ms = moved / (roofline.bandwidth_gb_per_s * 1e6)
    return max(work_ms, traffic_ms) + roofline.launch_us / 1e3
