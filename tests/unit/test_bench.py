"""The comparison's arithmetic, and that what the README shows is what was measured."""

from __future__ import annotations

import json
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import report, rows, usage
from bench.rows import AT_LEAST, AT_MOST, OURS, THEIRS, Goal, Row

ROLLUP = "00400000-7fff rw-p 0 00:00 0 [rollup]\nRss:  812 kB\nPss:  64 kB\nPss_Dirty: 60 kB\n"
STATUS = "Name:\tx\nvoluntary_ctxt_switches:\t17\nnonvoluntary_ctxt_switches:\t3\n"
positive = st.floats(0.001, 1e9)


def test_what_proc_says_is_read() -> None:
    assert usage.parse_pss(ROLLUP) == 64 * 1024
    assert usage.parse_pss("") == 0
    assert usage.parse_switches(STATUS) == 17
    with pytest.raises(ValueError, match="voluntary"):
        usage.parse_switches("Name:\tx\n")


def test_a_program_s_name_may_look_like_its_fields() -> None:
    line = "7 (a) 1 2 (b) S 1 7 7 0 -1 4194560 900 0 0 0 200 50 0 0 20 0 1 0 5 6 7"
    assert usage.parse_cpu_s(line) == 250 / usage.TICKS


@pytest.mark.parametrize(
    ("goal", "ours", "ratio", "expected"),
    [
        (Goal(AT_MOST, 0.5), 1.0, 0.5, True),
        (Goal(AT_MOST, 0.5), 1.0, 0.51, False),
        (Goal(AT_LEAST, 5.0), 1.0, 5.0, True),
        (Goal(AT_LEAST, 5.0), 1.0, 4.9, False),
        (Goal(AT_MOST, 1.5, below=10.0), 9.0, 1.2, True),
        (Goal(AT_MOST, 1.5, below=10.0), 11.0, 1.2, False),
        (Goal(below=0.0), 0.0, None, True),
        (Goal(below=0.0), 0.1, None, False),
        (Goal(AT_MOST, 0.5), 1.0, None, False),
        (Goal(), 1.0, 7.0, None),
    ],
)
def test_a_goal_is_reached(
    goal: Goal, ours: float, ratio: float | None, expected: bool | None
) -> None:
    assert goal.reached(ours, ratio) is expected


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=30))
def test_the_ratio_is_that_of_each_repetition(pairs: list[tuple[float, float]]) -> None:
    samples = {OURS: [one for one, _ in pairs], THEIRS: [other for _, other in pairs]}
    found = rows.summarised(Row("x", "x", "ms"), samples)
    ratios = [one / other for one, other in pairs]
    assert found["ours"] == statistics.median(samples[OURS])
    assert found["ratio"] == statistics.median(ratios)
    assert found["spread"] == [min(ratios), max(ratios)]


def test_a_peer_at_zero_has_no_ratio() -> None:
    found = rows.summarised(rows.row_of("wakeups"), {OURS: [0.0, 0.0], THEIRS: [0.0, 0.0]})
    assert (found["ratio"], found["spread"], found["reached"]) == (None, None, True)


@pytest.mark.parametrize("theirs", [[], [1.0, 2.0]])
def test_each_side_has_as_many_samples(theirs: list[float]) -> None:
    with pytest.raises(ValueError, match="start: 1 samples of ours"):
        rows.summarised(rows.row_of("start"), {OURS: [1.0], THEIRS: theirs})


def test_what_a_row_says() -> None:
    found = rows.summarised(rows.row_of("exit"), {OURS: [4.0], THEIRS: [2.0]})
    assert rows.cells(found)[1:] == (
        "4.00 ms", "2.00 ms", "2.000", "2.00–2.00", "≤ 1.5×, ≤ 10 ms", "no",
    )  # fmt: skip


def test_the_table_takes_the_place_of_the_one_before() -> None:
    text = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    made = report.inserted(text, "new")
    assert made == f"before\n{report.BEGIN}\n\nnew\n\n{report.END}\nafter\n"
    assert report.inserted(made, "new") == made
    with pytest.raises(ValueError, match="no place"):
        report.inserted("before", "new")


def test_the_readme_shows_what_was_measured() -> None:
    results = json.loads(report.RESULTS.read_text())
    assert [result["key"] for result in results["rows"]] == [row.key for row in rows.ROWS]
    text = report.README.read_text()
    assert report.inserted(text, report.markdown(results)) == text
    for result in results["rows"]:
        row = rows.row_of(result["key"])
        assert rows.summarised(row, result["samples"]) == result
        assert min(len(samples) for samples in result["samples"].values()) >= 5
