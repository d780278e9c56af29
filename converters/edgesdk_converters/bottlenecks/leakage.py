"""Leakage: how well what crosses tells what went in. A decoder learns to rebuild the input from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..calibration import Samples
from ..errors import MissingExtra, PassError
from ..model import Model
from ..train import rate
from .design import decoder, grid
from .teacher import Features

try:
    import torch
    from torch import Tensor
    from torch.nn import functional as F  # noqa: N812
except ImportError as _error:
    raise MissingExtra("torch", "torch") from _error

Array = NDArray[Any]
SAMPLES = 2000
"""At most, of which the decoder learns from four fifths."""
EPOCHS = 6
BATCH = 32
LEARNING_RATE = 2e-3
WIDTH = 32
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5


@dataclass(frozen=True)
class Leakage:
    """Of the inputs rebuilt: peak signal-to-noise ratio in dB, and structural similarity (0..1, None where they are no images).

    `mean_psnr_db` is that of the mean input, which needs nothing to cross. On `n` samples that the decoder did not learn from.
    """

    psnr_db: float
    ssim: float | None
    mean_psnr_db: float
    n: int


def leakage(model: Model, tensor: str, samples: Samples, progress: Callable[[str], None], seed: int = 0) -> Leakage:
    """How well a decoder rebuilds the only input of a model from one tensor inside it, learned from some of the samples.

    The decoder is small and learns for six epochs: a larger one may rebuild more. Raises PassError for more inputs than one.
    """
    if len(samples.arrays) != 1:
        raise PassError("bottleneck", f"leakage is taken of one input; {model.name} has {len(samples.arrays)}")
    order = np.random.default_rng(seed).permutation(len(samples))[:SAMPLES]
    samples = samples.take(order)
    crossing = Features(model, [tensor], samples, None, progress).of(np.arange(len(samples)))[0]
    crossing = crossing.reshape(len(samples), *crossing.shape[2:])
    ((name, rows),) = samples.arrays.items()
    inputs = np.asarray(rows if samples.leading_axis.get(name) else rows.reshape(len(rows), *rows.shape[2:]), np.float32)
    low, high = float(inputs.min()), float(inputs.max())
    inputs = (inputs - low) / max(high - low, 1e-12)
    held_out = max(1, len(samples) // 5)
    learned, judged = slice(held_out, None), slice(0, held_out)
    where = grid((1, *inputs.shape[1:]), image=True)
    if where.last:
        inputs = np.moveaxis(inputs, -1, 1)
    rebuilt = _rebuilt(crossing, inputs, learned, judged, progress, seed)
    wanted = torch.as_tensor(np.ascontiguousarray(inputs[judged]))
    mean = torch.as_tensor(inputs[learned].mean(axis=0)).expand_as(wanted)
    similar = ssim(rebuilt, wanted) if wanted.ndim == 4 and min(wanted.shape[2:]) >= SSIM_WINDOW else None
    return Leakage(psnr_db(rebuilt, wanted), similar, psnr_db(mean, wanted), held_out)


def _rebuilt(crossing: Array, inputs: Array, learned: slice, judged: slice, progress: Callable[[str], None], seed: int) -> Tensor:
    """What a decoder makes of the crossing tensors to judge, after it learned from the others."""
    x, y = torch.as_tensor(np.ascontiguousarray(crossing[learned])), torch.as_tensor(np.ascontiguousarray(inputs[learned]))
    spread = x.std().clamp_min(1e-12)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = decoder((1, *x.shape[1:]), (1, *y.shape[1:]), width=WIDTH if x.ndim > 2 else 0)
    optimiser = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE)
    per_epoch = max(1, len(x) // BATCH)
    step, total = 0, EPOCHS * per_epoch
    for epoch in range(EPOCHS):
        order = torch.as_tensor(np.random.default_rng((seed, epoch)).permutation(len(x)))
        for place in range(per_epoch):
            chosen = order[place * BATCH : (place + 1) * BATCH]
            for group in optimiser.param_groups:
                group["lr"] = LEARNING_RATE * rate(step, total)
            loss = (module(x[chosen] / spread) - y[chosen]).square().mean()
            optimiser.zero_grad()
            torch.autograd.backward([loss])
            optimiser.step()
            step += 1
            progress(f"leakage: rebuilding inputs, epoch {epoch + 1} of {EPOCHS}")
    module.eval()
    with torch.no_grad():
        parts = torch.split(torch.as_tensor(np.ascontiguousarray(crossing[judged])), BATCH)
        made: Tensor = torch.cat([module(part / spread) for part in parts]).clamp(0, 1)
    return made


def psnr_db(made: Tensor, wanted: Tensor) -> float:
    """For values from 0 to 1, of the mean square over all samples; at most 100."""
    return min(100.0, -10 * math.log10(max(1e-10, float((made - wanted).square().mean()))))


def ssim(made: Tensor, wanted: Tensor) -> float:
    """Mean structural similarity of images (n, channels, height, width) of values from 0 to 1, by Wang et al. 2004.

    Gaussian window of 11 by 11, sigma 1.5, only where it lies inside the image.
    """
    place = torch.arange(SSIM_WINDOW, dtype=torch.float32) - SSIM_WINDOW // 2
    line = torch.exp(-place.square() / (2 * SSIM_SIGMA**2))
    window = torch.outer(line, line)
    channels = made.shape[1]
    kernel = (window / window.sum()).expand(channels, 1, -1, -1)

    def blurred(value: Tensor) -> Tensor:
        return F.conv2d(value, kernel, groups=channels)

    a, b = blurred(made), blurred(wanted)
    var_a, var_b = blurred(made * made) - a * a, blurred(wanted * wanted) - b * b
    both = blurred(made * wanted) - a * b
    c1, c2 = 0.01**2, 0.03**2
    values = (2 * a * b + c1) * (2 * both + c2) / ((a * a + b * b + c1) * (var_a + var_b + c2))
    return float(values.mean())
