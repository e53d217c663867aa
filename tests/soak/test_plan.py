"""A seed says everything, and no strike meets another of its target."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from .faults import FAULTS
from .plan import CALM_S, Rate, chance, schedule

RATES = {name: fault.rate for name, fault in FAULTS.items()}
seeds = st.integers(0, 2**32)
lengths_s = st.floats(0, 1000)


@given(seeds, lengths_s)
def test_the_same_seed_is_the_same_schedule(seed: int, seconds: float) -> None:
    assert schedule(seed, seconds, RATES) == schedule(seed, seconds, RATES)


def test_another_seed_is_another_schedule() -> None:
    assert schedule(1, 60, RATES) != schedule(2, 60, RATES)


@given(seeds, lengths_s)
def test_all_strikes_are_over_in_time(seed: int, seconds: float) -> None:
    for strike in schedule(seed, seconds, RATES):
        assert strike.at_s >= CALM_S
        assert strike.at_s + strike.lasts_s <= seconds


@given(seeds, lengths_s)
def test_one_target_is_struck_in_turn(seed: int, seconds: float) -> None:
    over_s: dict[str, float] = {}
    for strike in schedule(seed, seconds, RATES):
        target = RATES[strike.fault].target or strike.fault
        assert strike.at_s >= over_s.get(target, 0.0)
        over_s[target] = strike.at_s + strike.lasts_s


@given(seeds)
def test_another_fault_in_the_table_leaves_the_rest_where_they_were(seed: int) -> None:
    more = {**RATES, "new": Rate(3)}
    old = [strike for strike in schedule(seed, 120, more) if strike.fault != "new"]
    assert old == schedule(seed, 120, RATES)


def test_in_ten_minutes_there_is_each_fault() -> None:
    assert {strike.fault for strike in schedule(1, 600, RATES)} == set(FAULTS)


@given(seeds, st.text(), st.integers())
def test_the_chances_of_a_life_are_its_own(seed: int, lane: str, number: int) -> None:
    assert chance(seed, lane, number).random() == chance(seed, lane, number).random()
    assert chance(seed, lane, number).random() != chance(seed, lane, number + 1).random()
