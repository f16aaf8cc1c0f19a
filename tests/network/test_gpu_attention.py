"""The kernels for GPUs, as far as a CPU can show: masks, padded rows, gathered keys, and FlexAttention's forward."""

from copy import deepcopy

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask
from torch.nn.functional import scaled_dot_product_attention

from modeling.encoding.packing import list_spans, pack_sequences
from modeling.network import attention, gpu_attention
from modeling.network.attention import choose_attention
from modeling.network.classifier import find_family
from modeling.network.gpu_attention import BLOCK, SHORTEST_ROW, attend_varlen, build_block_mask
from tests.network.test_attention import FAMILIES, build_sequences

CPU = torch.device("cpu")


def pack_long_sequences():
    """Shared prefixes on two levels, some longer than a block and than the window, and a row longer than the least."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda size: torch.randint(64, (size,), generator=generator).tolist()  # noqa: E731
    prompt, answer, other = draw(300), draw(150), draw(20)
    sequences = [[*prompt, *answer, *draw(90)], [*prompt, *answer, *draw(200)], [*prompt, *draw(40)], draw(500)]
    return pack_sequences([*sequences, [*other, *draw(5)], [*other, *draw(60)]])


def build_seen(pack) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns which keys each token of a packed row sees, and the distances, both shape (tokens, tokens), slowly."""
    tokens = len(pack.input_ids)
    seen, distance = torch.zeros(tokens, tokens, dtype=torch.bool), torch.zeros(tokens, tokens, dtype=torch.int64)
    for spans in list_spans(pack.segments, pack.ends):
        index = torch.cat([torch.arange(start, stop) for start, stop in spans])
        places = torch.arange(len(index))
        seen[index[:, None], index] = places[:, None] >= places
        distance[index[:, None], index] = places[:, None] - places
    return seen, distance


@pytest.mark.parametrize("window", [None, 70])
def test_the_block_mask_shows_each_token_what_its_sequence_shows_it(window):
    pack = pack_long_sequences()
    tokens = len(pack.input_ids)
    mask = build_block_mask(pack.segments, window, CPU)
    length = mask.seq_lengths[0]
    assert SHORTEST_ROW < tokens < length == 2048
    seen, distance = build_seen(pack)
    seen = seen if window is None else seen & (distance < window)
    found = create_mask(mask.mask_mod, 1, 1, length, length, device="cpu")[0, 0]
    assert torch.equal(found[:tokens, :tokens], seen)
    assert torch.equal(found[tokens:, tokens:], torch.eye(length - tokens, dtype=torch.bool))
    assert not found[:tokens, tokens:].any() and not found[tokens:, :tokens].any()
    # A kernel skips blocks that are not listed, and applies no mask inside full ones.
    blocks = found.view(length // BLOCK, BLOCK, length // BLOCK, BLOCK).transpose(1, 2)
    listed = [torch.zeros(length // BLOCK, length // BLOCK, dtype=torch.bool) for _ in range(2)]
    kinds = ((mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices))
    for blocks_of_kind, (counts, columns) in zip(listed, kinds, strict=True):
        for row, count in enumerate(counts[0, 0].tolist()):
            blocks_of_kind[row, columns[0, 0, row, :count].long()] = True
    partial, full = listed
    assert not (partial & full).any() and full.any() == (window is None)
    assert ((partial | full) | ~blocks.flatten(2).any(dim=2)).all()
    assert (blocks.flatten(2).all(dim=2) | ~full).all()
    assert (partial | full).float().mean() < 0.3


@pytest.mark.parametrize("family", FAMILIES)
def test_flex_attention_gives_the_logits_of_single_sequences(family, monkeypatch):
    torch.manual_seed(0)
    model = find_family(family)(deepcopy(FAMILIES[family])).eval()
    sequences = build_sequences()
    model.config._attn_implementation = "eager"
    with torch.inference_mode():
        expected = torch.cat([model(torch.tensor([ids])).logits for ids in sequences])
        model.config._attn_implementation = "packed_flex"
        found = model(**pack_sequences(sequences).to_batch()).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def attend_each(query, key, value, queries, keys, most_queries, most_keys, *, scale, window_size, enable_gqa=False):
    """FlashAttention as torch documents it: causality is aligned with each sequence's last query and key."""
    pieces = []
    left, right = window_size
    assert most_queries == queries.diff().max() and most_keys == keys.diff().max()
    for at in range(len(queries) - 1):
        own, context = slice(queries[at], queries[at + 1]), slice(keys[at], keys[at + 1])
        count = int(keys[at + 1] - keys[at])
        behind = torch.arange(count - int(queries[at + 1] - queries[at]), count)[:, None] - torch.arange(count)
        mask = (behind >= -right) & ((behind <= left) | (left < 0))
        parts = (states.transpose(0, 1)[None] for states in (query[own], key[context], value[context]))
        piece = scaled_dot_product_attention(*parts, attn_mask=mask, scale=scale, enable_gqa=enable_gqa)
        pieces.append(piece[0].transpose(0, 1))
    return torch.cat(pieces)


@pytest.mark.parametrize("window", [None, 70])
def test_flash_attention_gets_the_keys_of_shared_prefixes(window, monkeypatch):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", attend_each)
    pack = pack_long_sequences()
    tokens = len(pack.input_ids)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, tokens, 8, generator=generator) for heads in (4, 2, 2))
    found = attend_varlen(query, key, value, pack.segments, scaling=0.3, sliding_window=window)
    seen, distance = build_seen(pack)
    mask = seen if window is None else seen & (distance < window)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=0, atol=1e-5)
    # Without shared prefixes the row itself is what the kernel needs.
    apart = pack_sequences([[1, 2, 3], [4, 5]])
    assert gpu_attention._build_spans(apart.segments, CPU).gather is None


def test_a_kernel_that_fails_on_a_gpu_or_has_wrong_gradients_is_passed_over(monkeypatch):
    """On a CPU every kernel must work, so the check is told that the device is a GPU's."""
    torch.manual_seed(0)
    model = find_family("llama")(FAMILIES["llama"])
    attention._check_kernel.cache_clear()
    monkeypatch.setattr(attention, "list_kernels", lambda *_: tuple(attention.KERNELS))
    monkeypatch.setattr(attention, "_stops_at_errors", lambda _: False)
    monkeypatch.setattr(attention, "attend_flex", lambda query, *_, **__: query.transpose(1, 2).detach() * 0)
    found = []
    monkeypatch.setattr(attention.logger, "info", found.append)
    assert choose_attention(model, training=True) == "packed_sdpa"
    assert "packed_varlen: fails with " in found[0] and "packed_flex: a difference of " in found[0]
    attention._check_kernel.cache_clear()
    plain = attention._attend_fused
    monkeypatch.setattr(
        attention, "_attend_fused", lambda query, *rest, **options: plain(query.detach(), *rest, **options)
    )
    assert choose_attention(model, training=True) == "packed_eager"
    assert "packed_sdpa: a gradient at a cosine of " in found[1]
    attention._check_kernel.cache_clear()
