"""The comparison as text of 100 columns and as JSON: every cell with its provenance, every gap with its number."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from edgesdk.compare_table import FORMAT, data, headline, shown
from edgesdk.comparing import Comparison, compare
from edgesdk.page_drawing import number
from edgesdk_targets.figure import Figure
from edgesdk_targets.report import schema

ROOT = Path(__file__).parents[2]
DEVICES = ["raspberry-pi-4", "phone-snapdragon-855-plus", "jetson-agx-xavier", "ecp5-85k", "ecp5-25k", "zcu102", "alveo-u250"]


@pytest.fixture(scope="module")
def found() -> Comparison:
    return compare([ROOT / "build" / "models" / f"{name}.onnx" for name in ("resnet8", "ds-cnn")], devices=DEVICES, command="c")


def devices(lines: list[str]) -> list[str]:
    """Whole names in the first column of the tables of devices; one that is wrapped goes on where the second column is empty."""
    names: list[str] = []
    width = 0
    for line in lines:
        if line.startswith("device "):
            width = line.index("runtime")
        elif not line:
            width = 0
        elif width and not line.startswith("---"):
            if line[width : width + 1].strip():
                names.append("")
            names[-1] += line[:width].strip()
    return names


def test_no_line_is_wider_than_a_hundred_columns_and_every_device_has_a_row(found: Comparison) -> None:
    lines = shown(found).splitlines()
    assert max(map(len, lines)) <= 100
    entries = [entry for one in found.models for entry in one.entries]
    assert devices(lines) == [entry.way.device for entry in entries] and {entry.way.device for entry in entries} == set(DEVICES)


def test_a_cell_has_value_interval_and_the_letter_of_its_provenance(found: Comparison) -> None:
    cells = next(e for e in found.models[0].entries if e.way.device == "raspberry-pi-4").cells
    line = next(line for line in shown(found).splitlines() if line.startswith("raspberry-pi-4"))
    latency, size = cells["latency_ms"], cells["size"]
    assert latency.interval is not None and latency.value is not None and size.value is not None
    told = rf"{number(latency.value)} {latency.interval.low:.2g}-{latency.interval.high:.2g} e\*?"
    assert re.search(
        rf"onnxruntime +\[\d+\] +{told} +71\.8 53-94 e +[\d.]+ [\d.]+-[\d.]+ e\*? +{size.value / 1e6:.3f} m$", line
    ), line


def test_the_accuracy_of_a_headline_has_the_letter_of_its_provenance(found: Comparison) -> None:
    one = replace(found.models[0], accuracy=Figure("accuracy", 0.91, "emulated", "here", "top-1", n=100))
    assert "top-1 91.00% x of 100 samples" in headline(one)


def test_every_gap_has_a_number_whose_reason_is_told_once(found: Comparison) -> None:
    text = shown(found)
    body, reasons = text[: text.index("m measured")], re.findall(r"^\[(\d+)\] (.+)$", text, re.MULTILINE)
    assert {number for number, _ in reasons} == set(re.findall(r"\[(\d+)\]", body))
    assert len({told for _, told in reasons}) == len(reasons) and [int(n) for n, _ in reasons] == list(range(1, len(reasons) + 1))
    assert re.search(r"does not fit: needs at least \d+ MULT18X18D, ecp5-25k has 28", re.sub(r"\s+", " ", text))


def test_parts_that_take_the_same_share_a_row_of_logic(found: Comparison) -> None:
    rows = [line for line in shown(found).splitlines() if line.startswith("rtl ")]
    assert any("alveo-u250" in line and "zcu102" in line for line in rows) or "zcu102, alveo-u250" in re.sub(
        r"\s+", " ", shown(found)
    )


def test_json_holds_every_cell_as_a_report_has_it(found: Comparison) -> None:
    told = json.loads(json.dumps(data(found)))
    assert told["format"] == FORMAT == "edgesdk-compare/1" and told["devices"] == DEVICES and told["command"] == "c"
    row_schema = schema()["properties"]["rows"]["items"]
    validator = jsonschema.Draft202012Validator(row_schema | {"$defs": schema().get("$defs", {})})
    for one, model in zip(told["models"], found.models, strict=True):
        assert (
            one["macs"] == model.macs and one["cuts"]["format"] == "edgesdk-cuts/1" and len(one["entries"]) == len(model.entries)
        )
        for entry, kept in zip(one["entries"], model.entries, strict=True):
            assert set(entry["cells"]) == {"accuracy", "latency_ms", "peak_memory_bytes", "energy_mj", "size"}
            for row in (*entry["cells"].values(), *entry["figures"], *entry["heaviest_layers"]):
                validator.validate(row)
            assert entry["cells"]["latency_ms"]["value"] == kept.latency.value and entry["refused"] == kept.refused
            assert len(entry["heaviest_layers"]) <= 10


def test_a_name_cannot_speak_to_the_terminal(found: Comparison) -> None:
    one = replace(found.models[0], name="net\x1b[2Jwork", notes=("note\x07\u202e",))
    text = shown(replace(found, models=(one,)))
    assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text and "net\ufffd[2Jwork" in text
