"""What a device needs: the standard library, numpy and one runtime, and nothing of the workshop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import edgesdk

HEAVY = (
    "torch", "onnx", "onnx_ir", "onnxslim", "onnxscript", "hls4ml", "click", "rich", "google", "safetensors", "uvicorn",
    "httptools", "grpc",
)  # fmt: skip


def fresh(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter in which the heavy packages cannot be imported."""
    block = f"""
        import sys
        class Blocked:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {HEAVY!r}:
                    raise ImportError(f"{{name}} is blocked")
        sys.meta_path.insert(0, Blocked())
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(block) + textwrap.dedent(code), *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cut") / "cnn.edge"
    root = Path(__file__).parents[2]
    rng = np.random.default_rng(0)
    data = {"image": rng.standard_normal((300, 1, 28, 28)).astype(np.float32), "labels": np.zeros(300, np.int64)}
    np.savez(path.with_suffix(".npz"), **data)
    edgesdk.export(
        root / "examples/fashion/fashion_cnn.onnx", device="raspberry-pi-4", data=path.with_suffix(".npz"), max_drop=0.5, out=path
    )
    return path


def test_a_bundle_is_opened_verified_run_and_its_contract_checked_without_the_workshop(bundle_path: Path) -> None:
    code = """
        import json, sys, numpy as np, edgesdk
        path, data = sys.argv[1:]
        report = edgesdk.verify(path)
        with edgesdk.load(path) as session:
            out = session.run({"image": np.zeros((28, 28), np.uint8)}, raw=True)
        measured = edgesdk.measure(path, runs=20, data=data)
        print(json.dumps([report.contract.status, float(out["logits"].sum()), measured.contract.status]))
    """
    done = fresh(code, str(bundle_path), str(bundle_path.with_suffix(".npz")))
    assert done.returncode == 0, done.stderr
    verified, total, measured = json.loads(done.stdout)
    assert (verified, measured) == ("passed", "passed")
    assert total == pytest.approx(1.0, rel=1e-4)


def test_importing_edgesdk_imports_no_package_but_its_own() -> None:
    code = """
        import sys
        before = set(sys.modules)
        import edgesdk
        new = {name.split(".")[0] for name in set(sys.modules) - before}
        print(sorted(n for n in new if n not in sys.stdlib_module_names))
    """
    done = fresh(code)
    assert done.stdout.strip() == "['edgesdk']", done.stdout + done.stderr


def test_without_a_runtime_verify_checks_digests_and_says_that_no_more_was_possible(bundle_path: Path) -> None:
    code = """
        import sys
        class NoRuntime:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "onnxruntime":
                    raise ImportError("onnxruntime is blocked")
        sys.meta_path.insert(0, NoRuntime())
        import edgesdk
        report = edgesdk.verify(sys.argv[1])
        row = report.find("relative_error")
        print(report.contract.status, row.provenance, "onnxruntime" in row.method)
    """
    done = fresh(code, str(bundle_path))
    assert done.stdout.split() == ["pending", "unavailable", "True"], done.stdout + done.stderr


def test_a_missing_extra_is_an_import_error_that_says_what_to_install() -> None:
    code = """
        import edgesdk
        try:
            edgesdk.export("model.onnx", target="raspberry-pi")
        except ImportError as error:
            print(type(error).__name__, error.hint)
    """
    done = fresh(code)
    assert done.stdout.startswith("MissingExtra "), done.stdout + done.stderr
    assert "[convert]" in done.stdout


def test_the_face_is_sorted_and_complete() -> None:
    assert edgesdk.__all__ == sorted(edgesdk.__all__)
    for name in edgesdk.__all__:
        assert getattr(edgesdk, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = edgesdk.nonsense  # type: ignore[attr-defined]


def test_running_a_bundle_writes_nothing_of_it_into_the_users_home(bundle_path: Path, tmp_path: Path) -> None:
    """ONNX Runtime 1.29 and later notes what it runs under ~/.cache/Microsoft, and a number for the device, unless told not.

    It keeps still by itself where a variable of a build server (`CI`, `GITHUB_ACTIONS`, …) is set: the processes see none.
    """
    code = """
        import sys, numpy as np, edgesdk
        with edgesdk.load(sys.argv[1]) as session:
            session.run({"image": np.zeros((1, 1, 28, 28), np.float32)})
    """
    for switch, written in (({}, False), ({"ORT_DISABLE_TELEMETRY": "0"}, True)):
        home = tmp_path / str(written)
        home.mkdir()
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), str(bundle_path)],
            check=True,
            env=switch | {"PATH": os.environ["PATH"], "HOME": str(home)},
        )
        assert (home / ".cache" / "Microsoft").exists() == written
