"""Reports of known predictions: their numbers, the errors, and that no battle's text is in them."""

import json
import re
from math import isnan

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from modeling.data.battles import load_battles
from modeling.evaluation.html_report import build_page
from modeling.evaluation.report import align_verdicts, build_comparison, build_report, format_report, group_prompts
from modeling.evaluation.text_report import conclude

A, B, TIE = [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]
REQUIRED = {
    *("battles", "decided", "prompts", "draws", "seed", "confidence", "accuracy", "log_loss", "brier", "ece", "auc"),
    *("baselines", "position_bias", "length_bias", "tables", "reliability", "selective", "readings", "data"),
}


@pytest.fixture(scope="module")
def verdicts(sample_battles) -> pd.DataFrame:
    """Verdicts better than chance, from two members with one order and one with both; some battles are cut."""
    rng = np.random.default_rng(0)
    label = np.array(sample_battles["label"][:])[:, 0]
    columns = {}
    for name in ("ab_ab", "ba_ba", "both_ab", "both_ba"):
        columns[f"p_a_{name}"] = 1 / (1 + np.exp(-(label * 2 - 1 + rng.normal(size=len(label)))))
    p_a = np.mean(list(columns.values()), axis=0)
    cuts = {f"cut_{name}": rng.integers(0, 2, len(label)) * 7 for name in ("prompt", "response_a", "response_b")}
    return pd.DataFrame({"id": sample_battles["id"][:], "p_a": p_a, "p_b": 1 - p_a} | columns | {"tokens": 9} | cuts)


@pytest.fixture(scope="module")
def report(verdicts, sample_battles) -> dict:
    return build_report(verdicts, sample_battles, draws=200)


def build_battles(labels: list, **columns) -> Dataset:
    texts = {
        name: [f"{name} {place}" for place in range(len(labels))] for name in ("prompt", "response_a", "response_b")
    }
    return Dataset.from_dict({"id": list(range(len(labels))), **texts, "label": labels, **columns})


def build_verdicts(p_a: list, **columns) -> pd.DataFrame:
    return pd.DataFrame({"id": range(len(p_a)), "p_a": p_a, **columns})


def find_floats(value: object):
    """Yields all floats of a report."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from find_floats(inner)
    elif isinstance(value, float):
        yield value


def test_a_report_is_json_with_all_required_keys(report, verdicts):
    assert set(report) >= REQUIRED and report["battles"] == 72
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    for name in ("accuracy", "log_loss", "brier", "ece", "auc"):
        assert set(report[name]) == {"value", "low", "high", "count"}
        assert report[name]["low"] <= report[name]["value"] <= report[name]["high"]
    assert [row["name"] for row in report["readings"]] == ["ab_ab", "ba_ba", "both_ab", "both_ba"]
    flips = ((verdicts["p_a_both_ab"] >= 0.5) != (verdicts["p_a_both_ba"] >= 0.5)).mean()
    assert report["position_bias"]["flip_share"]["value"] == pytest.approx(flips)


def test_no_text_of_a_battle_is_in_the_report_or_its_table(report, sample_battles):
    said = json.dumps(report, ensure_ascii=False) + format_report(report)
    for battle in sample_battles:
        for name in ("prompt", "response_a", "response_b"):
            assert battle[name][:20] not in said


def test_each_table_counts_every_battle_once(report, sample_battles, verdicts):
    assert set(report["tables"]) == {"language", "source", "length", "cut"}
    for name, table in report["tables"].items():
        assert sum(row["battles"] for row in table) == 72, name
    languages = pd.Series(sample_battles["language"][:]).value_counts()
    assert {row["name"]: row["battles"] for row in report["tables"]["language"]} == languages.to_dict()
    cut = verdicts[["cut_prompt", "cut_response_a", "cut_response_b"]].any(axis=1)
    assert [(row["name"], row["battles"]) for row in report["tables"]["cut"]] == [
        ("whole", (~cut).sum()),
        ("cut", cut.sum()),
    ]
    assert report["cut_fields"]["prompt"] == {
        "battles": (verdicts["cut_prompt"] > 0).sum(),
        "tokens": verdicts["cut_prompt"].sum(),
    }
    hits = (verdicts["p_a"] >= 0.5).to_numpy() == (np.array(sample_battles["label"][:])[:, 0] > 0.5)
    decided = np.array(sample_battles["label"][:])[:, 0] != 0.5
    whole = report["tables"]["cut"][0]["accuracy"]
    assert whole["value"] == pytest.approx(hits[~cut & decided].mean()) and whole["count"] == (~cut & decided).sum()


def test_further_columns_are_tabulated_and_pairs_with_the_same_answers_count_once():
    """Six prompts, of which two and two have the same answers: four groups."""
    rows = {
        "id": list("abcdef"),
        "prompt": [f"What is {n}?" for n in ("gold", "rain", "jazz", "chess", "salt", "iron")],
    }
    rows |= {"response_a": ["x"] * 6, "response_b": ["y"] * 6, "label": [[1.0, 0.0], [0.0, 1.0]] * 3}
    rows |= {"counterfactual_pair": ["p", "p", "q", "q", None, None], "kind": ["pair"] * 4 + ["single"] * 2}
    verdicts = pd.DataFrame({"id": rows["id"], "p_a": [0.9, 0.8, 0.2, 0.3, 0.6, 0.4]})
    found = build_report(verdicts, Dataset.from_dict(rows), by=["kind"], draws=100)
    assert found["prompts"] == 4 and found["grouping"].endswith("counterfactual pairs too")
    accuracies = {row["name"]: (row["battles"], row["accuracy"]["value"]) for row in found["tables"]["kind"]}
    assert accuracies == {"pair": (4, 0.5), "single": (2, 1.0)}


def test_length_quartiles_are_in_order_and_of_equal_size(report):
    table = report["tables"]["length"]
    assert all(abs(row["battles"] - 18) <= 2 for row in table) and len(table) == 4
    assert table[0]["name"].startswith("up to") and table[-1]["name"].startswith("over")


def test_missing_and_rare_values_share_a_row():
    """None and blank are "not given", which makes fifty names with two battles. 49 of them keep their row; the last one
    and nine names with one battle share the fiftieth."""
    values = [f"s{place}" for place in range(49)] * 2 + [f"rare {place}" for place in range(9)] + [None, ""]
    battles = build_battles([A] * len(values), source=values, verdict=[None] * len(values))
    tables = build_report(build_verdicts([0.6] * len(values)), battles, draws=100)["tables"]
    rows = {row["name"]: row["battles"] for row in tables["source"]}
    assert len(rows) == 50 and rows["others"] == 2 + 9 and sum(rows.values()) == len(values)
    assert [(row["name"], row["battles"]) for row in tables["verdict"]] == [("not given", len(values))]


def test_the_order_of_verdicts_and_the_type_of_ids_change_nothing(verdicts, sample_battles, report):
    shuffled = verdicts.sample(frac=1, random_state=0)
    assert build_report(shuffled, sample_battles, draws=200) == report
    assert (
        build_report(build_verdicts([0.9, 0.2]).assign(id=["1", "0"]), build_battles([B, A]), draws=100)["accuracy"][
            "value"
        ]
        == 1
    )


@pytest.mark.parametrize(
    "verdicts, expected",
    [
        (build_verdicts([0.5]), r"expected a row for each battle; found none for 1: '1'"),
        (build_verdicts([0.5] * 9), r"expected no other battles; found 7: '2', '3', .* and more"),
        (build_verdicts([0.5, 0.5]).assign(id=[1, 1]), r"expected each id once; found 1 repeated: '1'"),
        (build_verdicts([0.5, np.nan]), r"expected p_a from 0 to 1; found other values or NaN for 1: 1"),
        (build_verdicts([1.5, 0.5]), r"expected p_a from 0 to 1; found other values or NaN for 1: 0"),
        (build_verdicts(["much", 0.5]), r"expected p_a from 0 to 1; found other values"),
        (pd.DataFrame({"id": [0, 1], "p": [0, 1]}), r"expected the columns id and p_a; found no p_a, but id, p"),
    ],
    ids=["missing", "extra", "repeated", "NaN", "above 1", "text", "no p_a"],
)
def test_verdicts_of_other_battles_are_refused(verdicts, expected):
    with pytest.raises(ValueError, match=expected):
        build_report(verdicts, build_battles([A, B]))


def test_battles_without_outcomes_are_refused():
    with pytest.raises(ValueError, match="expected outcomes to score against; found none"):
        build_report(build_verdicts([0.5]), build_battles([A]).remove_columns("label"))


@pytest.mark.parametrize(
    "labels", [[], [TIE] * 3, [A] * 3, [[0.7, 0.3]]], ids=["empty", "ties only", "one class", "one soft"]
)
def test_extreme_files_have_a_report_and_a_table(labels):
    battles = build_battles(
        labels, language=["en"] * len(labels), model_a=["x"] * len(labels), model_b=["y"] * len(labels)
    )
    report = build_report(build_verdicts([0.8] * len(labels), p_a_m_ab=0.8, p_a_m_ba=0.7), battles, draws=100)
    assert not any(isnan(number) for number in find_floats(report))
    json.dumps(report, allow_nan=False)
    decided = len(labels) if TIE not in labels else 0
    assert report["accuracy"]["count"] == report["decided"] == decided
    assert (report["accuracy"]["value"] is None) == (decided == 0) and report["auc"]["value"] is None
    assert "accuracy" in format_report(report)


def refuse_constant(name: str):
    raise AssertionError(f"{name} is not JSON")


@pytest.mark.parametrize(
    ("labels", "p_a", "missing"),
    [
        ([A], [0.8], {"auc"}),
        ([A] * 12, list(np.linspace(0.1, 0.9, 12)), {"auc"}),
        ([A, B] * 6, [0.5] * 12, set()),
        ([A, B] * 6, [0.0, 1.0] * 6, set()),
        ([A, B] * 4 + [TIE] * 4, [1.0, 0.0] * 6, set()),
        ([TIE] * 12, [0.3] * 12, {"accuracy", "auc"}),
    ],
    ids=["one battle", "one winner", "always a half", "always wrong", "a group of ties", "ties only"],
)
def test_what_has_no_value_says_why_and_nothing_is_nan(labels, p_a, missing):
    """In JSON, in the terminal and on the page, with a comparison and all columns. The last third is in Thai."""
    languages = [["en", "th"][place >= 8] for place in range(len(labels))]
    models = {"model_a": ["x"] * len(labels), "model_b": ["y"] * len(labels)}
    verdicts = build_verdicts(p_a, p_a_m_ab=p_a, p_a_m_ba=np.nan)
    battles = build_battles(labels, language=languages, **models)
    found = build_report(verdicts, battles, answers_alone=verdicts, train_battles=battles, draws=100)
    found["comparison"] = {"name": "other"} | build_comparison(verdicts, verdicts, battles, draws=100)
    found["calibration"] = {"method": "temperature", "before": found, "after": found}
    text, page = format_report(found), build_page(found, [])
    json.loads(json.dumps(found | {"calibration": None}), parse_constant=refuse_constant)
    for shown in (text, page, conclude(found, "here")):
        assert not re.search(r"\b(nan|NaN|inf|Infinity|None(?! of them))\b", shown)
        assert not re.search(r"n/a(?! \()", shown) and "[-" not in re.sub(r"\[-\d", "", shown)
    absent = {name for name in ("accuracy", "log_loss", "brier", "ece", "auc") if found[name]["value"] is None}
    assert absent == missing
    assert ("accuracy  n/a (no battle has a winner)" in text) == ("accuracy" in missing)
    assert ("AUC       n/a (needs battles that a won and battles that b won)" in text) == ("auc" in missing)
    assert ("(too few for an interval)" in text) == (len(labels) < 6 or "th" in languages)


def test_battles_of_nearly_one_prompt_are_one_group():
    """Two prompts, each in four versions. Grouping widens the intervals as it should."""
    long = "Write a short story about a lighthouse keeper who finds a message in a bottle on the beach"
    other = "Explain in simple words how a refrigerator keeps the food inside of it cold during the summer"
    prompts = [f"{text}{end}" for text in (long, other) for end in ("", ".", "!", " please")]
    groups, grouping = group_prompts(prompts)
    assert groups == [groups[0]] * 4 + [groups[4]] * 4 and groups[0] != groups[4] and "near-identical" in grouping


def test_very_many_prompts_are_grouped_only_if_equal(monkeypatch):
    monkeypatch.setattr("modeling.evaluation.report.MOST_COMPARED", 2)
    groups, grouping = group_prompts(["one", "ONE ", "two", "three"])
    assert groups == [0, 0, 1, 2] and grouping == "equal ones counted once"


def test_comparison_is_paired_and_by_hand():
    """Of four battles the first is right on 1, 2 and 3, the second on 1 and 4: differences 0, 1, 1, -1. A fifth battle
    is a tie, and everything occurs twice. McNemar: 4 against 2 of 6 fair coins, 2 (1 + 6 + 15) / 2^6 = 0.6875."""
    battles = build_battles([A, A, A, A, TIE] * 2)
    first, second = build_verdicts([0.8, 0.8, 0.8, 0.2, 0.5] * 2), build_verdicts([0.8, 0.2, 0.2, 0.8, 0.5] * 2)
    comparison = build_comparison(first, second, battles, draws=200)
    accuracy, log_loss = comparison["accuracy_difference"], comparison["log_loss_difference"]
    assert (accuracy["value"], accuracy["count"], log_loss["count"]) == (pytest.approx(0.25), 8, 10)
    assert log_loss["value"] == pytest.approx(-np.log(4) / 5)
    assert comparison["mcnemar"] == {"only_first": 4, "only_second": 2, "p_value": 0.6875}
    turned = build_comparison(second, first, battles, draws=200)["accuracy_difference"]
    assert (turned["value"], turned["low"]) == pytest.approx((-0.25, -accuracy["high"]), abs=1e-6)
    same = build_comparison(first, first, battles, draws=200)
    assert [same["accuracy_difference"][key] for key in ("low", "value", "high")] == [0, 0, 0]


def test_pairing_narrows_a_difference():
    """The difference of two judges with nearly the same errors has a narrower interval than each accuracy."""
    rng = np.random.default_rng(2)
    p_a = rng.random(400)
    battles = build_battles([A] * 400)
    other = np.where(rng.random(400) < 0.05, 1 - p_a, p_a)
    comparison = build_comparison(build_verdicts(p_a), build_verdicts(other), battles, draws=300)
    widths = [comparison[name]["high"] - comparison[name]["low"] for name in ("accuracy_difference", "accuracy")]
    assert widths[0] < widths[1] / 1.5


def test_the_text_has_every_metric_and_no_control_characters(report):
    said = format_report(report)
    for name in ("accuracy", "log loss", "Brier", "ECE", "AUC"):
        assert f"\n  {name} " in said
    value = report["accuracy"]
    assert f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]" in said
    assert max(map(len, said.splitlines())) < 260
    hostile = build_battles([A, B], language=["\x1b[31mred", "日本語"])
    said = format_report(build_report(build_verdicts([0.9, 0.8]), hostile, draws=100))
    assert "\x1b" not in said and "日本語" in said


def test_the_conclusion_is_a_few_lines_that_a_newcomer_understands():
    """What is right, whether each baseline is beaten, pairs, calibration, and where the rest is."""
    rng = np.random.default_rng(0)
    winners = [[A, B][n % 2] for n in range(200)]
    p_a = np.where(np.arange(200) % 2 == 0, 0.8, 0.2) + rng.normal(0, 0.3, 200)
    pairs = [f"pair-{n // 2}" if n < 100 else None for n in range(200)]
    battles, verdicts = build_battles(winners, counterfactual_pair=pairs), build_verdicts(p_a.clip(0.01, 0.99))
    found = build_report(verdicts, battles, answers_alone=build_verdicts(rng.random(200)), draws=200)
    found["comparison"] = {"name": "default"} | build_comparison(verdicts, verdicts, battles, draws=200)
    lines = conclude(found, "out/report.html").splitlines()
    assert len(lines) == 9 and max(map(len, lines)) <= 80
    right = round(found["accuracy"]["value"] * 200)
    assert lines[0].startswith(f"The judge names the winner of {right} of 200 battles: ")
    answers = {line[:18].strip(): line for line in lines[2:6]}
    assert " yes " in answers["always a"] and " yes " in answers["answers alone"]
    assert "cannot be told" in answers["default"]
    assert lines[6].startswith("Where only the prompt can tell (100 battles): ")
    assert lines[8] == "All tables and pictures: out/report.html"
    tied = build_battles([A, B, TIE, TIE], counterfactual_pair=[None, None, "p", "p"])
    assert "only the prompt" not in conclude(build_report(build_verdicts([0.9] * 4), tied, draws=100), "x")
    assert "no accuracy" in conclude(build_report(build_verdicts([]), build_battles([]), draws=100), "x")


def test_seed_and_draws_are_in_the_report_and_reproduce_it(verdicts, sample_battles):
    reports = [build_report(verdicts, sample_battles, draws=150, seed=seed) for seed in (3, 3, 4)]
    assert reports[0] == reports[1] != reports[2]
    assert (reports[0]["draws"], reports[0]["seed"]) == (150, 3)


def test_ids_may_be_numbers_in_one_file_and_text_in_the_other(tmp_path):
    """As with battles in a CSV file and predictions in a Parquet file."""
    (tmp_path / "b.csv").write_text("id,prompt,response_a,response_b,winner\n7,p,x,y,model_a\n8,q,x,y,tie\n")
    aligned = align_verdicts(pd.DataFrame({"id": [8, 7], "p_a": [0.1, 0.9]}), load_battles(tmp_path / "b.csv"))
    assert aligned["p_a"].tolist() == [0.9, 0.1]
