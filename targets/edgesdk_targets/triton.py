"""A model repository for Triton from a bundle that ONNX Runtime runs: NAME/config.pbtxt and NAME/1/model.onnx.

Documents: Triton's model_repository.md and model_configuration.md; the README of its onnxruntime_backend for `level`.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from edgesdk_converters.errors import BundleError, DeviceError
from edgesdk_converters.signature import Input, Output

from .bundle import Bundle, Runtime, nested, open_bundle
from .split_runner import TAIL, point_tails

_MARK = "# Written by edgesdk"
_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8", "uint16": "TYPE_UINT16", "uint32": "TYPE_UINT32", "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8", "int16": "TYPE_INT16", "int32": "TYPE_INT32", "int64": "TYPE_INT64",
    "float16": "TYPE_FP16", "float32": "TYPE_FP32", "float64": "TYPE_FP64", "bfloat16": "TYPE_BF16",
}  # fmt: skip
_LEVELS = {"basic": -1, "extended": 1}
"""graph optimisation as the back end numbers it; all of it is its default."""


@dataclass(frozen=True)
class Repository:
    """What was written: the model's folder, its name on the server, what Triton cannot be told, and the operating points."""

    path: Path
    name: str
    notes: tuple[str, ...]
    points: tuple[Repository, ...] = ()


def write_repository(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> Repository:
    """Write a bundle (of a split one the tail) as one model of the repository `out`, in one step; other models stay.

    The operating points of a bottleneck become models beside that of its tail, each in one step. An older folder of a model's
    name is replaced where edgesdk wrote it. Raises BundleError for anything else in its place and for a bundle that no ONNX file
    runs, DeviceError for a head.
    """
    bundle = open_bundle(path)
    points: dict[int, Bundle] = {}
    if bundle.manifest.role == "split":
        points, bundle = point_tails(bundle), nested(bundle, TAIL)
    models = [bundle, *(point for point in points.values() if point.digest != bundle.digest)]
    made = [_made(model, path, out) for model in models]
    for repository, _ in made:
        _check_place(repository.path)
    for repository, files in made:
        place = repository.path
        try:
            _write(place, files)
        except OSError as error:
            raise BundleError(
                f"{place} cannot be written: {error.strerror or error}", "check the path, its permissions and the space"
            ) from error
    first, *others = (repository for repository, _ in made)
    return replace(first, points=tuple(others))


def _made(bundle: Bundle, path: str | os.PathLike[str], out: str | os.PathLike[str]) -> tuple[Repository, dict[str, bytes]]:
    """What a model will be in the repository, and its files."""
    manifest = bundle.manifest
    if manifest.role == "head":
        raise DeviceError(f"{path} is the head of a split model, which runs on the device", "give the tail, or the split bundle")
    if manifest.runtime.name != "onnxruntime":
        raise BundleError(
            f"{path} runs on {manifest.runtime.name}; Triton is given ONNX files here", "export it for a target of ONNX Runtime"
        )
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", manifest.name)
    files = {"config.pbtxt": config(bundle, name).encode(), "1/model.onnx": bundle.read(manifest.runtime.file)}
    return Repository(Path(os.path.abspath(out)) / name, name, tuple(_notes(manifest.runtime))), files


def config(bundle: Bundle, name: str) -> str:
    """config.pbtxt of a bundle. Batches are what the graph's own shapes say: Triton adds no dimension."""
    manifest = bundle.manifest
    least = f", for ONNX Runtime {manifest.runtime.minimum} or newer" if manifest.runtime.minimum else ""
    lines = [
        f"{_MARK} from bundle {bundle.digest}{least}.",
        f"name: {_text(name)}",
        'platform: "onnxruntime_onnx"',
        "max_batch_size: 0",
    ]
    for kind, specs in (("input", manifest.signature.inputs), ("output", manifest.signature.outputs)):
        lines += [_tensor(kind, spec) for spec in specs]
    lines.append("instance_group [ { kind: KIND_CPU } ]")
    level = _LEVELS.get(manifest.runtime.optimization)
    if level is not None:
        lines.append(f"optimization {{ graph {{ level: {level} }} }}")
    for key, value in (
        ("intra_op_thread_count", str(manifest.runtime.threads)),
        ("enable_mem_arena", str(int(manifest.runtime.arena))),
        ("edgesdk_digest", bundle.digest),
    ):
        lines.append(f"parameters {{ key: {_text(key)} value: {{ string_value: {_text(value)} }} }}")
    return "\n".join(lines) + "\n"


def _tensor(kind: str, spec: Input | Output) -> str:
    if spec.dtype not in _TYPES:
        raise BundleError(f"tensor {spec.name!r} is {spec.dtype}; Triton takes {', '.join(_TYPES)}")
    dims = ", ".join(str(dim) if isinstance(dim, int) else "-1" for dim in spec.shape)
    shape = f"dims: [ {dims} ]" if spec.shape else "dims: [ 1 ] reshape: { shape: [ ] }"
    return f"{kind} [ {{ name: {_text(spec.name)} data_type: {_TYPES[spec.dtype]} {shape} }} ]"


def _text(value: str) -> str:
    """A string of protobuf's text format; bytes that are not plain ASCII are octal escapes."""
    raw = "".join(chr(byte) for byte in value.encode())
    return '"' + "".join(c if " " <= c < "\x7f" and c not in '"\\' else f"\\{ord(c):03o}" for c in raw) + '"'


def _notes(runtime: Runtime) -> list[str]:
    """Settings of the bundle that config.pbtxt has no words for."""
    return [
        f"Triton's ONNX Runtime cannot be told {key}={value}, with which the bundle was checked"
        for key, value in runtime.config.items()
    ]


def _write(place: Path, files: dict[str, bytes]) -> None:
    """Write a folder beside its place, then rename; an older one that edgesdk wrote makes room."""
    place.parent.mkdir(parents=True, exist_ok=True)
    _check_place(place)
    beside, older = (place.with_name(f".{place.name}.{secrets.token_hex(8)}.{kind}") for kind in ("tmp", "old"))
    try:
        for name, data in files.items():
            file = beside / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(file, "xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        if place.exists():
            os.rename(place, older)
        try:
            os.rename(beside, place)
        except BaseException:
            with contextlib.suppress(OSError):
                os.rename(older, place)
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        if place.exists():
            shutil.rmtree(older, ignore_errors=True)


def _check_place(place: Path) -> None:
    if place.is_symlink() or (place.exists() and not _is_ours(place)):
        raise BundleError(f"{place} exists and is no model that edgesdk wrote; it is left alone", "give another folder")


def _is_ours(place: Path) -> bool:
    try:
        return (place / "config.pbtxt").read_text(encoding="utf-8").startswith(_MARK)
    except (OSError, UnicodeDecodeError):
        return False
