"""Models with random weights in the shapes of real ones, and battles of random token ids with real lengths.

Time and memory do not depend on what the weights say. The ways that are compared share the unquantised model's tensors,
so that several fit on one card.
"""

import math
import random
from collections.abc import Mapping, Sequence
from copy import deepcopy

import bitsandbytes as bnb
import torch
from torch import nn
from transformers import PreTrainedConfig

from modeling.data.outcomes import LABELS
from modeling.network.attention import choose_attention, list_kernels
from modeling.network.base import HEAD, build_quantization_config, name_labels
from modeling.network.classifier import PreferenceMixin, find_family
from modeling.network.precision import DTYPES, set_dtype

GEMMA2_9B = {
    "model_type": "gemma2",
    "vocab_size": 256_000,
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
GEMMA2_2B = GEMMA2_9B | {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
GEMMA3_270M = {
    "model_type": "gemma3_text",
    "vocab_size": 262_144,
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 512,
}
TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
# Tokens of a battle in one order are log-normal, as in the contest's battles.
MEDIAN_TOKENS, MEAN_TOKENS, MIN_TOKENS, MAX_TOKENS = 462, 737, 32, 2200
LAST_KERNEL = "packed_eager"  # works on every device and takes the most memory
PROMPT_SHARE = 0.15  # of a battle's tokens; both orders share them


# --- battles ----------------------------------------------------------------------------------------------------------


def draw_battles(count: int, vocab_size: int, max_tokens: int = MAX_TOKENS, seed: int = 0) -> list[tuple]:
    """Draws battles as token ids in both orders: prompt, a, b and prompt, b, a.

    Args:
        max_tokens: Longest battle. All lengths shrink with it.
    """
    chance = random.Random(seed)
    spread = math.sqrt(2 * math.log(MEAN_TOKENS / MEDIAN_TOKENS))  # a log-normal's mean is median * exp(spread^2 / 2)
    battles = []
    for _ in range(count):
        drawn = chance.lognormvariate(math.log(MEDIAN_TOKENS), spread) * max_tokens / MAX_TOKENS
        length = min(max_tokens, max(MIN_TOKENS, round(drawn)))
        ids = [chance.randrange(3, vocab_size) for _ in range(length)]
        prompt = max(16, round(PROMPT_SHARE * length))
        middle = prompt + round((length - prompt) * chance.uniform(0.3, 0.7))
        battles.append((ids, ids[:prompt] + ids[middle:] + ids[prompt:middle]))
    return battles


# --- models -----------------------------------------------------------------------------------------------------------


def build_config(shape: Mapping, **changes) -> PreTrainedConfig:
    """Builds the config of a preference model from a shape above."""
    fields = {**shape, **changes}
    family = find_family(fields.pop("model_type"))
    names = name_labels(family.config_class.model_type, len(LABELS))
    return family.config_class.from_dict({**fields, **names})


def build_random(config: PreTrainedConfig, device: torch.device, dtype: str) -> PreferenceMixin:
    """Builds a frozen model with random weights directly on the device, in eval mode.

    Args:
        dtype: Key of `DTYPES`.
    """
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[dtype])
    try:
        with torch.device(device):
            model = find_family(config.model_type)(config)
    finally:
        torch.set_default_dtype(default)
    for name, parameter in model.named_parameters():
        # With the same spread everywhere, nearly every input column of down_proj would hold a number above 6, which
        # 8-bit layers compute a second time in float16. Real models have such outliers in a few columns.
        if "gate_proj" in name or "up_proj" in name:
            parameter.data *= 0.5
    set_dtype(model, dtype)
    return model.requires_grad_(False).eval()


def share_weights(model: PreferenceMixin) -> PreferenceMixin:
    """Returns a model with modules of its own but the same tensors, to be quantised or given adapters.

    The given model must not be quantised: bitsandbytes keeps tensors outside of parameters and buffers.
    """
    tensors = [*model.parameters(), *model.buffers()]
    return deepcopy(model, {id(tensor): tensor for tensor in tensors})


def quantize(model: PreferenceMixin, quantization: str) -> PreferenceMixin:
    """Returns a quantised copy, as transformers would load it, that shares embeddings, norms and head.

    It quantises one layer after the other on the device: transformers would take each through the CPU.

    Args:
        model: Result of `build_random`.
        quantization: "8bit", "4bit", or "none", which returns a copy that shares everything.
    """
    quantized = share_weights(model)
    if quantization == "none":
        return quantized
    settings = build_quantization_config(quantization)
    for name, layer in list(quantized.named_modules()):
        if type(layer) is nn.Linear and not name.startswith(HEAD):
            quantized.set_submodule(name, _quantize_layer(layer, settings))
    # PEFT chooses its kind of adapter by these attributes, which from_pretrained would set.
    quantized.is_loaded_in_8bit, quantized.is_loaded_in_4bit = settings.load_in_8bit, settings.load_in_4bit
    set_dtype(quantized, str(model.compute_dtype).removeprefix("torch."))
    return quantized.eval()


def _quantize_layer(layer: nn.Linear, settings) -> nn.Module:
    """Returns bitsandbytes' layer with a linear layer's weight, quantised on its device."""
    sizes, weight = (layer.in_features, layer.out_features, layer.bias is not None), layer.weight.data
    with torch.device("meta"):
        if settings.load_in_8bit:
            options = {"has_fp16_weights": False, "threshold": settings.llm_int8_threshold}
            quantized = bnb.nn.Linear8bitLt(*sizes, **options)
        else:
            options = {
                "compress_statistics": settings.bnb_4bit_use_double_quant,
                "quant_type": settings.bnb_4bit_quant_type,
            }
            quantized = bnb.nn.Linear4bit(*sizes, compute_dtype=weight.dtype, **options)
    if settings.load_in_8bit:
        # Not Int8Params.to, which quantises only what comes from the CPU.
        rows, scales, _ = bnb.functional.int8_vectorwise_quant(weight.half())
        quantized.weight = bnb.nn.Int8Params(rows, requires_grad=False, CB=rows, SCB=scales)
    else:
        quantized.weight = bnb.nn.Params4bit(weight, module=quantized, **options).to(weight.device)
    quantized.bias = layer.bias
    return quantized.requires_grad_(False)


def count_flops(model: PreferenceMixin, lengths: Sequence[int]) -> float:
    """Counts the operations of one forward pass over sequences of these lengths, without embeddings and head.

    Two for each weight of a layer and each token, and four for each pair of query and key that attention needs and each
    number of a head.
    """
    projections = [layer for layer in model.list_layers().modules() if isinstance(layer, nn.Linear)]
    weights = sum(layer.in_features * layer.out_features for layer in projections)
    config = model.config
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    windows = [config.sliding_window if kind == "sliding_attention" else math.inf for kind in kinds]
    pairs = sum(_count_pairs(length, window) for window in windows for length in lengths)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2.0 * weights * sum(lengths) + 4.0 * config.num_attention_heads * size * pairs


def _count_pairs(length: int, window: float) -> float:
    """Counts a sequence's pairs of query and key: half of all, or fewer where a window hides the earlier keys."""
    seen = min(length, window)
    return length * seen - seen * seen / 2


# --- kernels ----------------------------------------------------------------------------------------------------------


def find_kernels(config: PreTrainedConfig, device: torch.device) -> tuple[str, ...]:
    """Returns the packed kernels for a model on a device, best first."""
    return list_kernels(config, device.type)


def choose_kernel(model: PreferenceMixin, training: bool = False) -> str:
    """Sets the best packed kernel that works for a model, and returns its name.

    If none passes the self-check, `packed_eager` is measured all the same; the correctness part shows what is wrong.
    """
    try:
        return choose_attention(model, training=training)
    except (ValueError, RuntimeError) as error:
        print(f"No kernel passed its self-check: {error}", flush=True)
        model.config._attn_implementation = LAST_KERNEL
        return LAST_KERNEL
