"""What `make bench` shows of learned bottlenecks on Fashion-MNIST: accuracy against bytes, beside what needs no such training.

Teachers and trainings are kept under build/bench, by all that decides them but the code that trains; a section that was stopped
goes on where it was. All of it takes hours on two cores; `--quick` of `python -m tests.bench` does not exist: name the section.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from edgesdk_converters.from_torch import from_module
from edgesdk_converters.model import Model
from edgesdk_converters.train import rate

from . import fashion
from .bench_smaller import cached

TEACHER_EPOCHS = 8
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
    for layers, last in ((3, False), (8, False), (12, True)):
        for _ in range(layers):
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

    return cached(["teacher", name, TEACHER_EPOCHS, TRAINED_ON, 1], None, make).model


def shifted(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Half of them mirrored, all moved by up to two pixels."""
    mirrored = torch.as_tensor(rng.random(len(images)) < 0.5)
    images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    down, right = (int(value) for value in rng.integers(-2, 3, 2))
    return torch.roll(images, (down, right), (-2, -1))


def accuracy(model: Model, images: int = 10_000) -> float:
    from edgesdk_converters.reference import Reference

    check = fashion.samples("t10k", 0, images)
    reference, name = Reference(model), model.signature.inputs[0].name
    found = [next(iter(reference.run({name: check["image"][row : row + 1]}).values())).argmax() for row in range(images)]
    return float(100 * (np.array(found) == check["labels"]).mean())


def main(names: Sequence[str]) -> None:
    for name in names:
        model = teacher(name)
        print(name, accuracy(model), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
