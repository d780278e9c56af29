"""Searches over reuse factors: what none beats, limits, inside the data or not, the chart, and what an export makes of it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import edgesdk
from edgesdk import reuse_chart, reuse_search, reuse_table
from edgesdk.reuse_search import Choice, ReuseSearch
from edgesdk_converters.cost import layers
from edgesdk_converters.errors import DeviceError, DoesNotFit, RecipeError, Unsupported
from edgesdk_converters.model import Model
from edgesdk_targets.bundle import open_bundle
from edgesdk_targets.fpga import hls4ml_constants
from edgesdk_targets.fpga import reuse as factors
from edgesdk_targets.fpga.dense_spec import parse
from edgesdk_targets.fpga.hls4ml_estimate import estimate
from edgesdk_targets.fpga.hls4ml_terms import FixedLayer

from .conftest import run_here
from .test_fpga import dense

JET, SMALL, KNOWN = "dense:16-64-32-32-5@8bit", "dense:16-8-5@8bit", "dense:48-72-16@8bit"
AXES = ("cycles", "lut", "ff", "dsp", "bram")
SVG = "{http://www.w3.org/2000/svg}"
FASHION = Path(__file__).parents[2] / "examples" / "fashion"


@pytest.fixture(scope="module")
def jet() -> ReuseSearch:
    return edgesdk.reuse(JET, device="pynq-z2")


@pytest.fixture(scope="module")
def known() -> ReuseSearch:
    """Of the sizes, on the part, with the clock of the results that the estimator was fitted on."""
    return edgesdk.reuse(KNOWN, device="alveo-u250")


def costs(choice: Choice) -> tuple[float, ...]:
    return tuple(choice.value(name) for name in AXES)


def brute_force(text: str, part: str) -> dict[tuple[int, ...], tuple[float, ...]]:
    """Costs of every choice, block RAM in blocks of 18 kbit."""
    network = parse(text)
    weighted = [layer for layer in network if layer.weighted]
    found = {}
    for own in itertools.product(*(factors.legal(layer.n_in, layer.n_out) for layer in weighted)):
        named = dict(zip([layer.name for layer in weighted], own, strict=True))
        rows = {row.name: float(row.value or 0) for row in estimate(network, reuse_factors=named, part=part) if row.layer is None}
        found[own] = tuple(rows[name] * (2 if name == "bram" else 1) for name in AXES)
    return found


def test_a_small_network_has_the_front_of_all_its_choices() -> None:
    found = edgesdk.reuse(SMALL, device="pynq-z2")
    every = brute_force(SMALL, "xc7z020clg400-1")
    front = {
        own for own, cost in every.items()
        if not any(other != cost and all(a <= b for a, b in zip(other, cost, strict=True)) for other in every.values())
    }  # fmt: skip
    assert {tuple(choice.reuse_factors.values()) for choice in found.choices} == front
    assert all(costs(choice) == every[tuple(choice.reuse_factors.values())] for choice in found.choices)
    assert found.complete and found.estimates == len(every)


def test_what_is_taken_has_the_fewest_cycles_within_the_limits() -> None:
    limits = {"dsp": 20.0, "lut": 4000.0}
    found = edgesdk.reuse(SMALL, device="pynq-z2", limits=limits)
    fitting = [cost for cost in brute_force(SMALL, "xc7z020clg400-1").values() if cost[1] <= 4000 and cost[3] <= 20]
    assert costs(found.taken)[:2] == min(fitting)[:2]
    for choice in found.choices:
        assert choice.within == (choice.value("lut") <= 4000 and choice.value("dsp") <= 20)
    assert found.taken.within and found.taken is found.best[0]
    line = [(choice.value("cycles"), choice.value("lut")) for choice in found.best]
    assert line == sorted(line) and [lut for _, lut in line] == sorted((lut for _, lut in line), reverse=True)
    for choice in found.within:
        assert any(cycles <= choice.value("cycles") and lut <= choice.value("lut") for cycles, lut in line)


def test_the_figures_are_those_of_an_estimate_with_the_same_reuse_factors(jet: ReuseSearch) -> None:
    for choice in (jet.best[0], jet.best[-1], jet.choices[0]):
        own = ",".join(f"{name}={factor}" for name, factor in choice.reuse_factors.items())
        report = edgesdk.estimate(
            JET, device="pynq-z2", settings={"flow": "hls4ml", "strategy": "resource", "reuse_factors": own}
        )  # fmt: skip
        for name in (*AXES, "initiation_interval", "fmax_mhz"):
            row, scale = report.find(name), 2 if name == "bram" else 1
            assert row is not None and row.value is not None and row.interval is not None
            mine = choice.find(name)
            assert mine.interval is not None and mine.provenance == "estimated"
            assert (mine.value, mine.interval.low, mine.interval.high) == (
                scale * row.value, scale * row.interval.low, scale * row.interval.high,
            )  # fmt: skip


def test_the_jet_network_on_a_pynq_z2_is_extrapolated_throughout_and_says_why(jet: ReuseSearch) -> None:
    assert all(choice.extrapolated for choice in jet.choices)
    assert set(jet.common) >= {"part xc7z020clg400-1", "4 layers with weights"}
    assert jet.limits == {"lut": 53200, "ff": 106400, "dsp": 220, "bram": 280}
    assert jet.taken.value("dsp") <= 220 and any(choice.value("dsp") > 220 for choice in jet.choices)
    assert any("may not fit" in note for note in jet.notes)
    luts = [choice.value("lut") for choice in jet.best]
    assert luts == sorted(set(luts), reverse=True), "of equal ones only one is drawn as the line"
    for choice in jet.choices:
        for layer in jet.layers:
            assert choice.reuse_factors[layer.name] in factors.legal(layer.n_in, layer.n_out)


def test_choices_inside_the_estimators_data_are_told_from_others(known: ReuseSearch) -> None:
    inside = [choice for choice in known.choices if not choice.extrapolated]
    assert inside and len(inside) < len(known.choices) and known.common == ()
    for choice in known.choices:
        assert choice.find("lut").extrapolated == choice.find("cycles").extrapolated == choice.extrapolated
    for choice in inside:
        first, second = choice.reuse_factors.values()
        assert any(
            (factors.closest(48, 72, wanted), factors.closest(72, 16, wanted)) == (first, second) for wanted in range(1024, 4094)
        )


def test_what_is_safe_is_within_the_limits_at_the_high_ends(jet: ReuseSearch) -> None:
    def high(choice: Choice, name: str) -> float:
        interval = choice.find(name).interval
        return math.inf if interval is None else interval.high

    assert jet.safe is not None and not jet.taken.surely
    for choice in jet.choices:
        assert choice.surely == all(high(choice, name) <= bound for name, bound in jet.limits.items())
        assert not choice.surely or choice.value("cycles") >= jet.safe.value("cycles")
    tight = edgesdk.reuse(SMALL, device="pynq-z2", limits={"lut": 2300.0})
    assert tight.safe is None and "no choice is within the limits at the high ends" in reuse_table.shown(tight, False)


def test_a_part_bounds_what_a_user_allows(known: ReuseSearch) -> None:
    found = edgesdk.reuse(SMALL, device="pynq-z2", limits={"dsp": 5000.0, "ff": 10_000.0})
    assert (found.limits["dsp"], found.limits["ff"]) == (220, 10_000)
    assert known.limits["dsp"] == 12288


@pytest.mark.parametrize("limits", [{"lut": 100.0}, {"cycles": 3.0}, {"dsp": 1.0}])
def test_limits_that_nothing_keeps_are_named(limits: dict[str, float]) -> None:
    with pytest.raises(DoesNotFit) as caught:
        edgesdk.reuse(SMALL, device="pynq-z2", limits=limits)
    (bound,) = limits.values()
    assert caught.value.have in (bound, 220) and caught.value.need > caught.value.have


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ({"device": "ecp5-85k"}, DeviceError, "hls4ml has a back end"),
        ({"device": "raspberry-pi-4"}, DeviceError, "hls4ml has a back end"),
        ({"settings": {"reuse_factor": "4"}}, RecipeError, "is what is searched for"),
        ({"settings": {"reuse_factors": "a=4"}}, RecipeError, "is what is searched for"),
        ({"settings": {"flow": "rtl"}}, RecipeError, "not of rtl"),
        ({"settings": {"bits": "6"}}, RecipeError, "says its bits itself"),
        ({"settings": {"nothing": "6"}}, RecipeError, "has no option 'nothing'"),
        ({"settings": {"clock_ns": "0.1"}}, RecipeError, "clock_ns"),
        ({"limits": {"uram": 4.0}}, RecipeError, "'uram'"),
        ({"limits": {"lut": -1.0}}, RecipeError, "from 0 on"),
        ({"limits": {"lut": math.nan}}, RecipeError, "from 0 on"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused(given: Mapping[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=re.escape(told)):
        edgesdk.reuse(SMALL, **{"device": "pynq-z2", **given})


def test_a_layer_without_a_formula_is_refused_with_its_node() -> None:
    with pytest.raises(Unsupported, match="LayerNormalization"):
        edgesdk.reuse(FASHION / "fashion_vit.onnx", device="pynq-z2")


def test_under_the_strategy_latency_there_is_one_choice() -> None:
    found = edgesdk.reuse("dense:16-8-5@4bit", device="pynq-z2", settings={"strategy": "latency"})
    (only,) = found.choices
    assert set(only.reuse_factors.values()) == {1} and only.value("initiation_interval") == 1
    assert "--set strategy=latency" in found.export and "reuse_factors" not in found.export
    assert "nothing to choose" in reuse_table.shown(found, False)


def test_layers_are_named_as_the_nodes_of_the_folded_model(tmp_path: Path) -> None:
    found = edgesdk.reuse(FASHION / "fashion_cnn.onnx", device="alveo-u250", settings={"io_type": "io_stream"})
    nodes = [layer.name for layer in layers(Model.load(FASHION / "fashion_cnn.onnx")) if layer.params and layer.macs]
    assert [layer.name for layer in found.layers] == nodes
    assert not found.complete and found.estimates <= factors.MOST_ESTIMATES
    assert "not proven best" in reuse_table.shown(found, False)


def test_a_layer_list_is_searched_and_its_doubles_are_refused(tmp_path: Path) -> None:
    def listed(*names: str) -> Path:
        rows = [
            {"name": name, "op": "Gemm", "kind": "fc", "in_shapes": [[1, 8]], "out_shapes": [[1, 8]], "macs": 64, "params": 64}
            for name in names
        ]
        place = tmp_path / "net.json"
        place.write_text(json.dumps({"layers": rows}))
        return place

    found = edgesdk.reuse(listed("one", "two"), device="pynq-z2", settings={"bits": "6"})
    assert [layer.name for layer in found.layers] == ["one", "two"] and "MODEL.onnx" in found.export
    with pytest.raises(RecipeError, match="two layers with weights are called 'one'"):
        edgesdk.reuse(listed("one", "one"), device="pynq-z2")


def test_progress_is_told_of_long_searches_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(reuse_search, "QUIET_S", 3600.0)
    edgesdk.reuse(SMALL, device="pynq-z2", progress=told.append)
    assert told == []
    monkeypatch.setattr(reuse_search, "QUIET_S", 0.0)
    monkeypatch.setattr(reuse_search, "EVERY_S", 0.0)
    edgesdk.reuse(SMALL, device="pynq-z2", progress=told.append)
    assert told[0].startswith("1 choice") and len(told) > 10


def test_bits_that_no_export_has_have_no_command() -> None:
    found = edgesdk.reuse("dense:16-8-5@20bit", device="pynq-z2")
    assert found.export == "" and "2 to 16 bits" in reuse_table.shown(found, False)
    assert "--set bits=8 " in edgesdk.reuse(SMALL, device="pynq-z2").export


def test_widths_that_no_export_has_have_no_command() -> None:
    plain, narrow = (edgesdk.reuse(SMALL, device="pynq-z2", settings=more) for more in ({}, {"activation_bits": "8"}))
    assert narrow.taken.value("ff") < plain.taken.value("ff")
    assert narrow.export == "" and "activations of as many" in reuse_table.shown(narrow, False)


def test_the_command_makes_the_project_that_was_estimated(tmp_path: Path) -> None:
    dense((8, 6, 4)).save(tmp_path / "my net.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(5).standard_normal((200, 8)).astype(np.float32))
    done = run_here(["reuse", "my net.onnx", "--device", "pynq-z2", "--set", "bits=5", "--max-lut", "2600", "--json"], tmp_path)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert len(set(found["taken"].values())) == 2, "a case in which the layers differ"
    words = shlex.split(found["export"])
    assert words[:3] == ["edgesdk", "export", "my net.onnx"]
    made = run_here([*words[1:], "--train", "x.npz", "--out", "net.edge"], tmp_path)
    assert made.code == 0, made.err
    bundle = open_bundle(tmp_path / "net.edge")
    assert bundle.manifest.runtime.config["reuse_factors"] == ",".join(f"{k}={v}" for k, v in found["taken"].items())
    parameters = bundle.read("build/firmware/parameters.h").decode()
    for factor in found["taken"].values():
        assert parameters.count(f"reuse_factor = {factor};") == 1
    taken = next(choice for choice in found["choices"] if choice["reuse_factors"] == found["taken"])
    cycles = bundle.report().find("cycles")
    assert cycles is not None and cycles.value == next(row["value"] for row in taken["rows"] if row["name"] == "cycles")
    verdict = bundle.report().find("mismatches", "hls4ml")
    assert verdict is not None and verdict.value == 0


def test_the_table_shows_the_line_and_all_of_it_fits_but_the_command(jet: ReuseSearch) -> None:
    brief, every = (reuse_table.shown(jet, all_of_them).splitlines() for all_of_them in (False, True))
    assert all(len(line) <= 100 for line in (*brief, *every) if line != jet.export)
    assert jet.export in brief
    rows = [line for line in brief if line.split("  ")[0].rstrip(" *").replace(",", "").isdecimal()]
    assert len(rows) == len(jet.best) and rows[0].startswith(f"{jet.taken.value('cycles'):.0f} *")
    assert all("extrapolated" in row for row in rows)
    assert sum("extrapolated " in line for line in every) == len(jet.within)


def test_the_data_has_every_choice_with_provenance_and_intervals(jet: ReuseSearch) -> None:
    found = json.loads(json.dumps(reuse_table.data(jet)))
    assert found["format"] == "edgesdk-reuse/1" and len(found["choices"]) == len(jet.choices)
    for entry, choice in zip(found["choices"], jet.choices, strict=True):
        assert entry["extrapolated"] == choice.extrapolated and entry["within"] == choice.within
        assert {row["provenance"] for row in entry["rows"]} == {"estimated"}
        assert all(row["interval"] for row in entry["rows"])
    assert found["taken"] == dict(jet.taken.reuse_factors) and found["limits"]["bram"] == 280


def circles(picture: ElementTree.Element) -> list[ElementTree.Element]:
    """The marks of choices: those that say what they are where the pointer rests on them."""
    return [one for one in picture.iter(f"{SVG}circle") if one.find(f"{SVG}title") is not None]


def test_the_chart_has_a_mark_for_each_choice_filled_inside_the_data(known: ReuseSearch) -> None:
    picture = ElementTree.fromstring(reuse_chart.svg(known))
    marks = circles(picture)
    assert len(marks) == len(known.choices)
    inside = sum(not choice.extrapolated for choice in known.choices)
    assert sum(mark.get("fill") != "#ffffff" for mark in marks) == inside > 0
    for mark in marks:
        title = mark.find(f"{SVG}title")
        assert title is not None and title.text is not None
        assert ("extrapolated: " in title.text) == (mark.get("fill") == "#ffffff")
        numbers = {name: float(number.replace(",", "")) for name, number in re.findall(r"; ?.*?(lut) ([\d,]+)", title.text)}
        assert numbers["lut"] in {choice.value("lut") for choice in known.choices}


def test_marks_lie_where_their_cycles_and_luts_are(jet: ReuseSearch) -> None:
    """Both axes are logarithmic: equal ratios are equal distances."""
    marks = {}
    for mark in circles(ElementTree.fromstring(reuse_chart.svg(jet))):
        title = mark.find(f"{SVG}title")
        assert title is not None
        marks[title.text] = (float(mark.get("cx") or 0), float(mark.get("cy") or 0))
    placed = [(choice, marks[reuse_chart._titled(choice)]) for choice in jet.choices]
    left, right = (pick(placed, key=lambda one: one[0].value("lut")) for pick in (min, max))
    top, bottom = (pick(placed, key=lambda one: one[0].value("cycles")) for pick in (max, min))
    for choice, (at_x, at_y) in placed:
        share_x = math.log(choice.value("lut") / left[0].value("lut")) / math.log(right[0].value("lut") / left[0].value("lut"))
        share_y = math.log(choice.value("cycles") / top[0].value("cycles")) / math.log(
            bottom[0].value("cycles") / top[0].value("cycles")
        )
        assert at_x == pytest.approx(left[1][0] + share_x * (right[1][0] - left[1][0]), abs=0.2)
        assert at_y == pytest.approx(top[1][1] + share_y * (bottom[1][1] - top[1][1]), abs=0.2)


def test_the_chart_says_what_the_part_has(jet: ReuseSearch, known: ReuseSearch) -> None:
    near, far = reuse_chart.svg(jet), reuse_chart.svg(known)
    assert ">the part: 53,200 LUTs<" in near and near.count("stroke-dasharray") == 1
    assert ">the part: 1,728,000 LUTs →<" in far and far.count("stroke-dasharray") == 0
    limited = reuse_chart.svg(edgesdk.reuse(SMALL, device="pynq-z2", limits={"lut": 4000.0, "cycles": 60.0}))
    assert ">limit: 4,000 LUTs<" in limited and ">limit: 60 cycles<" in limited and "of cycles, LUTs" in limited


def test_convolutions_in_parallel_are_searched_within_their_windows() -> None:
    network = (FixedLayer("conv", "conv2d", 9, 4, 8, positions=16), FixedLayer("fc", "dense", 64, 5, 8))
    given = {io: reuse_search._layers(network, "resource", io) for io in ("io_parallel", "io_stream")}
    assert {io: max(layers_[0].legal) for io, layers_ in given.items()} == {"io_parallel": 9, "io_stream": 36}
    assert {io: max(layers_[1].legal) for io, layers_ in given.items()} == {"io_parallel": 320, "io_stream": 320}


def test_names_that_are_no_xml_are_still_a_picture(jet: ReuseSearch) -> None:
    odd = dataclasses.replace(jet, model="a<b>&\x00", device='"x"')
    picture = ElementTree.fromstring(reuse_chart.svg(odd))
    assert any("a<b>&\ufffd" in (text.text or "") for text in picture.iter(f"{SVG}text"))


def test_the_verb_prints_and_draws(tmp_path: Path) -> None:
    done = run_here(["reuse", SMALL, "--device", "pynq-z2", "--max-cycles", "400", "--chart", "c.svg", "--all"], tmp_path)
    assert done.code == 0 and "wrote c.svg" in done.err and "take reuse " in done.out
    assert (tmp_path / "c.svg").read_text() == reuse_chart.svg(edgesdk.reuse(SMALL, device="pynq-z2", limits={"cycles": 400.0}))
    refused = run_here(["reuse", SMALL, "--device", "pynq-z2", "--max-lut", "10"], tmp_path)
    assert refused.code == 1 and "DoesNotFit" in refused.err and refused.out == ""


def test_a_model_in_fixed_point_is_searched_with_its_own_integers(tmp_path: Path) -> None:
    data = {"x": np.random.default_rng(3).standard_normal((300, 16)).astype(np.float32)}
    settings = {"flow": "hls4ml", "bits": "5", "strategy": "resource"}
    made = edgesdk.export(dense((16, 8, 5)), device="pynq-z2", settings=settings, data=data, out=tmp_path / "n.edge")
    found = edgesdk.reuse(made.path / "model.onnx", device="pynq-z2")
    for choice in (found.choices[0], found.choices[-1]):
        own = ",".join(f"{node}={factor}" for node, factor in choice.reuse_factors.items())
        again = {**settings, "reuse_factors": own}
        row = edgesdk.estimate(made.path / "model.onnx", device="pynq-z2", settings=again).find("lut")
        assert row is not None and row.value == choice.value("lut")
    with pytest.raises(RecipeError, match=r"accumulator_bits is of estimates of networks in float alone: .* integers of its own"):
        edgesdk.reuse(made.path / "model.onnx", device="pynq-z2", settings={"accumulator_bits": "16"})
    with pytest.raises(RecipeError, match=r"activation_bits is of estimates of networks in float alone: .* integers of its own"):
        edgesdk.estimate(made.path / "model.onnx", device="pynq-z2", settings={"flow": "hls4ml", "activation_bits": "16"})
    with pytest.raises(RecipeError, match="is quantised, --set bits=8 would say its bits again"):
        edgesdk.reuse(made.path / "model.onnx", device="pynq-z2", settings={"bits": "8"})


def test_constants_of_ones_own_are_searched_with(tmp_path: Path) -> None:
    shipped = Path(hls4ml_constants.__file__).with_suffix(".toml").read_text(encoding="utf-8")
    (tmp_path / "own.toml").write_text(shipped.replace("layer = 50.904", "layer = 5090.4"), encoding="utf-8")
    plain, own = (
        edgesdk.reuse(SMALL, device="pynq-z2", settings=settings) for settings in ({}, {"constants": str(tmp_path / "own.toml")})
    )
    assert min(choice.value("lut") for choice in own.choices) > min(choice.value("lut") for choice in plain.choices) + 9_000
