"""What a kernel is made of: each net of its Verilog is one operation (`verilog.Netlist`), and is counted by what makes it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping

from .rtl_counts import Terms, Way, placement

TYPICAL: Way = {
    "sum": 1.2, "carry_bits": 0.05, "choice": 0.7, "logic": 0.6, "fan_out": 0.2, "multiplier": 4.5, "table": 0.8,
    "block_ram": 5.0,
}  # fmt: skip
"""Delays by which the longest way into a net is chosen among its operands'; relative, those of the fit are near."""
TABLE_INPUTS = 4
"""Of a look-up table of an ECP5."""
NARROW_TABLE = 6
"""Up to so many bits of code, a table is no memory to synthesis (of 7 bits and more, those of a GELU were seen in block RAM)."""
DSP_BITS = 18
"""Of a factor of one multiplier; products of wider ones are sums of several (yosys mul2dsp)."""
_WIRE = re.compile(r"^  wire \[(\d+):0\] (\w+) = (.*);$")
_REGISTER = re.compile(r"^  (?:output )?reg \[(\d+):0\] (\w+)")
_LATCH = re.compile(r"^    (y\[[\d:]+\]|\w+) <= (.*);$")
_FUNCTION = re.compile(r"^  function \[\d+:0\] (\w+)\(input \[(\d+):0\] code\);$")
_NET = re.compile(r"\b[a-z]\d+_\d+(?:_r\d+)?\b")
_LITERAL = re.compile(r"\d+'[dh][0-9a-f]+")
_PART = re.compile(r"(\w+)\[(\d+):(\d+)\]")


def add(made: Terms, text: str) -> None:
    """Count a kernel's text into the terms of its stage.

    `merged_sum_bits` are those of sums of a sum that nobody else reads, which synthesis adds up in one go (yosys alumacc).
    """
    bits: dict[str, int] = {}
    texts: dict[str, str] = {}
    latches: list[str] = []
    registers: dict[str, str] = {}
    inputs: dict[str, int] = {}
    for line in text.splitlines():
        if wire := _WIRE.match(line):
            bits[wire[2]], texts[wire[2]] = int(wire[1]) + 1, wire[3]
        elif register := _REGISTER.match(line):
            bits[register[2]] = int(register[1]) + 1
            made.ffs("kernel_bits", bits[register[2]])
        elif latch := _LATCH.match(line):
            latches.append(latch[2])
            registers.setdefault(latch[2], latch[1])
            if part := _PART.fullmatch(latch[1]):
                wide = int(part[2]) - int(part[3]) + 1
                made.output_bits += wide
                made.constant_bits += wide if _LITERAL.fullmatch(latch[2]) else 0
        elif function := _FUNCTION.match(line):
            inputs[function[1]] = int(function[2]) + 1
    combined = {net for one in texts.values() for net in _NET.findall(one)}
    users = Counter(net for one in (*texts.values(), *latches) for net in set(_NET.findall(one)))
    ways: dict[str, Way] = {}
    nothing: Way = {}
    whole_sums: set[str] = set()
    for name, one in texts.items():
        operands = _NET.findall(one)
        before = max((ways.get(net, nothing) for net in operands), key=length, default=nothing)
        passed = _operation(made, one, bits[name], bits, inputs, name not in combined)
        if "block_ram" in passed:  # its register is the memory's own, and gives its word late
            made.paths.append(passed)
            ways[registers[name]], passed = passed, nothing
        if "sum" in passed and " < " not in one:
            if any(net in whole_sums and users[net] == 1 for net in operands):
                made.luts("merged_sum_bits", passed["carry_bits"])
            if passed["carry_bits"] == bits[name]:
                whole_sums.add(name)
        ways[name] = {key: before.get(key, 0.0) + passed.get(key, 0.0) for key in dict.fromkeys((*before, *passed))}
    longest = max((ways.get(net, nothing) for one in latches for net in _NET.findall(one)), key=length, default=nothing)
    made.paths.append({"kernel": 1.0, **longest})


def length(way: Way) -> float:
    return sum(TYPICAL[name] * count for name, count in way.items())


def _operation(
    made: Terms, text: str, out: int, bits: Mapping[str, int], inputs: Mapping[str, int], registered: bool
) -> Way:  # fmt: skip
    """Count the logic of one net of `out` bits, `registered` if nothing but registers read it; returns what a signal passes."""
    if text.startswith("table_"):
        wide = inputs[text.split("(")[0]]
        place, blocks = placement(1 << wide, out, "rom", registered)
        if wide > NARROW_TABLE and place == "block":
            made.bram += blocks
            return {"block_ram": 1.0}
        made.luts("table_luts", out * max(1, 1 << max(0, wide - TABLE_INPUTS)))
        return {"table": float(max(1, wide - TABLE_INPUTS))}
    if " ? " in text:
        choices = text.split(" ? ", 1)[1].split(" : ")
        made.luts("limit_bits" if any(_LITERAL.fullmatch(one) for one in choices) else "choice_bits", out)
        return {"choice": 1.0, "fan_out": math.log2(1 + out)}
    if " * " in text:
        made.dsp += math.prod(-(-_signed_width(one, bits) // DSP_BITS) for one in text.split(" * "))
        return {"multiplier": 1.0}
    if " < " in text:
        wide = max(_width(one.removeprefix("$signed(").removesuffix(")"), bits) for one in text.split(" < "))
        made.sums(wide)
        made.luts("comparators", 1)
        return {"sum": 1.0, "carry_bits": float(wide)}
    if " + " in text or " - " in text:
        wide = out - _below(text, bits)
        made.sums(wide)
        return {"sum": 1.0, "carry_bits": float(wide)}
    if "|" in text or "&" in text:
        terms = sum(int(high) - int(low) + 1 for _, high, low in _PART.findall(text)) + len(re.findall(r"\w\[\d+\]", text))
        made.luts("gate_luts", max(1, math.ceil((terms - 1) / (TABLE_INPUTS - 1))))
        return {"logic": max(1.0, math.log(max(2, terms), TABLE_INPUTS))}
    return {}


def _signed_width(text: str, bits: Mapping[str, int]) -> int:
    """Of a factor without the copies of its sign in front of it; a zero stands before what has none."""
    inner = text.removeprefix("$signed(").removesuffix(")")
    parts = _parts(inner)
    if len(parts) == 2:
        return _width(parts[1], bits) + ("'" in parts[0])
    return _width(inner, bits)


def _below(text: str, bits: Mapping[str, int]) -> int:
    """Bits beside a sum in a concatenation, which only pass: `{a + b, c[1:0]}`."""
    parts = _parts(text)
    if len(parts) < 2 or not any(sign in parts[0] for sign in (" + ", " - ")):
        return 0
    return sum(_width(part, bits) for part in parts[1:])


def _parts(text: str) -> list[str]:
    """What a concatenation joins; the text itself where it is none."""
    depth, last, found = 0, 1, list[str]()
    for place, one in enumerate(text):
        depth += {"{": 1, "}": -1}.get(one, 0)
        if depth == 0 and place < len(text) - 1:
            return [text]
        if one == "," and depth == 1:
            found.append(text[last:place].strip())
            last = place + 1
    return [*found, text[last:-1].strip()]


def _width(text: str, bits: Mapping[str, int]) -> int:
    """Of a net, a part of one, a literal, or a concatenation of these."""
    if text.startswith("{"):
        if repeat := re.fullmatch(r"\{(\d+)\{(.*)\}\}", text):
            return int(repeat[1]) * _width(repeat[2], bits)
        return sum(_width(part, bits) for part in _parts(text))
    if "'" in text:
        return int(text.split("'")[0])
    if part := _PART.fullmatch(text):
        return int(part[2]) - int(part[3]) + 1
    return 1 if text.endswith("]") else bits.get(text, 1)
