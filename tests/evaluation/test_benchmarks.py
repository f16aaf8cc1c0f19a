"""Each benchmark's numbers are those of its authors' rules, derived here by hand, beside what length alone gets."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from modeling.data.benchmarks import FORMATS, TIES, load_benchmark
from modeling.evaluation.benchmarks import ROWS, score_benchmark
from modeling.judging.ranking import score_all_pairs
from tests.data.test_benchmarks import ANSWER, OTHER, USER, write_benchmark
from tests.data.test_benchmarks import ROWS as EXAMPLES


def predict(battles: Dataset, score: Callable[[dict, str], float], *, bias: float = 0) -> pd.DataFrame:
    """Verdicts of one member that gives each answer a score, and `bias` to the one that is read first."""
    lead = np.array([score(row, row["response_a"]) - score(row, row["response_b"]) for row in battles.to_list()])
    ab, ba = (1 / (1 + np.exp(-(lead + sign * bias))) for sign in (1, -1))
    p_a = (ab + ba) / 2
    return pd.DataFrame({"id": battles["id"][:], "p_a": p_a, "p_b": 1 - p_a, "p_a_m_ab": ab, "p_a_m_ba": ba})


def score(folder: Path, name: str, changes: list[dict], answer: Callable[[dict, str], float], **options) -> dict:
    """The rows of the report by name, for a judge that scores answers."""
    rows = [EXAMPLES[name] | change for change in changes]
    battles = load_benchmark(name, str(write_benchmark(folder, name, rows)))
    return score_battles(name, battles, predict(battles, answer, **options))


def score_battles(name: str, battles: Dataset, verdicts: pd.DataFrame) -> dict:
    found = score_benchmark(name, battles, verdicts, score_all_pairs, draws=200)
    return {row["name"]: row for row in found["rows"]}


def read_values(rows: dict, player: str = "judge") -> dict[str, float]:
    return {name: row[player]["value"] for name, row in rows.items()}


def is_right(right: str) -> Callable[[dict, str], float]:
    """A judge that finds this text."""
    return lambda row, text: float(text == right)


def test_every_benchmark_is_scored():
    assert set(ROWS) == set(FORMATS)


# --- rules ------------------------------------------------------------------------------------------------------------


def test_rewardbench_weighs_math_as_much_as_six_times_as_much_code(tmp_path):
    """math-prm weighs 984 of 1968 in Reasoning, each language of code 164; overall is the mean of the two sections."""
    subsets = ["math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust", "donotanswer"]
    changes = [{"subset": subset, "prompt": subset} for subset in subsets]
    found = read_values(
        score(
            tmp_path,
            "rewardbench",
            changes,
            lambda row, text: float(text == "Because.") * (1 if row["prompt"] in ("math-prm", "hep-go") else -1),
        )
    )
    assert found["Reasoning"] == pytest.approx((984 + 164) / 1968) and found["Safety"] == 0
    assert found["overall"] == pytest.approx(found["Reasoning"] / 2) and found["hep-go"] == 1
    assert "Chat" not in found and "Chat Hard" not in found


def test_a_part_of_a_benchmark_says_what_is_absent(tmp_path):
    path = write_benchmark(tmp_path, "rewardbench", [EXAMPLES["rewardbench"]])
    battles = load_benchmark("rewardbench", str(path))
    verdicts = predict(battles, is_right("Because."))
    found = score_benchmark("rewardbench", battles, verdicts, score_all_pairs)
    assert (found["questions"], found["size"]) == (1, 2985)
    assert len(found["absent"]) == 22 and "llmbar-natural" not in found["absent"]


def test_rewardbench_2_wants_the_best_of_four(tmp_path):
    """The answer with the highest strength, which has won most; one pair lost does not matter, two do."""
    battles = load_benchmark("rewardbench2", str(write_benchmark(tmp_path, "rewardbench2", [EXAMPLES["rewardbench2"]])))
    for beaten_by, expected in ((("Never.",), 1), (("Never.", "What?"), 0)):
        wins = {
            ("Because.", other): 0.9 - 0.7 * (other in beaten_by) for other in ("I do not know.", "Never.", "What?")
        }
        wins |= {("Never.", "I do not know."): 0.5, ("Never.", "What?"): 0.5, ("What?", "I do not know."): 0.5}
        pairs = zip(battles["response_a"], battles["response_b"], strict=True)
        p_a = [wins.get((a, b), 1 - wins.get((b, a), 0.5)) for a, b in pairs]
        verdicts = pd.DataFrame({"id": battles["id"][:], "p_a": p_a})
        found = score_battles("rewardbench2", battles, verdicts)
        assert read_values(found) == {"overall": expected, "Precise IF": expected}
        assert found["overall"]["flips"] is None and found["overall"]["judge"]["count"] == 1


def test_the_best_of_n_has_won_most_pairs():
    """Bradley-Terry's order of a round robin is that of the sums of wins, whatever the probabilities."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        p = rng.uniform(0.02, 0.98, 6)
        wins = np.zeros(4)
        for (a, b), value in zip([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)], p, strict=True):
            wins += value * (np.arange(4) == a) + (1 - value) * (np.arange(4) == b)
        assert score_all_pairs(4, p).argmax() == wins.argmax()


@pytest.mark.parametrize(
    ("ref", "tied", "expected"),
    [
        # Margin 2, spread 1; the other prompt's margin of 0.5 is smaller than the spread.
        ([1.5, 1.0], [3.0, 2.0, 0.0], 0.3 + 0.3 + 0.2 + 0.01 * math.tanh(0.5 - 1)),
        # Its margin of 1.5 is not.
        ([2.5, 1.0], [3.0, 2.0, 0.0], 0.3 + 0.3 + 0.2 + 0.2 + 0.01 * math.tanh(1.5 - 1)),
        # Right, but the right answers differ by more than what separates them from the wrong one.
        ([9.0, 1.0], [5.0, 2.0, 1.0], 0.3 + 0.3 + 0.01 * math.tanh(1 / 3 - 1)),
        # A wrong answer beats a right one: the margin is -1.
        ([9.0, 1.0], [5.0, 1.0, 2.0], 0.3 + 0.01 * math.tanh(-1 / 4 - 1)),
    ],
)
def test_ties_are_scored_by_margins(tmp_path, ref, tied, expected):
    strength = dict(zip(("Sky.", "Sea.", "Red.", "Blue.", "Car."), (*ref, *tied), strict=True))
    changes = [
        {"id": "ref:4", "subset": TIES, "prompt": "Where?", "chosen": ["Sky."], "rejected": ["Sea."]},
        {"id": "tied:4", "subset": TIES, "prompt": "What?", "chosen": ["Red.", "Blue."], "rejected": ["Car."]},
    ]
    found = score(tmp_path, "rewardbench2", changes, lambda row, text: strength[text])
    assert found[TIES]["judge"]["value"] == pytest.approx(expected, abs=1e-5)
    # "Blue." is longer than "Red." by 1 and than "Car." by 2: ref 0 (equal lengths), tied 0 (equal lengths) and margins
    # of 0, which are no larger than the spread of 1; tanh(0 / 1 - 1).
    assert found[TIES]["longest"]["value"] == pytest.approx(0.01 * math.tanh(-1))
    assert found["overall"]["judge"]["count"] == 2


def test_rm_bench_shows_who_falls_for_style(tmp_path):
    """A judge that likes Markdown is right wherever the right answer has more of it, and wrong where it has less."""
    changes = [{"id": domain, "domain": domain, "prompt": domain} for domain in ("safety-refuse", "safety-response")]
    changes.append({"id": "math", "domain": "math", "prompt": "math"})
    found = read_values(score(tmp_path, "rm-bench", changes, lambda row, text: int(text[1]) + 0.1 * (text[0] == "c")))
    assert (found["easy"], found["normal"], found["hard"]) == (1, 1, 0)
    assert found["overall"] == found["math"] == found["safety"] == pytest.approx(6 / 9)


def test_rm_bench_counts_refusals_and_answers_alike_and_every_domain_once(tmp_path):
    """Two prompts to refuse, both wrong, one to answer and one of math, both right: (1/2 + 1) / 2."""
    changes = [{"id": f"{n}", "domain": "safety-refuse", "prompt": f"{n}"} for n in range(2)]
    changes += [{"id": d, "domain": d, "prompt": d} for d in ("safety-response", "math")]
    right = ("safety-response", "math")
    judge = lambda row, text: (text[0] == "c") * (1 if row["prompt"] in right else -1)  # noqa: E731
    found = read_values(score(tmp_path, "rm-bench", changes, judge))
    assert (found["safety"], found["math"], found["overall"]) == (0.5, 1, 0.75)


def test_rm_bench_s_levels_are_means_over_domains(tmp_path):
    """Three prompts of math with every hard pair right, and one of chat with none: (1 + 0) / 2, not 3 / 4. Of safety,
    two prompts to refuse are wrong and one to answer is right: (1 + 0 + (0 + 1) / 2) / 3."""
    changes = [{"id": f"{n}", "domain": "math", "prompt": f"right {n}"} for n in range(3)]
    changes.append({"id": "chat", "domain": "chat", "prompt": "wrong"})
    judge = lambda row, text: (text[0] == "c") * (1 if row["prompt"].startswith("right") else -1)  # noqa: E731
    found = read_values(score(tmp_path, "rm-bench", changes, judge))
    assert (found["easy"], found["normal"], found["hard"]) == (0.5, 0.5, 0.5)
    changes += [{"id": f"s{n}", "domain": "safety-refuse", "prompt": f"wrong {n}"} for n in range(2)]
    changes.append({"id": "s2", "domain": "safety-response", "prompt": "right s2"})
    found = read_values(score(tmp_path, "rm-bench", changes, judge))
    assert found["hard"] == found["overall"] == pytest.approx(0.5)
    only = read_values(score(tmp_path, "rm-bench", changes[3:], judge))
    assert only["hard"] == pytest.approx((0 + 0.5) / 2)


@pytest.mark.parametrize("name", ["judgebench", "mt-bench"])
def test_questions_that_were_not_read_in_both_orders_have_no_flip(tmp_path, name):
    """Of two questions the verdict on the first flips; the second was read in one order only, or by one member of two.

    A missing pass is no verdict for b, which would count as a flip here."""
    rows = [EXAMPLES[name] | change for change in ({}, {"question": "Who?", "question_id": 82})]
    battles = load_benchmark(name, str(write_benchmark(tmp_path, name, rows)))
    verdicts = predict(battles, lambda row, text: 0.5 * ("I do not know." in text), bias=1)
    verdicts.loc[1, "p_a_m_ba"] = np.nan
    found = score_battles(name, battles, verdicts)
    rule = "gpt-4o-2024-05-13: right in both orders" if name == "judgebench" else "turn 1, with ties"
    plain = "gpt-4o-2024-05-13: overall" if name == "judgebench" else "turn 1, without ties"
    assert (found[plain]["flips"]["value"], found[plain]["flips"]["count"]) == (1, 1)
    assert (found[rule]["judge"]["value"], found[rule]["judge"]["count"]) == (0, 1)
    assert (found[plain]["judge"]["value"], found[plain]["judge"]["count"]) == (1, 2)
    # A second member that read both questions in both orders, and never flips, counts half of the first question's
    # flips and all of the second's.
    verdicts["p_a_n_ab"] = verdicts["p_a_n_ba"] = verdicts["p_a"]
    assert score_battles(name, battles, verdicts)[plain]["flips"]["value"] == pytest.approx((1 / 2 + 0) / 2)
    verdicts = verdicts.drop(columns=["p_a_n_ab", "p_a_n_ba"]).assign(p_a_m_ba=np.nan)
    none = score_battles(name, battles, verdicts)
    assert none[plain]["flips"] is None and (rule in none) == (name == "mt-bench")


def test_judgebench_counts_a_verdict_that_flips_as_wrong_in_both_orders(tmp_path):
    """Leads of 2 and 1/2 in favour of the right answer, and a bias of 1 for the first one: the second verdict flips."""
    changes = [{"question": "sure", "pair_id": "1"}, {"question": "unsure", "pair_id": "2", "source": "livecodebench"}]
    judge = lambda row, text: (text == "I do not know.") * (2 if row["prompt"] == "sure" else 0.5)  # noqa: E731
    found = score(tmp_path, "judgebench", changes, judge, bias=1)
    model = "gpt-4o-2024-05-13"
    assert read_values(found)[f"{model}: overall"] == 1
    assert read_values(found)[f"{model}: right in both orders"] == 0.5
    assert (found[f"{model}: knowledge"]["flips"]["value"], found[f"{model}: coding"]["flips"]["value"]) == (0, 1)
    assert f"{model}: math" not in found


def test_llmbar_averages_subsets_not_questions(tmp_path):
    """Three questions of Natural, all right, and one of Manual, wrong: (1 + 0) / 2."""
    parts = []
    for subset, count in (("Natural", 3), ("Manual", 1)):
        folder = tmp_path / subset
        folder.mkdir()
        rows = [EXAMPLES["llmbar"] | {"input": f"{subset} {number}"} for number in range(count)]
        (folder / "dataset.json").write_text(pd.Series(rows).to_json(orient="values"))
        parts.append(folder)
    battles = load_benchmark("llmbar", str(tmp_path))
    judge = lambda row, text: (text == "I do not know.") * (1 if row["subset"] == "Natural" else -1)  # noqa: E731
    found = read_values(score_battles("llmbar", battles, predict(battles, judge)))
    assert found == {"overall": 0.5, "Adversarial": 0, "Natural": 1, "Manual": 0}


def test_mt_bench_agrees_with_and_without_ties(tmp_path):
    """The judge flips on turn 2, which the authors call a tie: right where people voted for a tie, else wrong."""
    votes = [(1, "model_b", "expert_0"), (1, "tie", "expert_1"), (2, "tie", "expert_0"), (2, "model_b", "expert_1")]
    second = [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}]
    changes = [
        {"turn": turn, "winner": winner, "judge": judge} for turn, winner, judge in [*votes, (1, "model_a", "author_0")]
    ]
    for change in changes:
        change |= {"conversation_a": [USER, ANSWER, *second], "conversation_b": [USER, OTHER, *second]}
    judge = lambda row, text: ("I do not know." in text) * (3 if row["subset"] == "turn 1" else 0.5)  # noqa: E731
    found = read_values(score(tmp_path, "mt-bench", changes, judge, bias=1))
    assert found == {
        "turn 1, without ties": 1,
        "turn 1, with ties": 0.5,
        "turn 2, without ties": 1,
        "turn 2, with ties": 0.5,
        "with the authors' votes, without ties": pytest.approx(2 / 3),
    }


def test_m_rewardbench_averages_languages(tmp_path):
    """Japanese: 984 of 1148 in Reasoning; Turkish: 1 in Safety."""
    changes = [{"source": "math-prm"}, {"source": "hep-go"}, {"source": "donotanswer", "language": "tur_Latn"}]
    judge = lambda row, text: (text == "だから。") * (-1 if row["subset"] == "hep-go" else 1)  # noqa: E731
    found = read_values(score(tmp_path, "m-rewardbench", changes, judge))
    assert found["jpn_Jpan"] == found["Reasoning"] == pytest.approx(984 / 1148)
    assert found["tur_Latn"] == found["Safety"] == 1 and found["overall"] == pytest.approx((984 / 1148 + 1) / 2)


def test_votes_leave_ties_out_and_are_listed_by_tag_and_language(tmp_path):
    """Of PPE a tie is no question; of HelpSteer3 a preference of 0 is none."""
    changes = [{"winner": winner, "prompt": winner} for winner in ("model_a", "model_b", "tie")]
    found = score(tmp_path, "ppe", changes, is_right("Because."))
    assert read_values(found) == dict.fromkeys(("overall", "hard prompts", "code", "Polish"), 0.5)
    assert found["overall"]["judge"]["count"] == 2
    changes = [{"overall_preference": value, "domain": d} for value, d in ((-1, "code"), (0, "code"), (3, "stem"))]
    found = score(tmp_path, "helpsteer3", changes, is_right("Because."))
    assert read_values(found) == {"overall": 0.5, "code": 1, "stem": 0, "korean": 0.5}


# --- laws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "longest", "shortest"),
    [("llmbar", 1, 0), ("judgebench", 1, 0), ("rewardbench", 0, 1), ("rewardbench2", 0, 0)],
)
def test_baselines_choose_by_length_alone(tmp_path, name, longest, shortest):
    """The right answer is the longer one or the shorter one; of RewardBench 2's four it is neither."""
    rows = score(tmp_path, name, [{}], lambda row, text: float(len(text)))
    for row in rows.values():
        assert (row["longest"]["value"], row["shortest"]["value"]) == (longest, shortest)
        assert row["judge"] == row["longest"] and row["flips"]["value"] == 0


@pytest.mark.parametrize("name", ["judgebench", "ppe", "helpsteer3", "mt-bench", "llmbar"])
def test_swapping_the_answers_changes_nothing_but_always_a(tmp_path, name):
    """Law 2: p_a becomes 1 - p_a, and every other number stays."""
    rows = [EXAMPLES[name]] * 3
    battles = load_benchmark(name, str(write_benchmark(tmp_path, name, rows)))
    verdicts = predict(battles, lambda row, text: float(len(text)), bias=0.1)
    swaps = {"response_a": "response_b", "response_b": "response_a", "right_a": "right_b", "right_b": "right_a"}
    swapped = battles.rename_columns(swaps)
    mirrored = verdicts.assign(
        p_a=1 - verdicts["p_a"], p_a_m_ab=1 - verdicts["p_a_m_ba"], p_a_m_ba=1 - verdicts["p_a_m_ab"]
    )
    there, back = score_battles(name, battles, verdicts), score_battles(name, swapped, mirrored)
    for row in (*there.values(), *back.values()):
        del row["always a"]
    assert there == back


def test_no_number_depends_on_the_order_of_the_rows(tmp_path):
    """Law 1, intervals included."""
    changes = [{"prompt": f"{number}", "subset": "Focus" if number % 3 else "Math"} for number in range(12)]
    judge = lambda row, text: float(len(text) * (int(row["prompt"]) % 5 - 2))  # noqa: E731
    there, back = (score(tmp_path, "rewardbench2", each, judge) for each in (changes, changes[::-1]))
    assert there.keys() == back.keys() and there["overall"]["judge"]["low"] is not None
    for name, row in there.items():
        for player, estimate in row.items():
            assert estimate == pytest.approx(back[name][player]), (name, player)


def test_an_interval_is_over_prompts(tmp_path):
    """Twelve votes on one prompt give no interval; on twelve prompts they do, and 12 of 12 has Wilson's."""
    one = score(tmp_path, "llmbar", [{} for _ in range(12)], is_right("I do not know."))
    assert (one["overall"]["judge"]["low"], one["overall"]["judge"]["high"]) == pytest.approx((0.2065, 1), abs=1e-4)
    many = score(tmp_path, "llmbar", [{"input": f"{number}"} for number in range(12)], is_right("I do not know."))
    assert (many["overall"]["judge"]["low"], many["overall"]["judge"]["high"]) == pytest.approx((0.7575, 1), abs=1e-4)
