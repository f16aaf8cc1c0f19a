"""Attention inside a pack: each segment attends to itself and to the segments before it in its readings, and no token
is padding. Registered with transformers, beside its own kernels for padded batches.
"""

import json
from collections.abc import Sequence
from copy import deepcopy
from functools import lru_cache, partial

import torch
from accelerate import PartialState
from accelerate.logging import get_logger
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from modeling.encoding.packing import Segment, pack_sequences

logger = get_logger(__name__)

# Kernels in the order of preference: torch's fused one, and plain matrix products, which know soft-capping.
KERNELS = ("packed_sdpa", "packed_eager")
# Most that a logit of the self-check may differ from that of unpadded eager attention, by what the model computes in.
TOLERANCES = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    kernel: str,
    segments: Sequence[Segment] | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **options,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer, for a pack or, without segments, for a padded batch.

    Args:
        query: Shape (1, heads, tokens, size); key and value may have fewer heads.
        segments: Of the pack.

    Returns:
        Shape (1, tokens, heads, size).
    """
    plainly = partial(_attend_plainly, scaling=scaling, softcap=softcap, dropout=dropout)
    if segments is None:
        if kernel == "packed_eager":
            bias = attention_mask if attention_mask is None else attention_mask[..., : key.shape[2]]
            return plainly(query, key, value, bias).transpose(1, 2).contiguous(), None
        options |= {"scaling": scaling, "dropout": dropout, "sliding_window": sliding_window}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0], None
    pieces = []
    for segment in segments:
        own = slice(segment.start, segment.stop)
        keys, values = (
            torch.cat([*(states[:, :, start:stop] for start, stop in segment.before), states[:, :, own]], dim=2)
            for states in (key, value)
        )
        if kernel == "packed_sdpa":
            piece = _attend_fused(query[:, :, own], keys, values, scaling, dropout, sliding_window)
        else:
            mask = _build_mask(own.stop - own.start, keys.shape[2], sliding_window, query.device)
            bias = torch.zeros(mask.shape, device=query.device).masked_fill(~mask, -torch.inf)
            piece = plainly(query[:, :, own], keys, values, bias)
        pieces.append(piece)
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous(), None


def _attend_plainly(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    *,
    scaling: float | None,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """Attention by matrix products, as transformers' eager attention, but with scores in float32 from the first product
    on: soft-capping and softmax are exact in any precision, and nothing exceeds what float16 can hold.

    Args:
        query: Shape (1 or battles, heads, queries, size); key and value may have fewer heads.
        bias: Added to the scores; minus infinity, or the dtype's smallest number, where a query sees no key.

    Returns:
        Shape (1 or battles, heads, queries, size), of the query's dtype.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query * scaling, key.transpose(2, 3)).float()  # (battles, heads, queries, keys)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores if bias is None else scores + bias
    weights = torch.softmax(scores, dim=-1).to(query.dtype)
    return torch.matmul(nn.functional.dropout(weights, dropout), value)


def _attend_fused(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, dropout: float, window: int | None
) -> Tensor:
    """One segment by torch's kernel, which needs no mask where nothing stands before it and no window cuts it."""
    plain = query.shape[2] == key.shape[2] and (window is None or key.shape[2] <= window)
    mask = None if plain else _build_mask(query.shape[2], key.shape[2], window, query.device)
    groups = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=plain, scale=scaling, dropout_p=dropout, enable_gqa=groups
    )


def _build_mask(num_queries: int, num_keys: int, window: int | None, device: torch.device) -> Tensor:
    """Which keys each query sees, shape (queries, keys): the queries are the last of the keys' tokens."""
    keys = torch.arange(num_keys, device=device)
    distance = keys[num_keys - num_queries :, None] - keys  # (queries, keys)
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)


def _register() -> None:
    """Makes the kernels known to transformers, with the masks that a padded batch needs under them."""
    for kernel, mask in zip(KERNELS, (sdpa_mask, eager_mask), strict=True):
        AttentionInterface.register(kernel, partial(_attend, kernel=kernel))
        AttentionMaskInterface.register(kernel, mask)


_register()


def list_kernels(config: object) -> tuple[str, ...]:
    """The kernels that a family can use, best first: soft-capping is known to eager attention alone."""
    capped = config.to_dict().get("attn_logit_softcapping") is not None
    return KERNELS[1:] if capped else KERNELS


def choose_attention(model: nn.Module) -> str:
    """Sets the first of the family's kernels that agrees with unpadded eager attention, and says which.

    Raises:
        ValueError: If none does: packs cannot be read on this device then.
    """
    model.config._attn_implementation = list_kernels(model.config)[0]
    if is_deepspeed_zero3_enabled():  # which would share out the small model's weights too
        return model.config._attn_implementation
    device, tolerance, found = next(model.parameters()).device, TOLERANCES[model.compute_dtype], []
    small = _shrink_config(model.config).to_json_string(use_diff=False)
    for kernel, difference in _compare_kernels(type(model), small, device, model.compute_dtype):
        if difference <= tolerance:
            PartialState()  # accelerate's logger needs it
            logger.info(f"Attention: {kernel}, {difference:.2g} from eager in the logits of a self-check, on {device}")
            model.config._attn_implementation = kernel
            return kernel
        found.append(f"{kernel}: {difference:.3g}")
    raise ValueError(
        f"Attention on {device}: expected logits within {tolerance:g} of eager attention's; found differences of "
        f"{', '.join(found)}. This build of torch computes attention wrongly here: take another device or build."
    )


def _shrink_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of two small layers with the model's heads.

    The self-check is not made on the model itself: the first forward changes quantised layers so that no checkpoint can
    be loaded into them.
    """
    small = deepcopy(config)
    types = sorted(set(config.layer_types or ())) if hasattr(config, "layer_types") else []
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "head_hidden_size": 0}
    sizes |= {"initializer_range": 0.3, "num_hidden_layers": max(2, len(types))}
    sizes["head_dim"] = config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads
    for name, value in sizes.items():
        setattr(small, name, value)
    if types:
        small.layer_types = (types * 2)[: small.num_hidden_layers]
    for name in ("quantization_config", "made_from", "_name_or_path"):
        if hasattr(small, name):
            delattr(small, name)
    return small


@lru_cache(maxsize=16)
@torch.inference_mode()
def _compare_kernels(
    family: type[nn.Module], config: str, device: torch.device, dtype: torch.dtype
) -> list[tuple[str, float]]:
    """Each kernel with the largest difference of a logit, on a small model with random weights; computed once for each
    family, shape, device and precision, whatever is loaded how often.

    Args:
        config: What `_shrink_config` gave, as JSON.
    """
    small_config = family.config_class.from_dict(json.loads(config))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = family(small_config).to(device).eval()
    small.compute_dtype = dtype
    readings = [[(7 * i + 3 * j) % 64 for i in range(24 + 9 * j)] for j in range(3)]
    readings.append([*readings[0][:20], *readings[2]])  # begins as the first one does
    small.config._attn_implementation = "eager"
    expected = torch.cat([small(torch.tensor([reading], device=device)).logits for reading in readings])
    batch = pack_sequences(readings).to_batch()
    batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    found = []
    for kernel in list_kernels(small_config):
        small.config._attn_implementation = kernel
        found.append((kernel, (small(**batch).logits - expected).abs().max().item()))
    return found
