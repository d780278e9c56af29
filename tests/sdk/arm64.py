"""An agent inside the emulated arm64 system: the real server, runtime and measuring code of a board, under qemu-aarch64."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import edgesdk
import edgesdk_converters
import edgesdk_targets
from edgesdk_targets import emulate, sysroot
from edgesdk_targets.device import profile

SERVER = ("uvicorn", "httptools", "click", "h11")
"""Wheels of `[server]` without grpcio, which an agent does not use, and what they need."""


def wheels(folder: Path, python: str) -> Path:
    """The arm64 wheels of the server, from the machine's package index."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile"]
    command += ["--only-binary=:all:", "--python-version", python, "--target", str(folder)]
    command += [word for platform in sysroot.PLATFORMS for word in ("--platform", platform)]
    subprocess.run([*command, *SERVER], check=True, capture_output=True)
    return folder


def python_in(folder: Path, device: str) -> tuple[Path, dict[str, str]]:
    """A command on this machine that runs the emulated Python as if it were one, and the environment it needs.

    Python starts itself anew for each measurement, by the path in sys.executable. So that it is one that this machine's kernel
    can start, the emulated Python is told to be called as the script that starts it.
    """
    system = sysroot.made(lambda message: None)
    board = profile(device)
    prefix, code, script = folder / "prefix", folder / "code", folder / "python"
    emulate._lay_out(prefix, system, board)
    (prefix / "proc/device-tree").mkdir()
    (prefix / "proc/device-tree/model").write_text(f"{board.title} Rev 1.1\0", encoding="ascii")
    code.mkdir()
    for package in (edgesdk, edgesdk_targets, edgesdk_converters):
        place = Path(str(package.__file__)).parent
        code.joinpath(place.name).symlink_to(place)
    inside = prefix / sysroot.python(system).relative_to(system)
    server = wheels(folder / "server", inside.name.removeprefix("python"))
    qemu = f"{shutil.which(emulate.QEMU)} -cpu {emulate.core(board)} -L {prefix} -0 {script} {inside}"
    script.write_text(f'#!/bin/sh\nexec {qemu} "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    return script, {
        **emulate._environment(system), "PYTHONPATH": f"{code}:{server}:/wheels", "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(folder),
    }  # fmt: skip


@contextlib.contextmanager
def emulated_agent(folder: Path, device: str, token: str, *options: str) -> Iterator[Mapping[str, Any]]:
    """`edgesdk agent` on an emulated board, at a free port of this machine's loopback: what it printed."""
    script, environment = python_in(folder, device)
    command = [str(script), "-m", "edgesdk.cli", "agent", "--port", "0", "--store", str(folder / "store"), "--json", *options]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, text=True,
            env=environment | {"EDGESDK_TOKEN": token},
        )  # fmt: skip
        try:
            assert process.stdout is not None
            lines: list[str] = []
            while not lines or lines[-1] != "}\n":
                lines.append(process.stdout.readline())
                assert lines[-1], (folder / "log").read_text(encoding="utf-8", errors="replace")
            yield json.loads("".join(lines))
        finally:
            process.terminate()
            process.wait(60)
