"""The example target: installed as a third party's package, it exports, verifies and runs; a broken one stays out of the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgesdk_converters.model import Model

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_target"
CLI = "from edgesdk.cli import main; main()"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as pip installs it, with its entry point."""
    source = shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("source") / "custom_target")
    place = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", "--quiet"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "--target", str(place), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (place / "edgesdk_tinyboard.py").is_file()
    return place


def run(path: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(path)}
    return subprocess.run(
        [sys.executable, "-c", CLI, *arguments], capture_output=True, text=True, check=False, env=environment, cwd=cwd
    )


@pytest.fixture
def model_file(tmp_path: Path, small_convnet: Callable[..., Model]) -> Path:
    small_convnet().save(tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def test_the_command_line_exports_to_it_verifies_and_runs(installed: Path, tmp_path: Path, model_file: Path) -> None:
    done = run(installed, "export", str(model_file), "--device", "tinyboard-1", "--out", "net.edge", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "net.edge" / "manifest.json").read_text())
    assert (manifest["target"], manifest["device"]) == ("tinyboard", "tinyboard-1")
    assert manifest["runtime"]["threads"] == 1
    assert manifest["runtime"]["arena"] is False
    report = json.loads((tmp_path / "net.report.json").read_text())
    estimated = {row["name"]: row for row in report["rows"] if row["provenance"] == "estimated" and row["layer"] is None}
    assert estimated["latency_ms"]["where"] == "tinyboard-1"
    assert estimated["latency_ms"]["interval"]["low"] < estimated["latency_ms"]["value"]
    assert run(installed, "verify", "net.edge", cwd=tmp_path).returncode == 0
    np.savez(tmp_path / "x.npz", x=np.zeros((1, 3, 8, 8), np.float32))
    ran = run(installed, "run", "net.edge", "--inputs", "x.npz", "--outputs", "y.npz", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert np.load(tmp_path / "y.npz")["y"].shape == (1, 5)


def test_a_bundle_of_it_runs_where_the_plugin_is_not_installed(installed: Path, tmp_path: Path, model_file: Path) -> None:
    run(installed, "export", str(model_file), "--target", "tinyboard", "--out", "net.edge", cwd=tmp_path)
    import edgesdk

    assert edgesdk.load(tmp_path / "net.edge").run({"x": np.zeros((1, 3, 8, 8), np.float32)})["y"].shape == (1, 5)


def test_it_is_listed_with_its_options_and_device(installed: Path, tmp_path: Path) -> None:
    done = run(installed, "targets", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tinyboard-1" in done.stdout
    assert "reserve_mb=32" in done.stdout


def test_options_of_it_are_set_and_unknown_ones_refused(installed: Path, tmp_path: Path, model_file: Path) -> None:
    export = ("export", str(model_file), "--device", "tinyboard-1", "--out", "net.edge", "--set")
    tight = run(installed, *export, "reserve_mb=260", cwd=tmp_path)
    assert tight.returncode == 1
    assert "does not fit" in tight.stderr
    unknown = run(installed, *export, "colour=red", cwd=tmp_path)
    assert unknown.returncode == 2
    assert "known: reserve_mb" in unknown.stderr
    assert not (tmp_path / "net.edge").exists()


def test_a_broken_plugin_is_listed_as_broken_and_raises_only_when_asked_for(
    installed: Path, tmp_path: Path, model_file: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(installed, broken)
    (broken / "edgesdk_tinyboard.py").unlink()
    shutil.rmtree(broken / "__pycache__", ignore_errors=True)
    listed = run(broken, "targets", "--json", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "broken" in listed.stdout
    fine = run(broken, "export", str(model_file), "--target", "server", "--out", "net.edge", cwd=tmp_path)
    assert fine.returncode == 0, fine.stderr
    asked = run(broken, "export", str(model_file), "--target", "tinyboard", "--out", "other.edge", cwd=tmp_path)
    assert asked.returncode == 1
    assert "'tinyboard' is announced as edgesdk_tinyboard:TinyBoard, which does not import" in asked.stderr


def test_the_readme_names_what_the_example_has() -> None:
    text = (EXAMPLE / "README.md").read_text()
    for word in ("tinyboard-1", "reserve_mb", "edgesdk.targets", "edgesdk_tinyboard.py"):
        assert word in text
    assert sorted(p.name for p in EXAMPLE.iterdir() if not p.name.startswith("__")) == [
        "README.md",
        "edgesdk_tinyboard.py",
        "pyproject.toml",
    ]
