"""What targets and devices there are, as data; a broken plugin is listed as broken."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from edgesdk_converters.errors import TargetError
from edgesdk_targets import device, find, known
from edgesdk_targets.target import device_profile


def list_targets() -> list[dict[str, Any]]:
    """Every target with its precisions, options and devices."""
    rows = []
    for name in known():
        try:
            cls = find(name)
        except TargetError as error:
            rows.append(
                {"name": name, "title": "", "precisions": [], "options": [], "devices": [], "problem": f"broken: {error.message}"}
            )
            continue
        rows.append(
            {
                "name": name,
                "title": cls.title,
                "precisions": list(cls.precisions),
                "options": [f"{f.name}={f.default}" for f in fields(cls) if f.name != "device"],
                "devices": [profile.name for profile in cls.devices()],
                "problem": "",
            }
        )
    return rows


def list_devices() -> list[dict[str, Any]]:
    """Every device, those of plugins included."""
    names = [row_name for row in list_targets() for row_name in row["devices"]]
    ordered = dict.fromkeys([*device.names(), *names])
    profiles = [device_profile(name) for name in ordered]
    return [{"name": p.name, "target": p.target, "title": p.title, "estimate_only": p.estimate_only} for p in profiles]


def device_facts(name: str) -> dict[str, Any]:
    """One device with all its facts and their sources."""
    profile = device_profile(name)
    return {
        "name": profile.name,
        "target": profile.target,
        "title": profile.title,
        "estimate_only": profile.estimate_only,
        "facts": {key: {"value": fact.value, "source": fact.source} for key, fact in profile.facts.items()},
    }
