"""What predict.py --dry_run says, and the memory it computes against that of loaded members."""

import re

import pytest

from modeling.judging import dry_run
from modeling.judging.dry_run import measure_needs, read_source
from modeling.judging.judge import Judge
from modeling.judging.member import read_member
from modeling.network.base import measure_weights
from tests.helpers import SAMPLES, call, fail


@pytest.fixture
def flags(members, tmp_path) -> list:
    judge = ["--judge", *members.values(), "--battles", SAMPLES / "test.jsonl", "--output_dir", tmp_path / "out"]
    return [*judge, "--dry_run", "true"]


def test_it_says_tokens_and_memory_and_writes_nothing(flags, members, sample_battles, tmp_path, capsys, monkeypatch):
    call("predict", *flags, monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    judge = Judge.from_pretrained(list(members.values()), dtype="float32", merge="never")
    verdicts = judge.predict(sample_battles)
    assert f"2 members, {len(sample_battles)} battles: {2 * 2 * int(verdicts['tokens'].sum()):,} tokens" in said
    assert re.search(r"^GB +merged +expanded +stored$", said, re.M) and "--merge auto takes: merged" in said
    assert not (tmp_path / "out").exists()


def test_the_tokens_are_those_of_the_passes(flags, tmp_path, capsys, monkeypatch):
    (tmp_path / "none.csv").write_text("id,prompt,response_a,response_b\n")
    tokens = []
    for more in ([], ["--readings", "own"], ["--hide_prompts", "true"], ["--battles", tmp_path / "none.csv"]):
        call("predict", *flags, *more, monkeypatch=monkeypatch)
        tokens.append(int(re.search(r"battles: ([\d,]+) tokens", capsys.readouterr().out)[1].replace(",", "")))
    both, own, hidden, none = tokens
    assert both == 2 * own != hidden > none == 0  # every battle is cut, so hidden prompts make room for answers


def test_it_is_an_error_if_the_memory_is_not_there(flags, monkeypatch, caplog):
    monkeypatch.setattr(dry_run, "measure_free_memory", lambda device: 1000)
    said = fail("predict", *flags, monkeypatch=monkeypatch, caplog=caplog)
    assert "--dry_run: expected that much memory; found less. Take fewer --tokens_per_batch" in said


@pytest.mark.parametrize("name", ["bfloat16", "8bit", "4bit"])
def test_weights_are_counted_exactly(name, bases, make_member, tmp_path):
    for seed, orientation in enumerate(("ab", "ba")):
        make_member(tmp_path / orientation, bases[name], orientation, seed=seed)
    folders = [tmp_path / "ab", tmp_path / "ba"]
    needs = measure_needs(
        [read_source(folder, read_member(folder)) for folder in folders], dtype="float32", tokens=64, device_type="cpu"
    )
    judge = Judge.from_pretrained(folders, dtype="float32", merge="never")
    held = measure_weights(judge.members[0].model)
    # The model holds, beside two heads, the fresh one of the base.
    assert needs.bases + needs.adapters == pytest.approx(held, rel=0.01)
    merged = Judge.from_pretrained(folders, dtype="float32", merge="always").members
    own = {p.data_ptr(): p.nbytes for member in merged for p in member.model.parameters()}
    assert needs.kept + needs.merged == pytest.approx(sum(own.values()), rel=0.03)
