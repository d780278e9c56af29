"""Moving between operating points: as much as the link carries in time, and no to and fro."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgesdk.moving import LONGEST_RETRY_S, UP_AFTER, Mover

SIZES = {1: 1_000, 2: 2_000, 4: 4_000, 8: 8_000}
RTT_MS = 20.0


class Simulated:
    """A link whose rate changes, and a clock."""

    def __init__(self, allowed_ms: float, noise: float = 0.0) -> None:
        self.now, self.rng, self.noise = 0.0, np.random.default_rng(0), noise
        self.mover = Mover(SIZES, allowed_ms, lambda: self.now)
        self.mover.ping(RTT_MS)
        self.late = 0

    def run(self, requests: int, kbit_per_s: Callable[[int], float]) -> list[int]:
        """The points that were taken; every request is 50 ms after the one before."""
        points = []
        for number in range(requests):
            point = self.mover.point
            points.append(point)
            self.now += 0.05
            if not point:
                continue
            rate = kbit_per_s(number)
            took = RTT_MS + 8 * SIZES[point] / rate if rate else float("inf")
            took *= 1 + self.noise * float(self.rng.standard_normal())
            if took > 1.2 * self.mover.allowed_ms:  # the deadline
                self.late += 1
                self.mover.failed(point)
            else:
                self.mover.took(point, took)
        return points


def test_a_fast_link_carries_all_and_never_moves() -> None:
    link = Simulated(100)
    assert set(link.run(500, lambda _: 10_000)) == {8} and link.mover.moves == []


def test_a_slow_link_carries_what_is_in_time() -> None:
    link = Simulated(100)
    points = link.run(100, lambda _: 400)  # 20 + 20 ms a thousand bytes: 100 ms at four, 60 at two
    assert points[-1] == 2 and len(link.mover.moves) <= 2


def test_a_link_that_gets_worse_and_better_is_followed_both_ways() -> None:
    link = Simulated(100)
    assert link.run(50, lambda _: 10_000)[-1] == 8
    assert link.run(50, lambda _: 200)[-1] == 1  # 20 + 40 ms a thousand bytes
    assert link.run(200, lambda _: 10_000)[-1] == 8
    rises = [move for move in link.mover.moves if move.after > move.before]
    assert [move.after for move in rises] == [2, 4, 8]  # one step after another


def test_without_a_link_it_is_local_and_looks_ever_more_seldom() -> None:
    link = Simulated(100)
    points = link.run(4000, lambda _: 0)
    assert points[-1] == 0 and [move.after for move in link.mover.moves][-1] == 0
    assert link.late <= 4 + 12  # of 200 seconds; in the end one in thirty
    tried = [number for number, point in enumerate(points) if point and number > 100]
    assert np.diff(tried).max() * 0.05 >= 0.9 * LONGEST_RETRY_S
    assert link.run(4000, lambda _: 10_000)[-1] == 8


def test_noise_on_the_edge_does_not_make_it_go_to_and_fro() -> None:
    for seed, rate in enumerate((250, 300, 400, 500, 600, 800, 1000)):
        link = Simulated(100, noise=0.05)
        link.rng = np.random.default_rng(seed)
        link.run(2000, lambda _, rate=rate: rate)  # type: ignore[misc]
        assert len(link.mover.moves) <= 6, (rate, link.mover.moves)


def test_one_good_request_is_not_enough_to_rise() -> None:
    link = Simulated(100)
    link.run(50, lambda _: 200)
    low = link.mover.point
    link.run(UP_AFTER - 1, lambda _: 10_000)
    assert link.mover.point == low


def test_failures_of_requests_sent_before_a_move_do_not_move_again() -> None:
    mover = Mover(SIZES, 100, lambda: 0.0)
    mover.failed(8)
    mover.failed(8)
    assert [move.after for move in mover.moves] == [4] and mover.point == 4
    mover.failed(4)
    assert mover.point == 2
