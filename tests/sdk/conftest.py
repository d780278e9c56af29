"""The real command line, in this process or in one of its own, on a folder of small models and bundles."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgesdk
from edgesdk_targets.bundle import Bundle

from ..fashion import samples

COMMAND = (sys.executable, "-m", "edgesdk.cli")
_ERROR = re.compile(r"edgesdk: (?P<kind>[A-Z]\w+): (?P<message>.*?)(?: -> (?P<hint>.*))?")


@dataclass(frozen=True)
class Result:
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> re.Match[str]:
        """The one error line; its groups are kind, message and hint."""
        assert "Traceback" not in self.err, self.err
        found = [line for line in self.err.splitlines() if line.startswith("edgesdk:")]
        assert len(found) == 1, f"{len(found)} error lines in:\n{self.err}"
        assert self.err.splitlines()[-1] == found[0], f"something follows the error:\n{self.err}"
        match = _ERROR.fullmatch(found[0])
        assert match is not None, f"not the format of an error: {found[0]}"
        return match


def run_here(arguments: str | Sequence[str], folder: Path) -> Result:
    """The command line in this process, as if typed in `folder`; what it imports from there is forgotten again."""
    from edgesdk import cli

    out, err = io.StringIO(), io.StringIO()
    before, path, argv, cwd = set(sys.modules), list(sys.path), sys.argv, os.getcwd()
    code = 0
    try:
        os.chdir(folder)
        sys.argv = ["edgesdk", *_words(arguments)]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.main()
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        os.chdir(cwd)
        sys.argv, sys.path[:] = argv, path
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
                del sys.modules[name]
    return Result(code, out.getvalue(), err.getvalue())


def run_apart(
    arguments: str | Sequence[str],
    folder: Path,
    *,
    environment: dict[str, str] | None = None,
    obeying: bool = False,
    umask: int = -1,
) -> Result:
    """The command line in a process of its own; `obeying` file permissions, which root's processes otherwise do not."""
    done = subprocess.run(
        [*COMMAND, *_words(arguments)], cwd=folder, capture_output=True, check=False, umask=umask, timeout=120,
        env=os.environ | (environment or {}), preexec_fn=_obey_permissions if obeying and os.geteuid() == 0 else None,
    )  # fmt: skip
    return Result(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


def _words(arguments: str | Sequence[str]) -> Sequence[str]:
    return shlex.split(arguments) if isinstance(arguments, str) else arguments


def _obey_permissions() -> None:
    """Give up root's privilege to read and write whatever the file modes say (capabilities(7))."""
    libc = ctypes.CDLL(None, use_errno=True)
    drop_from_bounding_set, dac_override, dac_read_search = 24, 1, 2
    for capability in (dac_override, dac_read_search):
        if libc.prctl(drop_from_bounding_set, capability, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "a test cannot give up its privileges")


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Everything below a folder: mode and content (of a link: where it points) by relative path."""
    found = {}
    for place in sorted(folder.rglob("*")):
        name = str(place.relative_to(folder))
        if "__pycache__" in name:
            continue
        mode = place.lstat().st_mode
        if place.is_symlink():
            found[name] = (mode, os.fsencode(place.readlink()))
        else:
            found[name] = (mode, place.read_bytes() if place.is_file() else b"")
    return found


def graph_model(
    nodes: Sequence[onnx.NodeProto],
    *,
    inputs: Sequence[onnx.ValueInfoProto] | None = None,
    outputs: Sequence[onnx.ValueInfoProto] | None = None,
    weights: Sequence[onnx.TensorProto] = (),
    opset: int | None = 20,
    ir: int = 9,
) -> onnx.ModelProto:
    """A model around nodes; by default from x, float 1x8, to y of any shape of rank 2."""
    inputs = inputs if inputs is not None else [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])]
    outputs = outputs if outputs is not None else [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None])]
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), list(weights))
    model = helper.make_model(graph, ir_version=ir)
    del model.opset_import[:]
    if opset is not None:
        model.opset_import.append(helper.make_opsetid("", opset))
    return model


def dense(weights: np.ndarray, rows: int | str = 1, name: str = "w") -> onnx.ModelProto:
    """y = x @ weights."""
    wide, narrow = weights.shape
    return graph_model(
        [helper.make_node("MatMul", ["x", name], ["y"], name="dense")],
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, wide])],
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, narrow])],
        weights=[numpy_helper.from_array(weights.astype(np.float32), name)],
    )


def _fill(folder: Path) -> None:
    rng = np.random.default_rng(7)
    weights = rng.standard_normal((8, 4))
    samples = rng.standard_normal((200, 8)).astype(np.float32)
    labels = (samples @ weights).argmax(axis=1)
    onnx.save(dense(weights), folder / "m.onnx")
    onnx.save(dense(weights, rows="batch"), folder / "dynamic.onnx")
    np.savez(folder / "x.npz", x=samples[:1])
    np.savez(folder / "check.npz", x=samples, labels=labels)
    # Classes 0 and 1 differ by less than fp16 resolves, so that fp16 answers 0 where the source answers 1.
    near = np.tile(rng.uniform(1, 2, (8, 1)), (1, 2)).astype(np.float16).astype(np.float64)
    near[:, 1] += 1e-4 * rng.uniform(0.5, 1, 8) * np.where(np.arange(8) % 2, 1, -1)
    onnx.save(dense(near), folder / "near.onnx")
    near_labels = (samples @ near.astype(np.float32)).argmax(axis=1)
    np.savez(folder / "near.npz", x=samples, labels=near_labels)
    for arguments in (
        ("m.onnx", "--target", "raspberry-pi", "--out", "older.edge"),
        ("m.onnx", "--target", "raspberry-pi", "--out", "older.zip"),
        ("m.onnx", "--target", "jetson", "--out", "jetson.edge"),
        ("m.onnx", "--target", "server", "--data", "check.npz", "--max-drop", "1", "--out", "judged.edge"),
    ):
        done = run_here(["export", *arguments], folder)
        assert done.code == 0, done.err


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that every test starts from; not to be changed."""
    folder = tmp_path_factory.mktemp("template")
    _fill(folder)
    return folder


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    """m.onnx, dynamic.onnx, near.onnx; x, check and near.npz; older.edge, older.zip, jetson.edge and judged.edge."""
    place = tmp_path / "work"
    shutil.copytree(template, place, symlinks=True)
    return place


@pytest.fixture(scope="session")
def split(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A Fashion-MNIST network in two parts, 2,352 bytes between them, 10 logits out."""
    net = Path(__file__).parents[2] / "examples" / "fashion" / "fashion_cnn.onnx"
    out = tmp_path_factory.mktemp("parts") / "cnn.edge"
    data = {"data": samples("t10k", 0, 300), "train": samples("train", 0, 200)}
    return edgesdk.export(net, device="raspberry-pi-4", split="auto", payload_bits=4, max_drop=2.0, out=out, **data)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A function that mounts an empty tmpfs with the given options and returns its place."""
    places: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path / f"disk{len(places)}"
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "edgesdk-test", str(place)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"this test needs to mount a tmpfs (run as root): {done.stderr.strip()}"
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", str(place)], check=True)
