"""Rankings by a real judge: laws 1, 2, 3 and 7, what is read, and the files of rank.py."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from modeling.data.battles import DEMO_FOLDER
from modeling.judging import predictor, schedule
from modeling.judging.judge import Judge
from modeling.judging.ranking import list_pairs, list_texts
from modeling.runtime.choices import RANK_METHODS
from tests.helpers import LAUNCH, LAUNCHERS, PackCounter, call, fail, succeed, write_rows

ANSWERS = ["Because blue light scatters most.", "No idea.", "The sky is blue.", "It reflects the sea.", "Ask me later."]
PROMPT = "Why is the sky blue?"
TOLERANCE = 1e-5  # float32, as in test_predictor.py
INPUT = DEMO_FOLDER / "answers.jsonl"

pytestmark = pytest.mark.usefixtures("quick")


def read_input() -> list[dict]:
    return [json.loads(line) for line in INPUT.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("method", RANK_METHODS)
def test_shuffled_answers_have_the_same_numbers_and_equal_ones_share_theirs(method, judge):
    """Law 2, to the last digit: the battles are the same, whatever the order of the answers."""
    answers = [*ANSWERS, ANSWERS[2]]
    found = judge.rank(PROMPT, answers, method=method)
    order = [4, 2, 0, 5, 1, 3]
    turned = judge.rank(PROMPT, [answers[place] for place in order], method=method)
    for name in ("scores", "score_low", "score_high", "p_best"):
        values = getattr(found, name)
        assert np.array_equal(getattr(turned, name), [values[place] for place in order], equal_nan=True)
        assert np.array_equal(values[2], values[5], equal_nan=True)
    assert [answers[order[place]] for place in turned.ranking] == [answers[place] for place in found.ranking]
    assert turned.passes == found.passes and sorted(found.ranking) == list(range(6))
    assert sum(found.p_best) == pytest.approx(1) and np.std(found.scores) > 0.01


def test_all_pairs_give_the_probabilities_of_comparisons(judge):
    """Each pair's verdict is that of `compare`; the scores' expected wins are those of the verdicts."""
    texts = list_texts(ANSWERS)
    found = judge.rank(PROMPT, texts)
    wins = np.zeros(5)
    for i, j in list_pairs(5):
        p = judge.compare(PROMPT, texts[i], texts[j]).p_a
        wins[[i, j]] += p, 1 - p
    s = np.exp(found.scores)
    assert (s[:, None] / (s[:, None] + s)).sum(axis=1) - 0.5 == pytest.approx(wins, abs=10 * TOLERANCE)
    assert found.ranking == np.argsort(-np.array(found.scores)).tolist()
    assert found.passes == 10 * len(judge.plan_passes()) == 40
    best = found.ranking[0]
    assert found.p_best[best] == max(found.p_best) and str(found).startswith(f"answer {best} is best (")


def test_two_answers_are_one_comparison(judge):
    found, verdict = judge.rank(PROMPT, ANSWERS[:2]), judge.compare(PROMPT, *ANSWERS[:2])
    assert found.p_best == pytest.approx([verdict.p_a, verdict.p_b])
    assert found.scores[0] - found.scores[1] == pytest.approx(np.log(verdict.p_a / verdict.p_b))
    assert found.to_dict()["score_low"] == [None, None] and found.passes == 4


def test_equal_answers_are_not_read(judge):
    found = judge.rank(PROMPT, ["Yes."] * 3)
    assert (found.ranking, found.scores, found.passes) == ([0, 1, 2], [0.0] * 3, 0)
    assert found.p_best == [1 / 3] * 3


def test_a_knock_out_ranks_by_the_round_reached(judge):
    """Five answers: two pairs, then one pair and a bye, then the final. The best has the highest score too."""
    found = judge.rank(PROMPT, ANSWERS, method="knockout")
    assert found.passes == 4 * 4 and np.isnan(found.score_low).all()
    assert found.scores[found.ranking[0]] == max(found.scores)


@pytest.mark.parametrize("method", ["all", "active"])
def test_rows_and_batches_change_no_score(method, judge):
    """Laws 1 and 3: rows in another order, in other packs, or alone."""
    rows = read_input()
    found = {each.id: each for each in judge.rank_all(rows, method=method)}
    assert list(found) == [row["id"] for row in rows]
    for others in (
        judge.rank_all(rows[::-1], method=method, tokens_per_batch=300),
        judge.rank_all(rows[:1], method=method),
    ):
        for each in others:
            assert each.scores == pytest.approx(found[each.id].scores, abs=20 * TOLERANCE)
            assert each.ranking == found[each.id].ranking and each.passes == found[each.id].passes


def test_the_rounds_of_all_rows_are_read_together(judge, monkeypatch):
    """A knock-out of eight has three rounds, so five rows need three predictions."""
    compute, rounds = schedule.predict_together, []
    monkeypatch.setattr(schedule, "predict_together", lambda *a, **o: (rounds.append(o["name"]), compute(*a, **o))[1])
    one = Judge(judge.members[:1])
    one.rank_all(read_input(), method="knockout")
    assert len(rounds) == 3


def test_the_prompt_and_the_first_answer_are_read_once(judge, monkeypatch):
    """Eight answers to one prompt: fewer tokens than their 28 pairs in both orders, each read by itself."""
    compute, tokens = predictor._predict_pack, []

    def count(models, pack, num_shared_layers):
        tokens.append((len(pack.input_ids), sum(stop - start for spans in pack.list_spans() for start, stop in spans)))
        return compute(models, pack, num_shared_layers)

    monkeypatch.setattr(predictor, "_predict_pack", count)
    answers = [f"{word} is what the tide does, and the moon pulls the sea about twice a day." for word in "abcdefgh"]
    Judge(judge.members[:1]).rank("Why are there tides?", answers, tokens_per_batch=100_000)
    ((read, alone),) = tokens
    # Prompt P once, each answer of A tokens once as first and seven times as second, of 56 readings of P + 2 A.
    assert read < 0.65 * alone


@pytest.mark.parametrize("method", RANK_METHODS)
def test_a_restart_reads_only_what_was_not_read_and_writes_the_same(method, members, tmp_path, monkeypatch):
    """Law 7, in the middle of the rounds of a method that chooses by what it read."""
    flags = ["--input", INPUT, "--judge", members["ab"], "--method", method, "--tokens_per_batch", 400]
    whole, before, after = PackCounter(monkeypatch).interrupt(
        lambda folder: call("rank", *flags, "--output_dir", tmp_path / folder, monkeypatch=monkeypatch)
    )
    assert before + after == whole and len(before) > 4
    files = [tmp_path / folder / "rankings.parquet" for folder in ("again", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert [path.name for path in (tmp_path / "again").iterdir()] == ["rankings.parquet"]


def test_rank_writes_a_row_per_answer_set(members, judge, tmp_path, monkeypatch):
    """As `Judge.rank_all` ranks them; unknown ends of two answers are null, and the metadata says who ranked."""
    rows = [*read_input(), {"id": "two", "prompt": "p", "responses": ["a", "b"]}]
    path = write_rows(tmp_path / "answers.parquet", rows)
    flags = ["--input", path, "--judge", *members.values(), "--dtype", "float32", "--output_dir", tmp_path / "out"]
    call("rank", *flags, monkeypatch=monkeypatch)
    found = pd.read_parquet(tmp_path / "out" / "rankings.parquet")
    assert list(found) == ["id", "ranking", "p_best", "scores", "score_low", "score_high", "passes"]
    for row, expected in zip(found.to_dict("records"), judge.rank_all(rows), strict=True):
        assert row["id"] == expected.id and row["ranking"].tolist() == expected.ranking
        assert row["scores"].tolist() == pytest.approx(expected.scores, abs=20 * TOLERANCE)
    assert np.isnan(found["score_low"].iloc[-1].astype(float)).all()
    made = json.loads(pq.read_schema(tmp_path / "out" / "rankings.parquet").metadata[b"bothways"])
    assert made["method"] == "all" and list(made["members"]) == ["ab", "ba"] and str(tmp_path) not in json.dumps(made)


def test_two_processes_rank_as_one(members, tmp_path):
    """A knock-out, whose rounds depend on what both have read."""
    flags = [
        "--input",
        INPUT,
        "--judge",
        members["ab"],
        "--dtype",
        "float32",
        "--method",
        "knockout",
        "--use_cpu",
        "true",
    ]
    for name in ("one", "ddp"):
        succeed(*LAUNCH, *LAUNCHERS[name], "scripts/rank.py", *flags, "--output_dir", tmp_path / name)
    one, two = (pd.read_parquet(tmp_path / name / "rankings.parquet") for name in ("one", "ddp"))
    assert one["id"].tolist() == two["id"].tolist()
    for name in ("ranking", "scores"):
        for expected, found in zip(one[name], two[name], strict=True):
            assert found.tolist() == pytest.approx(expected.tolist(), abs=20 * TOLERANCE)


def test_no_rows_give_no_rankings(members, tmp_path, monkeypatch):
    pd.DataFrame({name: [] for name in ("id", "prompt", "responses")}).to_parquet(tmp_path / "none.parquet")
    flags = ["--input", tmp_path / "none.parquet", "--judge", members["ab"], "--output_dir", tmp_path / "out"]
    call("rank", *flags, monkeypatch=monkeypatch)
    assert len(pd.read_parquet(tmp_path / "out" / "rankings.parquet")) == 0


def test_a_faulty_row_is_one_line_and_nothing_is_written(members, tmp_path, monkeypatch, caplog):
    path: Path = write_rows(tmp_path / "bad.jsonl", [{"id": "r0", "prompt": "p", "responses": ["a"]}])
    flags = ["--input", path, "--judge", members["ab"], "--output_dir", tmp_path / "out"]
    assert "row 'r0': responses must be 2 to 64" in fail("rank", *flags, monkeypatch=monkeypatch, caplog=caplog)
    assert not (tmp_path / "out").exists()


def test_a_wrong_method_or_budget_is_an_error(judge):
    with pytest.raises(ValueError, match="--method: expected one of all, active, swiss, knockout; found 'best'"):
        judge.rank(PROMPT, ANSWERS, method="best")
    with pytest.raises(ValueError, match="--budget 2: expected a fraction of all pairs"):
        judge.rank(PROMPT, ANSWERS, method="active", budget=2)
