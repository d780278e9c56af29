"""Payload: what crosses a cut, as few bits a value, packed into bytes inside the graph.

The head quantises and packs, the tail unpacks, both with plain ONNX operators: any server that runs ONNX runs the tail.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from . import graph as graphs
from .errors import MissingExtra, ModelError, PassError
from .model import Model, Step
from .observe import Method, observe
from .passes import Given
from .quantize import PER_CHANNEL_OPSET, named

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as _error:
    raise MissingExtra("convert", "onnx") from _error

ENDING = "/payload"
"""How the name of the packed tensor ends: cut there."""


@dataclass(frozen=True)
class Payload:
    """Puts quantised and packed bytes in the place of the tensor `at`, which then crosses as the tensor `at`/payload (uint8).

    `bits` (2 to 8) a value, one scale and zero point for the tensor, ranges by `calibration` on the training inputs. The bytes
    are a little-endian stream of bits; on the way codes are cut into digits of gcd(bits, 8) bits.
    """

    name: ClassVar[str] = "payload"
    at: str = ""
    bits: int = 8
    calibration: Method = "mse"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise PassError(self.name, f"bits is {self.bits}; allowed: 2 to 8")

    needs_calibration: ClassVar[bool] = True

    def __call__(self, model: Model, given: Given) -> Model:
        if model.opset < PER_CHANNEL_OPSET:  # older ones say bounds and axes in other ways
            model = named(model)
        shape = self._shape(model)
        if given.train.synthetic:
            told = f"ranges are taken from data, and there are only {given.train.origin}"
            raise PassError(self.name, told, "give real inputs with --train FILE.npz (or --data, of which a part is then used)")
        found = observe(
            model, given.train, [self.at], method=self.calibration, bits=self.bits, progress=given.progress, cache=given.cache
        )
        low, high = found[self.at]
        scale = np.float32(max((high - low) / (2**self.bits - 1), 1e-30))
        zero = int(np.clip(np.rint(-low / scale), 0, 2**self.bits - 1))
        proto = model.copy_proto()
        pack(proto, self.at, self.bits, scale, zero, shape)
        count = math.prod(shape)
        size = packed_bytes(count, self.bits)
        note = (
            f"{self.at}: {count:,} values of {self.bits} bits are {size:,} bytes, {4 * count / size:.1f} times fewer than in fp32"
        )
        note += f"; range {low:.3g} to {high:.3g} ({self.calibration})"
        try:
            return model.changed(proto, Step(self.name, {"at": self.at, "bits": self.bits}, note))
        except ModelError as error:
            raise PassError(self.name, f"the model with a payload is not valid: {error.message}") from error

    def _shape(self, model: Model) -> tuple[int, ...]:
        """The tensor's shape. Raises PassError where it is none that can be packed."""
        graph = model.proto.graph
        if not any(self.at in node.output for node in graph.node):
            raise PassError(
                self.name, f"{self.at!r} is no tensor inside {model.name}", "edgesdk cuts MODEL lists where it can be cut"
            )
        if any(output.name == self.at for output in graph.output):
            raise PassError(self.name, f"{self.at!r} is an output of {model.name}; what crosses must be inside")
        kind = graphs.value_types(graph).get(self.at)
        if kind is None or kind.elem_type != TensorProto.FLOAT:
            got = "unknown" if kind is None else graphs.type_name(kind.elem_type)
            raise PassError(self.name, f"{self.at!r} has type {got}; only float32 can be packed", "cut elsewhere")
        if kind.elements is None or not kind.elements:
            raise PassError(self.name, f"the shape of {self.at!r} is not static", "give --shape INPUT=1x3x224x224")
        return tuple(int(dim) for dim in kind.shape or ())


def pack(proto: onnx.ModelProto, at: str, bits: int, scale: np.float32, zero: int, shape: Sequence[int]) -> str:
    """Puts bytes in the place of the tensor `at` of this shape, `zero` its code for 0; the name of the tensor that crosses."""
    edit = _Edit(proto, at)
    edit.head(scale, zero, bits, shape)
    edit.tail(scale, zero, bits, shape)
    edit.insert()
    return edit.packed


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of `count` values of so many bits."""
    return math.ceil(count * bits / 8)


@dataclass
class _Edit:
    """The nodes that pack and unpack, and where they go."""

    proto: onnx.ModelProto
    at: str
    made: list[onnx.NodeProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.fresh = graphs.fresh_names(self.proto)
        self.packed = self.fresh(f"{self.at}{ENDING}")

    def head(self, scale: np.float32, zero: int, bits: int, shape: Sequence[int]) -> None:
        low, high = (np.float32((edge - zero) * scale) for edge in (0, 2**bits - 1))
        inside = self.node("Clip", [self.at, self.stored("low", low), self.stored("high", high)]) if bits < 8 else self.at
        steps = [self.stored("scale", scale), self.stored("zero", np.uint8(zero))]
        if bits == 8:
            self.node("QuantizeLinear", [inside, *steps], result=self.packed)
            return
        codes = self.cast(self.node("QuantizeLinear", [inside, *steps]), TensorProto.INT64)
        digit = math.gcd(bits, 8)
        digits = self.split(self.reshaped(codes, [-1, 1]), digit, bits // digit)
        missing = -(math.prod(shape) * bits // digit) % (8 // digit)
        flat = self.reshaped(digits, [-1])
        if missing:
            flat = self.node("Pad", [flat, self.stored("pads", np.array([0, missing]))])
        joined = self.joined(self.reshaped(flat, [-1, 8 // digit]), digit, 8 // digit)
        self.cast(self.reshaped(joined, [1, -1]), TensorProto.UINT8, self.packed)

    def tail(self, scale: np.float32, zero: int, bits: int, shape: Sequence[int]) -> None:
        steps = [self.stored("scale", scale), self.stored("zero", np.uint8(zero))]
        self.restored = self.fresh(f"{self.at}/restored")
        if bits == 8:
            self.node("DequantizeLinear", [self.packed, *steps], result=self.restored)
            return
        digit = math.gcd(bits, 8)
        taken = self.cast(self.packed, TensorProto.INT64)
        digits = self.reshaped(self.split(self.reshaped(taken, [-1, 1]), digit, 8 // digit), [-1])
        wanted = math.prod(shape) * bits // digit
        if wanted % (8 // digit):
            digits = self.node("Slice", [digits, self.stored("from", np.array([0])), self.stored("to", np.array([wanted]))])
        joined = self.joined(self.reshaped(digits, [-1, bits // digit]), digit, bits // digit)
        codes = self.cast(self.reshaped(joined, list(shape)), TensorProto.UINT8)
        self.node("DequantizeLinear", [codes, *steps], result=self.restored)

    def split(self, column: str, digit: int, count: int) -> str:
        """Numbers (n, 1) as their digits (n, count), least first. All in int64: no pass takes these constants for weights."""
        if count == 1:
            return column
        powers = self.stored("powers", 2 ** (digit * np.arange(count))[None])
        return self.node("Mod", [self.node("Div", [column, powers]), self.stored("base", np.int64(2**digit))])

    def joined(self, digits: str, digit: int, count: int) -> str:
        if count == 1:
            return digits
        worth = self.node("Mul", [digits, self.stored("powers", 2 ** (digit * np.arange(count))[None])])
        return self.node("ReduceSum", [worth, self.stored("axis", np.array([1]))])

    def cast(self, value: str, to: int, result: str = "") -> str:
        return self.node("Cast", [value], result, to=to)

    def reshaped(self, value: str, shape: Sequence[int]) -> str:
        return self.node("Reshape", [value, self.stored("shape", np.array(shape, np.int64))])

    def stored(self, role: str, value: NDArray[Any] | np.generic) -> str:
        name = self.fresh(f"{self.at}{ENDING}/{role}")
        self.proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, kind: str, inputs: Sequence[str], result: str = "", **attributes: Any) -> str:
        result = result or self.fresh(f"{self.at}{ENDING}/{kind}")
        self.made.append(helper.make_node(kind, list(inputs), [result], name=result, **attributes))
        return result

    def insert(self) -> None:
        """Puts the nodes behind the one that makes the tensor; all that read it read what was restored."""
        nodes = self.proto.graph.node
        for graph in graphs.all_graphs(self.proto):
            for node in graph.node:
                for index, name in enumerate(node.input):
                    if name == self.at:
                        node.input[index] = self.restored
        place = next(index for index, node in enumerate(nodes) if self.at in node.output)
        for offset, node in enumerate(self.made):
            nodes.insert(place + 1 + offset, node)
