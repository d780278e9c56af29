"""The comparison's page, opened in headless Chromium: it asks nobody, fits a phone, and runs nothing that a name says."""

from __future__ import annotations

import html
import json
import re
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edgesdk import compare_page
from edgesdk.comparing import Comparison, compare
from edgesdk_targets.figure import Figure

from .conftest import graph_model, run_here

ROOT = Path(__file__).parents[2]
BROWSER = ("chromium-headless-shell", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
ALONE = "--host-resolver-rules=MAP * ~NOTFOUND"
ATTACK = "<script>document.title='owned'</script><img src=x onerror=document.title='owned'>\"'&"
DEVICES = ["raspberry-pi-4", "jetson-nano", "phone-snapdragon-835", "ecp5-85k", "ecp5-25k", "zcu102", "this-machine"]
PROBE = """<script>addEventListener("load", () => {
  const wide = [...document.querySelectorAll("body *")].filter((one) => !one.closest(".scroll") && !one.closest("svg")
    && one.getBoundingClientRect().right > innerWidth + 1).map((one) => one.tagName + "." + one.className);
  const told = {title: document.title, wide, inner: innerWidth, page: document.documentElement.scrollWidth,
    dark: matchMedia("(prefers-color-scheme: dark)").matches, back: getComputedStyle(document.body).backgroundColor,
    letters: Math.min(...[...document.querySelectorAll("svg.chart text")].map((one) => one.getBoundingClientRect().height)),
    images: document.images.length, scripts: document.scripts.length, asked: performance.getEntriesByType("resource").length};
  document.documentElement.setAttribute("data-told", JSON.stringify(told));
});</script>"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """ResNet-8, and a network whose file, tensors and node are called what an attacker would call them."""
    folder = tmp_path_factory.mktemp("hostile")
    weights = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), f"w{ATTACK}")
    nodes = [
        helper.make_node("Conv", ["x", weights.name], [f"t{ATTACK}"], name=f"c{ATTACK}"),
        helper.make_node("Relu", [f"t{ATTACK}"], ["y"], name=f"r{ATTACK}"),
    ]
    proto = graph_model(
        nodes, inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])],
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 30, 30])], weights=[weights],
    )  # fmt: skip
    path = folder / "<b onclick=x>&'\".onnx"
    onnx.save(proto, path)
    made = compare([ROOT / "build" / "models" / "resnet8.onnx", path], devices=DEVICES, command=f"edgesdk compare {ATTACK}")
    entries = made.models[1].entries
    refused = replace(entries[-1], refused=f"refused {ATTACK}", notes=(ATTACK,))
    hostile = replace(made.models[1], entries=(replace(entries[0], notes=(ATTACK,)), *entries[1:-1], refused), notes=(ATTACK,))
    return replace(made, models=(made.models[0], hostile), machine=ATTACK)


@pytest.fixture(scope="module")
def page(found: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("page") / "page.html"
    place.write_text(compare_page.html(found), encoding="utf-8")
    return place


class Tags(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def browse(place: Path, *options: str) -> str:
    """What headless Chromium prints of a page, no host being reachable."""
    done = subprocess.run(
        [*BROWSER, ALONE, f"--user-data-dir={place.parent / 'profile'}", *options, place.as_uri()],
        capture_output=True, timeout=300, check=True,
    )  # fmt: skip
    return done.stdout.decode()


def told_by(page: Path, width: int, *options: str, probe: str = PROBE) -> dict[str, object]:
    """What a script in a copy of the page finds."""
    copy = page.with_name(f"probed-{width}.html")
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", probe + "</body>"), encoding="utf-8")
    match = re.search(r'data-told="([^"]*)"', browse(copy, f"--window-size={width},900", "--dump-dom", *options))
    assert match is not None, "the probe did not run"
    answer: dict[str, object] = json.loads(html.unescape(match[1]))
    return answer


@pytest.mark.parametrize("width", [375, 1200])
def test_the_page_never_scrolls_sideways_and_its_charts_can_be_read(page: Path, width: int) -> None:
    told = told_by(page, width)
    assert told["inner"] == width and told["page"] == width and told["wide"] == []
    assert float(str(told["letters"])) >= 9


def test_nothing_that_a_name_says_runs_or_becomes_markup(page: Path) -> None:
    told = told_by(page, 800)
    assert told["title"] == "edgesdk compare: 2 models on 7 devices"
    assert told["images"] == 0 and told["scripts"] == 2  # the page's own, and the probe
    tags = Tags(page.read_text(encoding="utf-8")).found
    assert {tag for tag, _ in tags}.isdisjoint({"img", "b", "iframe", "object", "embed", "form", "base"})
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    assert page.read_text(encoding="utf-8").count(html.escape(ATTACK)) >= 6


def test_no_other_host_is_asked(page: Path, tmp_path: Path) -> None:
    assert told_by(page, 600)["asked"] == 0
    for tag, attributes in Tags(page.read_text(encoding="utf-8")).found:
        assert "src" not in attributes and tag != "link"
        assert str(attributes.get("href") or "#").startswith("#")
    style = page.read_text(encoding="utf-8").split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style
    log = tmp_path / "net.json"
    browse(page, f"--log-net-log={log}", "--dump-dom")
    asked = re.findall(r'"url":"(https?://[^"]*)"', log.read_text(encoding="utf-8"))
    assert not [url for url in asked if not re.match(r"https?://[\w.-]*(google|gvt1|chrome)\w*\.", url)], asked


def test_light_and_dark_follow_the_reader(page: Path) -> None:
    dark, light = (told_by(page, 500, f"--blink-settings=preferredColorScheme={scheme}") for scheme in (0, 1))
    assert (dark["dark"], light["dark"]) == (True, False)
    assert light["back"] == "rgb(255, 255, 255)" and dark["back"] == "rgb(16, 22, 26)"


def test_a_screenshot_of_a_phone_shows_something_in_every_part(page: Path, tmp_path: Path) -> None:
    shot = tmp_path / "phone.png"
    browse(page, "--window-size=375,4000", f"--screenshot={shot}")
    pixels = np.asarray(Image.open(shot).convert("L")).astype(int)
    assert pixels.shape == (4000, 375)
    for top in range(0, 4000, 500):
        assert len(np.unique(pixels[top : top + 500])) > 20


def test_every_cell_opens_to_its_reason_without_any_script(found: Comparison, page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for one in found.models:
        for entry in one.entries:
            for row in () if entry.refused else entry.cells.values():
                assert html.escape(row.method) in text
            assert html.escape(entry.refused[:60]) in text
    tables = text.split("<script>")[0]
    assert tables.count('<details class="cell') > 60 and "localStorage" not in text


def test_a_click_on_a_head_sorts_the_rows_and_gaps_stay_last(page: Path) -> None:
    probe = """<script>addEventListener("load", () => {
      const table = document.querySelector("section table"), button = table.querySelectorAll("thead button")[1];
      const values = () => [...table.tBodies[0].rows].map((row) => row.children[1].dataset.v);
      button.click(); const up = values(); button.click();
      document.documentElement.setAttribute("data-told", JSON.stringify({up, down: values()}));
    });</script>"""
    told = told_by(page, 700, probe=probe)
    up, down = ([float(str(value)) for value in told[way] if value] for way in ("up", "down"))  # type: ignore[attr-defined]
    assert up == sorted(up) and down == up[::-1] and len(up) > 3
    assert told["up"][-1] == told["down"][-1] == ""  # type: ignore[index]


def test_the_page_says_who_made_it_when_how_and_what_letters_mean(found: Comparison, page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert found.version in text and found.date in text and html.escape(found.command) in text
    for name in ("measured", "emulated", "simulated", "tool-reported", "estimated", "unavailable"):
        assert f"<strong>{name}</strong>" in text
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "python -m tests.bench_latency --write-calibration" in text


def test_every_picture_is_well_formed_and_says_in_words_what_it_shows(page: Path) -> None:
    pictures = re.findall(r'<svg class="chart".*?</svg>', page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(pictures) >= 6  # four families of devices, cuts, calibration
    for text in pictures:
        drawn = ElementTree.fromstring(text)
        assert drawn.get("role") == "img" and len(str(drawn.get("aria-label"))) > 20
        assert sum(1 for _ in drawn.iter("path")) > 5


def test_the_accuracy_of_a_model_has_its_provenance_on_its_card(found: Comparison) -> None:
    right = Figure("accuracy", 0.91, "emulated", "here", "top-1", n=100)
    text = compare_page.html(replace(found, models=(replace(found.models[0], accuracy=right),)))
    assert len(re.findall(r'top-1 91\.00% <abbr class="tag emulated" title="emulated">X</abbr> on this machine', text)) == 2


def test_refusals_of_two_precisions_are_two_rows_and_only_what_does_not_fit_is_told_so(found: Comparison) -> None:
    one = found.models[0]
    logic = [entry for entry in one.entries if entry.takes_logic][:2]
    refused = tuple(
        replace(entry, precision=precision, refused="no") for entry, precision in zip(logic, ("p4", "p8"), strict=True)
    )
    text = compare_page.html(replace(found, models=(replace(one, entries=refused),)))
    refusals = text.split("refused</th></tr>")[1].split("</tbody>")[0]
    assert refusals.count("<tr>") == 2 and ", p4</small>" in refusals and ", p8</small>" in refusals
    assert "does not fit" not in text.split("What logic takes")[1].split("</table>")[0]
    wide = replace(one, entries=(replace(logic[0], refused="does not fit: too wide"),))
    text = compare_page.html(replace(found, models=(wide,)))
    assert "<small>does not fit</small>" in text.split("What logic takes")[1].split("</table>")[0]


def test_figures_have_captions_and_tables_heads(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("<figure") == text.count("<figcaption")
    assert text.count("<table>") == text.count("<thead>") and 'scope="row"' in text


def test_the_verb_writes_the_page_and_replaces_an_older_one(folder: Path) -> None:
    (folder / "out.html").write_text("older")
    done = run_here("compare m.onnx --devices raspberry-pi-4,ecp5-85k --page out.html", folder)
    assert done.code == 0 and "wrote out.html" in done.err and "raspberry-pi-4" in done.out
    assert (folder / "out.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not list(folder.glob(".out*"))


def test_a_page_that_cannot_be_written_is_one_error_before_anything_is_computed(folder: Path) -> None:
    for place in ("gone/out.html", "older.edge"):
        done = run_here(f"compare m.onnx --devices raspberry-pi-4 --page {place}", folder)
        assert done.code == 1 and done.error["kind"] == "BundleError" and "cannot be written" in done.error["message"]
        assert "estimating" not in done.err
