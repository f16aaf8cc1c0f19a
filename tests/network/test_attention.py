"""Each sequence of a packed row gets the same logits and gradients as it gets alone."""

from copy import deepcopy

import pytest
import torch

from modeling.encoding.packing import pack_sequences
from modeling.network import attention
from modeling.network.attention import KERNELS, choose_attention, find_attention, list_kernels
from modeling.network.base import BaseFiles, load_base, read_family_config
from modeling.network.classifier import (
    Gemma2PreferenceConfig,
    Gemma3TextPreferenceConfig,
    LlamaPreferenceConfig,
    Qwen2PreferenceConfig,
    find_family,
)

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_labels": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "head_dropout": 0.0,
}
FAMILIES = {  # sliding windows, in families that have them, are shorter than the sequences
    "gemma2": Gemma2PreferenceConfig(**SMALL, sliding_window=12),
    "gemma3_text": Gemma3TextPreferenceConfig(**SMALL, sliding_window=12, sliding_window_pattern=2),
    "llama": LlamaPreferenceConfig(**SMALL),
    "qwen2": Qwen2PreferenceConfig(**SMALL),
}


@pytest.fixture(autouse=True)
def fresh_checks():
    """Repeats the self-check in each test, because some tests break a kernel."""
    attention._check_kernel.cache_clear()
    yield
    attention._check_kernel.cache_clear()


def build_sequences() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda size: torch.randint(64, (size,), generator=generator).tolist()  # noqa: E731
    prefix = draw(30)
    return [[*prefix, *draw(9)], draw(17), [*prefix[:22], *draw(25)], [*prefix, *draw(3)], draw(50)]


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_sequences_have_the_logits_and_gradients_of_single_ones(family, pooling):
    """For all families, including sliding windows and soft-capping, with and without shared prefixes."""
    torch.manual_seed(0)
    config = deepcopy(FAMILIES[family])
    config.pooling = pooling
    model = find_family(config.model_type)(config).eval()
    sequences = build_sequences()
    labels = torch.tensor([[0.2, 0.8], [1, 0], [0.5, 0.5], [0, 1], [0.3, 0.7]])
    model.config._attn_implementation = "eager"
    alone = [model(torch.tensor([ids]), labels=labels[n : n + 1]) for n, ids in enumerate(sequences)]
    expected = torch.cat([output.logits for output in alone])
    torch.stack([output.loss for output in alone]).mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    assert expected.std() > 0.005
    for kernel in list_kernels(config, "cpu"):
        for share in (True, False):
            model.zero_grad()
            model.config._attn_implementation = kernel
            output = model(**pack_sequences(sequences, share).to_batch(), labels=labels)
            torch.testing.assert_close(output.logits, expected, rtol=0, atol=1e-5)
            output.loss.backward()
            for name, parameter in model.named_parameters():
                torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5, msg=name)


def test_soft_capping_needs_eager_attention_and_a_wrong_kernel_is_an_error(bases, monkeypatch):
    model = load_base(bases["float32"], dtype="float32")
    assert list_kernels(FAMILIES["llama"], "cuda") == tuple(KERNELS)
    assert list_kernels(model.config, "cuda") == ("packed_flex", "packed_eager")
    assert list_kernels(FAMILIES["llama"], "cuda", torch.float32) == tuple(KERNELS)[1:]
    assert list_kernels(model.config, "cpu") == ("packed_eager",)
    assert choose_attention(model) == model.config._attn_implementation == "packed_eager"
    attention._check_kernel.cache_clear()
    monkeypatch.setattr(attention, "_build_mask", lambda queries, keys, *_: torch.ones(queries, keys, dtype=torch.bool))
    with pytest.raises(
        ValueError, match=r"Attention on cpu: expected logits within 0.001 .* packed_eager: a difference"
    ):
        choose_attention(model)


def test_a_kernel_with_wrong_results_is_skipped(monkeypatch):
    torch.manual_seed(0)
    model = find_family("llama")(FAMILIES["llama"])
    monkeypatch.setattr(attention, "_attend_fused", lambda query, *_, **__: query * 0)
    assert choose_attention(model) == "packed_eager"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_padding_token_outside_the_small_vocabulary_of_the_check_is_no_obstacle(family):
    """Such as 128,004, which Llama-3's configs name."""
    config = deepcopy(FAMILIES[family])
    config.vocab_size, config.pad_token_id = 500, 499
    model = find_family(config.model_type)(config)
    assert choose_attention(model) in list_kernels(config, "cpu")


def test_a_plan_before_loading_finds_the_kernel_that_the_loaded_model_gets(bases, plain_backbone):
    for files in (BaseFiles(plain_backbone), *bases.values()):
        model = load_base(files, dtype="float32")
        found, _ = find_attention(*read_family_config(files, {}), model.device, torch.float32, training=True)
        assert found == choose_attention(model, training=True)


def test_packed_sequences_are_refused_under_other_attention(bases):
    model = load_base(bases["float32"], dtype="float32")
    model.config._attn_implementation = "eager"
    with pytest.raises(AssertionError, match="mixes the sequences in a row"):
        model(**pack_sequences(build_sequences()).to_batch())


def test_the_check_runs_once_for_each_shape_and_precision(bases):
    """A second base of the same shape, or a model loaded again, does not repeat it."""
    load_base(bases["8bit"], dtype="float32")
    before = attention._check_kernel.cache_info()
    load_base(bases["4bit"], dtype="float32")
    load_base(bases["8bit"], dtype="float32")
    assert attention._check_kernel.cache_info().hits == before.hits + 2
    load_base(bases["8bit"], dtype="bfloat16")
    assert attention._check_kernel.cache_info().misses == before.misses + 1


def test_scores_beyond_float16_are_capped_and_not_infinite():
    """64 dimensions of 100 each give a product of 640,000, beyond float16's largest number, 65,504."""
    query = key = torch.full((1, 2, 5, 64), 100.0)
    value = torch.randn(1, 2, 5, 64, generator=torch.Generator().manual_seed(0))
    capped = {"bias": None, "scaling": 1 / 64, "softcap": 50.0, "dropout": 0.0}
    expected = attention._attend_plainly(query, key, value, **capped)
    found = attention._attend_plainly(query.half(), key.half(), value.half(), **capped)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=2e-3)
