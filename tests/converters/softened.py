"""What a model computes in a test: as it is, as ONNX Runtime likes it best, and with the rounding of its integers taken out."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgesdk_converters import graph as graphs
from edgesdk_converters.calibration import Samples
from edgesdk_converters.model import Model

Array = NDArray[Any]
Answers = list[dict[str, Array]]
EXACT = 1e-4
"""Relative error (of the worst output) of what computes the same function in float32."""
HALF = 2e-2
"""The same where a graph has fp16 in it."""


def session(proto: onnx.ModelProto, optimised: bool) -> ort.InferenceSession:
    """One thread; where it is optimised, sums of integers do not saturate on x86 CPUs without VNNI, and weights alone that are
    integers become floats, instead of rounding what is multiplied with them too.

    From opset 21 on ONNX Runtime 1.32 fails on x86 above the basic optimisations: where it copies a QuantizeLinear of int8 over
    a Reshape, say, the copy has an output_dtype, which contradicts the zero point once its sign is changed.
    """
    options = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    best = levels.ORT_ENABLE_ALL if graphs.opset(proto) < 21 else levels.ORT_ENABLE_BASIC
    options.graph_optimization_level = best if optimised else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")
    if not any(node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") for node in proto.graph.node):
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(proto: onnx.ModelProto, samples: Samples, optimised: bool = False) -> Answers:
    runner = session(proto, optimised)
    names = [output.name for output in proto.graph.output]
    return [dict(zip(names, runner.run(None, sample), strict=True)) for sample in samples]


@lru_cache(maxsize=4)
def answers(model: Model, samples: Samples) -> Answers:
    """What the model computes."""
    return run(model.proto, samples)


@lru_cache(maxsize=4)
def fast_answers(model: Model, samples: Samples) -> Answers:
    """What it computes with all that ONNX Runtime does to a graph, which sums integers exactly (`session`)."""
    return run(model.proto, samples, optimised=True)


@lru_cache(maxsize=4)
def soft_answers(model: Model, samples: Samples) -> Answers:
    """What it computes where no activation is rounded."""
    return run(softened(model.proto), samples)


def error(got: Answers, wanted: Answers) -> float:
    """Largest difference in an output over all samples, by the largest value of that output; the worst output."""
    worst = 0.0
    for name in wanted[0]:
        a, b = (np.stack([one[name] for one in each]).astype(np.float64) for each in (got, wanted))
        worst = max(worst, float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)))
    return worst


def sqnr_db(got: Answers, wanted: Answers) -> float:
    """Power of an output over the power of the error, over all samples; the worst output."""
    worst = np.inf
    for name in wanted[0]:
        a, b = (np.stack([one[name] for one in each]).astype(np.float64) for each in (got, wanted))
        noise, signal = np.square(a - b).mean(), np.square(b).mean()
        worst = min(worst, 10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30)))
    return float(worst)


# --- graphs without rounding


def softened(proto: onnx.ModelProto, *, loose: bool = False) -> onnx.ModelProto:
    """The graph with activations that are clipped to what their integers reach, but not rounded: a continuous function.

    Two graphs that round differently in the last bit of float32 differ by whole steps of their integers; without the rounding
    they can be held against each other as closely as float graphs. Stored integers stay what they are. What ONNX Runtime's
    QLinear operators round inside cannot be taken out. `loose`: clipped at zero only, where integers end there (the quantiser
    drops a Relu for that), so that it does not matter which ranges were chosen.
    """
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    graph = made.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    types = graphs.value_types(graph)
    constant, soft = set(stored), set()
    nodes: list[onnx.NodeProto] = []

    def number(value: Any, kind: int = TensorProto.FLOAT) -> str:
        name = f"soft/{len(graph.initializer)}"
        array = np.asarray(value).astype(helper.tensor_dtype_to_np_dtype(kind))
        graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def floats(name: str, kind: int = TensorProto.FLOAT) -> str:
        return number(numpy_helper.to_array(stored[name]), kind)

    def step(operator: str, inputs: list[str], result: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [result], **attributes))
        return result

    def cast(source: str, kind: int, result: str) -> str:
        return step("Cast", [source], result, to=kind)

    for node in graph.node:
        read, out = list(node.input), node.output[0]
        if node.op_type == "Constant" or all(name in constant for name in read if name):
            constant.update(node.output)
            nodes.append(node)
        elif node.op_type == "QuantizeLinear":
            limits = np.iinfo(helper.tensor_dtype_to_np_dtype(stored[read[2]].data_type) if len(read) > 2 else np.uint8)
            scaled = step("Div", read[:2], f"{out}/scaled")
            if len(read) > 2:
                scaled = step("Add", [scaled, floats(read[2], stored[read[1]].data_type)], f"{out}/moved")
            cast(scaled, TensorProto.FLOAT, f"{out}/float")
            ends = [float(limits.min), float(limits.max)]
            if loose:
                zero = float(numpy_helper.to_array(stored[read[2]])) if len(read) > 2 else 0.0
                ends = [ends[0] if zero == ends[0] else -1e9, 1e9]
            step("Clip", [f"{out}/float", *map(number, ends)], out)
            soft.add(out)
        elif node.op_type == "DequantizeLinear" and read[0] in soft:
            kind = stored[read[1]].data_type
            centred = cast(read[0], kind, f"{out}/kind")
            if len(read) > 2:
                centred = step("Sub", [centred, floats(read[2], kind)], f"{out}/centred")
            step("Mul", [centred, read[1]], out)
        elif node.op_type == "DynamicQuantizeLinear":
            step("Identity", [read[0]], out)
            for name, value in zip(node.output[1:], (1.0, 0.0), strict=True):
                step("Identity", [number(value)], name)
            soft.update([out, node.output[2]])
        elif node.op_type == "MatMulInteger" and read[0] in soft:
            zero = [floats(read[3])] if len(read) > 3 else [number(0.0)]
            step("MatMul", [read[0], step("Sub", [floats(read[1]), *zero], f"{out}/weight")], out)
            soft.add(out)
        elif loose and node.name.endswith("/clipped:Clip"):  # of fixed point
            step("Identity", read[:1], out)
            soft.update([out] if read[0] in soft else [])
        elif node.op_type == "DequantizeLinear" and (match := re.fullmatch(r"(.*)/restored(/\d+)?", node.name)):
            first = next(each for each in graph.node if each.name.startswith(f"{match[1]}/payload"))
            kind = types[out].elem_type
            scale, zero = (numpy_helper.to_array(stored[name]).astype(np.float64) for name in read[1:3])
            ends = [-zero * scale, (255 - zero) * scale]
            for place, end in enumerate(("low", "high")):
                held = [name for name in stored if re.match(rf"{re.escape(match[1])}/payload/{end}(/|$)", name)]
                ends[place] = numpy_helper.to_array(stored[held[0]]) if held else ends[place]  # fewer than 8 bits
            step("Clip", [cast(first.input[0], kind, f"{out}/kind"), *(number(end, kind) for end in ends)], out)
        elif node.op_type == "Floor":
            step("Sub", [*read, number(0.5, types[out].elem_type)], out)
        else:
            for place, name in enumerate(read):
                small = name in stored and stored[name].data_type in (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16)
                if small and soft & set(read):
                    node.input[place] = floats(name)
            if soft & set(read) and node.op_type != "Cast":
                soft.update(node.output)
            nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    graph.ClearField("value_info")
    return made


def rounds_inside(model: Model) -> bool:
    """Whether it has operators that round what cannot be seen from outside."""
    return any(node.op_type.startswith(("QLinear", "QGemm", "ConvInteger")) for node in model.proto.graph.node)


def exactness(model: Model) -> float:
    """The relative error that another order of the same sums may have."""
    half = any(kind.elem_type == TensorProto.FLOAT16 for kind in graphs.value_types(model.proto.graph).values())
    return HALF if half else EXACT
