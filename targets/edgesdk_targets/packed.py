"""A bundle as it lies on a board that it was sent to: its manifest, and one file that holds its payload, file after file.

No name from a manifest becomes a name on the disk, so whatever it says, nothing is written or read beside these two. Standard
library only, as bundles are.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgesdk_converters.errors import BundleError, DeviceError

from . import bundle as bundles
from . import foreign_model
from .bundle import MANIFEST, Bundle, Manifest
from .onnxruntime_support import EXACT_INT8, EXPAND_STORED

PAYLOAD = ".payload"
TRIAL = ".trial"
"""How a payload is called until it is verified."""
MANIFEST_SUFFIX = ".manifest"
RUNTIMES = ("onnxruntime", "split")
"""Runtimes to which a bundle is data. Others compile or load what lies in it, which would be to run code from elsewhere."""
CONFIG = ("session.intra_op.allow_spinning", *EXACT_INT8, *EXPAND_STORED)
"""Session settings of ONNX Runtime that a bundle from elsewhere may set: others name files that are read or written."""
PROVIDERS: Mapping[str, tuple[str, ...]] = {
    "CPUExecutionProvider": (),
    "TensorrtExecutionProvider": (
        "trt_engine_cache_enable", "trt_timing_cache_enable", "trt_builder_optimization_level", "trt_sparsity_enable",
        "trt_dla_enable", "trt_dla_core", "trt_fp16_enable",
    ),
}  # fmt: skip
"""The same for execution providers and their options: others load libraries or name places."""


def read_manifest(raw: bytes, name: str) -> Manifest:
    """A manifest from its bytes. Raises BundleError for one that is not exactly as it was written."""
    return bundles._parse(Path(name), raw)


def payload_bytes(manifest: Manifest) -> int:
    """The length of a payload file."""
    return sum(entry.bytes for entry in manifest.files.values())


def pieces(bundle: Bundle) -> Iterator[bytes]:
    """The payload of a bundle as one stream: its files in the order of their names."""
    for name in sorted(bundle.manifest.files):
        yield bundle.read(name)


def open_packed(path: Path, manifest: Manifest | None = None) -> Bundle:
    """Open `NAME.payload`, every byte checked, by `manifest` or by that in `NAME.manifest`.

    Raises BundleError for anything but an intact one.
    """
    try:
        manifest = manifest or read_manifest(path.with_suffix(MANIFEST_SUFFIX).read_bytes(), path.stem)
        size = path.stat().st_size
    except OSError as error:
        raise BundleError(f"{path.stem} cannot be read: {error.strerror}", "send the bundle again") from error
    if size != payload_bytes(manifest):
        raise BundleError(f"{path.stem}: {size} bytes are there, {payload_bytes(manifest)} were sent", "send the bundle again")
    files = _Slices(path, manifest)
    for name in manifest.files:
        files[name]
    return Bundle(path, manifest, files)


def parts(bundle: Bundle) -> Iterator[Bundle]:
    """A bundle, and those that lie inside it, as the head and the tail of a split one do."""
    yield bundle
    for name in bundle.manifest.files:
        if name.endswith(f"/{MANIFEST}"):
            yield from parts(bundles.nested(bundle, name.removesuffix(f"/{MANIFEST}")))


def check_foreign(bundle: Bundle) -> None:
    """Raise DeviceError for a bundle that asks for more than to run a network in a runtime that is known here."""
    for part in parts(bundle):
        check_runtime(part.manifest)
        if part.manifest.runtime.name == "onnxruntime":
            _check_model(part, part.manifest.runtime.file)


def check_runtime(manifest: Manifest) -> None:
    """Raise DeviceError where a manifest names an unknown runtime, or settings that could reach beyond it."""
    runtime = manifest.runtime
    if runtime.name not in RUNTIMES:
        raise DeviceError(
            f"the bundle runs in {runtime.name!r}; taken from elsewhere are: {', '.join(RUNTIMES)}",
            "measure it on the board itself",
        )
    for key in runtime.config:
        if key not in CONFIG:
            raise DeviceError(f"session setting {key!r} is not taken from elsewhere; allowed: {', '.join(CONFIG)}")
    for provider in runtime.providers:
        if provider.name not in PROVIDERS:
            raise DeviceError(f"provider {provider.name!r} is not taken from elsewhere; allowed: {', '.join(PROVIDERS)}")
        for option, value in provider.options.items():
            if option not in PROVIDERS[provider.name] or not value.isalnum():
                raise DeviceError(f"option {option}={value!r} of {provider.name} is not taken from elsewhere")


def _check_model(bundle: Bundle, name: str) -> None:
    """foreign_model.check on a file of a bundle; of one that was just opened without reading it all over again."""
    files = bundle.files
    if isinstance(files, _Slices):
        files.check_model(name)
    else:
        foreign_model.check(memoryview(bundle.read(name)))


class _Slices(Mapping[str, bytes]):
    """Payload files by name, read from the one file when asked for, and checked each time."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self._path, self._entries = path, manifest.files
        self._offsets, offset = {}, 0
        for name in sorted(manifest.files):
            self._offsets[name] = offset
            offset += manifest.files[name].bytes

    def __getitem__(self, name: str) -> bytes:
        entry = self._entries[name]
        try:
            with self._path.open("rb") as stream:
                stream.seek(self._offsets[name])
                data = stream.read(entry.bytes)
        except OSError as error:
            raise BundleError(f"{self._path.stem} cannot be read: {error.strerror}", "send the bundle again") from error
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise BundleError(f"{self._path.stem}: {name} is not what the manifest says", "send the bundle again")
        return data

    def check_model(self, name: str) -> None:
        """foreign_model.check on a file, whose digest is not checked for that."""
        begin, length = self._offsets[name], self._entries[name].bytes
        if length == 0:
            raise BundleError(f"{name} is empty", "export the bundle anew")
        with (
            self._path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as mapped,
            memoryview(mapped) as whole, whole[begin : begin + length] as model,
        ):  # fmt: skip
            foreign_model.check(model)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
