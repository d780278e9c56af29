"""The edge between values and codes: what the host does before and behind the logic, as a JSON file of the bundle.

Of Verilog it also says how the ports are wired and in what order elements travel; the same for people is WIRING_FILE.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters.errors import BundleError, ModelError
from edgesdk_converters.integer_program import Codes, IntegerProgram, Integers, Rounding

from . import testbench
from .stream import Stream, channels_first

if TYPE_CHECKING:
    from .bench_text import Side
    from .design import Design

Array = NDArray[Any]
FILE = "interface.json"
WIRING_FILE = "WIRING.md"
FORMAT = 1
_ROUNDINGS = ("half_even", "half_up", "truncate")
_WHOLE = {"half_even": "rint({}), ties to even", "half_up": "floor({} + 0.5)", "truncate": "floor({})"}
"""What a rounding makes of a scaled value."""
FLATTENED, CHANNELS_FASTEST = "as flattened", "channel fastest, then pixels in raster order"
"""Orders in which the elements of a tensor travel: of its C order, or all channels of a pixel before the next pixel."""
HANDSHAKE = (
    "A beat passes at each rising edge of clk at which valid and ready of its port are both high.",
    "The host raises the valid of an input as soon as it has a beat, without waiting for ready, which may itself wait for valid. "
    "It keeps valid and data until the beat has passed; the design does the same at outputs.",
    "The ready of an output may come and go as it likes, and may wait for valid.",
    "In one cycle, a ready can follow the ready of other ports, and the valid of an output that of an input: drive what goes "
    "into the design from registers.",
    "Serve all ports at once, inputs and outputs. A host that finishes one port before it begins with the next can wait for "
    "ever: the design holds only part of a tensor while another port stands still.",
    "Nothing marks where a tensor begins or ends: count beats from the reset. Each inference takes all beats of every input and "
    "gives all beats of every output; the next one may follow at once, before the results of this one are out.",
)
RESET = (
    "synchronous, active high: hold rst high for at least one rising edge of clk before the first beat, and every valid low "
    "meanwhile. The same at any later time drops what is under way; then all ports begin with a new tensor."
)


@dataclass(frozen=True)
class Port:
    """An input or output: its codes (shape without the batch axis), the type that the host sees, how an input is rounded."""

    codes: Codes
    dtype: str
    rounding: Rounding = "half_even"


@dataclass(frozen=True)
class Wiring:
    """How a host is wired to a design's module with narrow ports, as plain data: that of the whole, and of each tensor."""

    whole: Mapping[str, Any]
    inputs: tuple[Mapping[str, Any], ...]
    outputs: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Interface:
    """Ports in the order of the signature."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @classmethod
    def of(cls, program: IntegerProgram, dtypes: Mapping[str, str]) -> Interface:
        """That of a program; `dtypes` says what type each output has in the model."""
        inputs = (Port(program.tensors[name], "float32", program.roundings[name]) for name in program.inputs)
        return cls(tuple(inputs), tuple(Port(program.tensors[name], dtypes[name]) for name in program.outputs))

    def encode(self, feed: Mapping[str, Array]) -> dict[str, Integers]:
        """Codes of values, both with a batch axis in front; infinity saturates. Raises ModelError for NaN, which has no code."""
        for name in _names(self.inputs):
            if np.isnan(np.asarray(feed[name], np.float32)).any():
                raise ModelError(f"input {name!r} holds NaN", "drop or repair such samples: integers have no code for NaN")
        return self._empty().encode(feed)

    def decode(self, codes: Mapping[str, Integers]) -> list[Array]:
        """Outputs in order, with a batch axis in front, in the types that the model gives."""
        values = self._empty().decode(codes)
        return [
            values[port.codes.name] if port.dtype == "float32" else codes[port.codes.name].astype(port.dtype)
            for port in self.outputs
        ]

    def to_bytes(self, wiring: Wiring | None = None) -> bytes:
        """The file. A wiring stands beside the codes: reading needs none, and older bundles have none."""
        inputs, outputs = [_plain(port, True) for port in self.inputs], [_plain(port) for port in self.outputs]
        data: dict[str, Any] = {"format": FORMAT, "inputs": inputs, "outputs": outputs}
        if wiring is not None:
            for port, wired in zip((*inputs, *outputs), (*wiring.inputs, *wiring.outputs), strict=True):
                port["wiring"] = wired
            data["wiring"] = wiring.whole
        return (json.dumps(data, indent=1) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Interface:
        """Raises BundleError for what is no interface of this format."""
        try:
            found = json.loads(data)
            if found["format"] != FORMAT:
                raise BundleError(f"{FILE} has format {found['format']}; this edgesdk reads {FORMAT}", "update edgesdk")
            return cls(tuple(map(_port, found["inputs"])), tuple(map(_port, found["outputs"])))
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{FILE} is damaged: {type(error).__name__}: {error}", "export the model again") from error

    def _empty(self) -> IntegerProgram:
        """A program without operations: it encodes and decodes as the whole one does."""
        tensors = {port.codes.name: port.codes for port in (*self.inputs, *self.outputs)}
        return IntegerProgram(
            "interface", _names(self.inputs), _names(self.outputs), tensors, (),
            {port.codes.name: port.rounding for port in self.inputs}, {},
        )  # fmt: skip


def wiring(made: Design) -> Wiring:
    """That of a design's module with narrow ports, from what its test bench drives."""
    come, go = testbench.sides(made, "serial")
    whole = {
        "module": made.serial, "clock": {"port": "clk", "edge": "rising"}, "reset": {"port": "rst", "rule": RESET},
        "handshake": HANDSHAKE, "least_cycles_an_inference": made.serial_interval_cycles,
    }  # fmt: skip
    return Wiring(
        whole,
        tuple(_wired(side, stream, "ignored") for side, stream in zip(come, made.inputs, strict=True)),
        tuple(
            _wired(side, stream, "copies of the sign" if stream.codes.signed else "zero")
            for side, stream in zip(go, made.outputs, strict=True)
        ),
    )


def port_names(inputs: int, outputs: int, port_bits: int) -> tuple[str, ...]:
    """All ports of such a module, bit by bit, as a file of pins names them."""
    streams = [*(f"s{number}" for number in range(inputs)), *(f"m{number}" for number in range(outputs))]
    each = ("valid", "ready", *(f"data[{bit}]" for bit in range(port_bits)))
    return ("clk", "rst", *(f"{stream}_{one}" for stream in streams for one in each))


def _wired(side: Side, stream: Stream, above: str) -> dict[str, Any]:
    size, sign = stream.order.size, "two's complement" if stream.codes.signed else "no sign"
    return {
        "port": side.name,
        "valid": f"{side.name}_valid",
        "ready": f"{side.name}_ready",
        "data": f"{side.name}_data",
        "port_bits": side.width,
        "beats_an_element": side.beats // size,
        "beats_an_inference": side.beats,
        "beats": f"least significant first; {sign}; bits above the code: {above}",
        "order": _order(stream),
    }


def _order(stream: Stream) -> str | list[int]:
    """In words, or of each element that travels, the first first, its index in the flattened tensor."""
    flat, shape = stream.order.reshape(-1), stream.codes.shape
    if np.array_equal(flat, np.arange(flat.size)):
        return FLATTENED
    if len(shape) > 1 and np.array_equal(flat, channels_first(shape).reshape(-1)):
        return CHANNELS_FASTEST
    return [int(index) for index in flat]


def wiring_text(ends: Interface, wired: Wiring, name: str, clock_mhz: float) -> bytes:
    """What the JSON file says, for people."""
    lines = [
        f"# How to wire {_cell(name)}", "",
        f"The module is `{wired.whole['module']}` in {wired.whole['module']}.v; all other .v and data files beside it belong to "
        f"it. Programs read the same in `{FILE}`.",
        "", "## Ports", "", "| port | direction | bits | meaning |", "|---|---|---|---|",
        f"| clk | in | 1 | everything happens on its rising edge; the scripts ask for {clock_mhz:.6g} MHz |",
        f"| rst | in | 1 | {RESET} |",
    ]  # fmt: skip
    tensors = [*zip(ends.inputs, wired.inputs, strict=True), *zip(ends.outputs, wired.outputs, strict=True)]
    for number, (port, one) in enumerate(tensors):
        to, back = ("in", "out") if number < len(ends.inputs) else ("out", "in")
        lines += [
            f"| {one['valid']} | {to} | 1 | a beat of `{_cell(port.codes.name)}` is there |",
            f"| {one['ready']} | {back} | 1 | it is taken |",
            f"| {one['data']} | {to} | {one['port_bits']} | the beat |",
        ]
    lines += ["", "## Handshake", "", *(f"- {rule}" for rule in wired.whole["handshake"])]
    lines += [
        "", "## Tensors", "",
        "| tensor | port | shape | bits an element | beats an element | beats an inference | order of elements |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for port, one in tensors:
        codes, order = port.codes, one["order"]
        told = order if isinstance(order, str) else f"the `order` in `{FILE}`: of each that travels, its index as flattened"
        lines.append(
            f"| `{_cell(codes.name)}` | {one['port']} | {'x'.join(map(str, codes.shape)) or 'one number'} | {codes.bits} | "
            f"{one['beats_an_element']} | {one['beats_an_inference']} | {told} |"
        )
    lines += [
        "",
        f"Shapes are without the batch axis. {FLATTENED!r} is C order: the last axis fastest. {CHANNELS_FASTEST!r} is of a shape "
        "whose first axis is that of channels. The beats of an element:",
        "",
    ]
    lines += [f"- `{_cell(port.codes.name)}`: {one['beats']}." for port, one in tensors]
    lines += ["", "## Values and codes", ""]
    for port in ends.inputs:
        whole = _WHOLE[port.rounding].format(f"value * 2^{-port.codes.exponent}")
        ends_at = f"what is below {port.codes.low} becomes {port.codes.low}, what is above {port.codes.high} {port.codes.high}"
        lines.append(f"- `{_cell(port.codes.name)}`: code = {whole}; then {ends_at}. NaN has no code.")
    for port in ends.outputs:
        below = f" / {port.codes.divisor}" if port.codes.divisor > 1 else ""
        value = f"value = code * 2^{port.codes.exponent}{below}" if port.dtype == "float32" else f"the code is the {port.dtype}"
        lines.append(f"- `{_cell(port.codes.name)}`: {value}; codes are from {port.codes.low} to {port.codes.high}.")
    least = int(wired.whole["least_cycles_an_inference"])
    lines += [
        "", "## Cycles", "",
        f"No inference follows another by less than {least:,} cycles through these ports ({least / clock_mhz:,.6g} us at "
        f"{clock_mhz:.6g} MHz); a pause of the host adds to that. What simulations found, and the clock that place and route "
        "reached, stand in the report beside the bundle.", "",
    ]  # fmt: skip
    return "\n".join(lines).encode()


def _cell(name: str) -> str:
    """A name inside a table."""
    return "".join(letter if letter.isprintable() and letter != "`" else "?" for letter in name).replace("|", "\\|")


def _names(ports: Sequence[Port]) -> tuple[str, ...]:
    return tuple(port.codes.name for port in ports)


def _plain(port: Port, rounds: bool = False) -> dict[str, Any]:
    codes = port.codes
    plain = {
        "name": codes.name, "shape": list(codes.shape), "bits": codes.bits, "signed": codes.signed, "exponent": codes.exponent,
        "divisor": codes.divisor, "low": codes.low, "high": codes.high, "dtype": port.dtype,
    }  # fmt: skip
    return plain | ({"rounding": port.rounding} if rounds else {})


def _port(data: Mapping[str, Any]) -> Port:
    codes = Codes(
        str(data["name"]), tuple(int(dim) for dim in data["shape"]), int(data["exponent"]), int(data["low"]), int(data["high"]),
        int(data["divisor"]),
    )  # fmt: skip
    rounding = data.get("rounding", "half_even")
    if rounding not in _ROUNDINGS:
        raise ValueError(f"rounding {rounding!r}; known: {', '.join(_ROUNDINGS)}")
    return Port(codes, np.dtype(data["dtype"]).name, cast(Rounding, rounding))
