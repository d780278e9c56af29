"""Packed bundles: what travels to an agent is the same bundle there, and nothing that asks for more than to run a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from edgesdk_converters.errors import BundleError, DeviceError
from edgesdk_converters.model import Model
from edgesdk_targets import bundle as bundles
from edgesdk_targets import golden, packed, runner
from edgesdk_targets.bundle import Bundle, Provider, Runtime
from edgesdk_targets.packed import check_foreign, check_runtime, open_packed, payload_bytes, pieces, read_manifest

from .test_foreign_model import external


def pack(bundle: Bundle, folder: Path) -> Path:
    """The bundle as an agent keeps it."""
    path = folder / f"{bundle.digest}{packed.PAYLOAD}"
    path.with_suffix(packed.MANIFEST_SUFFIX).write_bytes(bundle.manifest.to_bytes())
    path.write_bytes(b"".join(pieces(bundle)))
    return path


def test_a_packed_bundle_is_the_bundle(small_bundle: Bundle, tmp_path: Path) -> None:
    path = pack(small_bundle, tmp_path)
    found = open_packed(path)
    assert found.manifest == small_bundle.manifest and found.digest == small_bundle.digest
    assert path.stat().st_size == payload_bytes(small_bundle.manifest) == small_bundle.payload_bytes
    assert {name: found.read(name) for name in found.manifest.files} == {
        name: small_bundle.read(name) for name in small_bundle.manifest.files
    }
    loaded = runner.load(found)
    compared = golden.compare(found, loaded)
    assert compared is not None and compared.holds
    check_foreign(found)


def test_a_changed_byte_anywhere_is_found(small_bundle: Bundle, tmp_path: Path) -> None:
    path = pack(small_bundle, tmp_path)
    data = path.read_bytes()
    for place in (0, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(BundleError, match="is not what the manifest says"):
            open_packed(path)
    for wrong in (data[:-1], data + b"x", b""):
        path.write_bytes(wrong)
        with pytest.raises(BundleError, match="bytes are there"):
            open_packed(path)
    path.write_bytes(data)
    raw = path.with_suffix(packed.MANIFEST_SUFFIX).read_bytes()
    path.with_suffix(packed.MANIFEST_SUFFIX).write_bytes(raw.replace(b'"fp32"', b'"fp16"'))
    with pytest.raises(BundleError, match="was changed after it was written"):
        open_packed(path)
    path.with_suffix(packed.MANIFEST_SUFFIX).unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        open_packed(path)


def test_what_is_read_later_is_checked_again(small_bundle: Bundle, tmp_path: Path) -> None:
    path = pack(small_bundle, tmp_path)
    found = open_packed(path)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(BundleError, match=r"model.onnx is not what the manifest says"):
        found.read("model.onnx")


def runtime(**changes: object) -> Runtime:
    return replace(Runtime("onnxruntime", "model.onnx", providers=(Provider("CPUExecutionProvider"),)), **changes)  # type: ignore[arg-type]


FOREIGN: Mapping[str, tuple[Runtime, str]] = {
    "an unknown runtime": (runtime(name="pickle"), "runs in 'pickle'; taken from elsewhere are: onnxruntime"),
    "a runtime that compiles what it is given": (runtime(name="fpga"), "runs in 'fpga'"),
    "a setting that writes a file": (
        runtime(config={"ep.context_file_path": "/tmp/x"}),
        "session setting 'ep.context_file_path'",
    ),
    "a setting that reads files": (
        runtime(config={"session.model_external_initializers_file_folder_path": "/etc"}),
        "is not taken from elsewhere",
    ),
    "a provider that loads a library": (runtime(providers=(Provider("OpenVINOExecutionProvider"),)), "provider 'OpenVINO"),
    "an option that loads a library": (
        runtime(providers=(Provider("TensorrtExecutionProvider", {"trt_extra_plugin_lib_paths": "/tmp/evil.so"}),)),
        "option trt_extra_plugin_lib_paths='/tmp/evil.so'",
    ),
    "a path as the value of an option": (
        runtime(providers=(Provider("TensorrtExecutionProvider", {"trt_dla_core": "../x"}),)),
        "option trt_dla_core='../x'",
    ),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_settings_that_reach_beyond_the_network_are_refused(small_bundle: Bundle, case: str) -> None:
    wanted, told = FOREIGN[case]
    with pytest.raises(DeviceError) as caught:
        check_runtime(replace(small_bundle.manifest, runtime=wanted))
    assert told in caught.value.message


@pytest.mark.parametrize("target", ["server", "raspberry-pi", "jetson"])
def test_what_our_own_targets_ask_for_is_taken(target: str, tmp_path: Path, small_convnet: Callable[..., Model]) -> None:
    import edgesdk

    onnx.save(onnx.load_from_string(small_convnet().to_bytes()), tmp_path / "m.onnx")
    for precision in ("fp32", "fp16"):
        made = edgesdk.export(tmp_path / "m.onnx", target=target, precision=precision, out=tmp_path / f"{precision}.edge")
        check_foreign(made)


def test_a_model_that_reaches_for_files_is_refused_packed_or_not(small_bundle: Bundle, tmp_path: Path) -> None:
    files = {name: small_bundle.read(name) for name in small_bundle.manifest.files} | {"model.onnx": external("../x")}
    made = bundles.draft(Path("x"), replace(small_bundle.manifest, files={}), files)
    for bundle in (made, open_packed(pack(made, tmp_path))):
        with pytest.raises(DeviceError, match="tensors that lie in other files"):
            check_foreign(bundle)


def test_bundles_inside_a_bundle_are_judged_too(small_bundle: Bundle) -> None:
    bad = replace(small_bundle.manifest, runtime=runtime(name="pickle"), files={}, digest="")
    part = bundles.draft(Path("head.edge"), bad, {name: small_bundle.read(name) for name in small_bundle.manifest.files})
    files = {name: small_bundle.read(name) for name in small_bundle.manifest.files} | bundles.inside(part, "head.edge")
    with pytest.raises(DeviceError, match="runs in 'pickle'"):
        check_foreign(bundles.draft(Path("x"), replace(small_bundle.manifest, files={}), files))


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"\xff", b"[" * 100_000, b"PK\x03\x04", b'{"format": "edgesdk-bundle/1"}'])
def test_what_is_no_manifest_is_refused(raw: bytes) -> None:
    with pytest.raises(BundleError):
        read_manifest(raw, "sent")
