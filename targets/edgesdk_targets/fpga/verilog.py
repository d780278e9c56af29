"""Verilog-2001 as data: signals with exact ranges, placed in pipeline stages, and the registers between them.

All nets are unsigned vectors; operands are extended or cut to the result's width by hand, where two's complement is right
whatever the signs are. So no expression's value depends on Verilog's rules for signs and widths.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from .adders import width

KEYWORDS = (
    " always and assign automatic begin buf bufif0 bufif1 case casex casez cell cmos config deassign default defparam "
    "design disable edge else end endcase endconfig endfunction endgenerate endmodule endprimitive endspecify endtable "
    "endtask event for force forever fork function generate genvar highz0 highz1 if ifnone incdir include initial inout "
    "input instance integer join large liblist library localparam macromodule medium module nand negedge nmos nor "
    "noshowcancelled not notif0 notif1 or output parameter pmos posedge primitive pull0 pull1 pulldown pullup "
    "pulsestyle_ondetect pulsestyle_onevent rcmos real realtime reg release repeat rnmos rpmos rtran rtranif0 rtranif1 "
    "scalared showcancelled signed small specify specparam strong0 strong1 supply0 supply1 table task time tran tranif0 "
    "tranif1 tri tri0 tri1 triand trior trireg unsigned use vectored wait wand weak0 weak1 while wire wor xnor xor "
)
"""Of IEEE 1364-2001, a space on either side of each."""
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def module_name(name: str) -> str:
    """The name itself. Raises ValueError where it is none in Verilog, or a keyword."""
    if not _IDENTIFIER.fullmatch(name) or f" {name} " in KEYWORDS:
        raise ValueError(f"{name!r} cannot name a Verilog module: letters, digits and _, no keyword")
    return name


def comment(text: str) -> str:
    """A line that cannot end the comment: printable ASCII, no backslash at its end."""
    return "// " + re.sub(r"[^ -~]|\\", "?", text)


def literal(value: int, bits: int) -> str:
    """The lowest bits of a value, in two's complement."""
    masked = value & ((1 << bits) - 1)
    return f"{bits}'d{masked}" if bits <= 32 else f"{bits}'h{masked:x}"


@dataclass(frozen=True)
class Signal:
    """A net that holds low..high, valid in pipeline stage `stage`, `delay` levels of adders behind its registers.

    One value alone is a constant, without a net, valid always.
    """

    name: str
    low: int
    high: int
    stage: int = 0
    delay: float = 0.0

    @property
    def bits(self) -> int:
        return width(self.low, self.high)

    @property
    def is_constant(self) -> bool:
        return self.low == self.high


def constant(value: int) -> Signal:
    return Signal("", value, value)


def slice_of(signal: Signal, bits: int, start: int = 0) -> str:
    """Text of bits start .. start + bits - 1 of the value, as if its sign went on for ever."""
    if signal.is_constant:
        return literal(signal.low >> start, bits)
    have = signal.bits - start
    if have >= bits:
        whole = start == 0 and have == bits
        return signal.name if whole else f"{signal.name}[{start + bits - 1}:{start}]"
    sign = f"{signal.name}[{signal.bits - 1}]"
    if have <= 0:
        return f"{{{bits}{{{sign}}}}}" if signal.low < 0 else literal(0, bits)
    kept = signal.name if start == 0 else f"{signal.name}[{signal.bits - 1}:{start}]"
    return f"{{{{{bits - have}{{{sign}}}}}, {kept}}}" if signal.low < 0 else f"{{{literal(0, bits - have)}, {kept}}}"


def adder_delay(bits: int) -> float:
    """Levels: one, and the carry's way through a long chain."""
    return 1.0 + bits / 64


class Netlist:
    """A module's body. Each net is put into the earliest stage in which at most `cutoff` levels follow one another."""

    def __init__(self, cutoff: float) -> None:
        self._cutoff = cutoff
        self._lines: list[str] = []
        self._functions: list[str] = []
        self._tables: dict[tuple[int, int, tuple[tuple[int, int], ...]], str] = {}
        self._registers: list[tuple[str, int, str]] = []
        self._held: dict[tuple[str, int], str] = {}
        self._count = 0
        self._prefix = "n"
        self.adders = 0
        self.adder_bits = 0
        self.multipliers = 0
        self.lookup_bits = 0

    @property
    def register_bits(self) -> int:
        return sum(bits for _, bits, _ in self._registers)

    def begin(self, prefix: str, told: str) -> None:
        """A new operation: a comment, and the prefix of its nets' names."""
        self._lines += ["", f"  {comment(told)}"]
        self._prefix, self._count = prefix, 0

    def hold(self, signal: Signal, stage: int) -> Signal:
        """The signal in a later stage."""
        if signal.is_constant or signal.stage == stage:
            return signal
        if signal.stage > stage:
            raise ValueError(f"{signal.name} of stage {signal.stage} is not there in stage {stage}")
        name = signal.name
        for later in range(signal.stage + 1, stage + 1):
            key = (signal.name, later)
            if key not in self._held:
                self._held[key] = f"{signal.name}_r{later}"
                self._registers.append((self._held[key], signal.bits, name))
            name = self._held[key]
        return replace(signal, name=name, stage=stage, delay=0.0)

    def put(self, operands: Sequence[Signal], delay: float, low: int, high: int, text: Callable[..., str]) -> Signal:
        """A net of low..high; `text` gets the operands as they are in its stage and gives `width(low, high)` bits."""
        if low == high:
            return constant(low)
        changing = [operand for operand in operands if not operand.is_constant]
        stage = max(operand.stage for operand in changing)
        before = max(operand.delay for operand in changing if operand.stage == stage)
        if before > 0 and before + delay > self._cutoff + 1e-9:
            stage, before = stage + 1, 0.0
        name = f"{self._prefix}_{self._count}"
        self._count += 1
        held = [self.hold(operand, stage) for operand in operands]
        self._lines.append(f"  wire [{width(low, high) - 1}:0] {name} = {text(*held)};")
        return Signal(name, low, high, stage, before + delay)

    def take(self, port: str, start: int, low: int, high: int) -> Signal:
        """An element of an input port, in stage 0."""
        name = f"{self._prefix}_{self._count}"
        self._count += 1
        bits = width(low, high)
        if low == high:
            return constant(low)
        self._lines.append(f"  wire [{bits - 1}:0] {name} = {port}[{start + bits - 1}:{start}];")
        return Signal(name, low, high)

    def table(self, bits: int, entries: Iterable[tuple[int, int]], code_bits: int) -> str:
        """The name of a function with these (code, value) entries; equal tables are one function."""
        key = (bits, code_bits, tuple(entries))
        if key not in self._tables:
            name = self._tables[key] = f"table_{len(self._tables)}"
            self._functions += [
                f"  function [{bits - 1}:0] {name}(input [{code_bits - 1}:0] code);",
                "    case (code)",
                *(f"      {literal(code, code_bits)}: {name} = {literal(value, bits)};" for code, value in key[2]),
                f"      default: {name} = {literal(key[2][0][1], bits)};",
                "    endcase",
                "  endfunction",
            ]
        return self._tables[key]

    def finish(self, name: str, input_bits: int, outputs: Sequence[tuple[Signal, int]], head: Sequence[str]) -> tuple[str, int]:
        """The module's text and its latency in cycles, of output signals and the bits that each gets."""
        stage = max((signal.stage for signal, _ in outputs if not signal.is_constant), default=0)
        self._prefix, self._count = "y", 0
        held = [(self.hold(signal, stage), bits) for signal, bits in outputs]
        pieces = [slice_of(signal, bits) for signal, bits in held]
        total = sum(bits for _, bits in outputs)
        declared = [f"  reg [{bits - 1}:0] {register};" for register, bits, _ in self._registers]
        latched = [f"    {register} <= {source};" for register, _, source in self._registers]
        packed, at = [], 0
        for (_, bits), piece in zip(outputs, pieces, strict=True):
            packed.append(f"    y[{at + bits - 1}:{at}] <= {piece};")
            at += bits
        lines = [
            *(comment(line) for line in head),
            f"module {module_name(name)} (",
            "  input wire clk,",
            "  input wire en,",
            f"  input wire [{input_bits - 1}:0] x,",
            f"  output reg [{total - 1}:0] y",
            ");",
            *declared, *self._functions, *self._lines, "",
            "  always @(posedge clk) if (en) begin",
            *latched, *packed,
            "  end",
            "endmodule",
        ]  # fmt: skip
        self._registers.append(("y", total, ""))
        return "\n".join(lines) + "\n", stage + 1
