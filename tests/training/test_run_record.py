import numpy as np
import pytest
from datasets import Dataset

from modeling.data.battles import list_orders
from modeling.encoding.collator import encode_dataset
from modeling.encoding.encoder import BattleEncoder, build_encoding
from modeling.runtime.files import hash_file
from modeling.training.run_record import build_eval_verdicts, describe_source
from tests.helpers import SAMPLES


def test_a_source_is_described_by_counts_and_its_hash(tmp_path, sample_battles):
    file = SAMPLES / "test.jsonl"
    found = describe_source("train", str(file), sample_battles)
    assert found["source"] == "test.jsonl" and found["sha256"] == hash_file(file) and found["battles"] == 72
    assert found["languages"] == dict.fromkeys(found["languages"], 4) and len(found["languages"]) == 18
    assert found["outcomes"] == {"a": 36, "b": 36, "tie": 0}
    soft = Dataset.from_dict({"label": [[0.5, 0.5], [0.4, 0.6], [0.2, 0.8]], "language": [None, "Thai", "Thai"]})
    found = describe_source("eval", "owner/name", soft)
    assert found["outcomes"] == {"a": 0, "b": 2, "tie": 1} and found["languages"] == {"Thai": 2}
    assert (found["source"], found["sha256"]) == ("owner/name", None)


@pytest.mark.parametrize("orientation", ["ab", "ba", "both"])
def test_verdicts_of_a_trainers_evaluation_belong_to_their_battles(orientation, sample_battles, tokenizer):
    """Law 1 and 2: each pass gives answer a the battle's own number, in whichever slot it stands."""
    encoder = BattleEncoder(tokenizer, build_encoding(tokenizer, 96, "balanced"))
    encoded = encode_dataset(sample_battles, encoder, orientation)
    numbers = np.linspace(0.1, 0.9, len(sample_battles))
    orders = list_orders(orientation)
    # By slot: a is in the first slot of "ab" and in the second of "ba".
    by_order = {"ab": np.stack([numbers, 1 - numbers], axis=1), "ba": np.stack([1 - numbers, numbers], axis=1)}
    probabilities = np.stack([by_order[order] for order in orders], axis=1)
    verdicts = build_eval_verdicts(probabilities, encoded, sample_battles, orientation)
    assert verdicts["id"].tolist() == sample_battles["id"][:]
    assert np.allclose(verdicts["p_a"], numbers)
    names = [f"p_a_{orientation}_{order}" for order in orders]
    assert [name for name in verdicts if name.startswith("p_a_")] == names
    lengths = [
        battle["length"] for battle in encoder.encode(encoder.clean_battles(sample_battles.to_list()), orders[0])
    ]
    assert verdicts["tokens"].tolist() == lengths and verdicts["cut_prompt"].max() > 0
