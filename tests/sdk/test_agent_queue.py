"""The queue of an agent: one measurement at a time, in order, ended when its time is over, and none that nobody waits for."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgesdk import agent_queue
from edgesdk.agent_queue import Job, Queue
from edgesdk.service import Busy

PROLOGUE = (
    "import json, os, subprocess, sys, time; task = json.load(sys.stdin); say = lambda **d: print(json.dumps(d), flush=True)\n"
)


@pytest.fixture
def playing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Queue]]:
    """A queue whose processes run the given code instead of measuring."""
    queues: list[Queue] = []

    def make(code: str, seconds: float = 60.0, waiting: int = 8) -> Queue:
        monkeypatch.setattr(agent_queue, "_START", (PROLOGUE + code).replace("{", "{{").replace("}", "}}"))
        queue = Queue(seconds, waiting, tmp_path)
        queues.append(queue)
        return queue

    yield make
    for queue in queues:
        queue.close()


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.01)


def ended(queue: Queue, job: Job) -> dict[str, object]:
    until(lambda: bool(job.outcome))
    until(lambda: queue.shown(job)["state"] != "running")
    return queue.shown(job)


def test_jobs_run_one_after_another_in_their_order(playing: Callable[..., Queue], tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = f"""
with open({str(log)!r}, "a") as stream: stream.write(f"+{{task['n']}}")
time.sleep(0.1)
with open({str(log)!r}, "a") as stream: stream.write(f"-{{task['n']}}")
say(report=task['n'])
"""
    queue = playing(code)
    jobs = [queue.add({"n": n}, ()) for n in range(4)]
    assert queue.shown(jobs[3])["ahead"] >= 2 and queue.shown(jobs[3])["state"] == "waiting"
    assert [ended(queue, job)["report"] for job in jobs] == [0, 1, 2, 3]
    assert log.read_text() == "+0-0+1-1+2-2+3-3"
    assert queue.ended == {"done": 4, "failed": 0, "cancelled": 0} and queue.waiting == 0


def test_progress_and_everything_new_is_told_to_who_listens(playing: Callable[..., Queue], tmp_path: Path) -> None:
    wait = f"while not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)"
    queue = playing(f"{wait}\nsay(progress='one'); print('noise'); print('[1]'); say(progress='two'); say(report=7)")
    seen: list[str] = []
    job = queue.add({}, ())
    until(lambda: job.state == "running")
    before = job.version

    def note() -> None:
        seen.append(job.told)

    with queue.listening(job, note):
        (tmp_path / "go").touch()
        assert ended(queue, job)["report"] == 7
    assert seen == ["one", "two", ""] and job.version == before + 3
    assert not job.listeners and queue.shown(job)["state"] == "done"


def test_a_job_that_takes_too_long_is_ended_with_all_that_it_started(playing: Callable[..., Queue], tmp_path: Path) -> None:
    code = f"""
child = subprocess.Popen([{sys.executable!r}, "-c", "import time; time.sleep(600)"])
open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
time.sleep(600)
"""
    queue = playing(code, seconds=2.0)
    shown = ended(queue, queue.add({}, ()))
    assert shown["state"] == "failed" and "more than 2 s and was ended" in shown["error"]["message"]  # type: ignore[index]
    pid = int((tmp_path / "pid").read_text())
    until(lambda: not _runs(pid))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("os.kill(os.getpid(), 9)", "ended with SIGKILL"),
        ("os.kill(os.getpid(), 4)", "ended with SIGILL"),
        ("raise ValueError('boom')", "ValueError: boom"),
        ("print('{broken')", "ended with 0: {broken"),
        ("say(other=1)", "ended with 0"),
    ],
)
def test_a_process_that_dies_is_told_and_the_next_one_runs(playing: Callable[..., Queue], code: str, told: str) -> None:
    queue = playing(f"if task['bad']:\n    {code}\nelse:\n    say(report=1)")
    bad, good = queue.add({"bad": True}, ()), queue.add({"bad": False}, ())
    shown = ended(queue, bad)
    assert shown["state"] == "failed" and told in shown["error"]["message"]  # type: ignore[index]
    assert ended(queue, good)["report"] == 1


def test_a_job_is_cancelled_while_it_waits_and_while_it_runs(playing: Callable[..., Queue]) -> None:
    queue = playing("say(progress='on'); time.sleep(600)")
    running, waiting = queue.add({}, ("a",)), queue.add({}, ("b",))
    until(lambda: queue.shown(running)["told"] == "on")
    assert queue.holds("a") and queue.holds("b") and not queue.holds("c")
    queue.cancel(waiting)
    assert queue.shown(waiting)["state"] == "cancelled"
    queue.cancel(running)
    assert ended(queue, running)["state"] == "cancelled"
    until(lambda: not queue.holds("a"))
    queue.cancel(running)
    assert queue.ended["cancelled"] == 2


def test_a_full_line_takes_no_more(playing: Callable[..., Queue]) -> None:
    queue = playing("time.sleep(600)", waiting=2)
    queue.add({}, ())
    queue.add({}, ())
    with pytest.raises(Busy, match="2 measurements wait already"):
        queue.add({}, ())


def test_what_nobody_asks_after_is_not_begun(playing: Callable[..., Queue]) -> None:
    queue = playing("time.sleep(task['s']); say(report=1)")
    queue.add({"s": 0.5}, ())
    left, kept = queue.add({"s": 0}, ()), queue.add({"s": 0}, ())
    left.asked_at -= agent_queue.ABANDONED_S + 1
    assert ended(queue, kept)["report"] == 1
    shown = queue.shown(left)
    assert shown["state"] == "cancelled" and "nobody has asked after it" in shown["error"]["message"]
    assert queue.find(kept.id) is kept and queue.find("nonsense") is None


def test_old_outcomes_are_forgotten_but_never_what_waits(playing: Callable[..., Queue], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_queue, "KEPT", 3)
    queue = playing("say(report=1)")
    jobs = []
    for _ in range(6):
        jobs.append(queue.add({}, ()))
        ended(queue, jobs[-1])
    assert [queue.find(job.id) is not None for job in jobs] == [False, False, False, True, True, True]


def test_a_closed_queue_ends_what_runs_and_takes_no_more(playing: Callable[..., Queue]) -> None:
    queue = playing("time.sleep(600)")
    running, waiting = queue.add({}, ()), queue.add({}, ())
    queue.close()
    assert running.outcome and waiting.outcome and queue.waiting == 0
    with pytest.raises(Busy):
        queue.add({}, ())


def test_a_machine_that_can_start_no_process_fails_the_job_and_goes_on(
    playing: Callable[..., Queue], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = playing("say(report=1)")

    def none_left(corner: Path) -> None:
        raise OSError(12, os.strerror(12))

    with monkeypatch.context() as patched:
        patched.setattr(agent_queue, "_begin", none_left)
        shown = ended(queue, queue.add({}, ()))
    assert shown["state"] == "failed" and "Cannot allocate memory" in shown["error"]["message"]  # type: ignore[index]
    assert ended(queue, queue.add({}, ()))["report"] == 1
