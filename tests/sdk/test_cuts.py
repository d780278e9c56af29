"""`edgesdk cuts`: a table and a picture for people, JSON for programs; and on real networks every cut is one."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

import edgesdk
from edgesdk.cut_chart import in_short
from edgesdk.cut_table import survey
from edgesdk_converters.accuracy import distance
from edgesdk_converters.cost import layers, total
from edgesdk_converters.fold import Fold
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given
from edgesdk_converters.reference import Reference
from edgesdk_converters.split import cuts, extremes, front, split

from .conftest import graph_model, run_here
from .test_real_models import CONSTANTS, SHAPES, example

ROOT = Path(__file__).parents[2]
NET = ROOT / "examples" / "fashion" / "fashion_mobilenet.onnx"
SMALL = ("resnet8", "ds-cnn", "mobilenet-vww", "autoencoder", "magika", "silero-vad", "squeezenet")
LARGE = ("basic-pitch", "shufflenet", "inception_v1", "inception_v2", "densenet121", "efficientnet-lite0", "resnet50")
SOME = 3
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def real_models() -> ModuleType:
    return example("real_models")


def opened(name: str) -> Model:
    """A real network as its file has it; silero-vad is one If until it is folded."""
    path = ROOT / "build" / "models" / f"{name}.onnx"
    assert path.exists(), f"{path} is missing: run `make models`"
    model = Model.load(path, shapes=SHAPES.get(name), constants=CONSTANTS.get(name))
    return Fold()(model, Given(model, None)) if name == "silero-vad" else model  # type: ignore[arg-type]


def same_in_two_parts(model: Model, feed: dict[str, Any], some: int | None) -> None:
    """At every cut, or at `some` from the first to the last: equal to the bit, and to 1e-5 where the runtime rewrites."""
    found = cuts(model) or cuts(model, pairs=True)
    assert found
    if some is not None and len(found) > some:
        found = tuple(found[index] for index in np.linspace(0, len(found) - 1, some).round().astype(int))
    wanted, fast_wanted = Reference(model).run(feed), _rewritten(model, feed)
    for cut in found:
        head, tail = split(model, cut.tensors)
        got = Reference(tail).run(Reference(head).run(feed))
        assert all(np.array_equal(got[name], wanted[name]) for name in wanted), cut.tensors
        assert distance([_rewritten(tail, _rewritten(head, feed))], [fast_wanted]).relative <= 1e-5, cut.tensors
        assert (len(head.proto.graph.node), len(tail.proto.graph.node)) == (cut.head_nodes, cut.tail_nodes)


def _rewritten(model: Model, feed: dict[str, Any]) -> dict[str, Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {i.name: feed[i.name] for i in session.get_inputs()}), strict=True))


def feed_of(real_models: ModuleType, name: str) -> dict[str, Any]:
    (feed,) = real_models.sample_inputs(name, 1, 0)
    return {key: value for key, value in feed.items() if key not in CONSTANTS.get(name, {})}


@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_real_networks_are_the_same_in_two_parts(real_models: ModuleType, name: str) -> None:
    same_in_two_parts(opened(name), feed_of(real_models, name), None if name in SMALL else SOME)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_the_large_ones_are_the_same_at_every_cut(real_models: ModuleType, name: str) -> None:
    same_in_two_parts(opened(name), feed_of(real_models, name), None)


@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_the_two_ends_have_the_costs_of_the_whole(name: str) -> None:
    model = opened(name)
    sums = total(layers(model))
    offload, local = extremes(model)
    assert (offload.head_macs, offload.tail_macs, offload.tail_params) == (0, sums.macs, sums.params)
    assert (local.head_macs, local.head_params, local.tail_macs) == (sums.macs, sums.params, 0)
    for cut in cuts(model, pairs=True):
        assert 0 <= cut.head_macs <= sums.macs == cut.head_macs + cut.tail_macs
        assert cut.head_params + cut.tail_params >= sums.params


def test_json_has_all_cuts_and_the_table_those_worth_a_look(tmp_path: Path) -> None:
    done = run_here(f"cuts {NET} --json --bits 4", tmp_path)
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    assert found["format"] == "edgesdk-cuts/1" and found["model"] == "fashion_mobilenet" and found["folded"] is False
    direct = edgesdk.cuts(NET)
    assert len(found["cuts"]) == len(direct) > 15
    for one, cut in zip(found["cuts"], direct, strict=True):
        assert one["tensors"] == list(cut.tensors) and one["head_params"] == cut.head_params
        assert one["bytes"] == one["bytes_fp32"] == 4 * one["bytes_int8"] == 8 * one["bytes_bits"]
        assert one["head_macs"] + one["tail_macs"] == found["local"]["head_macs"]
    best = [cut.tensors[0] for cut in front(direct)]
    assert [one["tensors"][0] for one in found["cuts"] if one["front"]] == best
    table = run_here(f"cuts {NET}", tmp_path).out
    every = run_here(f"cuts {NET} --all", tmp_path).out
    assert "offload" in table and "local" in table and "--fold" in table
    assert len(every.splitlines()) > len(table.splitlines())
    for cut in direct:
        (name,) = cut.tensors
        assert (f" {name} (" in table) == (name in best)
        assert f" {name} (" in every
    assert sum(line.split()[1:2] == ["*"] for line in every.splitlines()) == len(best)


def test_what_is_the_same_information_in_another_form_is_marked(tmp_path: Path, folder: Path) -> None:
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("Relu", ["a"], ["b"]),
        node("MatMul", ["b", "w"], ["c"]),
        node("Neg", ["c"], ["y"]),
    ]
    weight = onnx.numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")
    onnx.save(graph_model(nodes, weights=[weight]), folder / "m.onnx")
    lines = {
        line.split(" (")[0].split()[-1]: line for line in run_here("cuts m.onnx --all", folder).out.splitlines() if " (" in line
    }
    assert lines["a"].startswith("50.0% ") and "64/64" in lines["a"] and "1x8" in lines["a"]
    assert lines["b"].startswith('" *') and "64/64" not in lines["b"]


def test_pairs_and_errors(tmp_path: Path) -> None:
    both = edgesdk.cuts(NET, pairs=True)
    assert len(both) > len(edgesdk.cuts(NET))
    told = run_here(f"cuts {NET} --pairs --all", tmp_path).out
    assert f"21 cuts of one tensor, {len(both) - 21} of two" in told and ") + " in " ".join(told.split())
    assert run_here("cuts nothing.onnx", tmp_path).code == 1
    assert run_here(f"cuts {NET} --bits 9", tmp_path).code == 2


def test_a_recurrent_network_with_branches_is_folded_first(tmp_path: Path) -> None:
    arguments = f"cuts {ROOT}/build/models/silero-vad.onnx --shape input=1x576 --shape state=2x1x128 --constant sr=16000"
    refused = run_here(arguments, tmp_path)
    assert refused.code == 1 and "edgesdk cuts --fold" in refused.error["hint"]
    planned = run_here(
        f"plan {arguments.removeprefix('cuts ')} --device raspberry-pi-4 --server jetson-nano --link lte", tmp_path
    )
    assert planned.code == 1 and "edgesdk plan --fold" in planned.error["hint"]
    told = run_here(f"{arguments} --fold", tmp_path)
    assert told.code == 0 and "0 cuts of one tensor" in told.out and "--pairs looks for two" in told.out
    pairs = json.loads(run_here(f"{arguments} --fold --pairs --json", tmp_path).out)
    assert pairs["folded"] is True and pairs["cuts"]
    assert all(one["head_macs"] >= 548352 + 131072 for one in pairs["cuts"]), "the cell has old and new state: cut behind it"


def test_names_of_the_folded_model_are_those_that_an_export_splits_at(tmp_path: Path) -> None:
    from edgesdk.exporting import prepare

    found = edgesdk.cuts(ROOT / "build" / "models" / "resnet8.onnx", fold=True)
    (name,) = found[len(found) // 2].tensors
    prepared = prepare(ROOT / "build" / "models" / "resnet8.onnx", device="raspberry-pi-4", split=name)
    assert prepared.recipe.to_plain()["split"] == {"at": [name]}


def test_dynamic_shapes_are_asked_for(folder: Path) -> None:
    refused = run_here("cuts dynamic.onnx", folder)
    assert refused.code == 1 and "--shape" in refused.error["hint"]
    assert run_here("cuts dynamic.onnx --shape x=2x8", folder).code == 0


def test_a_model_without_cuts_has_its_two_ends(folder: Path) -> None:
    told = run_here("cuts m.onnx", folder)
    assert told.code == 0 and "0 cuts" in told.out and "no tensor has all paths through it" in told.out
    found = json.loads(run_here("cuts m.onnx --json", folder).out)
    assert found["cuts"] == [] and found["offload"]["bytes"] == 32 and found["local"]["bytes"] == 16


def test_long_names_keep_to_100_columns_and_are_told_in_full(folder: Path) -> None:
    long = "/backbone/stages.3/blocks.17/attention/projection/MatMul_output_0_quantised_and_then_restored" * 2
    node = helper.make_node
    onnx.save(graph_model([node("Relu", ["x"], [long]), node("Neg", [long], ["y"])]), folder / "m.onnx")
    told = run_here("cuts m.onnx --chart chart.svg", folder).out
    assert max(map(len, told.splitlines())) <= 100
    assert long in "".join(told.split())


# --- the picture -----------------------------------------------------------------------------------------


def picture(place: Path) -> ElementTree.Element:
    return ElementTree.fromstring(place.read_text(encoding="utf-8"))


def test_the_picture_has_a_point_for_each_cut_where_it_belongs(tmp_path: Path) -> None:
    done = run_here(f"cuts {NET} --chart c.svg", tmp_path)
    assert done.code == 0 and "wrote c.svg" in done.err
    root = picture(tmp_path / "c.svg")
    assert "http" not in (tmp_path / "c.svg").read_text().replace("http://www.w3.org/2000/svg", ""), "it needs nothing else"
    points = {
        p.findtext(f"{SVG}title", "").splitlines()[0]: p for p in root.iter(f"{SVG}circle") if p.find(f"{SVG}title") is not None
    }
    found = edgesdk.cuts(NET)
    assert points.keys() == {cut.tensors[0] for cut in found}
    by_work = sorted(found, key=lambda cut: cut.head_macs)
    across = [float(points[cut.tensors[0]].attrib["cx"]) for cut in by_work]
    assert across == sorted(across)
    by_bytes = sorted(found, key=lambda cut: -cut.bytes)
    down = [float(points[cut.tensors[0]].attrib["cy"]) for cut in by_bytes]
    assert down == sorted(down)
    told = points[found[0].tensors[0]].findtext(f"{SVG}title", "")
    assert f"{found[0].bytes:,} bytes" in told and f"head {found[0].head_macs:,} MACs" in told
    texts = " ".join("".join(text.itertext()) for text in root.iter(f"{SVG}text"))
    assert "share of all MACs" in texts and "bytes that cross" in texts and "offload: the input, 3.14kB" in texts


def test_names_that_xml_cannot_hold_do_not_break_the_picture(folder: Path) -> None:
    name = 'a<b>&"c\x01/é/層'
    node = helper.make_node
    onnx.save(graph_model([node("Relu", ["x"], [name]), node("Neg", [name], ["y"])]), folder / "m.onnx")
    assert run_here("cuts m.onnx --chart c.svg", folder).code == 0
    titles = [title.text or "" for title in picture(folder / "c.svg").iter(f"{SVG}title")]
    assert titles[0].startswith('a<b>&"c\ufffd/é/層')


def test_a_picture_is_drawn_of_a_model_without_cuts_or_work(folder: Path) -> None:
    assert run_here("cuts m.onnx --chart c.svg", folder).code == 0
    node = helper.make_node
    onnx.save(graph_model([node("Relu", ["x"], ["a"]), node("Neg", ["a"], ["y"])]), folder / "m.onnx")
    done = run_here("cuts m.onnx --chart c.svg --pairs --all", folder)
    assert done.code == 0 and "0 MACs" in done.out
    assert len(list(picture(folder / "c.svg").iter(f"{SVG}title"))) == 1


def test_a_picture_that_cannot_be_written_is_said(folder: Path) -> None:
    refused = run_here("cuts m.onnx --chart nowhere/c.svg", folder)
    assert refused.code == 1 and "cannot be written" in refused.error["message"] and refused.out == ""


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0"), (7, "7"), (999, "999"), (1000, "1k"), (8192, "8.19k"), (999_499, "999k"), (999_500, "1M"), (802_816, "803k"),
     (4_089_184_256, "4.09G"), (12_345_678_901_234, "12,346G")],
)  # fmt: skip
def test_counts_have_three_digits(count: int, shown: str) -> None:
    assert in_short(count) == shown


def test_a_survey_has_everything_of_one_model() -> None:
    found = survey(NET, pairs=True)
    assert found.cuts == edgesdk.cuts(NET, pairs=True) and found.front == front(found.cuts)
    assert (found.offload, found.local) == extremes(Model.load(NET))
