"""Exports in two parts: head and tail are bundles of their own, together they are the model, and the contract is on both."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

import edgesdk
from edgesdk.exporting import prepare
from edgesdk_converters import find
from edgesdk_converters.errors import BundleError, ContractBroken, DeviceError, LinkError, ModelError, RecipeError
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given
from edgesdk_converters.quantize import Quantize
from edgesdk_converters.recipe import Recipe
from edgesdk_converters.reference import Reference
from edgesdk_targets.bundle import open_bundle

from ..fashion import samples
from .conftest import run_here

NETS = Path(__file__).parents[2] / "examples" / "fashion"
PI = "raspberry-pi-4"


@pytest.fixture(autouse=True, scope="module")
def empty_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return {"data": samples("t10k", 0, 400), "train": samples("train", 0, 300)}


@pytest.fixture(scope="module")
def made(data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("split") / "resnet.edge"
    return edgesdk.export(NETS / "fashion_resnet.onnx", device=PI, split="auto", payload_bits=4, max_drop=2.0, out=out, **data)


def test_the_folder_holds_two_whole_bundles_that_give_together_what_the_model_gives(made: Any, data: dict[str, Any]) -> None:
    head, tail = (open_bundle(made.path / name) for name in ("head.edge", "tail.edge"))
    assert (head.manifest.role, head.manifest.target) == ("head", "raspberry-pi")
    assert (tail.manifest.role, tail.manifest.target) == ("tail", "server")
    assert made.manifest.model["head"] == head.digest and made.manifest.model["tail"] == tail.digest
    (crossing,) = head.manifest.signature.outputs
    assert crossing.dtype == "uint8" and crossing.name.endswith("/payload")
    image = data["data"]["image"][:1]
    with edgesdk.load(made.path) as session:
        together = session.run({"image": image})["logits"]
    from edgesdk_targets import runner

    one, two = runner.load(head), runner.load(tail)
    sent = one.run({"image": image})[0]
    assert sent.dtype == np.uint8
    assert np.array_equal(two.run({crossing.name: sent})[0], together)


def test_the_report_tells_of_both_parts_and_of_what_crosses(made: Any) -> None:
    report = made.report()
    rows = {(row.name, row.segment): row for row in report.rows if row.layer is None}
    link = rows["link_bytes", "link"]
    (crossing,) = open_bundle(made.path / "head.edge").manifest.signature.outputs
    assert link.value == np.prod(crossing.shape) and link.provenance == "measured" and "the input has 3,136" in link.method
    whole = 12_386_304
    assert 0 < rows["macs", "head"].value <= 0.25 * whole < rows["macs", "tail"].value
    assert rows["latency_ms", "head"].where == PI and rows["latency_ms", "head"].provenance == "estimated"
    assert rows["accuracy_drop", "whole"].value <= 2.0 and report.contract.status == "passed"
    told = " ".join(report.notes)
    assert "a plain cut" in told and "the fewest bytes of" in told and "values of 4 bits" in told


def test_it_verifies_measures_and_runs_as_any_bundle(made: Any, tmp_path: Path) -> None:
    assert edgesdk.verify(made.path).contract.status == "passed"
    assert edgesdk.verify(made.path / "head.edge").rows
    found = edgesdk.measure(made.path, runs=20).find("latency_ms")
    assert found is not None and found.provenance == "measured"
    assert edgesdk.measure(made.path / "tail.edge", runs=20).find("latency_ms") is not None
    with pytest.raises(DeviceError, match="is the head of a split model"):
        edgesdk.load(made.path / "head.edge")
    done = run_here(f"inspect {made.path} --json", tmp_path)
    assert done.code == 0 and json.loads(done.out)["role"] == "split", done.err


def test_a_byte_changed_in_either_part_is_found(made: Any, tmp_path: Path) -> None:
    for file in ("head.edge/model.onnx", "tail.edge/model.onnx", "tail.edge/manifest.json", "head.edge/golden/outputs/0.npy"):
        copy = tmp_path / "copy.edge"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(made.path, copy)
        place = copy / file
        damaged = bytearray(place.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        place.write_bytes(damaged)
        with pytest.raises(BundleError):
            edgesdk.verify(copy)


def test_its_recipe_gives_the_same_bytes_again_and_so_does_a_zip(made: Any, data: dict[str, Any], tmp_path: Path) -> None:
    net = NETS / "fashion_resnet.onnx"
    again = edgesdk.export(net, device=PI, recipe=made.path, max_drop=2.0, out=tmp_path / "b.zip", **data)
    assert again.digest == made.digest
    with edgesdk.load(tmp_path / "b.zip") as session:
        assert session.run({"image": data["data"]["image"][:1]})["logits"].shape == (1, 10)


def test_a_plain_cut_in_float_is_the_whole_exactly(tmp_path: Path) -> None:
    name = next(cut.tensors[0] for cut in edgesdk.cuts(NETS / "fashion_mobilenet.onnx") if cut.head_macs > 1_000_000)
    made = prepare(NETS / "fashion_mobilenet.onnx", device=PI, split=name)
    error = made.report.find("relative_error")
    assert error is not None and error.value is not None and error.value <= 1e-5
    assert made.manifest.recipe["split"] == {"at": [name]}
    assert any(row.name == "link_bytes" for row in made.report.rows)


@pytest.mark.parametrize("net", ["cnn", "mobilenet", "vit"])
def test_the_head_can_have_integers_and_fewer_channels(net: str, data: dict[str, Any]) -> None:
    made = prepare(
        NETS / f"fashion_{net}.onnx", device=PI, precision="int8", split="auto", payload_bits=8, max_drop=25.0, prune=0.1,
        settings={"quantize.repair": "false"}, **data,
    )  # fmt: skip
    assert made.report.contract.status == "passed"
    plain = made.manifest.recipe
    assert [step["pass"] for step in plain["whole"]] == ["fold", "prune", "payload"]
    assert [step["pass"] for step in plain["head"]] == ["quantize"] and [step["pass"] for step in plain["tail"]] == ["fold"]


def test_a_broken_contract_leaves_nothing(data: dict[str, Any], tmp_path: Path) -> None:
    net = NETS / "fashion_resnet.onnx"
    with pytest.raises(ContractBroken, match="top-1 accuracy drops"):
        edgesdk.export(net, device=PI, split="auto", payload_bits=2, max_drop=5.0, out=tmp_path / "a.edge", **data)
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_go_is_said(data: dict[str, Any]) -> None:
    net = NETS / "fashion_cnn.onnx"
    with pytest.raises(RecipeError, match="--payload-bits without --split"):
        prepare(net, device=PI, payload_bits=4, **data)
    with pytest.raises(ModelError, match="9 bits a value; allowed: 2 to 8, or 32"):
        prepare(net, device=PI, split="auto", payload_bits=9, **data)
    with pytest.raises(ModelError, match="nothing_of_that_name"):
        prepare(net, device=PI, split="nothing_of_that_name", **data)
    with pytest.raises(ModelError, match="no cut of fashion_cnn has a head of at most 0%"):
        prepare(net, device=PI, split="auto", head_share=1e-9, **data)


def test_the_command(data: dict[str, Any], tmp_path: Path) -> None:
    for name, arrays in data.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    net = NETS / "fashion_mobilenet.onnx"
    line = f"export {net} --device {PI} --split auto --payload-bits 8 --data data.npz --train train.npz --max-drop 2 --out m.edge"
    done = run_here(line, tmp_path)
    assert done.code == 0, done.err
    assert "link_bytes" in done.out and (tmp_path / "m.edge" / "head.edge" / "manifest.json").is_file()
    np.savez(tmp_path / "x.npz", image=data["data"]["image"][:1])
    done = run_here("run m.edge --inputs x.npz --outputs y.npz", tmp_path)
    assert done.code == 0 and "in two parts" in done.out, done.err
    assert replace(edgesdk.verify(tmp_path / "m.edge").contract).status == "passed"


def test_over_a_link_the_cut_is_where_it_takes_least_time(data: dict[str, Any]) -> None:
    net = NETS / "fashion_resnet.onnx"
    crossing = {}
    for link in ("20kbit,20ms", "1gbit,1ms"):
        made = prepare(net, device=PI, split="auto", link=link, server="jetson-agx-orin")
        found = made.report.find("link_bytes", "link")
        assert found is not None and found.value is not None
        crossing[link] = found.value
        assert any("cut at" in note and "ms" in note for note in made.report.notes), made.report.notes
    assert crossing["20kbit,20ms"] < crossing["1gbit,1ms"]
    with pytest.raises(LinkError, match="lora"):
        prepare(net, device=PI, split="auto", link="lora", server="jetson-agx-orin")
    with pytest.raises(LinkError):
        prepare(net, device=PI, split="auto", link="fast")
    with pytest.raises(RecipeError, match="--link or --server without --split"):
        prepare(net, device=PI, link="wifi")


@pytest.fixture
def forked() -> Any:
    """Two branches that meet at the end: no tensor crosses alone."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["g"]), helper.make_node("Relu", ["g"], ["a"]),
        helper.make_node("Tanh", ["x"], ["b"]), helper.make_node("MatMul", ["a", "v"], ["m"]),
        helper.make_node("MatMul", ["b", "u"], ["n"]), helper.make_node("Add", ["m", "n"], ["y"]),
    ]  # fmt: skip
    shapes = {"w": (12, 20), "v": (20, 5), "u": (12, 5)}
    stored = [numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name) for name, shape in shapes.items()]
    x, y = (helper.make_tensor_value_info(name, 1, shape) for name, shape in (("x", [1, 12]), ("y", [1, 5])))
    graph = helper.make_graph(nodes, "forked", [x], [y], stored)
    return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), "forked")


@pytest.mark.parametrize("bits", [32, 8, 5])
def test_two_tensors_can_cross_together(forked: Any, bits: int, tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((200, 12)).astype(np.float32)
    made = edgesdk.export(forked, device=PI, split="b,a", payload_bits=bits, data={"x": x}, out=tmp_path / "f.edge")
    spec = open_bundle(made.path / "head.edge").manifest.signature.outputs
    ending = "" if bits == 32 else "/payload"
    assert {one.name for one in spec} == {f"a{ending}", f"b{ending}"}
    found = made.report().find("link_bytes", "link")
    assert found is not None and found.value == sum(-(-count * bits // 8) for count in (20, 12))
    with edgesdk.load(made.path) as session:
        got = np.stack([session.run({"x": row[None]})["y"] for row in x])
    wanted = np.stack([Reference(forked).run({"x": row[None]})["y"] for row in x])
    assert np.abs(got - wanted).max() / np.abs(wanted).max() < (1e-5 if bits == 32 else 0.3 / 2 ** (bits - 4))
    assert edgesdk.verify(made.path).contract.status == "passed"
    again = edgesdk.export(forked, device=PI, recipe=made.path, data={"x": x}, out=tmp_path / "g.edge")
    assert again.digest == made.digest


def test_a_network_without_a_single_cut_says_how_to_cut_it(forked: Any) -> None:
    with pytest.raises(ModelError, match="through which all paths go") as caught:
        prepare(forked, device=PI, split="auto")
    assert "--split A,B" in caught.value.hint
    with pytest.raises(ModelError, match="is no cut of forked"):
        prepare(forked, device=PI, split="a,m")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"split": "cut_here", "link": "wifi"}, "--link with a cut that is given already"),
        ({"bottleneck": 2, "link": "wifi"}, "--link with a bottleneck"),
        ({"split": "auto", "server": "jetson-agx-orin", "tail_target": "raspberry-pi"}, "is no raspberry-pi"),
    ],
)
def test_what_would_be_passed_over_in_silence_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        prepare(NETS / "fashion_mobilenet.onnx", device=PI, **given)


@pytest.mark.parametrize("split", ["", " "])
def test_an_empty_name_is_not_taken_for_auto(split: str) -> None:
    """As from a shell variable that is not set."""
    for more in ({}, {"bottleneck": 2}):
        with pytest.raises(RecipeError, match="--split names no tensor"):
            prepare(NETS / "fashion_cnn.onnx", device=PI, split=split, **more)  # type: ignore[arg-type]


def test_what_is_missing_is_the_provider_and_the_device_that_are_not_here() -> None:
    made = prepare(NETS / "fashion_cnn.onnx", device=PI, split="auto", server="jetson-agx-orin")
    missing = [row for row in made.report.rows if row.segment == "device"]
    assert missing and all(
        row.where == "jetson-agx-orin" and "TensorrtExecutionProvider is not here" in row.method for row in missing
    )
    assert "not yet on TensorrtExecutionProvider" in made.report.contract.text


def test_a_broken_contract_says_what_the_cut_can_do_about_it(data: dict[str, Any]) -> None:
    with pytest.raises(ContractBroken) as caught:
        prepare(NETS / "fashion_resnet.onnx", device=PI, split="auto", payload_bits=2, max_drop=5.0, **data)
    assert caught.value.hint == "give more --payload-bits; or a larger --max-drop"
    with pytest.raises(ContractBroken) as caught:
        prepare(NETS / "fashion_resnet.onnx", device=PI, precision="fp16", split="auto", payload_bits=2, max_drop=5.0, **data)
    assert caught.value.hint == "give more --payload-bits; or take a higher precision, or a larger --max-drop"


def test_a_cut_of_a_network_in_integers_has_no_payload_to_give_more_bits() -> None:
    recipe = Recipe((find("fold")(), Quantize(flavour="weights")), (), (), cut_of("fashion_cnn"))
    with pytest.raises(ContractBroken) as caught:
        prepare(NETS / "fashion_cnn.onnx", device=PI, recipe=recipe, max_relative_error=1e-9)
    assert caught.value.hint == "take a higher precision, or state your own bound with --max-relative-error"


def test_a_worst_slice_is_told_without_a_precision_where_there_is_none_higher(data: dict[str, Any]) -> None:
    check = data["data"] | {"slice": np.arange(400) % 2}
    with pytest.raises(ContractBroken, match="slice") as caught:
        prepare(
            NETS / "fashion_resnet.onnx", device=PI, split="auto", payload_bits=2, max_slice_drop=10.0, data=check,
            train=data["train"], max_relative_error=10.0,
        )  # fmt: skip
    assert caught.value.hint == ("give more --payload-bits; or more calibration data of that slice, or a larger --max-slice-drop")


@pytest.mark.parametrize(("qat", "learned"), [(1, 300), (0, 128)])
def test_a_tail_that_is_trained_learns_from_all_samples(
    qat: int, learned: int, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[int, int]] = []
    real = Quantize.__call__

    def called(self: Quantize, model: Model, what: Given) -> Model:
        assert what.lessons is not None
        given.append((len(what.train), len(what.lessons)))
        return real(self, model, what)

    monkeypatch.setattr(Quantize, "__call__", called)
    tail = (find("fold")(), Quantize(flavour="u8s8", qat=qat, repair=False))
    prepare(NETS / "fashion_cnn.onnx", device=PI, recipe=Recipe((), (), tail, cut_of("fashion_cnn")), max_drop=50.0, **data)
    assert given == [(128, learned)]


def cut_of(net: str) -> tuple[str, ...]:
    return min(edgesdk.cuts(NETS / f"{net}.onnx"), key=lambda cut: (cut.head_macs > 0.3 * cut.tail_macs, cut.bytes)).tensors


def test_a_tail_on_a_target_without_float_is_refused() -> None:
    with pytest.raises(RecipeError, match="target fpga has fixed alone, and a tail begins in float") as caught:
        prepare(NETS / "fashion_cnn.onnx", device=PI, split="auto", tail_target="fpga")
    assert "--tail-target server" in caught.value.hint
