"""Quantize: weights, and mostly activations, as small integers, in the form that a target runs fastest."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from . import graph, qdq
from .affine import merged
from .errors import MissingExtra, ModelError, PassError
from .fixed_inputs import settled
from .fixed_widths import MOVES
from .model import Model, Step
from .observe import Method, observe
from .passes import Given
from .spelt_out import joined

try:
    import onnx
    from onnx import numpy_helper, version_converter
except ImportError as _error:
    raise MissingExtra("convert", "onnx") from _error

Flavour = Literal["u8s8", "s8s8", "tensorrt", "qoperator", "dynamic", "weights", "stored", "fixed"]
Calibration = Literal["auto", "minmax", "percentile", "entropy", "mse"]
Rounding = Literal["half_even", "half_up", "truncate"]
STATIC = ("u8s8", "s8s8", "tensorrt", "qoperator", "fixed")
LEARNING = ("u8s8", "s8s8", "tensorrt", "fixed")
"""Flavours whose integers can be trained: those written as pairs of QuantizeLinear and DequantizeLinear."""
WIDTHS: Mapping[str, Sequence[int]] = {"weights": (4, 8), "stored": range(2, 9), "fixed": range(2, 17)}
"""Of the flavours that know others than 8 bits."""
PER_CHANNEL_OPSET = 13
LISTED_NODES = 30
_OTHER_FLOATS = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
_SMALL_INTEGERS = (
    onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT16, onnx.TensorProto.UINT16, onnx.TensorProto.INT4,
    onnx.TensorProto.UINT4,
)  # fmt: skip
_FAILURES = (
    RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError,
    onnx.checker.ValidationError, onnx.shape_inference.InferenceError,
)  # fmt: skip


@dataclass(frozen=True)
class Quantize:
    """float32 to integers where the flavour has an integer form; inputs and outputs of the model keep their types.

    `flavour`: `u8s8`, `s8s8` (CPU: unsigned or signed activations, signed weights, QDQ), `tensorrt` (explicit quantisation:
    symmetric, biases in float), `qoperator` (QLinear operators), `dynamic` (Gemm and MatMul only, ranges at run time),
    `weights` (8 or 4 `bits`, activations in float; dense layers as MatMulNBits), `stored` (2 to 8 `bits`, smaller in the file
    alone), `fixed` (fixed point for logic: 2 to 16 `bits`, scales that are powers of two, activations rounded by `rounding`;
    weights have one scale an output channel, which logic gets by wiring, or without `per_channel` one a layer).

    `widths` gives single nodes other `bits` under flavour fixed, each written NODE=BITS: to their weights and to what they
    compute, an activation function behind them included; what a model reads has the width of its widest reader.
    `calibration` chooses the ranges of activations: `auto` is `minmax`, and `mse` below 8 bits, where a range that holds every
    value leaves too few steps for most of them; `percentile` is that of its method. `reduce_range` takes 7 bits for
    weights, without which x86 CPUs that lack VNNI saturate. `bias_correction` moves biases so that each channel's mean stays
    (Nagel et al. 2019, arXiv 1906.04721). Nodes named in `keep` stay in float; if `only` is not empty, all others do.
    `qat` is how many epochs of quantisation-aware training follow: the integers learn the answers of the source model, and the
    labels where there are some, at `qat_learning_rate`, their scales staying as they are.
    `repair` is read by the export: whether other options are tried when the accuracy contract breaks.
    """

    name: ClassVar[str] = "quantize"
    flavour: Flavour = "u8s8"
    bits: int = 8
    widths: tuple[str, ...] = ()
    calibration: Calibration = "auto"
    percentile: float = 99.99
    rounding: Rounding = "half_even"
    per_channel: bool = True
    reduce_range: bool = False
    bias_correction: bool = False
    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    qat: int = 0
    qat_learning_rate: float = 5e-4
    repair: bool = True

    def __post_init__(self) -> None:
        allowed = WIDTHS.get(self.flavour, (8,))
        if self.bits not in allowed:
            raise PassError(self.name, f"flavour {self.flavour} with bits = {self.bits}; allowed: {_listed(allowed)}")
        if self.widths and self.flavour != "fixed":
            raise PassError(self.name, f"flavour {self.flavour} with widths; only flavour fixed has nodes of several widths")
        for entry in self.widths:
            node, _, wide = entry.rpartition("=")
            if not node or not wide.isdecimal() or int(wide) not in allowed:
                raise PassError(self.name, f"widths has the entry {entry!r}; allowed: NODE=BITS, BITS {_listed(allowed)}")
        if not self.per_channel and self.flavour != "fixed":
            raise PassError(self.name, f"flavour {self.flavour} without per_channel; only flavour fixed can do without")
        if self.rounding != "half_even" and self.flavour != "fixed":
            raise PassError(self.name, f"flavour {self.flavour} with rounding {self.rounding}; only flavour fixed has a choice")
        if self.bias_correction and self.flavour == "dynamic":
            raise PassError(self.name, "flavour dynamic has no bias correction; all others have it")
        if self.qat and self.flavour not in LEARNING:
            raise PassError(self.name, f"flavour {self.flavour} with qat; those that can learn are {', '.join(LEARNING)}")
        if self.qat and self.rounding != "half_even":
            raise PassError(self.name, f"qat with rounding {self.rounding}; only half_even lets gradients through")
        if not 50 < self.percentile <= 100:
            raise PassError(self.name, f"percentile is {self.percentile}; allowed: above 50, up to 100")

    @property
    def ranges(self) -> Method:
        """How the ranges of activations are chosen."""
        return self._ranges(self.bits)

    def _ranges(self, bits: int) -> Method:
        if self.calibration == "auto":
            return "mse" if bits < 8 else "minmax"
        return self.calibration

    @property
    def node_bits(self) -> dict[str, int]:
        """What `widths` says: bits by node."""
        return {node: int(wide) for node, _, wide in (entry.rpartition("=") for entry in self.widths)}

    @property
    def needs_calibration(self) -> bool:
        """Whether it looks at activations on real data: for their ranges, or for what rounded weights do to their means."""
        return self.flavour in STATIC or self.bias_correction

    def __call__(self, model: Model, given: Given) -> Model:
        if self.needs_calibration and given.train.synthetic:
            wanted = "the ranges of activations" if self.flavour in STATIC else "the means of activations for bias correction"
            raise PassError(
                self.name,
                f"flavour {self.flavour} takes {wanted} from data, and there are only {given.train.origin}",
                "give real inputs with --train FILE.npz (or --data, of which a part is then used)",
            )
        if self.needs_calibration and not len(given.train):
            raise PassError(
                self.name,
                f"no sample of {given.train.origin} is left to calibrate: a file that is alone is split, 80 % to calibrate and "
                "20 %, at least one, to check; what equals one of those is left out",
                "give 2 or more different samples (100 or more are usual), or --train and --data apart",
            )
        model = named(model)
        if self.flavour == "fixed":
            asked = (*self.keep, *self.only, *self.node_bits)
            _refuse_other_floats(model, self.keep, self.only)
            model = merged(joined(model, asked), (*self.keep, *self.only), self.node_bits)
        nodes = self.nodes(model)
        if not nodes:
            wanted = "weighted layers" if self.flavour != "dynamic" else "Gemm or MatMul nodes with constant weights"
            told = f"no {wanted} in {model.name} to quantise"
            if found := weighted(model):
                told += f"; its {len(found)} layers are kept, are no float32, or too small to gain anything"
            hint = "take --precision fp32 or fp16"
            if self.flavour == "fixed":
                hint = "fixed point is for networks with Conv, Gemm or MatMul and stored float32 weights"
            raise PassError(self.name, told, hint)
        proto, note = self._quantised(model, nodes, given)
        left = len(weighted(model)) - len([node for node in nodes if node in weighted(model)])
        told = f"{self.flavour}: {len(weighted(model)) - left} weighted layers quantised, {left} left in float"
        options: dict[str, Any] = {"flavour": self.flavour} | ({"bits": self.bits} if self.bits != 8 else {})
        options |= {"widths": list(self.widths)} if self.widths else {}
        try:
            made = model.changed(proto, Step(self.name, options, f"{told}{note}"))
        except ModelError as error:
            raise PassError(
                self.name, f"the quantised model is not valid: {error.message}", "take another flavour, or --precision fp16"
            ) from error
        return self._learned(made, given) if self.qat else made

    def _learned(self, made: Model, given: Given) -> Model:
        from .train import Training, learned

        return learned(made, given, Training(epochs=self.qat, learning_rate=self.qat_learning_rate))

    def nodes(self, model: Model) -> list[str]:
        """Names of the nodes that this pass turns to integers, in graph order."""
        other = _of_other_floats(model) | _of_integers(model)
        if self.flavour in qdq.FORMS:
            inside = _within(model, other)
            wanted = {n.name for n in inside if n.op_type in qdq.FORMS[self.flavour].operators}
        elif self.flavour == "fixed":
            from .fixed import roundable

            wanted = set(roundable(model))
        elif self.flavour == "dynamic":
            wanted = {n.name for n in _with_constant_weights(model) if n.op_type in ("Gemm", "MatMul")}
        else:
            from .weight_only import codable

            wanted = set(codable(model, self.bits))
        self._check_names(model)
        kept = {*self.keep, *other, *(name for name in wanted if name.endswith(graph.ROTATION))}
        chosen = [n.name for n in model.proto.graph.node if n.name in wanted and n.name not in kept]
        if self.only:
            chosen = [name for name in chosen if name in self.only]
        return chosen if set(chosen) & set(weighted(model)) else []

    def layers(self, model: Model) -> list[str]:
        """Those of `nodes` that do matrix work with stored weights."""
        heavy = set(weighted(model))
        return [name for name in self.nodes(model) if name in heavy]

    def _check_names(self, model: Model) -> None:
        known = {node.name: node for node in model.proto.graph.node}
        for option, names in (("keep", self.keep), ("only", self.only), ("widths", tuple(self.node_bits))):
            for name in names:
                if name not in known:
                    layers = weighted(model)
                    others = [one for one, node in known.items() if one not in layers and node.op_type not in MOVES]
                    told = f"{option} names the node {name!r}, which is not there, or was folded or merged into another"
                    raise PassError(self.name, f"{told}; there are {_some([*layers, *others])}", "name one of these")

    def _quantised(self, model: Model, nodes: Sequence[str], given: Given) -> tuple[onnx.ModelProto, str]:
        if self.flavour == "dynamic":
            return self._run(lambda: qdq.dynamic(model.copy_proto(), nodes, reduce_range=self.reduce_range)), ""
        if self.flavour in ("weights", "stored"):
            from .weight_only import weight_only

            packed = self.flavour == "weights"

            def stored(source: Model) -> tuple[onnx.ModelProto, str]:
                proto, told = weight_only(source, self.bits, packed=packed, only=nodes)
                return proto, f"; {told}"

            return self._corrected(model, given, stored)
        form = qdq.FORMS.get(self.flavour)
        widths = self.node_bits
        for name in widths:
            if name not in nodes:
                raise PassError(self.name, f"widths names the node {name!r}, which is not quantised",
                                "name layers, activation functions, sums: nodes that compute")  # fmt: skip

        def observed(source: Model, bits: int) -> Mapping[str, tuple[float, float]]:
            method = self._ranges(bits)
            key = source.digest, method, bits if method == "mse" else 0
            if key not in seen:
                seen[key] = observe(
                    source, given.train, method=method, percentile=self.percentile, bits=bits,
                    symmetric=form is not None and form.symmetric, progress=given.progress, cache=given.cache,
                )  # fmt: skip
            return seen[key]

        seen: dict[tuple[str, str, int], Mapping[str, tuple[float, float]]] = {}
        inputs: Mapping[str, int] = {}
        scaled = ""
        if form is None:
            narrowing = self.calibration == "auto"
            inputs, ranges, scaled = settled(model, nodes, given.train, self.bits, widths, observed, narrowing=narrowing)
        else:
            ranges = dict(observed(model, self.bits))
        note = f"; {self.ranges} ranges from {len(given.train)} of {given.train.origin}{scaled}"

        floats = {node.input[0] for node in model.proto.graph.node if node.name.endswith(graph.ROTATION)}

        def once(source: Model) -> tuple[onnx.ModelProto, str]:
            if form is None:
                from .fixed import fixed_point

                proto, told = fixed_point(
                    source, ranges, nodes, bits=self.bits, rounding=self.rounding, per_channel=self.per_channel, widths=widths,
                    inputs=inputs,
                )  # fmt: skip
                return proto, f"; {told}"
            static = self._run(
                lambda: qdq.static(source.copy_proto(), form, ranges, nodes, reduce_range=self.reduce_range, floats=floats)
            )
            return static, "; 7-bit weights" if self.reduce_range else ""

        proto, told = self._corrected(model, given, once)
        return proto, note + told

    def _corrected(
        self, model: Model, given: Given, once: Callable[[Model], tuple[onnx.ModelProto, str]]
    ) -> tuple[onnx.ModelProto, str]:
        """What `once` makes of the model, with its biases moved first if that is asked for."""
        proto, told = once(model)
        if not self.bias_correction:
            return proto, told
        from .bias import corrected

        given.progress("correcting biases")
        moved = corrected(model, model.changed(proto), given.train, given.progress)
        proto, told = once(model.changed(moved))
        return proto, f"; biases corrected{told}"

    def _run(self, work: Callable[[], onnx.ModelProto]) -> onnx.ModelProto:
        try:
            return work()
        except _FAILURES as error:
            raise PassError(
                self.name, f"ONNX Runtime's quantiser failed: {type(error).__name__}: {error}", "take another flavour"
            ) from error


def named(model: Model) -> Model:
    """The model with a unique name for every node, constants stored, and an opset that has per-channel quantisation (13)."""
    proto = model.copy_proto()
    steps = []
    if model.opset < PER_CHANNEL_OPSET:
        try:
            proto = version_converter.convert_version(proto, 17)
        except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
            raise PassError(
                "quantize", f"opset {model.opset} has no per-channel quantisation, and cannot be raised: {error}",
                "export the model again with opset 13 or newer",
            ) from error  # fmt: skip
        steps.append(Step("opset", note=f"opset {model.opset} raised to 17 for per-channel quantisation"))
    taken: set[str] = set()
    changed = graph.store_constants(proto.graph)
    for node in proto.graph.node:
        name = node.name or f"{node.op_type}_{node.output[0]}"
        unique, count = name, 1
        while unique in taken:
            count += 1
            unique = f"{name}_{count}"
        changed |= unique != node.name
        node.name = unique
        taken.add(unique)
    return model.changed(proto, *steps) if steps or changed else model


def weighted(model: Model) -> list[str]:
    """Names of the nodes that do matrix work with stored weights, in graph order."""
    return [node.name for node in _with_constant_weights(model)]


def _refuse_other_floats(model: Model, keep: Sequence[str], only: Sequence[str]) -> None:
    """Raises PassError for the first layer to be quantised of half or double floats."""
    other = _of_other_floats(model)
    types = {name: kind.elem_type for name, kind in graph.value_types(model.proto.graph).items()}
    for node in model.proto.graph.node:
        if node.op_type in qdq.WEIGHTED and node.name in other and node.name not in keep and (not only or node.name in only):
            kind = next(types[name] for name in (*node.input, *node.output) if types.get(name) in _OTHER_FLOATS)
            raise PassError(
                "quantize", f"{node.op_type} computes in {graph.numpy_name(kind)}; fixed point begins with float32",
                "export the model in float32, in torch after model.float()", node=node.name,
            )  # fmt: skip


def _of_other_floats(model: Model) -> set[str]:
    """Names of the nodes that read or give floats other than float32 (fp16, say), which stay as they are."""
    types = {name: kind.elem_type for name, kind in graph.value_types(model.proto.graph).items()}
    return {
        node.name
        for node in model.proto.graph.node
        if any(types.get(name) in _OTHER_FLOATS for name in (*node.input, *node.output))
    }


def _of_integers(model: Model) -> set[str]:
    """Names of the layers whose weights were made integers before, and of the nodes that make floats of those."""
    kinds = {tensor.name: tensor.data_type for tensor in model.proto.graph.initializer}
    constant, coded = set(kinds), {name for name, kind in kinds.items() if kind in _SMALL_INTEGERS}
    found = set()
    for node in model.proto.graph.node:
        read = {name for name in node.input if name}
        if read <= constant:
            constant.update(node.output)
            if read & coded:
                coded.update(node.output)
                found.add(node.name)
        elif node.op_type in qdq.WEIGHTED and coded & set(node.input[:2]):
            found.add(node.name)
    return found


def _within(model: Model, left_out: Collection[str] = ()) -> list[onnx.NodeProto]:
    """Weighted layers, and what lies between them: other operators only where all that they read and all that reads them is so.

    A residual sum that a LayerNormalization reads, its epsilon, or the cube inside a GELU would lose in eight bits what the
    float operators beside them need, and gain nothing: their neighbours want floats anyway. A mean over an image is an end.
    """
    operators = (*qdq.WEIGHTED, *qdq.BETWEEN)
    nodes = [node for node in model.proto.graph.node if node.op_type in operators and node.name not in left_out]
    maker = {name: node.name for node in model.proto.graph.node for name in node.output}
    readers: dict[str, set[str]] = {}
    for node in graph.nodes(model.proto):
        if not _pools(node, model):
            for name in node.input:
                readers.setdefault(name, set()).add(node.name)
    inside = {node.name for node in nodes}
    while True:
        left = {
            node.name
            for node in nodes
            if node.op_type not in qdq.WEIGHTED
            and not (
                all(maker[name] in inside for name in node.input if name in maker)
                and all(readers.get(name, set()) <= inside for name in node.output)
            )
        }
        if not left & inside:
            return [node for node in nodes if node.name in inside]
        inside -= left


def _pools(node: onnx.NodeProto, model: Model) -> bool:
    """Whether it reduces the two axes of an image, as global pooling is often written."""
    if node.op_type not in ("ReduceMean", "ReduceMax"):
        return False
    axes = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "axes"), None)
    if axes is None and len(node.input) > 1:
        stored = next((tensor for tensor in model.proto.graph.initializer if tensor.name == node.input[1]), None)
        axes = None if stored is None else numpy_helper.to_array(stored).tolist()
    return axes is not None and len(axes) == 2


def _with_constant_weights(model: Model) -> list[onnx.NodeProto]:
    stored = {tensor.name for tensor in model.proto.graph.initializer}
    return [
        node for node in model.proto.graph.node if node.op_type in qdq.WEIGHTED and any(name in stored for name in node.input[:2])
    ]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED_NODES]) + (f" and {len(names) - LISTED_NODES} more" if len(names) > LISTED_NODES else "")


def _listed(values: Sequence[int]) -> str:
    return f"{values[0]} to {values[-1]}" if len(values) > 2 else " or ".join(map(str, values))
