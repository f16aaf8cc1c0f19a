"""YAML first, flags override it, and mistakes are errors that show the way out before torch is loaded."""

import os
import re
import subprocess
import sys
from unittest.mock import Mock

import pytest
import torch

import modeling
from modeling.settings import parsing
from modeling.settings.arguments import QuantizeArguments
from modeling.settings.flags import REFUSED_FLAGS
from modeling.settings.parsing import parse_arguments
from modeling.settings.reading_arguments import PredictArguments
from tests.helpers import REPOSITORY
from tests.settings.commands import KINDS, PREDICT, TRAIN, parse, write_recipe


def test_flags_win_over_the_recipe_and_the_recipe_over_defaults(tmp_path):
    recipe = write_recipe(tmp_path, PREDICT + "tokens_per_batch: 64\nreadings: both\nuse_cpu: true")
    expected = PredictArguments(
        battles="b.jsonl", judge=["x", "y"], output_dir="out", readings="own", tokens_per_batch=64, use_cpu=True
    )
    assert parse("predict", recipe, "--readings", "own", "--judge", "x", "y") == (expected,)
    flags = ["--base", "b", "--output_dir", "o"]
    assert parse("quantize", write_recipe(tmp_path, ""), *flags) == (QuantizeArguments(base="b", output_dir="o"),)


def test_without_a_recipe_the_demo_runs_and_a_missing_recipe_is_named():
    demo, _ = parse("train", "--orientation", "ba")
    assert demo == parse("train", str(REPOSITORY / "configs/demo/train.yaml"), "--orientation=ba")[0]
    with pytest.raises(FileNotFoundError, match=r"Recipe nowhere\.yaml: expected a YAML file; found none.*configs/"):
        parse("train", "nowhere.yaml")


def test_file_beside_the_script_is_not_read(tmp_path, monkeypatch):
    """By default HfArgumentParser reads <script>.args first."""
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
        (PREDICT + "readings: twice", "", r"--readings: invalid choice: 'twice' \(choose from 'both', 'own'\)"),
        (PREDICT + "judge: []", "", r"--judge: expected at least one argument"),
        ("- battles\n- judge", "", r"recipe\.yaml: expected `key: value` lines; found a list"),
        ("judge: [a", "", r"recipe\.yaml: expected YAML; found"),
        (
            "",
            "",
            r"Expected --battles, --judge, --output_dir; found neither flag nor YAML key.*members or judges",
        ),
        (PREDICT + "output_dir:", "--judge x", r"Expected --output_dir; .*--output_dir: Folder for predictions"),
    ],
)
def test_unknown_keys_flags_and_values_are_errors_with_a_way_out(tmp_path, recipe, argv, message):
    """A ValueError, not argparse's SystemExit after several screens of usage."""
    with pytest.raises(ValueError, match=message):
        parse("predict", write_recipe(tmp_path, recipe), *argv.split())


def test_yaml_values_become_the_types_of_their_fields(tmp_path):
    """YAML 1.1 reads 2e-4 as text, 0xFACED as an integer, and no as false."""
    text = "seed: 0xFACED\nlearning_rate: 2e-4\ntf32: no\ndo_train: true\nnum_folds: null\n"
    arguments, training = parse("train", write_recipe(tmp_path, TRAIN + text + "lr_scheduler_kwargs: {num_cycles: 2}"))
    assert (training.seed, training.learning_rate, arguments.num_folds) == (0xFACED, 0.0002, None)
    assert (training.tf32, training.do_train) == (False, True)
    assert training.lr_scheduler_kwargs == {"num_cycles": 2}
    for text, members in (("[ab, ba]", ["ab", "ba"]), ("ab", ["ab"]), ("\n- ab", ["ab"])):
        assert parse("predict", write_recipe(tmp_path, f"{PREDICT}judge: {text}"))[0].judge == members


@pytest.mark.parametrize("available", [True, False])
def test_use_cpu_is_set_only_where_there_is_no_accelerator(tmp_path, monkeypatch, available):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: available)
    cases = ("", "", not available), ("", "--use_cpu", True), ("use_cpu: false", "", False), ("use_cpu: true", "", True)
    for line, argv, expected in (*cases, ("use_cpu: true", "--use_cpu false", False)):
        assert parse("predict", write_recipe(tmp_path, PREDICT + line), *argv.split())[0].use_cpu is expected


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("bf16", "true", "bfloat16"),
        ("bf16", "false", "float32"),
        ("fp16", "true", "auto"),
        ("bf16_full_eval", "true", "bfloat16"),
        ("fp16_full_eval", "true", "auto"),
    ],
)
def test_precision_is_set_only_by_dtype(tmp_path, name, value, instead):
    message = f"--{name} .*: expected --dtype instead.*Write --dtype {instead}, or in YAML dtype: {instead}"
    with pytest.raises(ValueError, match=message):
        parse("train", write_recipe(tmp_path, TRAIN), f"--{name}", value)
    with pytest.raises(ValueError, match=message):
        parse("train", write_recipe(tmp_path, f"{TRAIN}{name}: {value}\n"))


REFUSED_SWITCHES = ("save_only_model", "ignore_data_skip", "auto_find_batch_size", "torch_compile")


@pytest.mark.parametrize("name", REFUSED_FLAGS)
def test_a_flag_that_would_break_a_promise_is_refused_with_the_reason(tmp_path, name):
    """As `save_only_model`, after which a restart would have a fresh optimizer."""
    value = "5" if name == "neftune_noise_alpha" else "true"
    for line, flags in (("", [f"--{name}", value]), (f"{name}: {value}\n", [])):
        with pytest.raises(ValueError, match=f"(?i)--{name} {value}: expected without it; .*Leave it out"):
            parse("train", write_recipe(tmp_path, TRAIN + line), *flags)
    parse("train", write_recipe(tmp_path, TRAIN), *([f"--{name}", "false"] if name in REFUSED_SWITCHES else []))


def test_a_reporter_whose_package_is_missing_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(parsing, "find_spec", lambda name: None if name == "wandb" else object())
    with pytest.raises(ValueError, match="--report_to wandb: expected the package wandb; found none"):
        parse("train", write_recipe(tmp_path, TRAIN), "--report_to", "wandb")
    for name in ("none", "tensorboard"):
        parse("train", write_recipe(tmp_path, TRAIN), "--report_to", name)


# --- the demo's recipe ----------------------------------------------------------------------------------------------


def test_a_flag_about_evaluation_batches_warns_that_it_has_no_effect(tmp_path, caplog):
    parse("train", write_recipe(tmp_path, TRAIN))
    assert "no effect" not in caplog.text
    flags = ["--per_device_eval_batch_size", "2"]
    parse("train", write_recipe(tmp_path, TRAIN), *flags)
    assert "--per_device_eval_batch_size: no effect" in caplog.text


def test_own_data_never_runs_the_demos_recipe(caplog):
    """256 tokens, rank 16, 12 frozen layers and no checkpoints suit only the demo's base."""
    caplog.set_level("INFO")
    flags = ["--orientation", "ab", "--base", "base", "--train_file", "mine.parquet", "--output_dir", "out"]
    found, training = parse("train", *flags)
    assert (found.max_length, found.lora_r, found.freeze_layers) == (2200, 64, 0)
    assert "No recipe: the script's defaults" in caplog.messages
    expected = {"learning_rate": 2e-4, "num_train_epochs": 1, "per_device_train_batch_size": 4, "seed": 0xFACED}
    expected |= {"gradient_accumulation_steps": 4, "gradient_checkpointing": True, "lr_scheduler_type": "linear"}
    expected |= {"gradient_checkpointing_kwargs": {"use_reentrant": True}, "warmup_steps": 0.025, "report_to": []}
    expected |= {"optim": "adamw_8bit", "max_grad_norm": 1, "save_strategy": "steps", "save_steps": 500}
    expected |= {"save_total_limit": 2, "logging_steps": 10}
    assert {name: vars(training)[name] for name in expected} == expected
    assert parse("train", *flags, "--activation_checkpointing", "false")[1].gradient_checkpointing is False

    demo, _ = parse("train", "--orientation", "ab")
    assert (demo.max_length, demo.lora_r, demo.freeze_layers) == (256, 16, 12)
    assert "Recipe: configs/demo/train.yaml" in caplog.messages


OWN = {
    "train": ["train_file", "eval_file", "base", "start_from"],
    "predict": ["battles", "judge", "cascade"],
    "pseudolabel": ["battles", "judge"],
    "evaluate": ["battles", "predictions", "judge"],
    "select": ["battles", "predictions", "judge", "annotations"],
    "quantize": ["base", "merge_adapter"],
    "app": ["judge"],
    "publish": ["member", "judge", "base"],
}


@pytest.mark.parametrize(("verb", "name"), [(verb, name) for verb, names in OWN.items() for name in names])
def test_each_flag_for_own_data_or_model_requires_the_others(verb, name, caplog):
    caplog.set_level("INFO")
    try:
        parse(verb, f"--{name}", "mine")
    except ValueError as error:
        assert "xpected --" in str(error)
    else:
        assert verb == "app" and "No recipe: the script's defaults" in caplog.messages


def test_another_default_recipe_runs_and_is_named_in_help(tmp_path, monkeypatch, capsys):
    """As `python -m benchmarks.speed` does: from the current folder, not from the packaged configs/."""
    monkeypatch.chdir(tmp_path)
    options = {"verb": "quantize", "command": "python -m mine", "default_recipe": "recipe.yaml"}
    write_recipe(tmp_path, "base: b\noutput_dir: o\n")
    assert parse_arguments(QuantizeArguments, **options, argv=[])[0] == QuantizeArguments(base="b", output_dir="o")
    with pytest.raises(SystemExit):
        parse_arguments(QuantizeArguments, **options, argv=["--help"])
    printed = capsys.readouterr().out
    assert (
        "usage: python -m mine [CONFIG.yaml]" in printed and "Without CONFIG.yaml, recipe.yaml runs, unless" in printed
    )


# --- before torch is loaded ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--max_steps many", "--max_steps: invalid int value: 'many'"),
        ("--learning_rate fast", "--learning_rate: invalid float value: 'fast'"),
        ("--do_train perhaps", "--do_train: expected true or false; got perhaps"),
        ("--optim adam", "--optim: invalid choice: 'adam'"),
        ("--lerning_rate 1", "'--lerning_rate'. Did you mean --learning_rate"),
    ],
)
def test_the_trainers_values_are_checked_before_torch_is_loaded(tmp_path, monkeypatch, argv, message):
    monkeypatch.setattr(parsing, "start_torch", Mock(side_effect=AssertionError))
    with pytest.raises(ValueError, match=re.escape(message)):
        parse("train", write_recipe(tmp_path, TRAIN), *argv.split())


@pytest.mark.parametrize(
    ("verb", "argv", "message"),
    [
        ("train", "--base outputs/no/base --train_file x.csv", "Base outputs/no/base: .* run `make demo` first"),
        ("train", "--base b --train_file none.csv", "Battles file none.csv: expected a file, a folder"),
        ("train", "--base b --train_file setup.cfg", "setup.cfg: expected a file ending in .parquet, .csv"),
        ("train", "--base modeling --train_file a/b", "Base modeling: expected a model folder with config.json"),
        ("predict", "--judge a/b/c --battles a/b", "Judge a/b/c: expected a folder here or a Hub repository"),
        ("evaluate", "--predictions none.parquet --battles a/b", "Predictions none.parquet: expected a file; found"),
        ("quantize", "--base package:no_such/x.gguf", "expected the installed package no_such; found none"),
        ("quantize", "--base a/b --merge_adapter a/b/c", "Adapter a/b/c: expected a folder here or a Hub"),
        ("app", "--judge ../none", "Judge ../none: expected a folder here or a Hub repository; found neither"),
        ("publish", "--base none --repo a/b", "--base none: expected the folder of a base; found none"),
    ],
)
def test_a_wrong_path_is_an_error_before_torch_is_loaded(verb, argv, message, real_paths, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(parsing, "start_torch", Mock(side_effect=AssertionError))
    rest = [] if verb in ("app", "publish") else ["--output_dir", "out"]
    rest += ["--orientation", "ab"] if verb == "train" else []
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        parse(verb, *argv.split(), *rest)


def run_python(program: str, *argv: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", program, *argv]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"})


# Runs a script and prints at the end which slow packages it loaded.
LOADED = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("LOADED", sorted({"torch", "transformers", "datasets", "pandas", "accelerate", "gradio"} & set(sys.modules)))
"""


@pytest.mark.parametrize("verb", KINDS)
def test_help_and_mistakes_load_nothing_heavy(verb):
    for argv, code in ((["--help"], 0), (["--no_such_flag", "1"], 2), (["nowhere.yaml"], 2)):
        done = run_python(LOADED, f"scripts/{verb}.py", *argv)
        assert done.returncode == code and done.stdout.endswith("LOADED []\n"), done.stderr


def test_the_package_is_imported_lazily():
    program = "import sys, modeling\n"
    program += "heavy = {'torch', 'transformers', 'datasets', 'pandas'}\nassert not heavy & set(sys.modules)\n"
    program += "assert {'Judge', 'load_battles', 'Gemma2ForPreference'} <= set(dir(modeling)) & set(modeling.__all__)\n"
    program += "from modeling import Gemma2ForPreference, Judge, load_battles\n"
    program += "print(Judge.__module__, load_battles.__module__, Gemma2ForPreference.__module__)"
    done = run_python(program)
    assert done.stdout == "modeling.judging.judge modeling.data.battles modeling.network.classifier\n", done.stderr
    with pytest.raises(AttributeError, match="module 'modeling' has no attribute 'jugde'"):
        modeling.jugde  # noqa: B018
