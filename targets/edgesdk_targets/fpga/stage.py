"""A stage: a segment of a program as one Verilog module that takes beats and gives beats; and how its inside is put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np

from edgesdk_converters.integer_program import Conv, Dense, IntegerProgram, Integers, Operation

from . import local
from .kernel import Kernel, KernelOptions, kernel
from .segments import weight_bits
from .stream import Stream, bits_for
from .verilog_text import CLOCK, concatenated, instance, link, module, resized, wires


@dataclass(frozen=True)
class Counts:
    """What a stage is made of, counted from its description, for an estimator.

    `multipliers` are those of folded layers and of products of two computed tensors; `lookup_bits` tables in logic; `rom_bits`
    weights and biases of folded layers; `line_bits` what windows keep of an image in memory; `fifo_bits` what waits for another
    branch. Adders are those of kernels, of multiply-accumulate lanes and of pooling; control is not counted.
    """

    adders: int = 0
    adder_bits: int = 0
    register_bits: int = 0
    multipliers: int = 0
    lookup_bits: int = 0
    rom_bits: int = 0
    line_bits: int = 0
    fifo_bits: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))


@dataclass(frozen=True, eq=False)
class Timing:
    """When a stage gives what: how a schedule is computed without a simulation.

    `needs` says for each position of the result how many positions of each source must have come before. Positions follow each
    other by at least `each` cycles, and the last one of an inference by `each` less `lead` after what it needs has come; `delay`
    is that of the registers on the way. `scan`, where it is given, holds for each source position and each result position the
    cycle of the image in which it passes: all positions inside and outside the image then take a cycle each.
    """

    needs: tuple[Integers, ...]
    each: int
    lead: int
    delay: int
    scan: tuple[Integers, Integers] | None = None


@dataclass(frozen=True, eq=False)
class Stage:
    """One module. `cycles` is how long it is busy with an inference. `files` are its own (name -> bytes), `library` the modules
    that it takes from the firmware. `weights` counts zeros too; `weight_bits` is the widest layer's."""

    name: str
    node: str
    operator: str
    form: str
    sources: tuple[Stream, ...]
    result: Stream
    cycles: int
    timing: Timing
    files: Mapping[str, bytes]
    library: frozenset[str]
    counts: Counts
    weights: int
    weight_bits: int


@dataclass
class Body:
    """The inside of a stage's module while it is written: `net` is the stream that the next part takes, `delay` the registers
    between the stage's input and there."""

    name: str
    kernels: KernelOptions
    net: str = "s0"
    text: str = ""
    delay: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    library: set[str] = field(default_factory=set)
    counts: Counts = field(default_factory=Counts)

    def place(self, part: str, name: str, parameters: Mapping[str, int | str], ports: Mapping[str, str]) -> None:
        """A module of the firmware."""
        self.library.add(part)
        self.text += instance(part, name, parameters, ports)

    def part(
        self, module_name: str, name: str, parameters: Mapping[str, int | str], net: str, width: int, delay: int,
        *, flags_in: bool = False, flags_out: bool = False,
    ) -> None:  # fmt: skip
        """A module of the firmware between the present stream and a new one, `net`."""
        self.text += wires(net, width, flags_out)
        self.place(module_name, name, parameters, CLOCK | link("s", self.net, flags_in) | link("m", net, flags_out))
        self.delay += delay
        self.net = net

    def kernel(self, found: local.Local) -> None:
        """A pipeline that computes a local program, where there is something to compute."""
        if not found.is_empty:
            self.pipeline(kernel(found.program, f"{self.name}_kernel", self.kernels), "done")

    def pipeline(self, made: Kernel, net: str, prefix: str = "") -> None:
        """A kernel between the present stream and a new one; `prefix` tells its parts from those of others in the stage."""
        self.files[f"{made.name}.v"] = made.verilog.encode()
        self.counts += Counts(made.adders, made.adder_bits, made.register_bits, made.multipliers, made.lookup_bits)
        self.text += wires(net, made.output_bits)
        ports = {"clk": "clk", "en": "1'b1", "x": f"{self.net}_data", "y": f"{net}_data"}
        if made.latency_cycles:
            self.text += f"    wire {prefix}en;\n"
            ports["en"] = f"{prefix}en"
            around = {"s_valid": f"{self.net}_valid", "s_ready": f"{self.net}_ready", "en": f"{prefix}en"}
            around |= {"m_valid": f"{net}_valid", "m_ready": f"{net}_ready"}
            self.place("edgesdk_pipe", f"{prefix}pipe", {"LATENCY": made.latency_cycles}, CLOCK | around)
        else:
            self.text += f"    assign {net}_valid = {self.net}_valid;\n    assign {self.net}_ready = {net}_ready;\n"
        self.text += instance(made.name, f"{prefix}kernel", {}, ports)
        self.delay += made.latency_cycles
        self.net = net

    def join(self, streams: Sequence[Stream]) -> None:
        """A beat of each source side by side, when all are there."""
        valids = [f"s{number}_valid" for number in range(len(streams))]
        self.text += wires("all", sum(stream.width for stream in streams))
        self.text += f"    assign all_valid = {' && '.join(valids)};\n"
        for number, mine in enumerate(valids):
            others = " && ".join(["all_ready", *(one for one in valids if one != mine)])
            self.text += f"    assign s{number}_ready = {others};\n"
        self.text += f"    assign all_data = {concatenated([f's{number}_data' for number in range(len(streams))])};\n"
        self.net = "all"

    def resize(self, lanes: int, bits: int, signed: bool, to: int) -> None:
        """The present stream's lanes, from `bits` to `to` bits each."""
        if bits == to:
            return
        net = f"{self.net}_sized"
        self.text += wires(net, lanes * to)
        self.text += f"    assign {net}_valid = {self.net}_valid;\n    assign {self.net}_ready = {net}_ready;\n"
        self.text += f"    assign {net}_data = {resized(f'{self.net}_data', lanes, bits, signed, to)};\n"
        left = lanes * (bits - to)
        if left > 0:
            self.text += f"    wire unused_{net} = &{{1'b0, {self.net}_data}};\n"
        self.net = net

    def chain(self, operations: Sequence[Operation], stream: Stream, program: IntegerProgram) -> Stream:
        """What follows a layer that gives `stream`: on its lanes where channels are treated alike, else on whole pixels."""
        if not operations:
            return stream
        found = local.on_pixels(operations, [stream.with_lanes(stream.channels)], program)
        lanes = stream.lanes
        if found.uniform:
            found = found.on(lanes)
        else:
            if stream.folds > 1:
                given = {"WIDTH": stream.width, "RATIO": stream.folds, "CBITS": bits_for(stream.folds)}
                self.part("edgesdk_widen", "widen", given, "wide", stream.width * stream.folds, 1)
                self.counts += Counts(register_bits=stream.width * stream.folds)
            lanes = found.order.shape[1]
        self.kernel(found)
        return Stream(replace(found.result, shape=program.tensors[operations[-1].result].shape), found.order, lanes)

    def finished(
        self, about: str, operations: Sequence[Operation], sources: Sequence[Stream], result: Stream, form: str, cycles: int,
        timing: Timing,
    ) -> Stage:  # fmt: skip
        """The stage: two registers at its end cut the path of `ready`."""
        self.place("edgesdk_skid", "skid", {"WIDTH": result.width}, CLOCK | link("s", self.net) | link("m", "m"))
        self.counts += Counts(register_bits=2 * result.width)
        inputs = {f"s{number}": stream.width for number, stream in enumerate(sources)}
        first = operations[0]
        text = module(self.name, f"{first.node}: {about}", inputs, {"m": result.width}, self.text)
        layers = [one for one in operations if isinstance(one, (Dense, Conv))]
        return Stage(
            self.name, first.node, type(first).__name__, form, tuple(sources), result, max(cycles, result.beats),
            replace(timing, delay=self.delay + 1), {f"{self.name}.v": text.encode(), **self.files}, frozenset(self.library),
            self.counts, sum(one.weight.size for one in layers), max((weight_bits(one) for one in layers), default=0),
        )  # fmt: skip


def one_by_one(positions: int) -> Integers:
    """`Timing.needs` of what computes a position from a position."""
    return np.arange(1, positions + 1)
