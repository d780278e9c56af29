"""Plans: times, break-even rates and energy by hand calculation, and the best of all held against brute force."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk_converters.errors import ModelError
from edgesdk_targets.breakeven import CORNERS, Line, envelope
from edgesdk_targets.device import DeviceProfile, Fact, profile
from edgesdk_targets.figure import Figure, Interval, unavailable
from edgesdk_targets.link import Link
from edgesdk_targets.plan import Plan, Way, bounds, plan

BARE = Link(1e6, 1e6, 20.0, packet_overhead_bytes=0, request_overhead_bytes=0, response_overhead_bytes=0)
"""1 Mbit/s and 20 ms, without any headers."""
PI, ORIN = profile("raspberry-pi-4"), profile("jetson-orin-nano")


def estimated(ms: float, segment: str, low: float | None = None, high: float | None = None) -> Figure:
    ends = Interval(ms if low is None else low, ms if high is None else high, 0.9)
    return Figure("latency_ms", ms, "estimated", "a board", "a guess", segment=segment, interval=ends)


def measured(ms: float, segment: str) -> Figure:
    spread = {"min": 0.9 * ms, "p90": 1.2 * ms}
    return Figure("latency_ms", ms, "measured", "a board", "a clock", segment=segment, n=20, percentiles=spread)


def local(head: Figure) -> Way:
    return Way("local", "local", 0, 0, head, None)


def offload(up_bytes: int, tail: Figure) -> Way:
    return Way("offload", "offload", up_bytes, 0, None, tail)


def cut(name: str, up_bytes: int, head: float, tail: float, drop: float | None = 0.0) -> Way:
    return Way(name, "split", up_bytes, 0, estimated(head, "head"), estimated(tail, "tail"), (name,), drop)


def three(**given: float) -> Plan:
    """Local takes 200 ms; offload 20 + 10 + 125,000 bytes; the split 60 + 20 + 5 + 12,500 bytes."""
    ways = (offload(125_000, estimated(10, "whole")), cut("mid", 12_500, 60, 5), local(estimated(200, "whole")))
    return plan(ways, BARE, PI, ORIN, **given)  # type: ignore[arg-type]


def test_each_time_is_the_sum_of_its_parts() -> None:
    found = three()
    assert found.find("local").total.value == 200
    assert found.find("offload").total.value == pytest.approx(10 + 20 + 1000)
    assert found.find("mid").total.value == pytest.approx(60 + 5 + 20 + 100)
    assert found.winner == "mid"


def test_break_even_rates_are_those_where_two_lines_meet() -> None:
    """Local 200 = 85 + 1e5 / R: R = 1e5 / 115 bits a ms; split 85 + 1e5 / R = offload 30 + 1e6 / R: R = 9e5 / 55."""
    found = three()
    assert found.best == ("local", "mid", "offload")
    assert [(one.below, one.above) for one in found.crossovers] == [("local", "mid"), ("mid", "offload")]
    assert [one.rate_bits_per_s for one in found.crossovers] == [pytest.approx(1e8 / 115), pytest.approx(9e8 / 55)]


def test_the_interval_of_a_break_even_rate_is_that_of_its_lines_at_the_ends_of_their_figures() -> None:
    """Local 100 to 400 ms against 30 + 1e6 / R: R = 1e6 / 70 to 1e6 / 370 a ms; and 5 % either way of the link."""
    ways = (offload(125_000, estimated(10, "whole")), local(estimated(200, "whole", 100, 400)))
    (found,) = plan(ways, BARE, PI, ORIN).crossovers
    assert found.rate_bits_per_s == pytest.approx(1e9 / 170)
    assert found.low_bits_per_s == pytest.approx(0.95e9 / (400 - 10 - 19))
    assert found.high_bits_per_s == pytest.approx(1.05e9 / (100 - 10 - 21))


def test_a_break_even_rate_may_have_no_bound() -> None:
    ways = (offload(125_000, estimated(10, "whole")), local(estimated(200, "whole", 20, 400)))
    (found,) = plan(ways, BARE, PI, ORIN).crossovers
    assert found.high_bits_per_s is None, "with 20 ms local is faster than any link"


def test_intervals_add_up_and_say_their_lowest_level() -> None:
    head, tail = estimated(60, "head", 30, 90), measured(5, "tail")
    (option,) = plan([Way("mid", "split", 12_500, 0, head, tail, ("mid",))], BARE, PI, ORIN).options
    ends = bounds(option.total)
    assert (ends.low, ends.high) == (pytest.approx(30 + 4.5 + 114), pytest.approx(90 + 6 + 126))
    assert ends.level == 0.9
    assert "head (estimated) + link (estimated) + tail (measured)" in option.total.method


def test_what_was_measured_stays_measured_and_a_sum_with_an_estimate_is_one() -> None:
    found = plan([local(measured(50, "head")), offload(1000, measured(1, "whole"))], BARE, PI, ORIN)
    assert found.find("local").total.provenance == "measured"
    assert found.find("local").total.n == 20
    assert found.find("local").total.segment == "whole"
    assert found.find("offload").total.provenance == "estimated"
    assert all(
        figure.provenance == "estimated" for figure in (found.find("offload").link, found.find("offload").link_bytes) if figure
    )


def test_an_extrapolated_part_makes_the_sum_extrapolated() -> None:
    head = replace(estimated(60, "head"), extrapolated=True)
    (option,) = plan([Way("mid", "split", 10, 0, head, estimated(1, "tail"), ("mid",))], BARE, PI, ORIN).options
    assert option.total.extrapolated


def test_an_option_of_unknown_time_is_told_and_not_chosen() -> None:
    ways = [offload(10, unavailable("latency_ms", "this-machine", "it is in no profile")), local(estimated(900, "whole"))]
    found = plan(ways, BARE, PI, ORIN)
    assert found.winner == "local"
    assert found.find("offload").total.provenance == "unavailable"
    assert any("offload" in note and "it is in no profile" in note for note in found.notes)
    with pytest.raises(ModelError, match="no option's time is known: this-machine: it is in no profile"):
        plan(ways[:1], BARE, PI, ORIN)


def test_the_socket_carries_the_payload_and_the_protocol() -> None:
    link = Link(1e6, 1e6, 20.0)
    (option,) = plan([Way("offload", "offload", 1000, 40, None, estimated(1, "whole"))], link, PI, ORIN).options
    assert option.link_bytes is not None
    assert option.link_bytes.value == 1040 + link.request_overhead_bytes + link.response_overhead_bytes
    assert option.link_bytes.segment == "link"


def test_certain_where_no_interval_overlaps() -> None:
    found = plan([local(estimated(10, "whole", 5, 20)), offload(125_000, estimated(1, "whole"))], BARE, PI, ORIN)
    assert found.winner == "local" and found.certain
    assert "no other interval overlaps" in found.why


def test_overlapping_but_the_same_error_for_both_leaves_the_winner() -> None:
    """A head that is always a tenth of the whole, on a device that may be four times as slow: the split always wins."""
    head, whole = estimated(100, "head", 50, 400), estimated(1000, "whole", 500, 4000)
    ways = [Way("mid", "split", 1250, 0, head, estimated(1, "tail"), ("mid",)), local(whole)]
    ways += [Way("late", "split", 1250, 0, estimated(120, "head", 60, 480), estimated(1, "tail"), ("late",))]
    found = plan(ways, BARE, PI, ORIN)
    assert found.winner == "mid" and not found.certain
    assert found.overlapping == ("late",) or set(found.overlapping) == {"late", "local"}
    assert not found.rivals
    assert "wins wherever they lie" in found.why


def test_not_certain_where_another_wins_at_an_end_and_it_is_named() -> None:
    ways = [offload(12_500, estimated(10, "whole")), local(estimated(150, "whole", 75, 600))]
    found = plan(ways, BARE, PI, ORIN)
    assert found.winner == "offload" and found.rivals == ("local",)
    assert "not certain, local is faster with the device as fast" in found.why


def test_limits_leave_what_is_within_them() -> None:
    assert three(max_latency_ms=190).winner == "mid"
    found = three(max_latency_ms=100)
    assert found.winner is None
    assert found.why == "no option takes at most 100 ms: mid, the fastest, takes 185 ms"
    ways = [cut("lossy", 100, 1, 1, drop=3.0), cut("unknown", 2000, 1, 1, drop=None), local(estimated(500, "whole"))]
    found = plan(ways, BARE, PI, ORIN, max_drop=1.0)
    assert found.winner == "unknown"
    assert any("lossy loses 3 points" in note for note in found.notes)
    assert any("unknown loses is not known" in note for note in found.notes)
    assert plan(ways[:1], BARE, PI, ORIN, max_drop=1.0).winner is None


def test_a_limit_that_may_be_passed_is_told() -> None:
    found = plan([local(estimated(90, "whole", 50, 200))], BARE, PI, ORIN, max_latency_ms=100)
    assert found.winner == "local"
    assert any("may take up to 200 ms" in note for note in found.notes)


@pytest.mark.parametrize(
    "limits", [{"max_latency_ms": 0}, {"max_latency_ms": math.nan}, {"max_drop": -1}, {"max_drop": math.nan}]
)
def test_a_limit_that_is_none_is_an_error(limits: dict[str, float]) -> None:
    with pytest.raises(ModelError, match="allowed"):
        three(**limits)


def test_energy_is_power_times_time_of_each_phase() -> None:
    """W x ms = mJ: 60 ms at 6.12 W, 100 ms of sending between 3.06 and 6.12 W, 25 ms at 3.06 W."""
    energy = three().find("mid").energy
    assert energy.value == pytest.approx(60 * 6.12 + 100 * (3.06 + 6.12) / 2 + 25 * 3.06)
    assert energy.unit == "mJ" and energy.provenance == "estimated" and energy.interval is not None
    assert energy.interval.low == pytest.approx(60 * 6.12 + 100 * 3.06 + 3.06 * (120 * 0.95 - 100 + 5))
    assert energy.interval.high == pytest.approx(60 * 6.12 + 100 * 6.12 + 3.06 * (120 * 1.05 - 100 + 5))
    assert "power-supplies.adoc" in energy.method
    assert three().find("local").energy.value == pytest.approx(200 * 6.12)


def test_a_power_of_sending_in_the_profile_is_used() -> None:
    facts = {name: Fact(value, "a meter") for name, value in (("power_idle_w", 1), ("power_load_w", 3), ("power_transmit_w", 2))}
    board = DeviceProfile("board", "raspberry-pi", "a board", facts=facts)
    found = plan([cut("mid", 12_500, 60, 5)], BARE, board, ORIN).find("mid").energy
    assert found.value == pytest.approx(60 * 3 + 100 * 2 + 25 * 1)
    assert "sending 2 W" in found.method


def test_energy_without_powers_says_what_is_missing() -> None:
    energy = plan([local(estimated(10, "whole"))], BARE, ORIN, PI).find("local").energy
    assert energy.provenance == "unavailable" and "no power_idle_w" in energy.method


def test_a_way_must_have_the_parts_of_its_kind() -> None:
    with pytest.raises(ValueError, match="no way to run a model"):
        Way("local", "local", 0, 0, None, None)
    with pytest.raises(ValueError, match="no way to run a model"):
        Way("offload", "offload", 1, 1, estimated(1, "head"), estimated(1, "whole"))


TIMES = st.floats(0, 1000)
BITS = st.one_of(st.just(0.0), st.floats(8, 1e8))
LINES = st.lists(st.tuples(TIMES, BITS, BITS), min_size=1, max_size=8)
LINKS = st.builds(
    Link, st.floats(1e4, 1e8), st.floats(1e4, 1e8), st.floats(0, 500), st.just(0.0), st.one_of(st.just(0.0), st.floats(1e-3, 0.3))
)  # fmt: skip


def made(numbers: Sequence[tuple[float, float, float]]) -> tuple[Line, ...]:
    return tuple(Line(str(index), *one) for index, one in enumerate(numbers))


@given(LINES, LINKS)
def test_the_envelope_is_the_best_of_all_at_every_rate(numbers: list[tuple[float, float, float]], link: Link) -> None:
    """Against brute force on a dense grid of rates: the option named there is as fast as the fastest."""
    lines = made(numbers)
    best, crossovers = envelope(lines, link)
    assert len(best) == len(crossovers) + 1
    edges = [one.rate_bits_per_s for one in crossovers]
    assert edges == sorted(edges)
    assert [one.below for one in crossovers] + [best[-1]] == list(best)
    assert [one.above for one in crossovers] == list(best[1:])
    for step in range(161):
        rate = 10 ** (2 + step / 16)
        place = sum(rate > edge for edge in edges)
        there = next(line for line in lines if line.name == best[place])
        fastest = min(line.ms(link.at(rate)) for line in lines)
        assert there.ms(link.at(rate)) <= fastest * (1 + 1e-6) + 1e-6


def test_times_next_to_nothing_have_no_rate_between_them() -> None:
    lines = made([(5e-324, 0.0, 0.0), (0.0, 0.0, 8.0)])
    best, crossovers = envelope(lines, Link(1e4, 1e4, 0.0, 0.0, 0.0))
    assert len(best) == len(crossovers) + 1


@given(LINES, LINKS)
def test_both_take_as_long_where_they_meet(numbers: list[tuple[float, float, float]], link: Link) -> None:
    lines = {line.name: line for line in made(numbers)}
    for one in envelope(tuple(lines.values()), link)[1]:
        if 1e-2 < one.rate_bits_per_s < 1e16:
            at = link.at(one.rate_bits_per_s)
            assert lines[one.below].ms(at) == pytest.approx(lines[one.above].ms(at), rel=1e-6, abs=1e-6)
        low, high = one.low_bits_per_s or 0.0, one.high_bits_per_s or math.inf
        assert low <= one.rate_bits_per_s <= high


PARTS = st.tuples(TIMES, st.floats(0.1, 1), st.floats(1, 5))
WAYS = st.lists(st.tuples(st.integers(0, 10**6), PARTS, PARTS), min_size=1, max_size=6)


def figure(part: tuple[float, float, float], segment: str) -> Figure:
    return estimated(part[0], segment, part[0] * part[1], part[0] * part[2])


@given(WAYS, LINKS)
def test_the_winner_is_the_fastest_and_rivals_win_in_a_corner(
    drawn: list[tuple[int, tuple[float, float, float], tuple[float, float, float]]], link: Link
) -> None:
    ways = [
        Way(f"w{i}", "split", size, 10, figure(head, "head"), figure(tail, "tail"), (f"w{i}",))
        for i, (size, head, tail) in enumerate(drawn)
    ]
    found = plan(ways, link, PI, ORIN)
    times = {option.name: option.total.value or 0.0 for option in found.options}
    assert found.winner is not None
    assert times[found.winner] == min(times.values())
    for option in found.options:
        ends = bounds(option.total)
        assert ends.low <= times[option.name] <= ends.high
    by_name = {line.name: line for line in found.lines}
    best = {min(found.lines, key=lambda line: line.corner(*corner).ms(link)).name for corner in CORNERS}
    assert set(found.rivals) <= best
    for line in found.lines:
        assert line.ms(link) == pytest.approx(times[line.name])
    if not found.rivals:
        for corner in CORNERS:
            own = by_name[found.winner].corner(*corner).ms(link)
            assert own <= min(line.corner(*corner).ms(link) for line in found.lines) * (1 + 1e-12)
    assert set(found.best) <= {option.name for option in found.options}


@given(WAYS, LINKS, st.floats(1, 100))
def test_a_faster_link_never_makes_the_best_slower(
    drawn: list[tuple[int, tuple[float, float, float], tuple[float, float, float]]], link: Link, factor: float
) -> None:
    ways = [
        Way(f"w{i}", "split", size, 10, figure(head, "head"), figure(tail, "tail"), (f"w{i}",))
        for i, (size, head, tail) in enumerate(drawn)
    ]
    slow, fast = (plan(ways, one, PI, ORIN) for one in (link, link.at(link.up_bits_per_s * factor)))
    for option in slow.options:
        assert (fast.find(option.name).total.value or 0.0) <= (option.total.value or 0.0) * (1 + 1e-9)
