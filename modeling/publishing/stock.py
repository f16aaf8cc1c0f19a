"""Writes a member as a stock `<Family>ForSequenceClassification`, for programs without this package.

Either one checkpoint with the adapter merged, or a PEFT adapter with its base. The written folder is loaded as those
programs would load it and replays the member's canary battles. It must not know which flags were typed, beyond naming
them in errors.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import dedent

import torch
from huggingface_hub import ModelCardData
from markupsafe import Markup
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from modeling.data.battles import orient_label
from modeling.encoding.encoder import TEMPLATE_FIELDS, BattleEncoder, Encoding
from modeling.judging.canaries import OLD_CANARY_TOKENS, replay_canaries
from modeling.judging.loading import (
    find_adapter_member,
    find_member_base,
    load_member_tokenizer,
    load_merged,
)
from modeling.judging.member import ADAPTER_FILES, CANARIES_FILE, MemberFacts, read_json, read_member
from modeling.network.base import HEAD, BaseFiles, copy_notices
from modeling.network.classifier import (
    HEAD_DEFAULTS,
    PreferenceMixin,
    build_stock_config,
    find_family,
    find_stock_class,
)
from modeling.network.lora import load_weights
from modeling.network.precision import DTYPES
from modeling.publishing.card_metadata import find_licence
from modeling.publishing.cards import CARD_FILE, CardMember, read_card_member
from modeling.publishing.markdown import fence, render
from modeling.runtime.files import check_replaceable, replace_folder, write_json
from modeling.runtime.logs import build_logger
from modeling.runtime.packages import find_version

logger = build_logger(__name__)

FACTS_FILE, FACTS_FORMAT = "bothways.json", 1  # in every folder that is written here
BASE_FOLDER = "base"  # in an adapter's folder, unless the base is on the Hub as it is
TEMPLATE_FILE = Path(__file__).with_name("stock_card_template.md")
WEIGHT, BIAS = (f"base_model.model.{HEAD}.out.{name}" for name in ("weight", "bias"))  # as adapters name them
# A stock head has no bias, and no weights on normalised states give a constant. So a bias is left out only if it moves
# no probability by more than this.
LARGEST_SHIFT = 1e-6
NUM_LABELS = 2  # of a stock export


@dataclass(frozen=True)
class StockMember:
    """A member to write: its folder and facts, its base, its encoder, and the id that pads a batch of its battles."""

    folder: Path
    facts: MemberFacts
    files: BaseFiles
    encoder: BattleEncoder
    pad_token_id: int


def export_member(name: str, output_dir: Path, form: str, dtype: str = "bfloat16") -> None:
    """Writes a member as a stock `<Family>ForSequenceClassification`.

    Args:
        name: Folder or Hub id of a member with an adapter and a linear head.
        output_dir: A new or empty folder, or one that an earlier call wrote.
        form: "merged", one checkpoint; or "adapter", a PEFT adapter, with its base in `base/` unless that is on the Hub
            in a form that stock transformers loads.
        dtype: Precision of the written model's weights; an adapter and its head stay float32.

    Raises:
        ValueError: If no stock model computes what the member does, or the written model answers otherwise than the
            member did. Nothing is written then.
    """
    check_replaceable(output_dir, FACTS_FILE)
    where = f"Member {name}"
    folder = find_adapter_member(name, where)
    facts = read_member(folder)
    if len(facts.labels) != NUM_LABELS:
        raise ValueError(
            f"{where}: expected {NUM_LABELS} labels, as its canary battles hold one probability each; found "
            f"{len(facts.labels)} ({', '.join(facts.labels)}). Merge it with --merged, which keeps every label."
        )
    check_head(where, facts.head, load_weights(folder))
    canaries = read_json(folder / CANARIES_FILE, "Member")
    if not canaries.get("battles"):
        raise ValueError(f"{where}: expected its canary battles, to check what is written; found none. Train it again.")
    member = prepare_member(where, folder, facts)
    with replace_folder(output_dir, FACTS_FILE) as beside:
        base = _write_merged(beside, member, dtype) if form == "merged" else _write_adapter(beside, member, dtype)
        has_template = write_tokenizer(beside, member, canaries["battles"])
        for source in (member.files.folder, folder):
            copy_notices(source, beside)
        model = load_stock(beside, form, base, member.pad_token_id, dtype)
        now = (model, member.encoder, canaries, dtype, facts.dtype)
        change = replay_canaries(f"{where}, as a stock model", *now, compute_logits=compute_stock_logits)
        passes = list_canary_passes(member.encoder, canaries)
        write_json(beside / FACTS_FILE, describe_export(member, form, dtype, passes))
        card = build_card(member, form, dtype, base, change, has_template=has_template, passes=len(passes))
        (beside / CARD_FILE).write_text(card, encoding="utf-8")
    logger.info(f"{where}: canary probabilities changed by at most {change:.2g}. Written: {output_dir}")


# --- what a stock model can be ----------------------------------------------------------------------------------------


def check_head(where: str, head: Mapping, weights: Mapping[str, Tensor]) -> None:
    """Raises a ValueError unless a stock head, one linear layer without a bias on the last token, computes the same.

    Args:
        where: Names the member.
        head: The head's fields in member.json.
        weights: The tensors of the member's adapter.
    """
    head = {**HEAD_DEFAULTS, **head}
    if head["pooling"] != "last":
        raise ValueError(
            f"{where}: expected a head that reads the last token, as stock models do; found --pooling "
            f"{head['pooling']}. Train without it, or serve the member with this package."
        )
    if head["head_hidden_size"] != 0:
        raise ValueError(
            f"{where}: expected a linear head, as stock models have; found an MLP of width {head['head_hidden_size']}. "
            "Train on a base that quantize.py made with --head_hidden_size 0 --head_bias false, or serve the member "
            "with this package."
        )
    if BIAS in weights and (shift := measure_bias(weights[BIAS])) > LARGEST_SHIFT:
        raise ValueError(
            f"{where}: expected a head without a bias, as stock models have; found one that moves a probability by up "
            f"to {shift:.2g}. Train on a base that quantize.py made with --head_hidden_size 0 --head_bias false, or "
            "serve the member with this package."
        )


def measure_bias(bias: Tensor) -> float:
    """Returns the largest change of a probability that leaving out a bias of shape (2,) can make.

    Only the difference d of the two biases matters. The logistic function rises most over an interval of length d that
    is centred on 0: from 1/2 - tanh(d / 4) / 2 to 1/2 + tanh(d / 4) / 2.
    """
    return math.tanh(abs(bias.double().diff().item()) / 4)


def choose_padding(where: str, tokenizer: PreTrainedTokenizerBase, encoding: Encoding, vocab_size: int) -> int:
    """Returns the id of a token that no battle contains, the tokenizer's own pad token if that is one.

    A stock head reads the last token that is not the pad token. Several tokenizers pad with eos, and a battle ends with
    eos, so that the token before it would be read.

    Args:
        where: Names the member.
        tokenizer: The member's.
        encoding: The member's.
        vocab_size: Number of the model's embeddings; a tokenizer may know more ids.

    Raises:
        ValueError: If every special token may be in a battle.
    """
    # User text never becomes a special token, except <unk>.
    special = sorted(id for id, token in tokenizer.added_tokens_decoder.items() if token.special)
    used = {encoding.bos_token_id, encoding.eos_token_id, tokenizer.unk_token_id}
    free = [id for id in special if id not in used and id < vocab_size]
    if not free:
        raise ValueError(
            f"{where}: expected a special token besides bos and eos, to pad with; found none. Add one to the base's "
            "tokenizer and train again."
        )
    return tokenizer.pad_token_id if tokenizer.pad_token_id in free else free[0]


def prepare_member(where: str, folder: Path, facts: MemberFacts) -> StockMember:
    """Finds a member's base, and what its tokenizer must be told. Errors as for `find_member_base`."""
    files = find_member_base(folder, facts)
    tokenizer, encoding = load_member_tokenizer(folder, files), Encoding.from_dict(facts.encoding)
    vocab_size = AutoConfig.from_pretrained(files.folder, **files.source).vocab_size
    padding = choose_padding(where, tokenizer, encoding, vocab_size)
    return StockMember(folder, facts, files, BattleEncoder(tokenizer, encoding), padding)


def build_stock(model: PreferenceMixin, config: PreTrainedConfig) -> PreTrainedModel:
    """Builds the stock model with a preference model's weights, to be saved. It cannot run: its buffers are empty."""
    with torch.device("meta"):
        stock = find_stock_class(config.model_type)(config)
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith(f"{HEAD}.")}
    weights[f"{HEAD}.weight"] = model.score.out.weight.to(model.dtype)
    stock.load_state_dict(weights, assign=True)
    return stock


def is_stock(files: BaseFiles) -> bool:
    """Whether others can load a base from the Hub as it is: unquantised, and not in our own architecture."""
    if files.repo is None or files.gguf_file:
        return False
    config = AutoConfig.from_pretrained(files.folder)
    ours = find_family(config.model_type).config_class.model_type
    return config.model_type != ours and not hasattr(config, "quantization_config")


# --- writing ----------------------------------------------------------------------------------------------------------


def _write_model(folder: Path, member: StockMember, dtype: str, *, with_lora: bool) -> None:
    """Writes the stock model with the member's head, and with its LoRA merged or left out."""
    model = load_merged(member.files, member.folder, member.facts, dtype, with_lora=with_lora)
    config, encoding = build_stock_config(model.config, member.pad_token_id), member.encoder.encoding
    # A chat model's config may name several ends of a turn; a battle has one.
    config.bos_token_id, config.eos_token_id = encoding.bos_token_id, encoding.eos_token_id
    config.dtype = DTYPES[dtype]
    # The names are the original ones already, and transformers fails to revert the conversion of 8-bit weights.
    build_stock(model, config).save_pretrained(folder, save_original_format=False)


def _write_merged(folder: Path, member: StockMember, dtype: str) -> str:
    """Writes one checkpoint; returns its name for `load_stock`."""
    _write_model(folder, member, dtype, with_lora=True)
    return str(folder)


def _write_adapter(folder: Path, member: StockMember, dtype: str) -> str:
    """Writes a PEFT adapter with the head as PEFT's stock loading expects it; returns what to load the base from."""
    weights = load_weights(member.folder)
    weights[f"base_model.model.{HEAD}.weight"] = weights.pop(WEIGHT)
    weights.pop(BIAS, None)
    save_file(weights, folder / ADAPTER_FILES[1], metadata={"format": "pt"})
    config = LoraConfig.from_pretrained(member.folder)
    on_hub = is_stock(member.files)
    config.base_model_name_or_path = member.files.repo if on_hub else BASE_FOLDER
    config.revision = member.files.revision if on_hub else None
    config.modules_to_save = [HEAD]  # PEFT lists the names of other families' heads too
    config.save_pretrained(folder)
    if on_hub:
        return str(member.files.folder)
    # With the member's head, so that a server that reads only the LoRA of an adapter answers right too.
    _write_model(folder / BASE_FOLDER, member, dtype, with_lora=False)
    return str(folder / BASE_FOLDER)


def write_tokenizer(folder: Path, member: StockMember, battles: Sequence[Mapping]) -> bool:
    """Writes the tokenizer, also beside an adapter's base; returns whether it got a chat template.

    It gets one only if that gives the ids of the encoder for all battles, in both orders.
    """
    encoding = member.encoder.encoding
    # A copy: the encoder's own must go on padding and encoding as it did.
    tokenizer = load_member_tokenizer(member.folder, member.files)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(member.pad_token_id)
    tokenizer.padding_side, tokenizer.truncation_side = "right", "right"
    tokenizer.chat_template = build_chat_template(encoding)
    whole = BattleEncoder(member.encoder.tokenizer, replace(encoding, max_length=1 << 30))
    cleaned = whole.clean_battles(battles)
    same = all(
        tokenizer.apply_chat_template(build_messages(battle), tokenize=True, return_dict=False) == encoded["input_ids"]
        for battle, encoded in zip(cleaned, whole.encode(cleaned, "ab"), strict=True)
    )
    if not same:
        tokenizer.chat_template = None
        logger.warning("Chat template: left out, because with this tokenizer it gives other ids than the encoder")
    for place in (folder, *([folder / BASE_FOLDER] if (folder / BASE_FOLDER).is_dir() else [])):
        tokenizer.save_pretrained(place)
    return same


def build_chat_template(encoding: Encoding) -> str:
    """Returns the Jinja template that makes a battle's text of three messages: prompt, first answer, second answer."""
    # One expression: between expressions Jinja removes line ends.
    parts = [] if encoding.bos_token_id is None else ["bos_token"]
    for index, marker in enumerate(encoding.markers):
        literal = marker.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        parts += [f'"{literal}"', f"messages[{index}]['content']"]
    return "{{ " + " + ".join([*parts, "eos_token"]) + " }}"


def build_messages(battle: Mapping[str, str]) -> list[dict[str, str]]:
    """Returns a battle with answer a first as the conversation that the chat template takes."""
    texts = (battle["prompt"], battle["response_a"], battle["response_b"])
    return [
        {"role": role, "content": text} for role, text in zip(("user", "assistant", "assistant"), texts, strict=True)
    ]


def list_canary_passes(encoder: BattleEncoder, canaries: Mapping) -> list[dict]:
    """Returns the passes over the canary battles: token ids, order, and the probabilities by slot that were stored."""
    length = min(encoder.encoding.max_length, canaries.get("tokens", OLD_CANARY_TOKENS))
    encoder = BattleEncoder(encoder.tokenizer, replace(encoder.encoding, max_length=length))
    cleaned, passes = encoder.clean_battles(canaries["battles"]), []
    for order, stored in canaries["p_a"].items():
        for encoded, p_a in zip(encoder.encode(cleaned, order), stored, strict=True):
            by_slot = orient_label([p_a, 1 - p_a], order)
            passes.append({"order": order, "input_ids": encoded["input_ids"], "probabilities": by_slot})
    return passes


def describe_export(member: StockMember, form: str, dtype: str, passes: list[dict]) -> dict:
    """Returns the content of bothways.json: how battles are encoded, and the canary battles to check a server with."""
    return {
        "format": FACTS_FORMAT,
        "form": form,
        "dtype": dtype,
        "orientation": member.facts.orientation,
        "slots": ["first", "second"],
        "encoding": member.encoder.encoding.to_dict() | {"pad_token_id": member.pad_token_id},
        "base_fingerprint": member.facts.base_fingerprint,
        "canaries": passes,
    }


# --- checking ---------------------------------------------------------------------------------------------------------


def load_stock(folder: Path, form: str, base: str, pad_token_id: int, dtype: str) -> PreTrainedModel | PeftModel:
    """Loads what was written, with transformers and PEFT alone."""
    options = {"dtype": DTYPES[dtype], "num_labels": NUM_LABELS, "pad_token_id": pad_token_id}
    model = AutoModelForSequenceClassification.from_pretrained(base, **options)
    return (model if form == "merged" else PeftModel.from_pretrained(model, folder)).eval()


@torch.inference_mode()
def compute_stock_logits(
    model: PreTrainedModel | PeftModel, encoder: BattleEncoder, battles: Sequence[dict], orientation: str = "ab"
) -> Tensor:
    """Logits of battles read as one padded batch, shape (battles, slots), float32."""
    encoded = encoder.encode(encoder.clean_battles(battles), orientation)
    rows = [torch.tensor(battle["input_ids"]) for battle in encoded]
    ids = pad_sequence(rows, batch_first=True, padding_value=model.config.pad_token_id)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return model(input_ids=ids, attention_mask=mask).logits.float()


# --- the card ---------------------------------------------------------------------------------------------------------

LOADING = {
    "merged": """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        model = AutoModelForSequenceClassification.from_pretrained("DIR", dtype="auto").eval()
        tokenizer = AutoTokenizer.from_pretrained("DIR")
        """,
    "adapter": """
        from peft import PeftModel
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        model = AutoModelForSequenceClassification.from_pretrained(
            BASE, num_labels=2, pad_token_id=PAD, dtype="auto"
        )
        model = PeftModel.from_pretrained(model, "DIR").eval()
        tokenizer = AutoTokenizer.from_pretrained("DIR")
        """,
}
READING = """
ids = tokenizer.apply_chat_template(
    [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": first},
        {"role": "assistant", "content": second},
    ],
    tokenize=True,
    return_tensors="pt",
    return_dict=False,
)
p_first, p_second = model(input_ids=ids).logits.float().softmax(dim=-1)[0].tolist()
"""
SERVERS = {
    "merged": """
        vllm serve DIR --runner pooling
        curl localhost:8000/classify -H 'Content-Type: application/json' \\
            -d '{"model": "DIR", "input": [[IDS]]}'      # probs
        python -m sglang.launch_server --model-path DIR --is-embedding
        curl localhost:30000/classify -H 'Content-Type: application/json' \\
            -d '{"model": "DIR", "input_ids": [[IDS]]}'  # logits: take their softmax
        """,
    "adapter": """
        vllm serve BASE --runner pooling --enable-lora --max-lora-rank RANK --lora-modules member=DIR
        curl localhost:8000/classify -H 'Content-Type: application/json' \\
            -d '{"model": "member", "input": [[IDS]]}'   # probs
        """,
}


def build_card(
    member: StockMember, form: str, dtype: str, base: str, change: float, *, has_template: bool, passes: int
) -> str:
    """Returns the README.md of what was written: the exact input, how to load it, and what was checked."""
    encoding, facts = member.encoder.encoding, read_card_member(member.folder)
    on_hub = form == "adapter" and is_stock(member.files)
    named = member.files.repo if on_hub else f"DIR/{BASE_FOLDER}"
    quoted = f'"{named}"' + (f', revision="{member.files.revision}"' if on_hub else "")
    example = dedent(LOADING[form]).replace("BASE", quoted).replace("PAD", str(member.pad_token_id))
    served = named + (f" --revision {member.files.revision}" if on_hub else "")
    servers = dedent(SERVERS[form]).replace("BASE", served).replace("RANK", str(read_rank(member.folder)))
    family = AutoConfig.from_pretrained(base).model_type
    licence = find_licence([facts.hub_base or "", facts.origin or "", facts.base or "", family])
    first = {"ab": "answer a", "ba": "answer b", "both": "either one: the model was trained on both orders"}
    return render(
        TEMPLATE_FILE.read_text(encoding="utf-8"),
        metadata=Markup(_build_metadata(facts, form, licence and licence.hub_name).to_yaml()),
        title=f"Bothways member {member.facts.orientation}",
        architecture=Markup(find_stock_class(family).__name__),
        form=form,
        example=fence(example + (READING if has_template else ""), "python"),
        text=fence(encoding.template.format(**{name: f"{{{name}}}" for name in TEMPLATE_FIELDS})),
        bos=encoding.bos_token_id,
        eos=encoding.eos_token_id,
        eos_token=Markup(member.encoder.tokenizer.eos_token),
        pad=member.pad_token_id,
        has_template=has_template,
        order=first[member.facts.orientation],
        max_length=encoding.max_length,
        truncation=Markup(encoding.truncation),
        servers=fence(servers, "bash"),
        facts_file=Markup(FACTS_FILE),
        canaries=passes,
        change=f"{change:.2g}",
        dtype=dtype,
        version=find_version("transformers"),
        licence=licence and {"name": licence.name, "link": Markup(licence.link), "binds": bool(licence.hub_name)},
    )


def read_rank(folder: Path) -> int:
    """Returns the rank of a member's LoRA."""
    return LoraConfig.from_pretrained(folder).r


def _build_metadata(facts: CardMember, form: str, licence: str | None) -> ModelCardData:
    """Returns the card's metadata block."""
    return ModelCardData(
        license=licence,
        library_name="transformers" if form == "merged" else "peft",
        pipeline_tag="text-classification",
        base_model=facts.hub_base,
        tags=["bothways", "preference", "pairwise"],
    )
