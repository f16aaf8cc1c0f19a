"""A run's settings: YAML first, flags win, and whatever is not understood fails with the way out."""

import re
import subprocess
import sys
from dataclasses import fields
from unittest.mock import Mock

import pytest
import torch
from transformers import TrainingArguments

from modeling import arguments, prediction_arguments
from modeling.arguments import QuantizeArguments
from modeling.launch import run_script
from modeling.parsing import REPOSITORY, parse_arguments
from modeling.prediction_arguments import PredictArguments

RECIPES = sorted(
    path for path in REPOSITORY.glob("configs/*/*.yaml") if path.parent.name not in ("accelerate", "study")
)
# What only a recipe's user knows.
USERS_FLAGS = {
    "train": "--orientation ab --train_file train.parquet",
    "predict": "--battles test.parquet",
    "pseudolabel": "--battles pool.parquet",
    "publish": "--member outputs/demo/ab --repo USER/NAME",
}
PREDICT = "battles: b.jsonl\njudge: [ab, ba]\noutput_dir: out\n"
TRAIN = "orientation: ab\nbase: base\ntrain_file: t.jsonl\noutput_dir: out\n"

KINDS, known = (
    {},
    {**vars(arguments), **vars(prediction_arguments), "TrainingArguments": TrainingArguments},
)  # verb: what its script parses
for script in sorted(REPOSITORY.glob("scripts/*.py")):
    call = re.search(r"parse_arguments\(([\w, ]+), verb=\"(\w+)\"\)", script.read_text(encoding="utf-8"))
    assert call and call[2] == script.stem, f"{script.name}: expected a call of parse_arguments with its own verb"
    KINDS[script.stem] = [known[name] for name in call[1].split(", ")]


def parse(verb: str, *argv: str) -> tuple:
    return parse_arguments(*KINDS[verb], verb=verb, argv=argv)


def write_recipe(folder, text: str) -> str:
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    return str(folder / "recipe.yaml")


def test_flags_win_over_the_recipe_and_the_recipe_over_defaults(tmp_path):
    recipe = write_recipe(tmp_path, PREDICT + "tokens_per_batch: 64\nreadings: both\nuse_cpu: true")
    expected = PredictArguments(
        battles="b.jsonl", judge=["x", "y"], output_dir="out", readings="own", tokens_per_batch=64, use_cpu=True
    )
    assert parse("predict", recipe, "--readings", "own", "--judge", "x", "y") == (expected,)
    flags = ["--base", "b", "--output_dir", "o"]
    assert parse("quantize", write_recipe(tmp_path, ""), *flags) == (QuantizeArguments(base="b", output_dir="o"),)


def test_without_a_recipe_the_demo_is_run_and_a_missing_one_is_named():
    demo, _ = parse("train", "--orientation", "ba")
    assert demo == parse("train", str(REPOSITORY / "configs/demo/train.yaml"), "--orientation=ba")[0]
    with pytest.raises(FileNotFoundError, match=r"Recipe nowhere\.yaml: expected a YAML file; found none.*configs/"):
        parse("train", "nowhere.yaml")


def test_file_beside_the_script_is_not_read(tmp_path, monkeypatch):
    """HfArgumentParser would put <script>.args, where there is one, before everything else."""
    (tmp_path / "predict.args").write_text("--tokens_per_batch 1")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "predict.py"), write_recipe(tmp_path, PREDICT)])
    assert parse_arguments(PredictArguments, verb="predict")[0].tokens_per_batch is None


@pytest.mark.parametrize(
    "recipe, argv, message",
    [
        (PREDICT + "jugde: [a]", "", r"recipe\.yaml: unknown key 'jugde'\. Did you mean judge\?"),
        (PREDICT + "1: x", "", r"unknown key 1\. --help lists"),
        (PREDICT, "--jugde a", r"'--jugde'\. Did you mean --judge\?"),
        (PREDICT, "--tokens-per-bach=3", r"Did you mean --tokens_per_batch"),
        (PREDICT, "--token 3", r"Unknown argument '--token'"),  # no abbreviations
        (PREDICT, "stray", r"Unknown argument 'stray'"),
        (PREDICT + "tokens_per_batch: 1.5", "", r"--tokens_per_batch.*invalid int value: '1.5'"),
        (PREDICT + "use_cpu: maybe", "", r"--use_cpu.*got maybe"),
        (PREDICT + "readings: twice", "", r"--readings: invalid choice: 'twice' \(choose from 'own', 'both'\)"),
        (PREDICT + "judge: []", "", r"--judge: expected at least one argument"),
        ("- battles\n- judge", "", r"recipe\.yaml: expected `key: value` lines; found a list"),
        ("judge: [a", "", r"recipe\.yaml: expected YAML; found"),
        (
            "",
            "",
            r"Expected --battles, --judge, --output_dir; found neither flag nor YAML key.*Members or whole",
        ),
        (PREDICT + "output_dir:", "--judge x", r"Expected --output_dir; .*--output_dir: Folder for predictions"),
    ],
)
def test_what_is_not_understood_is_a_value_error_with_the_way_out(tmp_path, recipe, argv, message):
    """ValueError, not argparse's SystemExit behind several screens of usage."""
    with pytest.raises(ValueError, match=message):
        parse("predict", write_recipe(tmp_path, recipe), *argv.split())


def test_orientation_has_no_default_and_is_one_of_three():
    with pytest.raises(ValueError, match=r"Expected --orientation; .*Which answer .* reads first.*ab or ba or both"):
        parse("train")
    with pytest.raises(ValueError, match=r"--orientation: invalid choice: 'xy' \(choose from 'ab', 'ba', 'both'\)"):
        parse("train", "--orientation", "xy")


def test_yaml_values_become_what_their_fields_are(tmp_path):
    """YAML 1.1 reads 2e-4 as text, 0xFACED as an integer, and no as false."""
    text = "seed: 0xFACED\nlearning_rate: 2e-4\nbf16: no\ndo_train: true\nnum_folds: null\n"
    arguments, training = parse("train", write_recipe(tmp_path, TRAIN + text + "lr_scheduler_kwargs: {num_cycles: 2}"))
    assert (training.seed, training.learning_rate, arguments.num_folds) == (0xFACED, 0.0002, None)
    assert (training.bf16, training.do_train) == (False, True)
    assert training.lr_scheduler_kwargs == {"num_cycles": 2}
    for text, members in (("[ab, ba]", ["ab", "ba"]), ("ab", ["ab"]), ("\n- ab", ["ab"])):
        assert parse("predict", write_recipe(tmp_path, f"{PREDICT}judge: {text}"))[0].judge == members


@pytest.mark.parametrize("available", [True, False])
def test_cpu_is_taken_unasked_only_where_there_is_no_accelerator(tmp_path, monkeypatch, available):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: available)
    cases = ("", "", not available), ("", "--use_cpu", True), ("use_cpu: false", "", False), ("use_cpu: true", "", True)
    for line, argv, expected in (*cases, ("use_cpu: true", "--use_cpu false", False)):
        assert parse("predict", write_recipe(tmp_path, PREDICT + line), *argv.split())[0].use_cpu is expected


def test_one_evaluation_set_and_not_two(tmp_path):
    """A flag cannot unsay the recipe's num_folds, but it can say 0."""
    argv = write_recipe(tmp_path, TRAIN + "num_folds: 20\n"), "--eval_file", "e.jsonl"
    with pytest.raises(ValueError, match="--eval_file and --num_folds: expected one of them; found both"):
        parse("train", *argv)
    assert parse("train", *argv, "--num_folds", "0")[0].eval_file == "e.jsonl"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--fold 2", r"--fold 2: expected --num_folds too; found none"),
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
def test_a_flag_that_would_do_nothing_or_harm_is_refused(tmp_path, argv, message):
    with pytest.raises(ValueError, match=message):
        parse("train", write_recipe(tmp_path, TRAIN), *argv.split())


@pytest.mark.parametrize("verb", KINDS)
def test_help_says_every_field_and_exits_0(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "10000")  # no line break inside a help text
    with pytest.raises(SystemExit) as exit:
        parse(verb, "nowhere.yaml", "--help")
    assert exit.value.code == 0
    printed = capsys.readouterr().out
    assert f"{verb}.py [CONFIG.yaml] [--flag value ...]" in printed and KINDS[verb][0].__doc__.strip() in printed
    for kind in KINDS[verb]:
        for field in (field for field in fields(kind) if field.init):
            assert re.search(rf"--{field.name}\b", printed)
            assert kind is TrainingArguments or (field.metadata["help"] and field.metadata["help"] in printed)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_recipe_parses_for_its_verb(recipe):
    assert parse(recipe.stem, str(recipe), *USERS_FLAGS.get(recipe.stem, "").split())


def test_gemma2_recipe_has_the_seeds_numbers():
    recipe = str(REPOSITORY / "configs/gemma2-9b/train.yaml")
    arguments, training = parse("train", recipe, *USERS_FLAGS["train"].split())
    expected = {"max_length": 2200, "lora_r": 64, "lora_alpha": 4, "lora_dropout": 0.05, "head_dropout": 0.1}
    expected |= {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "num_train_epochs": 1}
    expected |= {"learning_rate": 2e-4, "lr_scheduler_type": "linear", "warmup_steps": 0.025, "optim": "adamw_8bit"}
    expected |= {"weight_decay": 0, "max_grad_norm": 1, "label_smoothing_factor": 0, "bf16": True, "seed": 0xFACED}
    found = vars(arguments) | vars(training)
    assert {name: found[name] for name in expected} == expected


def test_mistake_ends_a_script_with_one_line_and_code_2(monkeypatch):
    monkeypatch.delenv("BOTHWAYS_TRACEBACK", raising=False)
    program = "from modeling.arguments import QuantizeArguments as Kind\nfrom modeling.parsing import parse_arguments\n"
    program += "from modeling.launch import run_script\n"
    program += "run_script(lambda: parse_arguments(Kind, verb='quantize'))"
    command = [sys.executable, "-c", program, "--bse", "b"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"[\d:]+ bothways: error: Unknown argument '--bse'\. Did you mean --base\?\n", done.stderr)


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError, KeyError])
def test_traceback_is_shown_on_request_and_always_for_our_own_faults(error, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    for asked, expected in (("0", KeyError if error is KeyError else SystemExit), ("1", error)):
        monkeypatch.setenv("BOTHWAYS_TRACEBACK", asked)
        with pytest.raises(expected):
            run_script(Mock(side_effect=error))
