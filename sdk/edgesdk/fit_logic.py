"""Records for the fit of the hls4ml estimator: from bundles whose project the vendor's tool built, or from a list in JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgesdk_converters.errors import TargetError
from edgesdk_targets.bundle import Bundle, open_bundle

if TYPE_CHECKING:
    from edgesdk_targets.figure import Figure
    from edgesdk_targets.fpga.hls4ml_fit import Record

C_SYNTHESIS = "C synthesis' estimate"
"""In the method of what csynth.xml says: the cycles and the clock that the estimator is about, and the last choice for area."""


def of_results(path: Path) -> list[tuple[str, Record]]:
    """Records by number. Raises TargetError for anything but a list of them."""
    from edgesdk_targets.fpga.hls4ml_fit import record

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TargetError(f"{path} holds no results: {error}", "give a JSON list of records") from error
    if isinstance(data, dict) and str(data.get("format", "")).startswith("edgesdk-report"):
        raise TargetError(f"{path} is a report; it does not say which model it is of", f"edgesdk fit MODEL={path}")
    if not isinstance(data, list):
        raise TargetError(f"{path} holds no list of results", "give a JSON list of records: layers, measured, reuse_factor, …")
    return [(f"result {number}", record(one, f"{path}, result {number}")) for number, one in enumerate(data, start=1)]


def of_bundles(texts: Sequence[str], progress: Callable[[str], None]) -> list[tuple[str, Record]]:
    """Records by the bundles' names, from `BUNDLE.edge[=FOLDER]`; by default NAME.build beside the bundle.

    Raises TargetError for a bundle of another flow, for reuse factors of single nodes (a record has one for all), and for a
    folder without the vendor's reports.
    """
    found = []
    for text in texts:
        name, equals, folder = text.rpartition("=")
        if not equals or Path(text).exists():
            name, folder = text, ""
        progress(f"reading {name}")
        bundle = open_bundle(name)
        stem = bundle.path.name.removesuffix(".zip").removesuffix(".edge")
        found.append((bundle.path.name, _record(bundle, Path(folder) if folder else bundle.path.with_name(f"{stem}.build"))))
    return found


def _record(bundle: Bundle, folder: Path) -> Record:
    from edgesdk_targets.fpga import evidence, flow_hls4ml, vendor_reports
    from edgesdk_targets.fpga.hls4ml_fit import Record, check_possible

    config, where = bundle.manifest.runtime.config, bundle.path.name
    if config.get("flow") != "hls4ml":
        raise TargetError(f"{where} is no bundle of flow hls4ml", "export one with --set flow=hls4ml")
    if config.get("reuse_factors"):
        raise TargetError(f"{where} has reuse factors of single nodes; a fit knows one for all", "export it with reuse_factor")
    if not folder.is_dir():
        raise TargetError(
            f"{where}: there is no folder {folder}", "edgesdk build it where the tool is, or give BUNDLE.edge=FOLDER"
        )
    measured = _measured(vendor_reports.project_figures(folder, bundle.manifest.device))
    layers = flow_hls4ml.layers_on_device(evidence.program_of(bundle), config["backend"])
    found = Record(
        layers, measured, int(config["reuse_factor"]), config["strategy"],
        float(config["clock_ns"]), config["io_type"], config["part"],
    )  # fmt: skip
    check_possible(found, where)
    return found


def _measured(rows: Sequence[Figure]) -> dict[str, float]:
    """Area from the report nearest to hardware, cycles and clock from C synthesis; BRAM in tiles of 36 kbit."""
    from edgesdk_targets.fpga.hls4ml_estimate import BRAM18_PER_TILE

    found: dict[str, float] = {}
    for row in rows:
        if row.value is not None and row.name in ("lut", "ff", "dsp", "bram"):
            found.setdefault(row.name, row.value / (BRAM18_PER_TILE if row.name == "bram" else 1))
        elif row.value and C_SYNTHESIS in row.method and row.name in ("cycles", "fmax_mhz"):
            name, value = ("cycles", row.value) if row.name == "cycles" else ("clock_est_ns", 1e3 / row.value)
            found.setdefault(name, float(value))
    return found
