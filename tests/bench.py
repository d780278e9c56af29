"""`make bench`: tables of what edgesdk costs, each ratio measured side by side in one run. Nothing here passes or fails.

python -m tests.bench [imports] [overhead] [fold] [precisions] [smaller] [lowrank] [pruned] [criteria] [pruned-int8] [models]
                      [link] [serving] [end-to-end] [ray] [bottleneck] [latency] [fit] [agent] [devices] [emulator]
                      [hls4ml-estimate] [rtl-estimate] [adder-graph] [fpga]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort

import edgesdk

from . import bench_pruned, bench_quantised, bench_smaller
from .bench_quantised import show

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "build" / "models"
sys.path.insert(0, str(ROOT / "examples"))


def imports() -> None:
    """Time of `import edgesdk` over numpy alone, median of 15 fresh interpreters each, in turn."""
    code = "import time; import numpy; t = time.perf_counter(); {}; print((time.perf_counter() - t) * 1e3)"
    statements = {
        "nothing": "pass",
        "import edgesdk": "import edgesdk",
        "edgesdk.load (no runtime yet)": "import edgesdk; edgesdk.load",
        "import onnxruntime": "import onnxruntime",
    }
    times: dict[str, list[float]] = {name: [] for name in statements}
    for _ in range(15):
        for name, statement in statements.items():
            done = subprocess.run([sys.executable, "-c", code.format(statement)], capture_output=True, text=True, check=True)
            times[name].append(float(done.stdout))
    show(("after numpy", "median ms"), [(name, f"{np.median(t):.2f}") for name, t in times.items()])


def overhead() -> None:
    """Session.run beside a bare InferenceSession.run of the same file and options, interleaved."""
    rows = []
    for name, path, count in (
        ("Fashion-MNIST CNN", ROOT / "examples/fashion/fashion_cnn.onnx", 6000),
        ("EfficientNet-Lite0", MODELS / "efficientnet-lite0.onnx", 150),
    ):
        with tempfile.TemporaryDirectory() as folder:
            bundle = edgesdk.export(path, device="this-machine", settings={"threads": "1"}, out=Path(folder) / "b.edge")
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            bare = ort.InferenceSession(bundle.read("model.onnx"), options, providers=["CPUExecutionProvider"])
            with edgesdk.load(bundle.path) as session:
                spec = session.signature.inputs[0]
                feed = {spec.name: np.random.default_rng(0).standard_normal(spec.shape).astype(spec.dtype)}
                names = [output.name for output in session.signature.outputs]
                ours, theirs = interleave(partial(session.run, feed), partial(bare.run, names, feed), count)
        added = (np.median(ours) - np.median(theirs)) * 1e6
        allowed = max(5.0, 0.02 * np.median(theirs) * 1e6)
        rows.append(
            (name, f"{np.median(theirs) * 1e6:,.1f}", f"{np.median(ours) * 1e6:,.1f}", f"{added:+.1f}",
             f"{(np.percentile(ours, 10) - np.percentile(theirs, 10)) * 1e6:+.1f}", f"{allowed:.1f}", str(count))
        )  # fmt: skip
    show(("model", "bare p50 us", "session p50 us", "added at p50", "added at p10", "allowed", "runs"), rows)


def interleave(a: Callable[[], object], b: Callable[[], object], count: int) -> tuple[list[float], list[float]]:
    """Times of both in seconds, taken in turn, the first of each pair alternating."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(max(5, count // 20)):
        a(), b()
    for index in range(count):
        for which in (0, 1) if index % 2 else (1, 0):
            begin = time.perf_counter()
            (a, b)[which]()
            times[which].append(time.perf_counter() - begin)
    return times


def models() -> None:
    """Every real model at hand, both targets, both precisions: an export in a process of its own."""
    rows = []
    for path in sorted((*MODELS.glob("*.onnx"), *(ROOT / "examples/fashion").glob("*.onnx"))):
        for device in ("raspberry-pi-5", "jetson-agx-orin"):
            for precision in ("fp32", "fp16"):
                done = subprocess.run(
                    [sys.executable, "-m", "tests.bench", "--one", str(path), device, precision],
                    capture_output=True, text=True, check=False, cwd=ROOT,
                )  # fmt: skip
                if done.returncode != 0:
                    rows.append(
                        (path.stem, device, precision, "-", "-", "-", (done.stderr.strip().splitlines() or ["?"])[-1][:60])
                    )
                    continue
                found = json.loads(done.stdout.splitlines()[-1])
                rows.append(
                    (path.stem, device, precision, f"{found['seconds']:.1f}", f"{found['peak_mb']:,.0f}",
                     f"{found['size_mb']:,.2f}", f"{found['error']:.1e}")
                )  # fmt: skip
                print(*rows[-1], flush=True, file=sys.stderr)
    show(("model", "device", "precision", "seconds", "peak MB over imports", "model MB", "relative error"), rows)


def one(path: str, device: str, precision: str) -> None:
    """One export of `models`: seconds and peak memory over the imports."""
    import edgesdk_converters.fold
    import edgesdk_converters.half
    import edgesdk_converters.reference  # noqa: F401
    import real_models
    from edgesdk.exporting import prepare
    from edgesdk_targets.measure import peak_memory_bytes
    from tests.sdk.test_real_models import CONSTANTS, SHAPES, data_of

    name = Path(path).stem
    data = data_of(real_models, name) if name in real_models.MODELS else None
    before = peak_memory_bytes()
    begin = time.perf_counter()
    prepared = prepare(
        path, device=device, precision=precision, shapes=SHAPES.get(name), constants=CONSTANTS.get(name), data=data
    )
    seconds = time.perf_counter() - begin
    errors = [row.value for row in prepared.report.rows if row.name == "relative_error" and row.value is not None]
    result = {
        "seconds": seconds,
        "peak_mb": (peak_memory_bytes() - before) / 1e6,
        "size_mb": len(prepared.files["model.onnx"]) / 1e6,
        "error": max(errors),
    }
    print(json.dumps(result))


def fold() -> None:
    """Libraries that fold graphs: node count and worst relative error on four inputs, in ONNX Runtime without optimisation."""
    import onnx
    import onnxscript.optimizer

    import real_models
    from edgesdk_converters.accuracy import distance
    from edgesdk_converters.calibration import Samples
    from edgesdk_converters.errors import EdgeError
    from edgesdk_converters.fold import Fold
    from edgesdk_converters.model import Model
    from edgesdk_converters.passes import Given
    from edgesdk_converters.reference import Reference
    from tests.sdk.test_real_models import data_of

    def by_runtime(model: Model) -> onnx.ModelProto:
        with tempfile.TemporaryDirectory() as folder:
            options = ort.SessionOptions()
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
            options.optimized_model_filepath = str(Path(folder) / "m.onnx")
            options.log_severity_level = 3
            ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
            return onnx.load(options.optimized_model_filepath)

    ways: dict[str, Callable[[Model, Given], onnx.ModelProto]] = {
        "onnxslim": lambda model, given: Fold()(model, given).proto,
        "onnxscript": lambda model, given: onnxscript.optimizer.optimize(model.copy_proto()),
        "onnxruntime basic": lambda model, given: by_runtime(model),
    }
    rows = []
    for name in ("efficientnet-lite0", "squeezenet", "shufflenet", "inception_v1", "inception_v2", "densenet121", "resnet50"):
        source = Model.load(MODELS / f"{name}.onnx")
        samples = Samples.from_arrays(data_of(real_models, name), source.signature, "sample inputs")
        reference = Reference(source)
        cells = [name, str(len(source.proto.graph.node))]
        for way in ways.values():
            try:
                proto = way(source, Given(source, samples))
                made = Reference(Model.from_proto(proto, name))
                worst = distance(map(made.run, samples), map(reference.run, samples)).relative
                cells.append(f"{len(proto.graph.node)} / {worst:.0e}")
            except (EdgeError, RuntimeError, ValueError) as error:
                cells.append(f"failed: {type(error).__name__}")
        rows.append(tuple(cells))
    show(("model", "nodes", *(f"{name}: nodes / error" for name in ways)), rows)


def precisions() -> None:
    """Every flavour of quantisation on nine networks, without repairs: quality, size, speed to fp32, memory."""
    print(f"{bench_quantised.LEGEND}; {bench_quantised.about()}\n")
    rows: list[tuple[str, ...]] = []
    missing: list[str] = []
    for case in bench_quantised.cases():
        artefacts, failed = bench_quantised.flavours(case)
        missing += failed
        for one_of_it in bench_quantised.judge(case, artefacts):
            rows.append(one_of_it.row[:-1])
            print(*one_of_it.row, flush=True, file=sys.stderr)
    show(bench_quantised.HEADS[:-1], rows)
    print("\n".join(missing), end="\n\n")


def smaller() -> None:
    """Low rank and few bits, plain and trained: accuracy, size, speed to the net as it was, 1 thread."""
    found = []
    for row in bench_smaller.rows():
        found.append(row)
        print(*row, flush=True, file=sys.stderr)
    show(bench_smaller.HEADS, found)


def lowrank() -> None:
    """Low rank, size against accuracy: an MLP and the ViT at 75, 50 and 25 % of their weights, no data or one epoch."""
    for net in (bench_smaller.Net("mlp", bench_smaller.mlp()), bench_smaller.Net("vit")):
        shown(net.name, bench_smaller.curve(net))


def pruned() -> None:
    """Pruned by us and by torch-pruning, beside the net as it was: accuracy on 10,000 test images, speed with 1 thread."""
    for name, plan in bench_pruned.PLANS.items():
        shown(name, bench_pruned.pruned(bench_smaller.Net(name), plan))


def criteria() -> None:
    """Half of each layer's channels gone by each criterion, learned from 4,000 images: before and after one epoch on these."""
    for name in ("cnn", "mobilenet"):
        shown(name, bench_pruned.criteria(name))


def pruned_int8() -> None:
    """60 % of the MACs gone, int8, and both: which order of passes wins. Weights have 7 bits where this CPU saturates."""
    for name in ("mobilenet", "resnet"):
        shown(name, bench_pruned.and_int8(name))


def widths() -> None:
    """Half of the MACs gone, untrained: what widths in multiples of so many channels are worth in time."""
    from edgesdk_converters.cost import layers, total
    from edgesdk_converters.prune import Prune
    from edgesdk_targets.measure import side_by_side

    rows = []
    for name in ("cnn", "mobilenet", "resnet"):
        net = bench_smaller.Net(name)
        whole = net.folded.model
        made = {"as it was": whole} | {
            f"multiples of {multiple}": Prune(removed=0.5, budget="macs", multiple=multiple)(whole, net.given(512))
            for multiple in (1, 4, 8, 16)
        }
        feed = {whole.signature.inputs[0].name: np.zeros((1, 1, 28, 28), np.float32)}
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        sessions = {label: ort.InferenceSession(model.to_bytes(), options) for label, model in made.items()}
        times = side_by_side({label: partial(session.run, None, feed) for label, session in sessions.items()})
        for label, model in made.items():
            share = total(layers(model)).macs / total(layers(whole)).macs
            ratio = float(np.median(times["as it was"]) / np.median(times[label]))
            rows.append((name, label, f"{share:.1%}", f"{ratio:.2f}x"))
    show(("net", "widths", "MACs left", "speed"), rows)


def shown(name: str, rows: Iterator[tuple[str, ...]]) -> None:
    print(f"fashion {name} {bench_quantised.about()}", flush=True)
    show(bench_smaller.CURVE, list(rows))


def bottleneck() -> None:
    """Learned bottlenecks: accuracy against bytes, beside other ways of the same size. Hours; what was trained is kept."""
    apart("bench_bottleneck")


def link() -> None:
    """Requests over a relay with true serialisation, beside what the formulas of a link say."""
    apart("bench_link")


def serving() -> None:
    """Our server and client beside a bare ONNX Runtime: latency, throughput, memory, and sessions over links."""
    apart("bench_serving")


def end_to_end() -> None:
    """Local, split and offload over a relay, the device throttled, beside what the plan said."""
    apart("bench_end_to_end")


def ray() -> None:
    """One and two workers of a Ray cluster."""
    apart("bench_ray")


def latency() -> None:
    """The latency estimate beside published rows, whole families and chips left out."""
    apart("bench_latency")


def hls4ml_estimate() -> None:
    """The hls4ml estimate beside a table of synthesis results, which EDGESDK_HLS4ML_RESULTS names."""
    from . import bench_hls4ml_estimate

    bench_hls4ml_estimate.main([])


def rtl_estimate() -> None:
    """The estimate of the flow rtl beside designs that were routed, families left out."""
    apart("bench_rtl_estimate")


def adder_graph() -> None:
    """Adder graphs and kernels, beside da4ml on the same matrices. An hour."""
    apart("bench_adder_graph")


def agent() -> None:
    """What the agent's calls, uploads and measurements cost."""
    apart("bench_agent")


def emulator() -> None:
    """Ten bundles on three emulated Arm cores: golden vectors, instructions, flavours of int8, time to a result. Half an hour."""
    apart("bench_emulator")


def fit() -> None:
    """The latency estimate refitted to this machine, beside what is measured on it."""
    apart("bench_fit")


def devices() -> None:
    """What an estimate takes, cold and warm, by model, by number of layers, and of logic."""
    apart("bench_devices")


def fpga() -> None:
    """FPGA: mismatches at every level, what free tools make of nets, how that grows. Hours; what was made is kept."""
    apart("bench_fpga")


def apart(module: str) -> None:
    subprocess.run([sys.executable, "-m", f"tests.{module}"], cwd=ROOT, check=True)


SECTIONS = {
    "imports": imports, "overhead": overhead, "fold": fold, "precisions": precisions, "smaller": smaller, "lowrank": lowrank,
    "widths": widths, "pruned": pruned, "criteria": criteria, "pruned-int8": pruned_int8, "models": models,
    "link": link, "serving": serving, "end-to-end": end_to_end, "ray": ray, "bottleneck": bottleneck,
    "latency": latency, "fit": fit, "agent": agent, "devices": devices, "emulator": emulator, "hls4ml-estimate": hls4ml_estimate,
    "rtl-estimate": rtl_estimate, "adder-graph": adder_graph, "fpga": fpga,
}  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:5])
        return
    for name in sys.argv[1:] or SECTIONS:
        print(f"# {name}: {SECTIONS[name].__doc__}")
        SECTIONS[name]()


if __name__ == "__main__":
    main()
