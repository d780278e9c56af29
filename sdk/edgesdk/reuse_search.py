"""The search for reuse factors of hls4ml's layers on a part, by estimate: what none beats, and what to take."""

from __future__ import annotations

import math
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgesdk_converters.errors import DeviceError, RecipeError
from edgesdk_targets import runner
from edgesdk_targets.figure import Figure
from edgesdk_targets.fpga import flow_hls4ml, resources
from edgesdk_targets.fpga import reuse as factors
from edgesdk_targets.fpga.dense_spec import check_settings, parse
from edgesdk_targets.fpga.hls4ml_constants import read_constants
from edgesdk_targets.fpga.hls4ml_estimate import count, in_bram18, layers_from_cost
from edgesdk_targets.fpga.target import Fpga
from edgesdk_targets.target import device_profile, make

if TYPE_CHECKING:
    from edgesdk_converters.model import Model
    from edgesdk_targets.fpga.hls4ml_estimate import Counted
    from edgesdk_targets.fpga.hls4ml_terms import FixedLayer
    from edgesdk_targets.fpga.resources import Capacity

DENSE, STAND_IN = "dense:", "MODEL.onnx"
PART = ("lut", "ff", "dsp", "bram")
LIMITED = ("cycles", *PART)
BITS = range(2, 17)
"""Of weights that an export can have."""
QUIET_S, EVERY_S = 1.0, 0.5
"""Seconds until a search tells of its progress, and between two tellings."""


@dataclass(frozen=True, eq=False)
class Choice:
    """Reuse factors by layer and what they are estimated to cost, block RAM in blocks of 18 kbit.

    `unlike` says in what they are unlike the results that the estimator knows, empty inside its data; `within` that the
    estimates are within the limits, `surely` that the high ends of their intervals are too; `best` that no other choice within
    the limits has fewer cycles for as few LUTs. `fill` is the greatest share of the part that is taken, of `fullest`.
    """

    reuse_factors: Mapping[str, int]
    figures: tuple[Figure, ...]
    unlike: tuple[str, ...]
    within: bool
    surely: bool
    best: bool
    fill: float
    fullest: str

    @property
    def extrapolated(self) -> bool:
        return bool(self.unlike)

    def find(self, name: str) -> Figure:
        return next(figure for figure in self.figures if figure.name == name)

    def value(self, name: str) -> float:
        found = self.find(name).value
        return math.inf if found is None else float(found)


@dataclass(frozen=True, eq=False)
class ReuseSearch:
    """What no choice of reuse factors beats in cycles, LUTs, flip-flops, DSPs and memories together, by ascending cycles.

    `choices` has those beyond the limits too, of which at least one is within; `taken` has the fewest cycles within them, `safe`
    the fewest of those whose intervals are within as well. `complete` is whether all choices were tried. `common` are the ways
    in which every choice is unlike the estimator's data. `export` is the command that makes what was taken; where the network is
    no model yet its words name MODEL.onnx. It is empty where no export has such bits. `notes` are of what was taken.
    """

    model: str
    device: str
    part: str
    strategy: str
    clock_ns: float
    layers: tuple[factors.Layer, ...]
    capacity: Mapping[str, Capacity]
    limits: Mapping[str, float]
    choices: tuple[Choice, ...]
    complete: bool
    estimates: int
    export: str
    notes: tuple[str, ...]

    @property
    def within(self) -> tuple[Choice, ...]:
        return tuple(choice for choice in self.choices if choice.within)

    @property
    def best(self) -> tuple[Choice, ...]:
        return tuple(choice for choice in self.choices if choice.best)

    @property
    def taken(self) -> Choice:
        return self.best[0]

    @property
    def safe(self) -> Choice | None:
        return next((choice for choice in self.choices if choice.surely), None)

    @property
    def common(self) -> tuple[str, ...]:
        first, *rest = self.choices
        return tuple(told for told in first.unlike if all(told in choice.unlike for choice in rest))


def reuse(
    model: str | os.PathLike[str] | Model,
    *,
    device: str,
    limits: Mapping[str, float] | None = None,
    settings: Mapping[str, str] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    progress: Callable[[str], None] = runner.silent,
) -> ReuseSearch:
    """Search the reuse factors of hls4ml's layers for what no other choice beats, by estimate; no tool is needed.

    `limits` are the most of `cycles`, `lut`, `ff`, `dsp`, `bram` (blocks of 18 kbit); the part's own hold besides. `settings` are
    the FPGA target's options (`strategy`, by default resource; `bits`, `clock_ns`, `io_type`). Raises DoesNotFit where nothing
    that was tried is within the limits, Unsupported where a layer has no formula, DeviceError for what is no FPGA of hls4ml's.
    """
    wanted = limits or {}
    for limit, bound in wanted.items():
        if limit not in LIMITED or not 0 <= bound < math.inf:
            raise RecipeError(f"a limit of {bound:g} for {limit!r}; limited are {', '.join(LIMITED)}, from 0 on")
    given = dict(settings or {})
    target = _target(device, given)
    name, network, exported = _network(model, target, given, shapes, progress)
    folding = _layers(network, target.strategy, target.io_type)
    capacity = resources.capacities(target.device)
    bounds = {"cycles": wanted["cycles"]} if "cycles" in wanted else {}
    bounds |= {one: min(wanted.get(one, math.inf), float(capacity[one].have)) for one in PART}
    estimator = _Estimator(network, target, progress)
    ways = math.prod(len(layer.legal) for layer in folding)
    found = factors.search(folding, estimator)
    if not any(_is_within(point.value, bounds) for point in found):
        factors.search(folding, estimator, bounds)  # whose error names the limit and what comes nearest to it
    choices = tuple(_choices(found, bounds, capacity, estimator))
    taken = next(choice for choice in choices if choice.best)
    bits, has_widths = max(layer.weight_bits for layer in network), bool(target.activation_bits or target.accumulator_bits)
    if name.startswith(DENSE):
        given["bits"] = str(bits)
    export = _command(exported, target, given, shapes or {}, taken.reuse_factors) if bits in BITS and not has_widths else ""
    needs = {row.name: row.interval for row in taken.figures if row.name in PART and row.interval is not None}
    return ReuseSearch(
        name, target.device.name, target.device.get("part", str) or "", target.strategy, 1e3 / target.clock_mhz, folding,
        capacity, bounds, choices, ways <= factors.EXHAUSTIVE, estimator.count, export, resources.check(target.device, needs),
    )  # fmt: skip


class _Estimator:
    """Totals of choices, those that were asked for before from memory; tells of its progress when it takes long."""

    def __init__(self, network: Sequence[FixedLayer], target: Fpga, progress: Callable[[str], None]) -> None:
        self._network, self._target, self._progress = network, target, progress
        self._constants = read_constants(Path(target.constants)) if target.constants else None
        self._known: dict[tuple[int, ...], tuple[Figure, ...]] = {}
        self._told = time.monotonic() + QUIET_S

    @property
    def count(self) -> int:
        return len(self._known)

    def __call__(self, given: Mapping[str, int]) -> tuple[Figure, ...]:
        key = tuple(given.values())
        if key not in self._known:
            rows = self._counted(given).totals()
            self._known[key] = tuple(in_bram18(row) if row.name == "bram" else row for row in rows)
            if time.monotonic() >= self._told:
                self._told = time.monotonic() + EVERY_S
                self._progress(f"{self.count:,} choices of reuse factors estimated")
        return self._known[key]

    def unlike(self, given: Mapping[str, int]) -> tuple[str, ...]:
        """In what a choice is unlike the estimator's data."""
        return tuple(one.told for one in self._counted(given).apart)

    def _counted(self, given: Mapping[str, int]) -> Counted:
        target = self._target
        return count(
            self._network, reuse_factors=given, strategy=target.strategy, clock_ns=1e3 / target.clock_mhz, io_type=target.io_type,
            part=target.device.get("part", str) or "", constants=self._constants,
        )  # fmt: skip


def _target(device: str, given: Mapping[str, str]) -> Fpga:
    profile = device_profile(device)
    if profile.target != Fpga.name or profile.get("family", str) == "ecp5":
        raise DeviceError(
            f"{device} is no FPGA that hls4ml has a back end for, and reuse factors are hls4ml's",
            "give a Xilinx device; edgesdk devices lists them",
        )
    for name in ("reuse_factor", "reuse_factors"):
        if name in given:
            raise RecipeError(f"{name} is what is searched for", f"edgesdk estimate with --set {name} tells of one choice")
    if given.get("flow", "hls4ml") != "hls4ml":
        raise RecipeError(f"reuse factors are of the flow hls4ml, not of {given['flow']}", "leave --set flow out")
    found = make(None, device, {"flow": "hls4ml", "strategy": "resource"} | dict(given))
    assert isinstance(found, Fpga)
    return found


def _network(
    model: str | os.PathLike[str] | Model, target: Fpga, given: Mapping[str, str], shapes: Mapping[str, Sequence[int]] | None,
    progress: Callable[[str], None],
) -> tuple[str, tuple[FixedLayer, ...], str]:  # fmt: skip
    """Name, layers, and the model's name in an export.

    A model is folded first, as an export does it: so layers have the names of the nodes that hls4ml gets.
    """
    text = os.fspath(model) if isinstance(model, (str, os.PathLike)) else ""
    widths = target.activation_bits, target.accumulator_bits
    if text.startswith(DENSE):
        check_settings(text, given)
        network = parse(text, *widths)
        return text, network, STAND_IN
    if text.endswith(".json"):
        from .sources import open_layers

        name, records = open_layers(text)
        return name, layers_from_cost(records, target.bits, *widths), STAND_IN
    from edgesdk_converters.cost import layers

    from .cut_table import opened

    source = opened(model, shapes=shapes, fold=False, progress=progress)
    if target.is_quantised(source):
        target.check_widths(f"{source.name} has integers of its own")
        if "bits" in given:
            raise RecipeError(f"{source.name} is quantised, --set bits={given['bits']} would say its bits again", "leave it out")
        return source.name, flow_hls4ml.layers_on_device(target.program(source), target.backend), text or f"{source.name}.onnx"
    folded = opened(source, shapes=shapes, fold=True, progress=progress)
    return folded.name, layers_from_cost(layers(folded), target.bits, *widths), text or f"{folded.name}.onnx"


def _layers(network: Sequence[FixedLayer], strategy: str, io_type: str) -> tuple[factors.Layer, ...]:
    """What is searched over: of a convolution in parallel only what hls4ml folds it to, which is within its window.

    Under the strategy latency one choice is looked at: each weight with a multiplier of its own.
    """
    weighted = [layer for layer in network if layer.weighted]
    names = [layer.name for layer in weighted]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise RecipeError(f"two layers with weights are called {double!r}, so that a reuse factor cannot name one", "rename one")
    if strategy == "latency":
        return tuple(factors.Layer(layer.name, 1, 1) for layer in weighted)
    made = []
    for layer in weighted:
        within = io_type == "io_parallel" and layer.slides
        made.append(factors.Layer(layer.name, layer.n_in, layer.n_out, layer.n_in if within else None))
    return tuple(made)


def _choices(
    found: Sequence[factors.Point], bounds: Mapping[str, float], capacity: Mapping[str, Capacity], estimator: _Estimator
) -> Iterator[Choice]:
    least = math.inf
    for point in found:  # by ascending cycles, and of equal ones by ascending LUTs
        within = _is_within(point.value, bounds)
        best = within and point.value("lut") < least
        least = point.value("lut") if best else least
        highs = {row.name: row.interval.high for row in point.figures if row.interval is not None}
        shares = {name: point.value(name) / capacity[name].have for name in PART if capacity[name].have}
        fullest = max(shares, key=lambda name: shares[name])
        yield Choice(
            point.reuse_factors, point.figures, estimator.unlike(point.reuse_factors), within,
            _is_within(highs.__getitem__, bounds), best, shares[fullest], fullest,
        )  # fmt: skip


def _is_within(value: Callable[[str], float], bounds: Mapping[str, float]) -> bool:
    return all(value(name) <= bound for name, bound in bounds.items())


def _command(
    model: str, target: Fpga, given: Mapping[str, str], shapes: Mapping[str, Sequence[int]], chosen: Mapping[str, int]
) -> str:
    """What makes a project with the reuse factors that were chosen."""
    words = ["edgesdk", "export", model, "--device", target.device.name]
    for name, dims in shapes.items():
        words += ["--shape", f"{name}={'x'.join(map(str, dims))}"]
    options = {"flow": "hls4ml", "strategy": target.strategy} | dict(given)
    if target.strategy == "resource":
        options["reuse_factors"] = ",".join(f"{name}={factor}" for name, factor in chosen.items())
    return shlex.join([*words, *(word for name, value in options.items() for word in ("--set", f"{name}={value}"))])
