"""From an integer program to logic: which form each layer takes, how many lanes it gets, and the files of the whole design.

Small layers are unrolled: constants become shifts and adders, a pixel (or a vector) a cycle. Large ones are folded: weights lie
in memory and multiply-accumulate lanes are used again and again, as many in each layer as let all layers take about as long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from edgesdk_converters.errors import RecipeError, Unsupported
from edgesdk_converters.integer_program import Conv, Dense, IntegerProgram, Integers, LayerNorm, Move, Pool
from edgesdk_firmware import path

from . import folded, in_turn, normalised, pooled, reordered, unrolled, windows
from .balance import foldings, input_stream, takes_vector, wanted_lanes
from .folded import Folding
from .kernel import KernelOptions
from .network import network, serial
from .schedule import Placed, latency_cycles
from .segments import Alias, Form, Segment, adder_bits, segments, weight_bits, weighted
from .stage import Counts, Stage
from .stream import Stream, channels_first, channels_last
from .unrolled import moves_channels
from .verilog_text import identifier

Forms: TypeAlias = Literal["auto", "unrolled", "streaming", "folded"]
FORMS = ("auto", "unrolled", "streaming", "folded")
CORE = "network"
SERIAL = "network_serial"
MAX_WEIGHTS_UNROLLED = 3000
"""Of 4 bits at random, with inputs of 4 bits: unrolled, one takes about seven look-up tables of an ECP5, which nextpnr routes up
to some 20,000 of in half an hour."""
REFERENCE_BITS = 4
REFERENCE_ADDER_BITS = 11.5
"""Of one such weight: 23 signed digits in all 16 values, each an adder of 8 bits."""
SMALL_LAYER = 5
"""In a network that is too large, a layer is unrolled all the same up to this fraction of MAX_WEIGHTS_UNROLLED."""
MULTIPLIERS = 64
"""Of all folded layers together; an ECP5-85k has 156."""
KERNELS = KernelOptions()


@dataclass(frozen=True)
class Layer:
    """A stage in the report of a design. `cycles` is how long it is busy with one inference."""

    stage: str
    node: str
    operator: str
    form: str
    reason: str
    cycles: int
    weights: int
    weight_bits: int
    counts: Counts


@dataclass(frozen=True, eq=False)
class Design:
    """A complete design. `files` (name -> bytes) belong in one folder, from which simulators and synthesis run.

    `core` is the module with wide streams, `inputs` and `outputs` say how; `serial` the one with ports of `port_bits`.
    `interval_cycles` is that of the core's busiest part: no design is faster, and what a simulation finds is seldom slower;
    `serial_interval_cycles` is that with the ports. `latency_cycles` is an estimate for the core (schedule.latency_cycles).
    """

    name: str
    files: Mapping[str, bytes]
    core: str
    serial: str
    port_bits: int
    inputs: tuple[Stream, ...]
    outputs: tuple[Stream, ...]
    layers: tuple[Layer, ...]
    interval_cycles: int
    latency_cycles: int
    serial_interval_cycles: int
    counts: Counts

    @property
    def sources(self) -> tuple[str, ...]:
        """The Verilog files, in an order that depends on nothing."""
        return tuple(sorted(name for name in self.files if name.endswith(".v")))


def design(
    program: IntegerProgram,
    form: Forms = "auto",
    *,
    max_weights_unrolled: int = MAX_WEIGHTS_UNROLLED,
    multipliers: int = MULTIPLIERS,
    target_cycles: int = 0,
    port_bits: int = 8,
    forms: Mapping[str, Form] | None = None,
    kernels: KernelOptions = KERNELS,
) -> Design:
    """A design of a program.

    `form`: `unrolled` computes everything with constants in logic, `streaming` all convolutions, and dense layers while they are
    small, `folded` nothing that has weights; `auto` goes by size. `forms` decides single layers, by node. `multipliers` is the
    budget of folded lanes; `target_cycles` takes as few as reach that interval; `kernels` is for what is unrolled. Raises
    Unsupported for an operation that cannot be built, RecipeError for an option that is out of range.
    """
    _check(program, form, multipliers, target_cycles, port_bits, forms or {})
    chosen, reasons = forms_of(program, form, max_weights_unrolled, forms or {})
    parts = segments(program, chosen)
    lanes, pace = foldings(program, parts, multipliers, target_cycles)
    turns = _turns(parts, program, pace, multipliers)
    streams: dict[str, tuple[int, Stream]] = {}
    for number, name in enumerate(program.inputs):
        stream = input_stream(name, program)
        streams[name] = number, stream.with_lanes(wanted_lanes(name, stream, parts, lanes, turns))
    placed: list[Placed] = []
    layers: list[Layer] = []
    for part in parts:
        if isinstance(part, Alias):
            net, stream = streams[part.source]
            renamed = stream.renamed(program.tensors[part.move.result], part.move.index)
            assert renamed is not None
            streams[part.move.result] = net, renamed
            continue
        read = [streams[source] for source in part.sources]
        order = _missing_order(part, read[0][1], program, lanes)
        if order is not None:
            name = f"stage{len(placed)}_order_{identifier(part.first.node)}"
            stage = reordered.ordered(name, part.first, read[0][1], order, program, kernels)
            placed.append(Placed(stage, (read[0][0],)))
            layers.append(_layer(stage, ""))
            read = [(len(program.inputs) + len(placed) - 1, stage.result)]
        name = f"stage{len(placed)}_{identifier(part.first.node)}"
        stage = _stage(name, part, [stream for _, stream in read], program, lanes, pace, multipliers, kernels)
        streams[part.result] = len(program.inputs) + len(placed), stage.result
        placed.append(Placed(stage, tuple(net for net, _ in read)))
        reason = "; ".join(dict.fromkeys(reasons[op.result] for op in part.operations if op.result in reasons))
        layers.append(_layer(stage, reason))
    come = [streams[name][1] for name in program.inputs]
    go = [streams[name] for name in program.outputs]
    about = f"{program.name}: {len(placed)} stages, from {', '.join(program.inputs)} to {', '.join(program.outputs)}"
    core = network(CORE, about, come, placed, [net for net, _ in go])
    shell = serial(SERIAL, CORE, come, [stream for _, stream in go], port_bits)
    files: dict[str, bytes] = {f"{CORE}.v": core.text.encode(), f"{SERIAL}.v": shell.text.encode()}
    library = core.library | shell.library
    for one in placed:
        files |= one.stage.files
        library |= one.stage.library
    files |= {f"{part}.v": path(f"verilog/{part}.v").read_bytes() for part in sorted(library)}
    interval = max([core.cycles, *(one.stage.cycles for one in placed)])
    total = sum((one.stage.counts for one in placed), core.counts)
    return Design(
        program.name, dict(sorted(files.items())), CORE, SERIAL, port_bits, tuple(come), tuple(stream for _, stream in go),
        tuple(layers), interval, latency_cycles(come, placed, [net for net, _ in go]), max(interval, shell.cycles), total,
    )  # fmt: skip


def _check(
    program: IntegerProgram, form: Forms, multipliers: int, target_cycles: int, port_bits: int, forms: Mapping[str, Form]
) -> None:
    if form not in FORMS:
        raise RecipeError(f"form {form!r}; known: {', '.join(FORMS)}")
    if multipliers < 1 or target_cycles < 0:
        raise RecipeError(f"{multipliers} multipliers, {target_cycles} target_cycles; allowed: at least 1, at least 0 (none)")
    if port_bits not in (8, 16):
        raise RecipeError(f"port_bits {port_bits}; allowed: 8, 16")
    nodes = {operation.node for operation in weighted(program)}
    unknown = sorted(set(forms) - nodes)
    if unknown:
        raise RecipeError(f"forms names {', '.join(unknown)}; with weights are: {', '.join(sorted(nodes)) or 'none'}")
    if not program.operations:
        raise RecipeError(f"{program.name} computes nothing", "a design needs at least one operation")


def forms_of(
    program: IntegerProgram, form: Forms, most: int, given: Mapping[str, Form]
) -> tuple[dict[str, Form], dict[str, str]]:
    """The form of each layer with weights, and why, by the tensor that it makes."""
    sizes = {one.result: adder_bits(one, program) / REFERENCE_ADDER_BITS for one in weighted(program)}
    total = sum(sizes.values())
    chosen: dict[str, Form] = {}
    reasons: dict[str, str] = {}
    for one in weighted(program):
        size = sizes[one.result]
        told = f"{one.weight.size:,} weights of {weight_bits(one)} bits, in logic like {size:,.0f} of {REFERENCE_BITS}"
        if one.node in given:
            found, reason = given[one.node], f"{told}; as asked for this node"
        elif form == "unrolled" or form == "folded":
            found, reason = form, f"{told}; as asked"
        elif form == "streaming":
            found = "unrolled" if isinstance(one, Conv) or size <= most else "folded"
            reason = f"{told}; as asked"
        elif total <= most:
            found, reason = "unrolled", f"{told}; all layers together are at most {most:,} of these"
        elif size <= most / SMALL_LAYER:
            found, reason = "unrolled", f"{told}: at most {most // SMALL_LAYER:,} of these"
        else:
            found, reason = "folded", f"{told}: more than {most // SMALL_LAYER:,} of these"
        chosen[one.result], reasons[one.result] = found, reason
    return chosen, reasons


def _layer(stage: Stage, reason: str) -> Layer:
    return Layer(
        stage.name, stage.node, stage.operator, stage.form, reason or "no weights", stage.cycles, stage.weights,
        stage.weight_bits, stage.counts,
    )  # fmt: skip


def _missing_order(part: Segment, stream: Stream, program: IntegerProgram, lanes: Mapping[str, Folding]) -> Integers | None:
    """The order in which a windowed or folded layer has to get its source, where it does not come so."""
    first = part.first
    if isinstance(first, LayerNorm):
        wanted = channels_last(program.tensors[first.source].shape)
        return None if np.array_equal(stream.order, wanted) else wanted
    if not isinstance(first, (Conv, Pool)) and not (isinstance(first, Dense) and first.result in lanes):
        return None
    try:
        windows.of(first, stream, program)
    except Unsupported:
        shape = program.tensors[first.source].shape
        return channels_last(shape) if isinstance(first, Dense) else channels_first(shape)
    return None


def _turns(parts: Sequence[Segment | Alias], program: IntegerProgram, pace: int, multipliers: int) -> dict[str, int]:
    """Elements at a time, of each part that takes a long vector so."""
    found = {}
    for part in parts:
        if isinstance(part, Segment) and len(part.sources) == 1 and takes_vector(part, program):
            codes = program.tensors[part.sources[0]]
            stream = Stream(codes, channels_last((1, codes.size)), codes.size)
            if count := in_turn.lanes(part.operations, stream, program, pace, multipliers):
                found[part.result] = count
    return found


def _stage(
    name: str, part: Segment, streams: Sequence[Stream], program: IntegerProgram, lanes: Mapping[str, Folding], pace: int,
    multipliers: int, kernels: KernelOptions,
) -> Stage:  # fmt: skip
    first = part.first
    if first.result in lanes:
        return folded.folded(name, part, streams[0], program, lanes[first.result], kernels)
    if isinstance(first, Conv):
        return unrolled.convolution(name, part, streams[0], program, kernels)
    if isinstance(first, LayerNorm):
        return normalised.normalised(name, part, streams[0], program, pace, multipliers, kernels)
    if isinstance(first, Pool):
        return pooled.pooled(name, part, streams[0], program, pace, kernels)
    if isinstance(first, Move) and len(streams) == 1 and not moves_channels(part, streams[0], program):
        return reordered.moved(name, part, streams[0], program, kernels)
    if takes_vector(part, program):
        streams = [stream.as_vector() for stream in streams]
    if len(streams) == 1 and (count := in_turn.lanes(part.operations, streams[0], program, pace, multipliers)):
        return in_turn.in_turn(name, part.operations, streams[0], program, count, kernels)
    return unrolled.pixelwise(name, part.operations, streams, program, kernels)
