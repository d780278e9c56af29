"""Verilog-2001 as text: modules with the streaming handshake, instances, and numbers in memory files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from edgesdk_converters.integer_program import Integers

Parameter = int | str


def identifier(text: str) -> str:
    """A legal and readable name out of any text; unique only together with a number in front or behind."""
    name = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_").lower()
    return name[:40].strip("_") or "node"


def instance(module: str, name: str, parameters: Mapping[str, Parameter], ports: Mapping[str, str]) -> str:
    """One instance; text parameters are quoted unless they are sized numbers."""
    given = ", ".join(f".{key}({_parameter(value)})" for key, value in parameters.items())
    joined = ", ".join(f".{key}({value})" for key, value in ports.items())
    return f"    {module}{f' #({given})' if given else ''} {name} ({joined});\n"


def link(side: str, net: str, flags: bool = False) -> dict[str, str]:
    """Ports of one side (`s` or `m`) of a stream, joined to the wires of `net`."""
    names = ("valid", "ready", "data", *(("first", "last") if flags else ()))
    return {f"{side}_{name}": f"{net}_{name}" for name in names}


CLOCK = {"clk": "clk", "rst": "rst"}


def wires(net: str, width: int, flags: bool = False) -> str:
    """Declarations of a stream's wires."""
    more = f", {net}_first, {net}_last" if flags else ""
    return f"    wire {net}_valid, {net}_ready{more};\n    wire [{width - 1}:0] {net}_data;\n"


def module(name: str, about: str, inputs: Mapping[str, int], outputs: Mapping[str, int], body: str) -> str:
    """A module between streams: names and widths of those that come and of those that go."""
    ports = ["input  wire clk", "input  wire rst"]
    for net, width in inputs.items():
        ports += [f"input  wire {net}_valid", f"output wire {net}_ready", f"input  wire [{width - 1}:0] {net}_data"]
    for net, width in outputs.items():
        ports += [f"output wire {net}_valid", f"input  wire {net}_ready", f"output wire [{width - 1}:0] {net}_data"]
    told = "".join(f"// {line}\n" for line in about.splitlines())
    return f"{told}module {name} (\n    " + ",\n    ".join(ports) + f"\n);\n{body}endmodule\n"


def resized(net: str, lanes: int, bits: int, signed: bool, to: int) -> str:
    """An expression: `lanes` numbers of `bits` bits in the vector `net`, each `to` bits wide."""
    if bits == to:
        return net
    parts = []
    for lane in reversed(range(lanes)):
        low = lane * bits
        if to < bits:
            parts.append(f"{net}[{low + to - 1}:{low}]" if to > 1 else f"{net}[{low}]")
            continue
        top = f"{net}[{low + bits - 1}]" if signed else "1'b0"
        parts += [f"{{{to - bits}{{{top}}}}}", f"{net}[{low + bits - 1}:{low}]" if bits > 1 else f"{net}[{low}]"]
    return "{" + ", ".join(parts) + "}"


def sized(value: int, bits: int) -> str:
    """A number as a constant of that many bits, in two's complement."""
    return f"{bits}'h{value % (1 << bits):x}"


def memory_file(words: Integers, bits: int) -> bytes:
    """(depth, elements) integers as a file for $readmemh: a word a line, element 0 least significant."""
    depth, elements = words.shape
    planes = (words[:, :, None] >> np.arange(bits)) & 1  # least significant first
    whole = planes.reshape(depth, elements * bits).astype(np.uint8)
    digits = -(-whole.shape[1] // 4)
    padded = np.zeros((depth, 8 * (-(-digits // 2))), np.uint8)
    padded[:, : whole.shape[1]] = whole
    packed = np.packbits(padded[:, ::-1], axis=1)
    return "".join(row.tobytes().hex()[-digits:] + "\n" for row in packed).encode()


def concatenated(parts: Sequence[str]) -> str:
    """An expression of vectors side by side, the first least significant."""
    return parts[0] if len(parts) == 1 else "{" + ", ".join(reversed(parts)) + "}"


def _parameter(value: Parameter) -> str:
    if isinstance(value, int):
        return str(value)
    return value if "'" in value else f'"{value}"'
