"""What each pass promises, held against the model before it: one check a pass, which fails where more was changed than that."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgesdk_converters import graph as graphs
from edgesdk_converters.affine import merged
from edgesdk_converters.bottleneck import ENDING, Bottleneck
from edgesdk_converters.calibration import Samples
from edgesdk_converters.low_rank import LowRank
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given, Pass
from edgesdk_converters.payload import Payload
from edgesdk_converters.prune import Prune
from edgesdk_converters.pruning.structure import Structure
from edgesdk_converters.qdq import WEIGHTED
from edgesdk_converters.quantize import Quantize, named
from edgesdk_converters.sparsify import Sparsify
from edgesdk_converters.spelt_out import joined
from edgesdk_converters.split import split

from .masking import masked
from .softened import HALF, error, exactness, fast_answers, rounds_inside, run, session, soft_answers, softened, sqnr_db

Array = NDArray[Any]
INTEGER_DB = 15.0
"""Signal to noise of what computes the same function on integers whose rounding cannot be taken out (`softened`)."""
EIGHT_BITS_DB = 8.0
"""Signal to noise that is left by quantising to eight bits or more, ranges from the samples that are judged."""
CLIPPED_DB = 25.0
"""The same where nothing is rounded but weights, on both sides: rounded weights let activations leave their ranges a little."""


def same_function(before: Model, after: Model, samples: Samples, bound: float = 0.0) -> None:
    """The same answers: as float graphs have them, or if integers round inside, within what rounding may change."""
    if rounds_inside(before):
        found = sqnr_db(fast_answers(after, samples), fast_answers(before, samples))
        assert found >= INTEGER_DB, f"only {found:.1f} dB above the error; promised: {INTEGER_DB}"
        return
    bound = max(bound, exactness(before))
    found = error(soft_answers(after, samples), soft_answers(before, samples))
    assert found <= bound, f"relative error {found:.3g}; promised: {bound}"


# --- what is stored


def stored(model: Model) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.proto.graph.initializer}


def options(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def identical(got: Array, wanted: Array) -> bool:
    return got.dtype == wanted.dtype and got.shape == wanted.shape and got.tobytes() == wanted.tobytes()


# --- the promises


Check = Callable[[Any, Model, Model, Given], None]
"""From the pass, the model before, the model after and what the pass was given; AssertionError where they do not go together."""


def the_same(step: Pass, before: Model, after: Model, given: Given) -> None:
    """Fold, expand, equalize, rotate: another graph of the same function."""
    same_function(before, after, given.train)


def halved(step: Pass, before: Model, after: Model, given: Given) -> None:
    same_function(before, after, given.train, HALF)


def factorised(step: LowRank, before: Model, after: Model, given: Given) -> None:
    """The model before with some weights replaced by the products of their factors, the best ones of their rank."""
    old, new = stored(before), stored(after)
    wanted = before.copy_proto()
    replaced: dict[str, Array] = {}
    readers = {node.output[0]: node for node in before.proto.graph.node}
    for node in after.proto.graph.node:
        up = node.input[1] if len(node.input) > 1 else ""
        if not (match := re.fullmatch(r"(.*)/up(/\d+)?", up)) or up in old:
            continue
        name = match[1]
        down = next(n for n in new if re.fullmatch(re.escape(name) + r"/down(/\d+)?", n) and n not in old)
        if node.op_type == "Conv":
            rank = new[down].shape[0]
            product = (new[up].reshape(-1, rank) @ new[down].reshape(rank, -1)).reshape(old[name].shape)
        else:
            rank = new[down].shape[1]
            product = new[down] @ new[up]
            product = product.T if options(readers[node.output[0]]).get("transB") else product
        matrix = old[name].reshape(old[name].shape[0], -1).astype(np.float64)
        least = np.linalg.norm(np.linalg.svd(matrix, compute_uv=False)[rank:])
        found = np.linalg.norm(product.reshape(matrix.shape) - matrix)
        assert found <= least + 1e-5 * np.linalg.norm(matrix), (
            f"{name}: {found:.4g} from a matrix of rank {rank}; best: {least:.4g}"
        )
        replaced[name] = product
    for name, array in old.items():
        assert name in replaced or identical(new[name], array), f"{name} was changed"
    for tensor in wanted.graph.initializer:
        if tensor.name in replaced:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(replaced[tensor.name]), tensor.name))
    weights = sum(array.size for array in old.values()) - sum(array.size for array in new.values())
    assert bool(replaced) == bool(weights > 0), f"{weights} weights gone, {len(replaced)} layers factorised"
    same_function(before.changed(wanted), after, given.train)


def thinned(step: Sparsify, before: Model, after: Model, given: Given) -> None:
    """The same graph with zeros for some weights, the smallest of their group or layer, and nothing else."""
    strip = []
    for model in (before, after):
        proto = model.copy_proto()
        for tensor in proto.graph.initializer:
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
        strip.append(proto.SerializeToString(deterministic=True))
    assert strip[0] == strip[1], "the graph was changed"
    old, new = stored(before), stored(after)
    readers = {node.input[1]: node for node in before.proto.graph.node if node.op_type in WEIGHTED}
    for name, array in old.items():
        gone = (new[name] == 0) & (array != 0)
        kept = np.where(new[name] == 0, 0, array)  # that of a zero may change its sign
        assert identical(np.where(new[name] == 0, 0, new[name]), kept), f"{name} has other values than zeros"
        if not gone.any():
            continue
        assert name in readers, f"{name} is no weight"
        if step.removed:
            assert np.abs(array[gone]).max() <= np.abs(array[new[name] != 0]).min(initial=np.inf), f"{name} lost large weights"
            continue
        turned = readers[name].op_type == "Conv" or options(readers[name]).get("transB", 0)
        groups = [np.moveaxis(each, 1 if turned else 0, -1).reshape(-1, step.of) for each in (array, new[name])]
        assert ((groups[1] != 0).sum(axis=1) <= step.kept).all(), f"{name} has more than {step.kept} of {step.of}"
        largest = -np.sort(-np.abs(groups[0]), axis=1)[:, : step.kept]
        assert np.array_equal(-np.sort(-np.abs(groups[1]), axis=1)[:, : step.kept], largest), f"{name} lost large weights"


def pruned(step: Prune, before: Model, after: Model, given: Given) -> None:
    """The model before with zeros wherever a channel that went is read; with `normalised` that is not promised."""
    taken: list[tuple[Structure, Array]] = []
    without = Structure.without

    def watched(structure: Structure, gone: Array) -> onnx.ModelProto:
        taken.append((structure, gone))
        return without(structure, gone)

    with patch.object(Structure, "without", watched):
        assert step(before, given).to_bytes() == after.to_bytes(), "another choice the second time"
    structure, gone = taken[-1]
    assert len(gone), "nothing went"
    if not step.normalised:
        same_function(masked(structure, gone), after, given.train)


def packed(step: Payload, before: Model, after: Model, given: Given) -> None:
    """One tensor is rounded to the nearest of so many values, and all that reads it reads that; the bytes are as few as told."""
    made = {name for node in after.proto.graph.node for name in node.output} - set(graphs.value_types(before.proto.graph))
    payload, restored = (  # numbered where the same tensor was packed before
        next(name for name in made if re.fullmatch(rf"{re.escape(step.at)}/{part}(/\d+)?", name))
        for part in ("payload", "restored")
    )
    old, new, types = stored(before), stored(after), graphs.value_types(after.proto.graph)
    assert all(identical(new[name], array) for name, array in old.items()), "a stored tensor was changed"
    size = math.ceil((types[step.at].elements or 0) * step.bits / 8)
    assert (types[payload].elem_type, types[payload].elements) == (TensorProto.UINT8, size), "not as few bytes as told"
    probe, rest = after.copy_proto(), before.copy_proto()
    probe.graph.output.extend(info for info in probe.graph.value_info if info.name in (step.at, restored))
    seen = run(probe, given.train)
    maker = next(node for node in after.proto.graph.node if restored in node.output)
    scale, zero = (float(new[name]) for name in maker.input[1:])
    for row in seen:
        ends = (np.asarray((code - zero) * scale) for code in (0, 2**step.bits - 1))
        assert nearest(Codes(row[restored], np.asarray(scale), *ends), row[step.at]), f"{step.at} is not rounded to the nearest"
    for graph in graphs.graphs(rest.graph):
        for node in graph.node:
            node.input[:] = [restored if name == step.at else name for name in node.input]
    rest.graph.input.add(name=restored).type.CopyFrom(next(i.type for i in rest.graph.value_info if i.name == step.at))
    runner, names = session(rest, False), [output.name for output in before.proto.graph.output]
    feeds = [feed | {restored: row[restored]} for feed, row in zip(given.train, seen, strict=True)]
    found = error(seen, [dict(zip(names, runner.run(names, feed), strict=True)) for feed in feeds])
    assert found <= exactness(before), f"relative error {found:.3g} from the graph that reads the rounded tensor"


def narrowed(step: Bottleneck, before: Model, after: Model, given: Given) -> None:
    """As few bytes cross as told, and nothing beside them; behind the decoder, unless that was tuned, all is as it was."""
    told = after.history[-1].options
    crosses, coded = told["crosses"], told["coded"]
    types = graphs.value_types(after.proto.graph)
    size = math.ceil(math.prod(coded) * step.bits / 8)
    assert (types[crosses].nbytes, coded[1]) == (size, max(step.channels)), "not as few bytes as told"
    head, tail = split(after, crosses)
    joined = run(tail.proto, run(head.proto, given.train))
    assert error(joined, run(after.proto, given.train)) <= exactness(after), "head and tail are not the whole"
    if step.placement == "cut":
        old, new = stored(before), stored(after)
        mine = {name for node in split(before, told["at"])[0].proto.graph.node for name in node.input}
        assert all(identical(new[name], old[name]) for name in mine & set(old)), "what stays on the device was changed"
    if not step.tune:
        decoded = f"{told['at']}{ENDING}/decoded"
        probe, rest = after.copy_proto(), split(before, told["at"])[1]
        probe.graph.output.extend(info for info in probe.graph.value_info if info.name == decoded)
        rows = run(probe, given.train)
        wanted = run(rest.proto, [{told["at"]: row.pop(decoded)} for row in rows])
        assert error(rows, wanted) <= exactness(before), "what stands behind the decoder was changed"


@dataclass(frozen=True)
class Codes:
    """Values on a grid: `step` wide each, from `low` to `high` (all of one shape, or numbers)."""

    values: Array
    step: Array
    low: Array
    high: Array


def nearest(found: Codes, original: Array) -> bool:
    """Whether each value is the point of the grid that is nearest to the original."""
    slack = 0.5 * found.step * (1 + 1e-3) + 1e-6 * np.abs(original).max(initial=0)
    near = np.abs(found.values - original) <= slack
    cut = ((original > found.high) & (found.values >= found.high - slack)) | (
        (original < found.low) & (found.values <= found.low + slack)
    )
    return bool((near | cut).all())


def _codes(held: Array, scale: Array, zero: Array, axis: int | None, bits: int) -> Codes:
    around = [1] * held.ndim
    if np.ndim(scale) and np.size(scale) > 1 and axis is not None:
        around[axis] = -1
    scale = np.asarray(scale, np.float64).reshape(around if np.ndim(scale) else ())
    zero = np.asarray(zero, np.float64).reshape(around if np.ndim(zero) else ())
    values = (held.astype(np.float64) - zero) * scale
    signed = held.dtype.name.startswith("int")
    low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    return Codes(values, np.broadcast_to(scale, held.shape), (low - zero) * scale, (high - zero) * scale)


def _read_by(model: Model, name: str, wished: int) -> Codes | None:
    """The codes behind a DequantizeLinear or the arithmetic of packed weights; None for what is stored in float."""
    held = stored(model)
    maker = next((node for node in model.proto.graph.node if name in node.output), None)
    if maker is None or name in held:
        return None
    if maker.op_type == "DequantizeLinear" and maker.input[0] in held:
        codes, scale = held[maker.input[0]], held[maker.input[1]]
        zero = held[maker.input[2]] if len(maker.input) > 2 else np.zeros((), codes.dtype)
        width = {"int4": 4, "int8": 8, "uint8": 8, "int16": 16, "uint16": 16, "int32": 32}[codes.dtype.name]
        narrow = wished if codes.dtype.name == {True: "int8", False: "int16"}[wished <= 8] else width
        return _codes(codes, scale, zero, options(maker).get("axis", 1), min(width, narrow))
    if maker.op_type == "Mul" and maker.input[1].endswith("/scale"):
        proto = model.copy_proto()
        proto.graph.output.append(next(info for info in proto.graph.value_info if info.name == name))
        inputs = {
            info.name: np.zeros([d.dim_value for d in info.type.tensor_type.shape.dim], helper.tensor_dtype_to_np_dtype(
                info.type.tensor_type.elem_type)) for info in proto.graph.input
        }  # fmt: skip
        values = session(proto, False).run([name], inputs)[0].astype(np.float64)
        scale = np.broadcast_to(held[maker.input[1]].astype(np.float64), values.shape)
        low, high = -(2.0 ** (wished - 1)), 2.0 ** (wished - 1) - 1
        assert np.abs(values / scale - np.rint(values / scale)).max() < 1e-3, f"{name} is no whole number of steps"
        return Codes(values, scale, low * scale, high * scale)
    return None


def _in_blocks(model: Model, node: onnx.NodeProto) -> Codes:
    """The weight of a MatMulNBits, (inputs, outputs)."""
    held, how = stored(model), options(node)
    codes = held[node.input[1]]
    if how["bits"] == 4:
        codes = np.stack([codes & 0xF, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1)
    scale = held[node.input[2]].reshape(how["N"], -1, 1)
    made = _codes(codes, np.ones(()), np.array(2.0 ** (how["bits"] - 1)), None, how["bits"])
    spread = [np.broadcast_to(each * scale, codes.shape).reshape(how["N"], -1)[:, : how["K"]].T for each in (
        made.values, np.ones(codes.shape), made.low, made.high)]  # fmt: skip
    return Codes(*spread)


def _after(step: Quantize, after: Model, node: onnx.NodeProto, index: int) -> Codes | Array | None:
    """What stands for a stored input of a node of the graph before, laid out and scaled as it was there: codes, or floats."""
    held = stored(after)
    nodes = {each.name: each for each in after.proto.graph.node}
    now = nodes.get(node.name)
    turned = index == 1 and options(node).get("transB", 0)
    multiplier = {1: "alpha", 2: "beta"}.get(index, "") if node.op_type == "Gemm" else ""
    factor = options(node).get(multiplier, 1.0)
    found: Codes | Array | None = None
    if now is not None and now.op_type == node.op_type:
        name = now.input[index] if index < len(now.input) else ""
        found = held[name] if name in held else _read_by(after, name, step.bits)
        turned = False
        factor /= options(now).get(multiplier, 1.0)
    elif now is not None and now.op_type == "MatMulNBits" and index == 1:
        found = _in_blocks(after, now)
    elif f"{node.name}_MatMul" in nodes and index == 1 and nodes[f"{node.name}_MatMul"].input[1] in held:
        found = held[nodes[f"{node.name}_MatMul"].input[1]]  # how the dynamic form writes a Gemm that stays in float
    else:
        ways = [(f"{node.input[index]}{own}{way}", bool(way)) for own in ("", "/own") for way in ("", "_Transposed")]
        name, turned = next(((name, way) for name, way in ways if f"{name}_quantized" in held), ("", False))
        if name:
            codes, scale = held[f"{name}_quantized"], held.get(f"{name}_scale")
            if scale is None:  # a bias is in steps of the products
                reader = next(each for each in after.proto.graph.node if f"{name}_quantized" in each.input)
                scale = held[reader.input[1]] * held[reader.input[4]]
            rows = node.op_type == "Conv" or (options(node).get("transB", 0) and not turned)
            axis = 0 if rows else 1 if node.op_type == "ConvTranspose" else codes.ndim - 1
            found = _codes(codes, scale, held.get(f"{name}_zero_point", np.zeros((), codes.dtype)), axis, 8)
    if isinstance(found, Codes):
        return Codes(*((each.T if turned else each) / factor for each in (found.values, found.step, found.low, found.high)))
    return None if found is None else (found.T if turned else found) / factor


def quantised(step: Quantize, before: Model, after: Model, given: Given) -> None:
    """Chosen layers multiply with the nearest points of a grid, all others with what they had, and only rounding was added."""
    before = named(before)
    if step.flavour == "fixed":
        asked = (*step.keep, *step.only, *step.node_bits)
        before = merged(joined(before, asked), (*step.keep, *step.only), step.node_bits)
    chosen, heavy, held = set(step.nodes(before)), set(step.layers(before)), stored(before)
    proto = before.copy_proto()
    for node in before.proto.graph.node:
        for index, name in enumerate(node.input):
            if name not in held or held[name].dtype != np.float32:
                continue
            was, now = held[name].astype(np.float64), _after(step, after, node, index)
            label = f"{node.name}, input {index}"
            weight = node.op_type in WEIGHTED and index < 2
            moved = step.bias_correction and not weight
            assert now is not None or not weight, f"{label} is not there any more"
            if isinstance(now, Codes):
                assert node.name in chosen, f"{label} was to stay in float"
                assert moved or nearest(now, was), f"{label} is not at the nearest points of its grid"
            elif now is not None:
                assert not weight or node.name not in heavy, f"{label} was to be quantised"
                assert moved or np.allclose(now, was, rtol=1e-6, atol=0), f"{label} was changed"
            if now is not None:
                values = now.values if isinstance(now, Codes) else now
                proto.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), f"{label} after"))
                next(each for each in proto.graph.node if each.name == node.name).input[index] = f"{label} after"
        if node.name not in chosen and node.op_type not in ("Gemm", "Constant"):
            there = [options(each) for each in after.proto.graph.node if (each.name, each.op_type) == (node.name, node.op_type)]
            assert there and (after.opset != before.opset or options(node) in there), f"{node.name} was to stay as it was"
    samples = given.train
    rounds = step.flavour not in ("weights", "stored", "dynamic")
    if step.bias_correction or rounds_inside(after):  # biases were moved, and some were added; `softened` cannot be
        pass
    elif not rounds:
        bound, found = exactness(before), error(soft_answers(after, samples), run(softened(proto), samples))
        assert found <= bound, f"relative error {found:.3g} from the graph with rounded weights; promised: {bound}"
    elif step.rounding != "truncate" and not any(node.op_type == "Clip" for node in before.proto.graph.node):
        bound, found = exactness(before), error(*(run(softened(each, loose=True), samples) for each in (after.proto, proto)))
        assert found <= bound, f"relative error {found:.3g} from the graph with rounded weights; promised: {bound}"
    elif step.bits >= 8 and step.ranges == "minmax" and step.rounding != "truncate":
        found = sqnr_db(soft_answers(after, samples), run(softened(proto), samples))
        assert found >= CLIPPED_DB, f"only {found:.1f} dB above the graph with rounded weights; promised: {CLIPPED_DB}"
    # Truncating moves the mean of each tensor by half a step, of few samples entropy may cut off whatever it likes, and the few
    # bits of a payload make much of little.
    coarse = step.rounding == "truncate" or step.ranges == "entropy" or "payload" in [each.name for each in before.history]
    if step.bits >= 8 and not coarse:
        found = sqnr_db(fast_answers(after, samples), fast_answers(before, samples))
        assert found >= EIGHT_BITS_DB, f"only {found:.1f} dB above the error; promised: {EIGHT_BITS_DB}"


ORACLES: dict[str, Check] = {
    "bottleneck": narrowed,
    "equalize": the_same,
    "expand": the_same,
    "fold": the_same,
    "half": halved,
    "low_rank": factorised,
    "payload": packed,
    "prune": pruned,
    "quantize": quantised,
    "rotate": the_same,
    "sparsify": thinned,
}
"""By the pass's name; every pass has one."""
