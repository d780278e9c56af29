"""Inputs to try a model with: the user's, or seeded random ones."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import ModelError
from .signature import Input, Signature

if TYPE_CHECKING:
    from .model import Model

Array = NDArray[Any]
RESERVED = ("labels", "slice")
MOST_SHARED = 0.01
"""Of the check samples that may be among those to calibrate on."""
FEW_SAMPLES, USUAL_SAMPLES = 16, 100
UNLIKE = 4.0
"""Ratio of the largest values of two sets of inputs from which on they are not of one kind."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Input samples with their first axis counting samples, and optional labels and slice of each.

    `arrays[name]` has shape (n, ...): one row is what the model gets, with the leading axis of size 1 restored where the
    model has one. `origin` says where they come from, for reports; `synthetic` that nobody gave them.
    """

    arrays: Mapping[str, Array]
    origin: str
    labels: Array | None = None
    slices: Array | None = None
    leading_axis: Mapping[str, bool] = field(default_factory=dict)
    synthetic: bool = False

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values()), ()))

    def __iter__(self) -> Iterator[dict[str, Array]]:
        for index in range(len(self)):
            yield {
                name: rows[index : index + 1] if self.leading_axis.get(name) else np.asarray(rows[index])
                for name, rows in self.arrays.items()
            }

    def take(self, indices: Sequence[int] | Array) -> Samples:
        """The samples at these indices."""
        picked = np.asarray(indices, dtype=np.int64)
        return Samples(
            {name: rows[picked] for name, rows in self.arrays.items()},
            self.origin,
            None if self.labels is None else self.labels[picked],
            None if self.slices is None else self.slices[picked],
            self.leading_axis,
            self.synthetic,
        )

    def digest(self) -> str:
        """SHA-256 over names, values and labels: whether two sets are the same data."""
        digest = hashlib.sha256()
        for name in sorted(self.arrays):
            digest.update(name.encode() + str(self.arrays[name].shape).encode())
            digest.update(np.ascontiguousarray(self.arrays[name]).tobytes())
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        return digest.hexdigest()

    @classmethod
    def load(cls, path: str | os.PathLike[str], signature: Signature) -> Samples:
        """From an .npz whose arrays are named as the model's inputs (optional: `labels`, `slice`), samples first.

        Raises ModelError for a missing or wrong name, shape, type, NaN, or arrays of unlike length.
        """
        return cls.from_arrays(read_npz(path), signature, Path(path).name)

    @classmethod
    def from_arrays(cls, data: Mapping[str, Array], signature: Signature, origin: str) -> Samples:
        """From arrays in memory; the checks of `load`."""
        names = [spec.name for spec in signature.inputs]
        extra = [name for name in data if name not in names and name not in RESERVED]
        missing = [name for name in names if name not in data]
        if extra or missing:
            raise ModelError(
                f"{origin}: has {', '.join(sorted(data)) or 'nothing'}; the model's inputs are {', '.join(names)}",
                "name the arrays as the inputs; labels and slice may be added",
            )
        count = len(np.atleast_1d(data[names[0]])) if names else 0
        for name, rows in data.items():
            if rows.ndim == 0 or len(rows) != count or count == 0:
                raise ModelError(
                    f"{origin}: array {name!r} has shape {rows.shape}; needed: {count or 'at least 1'} rows, one a sample",
                    "give every array as many rows",
                )
        arrays: dict[str, Array] = {}
        leading: dict[str, bool] = {}
        for spec in signature.inputs:
            arrays[spec.name], leading[spec.name] = _rows(spec, data[spec.name], origin)
        labels = data.get("labels")
        if labels is not None:
            labels = _labels(labels, signature, origin)
        return cls(arrays, origin, labels, data.get("slice"), leading)


def read_npz(path: str | os.PathLike[str]) -> dict[str, Array]:
    """All arrays of an .npz. Raises ModelError where it is none, or holds more than fits into memory."""
    path = Path(path)
    hint = "write it with numpy.savez(FILE, INPUT=array)"
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ModelError(f"{path} is no .npz file: it holds one array without a name", hint)
        with loaded as archive:
            arrays = {name: archive[name] for name in archive.files}
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}", "give an .npz file") from error
    except MemoryError as error:
        raise ModelError(f"{path} does not fit into memory: {error}", "give fewer samples; is the file damaged?") from error
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        told = str(error)
        if "pickle" in told:  # numpy's own advice, on files that it does not know, is to trust them
            kind = path.suffix.lower()
            told = "it holds Python objects" if zipfile.is_zipfile(path) else "it is no archive"
            told += f", and a {kind} file by its name" if kind not in ("", ".npz") else ""
        raise ModelError(f"{path} is no .npz file of plain arrays: {told}", hint) from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise ModelError(f"{path} is no .npz file: its member {name!r} is no array", hint)
    return arrays


def split(samples: Samples, seed: int = 0, check_fraction: float = 0.2) -> tuple[Samples, Samples]:
    """Training and check part of one set: a shuffle by seed, check_fraction of it for the check.

    They never overlap: what occurs twice is left out of the training part where the check has it too.
    """
    order = np.random.default_rng(seed).permutation(len(samples))
    held = max(1, round(len(samples) * check_fraction))
    train, check = samples.take(np.sort(order[held:])), samples.take(np.sort(order[:held]))
    seen = set(_row_digests(check))
    return train.take(np.array([i for i, digest in enumerate(_row_digests(train)) if digest not in seen], dtype=int)), check


def refuse_overlap(train: Samples, check: Samples) -> list[str]:
    """Raise ModelError where over 1 % of the check samples are also there to calibrate on: the check would flatter.

    A sentence of doubt for fewer: in large sets some things occur twice.
    """
    seen = set(_row_digests(train))
    shared = sum(digest in seen for digest in _row_digests(check))
    if not shared:
        return []
    told = f"{shared} of the {len(check)} samples in {check.origin} are in {train.origin} too"
    if shared > MOST_SHARED * len(check):
        raise ModelError(f"{told}; they must not overlap", "leave them out of one, or give one file alone: it is split 80/20")
    return [told]


def doubts(train: Samples, check: Samples | None) -> list[str]:
    """What about calibration data makes its ranges doubtful, a sentence each; empty for nothing."""
    found = []
    if len(train) < FEW_SAMPLES:
        found.append(f"only {len(train)} samples to calibrate ({train.origin}): {USUAL_SAMPLES} or more are usual")
    for name, rows in train.arrays.items():
        if rows.dtype.kind != "f" or not rows.size:
            continue
        if len(rows) > 1 and (rows == rows[:1]).all():
            found.append(f"input {name!r} is the same in all {len(rows)} samples of {train.origin}: its ranges say little")
        other = None if check is None else check.arrays.get(name)
        if other is not None and other.size:
            mine, theirs = float(np.abs(rows).max()), float(np.abs(other).max())
            if max(mine, theirs) > UNLIKE * max(min(mine, theirs), 1e-30):
                found.append(
                    f"input {name!r} reaches {mine:.3g} in {train.origin} and {theirs:.3g} in {check.origin}: "  # type: ignore[union-attr]
                    "are both preprocessed alike?"
                )
    return found


def _row_digests(samples: Samples) -> Iterator[bytes]:
    """A digest of each sample's inputs."""
    names = sorted(samples.arrays)
    for index in range(len(samples)):
        digest = hashlib.sha256()
        for name in names:
            digest.update(np.ascontiguousarray(samples.arrays[name][index]).tobytes())
        yield digest.digest()


def synthetic(model: Model, count: int, seed: int = 0) -> Samples:
    """Seeded inputs for a model of which no data is at hand.

    Images are uniform noise in 0..255 through the model's own preprocessing; other floats are standard normal; integers
    that index a table stay inside it, other integers are 0 or 1. Dynamic dimensions become 1. Good for parity, not for
    accuracy.
    """
    rng = np.random.default_rng(seed)
    arrays: dict[str, Array] = {}
    leading: dict[str, bool] = {}
    for spec in model.signature.inputs:
        shape = [dim if isinstance(dim, int) else 1 for dim in spec.shape]
        arrays[spec.name] = np.stack([_random(spec, shape, model, rng) for _ in range(count)])
        if shape and shape[0] == 1:
            arrays[spec.name] = arrays[spec.name][:, 0]
            leading[spec.name] = True
    return Samples(arrays, f"seeded random inputs (seed {seed})", leading_axis=leading, synthetic=True)


def _rows(spec: Input, rows: Array, origin: str) -> tuple[Array, bool]:
    wanted = _numpy_type(spec)
    if rows.dtype != wanted:
        if rows.dtype.kind not in "iuf" or wanted.kind not in "iuf" or (rows.dtype.kind == "f") != (wanted.kind == "f"):
            raise ModelError(f"{origin}: array {spec.name!r} has dtype {rows.dtype}; the model wants {wanted}")
        if wanted.kind != "f" and not np.array_equal(rows, rows.astype(wanted)):
            raise ModelError(f"{origin}: values of {spec.name!r} ({rows.dtype}) do not fit into {wanted}")
        if wanted.kind == "f" and rows.size and np.isfinite(rows).all() and np.abs(rows).max() > np.finfo(wanted).max:
            raise ModelError(
                f"{origin}: values of {spec.name!r} reach {np.abs(rows).max():.3g}, beyond {wanted}",
                f"scale the data, or save it as {wanted}",
            )
        with np.errstate(over="ignore"):  # infinities are found below
            rows = rows.astype(wanted)
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1))[0])
        raise ModelError(
            f"{origin}: array {spec.name!r} holds NaN or infinity (first in sample {bad})", "drop or repair such samples"
        )
    shape = spec.shape
    leading = bool(shape) and (shape[0] == 1 or isinstance(shape[0], str))
    for candidate, has_leading in ((shape[1:], True), (shape, False)) if leading else ((shape, False),):
        if len(candidate) == rows.ndim - 1 and all(
            isinstance(dim, str) or dim == size for dim, size in zip(candidate, rows.shape[1:], strict=True)
        ):
            return rows, has_leading
    raise ModelError(
        f"{origin}: array {spec.name!r} has shape {rows.shape}; wanted: (samples, "
        + ", ".join(map(str, shape[1:] if leading else shape))
        + ")",
        "save the inputs as the model takes them, samples first",
    )


def _numpy_type(spec: Input) -> np.dtype[Any]:
    try:
        return np.dtype(spec.dtype)
    except TypeError as error:
        raise ModelError(
            f"input {spec.name!r} has type {spec.dtype}, which numpy lacks; allowed: numbers and bool",
            "cast inside the model, from a type that numpy has",
        ) from error


def _labels(labels: Array, signature: Signature, origin: str) -> Array:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ModelError(
            f"{origin}: labels must be one whole number a sample; got {labels.dtype} of shape {labels.shape}",
            "save labels.astype(numpy.int64), of shape (samples,)",
        )
    classes = signature.outputs[0].shape[-1] if signature.outputs[0].shape else "?"
    if isinstance(classes, int) and classes > 1 and not (labels.min() >= 0 and labels.max() < classes):
        raise ModelError(
            f"{origin}: labels run from {labels.min()} to {labels.max()}; the model has {classes} classes (0 to {classes - 1})",
            "number the classes as the model does, from 0",
        )
    return np.asarray(labels, dtype=np.int64)


def _random(spec: Input, shape: Sequence[int], model: Model, rng: np.random.Generator) -> Array:
    dtype = _numpy_type(spec)
    pre = spec.preprocess
    if pre is not None and (dtype.kind == "f" or pre.layout != "flat"):
        from .processing import to_tensor

        if pre.layout == "flat":
            return to_tensor(spec, rng.uniform(-1, 1, shape).astype(np.float32))
        height, width = (shape[2], shape[3]) if pre.layout == "NCHW" else (shape[1], shape[2])
        channels = () if pre.color == "gray" else (3,)
        return to_tensor(spec, rng.integers(0, 256, (shape[0], height, width, *channels), dtype=np.uint8))
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.kind in "iu":
        return rng.integers(0, _index_limit(spec.name, model), shape).astype(dtype)
    raise ModelError(f"input {spec.name!r} has type {spec.dtype}: no random values for it", "give --data FILE.npz")


def _index_limit(name: str, model: Model) -> int:
    """How many rows the smallest table has that an integer input indexes; 2 where it indexes none."""
    from . import graph as graphs

    types = graphs.value_types(model.proto.graph)
    names = {name}
    rows: list[int] = []
    for node in model.proto.graph.node:
        if node.op_type in ("Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity") and node.input[0] in names:
            names.update(node.output)
        elif node.op_type == "Gather" and len(node.input) > 1 and node.input[1] in names:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            table = types.get(node.input[0])
            if table is not None and table.shape is not None and isinstance(table.shape[axis], int):
                rows.append(int(table.shape[axis]))
    return max(1, min(rows, default=2))
