"""What `make bench` shows of passes that make a network itself smaller, and what its sections that train share.

What was trained is kept under build/bench, by all that decides it but the code that trains: remove that folder to train again. A
section that was stopped goes on where it was. Training is faster where freed memory stays in the process:
MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=268435456.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgesdk_converters import find
from edgesdk_converters.calibration import Samples
from edgesdk_converters.cost import layers
from edgesdk_converters.errors import EdgeError
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given
from edgesdk_converters.train import Training, train
from edgesdk_targets.onnxruntime_support import session_config

from . import fashion
from .bench_quantised import NETS, ROOT, Artefact, Case, judge

HOME = ROOT / "build" / "bench"
LESSONS = 4000
CALIBRATION = 256
LEARNED = ("pst", "exploration")
"""Criteria of pruning that train."""
EVERY_S = 20.0
"""Between two lines of progress."""
WAYS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    **{
        f"low rank -{removed:.0%}, {epochs} epochs": ("low_rank", {"removed": removed, "finetune": epochs})
        for removed in (0.3, 0.5, 0.7)
        for epochs in (0, 3)
    },
    **{
        f"fixed {bits} bits, {epochs} epochs": ("quantize", {"flavour": "fixed", "bits": bits, "qat": epochs})
        for bits in (3, 4)
        for epochs in (0, 3)
    },
}
HEADS = ("model", "way", "accuracy", "drop (95 % bound)", "weights", "file kB", "speed", "peak MB", "seconds")


def rows() -> Iterator[tuple[str, ...]]:
    """Each Fashion-MNIST net in each way: learned from 4,000 training images, judged on 2,000 others, timed in turn."""
    train, check = fashion.samples("train", 0, LESSONS), fashion.samples("t10k", 0, 2000)
    for net in NETS:
        path = ROOT / "examples" / "fashion" / f"fashion_{net}.onnx"
        source = Model.load(path)
        lessons = Samples.from_arrays(train, source.signature, "training images")
        given = Given(source, lessons.take(np.arange(64)), lessons=lessons)
        folded = find("fold")()(source, given)
        artefacts = [Artefact("as it was", folded.to_bytes())]
        for label, (name, options) in WAYS.items():
            begin = time.perf_counter()
            made = find(name)(**options)(folded, given)
            artefacts.append(Artefact(label, made.to_bytes(), seconds=time.perf_counter() - begin))
        case = Case(f"fashion {net}", path, {"image": train["image"]}, {"image": check["image"]}, check["labels"])
        for judged in judge(case, artefacts, 0.5):
            yield judged.row


@dataclass(frozen=True)
class Lessons:
    """How a network learns its source's answers and the labels once it was made smaller: of the first `images` to train on."""

    images: int
    epochs: int
    batch: int = 64
    learning_rate: float = 1.5e-3

    def __str__(self) -> str:
        return f"{self.epochs} x {self.images:,}" if self.epochs else "untrained"


@dataclass(frozen=True)
class Made:
    """A model, and how many seconds it took to make, with all that came before."""

    model: Model
    seconds: float = 0.0

    @cached_property
    def data(self) -> bytes:
        return self.model.to_bytes()

    @property
    def macs(self) -> float:
        return float(sum(layer.macs for layer in layers(self.model)))

    @property
    def parameters(self) -> int:
        stored = self.model.proto.graph.initializer
        return int(sum(np.prod(tensor.dims) for tensor in stored if tensor.data_type != onnx.TensorProto.INT64))


class Net:
    """A network of Fashion-MNIST, and what can be made of it."""

    def __init__(self, name: str, source: Model | None = None) -> None:
        self.name = name
        self.path = ROOT / "examples" / "fashion" / f"fashion_{name}.onnx"
        self.source = source or Model.load(self.path)
        self.folded = Made(find("fold")()(self.source, self.given(CALIBRATION)))

    def given(self, images: int) -> Given:
        """What a pass gets that learns from so many images and calibrates on the first of them; widths go by eights."""
        lessons = Samples.from_arrays(fashion.samples("train", 0, images), self.source.signature, "training images")
        few = lessons.take(np.arange(min(CALIBRATION, images)))
        return Given(self.source, few, told(self.name), lessons=lessons, width_multiple=8, cache=HOME / "cache")

    def made(self, before: Made, name: str, options: Mapping[str, Any], images: int = LESSONS) -> Made:
        """What the pass makes of a model: kept only where it trains, so that a change of its code shows."""

        def make(_: Path) -> Model:
            return find(name)(**options)(before.model, self.given(images))

        if options.get("qat") or options.get("criterion") in LEARNED:
            return cached([name, dict(options), images], before, make)
        begin = time.perf_counter()
        model = make(HOME)
        return Made(model, before.seconds + time.perf_counter() - begin)

    def learned(self, before: Made, how: Lessons) -> Made:
        """The model after its lessons, with the network as it was for a teacher."""
        if not how.epochs:
            return before

        def make(checkpoint: Path) -> Model:
            given = self.given(how.images)
            training = Training(epochs=how.epochs, batch=how.batch, learning_rate=how.learning_rate, validation_share=0.05)
            assert given.lessons is not None
            return train(before.model, self.source, given.lessons, training, checkpoint=checkpoint, progress=given.progress).model

        return cached(["train", self.source.digest, asdict(how)], before, make)

    def judged(self, ways: Mapping[str, Made], images: int = 10_000) -> Iterator[tuple[str, ...]]:
        """Rows of CURVE: the ways beside the network as it was, on test images, timed in turn with one thread."""
        check = fashion.samples("t10k", 0, images)
        case = Case(f"fashion {self.name}", self.path, {}, {"image": check["image"]}, check["labels"])
        all_of_them = {"as it was": self.folded, **ways}
        artefacts = [
            Artefact(label, made.data, session_config(made.model, exact=False), made.seconds or None)
            for label, made in all_of_them.items()
        ]
        for found, made in zip(judge(case, artefacts), all_of_them.values(), strict=True):
            _, label, accuracy, drop, _, size, speed, _, seconds = found.row
            share = f"{made.macs / self.folded.macs:.1%}"
            yield (label, accuracy, drop, f"{made.parameters:,}", share, size, speed, seconds)


CURVE = ("way", "accuracy", "drop (bound)", "params", "MACs", "file kB", "speed", "seconds")


def cached(what: Sequence[object], before: Made | None, make: Callable[[Path], Model]) -> Made:
    """What `make` gives, or gave in an earlier run; it is told of a file for a checkpoint."""
    digest = "" if before is None else hashlib.sha256(before.data).hexdigest()
    key = hashlib.sha256(json.dumps([*what, digest], sort_keys=True).encode()).hexdigest()[:24]
    file, facts, checkpoint = (HOME / f"{key}{end}" for end in (".onnx", ".json", ".safetensors"))
    if not facts.exists():
        HOME.mkdir(parents=True, exist_ok=True)
        print("  ", *what, file=sys.stderr, flush=True)
        begin = time.perf_counter()
        model = make(checkpoint)
        seconds = time.perf_counter() - begin
        file.write_bytes(model.to_bytes())
        notes = [step.note for step in model.history]
        facts.write_text(json.dumps({"what": list(what), "seconds": seconds, "notes": notes}, indent=1))
        checkpoint.unlink(missing_ok=True)
        print("  ", f"{seconds:.0f} s:", notes[-1] if notes else "", file=sys.stderr, flush=True)
    seconds = json.loads(facts.read_text())["seconds"] + (0.0 if before is None else before.seconds)
    return Made(Model.load(file), seconds)


def told(name: str) -> Callable[[str], None]:
    """Progress on stderr, a line now and then."""
    last = time.monotonic()

    def tell(message: str) -> None:
        nonlocal last
        if time.monotonic() - last > EVERY_S:
            last = time.monotonic()
            print("    ", f"{name}: {message}", file=sys.stderr, flush=True)

    return tell


MLP = (784, 512, 256, 10)
MLP_LESSONS = Lessons(55_000, 3, learning_rate=1e-3)
CURVE_LESSONS = Lessons(10_000, 1, learning_rate=5e-4)
KEPT = (0.75, 0.5, 0.25)


def mlp() -> Model:
    """A multi-layer perceptron that has learned from labels alone, the same on every run."""
    rng = np.random.default_rng(0)
    nodes, stored, name = [helper.make_node("Flatten", ["image"], ["h0"], name="flatten")], [], "h0"
    for index, (inputs, outputs) in enumerate(pairwise(MLP), 1):
        last = index == len(MLP) - 1
        weights = rng.standard_normal((outputs, inputs)) * np.sqrt(2 / inputs)
        stored.append(numpy_helper.from_array(weights.astype(np.float32), f"w{index}"))
        stored.append(numpy_helper.from_array(np.zeros(outputs, np.float32), f"b{index}"))
        gives = "logits" if last else f"z{index}"
        nodes.append(helper.make_node("Gemm", [name, f"w{index}", f"b{index}"], [gives], name=f"dense{index}", transB=1))
        if not last:
            name = f"h{index}"
            nodes.append(helper.make_node("Relu", [gives], [name], name=f"relu{index}"))
    kind = onnx.TensorProto.FLOAT
    image = helper.make_tensor_value_info("image", kind, [1, 1, 28, 28])
    logits = helper.make_tensor_value_info("logits", kind, [1, MLP[-1]])
    graph = helper.make_graph(nodes, "fashion_mlp", [image], [logits], stored)
    new = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), "fashion_mlp")

    def make(checkpoint: Path) -> Model:
        rows = fashion.samples("train", 0, MLP_LESSONS.images)
        samples = Samples.from_arrays(rows, new.signature, "training images")
        how = Training(epochs=MLP_LESSONS.epochs, batch=64, learning_rate=MLP_LESSONS.learning_rate, labels_share=1.0)
        return train(new, new, samples, how, checkpoint=checkpoint, progress=told("mlp")).model

    return cached(["mlp", list(MLP), asdict(MLP_LESSONS)], Made(new), make).model


def curve(net: Net) -> Iterator[tuple[str, ...]]:
    """A network with less and less of its weights, by low rank, without data and after one epoch."""
    ways = {}
    for kept in KEPT:
        try:
            bare = net.made(net.folded, "low_rank", {"removed": 1 - kept})
        except EdgeError as error:
            print(f"{net.name}, {kept:.0%}: {error.message}", flush=True)
            continue
        ways[f"{kept:.0%} kept, no data"] = bare
        ways[f"{kept:.0%} kept, {CURVE_LESSONS}"] = net.learned(bare, CURVE_LESSONS)
    yield from net.judged(ways)
