"""TinyBoard: a target of one's own in one file. Copy it, rename it, and put your board's facts in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgesdk_converters.errors import DoesNotFit
from edgesdk_targets.bundle import Provider, Runtime
from edgesdk_targets.device import DeviceProfile, Fact
from edgesdk_targets.estimate import Roofline, latency, peak_memory
from edgesdk_targets.figure import Figure
from edgesdk_targets.onnxruntime_support import minimum_release
from edgesdk_targets.target import Compiled, Segment, Target

if TYPE_CHECKING:
    from edgesdk_converters.cost import Layer

DATA_SHEET = "TinyBoard data sheet, revision 3, page 2 (an invented board)"
TINYBOARD = DeviceProfile(
    name="tinyboard-1",
    target="tinyboard",
    title="TinyBoard 1, one Cortex-A53 and 256 MB",
    facts={
        "cores": Fact(1, DATA_SHEET),
        "clock_ghz": Fact(1.0, DATA_SHEET),
        "fp32_flop_per_cycle_per_core": Fact(8, DATA_SHEET),
        "memory_bandwidth_gb_per_s": Fact(1.6, DATA_SHEET),
        "memory_bytes": Fact(268_435_456, DATA_SHEET),
    },
)


@dataclass(frozen=True)
class TinyBoard(Target):
    """Options: `reserve_mb`, memory that is kept for the rest of the program."""

    name: ClassVar[str] = "tinyboard"
    title: ClassVar[str] = "TinyBoard, ONNX Runtime on its one core"
    default_device: ClassVar[str] = "tinyboard-1"
    precisions: ClassVar = {"fp32": (("fold", {}),)}

    reserve_mb: int = 32

    @classmethod
    def devices(cls) -> tuple[DeviceProfile, ...]:
        return (TINYBOARD,)

    def check(self, segment: Segment) -> None:
        from edgesdk_converters.cost import layers

        minimum_release(segment.model, self.name)
        need = peak_memory(layers(segment.model), self.device).value
        have = self.device.need("memory_bytes", int) - self.reserve_mb * 1_000_000
        if need is not None and need > have:
            raise DoesNotFit(f"{segment.model.name} on {self.device.name}", need, have, "bytes", "take a smaller model")

    def compile(self, segment: Segment) -> Compiled:
        runtime = Runtime(
            name="onnxruntime",
            file="model.onnx",
            minimum=minimum_release(segment.model, self.name),
            providers=(Provider("CPUExecutionProvider"),),
            threads=1,
            arena=False,
        )
        return Compiled({"model.onnx": segment.model.to_bytes()}, runtime)

    def estimate(self, layers: Sequence[Layer], precision: str) -> tuple[Figure, ...]:
        per_second = self.device.need("clock_ghz", float) * self.device.need("fp32_flop_per_cycle_per_core", float)
        roofline = Roofline(
            peak_gflops=per_second,
            bandwidth_gb_per_s=self.device.need("memory_bandwidth_gb_per_s", float),
            launch_us=30.0,
            factor=2.0,
            low=0.5,
            high=6.0,
            source="no measurement stands behind this board; the spread is that of other Cortex-A53 boards, widened",
        )
        return (*latency(layers, roofline, self.device), peak_memory(layers, self.device))
