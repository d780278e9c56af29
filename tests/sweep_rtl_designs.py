"""The designs of the sweep behind the estimate of the flow rtl (`sweep_rtl`): random networks, each in some widths and forms.

What these have too little of, layer normalisation, functions by tables and by straight lines, softmax, is in designs listed by
hand (`LISTED`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters.errors import RecipeError
from edgesdk_converters.integer_curves import TABLE_BITS
from edgesdk_converters.integer_program import Conv, Dense, IntegerProgram, Rounding, Table
from edgesdk_converters.integer_tables import drawn
from edgesdk_targets.fpga.design import Design, Forms, design
from edgesdk_targets.fpga.kernel import KernelOptions
from edgesdk_targets.fpga.rtl_sketch import Sketch
from edgesdk_targets.fpga.segments import weight_bits, weighted

SEED = 20261128
SIZES = (4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64)
LARGE_MEMORIES = (
    "128-d128-d10", "256-d64-d10", "256-d128-d64-d10", "512-d64-d8", "96-d96-d96-d10", "300-d100-d10", "640-d128-d8",
    "1x28x28-c8k3s2-c16k3s2-d10", "3x32x32-c8k3s2-c16k3s2-g-d10", "1x28x28-c8k3s1-m2-c16k3s1-m2-d10", "8x24x24-w3-c16k1-g-d10",
    "4x64-c16k5s2-c32k5s2-g-d10",
)  # fmt: skip
"""Networks whose weights take block RAM, and little logic where they are folded."""
FUNCTIONS: Mapping[str, tuple[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]]] = {
    "u": ("Gelu", lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))),
    "h": ("Tanh", np.tanh),
    "s": ("HardSwish", lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
}
"""By the letter behind a part."""
FUNCTION_REACH = 4.0
"""What the greatest input of such a function stands for: where it bends lies inside."""
ALONE = "xen"
"""Parts in front of which stands no ReLU."""
MIXED = 0.3
"""How much of the order is chance: designs come by size times a random factor, and this is the deviation of its logarithm."""


@dataclass(frozen=True)
class Wanted:
    """A design of the sweep. `network` is its topology in short (see `build`); all designs of one are a family."""

    network: str
    bits: int
    form: Forms = "unrolled"
    multipliers: int = 64
    cutoff: float = 4.0
    rounding: Rounding = "half_even"
    device: str = "ecp5-25k"
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.network}@{self.bits} {self.form} m{self.multipliers} c{self.cutoff:g} {self.rounding} s{self.seed}"

    def program(self) -> IntegerProgram:
        return build(self.network, self.bits, self.rounding, self.seed)

    def design(self) -> Design:
        most = 250 if self.form == "auto" else 5000
        return design(
            self.program(), self.form, max_weights_unrolled=most, multipliers=self.multipliers,
            port_bits=8 if self.bits <= 8 else 16, kernels=KernelOptions(latency_cutoff=self.cutoff),
        )  # fmt: skip


def build(network: str, bits: int, rounding: Rounding, seed: int) -> IntegerProgram:
    """Parts joined by hyphens: the input's shape (16, 3x12x12, 4x32), then d: dense, cNkKsS: convolution to N channels with a
    kernel of K and stride S, wK: depthwise, rK: residual convolution, kK: two branches side by side, mK, aK: maximum, mean over
    K, g: mean over all, l: leaky instead of ReLU behind the part, t: a sigmoid behind it, u, h, s: one of FUNCTIONS, x: argmax.
    Over rows pN: dense, n: layer normalisation, e: softmax, bN: a residual block of layer normalisation, dense layer to N, GELU
    and dense layer back."""
    first, *parts = network.split("-")
    net = _Net(seed, bits, rounding, network)
    last = net.input(tuple(map(int, first.split("x"))))
    for number, part in enumerate(parts):
        ends = number == len(parts) - 1 or parts[number + 1] in ALONE
        kind, numbers = part[0], part[1:].rstrip("lt" + "".join(FUNCTIONS))
        rank = len(net.tensors[last].shape) - 1
        before = last
        if kind == "d":
            last = net.dense(net.flatten(last), int(numbers))
        elif kind == "p":
            last = net.dense(last, int(numbers))
        elif kind == "b":
            last = net.block(last, int(numbers))
            continue
        elif kind == "n":
            last = net.round(net.layer_norm(last), signed=True)
            continue
        elif kind == "e":
            last = net.softmax(last)
            continue
        elif kind == "c":
            outs, rest = numbers.split("k")
            kernel, stride = (*map(int, rest.split("s")), 1)[:2]
            last = net.conv(last, int(outs), (kernel,) * rank, (stride,) * rank)
        elif kind in "wrk":
            channels = net.tensors[last].shape[0]
            groups = channels if kind == "w" else 1
            last = net.conv(last, channels, (int(numbers),) * rank, groups=groups)
        elif kind == "m":
            last = net.pool(last, (int(numbers),) * rank)
            continue
        elif kind in "ag":
            window = net.tensors[last].shape[1:] if kind == "g" else (int(numbers),) * rank
            last = net.round(net.mean(last, window), signed=net.tensors[last].low < 0)
            continue
        else:
            last = net.argmax(last)
            continue
        if kind == "r":
            last = net.add([net.round(last, signed=True), before])
        if part.endswith("l"):
            last = net.round(net.leaky(last), signed=True)
        elif part.endswith("t"):
            last = net.table(net.round(last, signed=True))
            last = net.round(last, signed=True) if bits > TABLE_BITS else last
        elif part[-1] in FUNCTIONS:
            last = net.function(net.round(last, signed=True), part[-1])
        else:
            last = net.round(last if ends else net.relu(last), signed=ends)
        if kind == "k":
            last = net.concat([before, last])
    return net.program(last)


@functools.cache
def made_of(name: str) -> tuple[int, frozenset[str]]:
    """Of the design of that name the most bits of a weight or of a value at its ports, and the names of its operations."""
    network, options = name.split("@")
    program = build(network, int(options.split()[0]), "half_even", int(options.rsplit(" s", 1)[1]))
    ports = (program.tensors[one].bits for one in (*program.inputs, *program.outputs))
    return max(*ports, *map(weight_bits, weighted(program))), frozenset(type(one).__name__ for one in program.operations)


class _Net(Sketch):
    """With functions by their own values, of which a sketch has the sigmoid's alone, and with a residual block."""

    def function(self, source: str, letter: str) -> str:
        known, half = self.tensors[source], 1 << self.bits - 1
        name, computed = FUNCTIONS[letter]
        unit = FUNCTION_REACH / (known.step * max(-known.low, known.high))
        values = computed(np.arange(known.low, known.high + 1, dtype=np.float64) * known.step * unit) / unit
        exponent = int(np.ceil(np.log2(np.abs(values).max() / (half - 1))))
        result = f"f{len(self.tensors)}"
        if known.bits > TABLE_BITS:
            curve, made = drawn(f"curve_{result}", known, result, name, lambda x: computed(x * unit) / unit, exponent)
            self.tensors[result] = made
            return self.round(self._add(curve), signed=True)
        codes = np.clip(np.rint(values / 2.0**exponent), -half, half - 1).astype(np.int64)
        result = self._tensor("f", known.shape, exponent, int(codes.min()), int(codes.max()))
        return self._add(Table(f"table_{result}", source, result, name, codes))

    def block(self, source: str, hidden: int) -> str:
        inside = self.round(self.layer_norm(source), signed=True)
        inside = self.function(self.round(self.dense(inside, hidden), signed=True), "u")
        inside = self.round(self.dense(inside, self.tensors[source].shape[-1]), signed=True)
        return self.round(self.add([inside, source]), signed=True)


LISTED = (
    Wanted("8-n-d4", 6, "folded", 4, seed=1), Wanted("6-d6u-d4", 13, "folded", 4, seed=12),
    Wanted("10-d3-e", 6, "folded", 4, seed=27), Wanted("12-d8u-d6", 9, "folded", 8, seed=20),
    Wanted("4x8-p8-n-p6", 4, "folded", 8, seed=5), Wanted("4-d6t-d4", 16, "folded", 4, 3.0, seed=14),
    Wanted("6-d4u-d4", 12, "folded", 4, seed=23), Wanted("8-d4-e", 5, "unrolled", 8, seed=33),
    Wanted("12-d10-n-d5", 10, "folded", 6, seed=3), Wanted("4-d3h-d2", 13, "unrolled", 8, 2.0, seed=15),
    Wanted("8-d6s-d4", 10, "folded", 8, 2.0, seed=22), Wanted("8-d4-e", 8, "folded", 4, 6.0, seed=30),
    Wanted("6x4-n-p4", 5, "unrolled", 8, 2.0, "half_up", seed=7), Wanted("5-d4s-d3", 15, "auto", 6, 6.0, "half_up", seed=16),
    Wanted("8-d4u-d4", 6, "unrolled", 8, seed=19), Wanted("24-d5-e", 4, "auto", 12, seed=29),
    Wanted("16-d12-n-d6", 8, "folded", 12, seed=2), Wanted("8-d6h-d3", 14, "folded", 8, 2.0, seed=13),
    Wanted("6-d4t-d4", 7, "auto", 8, seed=24), Wanted("6-d2-e", 12, "folded", 4, seed=31),
    Wanted("8x6-n-g-d5", 5, "auto", 8, seed=8), Wanted("4-d2u-d2", 16, "unrolled", 4, 2.0, seed=18),
    Wanted("6-d4h-d3", 8, "unrolled", 8, 3.0, seed=21), Wanted("1x10x10-c3k3s2-g-d3-e", 4, "streaming", 8, seed=32),
    Wanted("4x6-b8-d4", 6, "folded", 8, seed=9), Wanted("3x5-p4u-p3", 13, "folded", 6, seed=17),
    Wanted("2x6x6-c3k3s2u-g-d4", 7, "streaming", 8, seed=25), Wanted("5-d3-e", 10, "unrolled", 4, 3.0, seed=28),
    Wanted("3x6-b6-d4-e", 5, "folded", 8, 3.0, seed=11), Wanted("6-d4s-d3", 11, "auto", 8, 6.0, seed=26),
    Wanted("4x6-p6-n-p4", 6, "unrolled", 16, seed=4), Wanted("4x6-b8-b8-d4", 8, "folded", 8, 3.0, seed=10),
)  # fmt: skip
"""Beside the random ones."""


def wanted() -> tuple[Wanted, ...]:
    """The designs, in the order in which they are made: the same at every call, whatever the generator makes of them."""
    return (*_random(), *LISTED)


def _random() -> tuple[Wanted, ...]:
    rng = np.random.default_rng(SEED)
    found: dict[str, tuple[Wanted, float]] = {}
    for network in _networks(rng):
        for _ in range(int(rng.choice([1, 2, 3, 4], p=[0.2, 0.4, 0.25, 0.15]))):
            one = _variant(network, rng)
            if one is not None:
                found.setdefault(one[0].name, one)
    designs = list(found.values())
    early = rng.lognormal(0.0, MIXED, len(designs)) * [luts for _, luts in designs]
    return tuple(designs[place][0] for place in np.argsort(early))


def _networks(rng: np.random.Generator) -> Iterator[str]:
    def size(least: int, most: int) -> int:
        return int(rng.choice([one for one in SIZES if least <= one <= most]))

    seen = set[str]()
    for _ in range(190):
        kind = rng.choice(["dense", "conv", "line", "deep"], p=[0.46, 0.34, 0.12, 0.08])
        if kind == "dense":
            depth = int(rng.choice([1, 2, 3, 4], p=[0.25, 0.35, 0.25, 0.15]))
            hidden = [f"d{size(4, 64)}{rng.choice(['', 'l', 't'], p=[0.86, 0.08, 0.06])}" for _ in range(depth - 1)]
            parts = [str(size(4, 64)), *hidden, f"d{size(4, 24)}"] + (["x"] if rng.random() < 0.08 else [])
        elif kind == "line":
            parts = [f"{rng.choice([1, 2, 4, 8])}x{rng.choice([16, 24, 32, 48])}"]
            for _ in range(int(rng.choice([1, 2]))):
                parts += [f"c{size(4, 10)}k{rng.choice([3, 5])}s{rng.choice([1, 2])}"]
            parts += [str(rng.choice(["m2", "g", "a2"])), f"d{size(4, 10)}"]
        elif kind == "conv":
            side = int(rng.choice([6, 8, 10, 12, 16]))
            parts = [f"{rng.choice([1, 2, 3, 4, 8])}x{side}x{side}"]
            for _ in range(int(rng.choice([1, 2, 3], p=[0.4, 0.4, 0.2]))):
                parts += [f"c{size(4, 8)}k{rng.choice([3, 1], p=[0.85, 0.15])}s{rng.choice([1, 2], p=[0.7, 0.3])}"]
                parts += ["m2"] if rng.random() < 0.25 else []
            parts += [str(rng.choice(["m2", "g", "a2"]))] if rng.random() < 0.7 else []
            parts += [f"d{size(4, 10)}"] if rng.random() < 0.75 else []
        else:
            side = int(rng.choice([6, 8, 10]))
            parts = [f"{rng.choice([2, 4, 8])}x{side}x{side}"]
            parts += [str(rng.choice(["w3", "r3", "k3", "w3"])), f"c{size(4, 8)}k1"]
            parts += [str(rng.choice(["g", "m2"])), f"d{size(4, 10)}"]
        network = "-".join(parts)
        if network not in seen:
            seen.add(network)
            yield network
    yield from LARGE_MEMORIES


def _variant(network: str, rng: np.random.Generator) -> tuple[Wanted, float] | None:
    """One of the designs of a network that are small enough, and roughly its LUTs; None where the dice fell on none."""
    for _ in range(12):
        bits = int(rng.choice(range(2, 11)))
        form = str(rng.choice(["unrolled", "streaming", "folded", "auto"], p=[0.4, 0.1, 0.3, 0.2]))
        if "x" not in network.split("-")[0] and form == "streaming":
            form = "unrolled"
        multipliers = int(rng.choice([2, 4, 8, 12, 16, 24, 32, 48, 64]))
        cutoff = float(rng.choice([1, 2, 3, 4, 6, 8], p=[0.1, 0.15, 0.1, 0.45, 0.1, 0.1]))
        rounding = str(rng.choice(["half_even", "half_up", "truncate"], p=[0.7, 0.2, 0.1]))
        seed, most, chance = int(rng.integers(1000)), 9000 if rng.random() < 0.15 else 3000, rng.random()
        try:
            program = build(network, bits, "half_even", 0)
        except RecipeError:
            return None
        weights = sum(one.weight.size for one in program.operations if isinstance(one, (Dense, Conv)))
        luts = 1.2 * weights * bits if form in ("unrolled", "streaming") else 30 * multipliers
        if luts <= most:
            large = luts > 5000 or (form in ("folded", "auto") and multipliers > 28) or chance < 0.1
            device = "ecp5-85k" if large else "ecp5-25k"
            layers = sum(isinstance(one, (Dense, Conv)) for one in program.operations)
            whole = 12 * multipliers + 300 * layers if form in ("folded", "auto") else 0.9 * luts
            return Wanted(network, bits, form, multipliers, cutoff, rounding, device, seed), whole  # type: ignore[arg-type]
    return None
