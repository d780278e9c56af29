"""Moving between operating points: as much as the link carries in time, and no to and fro."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgesdk import moving
from edgesdk.moving import LONGEST_RETRY_S, TRY_AFTER, UP_AFTER, Mover

SIZES = {1: 1_000, 2: 2_000, 4: 4_000, 8: 8_000}
RTT_MS = 20.0


class Simulated:
    """A link whose rate changes, and a clock."""

    def __init__(self, allowed_ms: float, noise: float = 0.0, work_ms: float = 0.0) -> None:
        self.now, self.rng, self.noise, self.work_ms = 0.0, np.random.default_rng(0), noise, work_ms
        self.mover = Mover(SIZES, allowed_ms, lambda: self.now)
        self.mover.ping(RTT_MS)
        self.late = 0

    def run(self, requests: int, kbit_per_s: Callable[[int], float]) -> list[int]:
        """The points that were taken; every request is 50 ms after the one before."""
        points = []
        for number in range(requests):
            point = self.mover.next_point()
            points.append(point)
            self.now += 0.05
            if not point:
                continue
            rate = kbit_per_s(number)
            took = RTT_MS + self.work_ms + 8 * SIZES[point] / rate if rate else float("inf")
            took *= 1 + self.noise * float(self.rng.standard_normal())
            if took > 1.2 * self.mover.allowed_ms:  # the deadline
                self.late += 1
                self.mover.failed(point, 1.2 * self.mover.allowed_ms)
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
    link.run(UP_AFTER, lambda _: 10_000)
    assert link.mover.point > low


def test_failures_of_requests_sent_before_a_move_do_not_move_again() -> None:
    mover = Mover(SIZES, 100, lambda: 0.0)
    mover.failed(8)
    mover.failed(8)
    assert [move.after for move in mover.moves] == [4] and mover.point == 4
    mover.failed(4)
    assert mover.point == 2


def test_answers_sent_before_a_move_to_here_do_not_count_as_the_retry() -> None:
    """Four were in flight when the link got too slow: they say nothing of the request that is to see whether it is back."""
    now = 0.0
    mover = Mover(SIZES, 100, lambda: now)
    while mover.point:
        mover.failed(mover.point, 120)
    for point in (8, 1, 1, 1):
        mover.took(point, 95)  # slow, before the retry is sent
    assert mover.next_point() == 0
    now = moving.RETRY_S
    assert mover.next_point() == 1
    for _ in range(3):
        mover.took(8, 10)  # nor are they the retry once it is sent
    assert mover.moves[-1].after == 0
    mover.took(1, 10)
    assert mover.moves[-1].after == 1


def test_an_answer_that_was_under_way_when_the_link_was_lost_does_not_bring_it_back() -> None:
    now = 0.0
    mover = Mover(SIZES, 100, lambda: now)
    mover.lost("gone")
    mover.took(8, 10)
    mover.took(1, 10)
    assert mover.next_point() == 0
    mover.back(SIZES)
    now = moving.RETRY_S
    assert mover.next_point() == 1
    mover.lost("gone")  # while it is tried
    mover.took(1, 10)
    assert mover.next_point() == 0 and [(move.before, move.after) for move in mover.moves] == [(8, 0)]


def test_the_work_of_the_server_is_not_taken_for_that_of_the_link() -> None:
    """30 ms of work at every point: were it the bytes', twice as many would look too slow for ever."""
    link = Simulated(100, work_ms=30)
    link.run(60, lambda _: 200)
    assert link.mover.point == 1
    points = link.run(60 + 6 * TRY_AFTER, lambda _: 4_000)  # 52 ms at one, 66 at eight
    assert points[-1] == 4 and link.late <= 3
    assert [move.after for move in link.mover.moves][-2:] == [2, 4]


def test_a_request_that_only_looks_costs_no_move_and_comes_ever_more_seldom() -> None:
    link = Simulated(110)
    points = link.run(4_000, lambda _: 400)  # 60 ms at two, 100 at four: 66 allowed to rise, 99 to stay
    assert link.mover.point == 2
    looked = [number for number, point in enumerate(points) if point == 4 and number > 50]
    assert 3 <= len(looked) <= 8 and list(np.diff(looked)) == sorted(np.diff(looked))
    assert len(link.mover.moves) <= 2


def test_without_a_tail_here_the_least_point_is_the_lowest() -> None:
    mover = Mover(SIZES, 100, lambda: 0.0, local=False)
    for _ in range(10):
        mover.failed(mover.next_point(), 200)
    assert mover.point == 1 and [move.after for move in mover.moves][-1] == 1
    mover.lost("gone")
    assert mover.next_point() == 1
    mover.back(SIZES)
    assert mover.next_point() == 1


def test_without_a_link_nothing_is_sent_and_with_it_the_least_point_first() -> None:
    link = Simulated(100)
    link.run(10, lambda _: 10_000)
    link.mover.lost("no connection")
    assert set(link.run(200, lambda _: 10_000)) == {0}
    assert (link.mover.moves[-1].before, link.mover.moves[-1].after, link.mover.moves[-1].why) == (8, 0, "no connection")
    link.mover.back(SIZES)
    assert link.run(1, lambda _: 10_000) == [1] and link.run(100, lambda _: 10_000)[-1] == 8


def test_what_was_measured_before_the_link_went_says_nothing_of_the_one_that_is_back() -> None:
    link = Simulated(100)
    link.run(50, lambda _: 60)
    assert link.mover.point == 0
    before = len(link.mover.moves)
    assert link.run(200, lambda _: 10_000)[-1] == 8
    assert [move.after for move in link.mover.moves[before:]] == [1, 2, 4, 8]


def test_a_link_that_comes_back_too_slow_is_not_tried_each_time() -> None:
    """Behind a link that goes and comes, requests are tried at the pace of the last failures."""
    mover, tried = Mover(SIZES, 100, lambda: now), 0
    now = 0.0
    mover.lost("gone")
    for step in range(2_000):
        now = 0.05 * step
        mover.back(SIZES)
        if (point := mover.next_point()) != 0:
            tried += 1
            mover.failed(point, 200)
            mover.lost("late")
    assert 4 <= tried <= 8  # in 100 s: after 2, 4, 8, 16, 30 s and so on


def test_points_that_the_server_lacks_are_not_taken() -> None:
    mover = Mover(SIZES, 100, lambda: 0.0)
    mover.back([2, 4])
    assert mover.next_point() == 4 and mover.least == 2
    assert [(move.before, move.after) for move in mover.moves] == [(8, 4)]
    mover.failed(4)
    mover.failed(2)
    assert mover.point == 0
    mover.back([1, 2, 4, 8])
    assert mover.point == 0 and mover.least == 1
    mover.back([16])  # none of ours: the link would not be up
    assert mover.least == 1


def test_a_rise_that_did_not_hold_is_tried_later_the_next_time() -> None:
    """Quick at one point, slow at the other, whatever the bytes say."""
    mover = Mover({1: 1_000, 2: 2_000}, 100, lambda: 0.0, local=False)
    mover.ping(10)
    rises = []
    for asked in range(2_000):
        point = mover.next_point()
        before = len(mover.moves)
        mover.took(point, 20 if point == 1 else 200)
        if len(mover.moves) > before and mover.moves[-1].after == 2:
            rises.append(asked)
    assert len(rises) <= 8 and list(np.diff(rises)) == sorted(np.diff(rises))


def test_a_ping_that_waited_behind_a_payload_moves_nothing() -> None:
    link = Simulated(100)
    link.run(50, lambda _: 400)
    before = len(link.mover.moves)
    for _ in range(20):
        link.mover.ping(60)  # 20 ms without the payload before it
        assert link.run(1, lambda _: 400) == [2]
    assert len(link.mover.moves) == before


# Policies: the time of the tail here plays a part


class Chosen(Simulated):
    """The same with a tail here that takes `here_ms`, and a policy; each request and what it took are kept."""

    def __init__(self, allowed_ms: float, here_ms: float, prefer: moving.Prefer, **link: float) -> None:
        super().__init__(allowed_ms, **link)
        self.mover = Mover(SIZES, allowed_ms, lambda: self.now, prefer=prefer)
        self.mover.ping(RTT_MS)
        self.here_ms = here_ms
        self.mover.took_here(here_ms)

    def run(self, requests: int, kbit_per_s: Callable[[int], float]) -> list[int]:
        points: list[int] = []
        for number in range(requests):
            points += super().run(1, lambda _, number=number: kbit_per_s(number))  # type: ignore[misc]
            if points[-1] == 0:
                self.mover.took_here(self.here_ms * (1 + self.noise * float(self.rng.standard_normal())))
        return points


def test_accuracy_takes_the_tail_here_rather_than_fewer_channels_where_it_is_in_time() -> None:
    link = Chosen(100, 50, "accuracy")
    points = link.run(200, lambda _: 400)  # all channels 180 ms, four 100, two 60; here 50 with all of them
    assert points[-1] == 0 and 2 not in points[-100:] and "50 ms here" in link.mover.moves[-1].why
    assert set(link.run(200, lambda _: 10_000)[-50:]) == {8}  # 26 ms with all channels: as accurate, and faster
    moves = [(move.before, move.after) for move in link.mover.moves]
    assert moves == [(8, 0), (0, 8)], moves


def test_accuracy_takes_fewer_channels_rather_than_a_tail_here_that_is_too_late() -> None:
    link = Chosen(100, 95, "accuracy")
    points = link.run(300, lambda _: 400)
    assert points[-1] == 2 and 0 not in points


def test_of_ways_as_accurate_the_faster_is_taken() -> None:
    slower, faster = Chosen(100, 40, "accuracy"), Chosen(100, 15, "accuracy")
    assert set(slower.run(300, lambda _: 10_000)) == {8} and slower.mover.moves == []  # 26 ms there
    points = faster.run(300, lambda _: 10_000)
    assert points[: moving.LEAVE_AFTER] == [8] * moving.LEAVE_AFTER and set(points[moving.LEAVE_AFTER :]) == {0}
    assert [(move.before, move.after) for move in faster.mover.moves] == [(8, 0)]


def test_where_nothing_is_in_time_the_least_time_is_taken() -> None:
    link = Chosen(100, 400, "accuracy")
    points = link.run(300, lambda _: 90)  # 20 + 89 ms with the least, 400 here; the deadline of the simulation is 120
    assert points[-1] == 1 and points.count(0) <= 2, points[-40:]
    quick = Chosen(100, 105, "accuracy")
    points = quick.run(300, lambda _: 60)  # 153 ms with the least is over the deadline, 105 here
    assert points[-1] == 0 and quick.late <= 12


def test_speed_takes_the_fastest_whatever_is_more_accurate() -> None:
    link = Chosen(100, 35, "speed")
    points = link.run(400, lambda _: 2_000)  # 24 ms with one, 28 with two, 36 with four, 52 with all; 35 here
    assert points[-1] == 1 and link.mover.moves[-1].after == 1
    assert link.run(400, lambda _: 100_000)[-1] == 8  # 20.1 to 20.6 ms: as fast with all of them
    assert link.run(400, lambda _: 300)[-1] == 0  # 47 ms with one
    assert link.run(4_000, lambda _: 100_000)[-1] == 8


def test_speed_without_a_tail_here_has_the_points_alone() -> None:
    mover = Mover(SIZES, 100, lambda: 0.0, local=False, prefer="speed")
    mover.ping(RTT_MS)
    mover.took_here(1.0)
    for _ in range(200):
        point = mover.next_point()
        mover.took(point, RTT_MS + 8 * SIZES[point] / 2_000)
    assert mover.point == 1


def test_remote_leaves_the_server_only_where_no_point_is_in_time() -> None:
    link = Chosen(100, 1, "remote")
    assert set(link.run(300, lambda _: 10_000)) == {8} and link.mover.moves == []
    assert link.run(300, lambda _: 400)[-1] == 2
    assert link.run(300, lambda _: 20)[-1] == 0


def test_until_the_time_here_is_known_it_is_taken_only_where_no_point_is_in_time() -> None:
    # 20 + 20 ms a thousand bytes, 60 at two: that many are in time, the least are the fastest.
    policies: dict[moving.Prefer, int] = {"accuracy": 2, "speed": 1, "remote": 2}
    for prefer, point in policies.items():
        link = Simulated(100)
        link.mover.prefer = prefer
        points = link.run(200, lambda _: 400)
        assert points[-1] == point and 0 not in points, prefer
        assert link.run(200, lambda _: 20)[-1] == 0


def test_no_policy_goes_to_and_fro_where_two_ways_are_about_as_good() -> None:
    """Times here and there within a fifth of each other, and noise: at most a few moves in 3,000 requests."""
    for prefer in ("accuracy", "speed"):
        for seed, here_ms in enumerate((18.0, 22.0, 26.0, 30.0, 36.0, 44.0, 52.0, 60.0)):
            for rate in (400, 1_000, 2_000, 10_000):
                link = Chosen(100, here_ms, prefer, noise=0.05)
                link.rng = np.random.default_rng(seed)
                link.run(3_000, lambda _, rate=rate: rate)  # type: ignore[misc]
                assert len(link.mover.moves) <= 8, (prefer, here_ms, rate, [m.to_json() for m in link.mover.moves])


def test_a_server_whose_empty_answer_is_slower_than_the_tail_here_is_not_tried() -> None:
    for prefer in ("accuracy", "speed"):
        link = Chosen(100, 10, prefer)
        link.run(50, lambda _: 10_000)
        assert set(link.run(4_000, lambda _: 10_000)) == {0}, prefer  # 200 seconds
        link.here_ms = 60.0  # the device has got slow; the server is 26 ms away
        assert link.run(1_000, lambda _: 10_000)[-1] == {"accuracy": 8, "speed": 2}[prefer]


def test_the_tail_here_is_timed_in_quiet_only_where_a_request_would_still_be_in_time() -> None:
    mover = Mover(SIZES, 100, lambda: 0.0)
    assert not mover.may_time_here
    mover.took_here(50)
    assert mover.may_time_here
    for _ in range(20):
        mover.took_here(80)
    assert not mover.may_time_here


def test_what_is_known_of_each_way_is_told() -> None:
    link = Chosen(100, 30, "accuracy", work_ms=0)
    link.run(100, lambda _: 1_000)  # 20 + 8 ms a thousand bytes: 84 ms with all of them
    told = link.mover.estimates()
    assert told["prefer"] == "accuracy" and told["here_ms"] == 30 and told["round_trip_ms"] == RTT_MS
    assert told["bits_per_s"] == pytest.approx(1e6, rel=0.05)
    assert told["there_ms"]["8"] == pytest.approx(84, rel=0.02) and told["there_ms"]["1"] == pytest.approx(28, rel=0.05)


def test_points_that_change_while_all_channels_are_tried_are_no_error() -> None:
    """From here, a try with all channels is due; then the server has fewer points."""
    now = 0.0
    mover = Mover(SIZES, 100, lambda: now)
    mover.took_here(30)
    mover.ping(5)
    mover.lost("gone")
    mover.back(SIZES)
    now = 5.0
    assert mover.next_point() == 1
    mover.took(1, 8)
    assert mover.point == 0
    mover.back([1])
    now = 50.0
    assert mover.next_point() == 1
    mover.took(1, 8)
    assert mover.point == 1  # all that the server has
