"""The doctor: what is there, what is missing, what stands in the way, and the command for it."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec as real_find_spec
from pathlib import Path
from typing import Any

import pytest
import tomllib

from edgesdk import doctor
from edgesdk_targets import engine_cache
from tests.sdk.conftest import run_apart, run_here

ROOT = Path(__file__).resolve().parents[2]


def _checks(found: dict[str, Any]) -> dict[str, dict[str, str]]:
    assert len({check["name"] for check in found["checks"]}) == len(found["checks"])
    return {check["name"]: check for check in found["checks"]}


def _examine(tmp_path: Path, **environment: str) -> dict[str, dict[str, str]]:
    result = run_apart(["doctor", "--json"], tmp_path, environment=environment)
    assert result.code == 0, result.err
    return _checks(json.loads(result.out))


def _distribution(folder: Path, name: str, version: str) -> None:
    place = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_a_complete_installation_has_nothing_to_complain_about(tmp_path: Path) -> None:
    found = _examine(tmp_path)
    assert {check["state"] for check in found.values()} == {"ok"}
    assert all(not check["remedy"] for check in found.values())
    assert "CPUExecutionProvider" in found["onnxruntime"]["found"]


@pytest.mark.parametrize(("module", "extra"), [("onnxruntime", "cpu"), ("onnxslim", "convert"), ("torch", "torch")])
def test_what_is_missing_has_a_command_that_works_from_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, extra: str
) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == module else real_find_spec(name))
    found = _checks(doctor.examine().to_json())[f"[{extra}]"]
    assert found["state"] == "missing"
    assert module in found["found"]
    command = re.search(r"pip install -c (\S+) -e '\.\[(\w+)\]'", found["remedy"])
    assert command is not None, found["remedy"]
    assert (ROOT / command[1]).is_file()
    offered = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = [re.split(r"[><=]", entry)[0] for entry in offered[command[2]]]
    told = next(part for part in doctor.EXTRAS if part.name == extra)
    assert {package for package, _ in told.packages} <= set(wanted)
    result = run_here(["doctor"], tmp_path)
    assert result.code == 0
    assert "missing" in result.out
    assert max(map(len, result.out.splitlines())) <= 100


def test_every_extra_but_dev_is_looked_at() -> None:
    offered = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {extra.name for extra in doctor.EXTRAS} == set(offered) - {"dev"}


def test_two_builds_of_onnxruntime_are_flagged(tmp_path: Path) -> None:
    _distribution(tmp_path / "more", "onnxruntime-gpu", "1.19.0")
    found = _examine(tmp_path, PYTHONPATH=str(tmp_path / "more"))["onnxruntime builds"]
    assert found["state"] == "problem"
    assert "onnxruntime-gpu 1.19.0" in found["found"]
    assert re.search(r"onnxruntime \d", found["found"])
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in found["remedy"]


@pytest.mark.parametrize("name", ["onnxruntime-extensions", "onnxruntime_extensions", "onnxruntime-genai", "onnxruntime-tools"])
def test_companions_of_onnxruntime_are_no_builds(tmp_path: Path, name: str) -> None:
    _distribution(tmp_path / "more", name, "0.9.0")
    found = _examine(tmp_path, PYTHONPATH=str(tmp_path / "more"))
    assert "onnxruntime builds" not in found


@pytest.mark.parametrize(
    "name", ["onnxruntime-gpu", "onnxruntime_gpu", "onnxruntime-openvino", "onnxruntime-directml", "ort-nightly"]
)
def test_every_kind_of_build_is_known(tmp_path: Path, name: str) -> None:
    _distribution(tmp_path / "more", name, "1.0.0")
    found = _examine(tmp_path, PYTHONPATH=str(tmp_path / "more"))
    assert found["onnxruntime builds"]["state"] == "problem"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n", "SIGILL"),
        ("raise ImportError('libcudart.so.12: cannot open shared object file')\n", "libcudart.so.12"),
        ("import os\nos._exit(3)\n", "3"),
        ("__version__ = '0'\n", "get_available_providers"),
    ],
    ids=["dies by a signal", "lacks a library", "ends the process", "is something else"],
)
def test_a_broken_onnxruntime_does_not_end_the_doctor(tmp_path: Path, code: str, says: str) -> None:
    package = tmp_path / "broken/onnxruntime"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(code)
    found = _examine(tmp_path, PYTHONPATH=str(tmp_path / "broken"))["onnxruntime"]
    assert found["state"] == "problem"
    assert says in found["found"]
    assert found["remedy"]


def _jetson(monkeypatch: pytest.MonkeyPatch, **facts: str) -> dict[str, dict[str, str]]:
    told = {
        "board": "NVIDIA Jetson Orin Nano",
        "l4t": "# R36 (release), REVISION: 4.3",
        "driver": "540.4.0",
        "tensorrt": "10.3.0",
    }
    monkeypatch.setattr(engine_cache, "platform_facts", lambda: told | facts)
    diagnosis = doctor.examine()
    assert diagnosis.board == {name: value for name, value in (told | facts).items() if value}
    return _checks(diagnosis.to_json())


def test_a_jetson_whose_onnxruntime_lacks_tensorrt_is_told_which_build_to_take(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _jetson(monkeypatch)
    assert "tensorrt" not in found
    assert found["TensorRT provider"]["state"] == "missing"
    assert "CPUExecutionProvider" in found["TensorRT provider"]["found"]
    assert "onnxruntime-gpu build for your JetPack" in found["TensorRT provider"]["remedy"]


def test_a_jetson_without_tensorrt_is_told_to_install_jetpack(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _jetson(monkeypatch, tensorrt="")
    assert found["tensorrt"]["state"] == "problem"
    assert "nvidia-jetpack" in found["tensorrt"]["remedy"]


def test_elsewhere_nobody_asks_for_tensorrt() -> None:
    found = _checks(doctor.examine().to_json())
    assert "TensorRT provider" not in found
    assert "tensorrt" not in found


def test_the_doctor_and_the_lists_need_nothing_but_the_core(tmp_path: Path) -> None:
    """The one who has nothing installed needs them most."""
    blocker = tmp_path / "sitecustomize.py"
    blocker.write_text(
        "import sys, importlib.machinery as machinery\n"
        "absent = {'onnx', 'onnx_ir', 'onnxslim', 'onnxruntime', 'torch', 'safetensors', 'onnxscript'}\n"
        "find = machinery.PathFinder.find_spec\n"
        "machinery.PathFinder.find_spec = classmethod(\n"
        "    lambda cls, name, path=None, target=None: None if name in absent else find(name, path, target))\n"
    )
    found = _examine(tmp_path, PYTHONPATH=str(tmp_path))
    assert [name for name, check in found.items() if check["state"] == "missing"] == ["[cpu]", "[convert]", "[torch]"]
    for verb in ("targets", "devices", "--version"):
        result = run_apart([verb], tmp_path, environment={"PYTHONPATH": str(tmp_path)})
        assert result.code == 0, result.err
    result = run_apart(["export", "m.onnx", "--target", "server"], tmp_path, environment={"PYTHONPATH": str(tmp_path)})
    assert result.code == 1
    assert result.error["kind"] == "MissingExtra"
    assert ".[" in result.error["hint"]
