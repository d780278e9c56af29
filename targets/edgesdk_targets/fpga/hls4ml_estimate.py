"""LUTs, flip-flops, DSPs, block RAM, cycles and clock of a network in hls4ml, without any tool, in milliseconds.

Every figure is a sum over layers of counts (`hls4ml_terms`) times constants (`hls4ml_constants.toml`), so that it extrapolates in
depth and its rows per layer add up. Inside what the constants were fitted on, intervals are conformal: they hold eight of ten
results of networks that the fit had not seen. Outside they are wider by a stated factor, and the figure is marked extrapolated.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgesdk_converters.errors import RecipeError, Unsupported

from ..figure import Figure, Interval
from . import hls4ml_requests
from .clock_limits import fastest_mhz
from .hls4ml_constants import Constants, Departure, Spread, area, clock, cycles, departures, shipped
from .hls4ml_merged import unmerged
from .hls4ml_terms import KINDS, Cost, FixedLayer, Strategy, cost

if TYPE_CHECKING:
    from edgesdk_converters.cost import Layer, Shape
    from edgesdk_converters.integer_program import IntegerProgram

LEVEL = 0.8
TARGETS = ("lut", "ff", "dsp", "bram", "cycles")
UNITS = {"lut": "LUT6", "ff": "flip-flops", "dsp": "DSP48", "bram": "36-kbit block RAMs", "cycles": "cycles"}
BRAM18_PER_TILE = 2
"""A figure `bram` counts 36-kbit tiles, in halves; devices are described in blocks of 18 kbit."""
DSP_UNSURE = (96, 128)
"""Products of an activation's and a weight's bits between which no result says whether a multiplier takes a DSP."""
STRATEGIES: tuple[Strategy, ...] = ("resource", "latency")
IO_TYPES = ("io_parallel", "io_stream")


def estimate(
    layers: Sequence[FixedLayer],
    *,
    reuse_factor: int = 1,
    reuse_factors: Mapping[str, int] | None = None,
    strategy: str = "resource",
    clock_ns: float = 5.0,
    io_type: str = "io_parallel",
    part: str = "",
    constants: Constants | None = None,
) -> tuple[Figure, ...]:
    """Totals (lut, ff, dsp, bram, cycles, initiation_interval, fmax_mhz), then the same by layer without the clock.

    `reuse_factor` is what is asked for, `reuse_factors` what single layers get in its place, by name; each layer gets the legal
    one closest to it. `cycles` is the worst case from an input to its result. `bram` counts 36-kbit tiles. `part` is the full
    name of the part ("" is taken for the part of the results). Raises Unsupported where no formula exists, RecipeError for
    settings that hls4ml does not have and for reuse factors of layers that do not exist.
    """
    counted = count(
        layers, reuse_factor=reuse_factor, reuse_factors=reuse_factors, strategy=strategy, clock_ns=clock_ns, io_type=io_type,
        part=part, constants=constants,
    )  # fmt: skip
    return (*counted.totals(), *(row for target in TARGETS for row in _parts(target, counted)))


@dataclass(frozen=True, eq=False)
class Counted:
    """A network's counts; `apart` is in what it is unlike the results that the constants `known` are of, empty for inside."""

    found: Sequence[Cost]
    apart: tuple[Departure, ...]
    known: Constants
    clock_ns: float
    io_type: str
    where: str

    def totals(self) -> tuple[Figure, ...]:
        """The first figures of `estimate`, in half of its time: for searches."""
        found, known, apart = self.found, self.known, self.apart
        figures = []
        for target in TARGETS:
            total = sum(_values(target, self))
            low, high = _range(target, found, known, apart, total, total)
            figures.append(_figure(target, total, low, high, self.where, self.told, bool(apart)))
        return (
            *figures,
            _initiation(found, apart, self.where),
            _clock(found, known, apart, self.clock_ns, self.where, self.told),
        )

    @property
    def told(self) -> str:
        """How a figure was made."""
        told = f"counts by hls4ml's loops x constants of {self.known.n} results"
        return told + ("; extrapolated: " + ", ".join(one.told for one in self.apart) if self.apart else "")


def count(
    layers: Sequence[FixedLayer],
    *,
    reuse_factor: int = 1,
    reuse_factors: Mapping[str, int] | None = None,
    strategy: str = "resource",
    clock_ns: float = 5.0,
    io_type: str = "io_parallel",
    part: str = "",
    constants: Constants | None = None,
) -> Counted:
    """What `estimate` makes figures of; parameters and errors are the same."""
    known, own = constants or shipped(), reuse_factors or {}
    checked = _settings(strategy, reuse_factor, clock_ns, io_type)
    for layer in layers:
        check(layer)
    if not any(layer.weighted for layer in layers):
        raise Unsupported("the hls4ml estimate", layers[0].name if layers else "", "network", "it has no layer with weights")
    asked = hls4ml_requests.of_layers(layers, reuse_factor, own)
    if io_type == "io_parallel" and checked == "resource":  # as in the export, where hls4ml folds a window no further
        asked = [min(wanted, layer.n_in) if layer.slides else wanted for layer, wanted in zip(layers, asked, strict=True)]
    found = [cost(layer, wanted, checked, clock_ns) for layer, wanted in zip(layers, asked, strict=True)]
    if own:
        apart = hls4ml_requests.unlike(found, strategy, clock_ns, io_type, part, known)
    else:
        apart = departures(found, reuse_factor, strategy, clock_ns, io_type, part, known)
    where = part or next((region.part for region in known.regions if region.part), "the part that the constants are of")
    return Counted(found, apart, known, clock_ns, io_type, where)


def in_bram18(figure: Figure) -> Figure:
    """A figure of `bram` in blocks of 18 kbit, as parts and synthesis reports are counted."""
    assert figure.value is not None and figure.interval is not None
    low, high = (BRAM18_PER_TILE * end for end in (figure.interval.low, figure.interval.high))
    return replace(figure, value=BRAM18_PER_TILE * figure.value, unit="BRAM18", interval=Interval(low, high, LEVEL))


def layers_of(program: IntegerProgram) -> tuple[FixedLayer, ...]:
    """The layers of a fixed-point network: weights by their used bits, accumulators as wide as their sums get.

    Roundings and rearrangements cost nothing of their own in hls4ml and are left out; what has no formula gets its operation's
    name as kind, which `estimate` refuses.
    """
    from edgesdk_converters import integer_program as ip

    made = []
    for op in program.operations:
        if isinstance(op, ip.Round | ip.Move):
            continue
        kind, result = _KIND_OF.get(type(op).__name__, type(op).__name__.lower()), program.tensors[op.result]
        read = op.sources[0] if isinstance(op, ip.Sum) else op.left if isinstance(op, ip.Product) else op.source
        bits, wide = program.tensors[read].bits, result.bits
        if isinstance(op, ip.Dense | ip.Conv):
            outs, ins = len(op.weight), op.weight[0].size
            space = result.shape[:-1] if isinstance(op, ip.Dense) else result.shape[1:]
            window = math.prod(op.weight.shape[2:])
            if isinstance(op, ip.Conv):
                kind = f"conv{len(op.weight.shape) - 2}d" if op.groups == 1 else "grouped convolution"
            used = max(max(0, -int(op.weight.min()) - 1).bit_length(), int(op.weight.max()).bit_length()) + 1
            share = float((op.weight != 0).mean())
            made.append(
                FixedLayer(op.node, kind, ins, outs, used, bits, wide, math.prod(space), window, share, used)
            )  # fmt: skip
            continue
        channels, positions = (result.shape[0], math.prod(result.shape[1:])) if len(result.shape) > 1 else (result.size, 1)
        kernel = math.prod(op.kernel) if isinstance(op, ip.Pool) else 1
        made.append(FixedLayer(op.node, kind, channels, channels, 0, bits, wide, positions, kernel))
    return tuple(made)


def layers_from_cost(
    layers: Sequence[Layer], bits: int, activation_bits: int = 0, accumulator_bits: int = 0
) -> tuple[FixedLayer, ...]:
    """The layers of a network that is not in fixed point yet, as it would be with weights of `bits`.

    What is 0 is as our export writes it: activations of `bits` too, accumulators as wide as their sums get. Batch normalisation
    is folded into the layer before it, and so are biases and scales; what only rearranges costs nothing. What has no formula
    gets its operator as kind, which `estimate` refuses.
    """
    made, values = [], activation_bits or bits
    for layer in unmerged(layers):
        if layer.kind in _FREE or layer.op == "BatchNormalization":
            continue
        out = _inner(layer.out_shapes[0])
        if layer.kind in ("fc", "gemm", "matmul", "conv", "conv1x1"):
            rank = len(layer.kernel)
            kind = f"conv{rank}d" if rank else "dense"
            if max(layer.dilation, default=1) > 1 or len(layer.in_shapes) != 1:
                kind = f"dilated {layer.op}" if len(layer.in_shapes) == 1 else layer.op
            channels = out[0] if rank else out[-1]
            n_in = layer.macs // math.prod(out)
            sums = accumulator_bits or bits + values + math.ceil(math.log2(max(1, n_in)))
            made.append(
                FixedLayer(
                    layer.name, kind, n_in, channels, bits, values, sums, math.prod(out) // channels, math.prod(layer.kernel)
                )
            )  # fmt: skip
            continue
        channels, positions = (out[0], math.prod(out[1:])) if len(out) > 1 else (math.prod(out), 1)
        window = math.prod(layer.kernel)
        if layer.op.startswith("Global"):
            window = math.prod(_inner(layer.in_shapes[0])[1:])
        kind = _KIND_OF_OPERATOR.get(layer.op, layer.op or layer.kind)
        made.append(FixedLayer(layer.name, kind, channels, channels, 0, values, values, positions, window))
    return tuple(made)


def _inner(shape: Shape) -> Shape:
    """Without a batch axis of one."""
    return shape[1:] if len(shape) > 1 and shape[0] == 1 else shape


def _settings(strategy: str, reuse_factor: int, clock_ns: float, io_type: str) -> Strategy:
    if io_type not in IO_TYPES:
        raise RecipeError(f"io_type {io_type!r} is none of {', '.join(IO_TYPES)}")
    if reuse_factor < 1:
        raise RecipeError(f"reuse_factor {reuse_factor} is below 1, which computes everything at once")
    if not 0.5 <= clock_ns <= 1000:
        raise RecipeError(f"clock_ns {clock_ns:g} is no clock period: 0.5 to 1000 ns")
    for known in STRATEGIES:
        if known == strategy:
            return known
    raise RecipeError(f"strategy {strategy!r} is none of {', '.join(STRATEGIES)}", "others have no formula here")


def check(layer: FixedLayer) -> None:
    """Raise Unsupported where there is no formula for the layer."""
    reason = ""
    if layer.kind not in KINDS:
        reason = f"no formula for it; there are some for {', '.join(KINDS)}"
    elif min(layer.n_in, layer.n_out, layer.positions, layer.kernel) < 1:
        reason = f"{layer.n_in} inputs, {layer.n_out} outputs, {layer.positions} positions: all have to be at least 1"
    elif not 1 <= layer.activation_bits <= 64 or not 1 <= layer.accumulator_bits <= 128:
        reason = f"{layer.activation_bits} bits for values, {layer.accumulator_bits} for sums: no such type"
    elif layer.weighted and not 1 <= layer.weight_bits <= 64:
        reason = f"weights of {layer.weight_bits} bits: 1 to 64 have a formula"
    elif not 0 <= layer.nonzero <= 1:
        reason = f"a share of {layer.nonzero:g} weights that are not 0"
    if reason:
        raise Unsupported("the hls4ml estimate", layer.name, layer.kind, reason)


def _parts(target: str, counted: Counted) -> Iterator[Figure]:
    """What each layer adds to a total."""
    values = _values(target, counted)
    for one, value in zip(counted.found, values, strict=True):
        if value or one.layer.weighted:
            least, most = _range(target, [one], counted.known, counted.apart, value, sum(values))
            told = f"its part of the sum, reuse factor {one.reuse}" if one.layer.weighted else "its part of the sum"
            yield _figure(target, value, least, most, counted.where, told, bool(counted.apart), one.layer.name)


def _values(target: str, counted: Counted) -> list[float]:
    """By layer, whole numbers (halves for bram), which add up to the total."""
    found, known = counted.found, counted.known
    if target == "bram":
        return [round(2 * known.tiles(one)) / 2 for one in found]
    behind = _behind(found) if target == "cycles" and counted.io_type == "io_stream" else set()
    return [0 if index in behind else round(known.of(target, one)) for index, one in enumerate(found)]


def _figure(
    name: str, value: float, low: float, high: float, where: str, told: str, apart: bool, layer: str | None = None
) -> Figure:
    interval = Interval(min(low, value), max(high, value), LEVEL)
    return Figure(name, value, "estimated", where, told, UNITS[name], layer=layer, interval=interval, extrapolated=apart)


def _range(
    target: str, found: Sequence[Cost], known: Constants, apart: Sequence[Departure], value: float, total: float
) -> tuple[float, float]:
    if target == "dsp":
        return _dsp_range(found, apart, value)
    if target == "bram":
        return _bram_range(found, known, apart)
    if target == "cycles":
        return _cycles_range(found, apart, value)
    return _spread(known.spread[target], apart, value, total)


def _behind(found: Sequence[Cost]) -> set[int]:
    """Streaming layers over pixels work at once: of each run of them all but the slowest are behind it."""
    behind: set[int] = set()
    for streamed, run in itertools.groupby(range(len(found)), key=lambda index: found[index].layer.positions > 1):
        if streamed:
            indices = list(run)
            slowest = max(indices, key=lambda index: found[index].worst_cycles)
            behind |= set(indices) - {slowest}
    return behind


def _spread(spread: Spread, apart: Sequence[Departure], value: float, total: float) -> tuple[float, float]:
    """Of a part it is wider than of the total, as if parts erred independently: only totals were ever measured."""
    wider, root = area(apart), math.sqrt(total / value) if value else 1.0
    return math.floor(value * math.exp(spread.low * root) / wider), math.ceil(value * math.exp(spread.high * root) * wider)


def _dsp_range(found: Sequence[Cost], apart: Sequence[Departure], value: float) -> tuple[float, float]:
    """Certain up to the widths between which no result lies."""
    low = high = value
    for one in found:
        product = one.layer.weight_bits * one.layer.activation_bits
        if one.multipliers and DSP_UNSURE[0] < product < DSP_UNSURE[1]:
            low, high = low - one.dsp, high - one.dsp + one.multipliers
    wider = math.sqrt(area(apart))
    return math.floor(max(0, low) / wider), math.ceil(high * wider)


def _cycles_range(found: Sequence[Cost], apart: Sequence[Departure], value: float) -> tuple[float, float]:
    """From the best case, of which three results in 194 were a cycle below, to the worst."""
    wider = cycles(apart)
    best = value - sum(one.worst_cycles - one.best_cycles for one in found) - 1
    return math.floor(max(0, best) / wider), math.ceil(value * wider)


def _bram_range(found: Sequence[Cost], known: Constants, apart: Sequence[Departure]) -> tuple[float, float]:
    """Tenth and ninetieth percentile over the layers' weights being in block RAM or not, each by its share of results."""
    chances = {0.0: 1.0}
    for one in found:
        share = known.placement[one.memory.placement].share if one.memory.weights else 0.0
        after: dict[float, float] = {}
        for sum_, chance in chances.items():
            for added, part in ((0.0, 1 - share), (one.memory.weights, share)):
                if part:
                    key = sum_ + one.memory.always + added
                    after[key] = after.get(key, 0.0) + chance * part
        chances = after
    reached, percentiles = 0.0, list[float]()
    for amount in sorted(chances):
        reached += chances[amount]
        while len(percentiles) < 2 and reached > ((1 - LEVEL) / 2, (1 + LEVEL) / 2)[len(percentiles)] - 1e-12:
            percentiles.append(amount * known.scale["bram"])
    spread, wider = known.spread["bram"], area(apart)
    return percentiles[0] * math.exp(spread.low) / wider, percentiles[-1] * math.exp(spread.high) * wider


def _initiation(found: Sequence[Cost], apart: Sequence[Departure], where: str) -> Figure:
    """Layers work as a dataflow, on one input each: the slowest sets the pace. No published result measured it."""
    value, wider = max(one.interval for one in found), 1.25 * cycles(apart)
    told = "the slowest layer's loop, from hls4ml's dataflow; not measured in the published results"
    return Figure(
        "initiation_interval", value, "estimated", where, told, "cycles", extrapolated=True,
        interval=Interval(max(1, math.floor(value / wider)), math.ceil(value * wider), LEVEL),
    )  # fmt: skip


def _clock(found: Sequence[Cost], known: Constants, apart: Sequence[Departure], clock_ns: float, where: str, told: str) -> Figure:
    """Of the period that the synthesis from C estimates; after place and route it can be longer.

    No part has a faster clock than its clock tree carries. Far from the clock of the results, the interval reaches back to it.
    """
    fastest, spread, (down, up) = fastest_mhz(where), known.spread["clock"], clock(apart)
    counted = round(1000 / (known.clock[known.longest_path(found)] * clock_ns), 1)
    value = min(counted, fastest)
    low, high = (min(end, fastest) for end in (counted * math.exp(-spread.high) / down, counted * math.exp(-spread.low) * up))
    limit = f", no faster than the {fastest:g} MHz of the part's clock tree" if value < counted else ""
    return Figure(
        "fmax_mhz", value, "estimated", where, f"period as Vitis HLS estimates it, before routing{limit}; {told}",
        extrapolated=bool(apart), interval=Interval(low, high, LEVEL),
    )  # fmt: skip


_FREE = ("reshape", "const", "cast", "permute", "concat", "slice", "pad")
_KIND_OF_OPERATOR = {
    "Relu": "activation", "Clip": "activation", "LeakyRelu": "activation", "Sigmoid": "table", "Tanh": "table", "Elu": "table",
    "Selu": "table", "Softplus": "table", "Softsign": "table", "HardSigmoid": "table", "Softmax": "softmax", "Add": "add",
    "MaxPool": "pool", "AveragePool": "pool", "GlobalMaxPool": "pool", "GlobalAveragePool": "pool",
}  # fmt: skip
_KIND_OF = {"Dense": "dense", "Clip": "activation", "Leaky": "activation", "Table": "table", "Pool": "pool", "Sum": "add"}
