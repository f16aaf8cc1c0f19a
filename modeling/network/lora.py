"""LoRA adapters and their heads: adding them to a base, merging, collecting, writing and reading them.

This is the module that knows PEFT. It must not know members, battles or training arguments.
"""

import re
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from modeling.network.base import HEAD, BaseFiles, build_empty_base, load_tokenizer
from modeling.network.classifier import PreferenceMixin
from modeling.runtime.hub import download_repository
from modeling.runtime.logs import build_logger
from modeling.runtime.paths import find_adapter_folder

logger = build_logger(__name__)

LORA_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Names in transformers of the layers that a fresh head replaces: classification heads of decoders and of encoders, and
# a language model's output layer.
OLD_HEAD = re.compile(r"(?:.*\.)?(score|classifier|lm_head)(?:\..*)?")
WRAPPER = re.compile(r"(base_layer|modules_to_save)\.")  # parts of a name that come from peft's wrapper of a layer
# Initialisations that change the base's weights. PEFT repeats the first kind when it loads such an adapter. The second
# kind also depends on random numbers, on data or on a GPU, so that the weights beside the adapter are lost.
REPEATABLE, UNREPEATABLE = ("pissa", "olora"), ("pissa_niter", "loftq", "corda", "lora_ga")


def add_adapters(model: PreferenceMixin, *, r: int, alpha: float, dropout: float, freeze_layers: int = 0) -> PeftModel:
    """Freezes the base and adds a trainable head and LoRA adapters on all seven projections of each layer.

    Adapters and head are float32 on every base, because the optimizer updates them.

    Args:
        r: Rank of the adapters.
        alpha: Scale of the adapters; their product is multiplied by alpha / r.
        dropout: Dropout of the adapters' input.
        freeze_layers: Number of layers, from the bottom, that get no adapter.

    Raises:
        ValueError: If no layer would get an adapter.
    """
    layers = model.config.num_hidden_layers
    if not 0 <= freeze_layers < layers:
        raise ValueError(
            f"--freeze_layers {freeze_layers}: expected 0 to {layers - 1}, as the base has {layers} layers."
        )
    # Not peft's prepare_model_for_kbit_training: it casts Gemma's 256,000 embeddings to float32, +1.8 GB.
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        bias="none",
        target_modules=list(LORA_MODULES),
        modules_to_save=[HEAD],
        layers_to_transform=list(range(freeze_layers, layers)),
    )
    return _wrap_model(model, config)


def _wrap_model(model: PreferenceMixin, config: LoraConfig, name: str = "default") -> PeftModel:
    """PEFT's model, without transformers' warning that PEFT asks for an attribute by its old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(model, config, adapter_name=name)


def collect_trained_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    """Returns the weights of adapter and head on the CPU, by their names in the model.

    Every process must call this: under ZeRO-3 each one holds only a part of the weights.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if is_deepspeed_zero3_enabled():
        import deepspeed  # an optional extra, so not at the top of the module

        with deepspeed.zero.GatheredParameters(list(trained.values())):
            # clone(): on a CPU .cpu() copies nothing, and DeepSpeed frees the gathered weights after this block.
            return {name: parameter.detach().cpu().clone() for name, parameter in trained.items()}
    return {name: parameter.detach().cpu() for name, parameter in trained.items()}


def write_adapter(
    folder: Path, model: PeftModel, weights: dict[str, torch.Tensor], base: str = "", revision: str | None = None
) -> None:
    """Writes adapter_model.safetensors, which includes the head, and adapter_config.json.

    Args:
        folder: Folder to write to.
        model: Model whose adapter config is written.
        weights: Result of `collect_trained_weights`.
        base: Hub id of the base, or its path relative to the folder; empty in checkpoints, which stay on this machine.
        revision: Commit of the base on the Hub.
    """
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = base, revision
    # save_embedding_layers=False: peft's "auto" would look for the base's config, on the Hub if need be.
    model.save_pretrained(folder, state_dict=weights, save_embedding_layers=False)
    (folder / "README.md").unlink()  # peft writes a card that names folders of this machine


def merge_adapter(model: PreferenceMixin, adapter: str) -> PreferenceMixin:
    """Merges a LoRA adapter into the model's weights and returns the model, as PEFT does, but without the old head.

    The adapter may have been trained with another number of labels, and with another vocabulary if it holds the
    embeddings. The model must be float32: merging in float32 moves a logit by about 5e-7, merging into 8-bit weights by
    up to 8e-3.

    Raises:
        ValueError: If the model is quantised, or the adapter's tensors do not fit its layers.
    """
    if hasattr(model.config, "quantization_config"):
        raise ValueError(
            "--merge_adapter: expected an unquantised base; found a quantised one. Start from the original base."
        )
    folder, config, weights, left_out = _read_lora(adapter)
    if left_out:
        logger.info(f"Adapter {adapter}: left out its {' and '.join(left_out)}, which the base's fresh head replaces")
    if config.init_lora_weights in REPEATABLE:
        logger.info(
            f"Adapter {adapter}: {config.init_lora_weights} had changed the base's weights; they are changed again, as "
            "PEFT does, which is right on the base that the training started from"
        )
    vocabulary, weights = model.config.vocab_size, _load_whole_layers(folder, model, weights)
    if model.config.vocab_size != vocabulary:
        logger.info(f"Adapter {adapter}: vocabulary of {vocabulary} resized to the adapter's {model.config.vocab_size}")
    return attach_adapter(model, "default", config, weights, folder).merge_and_unload()


def check_adapter(adapter: str, base: BaseFiles) -> None:
    """Raises a ValueError if `merge_adapter` could not merge the adapter into this base. Does not load the base."""
    folder, config, weights, _ = _read_lora(adapter)
    config.init_lora_weights = True  # there are no weights that another initialisation could decompose
    empty = build_empty_base(base)
    vocabulary, weights = empty.config.vocab_size, _load_whole_layers(folder, empty, weights)
    found = empty.config.vocab_size
    if found < vocabulary and found < (tokens := len(load_tokenizer(base.folder, **base.source))):
        raise ValueError(
            f"Adapter {adapter}: expected embeddings for the {tokens} tokens of {base.folder.name}; found a vocabulary "
            f"resized to {found}. Use it with the base it was trained on."
        )
    try:
        empty = get_peft_model(empty, config)
    except ValueError as error:  # from peft: no module has any of the names in the adapter's config
        raise ValueError(
            f"Adapter {adapter}: expected LoRA on layers of {base.folder.name}; found other module names ({error}). "
            "Use it with the base it was trained on."
        ) from error
    _compare_tensors(folder, get_peft_model_state_dict(empty, save_embedding_layers=False), weights)


def _read_lora(adapter: str) -> tuple[Path, LoraConfig, dict[str, torch.Tensor], list[str]]:
    """Returns folder, config and tensors of a LoRA adapter on disk or on the Hub, and its old head's names."""
    folder = find_adapter_folder(adapter) or download_repository(adapter, "Adapter", ["adapter_*"])[0]
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(f"Adapter {adapter}: expected {name}; found none. Save it with PEFT, as safetensors.")
    try:
        config = PeftConfig.from_pretrained(folder)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"Adapter {adapter}: expected adapter_config.json as PEFT writes it; found {error} Save it again."
        ) from error
    weights = load_weights(folder)
    left_out = sorted({match[1] for name in weights if (match := OLD_HEAD.fullmatch(name))})
    weights = {name: value for name, value in weights.items() if not OLD_HEAD.fullmatch(name)}
    _check_mergeable(adapter, config, weights)
    # For a SEQ_CLS adapter peft would insist on loading the old head, even with another number of labels. Layers and
    # biases that were saved whole are loaded into the base before peft sees it.
    config.task_type, config.modules_to_save, config.bias = None, None, "none"
    if isinstance(config.target_modules, str):
        config.target_modules = f"(?!{OLD_HEAD.pattern}$)(?:{config.target_modules})"
    elif config.target_modules:
        config.target_modules = {name for name in config.target_modules if not OLD_HEAD.fullmatch(name)}
    return folder, config, weights, left_out


def _check_mergeable(adapter: str, config: PeftConfig, weights: dict) -> None:
    """Raises a ValueError for an adapter that is not LoRA, that is on the old head alone, or whose base is lost."""
    if not isinstance(config, LoraConfig):
        raise ValueError(
            f"Adapter {adapter}: expected LoRA; found {config.peft_type.value}, which cannot be merged here. "
            "Give a LoRA adapter."
        )
    if str(config.init_lora_weights).lower().startswith(UNREPEATABLE):
        raise ValueError(
            f"Adapter {adapter}: expected an initialisation that can be repeated on the base; found "
            f"{config.init_lora_weights}, whose changes to the base's weights are not in the adapter. Merge it with "
            "PEFT where it was trained, and pass the merged model as --base."
        )
    if not weights:
        raise ValueError(
            f"Adapter {adapter}: expected weights of layers below the head; found the old head's alone, which a fresh "
            "head replaces. Leave out --merge_adapter."
        )


def _load_whole_layers(folder: Path, model: PreferenceMixin, weights: dict) -> dict[str, torch.Tensor]:
    """Gives the model the layers that an adapter holds whole, such as embeddings; returns the adapter's other tensors.

    The vocabulary is resized to the embeddings'. A model on the meta device takes only their shapes.
    """
    own = model.state_dict()
    weights = {name: value for name, value in weights.items() if ".original_module." not in name}  # as it was before
    plain = {name: WRAPPER.sub("", name.removeprefix("base_model.model.")) for name in weights}
    whole = {name: weights[name] for name in weights if plain[name] in own}
    embeddings = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    for name, value in whole.items():
        if plain[name] == f"{embeddings}.weight" and len(value) != len(own[plain[name]]):
            model.resize_token_embeddings(len(value), mean_resizing=False)
            own = model.state_dict()
    _compare_tensors(folder, {name: own[plain[name]] for name in whole}, whole)
    if model.device.type != "meta":
        model.load_state_dict({plain[name]: value for name, value in whole.items()}, strict=False)
    return {name: value for name, value in weights.items() if name not in whole}


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Loads the tensors of an adapter folder.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        return load_file(folder / "adapter_model.safetensors")
    except SafetensorError as error:
        raise ValueError(
            f"Adapter {folder}: expected a complete safetensors file; found {error}. Download or save it again."
        ) from error


def attach_adapter(
    model: PreferenceMixin | PeftModel, name: str, config: LoraConfig, weights: dict, folder: Path
) -> PeftModel:
    """Adds one more adapter to the model, after checking that it has exactly the tensors of the model's layers.

    Raises:
        ValueError: If tensors are missing, unknown or of another shape.
    """
    if isinstance(model, PeftModel):
        model.add_adapter(name, config)
    else:
        model = _wrap_model(model, config, name)
    expected = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    _compare_tensors(folder, expected, weights)
    set_peft_model_state_dict(model, weights, adapter_name=name)
    return model


def restore_adapter(model: PeftModel, folder: Path) -> None:
    """Gives the model's only adapter and head the weights of a member folder.

    Raises:
        ValueError: If that member's adapter has another rank, scale or other layers, or its head another shape.
    """
    found, expected = LoraConfig.from_pretrained(folder), model.peft_config["default"]
    names = {"r": "--lora_r", "lora_alpha": "--lora_alpha", "layers_to_transform": "the layers above --freeze_layers"}
    if wrong := [flag for name, flag in names.items() if getattr(found, name) != getattr(expected, name)]:
        raise ValueError(
            f"--start_from {folder.name}: expected an adapter with this run's settings; found others for "
            f"{', '.join(wrong)}: {', '.join(f'{name} {getattr(found, name)}' for name in names)}. Give those."
        )
    weights = load_weights(folder)
    _compare_tensors(folder, get_peft_model_state_dict(model, save_embedding_layers=False), weights)
    set_peft_model_state_dict(model, weights)


def _compare_tensors(folder: Path, expected: dict, found: dict) -> None:
    """Raises a ValueError if an adapter's tensors do not match the model's."""
    # peft loads with strict=False: missing tensors would keep their random values, and unknown ones would be dropped.
    problems = [
        f"{len(names)} {what} (such as {min(names)})"
        for what, names in (
            ("are missing", expected.keys() - found.keys()),
            ("belong to no layer", found.keys() - expected.keys()),
            ("have another shape", {n for n in expected.keys() & found.keys() if expected[n].shape != found[n].shape}),
        )
        if names
    ]
    if problems:
        raise ValueError(
            f"Adapter {folder}: expected the {len(expected)} tensors of its base's layers and head; of these "
            f"{', '.join(problems)}. Save the adapter again, or use it with the base it was trained on."
        )
