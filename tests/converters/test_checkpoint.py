"""Checkpoints: what was written comes back to the bit or is refused; a cache folder stays small and never stops a training."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from edgesdk_converters.checkpoint import KEPT, Cached, Named, State
from edgesdk_converters.errors import PassError

KEY = "ab" * 32


def state(seed: int = 0, size: int = 1000) -> State:
    made = torch.Generator().manual_seed(seed)
    tensors = {
        "now/w": torch.randn(size, generator=made),
        "step/w": torch.tensor(3.0),
        "now/half": torch.randn(3, 5, generator=made).to(torch.bfloat16),
        "now/none": torch.zeros(0, 4),
    }
    return State(tensors, {"step": "3"})


@contextmanager
def little_room() -> Iterator[None]:
    """Files cannot grow beyond 1000 bytes: what a full disk looks like to a writer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_state_comes_back_to_the_bit(tmp_path: Path) -> None:
    file, saved = Named(tmp_path / "c.safetensors", KEY), state()
    assert file.load() is None
    file.save(state(seed=1))
    file.save(saved)
    found = file.load()
    assert found is not None and found.facts["step"] == "3" and set(found.tensors) == set(saved.tensors)
    for name, value in saved.tensors.items():
        assert found.tensors[name].dtype == value.dtype and torch.equal(found.tensors[name], value)
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


def harm(path: Path, how: str) -> None:
    whole = bytearray(path.read_bytes())
    if how == "one bit":
        whole[-500] ^= 4
        path.write_bytes(whole)
    elif how == "cut short":
        path.write_bytes(whole[:-100])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "another file":
        path.write_bytes(b"nothing of the kind")
    elif how == "another training":
        Named(path, "cd" * 32).save(state())
    else:
        path.unlink()
        path.mkdir()


HARMS = ("one bit", "cut short", "empty", "another file", "another training", "a folder")


@pytest.mark.parametrize("how", HARMS)
def test_what_is_wrong_with_a_named_file_is_an_error(how: str, tmp_path: Path) -> None:
    file = Named(tmp_path / "c.safetensors", KEY)
    file.save(state())
    harm(file.path, how)
    with pytest.raises(PassError, match="is of another training" if how == "another training" else "cannot be read") as caught:
        file.load()
    assert "remove that file to begin anew" in caught.value.hint and str(file.path) in caught.value.message


@pytest.mark.parametrize("how", HARMS)
def test_what_is_wrong_in_a_cache_is_dropped(how: str, tmp_path: Path) -> None:
    said: list[str] = []
    cached = Cached(tmp_path, KEY, said.append)
    cached.save(state())
    harm(cached.file.path, how)
    assert cached.load() is None and len(said) == 1 and "it is dropped, and training begins anew" in said[0]
    if how != "a folder":
        assert cached.load() is None and len(said) == 1, "it is gone"
        cached.save(state())
        assert cached.load() is not None
    else:
        cached.save(state())
        assert "training goes on without checkpoints" in said[-1]


def test_a_full_disk_is_an_error_for_a_named_file_and_leaves_the_old_one(tmp_path: Path) -> None:
    file = Named(tmp_path / "c.safetensors", KEY)
    file.save(state(seed=1))
    before = file.path.read_bytes()
    with little_room(), pytest.raises(PassError, match=r"cannot be written: .*File too large") as caught:
        file.save(state())
    assert "make room" in caught.value.hint
    assert file.path.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]
    with pytest.raises(PassError, match="cannot be written"):
        Named(tmp_path / "no" / "c.safetensors", KEY).save(state())


def test_a_cache_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    said: list[str] = []
    full = Cached(tmp_path / "full", KEY, said.append)
    with little_room():
        full.save(state())
        full.save(state())
    assert len(said) == 1 and "File too large" in said[0] and "goes on without checkpoints" in said[0]
    assert not list(full.folder.iterdir())
    full.save(state())
    assert full.load() is not None, "there is room again"
    (tmp_path / "file").write_text("in the way")
    blocked = Cached(tmp_path / "file" / "training", KEY, said.append)
    assert blocked.load() is None
    blocked.save(state())
    assert "goes on without checkpoints" in said[-1]


def test_a_cache_keeps_the_newest_and_what_is_not_its_own(tmp_path: Path) -> None:
    said: list[str] = []
    for age in range(KEPT + 4):
        path = tmp_path / f"{age:02}.safetensors"
        path.write_bytes(b"x")
        os.utime(path, (1e9 - age, 1e9 - age))
    for name in (".tmpA1b2C3", ".00.safetensors.12345678.new"):
        (tmp_path / name).write_bytes(b"left by a killed process")
        os.utime(tmp_path / name, (1, 1))
    (tmp_path / "notes.txt").write_text("mine")
    os.utime(tmp_path / "notes.txt", (1, 1))
    cached = Cached(tmp_path, KEY, said.append)
    cached.save(state())
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted([f"{age:02}.safetensors" for age in range(KEPT - 1)] + ["notes.txt", f"{KEY}.safetensors"])
    os.utime(cached.file.path, (1, 1))  # a clock that is wrong
    cached.save(state())
    assert cached.load() is not None and not said


def test_many_at_once_disturb_nobody(tmp_path: Path) -> None:
    said: list[str] = []
    trainings = [Cached(tmp_path, f"{number:064x}", said.append) for number in range(12)]

    def work(number: int) -> None:
        for turn in range(15):
            trainings[number].save(state(number * 100 + turn))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(len(trainings))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    # a file that is being written may be taken for an old one: that costs its training a checkpoint, and nothing else
    assert all("goes on without checkpoints" in message for message in said), said
    trainings[0].save(state(1))
    left = [one for one in trainings if one.file.path.exists()]
    assert trainings[0] in left and len(left) <= KEPT and all(one.load() is not None for one in left)
