"""Refitting an estimator on figures of one's own: reports of a board, projects that a vendor's tool built, this machine."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgesdk_converters.errors import RecipeError
from edgesdk_targets import device as devices
from edgesdk_targets import runner
from edgesdk_targets.report import check_place, write_beside

if TYPE_CHECKING:
    from edgesdk_targets.fpga.hls4ml_constants import Constants
    from edgesdk_targets.fpga.hls4ml_fit import Record as LogicRecord
    from edgesdk_targets.latency_fit import Record
    from edgesdk_targets.latency_model import DeviceFacts, Setting

Kind = Literal["latency", "hls4ml"]
BUNDLES = (".edge", ".zip")
MANY = 10
"""Records from which their own errors, each left out, give the interval; of fewer it is the published one where that is wider."""
LATENCY_CHANGES = {
    "d": "arithmetic", "a": "traffic within caches", "m": "memory", "s": "what one thread does alone", "l": "starts of layers"
}  # fmt: skip


@dataclass(frozen=True)
class Checked:
    """A figure of one record: as measured, as estimated before the fit, by a fit to the others (None: too few of them)."""

    name: str
    figure: str
    measured: float
    before: float
    left_out: float | None


@dataclass(frozen=True)
class Fit:
    """What was fitted and how well; `path` is the file for `estimate --fit`.

    `changes` are factors on costs: of latency the first is on all of them, and the others come on top.
    """

    kind: Kind
    about: str
    path: Path
    records: int
    changes: tuple[tuple[str, float], ...]
    checked: tuple[Checked, ...]
    interval: str
    command: str
    notes: tuple[str, ...] = ()

    def mape(self, figure: str, when: Literal["before", "left_out"]) -> float | None:
        """Mean absolute error in percent of a figure over the records, None where it is not known of any."""
        pairs = [(getattr(one, when), one.measured) for one in self.checked if one.figure == figure]
        errors = [abs(value / measured - 1) for value, measured in pairs if value is not None and measured > 0]
        return 100 * math.fsum(errors) / len(errors) if errors else None


def fit(
    sources: Sequence[str | os.PathLike[str]] = (),
    *,
    on: str = "",
    out: str | os.PathLike[str] | None = None,
    minutes: float = 2.0,
    threads: int | None = None,
    precision: str | None = None,
    progress: Callable[[str], None] = runner.silent,
) -> Fit:
    """Fit to figures of one's own and write the file that `estimate(…, fit=FILE)` takes.

    `sources` are all of one kind: `MODEL=REPORT.json` of measurements on one board, which say with how many threads and in which
    precision they were run (reports of an older edgesdk do not: then with `threads`, None: one for each core, and in `precision`,
    by default fp32); `BUNDLE.edge[=FOLDER]` for hls4ml with what the vendor's tool reported; or one RESULTS.json. With
    `on="local"` there are none: small networks are timed here for `minutes`, on 1 thread by default. Raises RecipeError for a
    mixture, DeviceError, TargetError or BundleError for what cannot be fitted on; nothing is written then.
    """
    texts = [os.fspath(source) for source in sources]
    if on:
        if on != "local" or texts or precision is not None:
            raise RecipeError("--on takes local, and then neither reports nor a precision", "edgesdk fit --on local")
        return _here(_place(out, ".json", "this-machine.fit.json"), minutes, 1 if threads is None else threads, progress)
    kinds = {_kind(text) for text in texts}
    if len(kinds) != 1 or (kinds == {"results"} and len(texts) > 1):
        got = " and ".join(sorted(kinds)) if kinds else "nothing"
        raise RecipeError(f"one kind of source at a time, and of results one file; got {got}", "see edgesdk fit --help")
    kind = kinds.pop()
    if kind == "reports":
        from . import fit_reports

        device, facts = fit_reports.device_of(texts)
        path = _place(out, ".json", f"{device}.fit.json")
        read = fit_reports.of_reports(texts, facts, threads, precision, progress)
        notes = [f"noisy: {one.path}: something else ran on the board" for one in read if one.noisy]
        for unsaid in dict.fromkeys(one.unsaid for one in read if one.unsaid):
            silent = [str(one.path) for one in read if one.unsaid == unsaid]
            notes.append(f"not said by {', '.join(silent)}: {unsaid}")
        return _of_times([(one.name, one.record) for one in read], facts, path, tuple(notes), progress)
    if threads is not None or precision is not None:
        raise RecipeError(f"logic has no threads, and its bits are in the {kind}", "leave --threads and --precision out")
    from . import fit_logic

    path = _place(out, ".toml", "hls4ml.fit.toml")
    named = fit_logic.of_results(Path(texts[0])) if kind == "results" else fit_logic.of_bundles(texts, progress)
    return _of_logic(named, path, progress)


def _kind(text: str) -> str:
    """Of a source: reports, bundles or results. A name with = in it that exists is that file."""
    name, equals, place = text.rpartition("=")
    if not equals or Path(text).exists():
        name, place = text, ""
    if name.rstrip("/").endswith(BUNDLES):
        return "bundles"
    if place:
        return "reports"
    if name.endswith(".json"):
        return "results"
    raise RecipeError(
        f"{text!r} is no source to fit on; allowed: MODEL=REPORT.json, BUNDLE.edge[=FOLDER], RESULTS.json",
        "see edgesdk fit --help",
    )


def _place(out: str | os.PathLike[str] | None, suffix: str, default: str) -> Path:
    path = Path(default if out is None else out)
    if path.suffix != suffix:
        raise RecipeError(f"--out {path}: this fit is a {suffix} file", f"give a name that ends in {suffix}")
    if not path.parent.is_dir():
        raise RecipeError(f"--out {path}: there is no folder {path.parent}", "make it, or give another place")
    check_place(path)
    return path


def _here(path: Path, minutes: float, threads: int, progress: Callable[[str], None]) -> Fit:
    from edgesdk_targets.latency_model import DeviceFacts

    from .fit_here import timed

    facts = DeviceFacts.from_profile(devices.profile(devices.THIS_MACHINE))
    found = timed(minutes=minutes, threads=threads, progress=progress)
    noisy = [one.name for one in found if one.noisy]
    notes = ["times are the thread's own: what they are on a machine that does nothing else"] if threads == 1 else []
    notes += [f"noisy: {', '.join(noisy)}: something else ran on the machine"] if noisy else []
    return _of_times([(one.name, one.record) for one in found], facts, path, tuple(notes), progress)


def _of_times(
    named: Sequence[tuple[str, Record]], facts: DeviceFacts, path: Path, notes: tuple[str, ...], progress: Callable[[str], None]
) -> Fit:
    from edgesdk_targets.latency_fit import FEW, fitted_to_json, refit, spread
    from edgesdk_targets.latency_model import predict

    progress(f"fitting {len(named)} records")
    records = [record for _, record in named]
    found = refit(records, facts)
    checked = []
    for index, (name, one) in enumerate(named):
        others = [*records[:index], *records[index + 1 :]]
        without = refit(others, facts) if others else None
        before, after = (predict(one.layers, facts, one.setting, fitted=known).total_ms for known in (None, without))
        checked.append(Checked(name, "latency_ms", one.latency_ms, before, after if others else None))
    errors = [math.log(one.measured / one.left_out) for one in checked if one.left_out is not None]
    if errors:
        low, high = spread(np.array(errors), len(errors))
        whence = "fitted own"
        if len(records) < MANY:
            low, high, whence = max(low, found.low), max(high, found.high), "fitted few"
        found = replace(found, low=low, high=high, whence=whence)
    write_beside(path, (json.dumps(fitted_to_json(found), indent=1) + "\n").encode())
    if len(records) < FEW:
        told = f"{len(records)} record{'s' if len(records) > 1 else ''}"
        notes = (*notes, f"{told}: from {FEW} on a fit is surer than the estimate as it was")
    setting = records[0].setting
    changes = [("all", math.exp(found.scale))]
    changes += [(f"of it {LATENCY_CHANGES.get(name, name)}", math.exp(value)) for name, value in found.groups.items() if value]
    way = f"{setting.runtime} {setting.backend}"
    if found.threads:
        way += f", {' and '.join(map(str, found.threads))} thread{'s' if found.threads != (1,) else ''}"
    command = f"edgesdk estimate MODEL --device {_device(facts)} --runtime {_runtime(setting)} --fit {shlex.quote(str(path))}"
    command += f" --threads {setting.threads}" if setting.threads else ""
    command += f" --precision {setting.precision}" if setting.precision != "fp32" else ""
    low, high = math.exp(-found.low), math.exp(found.high)
    return Fit(
        "latency", f"{facts.name}, {way}, {' and '.join(found.precisions)}", path, len(records), tuple(changes), tuple(checked),
        f"a further network takes {low:.2f} to {high:.2f} times its estimate in 9 of 10 cases", command, notes,
    )  # fmt: skip


def _device(facts: DeviceFacts) -> str:
    from edgesdk_targets.latency_model import PUBLISHED

    return next((name for name, known in PUBLISHED.items() if known == facts.name), facts.name)


def _runtime(setting: Setting) -> str:
    """As `estimate --runtime` has it."""
    return "onnxruntime-cuda" if (setting.runtime, setting.backend) == ("onnxruntime", "gpu-cuda") else setting.runtime


def _of_logic(named: Sequence[tuple[str, LogicRecord]], path: Path, progress: Callable[[str], None]) -> Fit:
    from edgesdk_targets.fpga import constants_file, hls4ml_constants, hls4ml_fit

    progress(f"fitting {len(named)} records")
    records = [record for _, record in named]
    found = hls4ml_fit.fit(records)
    shipped = hls4ml_constants.shipped()
    checked = _left_out(named, shipped)
    write_beside(path, constants_file.text(found).encode())
    families, spread = len({one.family for one in records}), found.spread["lut"]
    notes: tuple[str, ...] = ()
    if all(one.left_out is None for one in checked):
        notes = (f"{_networks(families)}: to leave one out, at least {hls4ml_fit.FEWEST} results of others are needed",)
    quoted = shlex.quote(str(path))
    interval = f"LUTs of a further network are {math.exp(spread.low):.2f} to {math.exp(spread.high):.2f} times their estimate"
    return Fit(
        "hls4ml", f"hls4ml, {_networks(families)}", path, len(records), _logic_changes(found, shipped), tuple(checked),
        f"{interval} in 8 of 10 cases", f"edgesdk estimate MODEL --device NAME --set flow=hls4ml --fit {quoted}", notes,
    )  # fmt: skip


def _networks(count: int) -> str:
    return f"{count} network{'s' if count > 1 else ''}"


def _left_out(named: Sequence[tuple[str, LogicRecord]], shipped: Constants) -> list[Checked]:
    """Figures that were reported above 0, each by constants fitted without its network: the reported over exp(residual)."""
    from edgesdk_targets.fpga import hls4ml_fit
    from edgesdk_targets.fpga.hls4ml_estimate import TARGETS

    counted, without = hls4ml_fit.count([record for _, record in named]), {}
    for family in dict.fromkeys(one.record.family for one in counted):
        others = [one for one in counted if one.record.family != family]
        without[family] = hls4ml_fit.constants(others, shipped) if len(others) >= hls4ml_fit.FEWEST else None
    found = []
    for (name, _), one in zip(named, counted, strict=True):
        for target in (*TARGETS, "clock"):
            figure, fitted = "clock_est_ns" if target == "clock" else target, without[one.record.family]
            before = hls4ml_fit.residuals([one], shipped, target)
            after = hls4ml_fit.residuals([one], fitted, target) if fitted is not None else []
            if before:
                measured = one.record.measured[figure]
                left_out = measured / math.exp(after[0]) if after else None
                found.append(Checked(name, figure, measured, measured / math.exp(before[0]), left_out))
    return found


def _logic_changes(found: Constants, before: Constants) -> tuple[tuple[str, float], ...]:
    tables = [(kind, getattr(found, kind), getattr(before, kind)) for kind in ("lut", "ff", "scale", "clock")]
    factors = [(f"{kind} {name}", now[name] / was[name]) for kind, now, was in tables for name in now if was[name]]
    return tuple((name, factor) for name, factor in factors if abs(factor - 1) >= 0.005)
