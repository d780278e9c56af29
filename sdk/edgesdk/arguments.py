"""From what was typed, and what edgesdk.toml says, to the arguments of the API. What was typed wins."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters.errors import RecipeError
from edgesdk_targets.device import names
from edgesdk_targets.report import write_beside
from edgesdk_targets.target import device_profile

from . import project
from .sources import parse_constants, parse_shapes

Array = NDArray[Any]


def export_arguments(model: str | None, given: Mapping[str, Any], folder: Path) -> tuple[str, dict[str, Any], Path | None]:
    """Model, keyword arguments of `prepare`, and where the bundle goes."""
    said = project.load(folder)
    section = _section(said, given)

    def path(typed: Path | None, stated: str) -> Path | None:
        return typed if typed is not None else (folder / stated if stated else None)

    io_file = given["io_file"]
    arguments = _choices(said, section, given) | {
        "recipe": path(given["recipe"], section.recipe or said.recipe),
        "constants": dict(said.constants) | parse_constants(given["constants"]),
        "weights": path(given["weights"], said.weights if model is None else ""),
        "processing": project.read_processing(io_file) if io_file is not None else said.io,
        "data": path(given["data"], said.data),
        "train": path(given["train"], said.train),
        "max_drop": given["max_drop"] if given["max_drop"] is not None else said.max_drop,
        "max_slice_drop": given["max_slice_drop"] if given["max_slice_drop"] is not None else said.max_slice_drop,
        "max_relative_error": given["max_relative_error"] if given["max_relative_error"] is not None else said.max_relative_error,
        "task": given["task"] or said.task or "auto",
        "metric": given["metric"] or said.metric,
        "prune": given["prune"],
        "low_rank": given["low_rank"],
        "finetune": given["finetune"],
        "training_device": given["train_on"],
        "split": given["split"],
        "bottleneck": parse_channels(given["bottleneck"]),
        "payload_bits": given["payload_bits"],
        "head_share": given["head_share"],
        "tail_target": given["tail_target"],
        "server": given["server"],
        "link": given["link"],
        "on": given["on"],
    }
    if given["qat"] is not None:
        arguments["settings"]["quantize.qat"] = str(given["qat"])
    out: Path | None = path(given["out"], section.out)
    return model or _stated_model(said, folder), arguments, out


def estimate_arguments(model: str | None, given: Mapping[str, Any], folder: Path) -> tuple[str, dict[str, Any]]:
    """Model and keyword arguments of `estimate`; what the project sets for passes plays no part in it."""
    said = project.load(folder)
    section = _section(said, given)
    section = replace(section, set={name: value for name, value in section.set.items() if "." not in name})
    chosen = _choices(said, section, given)
    own = {name: given[name] for name in ("threads", "runtime", "fit")}
    return model or _stated_model(said, folder), chosen | {"precision": chosen["precision"] or ""} | own


def _section(said: project.Project, given: Mapping[str, Any]) -> project.TargetSection:
    """What the project says of the target that was typed, or that the device typed implies."""
    target = given["target"] or _implied(given["device"])
    return said.target.get(target, project.TargetSection())


def _implied(device: str | None) -> str:
    """The target of a device; none of one that is only estimated."""
    from edgesdk_targets.latency_model import PUBLISHED

    if not device or (device in PUBLISHED and device not in names()):
        return ""
    return device_profile(device).target


def _choices(said: project.Project, section: project.TargetSection, given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "target": given["target"],
        "device": given["device"] or section.device or None,
        "precision": given["precision"] or section.precision,
        "settings": {name: _text(value) for name, value in section.set.items()} | parse_settings(given["settings"]),
        "shapes": dict(said.shapes) | parse_shapes(given["shapes"]),
    }


def parse_settings(texts: Sequence[str]) -> dict[str, str]:
    """Options from `name=value` texts. Raises RecipeError for anything else."""
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise RecipeError(f"--set {text!r}: expected NAME=VALUE or PASS.NAME=VALUE")
        settings[name] = value
    return settings


def parse_channels(text: str | None) -> tuple[int, ...] | None:
    """Numbers of channels from `4` or `1,2,4`. Raises RecipeError for anything else."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise RecipeError(f"--bottleneck {text!r}: expected a number of channels, or several as 1,2,4") from None


def parse_drops(texts: Sequence[str]) -> dict[str, float]:
    """Points by tensor from `TENSOR=POINTS` texts. Raises RecipeError for anything else."""
    found = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            points = float(number)
        except ValueError:
            points = math.nan
        if not name or not 0 <= points <= 100:
            raise RecipeError(f"--drop {text!r}: expected TENSOR=POINTS, 0 to 100 points of accuracy")
        found[name] = points
    return found


def parse_reports(texts: Sequence[str]) -> dict[str, Path]:
    """Files by the tensor of a cut, by "" for the whole model, from `[TENSOR=]FILE` texts. A file of that name comes first."""
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.rpartition("=")
        key, place = ("", Path(text)) if not equals or Path(text).exists() else (name, Path(path))
        if key in found:
            raise RecipeError(f"two reports are given for {key or 'the whole model'}: {found[key]} and {place}")
        found[key] = place
    return found


def save_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write an .npz; an older file is replaced in one step. Raises BundleError where it cannot be written."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:  # numpy.savez takes names as keywords, and some are its own
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    write_beside(path, sink.getvalue())


def _stated_model(said: project.Project, folder: Path) -> str:
    if not said.model:
        raise RecipeError("no model given, and no edgesdk.toml here names one", "edgesdk export MODEL --target NAME")
    is_file = said.model.endswith((".onnx", ".pt2", ".json"))
    return str(folder / said.model) if is_file else said.model


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
