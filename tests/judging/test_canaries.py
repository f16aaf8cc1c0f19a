import pytest
import torch

from modeling.data.battles import DEMO_FOLDER, load_battles
from modeling.judging.canaries import (
    CANARY_LANGUAGES,
    CANARY_TOKENS,
    build_canary_encoder,
    compute_canary_logits,
    load_canaries,
    measure_change,
)
from modeling.network.base import load_base


def test_the_canaries_are_always_the_same_eight_battles_in_eight_languages():
    battles = load_canaries()
    assert [battle["language"] for battle in battles] == list(CANARY_LANGUAGES) and len(set(CANARY_LANGUAGES)) == 8
    assert [battle["id"] for battle in battles] == [battle["id"] for battle in load_canaries()]
    assert {battle["id"] for battle in battles} <= set(load_battles(DEMO_FOLDER / "test.jsonl")["id"])


def test_canary_logits_are_those_of_each_battle_alone_in_either_order(bases, tokenizer):
    """Packing does not change them."""
    model, encoder = load_base(bases["float32"], dtype="float32"), build_canary_encoder(tokenizer)
    battles = load_canaries()
    read = {orientation: compute_canary_logits(model, encoder, battles, orientation) for orientation in ("ab", "ba")}
    for orientation, logits in read.items():
        assert logits.shape == (8, 2) and logits.dtype == torch.float32
        for row, battle in zip(logits, encoder.encode(encoder.clean_battles(battles), orientation), strict=True):
            assert len(battle["input_ids"]) <= CANARY_TOKENS
            alone = model(input_ids=torch.tensor([battle["input_ids"]])).logits[0]
            torch.testing.assert_close(row, alone, rtol=0, atol=1e-5)
    assert not torch.equal(read["ab"], read["ba"])


def test_a_damaged_model_is_an_error_and_passes_no_tolerance(bases, tokenizer):
    model = load_base(bases["float32"], dtype="float32")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"Canary battles: expected finite logits; found 16 of 16 that are not"):
        compute_canary_logits(model, build_canary_encoder(tokenizer), load_canaries())


def test_the_largest_change_is_found_in_logits_and_in_probabilities():
    """softmax(0, 0) = 1/2 and softmax(0, ln 3) = 1/4, 3/4."""
    before, after = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 3.0], [1.0, 1.0]]).log1p()
    logit, probability = measure_change(torch.zeros(2, 2), torch.tensor([[0.0, 3.0], [1.0, 1.0]]).clamp(1).log())
    assert (logit, probability) == pytest.approx((1.0986123, 0.25))
    assert measure_change(before, before) == (0, 0) and measure_change(before, after)[0] > 0
