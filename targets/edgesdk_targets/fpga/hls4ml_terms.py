"""What one layer of a network costs in hls4ml, counted from how hls4ml 1.3 writes it: multipliers, memories, words and cycles.

The loops are those of hls4ml's nnet_utils/nnet_dense_resource.h and nnet_dense_latency.h. A count becomes LUTs or flip-flops by
the constants of `hls4ml_estimate`; what is counted here is what those constants multiply.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from . import reuse as reuse_factors

Strategy = Literal["resource", "latency"]
WEIGHTED = ("dense", "conv1d", "conv2d")
KINDS = (*WEIGHTED, "activation", "table", "softmax", "pool", "add")
WORD_BITS = 16
"""Of the activations and accumulators in the published results: their flip-flops do not depend on the weights' bits."""
MANY = 16
"""Multipliers of a layer up to which results are known: each of them steers its own multiplexers; more only add and multiply."""
TABLE_DEPTH, TABLE_BITS = 1024, 18
"""hls4ml's default table of an activation function."""
ADDER_NS, USABLE_PERIOD = 1.2, 0.73
"""Time of an adder level, an assumption; and the share of a period that Vitis HLS plans with (its uncertainty is 27 %)."""
INDEX_DEPTH = 256
"""Shorter read-only memories stay in LUTs: the index table of a layer with reuse factor 192 did, one of 320 did not."""
STREAM_OVERHEAD = 7
"""Cycles for each pixel beside the reuse factor: two results of one streamed network, whose slowest convolution has reuse factors
6400 and 12800, are 467 times these apart, and leave 8 and 7 cycles each time."""
DSP_BITS = (18, 27)
"""Widest operands of a DSP48E2; a DSP48E1 has 18 x 25."""
WIDE_CHOICE = 88
"""Outputs of one multiplier from which on the choice among them is the longest path in the results."""
DSP_FROM = 100
"""Product of the operands' bits from which a multiplier takes a DSP: 16 x 6 takes LUTs, 16 x 8 a DSP in the published results;
that 10 x 10 takes one and 9 x 9 none is recalled, not measured."""


@dataclass(frozen=True)
class FixedLayer:
    """A layer of a fixed-point network as an estimator sees it.

    `n_in` are the values behind one result (kernel x channels of a convolution), `n_out` the results of one position; `positions`
    is 1 for a vector and the number of output pixels otherwise. `kernel` is the number of pixels under a window. `nonzero` is the
    share of weights that are not 0. `used_weight_bits` is the width that the weights' range takes; None where weights are not
    known: then they are taken to be spread as at the start of training (Glorot and Bengio, AISTATS 2010), as in the results.
    Pool: `n_in` = `n_out` = channels. Activation, table, softmax, add: `n_in` = `n_out` = values of one position.
    """

    name: str
    kind: str
    n_in: int
    n_out: int
    weight_bits: int = 0
    activation_bits: int = WORD_BITS
    accumulator_bits: int = WORD_BITS
    positions: int = 1
    kernel: int = 1
    nonzero: float = 1.0
    used_weight_bits: int | None = None

    @property
    def weighted(self) -> bool:
        return self.kind in WEIGHTED

    @property
    def slides(self) -> bool:
        """Whether hls4ml computes it window by window, as a convolution; in parallel it folds such a layer within its window."""
        return self.weighted and (self.kind != "dense" or self.positions > 1)

    @property
    def described(self) -> str:
        return self.kind if self.positions == 1 else f"{self.kind} over pixels"

    @property
    def weights(self) -> int:
        return self.n_in * self.n_out if self.weighted else 0

    @property
    def stored_bits(self) -> int:
        """Of a weight in a read-only memory, which is as narrow as the values in it, yet has 2 bits at least."""
        if self.used_weight_bits is not None:
            return max(1, min(self.weight_bits, self.used_weight_bits))
        reach = math.sqrt(6 / (self.n_in + self.n_out)) * 2.0 ** (self.weight_bits - 1)
        bits = max((math.ceil(reach) - 1).bit_length(), math.floor(reach).bit_length()) + 1
        return min(self.weight_bits, max(2, bits))


@dataclass(frozen=True)
class Memory:
    """Block RAM of a layer, in tiles of 36 kbit (halves are blocks of 18 kbit): `always`, and `weights` if they go there.

    `placement` names the circumstances that decide whether the weights go to block RAM (see `hls4ml_constants.toml`), empty
    where they need none. `rom_luts` are the LUTs (of 64 bits) that hold them otherwise.
    """

    always: float = 0.0
    weights: float = 0.0
    placement: str = ""
    rom_luts: float = 0.0


@dataclass(frozen=True)
class Cost:
    """Counts of one layer. `lut` and `ff` are by name of the constant that multiplies them."""

    layer: FixedLayer
    reuse: int
    multipliers: int
    dsp: int
    best_cycles: int
    worst_cycles: int
    interval: int
    memory: Memory = Memory()
    lut: Mapping[str, float] = field(default_factory=dict)
    ff: Mapping[str, float] = field(default_factory=dict)

    @property
    def outputs(self) -> int:
        """Whole results that one multiplier works on in turn; 0 where several share one result, or nothing is multiplied."""
        return self.reuse // self.layer.n_in if self.layer.weighted else 0


def tiles(depth: int, width: int) -> float:
    """Tiles of 36 kbit for a read-only memory as Vivado cuts it: columns of the narrowest shape that is deep enough.

    A last column that fits into an 18-kbit block of that depth counts half (shapes: UG573, block RAM configurations).
    """
    for shape in (512, 1024, 2048, 4096, 8192, 16384, 32768):
        if depth <= shape:
            column = {512: 72, 1024: 36, 2048: 18, 4096: 9, 8192: 4, 16384: 2, 32768: 1}[shape]
            half = next((w for d, w in ((512, 36), (1024, 18), (2048, 9), (4096, 4), (8192, 2), (16384, 1)) if depth <= d), 0)
            whole, rest = divmod(width, column)
            return whole + (0.0 if rest == 0 else 0.5 if rest <= half else 1.0)
    return float(math.ceil(depth / 32768) * width)


def dsps_each(layer: FixedLayer) -> int:
    """DSP blocks of one multiplier of activation by weight; 0: it is made of LUTs."""
    narrow, wide = sorted((layer.weight_bits, layer.activation_bits))
    if narrow <= 2 or narrow * wide < DSP_FROM:
        return 0
    return math.ceil(narrow / DSP_BITS[0]) * math.ceil(wide / DSP_BITS[1])


def cost(layer: FixedLayer, reuse_factor: int, strategy: Strategy, clock_ns: float) -> Cost:
    """The counts of a layer of any kind in KINDS."""
    if not layer.weighted:
        return _without_weights(layer)
    return _folded(layer, reuse_factor) if strategy == "resource" else _unrolled(layer, reuse_factor, clock_ns)


def placement(layer: FixedLayer, reuse: int) -> str:
    """The circumstances that decide where the synthesis puts the weights; what it does in each is counted from results."""
    multipliers, outputs = layer.weights // reuse, reuse // layer.n_in
    if outputs < 1:
        return "unseen"
    if multipliers == 1:
        return "one_multiplier_many_outputs" if outputs >= 100 and layer.weight_bits <= 10 else "one_multiplier"
    if layer.weight_bits <= 2:
        return "two_bits"
    if outputs <= 9:
        narrow = layer.stored_bits <= 10 or (layer.stored_bits <= 12 and multipliers >= 8)
        return "few_outputs" if narrow else "few_outputs_wide"
    if layer.weight_bits in (7, 8) and outputs > 20 and reuse < 1500:
        return "eight_bits"
    return "many_outputs"


def _folded(layer: FixedLayer, reuse_factor: int) -> Cost:
    """Strategy resource: one loop of `reuse` steps over `multipliers` products, II 1 inside."""
    reuse = reuse_factors.closest(layer.n_in, layer.n_out, reuse_factor)
    multipliers, each = layer.weights // reuse, dsps_each(layer)
    if layer.positions == 1:
        best, worst, interval = reuse + 1, reuse + 2, reuse + 3
    else:
        best = worst = interval = layer.positions * (reuse + STREAM_OVERHEAD)
    lut, ff = _words(layer), _words(layer)
    lut["multiplier"] = min(multipliers, MANY) * layer.activation_bits / WORD_BITS
    more = max(0, multipliers - MANY)
    lut["adder_bits"] = more * layer.accumulator_bits
    lut["product_bits"] = 0 if each else more * layer.activation_bits * layer.weight_bits
    ff["product_register_bits"] = more * (layer.activation_bits + layer.weight_bits)
    return Cost(layer, reuse, multipliers, multipliers * each, best, worst, interval, _memory(layer, reuse), lut, ff)


def _memory(layer: FixedLayer, reuse: int) -> Memory:
    """Weights in block RAM are kept whole, one copy for every two multipliers (two ports); in LUTs each has its own share.

    The index table (which output a step adds to) is a memory of `reuse` words, needed where a step serves several outputs.
    Below one pass over the inputs (`reuse` < n_in) no result is known: the weights are taken reshaped, as the pragma asks.
    """
    multipliers, outputs, bits = layer.weights // reuse, reuse // layer.n_in, layer.stored_bits
    index = tiles(reuse, (outputs - 1).bit_length()) if outputs > 1 and reuse > INDEX_DEPTH else 0.0
    if reuse == 1:
        return Memory()
    if outputs < 1:
        whole = tiles(reuse, multipliers * bits) if reuse > INDEX_DEPTH else 0.0
    else:
        whole = tiles(layer.weights, bits) * math.ceil(multipliers / 2)
    return Memory(index, whole, placement(layer, reuse), multipliers * bits * max(1.0, reuse / 64))


def _unrolled(layer: FixedLayer, reuse_factor: int, clock_ns: float) -> Cost:
    """Strategy latency: a product for every weight that is not 0, an adder tree for every output; II `reuse_factor`.

    As many products as there are cycles between inputs share a multiplier, one after another; adders are taken not to be shared.
    A constant of b bits is some b / 3 signed digits that are not 0 (canonical signed digits), so b / 3 - 1 adders.
    """
    products, each = round(layer.weights * layer.nonzero), dsps_each(layer)
    multipliers = math.ceil(products / reuse_factor)
    terms = max(1.0, layer.n_in * layer.nonzero)
    levels = math.ceil(math.log2(terms + 1))  # and the bias
    depth = (3 if each else 1) + math.ceil(levels * ADDER_NS / (USABLE_PERIOD * clock_ns))
    digits = max(0.0, layer.weight_bits / 3 - 1)
    lut, ff = _words(layer), _words(layer)
    lut["adder_bits"] = products * layer.accumulator_bits
    lut["constant_bits"] = 0.0 if each else products * digits * (layer.activation_bits + layer.weight_bits)
    ff["product_register_bits"] = products * (layer.activation_bits + layer.weight_bits)
    interval = layer.positions * reuse_factor
    cycles = depth + (min(reuse_factor, max(1, products)) - 1 if layer.positions == 1 else interval)
    return Cost(layer, reuse_factor, multipliers, multipliers * each, cycles, cycles, interval, Memory(), lut, ff)


def _words(layer: FixedLayer) -> dict[str, float]:
    """Words of 16 bits that a weighted layer holds and steers, and its line buffers where it sees pixels."""
    words = {
        "layer": 1.0,
        "input_word": layer.n_in * layer.activation_bits / WORD_BITS,
        "output_word": layer.n_out * layer.accumulator_bits / WORD_BITS,
    }
    if layer.kernel > 1:
        channels, row = layer.n_in / layer.kernel, math.sqrt(layer.positions) if layer.kind == "conv2d" else 0.0
        words["shift_register_bits"] = (math.sqrt(layer.kernel) - 1) * row * channels * layer.activation_bits
    return words


def _without_weights(layer: FixedLayer) -> Cost:
    """Activation: a comparison for each value; table: a memory for every two; add: an adder for each value.

    Pool: all values of a window but one are compared or added. Softmax: tables of exp, a sum, one table of 1 / x, products.
    """
    each_word = layer.accumulator_bits / WORD_BITS
    cycles = layer.positions if layer.positions > 1 else 1
    words, memory, dsp = {"activation_word": layer.n_out * each_word}, Memory(), 0
    table = tiles(TABLE_DEPTH, TABLE_BITS)
    if layer.kind == "table":
        memory = Memory(math.ceil(layer.n_out / 2) * table)
    elif layer.kind == "softmax":
        memory, dsp = Memory((math.ceil(layer.n_out / 2) + 1) * table), layer.n_out
        words["adder_bits"] = layer.n_out * TABLE_BITS
        cycles += math.ceil(math.log2(layer.n_out + 1)) + 4  # two tables and a product of two cycles
    elif layer.kind == "pool":
        words["adder_bits"] = layer.n_out * (layer.kernel - 1) * layer.activation_bits
        cycles = layer.positions * layer.kernel
    elif layer.kind == "add":
        words["adder_bits"] = layer.n_out * layer.accumulator_bits
    ff = {"activation_word": layer.n_out * each_word}
    return Cost(layer, 1, 0, dsp, cycles, cycles, cycles, memory, words, ff)
