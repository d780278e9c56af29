"""The command line: parse, call the API, print. No logic."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import Any, NoReturn

import click

from edgesdk_converters.errors import EdgeError

from . import __version__, text
from .agent_verb import agent, agent_arguments, agent_options
from .compare_verb import compare
from .fit_verb import fit
from .plan_verb import plan
from .reuse_verb import reuse
from .serve_verbs import ray, remote_arguments, remote_options, serve, triton
from .terminal import JSON as _JSON
from .terminal import PATH as _PATH
from .terminal import SHAPE as _SHAPE
from .terminal import STOPS
from .terminal import progress as _progress
from .terminal import show as _show

_SET = click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Option of the target, or of a pass.")
_OPTION = click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Option of the target.")
_FALLBACK = click.option("--allow-fallback", is_flag=True, help="Run on the CPU where the asked provider is missing.")
_THREADS = click.option("--threads", type=click.IntRange(0, 1024), default=0, help="0: what the bundle was made for.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="edgesdk")
def cli() -> None:
    """From a trained model to a bundle that runs on a device, with figures that say where they come from."""


@cli.command()
@click.argument("model", required=False)
@click.option("--target", help="raspberry-pi, jetson, fpga, server, or a plugin's.")
@click.option("--device", help="A board; implies the target. See: edgesdk devices.")
@click.option("--out", type=_PATH, help="Where the bundle goes (.edge directory or .zip).")
@click.option(
    "--precision",
    help="fp32 (default), fp16, int8, w8, w4; fixed (FPGA); auto: the fastest that holds the contract. "
    "With --split: of the head, the tail stays fp32; auto chooses for each.",
)
@click.option("--prune", type=float, help="Share of the weights to remove by taking out channels and heads (0..1).")
@click.option("--low-rank", type=float, help="Share of the weights to remove by factorising layers (0..1).")
@click.option("--finetune", type=click.IntRange(0), default=0, help="Epochs of training after each of these, on --train.")
@click.option("--train-on", default="cpu", help="Where training runs: torch's name of a device, cpu (default), cuda, mps.")
@click.option("--qat", type=click.IntRange(1), help="Epochs of training after quantisation, on --train.")
@click.option("--split", metavar="auto|TENSOR", help="Cut there (at two: A,B): the head for the device, the tail for a server.")
@click.option("--bottleneck", metavar="CHANNELS", help="With --split: a learned encoder of so many channels; 1,2,4 are points.")
@click.option("--payload-bits", type=int, default=32, help="Bits a value of what crosses the cut, 2 to 8; default as it is.")
@click.option("--head-share", type=float, default=0.25, help="With --split auto: the most of all MACs that the head may have.")
@click.option("--tail-target", default="server", help="What the tail is made for (default server).")
@click.option("--server", metavar="NAME", help="The device that runs the tail, and implies its target.")
@click.option("--link", metavar="RATE,RTT", help="With --split auto: cut where it takes least time over 10mbit,20ms, wifi, lte.")
@click.option("--recipe", type=_PATH, help="A TOML file of passes, or a bundle whose recipe is followed again.")
@click.option("--data", type=_PATH, help="Check samples: .npz with arrays named as inputs, and labels.")
@click.option("--train", type=_PATH, help="Calibration samples: .npz, as --data.")
@click.option("--max-drop", type=float, help="Contract: points of accuracy that may be lost.")
@click.option("--max-slice-drop", type=float, help="Contract: points that the worst slice may lose (array slice in --data).")
@click.option("--max-relative-error", type=float, help="Contract: bound on the distance to the source's outputs.")
@click.option("--task", type=click.Choice(["auto", "classify", "numeric"]), help="How --max-drop is judged without labels.")
@click.option("--metric", help="package.module:callable(outputs, labels) -> float, instead of top-1.")
@click.option(
    "--on", type=click.Choice(["local", "emulator"]), help="What ranks candidates: time here, or emulated instructions."
)
@click.option("--io", "io_file", type=_PATH, help="TOML with [inputs.NAME] and [outputs.NAME] processing.")
@click.option("--weights", type=_PATH, help=".safetensors for package.module:callable.")
@click.option("--constant", "constants", multiple=True, metavar="INPUT=NUMBER", help="Make an input a constant.")
@_SHAPE
@_SET
@click.option("--dry-run", is_flag=True, help="Do everything but write.")
@_JSON
def export(model: str | None, **given: Any) -> None:
    """Make a bundle for a device from MODEL (.onnx, .pt2, package.module:callable; default: edgesdk.toml's).

    Exit codes: 0 done, 1 error, 2 usage or recipe, 3 accuracy contract broken (nothing is written).
    """
    from edgesdk_targets import bundle as bundles

    from .arguments import export_arguments
    from .exporting import default_path, prepare

    source, arguments, out = export_arguments(model, given, Path.cwd())
    if out is not None:
        bundles.check_place(Path(os.path.abspath(out)))
    with _progress() as progress:
        prepared = prepare(source, **arguments, progress=progress)
        place = out or default_path(prepared.manifest.name, prepared.manifest.device)
        if given["dry_run"]:
            found, told = prepared.report, f"dry run: {place} would be written"
        else:
            progress("writing the bundle")
            written = prepared.write(place)
            found, told = written.report(), f"wrote {place} and {bundles.report_path(Path(place))}"
    _show(found.to_json(), text.report(found), given["as_json"])
    click.echo(told, err=True)


@cli.command()
@click.argument("bundle", type=_PATH)
@click.option("--inputs", type=_PATH, required=True, help=".npz with one array for each input.")
@click.option("--outputs", type=_PATH, help="Write the outputs as .npz.")
@click.option("--raw", is_flag=True, help="Inputs are raw (images: height x width x 3, uint8): apply the bundle's processing.")
@remote_options
@_THREADS
@_FALLBACK
@_JSON
def run(
    bundle: Path, inputs: Path, outputs: Path | None, raw: bool, threads: int, allow_fallback: bool, as_json: bool, **given: Any
) -> None:
    """Run a bundle once on this device; with --remote its tail on a server."""
    from edgesdk_converters.calibration import read_npz

    from .arguments import save_arrays
    from .session import load

    arrays = read_npz(inputs)
    with _progress() as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a fallback is told below, in one line
        progress("loading")
        far = remote_arguments(**given)
        with load(bundle, threads=threads, allow_fallback=allow_fallback, **far, progress=progress) as session:
            got = session.run(arrays, raw=raw)
            best = session.top(got) if session.signature.outputs[0].postprocess else []
    if session.facts.fallback:
        wanted = session.bundle.manifest.runtime.providers[0].name
        click.echo(f"edgesdk: warning: {wanted} is missing; ran on {session.facts}", err=True)
    far_end = session.remote
    if far_end is not None and far_end.counts.local:
        click.echo(f"edgesdk: warning: the tail ran here: {far_end.why}", err=True)
    if outputs is not None:
        save_arrays(outputs, got)
    data = {
        "runtime": str(session.facts),
        "outputs": {name: {"dtype": str(a.dtype), "shape": list(a.shape)} for name, a in got.items()},
        "top": [{"label": label, "score": score} for label, score in best],
        "remote": None if far_end is None else far_end.to_json(),
    }
    lines = [f"ran on {session.facts}"]
    if far_end is not None:
        lines = [f"head ran on {session.facts}", f"tail ran {'here' if far_end.counts.local else far_end.told}"]
    lines += [f"{name}: {a.dtype} {'x'.join(map(str, a.shape)) or 'scalar'}" for name, a in got.items()]
    lines += [f"  {score:10.4g}  {label}" for label, score in best]
    _show(data, "\n".join(part for line in lines for part in text.wrap(line)), as_json)


@cli.command()
@click.argument("bundle", type=_PATH)
@_JSON
def verify(bundle: Path, as_json: bool) -> None:
    """Check every byte of a bundle, and its golden vectors in the runtime that is here."""
    from . import api

    with _progress() as progress:
        found = api.verify(bundle, progress=progress)
    _show(found.to_json(), text.report(found), as_json)


@cli.command()
@click.argument("source")
@_SHAPE
@click.option("--sensitivity", is_flag=True, help="What each layer costs when it alone is int8.")
@click.option("--against", help="A model or bundle made from it: where the two first part.")
@click.option("--target", help="Whose int8 is meant (default: server).")
@click.option("--device", help="A board; implies the target.")
@click.option("--data", type=_PATH, help="Samples to judge on: .npz, labels may be added. Default: seeded random inputs.")
@_JSON
def inspect(source: str, shapes: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Say what a model or a bundle is: signature, operators, costs, history; layer by layer with --sensitivity."""
    from . import api
    from .sources import parse_shapes

    with _progress() as progress:
        found = api.inspect(source, shapes=parse_shapes(shapes), **given, progress=progress)
    _show(found, text.inspected(found), as_json)


@cli.command()
@click.argument("model")
@click.option("--pairs", is_flag=True, help="Cuts of two tensors as well.")
@click.option("--all", "every", is_flag=True, help="Every cut, not only those that no other beats.")
@click.option("--fold", is_flag=True, help="Fold the model first, as an export does: the names that its --split takes.")
@click.option("--bits", type=click.IntRange(2, 8), default=4, help="One more column: bytes with so many bits a value.")
@click.option("--chart", type=_PATH, help="Draw bytes over the head's work, as an SVG file.")
@click.option("--constant", "constants", multiple=True, metavar="INPUT=NUMBER", help="Make an input a constant.")
@_SHAPE
@_JSON
def cuts(
    model: str,
    pairs: bool,
    every: bool,
    fold: bool,
    bits: int,
    chart: Path | None,
    constants: tuple[str, ...],
    shapes: tuple[str, ...],
    as_json: bool,
) -> None:
    """List where MODEL can be cut in a head for a device and a tail for a server, and what would cross there."""
    from edgesdk_targets.report import write_beside

    from . import cut_chart, cut_table
    from .sources import parse_constants, parse_shapes

    with _progress() as progress:
        found = cut_table.survey(
            model, shapes=parse_shapes(shapes), constants=parse_constants(constants), pairs=pairs, fold=fold, progress=progress
        )
    if chart is not None:
        write_beside(chart, cut_chart.svg(found, bits).encode())
        click.echo(f"wrote {chart}", err=True)
    _show(cut_table.data(found, bits), cut_table.shown(found, bits, every), as_json)


@cli.command()
@click.argument("bundle", type=_PATH)
@click.option("--out", type=_PATH, help="Where a project for an FPGA is built (default NAME.build beside the bundle).")
@_JSON
def build(bundle: Path, out: Path | None, as_json: bool) -> None:
    """Carry out the plan in a bundle: a Jetson caches its TensorRT engine, logic is synthesised, placed and routed."""
    from . import api

    with _progress() as progress:
        found = api.build(bundle, out=out, progress=progress)
    _show(found.to_json(), text.report(found), as_json)


@cli.command()
@click.argument("bundle", type=_PATH)
@click.option(
    "--on",
    default="local",
    metavar="WHERE",
    help="local; http://HOST:PORT: a board's agent; emulator: an emulated core, counted.",
)
@click.option("--runs", type=click.IntRange(min=1), help="Default: two seconds' worth, 20 to 1,000.")
@click.option("--data", type=_PATH, help="Labelled samples: measure accuracy too, against the contract.")
@click.option("--out", type=_PATH, help="Write the report as JSON.")
@click.option("--search", is_flag=True, help="Each number of threads, on all and on some cores.")
@click.option("--minutes", type=click.FloatRange(0), default=0.0, help="Run so long on end: times, clocks, temperatures.")
@click.option("--cold", is_flag=True, help="Loading and the first run with no file of the bundle in memory.")
@agent_options
@_THREADS
@_FALLBACK
@_JSON
def measure(
    bundle: Path, on: str, out: Path | None, as_json: bool, token_file: Path | None, ca: Path | None, **given: Any
) -> None:
    """Time a bundle: latency, throughput, load time, memory, energy where there are sensors; with --data also accuracy."""
    from edgesdk_targets.report import check_place

    from . import api

    if out is not None:
        check_place(out)
    with _progress() as progress:
        found = api.measure(bundle, on=on, **agent_arguments(on, token_file, ca), **given, progress=progress)
    try:
        if out is not None:  # first, as whoever reads stdout may be gone
            found.save(out)
    finally:  # what was measured is told, even where the disk turns out to be full
        _show(found.to_json(), text.report(found), as_json)


@cli.command()
@click.argument("model", required=False)
@click.option("--target", help="raspberry-pi, jetson, fpga, server, or a plugin's.")
@click.option("--device", help="A board; implies the target. See: edgesdk devices.")
@click.option("--precision", help="fp32 (default), fp16, int8, w8, w4 or fixed, as the target has it.")
@click.option("--threads", type=click.IntRange(0, 1024), default=0, help="0: all cores of the board.")
@click.option("--runtime", default="", help="Another than the target's own: ncnn, ncnn-vulkan, onnxruntime, tensorrt, …")
@click.option("--fit", type=_PATH, help="What edgesdk fit wrote from figures of your own.")
@_SHAPE
@_OPTION
@_JSON
def estimate(model: str | None, as_json: bool, **given: Any) -> None:
    """Estimate what MODEL (or a layer list .json, or dense:16-64-5@8bit) will cost on a device, without running it."""
    from . import estimating
    from .arguments import estimate_arguments

    source, arguments = estimate_arguments(model, given, Path.cwd())
    with _progress() as progress:
        progress("estimating")
        found = estimating.estimate(source, **arguments)
    _show(found.to_json(), text.report(found), as_json)


@cli.command()
@_JSON
def targets(as_json: bool) -> None:
    """List targets, their precisions and options."""
    from .listing import list_targets

    rows = list_targets()
    lines = text.table(
        ("target", "precisions", "options", "what"),
        [(r["name"], " ".join(r["precisions"]), " ".join(r["options"]) or "-", r["title"] + r["problem"]) for r in rows],
    )
    _show({"targets": rows}, "\n".join(lines), as_json)


@cli.command()
@click.argument("name", required=False)
@_JSON
def devices(name: str | None, as_json: bool) -> None:
    """List devices and what can be done with each; with NAME, the facts of one, each with its source."""
    from .listing import device_facts, list_devices, shown_devices, shown_facts

    if name is not None:
        facts = device_facts(name)
        _show(facts, shown_facts(facts), as_json)
        return
    rows = list_devices()
    _show({"devices": rows}, shown_devices(rows), as_json)


@cli.command()
@click.option("--on", default="local", metavar="WHERE", help="local; http://HOST:PORT: the board of that agent.")
@agent_options
@_JSON
def doctor(on: str, token_file: Path | None, ca: Path | None, as_json: bool) -> None:
    """Say what is installed, what it is for, and how to install what is missing; first whether this CPU can run it."""
    from . import preflight

    if on == "local":
        preflight.check(("numpy",))  # without it nothing that follows can be imported
    from .doctor import examine, examine_far

    found = examine() if on == "local" else examine_far(on, **agent_arguments(on, token_file, ca))
    rows = [(c.name, c.state, c.purpose, c.found + (f" -> {c.remedy}" if c.remedy else "")) for c in found.checks]
    lines = text.table(("part", "state", "for", "found"), rows)
    lines += [line for name, value in found.board.items() for line in text.wrap(f"{name}: {value}")]
    _show(found.to_json(), "\n".join(lines), as_json)


cli.add_command(agent)
cli.add_command(compare)
cli.add_command(fit)
cli.add_command(plan)
cli.add_command(reuse)
cli.add_command(serve)
cli.add_command(triton)
cli.add_command(ray)


def main() -> None:
    """Entry point: an EdgeError, or the system's refusal, becomes one line on stderr and its exit code.

    SIGTERM stops as Ctrl-C does, so that what was started here ends too and temporary files go.
    """
    STOPS.clear()
    if threading.current_thread() is threading.main_thread():

        def stop_now(number: int, frame: object) -> None:
            STOPS.append(number)
            raise KeyboardInterrupt

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop_now)
    try:
        _answer()
    except KeyboardInterrupt:
        _stopped()
    except Exception:
        if STOPS:  # extension modules turn the interrupt into errors of their own
            _stopped()
        raise


def _stopped() -> NoReturn:
    click.echo("stopped; nothing was left half done", err=True)
    sys.exit(128 + (STOPS[0] if STOPS else signal.SIGINT))  # none where a library raised the interrupt itself


def _answer() -> None:
    try:
        cli.main(prog_name="edgesdk", standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        raise KeyboardInterrupt from None
    except EdgeError as error:
        _refuse(error)
    except OSError as error:
        named = "" if error.filename is None else f"{os.fspath(error.filename)!r}: "
        _refuse(EdgeError(f"{named}{error.strerror or error}", "check the path, its permissions and the free space"))
    except MemoryError as error:
        _refuse(EdgeError(f"out of memory: {error}", "take a smaller model or less data, or a machine with more memory"))


def _refuse(error: EdgeError) -> NoReturn:
    if STOPS:  # a library made the interrupt an error that we know
        raise KeyboardInterrupt from None
    click.echo(f"edgesdk: {error.line()}", err=True)
    try:
        sys.stdout.flush()
    except OSError:  # a full disk: what is still in the buffer must not fail once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
