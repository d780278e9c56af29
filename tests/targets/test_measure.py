"""Measuring: percentiles only where the runs carry them, a fresh process whose failures are errors, notes on whose times."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesdk_converters.errors import BundleError, DeviceError, EdgeError, MissingExtra
from edgesdk_converters.model import Model
from edgesdk_targets import bundle as bundles
from edgesdk_targets import device
from edgesdk_targets import measure as measuring
from edgesdk_targets.bundle import Bundle, Provider, open_bundle
from edgesdk_targets.measure import Timing, figures, measure, warm_up
from edgesdk_targets.runner import RunOptions


def timing(runs: tuple[float, ...]) -> Timing:
    return Timing(12.0, 8.0, runs, 10, 90_000_000, "onnxruntime 1.32, CPU")


def by_name(rows: Any) -> dict[str, Any]:
    return {row.name: row for row in rows}


def test_figures_are_those_of_the_runs() -> None:
    runs = tuple(float(v) for v in range(1, 101))
    rows = by_name(figures(timing(runs), "here"))
    latency = rows["latency_ms"]
    assert latency.value == latency.percentiles["p50"] == 50.5
    assert latency.percentiles["p90"] == pytest.approx(np.percentile(runs, 90))
    assert latency.percentiles["p99"] == pytest.approx(np.percentile(runs, 99))
    assert (latency.percentiles["mean"], latency.percentiles["min"], latency.n) == (50.5, 1.0, 100)
    assert rows["throughput_per_s"].value == pytest.approx(1000 / 50.5)
    assert (rows["load_ms"].value, rows["first_run_ms"].value, rows["peak_memory_bytes"].value) == (12.0, 8.0, 90_000_000)
    assert all(row.provenance == "measured" and row.where == "here" for row in rows.values())
    assert "after 10 warm-up runs" in latency.method


@pytest.mark.parametrize(("runs", "has"), [(1, False), (99, False), (100, True), (1000, True)])
def test_there_is_no_p99_under_a_hundred_runs(runs: int, has: bool) -> None:
    rows = by_name(figures(timing((2.0,) * runs), "here"))
    assert ("p99" in rows["latency_ms"].percentiles) is has
    assert rows["latency_ms"].n == runs


@pytest.mark.parametrize(
    ("runs", "noisy"), [((10.0, 10.0, 10.0), False), ((8.1, 10.0, 11.0), False), ((7.9, 10.0, 11.0), True), ((1.0,), False)]
)
def test_a_best_run_far_below_the_median_is_noise(runs: tuple[float, ...], noisy: bool) -> None:
    assert timing(runs).noisy is noisy


def test_warming_up_stops_when_five_runs_are_like_the_five_before() -> None:
    times = iter([100.0] + [50.0] * 4 + [30.0] * 5 + [20.0] * 100)
    runs = warm_up(lambda: next(times), limit_s=1e9)
    given = [100.0] + [50.0] * 4 + [30.0] * 5 + [20.0] * 100
    for count in range(10, runs):
        before, now = np.median(given[count - 10 : count - 5]), np.median(given[count - 5 : count])
        assert abs(now - before) > 0.05 * before
    assert abs(np.median(given[runs - 5 : runs]) - np.median(given[runs - 10 : runs - 5])) <= 0.05 * np.median(
        given[runs - 10 : runs - 5]
    )
    assert warm_up(lambda: 5.0, limit_s=1e9) == 10


def test_warming_up_ends_at_its_limit_even_when_times_never_settle() -> None:
    rng = random.Random(0)
    count = 0

    def once() -> float:
        nonlocal count
        count += 1
        return rng.choice([1.0, 10.0]) * 2.0**count

    assert warm_up(once, limit_s=0.0) == 3


def test_a_report_says_whose_times_it_holds(small_bundle: Bundle) -> None:
    report = measure(small_bundle.path, runs=5, threads=1)
    rows = by_name(row for row in report.rows if row.provenance != "unavailable")
    assert rows["latency_ms"].n == 5
    assert rows["latency_ms"].value > 0
    assert "p99" not in rows["latency_ms"].percentiles
    assert 20e6 < rows["peak_memory_bytes"].value < 2e9
    assert rows["artifact_bytes"].value == len(small_bundle.read("model.onnx"))
    assert rows["bundle_bytes"].value == small_bundle.payload_bytes
    assert report.bundle == small_bundle.digest
    assert report.machine["runtime"].startswith("onnxruntime ")
    assert report.machine["noisy"] in (True, False)
    assert any(note.startswith("noisy:") for note in report.notes) is report.machine["noisy"]
    assert not any("not on" in note for note in report.notes)


def test_a_report_says_how_it_was_run(
    small_convnet: Callable[..., Model], bundle_of: Callable[..., Bundle], tmp_path: Path
) -> None:
    """Threads as asked, or as the bundle has them, or as ONNX Runtime has made them; the precision, and the runtime's version."""
    import onnxruntime as ort

    bundle = bundle_of(small_convnet(), tmp_path / "a.edge")
    most = device.usable_cores()
    asked = measure(bundle.path, runs=2, threads=most)
    assert (asked.machine["threads"], asked.machine["precision"]) == (most, bundle.manifest.precision)
    assert asked.machine["runtime"] == f"onnxruntime {ort.__version__}, CPUExecutionProvider"
    latency = asked.find("latency_ms")
    assert latency is not None and f"{asked.machine['runtime']}, {most} thread" in latency.method
    made = replace(bundle.manifest, runtime=replace(bundle.manifest.runtime, threads=2), precision="int8", files={}, digest="")
    own = bundles.write(tmp_path / "b.edge", made, {name: bundle.read(name) for name in bundle.manifest.files})
    assert (lambda found: (found["threads"], found["precision"]))(measure(own.path, runs=2).machine) == (2, "int8")


def test_threads_that_nobody_chose_are_counted(small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([5, 9])
    monkeypatch.setattr(measuring, "_own_threads", lambda: next(counts))
    free = replace(small_bundle.manifest, runtime=replace(small_bundle.manifest.runtime, threads=0), files={}, digest="")
    files = {name: small_bundle.read(name) for name in small_bundle.manifest.files}
    bundle = bundles.write(small_bundle.path.with_name("free.edge"), free, files)
    assert measuring.take(bundle.path, 1, RunOptions()).threads == 5  # four more, and the one that calls
    monkeypatch.setattr(measuring, "_own_threads", lambda: None)
    assert measuring.take(bundle.path, 1, RunOptions()).threads is None
    assert measuring.take(bundle.path, 1, RunOptions(2)).threads == 2
    monkeypatch.undo()
    code = "import json, os, sys; from edgesdk_targets import measure, runner; from pathlib import Path\n"
    code += "print(measure.take(Path(sys.argv[1]), 1, runner.RunOptions()).threads)"
    done = subprocess.run([sys.executable, "-c", code, str(bundle.path)], capture_output=True, text=True, check=True)
    assert 1 <= int(done.stdout) <= (os.cpu_count() or 1)


def test_times_taken_here_are_never_those_of_the_board(
    tmp_path: Path, small_convnet: Callable[..., Model], bundle_of: Callable[..., Bundle]
) -> None:
    bundle = bundle_of(small_convnet(), tmp_path / "a.edge", target="raspberry-pi", device="raspberry-pi-4")
    report = measure(bundle.path, runs=2)
    assert "measured on this machine, not on raspberry-pi-4: its times say nothing about that board" in report.notes
    lacking = report.find("latency_ms", "device")
    assert lacking is not None
    assert (lacking.provenance, lacking.where, lacking.value) == ("unavailable", "raspberry-pi-4", None)
    here = report.find("latency_ms")
    assert here is not None
    assert "raspberry" not in here.where


def test_a_simulators_time_is_no_latency_even_in_a_part(small_bundle: Bundle, tmp_path: Path) -> None:
    files = {name: small_bundle.read(name) for name in small_bundle.manifest.files}
    logic = replace(small_bundle.manifest, device="pynq-z2", files={}, digest="")
    logic = replace(logic, runtime=replace(logic.runtime, name="fpga"))
    head = bundles.draft(Path("head.edge"), logic, files)
    whole = bundles.write(tmp_path / "logic.edge", logic, files)
    split = replace(small_bundle.manifest, files={}, digest="")
    parted = bundles.write(tmp_path / "split.edge", split, files | bundles.inside(head, "head.edge"))
    for bundle in (whole, parted):
        with pytest.raises(DeviceError, match="is logic for pynq-z2: here it is only simulated") as caught:
            measure(bundle.path, runs=1)
        assert "edgesdk verify" in caught.value.hint


@pytest.mark.parametrize("threads", [-1, device.usable_cores() + 1, 1000])
def test_more_threads_than_cores_are_refused_before_anything_runs(small_bundle: Bundle, threads: int) -> None:
    with pytest.raises(DeviceError, match=rf"threads is {threads}; this machine has {device.usable_cores()} core"):
        measure(small_bundle.path, runs=1, threads=threads)


@pytest.mark.parametrize("name", ["m.onnx", "m.pt2"])
def test_a_model_is_told_from_a_bundle(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(BundleError, match=rf"{name} is a model, and bundles are measured") as caught:
        measure(tmp_path / name)
    assert "edgesdk export" in caught.value.hint


@pytest.mark.parametrize("runs", [0, -1])
def test_no_runs_are_no_measurement(small_bundle: Bundle, runs: int) -> None:
    with pytest.raises(DeviceError, match=rf"{runs} runs are no measurement; allowed: 1 or more"):
        measure(small_bundle.path, runs=runs)


def test_a_provider_that_is_missing_is_told_from_the_measuring_process(
    tmp_path: Path, small_convnet: Callable[..., Model], bundle_of: Callable[..., Bundle]
) -> None:
    bundle = bundle_of(small_convnet(), tmp_path / "a.edge", providers=(Provider("TensorrtExecutionProvider"),))
    with pytest.raises(DeviceError, match="the bundle runs on TensorrtExecutionProvider") as caught:
        measure(bundle.path, runs=2)
    assert "--allow-fallback" in caught.value.hint
    report = measure(bundle.path, runs=2, allow_fallback=True)
    assert "CPUExecutionProvider" in report.machine["runtime"] and report.machine["fallback"] is True
    own = measure(bundle_of(small_convnet(), tmp_path / "b.edge").path, runs=2, allow_fallback=True)
    assert "fallback" not in own.machine


def test_a_damaged_bundle_or_one_without_golden_inputs_is_an_error(small_bundle: Bundle) -> None:
    manifest = replace(small_bundle.manifest, golden=None, files={}, digest="")
    plain = bundles.write(small_bundle.path.with_name("plain.edge"), manifest, {"model.onnx": small_bundle.read("model.onnx")})
    with pytest.raises(DeviceError, match="has no golden inputs to run"):
        measure(plain.path, runs=1)
    with pytest.raises(EdgeError, match="has no golden inputs to run"):
        measuring.take(plain.path, 1, RunOptions())
    (small_bundle.path / "model.onnx").write_bytes(b"")
    with pytest.raises(BundleError):
        measure(small_bundle.path, runs=1)


def test_the_measuring_process_reports_errors_as_one_json_object(
    small_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measuring.main([str(small_bundle.path), "--runs", "3", "--threads", "1"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert len(data["runs_ms"]) == 3
    assert data.keys() == set(Timing.__dataclass_fields__)
    assert measuring.main([str(small_bundle.path) + "-gone"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert "does not exist" in data["error"]
    assert data["hint"] == "give the path of a bundle"


class Fake:
    """A python that does as told instead of measuring."""

    def __init__(self, tmp_path: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = tmp_path / "python"
        self.path.write_text(f"#!{sys.executable} -S\nimport os, sys\n{body}\n")
        self.path.chmod(0o755)
        monkeypatch.setattr(measuring.sys, "executable", str(self.path))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (f"os.kill(os.getpid(), {int(signal.SIGKILL)})", "ended with -9"),
        ("sys.exit(3)", "ended with 3"),
        (
            "print('Traceback', file=sys.stderr); print('ValueError: boom', file=sys.stderr); sys.exit(1)",
            "ended with 1: Traceback ValueError: boom",
        ),
        ("print('hello')", "ended with 0"),
        ("print('{broken')", "ended with 0"),
        ("print(3)", "ended with 0"),
    ],
)  # fmt: skip
def test_a_measuring_process_that_dies_is_a_device_error(
    small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, said: str
) -> None:
    Fake(tmp_path, body, monkeypatch)
    with pytest.raises(DeviceError, match=said) as caught:
        measure(small_bundle.path, runs=1)
    assert "memory" in caught.value.hint


def test_what_others_print_around_the_result_does_no_harm(
    small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = json.dumps({n: getattr(timing((1.0, 1.0)), n) for n in Timing.__dataclass_fields__})
    Fake(tmp_path, f"print('a banner'); print({result!r}); print('bye')", monkeypatch)
    assert measure(small_bundle.path, runs=1).find("latency_ms").value == 1.0  # type: ignore[union-attr]


def test_modules_in_the_working_directory_do_not_pass_for_those_of_python(
    small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    for name in ("json", "numpy", "platform", "onnxruntime", "edgesdk_targets", "random"):
        (tmp_path / "work" / f"{name}.py").write_text("raise RuntimeError('the wrong one')\n")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert measure(os.path.relpath(small_bundle.path), runs=1).find("latency_ms") is not None


def test_a_missing_runtime_keeps_its_kind_of_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small_bundle: Bundle
) -> None:
    def missing(*_: object) -> None:
        raise MissingExtra("cpu", "onnxruntime")

    monkeypatch.setattr(measuring.runner, "load", missing)
    assert measuring.main([str(small_bundle.path)]) == 1
    assert "pip install" in json.loads(capsys.readouterr().out)["hint"]


def test_without_a_number_of_runs_two_seconds_worth_are_done_within_bounds(
    small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        def __init__(self, step_s: float) -> None:
            self.now, self.step = 0.0, step_s

        def perf_counter(self) -> float:
            self.now += self.step
            return self.now

    for step_s, runs in ((0.0625, 32), (1.0, 20), (2.0**-20, 1000)):
        monkeypatch.setattr(measuring, "time", Clock(step_s))
        taken = measuring.take(small_bundle.path, None, RunOptions(threads=1))
        assert len(taken.runs_ms) == runs
        assert taken.first_run_ms == pytest.approx(step_s * 1e3)


def test_the_facts_of_the_machine_are_plain_data() -> None:
    facts = measuring.machine_facts()
    assert {"cpu", "architecture", "cores", "governor", "memory_bytes", "system", "python", "numpy"} == facts.keys()
    assert json.loads(json.dumps(facts)) == facts
    assert measuring.peak_memory_bytes() > 10e6


def test_the_bundle_is_not_changed_by_measuring(small_bundle: Bundle) -> None:
    measure(small_bundle.path, runs=1)
    assert open_bundle(small_bundle.path).digest == small_bundle.digest
