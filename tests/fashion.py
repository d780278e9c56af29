"""Fashion-MNIST as the example nets take it, from the Debian package dataset-fashion-mnist."""

from __future__ import annotations

import functools
import gzip
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDER = Path("/usr/share/datasets/fashion-mnist")
MEAN, DEVIATION = np.float32(0.286), np.float32(0.353)


@functools.cache
def raw(split: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """All images (n, 28, 28) uint8 and labels (n,) uint8 of "train" or "t10k"."""
    assert FOLDER.is_dir(), "the Debian package dataset-fashion-mnist is missing: run `make packages`"
    images = gzip.decompress((FOLDER / f"{split}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((FOLDER / f"{split}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


def samples(split: str, start: int, count: int) -> dict[str, NDArray[Any]]:
    """{"image": (count, 1, 28, 28) float32, "labels": (count,) int64}."""
    images, labels = raw(split)
    pixels = images[start : start + count, None].astype(np.float32)
    return {"image": (pixels / 255 - MEAN) / DEVIATION, "labels": labels[start : start + count].astype(np.int64)}
