"""Choose: repairs in order, the fastest that holds the contract, and a story that says why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgesdk
from edgesdk import ranking, repairs, text
from edgesdk.exporting import Prepared, prepare
from edgesdk_converters.calibration import read_npz
from edgesdk_converters.errors import ContractBroken, DeviceError, EdgeError, ModelError, PassError, RecipeError, ToolError
from edgesdk_converters.model import Model
from edgesdk_converters.quantize import Quantize
from edgesdk_converters.recipe import Recipe
from edgesdk_targets import emulate, golden

from ..converters.outliers import plant_outliers
from ..fashion import samples
from .conftest import run_here

ROOT = Path(__file__).parents[2]
Data = dict[str, Any]


@pytest.fixture(scope="module")
def check() -> Data:
    return samples("t10k", 0, 1000)


@pytest.fixture(scope="module")
def train() -> Data:
    return samples("train", 0, 64)


@pytest.fixture(scope="module")
def planted() -> Model:
    """The ResNet-like net with every eighth channel 256 times as large: the same function."""
    benign = Model.load(ROOT / "examples/fashion/fashion_resnet.onnx")
    return benign.changed(plant_outliers(benign.proto, 256.0))


@pytest.fixture(autouse=True)
def no_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether this machine has one set up must not change what these tests see."""
    monkeypatch.setattr(ranking.emulate, "is_ready", lambda profile: False)


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, float]], None]:
    """Gives candidates the times that a test says, in milliseconds, by the precision or name that they begin with."""

    def pretend(times: dict[str, float]) -> None:
        def side_by_side(runs: dict[str, Any], *_: Any, **__: Any) -> dict[str, list[float]]:
            for run in runs.values():
                run()  # they do run
            return {
                name: [next(ms for key, ms in sorted(times.items(), key=lambda i: -len(i[0])) if name.startswith(key))] * 20
                for name in runs
            }

        monkeypatch.setattr(ranking, "side_by_side", side_by_side)

    return pretend


def names(prepared: Prepared, status: str) -> list[str]:
    return [row["name"] for row in prepared.report.candidates if row["status"] == status]


# --- repairs ----------------------------------------------------------------------------------------


def test_outliers_break_plain_int8_and_nothing_is_left(planted: Model, check: Data, train: Data, tmp_path: Path) -> None:
    out = tmp_path / "b.edge"
    with pytest.raises(ContractBroken) as caught:
        edgesdk.export(planted, target="server", precision="int8", data=check, train=train, max_drop=0.5, out=out,
                       settings={"quantize.repair": "false"})  # fmt: skip
    told = caught.value.message
    drop = float(told.split("drops ")[1].split(" ")[0])
    assert drop > 10
    assert "the layers that cost most" in told and "dB alone" in told
    assert "quantize.repair" in caught.value.hint or "--precision auto" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
    assert caught.value.exit_code == 3


def test_repairs_hold_the_contract_and_the_recipe_says_how(planted: Model, check: Data, train: Data) -> None:
    made = prepare(planted, target="server", precision="int8", data=check, train=train, max_drop=0.5)
    assert made.report.contract.status == "passed"
    steps = [step.name for step in made.recipe.whole]
    assert steps == ["fold", "equalize", "quantize"]
    last = made.recipe.whole[-1]
    assert isinstance(last, Quantize) and not last.repair
    drop = made.report.find("accuracy_drop")
    assert drop is not None and drop.value is not None and drop.value <= 0.5
    assert names(made, "broken")[0] == "int8" and len(names(made, "kept")) == 1
    assert any("judged on the same check data" in note for note in made.report.notes)


def test_its_benign_twin_needs_no_repair(check: Data, train: Data) -> None:
    made = prepare(
        ROOT / "examples/fashion/fashion_resnet.onnx", target="server", precision="int8", data=check, train=train, max_drop=0.5
    )
    assert names(made, "broken") == [] and [step.name for step in made.recipe.whole] == ["fold", "quantize"]


def test_the_layer_that_spoils_everything_stays_in_float(check: Data, train: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equalisation and clips cannot mend 4-bit weights: then the worst layers are kept, and only as many as it takes."""
    net = ROOT / "examples/fashion/fashion_cnn.onnx"
    monkeypatch.setattr(repairs, "LARGEST_FLOAT_SHARE", 1.0)
    source = Model.load(net)
    benign = source.changed(plant_outliers(source.proto, 64.0))
    made = prepare(benign, target="server", precision="w4", data=check, train=train, max_drop=1.0)
    kept = [row["name"] for row in made.report.candidates if row["status"] in ("kept", "holds")]
    assert any("layers in float" in name for name in kept)
    assert "w4" in names(made, "broken")
    last = made.recipe.whole[-1]
    assert isinstance(last, Quantize) and last.keep


def test_a_pass_that_cannot_be_made_is_said_so(check: Data) -> None:
    with pytest.raises(PassError, match="seeded random inputs"):
        prepare(ROOT / "examples/fashion/fashion_cnn.onnx", target="server", precision="int8")
    del check


# --- auto -------------------------------------------------------------------------------------------


def test_auto_keeps_the_fastest_that_holds(check: Data, train: Data, speeds: Callable[[dict[str, float]], None]) -> None:
    speeds({"fp32": 4.0, "fp16": 5.0, "int8": 2.0, "w": 4.0})
    made = prepare(
        ROOT / "examples/fashion/fashion_cnn.onnx", target="server", precision="auto", data=check, train=train, max_drop=1.0
    )
    assert made.manifest.precision == "int8" and names(made, "kept")[0].startswith("int8")
    row = made.report.find("speed_ratio")
    assert row is not None and row.value == 2.0 and row.provenance == "measured"
    assert any("int8" in note and "2.00x of fp32's speed, measured here" in note for note in made.report.notes)


def test_auto_keeps_fp32_where_integers_are_slower(check: Data, train: Data, speeds: Callable[[dict[str, float]], None]) -> None:
    speeds({"fp32": 4.0, "fp16": 5.0, "int8": 6.25, "w": 4.1})
    made = prepare(
        ROOT / "examples/fashion/fashion_cnn.onnx", target="server", precision="auto", data=check, train=train, max_drop=1.0
    )
    assert made.manifest.precision == "fp32"
    assert any("fp32 kept" in note and "int8 0.64x" in note for note in made.report.notes)
    slow = next(row for row in made.report.candidates if row["name"].startswith("int8") and row["status"] == "holds")
    assert slow["why"] == "slower than fp32" and slow["speed_ratio"] == pytest.approx(0.64)


def test_only_what_could_win_is_repaired(
    planted: Model, check: Data, train: Data, speeds: Callable[[dict[str, float]], None]
) -> None:
    speeds({"fp32": 4.0, "fp16": 5.0, "int8": 2.0, "w": 4.0})
    made = prepare(planted, target="server", precision="auto", data=check, train=train, max_drop=0.5)
    assert names(made, "kept")[0].startswith("int8 +")
    broken = {row["name"]: row["why"] for row in made.report.candidates if row["status"] == "broken"}
    assert "int8" in broken and "not repaired" not in broken["int8"]
    left = [why for name, why in broken.items() if name.startswith("w")]
    assert all(why.endswith("not repaired: no faster than int8 +equalisation +bias correction") for why in left)
    speeds({"fp32": 4.0, "fp16": 5.0, "int8": 3.9, "w": 4.0})
    made = prepare(planted, target="server", precision="auto", data=check, train=train, max_drop=0.5)
    assert made.manifest.precision == "fp32" and not any("+" in row["name"] for row in made.report.candidates)


def test_a_hair_faster_is_no_reason_to_lose_accuracy(
    check: Data, train: Data, speeds: Callable[[dict[str, float]], None]
) -> None:
    speeds({"fp32": 4.0, "fp16": 4.0, "int8": 3.9, "w": 4.0})
    made = prepare(
        ROOT / "examples/fashion/fashion_cnn.onnx", target="server", precision="auto", data=check, train=train, max_drop=1.0
    )
    assert made.manifest.precision == "fp32"


@pytest.mark.parametrize("device", ["raspberry-pi-4", "jetson-orin-nano"])
def test_another_devices_candidates_are_never_ranked_by_time_here(
    check: Data, train: Data, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("timed on this machine")

    monkeypatch.setattr(ranking, "side_by_side", refuse)
    made = prepare(
        ROOT / "examples/fashion/fashion_resnet.onnx", device=device, precision="auto", data=check, train=train, max_drop=1.0
    )
    speed = made.report.find("speed_ratio")
    assert made.manifest.precision == "int8" and speed is not None
    assert speed.provenance == "estimated" and speed.where == device and speed.interval is not None
    assert {row.get("provenance") for row in made.report.candidates if "speed_ratio" in row} <= {"estimated", "unavailable"}


@pytest.fixture
def fewer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives bundles the instructions that a test says, in millions, by flavour; some with golden vectors that do not hold."""

    def pretend(counts: dict[str, float], astray: str = "") -> None:
        def count(bundle: Any, profile: Any, **_: Any) -> emulate.Count:
            steps = bundle.manifest.recipe["whole"]
            flavour = steps[-1].get("flavour", {"quantize": "u8s8"}.get(steps[-1]["pass"], steps[-1]["pass"]))
            total = round(1e6 * counts.get(flavour, 9.0))
            compared = golden.Comparison(1.0 if flavour == astray else 0.0, 0.0, 0.0, 3, 0.01)
            by_class = dict.fromkeys(emulate.CLASSES, 0) | {"neon": total}
            return emulate.Count(total, by_class, (total,), 0, f"emulated {profile.name}", "pretended", compared)

        monkeypatch.setattr(ranking.emulate, "count", count)

    return pretend


def test_on_emulator_ranks_by_instructions_and_says_so(check: Data, train: Data, fewer: Callable[..., None]) -> None:
    fewer({"fold": 4.0, "half": 4.4, "s8s8": 2.5, "u8s8": 2.0})
    net = ROOT / "examples/fashion/fashion_cnn.onnx"
    how: dict[str, Any] = {"device": "raspberry-pi-4", "data": check, "train": train, "max_drop": 1.0}
    made = prepare(net, precision="auto", on="emulator", **how)
    assert names(made, "kept") == ["int8 u8s8"]
    ratio, total = made.report.find("instruction_ratio"), made.report.find("instructions")
    assert ratio is not None and ratio.value == 2.0 and ratio.provenance == "emulated"
    assert total is not None and total.value == 2_000_000 and total.provenance == "emulated"
    assert made.report.find("speed_ratio") is None
    assert "int8 u8s8 kept: fp32 takes 2.00x its instructions, emulated; fp32 1.00x, fp16 0.91x, int8 1.60x" in " ".join(
        made.report.notes
    )
    assert not any("speed_ratio" in row for row in made.report.candidates)
    assert "2.00x by instructions" in text.report(made.report)


def test_what_differs_on_the_core_is_not_kept(check: Data, train: Data, fewer: Callable[..., None]) -> None:
    fewer({"fold": 4.0, "half": 4.4, "s8s8": 2.5, "u8s8": 2.0}, astray="u8s8")
    net = ROOT / "examples/fashion/fashion_cnn.onnx"
    made = prepare(
        net, device="raspberry-pi-4", precision="auto", on="emulator", data=check, train=train, max_drop=1.0,
        settings={"quantize.repair": "false"},
    )  # fmt: skip
    assert names(made, "kept") == ["int8"]
    broken = next(row for row in made.report.candidates if row["status"] == "broken")
    assert (
        broken["name"] == "int8 u8s8" and "on emulated raspberry-pi-4 the outputs are 1 relative from those here" in broken["why"]
    )


def test_an_emulator_that_is_set_up_is_preferred_to_an_estimate(
    check: Data, train: Data, fewer: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer({"fold": 4.0, "half": 4.4, "s8s8": 2.0, "u8s8": 2.5})
    monkeypatch.setattr(ranking.emulate, "is_ready", lambda profile: profile.name == "raspberry-pi-5")
    net = ROOT / "examples/fashion/fashion_cnn.onnx"
    for name, provenance in (("raspberry-pi-5", "emulated"), ("raspberry-pi-4", "estimated")):
        made = prepare(net, device=name, precision="auto", data=check, train=train, max_drop=1.0)
        assert {row["provenance"] for row in made.report.candidates if "provenance" in row} - {"unavailable"} == {provenance}


def test_a_repair_that_cannot_be_counted_leaves_all_on_estimates(
    planted: Model, check: Data, train: Data, fewer: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer({"fold": 4.0, "half": 4.4, "s8s8": 2.0, "u8s8": 2.5})
    counted = emulate.count

    def count(bundle: Any, *given: Any, **how: Any) -> emulate.Count:
        if bundle.manifest.recipe["whole"][-1].get("bias_correction"):
            raise ToolError(emulate.QEMU, "the emulated program ended with SIGSEGV")
        return counted(bundle, *given, **how)

    monkeypatch.setattr(emulate, "count", count)
    monkeypatch.setattr(emulate, "is_ready", lambda profile: True)
    made = prepare(planted, device="raspberry-pi-4", precision="int8", data=check, train=train, max_drop=0.5)
    rows = {row["name"]: row for row in made.report.candidates}
    assert names(made, "kept")[0].startswith("int8") and "+bias correction" in names(made, "kept")[0]
    assert rows["int8"]["status"] == "broken", "counted before the repair was tried"
    assert {row["provenance"] for row in rows.values() if "provenance" in row} == {"estimated"}
    assert not [row for row in made.report.rows if row.provenance == "emulated"]
    assert "the emulated program ended with SIGSEGV; speeds are estimates" in " ".join(made.report.notes)


def test_the_emulator_has_no_jetson(check: Data, train: Data) -> None:
    with pytest.raises(DeviceError, match="Cortex-A78AE; emulated are"):
        prepare(
            ROOT / "examples/fashion/fashion_cnn.onnx", target="jetson", precision="auto", on="emulator", data=check, train=train
        )
    with pytest.raises(DeviceError, match="allowed: local, emulator"):
        prepare(ROOT / "examples/fashion/fashion_cnn.onnx", target="jetson", on="mars", data=check, train=train)


def test_the_core_decides_which_int8_wins(check: Data, train: Data) -> None:
    """The real emulator: without dot products unsigned activations take fewer instructions, with them signed ones do."""
    net = ROOT / "examples/fashion/fashion_mobilenet.onnx"
    won = {}
    for name in ("raspberry-pi-4", "raspberry-pi-5"):
        made = prepare(net, device=name, precision="int8", on="emulator", data=check, train=train, max_drop=1.0)
        won[name] = names(made, "kept")[0]
        assert names(made, "broken") == [], "a step of one machine's rounding is no broken promise"
        ratio, dots = made.report.find("instruction_ratio"), made.report.find("instructions", "dot_product")
        assert ratio is not None and ratio.value is not None and ratio.value > 1.5
        assert dots is not None and bool(dots.value) == (name == "raspberry-pi-5")
    assert won == {"raspberry-pi-4": "int8 u8s8", "raspberry-pi-5": "int8"}


def test_on_local_says_that_this_machine_is_the_device(
    check: Data, train: Data, speeds: Callable[[dict[str, float]], None]
) -> None:
    speeds({"fp32": 4.0, "fp16": 5.0, "int8": 6.0, "w": 8.0})
    made = prepare(
        ROOT / "examples/fashion/fashion_cnn.onnx", device="raspberry-pi-4", precision="auto", data=check, train=train,
        max_drop=1.0, on="local",
    )  # fmt: skip
    assert made.manifest.precision == "fp32"
    assert all(row["provenance"] == "measured" for row in made.report.candidates if "speed_ratio" in row)


def test_without_a_promise_integers_are_not_tried(train: Data) -> None:
    made = prepare(ROOT / "examples/fashion/fashion_cnn.onnx", target="server", precision="auto", train={"image": train["image"]})
    assert {row["precision"] for row in made.report.candidates} == {"fp32", "fp16"}
    assert any("integers were not tried" in note for note in made.report.notes)


def test_integers_without_a_stated_bound_get_one(check: Data, train: Data) -> None:
    made = prepare(ROOT / "examples/fashion/fashion_cnn.onnx", target="server", precision="int8", data=check, train=train)
    assert made.manifest.contract["max_drop_points"] == 1.0
    assert any("no --max-drop was given" in note for note in made.report.notes)


# --- repeating --------------------------------------------------------------------------------------


def test_the_recipe_of_a_bundle_repeats_it_to_the_byte(planted: Model, check: Data, train: Data, tmp_path: Path) -> None:
    how: dict[str, Any] = {"target": "server", "data": check, "train": train, "max_drop": 0.5}
    first = edgesdk.export(planted, precision="int8", out=tmp_path / "first.edge", **how)
    again = edgesdk.export(planted, recipe=tmp_path / "first.edge", out=tmp_path / "again.edge", **how)
    assert again.digest == first.digest and again.manifest.precision == "int8"
    (tmp_path / "recipe.toml").write_text(Recipe.from_plain(first.manifest.recipe, "x").to_toml())
    third = edgesdk.export(planted, precision="int8", recipe=tmp_path / "recipe.toml", out=tmp_path / "third.edge", **how)
    assert third.digest == first.digest


def test_one_file_of_data_is_split_and_the_report_says_so(check: Data) -> None:
    made = prepare(ROOT / "examples/fashion/fashion_cnn.onnx", target="server", precision="int8", data=check, max_drop=1.0)
    assert any("--data split by seed 0: 800 samples to calibrate, 200 to check" in note for note in made.report.notes)
    drop = made.report.find("accuracy_drop")
    assert drop is not None and drop.n == 200


# --- the command ------------------------------------------------------------------------------------


def test_the_command_tells_the_story(check: Data, train: Data, tmp_path: Path) -> None:
    np.savez(tmp_path / "check.npz", **check)
    np.savez(tmp_path / "train.npz", **train)
    net = ROOT / "examples/fashion/fashion_resnet.onnx"
    common = f"export {net} --target server --data check.npz --train train.npz --max-drop 0.5"
    done = run_here(f"{common} --precision auto --out a.edge", tmp_path)
    assert done.code == 0, done.err
    assert "candidate" in done.out and "speed to fp32" in done.out and "kept" in done.out
    assert max(map(len, done.out.splitlines())) <= text.WIDTH
    told = json.loads((tmp_path / "a.report.json").read_text())
    assert sum(row["status"] == "kept" for row in told["candidates"]) == 1
    kept = next(row for row in told["candidates"] if row["status"] == "kept")
    assert kept["recipe"]["whole"][0]["pass"] == "fold"
    assert read_npz(tmp_path / "check.npz").keys() == check.keys()


def test_a_broken_contract_is_exit_code_three_and_one_line(planted: Model, check: Data, train: Data, tmp_path: Path) -> None:
    planted.save(tmp_path / "planted.onnx")
    np.savez(tmp_path / "check.npz", **check)
    np.savez(tmp_path / "train.npz", **train)
    done = run_here(
        "export planted.onnx --target server --precision int8 --data check.npz --train train.npz --max-drop 0.5 "
        "--set quantize.repair=false --out a.edge", tmp_path,
    )  # fmt: skip
    assert done.code == 3 and done.error["kind"] == "ContractBroken"
    assert not (tmp_path / "a.edge").exists() and not (tmp_path / "a.report.json").exists()


@pytest.mark.parametrize(
    ("how", "error", "told"),
    [
        ({"precision": "int9"}, EdgeError, "int8"),
        ({"precision": "int8", "settings": {"quantize.flavour": "best"}}, RecipeError, "u8s8"),
        ({"precision": "fp32", "settings": {"quantize.repair": "false"}}, RecipeError, "quantize"),
        ({"precision": "int8", "settings": {"quantize.keep": "nowhere"}}, PassError, "nowhere"),
        ({"precision": "int8", "max_drop": -1.0}, ModelError, "--max-drop"),
    ],
)
def test_what_cannot_be_asked_for(how: dict[str, Any], error: type[EdgeError], told: str, check: Data, train: Data) -> None:
    with pytest.raises(error, match=told):
        prepare(ROOT / "examples/fashion/fashion_cnn.onnx", target="server", data=check, train=train, **{"max_drop": 1.0, **how})
