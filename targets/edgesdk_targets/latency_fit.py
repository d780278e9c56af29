"""Fitting of latency_model: to the published measurements, and to a user's own reports.

Maximum a posteriori on log latency by Gauss-Newton: every effect has a prior, that of a device, runtime or setting is centred
on what the facts predict (partial pooling), and each family of networks has a residual of its own, so that a family counts
as one witness however many devices ran it. `python -m edgesdk_targets.latency_fit` writes latency_constants.json.
"""

from __future__ import annotations

import csv
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters import fields
from edgesdk_converters.cost import Layer, load_layers
from edgesdk_converters.errors import DeviceError

from . import latency_model as model
from .latency_model import Constants, DeviceFacts, Fitted, Setting
from .report import Report

Array = NDArray[np.float64]
FORMAT = "edgesdk-latency-fit/1"
NOISE, FAMILY = 0.05, 0.15
"""Standard deviations of log latency: of one row, and of a family of networks around its prediction."""
HUBER = 1.5
HELD = 0.02
ROUNDS = 60
ZOO = {
    "zoo/image_classification_mobilenetv1_2022apr": "mobilenet", "zoo/image_classification_mobilenetv2_2022apr": "mobilenet_v2",
    "zoo/image_classification_ppresnet50_2022jan": "resnet50", "zoo/image_classification_ppresnet50_2022jan_int8": "resnet50",
}  # fmt: skip
"""OpenCV Zoo's files have no published layer list; these three are the same architectures but for details."""

COSTS = {
    "winograd": (0.3, 0.2), "conv": (0.5, 0.2), "pointwise": (0.3, 0.2), "depthwise": (1.3, 0.25), "fetch": (0.0, 0.3),
    "weights": (0.3, 0.25), "weights1": (0.3, 0.3), "spill": (0.0, 0.4), "traffic": (0.5, 0.3), "tiles": (0.0, 0.3),
    "copies": (0.8, 0.3), "boxes": (1.5, 0.25), "start": (1.5, 0.4), "start0": (1.0, 0.4), "startg": (1.5, 0.4),
    "join": (0.0, 0.3),
}  # fmt: skip
"""Mean and deviation of the log factor on each cost: two to four times the nominal time are usual."""
GPU_COSTS = {
    "winograd": (0.7, 0.5), "conv": (1.2, 0.5), "pointwise": (1.0, 0.5), "depthwise": (2.0, 0.5), "weights": (0.5, 0.4),
    "traffic": (0.5, 0.4), "start": (0.8, 0.6), "start0": (0.5, 0.6), "boxes": (1.5, 0.5), "once": (-1.0, 0.7),
}  # fmt: skip
SLOPES = {"threads:d": (0.15, 0.3), "threads:a": (-0.5, 0.3), "uneven": (0.9, 0.1)}
GROUPS = ("d", "a", "m", "s", "l")
SPREADS = {
    "all": (0.2, 0.0),
    "dev": (0.3, 0.25), "cfg": (0.15, 0.0), "half": (0.3, 0.3), "inorder": (0.0, 0.3), "armv9": (0.0, 0.3), "wide": (0.0, 0.3),
    "int8": (0.15, 0.15), "dot": (0.0, 0.4), "i8mm": (0.0, 0.4),
    "run": (1.0, 0.5), "rundev": (0.3, 0.3), "unstated": (0.3, 0.2), "gpudev": (0.35, 0.3), "gpucfg": (0.2, 0.2),
    "gpurun": (0.5, 0.4), "gpuprec": (0.0, 0.3), "nopeak": (0.0, 0.7), "devcost": (0.2, 0.2), "gpucost": (0.3, 0.3),
    "core": (0.3, 0.25), "gpuarch": (0.5, 0.4),
}  # fmt: skip
"""Deviation of effects of one name and of a name with a group of costs."""


@dataclass(frozen=True)
class Row:
    """A published measurement: `latency_ms` is the least where the source gives it, else the mean."""

    facts: DeviceFacts
    setting: Setting
    network: str
    latency_ms: float
    noise: float = NOISE

    @property
    def family(self) -> str:
        """A network with its sizes and precisions; they leave a cross-validation together."""
        return next((name for name in ("yolo11", "yolov8") if self.network.startswith(name)), self.network)

    @property
    def soc(self) -> str:
        """Boards of one chip, which leave a cross-validation together."""
        return "Tegra234" if "Orin" in self.facts.name else self.facts.name


@functools.cache
def rows() -> tuple[Row, ...]:
    """The published rows that have a layer list and are not suspect."""
    found = []
    with (model.FOLDER / "measurements.csv").open(encoding="utf-8", newline="") as stream:
        for entry in csv.DictReader(stream):
            if entry["quality"] == "suspect":
                continue
            ncnn = entry["runtime"] == "ncnn"
            least, mean = entry["latency_ms_min"], entry["latency_ms_avg"]
            setting = Setting(
                entry["runtime"], entry["backend"], int(entry["threads"]) if entry["threads"] else None, entry["precision"],
                int(entry["powersave"] or 0),
            )  # fmt: skip
            network = ZOO.get(entry["network"], entry["network"].removesuffix("_int8"))
            found.append(
                Row(
                    model.published_facts(entry["device"], entry["config"]), setting, network,
                    float((least if ncnn else mean) or mean or least), NOISE * (1.0 if entry["quality"] == "ok" else 1.7),
                )
            )  # fmt: skip
    return tuple(found)


@functools.cache
def network(name: str) -> tuple[Layer, ...]:
    """Layers of a published network."""
    return load_layers(model.FOLDER / "networks" / f"{name}.json")


@functools.cache
def _counts(name: str, precision: str, fuses: bool) -> Array:
    found: Array = model.counts(network(name), precision, fuses).sum(axis=0, keepdims=True)
    return found


def prior(name: str) -> tuple[float, float]:
    """Mean and standard deviation of an effect before any measurement. int8 has few networks, so its costs keep nearer."""
    if name.startswith(model.INT8):
        mean, deviation = prior(name.removeprefix(model.INT8))
        return mean, deviation / 2 if name.removeprefix(model.INT8) in COSTS else deviation
    if name in COSTS:
        return COSTS[name]
    if name in SLOPES:
        return SLOPES[name]
    head, *rest = name.split(":")
    if head == "gpu":
        return GPU_COSTS[rest[1]]
    alone, grouped = SPREADS[head]
    return 0.0, grouped if rest and rest[-1] in GROUPS else alone


@dataclass(frozen=True)
class _Design:
    """Rows that run in one setting: their nominal times by cost, in logs, and which effects each cost has."""

    index: NDArray[np.int64]
    columns: NDArray[np.int64]
    effects: Array
    logs: Array


def _designs(sample: Sequence[Row], names: dict[str, int]) -> list[_Design]:
    groups: dict[tuple[DeviceFacts, Setting], list[int]] = {}
    for i, row in enumerate(sample):
        groups.setdefault((row.facts, row.setting), []).append(i)
    designs = []
    for (facts, setting), members in groups.items():
        pairs = model.costs(facts, setting)
        used = sorted({name for _, cost in pairs for name, _ in cost.effects})
        place = {name: i for i, name in enumerate(used)}
        effects = np.zeros((len(pairs), len(used)))
        for i, (_, cost) in enumerate(pairs):
            for name, factor in cost.effects:
                effects[i, place[name]] = factor
        columns = np.array([names.setdefault(name, len(names)) for name in used])
        fuses = setting.runtime != "ncnn"
        times = [model.nominal(_counts(sample[i].network, setting.precision, fuses), pairs).sum(axis=0) for i in members]
        designs.append(_Design(np.array(members), columns, effects, np.log(np.maximum(np.stack(times), 1e-30))))
    return designs


def fit(sample: Sequence[Row], start: Mapping[str, float] | None = None) -> dict[str, float]:
    """Effects by name: fp32 and int8 in ncnn on CPUs, what other runtimes differ from that by; each GPU backend by itself.

    In stages, because the one family that other runtimes ran would else bend what ncnn has shown.
    """
    found: dict[str, float] = {}
    for name in ("plain", "int8", "other", *model.BACKENDS[1:]):
        members = [row for row in sample if stage(row) == name]
        if members:
            found |= _solve(members, found, start or {})
    return found


def stage(row: Row) -> str:
    """In which stage of the fit a row takes part."""
    if row.setting.backend != "cpu":
        return row.setting.backend
    if row.setting.runtime != "ncnn" or row.setting.threads is None:
        return "other"
    return "int8" if row.setting.precision == "int8" else "plain"


def _solve(sample: Sequence[Row], given: Mapping[str, float], start: Mapping[str, float]) -> dict[str, float]:
    """Effects of one stage. Those `given` by an earlier one hardly move."""
    names: dict[str, int] = {}
    designs = _designs(sample, names)
    families = {name: i for i, name in enumerate(dict.fromkeys(row.family for row in sample))}
    member = np.array([families[row.family] for row in sample]) + len(names)
    size = len(names) + len(families)
    priors = [(given[name], HELD) if name in given else prior(name) for name in names]
    mean = np.array([m for m, _ in priors] + [0.0] * len(families))
    spread = np.array([s for _, s in priors] + [FAMILY] * len(families))
    beta = mean.copy()
    for name, i in names.items():
        beta[i] = start.get(name, beta[i])
    target = np.log([row.latency_ms for row in sample])
    noise = np.array([row.noise for row in sample])
    damping, best, slopes = 1e-2, math.inf, np.zeros((len(sample), size))
    tried = beta
    for _ in range(ROUNDS):
        value, fresh = _evaluate(designs, tried, slopes.shape)
        error = target - value - tried[member]
        fresh[np.arange(len(sample)), member] = 1.0
        loss = _huber(error / noise) + float((((tried - mean) / spread) ** 2).sum())
        if loss < best:
            done = best - loss < 1e-3 * loss
            beta, best, damping, slopes = tried, loss, damping / 4, fresh
            if done:
                break
            weight = 1 / noise**2 * np.minimum(1.0, HUBER * noise / np.maximum(np.abs(error), 1e-12))
            normal = (slopes * weight[:, None]).T @ slopes
            normal[np.diag_indices(size)] += 1 / spread**2
            downhill = slopes.T @ (weight * error) - (beta - mean) / spread**2
        else:
            damping *= 6
        damped = normal.copy()
        damped[np.diag_indices(size)] *= 1 + damping
        tried = beta + np.linalg.solve(damped, downhill)
    return {name: given.get(name, float(beta[i])) for name, i in names.items()}


def _evaluate(designs: Sequence[_Design], beta: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Log latency of each row, and its slope by each effect: the share of time of the costs that the effect scales."""
    value, slopes = np.zeros(shape[0]), np.zeros(shape)
    for design in designs:
        terms = design.logs + design.effects @ beta[design.columns]
        top = terms.max(axis=1, keepdims=True)
        share = np.exp(terms - top)
        whole = share.sum(axis=1, keepdims=True)
        value[design.index] = (top + np.log(whole))[:, 0]
        slopes[np.ix_(design.index, design.columns)] = (share / whole) @ design.effects
    return value, slopes


def _huber(errors: Array) -> float:
    size = np.abs(errors)
    return float(np.where(size <= HUBER, size**2, 2 * HUBER * size - HUBER**2).sum())


def apply(effects: Mapping[str, float], sample: Sequence[Row]) -> Array:
    """Milliseconds that effects predict for rows."""
    names: dict[str, int] = {}
    designs = _designs(sample, names)
    beta = np.array([effects.get(name, 0.0) for name in names])
    found = np.zeros(len(sample))
    for design in designs:
        found[design.index] = np.exp(design.logs + design.effects @ beta[design.columns]).sum(axis=1)
    return found


def residuals(sample: Sequence[Row], key: Callable[[Row], str]) -> tuple[Array, list[str]]:
    """log(measured / predicted) of each row when its `key` is left out, and the group of intervals it then falls in."""
    start = fit(sample)
    found, groups = np.zeros(len(sample)), [""] * len(sample)
    for left in dict.fromkeys(map(key, sample)):
        out = [i for i, row in enumerate(sample) if key(row) == left]
        effects = fit([row for row in sample if key(row) != left], start)
        known = Constants(effects)
        for i in out:
            groups[i] = model.group_of(sample[i].facts, sample[i].setting, known)
        found[out] = np.log([sample[i].latency_ms for i in out]) - np.log(apply(effects, [sample[i] for i in out]))
    return found, groups


FEW_ERRORS, TOO_FEW = 80, 3
"""Errors below which both sides share one quantile, and families below which a GPU is given the interval of a stranger."""


def spread(errors: Array, witnesses: int) -> tuple[float, float]:
    """How far below and above its prediction a time lies with probability LEVEL, from errors of rows that were left out.

    `witnesses` is how many families or chips they are of: quantiles of few lack the tails of all that may come.
    """
    margin = 1 + min(0.3, 1.5 / witnesses)
    if len(errors) < FEW_ERRORS:
        both = float(np.quantile(np.abs(errors), model.LEVEL)) * margin
        return both, both
    low, high = np.quantile(errors, [(1 - model.LEVEL) / 2, (1 + model.LEVEL) / 2])
    return -float(low) * margin, float(high) * margin


def parts(sample: Sequence[Row]) -> tuple[list[int], list[int]]:
    """Indices of the rows of CPUs and of GPUs."""
    on_cpu = [row.setting.backend == "cpu" for row in sample]
    return [i for i, yes in enumerate(on_cpu) if yes], [i for i, yes in enumerate(on_cpu) if not yes]


def calibrate(sample: Sequence[Row]) -> Constants:
    """Constants from published rows: effects from all of them, intervals from leaving out families and chips."""
    pools: dict[str, list[tuple[float, str]]] = {}
    for key in (_family, _soc):
        errors, groups = residuals(sample, key)
        for error, group, row in zip(errors, groups, sample, strict=True):
            pools.setdefault(group, []).append((float(error), key(row)))
    for name in [name for name in pools if name.startswith("gpu") and len({key for _, key in pools[name]}) < TOO_FEW]:
        pools[name] = pools["unknown gpu"]
    for name, members in zip(("fitted", "fitted gpu"), parts(sample), strict=True):
        chips = [sample[i] for i in members]
        pools[name] = [(float(error), str(i % len({row.soc for row in chips}))) for i, error in enumerate(few_networks(chips)[0])]
    seen: dict[str, set[str]] = {}
    for row in sample:
        kinds = {layer.kind for layer in network(row.network)}
        for place in (f"{row.facts.name}|{row.setting.backend}", f"|{row.setting.backend}"):
            seen.setdefault(place, set()).update(kinds)
    macs = [sum(layer.macs for layer in network(row.network)) for row in sample]
    return Constants(
        fit(sample),
        {
            group: spread(np.array([error for error, _ in pool]), len({key for _, key in pool}))
            for group, pool in sorted(pools.items())
        },
        {place: sorted(kinds) for place, kinds in sorted(seen.items())},
        (float(min(macs)), float(max(macs))),
        "published_latency/measurements.csv: Tencent/ncnn benchmark, OpenCV Zoo, Ultralytics; facts with their sources",
    )


def _family(row: Row) -> str:
    return row.family


def _soc(row: Row) -> str:
    return row.soc


def to_json(known: Constants) -> str:
    """The text of latency_constants.json; `latency_model.read_constants` reads it."""
    data = {
        "source": known.source, "macs": list(known.macs),
        "intervals": {k: [round(x, 4) for x in both] for k, both in known.intervals.items()},
        "seen": dict(known.seen), "effects": {name: round(value, 4) for name, value in sorted(known.effects.items())},
    }  # fmt: skip
    return json.dumps(data, indent=0, separators=(",", ":")) + "\n"


@dataclass(frozen=True)
class Record:
    """A user's own measurement: p50 of a network on the device, run as the setting says."""

    layers: tuple[Layer, ...]
    latency_ms: float
    setting: Setting


def record(report: Report, layers: Sequence[Layer], setting: Setting) -> Record:
    """From a report that `edgesdk measure` wrote. Raises DeviceError where it has no measured latency."""
    figure = report.find("latency_ms")
    if figure is None or figure.provenance != "measured" or figure.value is None or figure.value <= 0:
        raise DeviceError(
            f"the report of {report.model} has no measured latency_ms", "make one with edgesdk measure on the board"
        )
    return Record(tuple(layers), float(figure.value), setting)


GROUPED_FROM = 6
"""Records from which arithmetic, memory and starts are told apart; fewer only say how fast the device is as a whole."""
SINGLE_FROM = 24
"""Records from which every cost is told apart: 3x3 convolutions, which only some runtimes transform, from 1x1 and depthwise."""


def refit(records: Sequence[Record], facts: DeviceFacts, known: Constants | None = None) -> Fitted:
    """What a user's records on one device say beyond the constants, shrunk to them. Raises DeviceError for none, or a mixture."""
    known = known or model.constants()
    ways = {(entry.setting.runtime, entry.setting.backend) for entry in records}
    if len(ways) != 1:
        shown = ", ".join(f"{runtime} on {backend}" for runtime, backend in sorted(ways)) or "none"
        raise DeviceError(f"records must be of one runtime and backend, got {shown}", "fit each by itself")
    if any(not (entry.latency_ms > 0 and math.isfinite(entry.latency_ms)) for entry in records):
        raise DeviceError("every record needs a latency above 0 ms")
    groups = sorted(GROUPS) if len(records) >= GROUPED_FROM else []
    single = [cost.name for _, cost in model.costs(facts, records[0].setting)] if len(records) >= SINGLE_FROM else []
    names = ["", *groups, *single]
    group = model.group_of(facts, records[0].setting, known)
    widths = known.intervals.get(group, (0.6, 0.6))
    prior_spread = np.array([max(sum(widths) / 3.3, 0.1), *([0.25] * len(groups)), *([0.5] * len(single))])
    slopes_of, logs, target = [], [], np.log([entry.latency_ms for entry in records])
    operators: set[str] = set()
    for entry in records:
        pairs = model.costs(facts, entry.setting)
        found = model.counts(entry.layers, entry.setting.precision, entry.setting.runtime != "ncnn")
        times = (model.nominal(found, pairs) * model.factors(pairs, known.effects)).sum(axis=0)
        if times.sum() <= 0:
            raise DeviceError("a record's network has no layer that takes time")
        operators.update(model.operators(entry.layers, found))
        logs.append(np.log(np.maximum(times, 1e-30)))
        slopes_of.append(np.array([[1.0, *(float(name in (cost.group, cost.name)) for name in names[1:])] for _, cost in pairs]))
    beta = np.zeros(len(names))
    for _ in range(20):
        value, slopes = np.zeros(len(records)), np.zeros((len(records), len(names)))
        for i, (log, slope) in enumerate(zip(logs, slopes_of, strict=True)):
            times = np.exp(log + slope @ beta)
            value[i], slopes[i] = math.log(times.sum()), (times / times.sum()) @ slope
        normal = slopes.T @ slopes / OWN**2 + np.diag(1 / prior_spread**2)
        step = np.linalg.solve(normal, slopes.T @ (target - value) / OWN**2 - beta / prior_spread**2)
        beta += step * min(1.0, 1.0 / max(float(np.abs(step).max()), 1e-12))
        if float(np.abs(step).max()) < 1e-5:
            break
    wider = math.sqrt((1 + 1 / len(records)) / (1 + 1 / FEW))
    runtime, backend = next(iter(ways))
    low, high = known.intervals.get("fitted" if backend == "cpu" else "fitted gpu", (0.4, 0.4))
    shares = {name: float(value) for name, value in zip(names[1:], beta[1:], strict=True)}
    settings = [entry.setting for entry in records]
    return Fitted(
        facts.name, runtime, backend, float(beta[0]), shares, low * wider, high * wider, len(records),
        tuple(sorted({one.threads for one in settings if one.threads is not None})),
        tuple(sorted({one.precision for one in settings})), tuple(sorted(operators)),
    )  # fmt: skip


OWN, FEW = 0.15, 3
"""Deviation of log latency of one network around a fitted device, and the fewest reports that help."""


def fitted_to_json(found: Fitted) -> dict[str, Any]:
    """The file that `estimate` takes: {format, device, runtime, backend, scale, groups, low, high, records, threads, …}."""
    return {"format": FORMAT, **fields.plain(found), "groups": dict(found.groups)}


def fitted_from_json(data: object) -> Fitted:
    """Raises DeviceError for anything that `fitted_to_json` did not make."""
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        raise DeviceError(f"no fit of an estimator: expected format {FORMAT!r}", "make one with edgesdk fit")
    found = fields.read(Fitted, {k: v for k, v in data.items() if k != "format"}, "fit", DeviceError)
    numbers = (found.scale, found.low, found.high, *found.groups.values())
    if not all(map(math.isfinite, numbers)) or min(found.low, found.high) < 0:
        raise DeviceError("fit: scale, groups, low and high must be finite, the last two 0 or more")
    if found.whence not in model.FITTED:
        raise DeviceError(f"fit: whence is {found.whence!r}; allowed: {', '.join(model.FITTED)}")
    return found


def few_networks(sample: Sequence[Row], count: int = FEW, draws: int = 4) -> tuple[Array, Array]:
    """log(measured / predicted) on each chip left out, with `count` of its networks given by `refit`, and without them.

    Networks are drawn with a fixed seed, for each device, setting by setting; only settings with twice as many are used.
    """
    random = np.random.default_rng(7)
    after: list[float] = []
    before: list[float] = []
    for left in dict.fromkeys(row.soc for row in sample):
        known = Constants(fit([row for row in sample if row.soc != left]))
        places: dict[tuple[DeviceFacts, Setting], list[Row]] = {}
        for row in sample:
            if row.soc == left:
                places.setdefault((row.facts, row.setting), []).append(row)
        for (facts, setting), rows_here in places.items():
            if len({row.network for row in rows_here}) < 2 * count + 1:
                continue
            for _ in range(draws):
                given = random.choice(len(rows_here), count, replace=False)
                records = [Record(network(rows_here[i].network), rows_here[i].latency_ms, setting) for i in given]
                found = refit(records, facts, known)
                rest = [row for i, row in enumerate(rows_here) if i not in given]
                plain = apply(known.effects, rest) if rest else np.zeros(0)
                times = np.log([row.latency_ms for row in rest])
                before.extend(times - np.log(plain))
                after.extend(times - np.log(plain) - found.scale)
    return np.array(after), np.array(before)


def main() -> None:
    """Fit anew and write latency_constants.json."""
    model.CONSTANTS.write_text(to_json(calibrate(rows())), encoding="utf-8")


if __name__ == "__main__":
    main()
