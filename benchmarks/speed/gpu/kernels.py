"""Parts `machine`, `correctness` and `attention`: what the card can do, and each attention kernel alone."""

import shutil
import subprocess
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedConfig
from transformers.models.gemma2.modeling_gemma2 import Gemma2Attention

from benchmarks.speed.gpu.measuring import Part, Setting, time_repeatedly
from benchmarks.speed.gpu.models import (
    GEMMA2_9B,
    LAST_KERNEL,
    MAX_TOKENS,
    TINY,
    build_config,
    build_random,
    draw_battles,
    find_kernels,
)
from benchmarks.speed.machine import describe_machine
from modeling.encoding.packing import PackedSequence, Segment, pack_sequences
from modeling.network.classifier import PreferenceMixin
from modeling.network.precision import DTYPES, set_dtype

# Small models with real heads. Their weights are so large that attention differs from token to token, and Gemma-2's
# soft-cap is so low, 10 instead of 50, that a kernel without it, or with a window of one token more, moves the logits
# by several times the rounding of bf16.
SMALL = {
    "vocab_size": 512,
    "hidden_size": 512,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.12,
}
GEMMA_HEADS = {"num_attention_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 64}
BOTH_LAYERS = {"layer_types": ["sliding_attention", "full_attention"]}
FAMILIES = {
    "gemma2": SMALL | GEMMA_HEADS | BOTH_LAYERS | {"attn_logit_softcapping": 10.0},
    "gemma3_text": SMALL | GEMMA_HEADS | BOTH_LAYERS,
    # Without norms after attention and MLP, the rounding of bf16 would grow with larger weights.
    "llama": SMALL | {"num_attention_heads": 4, "head_dim": 128, "initializer_range": 0.04},
    "qwen2": SMALL | {"num_attention_heads": 8, "initializer_range": 0.04},  # heads of 64
}
EAGER, COMPILED = "eager, unpadded", "packed_flex"
PACK_TOKENS = 16_384


# --- the machine ------------------------------------------------------------------------------------------------------


def measure_machine(setting: Setting) -> Part:
    """Yields the card's description, its rate of matrix products and its bandwidth."""
    yield "description", partial(_describe_card, setting.device)
    yield "matrix product", partial(_measure_rate, setting.device, setting.pick(8192, 128))
    yield "copy", partial(_measure_bandwidth, setting.device, setting.pick(1 << 30, 1 << 20))


def _describe_card(device: torch.device) -> dict:
    """Returns the machine, and on a GPU its memory and driver."""
    found = describe_machine()
    del found["tokenizers_parallelism"]  # nothing is tokenised here
    versions = found.pop("versions")
    found |= {"versions": " ".join(f"{name} {version}" for name, version in versions.items())}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"memory_gb": properties.total_memory / 1e9, "multiprocessors": properties.multi_processor_count}
        found |= {"cuda": torch.version.cuda, "driver": _find_driver()}
    return found


def _find_driver() -> str | None:
    """Returns the driver's version, if its command is installed."""
    if not (command := shutil.which("nvidia-smi")):
        return None
    flags = ["--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run([command, *flags], capture_output=True, text=True, timeout=10)
    return done.stdout.strip() or None


def _measure_rate(device: torch.device, size: int) -> dict:
    """Returns the operations per second of a bf16 product of square matrices."""
    first, second = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = time_repeatedly(lambda: first @ second, device, repeats=20)
    return {"size": size, "seconds": seconds, "tflops": 2 * size**3 / seconds / 1e12}


def _measure_bandwidth(device: torch.device, size: int) -> dict:
    """Returns the bytes per second that a copy reads and writes, in GB."""
    source = torch.ones(size, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    seconds = time_repeatedly(lambda: target.copy_(source), device, repeats=20)
    return {"bytes": size, "seconds": seconds, "gb_per_second": 2 * size / seconds / 1e9}


# --- correctness ------------------------------------------------------------------------------------------------------


def check_kernels(setting: Setting) -> Part:
    """Yields each kernel's differences from eager attention in float32 over unpadded sequences.

    Eager attention in the lower precision shows what the precision alone does: a kernel should not be worse.
    """
    sequences = _build_sequences(setting.pick(3, 1))
    configs = {
        family: build_config({"model_type": family, **fields}, **setting.pick({}, _shrink(fields)))
        for family, fields in FAMILIES.items()
    }

    @cache
    def find_reference(family: str) -> tuple[Tensor, Tensor]:
        """Logits and gradient of a family in float32."""
        return _run_unpadded(build_random(configs[family], setting.device, "float32"), sequences)

    checks = [
        (dtype, family, kernel)
        for dtype in DTYPES
        for family, config in configs.items()
        for kernel in (EAGER, *find_kernels(config, setting.device))
    ]
    # A compiled kernel takes seconds for each dtype and family: bf16, which is trained and predicted in, comes first.
    checks.sort(key=lambda check: (check[2] == COMPILED) and check[0] != "bfloat16")
    for dtype, family, kernel in checks:
        reference = partial(find_reference, family)
        measure = partial(_compare, configs[family], dtype, kernel, sequences, reference, setting)
        yield f"{dtype}, {family}, {kernel}", measure


def _shrink(fields: dict) -> dict:
    """Returns the changes for a dry run: heads of 16."""
    return {"hidden_size": 16 * fields["num_attention_heads"], "intermediate_size": 64, "head_dim": 16}


def _build_sequences(scale: int) -> list[list[int]]:
    """Returns sequences that share prefixes on two levels, shorter and longer than the small models' window."""
    chance = torch.Generator().manual_seed(0)
    shared, deeper, *tails = (
        torch.randint(3, 512, (scale * length,), generator=chance).tolist() for length in (24, 50, 110, 9, 45, 70, 5, 1)
    )
    first, second, third, fourth, fifth, sixth = tails
    branches = [shared + deeper + first, shared + deeper + second, shared + third, shared + deeper + sixth]
    return [*branches, fourth, fifth]


def _compare(
    config: PreTrainedConfig,
    dtype: str,
    kernel: str,
    sequences: list[list[int]],
    find_reference: Callable[[], tuple[Tensor, Tensor]],
    setting: Setting,
) -> dict:
    """Returns one kernel's differences from the reference in one precision."""
    expected, expected_gradient = find_reference()
    model = build_random(config, setting.device, "float32")
    set_dtype(model, dtype)
    if kernel == EAGER:
        logits, gradient = _run_unpadded(model, sequences)
    else:
        logits, gradient = _run_packed(model, sequences, kernel)
    return {
        "largest_difference": (logits - expected).abs().max().item(),
        "logits_std": expected.std().item(),
        "gradient_difference": ((gradient - expected_gradient).norm() / expected_gradient.norm()).item(),
        "gradient_cosine": torch.cosine_similarity(gradient, expected_gradient, dim=0).item(),
    }


def _run_unpadded(model: PreferenceMixin, sequences: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Returns logits and gradient of eager attention, one sequence after another."""
    model.config._attn_implementation = "eager"
    layers = model.list_layers().requires_grad_(True)
    rows = [model(input_ids=torch.tensor([ids], device=model.device)).logits for ids in sequences]
    return _differentiate(torch.cat(rows), layers)


def _run_packed(model: PreferenceMixin, sequences: list[list[int]], kernel: str) -> tuple[Tensor, Tensor]:
    """Returns logits and gradient of a packed kernel."""
    model.config._attn_implementation = kernel
    layers = model.list_layers().requires_grad_(True)
    return _differentiate(model(**move_batch(pack_sequences(sequences).to_batch(), model.device)).logits, layers)


def _differentiate(logits: Tensor, layers: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """Returns logits of shape (sequences, labels), and the gradient of all layers' weights as one float64 vector."""
    # Another weight for each logit, so that no sequence's gradient cancels another's.
    weights = torch.linspace(-1, 1, logits.numel(), device=logits.device).reshape(logits.shape)
    (logits * weights).sum().backward()
    return logits.detach(), torch.cat([parameter.grad.double().flatten() for parameter in layers.parameters()])


def move_batch(batch: dict, device: torch.device) -> dict:
    """Returns a batch with its tensors on the device."""
    return {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}


# --- attention alone --------------------------------------------------------------------------------------------------


def time_kernels(setting: Setting) -> Part:
    """Yields the time of one layer's attention in Gemma-2-9B's heads, with and without soft-capping."""
    pack = _build_pack(*setting.pick((PACK_TOKENS, MAX_TOKENS), (150, 150)))
    for softcap in (50.0, None):
        config = build_config(GEMMA2_9B, **setting.pick({}, TINY), attn_logit_softcapping=softcap)
        for kernel in find_kernels(config, setting.device):
            name = f"{kernel}, {'soft-cap' if softcap else 'no soft-cap'}"
            yield name, partial(_time_kernel, kernel, config, pack, setting)


def _build_pack(tokens: int, max_tokens: int) -> PackedSequence:
    """Packs battles in both orders until the row has this many tokens."""
    sequences: list[list[int]] = []
    for battle in draw_battles(64, 512, max_tokens):
        sequences += battle
        pack = pack_sequences(sequences)
        if len(pack.input_ids) >= tokens:
            break
    return pack


def _time_kernel(kernel: str, config: PreTrainedConfig, pack: PackedSequence, setting: Setting) -> dict:
    """Returns a kernel's seconds, forward and with backward, its rates, and its difference from packed_eager."""
    tokens, size = len(pack.input_ids), config.head_dim
    with torch.device(setting.device):
        layer = Gemma2Attention(config, layer_idx=0)
        torch.manual_seed(0)
        query, key, value = (
            torch.randn(1, heads, tokens, size, dtype=torch.bfloat16, requires_grad=True)
            for heads in (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        )
        gradient = torch.randn(1, tokens, config.num_attention_heads, size, dtype=torch.bfloat16)
    options = {"scaling": size**-0.5, "dropout": 0.0, "sliding_window": config.sliding_window}
    options |= {"softcap": config.attn_logit_softcapping, "segments": pack.segments}
    layer.config._attn_implementation = kernel

    def attend(name: str = kernel) -> Tensor:
        """One layer's attention."""
        return AttentionInterface()[name](layer, query, key, value, None, **options)[0]

    def attend_and_differentiate() -> None:
        """Also the gradients of query, key and value."""
        torch.autograd.grad(attend(), (query, key, value), gradient)

    with torch.no_grad():
        forward = time_repeatedly(attend, setting.device, repeats=10)
        difference = (attend() - attend(LAST_KERNEL)).abs().max().item()
    both = time_repeatedly(attend_and_differentiate, setting.device, repeats=5)
    pairs = sum(_count_pairs(segment) for segment in pack.segments)
    flops = 4 * config.num_attention_heads * size * pairs
    return {
        "tokens": tokens,
        "segments": len(pack.segments),
        "forward_ms": 1000 * forward,
        "forward_backward_ms": 1000 * both,
        "forward_tflops": flops / forward / 1e12,
        # The backward pass has five products of that size where the forward pass has two.
        "forward_backward_tflops": 3.5 * flops / both / 1e12,
        "from_packed_eager": difference,
    }


def _count_pairs(segment: Segment) -> float:
    """Counts the pairs of query and key of a segment: all of its prefix, and half of its own."""
    own = segment.stop - segment.start
    return own * sum(stop - start for start, stop in segment.before) + own * own / 2
