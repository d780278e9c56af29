"""What an estimate takes, cold and warm, by model and by number of layers, for boards and for logic.

python -m tests.bench_devices [models] [layers] [logic]

Seconds "of the processor" are those of the process itself (user and system): what it takes where nothing else runs.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import edgesdk
from edgesdk.estimating import estimate
from edgesdk.sources import open_layers
from edgesdk_converters.errors import EdgeError

from .bench_quantised import show

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "build" / "models"
NETWORKS = ROOT / "targets" / "edgesdk_targets" / "published_latency" / "networks"
PI = "raspberry-pi-4"
COLD, WARM = 5, 7


def cold_s(arguments: Sequence[str], times: int = COLD) -> tuple[float, float]:
    """`edgesdk estimate` in processes of its own: the least seconds by the clock, and of the processor."""
    clock, processor = [], []
    for _ in range(times):
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "edgesdk.cli", "estimate", *arguments], capture_output=True, text=True, check=False, cwd=ROOT
        )
        clock.append(time.perf_counter() - begin)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if done.returncode != 0:
            raise EdgeError(done.stderr.strip().splitlines()[-1])
    return min(clock), min(processor)


def warm_s(call: Callable[[], object], times: int = WARM) -> float:
    """The least seconds of the processor of a call, after one that pays for imports and caches."""
    call()
    found = []
    for _ in range(times):
        begin = time.process_time()
        call()
        found.append(time.process_time() - begin)
    return min(found)


def models() -> None:
    """Models by size, for a Raspberry Pi: a new process, the call in one that runs, and of that opening the model."""
    rows: list[tuple[str, ...]] = []
    for path in (
        ROOT / "examples/fashion/fashion_cnn.onnx", MODELS / "autoencoder.onnx", MODELS / "ds-cnn.onnx",
        MODELS / "mobilenet-vww.onnx", MODELS / "squeezenet.onnx", MODELS / "efficientnet-lite0.onnx",
        MODELS / "densenet121.onnx", MODELS / "resnet50.onnx", NETWORKS / "resnet50.json",
    ):  # fmt: skip
        _, layers = open_layers(path)
        clock, processor = cold_s([str(path), "--device", PI])
        whole, opened = warm_s(lambda path=path: estimate(path, device=PI)), warm_s(lambda path=path: open_layers(path))  # type: ignore[misc]
        rows.append(
            (
                path.name, f"{path.stat().st_size / 1e6:.2f}", str(len(layers)), f"{clock:.2f}", f"{processor:.2f}",
                f"{1e3 * whole:.1f}", f"{1e3 * opened:.1f}",
            )
        )  # fmt: skip
    show(("model", "MB", "layers", "cold s, clock", "of the processor", "warm ms", "of it opening"), rows)


def layers() -> None:
    """Layer lists of a growing number of layers: how a warm estimate grows."""
    source = json.loads((NETWORKS / "mobilenet.json").read_text(encoding="utf-8"))
    rows: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        for count in (10, 100, 1_000, 10_000):
            some = (source["layers"] * (count // len(source["layers"]) + 1))[:count]
            path = Path(folder, f"{count}.json")
            path.write_text(json.dumps(source | {"layers": some}), encoding="utf-8")
            took = {
                way: warm_s(lambda path=path, given=given: estimate(path, **given), 3)  # type: ignore[misc]
                for way, given in (
                    ("own", {"device": PI}), ("ncnn", {"device": PI, "runtime": "ncnn", "threads": 4}),
                    ("tensorrt", {"device": "jetson-orin-nano"}), ("phone", {"device": "phone-snapdragon-835"}),
                )
            }  # fmt: skip
            rows.append((f"{count:,}", *(f"{1e3 * s:.1f}" for s in took.values()), f"{1e6 * took['own'] / count:.0f}"))
    show(("layers", "Raspberry Pi 4 ms", "in ncnn ms", "Orin Nano ms", "phone ms", "us a layer"), rows)


def logic() -> None:
    """Estimates of logic by size: hls4ml from its formulas, rtl by laying the network out; cold and warm."""
    rows: list[tuple[str, ...]] = []
    cases: list[tuple[str, dict[str, str]]] = [
        (spec, settings)
        for spec in ("dense:16-64-32-32-5@8bit", "dense:64-128-64-10@8bit", "dense:256-256-128-10@8bit", "dense:784-512-10@8bit")
        for settings in ({"flow": "hls4ml", "reuse_factor": "64", "strategy": "resource"}, {"flow": "rtl"})
    ]
    cases += [
        (spec, {"flow": "rtl", "form": "unrolled"})
        for spec in ("dense:16-64-5@8bit", "dense:16-64-32-32-5@8bit", "dense:64-128-64-10@8bit")
    ]
    fashion = ROOT / "examples/fashion"
    cases += [(str(fashion / f"fashion_{name}.onnx"), {"flow": "rtl"}) for name in ("cnn", "mobilenet", "resnet")]
    cases += [(str(MODELS / f"{name}.onnx"), {"flow": "rtl"}) for name in ("ds-cnn", "resnet8", "mobilenet-vww")]
    for source, settings in cases:
        device = "alveo-u250" if settings["flow"] == "hls4ml" else "ecp5-85k"
        words = [source, "--device", device, *(part for name, value in settings.items() for part in ("--set", f"{name}={value}"))]
        way = f"{settings['flow']} {settings.get('form', '')}".strip()
        told = source if source.startswith("dense:") else Path(source).name
        try:
            clock, processor = cold_s(words, 3)
            warm = warm_s(lambda: estimate(source, device=device, settings=settings), 2)  # noqa: B023
        except EdgeError as error:
            rows.append((told, way, "-", "-", error.message[:60]))
            continue
        rows.append((told, way, f"{clock:.2f}", f"{processor:.2f}", f"{1e3 * warm:.0f}"))
    show(("network", "flow", "cold s, clock", "of the processor", "warm ms"), rows)


SECTIONS = {"models": models, "layers": layers, "logic": logic}


def main() -> None:
    print(f"edgesdk {edgesdk.__version__}, numpy {np.__version__}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for name in sys.argv[1:] or SECTIONS:
        print(f"\n{SECTIONS[name].__doc__}")
        SECTIONS[name]()


if __name__ == "__main__":
    main()
