"""Links: what their text means, what an exchange takes by hand calculation, and that worse links are never faster."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk_converters.errors import EdgeError, LinkError
from edgesdk_targets.link import (
    INITIAL_WINDOW_PACKETS,
    PACKET_BYTES,
    PACKET_OVERHEAD_BYTES,
    Connection,
    Link,
    cost,
    exchange,
    parse,
    presets,
    rate_text,
    waits_ms,
)

BARE = Link(1e6, 1e6, 20.0, packet_overhead_bytes=0, request_overhead_bytes=0, response_overhead_bytes=0)
"""1 Mbit/s without any headers."""
RATES = st.floats(1e3, 1e9)
SIZES = st.integers(0, 2_000_000)
LINKS = st.builds(
    Link, RATES, RATES, st.floats(0, 2000), st.floats(0, 100), st.one_of(st.just(0.0), st.floats(1e-4, 0.3))
)  # fmt: skip


def ms(link: Link, up: int, down: int, connection: Connection = "warm") -> float:
    found = exchange(link, up, down, connection).value
    assert found is not None
    return found


def test_bytes_over_the_rate_and_one_round_trip() -> None:
    assert ms(BARE, 1000, 500) == pytest.approx(20 + 8 + 4)
    assert ms(replace(BARE, down_bits_per_s=4e6), 1000, 500) == pytest.approx(20 + 8 + 1)


def test_headers_count_for_each_packet() -> None:
    link = parse("1mbit,20ms")
    up, down = 2000 + link.request_overhead_bytes, 100 + link.response_overhead_bytes
    wire = up + 2 * PACKET_OVERHEAD_BYTES + down + PACKET_OVERHEAD_BYTES
    assert PACKET_BYTES < up <= 2 * PACKET_BYTES
    assert ms(link, 2000, 100) == pytest.approx(20 + 8e3 * wire / 1e6)


def test_without_jitter_and_loss_the_interval_is_the_models_error() -> None:
    found = exchange(BARE, 1000, 500).interval
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(32 * 0.95), pytest.approx(32 * 1.05))


def test_jitter_widens_the_interval_on_both_sides() -> None:
    found = exchange(replace(BARE, jitter_ms=4.0), 1000, 500)
    assert found.value == pytest.approx(32) and found.interval is not None
    assert found.interval.low == pytest.approx((32 - 1.645 * 4) * 0.95)
    assert found.interval.high == pytest.approx((32 + 1.645 * 4) * 1.05)


def test_a_lost_packet_waits_for_the_timeout() -> None:
    """One packet each way: q = p, its timeout of 200 ms doubles; bits are sent 1 / (1 - p) times."""
    p, link = 0.1, replace(BARE, loss=0.1)
    assert ms(link, 1000, 500) == pytest.approx(20 + 12 / (1 - p) + 2 * p / (1 - 2 * p) * 200)
    found = exchange(link, 1000, 500).interval
    assert found is not None and found.high == pytest.approx((20 + 12 / (1 - p) + 2 * 200) * 1.05)


def test_long_messages_have_losses_that_are_repaired_in_a_round_trip_and_a_ceiling() -> None:
    p, link = 0.01, replace(BARE, up_bits_per_s=1e9, down_bits_per_s=1e9, loss=0.01)
    ceiling = 8 * PACKET_BYTES / 0.020 * math.sqrt(1.5) / 0.1
    assert link.ceiling_bits_per_s == pytest.approx(ceiling)
    packets = 100
    body, tail, one = 1 - 0.99**97, 1 - 0.99**3, p
    fixed = 20 + body * 20 + (tail + one) / (1 - 2 * p) * 200
    assert ms(link, packets * PACKET_BYTES, 1) == pytest.approx(fixed + 8e3 * (packets * PACKET_BYTES + 1) / (1 - p) / ceiling)
    assert ms(replace(link, up_bits_per_s=1e12, down_bits_per_s=1e12), 10_000, 1) == pytest.approx(ms(link, 10_000, 1))


def test_a_cold_connection_shakes_hands_and_waits_for_its_window() -> None:
    """25 packets at 100 Mbit/s and 20 ms: 10 go out, then 10 + S - 10 S of waiting, then the other 15 of 20 in one go."""
    link = replace(BARE, up_bits_per_s=1e8, down_bits_per_s=1e8)
    packet_ms = 8e3 * PACKET_BYTES / 1e8
    wait = 20 + packet_ms - INITIAL_WINDOW_PACKETS * packet_ms
    assert waits_ms(link, 25 * PACKET_BYTES, 10, "idle") == pytest.approx(wait)
    assert ms(link, 25 * PACKET_BYTES, 10, "cold") == pytest.approx(ms(link, 25 * PACKET_BYTES, 10) + 20 + wait)
    assert waits_ms(link, 10 * PACKET_BYTES, 10, "idle") == 0
    assert waits_ms(BARE, 25 * PACKET_BYTES, 10, "idle") == 0, "a slow link is never empty"


@pytest.mark.parametrize(
    ("text", "up", "down", "rtt", "jitter", "loss"),
    [
        ("10mbit,20ms", 1e7, 1e7, 20, 0, 0),
        ("250kbit,20ms,loss=1%,jitter=5ms", 2.5e5, 2.5e5, 20, 5, 0.01),
        (" 1.5Mbit/s , 2s ", 1.5e6, 1.5e6, 2000, 0, 0),
        ("5mbit/20mbit,30ms", 5e6, 2e7, 30, 0, 0),
        ("up=5mbit,down=20mbit,rtt=500us", 5e6, 2e7, 0.5, 0, 0),
        ("rtt=1ms,rate=1gbit", 1e9, 1e9, 1, 0, 0),
        ("1e6bit,0ms", 1e6, 1e6, 0, 0, 0),
    ],
)
def test_text_says_a_link(text: str, up: float, down: float, rtt: float, jitter: float, loss: float) -> None:
    link = parse(text)
    assert (link.up_bits_per_s, link.down_bits_per_s, link.rtt_ms, link.jitter_ms) == (up, down, rtt, jitter)
    assert link.loss == pytest.approx(loss)
    assert link.source == "as given"


def test_a_preset_can_be_changed_and_says_so() -> None:
    assert parse("wifi") == presets()["wifi"]
    changed = parse("wifi,rtt=3ms,loss=2%")
    assert (changed.rtt_ms, changed.loss, changed.up_bits_per_s) == (3, 0.02, presets()["wifi"].up_bits_per_s)
    assert changed.source.startswith("rtt, loss as given, else: ")


@pytest.mark.parametrize("name", ["ethernet", "wifi", "lte", "nb-iot", "lora"])
def test_every_preset_says_where_it_comes_from(name: str) -> None:
    link = presets()[name]
    assert link.name == name
    assert "assumption" in link.source or name == "lora"
    assert exchange(link, 1000, 10).method.endswith(link.source)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is no rate"),
        ("20ms", "does not say its rate"),
        ("10mbit", "does not say its round trip"),
        ("up=1mbit,20ms", "does not say down"),
        ("10mbit,20ms,20ms", "rtt is given twice"),
        ("10mbit,up=1mbit,20ms", "up is given twice"),
        ("10mbit,20", "'20' is no rate"),
        ("10MB/s,20ms", "is no rate"),
        ("-1mbit,20ms", "is no rate"),
        ("0mbit,20ms", "rate up is 0 bit/s"),
        ("1mbit/2mbit/3mbit,20ms", "is no rate"),
        ("99999999999gbit,1ms", "rate up is 1e+20"),
        ("10mbit,20ms,loss=1", "'loss=1' is no loss"),
        ("10mbit,20ms,loss=31%", "loses 31%"),
        ("10mbit,20ms,delay=3ms", "'delay' is none of"),
        ("10mbit,20ms,jitter=5", "'jitter=5' is no jitter"),
        ("10mbit,99999999s", "round trip is 1e+11 ms"),
        ("5g", "'5g' is no rate"),
        ("bluetooth", "'bluetooth' is none of ethernet, wifi"),
        ("10mbit,20ms,", "'' is no rate"),
        ("10mbit,20ms,loss=nan%", "is no loss"),
        ("1e400mbit,20ms", "rate up is inf"),
    ],
)
def test_other_text_is_one_error_with_a_hint(text: str, says: str) -> None:
    with pytest.raises(LinkError) as error:
        parse(text)
    assert says in error.value.message
    assert error.value.hint


@given(st.text(max_size=30))
def test_any_text_is_a_link_or_one_error(text: str) -> None:
    try:
        assert parse(text).up_bits_per_s > 0
    except EdgeError as error:
        assert error.message


def test_lora_is_for_planning_only_and_keeps_its_duty_cycle() -> None:
    link = parse("lora")
    with pytest.raises(LinkError, match="planning only"):
        link.for_session()
    assert parse("wifi").for_session() == parse("wifi")
    one = 8e3 * (222 + 13) / 5470
    assert ms(link, 222, 0) == pytest.approx(1000 + one)
    assert ms(link, 444, 0) == pytest.approx(1000 + 2 * one + 99 * one), "silent for 99 times the first before the second"


@given(LINKS, RATES, SIZES, SIZES)
def test_a_faster_link_is_never_slower(link: Link, rate: float, up: int, down: int) -> None:
    slow, fast = sorted((link.up_bits_per_s, rate))
    for connection in ("warm", "idle", "cold"):
        assert ms(link.at(fast), up, down, connection) <= ms(link.at(slow), up, down, connection) * (1 + 1e-9)


@given(LINKS, SIZES, SIZES, st.integers(0, 100_000), st.floats(0, 500), st.floats(0, 0.1))
def test_more_bytes_delay_or_loss_never_make_it_faster(
    link: Link, up: int, down: int, more: int, later: float, lost: float
) -> None:
    before = ms(link, up, down)
    assert ms(link, up + more, down) >= before * (1 - 1e-9)
    assert ms(link, up, down + more) >= before * (1 - 1e-9)
    assert ms(replace(link, rtt_ms=link.rtt_ms + later), up, down) >= before * (1 - 1e-9)
    assert ms(replace(link, loss=min(0.3, link.loss + lost)), up, down) >= before * (1 - 1e-9)
    assert ms(link, up, down, "cold") >= ms(link, up, down, "idle") >= before


@given(LINKS, SIZES, SIZES)
def test_the_time_lies_in_its_interval_and_is_what_its_parts_say(link: Link, up: int, down: int) -> None:
    figure, parts = exchange(link, up, down), cost(link, up, down)
    assert figure.provenance == "estimated" and figure.interval is not None and figure.value is not None
    assert figure.interval.low <= figure.value <= figure.interval.high
    ceiling = link.ceiling_bits_per_s
    by_hand = 1e3 * parts.up_bits / min(link.up_bits_per_s, ceiling) + 1e3 * parts.down_bits / min(link.down_bits_per_s, ceiling)
    assert figure.value == pytest.approx(parts.fixed_ms + by_hand)


def test_rates_in_short() -> None:
    assert [rate_text(rate) for rate in (5470, 62.5e3, 999_900, 1e6, 18.88e6, 1e9, 12)] == [
        "5.47 kbit/s", "62.5 kbit/s", "1 Mbit/s", "1 Mbit/s", "18.9 Mbit/s", "1 Gbit/s", "12 bit/s",
    ]  # fmt: skip
