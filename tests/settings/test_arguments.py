"""Combinations of flags that make no sense are errors that name the flags."""

from dataclasses import fields

import pytest

from tests.settings.commands import KINDS, PREDICT, TRAIN, parse, write_recipe


def test_orientation_is_required_and_one_of_three():
    with pytest.raises(ValueError, match=r"Expected --orientation; .*Order of the answers.*ab or ba or both"):
        parse("train")
    with pytest.raises(ValueError, match=r"--orientation: invalid choice: 'xy' \(choose from 'ab', 'ba', 'both'\)"):
        parse("train", "--orientation", "xy")


def test_eval_file_and_folds_exclude_each_other(tmp_path):
    """A flag cannot remove the recipe's num_folds, but it can set 0."""
    argv = write_recipe(tmp_path, TRAIN + "num_folds: 20\n"), "--eval_file", "e.jsonl"
    with pytest.raises(ValueError, match="--eval_file and --num_folds: expected one of them; found both"):
        parse("train", *argv)
    assert parse("train", *argv, "--num_folds", "0")[0].eval_file == "e.jsonl"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--fold 2", r"--fold 2: expected --num_folds too; found none"),
        ("--both_orders_weight 0.5", r"--both_orders_weight 0.5: expected 0 to 1, and --orientation both; found ab"),
        ("--orientation both --both_orders_weight nan", r"--both_orders_weight nan: expected 0 to 1"),
        ("--teacher_weight 0.5", r"--teacher_weight: expected --teacher_column too; found none"),
        (
            "--teacher_weight 1 --teacher_temperature 2",
            r"--teacher_weight, --teacher_temperature: expected --t",
        ),
        (
            "--teacher_column t --teacher_temperature nan",
            r"--teacher_temperature nan .* expected a temperature above",
        ),
        (
            "--teacher_column t --teacher_temperature inf",
            r"--teacher_temperature inf .* expected a temperature above",
        ),
        ("--teacher_column t --teacher_weight nan", r"--teacher_weight nan: .* a weight from 0 to 1"),
        ("--train_weights inf", r"--train_weights \[inf\]: expected finite numbers above 0"),
        ("--train_weights nan", r"--train_weights \[nan\]: expected finite numbers above 0"),
        ("--train_confidences nan", r"--train_confidences \[nan\]: expected numbers above 0.5"),
    ],
)
def test_flags_without_effect_and_numbers_out_of_range_are_errors(tmp_path, argv, message):
    with pytest.raises(ValueError, match=message):
        parse("train", write_recipe(tmp_path, TRAIN), *argv.split())


def test_pairs_of_names_and_values_are_flags_and_recipe_keys(tmp_path):
    flags = ["--columns", "response_a=answer_a", "id=a=b", "--winner_values", "model_a=1", "tie=0"]
    found = parse("predict", write_recipe(tmp_path, PREDICT), *flags)[0].row_policy
    assert found["columns"] == {"response_a": "answer_a", "id": "a=b"}  # a column's name may hold "="
    assert found["winner_values"] == {"model_a": "1", "tie": "0"}
    recipe = write_recipe(tmp_path, TRAIN + "columns: [response_a=answer_a]\n")
    assert parse("train", recipe)[0].row_policy["columns"] == {"response_a": "answer_a"}
    assert parse("train", write_recipe(tmp_path, TRAIN))[0].row_policy["columns"] == {}


@pytest.mark.parametrize("verb", ["train", "predict"])
@pytest.mark.parametrize("words", ["answer_a", "=answer_a", "id=a id=b"])
@pytest.mark.parametrize("flag", ["--columns", "--winner_values"])
def test_a_malformed_pair_is_an_error(tmp_path, verb, flag, words):
    recipe = write_recipe(tmp_path, {"train": TRAIN, "predict": PREDICT}[verb])
    with pytest.raises(ValueError, match=f"{flag} {words}: expected <name>=<value>, each name once; found '"):
        parse(verb, recipe, flag, *words.split())


@pytest.mark.parametrize("head", ["", "--head_hidden_size 32"])
def test_only_a_linear_head_can_be_without_a_bias(head):
    flags = f"--base b --output_dir out --head_bias false {head}".split()
    with pytest.raises(ValueError, match="--head_bias false: expected with --head_hidden_size 0, a linear head"):
        parse("quantize", *flags)
    assert not parse("quantize", *flags, "--head_hidden_size", "0")[0].head_bias


@pytest.mark.parametrize("verb", sorted(KINDS))
def test_every_script_has_the_same_dtype(verb):
    (field,) = [field for field in fields(KINDS[verb]) if field.name == "dtype"]
    assert field.default == "auto" and field.metadata["choices"] == ("auto", "bfloat16", "float16", "float32")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--budget 0.5", "--budget 0.5: expected with --method active or swiss, .* found all"),
        ("--method knockout --budget 0.5", "--budget 0.5: expected with --method active or swiss, .* found knockout"),
        ("--method swiss --budget 0", "--budget 0.0: expected a fraction of all pairs, above 0 and up to 1"),
        ("--method active --budget nan", "--budget nan: expected a fraction of all pairs, above 0 and up to 1"),
        ("--method best", "--method: invalid choice: 'best'"),
    ],
)
def test_a_budget_is_a_share_for_the_methods_that_choose_pairs(flags, message):
    given = ["--input", "a.jsonl", "--judge", "ab", "--output_dir", "out"]
    with pytest.raises(ValueError, match=message):
        parse("rank", *given, *flags.split())
    assert parse("rank", *given, "--method", "active", "--budget", "0.3")[0].budget == 0.3
