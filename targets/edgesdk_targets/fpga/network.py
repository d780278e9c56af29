"""Stages joined to a network: forks, queues in front of joins, beats made wider or narrower on the way; and narrow ports."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .schedule import Placed, depths
from .stage import Counts
from .stream import Stream, bits_for
from .verilog_text import CLOCK, instance, link, module, wires

SPARE_BEATS = 16
"""In a queue, beyond what is needed: branches of different length then do not wait for each other."""


@dataclass(frozen=True)
class Network:
    """`cycles` is how long the busiest conversion between two stages takes for an inference."""

    text: str
    library: frozenset[str]
    counts: Counts
    cycles: int


def network(name: str, about: str, inputs: Sequence[Stream], placed: Sequence[Placed], outputs: Sequence[int]) -> Network:
    """The module that holds all stages, with streams s0, s1, … and m0, m1, …"""
    streams = [*inputs, *(one.stage.result for one in placed)]
    readers = Counter(net for one in placed for net in one.nets)
    readers.update(outputs)
    body = _Text()
    for number in range(len(inputs)):
        body.text += _renamed(f"n{number}", f"s{number}", streams[number].width)
    for number, one in enumerate(placed, len(inputs)):
        body.text += wires(f"n{number}", one.stage.result.width)
    for net, stream in enumerate(streams):
        if readers[net] > 1:
            body.fork(net, readers[net], stream.width)
        elif not readers[net]:
            body.text += f"    assign n{net}_ready = 1'b1;\n    wire unused_n{net} = &{{1'b0, n{net}_valid, n{net}_data}};\n"
    waiting = depths(inputs, placed)
    taken: Counter[int] = Counter()
    for number, one in enumerate(placed, len(inputs)):
        ports = dict(CLOCK)
        for place, (net, wanted) in enumerate(zip(one.nets, one.stage.sources, strict=True)):
            at = body.branch(net, taken, readers)
            have = streams[net]
            if len(one.nets) > 1:
                at = body.queue(f"q{number}_{place}", at, have, waiting[number][place] * have.folds + SPARE_BEATS)
            at = body.converted(f"c{number}_{place}", at, have, wanted)
            ports |= link(f"s{place}", at)
        body.text += instance(one.stage.name, f"u_{one.stage.name}", {}, ports | link("m", f"n{number}"))
    for number, net in enumerate(outputs):
        at = body.branch(net, taken, readers)
        body.text += f"    assign m{number}_valid = {at}_valid;\n    assign m{number}_data = {at}_data;\n"
        body.text += f"    assign {at}_ready = m{number}_ready;\n"
    come = {f"s{number}": stream.width for number, stream in enumerate(inputs)}
    go = {f"m{number}": streams[net].width for number, net in enumerate(outputs)}
    return Network(module(name, about, come, go, body.text), frozenset(body.library), body.counts, body.cycles)


def serial(name: str, core: str, inputs: Sequence[Stream], outputs: Sequence[Stream], port_bits: int) -> Network:
    """The network behind narrow ports: one element after another, in their order in the streams.

    An element comes in the low bits of one beat of `port_bits`, or in as many beats as it takes, the least significant first;
    results are extended to whole beats, with their sign where they have one.
    """
    body = _Text()
    ports = dict(CLOCK)
    for number, stream in enumerate(inputs):
        at, bits = f"s{number}", stream.codes.bits
        ratio = -(-bits // port_bits)
        at = body.widened(f"i{number}", at, port_bits, ratio)
        if ratio * port_bits > bits:
            cut = f"e{number}"
            body.text += wires(cut, bits)
            body.text += f"    assign {cut}_valid = {at}_valid;\n    assign {at}_ready = {cut}_ready;\n"
            body.text += f"    assign {cut}_data = {at}_data[{bits - 1}:0];\n"
            left = ratio * port_bits - bits
            body.text += f"    wire unused_{number} = &{{1'b0, {at}_data[{bits + left - 1}:{bits}]}};\n"
            at = cut
        ports |= link(f"s{number}", body.widened(f"w{number}", at, bits, stream.lanes))
        body.cycles = max(body.cycles, stream.beats * stream.lanes * ratio)
    for number, stream in enumerate(outputs):
        at, bits = f"r{number}", stream.codes.bits
        body.text += wires(at, stream.width)
        ports |= link(f"m{number}", at)
        at = body.narrowed(f"o{number}", at, bits, stream.lanes)
        ratio = -(-bits // port_bits)
        whole = f"x{number}"
        body.text += wires(whole, ratio * port_bits)
        top = f"{at}_data[{bits - 1}]" if stream.codes.signed else "1'b0"
        missing = ratio * port_bits - bits
        extended = f"{{{{{missing}{{{top}}}}}, {at}_data}}" if missing else f"{at}_data"
        body.text += f"    assign {whole}_valid = {at}_valid;\n    assign {at}_ready = {whole}_ready;\n"
        body.text += f"    assign {whole}_data = {extended};\n"
        at = body.narrowed(f"p{number}", whole, port_bits, ratio)
        body.text += f"    assign m{number}_valid = {at}_valid;\n    assign m{number}_data = {at}_data;\n"
        body.text += f"    assign {at}_ready = m{number}_ready;\n"
        body.cycles = max(body.cycles, stream.beats * stream.lanes * ratio)
    body.text += instance(core, "core", {}, ports)
    come = {f"s{number}": port_bits for number in range(len(inputs))}
    go = {f"m{number}": port_bits for number in range(len(outputs))}
    about = f"The network behind ports of {port_bits} bits: one element after another."
    return Network(module(name, about, come, go, body.text), frozenset(body.library), body.counts, body.cycles)


class _Text:
    """The inside of a module of streams while it is written."""

    def __init__(self) -> None:
        self.text = ""
        self.library: set[str] = set()
        self.counts = Counts()
        self.cycles = 1

    def fork(self, net: int, count: int, width: int) -> None:
        self.text += f"    wire [{count - 1}:0] f{net}_valid, f{net}_ready;\n"
        ports = {"s_valid": f"n{net}_valid", "s_ready": f"n{net}_ready", "m_valid": f"f{net}_valid", "m_ready": f"f{net}_ready"}
        self._place("edgesdk_fork", f"fork{net}", {"COUNT": count}, CLOCK | ports)
        for branch in range(count):
            name = f"b{net}_{branch}"
            self.text += wires(name, width)
            self.text += f"    assign {name}_valid = f{net}_valid[{branch}];\n    assign f{net}_ready[{branch}] = {name}_ready;\n"
            self.text += f"    assign {name}_data = n{net}_data;\n"

    def branch(self, net: int, taken: Counter[int], readers: Mapping[int, int]) -> str:
        """The wires for the next reader of a net."""
        taken[net] += 1
        return f"b{net}_{taken[net] - 1}" if readers[net] > 1 else f"n{net}"

    def queue(self, name: str, at: str, stream: Stream, depth: int) -> str:
        depth = 1 << bits_for(depth)
        self.text += wires(name, stream.width)
        given = {"WIDTH": stream.width, "DEPTH": depth, "ABITS": bits_for(depth)}
        self._place("edgesdk_fifo", f"{name}_fifo", given, CLOCK | link("s", at) | link("m", name))
        self.counts += Counts(register_bits=stream.width, fifo_bits=stream.width * depth)
        return name

    def converted(self, name: str, at: str, have: Stream, wanted: Stream) -> str:
        """Beats of as many lanes as wanted; through their least common multiple where neither divides the other."""
        bits, both = have.codes.bits, math.lcm(have.lanes, wanted.lanes)
        self.cycles = max(self.cycles, have.beats, wanted.beats)
        at = self.widened(f"{name}w", at, have.width, both // have.lanes)
        return self.narrowed(f"{name}n", at, wanted.lanes * bits, both // wanted.lanes)

    def widened(self, name: str, at: str, width: int, ratio: int) -> str:
        return at if ratio == 1 else self._ratio("edgesdk_widen", name, at, width, ratio, width * ratio)

    def narrowed(self, name: str, at: str, width: int, ratio: int) -> str:
        return at if ratio == 1 else self._ratio("edgesdk_narrow", name, at, width, ratio, width)

    def _ratio(self, part: str, name: str, at: str, width: int, ratio: int, out: int) -> str:
        self.text += wires(name, out)
        given = {"WIDTH": width, "RATIO": ratio, "CBITS": bits_for(ratio)}
        self._place(part, f"{name}_beats", given, CLOCK | link("s", at) | link("m", name))
        self.counts += Counts(register_bits=width * ratio)
        return name

    def _place(self, part: str, name: str, parameters: Mapping[str, int], ports: Mapping[str, str]) -> None:
        self.library.add(part)
        self.text += instance(part, name, dict(parameters), ports)


def _renamed(net: str, port: str, width: int) -> str:
    text = wires(net, width)
    text += f"    assign {net}_valid = {port}_valid;\n    assign {port}_ready = {net}_ready;\n"
    return text + f"    assign {net}_data = {port}_data;\n"
