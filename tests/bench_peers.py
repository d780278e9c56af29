"""`make bench-peers`: the same networks quantised by other tools with their defaults, each in its own virtual environment.

python -m tests.bench_peers [MODEL ...]

All files are judged by the same ONNX Runtime on the same inputs, which no tool has seen, and timed in turn in one run.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgesdk.exporting import prepare
from edgesdk_converters import find
from edgesdk_converters.calibration import Samples
from edgesdk_converters.errors import EdgeError
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given

from . import bench_quantised as bench
from . import fashion

ROOT = Path(__file__).parents[1]
HOME = ROOT / "build" / "peers"
TIMEOUT_S = 900
PROMISED_POINTS, PROMISED_AGREEMENT_POINTS = 0.5, 5.0
NOISE = 0.97
"""Speeds within 3 % count as equal."""


@dataclass(frozen=True)
class Peer:
    """A tool: the packages of its environment, pinned, and the script that runs it."""

    name: str
    script: str
    packages: Sequence[str]


RUNTIME = ("onnx==1.23.2", "onnxruntime==1.32.0")
PEERS = (
    Peer("onnxruntime 1.32", "onnxruntime_defaults.py", RUNTIME),  # MIT
    Peer("NNCF 3.4", "nncf_defaults.py", ("nncf==3.4.0", "torch==2.13.0", *RUNTIME)),  # Apache-2.0
    Peer(  # Apache-2.0; version 3 has no ONNX any more
        "Neural Compressor 2.6", "neural_compressor_defaults.py",
        ("neural-compressor==2.6", "numpy<2", "onnx<1.17", "onnxruntime<1.20", "setuptools<81", "six"),
    ),
    Peer("Olive 0.13", "olive_defaults.py", ("olive-ai==0.13.0", "torch==2.13.0", "requests", "pandas", *RUNTIME)),  # MIT
)  # fmt: skip


def installed(peer: Peer) -> Path:
    """The peer's Python, its environment made unless it is there."""
    home = HOME / peer.name.replace(" ", "-").lower()
    python = home / "bin" / "python"
    if not (home / ".done").exists():
        print(f"installing {peer.name}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *peer.packages], check=True)
        (home / ".done").touch()
    return python


def by_peer(peer: Peer, model: bytes, train: dict[str, Any]) -> bench.Artefact | str:
    """What the peer makes of a model, or the last line that it said."""
    try:
        python = installed(peer)
    except subprocess.CalledProcessError as error:
        return f"does not install: {error}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(model)
        np.savez(folder / "train.npz", **train)
        command = [str(python), str(Path(__file__).with_name("peers") / peer.script), "model.onnx", "train.npz", "out.onnx"]
        begin = time.perf_counter()
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return f"not done after {TIMEOUT_S} s"
        seconds = time.perf_counter() - begin
        if done.returncode or not (folder / "out.onnx").exists():
            return (done.stderr.strip().splitlines() or ["no file"])[-1][:160]
        return bench.Artefact(peer.name, (folder / "out.onnx").read_bytes(), seconds=seconds)


def by_us(case: bench.Case, precision: str) -> bench.Artefact | str:
    """Our export for this machine under a contract, repairs and all, checked on inputs that are not those of the table."""
    data = tuning(case)
    promise: dict[str, Any] = {"max_drop": PROMISED_POINTS}
    if case.name == "autoencoder":
        promise = {"max_relative_error": 0.05}
    elif case.labels is None:
        promise = {"max_drop": PROMISED_AGREEMENT_POINTS, "task": "classify"}
    begin = time.perf_counter()
    try:
        made = prepare(case.path, target="server", precision=precision, data=data, train=dict(case.train), **promise)
    except EdgeError as error:
        return f"{type(error).__name__}: {error.message}"[:300]
    seconds = time.perf_counter() - begin
    row = next((row["name"] for row in made.report.candidates if row["status"] == "kept"), "")
    print(f"  {case.name} {precision}: {row}", file=sys.stderr, flush=True)
    return bench.Artefact(f"edgesdk {precision}", made.files["model.onnx"], made.manifest.runtime.config, seconds)


def tuning(case: bench.Case) -> dict[str, Any]:
    """Inputs to hold the contract against: neither those of calibration nor those of the table."""
    if case.labels is not None:
        return fashion.samples("train", 10_000, 1000)
    import real_models

    feeds = real_models.sample_inputs(case.name, len(next(iter(case.check.values()))), 3)
    seen = {row.tobytes() for rows in case.train.values() for row in rows}
    new = [feed for feed in feeds if not any(row.tobytes() in seen for rows in feed.values() for row in rows)]
    return {key: np.concatenate([feed[key] for feed in new]) for key in new[0]}


def main() -> None:
    print(__doc__)
    print(f"{bench.LEGEND}; {bench.about()}\n")
    rows: list[tuple[str, ...]] = []
    remarks: list[str] = []
    for case in bench.cases(sys.argv[1:]):
        source = Model.load(case.path)
        train = Samples.from_arrays(dict(case.train), source.signature, "training inputs")
        folded = find("fold")()(source, Given(source, train)).to_bytes()
        artefacts = [bench.Artefact("fp32", folded)]
        made = [(f"edgesdk {precision}", by_us(case, precision)) for precision in ("int8", "auto")]
        made += [(peer.name, by_peer(peer, folded, dict(case.train))) for peer in PEERS]
        for name, found in made:
            if isinstance(found, str):
                remarks.append(f"{case.name}, {name}: {found}")
            else:
                artefacts.append(found)
        judged = bench.judge(case, artefacts)
        rows += [one.row for one in judged]
        remarks += compared(judged)
        for one in judged:
            print(*one.row, file=sys.stderr, flush=True)
    bench.show(bench.HEADS, rows)
    print("\n".join(remarks) or "edgesdk int8 is at least as accurate and as fast on every row")


def compared(judged: Sequence[bench.Judged]) -> list[str]:
    """Where a peer is more accurate than our int8 beyond chance (paired, 95 %) or faster, in words."""
    ours = next((one for one in judged if one.label == "edgesdk int8"), None)
    if ours is None:
        return []
    found = []
    for one in judged:
        if one.label == "fp32" or one.label.startswith("edgesdk"):
            continue
        gain = one.right - ours.right
        better = gain.mean() > 1.645 * gain.std(ddof=1) / np.sqrt(len(gain)) > 0
        faster = ours.speed < NOISE * one.speed
        if better or faster:
            what = " and ".join(word for word, is_so in (("more accurate", better), ("faster", faster)) if is_so)
            found.append(
                f"{one.row[0]}: {one.label} is {what} ({one.row[2]} at {one.row[6]}; ours {ours.row[2]} at {ours.row[6]})"
            )
    return found


if __name__ == "__main__":
    main()
