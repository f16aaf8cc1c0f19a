"""Bases: finding a backbone's files, loading it as a preference model, quantising it. Knows bitsandbytes, not PEFT."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BitsAndBytesConfig,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.utils import logging as transformers_logging

from modeling.network.attention import choose_attention
from modeling.network.classifier import PreferenceMixin, find_family
from modeling.network.precision import DTYPES, set_dtype
from modeling.runtime.choices import QUANT_TYPES
from modeling.runtime.hub import download_repository
from modeling.runtime.paths import PACKAGED, check_base, find_packaged

HEAD = "score"
SLOTS = {0: "first", 1: "second"}


def build_quantization_config(
    quantization: str, *, bnb_4bit_quant_type: str = "nf4", bnb_4bit_use_double_quant: bool = False
) -> BitsAndBytesConfig | None:
    """bitsandbytes settings: the seed's for 8bit, bf16 compute for 4bit, None for none.

    Args:
        quantization: "none", "8bit" or "4bit".
        bnb_4bit_quant_type: "nf4", whose 16 values suit normally distributed weights (QLoRA, arXiv:2305.14314,
            section 3), or "fp4".
        bnb_4bit_use_double_quant: Whether the scales of the blocks of 64 weights are quantised too.

    Raises:
        ValueError: If a value is none of these.
    """
    # bitsandbytes would otherwise quantise the head too, which then fails in its forward.
    skip = [HEAD]
    if bnb_4bit_quant_type not in QUANT_TYPES:
        raise ValueError(
            f"--bnb_4bit_quant_type: expected one of {', '.join(QUANT_TYPES)}; found {bnb_4bit_quant_type!r}."
        )
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0, llm_int8_skip_modules=skip)
    if quantization == "4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=bnb_4bit_use_double_quant,
            bnb_4bit_compute_dtype=torch.bfloat16,  # as saved; a loaded model computes in its own dtype
            llm_int8_skip_modules=skip,
        )
    if quantization == "none":
        return None
    raise ValueError(f"--quantization: expected none, 8bit or 4bit; found {quantization!r}.")


@dataclass(frozen=True)
class BaseFiles:
    """Where a base's files lie: a folder, the one GGUF file in it to read (or None), and its Hub id and revision."""

    folder: Path
    gguf_file: str | None = None
    repo: str | None = None
    revision: str | None = None

    @property
    def source(self) -> dict:
        """The keyword that makes transformers read the GGUF, where the base is one."""
        return {"gguf_file": self.gguf_file} if self.gguf_file else {}


def find_base(base: str) -> BaseFiles:
    """The files of a base, downloading them from the Hub when it is neither a folder nor a file here.

    Raises:
        FileNotFoundError: If it can be found nowhere.
        ValueError: If a folder is not a model's.
    """
    check_base(base)
    path = find_packaged(base, "Base") if base.startswith(PACKAGED) else Path(base)
    if path.is_file():
        return BaseFiles(path.parent, path.name)
    if path.is_dir():
        return BaseFiles(path)
    folder, repo, revision = download_repository(
        base, "Base", ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    )
    return BaseFiles(folder, repo=repo, revision=revision)


def fingerprint_base(files: BaseFiles) -> str:
    """Hash that tells one base's weights from another's: config, and size, first and last MiB of each weight file.

    Reading all of a 9 GB base would take longer than loading it.
    """
    digest = hashlib.sha256()
    weights = [files.folder / files.gguf_file] if files.gguf_file else sorted(files.folder.glob("*.safetensors"))
    if not files.gguf_file:
        digest.update((files.folder / "config.json").read_bytes())
    for path in weights:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 20))
            file.seek(max(0, size - (1 << 20)))
            digest.update(file.read())
    return digest.hexdigest()[:16]


def load_tokenizer(folder: str | Path, **source) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder; `gguf_file=` reads it out of that GGUF."""
    return AutoTokenizer.from_pretrained(folder, **source)


@contextmanager
def unpack_gguf(files: BaseFiles) -> Iterator[BaseFiles]:
    """A base as plain safetensors; those of a GGUF, dequantised to float32, live until the context ends."""
    if not files.gguf_file:
        yield files
        return
    with tempfile.TemporaryDirectory() as folder:
        # As loaded, a GGUF model cannot be saved; dequantised it is an ordinary one.
        settings = GgufConfig(dequantize=True)
        body = AutoModel.from_pretrained(
            files.folder, quantization_config=settings, dtype=torch.float32, **files.source
        )
        body.save_pretrained(folder)
        yield BaseFiles(Path(folder))


def load_base(
    files: BaseFiles,
    *,
    dtype: str,
    quantization: str = "none",
    bnb_4bit_quant_type: str = "nf4",
    bnb_4bit_use_double_quant: bool = False,
    device: torch.device | None = None,
    **head,
) -> PreferenceMixin:
    """A preference model of the base's family; weights that the base lacks (a plain backbone's head) come out fresh.

    Args:
        files: What `find_base` found.
        dtype: A key of `DTYPES`, of all that is not quantised and of every product; the head is float32 always.
        quantization: "8bit" or "4bit" quantises a plain base while loading; "none" takes it as it is.
        bnb_4bit_quant_type, bnb_4bit_use_double_quant: See `build_quantization_config`.
        device: Where to put the model; the process's own if None.
        head: Config fields of the head, such as head_dropout; those that are None stay as the base has them.

    Raises:
        ValueError: If the base is of no supported family, is a GGUF, or is quantised and would be once more.
    """
    if files.gguf_file:
        raise ValueError(
            f"Base {files.gguf_file}: expected a model folder; found a GGUF file. Run scripts/quantize.py on it first."
        )
    if quantization != "none":
        check_unquantized(files)
    family, config = _build_config(files, head)
    four_bit = {"bnb_4bit_quant_type": bnb_4bit_quant_type, "bnb_4bit_use_double_quant": bnb_4bit_use_double_quant}
    options = {}
    if quantization != "none":
        options["quantization_config"] = build_quantization_config(quantization, **four_bit)
    device = device or PartialState().device
    if options or hasattr(config, "quantization_config"):
        options["device_map"] = {"": device}  # bitsandbytes would take the GPU even when told to use the CPU
    with _quiet_transformers():
        if is_deepspeed_zero3_enabled():  # which shares out weights of one dtype only, and the adapters are float32
            model = family.from_pretrained(files.folder, config=config, dtype=torch.float32, **options)
            model.compute_dtype = DTYPES[dtype]
        else:
            model = family.from_pretrained(files.folder, config=config, dtype=DTYPES[dtype], **options)
            set_dtype(model, dtype)
    model = model if "device_map" in options else model.to(device)
    choose_attention(model)
    return model


def check_unquantized(files: BaseFiles) -> None:
    """Raises a ValueError, from the config alone, if the base is quantised or of no supported family."""
    # A GGUF is dequantised when it is read, and its config takes seconds to get at.
    if not files.gguf_file and hasattr(_build_config(files, {})[1], "quantization_config"):
        raise ValueError(
            f"Base {files.folder}: expected unquantised weights; found quantised ones. Start from the original base."
        )


def build_empty_base(files: BaseFiles) -> PreferenceMixin:
    """The base's layers without weights (on the meta device), to compare names and shapes with in a second."""
    family, config = _build_config(files, {})
    with torch.device("meta"):
        return family(config)


def _build_config(files: BaseFiles, head: dict) -> tuple[type[PreferenceMixin], PreTrainedConfig]:
    """The base's family, and its config as that family's, with the head's fields that are not None."""
    plain = AutoConfig.from_pretrained(files.folder, **files.source)
    family = find_family(plain.model_type)
    # Labels are named by slot: which answer stands in the first one depends on the orientation.
    names = {
        "model_type": family.config_class.model_type,
        "id2label": SLOTS,
        "label2id": {v: k for k, v in SLOTS.items()},
    }
    head = {name: value for name, value in head.items() if value is not None}
    return family, family.config_class.from_dict({**plain.to_dict(), **names, **head})


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Hides the load report that lists a fresh head as missing: here that is what is meant."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def measure_weights(model: PreferenceMixin) -> int:
    """Bytes of a model's weights, with the scales that belong to quantised ones.

    Not transformers' get_memory_footprint, which counts parameters and so leaves those scales out.
    """
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def describe_origin(name: str, files: BaseFiles) -> str:
    """What a base is made from: Hub id and commit, a packaged file, or a folder's name; what that says of itself first.

    Args:
        name: As it was given.
        files: What `find_base` found for it.
    """
    said = None if files.gguf_file else AutoConfig.from_pretrained(files.folder).to_dict().get("made_from")
    if said or files.repo is None:
        return said or (name if name.startswith(PACKAGED) else Path(name).name)
    return f"{files.repo}@{files.revision}"


def save_base(folder: Path, model: PreferenceMixin, tokenizer: PreTrainedTokenizerBase, made_from: str = "") -> None:
    """Writes a base, head included, and its tokenizer; `made_from` becomes a line of its config."""
    if made_from:
        model.config.made_from = made_from
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
