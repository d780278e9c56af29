"""What a teacher makes of samples inside itself, computed once by ONNX Runtime and kept on disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..calibration import Samples
from ..model import Model
from ..reference import Reference

Array = NDArray[Any]
KEPT_BYTES = 8_000_000_000
"""On disk at most; what would be more is computed anew in every epoch."""
IN_MEMORY_BYTES = 256_000_000
FOLDERS_KEPT = 3
FP16_HOLDS = 6e4


class Features:
    """Tensors inside a model for rows of samples: `of(rows)` gives an array for each name, rows first.

    Kept as float16 where they fit into it: they are targets of a mean square. `spreads` are their variances.
    """

    def __init__(
        self, teacher: Model, names: Sequence[str], samples: Samples, cache: Path | None, progress: Callable[[str], None]
    ) -> None:
        self.names, self.samples, self.progress = tuple(names), samples, progress
        self.reference = Reference(teacher, names)
        probe = [self._computed(int(row)) for row in np.linspace(0, len(samples) - 1, min(64, len(samples)))]
        stacked = [np.stack(group).astype(np.float64) for group in zip(*probe, strict=True)]
        self.spreads = [max(1e-12, float(values.var())) for values in stacked]
        self.positive = [bool((values >= 0).all()) for values in stacked]
        self.shapes = [value.shape for value in probe[0]] if probe else []
        half = all(float(np.abs(values).max()) < FP16_HOLDS / 4 for values in stacked)
        self.dtype = np.dtype(np.float16 if half else np.float32)
        size = sum(int(np.prod(shape)) for shape in self.shapes) * self.dtype.itemsize * len(samples)
        self.stored: list[Array] | None = None
        if size <= IN_MEMORY_BYTES:
            self.stored = [np.empty((len(samples), *shape), self.dtype) for shape in self.shapes]
            self._fill(self.stored)
        elif cache is not None and size <= KEPT_BYTES and size < 0.5 * _free_bytes(cache):
            parts = [teacher.digest, samples.digest(), *names, str(self.dtype)]
            key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
            self.stored = self._on_disk(cache / "features" / key)
        if self.stored is None and names:
            progress(f"the teacher's features ({size / 1e9:.1f} GB) are computed anew in every epoch: there is no room for them")

    def of(self, rows: Array) -> list[Array]:
        if self.stored is not None:
            return [values[rows].astype(np.float32) for values in self.stored]
        found = [self._computed(int(row)) for row in rows]
        return [np.stack(group).astype(np.float32) for group in zip(*found, strict=True)]

    def _computed(self, row: int) -> list[Array]:
        answers = self.reference.run(next(iter(self.samples.take([row]))))
        return [answers[name] for name in self.names]

    def _fill(self, stored: Sequence[Array]) -> None:
        for row in range(len(self.samples)):
            if row % 500 == 0:
                self.progress(f"the teacher's features: {row:,} of {len(self.samples):,} samples")
            for values, value in zip(stored, self._computed(row), strict=True):
                values[row] = value

    def _on_disk(self, folder: Path) -> list[Array] | None:
        """Memory-mapped files in a folder that is whole or not there; None where it cannot be written."""
        if not folder.exists():
            beside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.new")
            try:
                beside.mkdir(parents=True)
                made = [
                    np.lib.format.open_memmap(beside / f"{index}.npy", "w+", self.dtype, (len(self.samples), *shape))
                    for index, shape in enumerate(self.shapes)
                ]
                self._fill(made)
                for values in made:
                    values.flush()
                beside.rename(folder)
            except OSError as error:
                if not folder.exists():  # nobody else made it meanwhile
                    self.progress(f"the teacher's features cannot be kept: {error}")
                    return None
            finally:
                shutil.rmtree(beside, ignore_errors=True)
            _keep_newest(folder)
        try:
            with contextlib.suppress(OSError):
                os.utime(folder)
            return [np.load(folder / f"{index}.npy", mmap_mode="r") for index in range(len(self.shapes))]
        except (OSError, ValueError) as error:
            self.progress(f"the teacher's features that were kept cannot be read: {error}")
            shutil.rmtree(folder, ignore_errors=True)
            return None


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _keep_newest(mine: Path) -> None:
    with contextlib.suppress(OSError):
        found = [(path.stat().st_mtime_ns, path) for path in mine.parent.iterdir() if path != mine]
        for _, path in sorted(found, reverse=True)[FOLDERS_KEPT - 1 :]:
            shutil.rmtree(path, ignore_errors=True)
