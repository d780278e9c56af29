"""What `make bench` and `make bench-peers` share: real networks with data, and quantised files of them judged side by side."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from edgesdk.text import table
from edgesdk_converters import find
from edgesdk_converters.accuracy import disagreement, top1_drop
from edgesdk_converters.calibration import Samples
from edgesdk_converters.errors import EdgeError
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given
from edgesdk_targets.device import this_machine
from edgesdk_targets.measure import side_by_side
from edgesdk_targets.onnxruntime_support import session_config

from . import fashion

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "build" / "models"
NETS = ("cnn", "mobilenet", "resnet", "vit")
TINY = ("resnet8", "ds-cnn", "mobilenet-vww", "autoencoder")


@dataclass(frozen=True)
class Case:
    """A network, inputs to calibrate on and to judge on (rows of batch 1), labels where there are any."""

    name: str
    path: Path
    train: Mapping[str, Any]
    check: Mapping[str, Any]
    labels: Any = None


@dataclass(frozen=True)
class Artefact:
    """A file to judge, with the session options that its maker asks for, and how long it took to make."""

    label: str
    data: bytes
    config: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None


def cases(names: Sequence[str] = ()) -> list[Case]:
    """The Fashion-MNIST nets on real images, EfficientNet-Lite0 and MLPerf Tiny on made-up inputs; all, or those named."""
    sys.path.append(str(ROOT / "examples"))
    import real_models

    found = []
    for net in NETS:
        train, check = fashion.samples("train", 0, 256), fashion.samples("t10k", 0, 2000)
        path = ROOT / "examples" / "fashion" / f"fashion_{net}.onnx"
        found.append(Case(f"fashion {net}", path, {"image": train["image"]}, {"image": check["image"]}, check["labels"]))
    for name, few, many in (("efficientnet-lite0", 32, 100), *((tiny, 64, 400) for tiny in TINY)):
        rows = {}
        for split, count, seed in (("train", few, 1), ("check", many, 2)):
            feeds = real_models.sample_inputs(name, count, seed)
            rows[split] = {key: np.concatenate([feed[key] for feed in feeds]) for key in feeds[0]}
        found.append(Case(name, MODELS / f"{name}.onnx", rows["train"], rows["check"]))
    return [case for case in found if not names or case.name in names]


SEVEN = {"reduce_range": True}
FLAVOURS: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]] = {
    "fp32": (),
    "fp16": (("half", {}),),
    "u8s8": (("quantize", {"flavour": "u8s8"}),),
    "u8s8 7-bit": (("quantize", {"flavour": "u8s8", **SEVEN}),),
    "s8s8": (("quantize", {"flavour": "s8s8"}),),
    "tensorrt": (("quantize", {"flavour": "tensorrt"}),),
    "qoperator 7-bit": (("quantize", {"flavour": "qoperator", **SEVEN}),),
    "dynamic 7-bit": (("quantize", {"flavour": "dynamic", **SEVEN}),),
    "w8": (("quantize", {"flavour": "weights", "bits": 8}),),
    "w4": (("quantize", {"flavour": "weights", "bits": 4}),),
    "w8 stored": (("quantize", {"flavour": "stored", "bits": 8}),),
    "w4 stored": (("quantize", {"flavour": "stored", "bits": 4}),),
    "fixed 8": (("quantize", {"flavour": "fixed", "bits": 8}),),
}


def flavours(case: Case) -> tuple[list[Artefact], list[str]]:
    """The network in every flavour, plain, without repairs; and what cannot be made, with the reason."""
    source = Model.load(case.path)
    given = Given(source, Samples.from_arrays(dict(case.train), source.signature, "training inputs"))
    folded = find("fold")()(source, given)
    made, failed = [], []
    for label, passes in FLAVOURS.items():
        model = folded
        try:
            for name, options in passes:
                model = find(name)(**options)(model, given)
        except EdgeError as error:
            failed.append(f"{case.name} {label}: {error.message}")
            continue
        # Integer sums as on the device that the flavour is for; the others as this CPU does them.
        exact = label in ("tensorrt", "fixed 8")
        made.append(Artefact(label, model.to_bytes(), session_config(model, exact=exact)))
    return made, failed


@dataclass(frozen=True)
class Judged:
    """One artefact of one case: its table row, how right it is on each input (1 is best), and its speed relative to fp32."""

    row: tuple[str, ...]
    label: str
    right: Any
    speed: float


def judge(case: Case, artefacts: Sequence[Artefact], seconds: float = 1.0) -> list[Judged]:
    """Quality, drop with 95 % bound, sizes, speed (all in turn, 1 thread), peak memory. The first artefact is fp32."""
    sessions, outputs, judged = {}, {}, []
    for artefact in artefacts:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        for key, value in artefact.config.items():
            options.add_session_config_entry(key, value)
        sessions[artefact.label] = session = ort.InferenceSession(artefact.data, options, providers=["CPUExecutionProvider"])
        got = [np.asarray(session.run(None, feed)[0]).reshape(1, -1) for feed in _rows(case.check)]
        outputs[artefact.label] = np.concatenate(got)
    first = next(_rows(case.check))

    def runner(label: str) -> Callable[[], object]:
        return lambda: sessions[label].run(None, first)

    times = side_by_side({label: runner(label) for label in sessions}, seconds)
    base = artefacts[0]
    for artefact in artefacts:
        ratio = float(np.median(np.array(times[base.label]) / np.array(times[artefact.label])))
        before, after = outputs[base.label], outputs[artefact.label]
        row = (
            case.name,
            artefact.label,
            *_quality(case, before, after),
            f"{_initialisers(artefact.data) / _initialisers(base.data):.1%}",
            f"{len(artefact.data) / 1e3:,.1f}",
            f"{ratio:.2f}x",
            f"{_peak_mb(artefact, first):.1f}",
            "-" if artefact.seconds is None else f"{artefact.seconds:.1f}",
        )
        judged.append(Judged(row, artefact.label, _right(case, before, after), ratio))
    return judged


HEADS = ("model", "flavour", "quality", "drop (95 % bound)", "weights", "file kB", "speed", "peak MB", "seconds")
LEGEND = (
    "quality: top-1 accuracy where there are labels, else agreement with fp32 (made-up inputs), rms error for the autoencoder; "
    "drop in points; weights: initialiser bytes to fp32's; speed: to fp32, 1 thread; peak MB: of load and run over the imports; "
    "seconds: to make the file"
)


def _rows(arrays: Mapping[str, Any]) -> Any:
    count = len(next(iter(arrays.values())))
    return ({name: rows[index : index + 1] for name, rows in arrays.items()} for index in range(count))


def _quality(case: Case, before: Any, after: Any) -> tuple[str, str]:
    if case.labels is not None:
        drop = top1_drop(before, after, case.labels)
        return f"{drop.converted:.2%}", f"{drop.drop_points:.2f} ({drop.bound_points:.2f})"
    if case.name == "autoencoder":
        return f"rms {np.sqrt(np.mean((after - before) ** 2) / np.mean(before**2)):.2%}", "-"
    drop = disagreement(before, after)
    return f"{drop.converted:.1%}", f"{drop.drop_points:.2f} ({drop.bound_points:.2f})"


def _right(case: Case, before: Any, after: Any) -> Any:
    """1 for a right answer (as labelled, or as fp32 gives it), 0 for a wrong one; for the autoencoder minus the squared error."""
    if case.name == "autoencoder":
        return -np.mean((after - before) ** 2, axis=1) / np.mean(before**2)
    return (after.argmax(axis=1) == (before.argmax(axis=1) if case.labels is None else case.labels)).astype(float)


def _initialisers(data: bytes) -> int:
    total = 0
    for tensor in onnx.load_from_string(data).graph.initializer:
        total += len(tensor.raw_data) or len(onnx.numpy_helper.to_array(tensor).tobytes())
    return total


def _peak_mb(artefact: Artefact, feed: Mapping[str, Any]) -> float:
    """Of a process of its own that loads the file and runs it three times, over what the imports took."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        path.write_bytes(artefact.data)
        np.savez(Path(folder) / "feed.npz", **feed)
        command = [sys.executable, "-m", "tests.bench_quantised", str(path), json.dumps(dict(artefact.config))]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        return float(done.stdout)


def _load_and_run(path: str, config: str) -> float:
    from edgesdk_targets.measure import peak_memory_bytes

    feed = dict(np.load(Path(path).with_name("feed.npz")))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    for key, value in json.loads(config).items():
        options.add_session_config_entry(key, value)
    before = peak_memory_bytes()
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for _ in range(3):
        session.run(None, feed)
    return (peak_memory_bytes() - before) / 1e6


def about() -> str:
    """The machine that the table is of."""
    facts = this_machine().facts
    kind = "saturates sums of u8 x s8 where weights have 8 bits" if facts["int8_saturates"].value else "has VNNI or does without"
    return f"on {facts['cpu'].value}, which {kind}"


def show(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    print("\n".join(table(heads, rows)), end="\n\n", flush=True)


if __name__ == "__main__":
    print(_load_and_run(*sys.argv[1:3]))
