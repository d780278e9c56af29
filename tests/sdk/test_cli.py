"""The command line: what it prints where, what it writes, how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest

from edgesdk.cli import cli
from edgesdk_converters.recipe import Recipe
from edgesdk_targets import report
from edgesdk_targets.bundle import open_bundle
from tests.sdk.conftest import COMMAND, dense, run_apart, run_here, tree

VERBS = {
    "agent": "agent --port 0 --store store --check",
    "reuse": "reuse dense:16-8-4@8bit --device pynq-z2",
    "export": "export m.onnx --target jetson --out new.edge",
    "export judged": "export m.onnx --target raspberry-pi --precision fp16 --data check.npz --max-drop 1 --out new.edge",
    "export dry": "export m.onnx --target server --dry-run",
    "run": "run older.edge --inputs x.npz",
    "verify": "verify jetson.edge",
    "inspect": "inspect m.onnx",
    "inspect dynamic": "inspect dynamic.onnx",
    "inspect bundle": "inspect judged.edge",
    "cuts": "cuts m.onnx",
    "build": "build older.edge",
    "measure": "measure older.edge --runs 3",
    "measure judged": "measure judged.edge --runs 3 --data check.npz",
    "estimate": "estimate m.onnx --device jetson-orin-nano --precision fp16",
    "compare": "compare m.onnx older.edge --devices raspberry-pi-4,ecp5-25k",
    "estimate only": "estimate m.onnx --device jetson-nano",
    "fit": "fit --on local --minutes 0.01",
    "plan": "plan m.onnx --device raspberry-pi-4 --server jetson-orin-nano --link 10mbit,20ms",
    "serve": "serve older.edge --port 0 --grpc-port 0 --check",
    "triton": "triton older.edge repository",
    "ray": "ray older.edge serve.yaml --replicas 2",
    "targets": "targets",
    "devices": "devices",
    "devices NAME": "devices raspberry-pi-5",
    "doctor": "doctor",
}
REPORTS = ("export", "export judged", "export dry", "verify", "build", "measure", "measure judged", "estimate", "estimate only")


def test_every_verb_is_tried_here() -> None:
    assert {command.split()[0] for command in VERBS.values()} == set(cli.commands)
    for name, command in cli.commands.items():
        assert any("--json" in option.opts for option in command.params), f"{name} prints no JSON"


@pytest.mark.parametrize("verb", VERBS)
def test_json_is_one_object_on_stdout_and_all_else_goes_to_stderr(verb: str, folder: Path) -> None:
    result = run_here([*VERBS[verb].split(), "--json"], folder)
    assert result.code == 0, result.err
    found = json.loads(result.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert isinstance(found, dict)
    assert "{" not in result.err
    if verb in REPORTS:
        jsonschema.validate(found, report.schema())
        report.Report.from_json(found)


@pytest.mark.parametrize("verb", VERBS)
def test_text_keeps_to_100_columns(verb: str, folder: Path) -> None:
    """Names as long as an exporter's, in every place a name can stand."""
    name = "a_model_of_the_kind_that_is_named_after_its_whole_training_run-" * 2 + "v17"
    tensor = "/backbone/stages.3/blocks.17/attention/projection/MatMul_output_0_quantised_and_then_restored" * 2
    proto = onnx.load(folder / "m.onnx")
    for kind in (proto.graph.input[0], proto.graph.output[0]):
        kind.name += tensor
    node = proto.graph.node[0]
    node.input[0], node.output[0], node.name = node.input[0] + tensor, node.output[0] + tensor, "node" + tensor
    onnx.save(proto, folder / f"{name}.onnx")
    for file in ("x.npz", "check.npz"):
        with np.load(folder / file) as arrays:
            kept = dict(arrays)
        with zipfile.ZipFile(folder / file, "w") as archive:
            for key, array in kept.items():
                with archive.open(f"{key}{tensor if key == 'x' else ''}.npy", "w") as member:
                    np.lib.format.write_array(member, array)
    for bundle, options in (("older", "raspberry-pi"), ("judged", "server --data check.npz --max-drop 1"), ("jetson", "jetson")):
        made = run_here(["export", f"{name}.onnx", *f"--out {bundle}.edge --target {options}".split()], folder)
        assert made.code == 0, made.err
    command = VERBS[verb].replace("dynamic.onnx", "m.onnx").replace("m.onnx", f"{name}.onnx")
    result = run_here(command, folder)
    assert result.code == 0, result.err
    copied = "edgesdk export "  # a command is one line, to be copied
    wide = [line for line in result.out.splitlines() if len(line) > 100 and not line.startswith(copied)]
    assert not wide, wide[0]
    assert len(result.out.splitlines()) > 1


@pytest.mark.parametrize("verb", REPORTS)
def test_the_first_line_says_where_it_was_measured(verb: str, folder: Path) -> None:
    first = run_here(VERBS[verb], folder).out.splitlines()[0]
    if verb in ("build", "estimate", "estimate only"):
        assert first.startswith("nothing here was measured on hardware")
    else:
        assert first.startswith("measured on this machine (")
    elsewhere = verb in ("export", "export judged", "verify", "measure")
    assert ("NOT on" in first) == elsewhere, first


def test_a_report_names_its_bundle_and_lies_beside_it(folder: Path) -> None:
    result = run_here("export m.onnx --target server --out new.edge --json", folder)
    beside = json.loads((folder / "new.report.json").read_text())
    assert json.loads(result.out) == beside
    assert beside["bundle"] == open_bundle(folder / "new.edge").digest
    assert "wrote new.edge and new.report.json" in result.err


def test_a_report_obeys_the_umask_as_the_bundle_does(folder: Path) -> None:
    assert run_apart("export m.onnx --target server --out new.edge", folder, umask=0o022).code == 0
    assert run_apart("run new.edge --inputs x.npz --outputs y.npz", folder, umask=0o022).code == 0
    for name in ("new.edge/model.onnx", "new.edge/manifest.json", "new.report.json", "y.npz"):
        assert (folder / name).stat().st_mode & 0o777 == 0o644, name


def test_a_dry_run_writes_nothing(folder: Path) -> None:
    before = tree(folder)
    for out in ("older.edge", "new.edge"):
        result = run_here(f"export m.onnx --target raspberry-pi --dry-run --out {out}", folder)
        assert result.code == 0
        assert f"{out} would be written" in result.err
        assert "relative_error" in result.out
    assert tree(folder) == before


def test_the_bundle_is_named_after_model_and_device(folder: Path) -> None:
    assert run_here("export m.onnx --target raspberry-pi", folder).code == 0
    assert run_here("export m.onnx --device raspberry-pi-5", folder).code == 0
    assert open_bundle(folder / "m-raspberry-pi-4.edge").manifest.device == "raspberry-pi-4"
    assert open_bundle(folder / "m-raspberry-pi-5.edge").manifest.device == "raspberry-pi-5"
    assert (folder / "m-raspberry-pi-5.report.json").is_file()


def test_a_device_implies_its_target(folder: Path) -> None:
    assert run_here("export m.onnx --device jetson-orin-nx --out new.edge", folder).code == 0
    assert open_bundle(folder / "new.edge").manifest.target == "jetson"


def test_a_zip_does_what_a_directory_does(folder: Path) -> None:
    assert run_here("export m.onnx --target raspberry-pi --out new.zip", folder).code == 0
    assert zipfile.is_zipfile(folder / "new.zip")
    for command in ("run new.zip --inputs x.npz --outputs y.npz", "verify new.zip", "measure new.zip --runs 2", "build new.zip",
                    "inspect new.zip"):  # fmt: skip
        result = run_here(command, folder)
        assert result.code == 0, result.err
    assert open_bundle(folder / "new.zip").digest == open_bundle(folder / "older.edge").digest
    weights = onnx.numpy_helper.to_array(onnx.load(folder / "m.onnx").graph.initializer[0])
    with np.load(folder / "x.npz") as x, np.load(folder / "y.npz") as y:
        np.testing.assert_allclose(y["y"], x["x"] @ weights, rtol=1e-5)


def test_outputs_keep_whatever_names_they_have(folder: Path) -> None:
    proto = dense(np.ones((8, 4)))
    proto.graph.node[0].output[0] = proto.graph.output[0].name = "file"
    onnx.save(proto, folder / "m.onnx")
    assert run_here("export m.onnx --target server --out new.edge", folder).code == 0
    assert run_here("run new.edge --inputs x.npz --outputs y.npz", folder).code == 0
    with np.load(folder / "y.npz") as y:
        assert y.files == ["file"]


@pytest.mark.parametrize("target", ["raspberry-pi", "jetson", "server"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_recipe_in_a_manifest_makes_the_same_bundle_again(folder: Path, target: str, precision: str) -> None:
    base = f"export m.onnx --target {target} --precision {precision} "
    if precision == "fp16":
        base += "--set half.headroom=8 "
    assert run_here(f"{base} --out first.edge", folder).code == 0
    first = open_bundle(folder / "first.edge")
    recipe = Recipe.from_plain(first.manifest.recipe, "manifest")
    (folder / "r.toml").write_text(recipe.to_toml())
    again = run_here(f"export m.onnx --target {target} --precision {precision} --recipe r.toml --out again.edge", folder)
    assert again.code == 0, again.err
    assert open_bundle(folder / "again.edge").digest == first.digest


@pytest.mark.parametrize(
    "options", ["--target raspberry-pi --precision fp16", "--target jetson", "--target server --train c.npz"]
)
def test_fresh_processes_make_identical_bytes(folder: Path, tmp_path: Path, options: str) -> None:
    """Whatever the hash seed, the working directory and the umask."""
    with np.load(folder / "check.npz") as arrays:
        np.savez(folder / "c.npz", x=arrays["x"])
    made = []
    for seed, umask in (("0", 0o022), ("4242", 0o077)):
        place = tmp_path / seed
        place.mkdir()
        shutil.copy(folder / "m.onnx", place)
        shutil.copy(folder / "c.npz", place)
        for out in ("a.edge", "a.zip"):
            result = run_apart(
                ["export", "m.onnx", *options.split(), "--out", out], place, environment={"PYTHONHASHSEED": seed}, umask=umask
            )
            assert result.code == 0, result.err
        content = {name: data for name, (_, data) in tree(place / "a.edge").items()}
        made.append((content, (place / "a.zip").read_bytes()))
    assert made[0] == made[1]


def test_a_project_file_alone_is_enough(folder: Path) -> None:
    (folder / "edgesdk.toml").write_text(
        'model = "m.onnx"\ndata = "check.npz"\nmax_drop = 1.0\n[target.jetson]\nprecision = "fp16"\nout = "ours.edge"\n'
        "set = {builder_level = 4}\n"
    )
    result = run_here("export --target jetson", folder)
    assert result.code == 0, result.err
    manifest = open_bundle(folder / "ours.edge").manifest
    assert manifest.precision == "fp16"
    assert manifest.contract["max_drop_points"] == 1.0
    assert manifest.runtime.providers[0].options["trt_builder_optimization_level"] == "4"


def test_what_is_typed_wins_over_the_project_file(folder: Path) -> None:
    (folder / "edgesdk.toml").write_text(
        'model = "nowhere.onnx"\nmax_drop = 0.001\ndata = "nowhere.npz"\n[target.jetson]\nprecision = "fp16"\nout = "ours.edge"\n'
        'device = "jetson-agx-orin"\nset = {builder_level = 4}\n'
    )
    typed = ("export m.onnx --target jetson --precision fp32 --out mine.edge --device jetson-orin-nx --max-drop 2 "
             "--data check.npz --set builder_level=1")  # fmt: skip
    result = run_here(typed, folder)
    assert result.code == 0, result.err
    assert not (folder / "ours.edge").exists()
    manifest = open_bundle(folder / "mine.edge").manifest
    assert (manifest.precision, manifest.device) == ("fp32", "jetson-orin-nx")
    assert manifest.contract["max_drop_points"] == 2
    assert manifest.runtime.providers[0].options["trt_builder_optimization_level"] == "1"


def test_an_estimate_takes_the_model_and_shapes_of_the_project(folder: Path) -> None:
    (folder / "edgesdk.toml").write_text(
        'model = "dynamic.onnx"\nshapes = {x = [4, 8]}\n[target.raspberry-pi]\ndevice = "raspberry-pi-5"\n'
        'set = {threads = 2, "fold.none" = 1}\n'
    )
    result = run_here("estimate --target raspberry-pi --json", folder)
    assert result.code == 0, result.err
    found = report.Report.from_json(json.loads(result.out))
    assert found.device == "raspberry-pi-5"
    macs = found.find("macs")
    assert macs is not None
    assert macs.value == 4 * 8 * 4


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["export", "--help"], ["-h"]])
def test_help_and_version_end_with_0(folder: Path, arguments: list[str]) -> None:
    result = run_here(arguments, folder)
    assert result.code == 0
    assert result.out
    assert result.err == ""


def test_help_says_what_a_precision_means_for_a_split(folder: Path) -> None:
    told = " ".join(run_here("export --help", folder).out.split())
    assert "--precision" in told and "With --split: of the head, the tail stays fp32; auto chooses for each." in told


def test_help_is_given_for_nothing_typed(folder: Path) -> None:
    result = run_here([], folder)
    assert result.code == 2
    assert "export" in result.err + result.out


@pytest.mark.parametrize("verb", ["devices", "inspect m.onnx --json", "verify older.edge"])
def test_a_reader_that_leaves_early_is_no_error_to_talk_about(folder: Path, verb: str) -> None:
    process = subprocess.Popen([*COMMAND, *verb.split()], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    told = process.stderr.read()
    process.wait(timeout=60)
    process.stderr.close()
    assert "Traceback" not in told
    assert "Broken" not in told
    assert "edgesdk:" not in told


def test_a_reader_that_leaves_early_loses_no_measurement(folder: Path) -> None:
    command = [*COMMAND, *["measure", "older.edge", "--runs", "3", "--threads", "1", "--out", "measured.json"]]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, cwd=folder, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert "Traceback" not in done.stderr
    found = report.Report.from_json(json.loads((folder / "measured.json").read_text())).find("latency_ms")
    assert found is not None and found.n == 3


def test_head_gets_its_first_line(folder: Path) -> None:
    command = " ".join(COMMAND) + " devices | head -1"
    done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("group")
    assert done.stderr == ""


def _interrupted(folder: Path, number: signal.Signals, after: str, delay_s: float) -> None:
    """Send an export a signal `delay_s` after it has said `after`, and hold it to what Ctrl-C promises."""
    before = tree(folder)
    arguments = ["export", "m.onnx", "--device", "raspberry-pi-5", "--data", "many.npz", "--max-drop", "1", "--out", "older.edge"]
    process = subprocess.Popen([*COMMAND, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stdout is not None
    for line in process.stderr:
        if after in line:
            break
    time.sleep(delay_s)
    process.send_signal(number)
    told = process.stderr.read()
    out = process.stdout.read()
    code = process.wait(timeout=60)
    process.stderr.close()
    process.stdout.close()
    assert code == 128 + number, told
    assert "Traceback" not in told
    assert [line for line in told.splitlines() if line][-1] == "stopped; nothing was left half done"
    assert "Error" not in told
    assert out == ""
    assert tree(folder) == before


@pytest.mark.parametrize(
    ("number", "after", "delay_s"),
    [
        (signal.SIGINT, "loading the model", 0.0), (signal.SIGINT, "loading the model", 0.2),
        (signal.SIGINT, "running the source", 0.05), (signal.SIGINT, "checking", 0.0), (signal.SIGINT, "checking", 0.1),
        (signal.SIGTERM, "loading the model", 0.2), (signal.SIGTERM, "running the source", 0.05),
    ],
)  # fmt: skip
def test_control_c_or_sigterm_in_mid_export_is_one_line_and_leaves_nothing(
    folder: Path, number: signal.Signals, after: str, delay_s: float
) -> None:
    rng = np.random.default_rng(1)
    np.savez(folder / "many.npz", x=rng.standard_normal((200_000, 8)).astype(np.float32), labels=np.zeros(200_000, np.int64))
    _interrupted(folder, number, after, delay_s)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_measurement_that_is_stopped_ends_the_process_that_times(folder: Path, number: signal.Signals) -> None:
    before = tree(folder)
    command = [*COMMAND, "measure", "older.edge", "--minutes", "10", "--out", "measured.json"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (timing := _timing(process.pid)):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)  # to it alone: a terminal's Ctrl-C would go to both
    out, told = process.communicate(timeout=60)
    assert process.returncode == 128 + number and out == ""
    assert told.splitlines()[-1] == "stopped; nothing was left half done" and "Traceback" not in told
    until = time.monotonic() + 30
    while _runs(timing):
        assert time.monotonic() < until, "the process that times outlived the measurement"
        time.sleep(0.02)
    assert tree(folder) == before


def test_an_interrupt_that_a_library_drops_stops_the_run_at_the_next_line_of_progress(folder: Path) -> None:
    code = """
        import os, signal, sys
        from edgesdk import api, cli

        def measure(*_: object, progress, **__: object) -> None:
            progress("first")
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                signal.sigtimedwait([], 5)
            except KeyboardInterrupt:
                pass  # as what is raised in a callback of C
            progress("second")

        api.measure = measure
        sys.argv = ["edgesdk", "measure", "older.edge"]
        cli.main()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr.split("\n") == ["first", "", "stopped; nothing was left half done", ""]


@pytest.mark.parametrize("error", ["EdgeError('lost')", "OSError('lost')", "MemoryError('lost')"])
def test_an_interrupt_that_a_library_turns_into_an_error_of_ours_still_stops_the_run(folder: Path, error: str) -> None:
    code = f"""
        import os, signal, sys
        from edgesdk import api, cli
        from edgesdk_converters.errors import EdgeError

        def measure(*_: object, **__: object) -> None:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                signal.sigtimedwait([], 5)
            except KeyboardInterrupt:
                raise {error} from None

        api.measure = measure
        sys.argv = ["edgesdk", "measure", "older.edge"]
        cli.main()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr == "stopped; nothing was left half done\n"


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie: whoever adopts an orphan may take its time to bury it."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def _timing(parent: int) -> int:
    """The process that a measurement has started to take times in, 0 where there is none yet."""
    done = subprocess.run(["ps", "-ww", "-o", "pid=,args=", "--ppid", str(parent)], capture_output=True, text=True, check=False)
    return next((int(line.split()[0]) for line in done.stdout.splitlines() if "from edgesdk_targets." in line), 0)


def test_control_c_while_the_bundle_is_being_put_in_place_leaves_the_older_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for call in ("fsync", "replace", "rename", "mkdir"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, interrupt)
            for out in ("older.edge", "older.zip", "new.edge", "new.zip"):
                result = run_here(f"export m.onnx --device raspberry-pi-5 --out {out}", folder)
                if result.code == 0:
                    continue  # this kind of bundle does without that call
                assert result.code == 130
                left = sorted(place.name for place in folder.iterdir() if place.name.startswith("."))
                assert left == [], f"os.{call} interrupted while writing {out}"
        for name in ("older.edge", "older.zip"):
            open_bundle(folder / name)
        for place in ("new.edge", "new.zip"):
            if (folder / place).exists():
                open_bundle(folder / place)


@pytest.mark.parametrize(
    ("refused", "out"),
    [(".report.json", "older.edge"), (".report.json", "new.edge"), ("new.edge", "new.edge"), (".zip", "new.zip")],
)
def test_an_interrupted_report_takes_its_bundle_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, refused: str, out: str
) -> None:
    """The bundle and its report are one: where either cannot be put in place, both older ones stay."""
    before = tree(folder)
    real = os.replace

    def refuse(source: os.PathLike[str], place: os.PathLike[str]) -> None:
        if refused in str(place):
            raise OSError(28, "No space left on device")
        real(source, place)

    monkeypatch.setattr(os, "replace", refuse)
    assert run_here(f"export m.onnx --device raspberry-pi-5 --out {out}", folder).code == 1
    assert tree(folder) == before
