"""`edgesdk fit`: records of one board, of built projects and of this machine; what changed, how well it fits, what is refused."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgesdk
from edgesdk import fit_here, fit_logic, fit_reports, fit_table, probe_networks
from edgesdk.estimating import estimate
from edgesdk.fit_here import timed
from edgesdk.fitting import Fit, fit
from edgesdk_converters.cost import layers, total
from edgesdk_converters.errors import BundleError, DeviceError, EdgeError, RecipeError, TargetError
from edgesdk_converters.model import Model
from edgesdk_converters.reference import Reference
from edgesdk_targets import board_facts, device
from edgesdk_targets.figure import Figure, Interval, counted
from edgesdk_targets.fpga.hls4ml_constants import read_constants, shipped
from edgesdk_targets.fpga.hls4ml_fit import FEWEST
from edgesdk_targets.latency_fit import fitted_from_json
from edgesdk_targets.latency_model import Setting, predict, published_facts
from edgesdk_targets.report import Report
from edgesdk_targets.runner import silent

from ..targets.fpga.test_vendor_reports import COSIM, CSYNTH, UTILISATION, write
from .conftest import run_here
from .test_fpga import dense

PI = "raspberry-pi-4"
SLOWER = 1.8
NETS = ("residual 16 at 32", "separable 64 at 25", "dense 640", "conv1x1 128 at 28")


@pytest.fixture(scope="module")
def nets() -> dict[str, Model]:
    return {model.name: model for model in probe_networks.networks()}


@pytest.fixture
def reports(nets: dict[str, Model], tmp_path: Path) -> Callable[..., list[str]]:
    """A function that writes models and reports of a Pi 4 that takes SLOWER times its estimates on 4 threads."""

    def make(names: Sequence[str] = NETS, **changes: Any) -> list[str]:
        found = []
        for name in names:
            model = nets[name]
            path = tmp_path / f"{name}.onnx"
            model.save(path)
            time_ms = (
                SLOWER * predict(layers(model), published_facts("Raspberry Pi 4B"), Setting("onnxruntime", threads=4)).total_ms
            )
            figure = Figure("latency_ms", time_ms, "measured", "Raspberry Pi 4 Model B, 4 cores", "onnxruntime", n=50)
            rows = (figure, counted("artifact_bytes", total(layers(model)).weight_bytes + 900, "size of model.onnx"))
            machine = {
                "cpu": "Cortex-A72", "architecture": "aarch64", "is_device": True, "noisy": False,
                "runtime": "onnxruntime 1.32.0, CPUExecutionProvider", "threads": 4, "precision": "fp32",
            }  # fmt: skip
            made = replace(Report(name, "raspberry-pi", PI, "0" * 64, rows, machine=machine), **changes)
            made.save(tmp_path / f"{name}.json")
            found.append(f"{path}={tmp_path / name}.json")
        return found

    return make


def value(report: Report, name: str = "latency_ms") -> float:
    found = report.find(name)
    assert found is not None and found.value is not None
    return found.value


def test_reports_of_a_slower_board_move_estimates_towards_them(reports: Callable[..., list[str]], tmp_path: Path) -> None:
    found = fit(reports(), out=tmp_path / "pi.json")
    assert (found.kind, found.records, found.path) == ("latency", 4, tmp_path / "pi.json")
    assert "Raspberry Pi 4B, onnxruntime cpu, 4 threads, fp32" in found.about
    assert [name for name, _ in found.changes] == ["all"]
    assert 1.5 < found.changes[0][1] <= SLOWER
    assert found.mape("latency_ms", "before") == pytest.approx(100 * (1 - 1 / SLOWER))
    left_out = found.mape("latency_ms", "left_out")
    assert left_out is not None and left_out < 10
    known = fitted_from_json(json.loads(found.path.read_text()))
    assert (known.device, known.runtime, known.records) == ("Raspberry Pi 4B", "onnxruntime", 4)
    model = tmp_path / f"{NETS[0]}.onnx"
    plain, fitted = (value(estimate(model, device=PI, runtime="onnxruntime", threads=4, fit=one)) for one in (None, found.path))
    assert fitted / plain == pytest.approx(math.exp(known.scale))


def test_what_it_says_names_records_changes_errors_the_file_and_the_command(
    reports: Callable[..., list[str]], tmp_path: Path
) -> None:
    sources = reports()
    told = run_here(["fit", *sources], tmp_path)
    assert told.code == 0, told.err
    assert (tmp_path / f"{PI}.fit.json").is_file()
    lines = told.out.splitlines()
    assert lines[0].startswith("fitted to 4 records: Raspberry Pi 4B")
    assert lines[1].startswith("changed: all x 1.")
    assert all(any(line.startswith(name) for line in lines) for name in NETS)
    assert any("with each left out" in line and line.startswith("latency_ms: mean error 44.4 % before") for line in lines)
    command = " ".join(lines[lines.index(f"wrote {PI}.fit.json") + 1 :]).replace("   ", " ").replace("  ", " ")
    assert command == f"edgesdk estimate MODEL --device {PI} --runtime onnxruntime --fit {PI}.fit.json --threads 4"
    used = run_here(command.removeprefix("edgesdk ").replace("MODEL", f"'{NETS[0]}.onnx'"), tmp_path)
    assert used.code == 0 and "the networks fitted to, each left out" in " ".join(used.out.split())
    data = json.loads(run_here(["fit", *sources, "--json"], tmp_path).out)
    assert data["records"] == 4 and len(data["checked"]) == 4 and data["file"] == f"{PI}.fit.json"


def test_one_report_says_little_and_is_told_so(reports: Callable[..., list[str]], tmp_path: Path) -> None:
    found = fit(reports(NETS[:1]), out=tmp_path / "f.json")
    assert found.records == 1 and found.checked[0].left_out is None
    assert found.notes == ("1 record: from 3 on a fit is surer than the estimate as it was",)
    assert "not known with each left out" in " ".join(fit_table.shown(found).split())
    assert fit_table.shown(found).startswith("fitted to 1 record: ")
    assert fitted_from_json(json.loads(found.path.read_text())).whence == "fitted"


def test_two_reports_that_disagree_widen_the_interval(reports: Callable[..., list[str]], tmp_path: Path) -> None:
    sources = reports(NETS[:2])
    even = fitted_from_json(json.loads(fit(sources, out=tmp_path / "f.json").path.read_text()))
    path = tmp_path / f"{NETS[0]}.json"
    odd = Report.from_json(json.loads(path.read_text()))
    rows = tuple(replace(row, value=8 * row.value) if row.name == "latency_ms" else row for row in odd.rows)  # type: ignore[operator]
    replace(odd, rows=rows).save(path)
    uneven = fitted_from_json(json.loads(fit(sources, out=tmp_path / "f.json").path.read_text()))
    assert uneven.whence == "fitted few" and uneven.low > 1.5 * even.low


def test_a_noisy_report_is_told(reports: Callable[..., list[str]], tmp_path: Path) -> None:
    sources = reports()
    noisy = Report.from_json(json.loads((tmp_path / f"{NETS[2]}.json").read_text()))
    replace(noisy, machine={**noisy.machine, "noisy": True}).save(tmp_path / f"{NETS[2]}.json")
    assert [note for note in fit(sources, out=tmp_path / "f.json").notes if f"{NETS[2]}.json" in note]


def retold(source: str, **machine: Any) -> None:
    """Change what a report says of its run; None: it does not say it."""
    path = Path(source.rpartition("=")[2])
    found = Report.from_json(json.loads(path.read_text()))
    kept = {name: value for name, value in {**found.machine, **machine}.items() if value is not None}
    replace(found, machine=kept).save(path)


def test_threads_and_precision_are_those_that_the_reports_say(reports: Callable[..., list[str]], tmp_path: Path) -> None:
    sources = reports()
    four = fit(sources, out=tmp_path / "f.json")
    assert not any("taken for granted" in note for note in four.notes)
    for source in sources:
        retold(source, threads=1)
    one = fit(sources, out=tmp_path / "f.json")
    assert one.changes[0][1] < 0.7 * four.changes[0][1]
    assert "1 thread, fp32" in one.about and "--threads 1" in one.command and "--precision" not in one.command
    known = fitted_from_json(json.loads(one.path.read_text()))
    assert (known.threads, known.precisions) == ((1,), ("fp32",)) and {"conv", "dwconv", "fc"} <= set(known.operators)
    for source in sources:
        retold(source, precision="int8", threads=2)
    integers = fit(sources, out=tmp_path / "f.json")
    assert integers.about.endswith("2 threads, int8") and integers.command.endswith("--threads 2 --precision int8")
    retold(sources[0], threads=4)
    mixed = fitted_from_json(json.loads(fit(sources, out=tmp_path / "f.json").path.read_text()))
    assert (mixed.threads, mixed.precisions) == ((2, 4), ("int8",))


def test_older_reports_do_not_say_it_and_are_still_read(reports: Callable[..., list[str]], tmp_path: Path) -> None:
    sources = reports()
    for source in sources:
        retold(source, threads=None, precision=None)
    four, one = (fit(sources, threads=threads, out=tmp_path / "f.json") for threads in (None, 1))
    assert one.changes[0][1] < 0.7 * four.changes[0][1]
    assert "1 thread," in one.about
    (told,) = (note for note in four.notes if "taken for granted" in note)
    assert "how many threads ran; 4 are" in told and "fp32" in told and all(f"{name}.json" in told for name in NETS)
    (told,) = (note for note in one.notes if "taken for granted" in note)
    assert "threads" not in told.partition(":")[2]
    both = fit(sources, threads=4, precision="int8", out=tmp_path / "f.json")
    assert both.about.endswith("int8") and not any("taken for granted" in note for note in both.notes)
    with pytest.raises(DeviceError, match="threads is 5; Raspberry Pi 4B has 4 cores"):
        fit(sources, threads=5)


@pytest.mark.parametrize(
    ("machine", "options", "said"),
    [
        ({}, {"threads": 2}, "dense 640.json was measured with threads 4, and --threads says 2"),
        ({}, {"precision": "int8"}, "residual 16 at 32.json was measured with precision fp32, and --precision says int8"),
        ({"precision": "w8"}, {}, "is of w8, of which nothing is estimated; allowed: fp32, fp16, int8"),
        ({"threads": 8}, {}, "threads is 8; Raspberry Pi 4B has 4 cores"),
        ({"threads": "4"}, {}, "threads is 4; Raspberry"),
        ({"threads": 0}, {}, "threads is 0"),
        ({"precision": ["fp32"]}, {}, "nothing is estimated"),
    ],
)
def test_what_reports_and_options_say_must_agree(
    reports: Callable[..., list[str]], tmp_path: Path, machine: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    sources = reports()
    for source in sources:
        retold(source, **machine)
    if "dense" in said:
        for source in sources[:2]:
            retold(source, threads=None)
    with pytest.raises(DeviceError, match=said):
        fit(sources, out=tmp_path / "new.json", **options)
    assert not (tmp_path / "new.json").exists()


def test_a_fit_is_less_sure_of_what_it_was_not_fitted_to(reports: Callable[..., list[str]], tmp_path: Path) -> None:
    """Other threads and other kinds of layers widen and are told; integers are other arithmetic, and refused."""
    sources = reports()
    path = fit(sources, out=tmp_path / "f.json").path

    def latency(model: str | Path, **options: Any) -> Any:
        found = estimate(model, device=PI, runtime="onnxruntime", fit=path, **options).find("latency_ms")
        assert found is not None and found.value is not None and found.interval is not None
        return found

    net = tmp_path / f"{NETS[1]}.onnx"
    same, fewer = latency(net, threads=4), latency(net, threads=2)
    assert "fitted on 4 threads, not on 2" in fewer.method and fewer.extrapolated
    assert "fitted on" not in same.method and "then to 4 measurements of your own" in same.method
    assert math.log(fewer.interval.high / fewer.value) > 1.2 * math.log(same.interval.high / same.value)
    assert latency(net).value == same.value  # all cores
    with pytest.raises(DeviceError, match="the fit is of fp32, not of int8"):
        latency(net, precision="int8")
    assert "fitted in fp32, not in fp16" in latency(net, precision="fp16").method
    older = {name: value for name, value in json.loads(path.read_text()).items() if name not in ("threads", "precisions")}
    path.write_text(json.dumps(older))
    assert "an older edgesdk" in latency(net, threads=4).method and latency(net, threads=4).extrapolated


def test_a_report_that_measure_wrote_needs_no_options(tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "examples" / "fashion" / "fashion_cnn.onnx"
    edgesdk.export(path, device="this-machine", out=tmp_path / "net.edge")
    assert run_here("measure net.edge --runs 5 --threads 2 --out net.json", tmp_path).code == 0
    (read,) = fit_reports.of_reports(
        [f"{path}={tmp_path / 'net.json'}"], fit_reports.device_of([f"x={tmp_path / 'net.json'}"])[1], None, None, silent
    )
    assert read.record.setting == Setting("onnxruntime", "cpu", 2, "fp32") and not read.unsaid


def test_few_errors_of_ones_own_never_narrow_the_interval_and_large_ones_widen_it(
    reports: Callable[..., list[str]], nets: dict[str, Model], tmp_path: Path
) -> None:
    sources = reports()
    even = fitted_from_json(json.loads(fit(sources, out=tmp_path / "a.json").path.read_text()))
    assert even.low > 0.3
    odd = Report.from_json(json.loads((tmp_path / f"{NETS[0]}.json").read_text()))
    rows = tuple(replace(row, value=8 * row.value) if row.name == "latency_ms" else row for row in odd.rows)  # type: ignore[operator]
    replace(odd, rows=rows).save(tmp_path / f"{NETS[0]}.json")
    uneven = fitted_from_json(json.loads(fit(sources, out=tmp_path / "a.json").path.read_text()))
    assert uneven.low > 2 * even.low


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"machine": {"cpu": "AMD", "architecture": "x86_64", "is_device": False}}, DeviceError, "no raspberry-pi-4"),
        ({"machine": {"cpu": "Cortex-A72", "architecture": "aarch64", "is_device": True}}, DeviceError, "which runtime"),
        ({"device": "this-machine", "machine": {"cpu": "another CPU"}}, DeviceError, "no this-machine"),
        ({"device": "nonesuch"}, DeviceError, "unknown device"),
        ({"rows": ()}, DeviceError, "it has no latency_ms"),
        ({"model": "other"}, BundleError, "of the model 'other', not of 'residual 16 at 32'"),
        (
            {"rows": (Figure("latency_ms", 3.0, "estimated", PI, "a model", interval=Interval(2.0, 4.0, 0.9)),)},
            DeviceError, "its latency_ms is estimated",
        ),
        (
            {"rows": (Figure("latency_ms", 3.0, "measured", PI, "x", n=3), counted("artifact_bytes", 9_000, "size"))},
            DeviceError, "artefact of 0.009 MB",
        ),
    ],
)  # fmt: skip
def test_reports_that_say_nothing_about_the_board_are_refused(
    reports: Callable[..., list[str]], changes: dict[str, Any], error: type[EdgeError], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        fit(reports(**changes), out=tmp_path / "new.json")
    assert not (tmp_path / "new.json").exists()


def test_mixtures_and_damage_are_refused_in_one_line(reports: Callable[..., list[str]], tmp_path: Path) -> None:
    sources = reports()
    other = Report.from_json(json.loads((tmp_path / f"{NETS[1]}.json").read_text()))
    replace(other, device="raspberry-pi-5").save(tmp_path / f"{NETS[1]}.json")
    (tmp_path / "cut.json").write_text((tmp_path / f"{NETS[0]}.json").read_text()[:200])
    (tmp_path / "list.json").write_text("{}")
    (tmp_path / "two.json").write_text(json.dumps([{"layers": [], "measured": {}}]))
    model = tmp_path / f"{NETS[0]}.onnx"
    for words, kind, said in (
        (sources, "DeviceError", "several devices: raspberry-pi-4, raspberry-pi-5"),
        ([f"{model}=cut.json"], "BundleError", "cut.json is no report"),
        ([f"{model}=list.json"], "BundleError", "report"),
        ([f"{model}=missing.json"], "BundleError", "missing.json is no report"),
        (["cut.json"], "TargetError", "cut.json holds no results"),
        (["list.json"], "TargetError", "no list of results"),
        (["two.json"], "TargetError", "two.json, result 1"),
        ([f"{NETS[0]}.json"], "TargetError", "does not say which model"),
        ([sources[0], "list.json"], "RecipeError", "reports and results"),
        ([], "RecipeError", "got nothing"),
        (["a.txt"], "RecipeError", "'a.txt' is no source"),
        (["--on", "board"], "RecipeError", "--on takes local"),
        (["--on", "local", *sources], "RecipeError", "--on takes local"),
        (["--on", "local", "--minutes", "0"], "DeviceError", "0 minutes"),
        (["--on", "local", "--minutes", "nan"], "DeviceError", "nan minutes"),
        (["--on", "local", "--threads", "1000"], "DeviceError", "cores"),
        (["--on", "local", "--out", "x.toml"], "RecipeError", "this fit is a .json file"),
        (["--on", "local", "--out", "nowhere/x.json"], "RecipeError", "no folder nowhere"),
        (["two.json", "--threads", "2"], "RecipeError", "logic has no threads"),
    ):
        result = run_here(["fit", *words], tmp_path)
        assert result.code == (2 if kind == "RecipeError" else 1), words
        assert (result.error["kind"], said in result.error["message"]) == (kind, True), result.err


def test_this_machine_is_timed_and_its_fit_estimates_on_it(nets: dict[str, Model], tmp_path: Path) -> None:
    result = run_here("fit --on local --minutes 0.01 --json", tmp_path)
    assert result.code == 0, result.err
    assert "turn 1 of 3" in result.err
    data = json.loads(result.out)
    assert data["records"] == len(nets) + len(fit_here.EXAMPLES)
    assert {one["name"] for one in data["checked"]} >= set(nets)
    assert all(one["measured"] > 0 and one["left_out"] > 0 for one in data["checked"])
    errors = data["errors"]["latency_ms"]
    assert errors["left_out_percent"] < errors["before_percent"]
    model = tmp_path / "net.onnx"
    nets["separable 256 at 14"].save(model)
    figure = estimate(model, device="this-machine", threads=1, fit=tmp_path / "this-machine.fit.json").find("latency_ms")
    assert figure is not None and figure.provenance == "estimated" and figure.interval is not None
    assert value(estimate(model, device="this-machine", threads=1, runtime="onnxruntime")) != figure.value


def test_a_stopped_fit_writes_nothing(monkeypatch: pytest.MonkeyPatch, nets: dict[str, Model], tmp_path: Path) -> None:
    closed = []

    def stop(one: Any, seconds: float) -> None:
        raise KeyboardInterrupt

    load = fit_here._load
    monkeypatch.setattr(fit_here, "_run", stop)
    monkeypatch.setattr(
        fit_here, "_load", lambda model, threads: replace(load(model, threads), close=lambda: closed.append(model.name))
    )
    with pytest.raises(KeyboardInterrupt):
        fit(on="local", minutes=0.01, out=tmp_path / "new.json")
    assert not list(tmp_path.iterdir())
    assert set(closed) >= set(nets)


def test_a_time_is_the_median_of_runs_of_the_thread(nets: dict[str, Model]) -> None:
    small, large = timed([nets["dense 64"], nets["conv3x3 64 at 56"]], minutes=0.005)
    assert (small.name, small.record.setting) == ("dense 64", Setting("onnxruntime", "cpu", 1))
    assert 20 * small.record.latency_ms < large.record.latency_ms
    assert sum(layer.macs for layer in large.record.layers) == 346_816_512


def test_under_an_emulator_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(board_facts.EMULATOR, "qemu-aarch64")
    with pytest.raises(DeviceError, match="an emulator"):
        timed(minutes=0.01)


def test_the_networks_are_the_same_each_time_run_and_differ_in_kind(nets: dict[str, Model]) -> None:
    again = {model.name: model for model in probe_networks.networks()}
    assert {name: model.digest for name, model in again.items()} == {name: model.digest for name, model in nets.items()}
    kinds = {layer.kind for model in nets.values() for layer in layers(model)}
    assert kinds >= {"conv", "conv1x1", "dwconv", "groupconv", "fc", "pool", "eltwise", "concat", "softmax", "permute"}
    sizes = [total(layers(model)).macs for model in nets.values()]
    assert min(sizes) < 1e5 and max(sizes) > 4e8
    for name in ("fire at 28", "dense block at 28", "shuffle at 28", "residual 16 at 32"):
        shape = tuple(map(int, nets[name].signature.inputs[0].shape))
        feeds = [np.random.default_rng(seed).standard_normal(shape).astype(np.float32) for seed in (1, 2)]
        (one,), (two,) = (tuple(Reference(nets[name]).run({"x": feed}).values()) for feed in feeds)
        assert np.isfinite(one).all() and one.sum() == pytest.approx(1, abs=1e-4)
        assert not np.allclose(one, two, rtol=1e-3)


def results(scale: float = 1.5) -> list[dict[str, Any]]:
    """Four networks whose LUTs are so many times their estimate."""
    found = []
    for sizes in ((16, 64, 5), (20, 40), (48, 72, 16), (12, 100)):
        given = [
            {"name": f"fc{i}", "kind": "dense", "n_in": a, "n_out": b, "weight_bits": 8}
            for i, (a, b) in enumerate(itertools.pairwise(sizes))
        ]
        report = estimate(
            f"dense:{'-'.join(map(str, sizes))}@8bit", device="zcu102", settings={"flow": "hls4ml", "reuse_factor": "32"}
        )
        found.append({"layers": given, "measured": {"lut": scale * value(report, "lut")}, "reuse_factor": 32})
    return found


def test_results_in_json_move_the_constants_of_logic(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(results()))
    found = fit([tmp_path / "results.json"], out=tmp_path / "own.toml")
    assert (found.kind, found.records) == ("hls4ml", 4)
    known = read_constants(found.path)
    assert known.n == shipped().n + 4
    before, after = found.mape("lut", "before"), found.mape("lut", "left_out")
    assert before is not None and after is not None and after < before
    settings = {"flow": "hls4ml", "reuse_factor": "32"}
    plain, fitted = (
        value(estimate("dense:40-80-12@8bit", device="zcu102", settings=settings, fit=one), "lut") for one in (None, found.path)
    )
    assert 1.3 < fitted / plain < 1.7
    assert "--set flow=hls4ml --fit" in found.command
    assert any(name.startswith("lut ") and factor > 1.05 for name, factor in found.changes)
    with pytest.raises(RecipeError, match="this fit is a"):
        fit([tmp_path / "results.json"], out=tmp_path / "own.json")


def test_three_results_cannot_be_left_out_and_two_are_too_few(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(results()[:3]))
    found = fit([tmp_path / "r.json"], out=tmp_path / "own.toml")
    assert found.mape("lut", "left_out") is None
    assert any("to leave one out" in note for note in found.notes)
    assert "not known with each left out" in " ".join(fit_table.shown(found).split())
    (tmp_path / "r.json").write_text(json.dumps(results()[: FEWEST - 1]))
    with pytest.raises(TargetError, match="too few"):
        fit([tmp_path / "r.json"], out=tmp_path / "none.toml")
    assert not (tmp_path / "none.toml").exists()


def test_a_result_that_no_part_can_hold_is_refused_by_its_number(tmp_path: Path) -> None:
    wild = results()
    wild[1]["measured"]["lut"] = 1e12
    (tmp_path / "r.json").write_text(json.dumps(wild))
    with pytest.raises(TargetError, match=r"r\.json, result 2: lut = 1e\+12, more than 10 times what any part has"):
        fit([tmp_path / "r.json"], out=tmp_path / "none.toml")
    assert not (tmp_path / "none.toml").exists()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two dense layers, of flow hls4ml."""
    data = {"x": np.random.default_rng(5).standard_normal((300, 8)).astype(np.float32)}
    out = tmp_path_factory.mktemp("logic") / "net.edge"
    settings = {"flow": "hls4ml", "reuse_factor": "4", "strategy": "resource", "clock_ns": "5"}
    edgesdk.export(dense((8, 6, 4)), device="zcu102", settings=settings, data=data, max_relative_error=0.5, out=out)
    return out


def test_a_built_project_is_read_from_beside_its_bundle(project: Path) -> None:
    build = project.with_name("net.build")
    write(build / "vivado_synth.rpt", UTILISATION)
    write(build / "sim/net_cosim.rpt", COSIM)
    write(build / "net_csynth.xml", CSYNTH)
    ((name, found),) = fit_logic.of_bundles([str(project)], lambda message: None)
    assert name == "net.edge"
    # area from logic synthesis, BRAM in tiles of 36 kbit; cycles and clock from C synthesis
    assert found.measured == {"lut": 1234, "ff": 5678, "dsp": 64, "bram": 12.5, "cycles": 13, "clock_est_ns": 4.0}
    assert [(layer.kind, layer.n_in, layer.n_out) for layer in found.layers if layer.weighted] == [
        ("dense", 8, 6),
        ("dense", 6, 4),
    ]
    assert (found.reuse_factor, found.strategy, found.clock_ns, found.io_type) == (4, "resource", 5.0, "io_parallel")
    assert found.part == device.profile("zcu102").get("part", str)


def test_a_report_of_more_than_the_part_can_hold_is_refused_by_its_bundle(project: Path, tmp_path: Path) -> None:
    write(tmp_path / "b/vivado_synth.rpt", UTILISATION.replace("|  1234 |", "| 9999999 |"))
    with pytest.raises(TargetError, match=r"net\.edge: lut = 1e\+07, more than 10 times what xczu9eg-ffvb1156-2-e has"):
        fit_logic.of_bundles([f"{project}={tmp_path / 'b'}"], lambda message: None)


def test_three_built_projects_are_fitted(project: Path, tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"b{number}/net_csynth.xml", CSYNTH.replace("19834", str(4000 + number)).replace(">6<", ">5<"))
    words = [f"{project}={tmp_path / f'b{number}'}" for number in range(3)]
    result = run_here(["fit", *words], tmp_path)
    assert result.code == 0, result.err
    assert result.out.startswith("fitted to 3 records: hls4ml, 1 network\n")
    assert read_constants(tmp_path / "hls4ml.fit.toml").n == shipped().n + 3


def test_bundles_that_are_none_of_built_hls4ml_are_refused(project: Path, folder: Path, tmp_path: Path) -> None:
    for words, said in (
        ([f"{project}={tmp_path / 'no'}"], "there is no folder"), ([f"{project}={tmp_path}"], "no vendor report"),
        (["older.edge"], "no bundle of flow hls4ml"),
    ):  # fmt: skip
        result = run_here(["fit", *words], folder)
        assert (result.code, result.error["kind"]) == (1, "TargetError")
        assert said in result.error["message"]


def test_a_fit_says_what_its_figures_are_of() -> None:
    empty = Fit("latency", "a board", Path("x.json"), 1, (), (), "", "")
    assert empty.mape("latency_ms", "before") is None
