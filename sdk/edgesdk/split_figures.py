"""Figures of a split model: what crosses at each operating point, how right answers are then, and what it tells of the input."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgesdk_converters import accuracy
from edgesdk_converters.signature import Input, Output
from edgesdk_targets import runner
from edgesdk_targets.bundle import Bundle
from edgesdk_targets.figure import Figure, counted
from edgesdk_targets.measure import machine_facts

from .trial import Trial

if TYPE_CHECKING:
    from edgesdk_converters.model import Model


def point_rows(trial: Trial, head: Bundle, points: Mapping[int, Bundle]) -> list[Figure]:
    """What crosses at each operating point below the whole, and, with labels, how often the answer is right."""
    check = trial.check
    coded = []
    if check is not None and check.labels is not None:
        loaded = runner.load(head, runner.RunOptions(1, allow_fallback=True))
        try:
            coded = [loaded.run(sample)[0] for sample in check]
        finally:
            loaded.close()
    rows: list[Figure] = []
    for point, tail in points.items():
        spec = tail.manifest.signature.inputs[0]
        segment = f"{point} channels"
        rows.append(replace(counted("link_bytes", bytes_of(spec), "the tensor that crosses"), segment=segment))
        if check is None or check.labels is None:
            continue
        trial.progress(f"checking accuracy with {segment}")
        loaded = runner.load(tail, runner.RunOptions(1, allow_fallback=True))
        try:
            width = int(spec.shape[1])
            found = np.stack([loaded.run({spec.name: np.ascontiguousarray(one[:, :width])})[0] for one in coded])
        finally:
            loaded.close()
        right = float((accuracy.top1(found) == check.labels).mean())
        method = f"top-1 accuracy on {check.origin} where {segment} cross"
        rows.append(Figure("accuracy", right, "measured", _here(), method, segment=segment, n=len(check)))
    return rows


def leaks(trial: Trial, before: Model, whole: Model, learned: Mapping[str, Any]) -> list[Figure]:
    """How well what crosses tells the input, beside the network's own tensor at the same place; `before` has no bottleneck yet.

    Nothing where there are no samples to learn from, or more inputs than one.
    """
    from edgesdk_converters.bottlenecks.leakage import leakage
    from edgesdk_converters.payload import ENDING

    if trial.lessons.synthetic or len(trial.source.signature.inputs) != 1:
        return []
    crosses = str(learned["crosses"])
    restored = f"{crosses.removesuffix(ENDING)}/restored" if crosses.endswith(ENDING) else crosses
    rows = []
    for segment, model, tensor in (("link", whole, restored), ("plain cut", before, str(learned["at"]))):
        found = leakage(model, tensor, trial.lessons, trial.progress)
        told = f"inputs rebuilt by a small decoder that learned it; the mean input has {found.mean_psnr_db:.1f} dB"
        rows.append(Figure("leakage_psnr_db", found.psnr_db, "measured", _here(), told, segment=segment, n=found.n))
        if found.ssim is not None:
            rows.append(Figure("leakage_ssim", found.ssim, "measured", _here(), told, segment=segment, n=found.n))
    return rows


def bytes_of(spec: Input | Output) -> int:
    """Bytes of a tensor; a dimension that is not fixed counts as one."""
    return math.prod(dim if isinstance(dim, int) else 1 for dim in spec.shape) * np.dtype(spec.dtype).itemsize


def _here() -> str:
    facts = machine_facts()
    return f"this machine ({facts['cpu']}, {facts['architecture']})"
