"""Attention for packed sequences: each segment attends to itself and to the shared prefixes before it.

A packed sequence has no padding. The kernels are registered with transformers and also accept padded batches. Before
use, a self-check compares them with eager attention on this device, in order of speed, and takes the first that agrees.
This module must not know how sequences are packed or what they say.
"""

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import lru_cache, partial

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from modeling.encoding.packing import Segment, pack_sequences
from modeling.network.gpu_attention import attend_flex, attend_varlen
from modeling.runtime.logs import build_logger

logger = build_logger(__name__)

# In order of preference, each with the kind of mask it needs for padded batches. The first two are for GPUs and take a
# whole row at once; the others take one segment at a time, the last with plain matrix products.
KERNELS = {"packed_varlen": sdpa_mask, "packed_flex": eager_mask, "packed_sdpa": sdpa_mask, "packed_eager": eager_mask}
ON_GPU = ("packed_varlen", "packed_flex")
CAPPED = ("packed_flex", "packed_eager")  # those that support soft-capping (Gemma-2)
# Largest difference allowed between a logit of the self-check and that of unpadded eager attention, by compute dtype.
TOLERANCES = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}
SAME_DIRECTION = 0.98  # least cosine of the self-check's gradient with eager attention's


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
    """Computes one layer's attention, as transformers calls it: for a packed sequence, or without segments for a batch.

    Args:
        query: Shape (battles, heads, tokens, size), one row for a packed sequence; key and value may have fewer heads.
        attention_mask: Mask of a padded batch; ignored for a packed sequence.
        kernel: One of `KERNELS`.
        segments: Spans of the packed sequence, in order; None for a padded batch.

    Returns:
        Outputs of shape (battles, tokens, heads, size), and no attention weights.
    """
    attend_plainly = partial(_attend_plainly, scaling=scaling, softcap=softcap, dropout=dropout)
    if segments is None:
        if KERNELS[kernel] is eager_mask:
            # As transformers' eager attention: a mask may be longer than the keys.
            bias = attention_mask if attention_mask is None else attention_mask[..., : key.shape[2]]
            return attend_plainly(query, key, value, bias).transpose(1, 2).contiguous(), None
        options |= {"scaling": scaling, "dropout": dropout, "sliding_window": sliding_window}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0], None
    if kernel in ON_GPU and not dropout:
        if torch.is_autocast_enabled(query.device.type):  # queries and keys may still be float32, unlike values
            dtype = torch.get_autocast_dtype(query.device.type)
            query, key, value = (states.to(dtype) for states in (query, key, value))
        attend = attend_varlen if kernel == "packed_varlen" else partial(attend_flex, softcap=softcap)
        return attend(query, key, value, segments, scaling=scaling, sliding_window=sliding_window), None
    if softcap is None and kernel != "packed_eager":
        attend = partial(_attend_fused, scaling=scaling, dropout=dropout, window=sliding_window)
    else:
        attend = partial(_attend_masked, attend_plainly=attend_plainly, window=sliding_window)
    # One segment at a time: a mask over the whole row would take memory quadratic in its tokens.
    pieces = [
        attend(query[:, :, each.start : each.stop], _gather_context(key, each), _gather_context(value, each))
        for each in segments
    ]
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous(), None


def _gather_context(states: Tensor, segment: Segment) -> Tensor:
    """Returns the keys or values that a segment attends to: those of its prefixes, then its own."""
    # A shared prefix's keys and values exist once; every sequence that begins with it adds to their gradient.
    spans = (*segment.before, (segment.start, segment.stop))
    return torch.cat([states[:, :, start:stop] for start, stop in spans], dim=2)


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
    """Computes attention with matrix products, like transformers' eager attention, but with scores in float32.

    Args:
        query: Shape (battles, heads, queries, size); key and value may have fewer heads.
        bias: Added to the scores; minus infinity, or the dtype's lowest number, where a query must not see a key.

    Returns:
        Outputs in the shape and dtype of the query.
    """
    groups = query.shape[1] // key.shape[1]  # grouped-query attention: this many query heads share a key head
    key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Scaling the query, not the product, keeps the product below 65,504, the largest float16 number. From there on
    # scores are float32, so that soft-capping and softmax are accurate in every precision.
    scores = torch.matmul(query * scaling, key.transpose(2, 3)).float()  # (battles, heads, queries, keys)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores if bias is None else scores + bias
    weights = torch.softmax(scores, dim=-1).to(query.dtype)
    return torch.matmul(nn.functional.dropout(weights, dropout), value)  # the layer passes dropout 0 in eval mode


def _attend_masked(
    query: Tensor, key: Tensor, value: Tensor, *, attend_plainly: Callable[..., Tensor], window: int | None
) -> Tensor:
    """Computes one segment's attention with matrix products and a mask."""
    mask = _build_mask(query.shape[2], key.shape[2], window, query.device)
    bias = torch.zeros(mask.shape, device=query.device).masked_fill(~mask, -torch.inf)
    return attend_plainly(query, key, value, bias)


def _attend_fused(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, dropout: float, window: int | None
) -> Tensor:
    """Computes one segment's attention with torch's fused kernel, without a mask where plain causality is enough."""
    # `is_causal` aligns the first query with the first key, so after a shared prefix it would hide the prefix.
    causal = query.shape[2] == key.shape[2] and (window is None or key.shape[2] <= window)
    mask = None if causal else _build_mask(query.shape[2], key.shape[2], window, query.device)
    grouped = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=scaling, dropout_p=dropout, enable_gqa=grouped
    )


def _build_mask(num_queries: int, num_keys: int, window: int | None, device: torch.device) -> Tensor:
    """Returns which keys each query sees, shape (queries, keys); the queries are the last tokens of the keys."""
    keys = torch.arange(num_keys, device=device)
    distance = keys[num_keys - num_queries :, None] - keys  # (queries, keys)
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)


def _register() -> None:
    """Registers the kernels with transformers, each with the kind of mask it needs for padded batches."""
    for kernel, mask in KERNELS.items():
        AttentionInterface.register(kernel, partial(_attend, kernel=kernel))
        AttentionMaskInterface.register(kernel, mask)


_register()


def list_kernels(config: object, device_type: str, dtype: torch.dtype = torch.bfloat16) -> tuple[str, ...]:
    """Returns the kernels that a model can use, best first.

    Args:
        config: The model's.
        device_type: Such as "cpu" or "cuda".
        dtype: In which the model computes.
    """
    # torch's fused kernels have no soft-capping (Gemma-2), and would compute other logits without an error.
    capped = config.to_dict().get("attn_logit_softcapping") is not None
    known = CAPPED if capped else KERNELS
    missing = () if device_type == "cuda" else ON_GPU
    if dtype == torch.float32:
        missing = (*missing, "packed_varlen")  # FlashAttention computes in 16 bits only
    return tuple(kernel for kernel in known if kernel not in missing)


def choose_attention(model: nn.Module, training: bool = False) -> str:
    """Sets the first of the model's kernels that agrees with unpadded eager attention, and returns its name.

    Args:
        model: The preference model, on its device.
        training: Whether gradients are needed, so that they must agree too.

    Raises:
        ValueError: If no kernel agrees, so that packed sequences cannot be used on this device.
    """
    device = next(model.parameters()).device
    kernel, reason = find_attention(type(model), model.config, device, model.compute_dtype, training)
    if reason:
        PartialState()  # accelerate's logger fails without it
        logger.info(f"Attention: {kernel}, {reason}")
    model.config._attn_implementation = kernel
    return kernel


def find_attention(
    family: type[nn.Module], config: PreTrainedConfig, device: torch.device, dtype: torch.dtype, training: bool
) -> tuple[str, str]:
    """Returns what `choose_attention` would set for a model of a family, and how well it agrees; "" if unchecked.

    Args:
        config: The family's.
        dtype: In which the model computes.
    """
    kernels = list_kernels(config, device.type, dtype)
    if is_deepspeed_zero3_enabled():
        # No self-check: DeepSpeed would partition the weights of its small model over the processes too. So no kernel
        # either that may not work here.
        return next(name for name in kernels if name not in ON_GPU), ""
    small, found = _shrink_config(config).to_json_string(use_diff=False), []
    for kernel in kernels:
        fault, difference = _check_kernel(family, small, device, dtype, training, kernel)
        if not fault:
            skipped = f" ({'; '.join(found)})" if found else ""
            return kernel, f"{difference:.2g} from eager in the logits of a self-check, on {device}{skipped}"
        found.append(f"{kernel}: {fault}")
    raise ValueError(
        f"Attention on {device}: expected logits within {TOLERANCES[dtype]:g} of eager attention's; "
        f"found {'; '.join(found)}. This build of torch computes attention wrongly here: take another device or build."
    )


def _shrink_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Returns the config of a model with few small layers and the attention heads of the given one."""
    # A model of its own, because the first forward changes quantised layers: no checkpoint could be loaded into them.
    small = deepcopy(config)
    types = sorted(set(config.layer_types or ())) if hasattr(config, "layer_types") else []
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "head_hidden_size": 0}
    sizes |= {"head_dropout": 0.0, "pooling": "last", "dtype": None}  # so that a base and its members share a check
    sizes["pad_token_id"] = None  # such as 128,004, which the small vocabulary does not have
    # Large random weights, so that attention differs from token to token and a wrong kernel shows in the logits.
    sizes |= {"initializer_range": 0.3, "num_hidden_layers": max(2, len(types))}
    sizes["head_dim"] = config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads
    for name, value in sizes.items():
        setattr(small, name, value)
    if types:  # each kind of layer at least once: sliding-window and full attention
        small.layer_types = (types * 2)[: small.num_hidden_layers]
    for name in ("quantization_config", "made_from", "_name_or_path"):
        if hasattr(small, name):
            delattr(small, name)
    return small


@lru_cache(maxsize=32)
def _check_kernel(
    family: type[nn.Module], config: str, device: torch.device, dtype: torch.dtype, training: bool, kernel: str
) -> tuple[str, float]:
    """Compares a kernel with unpadded eager attention, on a small model with random weights.

    Args:
        config: Result of `_shrink_config` as JSON, which is hashable: the check runs once per family, shape, device and
            dtype, however often models are loaded.

    Returns:
        What is wrong, in a few words, or "", and the largest difference of a logit.
    """
    # Leaves the random numbers of a training run as they were. Without devices torch warns if there are two GPUs.
    with torch.random.fork_rng([] if device.type == "cpu" else [device]):
        torch.manual_seed(0)
        small = family(family.config_class.from_dict(json.loads(config))).to(device).eval()
    small.compute_dtype = dtype
    sequences = [[(7 * i + 3 * j) % 64 for i in range(24 + 9 * j)] for j in range(3)]
    sequences.append([*sequences[0][:20], *sequences[2]])  # shares a prefix with the first one
    batch = pack_sequences(sequences).to_batch()
    batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    with torch.set_grad_enabled(training):
        small.config._attn_implementation = "eager"
        expected = torch.cat([small(torch.tensor([ids], device=device)).logits for ids in sequences])
        wanted = _differentiate(small, expected) if training else None
        small.config._attn_implementation = kernel
        try:
            logits = small(**batch).logits
            gradient = _differentiate(small, logits) if training else None
        except Exception as error:  # a compiler's errors have no common class
            if _stops_at_errors(device):
                raise
            return f"fails with {type(error).__name__}, {str(error).strip().partition(chr(10))[0][:200]}", torch.inf
    difference = (logits - expected).abs().max().item()
    if not difference <= TOLERANCES[dtype]:
        return f"a difference of {difference:.3g}", difference
    if training and not (cosine := cosine_similarity(gradient, wanted, dim=0).item()) >= SAME_DIRECTION:
        return f"a gradient at a cosine of {cosine:.3g}", difference
    return "", difference


def _stops_at_errors(device: torch.device) -> bool:
    """Returns whether a kernel's error is a bug of ours: on a CPU every kernel must work; a GPU may lack some."""
    return device.type == "cpu"


def _differentiate(model: nn.Module, logits: Tensor) -> Tensor:
    """Returns the gradient of a weighted sum of logits with respect to all of a model's weights, as one row."""
    weights = torch.linspace(-1, 1, logits.numel(), device=logits.device).view_as(logits)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad((logits * weights).sum(), parameters, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])
