"""What `make bench` shows of learned bottlenecks on Fashion-MNIST: accuracy against bytes, beside what needs no such training.

Teachers and trainings are kept under build/bench, by all that decides them but the code that trains; a section that was stopped
goes on where it was. All of it takes hours on two cores: name a section to have it alone.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as pillow  # noqa: N813
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from edgesdk_converters import find
from edgesdk_converters.accuracy import top1_drop
from edgesdk_converters.bottleneck import ENDING, Bottleneck
from edgesdk_converters.bottlenecks.points import narrowed
from edgesdk_converters.calibration import Samples
from edgesdk_converters.cost import layers
from edgesdk_converters.from_torch import from_module
from edgesdk_converters.graph import value_types
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given
from edgesdk_converters.payload import ENDING as PAYLOAD
from edgesdk_converters.reference import Reference
from edgesdk_converters.split import cuts, split
from edgesdk_converters.train import Training, rate, train

from . import fashion
from .bench_quantised import show
from .bench_smaller import HOME, Made, cached, told

Array = NDArray[Any]
Row = tuple[str, ...]
TEACHER_EPOCHS = 8
SETTLED_EPOCHS = 2
"""After those, on images as they are."""
TRAINED_ON = 55_000


class Basic(nn.Module):
    """Two convolutions beside what they change."""

    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(ins, outs, 3, stride, 1, bias=False), nn.BatchNorm2d(outs)
        self.b, self.nb = nn.Conv2d(outs, outs, 3, 1, 1, bias=False), nn.BatchNorm2d(outs)
        same = ins == outs and stride == 1
        self.beside = nn.Identity() if same else nn.Sequential(nn.Conv2d(ins, outs, 1, stride, bias=False), nn.BatchNorm2d(outs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.nb(self.b(torch.relu(self.na(self.a(x))))) + self.beside(x))


class Dense(nn.Module):
    """A layer whose input goes on beside its output."""

    def __init__(self, ins: int, growth: int) -> None:
        super().__init__()
        self.inside = nn.Sequential(
            nn.BatchNorm2d(ins), nn.ReLU(), nn.Conv2d(ins, 4 * growth, 1, bias=False), nn.BatchNorm2d(4 * growth), nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.inside(x)], 1)


def resnet() -> nn.Module:
    """1.6 M parameters, 22 M multiply-accumulates, most of both at few pixels."""
    stages: list[nn.Module] = [nn.Conv2d(1, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    for ins, outs, stride in (
        (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 160, 2), (160, 160, 1),
    ):  # fmt: skip
        stages.append(Basic(ins, outs, stride))
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(160, 10))


def densenet() -> nn.Module:
    """Blocks of layers at 14, 7 and 3 pixels, each followed by half as many channels."""
    stages: list[nn.Module] = [nn.Conv2d(1, 32, 3, 2, 1, bias=False)]
    width, growth = 32, 24
    for count, last in ((3, False), (8, False), (12, True)):
        for _ in range(count):
            stages.append(Dense(width, growth))
            width += growth
        stages += [nn.BatchNorm2d(width), nn.ReLU()]
        if not last:
            stages += [nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
            width //= 2
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


TEACHERS = {"resnet": resnet, "densenet": densenet}


def teacher(name: str) -> Model:
    """A network trained on labels and mirror images, the same on every run of one machine."""

    def make(_: object) -> Model:
        torch.manual_seed(0)
        module = TEACHERS[name]()
        rows = fashion.samples("train", 0, TRAINED_ON)
        images, labels = torch.as_tensor(rows["image"]), torch.as_tensor(rows["labels"])
        optimiser = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0.02)
        batch, total, step = 128, TEACHER_EPOCHS * (TRAINED_ON // 128), 0
        for epoch in range(TEACHER_EPOCHS):
            begin, order = time.perf_counter(), np.random.default_rng(epoch).permutation(TRAINED_ON)
            for place in range(TRAINED_ON // batch):
                chosen = torch.as_tensor(order[place * batch : (place + 1) * batch])
                for group in optimiser.param_groups:
                    group["lr"] = 3e-3 * rate(step, total)
                x = shifted(images[chosen], np.random.default_rng((epoch, place)))
                loss = F.cross_entropy(module(x), labels[chosen], label_smoothing=0.05)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                step += 1
            print(f"   teacher {name}: epoch {epoch + 1}, {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
        return from_module(module, [torch.zeros(1, 1, 28, 28)], f"fashion_{name}", input_names=["image"])

    moved = cached(["teacher", name, TEACHER_EPOCHS, TRAINED_ON, 1], None, make)

    def settle(checkpoint: Path) -> Model:
        samples = Samples.from_arrays(fashion.samples("train", 0, TRAINED_ON), moved.model.signature, "training images")
        how = Training(epochs=SETTLED_EPOCHS, batch=128, learning_rate=5e-4, labels_share=1.0, validation_share=0.05)
        return train(moved.model, moved.model, samples, how, checkpoint=checkpoint, progress=told(name)).model

    return cached(["settled", SETTLED_EPOCHS], moved, settle).model


def shifted(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Half of them mirrored, all moved by up to two pixels."""
    mirrored = torch.as_tensor(rng.random(len(images)) < 0.5)
    images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    down, right = (int(value) for value in rng.integers(-2, 3, 2))
    return torch.roll(images, (down, right), (-2, -1))


@dataclass(frozen=True)
class Way:
    """One training, and the operating points that it serves. `images` are those that are learned from."""

    bits: int
    channels: tuple[int, ...] = (1, 2, 4, 8)
    images: int = TRAINED_ON
    placement: Literal["input", "cut"] = "input"
    mimic: int = 3
    tune: int = 5
    later: int = 2
    labels_share: float = 0.5
    tune_learning_rate: float = 1e-3

    def made(self, name: str, source: Made, at: str) -> Made:
        """The network with its bottleneck, trained or as it was kept."""

        def make(_: Path) -> Model:
            lessons = Samples.from_arrays(fashion.samples("train", 0, self.images), source.model.signature, "training images")
            given = Given(source.model, lessons.take(np.arange(256)), told(name), lessons=lessons, cache=HOME / "cache")
            options = {key: value for key, value in asdict(self).items() if key != "images"} | {"smaller": SMALLER}
            options["channels"] = tuple(options["channels"])
            return Bottleneck(at=at, batch=BATCH, **options)(source.model, given)

        return cached(["bottleneck", name, at, BATCH, SMALLER, asdict(self)], source, make)


SMALLER = 83.0
BATCH = 128
LOSSLESS_WEBP_BYTES = 454
"""Mean of 1,000 test images (pillow 13, method 6): what the field notes say, printed anew by `offload`."""
CUTS = {"resnet": 0.3, "densenet": 0.46}
"""Of the MACs, behind which the encoder's work ends: the cut with the fewest bytes up to there."""
CURVE = tuple(Way(bits) for bits in (4, 2, 8, 6))
POINTS = (Way(4, (4,), 20_000), Way(4, (2,), 20_000))
"""98 and 49 bytes: where the baselines are, all of them learned from as many images in as many epochs."""
BASELINES: dict[str, dict[str, Any]] = {
    "two stages": {},
    "head distillation at the cut only": {"mimic": 8, "tune": 0, "later": 0},
    "plain cross-entropy": {"mimic": 0, "tune": 8, "labels_share": 1.0},
    "autoencoder at the cut": {"placement": "cut", "mimic": 8, "tune": 0, "later": 0},
}
HEADS = ("way", "channels", "bits", "bytes", "under WebP", "accuracy", "drop (bound)", "head params", "head MACs", "seconds")


class Judged:
    """A teacher, its folded form, and its answers to the test images."""

    def __init__(self, name: str) -> None:
        self.name = name
        source = teacher(name)
        probe = Samples.from_arrays(fashion.samples("train", 0, 64), source.signature, "training images")
        self.source = Made(find("fold")()(source, Given(source, probe)))
        self.check = fashion.samples("t10k", 0, 10_000)
        self.answers = answers(self.source.model, self.check["image"])
        self.macs = sum(layer.macs for layer in layers(self.source.model))
        self.params = sum(layer.params for layer in layers(self.source.model))
        found = [cut for cut in cuts(self.source.model) if len(cut.shapes[0]) == 4 and cut.head_macs <= CUTS[name] * self.macs]
        self.at = min(found, key=lambda cut: (cut.bytes, -cut.head_macs, -cut.head_nodes)).tensors[0]

    def row(self, label: str, bits: int, size: int, found: Array, head: Model | None, channels: str, seconds: float) -> Row:
        lost = top1_drop(self.answers, found, self.check["labels"])
        params = "-" if head is None else f"{sum(layer.params for layer in layers(head)):,}"
        share = "-" if head is None else f"{sum(layer.macs for layer in layers(head)) / self.macs:.1%}"
        return (
            label, channels, str(bits), str(size), f"{1 - size / LOSSLESS_WEBP_BYTES:.1%}", f"{100 * lost.converted:.2f}%",
            f"{lost.drop_points:.2f} ({lost.bound_points:.2f})", params, share, f"{seconds:.0f}" if seconds else "-",
        )  # fmt: skip

    def rows(self, label: str, way: Way) -> Iterator[Row]:
        """One for each operating point, from the tail that ships for it."""
        made = way.made(self.name, self.source, self.at)
        crosses, coded_shape = f"{self.at}{ENDING}{PAYLOAD}", shape_of(made.model, f"{self.at}{ENDING}")
        head, tail = split(made.model, crosses)
        coder = Reference(head)
        name = head.signature.inputs[0].name
        coded = [next(iter(coder.run({name: image[None]}).values())) for image in self.check["image"]]
        for point in sorted(way.channels):
            small = narrowed(tail, point, coded_shape, way.bits)
            width = int(small.signature.inputs[0].shape[1])
            runner = Reference(small)
            given = ({crosses: np.ascontiguousarray(one[:, :width])} for one in coded)
            found = np.stack([next(iter(runner.run(one).values()))[0] for one in given])
            size = int(np.prod(small.signature.inputs[0].shape))
            yield self.row(label, way.bits, size, found, head, str(point), made.seconds)


def shape_of(model: Model, name: str) -> tuple[int, ...]:
    kind = value_types(model.proto.graph)[name]
    return tuple(int(dim) for dim in kind.shape or ())


def answers(model: Model, images: Array) -> Array:
    reference, name = Reference(model), model.signature.inputs[0].name
    return np.stack([next(iter(reference.run({name: image[None]}).values()))[0] for image in images])


def about(judged: Judged) -> str:
    right = 100 * float((judged.answers.argmax(1) == judged.check["labels"]).mean())
    return (
        f"teacher {judged.name}: {right:.2f}% of 10,000, {judged.params:,} parameters, {judged.macs:,} MACs; cut at {judged.at}"
    )


def curve(name: str = "resnet") -> Iterator[Row]:
    """Accuracy against bytes: one training for each number of bits serves all numbers of channels."""
    judged = Judged(name)
    print(about(judged), flush=True)
    for way in CURVE:
        yield from judged.rows("two stages, four points", way)


def baselines(name: str = "resnet") -> Iterator[Row]:
    """Ways of the same size and as many epochs, each trained for its point alone; then what needs no training."""
    judged = Judged(name)
    print(about(judged), flush=True)
    for point in POINTS:
        for label, changed in BASELINES.items():
            yield from judged.rows(label, replace(point, **changed))
    yield from untrained(judged)


def another_teacher() -> Iterator[Row]:
    """Another kind of network, at the same two points."""
    judged = Judged("densenet")
    print(about(judged), flush=True)
    for point in POINTS:
        yield from judged.rows("two stages", point)


def untrained(judged: Judged) -> Iterator[Row]:
    """The plain cut at 8 bits, the image as file or smaller with fewer bits, and nothing sent at all."""
    model = judged.source.model
    probe = Samples.from_arrays(fashion.samples("train", 0, 256), model.signature, "training images")
    packed = find("payload")(at=judged.at, bits=8)(model, Given(model, probe))
    head, _ = split(packed, f"{judged.at}/payload")
    size = int(np.prod(head.signature.outputs[0].shape))
    yield judged.row("plain cut", 8, size, answers(packed, judged.check["image"]), head, "-", 0)
    images = judged.check["image"]
    low, high = float(images.min()), float(images.max())
    grey = np.rint((images - low) / (high - low) * 255).astype(np.uint8)
    for label, kind, options in (
        ("PNG", "PNG", {"optimize": True}), ("WebP, lossless", "WEBP", {"lossless": True, "method": 6}),
        ("JPEG, quality 50", "JPEG", {"quality": 50}), ("WebP, quality 20", "WEBP", {"quality": 20, "method": 6}),
        ("WebP, quality 1", "WEBP", {"quality": 1, "method": 6}),
    ):  # fmt: skip
        sizes, back = zip(*(through(kind, image[0], options) for image in grey), strict=True)
        given = (np.stack(back)[:, None] / np.float32(255) * np.float32(high - low) + np.float32(low)).astype(np.float32)
        yield judged.row(label, 8, round(float(np.mean(sizes))), answers(model, given), None, "-", 0)
    for side, bits in ((14, 4), (14, 2), (10, 4), (7, 8)):
        given = shrunk(images, side, bits)
        yield judged.row(f"image of {side} x {side} pixels", bits, side * side * bits // 8, answers(model, given), None, "-", 0)
    yield judged.row("local: nothing is sent but the answer", 32, 40, judged.answers, model, "-", 0)


def through(kind: str, image: Array, options: Mapping[str, Any]) -> tuple[int, Array]:
    """Bytes of the file that an image makes, and the image that the file gives."""
    file = io.BytesIO()
    pillow.fromarray(image).save(file, kind, **options)
    with pillow.open(io.BytesIO(file.getvalue())) as opened:
        return file.tell(), np.asarray(opened.convert("L"))


def shrunk(images: Array, side: int, bits: int) -> Array:
    """Fewer pixels (averages) of fewer bits, made large again between them."""
    few = F.interpolate(torch.as_tensor(images), size=(side, side), mode="area")
    low, high = float(few.min()), float(few.max())
    codes = torch.round((few - low) / (high - low) * (2**bits - 1)) / (2**bits - 1) * (high - low) + low
    return F.interpolate(codes, size=images.shape[2:], mode="bilinear", align_corners=False).numpy()


SECTIONS = {"curve": curve, "baselines": baselines, "densenet": another_teacher}


def main(names: Sequence[str]) -> None:
    for name in names or SECTIONS:
        show(HEADS, list(SECTIONS[name]()))


if __name__ == "__main__":
    main(sys.argv[1:])
