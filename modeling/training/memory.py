"""The memory plan of a training run: bytes per device, computed before anything is loaded.

The network is built from its config alone, of fake tensors, which have a shape but no content, and runs one forward and
backward pass. So the plan counts what transformers, PEFT and bitsandbytes really keep, for any base, on any machine.
This module must not know scripts or data.

On a CPU the estimate is within 25% of what a process was measured to hold (tests/training/test_memory.py). For a GPU
it is computed, not measured. It assumes the family's default attention (for Gemma-2 eager attention, which stores
tokens x tokens scores), and leaves out CUDA itself and fragmentation, often 1 GB and more.
"""

import math
import resource
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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
from modeling.network.base import HEAD, name_labels
from modeling.network.classifier import find_family
from modeling.network.lora import add_adapters
from modeling.network.precision import DTYPES
from modeling.runtime.distributed import BUCKET_SIZE
from modeling.runtime.text_tables import format_table

FLOAT32 = 4  # bytes
NF4_BLOCK, ABSMAX_BLOCK = 64, 256  # weights per absmax; with double quantisation, absmaxes per second absmax
OPTIMIZER_BLOCK, MIN_8BIT_SIZE = 256, 4096  # of bitsandbytes' 8-bit optimizers; smaller tensors keep float32 state
# Optimizers that keep no state, or one tensor per parameter. The others keep two, as AdamW does.
STATELESS, ONE_STATE = ("sgd", "lomo", "adalomo"), ("lion", "rmsprop", "adagrad")
# glibc's malloc keeps freed blocks that later tensors do not fit into. Over five settings of batch, length, dtype and
# layers, a process held 1.43 to 1.75 times the live bytes. With every tensor in a mapping of its own it was 1.02 times,
# but each step took seconds more of system time. Tensors of 32 MiB and more always have a mapping of their own
# (DEFAULT_MMAP_THRESHOLD_MAX).
HEAP_OVERHEAD, HEAP_LIMIT = 1.5, 32 << 20


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


def plan_memory(
    config: PreTrainedConfig,
    *,
    dtype: str,
    r: int,
    freeze_layers: int,
    batch_size: int,
    length: int,
    optim: str,
    lora_dropout: float = 0.0,
    gradient_checkpointing: bool = False,
    use_reentrant: bool = False,
    num_processes: int = 1,
    zero_stage: int = 0,
    device_type: str = "cpu",
    resident: int = 0,
) -> MemoryPlan:
    """Estimates the memory that training holds at its peak on each device.

    Args:
        config: The base's config; its quantization_config, if any, decides between 8 bit and 4 bit.
        dtype: Precision of everything that is not quantised, a key of `DTYPES`.
        batch_size: Sequences of one forward pass.
        length: Tokens of the longest sequence.
        optim: Name of the optimizer, as in TrainingArguments.
        lora_dropout: Above 0, each projection keeps an input and a mask of its own.
        use_reentrant: The kind of gradient checkpointing. False keeps the input of every 8-bit layer all the same:
            bitsandbytes stores it as `ctx.A`, not as a saved tensor, so the checkpoint cannot drop it.
        zero_stage: DeepSpeed's stage; 0 without DeepSpeed.
        device_type: "cpu" adds what malloc wastes.
        resident: Bytes that the process holds already.
    """
    # Under ZeRO-3 DeepSpeed holds the base's weights in float32, whatever they are computed in.
    held = "float32" if zero_stage == 3 else dtype
    network = build_network(config, dtype=held, r=r, freeze_layers=freeze_layers, lora_dropout=lora_dropout)
    if gradient_checkpointing:
        network.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    trained = [p.numel() for p in network.parameters() if p.requires_grad]
    parts = {"process before": resident}
    parts["base weights"] = count_weights(network) // (num_processes if zero_stage == 3 else 1)
    if zero_stage == 3:
        parts["layers collected at a time"] = FLOAT32 * (count_largest_module(network) + BUCKET_SIZE)
    parts |= count_states(trained, optim, num_processes, zero_stage)
    parts["activations"], heap = count_activations(network, batch_size, length, DTYPES[dtype], device_type)
    if device_type == "cpu":
        parts["freed, kept by malloc"] = int(heap * (HEAP_OVERHEAD - 1))
    return MemoryPlan({name: size for name, size in parts.items() if size})


def count_states(trained: list[int], optim: str, num_processes: int, zero_stage: int) -> dict[str, int]:
    """Counts the bytes per device of trained parameters, given their sizes, of gradients and of optimizer state."""
    total, shared = FLOAT32 * sum(trained), num_processes if zero_stage >= 2 else 1
    parts = {"adapters and head": total // (shared if zero_stage == 3 else 1)}
    parts |= {"copy of the share to update": total // shared} if zero_stage else {}
    parts["gradients"] = total // shared
    # Gradients are reduced from copies in buckets; DDP's buckets together are as large as all gradients.
    parts["buckets"] = FLOAT32 * BUCKET_SIZE if zero_stage else total * (num_processes > 1)
    return parts | {"optimizer": sum(count_optimizer(optim, size) for size in trained) // shared}


def build_network(
    config: PreTrainedConfig, *, dtype: str, r: int, freeze_layers: int, lora_dropout: float = 0.0
) -> PeftModel:
    """Builds the network that train.py trains, of fake tensors; quantised if the config says so."""
    settings = config.to_dict()
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
    scales = sum(FLOAT32 * module.out_features for module in network.modules() if isinstance(module, Linear8bitLt))
    for module in network.modules():
        if isinstance(module, Linear4bit):
            state = module.weight.quant_state
            scales += state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0)
    return sum(tensor.nbytes for tensor in [*frozen, *network.buffers()]) + scales


def count_largest_module(network: nn.Module) -> int:
    """Counts the weights of the largest single module, usually the embedding."""
    return max(sum(p.numel() for p in module.parameters(recurse=False)) for module in network.modules())


def count_optimizer(optim: str, size: int) -> int:
    """Counts the bytes that an optimizer keeps for a tensor of `size` elements; unknown ones count as AdamW."""
    if optim.startswith(STATELESS):
        return 0
    tensors = 1 if optim.removeprefix("paged_").startswith(ONE_STATE) else 2
    if optim.endswith("8bit") and size >= MIN_8BIT_SIZE:
        return tensors * (size + FLOAT32 * math.ceil(size / OPTIMIZER_BLOCK))
    return tensors * FLOAT32 * size


def count_activations(
    network: PeftModel, batch_size: int, length: int, dtype: torch.dtype, device_type: str
) -> tuple[int, int]:
    """Runs a forward and backward pass on fake tensors, and counts the live bytes at its peak.

    Returns:
        Peak bytes apart from weights and finished gradients; and the peak of those in tensors below HEAP_LIMIT.
    """
    network.base_model.model.compute_dtype = dtype
    network.train()
    tracker = _PeakTracker([p for p in network.parameters() if not p.requires_grad])
    for parameter in network.parameters():
        if parameter.requires_grad:  # gradients have a row of their own in the table
            parameter.register_post_accumulate_grad_hook(lambda p: tracker.release(p.grad.untyped_storage()._cdata))
    with next(network.parameters()).fake_mode, _act_as(device_type, dtype != torch.float32):
        ids = torch.ones((batch_size, length), dtype=torch.int64)
        labels = torch.ones((batch_size, network.config.num_labels))
        with tracker:
            network(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss.backward()
    return tracker.peak, tracker.heap_peak


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
# of --dry_run cannot replace the plan either: it comes after loading, which is too late for a run that does not fit.
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


# --- measured ---------------------------------------------------------------------------------------------------------


def measure_resident() -> int:
    """Measures the bytes that this process holds now; without /proc, the most it has held."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return measure_peak_memory()


def measure_peak_memory() -> int:
    """Measures the most bytes held so far, on the GPU if there is one, else by this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # In bytes on macOS, in KiB on Linux.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
