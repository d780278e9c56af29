"""What `make bench` shows of pruning: beside torch-pruning, criterion beside criterion, and with integers in one export."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgesdk.exporting import prepare
from edgesdk_converters import find
from edgesdk_converters.errors import EdgeError
from edgesdk_converters.model import Model
from edgesdk_targets.device import this_machine

from . import fashion
from .bench_peers import RUNTIME, TIMEOUT_S, Peer, installed
from .bench_smaller import LESSONS, Lessons, Made, Net, cached

PEER = Peer(  # MIT
    "torch-pruning 1.6", "torch_pruning_defaults.py", ("torch-pruning==1.6.1", "torch==2.13.0", "onnxscript==0.7.2", *RUNTIME)
)
SCORED = 512
"""Labelled samples that the peer's taylor takes gradients of: as many as ours."""
COMPARED = Lessons(10_000, 2)
"""What every row of a comparison learns from."""
Options = Mapping[str, Any]
LAYER: Options = {"budget": "channels", "scope": "layer"}
CHANNELS: Options = {"budget": "channels"}
MACS: Options = {"budget": "macs"}
INSIDE: Options = {"heads": False}
ALL: Options = {"heads": False, "normalised": True}


@dataclass(frozen=True)
class Plan:
    """Of one network: what is trained for long, what for as long as the peer's, the peer's ways, and ours at the same MACs."""

    aims: Mapping[str, tuple[Options, Lessons]]
    ours: Mapping[str, Options]
    peers: tuple[str, ...] = ("magnitude", "taylor")
    scopes: tuple[str, ...] = ("layer", "global")


PLANS: Mapping[str, Plan] = {
    "mobilenet": Plan(
        {
            "layer, -50 % channels": ({"removed": 0.5, **LAYER}, Lessons(55_000, 3)),
            "global, -57 % channels": ({"removed": 0.57, **CHANNELS}, Lessons(55_000, 3)),
        },
        {
            "layer, -50 % channels": {"removed": 0.5, **LAYER},
            "global, -57 % channels": {"removed": 0.57, **CHANNELS},
            "global, -60 % MACs": {"removed": 0.6, **MACS},
        },
    ),
    "resnet": Plan(
        {"layer, -50 % channels": ({"removed": 0.5, **LAYER}, Lessons(55_000, 3))},
        {
            "layer, -50 % channels": {"removed": 0.5, **LAYER},
            "global, -60 % MACs": {"removed": 0.6, **MACS},
        },
    ),
    "vit": Plan(
        {"layer, -50 % heads and hidden": ({"removed": 0.5, **LAYER}, Lessons(55_000, 2))},
        {
            "layer, -50 % heads and hidden": {"removed": 0.5, **LAYER},
            "layer, -50 % of each head and hidden": {"removed": 0.5, **LAYER, **INSIDE},
            "layer, -50 % and of the width": {"removed": 0.5, **LAYER, **ALL},
        },
        ("magnitude-inside", "taylor-inside"),
        ("global",),
    ),
}


def by_peer(net: Net, way: str) -> Made:
    """The network after torch-pruning. Raises EdgeError where it failed."""
    script = Path(__file__).with_name("peers") / PEER.script
    try:
        python = installed(PEER)
    except subprocess.CalledProcessError as error:
        raise EdgeError(f"does not install: {error}") from error

    def make(_: Path) -> Model:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "model.onnx").write_bytes(net.folded.data)
            np.savez(folder / "train.npz", **fashion.samples("train", 0, SCORED))
            command = [str(python), str(script), net.name, "model.onnx", "train.npz", way, "out.onnx"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
            if done.returncode:
                raise EdgeError((done.stderr.strip().splitlines() or ["no file"])[-1][:160])
            made = Model.load(folder / "out.onnx")
        return find("fold")()(made, net.given(LESSONS))

    return cached([PEER.name, way, hashlib.sha256(script.read_bytes()).hexdigest()], net.folded, make)


def pruned(net: Net, plan: Plan) -> Iterator[tuple[str, ...]]:
    """One network: ours after long lessons; then ours and the peer's after the same few; ours again at the MACs of the peer's."""
    ways: dict[str, Made] = {}
    for label, (options, lessons) in plan.aims.items():
        ways[f"{label}; {lessons}"] = net.learned(net.made(net.folded, "prune", options), lessons)
    for label, options in plan.ours.items():
        ways[f"{label}; {COMPARED}"] = net.learned(net.made(net.folded, "prune", options), COMPARED)
    for way in plan.peers:
        try:
            theirs = by_peer(net, way)
        except EdgeError as error:
            print(f"fashion {net.name}, {PEER.name} {way}: {error.message}", flush=True)
            continue
        ways[f"{PEER.name} {way}; {COMPARED}"] = net.learned(theirs, COMPARED)
        removed = round(1 - theirs.macs / net.folded.macs, 4)
        width = INSIDE if way.endswith("inside") else {}
        for scope in plan.scopes:
            try:
                ours = net.made(net.folded, "prune", {"removed": removed, "scope": scope, **MACS, **width})
            except EdgeError as error:
                print(f"fashion {net.name}, {scope}, at the MACs of {way}: {error.message}", flush=True)
                continue
            ways[f"{scope}, at the MACs of {way}; {COMPARED}"] = net.learned(ours, COMPARED)
    yield from net.judged(ways)


CRITERIA = ("magnitude", "taylor", "pst", "exploration")
AFTER = Lessons(LESSONS, 1)


def criteria(name: str) -> Iterator[tuple[str, ...]]:
    """Which criterion keeps most when each layer loses half of its channels, before and after one epoch on 4,000 images."""
    net = Net(name)
    ways: dict[str, Made] = {}
    for criterion in CRITERIA:
        made = net.made(net.folded, "prune", {"removed": 0.5, **LAYER, "criterion": criterion})
        ways[f"{criterion}; untrained"] = made
        ways[f"{criterion}; {AFTER}"] = net.learned(made, AFTER)
    yield from net.judged(ways)


SHARED = 0.6
"""Of the MACs, gone where pruning and integers meet."""
BOTH = COMPARED
EXPORTED_DROP = 4.0


def and_int8(name: str) -> Iterator[tuple[str, ...]]:
    """Pruned, in integers, and both: in each order, and with the same epochs before, after, or on both sides of the integers."""
    net = Net(name)
    seven = bool(this_machine().get("int8_saturates", bool))
    images, epochs = BOTH.images, BOTH.epochs
    prune = {"removed": SHARED, **MACS}
    int8 = {"flavour": "u8s8", "reduce_range": seven}
    bare = net.made(net.folded, "prune", prune)
    tuned = net.learned(bare, BOTH)
    ways = {
        f"pruned; {BOTH}": tuned,
        "int8": net.made(net.folded, "quantize", int8),
        f"pruned; {BOTH}; int8": net.made(tuned, "quantize", int8),
        f"pruned; {replace(BOTH, epochs=1)}; int8; qat 1 x {images:,}": net.made(
            net.learned(bare, replace(BOTH, epochs=1)), "quantize", {**int8, "qat": 1}, images
        ),
        f"pruned; {BOTH}; int8; qat 1 x {images:,} more": net.made(tuned, "quantize", {**int8, "qat": 1}, images),
        f"pruned; int8; qat {epochs} x {images:,}": net.made(
            bare, "quantize", {**int8, "qat": epochs, "qat_learning_rate": BOTH.learning_rate}, images
        ),
    }
    try:
        after = net.made(net.made(net.folded, "quantize", int8), "prune", prune)
        ways[f"int8; pruned; {BOTH}"] = net.learned(after, BOTH)
    except EdgeError as error:
        print(f"fashion {name}, int8 then pruned: {error.message}", flush=True)
    try:
        ways[f"one export, max_drop {EXPORTED_DROP:g}"] = exported(net)
    except EdgeError as error:
        print(f"fashion {name}, one export: {error.message}", flush=True)
    yield from net.judged(ways)


def exported(net: Net) -> Made:
    """Both by one call, its contract held on 1,000 training images that it did not learn from."""

    def make(_: Path) -> Model:
        made = prepare(
            net.path, device="this-machine", precision="int8", prune=SHARED, finetune=BOTH.epochs, max_drop=EXPORTED_DROP,
            train=fashion.samples("train", 0, BOTH.images), data=fashion.samples("train", 50_000, 1000),
            settings={"prune.budget": "macs"},
        )  # fmt: skip
        for row in made.report.candidates:
            print("  ", f"{row.get('name')}: {row.get('status')}", file=sys.stderr, flush=True)
        for note in made.report.notes:
            print("  ", note, file=sys.stderr, flush=True)
        return Model.from_proto(onnx.load_from_string(made.files["model.onnx"]), net.source.name)

    return cached(["export", SHARED, asdict(BOTH), EXPORTED_DROP], net.folded, make)
