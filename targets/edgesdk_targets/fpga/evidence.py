"""Whether every level of a design computes the same integers, and how many cycles it takes: vectors, comparisons, figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters.errors import ContractBroken, DeviceError
from edgesdk_converters.integer_program import Curve, IntegerProgram, Integers, LayerNorm, Round, Softmax

from ..bundle import Bundle
from ..figure import Figure

if TYPE_CHECKING:
    from edgesdk_converters.model import Model

MODEL = "model.onnx"
"""The fixed-point network in a bundle: what every level of its logic is compared with."""
VECTORS = 1_000
LEAST_VECTORS = 20
SIMULATED_CYCLES: Mapping[str, int] = {"verilator": 5_000_000, "iverilog": 100_000}
"""Of a simulation at export: about a minute for a design of some ten thousand gates."""
NEAR_VECTORS, NEAR_ELEMENTS = 300, 20_000_000
"""Inferences over which operations are held against floats, fewer where their tensors take much memory."""
SEED = 0


def model_of(bundle: Bundle) -> Model:
    """The fixed-point network that lies in a bundle."""
    import onnx

    from edgesdk_converters.model import Model

    name = bundle.manifest.runtime.config.get("name", bundle.manifest.name)  # it stands in the files
    return Model.from_proto(onnx.ModelProto.FromString(bundle.read(MODEL)), name)


def program_of(bundle: Bundle) -> IntegerProgram:
    """The integers that a bundle's network computes."""
    from edgesdk_converters.integer_reader import program

    return program(model_of(bundle))


def vector_count(interval_cycles: int, cycles: int) -> int:
    """How many inferences are simulated in about so many cycles: VECTORS, fewer where one takes many."""
    return max(LEAST_VECTORS, min(VECTORS, cycles // max(1, interval_cycles)))


def vectors(program: IntegerProgram, count: int) -> dict[str, Integers]:
    """Input codes from seed 0: all least, all greatest, all zero, then noise over the whole range and, by turns, of its ends."""
    rng = np.random.default_rng(SEED)
    found = {}
    for name in program.inputs:
        codes = program.tensors[name]
        made = rng.integers(codes.low, codes.high, (count, *codes.shape), dtype=np.int64, endpoint=True)
        for row in range(3, count, 3):  # extremes meet each other
            made[row] = rng.choice([codes.low, codes.high, 0 if codes.low <= 0 else codes.low], codes.shape)
        for row, value in enumerate((codes.low, codes.high, max(codes.low, 0))):
            if row < count:
                made[row] = value
        found[name] = made
    return found


def mismatches(
    program: IntegerProgram, codes: Mapping[str, Integers], found: Mapping[str, Integers], level: str, told: str
) -> Figure:
    """How many of all output codes differ from the integer reference. Raises ContractBroken where any does: it is a bug."""
    wanted = program.run(codes)
    count = len(next(iter(codes.values())))
    wrong = sum(int((found[name] != wanted[name]).sum()) for name in program.outputs)
    if wrong:
        total = sum(array.size for array in wanted.values())
        raise ContractBroken(
            f"{told}: {wrong} of {total:,} output codes differ from the integer reference over {count} inferences",
            "this is a defect of edgesdk: please report it with the model",
        )
    return Figure(
        "mismatches", wrong, "simulated", told,
        f"output codes that differ from the integer reference, {count} inferences from seed 0", segment=level, n=count,
    )  # fmt: skip


def of_onnxruntime(bundle: Bundle, program: IntegerProgram, progress: Callable[[str], None]) -> Figure:
    """How many output codes of ONNX Runtime on the fixed-point network differ from the integer reference.

    None can where float32 holds every sum; where it does not, the method says in which layers.
    """
    from edgesdk_converters.reference import Reference

    progress("comparing the integers with ONNX Runtime")
    codes = vectors(program, VECTORS if sum(program.tensors[name].size for name in program.inputs) <= 4096 else 100)
    count = len(next(iter(codes.values())))
    reference = Reference(model_of(bundle))
    wanted = program.decode(program.run(codes))
    wrong, farthest = 0, 0.0
    for row in range(count):
        feed = {name: (codes[name][row : row + 1] * program.tensors[name].step).astype(np.float32) for name in program.inputs}
        answers = reference.run(feed)
        for name in program.outputs:
            apart = np.abs(answers[name].reshape(-1).astype(np.float64) - wanted[name][row].reshape(-1))
            wrong += int((apart > 0).sum())
            farthest = max(farthest, float(apart.max(initial=0)) / program.tensors[name].step)
    inexact = [node for node, exact in program.exact.items() if not exact]
    if wrong and not inexact:
        raise ContractBroken(
            f"{wrong} output values of ONNX Runtime differ from the integer reference although float32 is exact in every layer",
            "this is a defect of edgesdk: please report it with the model",
        )
    told = f"exact in float32: all {len(program.exact)} layers"
    if inexact:
        shown = ", ".join(inexact[:3]) + (f" and {len(inexact) - 3} more" if len(inexact) > 3 else "")
        told = f"float32 does not hold every sum of {shown}, or a table stands for its function; the greatest difference is "
        told += f"{farthest:g} steps"
    return Figure(
        "mismatches", wrong, "measured", "ONNX Runtime on this machine",
        f"output values that differ from the integer reference, {count} inferences from seed 0; {told}", segment="onnxruntime",
        n=count,
    )  # fmt: skip


def distances(program: IntegerProgram) -> Iterator[Figure]:
    """How far what comes near a function is from ONNX Runtime's floats on the same values, layer by layer, before rounding.

    A softmax is divided and rounded in one: its distance is that of its codes.
    """
    near = [op for op in program.operations if isinstance(op, (LayerNorm, Curve, Softmax))]
    if not near:
        return
    size = sum(codes.size for codes in program.tensors.values())
    count = max(LEAST_VECTORS, min(NEAR_VECTORS, NEAR_ELEMENTS // size))
    known = program.run(vectors(program, count), keep=True)
    for op in near:
        step = min((program.tensors[one.result].step for one in program.operations if isinstance(one, Round)
                    and one.source == op.result), default=program.tensors[op.result].step)  # fmt: skip
        told = f"the integers beside ONNX Runtime's {_operator(op)} on the same values"
        source, result, seen = program.tensors[op.source], program.tensors[op.result], count
        if isinstance(op, Curve):
            seen = source.high - source.low + 1
            off, bound = op.error * step, f"over every code of its input: {op.error:.3f} steps of {step:g}, which is the bound"
        else:
            floats = _of_floats(op, (known[op.source] * source.step).astype(np.float32), program)
            off = float(np.abs(known[op.result] * result.step - floats).max(initial=0))
            bound = f"{off / step:.3f} steps of {step:g} over {count} inferences; {_bound(op, program)}"
        yield Figure("max_abs_error", off, "measured", "ONNX Runtime on this machine", f"{told}, {bound}", segment="integers",
                     layer=op.node, n=seen)  # fmt: skip


def _operator(op: LayerNorm | Curve | Softmax) -> str:
    return op.function if isinstance(op, Curve) else {"LayerNorm": "LayerNormalization"}.get(type(op).__name__, type(op).__name__)


def _bound(op: LayerNorm | Softmax, program: IntegerProgram) -> str:
    from edgesdk_converters.integer_tables import softmax_error

    if isinstance(op, LayerNorm):
        return f"derived bound beside exact arithmetic: {op.error:.3f} steps"
    error = softmax_error(op.values, program.tensors[op.source].shape[-1], op.shift)
    return f"derived bound beside exact arithmetic: {0.5 + error:.3f} steps, rounding included"


def _of_floats(op: LayerNorm | Softmax, values: NDArray[np.float32], program: IntegerProgram) -> NDArray[np.float64]:
    """What ONNX Runtime makes of values by the operator that an operation stands for."""
    from onnx import TensorProto, helper, numpy_helper

    from edgesdk_converters.model import Model
    from edgesdk_converters.reference import Reference

    stored = []
    node = helper.make_node("Softmax", ["x"], ["y"], axis=-1)
    if isinstance(op, LayerNorm):
        step = program.tensors[op.result].step
        gain, bias = op.gain * 2.0 ** (op.bits + op.up) * step, op.bias * step
        stored = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in (("gain", gain), ("bias", bias))]
        node = helper.make_node("LayerNormalization", ["x", "gain", "bias"], ["y"], axis=-1, epsilon=op.epsilon)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, values.shape) for name in ("x", "y")]
    graph = helper.make_graph([node], "one", ends[:1], ends[1:], stored)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Reference(Model.from_proto(proto, "one")).run({"x": values})["y"].astype(np.float64)


def same_design(bundle: Bundle, wanted: Mapping[str, bytes], found: Mapping[str, bytes]) -> None:
    """Raises DeviceError where a bundle's files are not those that this edgesdk makes of its network."""
    other = sorted(name for name in wanted if found.get(name) != wanted[name])
    if other:
        raise DeviceError(
            f"{bundle.manifest.name} was made by {bundle.manifest.made_by or 'another edgesdk'}, whose {other[0]} differs from "
            "what this one makes", "simulate it with the edgesdk that made it, or export the model again",
        )  # fmt: skip
