"""Small networks of several kinds, with seeded weights: what a machine is timed with, to fit an estimator to it.

Each is a few layers of one kind at sizes from real networks, or a piece of one (residual, fire, inverted residual, inception and
dense blocks), so that arithmetic, traffic, weights and starts can be told apart by their times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters.model import Model

SEED = 0
Net = Callable[["Builder", str], str]


@dataclass
class Builder:
    """Nodes and weights of a network on one input, as they are added; names of tensors go in and come out."""

    nodes: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)
    channels: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(SEED)

    def node(self, operator: str, *inputs: str, channels: int, **attributes: Any) -> str:
        from onnx import helper

        name = f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        self.channels[name] = channels
        return name

    def constant(self, values: NDArray[Any]) -> str:
        from onnx import numpy_helper

        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def weight(self, *shape: int) -> str:
        """Normal values with the deviation of He et al., Delving Deep into Rectifiers, 2015."""
        values = self.random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        return self.constant(values.astype(np.float32))

    def conv(self, x: str, out: int, size: int = 1, stride: int = 1, groups: int = 1, act: str = "Relu") -> str:
        """A convolution that keeps the size of the image but for its stride, and an activation; `groups` 0: depthwise."""
        groups = groups or self.channels[x]
        inputs = (x, self.weight(out, self.channels[x] // groups, size, size), self.weight(out))
        kept = [size // 2] * 4
        y = self.node("Conv", *inputs, channels=out, kernel_shape=[size] * 2, strides=[stride] * 2, pads=kept, group=groups)
        return self.node(act, y, channels=out) if act else y

    def dense(self, x: str, out: int) -> str:
        y = self.node("Gemm", x, self.weight(out, self.channels[x]), self.weight(out), channels=out, transB=1)
        return self.node("Relu", y, channels=out)

    def pool(self, x: str, operator: str = "MaxPool", size: int = 3, stride: int = 2) -> str:
        kept = [size // 2] * 4
        return self.node(operator, x, channels=self.channels[x], kernel_shape=[size] * 2, strides=[stride] * 2, pads=kept)

    def normalised(self, x: str) -> str:
        n = self.channels[x]
        parts = (self.weight(n), self.weight(n), self.weight(n), self.constant(np.ones(n, np.float32)))
        return self.node("Relu", self.node("BatchNormalization", x, *parts, channels=n), channels=n)

    def shuffled(self, x: str, groups: int, size: int) -> str:
        """Channels of an image of size x size dealt out over groups."""
        n = self.channels[x]
        apart = self.constant(np.array([1, groups, n // groups, size * size]))
        together = self.constant(np.array([1, n, size, size]))
        y = self.node("Transpose", self.node("Reshape", x, apart, channels=n), channels=n, perm=[0, 2, 1, 3])
        return self.node("Reshape", y, together, channels=n)

    def add(self, x: str, y: str) -> str:
        return self.node("Relu", self.node("Add", x, y, channels=self.channels[x]), channels=self.channels[x])

    def concat(self, *inputs: str) -> str:
        return self.node("Concat", *inputs, channels=sum(self.channels[x] for x in inputs), axis=1)

    def classes(self, x: str, out: int) -> str:
        y = self.node("GlobalAveragePool", x, channels=self.channels[x])
        y = self.node("Flatten", y, channels=self.channels[x])
        y = self.node("Gemm", y, self.weight(out, self.channels[x]), self.weight(out), channels=out, transB=1)
        return self.node("Softmax", y, channels=out)


def networks() -> Iterator[Model]:
    """All of them, one after the other."""
    for name, (shape, net) in _NETS.items():
        yield _built(name, shape, net)


def _built(name: str, shape: tuple[int, ...], net: Net) -> Model:
    from onnx import TensorProto, helper

    made = Builder(channels={"x": shape[1]})
    last = net(made, "x")
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)]
    graph = helper.make_graph(made.nodes, name, inputs, outputs, made.weights)
    return Model.from_proto(helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)]), name)


def _convs(out: int, size: int, count: int = 3, groups: int = 1) -> Net:
    def net(made: Builder, x: str) -> str:
        for _ in range(count):
            x = made.conv(x, out, size, groups=groups)
        return x

    return net


def _denses(*sizes: int) -> Net:
    def net(made: Builder, x: str) -> str:
        for size in sizes:
            x = made.dense(x, size)
        return x

    return net


def _residual(out: int, count: int, between: int = 0) -> Net:
    """ResNet's blocks: two 3x3, or with `between` channels a bottleneck."""

    def net(made: Builder, x: str) -> str:
        x = made.conv(x, out, 3, 2)
        for _ in range(count):
            if between:
                y = made.conv(made.conv(made.conv(x, between), between, 3), out, act="")
            else:
                y = made.conv(made.conv(x, out, 3), out, 3, act="")
            x = made.add(x, y)
        return made.classes(x, 100)

    return net


def _inverted(out: int, count: int, act: str = "Relu") -> Net:
    """MobileNetV2's blocks, six times as wide inside."""

    def net(made: Builder, x: str) -> str:
        x = made.conv(x, out, 3, 2, act=act)
        for _ in range(count):
            y = made.conv(made.conv(x, 6 * out, act=act), 6 * out, 3, groups=0, act=act)
            x = made.node("Add", x, made.conv(y, out, act=""), channels=out)
        return made.classes(x, 100)

    return net


def _separable(out: int, count: int) -> Net:
    """MobileNet's and DS-CNN's blocks."""

    def net(made: Builder, x: str) -> str:
        x = made.conv(x, out, 3, 2)
        for _ in range(count):
            x = made.conv(made.conv(x, out, 3, groups=0), out)
        return made.classes(x, 12)

    return net


def _fire(made: Builder, x: str) -> str:
    x = made.pool(made.conv(x, 64, 3, 2))
    for squeeze, expand in ((16, 64), (32, 128), (48, 192)):
        s = made.conv(x, squeeze)
        x = made.concat(made.conv(s, expand), made.conv(s, expand, 3))
    return made.classes(x, 100)


def _inception(made: Builder, x: str) -> str:
    x = made.pool(made.conv(made.conv(x, 32, 7, 2), 128))
    for _ in range(2):
        x = made.concat(
            made.conv(x, 64), made.conv(made.conv(x, 96), 128, 3), made.conv(made.conv(x, 16), 32, 5),
            made.conv(made.pool(x, stride=1), 32),
        )  # fmt: skip
    return made.classes(x, 100)


def _dense_block(made: Builder, x: str) -> str:
    """DenseNet's: normalisation that nothing absorbs, and ever longer concatenations."""
    x = made.pool(made.conv(x, 64, 7, 2))
    for _ in range(6):
        x = made.concat(x, made.conv(made.conv(made.normalised(x), 128), 32, 3, act=""))
    return made.classes(x, 100)


def _shuffle(made: Builder, x: str) -> str:
    """ShuffleNet's units: grouped 1x1, a shuffle of the channels, depthwise 3x3."""
    x = made.pool(made.conv(x, 120, 3, 2))
    for _ in range(3):
        y = made.shuffled(made.conv(x, 60, groups=3), 3, 28)
        x = made.add(x, made.conv(made.conv(y, 60, 3, groups=0, act=""), 120, groups=3, act=""))
    return made.classes(x, 100)


_NETS: dict[str, tuple[tuple[int, ...], Net]] = {
    "conv3x3 16 at 112": ((1, 16, 112, 112), _convs(16, 3)), "conv3x3 32 at 56": ((1, 32, 56, 56), _convs(32, 3)),
    "conv3x3 64 at 56": ((1, 64, 56, 56), _convs(64, 3)), "conv3x3 128 at 28": ((1, 128, 28, 28), _convs(128, 3)),
    "conv3x3 256 at 14": ((1, 256, 14, 14), _convs(256, 3)), "conv3x3 512 at 7": ((1, 512, 7, 7), _convs(512, 3, 2)),
    "conv5x5 32 at 28": ((1, 32, 28, 28), _convs(32, 5)), "conv7x7 of 3 at 112": ((1, 3, 112, 112), _convs(32, 7, 1)),
    "conv1x1 32 at 112": ((1, 32, 112, 112), _convs(32, 1)), "conv1x1 64 at 56": ((1, 64, 56, 56), _convs(64, 1)),
    "conv1x1 128 at 28": ((1, 128, 28, 28), _convs(128, 1)), "conv1x1 256 at 14": ((1, 256, 14, 14), _convs(256, 1)),
    "conv1x1 512 at 14": ((1, 512, 14, 14), _convs(512, 1)), "conv1x1 1024 at 7": ((1, 1024, 7, 7), _convs(1024, 1, 2)),
    "depthwise 32 at 112": ((1, 32, 112, 112), _convs(32, 3, groups=0)),
    "depthwise 96 at 56": ((1, 96, 56, 56), _convs(96, 3, groups=0)),
    "depthwise 192 at 28": ((1, 192, 28, 28), _convs(192, 3, groups=0)),
    "depthwise 512 at 14": ((1, 512, 14, 14), _convs(512, 3, groups=0)),
    "depthwise 960 at 7": ((1, 960, 7, 7), _convs(960, 3, groups=0)),
    "grouped 3x3 128 at 28": ((1, 128, 28, 28), _convs(128, 3, groups=8)),
    "dense 64": ((1, 64), _denses(64, 64, 64, 64)), "dense 640": ((1, 640), _denses(128, 128, 8, 128, 640)),
    "dense 1024": ((1, 1024), _denses(1024, 1024, 1024)), "dense 4096": ((1, 4096), _denses(2048, 1000)),
    "residual 16 at 32": ((1, 3, 64, 64), _residual(16, 3)), "residual 64 at 56": ((1, 3, 112, 112), _residual(64, 2)),
    "residual 128 at 28": ((1, 3, 56, 56), _residual(128, 2)), "bottleneck 256 at 56": ((1, 3, 112, 112), _residual(256, 2, 64)),
    "bottleneck 1024 at 14": ((1, 64, 28, 28), _residual(1024, 2, 256)),
    "inverted 16 at 112": ((1, 3, 224, 224), _inverted(16, 2)), "inverted 32 at 28": ((1, 3, 56, 56), _inverted(32, 4, "Clip")),
    "inverted 96 at 14": ((1, 3, 28, 28), _inverted(96, 3)), "inverted 160 at 7": ((1, 3, 14, 14), _inverted(160, 2)),
    "separable 32 at 48": ((1, 3, 96, 96), _separable(32, 3)), "separable 64 at 25": ((1, 1, 50, 50), _separable(64, 4)),
    "separable 256 at 14": ((1, 3, 28, 28), _separable(256, 5)), "fire at 28": ((1, 3, 112, 112), _fire),
    "inception at 28": ((1, 3, 112, 112), _inception), "dense block at 28": ((1, 3, 112, 112), _dense_block),
    "shuffle at 28": ((1, 3, 112, 112), _shuffle),
}  # fmt: skip
"""Shape of the input, and what follows."""
