"""Inputs that a network scales by channel at once: how wide they must be, and what range is worth covering behind the scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .calibration import Samples
from .errors import MissingExtra
from .fixed_widths import ACTIVATIONS, MOVES, Format, covering, of_both, tensor_bits
from .model import Model
from .reference import Reference

try:
    import onnx
    from onnx import TensorProto, numpy_helper
except ImportError as _error:
    raise MissingExtra("convert", "onnx") from _error

Array = NDArray[Any]
Ranges = Mapping[str, tuple[float, float]]
WIDER_BITS = 2
"""That an input may lack beside what is made of it by a scale, before it is given more; none where more make it exact."""
MOST_BITS = 16
MOST_FINER = 16
"""Powers of two, of the steps that are tried."""
LESS = 0.5
"""Of the error that a range leaves: a narrower one is taken if it leaves less than that."""
MOST_LOST = 1 / 16
"""Of the power of what is scaled: a quarter of its size. Beyond it a note says so."""


@dataclass(frozen=True)
class ScaledInput:
    """An input of the model that nothing reads but stored scales and shifts, `node` being the last of these.

    `path` names all nodes from it to `result`, the tensor that is rounded behind them; `steepest` is the size of the greatest
    scale. `is_told`: a width was asked for by name, which stays.
    """

    name: str
    node: str
    path: tuple[str, ...]
    result: str
    steepest: float
    is_told: bool


def settled(
    model: Model, nodes: Collection[str], samples: Samples, bits: int, widths: Mapping[str, int],
    observed: Callable[[Model, int], Ranges], *, narrowing: bool,
) -> tuple[dict[str, int], dict[str, tuple[float, float]], str]:  # fmt: skip
    """Bits of inputs that need others than `bits`, the ranges of all tensors, and a note of what is unusual.

    `observed` gives the ranges of a model by bits. With `narrowing`, results of scaled inputs have those that are worth covering,
    and what is behind them, those that follow.
    """
    own = tensor_bits(model, nodes, bits, widths)

    def by_width(source: Model) -> dict[str, tuple[float, float]]:
        found = dict(observed(source, bits))
        for wide in sorted(set(widths.values()) - {bits}):
            found |= {name: ends for name, ends in observed(source, wide).items() if own.get(name) == wide}
        return found

    found = ranges = by_width(model)
    scaled = scaled_inputs(model, nodes, ranges, widths)
    narrow = worth_covering(model, scaled, ranges, samples, own) if narrowing else {}
    if narrow:
        found = by_width(_bounded(model, narrow)) | narrow
    inputs = wider_inputs(scaled, found, samples, bits)
    if inputs:  # what few bits leave out may be wanted
        whole = {name: ends for name, ends in observed(model, MOST_BITS).items() if name in inputs}
        inputs = wider_inputs(scaled, found | whole, samples, bits)
    for wide in set(inputs.values()) - {bits}:
        found |= {name: ends for name, ends in observed(model, wide).items() if inputs.get(name) == wide}
    told = ""
    for one in scaled:
        given = covering(*found[one.result], own[one.result])
        if one.result in narrow:
            told += (
                f"; {one.node} covers {given.low * given.step:.4g} to {given.high * given.step:.4g}, not "
                f"{ranges[one.result][0]:.4g} to {ranges[one.result][1]:.4g}, which few samples need"
            )
        taken = covering(*found[one.name], inputs.get(one.name, own.get(one.name, bits)))
        lost = share_lost(model, one, samples, taken, given)
        if lost > MOST_LOST:
            told += (
                f"; WARNING: {lost:.0%} of what {one.node} makes of the input {one.name}, which it scales by channel, is lost in "
                f"{taken.bits} and {given.bits} bits: bring the channels of {one.name} to one size before the network, or give "
                f"--set quantize.widths={one.node}={min(given.bits + 4, MOST_BITS)}"
            )
    return inputs, found, told


def scaled_inputs(model: Model, nodes: Collection[str], ranges: Ranges, widths: Mapping[str, int]) -> list[ScaledInput]:
    """Inputs that are multiplied, and perhaps shifted, by stored values alone, moved before at most; those with ranges."""
    graph = model.proto.graph
    stored = {t.name: t for t in graph.initializer if t.data_type == TensorProto.FLOAT}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {output.name for output in graph.output}
    widths = of_both(model, widths)

    def next_of(name: str, kinds: Collection[str]) -> onnx.NodeProto | None:
        found = readers.get(name, [])
        return found[0] if len(found) == 1 and found[0].op_type in kinds and name not in outputs else None

    def stored_beside(node: onnx.NodeProto) -> Array | None:
        held = [numpy_helper.to_array(stored[name]) for name in node.input if name in stored]
        return held[0] if held else None

    initial = {tensor.name for tensor in graph.initializer}

    def reads_alone(node: onnx.NodeProto, name: str) -> bool:
        return all(one in ("", name) or one in initial for one in node.input)

    found = []
    for info in graph.input:
        name, steepest, last, is_told = info.name, 1.0, "", False
        path: list[onnx.NodeProto] = []
        while (move := next_of(name, MOVES)) is not None and len(move.output) == 1 and reads_alone(move, name):
            name = move.output[0]
            path.append(move)
        for kinds in (("Mul",), ("Add", "Sub")):
            node = next_of(name, kinds)
            values = None if node is None or node.name not in nodes else stored_beside(node)
            if node is not None and values is not None:
                name, last = node.output[0], node.name
                path.append(node)
                steepest = float(np.abs(values).max(initial=0)) if node.op_type == "Mul" else steepest
                is_told |= node.name in widths
        following = next_of(name, ACTIVATIONS)
        if following is not None and reads_alone(following, name):
            name = following.output[0]
            path.append(following)
        if last and steepest and name in ranges and info.name in ranges:
            found.append(ScaledInput(info.name, last, tuple(node.name for node in path), name, steepest, is_told))
    return found


def wider_inputs(scaled: Sequence[ScaledInput], ranges: Ranges, samples: Samples, bits: int) -> dict[str, int]:
    """Bits of inputs that need more than what is made of them, those where widths speak left out.

    An input whose channels differ in size has one step for all: it is as fine as the result's step is for the channel that is
    scaled most, but no finer than what all samples lie on, as pixels lie on whole numbers.
    """
    wide = {}
    for one in scaled:
        if one.is_told:
            continue
        step = covering(*ranges[one.result], bits).exponent - math.ceil(math.log2(one.steepest))
        grid = _grid(samples.arrays[one.name], step)
        spare = WIDER_BITS if grid == step else 0
        needed = next((more for more in range(bits, MOST_BITS) if covering(*ranges[one.name], more).exponent <= grid), MOST_BITS)
        if needed > bits + spare:
            wide[one.name] = needed
    return wide


def _grid(values: Array, finest: int) -> int:
    """The exponent of the coarsest power of two of which all values are multiples, if that is `finest` or coarser."""
    exact = values.astype(np.float64)
    if not exact.any():
        return finest
    coarsest = math.frexp(float(np.abs(exact).max()))[1]
    while finest < coarsest and np.array_equal(np.rint(scaled := np.ldexp(exact, -finest - 1)), scaled):
        finest += 1
    return finest


def worth_covering(
    model: Model, scaled: Sequence[ScaledInput], ranges: Ranges, samples: Samples, bits: Mapping[str, int]
) -> dict[str, tuple[float, float]]:
    """Ranges of results that single values stretch: narrower ones, where these lose less than half, every sample counting alike.

    A channel that is nearly always the same (a pixel at the border) gets a huge scale, and once it is lit, a value of hundreds
    among units: least squares over all values would keep that one, and lose all others. `bits` are those of results.
    """
    found = {}
    for one in scaled:
        whole = covering(*ranges[one.result], bits[one.result])
        tried = [Format(whole.bits, whole.exponent - less, whole.signed) for less in range(MOST_FINER)]
        lost = np.mean([[_lost(values, form, values) for form in tried] for values in _results(model, one, samples)], axis=0)
        best = int(lost.argmin())
        if lost[best] < LESS * lost[0]:
            low, high = ranges[one.result]
            found[one.result] = max(low, tried[best].low * tried[best].step), min(high, tried[best].high * tried[best].step)
    return found


def share_lost(model: Model, one: ScaledInput, samples: Samples, taken: Format, given: Format) -> float:
    """Of the power of a result, the mean over samples of what rounding the input and the result loses."""
    both = zip(_results(model, one, samples), _results(model, one, samples, taken), strict=True)
    return float(np.mean([_lost(rounded, given, exact) for exact, rounded in both]))


def _bounded(model: Model, ranges: Ranges) -> Model:
    """The model with a Clip behind each tensor that has a range here."""
    proto = model.copy_proto()
    nodes = []
    for node in proto.graph.node:
        nodes.append(node)
        for place, name in enumerate(node.output):
            if name in ranges:
                node.output[place] = f"{name}/unbounded"
                ends = [f"{name}/least", f"{name}/greatest"]
                for end, value in zip(ends, ranges[name], strict=True):
                    proto.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), end))
                nodes.append(onnx.helper.make_node("Clip", [node.output[place], *ends], [name], name=f"{name}/bounded"))
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(copies)
    return model.changed(proto)


def _results(model: Model, one: ScaledInput, samples: Samples, taken: Format | None = None) -> Iterator[Array]:
    """What a scaled input becomes, sample by sample, the input being rounded first if there is a format for it."""
    reference = Reference(_alone(model, one))
    for sample in samples:
        values = sample[one.name]
        if taken is not None:
            values = _rounded(values, taken).astype(np.float32)
        yield reference.run({one.name: values})[one.result].astype(np.float64)


def _alone(model: Model, one: ScaledInput) -> Model:
    """The nodes between an input and what is made of it, without the rest of the network."""
    proto = model.copy_proto()
    graph = proto.graph
    nodes = [node for node in graph.node if node.name in one.path]
    read = {name for node in nodes for name in node.input}
    infos = {info.name: info for info in (*graph.value_info, *graph.output)}
    kept = onnx.GraphProto(name=graph.name)
    kept.node.extend(nodes)
    kept.input.extend(info for info in graph.input if info.name == one.name)
    kept.output.append(infos[one.result])
    kept.initializer.extend(tensor for tensor in graph.initializer if tensor.name in read)
    graph.CopyFrom(kept)
    return Model.from_proto(proto, model.name)


def _rounded(values: Array, form: Format) -> Array:
    found: Array = np.clip(np.rint(values.astype(np.float64) / form.step), form.low, form.high) * form.step
    return found


def _lost(values: Array, form: Format, wanted: Array) -> float:
    """The squared error of rounding values, as a share of the square of what is wanted; at most 1, which zeros lose."""
    power = float(np.square(wanted).sum())
    return min(1.0, float(np.square(_rounded(values, form) - wanted).sum()) / power) if power else 0.0
