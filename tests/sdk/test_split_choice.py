"""Precisions of split models: chosen and repaired as those of whole ones, the head's on the device, the tail's on the server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgesdk
from edgesdk import ranking, split_choice
from edgesdk.exporting import Prepared, prepare
from edgesdk.trial import SENSITIVITY_CASES
from edgesdk_converters import find
from edgesdk_converters.bottlenecks import leakage
from edgesdk_converters.errors import ContractBroken, RecipeError
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given
from edgesdk_converters.quantize import Quantize, named
from edgesdk_converters.recipe import Recipe
from edgesdk_converters.sensitivity import LayerSensitivity, sensitivity
from edgesdk_targets.bundle import open_bundle

from ..converters.outliers import plant_outliers
from ..fashion import samples

NETS = Path(__file__).parents[2] / "examples" / "fashion"
PI = "raspberry-pi-4"
QUICK = {"bottleneck.mimic": "1", "bottleneck.tune": "0", "bottleneck.decoder_width": "32", "bottleneck.batch": "32"}
Data = dict[str, Any]


@pytest.fixture(autouse=True, scope="module")
def empty_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(leakage, "SAMPLES", 100)
        yield


@pytest.fixture(autouse=True)
def no_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking.emulate, "is_ready", lambda profile: False)


@pytest.fixture(scope="module")
def data() -> Data:
    return {"data": samples("t10k", 0, 300), "train": samples("train", 0, 100)}


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, float]], list[dict[str, tuple[int, ...]]]]:
    """Gives candidates the times that a test says, in milliseconds, by what they begin with; gives the names that were timed."""
    timed: list[dict[str, tuple[int, ...]]] = []

    def pretend(times: dict[str, float]) -> Any:
        def side_by_side(runs: dict[str, Any], *_: Any, **__: Any) -> dict[str, list[float]]:
            timed.append({name: np.shape(run()[0]) for name, run in runs.items()})  # they do run
            longest = sorted(times.items(), key=lambda item: -len(item[0]))
            return {name: [next(ms for key, ms in longest if name.startswith(key))] * 20 for name in runs}

        monkeypatch.setattr(ranking, "side_by_side", side_by_side)
        return timed

    return pretend


def rows(made: Prepared, part: str) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in made.report.candidates if row["name"].startswith(part)}


def test_auto_chooses_the_head_on_the_device_then_the_tail_on_the_server(data: Data, speeds: Any, tmp_path: Path) -> None:
    timed = speeds({"head fp32": 4.0, "head int8": 2.0, "head": 5.0, "tail fp32": 3.0, "tail fp16": 1.0, "tail": 4.0})
    out = tmp_path / "a.edge"
    made = edgesdk.export(
        NETS / "fashion_mobilenet.onnx", device=PI, precision="auto", split="auto", payload_bits=8, max_drop=3.0, on="local",
        out=out, **data,
    )  # fmt: skip
    head, tail = (open_bundle(out / f"{part}.edge") for part in ("head", "tail"))
    assert (head.manifest.precision, tail.manifest.precision, made.manifest.precision) == ("int8", "fp16", "int8")
    report = made.report()
    kept = [row["name"] for row in report.candidates if row["status"] == "kept"]
    assert kept == ["head int8", "tail fp16"]
    assert all(row["why"] or row["status"] == "kept" for row in report.candidates) and len(report.candidates) >= 12
    assert {row["name"]: row["why"] for row in report.candidates}["head fp16"] == "slower than fp32"
    speed = {row.segment: row for row in report.rows if row.name == "speed_ratio"}
    assert (speed["head"].value, speed["tail"].value) == (2.0, 3.0) and set(speed) == {"head", "tail"}
    assert all(name.startswith("head") for one in timed[:2] for name in one)
    assert all(shape == (1, 10) for name, shape in timed[-1].items() if name.startswith("tail"))
    told = " ".join(report.notes)
    assert "head int8 kept" in told and "tail fp16 kept" in told and "for the head were judged" in told
    assert report.contract.status == "passed" and edgesdk.verify(out).contract.status == "passed"
    again = edgesdk.export(NETS / "fashion_mobilenet.onnx", device=PI, recipe=out, max_drop=3.0, out=tmp_path / "b.edge", **data)
    assert again.digest == made.digest


def test_the_composition_is_what_is_judged(data: Data, speeds: Any) -> None:
    speeds({"head": 2.0, "tail fp32": 4.0, "tail": 2.0})
    made = prepare(
        NETS / "fashion_cnn.onnx", device=PI, precision="auto", split="auto", payload_bits=4, max_drop=2.0, on="local", **data
    )
    check, right = data["data"], 0
    from edgesdk_targets import bundle, runner

    loaded = runner.load(bundle.draft(Path("x"), made.manifest, made.files), runner.RunOptions(1))
    for image, label in zip(check["image"], check["labels"], strict=True):
        right += int(loaded.run({"image": image[None]})[0].argmax() == label)
    accuracy = made.report.find("accuracy")
    assert accuracy is not None and accuracy.value == right / 300
    assert made.recipe.tail[-1].name in ("half", "quantize")
    assert any(note.startswith("tail: ") for note in made.report.notes)


def test_without_a_promise_no_integers_are_tried_on_either_side(speeds: Any) -> None:
    speeds({"head": 2.0, "tail": 2.0})
    made = prepare(NETS / "fashion_cnn.onnx", device=PI, precision="auto", split="auto", on="local")
    assert {row["precision"] for row in made.report.candidates} == {"fp32", "fp16"}
    assert sum("integers were not tried" in note for note in made.report.notes) == 1


def test_a_head_that_breaks_the_contract_is_repaired_by_its_own_layers(data: Data) -> None:
    """Outliers in every eighth channel: repairs are those of the head's own layers."""
    benign = Model.load(NETS / "fashion_resnet.onnx")
    planted = benign.changed(plant_outliers(benign.proto, 256.0))
    given: Data = {"device": PI, "precision": "int8", "split": "auto", "head_share": 0.9, "max_drop": 1.0, **data}
    with pytest.raises(ContractBroken, match="the layers that cost most") as caught:
        prepare(planted, settings={"quantize.repair": "false"}, **given)
    assert caught.value.message.startswith("head int8")
    made = prepare(planted, **given)
    heads = rows(made, "head")
    assert heads["head int8"]["status"] == "broken" and "points" in heads["head int8"]["why"]
    assert [name for name, row in heads.items() if row["status"] == "kept" and "+" in name]
    last = made.recipe.head[-1]
    assert isinstance(last, Quantize) and not last.repair and not rows(made, "tail")
    assert made.report.contract.status == "passed" and [step.name for step in made.recipe.tail] == ["fold"]


def test_the_layers_of_a_part_are_judged_in_the_whole(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[split_choice.PartTrial, Recipe, list[LayerSensitivity]]] = []

    class Watching(split_choice.PartTrial):
        def most_sensitive(self, recipe: Recipe) -> Any:
            found = super().most_sensitive(recipe)
            seen.append((self, recipe, list(found)))
            return found

    monkeypatch.setattr(split_choice, "PartTrial", Watching)
    with pytest.raises(ContractBroken, match="the layers that cost most"):
        prepare(
            NETS / "fashion_cnn.onnx", device=PI, precision="w4", split="auto", head_share=0.99, max_relative_error=1e-6,
            settings={"quantize.repair": "false"}, **data,
        )  # fmt: skip
    (trial, recipe, found), *_ = seen
    assert trial._part == "head" and found
    *before, step = recipe.head
    assert isinstance(step, Quantize)
    cutting, costliest = trial._cutting, found[0]

    def alone(model: Model, given: Given, layer: str) -> LayerSensitivity:
        few = given.train.take(np.arange(SENSITIVITY_CASES))
        how = replace(step, bias_correction=False, qat=0)
        (found,) = sensitivity(model, few, lambda names: replace(how, only=names, keep=())(model, given), [layer])
        return found

    given = cutting.given("head")
    part = named(Recipe(tuple(before)).run(trial.source, given))
    output = next(node.output[0] for node in part.proto.graph.node if node.name == costliest.layer)
    whole = named(Recipe(tuple(before)).run(cutting.whole, cutting.trial.given()))
    there = next(node.name for node in whole.proto.graph.node if output in node.output)
    judged = alone(whole, cutting.trial.given(), there).output_sqnr_db
    assert np.isfinite(judged) and costliest.output_sqnr_db == pytest.approx(judged)
    assert costliest.output_sqnr_db != pytest.approx(alone(part, given, costliest.layer).output_sqnr_db, abs=0.5)


def test_with_a_bottleneck_one_training_serves_all_candidates(data: Data, speeds: Any) -> None:
    speeds({"head fp32": 4.0, "head int8": 2.0, "head": 5.0, "tail fp32": 3.0, "tail int8": 1.0, "tail": 4.0})
    trained: list[str] = []
    made = prepare(
        NETS / "fashion_cnn.onnx", device=PI, precision="auto", bottleneck=(1, 2), payload_bits=4, max_drop=100.0, on="local",
        settings=QUICK, progress=lambda told: trained.append(told) if told == "pass bottleneck" else None, **data,
    )  # fmt: skip
    assert len(trained) == 1
    kept = [row["name"] for row in made.report.candidates if row["status"] == "kept"]
    assert kept == ["head int8", "tail int8"]
    assert made.report.find("accuracy", "1 channels") is not None and made.report.find("leakage_psnr_db", "link") is not None
    assert sum(row.name == "leakage_psnr_db" and row.segment == "link" for row in made.report.rows) == 1


def test_what_makes_no_sense_is_refused_with_what_to_give_instead(data: Data) -> None:
    net = NETS / "fashion_cnn.onnx"
    with pytest.raises(RecipeError, match="--qat with --split") as caught:
        prepare(net, device=PI, precision="int8", split="auto", settings={"quantize.qat": "1"}, max_drop=1.0, **data)
    assert "[[tail]]" in caught.value.hint
    with pytest.raises(RecipeError, match="auto and a recipe were given"):
        prepare(net, device=PI, precision="auto", recipe=Recipe(()), **data)
    with pytest.raises(RecipeError, match="--payload-bits without --split"):
        prepare(net, device=PI, precision="auto", payload_bits=4, **data)


def test_a_tail_of_a_recipe_is_repaired_beside_the_head_that_holds(data: Data) -> None:
    """The recipe asks for 4-bit weights in the tail, and outliers break them: the head is not touched for that."""
    benign = Model.load(NETS / "fashion_resnet.onnx")
    planted = benign.changed(plant_outliers(benign.proto, 256.0))
    at = min(edgesdk.cuts(planted), key=lambda cut: (cut.head_macs > 0.3 * cut.tail_macs, cut.bytes)).tensors
    recipe = Recipe((), (), (find("fold")(), Quantize(flavour="u8s8")), at)
    made = prepare(planted, device=PI, recipe=recipe, max_drop=1.0, **data)
    tails = rows(made, "tail")
    assert not rows(made, "head") and tails["tail int8"]["status"] == "broken"
    assert [name for name, row in tails.items() if row["status"] == "kept" and "+" in name]
    assert made.recipe.head == () and made.recipe.split == at and made.report.contract.status == "passed"
    assert any("after the head" in note for note in made.report.notes)
