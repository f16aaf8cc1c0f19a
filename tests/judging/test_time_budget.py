"""Time budgets without a model: durations, throughput, slices, and what is kept for the work that follows."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from modeling.judging.time_budget import TimeBudget, find_start
from modeling.settings.reading_arguments import parse_duration


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests move by hand; it starts at 1000 s."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(time, "monotonic", lambda: Clock.now)
    return Clock


def test_the_budget_counts_from_the_start_of_the_process_or_its_launcher():
    """A process that sleeps before it asks has used that time, and one of a launch what its launcher slept before."""
    ask = "from modeling.judging.time_budget import find_start; import time; print(time.monotonic() - find_start())"
    environment = {name: value for name, value in os.environ.items() if name != "ACCELERATE_MIXED_PRECISION"}
    start = time.monotonic()
    found = subprocess.check_output([sys.executable, "-c", f"import time; time.sleep(1); {ask}"], env=environment)
    assert 1 <= float(found) <= time.monotonic() - start + 0.1
    launcher = (
        f"import subprocess, sys, time; time.sleep(2); subprocess.run([sys.executable, '-c', {ask!r}], check=True)"
        "  # accelerate launch"
    )
    start = time.monotonic()
    found = subprocess.check_output(
        [sys.executable, "-c", launcher], env={**environment, "ACCELERATE_MIXED_PRECISION": "no"}
    )
    assert 2 <= float(found) <= time.monotonic() - start + 0.1
    assert find_start() < time.monotonic() - 0.1


def test_the_throughput_is_the_lower_of_the_mean_and_the_latest():
    budget = TimeBudget(0)
    budget.record(1000, 10)
    assert budget.estimate_seconds(500) == 5
    budget.record(100, 10)
    assert budget.estimate_seconds(500) == 50
    budget.record(1000, 1)
    assert budget.estimate_seconds(2100) == 21


def test_slices_end_in_time_and_grow_from_a_small_first_one(clock):
    """100 rows of 10 tokens at 1 token/s in 600 s: the first slice has 2% of the rows, later ones at most an eighth of
    the rest, and 90% of the time left is used each time until not one row fits."""
    slices = []

    def work(rows):
        slices.append(list(rows))
        clock.now += 10 * len(rows)

    announced = []
    done = TimeBudget(1600).run(work, list(range(100)), np.full(100, 10), lambda: announced.append(len(slices)))
    assert [row for rows in slices for row in rows] == list(range(done)) and announced == [1]
    assert len(slices[0]) == 2 and max(map(len, slices)) == len(slices[1]) == 13
    assert clock.now <= 1600 and 1600 - clock.now < 12


def test_the_first_slice_has_a_row_even_if_it_is_larger_than_a_slice(clock):
    assert TimeBudget(2000).run(lambda rows: None, [0], np.array([10])) == 1
    assert TimeBudget(2000).run(lambda rows: None, [], np.array([])) == 0


def test_a_share_keeps_the_throughput_and_leaves_the_whole_budget_as_it_was(clock):
    budget = TimeBudget(1600, parts=3)
    budget.record(100, 10)
    clock.now = 1300
    part = budget.share(budget.parts)
    assert part.deadline == 1400 and part.parts == 1 and part.estimate_seconds(50) == 5
    part.record(100, 100)
    assert budget.deadline == 1600 and budget.estimate_seconds(50) == 5


def test_a_budget_is_over_at_its_deadline(clock):
    assert not TimeBudget(1000.5).is_over() and TimeBudget(1000).is_over()


@pytest.mark.parametrize(("duration", "deadline"), [("20s", 1019), ("100s", 1099), ("1h", 4564)])
def test_a_budget_starts_with_the_command_and_keeps_time_for_writing(duration, deadline, clock):
    """1% of it, but at least a second: 1 s of 20 and of 100, and 36 s of 3,600."""
    clock.now += 10  # loading
    assert TimeBudget.from_duration(duration, 1000).deadline == deadline


def test_a_budget_that_loading_has_used_up_is_refused(clock):
    clock.now += 59.5
    with pytest.raises(
        ValueError, match=r"--time_budget 1m: expected more time .* \(59.5 s since .*\) .* found 60.0 s"
    ):
        TimeBudget.from_duration("1m", 1000)


@pytest.mark.parametrize(("text", "seconds"), [("4.75h", 17100), ("30m", 1800), ("90s", 90), ("12", 12)])
def test_durations(text, seconds):
    assert parse_duration("--time_budget", text) == seconds


@pytest.mark.parametrize("text", ["0s", "-1h", "soon", "4.75 hours", "1h30m", ""])
def test_a_malformed_duration_is_refused(text):
    with pytest.raises(ValueError, match=r"--time_budget .*: expected a time above 0, such as 4\.75h"):
        parse_duration("--time_budget", text)
