"""LUTs, flip-flops, DSPs, block RAM, cycles and clock of a design of the flow rtl, without any tool.

The generator itself writes the design; its Verilog is counted (`rtl_terms`), and counts become figures by constants that are
fitted on designs synthesised and routed with free tools (`rtl_constants.toml`). A figure is a sum over stages, so that rows of
layers add up. Inside what the constants were fitted on, intervals are conformal, apart for designs with folded layers and
without: of networks that the fit had not seen they hold 81 to 82 of 100 of lut, ff and fmax_mhz. That is no promise for each kind
of design: of all that were asked to be unrolled or streaming they hold 82, 89 and 80, of lut of dense networks 76, and of lut of
the 16 designs with layer normalisation, functions or softmax that were listed by hand 69 (python -m tests.bench_rtl_estimate).
Outside, intervals are wider by a stated factor, and the figure is marked extrapolated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from edgesdk_converters.errors import DoesNotFit, EdgeError

from ..device import DeviceProfile
from ..figure import Figure, Interval, unavailable
from . import resources
from .constants_file import Spread
from .design import Design
from .rtl_constants import CONSTANT_SHARE, RARE, Constants, shipped
from .rtl_counts import Terms, total
from .rtl_terms import terms

LEVEL = 0.8
Z80 = 1.2816
"""Of a normal distribution, eight tenths lie within so many deviations."""
AREA = ("lut", "ff", "dsp", "bram")
NAMES = (*AREA, "cycles", "initiation_interval", "fmax_mhz", "latency_ms")
WIDER_EACH = 0.12
"""By how much intervals widen for each doubling beyond the largest design that was routed, as natural logarithm: a judgement.

Multipliers are counted by rule at any size, so that theirs do not."""
WIDER_BITS = 0.15
"""The same for values or weights of more bits than any design had."""
WIDER_CONSTANT: Mapping[str, float] = {"lut": 0.5, "ff": 0.5, "fmax_mhz": 0.2}
"""The same by figure where parts of the design are constant; within lie eight of eleven such designs, and seven of their clocks.
What synthesis removes may be nearly all: one of 2 bits was left with a tenth of its LUTs."""
WIDER_CYCLES = 0.05
"""The same of cycles beyond the longest that were simulated."""
WIDER_CLOCK = 0.15
"""The same of the clock where another one was asked for, or the part is of another speed grade."""
WIDER_UNSEEN = math.log(2.0)
"""The same of counts on a family of which no design was ever mapped."""
WIDER_OPERATIONS = 0.35
"""The same of logic and clock where a design has operations that none of the results has: of three stages of layer normalisation
that were synthesised alone before any was in the results, LUTs were up to 0.19 off and flip-flops up to 0.35."""
FOLDED = "folded"
"""The form of layers whose multipliers are used again and again."""
SPEED_GRADE = "6"
"""Of the parts that the results are of."""
PORTS = "(ports and links)"
"""The name of the row that holds what joins stages to each other and to the ports."""


@dataclass(frozen=True)
class Departure:
    """One way in which a design is unlike the results. `wider`: by how much intervals widen, as logarithms by figure."""

    told: str
    wider: Mapping[str, float]


def of_sketch(make: Callable[[], Design], device: DeviceProfile, clock_mhz: float) -> tuple[Figure, ...]:
    """Figures of a design whose weights are random; all unavailable, with the reason, where none can be made."""
    try:
        return estimate(make(), device, clock_mhz, weights_known=False)
    except EdgeError as error:
        return tuple(unavailable(name, device.name, error.message) for name in NAMES)


def estimate(
    made: Design,
    device: DeviceProfile,
    clock_mhz: float = 100.0,
    *,
    weights_known: bool = True,
    constants: Constants | None = None,
) -> tuple[Figure, ...]:
    """Totals of NAMES, then lut, ff, dsp and bram of each layer. `clock_mhz` is what place and route are asked for.

    `cycles` and `initiation_interval` are those of the core, as its simulation gives them; `fmax_mhz` that of the design with its
    ports. What fills the part, or does not fit, is told in the method of `lut`.
    """
    known = constants or shipped()
    stages = terms(made.files)
    apart = departures(made, stages, device, clock_mhz, known)
    told = f"counts of the generated Verilog x constants of {known.n} designs synthesised and routed here"
    told += "" if weights_known else "; with random weights of these sizes"
    made_of = _Estimated(made, stages, device, known, apart, weights_known, told)
    area = [made_of.area(name) for name in AREA]
    return (*_with_notes(area, device), *made_of.times(), *made_of.parts())


def departures(
    made: Design, stages: Sequence[Terms], device: DeviceProfile, clock_mhz: float, known: Constants
) -> tuple[Departure, ...]:
    """In what a design is unlike those that the constants are of, empty for inside."""
    region, found = known.region, list[Departure]()
    totals = {"lut": known.luts(stages), "ff": known.ffs(stages), "dsp": sum(one.dsp for one in stages),
              "bram": sum(one.bram for one in stages)}  # fmt: skip
    larger = {name: totals[name] / max(1, getattr(region, name)) for name in AREA if totals[name] > getattr(region, name)}
    if larger:
        told = ", ".join(f"{name} above {getattr(region, name):,}" for name in larger)
        wider = {name: WIDER_EACH * max(1.0, math.log2(ratio)) for name, ratio in larger.items()}
        wider["fmax_mhz"] = wider.get("lut", WIDER_EACH)
        found.append(Departure(f"larger than any that was routed ({told})", wider))
    bits = max((stream.codes.bits for stream in (*made.inputs, *made.outputs)), default=0)
    bits = max([bits, *(layer.weight_bits for layer in made.layers)])
    if bits > region.bits:
        told = f"values or weights of {bits} bits, more than {region.bits}"
        found.append(Departure(told, dict.fromkeys((*AREA, "fmax_mhz"), WIDER_BITS)))
    share = total(stages).constant_share
    if share > CONSTANT_SHARE:
        told = f"{share:.0%} of what kernels give is constant, and synthesis removes what hangs on it"
        found.append(Departure(told, WIDER_CONSTANT))
    mine = [name for name in RARE if _has(made, name)]
    unseen = [name for name in mine if name not in region.operations]
    if unseen:
        told = f"{', '.join(unseen)} in none of the results"
        found.append(Departure(told, dict.fromkeys((*AREA, "fmax_mhz"), WIDER_OPERATIONS)))
    narrower = [f"{name} up to {region.operations[name]}" for name in mine if bits > region.operations.get(name, bits)]
    if narrower and bits <= region.bits:
        told = f"values or weights of {bits} bits, in the results with {', '.join(narrower)}"
        found.append(Departure(told, dict.fromkeys((*AREA, "fmax_mhz"), WIDER_BITS)))
    family = resources.family(device)
    if family != "ecp5":
        other = known.families_apart.get(family)
        seen = f"seen in {other.n} designs" if other else "unseen"
        wider = {} if other else dict.fromkeys(AREA, WIDER_UNSEEN)
        found.append(Departure(f"family {family}, its ratio to ECP5 {seen}", wider))
    elif abs(clock_mhz / known.clock_mhz - 1) > 0.01:
        found.append(Departure(f"{clock_mhz:g} MHz asked for, {known.clock_mhz:g} in the results", {"fmax_mhz": WIDER_CLOCK}))
    if family == "ecp5" and device.get("speed_grade", str) not in (None, SPEED_GRADE):
        found.append(Departure(f"speed grade {device.get('speed_grade', str)}", {"fmax_mhz": WIDER_CLOCK}))
    return tuple(found)


def _has(made: Design, operator: str) -> bool:
    """Whether a stage is of this operation, or has it in what follows: kernels name their operations in comments."""
    begins = any(layer.operator == operator for layer in made.layers)
    return begins or any(f"  // {operator} ".encode() in made.files[name] for name in made.sources)


@dataclass(frozen=True, eq=False)
class _Estimated:
    """A design with its terms: `values` by stage, which totals are the sums of."""

    made: Design
    stages: Sequence[Terms]
    device: DeviceProfile
    known: Constants
    apart: Sequence[Departure]
    weights_known: bool
    told: str

    @property
    def folded(self) -> bool:
        return any(layer.form == FOLDED for layer in self.made.layers)

    def values(self, name: str) -> list[int]:
        """By stage, whole numbers."""
        ratio = self.ratio(name)
        if name in ("dsp", "bram"):
            return [round(ratio * getattr(one, name)) for one in self.stages]
        sums = self.known.luts if name == "lut" else self.known.ffs
        return [round(ratio * sums([one])) for one in self.stages]

    def ratio(self, name: str) -> float:
        """What another family takes of it for each one of an ECP5."""
        other = self.known.families_apart.get(resources.family(self.device))
        return 1.0 if other is None else getattr(other, name)

    def area(self, name: str) -> Figure:
        total = sum(self.values(name))
        low, high = self._range(name, total, self._apart(name))
        return self._figure(name, total, _whole(low, high))

    def _apart(self, name: str) -> float:
        """By how much an interval is wider than in the results, as natural logarithm."""
        if name == "dsp" and resources.family(self.device) == "ecp5":
            return 0.0
        return math.hypot(*(one.wider.get(name, 0.0) for one in self.apart))

    def parts(self) -> Iterator[Figure]:
        """What each layer adds. Of a part intervals are wider, as if parts erred independently: only totals were measured."""
        nodes = {layer.stage: layer.node for layer in self.made.layers}
        for name in AREA:
            by_node: dict[str, int] = {}
            for stage, value in zip(self.stages, self.values(name), strict=True):
                node = nodes.get(stage.stage, PORTS)
                by_node[node] = by_node.get(node, 0) + value
            total = sum(by_node.values())
            for node, value in by_node.items():
                if value:
                    low, high = self._range(name, value, self._apart(name), math.sqrt(total / value))
                    yield self._figure(name, value, _whole(low, high), node)

    def times(self) -> tuple[Figure, ...]:
        cycles = self._counted("cycles", self.made.latency_cycles)
        interval = self._counted("initiation_interval", self.made.interval_cycles)
        if resources.family(self.device) != "ecp5":
            why = "no free place and route exists for this family, so that no clock was ever seen"
            return cycles, interval, *(unavailable(name, self.device.name, why) for name in ("fmax_mhz", "latency_ms"))
        ways = [way for one in self.stages for way in one.paths]
        value = round(1e3 / self.known.period_ns(ways, self.known.luts(self.stages)), 1)
        low, high = self._range("fmax_mhz", value, self._apart("fmax_mhz"))
        clock = self._figure("fmax_mhz", value, Interval(low, high, LEVEL))
        assert cycles.value is not None and cycles.interval is not None
        latency = cycles.value / value / 1e3
        down = math.hypot(math.log(cycles.value / max(1, cycles.interval.low)), math.log(high / value))
        up = math.hypot(math.log(cycles.interval.high / max(1, cycles.value)), math.log(value / low))
        around = Interval(latency * math.exp(-down), latency * math.exp(up), LEVEL)
        told = f"{cycles.value:,} cycles at {value:g} MHz, both estimated"
        return cycles, interval, clock, replace(self._figure("latency_ms", latency, around), method=told)

    def _counted(self, name: str, value: int) -> Figure:
        most = self.known.region.latency_cycles
        longer = name == "cycles" and value > most
        low, high = self._range(name, value, WIDER_CYCLES if longer else 0.0)
        told = "the schedule of the generated design, beside simulations of designs of the sweep"
        told += "" if self.weights_known else "; with random weights of these sizes"
        told += f"; extrapolated: above the {most:,} cycles that were simulated" if longer else ""
        return replace(self._figure(name, value, _whole(low, high)), method=told, extrapolated=longer)

    def _range(self, name: str, value: float, apart: float, wider: float = 1.0) -> tuple[float, float]:
        spread = self.known.around(self.folded)[name]
        unknown = 0.0 if self.weights_known else Z80 * self.known.weights_unknown.get(name, 0.0)
        other = self.known.families_apart.get(resources.family(self.device))
        beside = other.spread[name] if other is not None and name in AREA else Spread(0.0, 0.0)
        low = math.hypot(spread.low, unknown, apart, beside.low) * wider
        high = math.hypot(spread.high, unknown, apart, beside.high) * wider
        return value * math.exp(-low), value * math.exp(high)

    def _figure(self, name: str, value: float, interval: Interval, layer: str | None = None) -> Figure:
        told = "its part of the sum" if layer else self.told
        told += "; extrapolated: " + ", ".join(one.told for one in self.apart) if self.apart and layer is None else ""
        around = Interval(min(interval.low, value), max(interval.high, value), LEVEL)
        return Figure(
            name, value, "estimated", self.device.name, told, resources.UNITS[resources.family(self.device)].get(name, ""),
            layer=layer, interval=around, extrapolated=bool(self.apart),
        )  # fmt: skip


def _whole(low: float, high: float) -> Interval:
    """The whole numbers around an interval; what is all but whole is not widened."""
    return Interval(math.floor(low + 1e-6), math.ceil(high - 1e-6), LEVEL)


def _with_notes(area: Sequence[Figure], device: DeviceProfile) -> tuple[Figure, ...]:
    """The figures; that of LUTs also says what fills the part or does not fit."""
    needs: Mapping[str, Interval | float] = {row.name: row.interval for row in area if row.interval is not None}
    try:
        notes = resources.check(device, needs)
    except DoesNotFit as error:
        notes = (f"does not fit: {error.message}",)
    return tuple(replace(row, method="; ".join((row.method, *notes))) if row.name == "lut" else row for row in area)
