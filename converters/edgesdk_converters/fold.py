"""Fold: constants computed, batch norm merged into convolutions, dead nodes gone; by onnxslim."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import ClassVar

from .errors import MissingExtra, ModelError, PassError
from .model import Model, Step
from .passes import Given

try:
    import onnx
    import onnxslim
except ImportError as _error:
    raise MissingExtra("convert", "onnxslim") from _error


_FAILURES = (
    RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError,
    onnx.checker.ValidationError, onnx.shape_inference.InferenceError,
)  # fmt: skip
_SMALL_INTEGERS = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)


@dataclass(frozen=True)
class Fold:
    """Same function, fewer nodes.

    onnxslim was chosen by node count and parity over onnxscript's optimizer and ONNX Runtime's offline optimiser
    (`make bench` prints the table); the latter writes operators of its own that only it can run. Constants above
    `size_limit_bytes` are left unfolded, so that a small file cannot grow without bound.
    """

    name: ClassVar[str] = "fold"
    size_limit_bytes: int = 64_000_000

    def __call__(self, model: Model, given: Given) -> Model:
        before = len(model.proto.graph.node)
        integers = any(tensor.data_type in _SMALL_INTEGERS and tensor.dims for tensor in model.proto.graph.initializer)
        apart = ["weight_tying"] if integers else None  # ONNX Runtime fails on shared integers whose sign it changes at loading
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                proto = onnxslim.slim(model.copy_proto(), size_threshold=self.size_limit_bytes, skip_optimizations=apart)
        except _FAILURES as error:
            raise PassError(
                self.name, f"onnxslim failed: {type(error).__name__}: {error}", "leave it out of the recipe"
            ) from error
        if len(proto.graph.input) < len(model.proto.graph.input):  # onnxslim drops inputs that nothing reads
            proto.graph.ClearField("input")
            proto.graph.input.extend(model.proto.graph.input)
        for kind in ("input", "output"):
            old = [info.name for info in getattr(model.proto.graph, kind)]
            new = [info.name for info in getattr(proto.graph, kind)]
            if old != new:
                raise PassError(self.name, f"the {kind}s changed from {old} to {new}")
        proto.ir_version = max(model.proto.ir_version, 4)
        _remember_types(proto, model.proto)
        step = Step(self.name, note=f"{before} nodes to {len(proto.graph.node)}")
        try:
            return model.changed(proto, step)
        except ModelError as error:
            raise PassError(
                self.name, f"onnxslim made a model that is not valid: {error.message}", "leave it out of the recipe"
            ) from error


def _remember_types(proto: onnx.ModelProto, before: onnx.ModelProto) -> None:
    """Types that nobody can infer, of operators outside ONNX's own, as they were before: onnxslim forgets them."""
    graph = proto.graph
    made = {name for node in graph.node for name in node.output}
    infos = {info.name: info for info in graph.value_info if info.type.tensor_type.elem_type}
    infos = {info.name: info for info in before.graph.value_info if info.name in made} | infos
    kept = [onnx.ValueInfoProto.FromString(info.SerializeToString()) for info in infos.values()]
    del graph.value_info[:]
    graph.value_info.extend(kept)
