"""`edgesdk serve` and `edgesdk triton`: parse, call the API, print. No logic."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from . import text
from .terminal import JSON, PATH, progress, show

_REMOTE = (
    click.option("--remote", metavar="URL", help="Run the tail of a split bundle on the server at http://HOST:PORT."),
    click.option("--deadline-ms", type=float, metavar="MS", help="What it has to answer in (default 1000)."),
    click.option("--on-late", type=click.Choice(["local", "error"]), help="Then: run the tail here (default), or fail."),
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
    """Serve a bundle (of a split one the tail) by Open Inference Protocol v2, REST and gRPC, until Ctrl-C or SIGTERM."""
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
        show(server.to_json(), text.served(server.to_json()), as_json)
        if not check:
            server.wait()
    if not check:
        click.echo("stopped; every request that had come was answered", err=True)


@click.command()
@click.argument("bundle", type=PATH)
@click.argument("out", type=PATH)
@JSON
def triton(bundle: Path, out: Path, as_json: bool) -> None:
    """Write a bundle (of a split one the tail) as a model of the Triton model repository OUT."""
    from edgesdk_targets.triton import write_repository

    written = write_repository(bundle, out)
    data = {"name": written.name, "path": str(written.path), "notes": list(written.notes)}
    lines = [
        f"wrote {written.path}",
        f"model {written.name}: config.pbtxt and 1/model.onnx",
        *(f"note: {n}" for n in written.notes),
    ]
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
