"""Server: an ONNX Runtime bundle for a machine like this one; what tails of split models run on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from edgesdk_converters.errors import TargetError

from . import estimate
from .bundle import CPU, Provider, Runtime
from .figure import Figure, unavailable
from .onnxruntime_support import minimum_release, session_config
from .target import Compiled, Segment, Target

if TYPE_CHECKING:
    from edgesdk_converters.cost import Layer


@dataclass(frozen=True)
class Server(Target):
    """Options: `threads` (0 = all usable cores of the machine that runs it)."""

    name: ClassVar[str] = "server"
    title: ClassVar[str] = "server or PC, ONNX Runtime on its CPU"
    default_device: ClassVar[str] = "this-machine"
    precisions: ClassVar = {
        "fp32": (("fold", {}),),
        "fp16": (("fold", {}), ("half", {})),
        "int8": (("fold", {}), ("quantize", {"flavour": "u8s8"})),
        "w8": (("fold", {}), ("quantize", {"flavour": "weights", "bits": 8})),
        "w4": (("fold", {}), ("quantize", {"flavour": "weights", "bits": 4})),
    }

    threads: int = 0

    def recipe(self, precision: str) -> dict[str, Any]:
        plain = super().recipe(precision)
        return {"whole": [self._fitted(step) for step in plain["whole"]]}

    def variants(self, precision: str) -> dict[str, dict[str, Any]]:
        found = super().variants(precision)
        if precision == "int8":
            found["int8 dynamic"] = {"whole": [{"pass": "fold"}, self._fitted({"pass": "quantize", "flavour": "dynamic"})]}
        if precision in ("w8", "w4"):
            stored = {"pass": "quantize", "flavour": "stored", "bits": int(precision[1:])}
            found[f"{precision} stored"] = {"whole": [{"pass": "fold"}, stored]}
        return found

    def check(self, segment: Segment) -> None:
        if not 0 <= self.threads <= 1024:
            raise TargetError(f"threads is {self.threads}; allowed: 0 (all usable cores) to 1024")
        minimum_release(segment.model, self.name)

    def compile(self, segment: Segment) -> Compiled:
        runtime = Runtime(
            name="onnxruntime",
            file="model.onnx",
            minimum=minimum_release(segment.model, self.name),
            providers=(Provider(CPU),),
            threads=self.threads,
            config=session_config(segment.model, exact=_is_fixed(segment)),
        )
        return Compiled({"model.onnx": segment.model.to_bytes()}, runtime)

    def estimate(self, layers: Sequence[Layer], precision: str) -> tuple[Figure, ...]:
        reason = "nothing was measured of it: edgesdk measure --on local, or edgesdk fit --on local and --fit FILE"
        return (unavailable("latency_ms", self.device.name, reason), estimate.peak_memory(layers, self.device))

    def _fitted(self, step: dict[str, Any]) -> dict[str, Any]:
        """Weights of 7 bits where products with 8 would saturate.

        ONNX Runtime, docs/performance/model-optimizations/quantization, "When and why do I need to try U8U8?".
        """
        if step["pass"] == "quantize" and step["flavour"] in ("u8s8", "dynamic") and self.device.get("int8_saturates", bool):
            return {**step, "reduce_range": True}
        return step


def _is_fixed(segment: Segment) -> bool:
    """Whether the graph stands for the integer arithmetic of other hardware, to the bit."""
    return any(step.options.get("flavour") == "fixed" for step in segment.model.history)
