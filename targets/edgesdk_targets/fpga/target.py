"""FPGA: a network in fixed point as logic, straight to Verilog or as a project of hls4ml."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from edgesdk_converters.errors import RecipeError, TargetError, Unsupported

from .. import runner
from ..bundle import Bundle, Runtime
from ..figure import Figure, unavailable
from ..target import Compiled, Completed, Segment, Target
from . import flow_hls4ml, flow_rtl, resources, tool_process
from .design import MAX_WEIGHTS_UNROLLED
from .evidence import MODEL

if TYPE_CHECKING:
    from edgesdk_converters.cost import Layer
    from edgesdk_converters.errors import EdgeError
    from edgesdk_converters.integer_draft import Draft
    from edgesdk_converters.integer_program import IntegerProgram
    from edgesdk_converters.model import Model
    from edgesdk_converters.passes import Pass

OPTIONS_OF: Mapping[str, tuple[str, ...]] = {
    "rtl": ("form", "max_weights_unrolled", "multipliers", "target_cycles", "port_bits", "pins", "tools", "tool_minutes"),
    "hls4ml": ("backend", "strategy", "reuse_factor", "reuse_factors", "io_type", "constants", *flow_hls4ml.WIDTHS),
}
"""Options that mean something in one flow alone."""
CHANGING_NOTHING = ("prune", "sparsify", "equalize", "low_rank")
"""Passes that leave every node there that has no integer form, and every name."""
MERGED = ("BatchNormalization",)
"""Operators without a rule of which quantising makes others, or none."""
ROUNDINGS = ("QuantizeLinear", "DequantizeLinear", "Floor")
"""Operators that can be parts of a rounding, and then need no rule of their own."""
INTEGERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearConv",
            "QLinearMatMul", "QGemm")  # fmt: skip
"""Operators of which a network that is quantised already has at least one."""
ROUNDING = ":QuantizeLinear"
"""With which the names of roundings end that the quantise pass writes."""
SOURCES = (".v", ".hex", ".cpp", ".h")
"""Of a network's own logic."""


@dataclass(frozen=True)
class Fpga(Target):
    """Options: `flow` (rtl, hls4ml), `bits` (2 to 16), `clock_ns` (0: 10 on ECP5, 5 elsewhere).

    Of rtl: `form` (auto, unrolled, streaming, folded), `max_weights_unrolled`, `multipliers` (the budget of folded lanes),
    `target_cycles` (0: as fast as the budget allows), `port_bits` (8, 16), `pins` (a board's .lpf, for ECP5), `tools` (how far
    free tools go at export: auto, or none, synthesis, routing), `tool_minutes` (the longest that they may take). Of hls4ml:
    `backend`, `strategy` (latency, resource), `reuse_factor`, `reuse_factors` (NODE=FACTOR of single nodes in its place, joined
    by commas), `io_type`, and of its estimates alone: `constants` (a file that edgesdk fit wrote), `activation_bits`,
    `accumulator_bits` (0: as an export writes them; a `dense:` line has 16). Raises RecipeError for values that are not allowed,
    and TargetError for a device that hls4ml has no back end for.
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
    max_weights_unrolled: int = MAX_WEIGHTS_UNROLLED
    multipliers: int = 64
    target_cycles: int = 0
    port_bits: int = 8
    pins: str = ""
    tools: Literal["auto", "none", "synthesis", "routing"] = "auto"
    tool_minutes: float = 30.0
    backend: Literal["vitis", "vivado", "vivadoaccelerator", "quartus", "catapult", "oneapi", "libero"] = "vitis"
    strategy: Literal["latency", "resource"] = "latency"
    reuse_factor: int = 1
    reuse_factors: tuple[str, ...] = ()
    io_type: Literal["io_parallel", "io_stream"] = "io_parallel"
    constants: str = ""
    activation_bits: int = 0
    accumulator_bits: int = 0

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
        if not 1 <= self.reuse_factor <= flow_hls4ml.LARGEST:
            raise RecipeError(f"reuse_factor is {self.reuse_factor}; allowed: 1 to {flow_hls4ml.LARGEST:,}")
        for name, most in zip(flow_hls4ml.WIDTHS, (64, 128), strict=True):
            if not 0 <= getattr(self, name) <= most:
                raise RecipeError(f"{name} is {getattr(self, name)}; allowed: 1 to {most}, or 0 for what an export writes")
        flow_hls4ml.reuse_factors(",".join(self.reuse_factors))
        self._check_flow()
        self._check_constants()
        self._check_pins()
        if self.flow == "hls4ml" and self.is_lattice:
            raise TargetError(
                f"hls4ml has no back end for {self.device.title}, whose family is ecp5", "give --set flow=rtl, or a Xilinx device"
            )

    def _check_flow(self) -> None:
        """Raise RecipeError for an option of the other flow that is not at its default: nothing would read it."""
        default = {one.name: one.default for one in fields(self)}
        other = next(flow for flow in OPTIONS_OF if flow != self.flow)
        for name in OPTIONS_OF[other]:
            if getattr(self, name) == default[name]:
                continue
            told = f"{name} is of {other} alone, the flow is {self.flow}"
            if other == "hls4ml" and self.is_lattice:
                raise RecipeError(told, f"leave {name} out: hls4ml has no back end for this device")
            raise RecipeError(told, f"give --set flow={other}, or leave {name} out")

    def _check_constants(self) -> None:
        from .hls4ml_constants import read_constants

        if not self.constants:
            return
        if not Path(self.constants).is_file():
            raise RecipeError(f"constants: there is no file {self.constants}", "give a file that edgesdk fit wrote")
        try:
            read_constants(Path(self.constants))
        except TargetError as error:
            raise RecipeError(f"constants: {error.message}", error.hint) from error

    def _check_pins(self) -> None:
        if self.pins and not self.is_lattice:
            raise RecipeError(f"pins: .lpf files are of ECP5, and {self.device.name} is none", "leave pins out")
        if self.pins and not Path(self.pins).is_file():
            raise RecipeError(f"pins: there is no file {self.pins}", "give a board's .lpf")

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

    def check_source(self, model: Model, passes: Sequence[Pass]) -> None:
        """Raise Unsupported for an operator without an integer form that none of the passes takes away, and for an input whose
        shape is dynamic; RecipeError for a reuse factor of a node that is not there after them, and for pins of other ports.

        Folding and what quantising joins are done for it, in float, where there is anything to look for. Of a recipe with a
        pass that replaces operators nothing is known before it.
        """
        from edgesdk_converters.integer_draft import Draft
        from edgesdk_converters.quantize import Quantize

        self.check_widths("an export writes activations of `bits` and sums as wide as they get")
        flow_rtl.pins(self, len(model.signature.inputs), len(model.signature.outputs))
        own = flow_hls4ml.reuse_factors(",".join(self.reuse_factors))
        if not own and next(_refused(Draft(model)), None) is None:
            return
        ahead = _ahead(model, passes)
        if ahead is None:
            return
        quantises = any(isinstance(step, Quantize) for step in passes)
        for error in _refused(Draft(ahead), MERGED if quantises else ()):
            raise error
        _check_names(ahead, own, {node.name for node in model.proto.graph.node})

    def check(self, segment: Segment) -> None:
        self.program(segment.model)

    def check_widths(self, why: str) -> None:
        """Raise RecipeError for widths that nothing would read."""
        for name in flow_hls4ml.WIDTHS:
            if getattr(self, name):
                raise RecipeError(f"{name} is of estimates of networks in float alone: {why}", f"leave {name} out")

    def compile(self, segment: Segment) -> Compiled:
        self.check_widths("an export writes activations of `bits` and sums as wide as they get")
        program = self.program(segment.model)
        dtypes = {output.name: output.dtype for output in segment.model.signature.outputs}
        compiled = flow_rtl.compiled if self.flow == "rtl" else flow_hls4ml.compiled
        made = compiled(program, dtypes, self)
        return Compiled({**made.files, MODEL: segment.model.to_bytes()}, made.runtime, made.plan, (*program.notes, *made.notes))

    def estimate(self, layers: Sequence[Layer], precision: str) -> tuple[Figure, ...]:
        estimated = flow_rtl.estimated if self.flow == "rtl" else flow_hls4ml.estimated
        return estimated(layers, self)

    def estimate_model(self, model: Model, layers: Sequence[Layer], precision: str) -> tuple[Figure, ...]:
        """Of a model that is quantised already by its own integers, whatever `bits` says; all unavailable, with what to do, where
        those are no fixed point."""
        if not self.is_quantised(model):
            return self.estimate(layers, precision)
        self.check_widths(f"{model.name} has integers of its own")
        try:
            program = self.program(model)
        except Unsupported as error:
            from .rtl_estimate import NAMES

            told = f"{error.message}; estimate the float model that it was made from, or {error.hint}"
            names = NAMES if self.flow == "rtl" else flow_hls4ml.COSTS
            return tuple(unavailable(name, self.device.name, told) for name in names)
        of_program = flow_rtl.of_program if self.flow == "rtl" else flow_hls4ml.of_program
        return of_program(program, self)

    @staticmethod
    def is_quantised(model: Model) -> bool:
        """Whether a model says its integers itself."""
        return any(node.op_type in INTEGERS for node in model.proto.graph.node)

    def estimate_text(self, text: str) -> tuple[Figure, ...]:
        from .dense_spec import parse

        estimated = flow_rtl.of_fixed if self.flow == "rtl" else flow_hls4ml.of_fixed
        return estimated(parse(text, self.activation_bits, self.accumulator_bits), self)

    def estimate_notes(self, rows: Sequence[Figure], source: Model | str | None = None) -> tuple[str, ...]:
        """The widths that were assumed for a network in float, and whether the part has what the estimate needs."""
        if self.flow == "rtl":
            return resources.notes(self.device, rows)
        from .hls4ml_estimate import in_bram18

        told = [in_bram18(row) if row.name == "bram" and row.value is not None else row for row in rows]
        own = isinstance(source, str) or (source is not None and self.is_quantised(source))
        known = any(row.name in flow_hls4ml.COSTS and row.value is not None for row in rows)
        return (*([flow_hls4ml.assumed(self)] if known and not own else []), *resources.notes(self.device, told))

    def artefact(self, names: Collection[str], runtime: Runtime) -> tuple[str, ...]:
        """The bitstream where there is one, else the network's own sources and memories, without hls4ml's libraries."""
        image = f"{flow_rtl.BUILD}{flow_rtl.IMAGE}"
        if image in names:
            return (image,)
        folder = PurePosixPath(runtime.file).parent
        own = (folder, folder / "weights")
        return tuple(sorted(n for n in names if PurePosixPath(n).parent in own and PurePosixPath(n).suffix in SOURCES))

    def estimate_segment(self, segment: Segment, layers: Sequence[Layer], precision: str) -> tuple[Figure, ...]:
        return ()  # `complete` synthesises, or estimates from the integers themselves

    def complete(self, bundle: Bundle, progress: Callable[[str], None] = runner.silent) -> Completed:
        completed = flow_rtl.completed if self.flow == "rtl" else flow_hls4ml.completed
        try:
            return completed(bundle, self, progress)
        except tool_process.TookTooLong as error:
            if self.flow == "rtl":
                less = "--set tools=none" + (" (or synthesis)" if self.is_lattice and self.tools != "synthesis" else "")
                error.hint = f"--set tool_minutes=N gives the tools more than {self.tool_minutes:g} minutes"
                error.hint += "" if error.tool in flow_rtl.SIMULATING else f", {less} leaves them out"
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


def _ahead(model: Model, passes: Sequence[Pass]) -> Model | None:
    """The model with the nodes that it has after passes, still in float, and with those that quantising merges into layers; None
    where only the passes themselves can tell."""
    from edgesdk_converters.calibration import Samples
    from edgesdk_converters.fold import Fold
    from edgesdk_converters.passes import Given
    from edgesdk_converters.quantize import Quantize, named
    from edgesdk_converters.spelt_out import joined

    for step in passes:
        if isinstance(step, Fold):
            model = step(model, Given(model, Samples({}, "no samples")))
        elif isinstance(step, Quantize):
            model = joined(named(model), (*step.keep, *step.only, *step.node_bits))
        elif step.name not in CHANGING_NOTHING:
            return None
    return model


def _refused(draft: Draft, merged: Collection[str] = ()) -> Iterator[EdgeError]:
    """What the integer reader will say of nodes that it has no rule for, and of inputs, whatever numbers they are rounded to.

    Nodes that are parts of roundings, compute on stored values alone, or are of the operators `merged`, are left to it.
    """
    import onnx

    from edgesdk_converters.integer_draft import FIXED_HINT, used
    from edgesdk_converters.integer_reader import NO_RULE
    from edgesdk_converters.integer_rules import REASONS, RULES

    needed = used(draft.outputs, draft.makers, {})
    rounded = any(node.op_type in INTEGERS for node in draft.nodes)
    for node in draft.nodes:
        known = node.op_type in RULES or node.op_type in merged or (rounded and node.op_type in ROUNDINGS)
        if not needed.intersection(node.output) or all(name in draft.stored for name in node.input if name):
            continue
        if node.domain not in ("", "ai.onnx"):
            yield draft.refuse(node, f"it is an operator of {node.domain}, not of ONNX itself", FIXED_HINT)
        elif not known:
            yield draft.refuse(node, *REASONS.get(node.op_type, NO_RULE))
    for info in draft.proto.graph.input if not rounded else ():  # else inputs have roundings of their own, which name them
        if info.name in needed and info.name not in draft.stored:
            rounding = onnx.NodeProto(name=f"{info.name}/fixed:DequantizeLinear", op_type="DequantizeLinear")
            try:
                draft.shape(rounding, info.name)
            except Unsupported as error:
                yield error


def _check_names(ahead: Model, own: Mapping[str, int], before: Collection[str]) -> None:
    """Raise RecipeError for a reuse factor of a node that cannot be there when hls4ml gets the network; `before` were there once.

    Outputs and roundings are operations of the network too; nodes that passes put in the place of one are NODE/something.
    """
    from edgesdk_converters.quantize import weighted

    there = {node.name for node in ahead.proto.graph.node} | {output.name for output in ahead.signature.outputs}
    for name in own:
        made = name.endswith(ROUNDING) or any(name.startswith(f"{node}/") for node in there if node)
        if name not in there and not made:
            gone = "is no node of the network" + (" any more once it is folded" if name in before else "")
            told = f"a reuse factor for {name!r}, which {gone}; its layers are {', '.join(weighted(ahead))}"
            raise RecipeError(told, "name one of its layers")
