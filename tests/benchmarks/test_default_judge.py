"""The default judge: its published tables are those that were measured with it, and its training battles' order."""

import json
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset

from benchmarks import REPOSITORY
from benchmarks.default_judge import battles, curve, results, settings
from modeling.data.battles import DEMO_FOLDER, TEXTS, load_battles
from modeling.data.counterfactuals import number_units
from modeling.judging.member import read_member
from modeling.runtime.paths import DEFAULT_MEMBER
from tests.benchmarks import describe_default_judge
from tests.helpers import SAMPLES

PAGE = (REPOSITORY / "docs" / "results.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def measured() -> dict:
    return json.loads(results.RESULTS.read_text(encoding="utf-8"))


def test_the_tables_are_those_that_were_measured_with_this_judge(measured):
    assert measured["members"] == describe_default_judge()
    for parts in measured["parts"].values():
        shown = results.select_parts(parts)
        assert results.format_parts(shown) in PAGE
        assert results.format_metrics(shown) in PAGE


def test_the_table_of_what_training_brought_is_the_recorded_one_and_ends_with_this_judge(measured):
    rows = json.loads(curve.RESULTS.read_text(encoding="utf-8"))
    assert curve.format_curve(rows) in PAGE
    for part, shown in curve.PARTS.items():
        for name, title in shown.items():
            for key, value in measured["parts"][part][name]["accuracy"].items():
                assert rows[-1][title][key] == pytest.approx(value), (name, key)


def test_the_table_of_settings_is_made_of_the_recorded_losses():
    assert settings.format_settings(json.loads(settings.RESULTS.read_text(encoding="utf-8"))) in PAGE


def test_a_battle_that_is_read_in_several_rounds_teaches_tf_idf_once(votes):
    repeated = votes.select([2, 0, 1, 0, 2, 3])
    assert results.drop_repeats(repeated)["id"][:] == votes.select([2, 0, 1, 3])["id"][:]


def test_the_table_of_rounds_is_the_recorded_one():
    record = json.loads(settings.ROUNDS.read_text(encoding="utf-8"))
    table = settings.format_rounds(record["runs"])
    assert table in PAGE
    held_out = [run["held_out"] for run in record["runs"].values() if "held_out" in run]
    assert {each["votes"]["count"] for each in held_out} == {547}
    assert {each["demo"]["count"] for each in held_out} == {252}


def test_losses_are_averaged_over_whole_parts_of_a_run():
    log = "".join(f"{{'loss': '{value}', 'grad_norm': '1'}} 5%|...\r" for value in range(30))
    losses = settings.read_losses(log)
    assert losses == list(range(30))
    assert settings.average_part(losses, 1, 120) == 2.5 and settings.average_part(losses, 141, 300) == 10.5
    assert settings.average_part(losses, 561, 700) is None


@pytest.fixture(scope="module")
def votes() -> Dataset:
    """Battles with a verdict each, by people or by a model."""
    votes = load_battles(SAMPLES / "test.jsonl")
    return votes.add_column("verdict", [["human", "llm"][row % 2] for row in range(len(votes))])


def test_training_begins_with_easy_pairs_then_hard_ones_then_all_mixed(votes):
    own = load_battles(SAMPLES / "train.jsonl").select(range(60))
    sizes = {"easy": 10, "hard": 20, "mixed": 5, "by_models": 7, "rounds": 1}
    found = battles.build_curriculum(own, votes, sizes, longest=900, seed=0)
    assert len(found) == 2 * (10 + 20 + 5) + 60 + 36 + 7 and len(set(found["id"])) == len(found)
    first, mixed = found.select(range(60)), found.select(range(60, len(found)))
    units = number_units(first)
    assert all(units[place] == units[place + 1] for place in range(0, 60, 2))
    known = set(own["prompt"]) | set(votes["prompt"])
    assert set(found["prompt"]) <= known
    own_places = [place for place, prompt in enumerate(mixed["prompt"]) if prompt in set(own["prompt"])]
    assert min(own_places) < 10 and max(own_places) > len(mixed) - 10
    assert battles.build_curriculum(own, votes, sizes, longest=900, seed=0).to_list() == found.to_list()


def test_each_round_of_the_mixture_has_the_same_battles_and_hard_pairs_of_its_own(votes):
    own = load_battles(SAMPLES / "train.jsonl").select(range(60))
    sizes = {"easy": 10, "hard": 20, "mixed": 5, "by_models": 7, "rounds": 2}
    found = battles.build_curriculum(own, votes, sizes, longest=900, seed=0)
    assert len(found) == 60 + 2 * (10 + 60 + 36 + 7) and len(set(found["id"])) == len(found)
    texts = [(*(row[name] for name in TEXTS), *row["label"]) for row in found]
    first, second = Counter(texts[60 : 60 + 113]), Counter(texts[60 + 113 :])
    assert (first & second).total() == 103 and (first - second).total() == (second - first).total() == 10
    assert texts[60 : 60 + 113] != [text for text in texts[60 + 113 :] if text in first]  # in another order


def test_votes_to_calibrate_on_share_no_prompt_with_those_to_train_on(votes):
    train, held_out = battles.hold_out(votes, 12, seed=0)
    assert len(train) + len(held_out) == len(votes)
    assert not set(train["prompt"]) & set(held_out["prompt"])
    assert np.unique(held_out["verdict"], return_counts=True)[1].tolist() == [12, 12]


def test_the_demo_trains_on_battles_that_the_default_judge_has_not_seen():
    own = load_battles(DEMO_FOLDER / "train.jsonl")
    _, held_out = battles.hold_out_units(own, 252, seed=0)  # as in the command of docs/results.md
    lines = (DEMO_FOLDER / "train.jsonl").read_text(encoding="utf-8").splitlines()
    unseen = (DEMO_FOLDER / "unseen.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in unseen] == held_out["id"][:]
    assert set(unseen) <= set(lines) and len(unseen) == 252
    assert "--validate 252" in PAGE
    recipe = (REPOSITORY / "configs" / "demo" / "train.yaml").read_text(encoding="utf-8")
    assert "train_file: package:modeling/data/demo/unseen.jsonl\n" in recipe
    read = read_member(DEFAULT_MEMBER).training["data"][0]["battles"]
    assert read == 2 * (1000 + 1500 + 3 * 1000) + 3 * (len(own) - 252 + 1425 + 1712)


def test_a_share_of_the_battles_is_part_of_a_larger_share_and_pairs_stay_together():
    own = load_battles(DEMO_FOLDER / "train.jsonl")
    rest, held_out = battles.hold_out_units(own, 41, seed=0)
    assert len(held_out) in (41, 42) and len(rest) + len(held_out) == len(own)
    prompts = lambda part: set(part["id"][:])  # noqa: E731
    pairs = lambda part: {pair for pair in part["counterfactual_pair"][:] if pair}  # noqa: E731
    assert pairs(held_out) and not pairs(held_out) & pairs(rest)
    quarter, half = (battles.take_share(rest, share, seed=0) for share in (0.25, 0.5))
    assert prompts(quarter) < prompts(half) < prompts(rest) and len(half) == round(0.5 * len(rest))
