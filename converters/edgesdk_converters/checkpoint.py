"""Checkpoints: what a training has come to, in a file that is whole or not there, so that a stop of any kind costs little."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import MissingExtra, PassError

try:
    import torch
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file
    from torch import Tensor
except ImportError as _error:
    raise MissingExtra("torch", "torch") from _error

KEPT = 8
"""Checkpoints that a cache folder holds."""


@dataclass(frozen=True, eq=False)
class State:
    """All that decides how a training goes on."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Named:
    """A checkpoint in a file that the user named: what is wrong with it is an error. `key` tells trainings apart."""

    path: Path
    key: str

    def load(self) -> State | None:
        """None where there is no file. Raises PassError for one that is damaged, or of another training."""
        hint = "remove that file to begin anew, or give the model, data and settings that it was made with"
        try:
            with safe_open(self.path, "pt") as opened:
                facts = opened.metadata() or {}
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError) as error:
            raise PassError("train", f"checkpoint {self.path} cannot be read: {error}", hint) from error
        if facts.get("key") != self.key:
            raise PassError("train", f"checkpoint {self.path} is of another training", hint)
        if facts.get("digest") != _digest(tensors):  # the format has no checksum of its own
            raise PassError("train", f"checkpoint {self.path} cannot be read: it holds other values than were written", hint)
        return State(tensors, facts)

    def save(self, state: State) -> None:
        """Written beside and then renamed. Raises PassError where it cannot be."""
        facts = {**state.facts, "key": self.key, "digest": _digest(state.tensors)}
        beside = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.new")
        try:
            save_file(dict(state.tensors), beside, facts)
            with beside.open("rb") as written:
                os.fsync(written.fileno())
            beside.replace(self.path)
        except (SafetensorError, OSError) as error:
            told = f"checkpoint {self.path} cannot be written: {error}"
            raise PassError("train", told, "make room there, or name another place") from error
        finally:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)


class Cached:
    """A checkpoint in a cache folder, a file for each key: what is wrong with it costs time and nothing else."""

    def __init__(self, folder: Path, key: str, progress: Callable[[str], None]) -> None:
        self.folder, self.progress = folder, progress
        self.file = Named(folder / f"{key}.safetensors", key)
        self.told = False

    def load(self) -> State | None:
        """None where there is none; a damaged one is dropped."""
        try:
            return self.file.load()
        except PassError as error:
            self.progress(f"{error.message}; it is dropped, and training begins anew")
            with contextlib.suppress(OSError):
                self.file.path.unlink()
            return None

    def save(self, state: State) -> None:
        """Keeps the newest few of the folder. Where it cannot be written, that is said once; it is tried again the next time."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file.save(state)
        except (PassError, OSError) as error:
            if not self.told:
                self.progress(f"{error.message if isinstance(error, PassError) else error}; training goes on without checkpoints")
            self.told = True
        else:
            _keep_newest(self.folder, self.file.path)


def _keep_newest(folder: Path, mine: Path) -> None:
    """Drops all but the newest; names with a dot before them are what a killed process left half written.

    Others may do the same at the same time: what is gone already is none of our business.
    """
    found = []
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path != mine and (path.suffix == ".safetensors" or path.name.startswith(".")):
                with contextlib.suppress(OSError):
                    found.append((path.lstat().st_mtime_ns, path))
    for _, path in sorted(found, reverse=True)[KEPT - 1 :]:
        with contextlib.suppress(OSError):
            path.unlink()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
