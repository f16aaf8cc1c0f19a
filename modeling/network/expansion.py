"""Weights for reading: quantised layers expanded to a plain dtype, with an adapter merged into them or beside them.

It must not know members or how much memory there is.
"""

from copy import deepcopy

import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from peft.utils.integrations import dequantize_module_weight
from torch import nn

from modeling.network.base import HEAD
from modeling.network.classifier import PreferenceMixin

QUANTISED = (Linear8bitLt, Linear4bit)
FLOAT32 = 4  # bytes


@torch.no_grad()
def build_merged(
    model: PeftModel, adapter: str, dtype: torch.dtype, *, with_lora: bool = True, like: PreferenceMixin | None = None
) -> PreferenceMixin:
    """Builds a model with plain weights that computes what `model` computes with one adapter.

    Quantised weights are dequantised, the adapter is merged into them in float32, and its head replaces the base's. The
    tensors that do not change are shared with `model`.

    Args:
        model: Model that holds the adapter.
        adapter: Name of the adapter in the model.
        dtype: Dtype of all weights except the head's.
        with_lora: False leaves the LoRA out: the base's weights, dequantised, with the adapter's head.
        like: What an earlier call returned for another adapter: weights that neither changes are shared with it.
    """
    network = model.get_base_model()
    weights = {}
    unchanged = dict(like.named_parameters()) if like else {}
    for name, module in network.named_modules():
        if isinstance(module, LoraLayer):
            weights[f"{name}.weight"] = _merge_layer(module, adapter if with_lora else None).to(dtype)
            if module.base_layer.bias is not None:
                weights[f"{name}.bias"] = module.base_layer.bias.to(dtype)
        elif isinstance(module, QUANTISED) and not name.endswith(".base_layer"):
            known = unchanged.get(f"{name}.weight")
            weights[f"{name}.weight"] = dequantize_module_weight(module).to(dtype) if known is None else known
        elif isinstance(module, ModulesToSaveWrapper):
            weights |= {f"{name}.{key}": value for key, value in module.modules_to_save[adapter].state_dict().items()}
    config = deepcopy(network.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):  # no memory for weights that are assigned below
        merged = type(network)(config)
    stored = network.state_dict()
    for name in merged.state_dict().keys() - weights.keys():
        # Left are embeddings and norms, which may be stored in another dtype, and the head, which stays float32.
        weights[name] = stored[name] if name.startswith(f"{HEAD}.") else unchanged.get(name, stored[name].to(dtype))
    merged.load_state_dict(weights, assign=True)
    for name, buffer in network.named_buffers():  # rotary frequencies: no state_dict has them, so they are still meta
        if name not in stored:
            owner, _, key = name.rpartition(".")
            merged.get_submodule(owner).register_buffer(key, buffer, persistent=False)
    merged.config._attn_implementation = network.config._attn_implementation
    merged.compute_dtype = network.compute_dtype
    return merged.requires_grad_(False).eval()


@torch.no_grad()
def expand_weights(model: PeftModel, dtype: torch.dtype) -> None:
    """Replaces quantised layers by plain ones of the same weights; the adapters stay beside them.

    It happens in place and one layer after the other, so no more than one layer is held twice.
    """
    network = model.get_base_model()
    # Names, not modules: a list of those would keep all of them until the end.
    for name in [name for name, module in network.named_modules() if isinstance(module, QUANTISED)]:
        layer = network.get_submodule(name)
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(dequantize_module_weight(layer).to(dtype), requires_grad=False)
        plain.bias = layer.bias if layer.bias is None else nn.Parameter(layer.bias.to(dtype), requires_grad=False)
        network.set_submodule(name, plain)
        vars(layer).pop("forward", None)  # `set_dtype` may have put a function there that refers to the layer
        vars(layer).pop("train", None)


def measure_expanded(model: PeftModel, dtype: torch.dtype) -> int:
    """Returns the additional bytes that a model takes once `expand_weights` has run; 0 if nothing is quantised."""
    return sum(
        _count_plain(layer, dtype) - layer.weight.nbytes - count_scales(layer) for layer in list_quantised(model)
    )


def measure_products(model: PeftModel, dtype: torch.dtype, tokens: int, device_type: str) -> int:
    """Returns the most bytes that a product with quantised weights takes, beyond those of one with plain weights.

    A GPU multiplies 8-bit weights by inputs in 8 bit, with outputs in 32; else a layer's weight is expanded for each
    product.
    """
    layers = list_quantised(model)
    if device_type != "cpu" and dtype != torch.float32 and all(isinstance(layer, Linear8bitLt) for layer in layers):
        wide = 6 if dtype == torch.bfloat16 else 4  # bytes of an output: bitsandbytes makes bf16 of float16 of int32
        return tokens * max((layer.in_features + wide * layer.out_features for layer in layers), default=0)
    return max((_count_plain(layer, dtype) for layer in layers), default=0)


def list_quantised(model: nn.Module) -> list[nn.Module]:
    """Returns a model's quantised layers."""
    return [module for module in model.modules() if isinstance(module, QUANTISED)]


def count_scales(layer: nn.Module) -> int:
    """Returns the bytes of a quantised layer's scales, which are no parameters."""
    if isinstance(layer, Linear8bitLt):
        return FLOAT32 * layer.out_features
    state = layer.weight.quant_state
    return state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0)


def _count_plain(layer: nn.Module, dtype: torch.dtype) -> int:
    """Returns the bytes of a layer's weight in a dtype."""
    return layer.in_features * layer.out_features * dtype.itemsize


def measure_merged(model: PeftModel, dtype: torch.dtype) -> int:
    """Returns the additional bytes that `build_merged` would need: the weights of the linear layers."""
    layers = [
        module
        for name, module in model.named_modules()
        if isinstance(module, (LoraLayer, *QUANTISED)) and not name.endswith(".base_layer")
    ]
    return sum(layer.in_features * layer.out_features for layer in layers) * dtype.itemsize


def _merge_layer(layer: LoraLayer, adapter: str | None) -> torch.Tensor:
    """Returns a layer's weight in float32, with the adapter merged if there is one and it covers this layer."""
    weight = dequantize_module_weight(layer.base_layer).float()
    return weight + layer.get_delta_weight(adapter).float() if adapter in layer.lora_A else weight
