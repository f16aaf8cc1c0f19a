"""Base models: finding a backbone's files, loading it as a preference model, quantising and saving it.

It knows bitsandbytes and must not know PEFT: adapters are lora.py's.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.utils import logging as transformers_logging

from modeling.data.outcomes import LABELS, SLOTS, find_labels
from modeling.network.attention import choose_attention
from modeling.network.classifier import PreferenceMixin, find_family
from modeling.network.gguf import build_packaged, convert_gguf
from modeling.network.precision import DTYPES, set_dtype
from modeling.runtime.choices import QUANT_TYPES
from modeling.runtime.hub import download_repository
from modeling.runtime.packages import NOTICES, PACKAGED, WEIGHTS, find_packaged
from modeling.runtime.paths import check_base
from modeling.runtime.progress import delay_loading_bars

HEAD = "score"
INCOMPLETE = "Its weights are incomplete or of another model: download or save it again."
POINTER = b"version https://git-lfs"


def build_quantization_config(
    quantization: str, *, bnb_4bit_quant_type: str = "nf4", bnb_4bit_use_double_quant: bool = False
) -> BitsAndBytesConfig | None:
    """Builds the bitsandbytes settings for a quantisation; None for "none".

    Args:
        quantization: "none", "8bit" or "4bit".
        bnb_4bit_quant_type: "nf4", whose 16 values suit normally distributed weights (QLoRA, arXiv:2305.14314,
            section 3), or "fp4".
        bnb_4bit_use_double_quant: Whether to quantise the scales of the blocks of 64 weights too.

    Raises:
        ValueError: If `quantization` or `bnb_4bit_quant_type` is unknown.
    """
    # bitsandbytes' default list misses an MLP head and would quantise it; the head's forward then fails. The name is a
    # prefix, so it covers both layers of the head.
    skip = [HEAD]
    if bnb_4bit_quant_type not in QUANT_TYPES:
        raise ValueError(
            f"--bnb_4bit_quant_type: expected one of {', '.join(QUANT_TYPES)}; found {bnb_4bit_quant_type!r}."
        )
    if quantization == "8bit":
        # The threshold selects outlier columns over the whole batch, so a battle's logits depend on the others in it;
        # on a CPU precision.set_dtype keeps the kernels of training, which have no threshold.
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0, llm_int8_skip_modules=skip)
    if quantization == "4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=bnb_4bit_use_double_quant,
            bnb_4bit_compute_dtype=torch.bfloat16,  # only what the file says: set_dtype replaces it after loading
            llm_int8_skip_modules=skip,
        )
    if quantization == "none":
        return None
    raise ValueError(f"--quantization: expected none, 8bit or 4bit; found {quantization!r}.")


@dataclass(frozen=True)
class BaseFiles:
    """Location of a base: a folder, the GGUF file in it (None for safetensors), and where the base comes from.

    repo, revision: Hub id and commit, if it is from there.
    package: Key of `WEIGHTS`, if it was made of an installed package's weights.
    """

    folder: Path
    gguf_file: str | None = None
    repo: str | None = None
    revision: str | None = None
    package: str | None = None

    @property
    def source(self) -> dict:
        """Keyword arguments that make transformers read the GGUF file; empty for a model folder."""
        return {"gguf_file": self.gguf_file} if self.gguf_file else {}


def find_base(base: str) -> BaseFiles:
    """Finds a base on disk, builds it from an installed package, or downloads it from the Hub, and returns its files.

    Raises:
        FileNotFoundError: If the base does not exist.
        ValueError: If the folder holds no model.
        OSError: If the base of a package is to be built, and the cache cannot be written.
    """
    check_base(base)
    if base in WEIGHTS:
        return BaseFiles(build_packaged(base), package=base)
    path = find_packaged(base, "Base") if base.startswith(PACKAGED) else Path(base)
    if path.is_file():
        return BaseFiles(path.parent, path.name)
    if path.is_dir():
        return BaseFiles(path)
    folder, repo, revision = download_repository(
        base, "Base", ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", *NOTICES]
    )
    return BaseFiles(folder, repo=repo, revision=revision)


def fingerprint_base(files: BaseFiles) -> str:
    """Returns a hash that identifies a base's weights: its config, and each weight file's size, first and last MiB."""
    if files.package:
        # Of the weights: the config that transformers writes beside them names its own version.
        return WEIGHTS[files.package].sha256[:16]
    # Not the whole files: hashing a 9 GB base would take longer than loading it.
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
    """Loads the tokenizer of a model folder, or with `gguf_file=` the one inside that GGUF file."""
    return AutoTokenizer.from_pretrained(folder, **source)


@contextmanager
def unpack_gguf(files: BaseFiles) -> Iterator[BaseFiles]:
    """Yields the base as safetensors; a GGUF is dequantised to float32 in a temporary folder for the context."""
    if not files.gguf_file:
        yield files
        return
    with tempfile.TemporaryDirectory() as folder:
        convert_gguf(files.folder / files.gguf_file, Path(folder))
        yield BaseFiles(Path(folder))


def load_base(
    files: BaseFiles,
    *,
    dtype: str,
    quantization: str = "none",
    bnb_4bit_quant_type: str = "nf4",
    bnb_4bit_use_double_quant: bool = False,
    device: torch.device | None = None,
    training: bool = False,
    **head,
) -> PreferenceMixin:
    """Loads a base as a preference model; weights that it lacks, such as a plain backbone's head, are initialised.

    Args:
        files: Result of `find_base`.
        dtype: Key of `DTYPES`, for all unquantised weights and all products; the head is always float32.
        quantization: "8bit" or "4bit" quantises an unquantised base while loading; "none" loads it as it is.
        bnb_4bit_quant_type, bnb_4bit_use_double_quant: See `build_quantization_config`.
        device: Device of the model; this process's device if None.
        training: Whether gradients will be needed.
        head: Config fields of the head, such as head_dropout, and num_labels; None keeps the base's value.

    Raises:
        ValueError: If the base's family is not supported, or the base is a GGUF, or it is already quantised and
            `quantization` is not "none", or its files lack weights.
    """
    if files.gguf_file:
        raise ValueError(
            f"Base {files.gguf_file}: expected a model folder; found a GGUF file. Run scripts/quantize.py on it first."
        )
    if quantization != "none":
        check_unquantized(files)
    family, config = read_family_config(files, head)
    four_bit = {"bnb_4bit_quant_type": bnb_4bit_quant_type, "bnb_4bit_use_double_quant": bnb_4bit_use_double_quant}
    options = {}
    if quantization != "none":
        options["quantization_config"] = build_quantization_config(quantization, **four_bit)
    device = device or PartialState().device
    if options or hasattr(config, "quantization_config"):
        options["device_map"] = {"": device}  # otherwise bitsandbytes takes the GPU even under --use_cpu
    # ZeRO-3 partitions weights of a single dtype, and the adapters are float32.
    sharded = is_deepspeed_zero3_enabled()
    held = torch.float32 if sharded else DTYPES[dtype]
    model = _load_whole(files.folder, family, config=config, dtype=held, **options)
    if sharded:
        model.compute_dtype = DTYPES[dtype]
    else:
        set_dtype(model, dtype)
    model = model if "device_map" in options else model.to(device)
    choose_attention(model, training)
    return model


def _load_whole(folder: Path, family: type[PreferenceMixin], **options) -> PreferenceMixin:
    """Loads a model; a ValueError if its files lack a weight of the body, hold one too many, or are damaged."""
    with _quiet_transformers(), delay_loading_bars():
        try:
            model, loaded = family.from_pretrained(folder, output_loading_info=True, **options)
        except SafetensorError as error:
            raise _explain_damage(folder, error) from error
        except NotImplementedError as error:  # transformers draws a lost tensor's values, and cannot for integers
            raise ValueError(
                f"Base {folder}: expected a tensor for each weight; found none for a quantised one. {INCOMPLETE}"
            ) from error
    _check_loaded(folder, loaded["missing_keys"], loaded["unexpected_keys"])
    return model


def _explain_damage(folder: Path, error: SafetensorError) -> ValueError:
    """Returns the error for a weight file that cannot be read."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                return ValueError(
                    f"Base {folder}: expected weights in {path.name}; found a git-lfs pointer to them. Run `git lfs "
                    "pull` in the clone, or download the files themselves."
                )
    return ValueError(f"Base {folder}: expected a complete safetensors file; found {error}. {INCOMPLETE}")


def _check_loaded(folder: Path, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Raises a ValueError if weights of the body had no tensor in the files, or a layer's tensor had no place.

    Only the head may be fresh, and only a language model's output layer or another head may be left out: transformers
    gives everything else random values, or drops it, and says so in a report that _quiet_transformers hides.
    """
    missing = sorted(name for name in missing if not name.startswith(f"{HEAD}."))
    unexpected = sorted(name for name in unexpected if ".layers." in f".{name}")
    if not missing and not unexpected:
        return
    found = [f"none for {len(missing)} (such as {missing[0]})"] if missing else []
    found += [f"{len(unexpected)} that belong to no layer (such as {unexpected[0]})"] if unexpected else []
    way_out = INCOMPLETE
    for name in unexpected:
        if prefix := next((name.removesuffix(end) for end in missing if name.endswith(f".{end}")), None):
            way_out = f"Its tensors' names begin with {prefix!r}: save it without that prefix."
            break
    raise ValueError(f"Base {folder}: expected a tensor for each weight; found {' and '.join(found)}. {way_out}")


def check_unquantized(files: BaseFiles, **head) -> None:
    """Raises a ValueError if the base is quantised, its family is not supported, or it has another head.

    Reads only the config.
    """
    # A GGUF is dequantised when it is read, and reading its config takes seconds.
    if not files.gguf_file and hasattr(read_family_config(files, head)[1], "quantization_config"):
        raise ValueError(
            f"Base {files.folder}: expected unquantised weights; found quantised ones. Start from the original base."
        )


def build_empty_base(files: BaseFiles) -> PreferenceMixin:
    """Builds the base on the meta device, without weights: names and shapes to compare with, in a second."""
    family, config = read_family_config(files, {})
    with torch.device("meta"):
        return family(config)


def read_family_config(files: BaseFiles, head: dict) -> tuple[type[PreferenceMixin], PreTrainedConfig]:
    """Returns the base's family, and its config converted to that family's with the given head fields."""
    plain = AutoConfig.from_pretrained(files.folder, **files.source)
    family = find_family(plain.model_type)
    model_type, head = family.config_class.model_type, {k: value for k, value in head.items() if value is not None}
    # A stock head's number of labels, such as a reward model's 1, says nothing about ours.
    own = plain.num_labels if plain.model_type == model_type else None
    num_labels = head.pop("num_labels", own or len(LABELS))
    if own not in (None, num_labels):
        raise ValueError(
            f"Base {files.folder}: expected a head of {num_labels} labels, as --num_labels or the member says; found "
            f"{own}. Give that number, or start from the original model, which has no such head."
        )
    return family, family.config_class.from_dict({**plain.to_dict(), **name_labels(model_type, num_labels), **head})


def name_labels(model_type: str, num_labels: int) -> dict:
    """Returns the config fields that give a preference model its labels.

    They are named by slot, because the answer in the first slot depends on the orientation.
    """
    slots = dict(enumerate(SLOTS[: len(find_labels(num_labels))]))
    return {"model_type": model_type, "id2label": slots, "label2id": {name: place for place, name in slots.items()}}


def read_labels(files: BaseFiles) -> tuple[str, ...]:
    """Returns the outcomes that a base's head has logits for, from its config alone: two for a base without a head."""
    return find_labels(read_family_config(files, {})[1].num_labels)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silences transformers' load report, which lists the fresh head as missing although that is intended."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def measure_weights(model: PreferenceMixin) -> int:
    """Returns the bytes of a model's weights, including the scales of quantised ones."""
    # transformers' get_memory_footprint counts parameters only, and so leaves the scales out.
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def describe_origin(name: str, files: BaseFiles) -> str:
    """Returns where a base comes from: the origin its config records, else Hub id and commit, package or folder.

    Args:
        name: The base as the user named it.
        files: Result of `find_base` for that name.
    """
    recorded = None if files.gguf_file else AutoConfig.from_pretrained(files.folder).to_dict().get("made_from")
    if recorded or files.repo is None:
        # Only a folder's last part: its path would name this machine in whatever is published.
        return recorded or (name if name.startswith(PACKAGED) else Path(name).name)
    return f"{files.repo}@{files.revision}"


def copy_notices(source: Path, folder: Path) -> None:
    """Copies the terms and notices in the folder of a base or member, which bind what is made of it, into another."""
    for name in NOTICES:
        if (source / name).is_file():
            shutil.copy(source / name, folder)


def save_base(folder: Path, model: PreferenceMixin, tokenizer: PreTrainedTokenizerBase, made_from: str = "") -> None:
    """Writes a base with its head and tokenizer to a folder, and records `made_from` in the config."""
    if made_from:
        model.config.made_from = made_from
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
