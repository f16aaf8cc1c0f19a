"""Choosing battles: uncertain ones on which passes disagree, few of each group, whatever the order of rows or sides."""

import numpy as np
import pandas as pd
import pytest

from modeling.data.battles import load_battles, swap_responses
from modeling.judging.selection import (
    compute_disagreement,
    compute_uncertainty,
    score_battles,
    select_battles,
)
from modeling.runtime.choices import SELECTIONS
from tests.helpers import SAMPLES, call, fail


def test_uncertainty_is_the_entropy_in_bits():
    """At 1/4: 1/4 x 2 bits + 3/4 x log2(4/3)."""
    expected = [0, 0.5 + 0.75 * np.log2(4 / 3), 1, 0]
    assert compute_uncertainty(np.array([0, 0.25, 0.5, 1])) == pytest.approx(expected)


def test_disagreement_is_what_the_pass_says_about_the_verdict():
    """0 for passes that agree, be they sure or not; 1 bit for passes that are sure of opposite answers."""
    passes = np.array([[0.5, 0.5], [0.9, 0.9], [0, 1], [0.25, 0.75]])
    uncertain = 0.5 + 0.75 * np.log2(4 / 3)
    assert compute_disagreement(passes) == pytest.approx([0, 0, 1, 1 - uncertain])
    third = np.full((4, 1), np.nan)  # a pass that was not run changes nothing
    assert compute_disagreement(np.hstack([passes, third])) == pytest.approx([0, 0, 1, 1 - uncertain])
    with pytest.raises(ValueError, match=r"at least two passes of each battle.*found battles with 1"):
        compute_disagreement(np.array([[0.5, 0.5], [0.5, np.nan]]))


@pytest.mark.parametrize("rank_by", SELECTIONS)
def test_neither_the_order_of_rows_nor_that_of_sides_decides(rank_by):
    """Also among equal scores: of 40 battles, each probability occurs twice."""
    rng = np.random.default_rng(0)
    passes = np.repeat(rng.random((20, 4)), 2, axis=0)
    ids, groups = np.array([f"x{n}" for n in range(40)]), rng.integers(0, 9, 40)

    def choose(passes, rows=slice(None)) -> list[str]:
        scores = score_battles(passes[rows].mean(1), passes[rows], rank_by)["score"].to_numpy()
        return ids[rows][select_battles(scores, ids[rows], groups[rows], 15)].tolist()

    chosen = choose(passes)
    assert choose(1 - passes) == chosen
    assert choose(passes, rng.permutation(40)) == chosen
    assert choose(passes[:, ::-1]) == chosen


def test_no_group_gives_a_second_battle_before_every_group_gave_one():
    """Groups 0, 1 and 2 have three, two and one battles; the best three are all of group 0."""
    scores, groups = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]), [0, 0, 0, 1, 1, 2]
    assert select_battles(scores, range(6), groups, 6).tolist() == [0, 3, 5, 1, 4, 2]
    assert select_battles(scores, range(6), None, 3).tolist() == [0, 1, 2]


def write_predictions(path, ids, p: np.ndarray) -> None:
    """Predictions by two members in both orders; p has shape (passes, battles, labels)."""
    names = ("ab_ab", "ab_ba", "ba_ab", "ba_ba")
    table = {"id": ids} | {f"p_{label}": column for label, column in zip(("a", "b", "tie"), p.mean(0).T, strict=False)}
    for name, each in zip(names, p, strict=True):
        table |= {f"p_{label}_{name}": each[:, at] for label, at in (("a", 0), ("tie", 2)) if at < p.shape[2]}
    pd.DataFrame(table).to_parquet(path)


@pytest.fixture(params=[2, 3])
def pool(request, tmp_path):
    """30 battles, and predictions of two or three labels, shape (passes, battles, labels)."""
    battles = load_battles(SAMPLES / "test.jsonl").select(range(30))
    battles.to_parquet(tmp_path / "pool.parquet")
    p = np.random.default_rng(0).dirichlet(np.ones(request.param), (4, 30))
    write_predictions(tmp_path / "p.parquet", battles["id"][:], p)
    return battles, p


def list_flags(folder, name="pool", predictions="p", output="out") -> list:
    names = ("--battles", folder / f"{name}.parquet", "--predictions", folder / f"{predictions}.parquet")
    return [*names, "--output_dir", folder / output, "--num_battles", 10, "--rank_by", "product"]


def test_the_script_writes_the_battles_with_their_scores_whichever_side_is_a(pool, tmp_path, monkeypatch):
    battles, p = pool
    call("select", *list_flags(tmp_path), monkeypatch=monkeypatch)
    chosen = pd.read_parquet(tmp_path / "out" / "selected.parquet")
    assert chosen["rank"].tolist() == list(range(1, 11)) and "label" not in chosen
    assert np.allclose(chosen["score"], chosen["uncertainty"] * chosen["disagreement"], atol=2e-6)
    texts = battles.to_pandas().set_index("id")
    assert chosen["response_a"].tolist() == texts.loc[chosen["id"], "response_a"].tolist()

    swap_responses(battles).to_parquet(tmp_path / "swapped.parquet")
    rows = np.random.default_rng(1).permutation(30)  # nor does the order of the rows of predictions matter
    mirrored = p[:, rows][..., [1, 0, *range(2, p.shape[2])]]
    write_predictions(tmp_path / "q.parquet", np.array(battles["id"][:])[rows], mirrored)
    call("select", *list_flags(tmp_path, "swapped", "q", "swap"), monkeypatch=monkeypatch)
    swapped = pd.read_parquet(tmp_path / "swap" / "selected.parquet")
    assert swapped[["id", "score", "rank"]].equals(chosen[["id", "score", "rank"]])


def test_a_choice_is_refused_that_cannot_be_made_or_would_replace_votes(pool, tmp_path, monkeypatch, caplog):
    flags = list_flags(tmp_path)
    said = fail("select", *flags, "--num_battles", 31, monkeypatch=monkeypatch, caplog=caplog)
    assert "--num_battles 31: expected at most the 30 battles" in said
    whole = pd.read_parquet(tmp_path / "p.parquet")
    whole[[name for name in whole if name.count("_") < 2]].to_parquet(tmp_path / "blend.parquet")
    blend = list_flags(tmp_path, predictions="blend")
    said = fail("select", *blend, monkeypatch=monkeypatch, caplog=caplog)
    assert "choose by --rank_by uncertainty" in said and not (tmp_path / "out").exists()
    call("select", *blend, "--rank_by", "uncertainty", monkeypatch=monkeypatch)
    said = fail("select", *flags, monkeypatch=monkeypatch, caplog=caplog)
    assert "expected a new or empty folder, because annotators may have filled in" in said
