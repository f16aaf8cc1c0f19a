"""Bases, adapters and members, from disk or Hub and back: the only module that knows bitsandbytes and PEFT.

A member folder holds a LoRA adapter with its head, the tokenizer, and `member.json`: whatever is needed to read
battles again exactly as in training.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.logging import get_logger
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoTokenizer, BitsAndBytesConfig, GgufConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from modeling.battles import LABELS, ORIENTATIONS
from modeling.classifier import PreferenceMixin, find_family
from modeling.encoding import BattleEncoder, Encoding

logger = get_logger(__name__)

HEAD = "score"
LORA_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MEMBER_FILE = "member.json"
MEMBER_FORMAT = 1
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SLOTS = {0: "first", 1: "second"}


def build_quantization_config(quantization: str) -> BitsAndBytesConfig | None:
    """bitsandbytes settings: the seed's for 8bit, nf4 with bf16 compute for 4bit, None for none."""
    # bitsandbytes would otherwise quantise the head too, which then fails in its forward.
    skip = [HEAD]
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0, llm_int8_skip_modules=skip)
    if quantization == "4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=skip,
        )
    if quantization == "none":
        return None
    raise ValueError(f"--quantization: expected none, 8bit or 4bit; found {quantization!r}.")


# --- bases ------------------------------------------------------------------------------------------------------------


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
    if base.startswith("package:"):
        return _find_packaged(base)
    path = Path(base)
    if path.is_file() and path.suffix == ".gguf":
        return BaseFiles(path.parent, path.name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(
                f"Base {base}: expected a model folder with config.json; found none. Give what quantize.py wrote."
            )
        if (path / "adapter_config.json").is_file():
            raise ValueError(
                f"Base {base}: expected a base; found an adapter. Pass it as --judge, or as --merge_adapter."
            )
        return BaseFiles(path)
    folder, repo, revision = _download(base, "Base", ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"])
    return BaseFiles(folder, repo=repo, revision=revision)


def _find_packaged(base: str) -> BaseFiles:
    package, _, file = base.removeprefix("package:").partition("/")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"Base {base}: expected the installed package {package}; found none. `make install` installs it."
        )
    path = Path(spec.submodule_search_locations[0]) / file
    if not path.is_file():
        raise FileNotFoundError(f"Base {base}: expected the file {file} in the package; found none.")
    return BaseFiles(path.parent, path.name)


def _download(name: str, role: str, patterns: Sequence[str]) -> tuple[Path, str, str]:
    """Folder, id and commit of a Hub repository given as id or id@revision."""
    repo, _, revision = name.partition("@")
    try:
        folder = Path(snapshot_download(repo, revision=revision or None, allow_patterns=list(patterns)))
    except (OSError, HFValidationError) as error:
        raise FileNotFoundError(
            f"{role} {name}: expected a folder here, or a repository of the Hub; found neither ({type(error).__name__}). "
            "If it is the demo's, run `make demo` first; otherwise check the name and the connection."
        ) from error
    return folder, repo, folder.name


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
    files: BaseFiles, *, dtype: str, quantization: str = "none", device: torch.device | None = None, **head
) -> PreferenceMixin:
    """A preference model of the base's family; weights that the base lacks (a plain backbone's head) come out fresh.

    Args:
        files: What `find_base` found.
        dtype: "float32" or "bfloat16", of all that is not quantised; the head is float32 always.
        quantization: "8bit" or "4bit" quantises a plain base while loading; "none" takes it as it is.
        device: Where to put the model; the process's own if None.
        head: Config fields of the head, such as head_dropout; those that are None stay as the base has them.

    Raises:
        ValueError: If the base is of no supported family, is a GGUF, or is quantised and would be once more.
    """
    if files.gguf_file:
        raise ValueError(
            f"Base {files.gguf_file}: expected a model folder; found a GGUF file. Run scripts/quantize.py on it first."
        )
    plain = AutoConfig.from_pretrained(files.folder)
    family = find_family(plain.model_type)
    quantized = hasattr(plain, "quantization_config")
    if quantization != "none" and quantized:
        raise ValueError(
            f"Base {files.folder}: expected unquantised weights; found quantised ones. Start from the original base."
        )
    # Labels are named by slot: which answer stands in the first one depends on the orientation.
    head = {name: value for name, value in head.items() if value is not None}
    names = {
        "model_type": family.config_class.model_type,
        "id2label": SLOTS,
        "label2id": {v: k for k, v in SLOTS.items()},
    }
    config = family.config_class.from_dict({**plain.to_dict(), **names, **head})
    options = {}
    if quantization != "none":
        options["quantization_config"] = build_quantization_config(quantization)
    device = device or PartialState().device
    if (quantized or options) and device.type != "cpu":
        options["device_map"] = {"": device}
    with _quiet_transformers():
        model = family.from_pretrained(files.folder, config=config, dtype=DTYPES[dtype], **options)
    if device.type == "cpu":
        _keep_training_kernels(model)
    return model.to(device) if not (quantized or options) else model


def _keep_training_kernels(model: PreferenceMixin) -> None:
    """Makes quantised layers on a CPU compute in eval mode what they compute in training.

    bitsandbytes otherwise changes kernels there. 8 bit: activations are quantised too, with outliers chosen over the
    whole batch, so a probability depends on its neighbours; and it takes twice as long. 4 bit: the packed kernel has
    no backward, and after one evaluation every gradient is wrong.
    """
    for module in model.modules():
        if isinstance(module, Linear8bitLt):
            module.train()
            module.train = lambda mode=True, module=module: module
        elif isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Hides the load report that lists a fresh head as missing: here that is what is meant."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


# --- adapters ---------------------------------------------------------------------------------------------------------


def add_adapters(model: PreferenceMixin, *, r: int, alpha: float, dropout: float, freeze_layers: int = 0) -> PeftModel:
    """The base, frozen, with a LoRA adapter on all seven projections of each layer and a trainable head.

    Adapters and head are float32 whatever the base is: they are what the optimizer updates.

    Args:
        freeze_layers: Number of lower layers left without an adapter.

    Raises:
        ValueError: If no layer would be left to adapt.
    """
    layers = model.config.num_hidden_layers
    if not 0 <= freeze_layers < layers:
        raise ValueError(
            f"--freeze_layers {freeze_layers}: expected 0 to {layers - 1}, as the base has {layers} layers."
        )
    # Not peft's prepare_model_for_kbit_training: it casts the 256,000 embeddings of a Gemma to float32 (+1.8 GB).
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
    return get_peft_model(model, config)


def merge_adapter(model: PreferenceMixin, adapter: str) -> PreferenceMixin:
    """The model with a LoRA adapter merged into its weights; a head that the adapter brings is left out.

    The adapter may have been trained with another number of labels. Merge in float32: in bf16 or 8 bit the answers
    would move by far more than the adapter's own precision.

    Raises:
        ValueError: If the adapter's matrices are not those of this model's layers.
    """
    folder = Path(adapter) if Path(adapter).is_dir() else _download(adapter, "Adapter", ["adapter_*"])[0]
    config = LoraConfig.from_pretrained(folder)
    # As a SEQ_CLS adapter peft would insist on loading the old head, whatever its number of labels.
    config.task_type, config.modules_to_save = None, None
    weights = load_file(folder / "adapter_model.safetensors")
    lora = {name: value for name, value in weights.items() if ".lora_" in name}
    return _attach(model, "default", config, lora, folder).merge_and_unload()


def _attach(
    model: PreferenceMixin | PeftModel, name: str, config: LoraConfig, weights: dict, folder: Path
) -> PeftModel:
    """The model with one more adapter, after checking that the adapter brings exactly the tensors it should."""
    if isinstance(model, PeftModel):
        model.add_adapter(name, config)
    else:
        model = get_peft_model(model, config, adapter_name=name)
    expected = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    _compare_tensors(folder, expected, weights)
    set_peft_model_state_dict(model, weights, adapter_name=name)
    return model


def _compare_tensors(folder: Path, expected: dict, found: dict) -> None:
    """Raises where an adapter's tensors are not the model's: peft leaves missing ones at their random values."""
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


# --- members ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemberFacts:
    """What `member.json` says: how this adapter was trained to read, and on which base."""

    orientation: str
    labels: list[str]
    dtype: str
    encoding: dict
    head: dict
    base_fingerprint: str
    training: dict
    format: int = MEMBER_FORMAT


@dataclass(frozen=True)
class Member:
    """A loaded member of a judge. Members of one base share its weights: `activate` before each use."""

    name: str
    facts: MemberFacts
    model: PeftModel
    encoder: BattleEncoder
    fingerprint: str

    def activate(self) -> PeftModel:
        """The shared model with this member's adapter and head switched on."""
        self.model.set_adapter(self.name, inference_mode=True)
        return self.model.eval()


def save_member(
    folder: Path, model: PeftModel, tokenizer: PreTrainedTokenizerBase, base: BaseFiles, facts: MemberFacts
) -> None:
    """Writes a member folder: beside, then renamed, so that a member is complete or absent."""
    with replace_folder(folder, MEMBER_FILE) as beside:
        config = model.peft_config["default"]
        config.base_model_name_or_path = base.repo or os.path.relpath(base.folder.resolve(), folder.resolve())
        config.revision = base.revision
        model.save_pretrained(beside, save_embedding_layers=False)
        (beside / "README.md").unlink()  # peft's own card names folders of this machine
        tokenizer.save_pretrained(beside)
        (beside / MEMBER_FILE).write_text(json.dumps(asdict(facts), indent=2) + "\n", encoding="utf-8")


def save_base(folder: Path, model: PreferenceMixin, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes a base, head included, and its tokenizer."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def replace_folder(folder: Path, mark: str) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` once filled; if filling fails nothing has changed.

    Args:
        folder: Where the result belongs. What stands there is replaced only if it is empty or holds `mark`.
        mark: Name of a file that every result of this kind has.
    """
    check_replaceable(folder, mark)
    beside, old = (folder.with_name(f".{folder.name}.{what}") for what in ("new", "old"))
    for leftover in (beside, old):
        shutil.rmtree(leftover, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        if folder.exists():
            folder.rename(old)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def check_replaceable(folder: Path, mark: str) -> None:
    """Raises a ValueError if the folder holds something else than what would replace it."""
    if folder.exists() and not (folder.is_dir() and ((folder / mark).is_file() or not any(folder.iterdir()))):
        raise ValueError(
            f"--output_dir {folder}: expected a new or empty folder, or one with {mark} to replace; found other files."
        )


def read_member(folder: Path) -> MemberFacts:
    """The facts of a member folder.

    Raises:
        ValueError: If a file is missing or the facts are not of this version.
    """
    for name in (MEMBER_FILE, "adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(
                f"Judge {folder}: expected a member folder with {name}; found none. Give what train.py wrote."
            )
    values = json.loads((folder / MEMBER_FILE).read_text(encoding="utf-8"))
    if values.get("format") != MEMBER_FORMAT:
        raise ValueError(
            f"Judge {folder}: expected format {MEMBER_FORMAT} in {MEMBER_FILE}; found {values.get('format')!r}."
        )
    facts = MemberFacts(**values)
    if facts.orientation not in ORIENTATIONS or facts.labels != list(LABELS):
        raise ValueError(
            f"Judge {folder}: expected an orientation of {', '.join(ORIENTATIONS)} and the labels {', '.join(LABELS)}; "
            f"found {facts.orientation!r} and {', '.join(facts.labels)}."
        )
    return facts


def load_judge(names: Sequence[str], device: torch.device | None = None) -> list[Member]:
    """The members of a judge, from folders or the Hub. A base that several share is loaded once.

    Raises:
        FileNotFoundError: If a member or its base can be found nowhere.
        ValueError: If a member is incomplete, or its base is not the one it was trained on.
    """
    members: list[Member] = []
    models: dict[tuple, PeftModel] = {}
    for name in names:
        folder = (
            Path(name)
            if Path(name).is_dir()
            else _download(name, "Judge", ["*.json", "*.safetensors", "*.model", "*.jinja"])[0]
        )
        facts = read_member(folder)
        files = find_member_base(folder, facts)
        key = (files.folder, facts.dtype, *facts.head.values())
        unique = name_member(folder, [member.name for member in members])
        model = models.get(key) or load_base(files, dtype=facts.dtype, device=device, **facts.head)
        config = LoraConfig.from_pretrained(folder)
        config.base_model_name_or_path = None  # relative to the member, which peft would warn about
        models[key] = _attach(model, unique, config, load_file(folder / "adapter_model.safetensors"), folder)
        encoding = Encoding.from_dict(facts.encoding)
        encoder = next((m.encoder for m in members if m.model is models[key] and m.encoder.encoding == encoding), None)
        encoder = encoder or BattleEncoder(load_tokenizer(folder), encoding)
        fingerprint = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()[:16]
        members.append(Member(unique, facts, models[key], encoder, fingerprint))
    return members


def find_member_base(folder: Path, facts: MemberFacts) -> BaseFiles:
    """The base that a member's adapter_config.json names, checked to be the one it was trained on."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    name, revision = config["base_model_name_or_path"], config.get("revision")
    local = Path(os.path.normpath(folder.resolve() / name))
    if not local.is_dir() and revision is None:
        raise FileNotFoundError(
            f"Judge {folder}: expected its base in {name} beside it; found none. Bring the base along, or run quantize.py again."
        )
    files = find_base(str(local) if local.is_dir() else f"{name}@{revision}")
    if (found := fingerprint_base(files)) != facts.base_fingerprint:
        raise ValueError(
            f"Judge {folder}: expected the base it was trained on (fingerprint {facts.base_fingerprint}); found another in "
            f"{name} ({found}). Train the adapter again on this base, or restore the old one."
        )
    return files


def name_member(folder: Path, taken: Sequence[str]) -> str:
    """The folder's name, with a number behind it where an earlier member has the same."""
    name = folder.resolve().name.replace(".", "_")  # peft refuses dots in adapter names
    same = sum(other == name or other.startswith(f"{name}-") for other in taken)
    return f"{name}-{same + 1}" if same else name
