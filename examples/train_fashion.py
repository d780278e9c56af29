"""Train a small image classifier on Fashion-MNIST and write it as one self-contained ONNX file."""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import os
import struct
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn
from torch.nn import functional

OUT = Path("examples/fashion")
DATA = Path("/usr/share/datasets/fashion-mnist")
FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
LABELS = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"]
LABELS += ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
SCALE, MEAN, STD = 1 / 255, 0.286, 0.353  # model_input = (raw_uint8 * SCALE - MEAN) / STD
PREPROCESS = {"layout": "NCHW", "color": "gray", "scale": SCALE, "mean": [MEAN], "std": [STD]}
EDGESDK_IO = {
    "inputs": [{"name": "image", "preprocess": PREPROCESS}],
    "outputs": [{"name": "logits", "postprocess": {"softmax": True, "labels": LABELS}}],
}
VALIDATION_IMAGES = 5_000
BATCH = 128
OPSET = 20  # the first with Gelu


# --- data ---------------------------------------------------------------------------------------------


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of a gzipped idx file; SystemExit says what to install if it is not there."""
    try:
        raw = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        sys.exit(f"{path} not found: apt-get install dataset-fashion-mnist, or pass --data DIR")
    dimensions = raw[3]
    shape = struct.unpack_from(f">{dimensions}I", raw, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def load(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Preprocessed images, float32 [N, 1, 28, 28], and labels, int64 [N]."""
    images, labels = (read_idx(folder / name) for name in FILES[split])
    scaled = (images[:, None].astype(np.float32) * np.float32(SCALE) - np.float32(MEAN)) / np.float32(STD)
    return scaled, labels.astype(np.int64)


def augment(images: Tensor) -> Tensor:
    """Shift each image by up to 1 pixel, mirror half of them, black out a rectangle in half of them."""
    n, _, height, width = images.shape
    black = -MEAN / STD
    padded = functional.pad(images[:, 0], (1, 1, 1, 1), value=black)
    rows = torch.arange(height) + torch.randint(0, 3, (n, 1))
    columns = torch.arange(width).expand(n, width)
    columns = torch.where(torch.rand(n, 1) < 0.5, columns.flip(1), columns) + torch.randint(0, 3, (n, 1))
    moved = padded[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]

    def span(length: int) -> Tensor:
        distance = (torch.arange(length) - torch.randint(0, length, (n, 1))).abs()
        return distance <= torch.randint(1, length // 8 + 1, (n, 1))

    erased = span(height)[:, :, None] & span(width)[:, None, :] & (torch.rand(n, 1, 1) < 0.5)
    return moved.masked_fill(erased, black)[:, None]


# --- nets ---------------------------------------------------------------------------------------------


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


def head(features: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, len(LABELS))]


def cnn(width: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [*conv_bn(inputs, outputs), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width * 3 * 3, len(LABELS)))


class InvertedResidual(nn.Module):
    """MobileNetV2's block: widen by 1x1, filter each channel by 3x3, narrow by 1x1 without activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = expand * inputs
        self.layers = nn.Sequential(
            *conv_bn(inputs, hidden, 1),
            nn.ReLU6(),
            *conv_bn(hidden, hidden, 3, stride, groups=hidden),
            nn.ReLU6(),
            *conv_bn(hidden, outputs, 1),
        )
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.skip else self.layers(x)


def mobilenet(width: int) -> nn.Module:
    w = width
    blocks = [
        (w, w, 1, 1),
        (w, 2 * w, 2, 2),
        (2 * w, 2 * w, 1, 4),
        (2 * w, 2 * w, 1, 4),
        (2 * w, 4 * w, 2, 4),
        (4 * w, 4 * w, 1, 4),
        (4 * w, 4 * w, 1, 4),
    ]
    return nn.Sequential(
        *conv_bn(1, w, 3, stride=2),
        nn.ReLU6(),
        *(InvertedResidual(*block) for block in blocks),
        *conv_bn(4 * w, 8 * w, 1),
        nn.ReLU6(),
        *head(8 * w),
    )


class Residual(nn.Module):
    """ResNet's basic block: two 3x3 convolutions beside an identity, or a 1x1 where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *conv_bn(inputs, outputs, 3, stride),
            nn.ReLU(),
            *conv_bn(outputs, outputs),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv_bn(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.shortcut(x) + self.layers(x))


def resnet(width: int) -> nn.Module:
    w = width
    blocks = [(w, w, 1), (w, w, 1), (w, 2 * w, 2), (2 * w, 2 * w, 1), (2 * w, 4 * w, 2), (4 * w, 4 * w, 1)]
    stem = [*conv_bn(1, w, 3, stride=2), nn.ReLU()]
    body = [Residual(*block) for block in blocks]
    return nn.Sequential(*stem, *body, *head(4 * w))


class EncoderLayer(nn.Module):
    """A pre-norm transformer encoder layer, its attention spelled out as matrix products and a softmax."""

    def __init__(self, width: int, heads: int, expand: int = 2) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"not a multiple of the {heads} attention heads")
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        hidden = expand * width
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def attention(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        shape = (n, tokens, self.heads, width // self.heads)
        q, k, v = (part.reshape(shape).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        weights = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1), dim=-1)
        return self.project((weights @ v).transpose(1, 2).reshape(n, tokens, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_attention(x))
        return x + self.mlp(self.norm_mlp(x))


class VisionTransformer(nn.Module):
    """Patches of 4x4 (49 tokens), learnt positions, the mean of the tokens as the feature."""

    def __init__(self, width: int, depth: int = 4, heads: int = 4, patch: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, patch, patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, (28 // patch) ** 2, width))
        self.layers = nn.Sequential(*(EncoderLayer(width, heads) for _ in range(depth)))
        self.norm, self.classify = nn.LayerNorm(width), nn.Linear(width, len(LABELS))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.classify(self.norm(self.layers(tokens)).mean(1))


@dataclass(frozen=True)
class Recipe:
    """How one net is built and trained; width is its first layer's channels."""

    build: Callable[[int], nn.Module]
    width: int
    epochs: int
    learning_rate: float
    weight_decay: float = 0.02
    label_smoothing: float = 0.05


RECIPES = {
    "cnn": Recipe(cnn, width=24, epochs=6, learning_rate=5e-3),
    "mobilenet": Recipe(mobilenet, width=24, epochs=14, learning_rate=6e-3),
    "resnet": Recipe(resnet, width=24, epochs=9, learning_rate=5e-3),
    "vit": Recipe(VisionTransformer, width=64, epochs=7, learning_rate=2e-3, weight_decay=0.05),
}


# --- training -----------------------------------------------------------------------------------------


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    with torch.inference_mode():
        classes = torch.cat([model(batch).argmax(1) for batch in images.split(500)])
    return (classes == labels).double().mean().item()


def train(model: nn.Module, recipe: Recipe, epochs: int, images: Tensor, labels: Tensor) -> None:
    """Train in place on all but VALIDATION_IMAGES of the images, printing one line an epoch."""
    order = torch.randperm(len(images))
    held_out, kept = order[:VALIDATION_IMAGES], order[VALIDATION_IMAGES:]
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, foreach=True)
    steps = len(kept) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        recipe.learning_rate,
        total_steps=epochs * steps,
        pct_start=0.25,
    )
    started = time.perf_counter()
    for epoch in range(1, epochs + 1):
        epoch_started, total_loss = time.perf_counter(), 0.0
        model.train()
        for batch in kept[torch.randperm(len(kept))][: steps * BATCH].split(BATCH):
            logits = model(augment(images[batch]))
            loss = functional.cross_entropy(
                logits,
                labels[batch],
                label_smoothing=recipe.label_smoothing,
            )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total_loss += loss.item()
        validation = accuracy(model, images[held_out], labels[held_out])
        now = time.perf_counter()
        print(
            f"epoch {epoch:2}/{epochs}  loss {total_loss / steps:.4f}  validation {validation:.2%}  "
            f"{now - epoch_started:.1f} s  ETA {(now - started) / epoch * (epochs - epoch):.0f} s",
            flush=True,
        )


# --- files --------------------------------------------------------------------------------------------


def export(model: nn.Module, name: str) -> onnx.ModelProto:
    """A checked graph image [1, 1, 28, 28] -> logits [1, 10], free of the exporter's traces."""
    model = model.eval().to(memory_format=torch.contiguous_format)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it reports every torchvision operator it lacks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, about its use of pytree
        program = torch.onnx.export(
            model,
            (torch.zeros(1, 1, 28, 28),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
            verbose=False,
        )
    proto = program.model_proto
    graph = proto.graph
    graph.name = f"fashion_{name}"
    values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for part in (proto, graph, *graph.node, *values):
        del part.metadata_props[:]  # stack traces with this machine's paths
        part.ClearField("doc_string")
    onnx.checker.check_model(proto, full_check=True)
    return proto


def onnx_logits(proto: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    """ONNX Runtime's logits [N, 10], one image a call."""
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["logits"], {"image": image[None]})[0] for image in images])


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes its place on success and is removed on any failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


# --- commands -----------------------------------------------------------------------------------------


def run_train(args: argparse.Namespace) -> None:
    name, recipe = args.command, RECIPES[args.command]
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(args.seed)
    images, labels = map(torch.from_numpy, load(args.data, "train"))
    try:
        model = recipe.build(args.width).to(memory_format=torch.channels_last)  # the faster layout on CPUs
    except ValueError as error:
        sys.exit(f"--width {args.width}: {error}")
    parameters = sum(p.numel() for p in model.parameters())
    threads = torch.get_num_threads()
    print(f"{name}: {parameters:,} parameters, {args.epochs} epochs, {threads} threads", flush=True)
    started = time.perf_counter()
    train(model, recipe, args.epochs, images, labels)
    seconds = time.perf_counter() - started

    test_images, test_labels = load(args.data, "test")
    torch_accuracy = accuracy(model, torch.from_numpy(test_images), torch.from_numpy(test_labels))
    proto = export(model, name)
    test_accuracy = float((onnx_logits(proto, test_images).argmax(1) == test_labels).mean())
    if abs(test_accuracy - torch_accuracy) > 2 / len(test_labels):  # near ties may fall either way
        sys.exit(f"test accuracy differs: ONNX Runtime {test_accuracy:.2%}, torch {torch_accuracy:.2%}")
    command = (
        f"python examples/train_fashion.py {name} --epochs {args.epochs} --width {args.width} "
        f"--seed {args.seed} --threads {threads}"
    )
    notes = {
        "edgesdk.io": json.dumps(EDGESDK_IO),
        "edgesdk.accuracy": f"{test_accuracy:.4f}",
        "edgesdk.command": command,
    }
    onnx.helper.set_model_props(proto, notes)
    path = args.out / f"fashion_{name}.onnx"
    with written_whole(path) as beside:
        onnx.save(proto, beside)
    size_bytes = path.stat().st_size
    print(f"{path}: test accuracy {test_accuracy:.2%}, {size_bytes:,} bytes, trained in {seconds:.0f} s")


def run_npz(args: argparse.Namespace) -> None:
    images, labels = load(args.data, args.split)
    if not 1 <= args.samples <= len(labels):
        sys.exit(f"--samples {args.samples}: the {args.split} split has {len(labels)} images")
    with written_whole(args.out) as beside:
        np.savez(beside, image=images[: args.samples], labels=labels[: args.samples])
    print(f"{args.out}: image {images[: args.samples].shape}, labels ({args.samples},)")


def positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def main() -> None:
    defaults = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, recipe in RECIPES.items():
        command = commands.add_parser(name, help=f"train a {name} and write it", formatter_class=defaults)
        command.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="folder")
        command.add_argument("--epochs", type=positive, default=recipe.epochs, metavar="N", help="passes")
        command.add_argument(
            "--width",
            type=positive,
            default=recipe.width,
            metavar="W",
            help="channels of the first layer; the others scale with it",
        )
        command.add_argument("--seed", type=int, default=0, metavar="N", help="fixes the result")
        command.add_argument("--threads", type=positive, metavar="N", help="CPU threads (torch decides)")
        command.set_defaults(run=run_train)
    npz = commands.add_parser(
        "npz",
        help="write preprocessed images and labels for `edgesdk export --data`",
        formatter_class=defaults,
    )
    npz.add_argument("--out", type=Path, required=True, metavar="FILE.npz", help="file to write")
    npz.add_argument("--samples", type=positive, default=2000, metavar="N", help="the first N of the split")
    npz.add_argument("--split", choices=sorted(FILES), default="test", help="part of the data set")
    npz.set_defaults(run=run_npz)
    for command in commands.choices.values():
        command.add_argument("--data", type=Path, default=DATA, metavar="DIR", help="the four idx .gz files")
    args = parser.parse_args()
    try:
        args.run(args)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
