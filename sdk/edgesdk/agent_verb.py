"""`edgesdk agent`: parse, call the API, print. No logic."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from . import preflight, text
from .terminal import JSON, PATH, show

_MEGABYTES = click.IntRange(1)
_FAR = (
    click.option("--token-file", type=PATH, help="Shown to the agent; default the token in EDGESDK_TOKEN."),
    click.option("--ca", type=PATH, help="PEM certificates to trust for https://, instead of the system's."),
)


@click.command()
@click.option(
    "--host", default="127.0.0.1", help="Whose requests are taken: this machine's (127.0.0.1, the default); 0.0.0.0: all."
)
@click.option("--port", type=click.IntRange(0, 65535), default=7860, help="Default 7860; 0: any free one.")
@click.option(
    "--token-file", type=PATH, help="Every request must carry the token in it; default that of EDGESDK_TOKEN, or a new one."
)
@click.option("--tls-cert", type=PATH, help="PEM certificate: TLS.")
@click.option("--tls-key", type=PATH, help="Its PEM key.")
@click.option("--store", type=PATH, help="Folder for what is sent; default one in your cache.")
@click.option("--quota-mb", type=_MEGABYTES, default=4096, help="Of that folder (default 4096); what was used longest ago goes.")
@click.option("--max-bundle-mb", type=_MEGABYTES, default=1024, help="Default 1024.")
@click.option("--max-data-mb", type=_MEGABYTES, default=512, help="Default 512.")
@click.option("--seconds", type=click.FloatRange(1), default=1800.0, help="That a measurement may take (default 1800).")
@click.option("--waiting", type=click.IntRange(1, 1000), default=16, help="Measurements that may wait or run (default 16).")
@click.option("--check", is_flag=True, help="Listen, say where, and end.")
@JSON
def agent(
    host: str,
    port: int,
    token_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    store: Path | None,
    quota_mb: int,
    max_bundle_mb: int,
    max_data_mb: int,
    seconds: float,
    waiting: int,
    check: bool,
    as_json: bool,
) -> None:
    """Run on a board: take bundles and measure them here, for edgesdk measure --on http://HOST:PORT, until Ctrl-C or SIGTERM."""
    preflight.check()
    from .agent import start_agent
    from .agent_store import Limits
    from .bearer import read_token
    from .server import doors_from

    given = read_token(token_file)
    token = given or secrets.token_urlsafe(24)
    doors = doors_from(
        host=host, port=port, grpc_port=0, no_grpc=True, tls_cert=tls_cert, tls_key=tls_key, max_body=None, read_seconds=30.0
    )
    mega = 1_000_000
    limits = Limits(
        bundle_bytes=max_bundle_mb * mega, data_bytes=max_data_mb * mega, quota_bytes=quota_mb * mega, seconds=seconds,
        waiting=waiting,
    )  # fmt: skip
    with start_agent(token, doors, store=store or "", limits=limits) as running:
        told = running.to_json() | ({} if given else {"token": token})
        lines = [f"agent at {running.url}, keeping what is sent in {told['store']}"]
        if not given:
            lines.append(f"token, shown this once: {token}")
        if host not in ("127.0.0.1", "::1", "localhost") and not told["tls"]:
            click.echo("edgesdk: warning: others can read the token on the way; give --tls-cert and --tls-key", err=True)

        def tell() -> None:
            show(told, "\n".join(part for line in lines for part in text.wrap(line)), as_json)

        if check:
            tell()
        else:
            running.wait(tell)
    if not check:
        click.echo("stopped; nothing is measured any more", err=True)


def agent_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of an agent to a verb; `agent_arguments` reads what they give."""
    for option in reversed(_FAR):
        verb = option(verb)
    return verb


def agent_arguments(on: str, token_file: Path | None, ca: Path | None) -> dict[str, Any]:
    """What the API takes of an agent. The token in the environment is nothing to what is measured here."""
    from .bearer import read_token

    far = on not in ("local", "emulator") or token_file is not None
    return {"token": read_token(token_file) if far else "", "ca": "" if ca is None else str(ca)}
