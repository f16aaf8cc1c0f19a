import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from modeling.encoding.encoder import BattleEncoder, Encoding
from modeling.judging.canaries import compute_canary_logits, load_canaries
from modeling.judging.loading import load_judge, merge_member
from modeling.judging.member import read_member


@pytest.mark.parametrize("name", ["float32", "bfloat16", "8bit", "4bit"])
def test_a_merged_member_answers_as_its_adapter_did(name, bases, make_member, tmp_path, caplog):
    """Law 6 after a merge, for every kind of base: read as a member, and as a transformers model with this package."""
    dtype = "float32" if name == "float32" else "bfloat16"
    model = make_member(tmp_path / "ab", bases[name], "ab", dtype=dtype)
    caplog.set_level("INFO")
    merge_member(str(tmp_path / "ab"), tmp_path / "merged", dtype)
    assert "canary probabilities changed by at most" in caplog.text
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    plain = {
        "config.json",
        "model.safetensors",
        "member.json",
        "probes.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert names == plain
    facts = read_member(tmp_path / "merged")
    assert facts.orientation == "ab" and set(facts.files) == plain - {"member.json"}
    assert str(tmp_path) not in (tmp_path / "merged" / "config.json").read_text()

    (merged,) = load_judge([str(tmp_path / "merged")])
    battles, encoder = load_canaries(), merged.encoder
    before, after = (compute_canary_logits(m, encoder, battles) for m in (model, merged.activate()))
    tolerance = 1e-4 if name == "float32" else 0.02
    assert (before.softmax(-1) - after.softmax(-1)).abs().max() <= tolerance
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert loaded.dtype == (torch.float32 if name == "float32" else torch.bfloat16)
    encoded = encoder.encode(encoder.clean_battles(battles), "ab")
    with torch.inference_mode():  # one battle at a time: transformers alone does not read packed sequences
        outside = torch.cat([loaded(input_ids=torch.tensor([battle["input_ids"]])).logits for battle in encoded])
    assert (before.softmax(-1) - outside.softmax(-1)).abs().max() <= tolerance


def test_a_float32_member_merged_into_bf16_reads_in_bf16(members, tmp_path):
    """Its canaries were recorded in float32: bf16 weights read in float32 would miss float32's tolerance."""
    merge_member(str(members["ab"]), tmp_path / "merged")
    (merged,) = load_judge([str(tmp_path / "merged")])
    assert merged.dtype == merged.facts.dtype == "bfloat16" and merged.model.dtype == torch.bfloat16


def test_what_cannot_be_merged_is_refused_and_nothing_is_written(members, tmp_path, tokenizer):
    merge_member(str(members["ab"]), tmp_path / "merged", "float32")
    with pytest.raises(ValueError, match="expected a member with an adapter; found a merged one"):
        merge_member(str(tmp_path / "merged"), tmp_path / "again", "float32")
    judge = tmp_path / "judge"
    for name, folder in members.items():
        (judge / name).parent.mkdir(exist_ok=True)
        (judge / name).symlink_to(folder)
    (judge / "judge.json").write_text(json.dumps({"format": 1, "members": ["ab", "ba"]}))
    with pytest.raises(ValueError, match="expected a member with an adapter; found 2 members"):
        merge_member(str(judge), tmp_path / "again", "float32")
    assert not (tmp_path / "again").exists()


def test_a_merge_that_changes_the_canaries_is_an_error(members, tmp_path, monkeypatch):
    """A merge that loses the adapter, as PEFT does silently where names differ."""
    monkeypatch.setattr("peft.tuners.lora.Linear.get_delta_weight", lambda self, adapter: self.weight * 0)
    with pytest.raises(ValueError, match=r"merged: expected the probabilities of its canary battles .* a change of"):
        merge_member(str(members["ab"]), tmp_path / "merged", "float32")
    assert not (tmp_path / "merged").exists()


def test_an_encoding_travels_with_a_merged_member(members, tmp_path, sample_battles):
    merge_member(str(members["ba"]), tmp_path / "merged", "float32")
    (merged,) = load_judge([str(tmp_path / "merged")])
    (member,) = load_judge([str(members["ba"])])
    assert merged.encoder.encoding == member.encoder.encoding == Encoding.from_dict(merged.facts.encoding)
    rows = sample_battles.to_list()[:4]
    read = [BattleEncoder.encode(m.encoder, m.encoder.clean_battles(rows), "ba") for m in (merged, member)]
    assert read[0] == read[1]
