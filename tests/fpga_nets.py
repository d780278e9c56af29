"""The networks of bench_fpga: float, fixed point, the integers, their designs, and inputs to judge them on."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgesdk_converters.calibration import Samples
from edgesdk_converters.fold import Fold
from edgesdk_converters.from_torch import from_module
from edgesdk_converters.integer_program import IntegerProgram, Integers, Rounding
from edgesdk_converters.integer_reader import program
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given
from edgesdk_converters.quantize import Quantize
from edgesdk_targets.fpga import evidence
from edgesdk_targets.fpga.design import Design, Forms, design

from . import fashion
from .bench_quantised import ROOT
from .bench_smaller import cached

Array = NDArray[Any]
MODELS = ROOT / "build" / "models"
CALIBRATION = 512
SIMULATED_CYCLES = 80_000_000
"""Of the nets with an interval of many cycles: two or three minutes in Verilator."""
SAMPLES = 1_000
"""Of the nets that have no labels."""
JET_SIZES, SMALL_SIZES = (16, 64, 32, 32, 5), (16, 8, 5)
"""The second is small enough for a simulation of its netlist, which has no multipliers and no memories."""
JET_CLASSES, JET_COMPONENTS, JET_SPREAD = 5, 3, 0.6
"""Gaussians a class, and the deviation of their means, each Gaussian having deviation 1: about a fifth of the inputs lie nearer
to another class."""
JET_TRAINED_ON, JET_TESTED_ON, JET_EPOCHS = 20_000, 5_000, 15
FASHION_EPOCHS = 4


@dataclass(frozen=True)
class Choice:
    """A network at a number of bits, and how it becomes logic; `io_type` is how hls4ml passes its tensors."""

    net: str
    bits: int
    form: Forms = "auto"
    multipliers: int = 64
    rounding: Rounding = "half_even"
    io_type: Literal["io_parallel", "io_stream"] = "io_parallel"

    @property
    def name(self) -> str:
        return f"{self.net}-{self.bits}"


@dataclass(frozen=True, eq=False)
class Source:
    """A float network with inputs by name, batch in front: some to calibrate on, others to judge on, with labels where known."""

    model: Model
    about: str
    train: Mapping[str, Array]
    check: Mapping[str, Array]
    labels: Array | None


@dataclass(frozen=True, eq=False)
class Net:
    """The same in fixed point."""

    choice: Choice
    source: Source
    fixed: Model
    program: IntegerProgram


CHOICES = (
    Choice("jet-small", 4, "unrolled"), Choice("jet", 4), Choice("jet", 6), Choice("jet", 8), Choice("fashion", 6),
    Choice("fashion", 8), Choice("autoencoder", 8, "folded", 128), Choice("ds-cnn", 8, "folded", 96, io_type="io_stream"),
)  # fmt: skip


def jet_data(count: int, seed: int) -> tuple[Array, Array]:
    """(count, 16) float32 and classes: synthetic, of five classes that are mixtures of Gaussians at places from seed 0."""
    places = np.random.default_rng(0).normal(0, JET_SPREAD, (JET_CLASSES, JET_COMPONENTS, JET_SIZES[0]))
    rng = np.random.default_rng(seed)
    labels, component = rng.integers(0, JET_CLASSES, count), rng.integers(0, JET_COMPONENTS, count)
    features = places[labels, component] + rng.standard_normal((count, JET_SIZES[0]))
    return features.astype(np.float32), labels


def jet(sizes: tuple[int, ...] = JET_SIZES) -> Source:
    x, y = jet_data(JET_TRAINED_ON, 1)
    check, labels = jet_data(JET_TESTED_ON, 2)

    def make(_: Path) -> Model:
        torch.manual_seed(0)
        stages = list[nn.Module]()
        for ins, outs in pairwise(sizes):
            stages += [nn.Linear(ins, outs), nn.ReLU()]
        module = nn.Sequential(*stages[:-1])
        _learn(module, x, y, JET_EPOCHS, 5e-3)
        return from_module(module, [torch.zeros(1, sizes[0])], "jet", input_names=["x"])

    recipe = [list(sizes), JET_CLASSES, JET_COMPONENTS, JET_SPREAD, JET_TRAINED_ON, JET_EPOCHS]
    model = cached(["fpga jet", recipe, 1], None, make).model
    about = f"MLP {'-'.join(map(str, sizes))}, synthetic data"
    return Source(model, about, {"x": x, "labels": y}, {"x": check}, labels)


def fashion_cnn() -> Source:
    train, check = fashion.samples("train", 0, 60_000), fashion.samples("t10k", 0, 10_000)

    def make(_: Path) -> Model:
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(512, 10),
        )  # fmt: skip
        _learn(module, train["image"], train["labels"], FASHION_EPOCHS, 4e-3)
        return from_module(module, [torch.zeros(1, 1, 28, 28)], "fashion_small_cnn", input_names=["image"])

    model = cached(["fpga fashion", FASHION_EPOCHS, 1], None, make).model
    return Source(model, "CNN 8-16-32 + 10, Fashion-MNIST", dict(train), {"image": check["image"]}, check["labels"])


def _learn(module: nn.Module, inputs: Array, labels: Array, epochs: int, rate: float, batch: int = 128) -> None:
    """Cross-entropy, Adam, one cycle of rates."""
    x, y = torch.as_tensor(inputs), torch.as_tensor(labels)
    steps = len(x) // batch
    optimiser = torch.optim.Adam(module.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=epochs * steps)
    for epoch in range(epochs):
        order = torch.as_tensor(np.random.default_rng(epoch).permutation(len(x)))
        for step in range(steps):
            chosen = order[step * batch : (step + 1) * batch]
            loss = nn.functional.cross_entropy(module(x[chosen]), y[chosen])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()


def tiny(name: str, about: str) -> Source:
    """A network of MLPerf Tiny on made-up spectrograms."""
    sys.path.insert(0, str(ROOT / "examples"))
    import real_models

    model = Model.load(MODELS / f"{name}.onnx")
    train, check = (
        {key: np.concatenate([feed[key] for feed in feeds]) for key in feeds[0]}
        for feeds in (real_models.sample_inputs(name, CALIBRATION, 1), real_models.sample_inputs(name, SAMPLES, 0))
    )
    return Source(model, about, train, check, None)


SOURCES: Mapping[str, Callable[[], Source]] = {
    "jet": jet,
    "jet-small": lambda: jet(SMALL_SIZES),
    "fashion": fashion_cnn,
    "autoencoder": lambda: tiny("autoencoder", "MLPerf Tiny autoencoder, made-up spectrograms"),
    "ds-cnn": lambda: tiny("ds-cnn", "MLPerf Tiny DS-CNN, made-up spectrograms"),
}


def net(choice: Choice) -> Net:
    """Quantised anew each time, so that a change of the code shows."""
    source = SOURCES[choice.net]()
    samples = Samples.from_arrays(dict(source.train), source.model.signature, "training inputs")
    given = Given(source.model, samples.take(np.arange(CALIBRATION)))
    folded = Fold()(source.model, given)
    quantize = Quantize(flavour="fixed", bits=choice.bits, rounding=choice.rounding)
    fixed = quantize(folded, given)
    return Net(choice, source, fixed, program(fixed))


def digest(files: Mapping[str, bytes]) -> str:
    found = hashlib.sha256()
    for name, data in sorted(files.items()):
        found.update(f"{name}\0{len(data)}\0".encode() + data)
    return found.hexdigest()[:24]


@dataclass(frozen=True, eq=False)
class Case:
    """A net, made only when something of it is wanted; the codes of all levels: inputs of the check data, then extremes."""

    choice: Choice

    @cached_property
    def net(self) -> Net:
        return net(self.choice)

    @property
    def program(self) -> IntegerProgram:
        return self.net.program

    @cached_property
    def made(self) -> Design:
        return self.built(self.program)

    def built(self, program: IntegerProgram) -> Design:
        return design(program, self.choice.form, multipliers=self.choice.multipliers)

    @cached_property
    def count(self) -> int:
        """Of inputs, and of codes from the ends of their ranges: 1,000 of each where that simulates in two or three minutes."""
        return max(10, min(1_000, SIMULATED_CYCLES // (2 * self.made.interval_cycles)))

    @cached_property
    def codes(self) -> dict[str, Integers]:
        given = self.program.encode({name: array[: self.count] for name, array in self.net.source.check.items()})
        ends = evidence.vectors(self.program, self.count)
        return {name: np.concatenate([given[name], ends[name]]) for name in given}

    @cached_property
    def wanted(self) -> dict[str, Integers]:
        return self.program.run(self.codes)

    @cached_property
    def key(self) -> str:
        """Of the fixed-point model, the inputs, and the design."""
        inputs = {name: np.ascontiguousarray(array).tobytes() for name, array in self.codes.items()}
        return digest({"model": self.net.fixed.to_bytes(), "design": digest(self.made.files).encode(), **inputs})

    def few(self, count: int) -> dict[str, Integers]:
        """As many codes, half from the inputs and half of extremes."""
        half = min(self.count, -(-count // 2))
        return {name: np.concatenate([array[:half], array[self.count : self.count + half]]) for name, array in self.codes.items()}

    def wrong(self, found: Mapping[str, Integers], wanted: Mapping[str, Integers] | None = None) -> int:
        wanted = self.wanted if wanted is None else wanted
        return sum(int((found[name] != wanted[name]).sum()) for name in self.program.outputs)
