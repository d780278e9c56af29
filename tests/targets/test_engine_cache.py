"""The engine cache: an engine is found again only under all that it was built with, and never in the working directory."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from edgesdk_converters.errors import DeviceError
from edgesdk_targets import engine_cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of its own; the working directory is an empty one."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_folder_lies_in_the_users_cache_and_nowhere_else(cache: Path, tmp_path: Path) -> None:
    place = engine_cache.folder("d1")
    assert place.is_dir()
    assert place.is_relative_to(cache / "edgesdk" / "engines")
    assert list((tmp_path / "work").iterdir()) == []
    assert engine_cache.folder("d1") == place


def test_every_fact_of_the_board_and_the_digest_change_the_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"board": "Orin", "l4t": "R36", "driver": "540", "tensorrt": "10.3.0"}
    places = set()
    for digest, changed in itertools.product(("d1", "d2"), (None, *facts)):
        now = facts | ({changed: "other"} if changed else {})
        monkeypatch.setattr(engine_cache, "platform_facts", lambda now=now: now)
        places.add(engine_cache.folder(digest))
    assert len(places) == 2 * (1 + len(facts))


def test_facts_cannot_run_into_each_other(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = set()
    for board, l4t in (("ab", ""), ("a", "b"), ("", "ab")):
        monkeypatch.setattr(engine_cache, "platform_facts", lambda b=board, v=l4t: {"board": b, "l4t": v})
        places.add(engine_cache.folder("d"))
    assert len(places) == 3


def test_asking_whether_an_engine_is_built_makes_nothing(cache: Path) -> None:
    assert not engine_cache.is_built("d1")
    assert not cache.exists()
    (engine_cache.folder("d1") / "x.engine").write_bytes(b"")
    assert engine_cache.is_built("d1")
    assert not engine_cache.is_built("d2")


@pytest.mark.parametrize("value", ["", "relative/cache", "."])
def test_a_cache_directory_that_is_not_absolute_is_ignored(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert engine_cache.folder("d").is_relative_to(tmp_path / "home" / ".cache" / "edgesdk")
    assert list((tmp_path / "work").iterdir()) == []


def test_a_cache_that_cannot_be_made_is_a_device_error(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DeviceError, match="cannot be made: Not a directory") as caught:
        engine_cache.folder("d")
    assert "XDG_CACHE_HOME" in caught.value.hint

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(DeviceError, match="no home directory"):
        engine_cache.folder("d")


def test_tensorrt_libraries_are_read_off_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "libnvinfer.so",
        "libnvinfer.so.10",
        "libnvinfer.so.10.3.0",
        "libnvinfer_plugin.so.9.9.9",
        "libnvinfer.so.8.6.2",
    ):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path}{os.pathsep}/nowhere{os.pathsep}")
    assert set(engine_cache.platform_facts()["tensorrt"].split()) >= {"10", "10.3.0", "8.6.2"}
    assert "9.9.9" not in engine_cache.platform_facts()["tensorrt"]


def test_a_machine_that_is_no_jetson_has_empty_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError()))
    facts = engine_cache.platform_facts()
    assert (facts["board"], facts["l4t"], facts["driver"]) == ("", "", "")
