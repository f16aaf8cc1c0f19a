"""A run's settings: YAML first, flags win, and whatever is not understood fails with the way out."""

import os
import re
import subprocess
import sys
from dataclasses import fields
from unittest.mock import Mock

import pytest
import torch
from transformers import TrainingArguments

import modeling
from modeling.runtime import paths
from modeling.runtime.startup import run_script
from modeling.settings import arguments, parsing, recipes
from modeling.settings.arguments import TRAINING_DEFAULTS, PredictArguments, QuantizeArguments, TrainArguments
from modeling.settings.flags import PRECISION_FLAGS, read_trainer_flags
from modeling.settings.parsing import parse_arguments
from modeling.settings.recipes import find_recipes
from tests.helpers import DEMO_DATA, REPOSITORY

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

KINDS, known = {}, vars(arguments)  # verb: what its script parses
for script in sorted(REPOSITORY.glob("scripts/*.py")):
    call = re.search(r"parse_arguments\((\w+), verb=\"(\w+)\"(, trainer=True)?\)", script.read_text(encoding="utf-8"))
    assert call and call[2] == script.stem, f"{script.name}: expected a call of parse_arguments with its own verb"
    assert bool(call[3]) == (script.stem == "train")
    KINDS[script.stem] = known[call[1]]


@pytest.fixture(autouse=True)
def any_path(request, monkeypatch):
    """Lets paths be named that do not exist, except where a test is about them."""
    if "real_paths" not in request.fixturenames:
        monkeypatch.setattr(parsing, "check_paths", lambda arguments: None)


@pytest.fixture
def real_paths():
    """Asks `any_path` to leave the checks as they are."""


def parse(verb: str, *argv: str) -> tuple:
    return parse_arguments(KINDS[verb], verb=verb, trainer=verb == "train", argv=argv)


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
    text = "seed: 0xFACED\nlearning_rate: 2e-4\ntf32: no\ndo_train: true\nnum_folds: null\n"
    arguments, training = parse("train", write_recipe(tmp_path, TRAIN + text + "lr_scheduler_kwargs: {num_cycles: 2}"))
    assert (training.seed, training.learning_rate, arguments.num_folds) == (0xFACED, 0.0002, None)
    assert (training.tf32, training.do_train) == (False, True)
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


# --- --help -----------------------------------------------------------------------------------------------------------


def read_help(capsys, monkeypatch, verb: str, *argv: str) -> str:
    """What is printed, without a line break inside a help text."""
    monkeypatch.setenv("COLUMNS", "10000")
    with pytest.raises(SystemExit) as exit:
        parse(verb, *argv)
    assert exit.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", KINDS)
def test_help_says_every_field_and_exits_0(verb, capsys, monkeypatch):
    printed = read_help(capsys, monkeypatch, verb, "--help")
    assert f"{verb}.py [CONFIG.yaml] [--flag value ...]" in printed and KINDS[verb].__doc__.strip() in printed
    for field in fields(KINDS[verb]):
        assert re.search(rf"^  --{field.name} ", printed, re.M)
        assert field.metadata["help"] and field.metadata["help"] in printed
    groups = re.findall(r"^(\w[\w ]*)(?: \(.*\))?:$", printed, re.M)
    assert len(groups) == len(set(groups)) >= 3 and "other" not in groups and groups[-1] == "help"
    assert read_help(capsys, monkeypatch, verb, "nowhere.yaml", "--output", "x", "-h")  # wherever it is


def test_the_trainers_flags_come_last_and_are_hidden_unless_asked_for(capsys, monkeypatch):
    short = read_help(capsys, monkeypatch, "train", "--help")
    whole = read_help(capsys, monkeypatch, "train", "--help_all")
    shown = re.findall(r"^  --(\w+)", short, re.M)
    first = min(shown.index(name) for name in TRAINING_DEFAULTS)
    assert first > max(shown.index(field.name) for field in fields(TrainArguments))
    assert set(TRAINING_DEFAULTS) < set(shown) and "adam_beta1" not in shown
    for field in fields(TrainingArguments):
        assert re.search(rf"^  --{field.name} ", whole, re.M)


def test_help_says_the_values_that_run(tmp_path, capsys, monkeypatch):
    """The script's, the demo's beside them where the demo's recipe would run, and a YAML's in their place."""
    printed = read_help(capsys, monkeypatch, "train", "--help")
    assert "Rank of the adapters. [64; the demo runs 16]" in printed
    assert "--learning_rate FLOAT" in printed and "[2e-4; the demo runs 0.00015]" in printed
    printed = read_help(capsys, monkeypatch, "train", "--train_file", "mine.parquet", "--help")
    assert "Rank of the adapters. [64]" in printed and "the demo runs" not in printed
    recipe = write_recipe(tmp_path, "lora_r: 7\nadam_beta1: 0.8\n")
    printed = read_help(capsys, monkeypatch, "train", recipe, "--help")
    assert "Rank of the adapters. [7]" in printed and re.search(r"--adam_beta1 FLOAT .* \[0.8\]", printed)


# --- recipes ----------------------------------------------------------------------------------------------------------


def test_own_data_never_gets_the_demos_recipe(caplog):
    """384 tokens, rank 16, 20 frozen layers and no checkpoints suit the demo's base and nobody's own."""
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
    assert (demo.max_length, demo.lora_r, demo.freeze_layers) == (384, 16, 20)
    assert "Recipe: configs/demo/train.yaml" in caplog.messages


OWN = {
    "train": ["train_file", "eval_file", "base"],
    "predict": ["battles", "judge", "cascade"],
    "pseudolabel": ["battles", "judge"],
    "evaluate": ["battles", "predictions", "judge"],
    "quantize": ["base", "merge_adapter"],
    "app": ["judge"],
    "publish": ["member", "judge", "base"],
}


@pytest.mark.parametrize(("verb", "name"), [(verb, name) for verb, names in OWN.items() for name in names])
def test_each_name_of_own_data_or_model_asks_for_the_rest(verb, name, caplog):
    caplog.set_level("INFO")
    try:
        parse(verb, f"--{name}", "mine")
    except ValueError as error:
        assert "xpected --" in str(error)
    else:
        assert verb == "app" and "No recipe: the script's defaults" in caplog.messages


def test_a_recipe_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse("train", "configs/demo/train.yaml", "--orientation", "ab") is not None
    assert parse("quantize")[0].output_dir == "outputs/demo/base"  # which stays in the current folder


def test_recipes_of_an_installed_package_are_found_without_importing_it(tmp_path, monkeypatch):
    (tmp_path / "bothways" / "configs" / "demo").mkdir(parents=True)
    (tmp_path / "bothways" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(recipes, "__file__", str(tmp_path / "elsewhere" / "modeling" / "recipes.py"))
    assert find_recipes() == tmp_path / "bothways" / "configs"


def test_packaged_battles_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "package:modeling/data/demo/test.jsonl"
    assert paths.split_source(name) == (str(DEMO_DATA / "test.jsonl"), None, None)
    assert len(modeling.load_battles(name)) == 72
    with pytest.raises(FileNotFoundError, match=r"expected the file none\.csv in the package; found none"):
        paths.check_source("package:modeling/none.csv")
    with pytest.raises(FileNotFoundError, match=r"expected the installed package no\.such; found none"):
        paths.check_source("package:no.such/none.csv")


# --- what is answered before torch is loaded --------------------------------------------------------------------------


def test_the_trainers_flags_are_those_of_the_installed_transformers():
    read = {flag.name: flag for flag in read_trainer_flags()}
    assert list(read) == [field.name for field in fields(TrainingArguments) if field.init]
    for field in fields(TrainingArguments):
        if isinstance(field.default, int | float | bool):
            assert read[field.name].default == field.default
        if field.name not in ("output_dir", *PRECISION_FLAGS):
            assert read[field.name].help == field.metadata["help"].replace("%%", "%")
    assert read["per_device_train_batch_size"].kind is int and read["do_train"].kind is bool
    assert "adamw_8bit" in read["optim"].choices and read["save_strategy"].choices == ("no", "steps", "epoch", "best")


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
def test_the_trainers_simple_values_are_checked_at_once(tmp_path, monkeypatch, argv, message):
    monkeypatch.setattr(parsing, "start_torch", Mock(side_effect=AssertionError))
    with pytest.raises(ValueError, match=re.escape(message)):
        parse("train", write_recipe(tmp_path, TRAIN), *argv.split())


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
def test_precision_is_said_by_dtype_alone(tmp_path, name, value, instead):
    message = f"--{name} .*: expected --dtype instead.*Write --dtype {instead}, or in YAML dtype: {instead}"
    with pytest.raises(ValueError, match=message):
        parse("train", write_recipe(tmp_path, TRAIN), f"--{name}", value)
    with pytest.raises(ValueError, match=message):
        parse("train", write_recipe(tmp_path, f"{TRAIN}{name}: {value}\n"))


@pytest.mark.parametrize("verb", ["train", "predict", "pseudolabel", "evaluate", "quantize", "app", "publish"])
def test_every_script_has_the_same_dtype(verb):
    (field,) = [field for field in fields(KINDS[verb]) if field.name == "dtype"]
    assert field.default == "auto" and field.metadata["choices"] == ("auto", "bfloat16", "float16", "float32")


@pytest.mark.parametrize(
    ("verb", "argv", "message"),
    [
        ("train", "--base outputs/no/base --train_file x.csv", "Base outputs/no/base: .* run `make demo` first"),
        ("train", "--base b --train_file none.csv", "Battles file none.csv: expected a file, a folder"),
        ("train", "--base b --train_file setup.cfg", "setup.cfg: expected a file ending in .parquet, .csv, .jsonl"),
        ("train", "--base modeling --train_file a/b", "Base modeling: expected a model folder with config.json"),
        ("predict", "--judge a/b/c --battles a/b", "Judge a/b/c: expected a folder here or a Hub repository"),
        ("evaluate", "--predictions none.parquet --battles a/b", "Predictions none.parquet: expected a file; found"),
        ("quantize", "--base package:no_such/x.gguf", "expected the installed package no_such; found none"),
        ("quantize", "--base a/b --merge_adapter a/b/c", "Adapter a/b/c: expected a folder here or a Hub"),
        ("app", "--judge ../none", "Judge ../none: expected a folder here or a Hub repository; found neither"),
        ("publish", "--base none --repo a/b", "--base none: expected the folder of a base; found none"),
    ],
)
def test_a_wrong_path_is_answered_before_torch_is_loaded(verb, argv, message, real_paths, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(parsing, "start_torch", Mock(side_effect=AssertionError))
    rest = [] if verb in ("app", "publish") else ["--output_dir", "out"]
    rest += ["--orientation", "ab"] if verb == "train" else []
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        parse(verb, *argv.split(), *rest)


def test_names_that_the_hub_takes_are_those_that_pass():
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    names = [
        "gpt2",
        "a/b",
        "a/b.c-d_e",
        "outputs/demo/base",
        "/a/b",
        "../a",
        "./a",
        "a--b",
        "a/b.git",
        "é/a",
        "",
        "a b",
    ]
    for name in [*names, "-a/b", "a/b-", "x" * 97]:
        try:
            validate_repo_id(name)
            expected = True
        except HFValidationError:
            expected = False
        assert paths.is_repository_id(name) is expected, name


def run_python(program: str, *argv: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", program, *argv]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"})


# Runs a script and says at its end which heavy packages were loaded.
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
    assert done.stdout == "modeling.judging.judge modeling.data.battles modeling.classifier\n", done.stderr
    with pytest.raises(AttributeError, match="module 'modeling' has no attribute 'jugde'"):
        modeling.jugde  # noqa: B018


# --- recipes in the repository ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_recipe_parses_for_its_verb(recipe):
    assert parse(recipe.stem, str(recipe), *USERS_FLAGS.get(recipe.stem, "").split())


def test_gemma2_recipe_has_the_seeds_numbers():
    recipe = str(REPOSITORY / "configs/gemma2-9b/train.yaml")
    arguments, training = parse("train", recipe, *USERS_FLAGS["train"].split())
    expected = {"max_length": 2200, "lora_r": 64, "lora_alpha": 4, "lora_dropout": 0.05, "head_dropout": 0.1}
    expected |= {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "num_train_epochs": 1}
    expected |= {"learning_rate": 2e-4, "lr_scheduler_type": "linear", "warmup_steps": 0.025, "optim": "adamw_8bit"}
    expected |= {"weight_decay": 0, "max_grad_norm": 1, "label_smoothing_factor": 0, "dtype": "auto", "seed": 0xFACED}
    found = vars(arguments) | vars(training)
    assert {name: found[name] for name in expected} == expected


def test_mistake_ends_a_script_with_one_line_and_code_2(monkeypatch):
    monkeypatch.delenv("BOTHWAYS_TRACEBACK", raising=False)
    program = "from modeling.settings.arguments import QuantizeArguments as Kind\nfrom modeling.settings.parsing import parse_arguments\n"
    program += "from modeling.runtime.startup import run_script\n"
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
