"""`edgesdk build` of an FPGA bundle: its project is put into a folder, and the tools that it is for are run there."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgesdk_converters.errors import BundleError, MissingTool, ToolError

from .. import runner
from ..bundle import Bundle
from ..figure import Figure
from ..target import device_profile
from . import reports, tool_process, toolchain, vendor_reports

VENDOR_HOURS = 24.0


def make(bundle: Bundle, folder: Path, progress: Callable[[str], None] = runner.silent) -> tuple[list[Figure], list[str]]:
    """Synthesise, and where the family has free tools for it place, route and pack: what the tools report, and notes."""
    config = bundle.manifest.runtime.config
    files = {name: data for name, data in _files(bundle).items() if name not in toolchain.OWN}
    plan = toolchain.plan(files, config["top"], device_profile(bundle.manifest.device), clock_mhz=float(config["clock_mhz"]))
    run = toolchain.run(plan, folder, progress=progress)
    return list(reports.figures(run)), [*reports.notes(run), f"built in {folder}"]


def vendor(
    bundle: Bundle, step: Mapping[str, Any], folder: Path, progress: Callable[[str], None] = runner.silent
) -> tuple[list[Figure], list[str]]:
    """Run a vendor's commands on the project, and read the reports that they leave.

    Raises MissingTool where the tool is not on the path: then the project lies in the folder, ready for where it is.
    """
    write(bundle, folder)
    commands = [list(map(str, command)) for command in step["commands"]]
    if shutil.which(str(step["tool"])) is None:
        lines = "; ".join(" ".join(command) for command in commands)
        raise MissingTool(
            str(step["tool"]), f"is not on the path; the project lies in {folder}",
            hint=f"install {step['tool_name']}, then run there: {lines}",
        )  # fmt: skip
    limit = tool_process.Limit(time.monotonic() + 3600 * VENDOR_HOURS, 3600 * VENDOR_HOURS)
    for number, command in enumerate(commands, start=1):
        label = f"{Path(command[0]).name}, {number} of {len(commands)}"
        progress(label)
        log = folder / f"edgesdk-build-{number}.log"
        ended = tool_process.run(command, label, folder, log, os.environ, limit, progress)
        if ended.exit_code:
            raise ToolError(command[0], f"ended with {ended.exit_code}", ended.last_lines, f"all it printed: {log}")
    return list(vendor_reports.project_figures(folder, bundle.manifest.device)), [f"built in {folder}"]


def write(bundle: Bundle, folder: Path) -> None:
    """Put the project into the folder. Raises BundleError where that cannot be written, or holds what is none of the project."""
    files = _files(bundle)
    try:
        if folder.exists() and not folder.is_dir():
            raise BundleError(f"{folder} is there already and no folder", "give another --out")
        for name, data in files.items():
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            beside = place.with_name(f".{place.name}.tmp")
            beside.write_bytes(data)
            if name.endswith(".sh"):
                beside.chmod(0o755)
            beside.replace(place)
    except OSError as error:
        raise BundleError(f"{folder} cannot be written: {error.strerror or error}", "give another --out") from error


def _files(bundle: Bundle) -> dict[str, bytes]:
    return {name.removeprefix("build/"): bundle.read(name) for name in bundle.manifest.files if name.startswith("build/")}
