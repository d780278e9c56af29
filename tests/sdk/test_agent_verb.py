"""`edgesdk agent`: the token is given or made, and shown once; who could read it on the way is told; a signal ends it."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from edgesdk.agent_verb import agent_arguments
from edgesdk_converters.errors import DeviceError

from .conftest import COMMAND, run_apart


def test_without_a_token_one_is_made_and_shown_once(tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "EDGESDK_TOKEN": ""}
    made = run_apart("agent --port 0 --check --json", tmp_path, environment=environment)
    told = json.loads(made.out)
    assert len(told["token"]) >= 32 and told["token"].isascii() and told["token"] not in made.err
    assert told["store"] == str(tmp_path / "cache/edgesdk/agent")
    text = run_apart("agent --port 0 --check", tmp_path, environment=environment)
    assert "http://127.0.0.1:" in text.out
    other = text.out.partition("token, shown this once: ")[2].strip()
    assert len(other) >= 32 and other != told["token"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and told["token"].encode() in path.read_bytes()]


def test_a_token_that_is_given_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-token-in-a-file-of-mine\n")
    for options, environment in (
        ("--token-file token", {"EDGESDK_TOKEN": ""}), ("", {"EDGESDK_TOKEN": "a-token-in-the-environment"}),
    ):  # fmt: skip
        done = run_apart(f"agent --port 0 --check --json --store store {options}", tmp_path, environment=environment)
        assert done.code == 0, done.err
        assert set(json.loads(done.out)) == {"url", "tls", "store"} and "a-token" not in done.out + done.err


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ("--token-file gone", "DeviceError", "cannot be read"),
        ("--token-file short", "DeviceError", "has 5 characters; needed: 16"),
        ("--tls-cert x.pem", "LinkError", "one is missing"),
        ("--tls-cert x.pem --tls-key y.pem", "LinkError", "cannot be used for TLS"),
        ("--host 256.0.0.1", "LinkError", "cannot listen"),
    ],
)
def test_what_it_cannot_do_it_says(tmp_path: Path, options: str, kind: str, told: str) -> None:
    (tmp_path / "short").write_text("short")
    done = run_apart(f"agent --port 0 --check --store store {options}", tmp_path)
    assert done.code == 1 and done.error["kind"] == kind and told in done.error["message"]


def test_listening_to_others_without_tls_is_warned_of(tmp_path: Path) -> None:
    for host, warned in (("0.0.0.0", True), ("127.0.0.1", False)):
        done = run_apart(f"agent --host {host} --port 0 --check --store store", tmp_path)
        assert done.code == 0 and ("read the token on the way" in done.err) is warned


def test_it_runs_until_a_signal(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "agent", "--port", "0", "--store", "store", "--json"], cwd=tmp_path, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    while process.stdout.readline() not in ("}\n", ""):
        pass
    process.send_signal(signal.SIGTERM)  # it listens to signals before it says where it is
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and errors == "stopped; nothing is measured any more\n"


def test_the_token_in_the_environment_is_nothing_to_what_is_measured_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESDK_TOKEN", "not a token at all")
    assert agent_arguments("local", None, None) == {"token": "", "ca": ""}
    with pytest.raises(DeviceError, match="has spaces"):
        agent_arguments("http://pi:7860", None, None)
    (tmp_path / "token").write_text("right")
    assert agent_arguments("http://pi:7860", tmp_path / "token", tmp_path / "ca.pem")["token"] == "right"
