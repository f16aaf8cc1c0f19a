"""Laws of mixture.py: no evaluation prompt is trained on, every drop is logged, weights and confidences are applied."""

import pytest
from accelerate import PartialState
from datasets import Dataset

from modeling.data.battles import load_battles
from modeling.data.mixture import describe_battles, drop_contaminated, drop_duplicates, mix_sources, soften_label
from modeling.data.near_duplicates import DuplicateIndex

PartialState()  # accelerate's logger needs it
PROMPTS = {
    "en": "Explain to my grandmother, who grew up on a farm, why the sky over the hills turns red in the evening and "
    "whether a red sky really tells tomorrow's weather, in plain words and without any formula.",
    "ko": "시골 농장에서 자란 우리 할머니께 저녁이면 언덕 위의 하늘이 왜 붉게 물드는지, 그리고 붉은 하늘이 "
    "정말로 내일의 날씨를 알려 주는지 어려운 공식 없이 쉬운 말로 차근차근 설명해 주세요.",
    "ja": "農場で育った祖母に、夕方になると丘の上の空がなぜ赤く染まるのか、"
    "そして赤い空は本当に明日の天気を教えてくれるのかを、"
    "難しい数式を使わずにやさしい言葉で順を追って説明してください。",
}
OTHERS = ["What is the capital of Chile?", "Write a limerick about a tired printer.", "오늘 저녁 메뉴를 추천해 주세요."]


def build_battles(*rows: dict) -> Dataset:
    plain = {"prompt": "p", "response_a": "one", "response_b": "two", "label": [1.0, 0.0]}
    return Dataset.from_list([{"id": f"x{number}", **plain, **row} for number, row in enumerate(rows)])


def index(*prompts: str) -> DuplicateIndex:
    made = DuplicateIndex()
    made.add(prompts)
    return made


# --- contamination ----------------------------------------------------------------------------------------------------


def change(prompt: str, kind: str) -> str:
    """Returns the prompt as it may leak; "overlapping" keeps the first 90% of it."""
    return {
        "exact": prompt,
        "case": prompt.upper(),
        "white space": f"\n {prompt.replace(' ', '  ')}\t",
        "overlapping": prompt[: len(prompt) * 9 // 10] + "###########",
    }[kind]


@pytest.mark.parametrize("language", PROMPTS)
@pytest.mark.parametrize("kind", ["exact", "case", "white space", "overlapping"])
def test_a_planted_contamination_is_found_counted_and_removed(language, kind, caplog):
    planted, *others = change(PROMPTS[language], kind), *OTHERS
    battles = build_battles({"prompt": others[0]}, {"prompt": planted}, *({"prompt": other} for other in others[1:]))
    evaluation = index("An evaluation prompt.", PROMPTS[language])
    kept = drop_contaminated("pool.parquet", battles, evaluation, leak_policy="drop")
    assert kept["id"][:] == ["x0", "x2", "x3"]
    exact, near = (0, 1) if kind == "overlapping" else (1, 0)
    counts = f"{exact} have a prompt of the evaluation part and {near} a near-duplicate of one; dropped from training"
    assert f"pool.parquet: 1 of 4 battles are contaminated: {counts}" in caplog.text and "battle 'x1'" in caplog.text


def test_contaminated_battles_may_be_kept_or_stop_the_run(caplog):
    battles, evaluation = build_battles({"prompt": OTHERS[0]}), index(OTHERS[0])
    assert len(drop_contaminated("f", battles, evaluation, leak_policy="keep")) == 1
    assert "f: 1 of 1 battles are contaminated" in caplog.text and "kept" in caplog.text
    with pytest.raises(
        ValueError, match=r"f: 1 of 1 battles .* expected none\. same: battle 'x0'\. Pass --leak_policy drop"
    ):
        drop_contaminated("f", battles, evaluation, leak_policy="error")
    assert len(drop_contaminated("f", battles, index("something else"), leak_policy="error")) == 1


# --- duplicates and equal responses -----------------------------------------------------------------------------------


def test_duplicates_and_equal_responses_are_counted_and_dropped_where_asked(caplog):
    battles = build_battles(
        {"response_a": "left", "response_b": "right"},
        {"prompt": " P", "response_a": "Right", "response_b": "left", "label": [0.0, 1.0]},  # the first one, swapped
        {"response_a": "left", "response_b": "other"},
        {"response_a": "same", "response_b": " same"},
    )
    kept = drop_duplicates("f", battles, repeat_policy="keep", identical_policy="keep")
    assert kept["id"][:] == battles["id"][:]
    assert "f: kept 1 of 4 battles that repeat another (--repeat_policy keep): battle 'x1'" in caplog.text
    assert "f: kept 1 of 4 battles with two equal responses (--identical_policy keep): battle 'x3'" in caplog.text
    assert drop_duplicates("f", battles, repeat_policy="drop", identical_policy="keep")["id"][:] == ["x0", "x2", "x3"]
    assert drop_duplicates("f", battles, repeat_policy="drop", identical_policy="drop")["id"][:] == ["x0", "x2"]
    assert "dropped 1 of 4 battles with two equal responses" in caplog.text


def test_duplicates_with_the_opposite_winner_are_counted_apart(caplog):
    """With swapped sides, the same label names the opposite winner; a tie opposes no winner."""
    sides = {"response_a": "left", "response_b": "right"}
    swapped = {"response_a": "right", "response_b": "LEFT"}
    a, b, tie = [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]
    battles = build_battles(
        {**sides, "label": a},
        {**sides, "label": a},
        {**swapped, "label": b},
        {**sides, "label": tie},
        {**sides, "label": b},
        {**swapped, "label": [0.9, 0.1]},
    )
    kept = drop_duplicates("f", battles, repeat_policy="drop", identical_policy="keep")
    assert kept["id"][:] == ["x0"]
    assert "f: dropped 3 of 6 battles that repeat another (--repeat_policy drop): battles 'x1', 'x2', 'x" in caplog.text
    assert "f: dropped 2 of 6 battles that repeat another with the opposite winner (--repeat" in caplog.text


# --- mixing -----------------------------------------------------------------------------------------------------------


def test_sources_are_mixed_with_their_weights_and_confidences():
    """Three battles have weight 1 and one has weight 5. The mean is 2, so they become 0.5 and 2.5, 1 on average."""
    first, second = build_battles({}, {}, {"label": [0.5, 0.5]}), build_battles({"id": 7, "label": [0.25, 0.75]})
    mixed = mix_sources([("first", first), ("second", second)], weights=[1, 5], confidences=[0.9, 0.8])
    assert mixed["weight"][:] == [0.5, 0.5, 0.5, 2.5]
    assert mixed["label"][0] == pytest.approx([0.9, 0.1]) and mixed["label"][2] == pytest.approx([0.5, 0.5])
    assert mixed["label"][3] == pytest.approx([0.8 * 0.25 + 0.2 * 0.75, 0.8 * 0.75 + 0.2 * 0.25])
    assert mixed["id"][:] == ["x0", "x1", "x2", "7"] and mixed["train_source"][:] == ["first"] * 3 + ["second"]


def test_one_source_is_unchanged_and_has_no_weights():
    battles = build_battles({"language": "en"}, {"language": None, "label": [0.3, 0.7]})
    mixed = mix_sources([("f", battles)])
    assert mixed["label"][:] == battles["label"][:] and mixed["language"][:] == ["en", None]
    assert set(mixed.column_names) == {"id", "prompt", "response_a", "response_b", "label", "language", "train_source"}


def test_a_doubted_label_is_a_distribution_over_all_labels():
    assert soften_label([1.0, 0.0], 0.9) == pytest.approx([0.9, 0.1])
    assert soften_label([1.0, 0.0, 0.0], 0.8) == pytest.approx([0.8, 0.1, 0.1])


def test_several_teachers_are_averaged_and_null_is_skipped():
    battles = build_battles(
        {"t1": 0.8, "t2": [0.4, 0.6]}, {"t1": None, "t2": [0.3, 0.7]}, {"t1": None, "t2": None}, {"t1": 1.0, "t2": None}
    )
    other = build_battles({})  # has no teacher column
    mixed = mix_sources([("f", battles), ("g", other)], teacher_columns=["t1", "t2"])
    expected = [[0.6, 0.4], [0.3, 0.7], None, [1.0, 0.0], None]
    for found, teacher in zip(mixed["teacher"], expected, strict=True):
        assert found == (teacher and pytest.approx(teacher))


def test_a_teacher_column_of_a_csv_is_read_as_the_schemas_read_theirs(tmp_path):
    (tmp_path / "f.csv").write_text(
        'id,prompt,response_a,response_b,winner,t,u\nx,p,a,b,tie,0.7,\ny,p,a,b,tie,,\nz,p,a,b,tie,"[0.25, 0.75]",0.75\n'
    )
    mixed = mix_sources([("f.csv", load_battles(tmp_path / "f.csv"))], teacher_columns=["t", "u"])
    assert mixed["teacher"][:] == [pytest.approx([0.7, 0.3]), None, [0.5, 0.5]]
    for wrong in ("much", "1.5", "[1]", "nan"):
        (tmp_path / "g.csv").write_text(f"id,prompt,response_a,response_b,winner,t\nx,p,a,b,tie,{wrong}\n")
        with pytest.raises(ValueError, match=r"g.csv: battle 'x': --teacher_column t must be null, .*; found .+ Fix"):
            mix_sources([("g.csv", load_battles(tmp_path / "g.csv"))], teacher_columns=["t"])


def test_a_teacher_column_without_probabilities_is_an_error():
    battles = build_battles({"t": 1.5}, {"t": 0.5})
    with pytest.raises(ValueError, match=r"f: battle 'x0': --teacher_column t must be null, .*; found 1.5\. Fix"):
        mix_sources([("f", battles)], teacher_columns=["t"])
    with pytest.raises(ValueError, match="--teacher_column u: expected a column of a --train_file; found id, prompt"):
        mix_sources([("f", battles)], teacher_columns=["u"])


def test_the_table_counts_sources_languages_and_sides():
    battles = build_battles(
        {"train_source": "s", "language": "en", "response_a": "longer one"},
        {"train_source": "s", "language": "en", "label": [0.0, 1.0], "response_a": "longer one"},
        {"train_source": "s", "language": "ko", "label": [0.5, 0.5]},
        {"train_source": "t", "language": None, "label": [0.4, 0.6]},
    )
    rows = [line.split() for line in describe_battles(battles).splitlines()]
    assert rows[0] == ["source", "language", "battles", "a", "wins", "b", "wins", "ties", "longer", "wins"]
    assert ["s", "en", "2", "1", "1", "0", "50.0%"] in rows and ["s", "ko", "1", "0", "0", "1", "-"] in rows
    assert ["s", "all", "3", "1", "1", "1", "50.0%"] in rows and ["t", "-", "1", "0", "1", "0", "0.0%"] in rows
