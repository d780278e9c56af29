"""Latency of a network on a device from its layers, the device's facts and constants fitted to published measurements.

Each layer takes a sum of physical costs: arithmetic over the peak, traffic over a bandwidth, a start. A cost is the nominal
time of an ideal device times exp(effects): one effect a cost, corrections for what the facts say (cores in order, fp16, threads),
and, for a device, runtime or setting that was measured, how far it lay from that. An unknown device has only the facts.
"""

from __future__ import annotations

import csv
import functools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters.errors import DeviceError, TargetError

from .device import DeviceProfile

if TYPE_CHECKING:
    from edgesdk_converters.cost import Layer

Array = NDArray[np.float64]
FOLDER = Path(__file__).with_name("published_latency")
CONSTANTS = Path(__file__).with_name("latency_constants.json")
LEVEL = 0.9
BACKENDS = ("cpu", "gpu-vulkan", "gpu-cuda", "gpu-tensorrt")
PUBLISHED = {
    "raspberry-pi-zero-2-w": "Raspberry Pi Zero 2 W", "raspberry-pi-3b-plus": "Raspberry Pi 3B+",
    "raspberry-pi-4": "Raspberry Pi 4B", "raspberry-pi-5": "Raspberry Pi 5", "jetson-nano": "Jetson Nano",
    "jetson-tx2-nx": "Jetson TX2 NX", "jetson-agx-xavier": "Jetson AGX Xavier", "jetson-orin-nano": "Jetson Orin Nano",
    "jetson-agx-orin": "Jetson AGX Orin", "phone-snapdragon-8-gen-2": "Phone Snapdragon 8 Gen 2",
    "phone-dimensity-9300": "Phone Dimensity 9300", "phone-snapdragon-855-plus": "Phone Snapdragon 855+ (OnePlus 7T)",
    "phone-snapdragon-835": "Phone Snapdragon 835 (Pixel 2 XL)",
}  # fmt: skip
"""Our names of the devices that were measured, and their names in the published data."""

_IN_ORDER = ("A7", "A35", "A53", "A55", "A510", "A520")
_ARMV9 = ("A510", "A520", "A710", "A715", "A720", "X2", "X3", "X4")
INT8 = "q:"
"""Before the names of int8's effects, which share none with fp32's: kernels, packing and even which cores suit are others."""
_FREE = frozenset(["input", "split", "const", "reshape", "control"])
_COPIES = frozenset(["concat", "slice", "shuffle", "permute", "pad", "interp", "detpost", "cast", "other"])
_EXPONENTIALS = frozenset(
    ["Swish", "Sigmoid", "Mish", "GELU", "Gelu", "Erf", "Tanh", "TanH", "Softmax", "Exp", "Elu", "Softplus"]
)
_ABSORBED = frozenset(["Relu", "Clip", "LeakyRelu"])
ATTENTION = frozenset(["mha", "matmul", "gemm", "rnn"])


@dataclass(frozen=True)
class Cluster:
    """Like cores. `flop_per_cycle` is that of one core in fp32."""

    cores: int
    core: str
    clock_ghz: float
    flop_per_cycle: float

    @property
    def gflops(self) -> float:
        return self.clock_ghz * self.flop_per_cycle

    @property
    def in_order(self) -> bool:
        return self.core.endswith(_IN_ORDER)


@dataclass(frozen=True)
class DeviceFacts:
    """What is known of a device before anything ran on it. A zero of the GPU means: not known, or none."""

    name: str
    clusters: tuple[Cluster, ...]
    bandwidth_gb_per_s: float
    fp16_arithmetic: bool = False
    int8_dot_product: bool = False
    gpu: str = ""
    gpu_fp32_gflops: float = 0.0
    gpu_fp16_gflops: float = 0.0
    gpu_int8_gops: float = 0.0
    config: str = "stock"

    def __post_init__(self) -> None:
        sizes = [self.bandwidth_gb_per_s, *(size for c in self.clusters for size in (c.cores, c.clock_ghz, c.flop_per_cycle))]
        if not self.clusters or min(sizes) <= 0 or not all(map(math.isfinite, sizes)):
            raise DeviceError(
                f"device {self.name}: cores, clock, FLOP per cycle and bandwidth must be above 0, got {self.clusters}, "
                f"{self.bandwidth_gb_per_s} GB/s"
            )

    @property
    def cores(self) -> int:
        return sum(cluster.cores for cluster in self.clusters)

    @classmethod
    def from_row(cls, row: Mapping[str, str], config: str = "stock") -> DeviceFacts:
        """From a row of published-latency/devices.csv; `config` may state other clocks. Raises DeviceError for a bad row."""
        name = row.get("device", "?")
        try:
            flops = [float(part.rsplit("=", 1)[1]) for part in row["fp32_flop_per_cycle"].split(";")]
            parts = re.findall(r"(\d+)x ([^@]+?) @([\d.]+)GHz", row["cpu_clusters"])
            clusters = tuple(
                Cluster(int(count), core.split(" ")[0], float(clock), flop)
                for (count, core, clock), flop in zip(parts, flops, strict=True)
            )

            def number(key: str) -> float:
                return float(row.get(key) or 0)

            tensor = number("tensor_fp16_dense_tflops")
            facts = cls(
                name, clusters, number("mem_bw_peak_gbs"), row["cpu_fp16_arith"] == "1", row["int8_sdot"] == "1", row["gpu"],
                1e3 * number("gpu_peak_fp32_tflops"), 1e3 * (tensor or number("gpu_peak_fp16_tflops")),
                1e3 * number("int8_tops_dense_gpu"), config,
            )  # fmt: skip
        except (KeyError, ValueError, IndexError) as error:
            raise DeviceError(f"device {name}: its row of facts cannot be read: {type(error).__name__} {error}") from error
        cpu, gpu = re.search(r"(?:cpu|zoo-)([\d.]+)GHz", config), re.search(r"gpu([\d.]+)GHz", config)
        if cpu:
            facts = replace(facts, clusters=tuple(replace(c, clock_ghz=float(cpu[1])) for c in clusters))
        if gpu and row.get("gpu_clock_mhz"):
            ratio = float(gpu[1]) * 1e3 / float(row["gpu_clock_mhz"])
            facts = replace(facts, gpu_fp32_gflops=facts.gpu_fp32_gflops * ratio, gpu_fp16_gflops=facts.gpu_fp16_gflops * ratio)
        return facts

    @classmethod
    def from_profile(cls, profile: DeviceProfile) -> DeviceFacts:
        """From a profile; of a device that was measured, from the published facts. Raises DeviceError where one is missing."""
        if profile.name in PUBLISHED:
            return published_facts(PUBLISHED[profile.name])
        cluster = Cluster(
            profile.need("cores", int), profile.need("cpu", str), profile.need("clock_ghz", float),
            profile.need("fp32_flop_per_cycle_per_core", float),
        )  # fmt: skip
        return cls(
            profile.name, (cluster,), profile.need("memory_bandwidth_gb_per_s", float),
            bool(profile.get("fp16_arithmetic", bool)), bool(profile.get("int8_dot_product", bool)),
            profile.get("gpu", str) or "", profile.get("gpu_fp32_gflops", float) or 0.0,
            profile.get("gpu_fp16_gflops", float) or 0.0, profile.get("gpu_int8_gops", float) or 0.0,
        )  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """How a network is run. `threads` None: as many as there are cores, and the benchmark did not say. `powersave` is ncnn's:
    0 all cores, 1 little ones, 2 big ones."""

    runtime: str = "ncnn"
    backend: str = "cpu"
    threads: int | None = None
    precision: str = "fp32"
    powersave: int = 0

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise TargetError(f"unknown backend {self.backend!r}; allowed: {', '.join(BACKENDS)}")
        if self.precision not in ("fp32", "fp16", "int8"):
            raise TargetError(f"latency is not known for precision {self.precision!r}; allowed: fp32, fp16, int8")
        if self.threads is not None and self.threads < 1:
            raise TargetError(f"threads is {self.threads}; allowed: 1 or more")


class Cost(NamedTuple):
    """One way in which layers take time. `unit_ms` times a layer's count is its nominal time; `effects` are (name, factor).

    `group` is d arithmetic, a traffic within caches, m memory, s what one thread does alone, l starts of layers.
    """

    name: str
    group: str
    unit_ms: float
    effects: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Constants:
    """Fitted effects by name, intervals by group, and what the networks behind them are like."""

    effects: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    seen: Mapping[str, Sequence[str]] = field(default_factory=dict)
    macs: tuple[float, float] = (0.0, math.inf)
    source: str = ""


@dataclass(frozen=True)
class Fitted:
    """What a user's own measurements on one device and runtime say beyond the constants: logs of factors on all costs and on
    groups of them, and how far a further network's time may lie from its prediction, in logs.

    `threads` (empty on a GPU), `precisions` and `operators` are those of the records: beyond them an estimate is less sure.
    `whence` says where the interval is from, as `estimate.WHENCE` has it.
    """

    device: str
    runtime: str
    backend: str
    scale: float
    groups: Mapping[str, float]
    low: float
    high: float
    records: int
    threads: tuple[int, ...] = ()
    precisions: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()
    whence: str = "fitted"


@dataclass(frozen=True)
class Prediction:
    """Milliseconds of the whole and of each layer; the interval holds the whole's time with probability LEVEL."""

    total_ms: float
    low_ms: float
    high_ms: float
    layers_ms: tuple[float, ...]
    group: str
    strange: tuple[str, ...] = ()

    @property
    def extrapolated(self) -> bool:
        return bool(self.strange)


def published_devices() -> dict[str, dict[str, str]]:
    """Rows of the published devices, by name."""
    with (FOLDER / "devices.csv").open(encoding="utf-8", newline="") as stream:
        return {row["device"]: row for row in csv.DictReader(stream)}


Way = tuple[str, str, str]
"""Runtime, backend and precision."""


def published_ways(device: str) -> dict[Way, int]:
    """How many measurements of a published device there are by way, doubtful ones left out."""
    return {way: count for (name, way), count in _measured_ways().items() if name == device}


@functools.cache
def _measured_ways() -> Counter[tuple[str, Way]]:
    with (FOLDER / "measurements.csv").open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["quality"] != "suspect"]
    return Counter((row["device"], (row["runtime"], row["backend"], row["precision"])) for row in rows)


@functools.cache
def published_facts(device: str, config: str = "stock") -> DeviceFacts:
    """Facts of a published device in a configuration. Raises DeviceError for an unknown one, listing the known."""
    rows = published_devices()
    row = rows.get(f"{device} (Super mode)") if config.startswith("super") else rows.get(device)
    if row is None:
        raise DeviceError(f"no published device {device!r}; known: {', '.join(rows)}")
    return DeviceFacts.from_row({**row, "device": device}, config)


@functools.cache
def constants() -> Constants:
    """What was fitted to the published measurements; see latency_fit."""
    return read_constants(CONSTANTS.read_text(encoding="utf-8"))


def read_constants(text: str) -> Constants:
    """Constants from their JSON. Raises DeviceError for anything else."""
    try:
        data = json.loads(text)
        return Constants(
            {str(name): float(value) for name, value in data["effects"].items()},
            {name: (float(low), float(high)) for name, (low, high) in data["intervals"].items()},
            data["seen"], (data["macs"][0], data["macs"][1]), data["source"],
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DeviceError(f"constants of the latency model cannot be read: {type(error).__name__} {error}") from error


COUNTS = (
    "winograd", "conv", "pointwise", "depthwise", "weights", "tiles", "traffic", "spill", "copies", "boxes", "work", "other",
    "groups", "grouped", "stored", "moved",
)  # fmt: skip
"""What is counted of a layer: multiply-adds of 3x3 Winograd convolutions after transformation, of other convolutions, of matrix
products, of depthwise ones; weights; elements of Winograd tiles; elements moved; of these beyond a cache; copied; decoded as
boxes; starts of layers with and without arithmetic; of groups; of layers with groups; weights
before transformation; and elements moved, however dear the operation on them."""


def counts(layers: Sequence[Layer], precision: str, fuses: bool = False) -> Array:
    """COUNTS of each layer, one row a layer. `fuses`: the runtime joins a ReLU to the convolution before it, as ONNX Runtime."""
    makers = {name: layer for layer in layers for name in layer.outputs}
    found = np.zeros((len(layers), len(COUNTS)))
    joined: set[str] = set()
    for row, layer in zip(found, layers, strict=True):
        maker = makers.get(layer.inputs[0]) if layer.inputs else None
        after_work = maker is not None and (bool(maker.macs) or not joined.isdisjoint(maker.outputs))
        if fuses and after_work and (layer.op in _ABSORBED or layer.op == "BatchNormalization"):
            joined.update(layer.outputs)
            continue
        if layer.kind in _FREE:
            continue
        for name, value in _layer_counts(layer, precision).items():
            row[COUNTS.index(name)] = value
    return found


def _layer_counts(layer: Layer, precision: str) -> dict[str, float]:
    stored = {"float16": 2, "int8": 1, "uint8": 1}.get(layer.dtype, 4)
    weights = layer.weight_bytes / (1 if layer.kind == "cast" else stored)
    if layer.op in ("QuantizeLinear", "DequantizeLinear"):
        return {"weights": weights, "stored": weights}
    moved = sum(math.prod(shape) for shape in (*layer.in_shapes, *layer.out_shapes)) or (layer.in_bytes + layer.out_bytes) / 4
    if not (moved or layer.macs):
        return {}
    spill = max(0.0, moved - CACHE_ELEMENTS)
    if not layer.macs:
        if layer.kind == "detpost" and "DetectionOutput" in layer.op:
            return {"boxes": moved, "other": 1, "moved": moved}
        if layer.kind in _COPIES:
            return {"copies": moved, "spill": spill, "other": 1, "moved": moved}
        weight = 3.0 if layer.op in _EXPONENTIALS else 1.5 if layer.kind == "pool" else 1.0
        return {"traffic": weight * moved, "spill": spill, "other": 1, "moved": moved}
    row = {"traffic": moved, "moved": moved, "spill": spill, "work": 1.0, "weights": weights, "stored": weights}
    groups = layer.groups if layer.kind == "groupconv" else 1
    if groups > 1:
        row |= {"work": 0.0, "groups": groups, "grouped": 1.0}
    taps = math.prod(layer.kernel) if layer.kernel and layer.in_shapes and layer.out_shapes else 1
    if layer.kind == "dwconv":
        return row | {"depthwise": layer.macs}
    if layer.kind not in ("conv", "groupconv", "deconv") or taps == 1:
        rows = math.prod(layer.out_shapes[0][:-1]) if layer.out_shapes and layer.out_shapes[0] else 1
        return row if layer.kind == "fc" and rows == 1 else row | {"pointwise": layer.macs}
    if layer.kind == "deconv" or tuple(layer.kernel) != (3, 3) or set(layer.stride) - {1} or set(layer.dilation) - {1}:
        return row | {"conv": layer.macs}
    c_out, height, width = layer.out_shapes[0][-3:]
    c_in, c_out = layer.in_shapes[0][-3] // groups, c_out // groups
    if min(c_in, c_out) < 8:
        return row | {"conv": layer.macs}
    batch = math.prod(layer.out_shapes[0][:-3])
    products, tile = min(
        (batch * math.ceil(height / size) * math.ceil(width / size) * (size + 2) ** 2, (size + 2) ** 2)
        for size in ((4, 2) if precision == "int8" else (6, 4, 2))
    )
    tiles = groups * products * (c_in + c_out)
    return row | {
        "winograd": groups * products * c_in * c_out, "tiles": tiles,
        "weights": groups * c_in * c_out * tile, "spill": spill + max(0.0, tiles - CACHE_ELEMENTS),
    }  # fmt: skip


CACHE_ELEMENTS = 250_000
"""A layer's tensors beyond 1 MB in fp32 leave the caches of most of these devices."""


def costs(facts: DeviceFacts, setting: Setting) -> tuple[tuple[str, Cost], ...]:
    """What each count costs on the device: pairs of a count's name and a Cost. Raises DeviceError for more threads than cores."""
    return tuple(_cpu_costs(facts, setting) if setting.backend == "cpu" else _gpu_costs(facts, setting))


def used_cores(facts: DeviceFacts, setting: Setting) -> list[Cluster]:
    """One entry a thread, the fastest core first."""
    each = sorted((replace(c, cores=1) for c in facts.clusters for _ in range(c.cores)), key=lambda c: -c.gflops)
    little = [c for c in each if c.in_order] if not all(c.in_order for c in each) else []
    if setting.powersave == 2 and little:
        each = [c for c in each if not c.in_order]
    if setting.powersave == 1:
        each = little or [c for c in each if c.gflops == each[-1].gflops]
    if setting.threads is None:
        return each
    if setting.threads > facts.cores:
        raise DeviceError(f"threads is {setting.threads}; {facts.name} has {facts.cores} cores", "give at most that many")
    return each[: setting.threads]


def _cpu_costs(facts: DeviceFacts, setting: Setting) -> Iterator[tuple[str, Cost]]:
    used = used_cores(facts, setting)
    first, threads = used[0], len(used)
    ncnn, int8 = setting.runtime == "ncnn", setting.precision == "int8"
    half = facts.fp16_arithmetic and not int8 and (ncnn or setting.precision == "fp16")
    armv9 = first.core.endswith(_ARMV9)
    gflops = sum(c.gflops for c in used)
    uneven, more = math.log(threads * used[-1].gflops / gflops), math.log(threads)
    wide = math.log2(first.flop_per_cycle / 8)
    bytes_moved, bytes_kept = (2, 2) if half else (4, 1 if int8 else 4)
    flop = 2e-6 / (gflops * (2 if half else 1))
    cached, memory = 1e-6 / (8 * first.clock_ghz), 1e-6 / facts.bandwidth_gb_per_s
    product = flop / ((4 if facts.int8_dot_product else 2) if int8 else 1)
    device, place = facts.name, f"{facts.name}|{facts.config}|{threads}|{setting.powersave}"
    start = 1e-3 / first.clock_ghz
    for count, name, unit, group in (
        ("winograd", "winograd", flop / (2 if int8 else 1), "d"), ("conv", "conv", product, "d"),
        ("pointwise", "pointwise", product, "d"), ("depthwise", "depthwise", product, "d"),
        ("matrix", "fetch", bytes_kept * memory / 32, "m"), ("weights", "weights", bytes_kept * memory, "m"),
        ("weights", "weights1", bytes_kept * cached / threads, "m"), ("spill", "spill", bytes_moved * memory, "m"),
        ("traffic", "traffic", bytes_moved * cached, "a"), ("tiles", "tiles", bytes_moved * cached, "a"),
        ("copies", "copies", bytes_moved * cached, "s"), ("boxes", "boxes", bytes_moved * cached, "s"),
        ("work", "start", start, "l"), ("other", "start0", start, "l"), ("groups", "startg", start, "l"),
        ("starts", "join", start * math.log2(threads), "l"),
    ):  # fmt: skip
        if unit <= 0:
            continue
        effects = {name: 1.0, "all": float(int8), f"dev:{device}": 1.0, f"dev:{device}:{group}": 1.0, f"cfg:{place}": 1.0}
        if group in "da":
            effects |= {f"threads:{group}": more, "uneven": uneven}
        effects |= {f"half:{group}": float(half), f"inorder:{group}": float(first.in_order)}
        effects |= {f"core:{first.core}": 1.0, f"core:{first.core}:{group}": 1.0, f"devcost:{device}:{name}": 1.0}
        effects |= {f"armv9:{group}": float(armv9), f"wide:{group}": wide}
        if int8:
            effects |= {f"int8:{name}": 1.0, f"dot:{group}": float(facts.int8_dot_product), f"i8mm:{group}": float(armv9)}
            effects = {f"{INT8}{name}": factor for name, factor in effects.items()}
        if not ncnn:
            run = setting.runtime
            effects |= {f"run:{run}": 1.0, f"run:{run}:{group}": 1.0, f"rundev:{run}:{device}": 1.0}
        elif setting.threads is None:
            effects |= {"unstated": 1.0, f"unstated:{group}": 1.0}
        yield count, Cost(name, group, unit, tuple((e, f) for e, f in effects.items() if f))


def _gpu_costs(facts: DeviceFacts, setting: Setting) -> Iterator[tuple[str, Cost]]:
    if not facts.gpu:
        raise DeviceError(f"{facts.name} has no GPU that is known", "leave the backend out, or give one of the CPU's runtimes")
    backend, precision, run = setting.backend.removeprefix("gpu-"), setting.precision, setting.runtime
    place, config = f"{backend}:{facts.name}", f"{backend}:{facts.name}|{facts.config}"
    peak = (
        facts.gpu_fp32_gflops or 20.0 * facts.bandwidth_gb_per_s
    )  # FLOP a byte, as of the Jetsons; only where no source has one
    if precision != "fp32":
        peak = (facts.gpu_int8_gops if precision == "int8" else 0.0) or facts.gpu_fp16_gflops or 2 * peak
    elif backend != "vulkan" and "Ampere" in facts.gpu:
        peak = max(peak, facts.gpu_fp16_gflops / 2)  # TF32 on tensor cores, which CUDA's libraries take by themselves
    size = {"fp32": 4, "fp16": 2, "int8": 1}[precision]
    flop, memory = 2e-6 / peak, size * 1e-6 / facts.bandwidth_gb_per_s
    for count, name, unit, group in (
        ("winograd", "winograd", flop, "d"), ("conv", "conv", flop, "d"), ("pointwise", "pointwise", flop, "d"),
        ("depthwise", "depthwise", flop, "d"), ("stored", "weights", memory, "m"), ("moved", "traffic", memory, "m"),
        ("kernels", "start", 1e-2, "l"), ("other", "start0", 1e-2, "l"), ("boxes", "boxes", 1e-6, "l"),
        ("once", "once", 1.0, "l"),
    ):  # fmt: skip
        effects = {f"gpu:{backend}:{name}": 1.0, f"gpudev:{place}": 1.0, f"gpudev:{place}:{group}": 1.0}
        effects |= {f"gpuarch:{facts.gpu}": 1.0, f"gpuarch:{facts.gpu}:{group}": 1.0}
        effects |= {f"gpucost:{place}:{name}": 1.0, f"gpucfg:{config}": 1.0, f"gpurun:{run}": 1.0, f"gpurun:{run}:{group}": 1.0}
        effects |= {f"gpuprec:{backend}:{precision}:{group}": 1.0, f"nopeak:{group}": float(not facts.gpu_fp32_gflops)}
        yield count, Cost(f"gpu:{name}", group, unit, tuple((e, f) for e, f in effects.items() if f))


def nominal(found: Array, pairs: Sequence[tuple[str, Cost]]) -> Array:
    """Nominal milliseconds of each layer by each cost: layers x costs. `found` are `counts`."""
    column = {name: found[:, i] for i, name in enumerate(COUNTS)}
    column["matrix"] = column["winograd"] + column["conv"] + column["pointwise"]
    column["starts"] = column["work"] + column["other"] + column["groups"]
    column["kernels"] = column["work"] + column["grouped"]  # a GPU runs all groups at once
    column["once"] = np.zeros(len(found))
    column["once"][np.flatnonzero(found.any(axis=1))[:1]] = 1.0
    return np.stack([cost.unit_ms * column[count] for count, cost in pairs], axis=1)


def factors(pairs: Sequence[tuple[str, Cost]], effects: Mapping[str, float]) -> Array:
    """What each cost's nominal time is multiplied with."""
    return np.exp([sum(effects.get(name, 0.0) * factor for name, factor in cost.effects) for _, cost in pairs])


def predict(
    layers: Sequence[Layer],
    facts: DeviceFacts,
    setting: Setting,
    *,
    known: Constants | None = None,
    fitted: Fitted | None = None,
) -> Prediction:
    """Time of the layers on a device. `fitted` is what `latency_fit.refit` made of a user's own reports.

    Raises TargetError where no layer takes time, DeviceError where the facts do not allow the setting.
    """
    known = known or constants()
    pairs = costs(facts, setting)
    found = counts(layers, setting.precision, setting.runtime != "ncnn")
    if not found.any():
        raise TargetError("no layer that takes time")
    factor = factors(pairs, known.effects)
    if fitted is not None:
        factor *= np.exp(
            [fitted.scale + fitted.groups.get(cost.group, 0.0) + fitted.groups.get(cost.name, 0.0) for _, cost in pairs]
        )
    times = (nominal(found, pairs) * factor).sum(axis=1)  # a product of matrices would round by their size
    group = group_of(facts, setting, known)
    low, high = known.intervals[group]
    if fitted is not None:
        low, high, group = fitted.low, fitted.high, fitted.whence
    total = math.fsum(times)
    strange, widen = _strangeness(layers, times, facts, setting, known)
    if fitted is not None:
        beyond = _beyond(layers, found, setting, fitted)
        strange, widen = (*strange, *beyond), widen + UNSURE * len(beyond)
    return Prediction(
        total, total * math.exp(-low * widen), total * math.exp(high * widen), tuple(map(float, times)), group, strange
    )


FITTED = ("fitted", "fitted few", "fitted own")
"""Where the interval of a fit is from: networks of chips left out; these or its own records left out, the wider; its own."""
UNSURE = 0.5
"""How much wider an interval is, in its own widths, for each way in which a run is beyond what was fitted to."""
_OWN_COST = frozenset(["norm", "other"])
"""Kinds of operators that have little in common: one local response normalisation costs as much as all convolutions beside it."""


def operators(layers: Sequence[Layer], found: Array) -> tuple[str, ...]:
    """What a fit to these layers knows, each once: kinds of layers that take time (`found` are `counts`), or operators."""
    timed = [layer for layer, row in zip(layers, found, strict=True) if row.any()]
    return tuple(sorted({layer.op if layer.kind in _OWN_COST else layer.kind for layer in timed}))


def _beyond(layers: Sequence[Layer], found: Array, setting: Setting, fitted: Fitted) -> tuple[str, ...]:
    """In which ways a run is unlike the records of a fit."""
    if not fitted.precisions:
        return ("the fit does not say what was run with how many threads: it is of an older edgesdk",)
    reasons = []
    if setting.threads is not None and setting.threads not in fitted.threads:
        reasons.append(f"fitted on {' and '.join(map(str, fitted.threads))} threads, not on {setting.threads}")
    if setting.precision not in fitted.precisions:
        reasons.append(f"fitted in {' and '.join(fitted.precisions)}, not in {setting.precision}")
    strange = sorted(set(operators(layers, found)) - set(fitted.operators))
    if strange:
        reasons.append(f"in none of the networks fitted to: {', '.join(strange)}")
    return tuple(reasons)


def published_runtimes() -> tuple[str, ...]:
    """Names of runtimes of which something was measured on a CPU."""
    found = {name.split(":")[1] for name in constants().effects if name.startswith("run:")}
    return ("ncnn", *sorted(found))


def is_measured(setting: Setting) -> bool:
    """Whether the runtime was measured in that arithmetic, on whatever device."""
    return (setting.runtime, setting.backend, setting.precision) in {way for _, way in _measured_ways()}


def group_of(facts: DeviceFacts, setting: Setting, known: Constants) -> str:
    """Which interval holds: the device and runtime were measured, the device in another runtime, or neither."""
    if setting.backend == "cpu":
        if f"dev:{facts.name}" not in known.effects:
            return "unknown int8" if setting.precision == "int8" else "unknown"
        if setting.precision == "int8" and f"{INT8}dev:{facts.name}" not in known.effects:
            return "unknown int8"
        if setting.runtime == "ncnn" or f"rundev:{setting.runtime}:{facts.name}" in known.effects:
            kind = "int8" if setting.precision == "int8" else "measured"
            return kind if setting.runtime == "ncnn" else "other measured"
        return "other"
    backend = setting.backend.removeprefix("gpu-")
    if f"gpudev:{backend}:{facts.name}" in known.effects:
        return f"gpu {backend}"
    return "unknown gpu" if facts.gpu_fp32_gflops else "unknown gpu without peak"


def _strangeness(
    layers: Sequence[Layer], times: Array, facts: DeviceFacts, setting: Setting, known: Constants
) -> tuple[tuple[str, ...], float]:
    """What about the network is unlike those behind the constants, and how much wider the interval must be for it."""
    place = f"{facts.name}|{setting.backend}"
    seen = set(known.seen.get(place, known.seen.get(f"|{setting.backend}", ())))
    reasons, widen = [], 1.0
    kinds = {layer.kind for layer in layers} - _FREE - seen
    if kinds:
        share = sum(time for layer, time in zip(layers, times, strict=True) if layer.kind in kinds) / max(times.sum(), 1e-12)
        reasons.append(f"kinds outside the networks measured here: {', '.join(sorted(kinds))} ({share:.0%} of the time)")
        widen = (1.5 if kinds & ATTENTION else 1.0) + share
    macs, (least, most) = sum(layer.macs for layer in layers), known.macs
    beyond = max(least / max(macs, 1), macs / most, 1.0)
    if beyond > 2:
        reasons.append(
            f"{macs / 1e6:,.1f} million MACs; measured were networks of {least / 1e6:,.0f} to {most / 1e6:,.0f} million"
        )
        widen += 0.5 * math.log10(beyond)
    return tuple(reasons), widen
