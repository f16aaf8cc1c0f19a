"""More passes for uncertain battles, cascades, time budgets: whatever is left out, every battle gets a verdict."""

import time
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from modeling.data.battles import swap_responses
from modeling.judging import schedule, time_budget
from modeling.judging.cascade import Cascade
from modeling.judging.judge import Judge
from modeling.judging.schedule import PassSchedule
from modeling.judging.time_budget import TimeBudget
from modeling.network.frozen import count_shared_layers
from tests.helpers import SAMPLES, call, fail

TEST = SAMPLES / "test.jsonl"
FROZEN = 1  # layers without adapters
TOLERANCE = 1e-5  # float32, as in test_predictor.py


@pytest.fixture(scope="module")
def full(judge, sample_battles):
    return judge.predict(sample_battles, readings="both")


# --- second passes ----------------------------------------------------------------------------------------------------


def test_the_most_uncertain_battles_get_all_passes_and_the_others_one(judge, sample_battles, full):
    """The verdict is the mean over the passes that were run, and each pass has the full judge's number."""
    for share, again in ((0.0, 0), (0.4, 29), (1.0, 72)):
        found = judge.predict(sample_battles, readings="both", second_reading=share)
        columns = [name for name in found if name.startswith("p_a_")]
        assert list(found) == list(full) and list(found["id"]) == list(full["id"])
        made = found[columns].notna()
        assert sorted(made.sum(axis=1)) == [1] * (72 - again) + [4] * again
        assert np.nanmax(np.abs(found[columns] - full[columns]).to_numpy()) <= TOLERANCE
        assert np.abs(found["p_a"] - found[columns].mean(axis=1)).max() <= TOLERANCE
        certainty = (judge.predict(sample_battles, readings="both", second_reading=0.0)["p_a"] - 0.5).abs()
        if 0 < share < 1:
            assert certainty[made.all(axis=1)].max() <= certainty[~made.all(axis=1)].min()


def test_equal_answers_do_not_take_the_second_passes_of_others(judge, sample_battles):
    """They have even odds, so they are the most uncertain, but nothing is left to read for them."""
    rows = sample_battles.to_list()
    for row in rows[:10]:
        row["response_b"] = row["response_a"]
    found = Judge(judge.members[:1]).predict(rows, second_reading=0.1)
    complete = found[[name for name in found if name.startswith("p_a_")]].notna().all(axis=1)
    assert complete[10:].sum() == round(0.1 * len(rows)) and complete[:10].all()
    assert (found["p_a"][:10] == 0.5).all()


def test_the_swap_law_holds_at_every_share(judge, sample_battles):
    """Law 2 with --second_reading: swapping the answers changes neither the first pass nor who gets a second."""
    for share in (0.0, 0.3, 0.7):
        forward = judge.predict(sample_battles, readings="both", second_reading=share)
        backward = judge.predict(swap_responses(sample_battles), readings="both", second_reading=share)
        assert np.abs(forward["p_a"] - (1 - backward["p_a"])).max() <= TOLERANCE


def test_with_one_order_per_member_the_second_member_reads_the_uncertain_battles(judge, sample_battles):
    """The first member reads all of them."""
    found = judge.predict(sample_battles, readings="own", second_reading=0.25)
    assert found["p_a_ab_ab"].notna().all() and found["p_a_ba_ba"].notna().sum() == 18


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_from_0_to_1(judge, share):
    with pytest.raises(ValueError, match=r"--second_reading .*: expected a share of the battles, from 0 to 1"):
        judge.predict([], second_reading=share)


# --- members that share layers -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def upper_members(bases, make_member, tmp_path_factory) -> Judge:
    """Two members on one 8-bit base whose adapters leave the lowest layer alone."""
    folder = tmp_path_factory.mktemp("upper")
    for seed, orientation in enumerate(("ab", "ba")):
        make_member(folder / orientation, bases["8bit"], orientation, seed=seed, freeze_layers=FROZEN)
    return Judge.from_pretrained([folder / "ab", folder / "ba"], dtype="float32", merge="always")


def test_members_share_the_layers_that_their_adapters_leave_alone(upper_members, sample_battles, monkeypatch):
    """Each pack goes through those once, their weights are in memory once, and every number stays the same."""
    networks = [member.model for member in upper_members.members]
    assert count_shared_layers(networks) == FROZEN
    ran: Counter[tuple[int, int]] = Counter()
    for number, network in enumerate(networks):
        for place, layer in enumerate(network.list_layers()):
            layer.mlp.register_forward_hook(lambda *_, key=(number, place): ran.update([key]))
    battles, height = sample_battles.select(range(20)), len(networks[0].list_layers())
    together = upper_members.predict(battles, tokens_per_batch=1000)
    packs = ran[0, 0]
    assert packs > 3 and [ran[0, place] for place in range(height)] == [packs] * height
    assert [ran[1, place] for place in range(height)] == [0] * FROZEN + [packs] * (height - FROZEN)
    monkeypatch.setattr(schedule, "count_shared_layers", lambda networks: 0)
    apart = upper_members.predict(battles, tokens_per_batch=1000)
    assert ran[1, 0] == packs  # now each member computes all of its layers
    pd.testing.assert_frame_equal(together, apart, rtol=0, atol=1e-6)


def test_members_that_read_other_orders_do_not_run_together(upper_members, sample_battles, monkeypatch):
    """With --readings own they have other passes to make."""
    compute, sizes = schedule.predict_together, []

    def note(models, *given, **options):
        """Notes how many models run together."""
        sizes.append(len(models))
        return compute(models, *given, **options)

    monkeypatch.setattr(schedule, "predict_together", note)
    for readings, expected in (("own", [1, 1]), ("both", [2])):
        sizes.clear()
        upper_members.predict(sample_battles.select(range(6)), readings=readings)
        assert sizes == expected


# --- time budgets -----------------------------------------------------------------------------------------------------


class SlowingClock:
    """Replaces the clock and the model: a token takes a fixed time, and three times as long after a moment."""

    def __init__(self, monkeypatch, seconds_per_token: float, slow_after: float = float("inf")):
        self.now, self.seconds_per_token, self.slow_after = 1000.0, seconds_per_token, 1000.0 + slow_after
        compute = schedule.predict_together

        def predict(models, encoded, orders, *, deadline=None, **options):
            found = compute(models, encoded, orders, **options)
            for row, battle in enumerate(encoded):
                if deadline is not None and self.now >= deadline:
                    found[:, row] = np.nan
                else:
                    slow = 3 if self.now >= self.slow_after else 1
                    self.now += battle["length"] * len(models) * seconds_per_token * slow
            return found

        monkeypatch.setattr(schedule, "predict_together", predict)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def count_passes(verdicts: pd.DataFrame) -> np.ndarray:
    return verdicts.filter(like="p_a_").notna().sum(axis=1).to_numpy()


@pytest.mark.parametrize("budget", [1.05, 1.6, 4.0])
def test_as_many_passes_are_run_as_time_allows(judge, sample_battles, full, monkeypatch, budget, caplog):
    """The unit is the time of one pass over all battles: all first passes, then as many others as fit."""
    caplog.set_level("INFO")
    unit = full["tokens"].sum() * 0.01
    clock = SlowingClock(monkeypatch, 0.01)
    found = judge.predict(sample_battles, readings="both", time_budget=TimeBudget(1000 + budget * unit))
    made = count_passes(found)
    again = (made == 4).mean()
    assert (made >= 1).all() and clock.now <= 1000 + budget * unit + 128 * 0.01
    expected = (budget - 1) / 3  # three more passes per battle
    assert 0.6 * expected - 0.1 <= again <= expected + 0.02
    assert "which leaves time for all passes on" in caplog.text and "battles have all 4 passes" in caplog.text


def test_a_machine_that_slows_down_half_way_still_gives_every_verdict_in_time(judge, sample_battles, full, monkeypatch):
    """To a third of its speed when half of the budget is gone: fewer second passes, but no verdict is missing."""
    unit = full["tokens"].sum() * 0.01
    steady = judge.predict(sample_battles, readings="both", second_reading=1.0)
    with monkeypatch.context() as patch:
        clock = SlowingClock(patch, 0.01, slow_after=1.25 * unit)
        found = judge.predict(sample_battles, readings="both", time_budget=TimeBudget(1000 + 2.5 * unit))
    made = count_passes(found)
    assert (made >= 1).all() and clock.now <= 1000 + 2.5 * unit + 3 * 128 * 0.01
    assert 0.05 < (made == 4).mean() < 0.5
    complete = made == 4
    assert np.abs(found["p_a"] - steady["p_a"])[complete].max() <= TOLERANCE


def test_battles_that_could_not_be_read_get_even_odds_and_are_counted(judge, sample_battles, full, monkeypatch, caplog):
    unit = full["tokens"].sum() * 0.01
    SlowingClock(monkeypatch, 0.01)
    found = judge.predict(sample_battles, readings="own", time_budget=TimeBudget(1000 + 0.5 * unit))
    unread = count_passes(found) == 0
    assert 0.4 < unread.mean() < 0.7 and (found["p_a"][unread] == 0.5).all()
    assert found["winner"].isin(["model_a", "model_b"]).all()
    assert f"{unread.sum()} of 72 battles were not read in time and get even odds" in caplog.text


def test_a_cascade_shares_its_time(members, sample_battles, full, monkeypatch):
    """What the first passes leave is divided evenly between second passes and the later judge."""
    judges = [
        Judge.from_pretrained(list(members.values()), dtype="float32"),
        Judge.from_pretrained(members["ba"], dtype="float32"),
    ]
    unit = full["tokens"].sum() * 0.01
    clock = SlowingClock(monkeypatch, 0.01)
    found = Cascade(judges, [0.5]).predict(sample_battles, readings="own", time_budget=TimeBudget(1000 + 1.6 * unit))
    assert clock.now <= 1000 + 1.6 * unit + 128 * 0.01
    made = found.filter(like="p_a_").notna().sum()
    assert made["p_a_ab_ab"] == 72 and 10 < made["p_a_ba_ba"] < 30 and 10 < made["p_a_ba-2_ba"] <= 36


def test_first_passes_show_the_alphabetically_first_answer_first(judge, sample_battles):
    rows = sample_battles.select(range(12)).to_list()
    first = PassSchedule(judge.plan_passes("both"), rows).choose_first_passes()
    assert (first.sum(axis=0) == 1).all() and not first[2:].any()
    assert first[0].tolist() == [row["response_a"] <= row["response_b"] for row in rows]


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_with_every_option_on(members, tmp_path, monkeypatch, caplog):
    """--second_reading, a cascade and a time budget: both files complete, rows in the input's order."""
    caplog.set_level("INFO")
    output = tmp_path / "out"
    flags = ["--battles", TEST, "--judge", members["ab"], "--output_dir", output, "--readings", "both"]
    flags += ["--second_reading", 0.4, "--cascade", members["ba"], "--cascade_shares", 0.2]
    call("predict", *flags, monkeypatch=monkeypatch)
    found = pd.read_parquet(output / "predictions.parquet")
    made = found.filter(like="p_a_").notna()
    assert made.filter(like="p_a_ab_").sum(axis=1).value_counts().to_dict() == {1: 43, 2: 29}
    assert made.filter(like="p_a_ba_").any(axis=1).sum() == 14 and len(found) == 72
    monkeypatch.setattr(time_budget, "find_start", time.monotonic)  # this process started with the first of all tests
    call("predict", *flags, "--time_budget", "10m", monkeypatch=monkeypatch)
    again = pd.read_parquet(output / "predictions.parquet")
    assert list(again["id"]) == list(found["id"]) and np.abs(again["p_a"] - found["p_a"]).max() <= 1e-4
    assert "Time budget: " in caplog.text and len(pd.read_csv(output / "submission.csv")) == 72


def test_a_budget_that_loading_has_used_up_is_refused_before_any_pass(members, tmp_path, monkeypatch, caplog):
    flags = ["--battles", TEST, "--judge", members["ab"], "--output_dir", tmp_path / "out", "--time_budget", "1s"]
    said = fail("predict", *flags, monkeypatch=monkeypatch, caplog=caplog)
    assert said.startswith("error: --time_budget 1s: expected more time than it takes to load")
    said = fail("predict", *flags, "--folds", "true", monkeypatch=monkeypatch, caplog=caplog)
    assert "--folds: expected without --cascade and --time_budget" in said
    assert not (tmp_path / "out").exists()
