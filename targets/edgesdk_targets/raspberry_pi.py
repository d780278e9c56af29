"""Raspberry Pi: an ONNX Runtime bundle for the Arm cores of the board."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from edgesdk_converters.errors import DoesNotFit, TargetError

from .bundle import CPU, Provider, Runtime
from .device import DeviceProfile
from .estimate import modelled, peak_memory
from .figure import Figure
from .latency_model import Setting
from .onnxruntime_support import minimum_release, session_config
from .target import Compiled, Segment, Target

if TYPE_CHECKING:
    from edgesdk_converters.cost import Layer

SYSTEM_RESERVE_BYTES = 150_000_000
"""Kept for Raspberry Pi OS Lite and the rest of the user's program when memory is checked."""


@dataclass(frozen=True)
class RaspberryPi(Target):
    """Options: `threads` (0 = all cores of the board), `memory_gb` (0 = the smallest variant sold)."""

    name: ClassVar[str] = "raspberry-pi"
    title: ClassVar[str] = "Raspberry Pi, ONNX Runtime on the Arm cores"
    default_device: ClassVar[str] = "raspberry-pi-4"
    precisions: ClassVar = {
        "fp32": (("fold", {}),),
        "fp16": (("fold", {}), ("half", {})),
        "int8": (("fold", {}), ("quantize", {"flavour": "s8s8"})),
        "w8": (("fold", {}), ("quantize", {"flavour": "weights", "bits": 8})),
        "w4": (("fold", {}), ("quantize", {"flavour": "weights", "bits": 4})),
    }

    threads: int = 0
    memory_gb: float = 0.0

    def variants(self, precision: str) -> dict[str, dict[str, Any]]:
        found = super().variants(precision)
        if precision == "int8":
            found["int8 u8s8"] = {"whole": [{"pass": "fold"}, {"pass": "quantize", "flavour": "u8s8"}]}
            found["int8 dynamic"] = {"whole": [{"pass": "fold"}, {"pass": "quantize", "flavour": "dynamic"}]}
        if precision in ("w8", "w4"):
            stored = {"pass": "quantize", "flavour": "stored", "bits": int(precision[1:])}
            found[f"{precision} stored"] = {"whole": [{"pass": "fold"}, stored]}
        return found

    def check(self, segment: Segment) -> None:
        cores = self.device.need("cores", int)
        if not 0 <= self.threads <= cores:
            raise TargetError(f"threads is {self.threads}; {self.device.name} has {cores} cores", "give 0 for all of them")
        sold = [
            size / 2**30 for size in self.device.get("memory_bytes_variants", list) or [self.device.need("memory_bytes", int)]
        ]
        if self.memory_gb and self.memory_gb not in sold:
            shown = ", ".join(f"{size:g}" for size in sold)
            raise TargetError(f"memory_gb is {self.memory_gb:g}; {self.device.name} is sold with {shown}", "give one of these")
        minimum_release(segment.model, self.name)
        model = segment.model
        if model.signature.is_static:
            from edgesdk_converters.cost import layers

            need = peak_memory(layers(model), self.device)
            have = memory_bytes(self.device, self.memory_gb) - SYSTEM_RESERVE_BYTES
            if need.value is not None and need.value > have:
                raise DoesNotFit(
                    f"{model.name} on {self.device.name}", need.value, have, "bytes",
                    "take a board with more memory (--device, --set memory_gb=N) or a smaller model",
                )  # fmt: skip

    def compile(self, segment: Segment) -> Compiled:
        cores = self.device.need("cores", int)
        small = memory_bytes(self.device, self.memory_gb) < 1_000_000_000
        notes = []
        if _is_half(segment) and not self.device.get("fp16_arithmetic", bool):
            notes.append(
                f"the cores of {self.device.name} have no fp16 arithmetic: fp16 halves the file, but runs slower than fp32"
            )
        runtime = Runtime(
            name="onnxruntime",
            file="model.onnx",
            minimum=minimum_release(segment.model, self.name),
            providers=(Provider(CPU),),
            threads=self.threads or cores,
            arena=not small,
            config={
                "session.intra_op.allow_spinning": "0" if cores < 2 or small else "1",
                **session_config(segment.model, exact=True),
            },
        )
        return Compiled({"model.onnx": segment.model.to_bytes()}, runtime, notes=tuple(notes))

    def estimate(self, layers: Sequence[Layer], precision: str) -> tuple[Figure, ...]:
        cores = self.device.need("cores", int)
        setting = Setting("onnxruntime", "cpu", min(self.threads or cores, cores), "int8" if precision == "int8" else "fp32")
        caution = (
            "" if precision in ("fp32", "int8") else f"{precision} was not measured: taken for fp32, as which it is computed"
        )
        if precision == "int8":
            caution = "int8 was measured in ncnn, not in ONNX Runtime"
        return (*modelled(layers, self.device, setting, caution=caution), peak_memory(layers, self.device))


def memory_bytes(device: DeviceProfile, memory_gb: float) -> float:
    """Memory of the board: the variant asked for, else the smallest sold."""
    return memory_gb * 2**30 if memory_gb else float(device.need("memory_bytes", int))


def _is_half(segment: Segment) -> bool:
    return any(step.name == "half" for step in segment.model.history)
