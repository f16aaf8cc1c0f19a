"""The preference model: head, pooling, loss, and saving and loading of each family."""

import math

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    Gemma2Config,
    Gemma2ForSequenceClassification,
    Gemma3TextConfig,
    LlamaConfig,
    Qwen2Config,
    set_seed,
)

from modeling.encoding.packing import pack_sequences
from modeling.network.base import BaseFiles, load_base
from modeling.network.classifier import (
    POOLINGS,
    Gemma2ForPreference,
    Gemma2PreferenceConfig,
    PreferenceHead,
    find_family,
    find_last_token,
)
from modeling.network.losses import soft_cross_entropy
from tests.helpers import SMALL, make_batch


@pytest.mark.parametrize("config", [Gemma2Config, Gemma3TextConfig, LlamaConfig, Qwen2Config])
def test_each_family_saves_and_loads_to_the_same_logits(config, tmp_path):
    """The config comes from a plain checkpoint; transformers' Auto class rebuilds the saved model."""
    family = find_family(config.model_type)
    set_seed(0)
    model = family(family.config_class(**SMALL, head_hidden_size=24, head_dropout=0.3)).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert type(loaded) is family
    assert (loaded.config.head_hidden_size, loaded.config.head_dropout) == (24, 0.3)
    assert torch.equal(loaded(**make_batch()).logits, model(**make_batch()).logits)


@pytest.mark.parametrize("base", ["float32", "bfloat16", "8bit", "4bit"])
def test_a_fresh_head_on_a_plain_checkpoint_is_well_initialised(base, bases):
    """Unit-variance first layer, a last layer that starts near p = 1/2, zero biases, and float32 on every base."""
    model = load_base(bases[base], dtype="float32" if base == "float32" else "bfloat16")
    head = model.score
    assert head.dense.weight.dtype == head.out.weight.dtype == torch.float32
    assert type(head.dense) is nn.Linear  # bitsandbytes did not quantise it
    assert head.dense.weight.std().item() == pytest.approx(1 / math.sqrt(64), rel=0.1)
    assert head.out.weight.std().item() == pytest.approx(0.1 / math.sqrt(32), rel=0.4)
    assert not head.dense.bias.any() and not head.out.bias.any()
    probabilities = model.eval()(**make_batch()).logits.softmax(-1)
    assert (probabilities - 0.5).abs().max() < 0.1


def test_the_default_head_is_a_two_layer_mlp():
    """Dropout, Linear(hidden, hidden // 2), Dropout, GELU, Linear(hidden // 2, 2), biases: 6,427,906 at Gemma-2-9B."""
    config = Gemma2PreferenceConfig(hidden_size=3584)
    head = PreferenceHead(config).eval()
    assert sum(parameter.numel() for parameter in head.parameters()) == 6_427_906
    features = torch.randn(3, 3584)
    expected = nn.Sequential(nn.Dropout(0.1), head.dense, nn.Dropout(0.1), nn.GELU(), head.out).eval()
    assert torch.allclose(head(features), expected(features))


def test_head_hidden_size_0_gives_the_stock_linear_head():
    head = PreferenceHead(Gemma2PreferenceConfig(**SMALL, head_hidden_size=0))
    assert {name: tuple(value.shape) for name, value in head.state_dict().items()} == {
        "out.weight": (2, 64),
        "out.bias": (2,),
    }


def test_a_linear_head_without_a_bias_is_the_stock_head(tmp_path):
    """Its size is a config field that travels with the weights; it cannot be centred, and an MLP keeps its biases."""
    set_seed(0)
    config = Gemma2PreferenceConfig(**SMALL, head_hidden_size=0, head_bias=False)
    model = Gemma2ForPreference(config).eval()
    stock = Gemma2ForSequenceClassification(Gemma2Config(**SMALL))
    shapes = {name: value.shape for name, value in stock.score.state_dict().items()}
    assert {name.removeprefix("out."): value.shape for name, value in model.score.state_dict().items()} == shapes
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert loaded.score.out.bias is None
    assert torch.equal(loaded(**make_batch()).logits, model(**make_batch()).logits)
    with pytest.raises(ValueError, match="--center_head: expected a head whose first layer has a bias; found a linear"):
        model.score.center(torch.randn(3, 64))
    with pytest.raises(ValueError, match="head_bias: expected false only for a linear head; found head_hidden_size 32"):
        Gemma2PreferenceConfig(**SMALL, head_bias=False)


def test_a_reward_models_head_is_replaced(tmp_path):
    """A base may bring `score.weight` with one label; the preference head is then initialised with two."""
    Gemma2ForSequenceClassification(Gemma2Config(**SMALL, num_labels=1)).save_pretrained(tmp_path)
    model = load_base(BaseFiles(tmp_path), dtype="float32")
    assert model.config.num_labels == 2 and model(**make_batch()).logits.shape == (3, 2)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("pad", [0, 399])
def test_padding_changes_no_logit(pad, pooling):
    """Pooling uses the attention mask, so the pad token may be eos, on either side, in any number."""
    set_seed(0)
    model = Gemma2ForPreference(Gemma2PreferenceConfig(**SMALL, initializer_range=0.3, pooling=pooling)).eval()
    rows = [make_batch((length,), seed=length)["input_ids"][0] for length in (5, 9, 2)]
    for row in rows:
        row[-1] = pad  # this id is real here: it ends the battle and must be pooled
    alone = [model(input_ids=row[None]).logits[0] for row in rows]
    for side in ("right", "left"):
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side=side, padding_value=pad)
        ones = [torch.ones_like(row) for row in rows]
        mask = nn.utils.rnn.pad_sequence(ones, batch_first=True, padding_side=side)
        logits = model(input_ids=ids, attention_mask=mask).logits
        assert (logits - torch.stack(alone)).abs().max() <= 1e-5


def test_the_mean_is_over_a_battles_own_tokens_and_its_shared_prefix():
    hidden = torch.arange(60.0).view(60, 1)
    prefix = [*range(100, 120)]
    sequences = [[*prefix, 1, 2], [3, 4, 5], [*prefix, 6], prefix]
    pack = pack_sequences(sequences)
    expected = [torch.cat([hidden[start:stop] for start, stop in spans]).mean() for spans in pack.list_spans()]
    ids = torch.tensor(pack.input_ids)
    assert [torch.cat([ids[start:stop] for start, stop in own]).tolist() for own in pack.list_spans()] == sequences
    found = POOLINGS["mean"].packed(hidden, pack.segments, torch.tensor(pack.ends))
    assert found.flatten().tolist() == pytest.approx([mean.item() for mean in expected])


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="pooling: expected one of last, mean; found 'max'"):
        Gemma2PreferenceConfig(**SMALL, pooling="max")


def test_the_last_real_token_is_found_on_either_side():
    hidden = torch.zeros(2, 4, 8)
    assert find_last_token(hidden, torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]])).tolist() == [1, 3]
    assert find_last_token(hidden, None).tolist() == [3, 3]


def test_the_loss_is_soft_cross_entropy_and_the_head_runs_in_float32_under_autocast():
    set_seed(0)
    model = Gemma2ForPreference(Gemma2PreferenceConfig(**SMALL)).eval()
    labels = torch.tensor([[1.0, 0.0], [0.3, 0.7], [0.5, 0.5]])
    output = model(**make_batch(), labels=labels)
    assert torch.equal(output.loss, soft_cross_entropy(output.logits, labels))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(**make_batch()).logits.dtype == torch.float32


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_loss_can_be_that_of_both_orders_together(share):
    """Two battles in both orders; the second weighs three times the first."""
    set_seed(0)
    model = Gemma2ForPreference(Gemma2PreferenceConfig(**SMALL, initializer_range=0.3)).eval()
    model.both_orders_weight = share
    labels, weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.3, 0.7], [0.7, 0.3]]), torch.tensor([1.0, 1, 3, 3])
    output = model(**make_batch((5, 9, 2, 7)), labels=labels, weights=weights)
    z = output.logits
    mean = torch.stack([(z[0] + z[1].flip(-1)) / 2, (z[2] + z[3].flip(-1)) / 2])
    single, both = (-(q * x.log_softmax(-1)).sum(-1) for q, x in ((labels, z), (labels[::2], mean)))
    expected = (1 - share) * (single * weights).mean() + share * (both * weights[::2]).mean()
    assert output.loss.item() == pytest.approx(expected.item())


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match=r"expected model_type to be one of gemma2, .*; found 'bert'"):
        find_family("bert")


@pytest.mark.parametrize("width", [0, 32])
def test_a_centred_heads_first_layer_gives_nothing_for_the_mean_of_its_features(width):
    config = Gemma2PreferenceConfig(**SMALL, head_hidden_size=width, head_dropout=0.0)
    head, features = PreferenceHead(config), torch.randn(50, 64) + 7
    first = head.dense if width else head.out
    nn.init.zeros_(first.bias)  # as in a fresh model
    head.center(features)
    assert first(features).mean(dim=0).abs().max() < 1e-5
