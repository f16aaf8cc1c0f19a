"""--start_from: training goes on from a member's adapter and head; --save_tokenizer false leaves its tokenizer out."""

import pandas as pd
import pytest
from safetensors.torch import load_file

from modeling.judging.judge import Judge
from modeling.judging.member import read_member
from tests.helpers import SAMPLES, TRAINING, call, fail

ADAPTER = ["--lora_r", 4, "--lora_alpha", 4, "--freeze_layers", 0]


@pytest.fixture
def flags(bases, members, tmp_path) -> list:
    """A run of two steps that starts from the member "ab"."""
    run = [TRAINING, "--base", bases["float32"].folder, "--train_file", SAMPLES / "test.jsonl", "--max_length", 96]
    run += ["--orientation", "ba", "--start_from", members["ab"], "--output_dir", tmp_path / "out", "--max_steps", 2]
    return [*run, *ADAPTER, "--dtype", "float32"]


def load_weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def test_training_starts_from_the_members_weights(flags, members, tmp_path, monkeypatch):
    before = load_weights(members["ab"])
    call("train", *flags, "--learning_rate", 0, monkeypatch=monkeypatch)
    after = load_weights(tmp_path / "out")
    assert before.keys() == after.keys() and all(before[name].equal(after[name]) for name in before)
    assert read_member(tmp_path / "out").training["start_from"] == "ab"

    call("train", *flags, "--learning_rate", 1e-3, monkeypatch=monkeypatch)
    trained = load_weights(tmp_path / "out")
    assert all(0 < (before[name] - trained[name]).abs().max() < 0.01 for name in before)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--lora_r", 8], "found others for --lora_r: r 4, lora_alpha 4"),
        (["--lora_alpha", 8], "found others for --lora_alpha: "),
        (["--freeze_layers", 1], "found others for the layers above --freeze_layers: "),
    ],
)
def test_other_adapter_settings_are_refused(more, expected, flags, monkeypatch, caplog):
    assert expected in fail("train", *flags, *more, monkeypatch=monkeypatch, caplog=caplog)


def test_a_member_on_another_base_is_refused(flags, bases, monkeypatch, caplog):
    said = fail("train", *flags, "--base", bases["8bit"].folder, monkeypatch=monkeypatch, caplog=caplog)
    assert "expected a member on --base" in said and "merge the adapter into this one with quantize.py" in said


def test_a_judge_of_two_members_is_refused(flags, members, tmp_path, monkeypatch, caplog):
    judge = members["ab"].parent
    (judge / "judge.json").write_text('{"members": ["ab", "ba"], "readings": "own", "format": 1}')
    try:
        said = fail("train", *flags, "--start_from", judge, monkeypatch=monkeypatch, caplog=caplog)
    finally:
        (judge / "judge.json").unlink()
    assert "expected a member with an adapter; found 2 members" in said


def test_a_member_without_a_tokenizer_reads_with_its_bases(flags, tmp_path, monkeypatch, sample_battles):
    verdicts = {}
    for name, more in (("with", []), ("without", ["--save_tokenizer", "false"])):
        call("train", *flags, *more, "--output_dir", tmp_path / name, monkeypatch=monkeypatch)
        verdicts[name] = Judge.from_pretrained(tmp_path / name).predict(sample_battles.select(range(4)))
    assert (tmp_path / "with" / "tokenizer.json").is_file()
    assert not list((tmp_path / "without").glob("tokenizer*"))
    columns = ["p_a", "tokens"]
    pd.testing.assert_frame_equal(verdicts["with"][columns], verdicts["without"][columns])
