"""Each benchmark is read from rows in its authors' format, and a file of another version is an error."""

import json
from pathlib import Path

import pytest

from modeling.data.benchmarks import FORMATS, LANGUAGES, PPE_TAGS, REWARDBENCH_SECTIONS, TIES, load_benchmark
from modeling.runtime.choices import BENCHMARKS
from tests.helpers import write_rows

USER, ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}
OTHER = {"role": "assistant", "content": "I do not know."}
SECOND = [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}]
# One row of each benchmark, with all of its published columns that are read, and one that is not.
ROWS: dict[str, dict] = {
    "rewardbench": {
        "id": 30,
        "prompt": "Why?",
        "chosen": "Because.",
        "rejected": "I do not know.",
        "subset": "llmbar-natural",
        "chosen_model": "GPT-4",
    },
    "rewardbench2": {
        "id": "7",
        "prompt": "Why?",
        "chosen": ["Because."],
        "rejected": ["I do not know.", "Never.", "What?"],
        "num_correct": 1,
        "total_completions": 4,
        "subset": "Precise IF",
    },
    "rm-bench": {
        "id": "chat-1",
        "prompt": "Why?",
        "chosen": ["c0", "c1", "c2"],
        "rejected": ["r0", "r1", "r2"],
        "domain": "safety-refuse",
    },
    "judgebench": {
        "pair_id": "81ec57f2",
        "original_id": "10646",
        "source": "mmlu-pro-computer science",
        "question": "Why?",
        "response_model": "gpt-4o-2024-05-13",
        "response_A": "Because.",
        "response_B": "I do not know.",
        "label": "B>A",
    },
    "llmbar": {"input": "Why?", "output_1": "Because.", "output_2": "I do not know.", "label": 2},
    "ppe": {
        "question_id": "q1",
        "prompt": "Why?",
        "response_1": "Because.",
        "response_2": "I do not know.",
        "winner": "tie (bothbad)",
        "language": "Polish",
        "model_a": "m1",
        "model_b": "m2",
        "hard_prompt": True,
        "easy_prompt": False,
        "if_prompt": False,
        "is_code": True,
        "math_prompt": False,
        "is_refusal": False,
    },
    "m-rewardbench": {
        "id": 30,
        "language": "jpn_Jpan",
        "prompt": "なぜ？",
        "chosen": "だから。",
        "rejected": "さあ。",
        "source": "hep-rust",
        "rejected_model": "m2",
    },
    "mt-bench": {
        "question_id": 81,
        "model_a": "alpaca-13b",
        "model_b": "gpt-3.5-turbo",
        "winner": "model_b",
        "judge": "expert_0",
        "conversation_a": [USER, ANSWER, *SECOND],
        "conversation_b": [USER, OTHER, *SECOND],
        "turn": 1,
    },
    "helpsteer3": {
        "domain": "multilingual",
        "language": "korean",
        "context": [USER],
        "response1": "Because.",
        "response2": "I do not know.",
        "overall_preference": -2,
        "individual_preference": [{"score": -2}],
    },
}


def write_benchmark(folder: Path, name: str, rows: list[dict]) -> Path:
    """Writes rows as the file in which the authors publish them: LLMBar's folder tells the subset."""
    path = folder / ("Natural/dataset.json" if name == "llmbar" else f"{name}.jsonl")
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
        return path
    return write_rows(path, rows)


def load(folder: Path, name: str, *changes: dict) -> list[dict]:
    """The battles of the benchmark's row with each of these changes."""
    rows = [ROWS[name] | change for change in changes or ({},)]
    return load_benchmark(name, str(write_benchmark(folder, name, rows))).to_list()


def test_every_benchmark_has_a_format_and_a_data_set():
    assert set(FORMATS) == set(BENCHMARKS) == set(ROWS)


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_becomes_battles_of_the_right_answer_against_the_others(tmp_path, name):
    """Every label is that of its texts: where b is better, a is not "Because.", and so on."""
    battles = load(tmp_path, name)
    assert len(battles) == {"rewardbench2": 6, "rm-bench": 9}.get(name, 1)
    good = {
        "judgebench": "I do not know.",
        "llmbar": "I do not know.",
        "mt-bench": "I do not know.",
        "m-rewardbench": "だから。",
    }
    good = {"c0", "c1", "c2"} if name == "rm-bench" else {good.get(name, "Because.")}
    for battle in battles:
        assert battle["prompt"] == ("なぜ？" if name == "m-rewardbench" else "Why?")
        lead = (battle["response_a"] in good) - (battle["response_b"] in good)
        expected = {"ppe": 0, "helpsteer3": 2 / 3}.get(name, lead)
        assert battle["label"] == pytest.approx([(1 + expected) / 2, (1 - expected) / 2])
        assert (battle["right_a"] > battle["right_b"]) == (expected > 0)
    assert {battle["subset"] for battle in battles} <= set(FORMATS[name].subsets)
    assert len({battle["id"] for battle in battles}) == len(battles)


def test_what_a_number_is_made_of_is_kept(tmp_path):
    found = {name: load(tmp_path, name) for name in FORMATS}
    assert found["judgebench"][0]["subset"] == "knowledge" and found["judgebench"][0]["tags"] == ["gpt-4o-2024-05-13"]
    assert found["ppe"][0]["tags"] == ["hard prompts", "code"] and found["ppe"][0]["language"] == "Polish"
    assert found["ppe"][0]["model_a"] == "m1" and "language" not in found["rewardbench"][0]
    assert found["mt-bench"][0]["subset"] == "turn 1" and found["mt-bench"][0]["tags"] == ["expert"]
    assert found["m-rewardbench"][0]["group"] == "30"  # all translations are drawn together
    assert found["helpsteer3"][0]["subset"] == "multilingual" and found["helpsteer3"][0]["language"] == "korean"
    assert load(tmp_path, "mt-bench", {"turn": 2})[0]["response_a"] == "[Turn 1] Because.\n\n[Turn 2] Yes."


def test_rm_bench_is_hard_where_the_wrong_answer_has_the_fancier_style(tmp_path):
    levels = {}
    for battle in load(tmp_path, "rm-bench"):
        right, wrong = sorted((battle["response_a"], battle["response_b"]))  # c0 to c2, r0 to r2
        levels[right[1] + wrong[1]] = battle["tags"][0]
    assert {pair for pair, level in levels.items() if level == "hard"} == {"01", "02", "12"}
    assert {pair for pair, level in levels.items() if level == "normal"} == {"00", "11", "22"}
    assert {pair for pair, level in levels.items() if level == "easy"} == {"10", "20", "21"}


def test_prompts_of_ties_are_paired_by_their_number(tmp_path):
    tied = {"id": "tied:4", "subset": TIES, "chosen": ["Red.", "Blue."], "rejected": ["Car."]}
    ref = {"id": "ref:4", "subset": TIES, "chosen": ["Sky."], "rejected": ["Sea."]}
    battles = load(tmp_path, "rewardbench2", tied, ref)
    assert [battle["group"] for battle in battles] == ["Ties 4"] * 4  # three pairs and one
    assert [battle["tags"] for battle in battles] == [["tied", "4"]] * 3 + [["ref", "4"]]
    both = next(b for b in battles if {b["response_a"], b["response_b"]} == {"Red.", "Blue."})
    assert both["label"] == [0.5, 0.5] and both["right_a"] == both["right_b"] == 1


@pytest.mark.parametrize("numbers", [("tied:4",), ("ref:4",), ("tied:4", "ref:5")])
def test_ties_without_a_pair_of_both_kinds_are_refused(tmp_path, numbers):
    changes = [{"id": number, "subset": TIES} for number in numbers]
    with pytest.raises(ValueError, match=r"--benchmark rewardbench2: .*expected of Ties both ref:<number> and tied"):
        load(tmp_path, "rewardbench2", *changes)


def test_a_language_may_be_empty_in_some_rows(tmp_path):
    battles = load(tmp_path, "helpsteer3", {"language": "english"}, {"language": ""})
    assert [battle["language"] for battle in battles] == ["english", ""]


def test_ids_and_sides_do_not_depend_on_the_order_of_the_rows(tmp_path):
    """Law 1. Half of the right answers are on each side: of 200, 100 +- 3 standard deviations of 7."""
    changes = [{"prompt": f"Why {number}?"} for number in range(200)]
    there = {battle["id"]: battle for battle in load(tmp_path, "rewardbench", *changes)}
    back = {battle["id"]: battle for battle in load(tmp_path, "rewardbench", *reversed(changes))}
    assert there == back and len(there) == 200
    assert 79 < sum(battle["label"][0] for battle in there.values()) < 121


def test_the_same_row_twice_is_two_questions(tmp_path):
    first, second = load(tmp_path, "llmbar", {}, {})
    assert second["question"] == f"{first['question']}-2" and second["id"] != first["id"]


def test_a_blank_answer_is_read_as_an_empty_text(tmp_path):
    (battle,) = load(tmp_path, "judgebench", {"response_A": ""})
    assert battle["response_a"] == "" and battle["label"] == [0, 1]


def test_a_folder_is_read_as_its_authors_lay_it_out(tmp_path):
    """Of LLMBar's clone, the results beside the data are not read; of a data set on the Hub, the named split is."""
    for folder in ("Natural", "Adversarial/Manual"):
        (tmp_path / "LLMBar" / folder / "evaluators").mkdir(parents=True)
        (tmp_path / "LLMBar" / folder / "dataset.json").write_text(json.dumps([ROWS["llmbar"]]))
        (tmp_path / "LLMBar" / folder / "evaluators" / "result.json").write_text("[]")
    battles = load_benchmark("llmbar", str(tmp_path / "LLMBar"))
    assert sorted(battles["subset"]) == ["Manual", "Natural"]
    (tmp_path / "data").mkdir()
    for split in ("filtered", "raw"):
        write_rows(tmp_path / "data" / f"{split}-00000-of-00001.parquet", [ROWS["rewardbench"] | {"prompt": split}])
    assert load_benchmark("rewardbench", str(tmp_path))["prompt"] == ["filtered"]
    with pytest.raises(FileNotFoundError, match=r"--benchmark ppe: .*expected files \*\*/test-\*.parquet in this fol"):
        load_benchmark("ppe", str(tmp_path))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("number", range(3))
def test_a_file_without_a_column_is_of_another_version(tmp_path, name, number):
    column = FORMATS[name].columns[number]
    rows = [{key: value for key, value in ROWS[name].items() if key != column}]
    with pytest.raises(ValueError, match=f"--benchmark {name}: .*expected the columns .*found no {column}, only") as e:
        load_benchmark(name, str(write_benchmark(tmp_path, name, rows)))
    assert "another version of the benchmark" in str(e.value)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "rewardbench",
            {"subset": "anthropic_hhh"},
            "row 1: the subset must be one of alpacaeval-easy, .*'anthropic_h",
        ),
        ("judgebench", {"source": "arc"}, "the subset must be one of knowledge, reasoning, math, coding; found 'arc'"),
        ("judgebench", {"label": "A=B"}, "label must be one of A>B, B>A; found 'A=B'"),
        ("llmbar", {"label": 0}, "label must be 1 or 2; found 0"),
        ("rewardbench2", {"chosen": "Because."}, "chosen must be a list of texts; found 'Because.'"),
        ("rewardbench2", {"subset": TIES}, "ids of Ties must be ref:<number> or tied:<number>; found '7'"),
        ("rm-bench", {"chosen": ["c0"]}, r"chosen and rejected must have three styles each; found \[1, 3\]"),
        ("ppe", {"winner": "m1"}, "winner must be one of model_a, model_b, tie, .*found 'm1'"),
        ("mt-bench", {"turn": None}, "turn must be 1 or 2; found None"),
        ("mt-bench", {"turn": 3}, "turn must be 1 or 2; found 3"),
        ("mt-bench", {"judge": "gpt-4"}, "judge must be expert_<number> or author_<number>; found 'gpt-4'"),
        ("helpsteer3", {"overall_preference": 4}, "overall_preference must be a whole number from -3 to 3; found 4"),
        ("helpsteer3", {"domain": "law"}, "the subset must be one of general, code, stem, multilingual; found 'law'"),
    ],
)
def test_a_row_of_another_version_is_named(tmp_path, name, change, message):
    with pytest.raises(ValueError, match=f"--benchmark {name}: .*{message}"):
        load(tmp_path, name, change)


def test_other_json_and_an_unknown_folder_are_errors(tmp_path):
    (tmp_path / "Natural").mkdir()
    path = tmp_path / "Natural" / "dataset.json"
    for text, message in (
        ("{}", "expected one list of JSON objects"),
        ("[", "expected JSON; found"),
        ("[]", "only none"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_benchmark("llmbar", str(path))
    (tmp_path / "mine.json").write_text(json.dumps([ROWS["llmbar"]]))
    with pytest.raises(
        ValueError, match=r"the folder must tell the subset \(Natural, Neighbor, .*Give the folder Data"
    ):
        load_benchmark("llmbar", str(tmp_path / "mine.json"))


def test_the_tables_of_the_benchmarks_are_the_published_ones():
    """RewardBench's own counts: 2,985 rows, of which math-prm has 447 and weighs 984, as the code does."""
    weights = {name: weight for section in REWARDBENCH_SECTIONS.values() for name, weight in section.items()}
    assert sum(weights.values()) - weights["math-prm"] + 447 == FORMATS["rewardbench"].size
    assert weights["math-prm"] == sum(weight for name, weight in weights.items() if name.startswith("hep-"))
    assert len(LANGUAGES) == len(set(LANGUAGES)) == 23 and set(PPE_TAGS) < set(FORMATS["ppe"].columns)
