"""Bundles: what was written is what opens; whatever differs in a byte, a name or a record is refused."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import inspect
import io
import json
import os
import random
import shutil
import socket
import stat
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import edgesdk
from edgesdk_converters.errors import BundleError
from edgesdk_converters.signature import Input, Output, Signature
from edgesdk_targets import bundle as bundles
from edgesdk_targets import golden
from edgesdk_targets import report as reports
from edgesdk_targets.bundle import MANIFEST, Bundle, Golden, Manifest, Runtime, open_bundle, write
from edgesdk_targets.report import Report

Content = Callable[[int], tuple[Manifest, dict[str, bytes]]]
FLIPS = 500


def contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def hidden(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


def refused(path: Path) -> BundleError:
    with pytest.raises(BundleError) as caught:
        open_bundle(path)
    assert caught.value.message
    return caught.value


def resealed(data: dict[str, object]) -> bytes:
    """A manifest whose digest is right, whatever it says."""
    body = {key: value for key, value in data.items() if key != "digest"}
    digest = hashlib.sha256(bundles._canonical(body)).hexdigest()
    return bundles._canonical({**body, "digest": digest})


@pytest.fixture
def zipped(tmp_path: Path, small_bundle: Bundle) -> Path:
    files = {name: small_bundle.read(name) for name in small_bundle.manifest.files}
    return write(tmp_path / "net.edge.zip", replace(small_bundle.manifest, files={}, digest=""), files).path


def test_a_directory_opens_as_what_was_written(tmp_path: Path, numbered: Content) -> None:
    manifest, files = numbered(1)
    written = write(tmp_path / "a.edge", manifest, files)
    opened = open_bundle(tmp_path / "a.edge")
    assert opened.manifest == written.manifest == manifest.sealed(files)
    assert {name: opened.read(name) for name in opened.manifest.files} == files
    assert opened.payload_bytes == sum(map(len, files.values()))
    assert contents(tmp_path / "a.edge").keys() == {MANIFEST, *files}
    assert hidden(tmp_path) == []


def test_a_zip_opens_as_what_was_written(tmp_path: Path, numbered: Content) -> None:
    manifest, files = numbered(1)
    written = write(tmp_path / "a.zip", manifest, files)
    opened = open_bundle(tmp_path / "a.zip")
    assert opened.manifest == written.manifest
    assert {name: opened.read(name) for name in opened.manifest.files} == files
    assert opened.digest == write(tmp_path / "a.edge", manifest, files).digest
    assert hidden(tmp_path) == []


def test_every_field_of_a_manifest_survives(tmp_path: Path) -> None:
    entry = Golden(1, {"x": "g/i.npy"}, {"y": "g/o.npy"}, {"y": "g/s.npy"}, 1e-4, 0.0, "ort 1", "synthetic é漢")
    manifest = Manifest(
        "ñame", "t", "d", "fp16", Signature((Input("x", "float32", (1, "n")),), (Output("y", "bool", ()),)),
        Runtime("onnxruntime", "m.onnx", "1.22", (bundles.Provider("P", {"k": "v"}),), 3, False, config={"a.b": "1"}),
        role="head", golden=entry, model={"opset": 17}, recipe={"whole": [{"pass": "fold"}]}, history=({"name": "fold"},),
        contract={"max_drop_points": 0.5}, plan=({"step": "warm"},), notes=("n1", "n2"), made_by="test",
    )  # fmt: skip
    files = {"m.onnx": b"\x00\xff", "g/i.npy": b"", "g/o.npy": b"1", "g/s.npy": b"2"}
    write(tmp_path / "a.edge", manifest, files)
    assert open_bundle(tmp_path / "a.edge").manifest == manifest.sealed(files)


def test_a_draft_reads_like_the_bundle_it_becomes(tmp_path: Path, numbered: Content) -> None:
    manifest, files = numbered(2)
    draft = bundles.draft(tmp_path / "a.edge", manifest, files)
    assert draft.read("data/a.bin") == b"a 2"
    assert draft.digest == write(tmp_path / "a.edge", manifest, files).digest


def test_reading_a_file_that_is_not_there_lists_those_that_are(tmp_path: Path, numbered: Content) -> None:
    bundle = write(tmp_path / "a.edge", *numbered(1))
    with pytest.raises(BundleError, match=r"has no file 'nope'; it has: data/a\.bin, model\.bin, notes\.txt"):
        bundle.read("nope")


@pytest.mark.parametrize("name", ["a.edge", "a.zip"])
def test_two_writes_of_the_same_content_are_byte_identical(tmp_path: Path, numbered: Content, name: str) -> None:
    manifest, files = numbered(4)
    images = []
    for order, umask in ((files, 0o022), (dict(reversed(files.items())), 0o077)):
        before = os.umask(umask)
        try:
            path = write(tmp_path / name, manifest, order).path
        finally:
            os.umask(before)
        images.append(contents(path) if path.is_dir() else path.read_bytes())
    assert images[0] == images[1]


def test_bytes_depend_on_no_clock_locale_time_zone_or_hash_seed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from edgesdk_targets.bundle import *; from edgesdk_converters.signature import *\n"
        "time.time = lambda: float(sys.argv[2])\n"
        "r = Runtime('r', 'm', config={k: k for k in {'a', 'b', 'c'}})\n"
        "m = Manifest('ñ', 't', 'd', 'fp32', Signature((Input('x', 'f', (1,)),), ()), r)\n"
        "f = {k: k.encode() * 9 for k in {'m', 'q/r', 'q/s', 't'}}\n"
        "write(sys.argv[1] + '.edge', m, f); write(sys.argv[1] + '.zip', m, f)\n"
    )
    for index, (seed, locale, zone) in enumerate(
        [("0", "C", "UTC"), ("1", "C.UTF-8", "Asia/Tokyo"), ("77", "tr_TR.UTF-8", "EST")]
    ):
        env = os.environ | {"PYTHONHASHSEED": seed, "LC_ALL": locale, "TZ": zone}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / f"b{index}"), str(index * 1e9)], env=env, check=True)
    assert contents(tmp_path / "b0.edge") == contents(tmp_path / "b1.edge") == contents(tmp_path / "b2.edge")
    assert (tmp_path / "b0.zip").read_bytes() == (tmp_path / "b1.zip").read_bytes() == (tmp_path / "b2.zip").read_bytes()


def test_the_bytes_of_a_zip_are_the_same_in_every_python() -> None:
    """A device checks an archive by writing it anew with its own Python: this digest must never change."""
    made = bundles._zip({"b/c": b"22", "a": b"1"})
    assert hashlib.sha256(made).hexdigest() == "e9502c4c00174c42c02e7ac50e8db977da7a07e6ed22660cf67d9ad10384faf0"


def test_any_flipped_bit_in_a_directory_is_refused(small_bundle: Bundle) -> None:
    rng = random.Random(1)
    path = small_bundle.path
    files = sorted(p for p in path.rglob("*") if p.is_file())
    assert len(files) >= 5
    flips = [(file, rng.randrange(file.stat().st_size)) for file in files for _ in range(FLIPS // len(files) + 1)]
    for file, place in flips:
        good = file.read_bytes()
        bad = bytearray(good)
        bad[place] ^= 1 << rng.randrange(8)
        file.write_bytes(bad)
        refused(path)
        file.write_bytes(good)
    assert len(flips) >= FLIPS
    assert open_bundle(path).digest == small_bundle.digest


def test_any_flipped_bit_in_a_zip_is_refused(zipped: Path) -> None:
    rng = random.Random(2)
    good = zipped.read_bytes()
    tail = good.rindex(b"PK\x01\x02") - 2000
    places = [rng.randrange(len(good)) for _ in range(FLIPS)] + [rng.randrange(tail, len(good)) for _ in range(FLIPS)]
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 1 << rng.randrange(8)
        zipped.write_bytes(bad)
        refused(zipped)
    zipped.write_bytes(good)
    open_bundle(zipped)


def test_every_byte_of_the_zip_records_of_a_tiny_bundle_is_checked(tmp_path: Path, numbered: Content) -> None:
    path = write(tmp_path / "a.zip", *numbered(1)).path
    good = path.read_bytes()
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x81]) + good[place + 1 :])
        refused(path)


def test_every_file_cut_short_or_made_longer_is_refused(small_bundle: Bundle) -> None:
    for file in sorted(p for p in small_bundle.path.rglob("*") if p.is_file()):
        good = file.read_bytes()
        for bad in (b"", good[:1], good[: len(good) // 2], good[:-1], good + b"\0", good + b"\n", good + good):
            file.write_bytes(bad)
            refused(small_bundle.path)
        file.write_bytes(good)
    open_bundle(small_bundle.path)


def test_a_zip_cut_short_or_with_bytes_around_it_is_refused(zipped: Path) -> None:
    good = zipped.read_bytes()
    directory = good.rindex(b"PK\x01\x02")
    end = good.rindex(b"PK\x05\x06")
    for cut in (0, 1, 4, 30, len(good) // 2, directory, directory + 20, end, end + 4, len(good) - 1):
        zipped.write_bytes(good[:cut])
        refused(zipped)
    for bad in (good + b"\0", good + b"PK\x05\x06" + b"\0" * 18, b"\0" + good, b"#!/bin/sh\n" + good, good + good):
        zipped.write_bytes(bad)
        refused(zipped)


def test_a_missing_file_is_named(small_bundle: Bundle) -> None:
    for name in (MANIFEST, *small_bundle.manifest.files):
        file = small_bundle.path / name
        kept = file.read_bytes()
        file.unlink()
        assert repr(name) in refused(small_bundle.path).message
        file.write_bytes(kept)


@pytest.mark.parametrize("name", ["extra.txt", ".hidden", "golden/extra.npy", "golden/outputs/.x", "model.onnx~"])
def test_an_extra_file_is_named(small_bundle: Bundle, name: str) -> None:
    (small_bundle.path / name).write_bytes(b"")
    assert repr(name) in refused(small_bundle.path).message


@pytest.mark.parametrize("name", ["empty", "golden/empty", ".git", "a/b/c"])
def test_an_extra_empty_directory_is_refused(small_bundle: Bundle, name: str) -> None:
    (small_bundle.path / name).mkdir(parents=True)
    assert f"'{name}/'" in refused(small_bundle.path).message


def test_a_directory_nested_deeper_than_python_recurses_is_refused(small_bundle: Bundle) -> None:
    here = os.open(small_bundle.path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    refused(small_bundle.path)
    subprocess.run(["rm", "-rf", str(small_bundle.path)], check=True)


def test_links_are_refused_even_where_they_lead_to_the_right_bytes(small_bundle: Bundle, tmp_path: Path) -> None:
    for name in (MANIFEST, "model.onnx", "golden/inputs/0.npy"):
        file = small_bundle.path / name
        elsewhere = tmp_path / "elsewhere"
        shutil.move(file, elsewhere)
        file.symlink_to(elsewhere)
        refused(small_bundle.path)
        file.unlink()
        shutil.move(elsewhere, file)
    shutil.move(small_bundle.path / "golden", tmp_path / "golden")
    (small_bundle.path / "golden").symlink_to(tmp_path / "golden")
    refused(small_bundle.path)


def test_a_directory_in_the_place_of_a_file_is_refused(small_bundle: Bundle) -> None:
    for name in (MANIFEST, "model.onnx"):
        file = small_bundle.path / name
        kept = file.read_bytes()
        file.unlink()
        file.mkdir()
        (file / "inside").write_bytes(kept)
        refused(small_bundle.path)
        shutil.rmtree(file)
        file.write_bytes(kept)


@pytest.mark.parametrize("name", [MANIFEST, "model.onnx", "extra"])
@pytest.mark.timeout(20)
def test_a_pipe_or_socket_is_refused_and_never_waited_for(
    small_bundle: Bundle, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = small_bundle.path / name
    place.unlink(missing_ok=True)
    os.mkfifo(place)
    refused(small_bundle.path)
    place.unlink()
    monkeypatch.chdir(small_bundle.path)
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(name)
        refused(small_bundle.path)


def test_reading_a_damaged_bundle_leaks_no_descriptors(small_bundle: Bundle) -> None:
    file = small_bundle.path / "model.onnx"
    file.unlink()
    file.mkdir()
    (file / "x").write_bytes(b"")
    refused(small_bundle.path)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        refused(small_bundle.path)
    open_descriptors = len(os.listdir("/proc/self/fd"))
    assert open_descriptors == before


def repacked(files: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", compression) as archive:
        archive.comment = comment
        for name, data in files:
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr, info.compress_type = 3, 0o644 << 16, compression
            archive.writestr(info, data)
    return sink.getvalue()


def test_an_archive_packed_by_other_hands_is_refused(zipped: Path) -> None:
    with zipfile.ZipFile(zipped) as archive:
        files = [(name, archive.read(name)) for name in archive.namelist()]
    good = zipped.read_bytes()
    zipped.write_bytes(repacked(files))
    open_bundle(zipped)
    for bad in (
        repacked(files, zipfile.ZIP_DEFLATED),
        repacked(files, zipfile.ZIP_LZMA),
        repacked(list(reversed(files))),
        repacked(files, comment=b"hello"),
        repacked([*files, ("extra", b"")]),
        repacked([*files, ("folder/", b"")]),
        repacked(files[1:]),
        repacked([("../" + files[0][0], files[0][1]), *files[1:]]),
        repacked([*files, ("/etc/passwd", b"")]),
        repacked([*files, ("../../escape", b"")]),
        repacked([("model2.onnx" if name == "model.onnx" else name, data) for name, data in files]),
    ):
        assert bad != good
        zipped.write_bytes(bad)
        refused(zipped)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_an_archive_holds_twice_is_refused(zipped: Path) -> None:
    with zipfile.ZipFile(zipped) as archive:
        files = [(name, archive.read(name)) for name in archive.namelist()]
    for name, data in files:
        for bad in ([*files, (name, data)], [(name, b"first"), *files]):
            zipped.write_bytes(repacked(bad))
            refused(zipped)


def test_an_archive_with_an_encrypted_or_a_bloated_entry_is_refused(zipped: Path) -> None:
    good = zipped.read_bytes()
    central = good.index(b"PK\x01\x02")
    for offset, value in ((8, struct.pack("<H", 1)), (24, struct.pack("<L", 2**31)), (20, struct.pack("<L", 2**31))):
        zipped.write_bytes(good[: central + offset] + value + good[central + offset + len(value) :])
        refused(zipped)


HOSTILE_NAMES = [
    "../escape",
    "/etc/passwd",
    "a/../../b",
    "a//b",
    "./a",
    "a/",
    ".hidden",
    "a\\b",
    "a\0b",
    "-rf",
    "",
    "ä",
    "a b",
    "a\n",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_manifest_that_names_a_file_outside_the_bundle_is_refused(tmp_path: Path, numbered: Content, name: str) -> None:
    path = write(tmp_path / "a.edge", *numbered(1)).path
    data = json.loads((path / MANIFEST).read_bytes())
    data["files"][name] = data["files"]["notes.txt"]
    (path / MANIFEST).write_bytes(resealed(data))
    assert "bad payload name" in refused(path).message


@pytest.mark.parametrize("name", [*HOSTILE_NAMES, MANIFEST, f"{MANIFEST}/x", "model.bin/x"])
def test_a_payload_with_such_a_name_is_a_bug_of_the_caller(tmp_path: Path, numbered: Content, name: str) -> None:
    manifest, files = numbered(1)
    with pytest.raises(ValueError, match="bad payload name"):
        write(tmp_path / "a.edge", manifest, files | {name: b""})
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_that_refers_to_files_it_does_not_list_is_neither_written_nor_opened(
    tmp_path: Path, numbered: Content
) -> None:
    manifest, files = numbered(1)
    with pytest.raises(ValueError, match=r"'other\.bin' is not among the files"):
        write(tmp_path / "a.edge", replace(manifest, runtime=Runtime("onnxruntime", "other.bin")), files)
    path = write(tmp_path / "a.edge", manifest, files).path
    data = json.loads((path / MANIFEST).read_bytes())
    data["runtime"]["file"] = "other.bin"
    (path / MANIFEST).write_bytes(resealed(data))
    assert "'other.bin' is not among the files" in refused(path).message


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{}", b"[]", b"null", b"3", b'"edgesdk-bundle/1"', b"\xff\xfe", b"{" * 100_000, b"[" * 100_000 + b"]" * 100_000,
        b'{"format": "edgesdk-bundle/1"}', b'{"format": "edgesdk-bundle/2", "digest": "x"}', b'{"format": ["edgesdk-bundle/1"]}',
        b'{"format": "edgesdk-bundle/1", "x": NaN}', b'{"format": "edgesdk-bundle/1", "x": 1e999}',
        b'{"format": "edgesdk-bundle/1", "x": "\\ud800"}', b'{"format": "edgesdk-bundle/1", "digest": 3}',
        b'{"format": "edgesdk-bundle/1", "x": ' + b"9" * 6000 + b"}", b'{"format": "edgesdk-bundle/1", "x": Infinity}',
    ],
)  # fmt: skip
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, numbered: Content, text: bytes) -> None:
    path = write(tmp_path / "a.edge", *numbered(1)).path
    (path / MANIFEST).write_bytes(text)
    refused(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 3), ("files", []), ("files", {"model.bin": {"bytes": -1, "sha256": "x"}}), ("unknown", 1), ("role", "middle"),
        ("signature", {}), ("runtime", {"name": "x"}), ("golden", {}), ("history", {}), ("threads", True), ("notes", "text"),
        ("signature", {"inputs": [{"name": "x", "dtype": "f", "shape": [1], "preprocess": {"std": [0]}}], "outputs": []}),
    ],
)  # fmt: skip
def test_a_manifest_with_a_right_digest_and_wrong_fields_is_refused(
    tmp_path: Path, numbered: Content, field: str, value: object
) -> None:
    path = write(tmp_path / "a.edge", *numbered(1)).path
    data = json.loads((path / MANIFEST).read_bytes())
    data[field] = value
    (path / MANIFEST).write_bytes(resealed(data))
    refused(path)


def test_the_same_manifest_with_other_spacing_is_refused(tmp_path: Path, numbered: Content) -> None:
    path = write(tmp_path / "a.edge", *numbered(1)).path
    data = json.loads((path / MANIFEST).read_bytes())
    for text in (json.dumps(data), json.dumps(data, indent=1), json.dumps(data, indent=2, sort_keys=True)):
        (path / MANIFEST).write_text(text)
        refused(path)


def test_a_format_of_the_future_says_which_format_this_reads(tmp_path: Path, numbered: Content) -> None:
    path = write(tmp_path / "a.edge", *numbered(1)).path
    data = json.loads((path / MANIFEST).read_bytes())
    (path / MANIFEST).write_bytes(resealed(data | {"format": "edgesdk-bundle/9"}))
    error = refused(path)
    assert "'edgesdk-bundle/9'" in error.message
    assert "'edgesdk-bundle/1'" in error.message


@pytest.mark.parametrize("name", ["nothing", "a/b/c", "x" * 300, "bad\0name", "file.txt", "file.txt/below", "empty"])
def test_a_path_that_is_no_bundle_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.txt").write_text("no bundle")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / name)


def damages(path: Path) -> Mapping[str, Callable[[], object]]:
    model = path / "model.onnx"
    return {
        "flipped byte": lambda: model.write_bytes(model.read_bytes()[:-1] + b"\x00"),
        "cut short": lambda: model.write_bytes(model.read_bytes()[:-1]),
        "missing file": model.unlink,
        "extra file": lambda: (path / "x").write_bytes(b""),
        "extra directory": lambda: (path / "x").mkdir(),
        "changed manifest": lambda: (path / MANIFEST).write_bytes((path / MANIFEST).read_bytes().replace(b"fp32", b"fp16")),
        "gone": lambda: shutil.rmtree(path),
    }


@pytest.mark.parametrize("damage", list(damages(Path())))
def test_load_verify_and_measure_refuse_a_damaged_bundle(small_bundle: Bundle, damage: str) -> None:
    assert edgesdk.verify(small_bundle.path).bundle == small_bundle.digest
    damages(small_bundle.path)[damage]()
    for verb in (edgesdk.load, edgesdk.verify, edgesdk.measure):
        with pytest.raises(BundleError):
            verb(small_bundle.path)


def test_a_file_changed_after_opening_is_refused_when_read(tmp_path: Path, numbered: Content) -> None:
    bundle = write(tmp_path / "a.edge", *numbered(1))
    (bundle.path / "notes.txt").write_bytes(b"2")
    with pytest.raises(BundleError, match=r"notes\.txt was changed"):
        bundle.read("notes.txt")


def test_a_file_that_became_a_link_after_opening_is_refused_when_read(tmp_path: Path, numbered: Content) -> None:
    bundle = write(tmp_path / "a.edge", *numbered(1))
    os.rename(bundle.path / "notes.txt", tmp_path / "elsewhere")
    (bundle.path / "notes.txt").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"notes\.txt cannot be read"):
        bundle.read("notes.txt")


@pytest.mark.parametrize("name", ["a.edge", "a.zip"])
def test_what_is_no_bundle_is_left_alone(tmp_path: Path, numbered: Content, name: str) -> None:
    path = tmp_path / name
    for make in (lambda: path.write_text("thesis"), path.mkdir, lambda: (path.mkdir(), (path / "thesis").write_text("x"))):
        make()
        before = contents(path) if path.is_dir() else path.read_bytes()
        with pytest.raises(BundleError, match="is not an edgesdk bundle; it is left alone"):
            write(path, *numbered(1))
        assert (contents(path) if path.is_dir() else path.read_bytes()) == before
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert hidden(tmp_path) == []


def test_what_came_to_the_place_while_the_bundle_was_being_written_is_left_alone(
    tmp_path: Path, numbered: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.edge"
    real = bundles._write_directory

    def slow(place: Path, files: Mapping[str, bytes]) -> None:
        real(place, files)
        path.mkdir()
        (path / "thesis").write_text("years of work")

    monkeypatch.setattr(bundles, "_write_directory", slow)
    with pytest.raises(BundleError, match="left alone"):
        write(path, *numbered(1))
    assert (path / "thesis").read_text() == "years of work"
    assert hidden(tmp_path) == []


def test_nothing_is_written_through_a_link_or_into_a_missing_directory(tmp_path: Path, numbered: Content) -> None:
    (tmp_path / "link.edge").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="is a link"):
        write(tmp_path / "link.edge", *numbered(1))
    with pytest.raises(BundleError, match=r"directory .*/no/such does not exist"):
        write(tmp_path / "no" / "such" / "a.edge", *numbered(1))
    with pytest.raises(BundleError):
        write(tmp_path / ("x" * 255), *numbered(1))
    assert [p.name for p in tmp_path.iterdir()] == ["link.edge"]


def test_a_place_where_no_file_can_be_made_is_refused_before_any_work(
    tmp_path: Path, numbered: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BundleError, match=r"/proc/x\.edge cannot be written: no file can be made in /proc: "):
        bundles.check_place(Path("/proc/x.edge"))
    with pytest.raises(BundleError, match="File name too long"):  # that of what is written first, and then renamed
        bundles.check_place(tmp_path / ("x" * 245 + ".edge"))
    (tmp_path / "file").write_text("mine")
    for place in ("file/a.edge", "file/further/a.edge"):
        with pytest.raises(BundleError, match=r"the directory .* cannot be there: .*/file is a file"):
            bundles.check_place(tmp_path / place)
    bundles.check_place(tmp_path / "new.edge")
    bundles.check_place(write(tmp_path / "old.edge", *numbered(1)).path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "old.edge"]

    def interrupted(path: Path, mode: str) -> None:
        open(path, mode).close()
        raise KeyboardInterrupt

    monkeypatch.setattr(reports, "open", interrupted, raising=False)
    with pytest.raises(KeyboardInterrupt):
        bundles.check_place(tmp_path / "new.edge")
    assert hidden(tmp_path) == []


@pytest.mark.parametrize(("older", "newer"), [("d", "d"), ("z", "z"), ("d", "z"), ("z", "d")])
def test_a_bundle_of_either_form_replaces_one_of_either_form(tmp_path: Path, numbered: Content, older: str, newer: str) -> None:
    made = {"d": tmp_path / "made.edge", "z": tmp_path / "made.zip"}
    place = tmp_path / ("a.zip" if newer == "z" else "a.edge")
    os.rename(write(made[older], *numbered(1)).path, place)
    written = write(place, *numbered(2))
    assert open_bundle(place).manifest == written.manifest
    assert place.is_dir() == (newer == "d")
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("name", ["a.edge", "a[1]*?.edge", "a.zip"])
def test_replacing_again_and_again_leaves_one_bundle_and_no_leftovers(
    tmp_path: Path, numbered: Content, monkeypatch: pytest.MonkeyPatch, name: str, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(bundles, "_exchange", lambda a, b: False)
    for number in range(4):
        write(tmp_path / name, *numbered(number))
        assert open_bundle(tmp_path / name).read("notes.txt") == str(number).encode()
        assert [p.name for p in tmp_path.iterdir()] == [name]


def test_leftovers_of_dead_writers_go_and_those_of_living_ones_stay(tmp_path: Path, numbered: Content) -> None:
    import fcntl

    dead, living = (tmp_path / f".a.edge.{letter * 16}.tmp" for letter in "ab")
    others = [tmp_path / ".b.edge.cccccccccccccccc.tmp", tmp_path / ".a.edge.notes.tmp", tmp_path / ".a.edge.x"]
    for folder in (dead, living, *others):
        folder.mkdir()
        (folder / "half").write_bytes(b"x")
    held = os.open(living, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    write(tmp_path / "a.edge", *numbered(1))
    os.close(held)
    assert not dead.exists()
    assert living.exists()
    assert all(other.exists() for other in others)
    write(tmp_path / "a.edge", *numbered(1))
    assert not living.exists()


def test_an_older_bundle_that_a_dead_writer_moved_away_is_named_and_comes_back(tmp_path: Path, numbered: Content) -> None:
    path = write(tmp_path / "a.edge", *numbered(1)).path
    older = tmp_path / ".a.edge.old"
    os.rename(path, older)
    error = refused(path)
    assert error.hint == f"an interrupted export left the older one: mv {older} {path}"
    bundles._sweep(path)
    assert open_bundle(path).manifest.name == "n1"
    os.rename(path, older)
    write(path, *numbered(2))
    assert open_bundle(path).manifest.name == "n2"
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("name", ["a.edge", "a.zip"])
@pytest.mark.parametrize("exchange", [True, False])
def test_an_interrupt_at_any_step_leaves_the_older_bundle_and_nothing_else(
    tmp_path: Path, numbered: Content, monkeypatch: pytest.MonkeyPatch, name: str, exchange: bool
) -> None:
    path = write(tmp_path / name, *numbered(1)).path
    if not exchange:
        monkeypatch.setattr(bundles, "_exchange", lambda a, b: False)
    clean_up = set()  # an interrupt there is not undone
    for function, mark in ((write, "    finally:\n"), (bundles._put, "        finally:\n")):
        lines, first = inspect.getsourcelines(function)
        clean_up |= set(range(first + lines.index(mark), first + len(lines)))
    spared = ("_remove", "_lock", "_alone", "_settle")
    struck = 0
    for step in range(1, 600):
        left = step

        def strike(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal left
            code = frame.f_code
            if code.co_filename != bundles.__file__ or code.co_name in spared:
                return None
            if event == "line" and frame.f_lineno not in clean_up:
                left -= 1
                if left == 0:
                    raise KeyboardInterrupt
            return strike

        sys.settrace(strike)
        try:
            write(path, *numbered(2))
        except KeyboardInterrupt:
            struck += 1
        finally:
            sys.settrace(None)
        assert open_bundle(path).manifest.name in ("n1", "n2")
        assert hidden(tmp_path) == []
        if left > 0:
            break
    assert left > 0, "no write ran to its end"
    assert struck > 20


def test_a_failing_rename_on_the_way_without_exchange_puts_the_older_one_back(
    tmp_path: Path, numbered: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.edge", *numbered(1)).path
    monkeypatch.setattr(bundles, "_exchange", lambda a, b: False)
    real = os.rename

    def rename(a: Path, b: Path) -> None:
        if str(a).endswith(".tmp"):
            raise OSError(5, "Input/output error")
        real(a, b)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(BundleError, match="Input/output error"):
        write(path, *numbered(2))
    assert open_bundle(path).manifest.name == "n1"
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("name", ["a.edge", "a.zip"])
@pytest.mark.parametrize("exchange", [True, False])
def test_writers_in_many_threads_leave_one_whole_bundle(
    tmp_path: Path, numbered: Content, monkeypatch: pytest.MonkeyPatch, name: str, exchange: bool
) -> None:
    failures: list[BundleError] = []

    def work(number: int) -> None:
        try:
            for _ in range(8):
                write(tmp_path / name, *numbered(number))
        except BundleError as error:
            failures.append(error)

    if not exchange:
        monkeypatch.setattr(bundles, "_exchange", lambda a, b: False)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert open_bundle(tmp_path / name).manifest.name in {f"n{number}" for number in range(6)}
    assert hidden(tmp_path) == []


def test_where_the_kernel_or_the_file_system_cannot_exchange_the_older_bundle_still_gives_way(
    tmp_path: Path, numbered: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Libc:
        number = errno.EINVAL

        def renameat2(self, *_: object) -> int:
            ctypes.set_errno(self.number)
            return -1

    for libc in (Libc(), object()):
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, libc=libc, **__: libc)
        for number in (1, 2):
            write(tmp_path / "a.edge", *numbered(number))
        assert open_bundle(tmp_path / "a.edge").manifest.name == "n2"
    broken = Libc()
    broken.number = errno.EIO
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: broken)
    with pytest.raises(BundleError, match="Input/output error"):
        write(tmp_path / "a.edge", *numbered(3))
    assert open_bundle(tmp_path / "a.edge").manifest.name == "n2"
    assert hidden(tmp_path) == []


def test_an_archive_that_another_user_may_read_follows_the_umask(tmp_path: Path, numbered: Content) -> None:
    before = os.umask(0o022)
    try:
        path = write(tmp_path / "a.zip", *numbered(1)).path
        folder = write(tmp_path / "a.edge", *numbered(1)).path
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert stat.S_IMODE((folder / MANIFEST).stat().st_mode) == 0o644
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_the_report_lies_beside_the_bundle(tmp_path: Path, numbered: Content) -> None:
    for name in ("a.edge", "b.zip", "c.edge.zip"):
        bundle = write(tmp_path / name, *numbered(1))
        place = bundles.report_path(bundle.path)
        assert place == tmp_path / f"{name[0]}.report.json"
        with pytest.raises(BundleError, match="cannot be read"):
            bundle.report()
        Report("m", "t", "d", bundle.digest, ()).save(place)
        assert bundle.report().bundle == bundle.digest
        for bad in ("", "{}", '{"format": "x"}', "[" * 100_000):
            place.write_text(bad)
            with pytest.raises(BundleError):
                bundle.report()


def test_golden_vectors_of_a_written_bundle_read_back(small_bundle: Bundle) -> None:
    cases = golden.load(open_bundle(small_bundle.path), "inputs")
    assert len(cases) == 2
    assert cases[0]["x"].shape == (1, 3, 8, 8)
    assert not np.array_equal(cases[0]["x"], cases[1]["x"])
