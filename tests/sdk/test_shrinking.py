"""Exports that make the network itself smaller, under a contract: low rank, fine-tuning, training of integers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import edgesdk
from edgesdk.exporting import prepare
from edgesdk_converters.errors import ContractBroken, PassError, RecipeError
from edgesdk_targets import device
from edgesdk_targets.raspberry_pi import RaspberryPi

from ..fashion import samples
from .conftest import run_here

NETS = Path(__file__).parents[2] / "examples" / "fashion"


@pytest.fixture(autouse=True, scope="module")
def empty_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No trainings of earlier runs, and no emulator: boards are estimated."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return {"data": samples("t10k", 0, 400), "train": samples("train", 0, 600)}


def test_a_smaller_network_is_fine_tuned_before_its_precision_changes(data: dict[str, Any], tmp_path: Path) -> None:
    how: dict[str, Any] = {"target": "server", "max_drop": 5.0, **data}
    made = edgesdk.export(NETS / "fashion_cnn.onnx", precision="int8", low_rank=0.3, finetune=1, out=tmp_path / "a.edge", **how)
    assert [step["name"] for step in made.manifest.history] == ["fold", "low_rank", "train", "quantize"]
    assert made.manifest.contract["status"] == "passed"
    again = edgesdk.export(NETS / "fashion_cnn.onnx", recipe=tmp_path / "a.edge", out=tmp_path / "b.edge", **how)
    assert again.digest == made.digest, "training is part of the recipe, and repeats to the byte"


def test_channels_go_in_the_widths_that_the_machine_likes_and_integers_follow(data: dict[str, Any], tmp_path: Path) -> None:
    how: dict[str, Any] = {"target": "server", "max_drop": 6.0, **data}
    made = edgesdk.export(
        NETS / "fashion_mobilenet.onnx", precision="int8", prune=0.3, finetune=1, out=tmp_path / "a.edge",
        settings={"prune.budget": "macs"}, **how,
    )  # fmt: skip
    assert [step["name"] for step in made.manifest.history] == ["fold", "prune", "train", "quantize"]
    macs = made.report().find("macs")
    assert macs is not None and macs.value is not None and macs.value <= 0.7 * 6_186_864
    wide = device.this_machine().get("width_multiple", int) or 8
    graph = onnx.load_from_string(made.read("model.onnx")).graph
    widths = [t.dims[0] for t in graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4]
    assert len(widths) > 10 and all(size % wide == 0 or size == 24 for size in widths), "24 is what narrow layers have"
    speed = made.report().find("source_speed_ratio")
    assert speed is not None and speed.value is not None and speed.provenance == "measured"
    (note,) = (note for note in made.report().notes if "the model that came in" in note)
    assert note.startswith("SLOWER") == (speed.value < 1)
    again = edgesdk.export(NETS / "fashion_mobilenet.onnx", recipe=tmp_path / "a.edge", out=tmp_path / "b.edge", **how)
    assert again.digest == made.digest


@pytest.mark.parametrize(("where", "unit"), [("raspberry-pi-4", "estimated"), ("this-machine", "measured")])
def test_pruning_can_go_by_what_the_target_takes(where: str, unit: str, data: dict[str, Any]) -> None:
    """By measured time here, by the estimate elsewhere; the recipe keeps what came of it, so that it repeats."""
    settings = {"prune.budget": "cost", "prune.criterion": "magnitude"}
    how: dict[str, Any] = {"device": where, "max_drop": 90.0, **data}
    net = NETS / "fashion_resnet.onnx"
    made = prepare(net, prune=0.3, settings=settings, **how)
    (step,) = (step for step in made.manifest.history if step["name"] == "prune")
    assert "of what the target takes" in step["note"]
    assert made.manifest.recipe["whole"][1]["taken"] == [step["options"]["taken"]]
    again = prepare(net, recipe=made.recipe, **how)
    assert again.files["model.onnx"] == made.files["model.onnx"]
    if unit == "estimated":
        plain = prepare(net, **how)
        before, after = (one.report.find("latency_ms") for one in (plain, made))
        assert before is not None and after is not None and after.value <= 0.7 * before.value + 1e-9


def test_a_target_without_a_figure_for_latency_cannot_be_pruned_by_it(data: dict[str, Any], monkeypatch: Any) -> None:
    monkeypatch.setattr(RaspberryPi, "estimate", lambda self, records, precision: ())
    with pytest.raises(PassError, match="budget cost needs a target that tells what a model costs"):
        prepare(
            NETS / "fashion_cnn.onnx",
            device="raspberry-pi-4",
            prune=0.3,
            settings={"prune.budget": "cost"},
            max_drop=90.0,
            **data,
        )


def test_without_repair_the_contract_stops_it(data: dict[str, Any]) -> None:
    with pytest.raises(ContractBroken, match="top-1 accuracy drops"):
        prepare(NETS / "fashion_cnn.onnx", target="server", low_rank=0.7, max_drop=2.0, **data)
    with pytest.raises(ContractBroken, match="pass low_rank moved output 'logits'"):
        prepare(NETS / "fashion_cnn.onnx", target="server", low_rank=0.7)


def test_trained_integers_hold_what_rounded_ones_do_not(data: dict[str, Any]) -> None:
    how: dict[str, Any] = {
        "target": "server", "precision": "int8", "max_drop": 10.0, **data,
        "settings": {"quantize.flavour": "fixed", "quantize.bits": "4", "quantize.repair": "false"},
    }  # fmt: skip
    net = NETS / "fashion_mobilenet.onnx"
    with pytest.raises(ContractBroken):
        prepare(net, **how)
    made = prepare(net, **(how | {"settings": how["settings"] | {"quantize.qat": "3"}}))
    assert made.report.contract.status == "passed"
    assert [step["name"] for step in made.manifest.history] == ["fold", "quantize", "train"]


def test_the_command_says_what_was_removed(data: dict[str, Any], tmp_path: Path) -> None:
    for name, arrays in data.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    common = f"export {NETS / 'fashion_cnn.onnx'} --target server --data data.npz --train train.npz --max-drop 6"
    done = run_here(f"{common} --low-rank 0.3 --finetune 1 --out a.edge --json", tmp_path)
    assert done.code == 0, done.err
    assert any("layers factorised" in note for note in json.loads(done.out)["notes"])
    assert "training: epoch 1 of 1" in done.err
    done = run_here(f"{common} --prune 0.2 --finetune 1 --set prune.budget=macs --out c.edge --json", tmp_path)
    assert done.code == 0, done.err
    assert any("channels and heads gone" in note for note in json.loads(done.out)["notes"])
    done = run_here(f"{common} --precision int8 --qat 1 --out b.edge", tmp_path)
    assert done.code == 0 and "train: " in done.out, done.err


def test_what_does_not_go_together_is_said(data: dict[str, Any], tmp_path: Path) -> None:
    net = NETS / "fashion_cnn.onnx"
    (tmp_path / "r.toml").write_text('[[whole]]\npass = "fold"\n')
    with pytest.raises(RecipeError, match="a recipe says all"):
        prepare(net, target="server", low_rank=0.3, recipe=tmp_path / "r.toml")
    with pytest.raises(RecipeError, match="a recipe says all"):
        prepare(net, target="server", prune=0.3, recipe=tmp_path / "r.toml")
    with pytest.raises(PassError, match="60% of params cannot go"):
        prepare(net, target="server", prune=0.6, settings={"prune.least": "0.9"})
    with pytest.raises(RecipeError, match="--finetune without a pass to repair"):
        prepare(net, target="server", finetune=2)
    with pytest.raises(PassError, match=r"removed is 0.*; allowed"):
        prepare(net, target="server", low_rank=0.0)
    with pytest.raises(PassError, match="finetune learns from data"):
        prepare(net, target="server", low_rank=0.3, finetune=1)
