import numpy as np
import pytest
from datasets import Dataset

from modeling.encoding.collator import encode_evaluation
from modeling.encoding.encoder import BattleEncoder, build_encoding
from modeling.runtime.files import hash_file
from modeling.training.run_record import describe_command, describe_source, read_evaluation
from tests.helpers import DEMO_DATA


def test_a_source_is_described_by_counts_and_its_hash(tmp_path, demo_battles):
    file = DEMO_DATA / "test.jsonl"
    found = describe_source("train", str(file), demo_battles)
    assert found["source"] == "test.jsonl" and found["sha256"] == hash_file(file) and found["battles"] == 72
    assert found["languages"] == dict.fromkeys(found["languages"], 4) and len(found["languages"]) == 18
    assert found["outcomes"] == {"a": 36, "b": 36, "tie": 0}
    soft = Dataset.from_dict({"label": [[0.5, 0.5], [0.4, 0.6], [0.2, 0.8]], "language": [None, "Thai", "Thai"]})
    found = describe_source("eval", "owner/name", soft)
    assert found["outcomes"] == {"a": 0, "b": 2, "tie": 1} and found["languages"] == {"Thai": 2}
    assert (found["source"], found["sha256"]) == ("owner/name", None)


def test_a_command_is_told_as_typed_without_folders_of_this_machine():
    """Law 12."""
    argv = ["/home/someone/bothways/scripts/train.py", "--orientation", "ab", "--train_file", "/data/my battles.csv"]
    told = describe_command([*argv, "--eval_file=/data/test.csv", "--output_dir", "outputs/mine/ab"])
    assert told == (
        "accelerate launch scripts/train.py --orientation ab --train_file 'my battles.csv' --eval_file=test.csv "
        "--output_dir outputs/mine/ab"
    )


@pytest.mark.parametrize("orientation", ["ab", "ba", "both"])
def test_verdicts_of_a_trainers_evaluation_belong_to_their_battles(orientation, demo_battles, tokenizer):
    """Law 1 and 2. Each reading's logit for the slot of answer a is made to be the battle's own number, so p_a is its
    sigmoid, whatever order the evaluation set has."""
    encoder = BattleEncoder(tokenizer, build_encoding(tokenizer, 96, "balanced"))
    encoded = encode_evaluation(demo_battles, encoder, orientation)
    numbers = np.linspace(-2, 2, len(demo_battles))
    logits = np.zeros((len(encoded), 2))
    orders = {"both": ["ab", "ba"]}.get(orientation, [orientation])
    for place, row in enumerate(encoded["row"]):
        slot_of_a = {"ab": 0, "ba": 1}[orders[place % len(orders)]]
        logits[place, slot_of_a] = numbers[row]
    verdicts = read_evaluation(logits, encoded, demo_battles, orientation)
    assert verdicts["id"].tolist() == demo_battles["id"][:]
    assert np.allclose(verdicts["p_a"], 1 / (1 + np.exp(-numbers)))
    names = [f"p_a_{orientation}_{order}" for order in orders]
    assert [name for name in verdicts if name.startswith("p_a_")] == names
    lengths = [battle["length"] for battle in encoder.encode(encoder.clean_battles(demo_battles.to_list()), orders[0])]
    assert verdicts["tokens"].tolist() == lengths and verdicts["cut_prompt"].max() > 0
