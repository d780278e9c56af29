"""Folded stages: weights in memory, multiply-accumulate lanes that are used again and again."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from edgesdk_converters.integer_program import Codes, Conv, Dense, IntegerProgram, Integers

from . import local, windows
from .kernel import KernelOptions
from .segments import Segment
from .stage import Body, Counts, Stage, Timing
from .stream import Stream, bits_for, channels_first, channels_last, levels
from .verilog_text import memory_file
from .windows import Window

WORTH_SHIFTING_BITS = 2048
"""Of weights in memory, saved for each lane that then needs a shifter."""


@dataclass(frozen=True)
class Folding:
    """Lanes of a folded layer: inputs taken and outputs computed at a time; a depthwise one takes what it gives."""

    ins: int
    outs: int

    @property
    def multipliers(self) -> int:
        return self.ins * self.outs


def is_depthwise(operation: Dense | Conv) -> bool:
    """Whether each output channel comes from the one input channel of the same number."""
    return isinstance(operation, Conv) and operation.weight.shape[1] == 1 < operation.groups == operation.weight.shape[0]


def folded(
    name: str,
    segment: Segment,
    stream: Stream,
    program: IntegerProgram,
    folding: Folding,
    kernels: KernelOptions,
) -> Stage:
    """A layer on multiply-accumulate lanes that are used again and again, its weights in memory."""
    operation = segment.first
    assert isinstance(operation, (Conv, Dense))
    depthwise = is_depthwise(operation)
    folding = folding if depthwise else replace(folding, ins=math.gcd(folding.ins, stream.channels))
    stream = stream.with_lanes(folding.outs if depthwise else folding.ins)
    window = windows.of(operation, stream, program)
    outs = operation.weight.shape[0]
    columns = _columns(operation, stream, window)
    turns = outs // folding.outs
    shifts = _shifts(columns, operation.bias, folding.outs)
    bias = operation.bias >> shifts
    columns = columns >> shifts[:, None, None]
    words = _words(columns, stream, window, folding, depthwise)
    wbits = _signed_bits(int(words.min()), int(words.max()))
    bias_bits = _signed_bits(int(bias.min()), int(bias.max()))
    low, high = _reach(columns, bias, stream.codes)
    sum_bits = max(_signed_bits(low, high), bias_bits + 1)
    body = Body(name, kernels)
    windows.one_by_one(body, window, stream, turns, depthwise, 0)
    tree = levels(folding.ins)
    given: dict[str, int | str] = {
        "INS": folding.ins, "OUTS": folding.outs, "DEPTHWISE": int(depthwise), "WIDTH": stream.codes.bits,
        "SIGNED": int(stream.codes.signed), "WBITS": wbits, "BBITS": bias_bits, "SUM": sum_bits, "LEVELS": tree,
        "DEPTH": len(words), "ABITS": bits_for(len(words)), "TURNS": turns, "TBITS": bits_for(turns),
        "WEIGHTS": f"{name}_weights.hex", "BIASES": f"{name}_biases.hex",
    }  # fmt: skip
    body.part("edgesdk_macs", "macs", given, "sums", folding.outs * sum_bits, 4 + tree, flags_in=True)
    body.library |= {"edgesdk_tree"}
    body.files |= {
        f"{name}_weights.hex": memory_file(words, wbits),
        f"{name}_biases.hex": memory_file(bias.reshape(turns, -1), bias_bits),
    }
    product = stream.codes.bits + (not stream.codes.signed) + wbits
    lanes = folding.ins * folding.outs
    body.counts += Counts(
        adders=folding.outs * folding.ins,
        adder_bits=folding.outs * (sum_bits + (folding.ins - 1) * (product + 1)),
        register_bits=lanes * (2 * wbits + product) + 2 * stream.width + folding.outs * (sum_bits + bias_bits),
        multipliers=lanes,
        rom_bits=words.size * wbits + bias.size * bias_bits,
    )
    codes = program.tensors[operation.result]
    image = isinstance(operation, Conv) or len(codes.shape) == 1
    order = channels_first(codes.shape) if image else channels_last(codes.shape)
    sums = Stream(codes, order.reshape(-1, outs), folding.outs)
    if shifts.any():
        sum_bits = _shifted(body, shifts.reshape(turns, -1), sum_bits)
    body.resize(folding.outs, sum_bits, True, codes.bits)
    result = body.chain(segment.chain, sums, program)
    cycles = max(window.outputs * len(words), stream.beats)
    turn = len(words) // turns
    timing = Timing((window.last_pixels(),), len(words), turn + (turns - 1 if depthwise else 0), 0)
    about = f"{folding.outs} x {folding.ins} multiply-accumulate lanes, {len(words)} words of weights"
    return body.finished(about, segment.operations, [stream], result, "folded", cycles, timing)


def _shifted(body: Body, shifts: Integers, bits: int) -> int:
    """Sums times the powers of two that the weights were divided by; returns their bits."""
    turns, lanes = shifts.shape
    most = int(shifts.max())
    given: dict[str, int | str] = {
        "LANES": lanes, "WIDTH": bits, "OUT": bits + most, "SBITS": most.bit_length(), "TURNS": turns, "TBITS": bits_for(turns),
        "SHIFTS": f"{body.name}_shifts.hex",
    }  # fmt: skip
    body.part("edgesdk_shift", "shift", given, "shifted", lanes * (bits + most), 1)
    body.files[f"{body.name}_shifts.hex"] = memory_file(shifts, most.bit_length())
    body.counts += Counts(register_bits=lanes * (bits + most), rom_bits=shifts.size * most.bit_length())
    return bits + most


def _shifts(columns: Integers, bias: Integers, lanes: int) -> Integers:
    """By how much the weights and the bias of each output can be shifted to the right so that all weights are narrow.

    Weights that were quantised channel by channel are narrow numbers times a power of two of their channel. Zeros, where a
    shifter for each lane costs more than is saved.
    """
    flat = np.concatenate([columns.reshape(len(columns), -1), bias[:, None]], axis=1)
    common = np.bitwise_or.reduce(flat, axis=1)
    most = np.array([(int(one) & -int(one)).bit_length() - 1 if one else 0 for one in common])
    weights = flat[:, :-1]
    bits = np.array([_signed_bits(int(one.min()), int(one.max())) for one in weights])
    narrow = int((bits - most).max())
    if columns.size * (int(bits.max()) - narrow) < WORTH_SHIFTING_BITS * lanes:
        return np.zeros(len(columns), np.int64)
    shifts: Integers = np.maximum(bits - narrow, 0)
    return shifts


def _columns(operation: Dense | Conv, stream: Stream, window: Window) -> Integers:
    """Weights (outs, taps, channels) as the window travels; (outs, taps, 1) of a depthwise one."""
    if isinstance(operation, Conv):
        if is_depthwise(operation):
            return operation.weight.reshape(len(operation.weight), -1, 1)
        return local.window_weights(operation, stream.channels).reshape(len(operation.weight), window.taps, stream.channels)
    vector = window.taps == stream.positions
    order = stream.order.reshape(-1) if vector else stream.order[0] - stream.order[0].min()
    return operation.weight[:, order].reshape(len(operation.weight), window.taps, stream.channels)


def _words(columns: Integers, stream: Stream, window: Window, folding: Folding, depthwise: bool) -> Integers:
    """(depth, outs * ins) in the order in which they are used: a word for each beat that the reader gives."""
    turns = len(columns) // folding.outs
    if depthwise:
        by_tap: Integers = columns.reshape(turns, folding.outs, window.taps).transpose(0, 2, 1)
        return by_tap.reshape(-1, folding.outs)
    split = columns.reshape(turns, folding.outs, window.taps, stream.folds, folding.ins)
    words: Integers = split.transpose(0, 2, 3, 1, 4)
    return words.reshape(-1, folding.outs * folding.ins)


def _reach(columns: Integers, bias: Integers, codes: Codes) -> tuple[int, int]:
    """The least and the greatest sum that can occur, zeros outside the image included."""
    low, high = min(codes.low, 0), max(codes.high, 0)
    flat = columns.reshape(len(columns), -1)
    above, below = np.maximum(flat, 0).sum(axis=1), np.minimum(flat, 0).sum(axis=1)
    return int((bias + above * low + below * high).min()), int((bias + above * high + below * low).max())


def _signed_bits(low: int, high: int) -> int:
    return max((-low - 1).bit_length() if low < 0 else 0, high.bit_length() if high > 0 else 0) + 1
