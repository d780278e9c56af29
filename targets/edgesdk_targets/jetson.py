"""Jetson: fp32 or fp16 ONNX for ONNX Runtime's TensorRT provider, precision in the graph, no fallback to the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgesdk_converters.errors import DoesNotFit, TargetError

from . import jetson_quantisation, jetson_support
from .bundle import Provider, Runtime
from .estimate import modelled, peak_memory
from .figure import Figure
from .latency_model import Setting
from .onnxruntime_support import minimum_release, version_key
from .target import Compiled, Segment, Target

if TYPE_CHECKING:
    from edgesdk_converters.cost import Layer

SYSTEM_RESERVE_BYTES = 2_000_000_000
"""Kept for JetPack's desktop and CUDA's own allocations when memory is checked; CPU and GPU share the board's memory."""
_EXPAND = ("expand", {"operators": ["Gelu", "Mish"]})
"""Operators that TensorRT 10.3's parser is not documented to have."""


@dataclass(frozen=True)
class Jetson(Target):
    """Options: `jetpack` release, `dla` on boards that have one (fp16 throughout), `builder_level` 0 to 5 of TensorRT."""

    name: ClassVar[str] = "jetson"
    title: ClassVar[str] = "NVIDIA Jetson Orin, ONNX Runtime with TensorRT"
    default_device: ClassVar[str] = "jetson-orin-nano"
    precisions: ClassVar = {
        "fp32": (("fold", {}), _EXPAND),
        "fp16": (("fold", {}), _EXPAND, ("half", {})),
        "int8": (("fold", {}), _EXPAND, ("quantize", {"flavour": "tensorrt"})),
    }

    jetpack: str = "6.2"
    dla: bool = False
    dla_core: int = 0
    builder_level: int = 3

    def check(self, segment: Segment) -> None:
        release = self._release()
        if not 0 <= self.builder_level <= 5:
            raise TargetError(f"builder_level is {self.builder_level}; allowed: 0 to 5")
        minimum_release(segment.model, self.name)
        jetson_support.refuse(
            self.name, jetson_support.problems(segment.model, release),
            "give --shape for dynamic inputs, export with opset_version=20, or cut that part out of the model",
        )  # fmt: skip
        jetson_support.refuse(
            self.name, jetson_quantisation.violations(segment.model),
            "quantise with --precision int8 (flavour tensorrt), or take --precision fp16",
        )  # fmt: skip
        if self.dla:
            self._check_dla(segment, release)
        from edgesdk_converters.cost import layers

        need = peak_memory(layers(segment.model), self.device, half_native=True)
        have = self.device.need("memory_bytes", int) - SYSTEM_RESERVE_BYTES
        if need.value is not None and need.value > have:
            raise DoesNotFit(
                f"{segment.model.name} on {self.device.name}",
                need.value,
                have,
                "bytes",
                "take a board with more memory",
            )

    def compile(self, segment: Segment) -> Compiled:
        release = self._release()
        options = {
            "trt_engine_cache_enable": "True",
            "trt_timing_cache_enable": "True",
            "trt_builder_optimization_level": str(self.builder_level),
        }
        notes = []
        if any(step.name == "sparsify" and step.options.get("of") == 4 for step in segment.model.history):
            options["trt_sparsity_enable"] = "True"  # only Ampere and later gain by it, which all boards that take engines are
        if self.dla:
            options |= {"trt_dla_enable": "True", "trt_dla_core": str(self.dla_core), "trt_fp16_enable": "True"}
            notes.append(
                "DLA through ONNX Runtime is weakly typed; every node is fp16 already, so there is nothing left to lower"
            )
        slow = jetson_support.data_dependent(segment.model)
        if slow:
            notes.append(
                f"{', '.join(slow)}: their output's length depends on the data, which TensorRT 10 is known to run slowly"
            )
        least = max(
            minimum_release(segment.model, self.name), release.onnxruntime_min, jetson_support.strongly_typed_onnxruntime(),
            key=version_key,
        )  # fmt: skip
        runtime = Runtime(
            name="onnxruntime",
            file="model.onnx",
            minimum=least,
            providers=(Provider("TensorrtExecutionProvider", options),),
        )
        return Compiled({"model.onnx": segment.model.to_bytes()}, runtime, ({"step": "warm"},), tuple(notes))

    def estimate(self, layers: Sequence[Layer], precision: str) -> tuple[Figure, ...]:
        return (
            *modelled(
                layers,
                self.device,
                Setting("tensorrt", "gpu-tensorrt", None, precision),
                caution="the DLA was not measured: taken for the GPU" if self.dla else "",
            ),
            peak_memory(
                layers, self.device, half_native=True, unlike="TensorRT's engines and CUDA's libraries were not measured"
            ),
        )

    def _release(self) -> jetson_support.JetPack:
        release = jetson_support.jetpack(self.jetpack)
        if self.device.name not in release.boards:
            fitting = ", ".join(v for v in jetson_support.versions() if self.device.name in jetson_support.jetpack(v).boards)
            raise TargetError(f"JetPack {release.version} does not run on {self.device.name}; it has: {fitting}")
        if not release.strongly_typed:
            raise TargetError(
                f"JetPack {release.version} has TensorRT {release.tensorrt}, which takes precision as a hint, not from the graph",
                "take JetPack 6.1 or newer: --set jetpack=6.2",
            )
        return release

    def _check_dla(self, segment: Segment, release: jetson_support.JetPack) -> None:
        cores = self.device.get("dla_cores", int) or 0
        if not 0 <= self.dla_core < cores:
            raise TargetError(f"{self.device.name} has {cores} DLA cores; core {self.dla_core} is none of them", "leave dla out")
        if not release.dla:
            raise TargetError(f"TensorRT {release.tensorrt} of JetPack {release.version} has no DLA", "--set jetpack=6.2")
        if not any(step.name == "half" for step in segment.model.history):
            raise TargetError("the DLA runs fp16 and int8 only; this model is fp32", "give --precision fp16")
        jetson_support.refuse(
            f"the DLA of {self.device.name}", jetson_support.dla_problems(segment.model), "leave --set dla=true out"
        )
