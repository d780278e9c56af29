"""Small random networks of the operators that trained models are made of: one for each seed, the same each time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgesdk_converters.model import Model

Array = NDArray[Any]
SEEDS = range(50)
_FAMILIES = "isivisi"
"""What networks read, by seed: images, sequences or vectors."""


@dataclass(frozen=True)
class Value:
    """A tensor of the graph: its name and shape."""

    name: str
    shape: tuple[int, ...]


class Net:
    """A graph that grows node by node; values are named after the block that makes them."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng([seed, 31])
        self.favourite = ACTIVATIONS[seed % len(ACTIVATIONS)]
        self.opset = int(self.rng.integers(13, 21))
        self.naming = str(self.rng.choice(["own", "own", "own", "of the output", "none"]))
        self.as_nodes = float(self.rng.choice([0.0, 0.0, 0.15]))
        """Share of constants that are Constant nodes instead of initialisers."""
        self.block = ""
        self.count = 0
        self.nodes: list[onnx.NodeProto] = []
        self.stored: dict[str, Array] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.numbers: dict[tuple[float, str], str] = {}

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def pick(self, choices: Sequence[Any]) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def input(self, name: str, shape: tuple[int, ...], kind: int = TensorProto.FLOAT) -> Value:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return Value(name, shape)

    def output(self, value: Value) -> None:
        if value.name not in [info.name for info in self.outputs]:
            self.outputs.append(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, value.shape))

    def many(self, kind: str, inputs: Sequence[Value | str], shapes: Sequence[tuple[int, ...]], **options: Any) -> list[Value]:
        """A node with several outputs."""
        self.count += 1
        stem = f"{self.block}/{kind}_{self.count}"
        names = [stem if len(shapes) == 1 else f"{stem}.{index}" for index in range(len(shapes))]
        title = {"own": f"{stem}/node", "of the output": names[0], "none": ""}[self.naming]
        read = [value.name if isinstance(value, Value) else value for value in inputs]
        self.nodes.append(helper.make_node(kind, read, names, name=title, **options))
        return [Value(name, tuple(shape)) for name, shape in zip(names, shapes, strict=True)]

    def node(self, kind: str, inputs: Sequence[Value | str], shape: tuple[int, ...], **options: Any) -> Value:
        return self.many(kind, inputs, [shape], **options)[0]

    def constant(self, values: Any, what: str = "constant") -> str:
        """A stored tensor of its own; seldom a Constant node."""
        self.count += 1
        name = f"{self.block}/{what}_{self.count}"
        array = np.asarray(values)
        if self.chance(self.as_nodes):
            self.nodes.append(helper.make_node("Constant", [], [name], name=name, value=numpy_helper.from_array(array)))
        else:
            self.stored[name] = array
        return name

    def number(self, value: float, kind: str = "float32") -> str:
        """A stored scalar, which other nodes may read too."""
        key = (float(value), kind)
        if key not in self.numbers or self.chance(0.5):
            self.numbers[key] = self.constant(np.array(value, kind), "number")
        return self.numbers[key]

    def ints(self, values: Sequence[int]) -> str:
        return self.constant(np.array(values, np.int64), "ints")

    def normal(self, shape: tuple[int, ...], fan_in: int, gain: float = 1.0) -> Array:
        return (self.rng.standard_normal(shape) * gain / np.sqrt(fan_in)).astype(np.float32)

    def small(self, *shape: int) -> Array:
        return (0.1 * self.rng.standard_normal(shape)).astype(np.float32)

    def build(self) -> onnx.ModelProto:
        tensors = [numpy_helper.from_array(array, name) for name, array in self.stored.items()]
        graph = helper.make_graph(self.nodes, "random", self.inputs, self.outputs, tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


# --- parts of blocks


def conv(
    net: Net, x: Value, out: int, kernel: int = 3, stride: int = 1, groups: int = 1, dilation: int = 1, free: bool = False
) -> Value:
    """A convolution that keeps height and width but for the stride; `free`: it pads as it likes."""
    height, width = x.shape[2:]
    reach = dilation * (kernel - 1)
    pads = [reach // 2, reach // 2, reach - reach // 2, reach - reach // 2]
    options: dict[str, Any] = {"kernel_shape": [kernel, kernel], "pads": pads}
    way = net.pick(["valid", "lopsided", "auto"]) if free and min(height, width) > reach + 1 else "same"
    if way == "valid":
        options["pads"] = pads = [0, 0, 0, 0]
    elif way == "lopsided":
        options["pads"] = pads = [int(p) for p in net.rng.integers(0, kernel, 4)]
    elif way == "auto" and dilation == 1:
        del options["pads"]
        options["auto_pad"] = net.pick(["SAME_UPPER", "SAME_LOWER"])
        sizes = [-(-size // stride) for size in (height, width)]
    if "pads" in options:
        sizes = [(size + pads[i] + pads[i + 2] - reach - 1) // stride + 1 for i, size in enumerate((height, width))]
    if stride > 1 or net.chance(0.5):
        options["strides"] = [stride, stride]
    if groups > 1 or net.chance(0.3):
        options["group"] = groups
    if dilation > 1:
        options["dilations"] = [dilation, dilation]
    fan_in = x.shape[1] // groups * kernel**2
    read: list[Value | str] = [x, net.constant(net.normal((out, x.shape[1] // groups, kernel, kernel), fan_in, 1.4), "weight")]
    if net.chance(0.6):
        read.append(net.constant(net.small(out), "bias"))
    return net.node("Conv", read, (1, out, *sizes), **options)


def norm(net: Net, x: Value) -> Value:
    channels = x.shape[1]
    scale = net.rng.uniform(0.5, 1.5, channels).astype(np.float32)
    if net.chance(0.1) and x.shape[2:] and min(x.shape[2:]) > 3:
        return net.node("InstanceNormalization", [x, net.constant(scale), net.constant(net.small(channels))], x.shape)
    variance = net.rng.uniform(0.5, 1.5, channels).astype(np.float32)
    statistics = [net.constant(array, "norm") for array in (scale, net.small(channels), net.small(channels), variance)]
    return net.node("BatchNormalization", [x, *statistics], x.shape, epsilon=1e-5)


def gelu(net: Net, x: Value) -> Value:
    """By its error function, as exporters before opset 20 write it."""
    if net.opset >= 20 and net.chance(0.5):
        return net.node("Gelu", [x], x.shape)
    inner = net.node("Div", [x, net.number(1.4142135)], x.shape)
    inner = net.node("Add", [net.node("Erf", [inner], x.shape), net.number(1.0)], x.shape)
    return net.node("Mul", [net.node("Mul", [x, inner], x.shape), net.number(0.5)], x.shape)


ACTIVATIONS = (
    "Relu", "Clip", "LeakyRelu", "Sigmoid", "PRelu", "Gelu", "HardSwish", "Silu", "Tanh", "Elu",
)  # fmt: skip


def activation(net: Net, x: Value, kind: str = "") -> Value:
    kind = kind or net.pick([net.favourite, "Relu", net.pick(ACTIVATIONS)])
    if kind == "Clip":
        return net.node("Clip", [x, net.number(0.0), net.number(net.pick([1.0, 6.0]))], x.shape)
    if kind == "PRelu":
        slopes = (x.shape[1], *(1,) * (len(x.shape) - 2)) if net.chance(0.7) and len(x.shape) == 4 else (1,)
        return net.node("PRelu", [x, net.constant(net.rng.uniform(0.1, 0.4, slopes).astype(np.float32))], x.shape)
    if kind == "LeakyRelu":
        return net.node("LeakyRelu", [x], x.shape, alpha=0.1)
    if kind == "Gelu":
        return gelu(net, x)
    if kind == "Silu":
        return net.node("Mul", [x, net.node("Sigmoid", [x], x.shape)], x.shape)
    if kind == "HardSwish" and net.opset < 14:
        return net.node("Mul", [x, net.node("HardSigmoid", [x], x.shape, alpha=1 / 6, beta=0.5)], x.shape)
    return net.node(kind, [x], x.shape)


def reshape(net: Net, x: Value, shape: tuple[int, ...]) -> Value:
    """With its sizes written out, or one of them left open, or copied from the input."""
    wanted = list(shape)
    way = net.pick(["plain", "open", "copied"])
    if way == "open":
        wanted[int(net.rng.integers(len(wanted)))] = -1
    elif way == "copied" and wanted[0] == x.shape[0]:
        wanted[0] = 0
    return net.node("Reshape", [x, net.ints(wanted)], shape)


def transpose(net: Net, x: Value, order: Sequence[int]) -> Value:
    return net.node("Transpose", [x], tuple(x.shape[axis] for axis in order), perm=list(order))


def split(net: Net, x: Value, axis: int, sizes: Sequence[int]) -> list[Value]:
    shapes = [(*x.shape[:axis], size, *x.shape[axis + 1 :]) for size in sizes]
    return net.many("Split", [x, net.ints(sizes)], shapes, axis=axis)


def mean(net: Net, x: Value, axes: Sequence[int], keep: bool) -> Value:
    places = [axis % len(x.shape) for axis in axes]
    shape = tuple(1 if i in places else size for i, size in enumerate(x.shape) if keep or i not in places)
    if net.opset < 18:
        return net.node("ReduceMean", [x], shape, axes=list(axes), keepdims=int(keep))
    return net.node("ReduceMean", [x, net.ints(axes)], shape, keepdims=int(keep))


def layer_norm(net: Net, x: Value) -> Value:
    """Over the last axis, now and then with an outlier channel, as one node or the nine that it was before opset 17."""
    size = x.shape[-1]
    values = net.rng.uniform(0.5, 1.5, size).astype(np.float32)
    if net.chance(0.25):
        values[int(net.rng.integers(size))] *= 12
    scale, shift = net.constant(values, "scale"), net.constant(net.small(size), "shift")
    if net.opset >= 17 and net.chance(0.6):
        return net.node("LayerNormalization", [x, scale, shift], x.shape, axis=-1, epsilon=1e-5)
    centred = net.node("Sub", [x, mean(net, x, [-1], True)], x.shape)
    square = net.node("Pow", [centred, net.number(2.0)], x.shape) if net.chance(0.5) else net.node("Mul", [centred] * 2, x.shape)
    spread = mean(net, square, [-1], True)
    spread = net.node("Sqrt", [net.node("Add", [spread, net.number(1e-5)], spread.shape)], spread.shape)
    whitened = net.node("Div", [centred, spread], x.shape)
    return net.node("Add", [net.node("Mul", [whitened, scale], x.shape), shift], x.shape)


def matmul(net: Net, x: Value, out: int, gain: float = 1.0) -> Value:
    """A dense layer as MatMul, with or without the Add of a bias."""
    shape = (*x.shape[:-1], out)
    weight = net.constant(net.normal((x.shape[-1], out), x.shape[-1], gain), "weight")
    product = net.node("MatMul", [x, weight], shape)
    if net.chance(0.25):
        return product
    read: list[Value | str] = [product, net.constant(net.small(out), "bias")]
    return net.node("Add", read[:: net.pick([1, -1])], shape)


def gemm(net: Net, x: Value, out: int, gain: float = 1.0) -> Value:
    """A dense layer as Gemm: its weight turned or not, with factors or not, its bias a vector, a row, a number or missing."""
    options: dict[str, Any] = {}
    turned = net.chance(0.6)
    if turned:
        options["transB"] = 1
    if net.chance(0.2):
        options["alpha"] = float(net.pick([0.5, 2.0]))
    if net.chance(0.2):
        options["beta"] = float(net.pick([0.5, 2.0]))
    weight = net.normal((out, x.shape[1]) if turned else (x.shape[1], out), x.shape[1], gain)
    read: list[Value | str] = [x, net.constant(weight / np.float32(options.get("alpha", 1.0)), "weight")]
    bias = net.pick([(out,), (out,), (out,), (1, out), (1,), None])
    if bias is not None:
        read.append(net.constant(net.small(*bias), "bias"))
    return net.node("Gemm", read, (1, out), **options)


def pooled(net: Net, x: Value) -> Value:
    """The mean over an image, (1, C, 1, 1)."""
    if net.chance(0.7):
        return net.node("GlobalAveragePool", [x], (*x.shape[:2], 1, 1))
    return mean(net, x, [2, 3] if net.chance(0.5) else [-2, -1], True)


def flat(net: Net, x: Value) -> Value:
    shape = (1, int(np.prod(x.shape)))
    return net.node("Flatten", [x], shape) if net.chance(0.6) else reshape(net, x, shape)


Blocks = dict[str, Callable[[Net, Value], Value]]


def width(net: Net) -> int:
    return int(net.pick([4, 6, 8, 8, 12, 16, 16, 20, 9]))


# --- blocks that read and give images (1, C, H, W)


def plain(net: Net, x: Value) -> Value:
    small = min(x.shape[2:]) < 6
    kernel = int(net.pick([1, 3, 3]))
    dilation = int(net.pick([1, 1, 2])) if kernel > 1 and not small else 1
    x = conv(net, x, width(net), kernel, 1 if small else int(net.pick([1, 1, 2])), dilation=dilation, free=True)
    return activation(net, norm(net, x) if net.chance(0.6) else x)


def separable(net: Net, x: Value) -> Value:
    x = activation(net, norm(net, conv(net, x, x.shape[1], groups=x.shape[1])), "Relu")
    return activation(net, conv(net, x, width(net), 1))


def shuffled(net: Net, x: Value) -> Value:
    """Grouped convolution and channel shuffle."""
    groups = int(net.pick([2, 4]))
    inner = groups * int(net.pick([2, 4]))
    x = activation(net, conv(net, x, inner, 1), "Relu")
    x = conv(net, x, inner, 3, groups=groups)
    height, wide = x.shape[2:]
    parted = reshape(net, x, (1, groups, inner // groups, height, wide))
    return reshape(net, transpose(net, parted, (0, 2, 1, 3, 4)), x.shape)


def upwards(net: Net, x: Value) -> Value:
    """Transposed convolution, perhaps grouped."""
    stride = int(net.pick([1, 2])) if max(x.shape[2:]) <= 12 else 1
    kernel = int(net.pick([2, 3])) if stride == 2 else 3
    groups = 2 if x.shape[1] % 2 == 0 and net.chance(0.3) else 1
    out = 2 * int(net.pick([2, 4, 6]))
    weight = net.normal((x.shape[1], out // groups, kernel, kernel), x.shape[1] // groups * kernel**2 // stride**2, 1.2)
    read: list[Value | str] = [x, net.constant(weight, "weight")]
    if net.chance(0.6):
        read.append(net.constant(net.small(out), "bias"))
    pad = 1 if kernel == 3 else 0
    extra = 1 if stride == 2 and kernel == 3 else 0
    sizes = [(size - 1) * stride + kernel - 2 * pad + extra for size in x.shape[2:]]
    options: dict[str, Any] = {"strides": [stride] * 2, "pads": [pad] * 4, "group": groups}
    if extra:
        options["output_padding"] = [extra, extra]
    return activation(net, net.node("ConvTranspose", read, (1, out, *sizes), **options), "Relu")


def residual(net: Net, x: Value) -> Value:
    inner = width(net) if net.chance(0.5) else x.shape[1]
    way = activation(net, norm(net, conv(net, x, inner)), "Relu")
    out = x.shape[1] if net.chance(0.7) else width(net)
    way = conv(net, way, out)
    way = norm(net, way) if net.chance(0.5) else way
    short = x if out == x.shape[1] else conv(net, x, out, 1)
    return activation(net, net.node("Add", [way, short][:: net.pick([1, -1])], way.shape), "Relu")


def inverted(net: Net, x: Value) -> Value:
    """MobileNet's block: wide, depthwise, thin, and a sum without an activation."""
    wide = 2 * x.shape[1]
    way = activation(net, norm(net, conv(net, x, wide, 1)), net.pick(["Clip", "HardSwish", "Relu"]))
    way = activation(net, conv(net, way, wide, groups=wide), net.pick(["Clip", "Relu"]))
    way = conv(net, way, x.shape[1], 1)
    return net.node("Add", [x, way], x.shape)


def excited(net: Net, x: Value) -> Value:
    """Squeeze and excite: each channel by a gate that the mean of all decides."""
    gate = conv(net, activation(net, conv(net, pooled(net, x), 4, 1), "Relu"), x.shape[1], 1)
    gate = net.node("Sigmoid", [gate], gate.shape) if net.chance(0.6) else net.node("HardSigmoid", [gate], gate.shape)
    return net.node("Mul", [x, gate][:: net.pick([1, -1])], x.shape)


def branches(net: Net, x: Value) -> Value:
    ways = [
        activation(net, conv(net, x, int(net.pick([3, 4, 8])), int(net.pick([1, 3]))), "Relu") for _ in range(net.pick([2, 3]))
    ]
    if net.chance(0.4):
        ways.append(x)
    shape = (1, sum(way.shape[1] for way in ways), *x.shape[2:])
    return net.node("Concat", ways, shape, axis=net.pick([1, -3]))


def halves(net: Net, x: Value) -> Value:
    """Split along channels, one part through a convolution, and together again."""
    first = x.shape[1] // 2
    one, other = split(net, x, 1, [first, x.shape[1] - first])
    other = activation(net, conv(net, other, int(net.pick([other.shape[1], 6]))), "Relu")
    return net.node("Concat", [one, other], (1, one.shape[1] + other.shape[1], *x.shape[2:]), axis=1)


def sliced(net: Net, x: Value) -> Value:
    """Part of the channels, or every second of them, or a crop."""
    way = net.pick(["part", "step", "crop"])
    if way == "crop" and min(x.shape[2:]) > 5:
        shape = (*x.shape[:2], x.shape[2] - 2, x.shape[3] - 1)
        start, end, axes, steps = [1, 0], [-1, x.shape[3] - 1], [2, 3], [1, 1]
    elif way == "step":
        shape = (1, (x.shape[1] + 1) // 2, *x.shape[2:])
        start, end, axes, steps = [0], [2**31 - 1], [1], [2]
    else:
        shape = (1, x.shape[1] - 1, *x.shape[2:])
        start, end, axes, steps = [1], [x.shape[1]], [1], [1]
    part = net.node("Slice", [x, *(net.ints(each) for each in (start, end, axes, steps))], shape)
    return activation(net, conv(net, part, width(net)), "Relu")


def shrunk(net: Net, x: Value) -> Value:
    size = 2 if min(x.shape[2:]) < 6 else int(net.pick([2, 3]))
    kind = net.pick(["MaxPool", "AveragePool"])
    if min(x.shape[2:]) < 4:
        return net.node(kind, [x], x.shape, kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1])
    options: dict[str, Any] = {"kernel_shape": [size, size], "strides": [2, 2]}
    if kind == "AveragePool" and size == 3 and net.chance(0.5):
        options |= {"pads": [1] * 4, "count_include_pad": 1}
    pad = 2 if "pads" in options else 0
    return net.node(kind, [x], (*x.shape[:2], *((s + pad - size) // 2 + 1 for s in x.shape[2:])), **options)


def padded(net: Net, x: Value) -> Value:
    top, left, bottom, right = (int(p) for p in net.rng.integers(0, 3, 4))
    mode = net.pick(["constant", "reflect", "edge"]) if min(x.shape[2:]) > 3 else "constant"
    shape = (*x.shape[:2], x.shape[2] + top + bottom, x.shape[3] + left + right)
    x = net.node("Pad", [x, net.ints([0, 0, top, left, 0, 0, bottom, right])], shape, mode=mode)
    return activation(net, conv(net, x, width(net), 3, free=True), "Relu")


def resized(net: Net, x: Value) -> Value:
    if max(x.shape[2:]) > 12:
        return plain(net, x)
    options = net.pick([
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
    ])  # fmt: skip
    scales = net.constant(np.array([1, 1, 2, 2], np.float32), "scales")
    x = net.node("Resize", [x, "", scales], (*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]), **options)
    return conv(net, x, width(net), int(net.pick([1, 3])), 2)


def tied_conv(net: Net, x: Value) -> Value:
    """One convolution applied twice."""
    weight = net.constant(net.normal((x.shape[1], x.shape[1], 3, 3), 9 * x.shape[1], 1.4), "weight")
    bias = net.constant(net.small(x.shape[1]), "bias")
    for _ in range(2):
        x = net.node("Conv", [x, weight, bias], x.shape, pads=[1] * 4)
        x = activation(net, x, "Relu")
    return x


def normalised_input(net: Net, x: Value) -> Value:
    """Arithmetic with stored numbers and a value for each channel."""
    each = net.rng.uniform(0.5, 1.5, (1, x.shape[1], 1, 1)).astype(np.float32)
    x = net.node("Sub", [x, net.constant(net.small(1, x.shape[1], 1, 1))], x.shape)
    x = net.node(net.pick(["Mul", "Div"]), [x, net.constant(each)], x.shape)
    return net.node("Mul", [x, net.number(1.25)], x.shape)


def channels_last(net: Net, x: Value) -> Value:
    """ConvNeXt's block: a dense layer for each place between two transpositions."""
    way = transpose(net, conv(net, x, x.shape[1], groups=x.shape[1]), (0, 2, 3, 1))
    way = matmul(net, gelu(net, matmul(net, layer_norm(net, way), 2 * x.shape[1])), x.shape[1])
    return net.node("Add", [x, transpose(net, way, (0, 3, 1, 2))], x.shape)


def conditioned(net: Net, x: Value) -> Value:
    """A second input decides about the channels of the first."""
    if len(net.inputs) > 1:
        return plain(net, x)
    gate = gemm(net, net.input("condition", (1, 5)), x.shape[1])
    gate = net.node("Sigmoid", [gate], gate.shape)
    if net.chance(0.5):
        gate = net.node("Unsqueeze", [gate, net.ints([2, 3])], (*gate.shape, 1, 1))
    else:
        gate = reshape(net, gate, (*gate.shape, 1, 1))
    return net.node("Mul", [x, gate], x.shape)


IMAGE_BLOCKS: Blocks = {
    "plain": plain, "separable": separable, "shuffled": shuffled, "upwards": upwards, "residual": residual,
    "inverted": inverted, "excited": excited, "branches": branches, "halves": halves, "sliced": sliced, "shrunk": shrunk,
    "padded": padded, "resized": resized, "tied_conv": tied_conv, "normalised_input": normalised_input,
    "channels_last": channels_last, "conditioned": conditioned,
}  # fmt: skip


# --- blocks that read and give sequences (1, T, D)


def _attended(net: Net, q: Value, keys: Value, v: Value) -> Value:
    """Attention of q (1, H, T, d) to keys (1, H, d, T) and values (1, H, T, d), as (1, T, H d)."""
    _, heads, length, size = q.shape
    scores = net.node("MatMul", [q, keys], (1, heads, length, length))
    if net.chance(0.5):
        scores = net.node("Mul", [scores, net.number(size**-0.5)], scores.shape)
    else:
        scores = net.node("Div", [scores, net.number(size**0.5)], scores.shape)
    mixed = net.node("MatMul", [net.node("Softmax", [scores], scores.shape, axis=-1), v], q.shape)
    return reshape(net, transpose(net, mixed, (0, 2, 1, 3)), (1, length, heads * size))


def _heads(net: Net, x: Value) -> tuple[int, int]:
    heads = 2 if x.shape[2] % 4 or net.chance(0.5) else 4
    return heads, x.shape[2] // heads


def fused_attention(net: Net, x: Value) -> Value:
    """q, k and v out of one layer, told apart by Split or Gather."""
    heads, size = _heads(net, x)
    length, wide = x.shape[1:]
    inner = matmul(net, layer_norm(net, x) if net.chance(0.4) else x, 3 * wide)
    apart = transpose(net, reshape(net, inner, (1, length, 3, heads, size)), (2, 0, 3, 1, 4))
    one = (1, heads, length, size)
    if net.chance(0.5):
        parts = [net.node("Gather", [apart, net.number(i, "int64")], one, axis=0) for i in range(3)]
    else:
        parts = [net.node("Squeeze", [part, net.ints([0])], one) for part in split(net, apart, 0, [1, 1, 1])]
    q, k, v = parts
    way = matmul(net, _attended(net, q, transpose(net, k, (0, 1, 3, 2)), v), wide)
    return net.node("Add", [x, way], x.shape)


def attention(net: Net, x: Value) -> Value:
    """q, k and v out of layers of their own."""
    heads, size = _heads(net, x)
    length, wide = x.shape[1:]
    source = layer_norm(net, x) if net.chance(0.4) else x
    q, k, v = (reshape(net, matmul(net, source, wide), (1, length, heads, size)) for _ in range(3))
    q, keys, v = transpose(net, q, (0, 2, 1, 3)), transpose(net, k, (0, 2, 3, 1)), transpose(net, v, (0, 2, 1, 3))
    way = matmul(net, _attended(net, q, keys, v), wide)
    return net.node("Add", [x, way], x.shape)


def feed_forward(net: Net, x: Value) -> Value:
    way = matmul(net, layer_norm(net, x), 2 * x.shape[2])
    way = matmul(net, activation(net, way, net.pick(["Gelu", "Relu", "Silu"])), x.shape[2])
    return net.node("Add", [way, x], x.shape)


def gated(net: Net, x: Value) -> Value:
    """Half of a layer gates the other half."""
    value, gate = split(net, matmul(net, x, 2 * x.shape[2], 1.4), 2, [x.shape[2]] * 2)
    return net.node("Mul", [value, net.node("Sigmoid", [gate], gate.shape)], x.shape)


def convolved(net: Net, x: Value) -> Value:
    """A convolution along the sequence."""
    turned = transpose(net, x, (0, 2, 1))
    weight = net.normal((x.shape[2], x.shape[2], 3), 3 * x.shape[2], 1.4)
    turned = net.node("Conv", [turned, net.constant(weight, "weight")], turned.shape, pads=[1, 1])
    return transpose(net, activation(net, turned, "Relu"), (0, 2, 1))


def positions(net: Net, x: Value) -> Value:
    table = (0.5 * net.rng.standard_normal(x.shape if net.chance(0.5) else x.shape[1:])).astype(np.float32)
    return net.node("Add", [x, net.constant(table, "positions")], x.shape)


def class_token(net: Net, x: Value) -> Value:
    """A stored place before all others, which attention then fills."""
    token = net.constant(net.rng.standard_normal((1, 1, x.shape[2])).astype(np.float32), "token")
    x = net.node("Concat", [token, x], (1, x.shape[1] + 1, x.shape[2]), axis=1)
    return (attention if net.chance(0.5) else fused_attention)(net, x)


def tied_dense(net: Net, x: Value) -> Value:
    """One dense layer applied twice."""
    weight = net.constant(net.normal((x.shape[2], x.shape[2]), x.shape[2], 1.4), "weight")
    for _ in range(2):
        x = activation(net, net.node("MatMul", [x, weight], x.shape), "Relu")
    return x


SEQUENCE_BLOCKS: Blocks = {
    "fused_attention": fused_attention, "attention": attention, "feed_forward": feed_forward, "gated": gated,
    "convolved": convolved, "positions": positions, "class_token": class_token, "tied_dense": tied_dense,
}  # fmt: skip


# --- blocks that read and give vectors (1, D)


def dense(net: Net, x: Value) -> Value:
    x = gemm(net, x, int(net.pick([8, 12, 16, 24, 32])), 1.4)
    x = norm(net, x) if net.chance(0.3) else x
    return activation(net, x)


def dense_residual(net: Net, x: Value) -> Value:
    way = gemm(net, activation(net, gemm(net, x, 2 * x.shape[1]), "Relu"), x.shape[1])
    return net.node("Add", [x, way], x.shape)


def dense_branches(net: Net, x: Value) -> Value:
    ways = [activation(net, matmul(net, x, int(net.pick([6, 8, 16]))), "Relu") for _ in range(2)]
    return net.node("Concat", ways, (1, sum(way.shape[1] for way in ways)), axis=-1)


def dense_gated(net: Net, x: Value) -> Value:
    gate = gemm(net, x, x.shape[1])
    return net.node("Mul", [x, net.node("Sigmoid", [gate], gate.shape)], x.shape)


VECTOR_BLOCKS: Blocks = {
    "dense": dense, "dense_residual": dense_residual, "dense_branches": dense_branches, "dense_gated": dense_gated,
}  # fmt: skip


# --- whole networks


def _blocks(net: Net, x: Value, table: Blocks, index: int, least: int, most: int) -> Value:
    """A few blocks of a table, in any order, the one of that index among them; seldom something in between is an output too."""
    own = list(table)[index % len(table)]
    others = [name for name in table if name != own]
    count = int(net.rng.integers(least, most + 1)) - 1
    for name in net.rng.permutation([own, *net.rng.choice(others, count, replace=False)]):
        net.block = f"{name}{len(net.nodes)}"
        x = table[str(name)](net, x)
        if net.chance(0.04):
            net.output(x)
    return x


def _ended(net: Net, x: Value) -> None:
    """One or two outputs from the features of a network."""
    for _ in range(2 if net.chance(0.15) else 1):
        net.block = f"head{len(net.nodes)}"
        if len(x.shape) == 4 and net.chance(0.15):
            net.output(conv(net, x, 3, 1))
            continue
        if len(x.shape) == 4 and x.shape[1] * x.shape[2] * x.shape[3] <= 400 and net.chance(0.4):
            features = flat(net, x)
        elif len(x.shape) == 4:
            features = flat(net, pooled(net, x)) if net.chance(0.7) else mean(net, x, [2, 3], False)
        elif len(x.shape) == 3 and net.chance(0.5):
            features = net.node("Gather", [x, net.number(0, "int64")], (1, x.shape[2]), axis=1)
        elif len(x.shape) == 3:
            features = mean(net, x, [1], False)
        else:
            features = x
        likely = net.chance(0.1)
        head = (gemm if net.chance(0.6) else matmul)(net, features, int(net.pick([3, 5, 10])), 4.0 if likely else 1.0)
        net.output(net.node("Softmax", [head], head.shape, axis=-1) if likely else head)


def _image(net: Net, index: int) -> None:
    x = net.input("image", (1, int(net.rng.integers(3, 9)), int(net.rng.integers(8, 13)), int(net.rng.integers(8, 13))))
    net.block = "stem"
    x = plain(net, x) if net.chance(0.7) else conv(net, x, width(net))
    x = shrunk(net, x) if net.chance(0.1) else x
    x = _blocks(net, x, IMAGE_BLOCKS, index, 2, 3)
    if net.chance(0.1):
        net.block = "tokens"
        x = transpose(net, reshape(net, x, (1, x.shape[1], x.shape[2] * x.shape[3])), (0, 2, 1))
        x = _blocks(net, matmul(net, x, 16), SEQUENCE_BLOCKS, index, 1, 1)
    _ended(net, x)


def _sequence(net: Net, index: int) -> None:
    length, wide = int(net.rng.integers(4, 10)), int(net.pick([8, 12, 16, 16, 24]))
    net.block = "stem"
    if net.chance(0.25):
        ids = net.input("ids", (1, length), TensorProto.INT64)
        table = net.constant(net.rng.standard_normal((11, wide)).astype(np.float32), "embedding")
        x = net.node("Gather", [table, ids], (1, length, wide))
    else:
        x = net.input("sequence", (1, length, int(net.pick([wide, 6]))))
        x = matmul(net, x, wide) if x.shape[2] != wide or net.chance(0.3) else x
    x = _blocks(net, x, SEQUENCE_BLOCKS, index, 1, 3)
    _ended(net, layer_norm(net, x) if net.chance(0.3) else x)


def _vector(net: Net, index: int) -> None:
    x = _blocks(net, net.input("vector", (1, int(net.rng.integers(8, 25)))), VECTOR_BLOCKS, index, 2, 4)
    _ended(net, x)


@cache
def random_graph(seed: int) -> Model:
    """A network of about 5 to 25 nodes with inputs of batch 1 and opset 13 to 20; weights are scaled to keep signals near 1."""
    net = Net(seed)
    family = _FAMILIES[seed % len(_FAMILIES)]
    index = sum(_FAMILIES[other % len(_FAMILIES)] == family for other in range(seed))
    {"i": _image, "s": _sequence, "v": _vector}[family](net, index)
    return Model.from_proto(net.build(), f"random{seed}")


def blocks(model: Model) -> set[str]:
    """Names of the blocks that a random graph is made of."""
    made = {name.split("/")[0].rstrip("0123456789") for node in model.proto.graph.node for name in node.output}
    return made & {*IMAGE_BLOCKS, *SEQUENCE_BLOCKS, *VECTOR_BLOCKS}
