"""Exports with a learned bottleneck: few bytes cross, each operating point has a tail, and the report says all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgesdk
from edgesdk.exporting import prepare
from edgesdk_converters.bottlenecks import leakage
from edgesdk_converters.errors import ContractBroken, PassError, RecipeError
from edgesdk_converters.recipe import Recipe
from edgesdk_targets import runner
from edgesdk_targets.bundle import open_bundle

from ..fashion import samples
from .conftest import run_here

NET = Path(__file__).parents[2] / "examples" / "fashion" / "fashion_cnn.onnx"
PI = "raspberry-pi-4"
QUICK = {"bottleneck.mimic": "2", "bottleneck.tune": "2", "bottleneck.decoder_width": "32", "bottleneck.batch": "32"}


@pytest.fixture(autouse=True, scope="module")
def empty_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(leakage, "SAMPLES", 300)
        yield


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return {"data": samples("t10k", 0, 400), "train": samples("train", 0, 1200)}


@pytest.fixture(scope="module")
def made(data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("bottleneck") / "cnn.edge"
    return edgesdk.export(
        NET, device=PI, split="auto", bottleneck=(2, 4), payload_bits=4, max_drop=40.0, settings=QUICK, out=out, **data
    )  # fmt: skip


def test_the_device_sends_few_bytes_and_the_server_answers(made: Any, data: dict[str, Any]) -> None:
    head, tail = (open_bundle(made.path / name) for name in ("head.edge", "tail.edge"))
    (crossing,) = head.manifest.signature.outputs
    assert (crossing.dtype, int(np.prod(crossing.shape))) == ("uint8", 98)
    assert crossing.name.endswith("/bottleneck/payload")
    one, two = runner.load(head), runner.load(tail)
    right = 0
    for image, label in zip(data["data"]["image"], data["data"]["labels"], strict=True):
        (sent,) = one.run({"image": image[None]})
        right += int(two.run({crossing.name: sent})[0].argmax() == label)
    accuracy = made.report().find("accuracy")
    assert right / 400 == accuracy.value > 0.55


def test_each_operating_point_has_a_tail_that_takes_the_first_bytes(made: Any, data: dict[str, Any]) -> None:
    small = open_bundle(made.path / "tail-2.edge")
    assert made.manifest.model["points"] == {"2": small.digest} and made.manifest.model["channels"] == 4
    (spec,) = small.manifest.signature.inputs
    assert spec.shape == (1, 49)
    head, tail = runner.load(open_bundle(made.path / "head.edge")), runner.load(small)
    sent = [head.run({"image": image[None]})[0] for image in data["data"]["image"]]
    found = [int(tail.run({spec.name: np.ascontiguousarray(one[:, :49])})[0].argmax()) for one in sent]
    row = made.report().find("accuracy", "2 channels")
    assert row.value == np.mean(np.array(found) == data["data"]["labels"]) > 0.4
    assert made.report().find("link_bytes", "2 channels").value == 49
    assert edgesdk.verify(made.path / "tail-2.edge").rows


def test_the_report_says_what_it_is_and_what_it_leaks(made: Any) -> None:
    report = made.report()
    assert any(note.startswith("a distilled bottleneck: ") for note in report.notes)
    assert (
        report.find("link_bytes", "link").value == 98
        and report.find("params", "head").value < report.find("params", "tail").value
    )
    sent, plain = (report.find("leakage_psnr_db", segment) for segment in ("link", "plain cut"))
    assert sent.value < plain.value and sent.unit == "dB" and sent.provenance == "measured"
    assert all(0 < report.find("leakage_ssim", segment).value < 1 for segment in ("link", "plain cut"))
    assert report.contract.status == "passed"


def test_it_verifies_measures_and_its_recipe_gives_the_same_bytes(made: Any, data: dict[str, Any], tmp_path: Path) -> None:
    assert edgesdk.verify(made.path).contract.status == "passed"
    assert edgesdk.measure(made.path, runs=20).find("latency_ms") is not None
    again = edgesdk.export(NET, device=PI, recipe=made.path, max_drop=40.0, out=tmp_path / "b.edge", **data)
    assert again.digest == made.digest


def test_the_head_can_have_integers(data: dict[str, Any]) -> None:
    made = prepare(
        NET, device=PI, precision="int8", bottleneck=2, max_drop=60.0, settings=QUICK | {"quantize.repair": "false"}, **data
    )  # fmt: skip
    assert [step["pass"] for step in made.manifest.recipe["whole"]] == ["fold", "bottleneck"]
    assert [step["pass"] for step in made.manifest.recipe["head"]] == ["quantize"]
    assert made.report.find("link_bytes", "link").value == 98  # 8 bits are the default


def test_what_does_not_go_is_said(data: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(PassError, match="there are only"):
        prepare(NET, device=PI, bottleneck=2)
    with pytest.raises(ContractBroken, match="top-1 accuracy drops"):
        prepare(NET, device=PI, bottleneck=1, max_drop=1.0, settings=QUICK | {"bottleneck.tune": "0"}, **data)
    with pytest.raises(RecipeError, match="a recipe says all"):
        prepare(NET, device=PI, bottleneck=2, recipe=Recipe(()), **data)
    done = run_here(f"export {NET} --device {PI} --split auto --bottleneck two", tmp_path)
    assert done.code == 2 and "expected a number of channels" in done.err
