"""What `make bench` shows of passes that make a network itself smaller, and of integers that are trained."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from edgesdk_converters import find
from edgesdk_converters.calibration import Samples
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given

from . import fashion
from .bench_quantised import NETS, ROOT, Artefact, Case, judge

LESSONS = 4000
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
