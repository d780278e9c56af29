"""An export that is killed at any moment leaves the older bundle or the newer one, whole; the next one cleans up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.sdk.conftest import dense, run_here

# Imports everything, opens no session (so that it has no threads), then forks one real command line after another.
_FORKS = """
import json, os, signal, sys, time
from edgesdk import cli
import edgesdk.exporting, edgesdk.arguments, edgesdk_converters.reference, edgesdk_converters.fold, edgesdk_targets.onnx_runner
import edgesdk_converters.cost, edgesdk_converters.calibration, edgesdk_targets.raspberry_pi

def start(arguments):
    child = os.fork()
    if child == 0:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1), os.dup2(silence, 2)
        sys.argv = ["edgesdk", *arguments]
        try:
            cli.main()
        except SystemExit as stop:
            os._exit(stop.code or 0)
        os._exit(0)
    return child

for line in sys.stdin:
    arguments, after_s = json.loads(line)
    begin = time.perf_counter()
    child = start(arguments)
    if after_s is not None:
        time.sleep(max(0.0, after_s - (time.perf_counter() - begin)))
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    print(json.dumps([os.waitstatus_to_exitcode(status), time.perf_counter() - begin]), flush=True)
"""


class _Forks:
    """A process that runs command lines in forks of itself and kills them when it is told to."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _FORKS], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, arguments: list[str], after_s: float | None = None) -> tuple[int, float]:
        """Exit code and seconds taken."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([arguments, after_s]) + "\n")
        self.process.stdin.flush()
        code, seconds = json.loads(self.process.stdout.readline())
        return code, seconds

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=10)
        self.process.stdout.close()


def _verified(path: Path) -> str:
    """The digest that `edgesdk verify` reports; an assertion fails where it refuses the bundle."""
    result = run_here(["verify", str(path), "--json"], path.parent)
    assert result.code == 0, result.err
    digest: str = json.loads(result.out)["bundle"]
    return digest


@pytest.mark.parametrize(("end", "kills"), [(".edge", 50), (".zip", 20)])
def test_a_killed_export_leaves_one_whole_bundle(tmp_path: Path, end: str, kills: int) -> None:
    rng = np.random.default_rng(11)
    for name in ("older", "newer"):
        onnx.save(dense(rng.standard_normal((512, 512))), tmp_path / f"{name}.onnx")
    out = tmp_path / f"b{end}"
    older = ["export", "older.onnx", "--target", "raspberry-pi", "--out", out.name]
    newer = ["export", "newer.onnx", "--target", "raspberry-pi", "--out", out.name]
    forks = _Forks(tmp_path)
    try:
        assert forks(newer)[0] == 0
        of_newer = _verified(out)
        assert forks(older)[0] == 0
        of_older = _verified(out)
        assert of_older != of_newer
        whole = sorted(place.name for place in tmp_path.iterdir())
        shares = [*rng.uniform(0, 1, kills // 2), *rng.uniform(0.85, 1.02, kills - kills // 2)]
        shares += [*rng.uniform(0, 1, 2 * kills)]  # only used while too few were really killed
        ends: list[tuple[int, bool]] = []
        for share in shares:
            if len(ends) >= kills and sum(code == -9 for code, _ in ends) >= kills // 2:
                break
            code, lasts = forks(older)  # the same work a moment ago: the clock for this kill
            assert code == 0
            moment = share * lasts
            code, _ = forks(newer, float(moment))
            found = _verified(out)
            assert found in (of_older, of_newer), f"killed after {moment:.4f} of {lasts:.4f} s"
            assert code != 0 or found == of_newer
            ends.append((code, found == of_newer))
            after, _ = forks(older)
            assert after == 0
            assert _verified(out) == of_older
            assert sorted(place.name for place in tmp_path.iterdir()) == whole, f"killed after {moment:.4f} of {lasts:.4f} s"
            beside = json.loads((tmp_path / "b.report.json").read_text())
            assert beside["bundle"] == of_older
    finally:
        forks.close()
    assert sum(code == -9 for code, _ in ends) >= kills // 2, "most exports must really have been killed"


def test_an_export_killed_before_its_report_is_in_place_leaves_nothing_for_good(tmp_path: Path) -> None:
    """The one moment that random ones seldom meet: the report is written beside its place, and not yet there."""
    onnx.save(dense(np.ones((8, 4))), tmp_path / "m.onnx")
    code = (
        "import os, sys\nfrom edgesdk import cli\nreplace = os.replace\n"
        "def die(a, b, **k):\n    os._exit(9) if 'report' in str(b) else replace(a, b, **k)\n"
        "os.replace = die\ncli.main()\n"
    )
    arguments = ["export", "m.onnx", "--target", "server", "--out", "b.edge"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr
    assert run_here(arguments, tmp_path).code == 0
    assert sorted(place.name for place in tmp_path.iterdir()) == ["b.edge", "b.report.json", "m.onnx"]
