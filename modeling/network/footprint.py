"""What a network will hold in memory, counted before anything is loaded.

The network is built from its config alone, of fake tensors, which have a shape but no content, and runs on one packed
sequence. So what transformers, PEFT and bitsandbytes really keep is counted, for any base, on any machine. CUDA itself
and fragmentation, often 1 GB and more, are left out.
"""

import math
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import PeftModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import DefaultDeviceType
from transformers import BitsAndBytesConfig, PreTrainedConfig
from transformers.integrations import replace_with_bnb_linear

from modeling.data.outcomes import LABELS
from modeling.encoding.packing import pack_sequences
from modeling.network.attention import ON_GPU
from modeling.network.base import HEAD, name_labels
from modeling.network.classifier import find_family
from modeling.network.expansion import count_scales, list_quantised
from modeling.network.lora import add_adapters
from modeling.network.precision import DTYPES
from modeling.runtime.text_tables import format_table

NF4_BLOCK, ABSMAX_BLOCK = 64, 256  # weights per absmax; with double quantisation, absmaxes per second absmax
# Tensors of this size and more have a mapping of their own on a CPU (glibc's DEFAULT_MMAP_THRESHOLD_MAX).
HEAP_LIMIT = 32 << 20


@dataclass(frozen=True)
class MemoryPlan:
    """Estimated peak bytes per device, by what takes them."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        """Sum of all parts, in bytes."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        rows = {**self.parts, "total": self.total}
        return format_table([("part", "size"), *((name, f"{size / 1e9:.2f} GB") for name, size in rows.items())])


def build_network(
    config: PreTrainedConfig,
    *,
    dtype: str,
    r: int,
    freeze_layers: int,
    lora_dropout: float = 0.0,
    kernel: str | None = None,
) -> PeftModel:
    """Builds the network that train.py trains, of fake tensors; quantised if the config says so.

    Args:
        config: The base's.
        dtype: Key of `DTYPES`, of all weights that are neither quantised nor trained.
        r, freeze_layers, lora_dropout: See `add_adapters`.
        kernel: Attention for packed sequences, a key of `KERNELS`. Those for GPUs do not run on fake tensors; torch's
            fused kernel on a CPU takes their place. What FlexAttention adds to a row of tokens to reach a power of two
            is not counted.
    """
    settings = config.to_dict()
    if kernel in ON_GPU:
        kernel = "packed_sdpa"
        if "attn_logit_softcapping" in settings:
            settings["attn_logit_softcapping"] = None
    if "pooling" in settings:
        settings["pooling"] = "last"  # a mean needs the sequences' ends, which fake tensors do not have
    quantization = settings.pop("quantization_config", None)
    family = find_family(config.model_type)
    # A backbone without our head gets one of two labels, as load_base gives it.
    ours = family.config_class.model_type == config.model_type
    names = name_labels(family.config_class.model_type, config.num_labels if ours else len(LABELS))
    quantized = BitsAndBytesConfig.from_dict(quantization or {})
    with torch.device("meta"):
        model = family._from_config(family.config_class.from_dict({**settings, **names}), dtype=DTYPES[dtype])
        if quantization is not None:
            replace_with_bnb_linear(model, quantized.llm_int8_skip_modules or [HEAD], quantized)
        # PEFT chooses its LoRA layers by these attributes, which from_pretrained would have set.
        model.is_loaded_in_8bit, model.is_loaded_in_4bit = quantized.load_in_8bit, quantized.load_in_4bit
        model = add_adapters(model, r=r, alpha=r, dropout=lora_dropout, freeze_layers=freeze_layers)
    with FakeTensorMode():
        for module in model.modules():
            _fill_module(module, quantized, DTYPES[dtype])
    if kernel:
        model.config._attn_implementation = kernel
    return model


def _fill_module(module: nn.Module, quantized: BitsAndBytesConfig, dtype: torch.dtype) -> None:
    """Replaces a module's meta tensors by fake tensors, which operations accept."""
    packed = isinstance(module, Linear8bitLt | Linear4bit)
    for name, parameter in list(module.named_parameters(recurse=False)):
        kind = dtype if packed and name == "bias" else parameter.dtype
        setattr(module, name, nn.Parameter(torch.empty(parameter.shape, dtype=kind), parameter.requires_grad))
    for name, buffer in list(module.named_buffers(recurse=False)):
        setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
    if isinstance(module, Linear8bitLt):
        module.weight = nn.Parameter(torch.empty(module.out_features, module.in_features, dtype=torch.int8), False)
        module.weight.CB = module.weight.SCB = None
        module.state.CB, module.state.SCB = module.weight.data, torch.empty(module.out_features)
    elif isinstance(module, Linear4bit):
        module.weight = _pack_4bit(module, quantized)
        module.support_avx512bf16_for_cpu = False  # as load_base does: that kernel has no backward


def _pack_4bit(module: Linear4bit, quantized: BitsAndBytesConfig) -> nn.Parameter:
    """Builds a 4-bit weight in the form in which bitsandbytes packs it."""
    count = module.out_features * module.in_features
    blocks, nested = math.ceil(count / NF4_BLOCK), quantized.bnb_4bit_use_double_quant
    second = None
    if nested:
        absmax = torch.empty(math.ceil(blocks / ABSMAX_BLOCK))
        second = QuantState(absmax=absmax, code=torch.empty(256), blocksize=ABSMAX_BLOCK, dtype=torch.float32)
    weight = nn.Parameter(torch.empty((math.ceil(count / 2), 1), dtype=torch.uint8), False)
    weight.quant_state = QuantState(
        absmax=torch.empty(blocks, dtype=torch.uint8 if nested else torch.float32),
        shape=torch.Size((module.out_features, module.in_features)),
        code=torch.empty(16),
        blocksize=NF4_BLOCK,
        quant_type=quantized.bnb_4bit_quant_type,
        dtype=quantized.bnb_4bit_compute_dtype,
        offset=torch.empty(()) if nested else None,
        state2=second,
    )
    weight.compress_statistics, weight.quant_type = nested, quantized.bnb_4bit_quant_type
    weight.bnb_quantized = True
    return weight


def count_weights(network: nn.Module) -> int:
    """Counts the bytes of everything that is not trained, including the scales of quantised weights."""
    frozen = [p for p in network.parameters() if not p.requires_grad]
    scales = sum(map(count_scales, list_quantised(network)))
    return sum(tensor.nbytes for tensor in [*frozen, *network.buffers()]) + scales


def count_activations(
    network: PeftModel, lengths: Sequence[int], dtype: torch.dtype, device_type: str, *, training: bool = True
) -> tuple[int, int]:
    """Runs a network on a packed sequence of fake tensors, and counts the live bytes at its peak.

    Args:
        network: From `build_network`, with a kernel.
        lengths: Tokens of each sequence in the pack.
        dtype: In which the network computes.
        device_type: Such as "cpu" or "cuda".
        training: Forward and backward; False runs the forward pass alone, without gradients.

    Returns:
        Peak bytes apart from weights and finished gradients; and the peak of those in tensors below HEAP_LIMIT.
    """
    network.base_model.model.compute_dtype = dtype
    # In eval mode, too, 8-bit layers would choose their outliers by value, which fake tensors do not have.
    network.train()
    tracker = _PeakTracker([p for p in network.parameters() if not p.requires_grad])
    for parameter in network.parameters():
        if parameter.requires_grad:  # gradients have a row of their own in the table
            parameter.register_post_accumulate_grad_hook(lambda p: tracker.release(p.grad.untyped_storage()._cdata))
    pack = pack_sequences([[number] * length for number, length in enumerate(lengths)])
    with next(network.parameters()).fake_mode, _act_as(device_type, dtype != torch.float32):
        batch, labels = pack.to_batch(), torch.ones((len(lengths), network.config.num_labels))
        with tracker:
            if training:
                network(**batch, labels=labels).loss.backward()
            else:
                with torch.no_grad():
                    network(**batch)
    return tracker.peak, tracker.heap_peak


def count_reading(
    config: PreTrainedConfig, *, dtype: str, r: int, tokens: int, longest: int, device_type: str, kernel: str
) -> int:
    """Counts the bytes that reading one packed sequence takes, beyond plain weights and adapters.

    Args:
        config: The base's; whether it is quantised makes no difference.
        r: Rank of the adapters, on all layers.
        tokens: Tokens of the packed sequence.
        longest: Most tokens of each sequence in it.
        device_type, kernel: As for `count_activations` and `build_network`.
    """
    shallow = deepcopy(config)
    # Two layers hold as much as all: without gradients, what a layer computed is gone once the next one needs memory.
    shallow.num_hidden_layers = min(2, shallow.num_hidden_layers)
    if getattr(shallow, "layer_types", None):
        shallow.layer_types = shallow.layer_types[:2]
    if hasattr(shallow, "quantization_config"):
        del shallow.quantization_config
    network = build_network(shallow, dtype=dtype, r=r, freeze_layers=0, kernel=kernel)
    return count_activations(network, fill_pack(tokens, longest), DTYPES[dtype], device_type, training=False)[0]


def fill_pack(tokens: int, longest: int) -> list[int]:
    """Returns the lengths of the fewest sequences with so many tokens in all."""
    whole, rest = divmod(tokens, longest)
    return [longest] * whole + [rest] * bool(rest)


@contextmanager
def _act_as(device_type: str, lower: bool) -> Iterator[None]:
    """Makes PEFT behave as on a GPU, although the fake tensors are on the CPU, so that no CUDA build is needed.

    PEFT asks only whether CUDA's autocast is on. On a CPU it is off, so PEFT casts the input of every adapter to
    float32, autocast casts it back, and each adapter keeps a copy of its own: memory that a GPU does not need.
    """
    autocast, recomputed_on = torch.is_autocast_enabled("cuda"), DefaultDeviceType.get_device_type()
    torch.set_autocast_enabled("cuda", device_type == "cuda" and lower)
    DefaultDeviceType.set_device_type("cpu")  # else a checkpoint switches CUDA's autocast off while it recomputes
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", autocast)
        DefaultDeviceType.set_device_type(recomputed_on)


# torch.distributed._tools.mem_tracker.MemTracker would do less: it fails on frozen parameters, whose gradients it hooks
# (torch 2.13), and tells neither small tensors from large ones nor autocast's copies from activations. The measurement
# of --dry_run cannot replace the count either: it comes after loading, which is too late for a run that does not fit.
class _PeakTracker(TorchDispatchMode):
    """Adds up the storages that operations create, for as long as each lives."""

    def __init__(self, frozen: Sequence[Tensor]):
        super().__init__()
        self.frozen = {weight.untyped_storage()._cdata for weight in frozen}
        self.sizes: dict[int, int] = {}
        self.live = self.peak = self.heap_live = self.heap_peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        # Autocast's bf16 copies of a base in float32 do not count: only ZeRO-3 holds a base so, and its own linear
        # layer drops them at once (deepspeed/runtime/zero/linear.py).
        if func is torch.ops.aten._to_copy.default and given <= self.frozen:
            return made
        for storage in (t.untyped_storage() for t in tree_leaves(made) if isinstance(t, Tensor)):
            if storage._cdata not in given and storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                self._add(storage.nbytes())
                # By finalizer, because no operation says when the last reference to a storage goes.
                weakref.finalize(storage, self.release, storage._cdata).atexit = False
        return made

    def release(self, storage: int) -> None:
        """Stops counting a storage."""
        self._add(-self.sizes.pop(storage, 0))

    def _add(self, size: int) -> None:
        """Changes the live bytes by `size`, and raises the peaks if they are exceeded."""
        self.live += size
        self.heap_live += size if abs(size) < HEAP_LIMIT else 0
        self.peak, self.heap_peak = max(self.peak, self.live), max(self.heap_peak, self.heap_live)
