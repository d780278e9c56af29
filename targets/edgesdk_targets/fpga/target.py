"""FPGA: a network in fixed point as logic, straight to Verilog or as a project of hls4ml."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from edgesdk_converters.errors import RecipeError, TargetError, Unsupported

from .. import runner
from ..bundle import Bundle
from ..figure import Figure
from ..target import Compiled, Completed, Segment, Target
from . import flow_hls4ml, flow_rtl, tool_process
from .evidence import MODEL

if TYPE_CHECKING:
    from edgesdk_converters.cost import Layer
    from edgesdk_converters.integer_program import IntegerProgram
    from edgesdk_converters.model import Model


@dataclass(frozen=True)
class Fpga(Target):
    """Options: `flow` (rtl, hls4ml), `bits` (2 to 16), `clock_ns` (0: 10 on ECP5, 5 elsewhere).

    Of rtl: `form` (auto, unrolled, streaming, folded), `max_weights_unrolled`, `multipliers` (the budget of folded lanes),
    `target_cycles` (0: as fast as the budget allows), `port_bits` (8, 16), `tools` (how far free tools go at export: auto, or
    none, synthesis, routing), `tool_minutes` (the longest that they may take). Of hls4ml: `backend`, `strategy` (latency,
    resource), `reuse_factor`, `reuse_factors` (NODE=FACTOR of single nodes in its place, joined by commas), `io_type`,
    `constants` (of the estimate: a file that edgesdk fit wrote). Raises RecipeError for values that are not allowed, and
    TargetError for a device that hls4ml has no back end for.
    """

    name: ClassVar[str] = "fpga"
    title: ClassVar[str] = "FPGA, fixed point: straight to Verilog, or a project of hls4ml"
    default_device: ClassVar[str] = "ecp5-85k"
    default_precision: ClassVar[str] = "fixed"
    precisions: ClassVar = {"fixed": (("fold", {}), ("quantize", {"flavour": "fixed"}))}

    flow: Literal["rtl", "hls4ml"] = "rtl"
    bits: int = 8
    clock_ns: float = 0.0
    form: Literal["auto", "unrolled", "streaming", "folded"] = "auto"
    max_weights_unrolled: int = 5000
    multipliers: int = 64
    target_cycles: int = 0
    port_bits: int = 8
    tools: Literal["auto", "none", "synthesis", "routing"] = "auto"
    tool_minutes: float = 30.0
    backend: Literal["vitis", "vivado", "vivadoaccelerator", "quartus", "catapult", "oneapi", "libero"] = "vitis"
    strategy: Literal["latency", "resource"] = "latency"
    reuse_factor: int = 1
    reuse_factors: tuple[str, ...] = ()
    io_type: Literal["io_parallel", "io_stream"] = "io_parallel"
    constants: str = ""

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise RecipeError(f"bits is {self.bits}; allowed: 2 to 16")
        if self.clock_ns and not 0.5 <= self.clock_ns <= 1000:
            raise RecipeError(f"clock_ns is {self.clock_ns:g}; allowed: 0.5 to 1000, or 0 for the device's own")
        if not 0 < self.tool_minutes <= 24 * 60:
            raise RecipeError(f"tool_minutes is {self.tool_minutes:g}; allowed: above 0, up to a day (1440)")
        for name, least in (("max_weights_unrolled", 0), ("multipliers", 1), ("target_cycles", 0)):
            if getattr(self, name) < least:
                raise RecipeError(f"{name} is {getattr(self, name)}; allowed: at least {least}")
        if self.port_bits not in (8, 16):
            raise RecipeError(f"port_bits is {self.port_bits}; allowed: 8, 16")
        self._check_reuse()
        self._check_constants()
        if self.flow == "hls4ml" and self.is_lattice:
            raise TargetError(
                f"hls4ml has no back end for {self.device.title}, whose family is ecp5", "give --set flow=rtl, or a Xilinx device"
            )

    def _check_reuse(self) -> None:
        if not 1 <= self.reuse_factor <= flow_hls4ml.LARGEST:
            raise RecipeError(f"reuse_factor is {self.reuse_factor}; allowed: 1 to {flow_hls4ml.LARGEST:,}")
        own = flow_hls4ml.reuse_factors(",".join(self.reuse_factors))
        if self.flow != "hls4ml" and (own or self.reuse_factor != 1):
            name = "reuse_factors are" if own else "reuse_factor is"
            raise RecipeError(f"{name} for hls4ml's layers, the flow is rtl", "give --set flow=hls4ml too, or leave it out")

    def _check_constants(self) -> None:
        from .hls4ml_constants import read_constants

        if not self.constants:
            return
        if self.flow != "hls4ml":
            told = "constants are for hls4ml's estimate, the flow is rtl"
            raise RecipeError(told, "give --set flow=hls4ml too, or leave it out")
        if not Path(self.constants).is_file():
            raise RecipeError(f"constants: there is no file {self.constants}", "give a file that edgesdk fit wrote")
        try:
            read_constants(Path(self.constants))
        except TargetError as error:
            raise RecipeError(f"constants: {error.message}", error.hint) from error

    @property
    def is_lattice(self) -> bool:
        return self.device.get("family", str) == "ecp5"

    @property
    def clock_mhz(self) -> float:
        """Of the clock that the tools aim at."""
        return 1e3 / (self.clock_ns or (10.0 if self.is_lattice else 5.0))

    def recipe(self, precision: str) -> dict[str, Any]:
        plain = super().recipe(precision)
        steps = plain["whole"]
        if self.bits != 8:
            steps = [{**step, "bits": self.bits} if step["pass"] == "quantize" else step for step in steps]
        return {"whole": steps}

    def check(self, segment: Segment) -> None:
        self.program(segment.model)

    def compile(self, segment: Segment) -> Compiled:
        program = self.program(segment.model)
        dtypes = {output.name: output.dtype for output in segment.model.signature.outputs}
        compiled = flow_rtl.compiled if self.flow == "rtl" else flow_hls4ml.compiled
        made = compiled(program, dtypes, self)
        return Compiled({**made.files, MODEL: segment.model.to_bytes()}, made.runtime, made.plan, (*program.notes, *made.notes))

    def estimate(self, layers: Sequence[Layer], precision: str) -> tuple[Figure, ...]:
        estimated = flow_rtl.estimated if self.flow == "rtl" else flow_hls4ml.estimated
        return estimated(layers, self)

    def estimate_text(self, text: str) -> tuple[Figure, ...]:
        from .dense_spec import parse

        estimated = flow_rtl.of_fixed if self.flow == "rtl" else flow_hls4ml.of_fixed
        return estimated(parse(text), self)

    def estimate_segment(self, segment: Segment, layers: Sequence[Layer], precision: str) -> tuple[Figure, ...]:
        return ()  # `complete` synthesises, or estimates from the integers themselves

    def complete(self, bundle: Bundle, progress: Callable[[str], None] = runner.silent) -> Completed:
        completed = flow_rtl.completed if self.flow == "rtl" else flow_hls4ml.completed
        try:
            return completed(bundle, self, progress)
        except tool_process.TookTooLong as error:
            if self.flow == "rtl":
                less = "--set tools=none" + (" (or synthesis)" if self.is_lattice and self.tools != "synthesis" else "")
                error.hint = (
                    f"--set tool_minutes=N gives the tools more than {self.tool_minutes:g} minutes, {less} leaves them out"
                )
            raise

    def program(self, model: Model) -> IntegerProgram:
        """The integers that a model in fixed point computes. Raises Unsupported (node, operator, reason)."""
        from edgesdk_converters.integer_reader import program

        found = program(model)
        for operation in found.operations:
            if found.tensors[operation.result].bits > 64:
                told = f"its sums are {found.tensors[operation.result].bits} bits wide; allowed: 64"
                raise Unsupported(self.name, operation.node, type(operation).__name__, told, "take fewer bits")
        return found
