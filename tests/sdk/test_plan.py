"""`edgesdk plan`: real networks on real profiles, times by estimate, by clock and by report, and bad input in one line."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

import edgesdk
from edgesdk import plan_chart, plan_table, planning
from edgesdk.image_bytes import encoded
from edgesdk.part_times import SHARE_HIGH, SHARE_LOW, PartTimes
from edgesdk.planning import HANDLING_MS, handling
from edgesdk_converters import split as splits
from edgesdk_converters.cost import layers
from edgesdk_converters.errors import BundleError, DeviceError, LinkError, ModelError
from edgesdk_converters.model import Model
from edgesdk_converters.split import cuts, front
from edgesdk_targets import device, measure
from edgesdk_targets.bundle import Bundle
from edgesdk_targets.figure import Figure
from edgesdk_targets.link import Link, parse
from edgesdk_targets.plan import Plan, bounds
from edgesdk_targets.report import Report, schema
from edgesdk_targets.target import make
from tests import fashion

from .conftest import run_here
from .test_real_models import SHAPES

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "build" / "models"
NET = ROOT / "examples" / "fashion" / "fashion_mobilenet.onnx"
PI, ORIN = "raspberry-pi-4", "jetson-orin-nano"
REAL = ("resnet50", "efficientnet-lite0", "squeezenet", "mobilenet-vww", "resnet8", "inception_v1")
SVG = "{http://www.w3.org/2000/svg}"


def opened(name: str) -> Model:
    path = MODELS / f"{name}.onnx"
    assert path.exists(), f"{path} is missing: run `make models`"
    return Model.load(path, shapes=SHAPES.get(name))


def value(figure: Figure | None) -> float:
    assert figure is not None and figure.value is not None
    return figure.value


@pytest.fixture(scope="module")
def resnet() -> Plan:
    return edgesdk.plan(opened("resnet50"), device=PI, server="jetson-agx-orin", link="10mbit,20ms", bits=4, input_bytes=150_528)


@pytest.fixture(scope="module")
def timed() -> Plan:
    """A plan whose server is this machine."""
    return edgesdk.plan(NET, device=PI, link="5mbit,20ms", bits=8)


@pytest.mark.parametrize("name", REAL)
def test_a_real_network_has_all_its_cuts_as_options_and_the_sums_are_right(name: str) -> None:
    model = opened(name)
    found = edgesdk.plan(model, device=PI, server=ORIN, link="wifi", bits=8)
    listed = cuts(model)
    assert [o.name for o in found.options] == ["offload", *(f"split at {cut.tensors[0]}" for cut in listed), "local"]
    for option, cut in zip(found.options[1:-1], listed, strict=True):
        assert option.way.up_bytes == cut.bytes_at(8)
        assert option.way.accuracy_drop is None
        parts = value(option.way.head) + value(option.handling) + value(option.link) + value(option.way.tail)
        assert value(option.total) == pytest.approx(parts)
        ends = [bounds(part) for part in (option.way.head, option.handling, option.link, option.way.tail) if part is not None]
        assert bounds(option.total).low == pytest.approx(sum(end.low for end in ends))
        assert bounds(option.total).high == pytest.approx(sum(end.high for end in ends))
    assert found.winner == min(found.options, key=lambda option: value(option.total)).name
    rates = [one.rate_bits_per_s for one in found.crossovers]
    assert rates == sorted(rates) and len(found.best) == len(rates) + 1
    here = sum(found.link.up_bits_per_s > rate for rate in rates)
    assert found.winner == found.best[here], "what the envelope says at this rate"


@pytest.mark.parametrize("name", ["resnet50", "efficientnet-lite0", "squeezenet"])
def test_the_times_of_parts_are_those_of_the_models_that_a_cut_makes(name: str) -> None:
    model = opened(name)
    sides = [PartTimes(make(None, device), model, side) for device, side in ((PI, "head"), (ORIN, "tail"))]  # type: ignore[arg-type]
    listed = cuts(model)
    heads = [value(sides[0].part(cut)) for cut in listed]
    assert heads == sorted(heads), "a later cut has all of an earlier one's head"
    for cut in listed[:: max(1, len(listed) // 4)]:
        for side, part in zip(sides, splits.split(model, cut.tensors), strict=True):
            alone = next(row for row in side.target.estimate(layers(part), "fp32") if row.name == "latency_ms")
            assert value(side.part(cut)) == pytest.approx(alone.value or 0.0, rel=1e-3, abs=0.02)


def test_head_and_tail_on_one_board_are_the_whole() -> None:
    model = opened("resnet50")
    for cut in cuts(model)[::9]:
        head, tail = (PartTimes(make(None, PI), model, side).part(cut) for side in ("head", "tail"))  # type: ignore[arg-type]
        whole = PartTimes(make(None, PI), model, "head").whole()
        both = value(head) + value(tail)  # an activation that a cut parts from its convolution is no longer joined to it
        assert 0.999 * value(whole) <= both <= 1.05 * value(whole)


def test_the_best_over_rates_is_what_planning_at_each_rate_finds(resnet: Plan) -> None:
    """Brute force: a plan at each of many rates against the break-even rates of one plan."""
    for step in range(41):
        rate = 10 ** (4 + step / 8)
        times = {line.name: line.ms(resnet.link.at(rate)) for line in resnet.lines}
        named = resnet.best[sum(rate > one.rate_bits_per_s for one in resnet.crossovers)]
        assert times[named] == pytest.approx(min(times.values()))
    assert len(resnet.crossovers) == 2 and resnet.best[0] == "local" and resnet.best[-1] == "offload"


def test_intervals_overlap_and_the_plan_says_so(resnet: Plan) -> None:
    assert resnet.winner is not None and resnet.winner.startswith("split at ")
    assert not resnet.certain and "offload" in resnet.overlapping
    assert "the interval of offload overlaps its own" in resnet.why
    assert any("loses is not known" in note for note in resnet.notes)


def test_this_machine_is_timed_and_its_times_stay_measured(timed: Plan) -> None:
    model = Model.load(NET)
    assert len(timed.options) == len(front(cuts(model))) + 2
    assert any("are not timed: --all" in note for note in timed.notes)
    for option in timed.options:
        for part, provenance in ((option.way.head, "estimated"), (option.way.tail, "measured")):
            assert part is None or part.provenance == provenance
        assert option.total.provenance == "estimated"
    tail = timed.find("offload").way.tail
    assert tail is not None and (tail.n or 0) >= 7 and tail.where.startswith("this machine (")


def test_all_of_them_are_timed_where_asked() -> None:
    found = edgesdk.plan(NET, device="this-machine", server="server", link="5mbit,20ms", every=True)
    assert len(found.options) == len(cuts(Model.load(NET))) + 2
    assert found.find("local").total.provenance == "measured"
    assert found.find("local").energy.provenance == "unavailable"


def test_images_cross_as_pixels_where_the_signature_says_so() -> None:
    assert edgesdk.plan(NET, device=PI, server=ORIN, link="lte").find("offload").way.up_bytes == 28 * 28
    found = edgesdk.plan(opened("resnet50"), device=PI, server=ORIN, link="lte")
    assert found.find("offload").way.up_bytes == 4 * 3 * 224 * 224
    assert any("a quarter of the bytes" in note for note in found.notes)
    assert edgesdk.plan(NET, device=PI, server=ORIN, link="lte", input_bytes=99).find("offload").way.up_bytes == 99


def test_png_and_webp_are_measured_on_the_images_given(tmp_path: Path) -> None:
    count = 60
    np.savez(tmp_path / "d.npz", **fashion.samples("t10k", 0, count))  # type: ignore[arg-type]
    found = edgesdk.plan(NET, device=PI, server=ORIN, link="lte", data=tmp_path / "d.npz")
    total = 0
    for image in fashion.raw("t10k")[0][:count]:
        sink = io.BytesIO()
        Image.fromarray(image).save(sink, "PNG", optimize=True)
        total += len(sink.getvalue())
    assert found.find("offload as PNG").way.up_bytes == math.ceil(total / count)
    assert f"mean of {count} images measured" in found.find("offload as WebP").way.told
    assert 100 < found.find("offload as WebP").way.up_bytes < 784


def test_samples_that_are_no_pixels_are_an_error(tmp_path: Path) -> None:
    arrays = fashion.samples("t10k", 0, 3)
    np.savez(tmp_path / "d.npz", image=arrays["image"] + np.float32(0.01))
    with pytest.raises(ModelError, match="no pixels of 8 bits"):
        encoded(Model.load(NET), tmp_path / "d.npz")
    np.savez(tmp_path / "r.npz", **{"gpu_0/data_0": np.zeros((2, 3, 224, 224), np.float32)})  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="not described as one image"):
        encoded(opened("resnet50"), tmp_path / "r.npz")


def test_a_known_drop_is_held_against_the_limit() -> None:
    names = [cut.tensors[0] for cut in cuts(Model.load(NET))]
    found = edgesdk.plan(
        NET, device=PI, server=ORIN, link="lte", bits=2, drops={names[0]: 5.0, names[1]: 0.5}, max_drop=1.0
    )  # fmt: skip
    assert found.find(f"split at {names[0]}").way.accuracy_drop == 5.0
    drawn = {line.name for line in found.lines}
    assert f"split at {names[0]}" not in drawn and f"split at {names[1]}" in drawn
    assert any("loses 5 points, over the limit of 1" in note for note in found.notes)


# --- reports ------------------------------------------------------------------------------------------------


def reported(ms: float, *, device: str = PI, model: str = "fashion_mobilenet", architecture: str = "aarch64") -> Report:
    timing = measure.Timing(1.0, ms, (0.9 * ms, ms, ms, 1.1 * ms), 5, 1, "onnxruntime")
    rows = measure.figures(timing, "BCM2711")
    return Report(model, "raspberry-pi", device, "", rows, machine={"cpu": "BCM2711", "architecture": architecture})


def test_a_report_of_the_whole_is_taken_as_it_is_and_shared_among_the_heads() -> None:
    found = edgesdk.plan(NET, device=PI, server=ORIN, link="lte", device_reports={"": reported(40.0)})
    local = found.find("local").total
    assert (local.value, local.provenance) == (40.0, "measured")
    plain = edgesdk.plan(NET, device=PI, server=ORIN, link="lte")
    whole = value(plain.find("local").total)
    for before, after in zip(plain.options, found.options, strict=True):
        if before.way.kind == "split":
            head = after.way.head
            assert head is not None and head.provenance == "estimated"
            assert value(head) == pytest.approx(40 * value(before.way.head) / whole)
            assert bounds(head).low == pytest.approx(36 * value(before.way.head) / whole * SHARE_LOW)
            assert bounds(head).high <= bounds(local).high + 1e-9 and SHARE_HIGH > 1


def test_a_report_of_a_part_is_taken_for_its_cut_alone() -> None:
    name = cuts(Model.load(NET))[2].tensors[0]
    found = edgesdk.plan(NET, device=PI, server=ORIN, link="lte", device_reports={name: reported(7.0)})
    head = found.find(f"split at {name}").way.head
    assert head is not None and (head.value, head.provenance, head.segment) == (7.0, "measured", "head")
    others = [o.way.head for o in found.options if o.way.kind == "split" and name not in o.way.tensors]
    assert all(other is not None and other.provenance == "estimated" for other in others)


def test_a_server_of_this_name_that_is_another_machine_is_shared_by_work() -> None:
    report = reported(3.0, device="this-machine", architecture="x86_64")
    found = edgesdk.plan(NET, device=PI, link="lte", server_reports={"": report})
    tails = [o.way.tail for o in found.options if o.way.kind == "split"]
    assert found.find("offload").way.tail is not None and value(found.find("offload").way.tail) == 3.0
    assert len(tails) == len(cuts(Model.load(NET))) and all(0 < value(tail) <= 3.3 for tail in tails)


@pytest.mark.parametrize(
    ("report", "key", "error", "says"),
    [
        (lambda: reported(1, model="other"), "", ModelError, "is of 'other'"),
        (lambda: reported(1, device=ORIN), "", DeviceError, f"is of a bundle for {ORIN}"),
        (lambda: reported(1, architecture="x86_64"), "", DeviceError, "which is no raspberry-pi-4"),
        (lambda: reported(1), "no_such", ModelError, "no tensor of"),
        (lambda: Report("fashion_mobilenet", "", PI, "", ()), "", DeviceError, "no measured latency_ms"),
    ],
)
def test_a_report_of_something_else_is_an_error(
    report: Callable[[], Report], key: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        edgesdk.plan(NET, device=PI, server=ORIN, link="lte", device_reports={key: report()})


def test_a_report_file_is_read_and_one_that_is_none_is_an_error(tmp_path: Path) -> None:
    reported(40.0).save(tmp_path / "r.json")
    done = run_here(
        [*f"plan {NET} --device {PI} --server {ORIN} --link lte --device-report r.json --json".split()], tmp_path
    )  # fmt: skip
    assert done.code == 0, done.err
    (tmp_path / "r.json").write_text("{}")
    with pytest.raises(BundleError):
        edgesdk.plan(NET, device=PI, server=ORIN, link="lte", device_reports={"": tmp_path / "r.json"})
    with pytest.raises(BundleError, match="is no report"):
        edgesdk.plan(NET, device=PI, server=ORIN, link="lte", device_reports={"": tmp_path / "absent.json"})


# --- split bundles ------------------------------------------------------------------------------------------


def test_a_split_bundle_is_an_option_with_its_bytes_its_parts_times_and_what_it_loses(split: Bundle) -> None:
    net = ROOT / "examples" / "fashion" / "fashion_cnn.onnx"
    found = edgesdk.plan(net, device=PI, server=ORIN, link="lte", bundles=[split.path])
    option = found.find("cnn.edge")
    assert option.way.up_bytes == 2352 and option.way.down_bytes == 40
    assert option.way.accuracy_drop == value(split.report().find("accuracy_drop"))
    assert option.way.head is not None and (option.way.head.segment, option.way.head.provenance) == ("head", "estimated")
    plain = found.find(f"split at {option.way.tensors[0].removesuffix('/payload')}")
    assert value(option.way.tail) > value(plain.way.tail), "it unpacks"


def test_a_bundle_of_something_else_is_an_error(split: Bundle, tmp_path: Path) -> None:
    net = ROOT / "examples" / "fashion" / "fashion_cnn.onnx"
    with pytest.raises(ModelError, match="is of 'fashion_cnn', not of 'fashion_mobilenet'"):
        edgesdk.plan(NET, device=PI, server=ORIN, link="lte", bundles=[split.path])
    with pytest.raises(DeviceError, match=f"is for {PI}, not for {ORIN}"):
        edgesdk.plan(net, device=ORIN, server=PI, link="lte", bundles=[split.path])
    whole = edgesdk.export(net, device=PI, out=tmp_path / "w.edge")
    with pytest.raises(BundleError, match="is no split bundle"):
        edgesdk.plan(net, device=PI, server=ORIN, link="lte", bundles=[whole.path])


# --- what --split auto takes --------------------------------------------------------------------------------


def test_the_cut_chosen_by_plan_is_the_fastest_split() -> None:
    model = opened("resnet50")
    link = parse("10mbit,20ms")
    cut, why = planning.chosen_by_plan(model, make(None, PI), make(None, "jetson-agx-orin"), link, bits=4)
    found = edgesdk.plan(model, device=PI, server="jetson-agx-orin", link=link, bits=4)
    splits = [option for option in found.options if option.way.kind == "split"]
    assert cut.tensors == min(splits, key=lambda option: value(option.total)).way.tensors
    assert why.startswith(f"the fastest of {len(cuts(model))} cuts over 10 Mbit/s, RTT 20 ms: ")
    assert "without a split" not in why


def test_where_local_is_faster_the_sentence_says_so() -> None:
    _, why = planning.chosen_by_plan(Model.load(NET), make(None, PI), make(None, ORIN), parse("250kbit,20ms"))
    assert "without a split it would be less: local" in why


def test_no_cut_is_chosen_over_a_link_for_planning_only_or_within_no_limit() -> None:
    model, device, server = Model.load(NET), make(None, PI), make(None, ORIN)
    with pytest.raises(LinkError, match="planning only"):
        planning.chosen_by_plan(model, device, server, parse("lora"))
    with pytest.raises(ModelError, match="no option takes at most 1 ms"):
        planning.chosen_by_plan(model, device, server, parse("lte"), max_latency_ms=1)
    assert edgesdk.plan(NET, device=PI, server=ORIN, link="lora").winner == "local"


# --- the command line ---------------------------------------------------------------------------------------


def test_json_has_all_options_with_rows_as_in_reports(tmp_path: Path) -> None:
    done = run_here(["plan", str(NET), *f"--device {PI} --server {ORIN} --link 1mbit,20ms --json".split()], tmp_path)
    assert done.code == 0, done.err
    found = json.loads(done.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found["format"] == "edgesdk-plan/1" and found["model"] == "fashion_mobilenet"
    assert found["link"]["up_bits_per_s"] == 1e6
    row_schema = schema()["properties"]["rows"]["items"]
    assert set(row_schema.get("required", [])) <= set(found["options"][0]["rows"][0])
    for option in found["options"]:
        assert all(row["provenance"] for row in option["rows"])
        names = [(row["name"], row["segment"]) for row in option["rows"]]
        assert ("latency_ms", "whole") in names and ("energy_mj", "device") in names
        assert ("link_ms", "link") in names or option["kind"] == "local"


def test_the_table_says_what_decides(resnet: Plan) -> None:
    told = plan_table.shown(resnet, every=False)
    assert all(len(line) <= 100 for line in told.splitlines())
    assert resnet.winner is not None
    marked = next(line for line in told.splitlines() if "e * " in line)
    assert resnet.winner in marked
    assert "break-even" in told and "local below" in told and "offload above" in told
    everything = plan_table.shown(resnet, every=True)
    assert all(f"{option.name} (" in everything for option in resnet.options if len(option.name) < 20)
    assert "splits are left out" in told and "splits are left out" not in everything


def test_the_chart_is_one_picture_that_needs_nothing_else(resnet: Plan, tmp_path: Path) -> None:
    drawn = plan_chart.svg(resnet)
    root = ElementTree.fromstring(drawn)
    assert root.tag == f"{SVG}svg"
    assert "http" not in drawn.replace("http://www.w3.org/2000/svg", "")
    texts = ["".join(one.itertext()) for one in root.iter(f"{SVG}text")]
    assert {"local", "offload", resnet.winner} <= set(texts)
    assert sum(one.tag == f"{SVG}circle" and one.get("r") == "5" for one in root.iter()) == len(resnet.crossovers)
    place = tmp_path / "c.svg"
    done = run_here(["plan", str(NET), *f"--device {PI} --server {ORIN} --link lte --chart {place}".split()], tmp_path)
    assert done.code == 0 and ElementTree.fromstring(place.read_text()).tag == f"{SVG}svg"


@pytest.mark.parametrize("link", ["lora", "lte,loss=5%", "1bit,0ms", "1000gbit,0ms", "nb-iot", "up=1bit,down=100gbit,rtt=100s"])
def test_any_link_gives_a_table_and_a_picture(link: str) -> None:
    found = edgesdk.plan(NET, device=PI, server=ORIN, link=link)
    assert all(len(line) <= 100 for line in plan_table.shown(found, every=True).splitlines())
    ElementTree.fromstring(plan_chart.svg(found))
    json.dumps(plan_table.data(found), allow_nan=False)


@pytest.mark.parametrize("missing", ["--device", "--link"])
def test_what_is_needed_is_asked_for(missing: str, tmp_path: Path) -> None:
    options = {"--device": PI, "--link": "lte"}
    given = [word for name, what in options.items() if name != missing for word in (name, what)]
    done = run_here(["plan", str(NET), *given], tmp_path)
    assert done.code == 2 and f"Missing option '{missing}'" in done.err


BAD: dict[str, tuple[str, str, str]] = {
    "no link": ("--link fast", "LinkError", "'fast' is none of ethernet"),
    "half a link": ("--link 10mbit", "LinkError", "does not say its round trip"),
    "unknown device": ("--device pi", "DeviceError", "unknown device 'pi'"),
    "phone": ("--device phone-snapdragon-835", "DeviceError", "'phone-snapdragon-835' is only estimated"),
    "unknown server": ("--server cloud", "DeviceError", "unknown device 'cloud'"),
    "one bit": ("--bits 1", "ModelError", "1 bits a value"),
    "sixteen bits": ("--bits 16", "ModelError", "16 bits a value"),
    "no time": ("--max-latency-ms 0", "ModelError", "0 ms; allowed: above 0"),
    "nan": ("--max-latency-ms nan", "ModelError", "nan ms"),
    "negative drop": ("--max-drop -1", "ModelError", "-1 points"),
    "no bytes": ("--input-bytes 0", "ModelError", "0 bytes; allowed: 1 or more"),
    "no such data": ("--data absent.npz", "ModelError", "absent.npz"),
    "no points": ("--drop x", "RecipeError", "expected TENSOR=POINTS"),
    "too many points": ("--drop x=101", "RecipeError", "expected TENSOR=POINTS"),
    "a cut that is none": ("--drop x=1", "ModelError", "'x', which is no cut"),
    "no such report": ("--device-report absent.json", "BundleError", "absent.json is no report"),
    "two reports": ("--server-report a.json --server-report b.json", "RecipeError", "two reports"),
    "no such bundle": ("--bundle absent.edge", "BundleError", "absent.edge"),
    "chart in no folder": ("--chart absent/c.svg", "BundleError", "cannot be written"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line(what: str, tmp_path: Path) -> None:
    words, kind, says = BAD[what]
    options: dict[str, Any] = {"--device": PI, "--server": ORIN, "--link": "lte"}
    given = [word for name, told in options.items() if name not in words.split() for word in (name, told)]
    done = run_here(["plan", str(NET), *given, *words.split()], tmp_path)
    assert done.code in (1, 2)
    assert done.error["kind"] == kind
    assert says in done.error["message"]


@pytest.mark.parametrize(
    ("model", "kind"), [("absent.onnx", "ModelError"), ("m.edge", "ModelError"), ("layers.json", "ModelError")]
)
def test_a_model_that_is_none_is_one_line(model: str, kind: str, tmp_path: Path) -> None:
    done = run_here(["plan", model, *f"--device {PI} --server {ORIN} --link lte".split()], tmp_path)
    assert done.code == 1 and done.error["kind"] == kind


def test_a_link_can_be_given_as_one() -> None:
    found = edgesdk.plan(NET, device=PI, server=ORIN, link=Link(1e6, 2e6, 5.0))
    assert found.link.down_bits_per_s == 2e6


def test_what_crosses_costs_the_device_its_own_work_too() -> None:
    free = edgesdk.plan(NET, device=PI, server=ORIN, link="lte", handling_ms=0)
    told = edgesdk.plan(NET, device=PI, server=ORIN, link="lte", handling_ms=25)
    for before, after in zip(free.options, told.options, strict=True):
        more = 0 if before.way.kind == "local" else 25
        assert after.total.value == pytest.approx((before.total.value or 0) + more)
        lines = [next(line for line in one.lines if line.name == before.name) for one in (free, told)]
        assert lines[1].fixed_ms == pytest.approx(lines[0].fixed_ms + more)
        if before.energy.value is not None and after.energy.value is not None:
            assert after.energy.value == pytest.approx(before.energy.value + more * 6.12)
    assert any("costs the device 25 ms" in note for note in told.notes)


def test_the_devices_own_work_goes_by_its_clock_and_has_an_interval() -> None:
    slow, fast = (handling(device.profile(name)) for name in ("raspberry-pi-zero-2-w", "raspberry-pi-5"))
    assert (slow.value or 0) > 2 * (fast.value or 0) > 2 * HANDLING_MS
    for figure in (slow, fast, handling(device.this_machine())):
        assert figure.provenance == "estimated"
        assert figure.interval is not None and figure.interval.low < (figure.value or 0) < figure.interval.high
    with pytest.raises(ModelError, match="allowed: 0 or more"):
        edgesdk.plan(NET, device=PI, server=ORIN, link="lte", handling_ms=-1)
