"""What TensorRT asks of single operators beyond their types: one small rule each, in a table by operator.

The rules are the notes and limits of jetson_support.toml (onnx/onnx-tensorrt docs/operators.md), made to be checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from edgesdk_converters.graph import ValueType


@dataclass(frozen=True)
class Look:
    """A node with what is known around it. `constants` are stored tensors, None where the value is an attribute's."""

    node: onnx.NodeProto
    types: Mapping[str, ValueType]
    constants: Mapping[str, onnx.TensorProto | None]
    tensorrt: tuple[int, ...]
    dtypes: frozenset[str]
    limits: Mapping[str, Any]

    def attribute(self, name: str) -> onnx.AttributeProto | None:
        return next((a for a in self.node.attribute if a.name == name), None)

    def number(self, name: str, default: int = 0) -> int:
        found = self.attribute(name)
        return default if found is None else int(found.i)

    def text(self, name: str, default: str = "") -> str:
        found = self.attribute(name)
        return default if found is None else found.s.decode()

    def ints(self, name: str) -> tuple[int, ...]:
        found = self.attribute(name)
        return () if found is None else tuple(found.ints)

    def given(self, index: int) -> str:
        """The name of an input, empty where it is left out."""
        return self.node.input[index] if index < len(self.node.input) else ""

    def shape(self, name: str) -> tuple[int | str, ...] | None:
        kind = self.types.get(name)
        return None if kind is None else kind.shape

    def dtype(self, name: str) -> str:
        from edgesdk_converters.graph import numpy_name

        kind = self.types.get(name)
        return "" if kind is None or kind.elem_type == 0 else numpy_name(kind.elem_type)

    def constant(self, index: int) -> NDArray[Any] | None:
        from onnx import numpy_helper

        tensor = self.constants.get(self.given(index))
        return None if tensor is None else numpy_helper.to_array(tensor)


Rule = Callable[[Look], str]
"""Why TensorRT does not take the node, empty where it does."""


def reasons(look: Look) -> Iterator[str]:
    """All rules of the node's operator that it breaks."""
    for rule in RULES.get(look.node.op_type, ()):
        reason = rule(look)
        if reason:
            yield reason


def _stored(index: int, what: str) -> Rule:
    def rule(look: Look) -> str:
        name = look.given(index)
        return f"{what} that is computed, not constant" if name and name not in look.constants else ""

    return rule


def _zero(attribute: str, reason: str) -> Rule:
    return lambda look: reason if look.number(attribute) else ""


def _one_of(attribute: str, default: str, limit: str, what: str) -> Rule:
    def rule(look: Look) -> str:
        got, allowed = look.text(attribute, default), look.limits[limit]["value"]
        return "" if got in allowed else f"{what} {got}; TensorRT has {', '.join(allowed)}"

    return rule


def _before(version: tuple[int, ...], rule: Rule) -> Rule:
    """A rule that fell in that version of TensorRT."""
    return lambda look: rule(look) if look.tensorrt < version else ""


def _pooling(look: Look) -> str:
    if any(value != 1 for value in look.ints("dilations")):
        return "dilated pooling"
    axes = len(look.ints("kernel_shape"))
    return "" if axes in look.limits["conv_pool_spatial_dims"]["value"] else f"{axes}-dimensional pooling; TensorRT has 2D and 3D"


def _only_first_output(reason: str) -> Rule:
    return lambda look: reason if any(look.node.output[1:]) else ""


def _resize_policy(look: Look) -> str:
    policy = look.text("keep_aspect_ratio_policy", "stretch")
    return "" if policy == "stretch" else f"aspect ratio policy {policy}; TensorRT has stretch"


def _resize_axes(look: Look) -> str:
    axes, shape = look.ints("axes"), look.shape(look.given(0))
    if not axes or shape is None or not look.given(2) or list(axes) == list(range(len(shape))):
        return ""
    return f"scales for axes {list(axes)} only; TensorRT takes them for all"


def _topk(look: Look) -> str:
    if not look.number("sorted", 1):
        return "sorted = 0"
    count, most = look.constant(1), look.limits["topk_k_max"]["value"]
    return f"K = {int(count.max())}; TensorRT ends at {most}" if count is not None and count.max() > most else ""


def _lrn(look: Look) -> str:
    size = look.number("size")
    return "" if size % 2 == 1 and size <= 15 else f"size {size}; TensorRT takes odd sizes up to 15"


def _same_activations(look: Look) -> str:
    found = look.attribute("activations")
    names = [] if found is None else [name.decode().lower() for name in found.strings]
    half = len(names) // 2
    if look.text("direction") == "bidirectional" and names[:half] != names[half:]:
        return "other activations forward than backward"
    return ""


def _no_reduction(look: Look) -> str:
    got = look.text("reduction", "none")
    return "" if got == "none" else f"reduction {got}"


def _plain_constant(look: Look) -> str:
    for name in ("sparse_value", "value_string", "value_strings"):
        if look.attribute(name) is not None:
            return name
    return ""


def _first_output_type(look: Look) -> str:
    got = look.dtype(look.node.output[0])
    return "" if not got or got in look.dtypes else f"it makes {got}; TensorRT takes {', '.join(sorted(look.dtypes))}"


def _not_training(look: Look) -> str:
    if not look.given(2):
        return ""
    value = look.constant(2)
    return "" if value is not None and not value.any() else "training_mode that is not a constant false"


def _einsum(look: Look) -> str:
    equation = look.text("equation").replace(" ", "")
    terms = equation.split("->")[0].split(",")
    if "." in equation:
        return "an ellipsis in its equation"
    if any(len(set(term)) != len(term) for term in terms):
        return "a diagonal in its equation"
    sizes: dict[str, set[int | str]] = {}
    for index, term in enumerate(terms):
        for letter, size in zip(term, look.shape(look.given(index)) or (), strict=False):
            sizes.setdefault(letter, set()).add(size)
    wide = next((letter for letter, found in sizes.items() if 1 in found and len(found) > 1), "")
    return f"broadcasting over {wide!r}" if wide else ""


def _rank(index: int, *ranks: int) -> Rule:
    def rule(look: Look) -> str:
        shape = look.shape(look.given(index)) if look.given(index) else None
        if shape is None or len(shape) in ranks:
            return ""
        return f"input {index} has {len(shape)} axes; TensorRT takes {' or '.join(map(str, ranks))}"

    return rule


def _equal_pads(look: Look) -> str:
    pads = look.ints("pads")
    return "" if pads[: len(pads) // 2] == pads[len(pads) // 2 :] else f"pads {list(pads)}: they differ between begin and end"


def _static_axis(look: Look) -> str:
    shape, axis = look.shape(look.given(0)), look.number("axis", -1)
    return "its axis is dynamic" if shape is None or not isinstance(shape[axis], int) else ""


def _static_input(look: Look) -> str:
    shape = look.shape(look.given(0))
    return "" if shape is not None and all(isinstance(dim, int) for dim in shape) else "its input is dynamic"


def _float_power(index: int, what: str) -> Rule:
    def rule(look: Look) -> str:
        got = look.dtype(look.given(index))
        return f"{what} of type {got}" if got.startswith(("int", "uint")) else ""

    return rule


def _quantised(look: Look) -> str:
    got = look.dtype(look.node.output[0] if look.node.op_type == "QuantizeLinear" else look.given(0))
    if got not in ("int8", "int4"):
        return f"it quantises to {got}; TensorRT on Orin has int8 and int4"
    if not look.given(2):
        return ""
    zero = look.constant(2)
    return "" if zero is not None and not zero.any() else "a zero point that is not a constant 0"


def _no_seed(look: Look) -> str:
    return "" if look.attribute("seed") is None else "a seed, which TensorRT ignores"


def _branches(look: Look) -> str:
    then, other = look.attribute("then_branch"), look.attribute("else_branch")
    if then is None or other is None:
        return ""
    for a, b in zip(then.g.output, other.g.output, strict=False):
        if a.name == b.name:
            return f"both branches name an output {a.name!r}"
        one, two = look.shape(a.name), look.shape(b.name)
        if one is not None and two is not None and len(one) != len(two):
            return f"branches whose outputs {a.name!r} and {b.name!r} have {len(one)} and {len(two)} axes"
    return ""


def _loop(look: Look) -> str:
    carried = len(look.node.input) - 2
    if len(look.node.output) > carried and look.given(0) not in look.constants:
        return "a scan output whose length is computed"
    body = look.attribute("body")
    if body is None:
        return ""
    for before, after in zip(body.g.input[2:], body.g.output[1:], strict=False):
        one, two = look.shape(before.name), look.shape(after.name)
        if one is not None and two is not None and one != two:
            return f"the value {before.name!r} that it carries changes its shape"
    return ""


def _attention(look: Look) -> str:
    if any(look.node.input[4:]):
        return "past keys and values"
    if look.attribute("softcap") is not None and look.attribute("softcap").f:  # type: ignore[union-attr]
        return "softcap"
    return ""


def _scatter_axis(look: Look) -> str:
    axis = look.number("axis", -2)
    return "" if axis == -2 else f"axis {axis}; TensorRT takes -2"


_AXES = (_stored(1, "axes"),)
_POOL = (_pooling,)
_SEED = (_no_seed,)
_RECURRENT = (
    _zero("layout", "layout 1; TensorRT takes layout 0"),
    _zero("input_forget", "input_forget"),
    _same_activations,
)
_SCALE = (_stored(1, "a frame step"), _stored(2, "a window"))
RULES: Mapping[str, tuple[Rule, ...]] = {
    "Attention": (_attention, _only_first_output("more than the first output"), *(_rank(i, 4) for i in range(4))),
    "AveragePool": _POOL,
    "Constant": (_plain_constant, _first_output_type),
    "ConstantOfShape": (_first_output_type,),
    "CumSum": (_stored(1, "an axis"),),
    "DFT": (_stored(2, "an axis"),),
    "DeformConv": (_rank(0, 3, 4), _equal_pads),
    "DequantizeLinear": (_quantised,),
    "Dropout": (_not_training,),
    "Einsum": (_before((10, 12), _einsum),),
    "EyeLike": (_static_input,),
    "GRU": _RECURRENT,
    "GridSample": (_before((11,), _rank(0, 4)), _rank(0, 4, 5)),
    "Hardmax": (_static_axis,),
    "If": (_branches,),
    "LRN": (_lrn,),
    "LSTM": _RECURRENT,
    "LayerNormalization": (_only_first_output("more than the first output"),),
    "Loop": (_loop,),
    "LpPool": _POOL,
    "MaxPool": (*_POOL, _only_first_output("the Indices output")),
    "OneHot": (_stored(1, "a depth"),),
    "Pad": (
        _one_of("mode", "constant", "pad_modes", "mode"),
        _before((10, 4), lambda look: "an axes input" if look.given(3) else ""),
    ),
    "Pow": (_before((10, 12), _float_power(0, "a base")), _before((10, 8), _float_power(1, "an exponent"))),
    "QuantizeLinear": (_quantised,),
    "RNN": _RECURRENT,
    "Resize": (
        _one_of("mode", "nearest", "resize_modes", "mode"),
        _one_of("coordinate_transformation_mode", "half_pixel", "resize_coordinate_modes", "coordinate mode"),
        _one_of("nearest_mode", "round_prefer_floor", "resize_nearest_modes", "nearest mode"),
        _zero("antialias", "antialiasing"),
        _resize_policy,
        _resize_axes,
    ),
    "STFT": _SCALE,
    "Scatter": (_no_reduction,),
    "ScatterElements": (_no_reduction,),
    "ScatterND": (_no_reduction,),
    "Squeeze": _AXES,
    "TensorScatter": (_rank(0, 4), _rank(1, 4), _scatter_axis),
    "TopK": (_topk,),
    "Unsqueeze": _AXES,
    "Upsample": (_one_of("mode", "nearest", "resize_modes", "mode"),),
    **dict.fromkeys(("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"), _SEED),
    **dict.fromkeys(
        ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"), _AXES
    ),
    **dict.fromkeys(("ReduceSum", "ReduceSumSquare"), _AXES),
}
