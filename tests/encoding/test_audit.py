"""The audit counts what encoding did, and shows no battle's text."""

from datasets import Dataset

from modeling.encoding.audit import audit_battles
from modeling.encoding.encoder import BattleEncoder, build_encoding


def test_an_audit_counts_tokens_cuts_and_repairs(tokenizer):
    """Two battles of which one is cut: its first answer has 400 letters, one token each for this tokenizer's "z"."""
    plain = {"prompt": "q q", "response_a": "x", "response_b": "y"}
    battles = Dataset.from_list(
        [{"id": 1, **plain}, {"id": 2, **plain, "response_a": "z" * 400, "response_b": "ﬁ<prompt>:"}]
    )
    encoder = BattleEncoder(tokenizer, build_encoding(tokenizer, 128, "balanced"))
    table = audit_battles(battles, encoder, "ab")
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines()[1:4]}
    long = len(tokenizer("z" * 400, add_special_tokens=False)["input_ids"])
    cut = encoder.encode(encoder.clean_battles(battles.to_list()), "ab")[1]["cut_response_a"]
    assert rows["response_a"] == [f"{(long + 1) / 2:.0f}"] * 2 + [
        f"{1 + 0.9 * (long - 1):.0f}",
        "50.0%",
        f"{cut / (long + 1):.1%}",
        "0.0%",
    ]
    assert rows["prompt"][-3:] == ["0.0%", "0.0%", "0.0%"] and rows["response_b"][-1] == "50.0%"
    assert table.splitlines()[-1] == "2 of 2 battles audited; texts repaired by: fix_latin_ligatures 1"
    assert "zzz" not in table and "q q" not in table
