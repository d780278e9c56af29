"""A wheel, installed outside the tree: complete with the workshop, and useful without it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import edgesdk

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False, env=clean | environment
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    done = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "cnn.edge"
    edgesdk.export(ROOT / "examples/fashion/fashion_cnn.onnx", device="raspberry-pi-4", out=path)
    return path


def test_the_wheel_holds_four_packages_with_types_and_all_their_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for package in ("edgesdk", "edgesdk_converters", "edgesdk_targets", "edgesdk_firmware"):
        assert f"{package}/py.typed" in names
    tracked = run("git", "ls-files", "sdk", "targets", "converters", "firmware", cwd=ROOT).stdout.split()
    wanted = {name.split("/", 1)[1] for name in tracked if not name.endswith(".md")}
    assert wanted <= set(names)


def test_a_core_only_install_helps_verifies_and_examines(wheel: Path, bundle_path: Path, tmp_path: Path) -> None:
    made = run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    python = tmp_path / "venv" / "bin" / "python"
    done = run(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    edge = tmp_path / "venv" / "bin" / "edgesdk"
    assert "export" in run(edge, "--help", cwd=tmp_path).stdout
    verified = run(edge, "verify", bundle_path, cwd=tmp_path)
    assert verified.returncode == 0, verified.stderr
    assert "every digest holds" in verified.stdout and "unavailable" in verified.stdout and "contract: pending" in verified.stdout
    diagnosed = run(edge, "doctor", cwd=tmp_path)
    assert diagnosed.returncode == 0, diagnosed.stderr
    assert "missing: onnxruntime" in " ".join(diagnosed.stdout.split()) and "pip install" in diagnosed.stdout
    refused = run(edge, "export", ROOT / "examples/fashion/fashion_cnn.onnx", "--target", "raspberry-pi", cwd=tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.strip().splitlines()[-1].startswith("edgesdk: MissingExtra:")
    ran = run(edge, "run", bundle_path, "--inputs", "x.npz", cwd=tmp_path)
    assert ran.returncode == 1 and "Traceback" not in ran.stderr


def test_the_main_job_runs_from_a_wheel_outside_the_tree(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    done = run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    code = f"""
import sys; sys.path.insert(0, {str(site)!r})
import edgesdk; assert edgesdk.__file__.startswith({str(site)!r}), edgesdk.__file__
from edgesdk.cli import main; main()
"""
    model = ROOT / "examples/fashion/fashion_mobilenet.onnx"
    for arguments in (
        ("export", model, "--device", "raspberry-pi-4", "--out", "pi.edge"),
        ("export", model, "--target", "jetson", "--precision", "fp16", "--out", "jetson.edge"),
        ("verify", "pi.edge"),
        ("verify", "jetson.edge"),
        ("measure", "pi.edge", "--runs", "20"),
        ("targets",),
        ("devices", "raspberry-pi-4"),
    ):
        done = run(sys.executable, "-c", code, *arguments, cwd=tmp_path)
        assert done.returncode == 0, (arguments, done.stderr)
