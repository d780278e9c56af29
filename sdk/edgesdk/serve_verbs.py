"""`edgesdk serve`, `edgesdk triton` and `edgesdk ray`: parse, call the API, print. No logic."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from . import text
from .terminal import JSON, PATH, progress, show


def _points(context: click.Context, option: click.Parameter, typed: str | None) -> Any:
    if typed in (None, "auto"):
        return typed
    if not (typed.isascii() and typed.isdigit()):
        raise click.BadParameter(f"{typed!r}; expected auto or a number of channels")
    return int(typed)


_REMOTE = (
    click.option("--remote", metavar="URL", help="Run the tail of a split bundle on the server at http://HOST:PORT."),
    click.option("--deadline-ms", type=float, metavar="MS", help="What it has to answer in (default 1000)."),
    click.option("--on-late", type=click.Choice(["local", "error"]), help="Then: run the tail here (default), or fail."),
    click.option(
        "--points", metavar="auto|CHANNELS", callback=_points, help="Channels that are sent; auto (default): by the link."
    ),
    click.option(
        "--target-ms", type=float, metavar="MS", help="With --points auto: what is in time (default half of --deadline-ms)."
    ),
    click.option(
        "--prefer",
        type=click.Choice(["accuracy", "speed", "remote"]),
        help="Of the ways in time the most accurate (default), the fastest, or the server while it can: the tail runs here too.",
    ),
    click.option("--token-file", type=PATH, help="Shown to the server; default the token in EDGESDK_TOKEN, or none."),
    click.option("--ca", type=PATH, help="PEM certificates to trust for https://, instead of the system's."),
)
_PORT = click.IntRange(0, 65535)


@click.command()
@click.argument("bundle", type=PATH)
@click.option(
    "--host", default="127.0.0.1", help="Whose requests are taken: this machine's (127.0.0.1, the default); 0.0.0.0: all."
)
@click.option("--port", type=_PORT, default=8000, help="REST and /metrics (default 8000); 0: any free one.")
@click.option("--grpc-port", type=_PORT, default=8001, help="gRPC (default 8001); 0: any free one.")
@click.option("--no-grpc", is_flag=True, help="REST only.")
@click.option("--workers", type=click.IntRange(1, 1024), default=2, help="Inferences that run at once (default 2).")
@click.option(
    "--threads",
    type=click.IntRange(0, 1024),
    default=0,
    help="Of one inference; 0: the bundle's choice, or a worker's share of all cores.",
)
@click.option("--allow-fallback", is_flag=True, help="Run on the CPU where the asked provider is missing.")
@click.option("--token-file", type=PATH, help="Every request must carry the token in it; default that of EDGESDK_TOKEN, or none.")
@click.option("--tls-cert", type=PATH, help="PEM certificate: TLS at both ports.")
@click.option("--tls-key", type=PATH, help="Its PEM key.")
@click.option("--max-body", type=click.IntRange(1), metavar="BYTES", help="Default: what the bundle's inputs can need.")
@click.option(
    "--read-seconds", type=click.FloatRange(0.001), default=30.0, help="In which a request must have come (default 30)."
)
@click.option("--check", is_flag=True, help="Load, listen, say where, and end.")
@JSON
def serve(
    bundle: Path,
    token_file: Path | None,
    check: bool,
    as_json: bool,
    workers: int,
    threads: int,
    allow_fallback: bool,
    **given: Any,
) -> None:
    """Serve a bundle (of a split one its tails) by Open Inference Protocol v2, REST and gRPC, until Ctrl-C or SIGTERM."""
    from .bearer import read_token
    from .server import doors_from
    from .server import serve as start

    doors, token = doors_from(**given), read_token(token_file)
    with progress() as told:
        told("loading")
        server = start(bundle, doors, workers=workers, threads=threads, allow_fallback=allow_fallback, token=token, progress=told)
    with server:
        service = server.service
        if service.facts.fallback:
            wanted = service.bundle.manifest.runtime.providers[0].name
            click.echo(f"edgesdk: warning: {wanted} is missing; serving on {service.facts}", err=True)

        def tell() -> None:
            show(server.to_json(), text.served(server.to_json()), as_json)

        if check:
            tell()
        else:
            server.wait(tell)
    if not check:
        click.echo("stopped; every request that had come was answered", err=True)


@click.command()
@click.argument("bundle", type=PATH)
@click.argument("out", type=PATH)
@JSON
def triton(bundle: Path, out: Path, as_json: bool) -> None:
    """Write a bundle (of a split one the tail, and those of operating points) to the Triton model repository OUT."""
    from edgesdk_targets.triton import write_repository

    written = write_repository(bundle, out)
    data: dict[str, Any] = {"name": written.name, "path": str(written.path), "notes": list(written.notes)}
    if written.points:
        data["points"] = [{"name": one.name, "path": str(one.path)} for one in written.points]
    lines = []
    for one in (written, *written.points):
        lines += [f"wrote {one.path}", f"model {one.name}: config.pbtxt and 1/model.onnx"]
    lines += [f"note: {note}" for note in written.notes]
    show(data, "\n".join(part for line in lines for part in text.wrap(line)), as_json)


@click.command()
@click.argument("bundle", type=PATH)
@click.argument("out", type=PATH)
@click.option("--replicas", type=click.IntRange(1, 100_000), default=1, help="Loaded bundles in the cluster (default 1).")
@click.option("--cpus", type=click.FloatRange(0, 1024, min_open=True), default=1.0, help="Of its node for each (default 1).")
@click.option("--workers", type=click.IntRange(1, 1024), default=1, help="Inferences at once in each (default 1).")
@click.option("--threads", type=click.IntRange(0, 1024), default=0, help="Of one inference; 0: its share of the cpus.")
@click.option("--token-file", type=PATH, default=None, help="On every node: requests must carry the token in it.")
@click.option("--host", default="127.0.0.1", help="As of edgesdk serve; 0.0.0.0 takes requests from other machines.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, help="REST, on every node (default 8000).")
@click.option("--shared", is_flag=True, help="Answer for this model only, so that other applications fit beside it.")
@JSON
def ray(bundle: Path, out: Path, token_file: Path | None, as_json: bool, **given: Any) -> None:
    """Write the config file OUT.yaml with which Ray Serve runs a bundle (of a split one the tail) over a cluster."""
    from .ray_config import write_config

    written = write_config(bundle, out, token_file=token_file or "", **given)
    data = {"name": written.name, "path": str(written.path), "route": written.route}
    lines = [f"wrote {written.path}", f"application {written.name} at {written.route}", f"on a Ray cluster: serve deploy {out}"]
    show(data, "\n".join(part for line in lines for part in text.wrap(line)), as_json)


def remote_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a remote tail to a verb; `remote_arguments` reads what they give."""
    for option in reversed(_REMOTE):
        verb = option(verb)
    return verb


def remote_arguments(remote: str | None, token_file: Path | None, ca: Path | None, **given: Any) -> dict[str, Any]:
    """What `load` takes of a remote tail. The token in the environment is nothing to a bundle that runs here."""
    from .bearer import read_token

    token = read_token(token_file) if remote is not None or token_file is not None else ""
    return {"remote": remote, "token": token, "ca": "" if ca is None else str(ca), **given}
