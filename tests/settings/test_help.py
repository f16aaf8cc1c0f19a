"""--help lists every flag with its help text and the value that runs."""

import re
from dataclasses import fields

import pytest
from transformers import TrainingArguments

from modeling.settings.train_arguments import TRAINING_DEFAULTS, TrainArguments
from tests.settings.commands import KINDS, parse, write_recipe


def read_help(capsys, monkeypatch, verb: str, *argv: str) -> str:
    """Returns what --help prints, in one line per flag."""
    monkeypatch.setenv("COLUMNS", "10000")
    with pytest.raises(SystemExit) as exit:
        parse(verb, *argv)
    assert exit.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", KINDS)
def test_help_lists_every_field_and_exits_0(verb, capsys, monkeypatch):
    printed = read_help(capsys, monkeypatch, verb, "--help")
    assert f"{verb}.py [CONFIG.yaml] [--flag value ...]" in printed and KINDS[verb].__doc__.strip() in printed
    for field in fields(KINDS[verb]):
        assert re.search(rf"^  --{field.name} ", printed, re.M)
        assert field.metadata["help"] and field.metadata["help"] in printed
    groups = re.findall(r"^(\w[\w ]*)(?: \(.*\))?:$", printed, re.M)
    assert len(groups) == len(set(groups)) >= 3 and "other" not in groups and groups[-1] == "help"
    assert read_help(capsys, monkeypatch, verb, "nowhere.yaml", "--output", "x", "-h")  # in any place


def test_the_trainers_flags_come_last_and_are_hidden_unless_asked_for(capsys, monkeypatch):
    short = read_help(capsys, monkeypatch, "train", "--help")
    whole = read_help(capsys, monkeypatch, "train", "--help_all")
    shown = re.findall(r"^  --(\w+)", short, re.M)
    first = min(shown.index(name) for name in TRAINING_DEFAULTS)
    assert first > max(shown.index(field.name) for field in fields(TrainArguments))
    assert set(TRAINING_DEFAULTS) < set(shown) and "adam_beta1" not in shown
    for field in fields(TrainingArguments):
        assert re.search(rf"^  --{field.name} ", whole, re.M)


def test_help_shows_the_values_that_run(tmp_path, capsys, monkeypatch):
    """The script's defaults, beside them the demo's where its recipe would run, and a YAML's values instead of both."""
    printed = read_help(capsys, monkeypatch, "train", "--help")
    assert "Rank of the adapters. [64; the demo runs 16]" in printed
    assert "--learning_rate FLOAT" in printed and "[2e-4; the demo runs 0.0001]" in printed
    printed = read_help(capsys, monkeypatch, "train", "--train_file", "mine.parquet", "--help")
    assert "Rank of the adapters. [64]" in printed and "the demo runs" not in printed
    recipe = write_recipe(tmp_path, "lora_r: 7\nadam_beta1: 0.8\n")
    printed = read_help(capsys, monkeypatch, "train", recipe, "--help")
    assert "Rank of the adapters. [7]" in printed and re.search(r"--adam_beta1 FLOAT .* \[0.8\]", printed)
