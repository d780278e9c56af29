"""Prediction from Layers and a device's facts: a roofline for time, liveness for memory, with wide, marked intervals.

A layer takes at least max(operations / peak, bytes / bandwidth) plus the time to start it (Williams et al., Roofline, 2009).
What real runtimes make of that is a factor, taken from the spread of published measurements and stated in each figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .device import DeviceProfile
from .figure import Figure, Interval, unavailable

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
