"""What an agent keeps: pieces at their offsets, whole things verified, names that are digests, a quota that holds."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgesdk.agent_store import DATA, Absent, Full, Limits, Misplaced, Store, check_plain
from edgesdk.far_measure import npz
from edgesdk_converters.errors import BundleError, DeviceError
from edgesdk_targets import bundle as bundles
from edgesdk_targets import packed
from edgesdk_targets.bundle import Bundle, open_bundle

from .conftest import tree

PAYLOAD = packed.PAYLOAD


@pytest.fixture
def older(template: Path) -> Bundle:
    return open_bundle(template / "older.edge")


@pytest.fixture
def payload(older: Bundle) -> bytes:
    return b"".join(packed.pieces(older))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", Limits())


def named(older: Bundle, name: str) -> Bundle:
    """The same bundle under another name, and so another digest."""
    files = {file: older.read(file) for file in older.manifest.files}
    return bundles.draft(older.path, replace(older.manifest, name=name, files={}, digest=""), files)


def test_a_bundle_in_pieces_is_the_bundle_and_lies_under_its_digest(store: Store, older: Bundle, payload: bytes) -> None:
    state = store.announce_bundle(older.manifest.to_bytes())
    assert (state.digest, state.bytes, state.offset, state.complete) == (older.digest, len(payload), 0, False)
    for offset in range(0, len(payload), 100):
        state = store.append(PAYLOAD, older.digest, offset, payload[offset : offset + 100])
        assert state.complete is (state.offset == len(payload))
    found = packed.open_packed(store.path(PAYLOAD, older.digest))
    assert found.digest == older.digest and found.read("model.onnx") == older.read("model.onnx")
    assert set(tree(store.folder)) == {".lock", f"{older.digest}.manifest", f"{older.digest}.payload"}
    assert store.folder.stat().st_mode & 0o777 == 0o700
    again = store.announce_bundle(older.manifest.to_bytes())
    assert again.complete and again.offset == len(payload)


def test_an_upload_goes_on_after_the_agent_was_started_anew(store: Store, older: Bundle, payload: bytes) -> None:
    store.announce_bundle(older.manifest.to_bytes())
    store.append(PAYLOAD, older.digest, 0, payload[:300])
    store.close()
    again = Store(store.folder, Limits())
    with pytest.raises(Absent, match="was not announced"):
        again.append(PAYLOAD, older.digest, 300, payload[300:])
    assert again.announce_bundle(older.manifest.to_bytes()).offset == 300
    assert again.append(PAYLOAD, older.digest, 300, payload[300:]).complete


def test_a_piece_of_elsewhere_is_refused_and_told_where_to_go_on(store: Store, older: Bundle, payload: bytes) -> None:
    store.announce_bundle(older.manifest.to_bytes())
    store.append(PAYLOAD, older.digest, 0, payload[:100])
    for offset in (0, 50, 101, len(payload)):
        with pytest.raises(Misplaced) as caught:
            store.append(PAYLOAD, older.digest, offset, payload[:10])
        assert caught.value.stored.offset == 100
    for piece in (b"", payload[100:] + b"x"):
        with pytest.raises(BundleError, match="were announced"):
            store.append(PAYLOAD, older.digest, 100, piece)
    assert store.append(PAYLOAD, older.digest, 100, payload[100:]).complete


def test_a_whole_that_is_not_what_was_announced_is_thrown_away(store: Store, older: Bundle, payload: bytes) -> None:
    store.announce_bundle(older.manifest.to_bytes())
    store.append(PAYLOAD, older.digest, 0, payload[:-1])
    with pytest.raises(BundleError, match="is not what the manifest says"):
        store.append(PAYLOAD, older.digest, len(payload) - 1, bytes([payload[-1] ^ 1]))
    assert set(tree(store.folder)) == {".lock"}
    with pytest.raises(Absent):
        store.path(PAYLOAD, older.digest)
    assert store.announce_bundle(older.manifest.to_bytes()).offset == 0
    assert store.append(PAYLOAD, older.digest, 0, payload).complete


def test_samples_are_kept_where_they_are_plain_and_what_was_announced(store: Store) -> None:
    data = npz({"x": np.arange(12, dtype=np.float32).reshape(3, 4), "labels": np.arange(3)})
    digest = hashlib.sha256(data).hexdigest()
    assert store.announce_data(digest, len(data)).offset == 0
    assert store.append(DATA, digest, 0, data).complete
    with np.load(store.path(DATA, digest)) as arrays:
        assert arrays["x"].shape == (3, 4)
    other = "0" * 64
    store.announce_data(other, len(data))
    with pytest.raises(BundleError, match="not what was announced"):
        store.append(DATA, other, 0, data)
    assert store.announce_data(digest, len(data)).complete


def savez(**arrays: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, **arrays)
    return sink.getvalue()


def bomb() -> bytes:
    sink = io.BytesIO()
    np.savez_compressed(sink, x=np.zeros(1_000_000, np.float32))
    return sink.getvalue()


def lying(shape: str) -> bytes:
    """An array whose header says more than there is."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(16))
    return sink.getvalue()


def overlapping() -> bytes:
    """Two entries of the directory that are the same bytes of the file."""
    data = savez(x=np.zeros(1000, np.float32))
    end = data.rindex(b"PK\x05\x06")
    begin = int.from_bytes(data[end + 16 : end + 20], "little")
    entry = data[begin:end]
    tail = data[end : end + 8] + (2).to_bytes(2, "little") * 2 + (2 * len(entry)).to_bytes(4, "little") + data[end + 16 :]
    return data[:begin] + entry + entry.replace(b"x.npy", b"y.npy") + tail


BAD_DATA: dict[str, Callable[[], bytes]] = {
    "a bomb": bomb,
    "objects": lambda: savez(x=np.array([{}], dtype=object)),
    "a header beyond the bytes": lambda: lying("(1000000000000,)"),
    "a header short of the bytes": lambda: lying("(3,)"),
    "overlapping members": overlapping,
    "no archive": lambda: b"x" * 100,
    "a directory without end": lambda: b"PK\x05\x06" + bytes(8) + (1 << 21).to_bytes(4, "little") + bytes(6),
    "a directory of 64 bits": lambda: b"PK\x06\x07" + bytes(16) + savez(x=np.zeros(3))[-22:],
    "something after its end": lambda: savez(x=np.zeros(3)) + b"x",
    "an empty archive": lambda: b"PK\x05\x06" + bytes(18),
    "text": lambda: lying("__import__('os').getpid()"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_samples_that_would_be_more_than_they_are_are_refused(store: Store, tmp_path: Path, case: str) -> None:
    data = BAD_DATA[case]()
    digest = hashlib.sha256(data).hexdigest()
    store.announce_data(digest, len(data))
    with pytest.raises(BundleError, match="samples"):
        store.append(DATA, digest, 0, data)
    assert set(tree(store.folder)) == {".lock"}


def test_what_numpy_writes_is_plain(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(savez(x=np.zeros((3, 0, 2)), labels=np.arange(3), name=np.array(["é", "b"])))
    check_plain(tmp_path / "a.npz")


@pytest.mark.parametrize("digest", ["", "a", "../../etc/passwd", "A" * 64, "0" * 63 + "/", "0" * 65, "é" * 64, "0" * 63 + "\n"])
def test_only_digests_become_names(store: Store, digest: str) -> None:
    before = tree(store.folder.parent)
    for call in (
        lambda: store.announce_data(digest, 10), lambda: store.append(DATA, digest, 0, b"x"), lambda: store.path(PAYLOAD, digest),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="no SHA-256 digest"):
            call()
    assert tree(store.folder.parent) == before


def test_links_that_lie_in_the_folder_are_not_followed(store: Store, older: Bundle, payload: bytes, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (store.folder / f"{older.digest}.payload.part").symlink_to(victim)
    (store.folder / f"{older.digest}.manifest.part").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        store.announce_bundle(older.manifest.to_bytes())
    assert victim.read_text() == "mine"


def test_what_was_used_longest_ago_makes_room_but_never_what_is_in_use(tmp_path: Path, older: Bundle, payload: bytes) -> None:
    three = [named(older, name) for name in ("a", "b", "c")]
    each = len(payload) + len(three[0].manifest.to_bytes())
    store = Store(tmp_path / "store", Limits(quota_bytes=2 * each + 100))
    for index, bundle in enumerate(three[:2]):
        store.announce_bundle(bundle.manifest.to_bytes())
        store.append(PAYLOAD, bundle.digest, 0, payload)
        for path in store.folder.glob(f"{bundle.digest}.*"):
            os.utime(path, (1000 + index, 1000 + index))
    assert store.bytes_used() == 2 * each
    store.in_use = lambda digest: True
    with pytest.raises(Full, match="do not fit"):
        store.announce_bundle(three[2].manifest.to_bytes())
    store.in_use = lambda digest: digest == three[0].digest
    store.announce_bundle(three[2].manifest.to_bytes())
    store.path(PAYLOAD, three[0].digest)
    with pytest.raises(Absent):
        store.path(PAYLOAD, three[1].digest)
    assert store.append(PAYLOAD, three[2].digest, 0, payload).complete and store.bytes_used() <= 2 * each + 100


def test_bundles_and_samples_beyond_the_limits_are_refused_before_they_are_sent(tmp_path: Path, older: Bundle) -> None:
    store = Store(tmp_path / "store", Limits(bundle_bytes=10, data_bytes=10))
    with pytest.raises(Full, match="allowed: 10"):
        store.announce_bundle(older.manifest.to_bytes())
    for size in (11, 0, -1):
        with pytest.raises(Full, match="allowed: 1 to 10"):
            store.announce_data("0" * 64, size)
    assert set(tree(store.folder)) == {".lock"}
    with pytest.raises(DeviceError, match="must be positive"):
        Limits(waiting=0)


def test_a_disk_that_is_full_keeps_what_was_there_before(
    store: Store, older: Bundle, payload: bytes, mounted: Callable[[str], Path]
) -> None:
    disk = mounted("size=100k")
    small = Store(disk / "store", Limits())
    with pytest.raises(Full, match="of the disk are free") as caught:
        small.announce_bundle(older.manifest.to_bytes())
    assert "the board's disk" in caught.value.hint
    small.close()


def test_a_folder_is_one_agents_alone(store: Store) -> None:
    with pytest.raises(DeviceError, match="is another agent's"):
        Store(store.folder, Limits())
    store.close()
    store.close()
    Store(store.folder, Limits()).close()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DeviceError, match="cannot hold what is sent here"):
        Store(tmp_path / "file", Limits())
