"""Straight-line integer arithmetic as one fully unrolled, pipelined Verilog module: a new input every cycle (II = 1).

The module has no reset and no handshake: registers move while `en` is 1, and y follows x by `latency_cycles` such cycles.
Ports carry all elements of all tensors, flattened in C order, element 0 in the lowest bits, each in two's complement or
unsigned as its Codes have it, with nothing between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgesdk_converters.integer_program import Codes, IntegerProgram, Integers

from .arithmetic import Arithmetic
from .lowering import Elements, Lowering, elements
from .verilog import Netlist


@dataclass(frozen=True)
class KernelOptions:
    """`latency_cutoff`: levels of adders between two registers, at most where one operation alone has no more.

    `depth_slack`: levels that an adder graph may have beyond its least (adder_graph.solve). `multipliers`: nodes, Dense or
    Conv, whose products are Verilog's `*` (DSPs) and not shifts and adders.
    """

    latency_cutoff: float = 4.0
    depth_slack: int = 1
    multipliers: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Kernel:
    """A module and what it holds. `lookup_bits` are bits of tables; `adder_bits` of adders and comparators."""

    name: str
    verilog: str
    latency_cycles: int
    inputs: tuple[Codes, ...]
    outputs: tuple[Codes, ...]
    adders: int
    adder_bits: int
    multipliers: int
    register_bits: int
    lookup_bits: int

    @property
    def input_bits(self) -> int:
        return sum(tensor.bits * tensor.size for tensor in self.inputs)

    @property
    def output_bits(self) -> int:
        return sum(tensor.bits * tensor.size for tensor in self.outputs)


def kernel(program: IntegerProgram, name: str, options: KernelOptions | None = None) -> Kernel:
    """The module `name` of a whole program. Raises ValueError for a name that Verilog does not allow."""
    options = options or KernelOptions()
    inputs, outputs = (tuple(program.tensors[tensor] for tensor in names) for names in (program.inputs, program.outputs))

    def lowered(do: Arithmetic, sources: Sequence[Elements]) -> list[Elements]:
        lowering = Lowering(program, do, options.multipliers)
        lowering.known |= {tensor.name: signals for tensor, signals in zip(inputs, sources, strict=True)}
        for number, operation in enumerate(program.operations):
            result = program.tensors[operation.result]
            do.net.begin(f"t{number}", f"{type(operation).__name__} {operation.node}: {_format(result)}")
            lowering.lower(operation)
        return [lowering.known[tensor.name] for tensor in outputs]

    about = f"{program.name}: {len(program.operations)} operations, II = 1"
    return assembled(name, about, inputs, outputs, lowered, options)


def assembled(
    name: str,
    about: str,
    inputs: Sequence[Codes],
    outputs: Sequence[Codes],
    compute: Callable[[Arithmetic, Sequence[Elements]], Sequence[Elements]],
    options: KernelOptions,
) -> Kernel:
    """The module `name` of what `compute` makes of the signals of inputs, in their shapes, as those of outputs."""
    net = Netlist(options.latency_cutoff)
    start = 0
    sources: list[Elements] = []
    for number, tensor in enumerate(inputs):
        net.begin(f"x{number}", f"input {tensor.name}: {_format(tensor)}")
        bits = tensor.bits
        signals = [net.take("x", start + place * bits, tensor.low, tensor.high) for place in range(tensor.size)]
        sources.append(elements(signals, tensor.shape))
        start += tensor.size * bits
    found = compute(Arithmetic(net, options.depth_slack), sources)
    ends = [(signal, tensor.bits) for tensor, made in zip(outputs, found, strict=True) for signal in made.reshape(-1)]
    text, latency_cycles = net.finish(name, start, ends, [about])
    return Kernel(
        name, text, latency_cycles, tuple(inputs), tuple(outputs), net.adders, net.adder_bits, net.multipliers,
        net.register_bits, net.lookup_bits,
    )  # fmt: skip


def packed(tensors: Sequence[Codes], codes: Mapping[str, Integers]) -> list[int]:
    """A port's value for each sample of the batch."""
    samples = len(codes[tensors[0].name])
    words = [0] * samples
    start = 0
    for tensor in tensors:
        flat = np.asarray(codes[tensor.name], np.int64).reshape(samples, -1)
        for place in range(tensor.size):
            for sample in range(samples):
                words[sample] |= (int(flat[sample, place]) & ((1 << tensor.bits) - 1)) << start
            start += tensor.bits
    return words


def unpacked(tensors: Sequence[Codes], words: Sequence[int]) -> dict[str, Integers]:
    """Codes of a port's values, with a batch axis in front."""
    found = {}
    start = 0
    for tensor in tensors:
        flat = np.zeros((len(words), tensor.size), np.int64)
        for place in range(tensor.size):
            for sample, word in enumerate(words):
                code = (word >> start) & ((1 << tensor.bits) - 1)
                flat[sample, place] = code - (1 << tensor.bits) if tensor.signed and code >> (tensor.bits - 1) else code
            start += tensor.bits
        found[tensor.name] = flat.reshape(len(words), *tensor.shape)
    return found


def _format(tensor: Codes) -> str:
    shape = "x".join(str(size) for size in tensor.shape) or "scalar"
    step = f"2**{tensor.exponent}" + (f"/{tensor.divisor}" if tensor.divisor != 1 else "")
    return f"{shape} of {tensor.low}..{tensor.high}, {tensor.bits} bits, step {step}"
