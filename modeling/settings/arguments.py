"""What the settings of all scripts share, and those of quantize.py, app.py and publish.py.

There is one dataclass per script, whose `help` texts are what --help prints; the other scripts' are in train_arguments,
evaluate_arguments and reading_arguments. Combinations of flags are checked here, with messages that name the flags as
typed. This module must not load torch or read files.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar

from modeling.data.schemas import SCHEMA_NAMES
from modeling.runtime.choices import (
    BAD_ROW_POLICIES,
    BLANK_POLICIES,
    MERGES,
    NUM_LABELS,
    PRECISIONS,
    QUANT_TYPES,
    QUANTIZATIONS,
    READINGS,
    STOCK_FORMS,
    TIE_POLICIES,
)

BASE_HELP = (
    "Backbone model: a folder, a Hub id (@revision optional), a .gguf file, or package:<installed package>/<file>."
)
JUDGE_HELP = (
    "One or more members or judges: folders, or Hub ids (@revision optional). default is the one that comes with this "
    "package."
)
DTYPE_HELP = "Precision of computation. auto measures which native precision is fastest on this device."
MERGE_HELP = (
    "Merge adapters into dequantised weights, for speed. auto: if memory allows it and the canaries agree; a GPU with "
    "less memory may still dequantise the base."
)
SKIP_PROBES_HELP = "Do not replay the canary battles that check each member against its saved probabilities."
USE_CPU_HELP = "Run on the CPU even if there is a GPU."


def option(default, help: str, **metadata):
    """Returns a dataclass field with a default, a help text and other metadata for `Flag`."""
    return field(default=default, metadata={"help": help, **metadata})


def require(arguments: object, *names: str) -> None:
    """Raises a ValueError that names the required flags that are missing."""
    missing = [f"--{name}" for name in names if not vars(arguments)[name]]
    if missing:
        metadata = {f"--{field.name}": field.metadata for field in fields(arguments)}
        hints = "; ".join(
            f"{flag}: {metadata[flag]['help']}"
            + (f" ({' or '.join(choices)})" if (choices := metadata[flag].get("choices")) else "")
            for flag in missing
        )
        raise ValueError(f"Expected {', '.join(missing)}; found neither flag nor YAML key. {hints}")


@dataclass
class BattleArguments:
    """How the rows of a file become battles: shared by the scripts that read battles."""

    schema: str = option(
        "auto", "Schema of the battle files. auto detects it from the columns.", choices=SCHEMA_NAMES, group="data"
    )
    tie_policy: str = option(
        "keep",
        "Ties: keep them with the label [0.5, 0.5], or [0, 0, 1] where there are three labels; or drop them.",
        choices=TIE_POLICIES,
    )
    blank_policy: str = option(
        "error",
        "Battles with a null or blank text: stop with an error, drop them, or keep the text as empty.",
        choices=BLANK_POLICIES,
    )
    bad_row_policy: str = option(
        "error", "Other invalid rows: stop with an error, or drop them.", choices=BAD_ROW_POLICIES
    )
    columns: list[str] | None = option(
        None, "Other names of columns in the battle files, each as <name here>=<theirs>: response_a=answer_a."
    )
    winner_values: list[str] | None = option(
        None,
        "Values of the column winner in the battle files, each as <winner>=<value>: model_a=1 model_b=2 tie=0. Numbers "
        "are not read without it, because 0 and 1 may mean either side.",
    )

    def __post_init__(self):
        self._read_pairs()  # raises if one is malformed

    @property
    def row_policy(self) -> dict[str, str | dict[str, str]]:
        """The policies as keyword arguments of `load_battles`."""
        policy = {field.name: vars(self)[field.name] for field in fields(BattleArguments)}
        return policy | self._read_pairs()

    def _read_pairs(self) -> dict[str, dict[str, str]]:
        """The flags that are pairs of a name and a value."""
        return {name: parse_pairs(f"--{name}", vars(self)[name] or ()) for name in ("columns", "winner_values")}


def parse_pairs(flag: str, pairs: Sequence[str]) -> dict[str, str]:
    """Returns the values by name of words such as "response_a=answer_a".

    Raises:
        ValueError: If a word has no "=" or no name before it, or a name is given twice.
    """
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals or name in found:
            raise ValueError(f"{flag} {' '.join(pairs)}: expected <name>=<value>, each name once; found {pair!r}.")
        found[name] = value
    return found


def read_number(text: str) -> float:
    """Returns a text's number; NaN for a text that is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


@dataclass
class ReadingArguments:
    """Which judge reads, and how: shared by the scripts that make a judge read a file."""

    judge: list[str] | None = option(None, JUDGE_HELP, group="model", path="judge")
    readings: str | None = option(
        None,
        "Passes: every member in both orders (both), or each in the order it was trained in (own), in less time. "
        "Default: what the judge's judge.json says, and both if it has none.",
        choices=READINGS,
    )
    calibrated: bool = option(
        True, "Apply the judge's calibration, if it has one. raw_p_a keeps p_a before calibration."
    )
    skip_probes: bool = option(False, SKIP_PROBES_HELP)
    tokens_per_batch: int | None = option(
        None,
        "Maximum tokens per batch; a longer battle gets its own batch. Default: chosen for the device.",
        group="device",
    )
    merge: str = option("auto", MERGE_HELP, choices=MERGES)
    dtype: str = option("auto", DTYPE_HELP, choices=PRECISIONS)
    use_cpu: bool = option(False, USE_CPU_HELP)

    @property
    def loading(self) -> dict:
        """The settings as keyword arguments of `Judge.from_pretrained`."""
        return {name: vars(self)[name] for name in ("skip_probes", "dtype", "merge")}


@dataclass
class JudgeArguments(ReadingArguments, BattleArguments):
    """How a judge predicts battles: shared by predict.py, pseudolabel.py and evaluate.py."""

    # Flags that name the user's own data or model; with any of them, the demo's recipe does not run.
    own_data: ClassVar[tuple[str, ...]] = ("battles", "judge")

    battles: str = option(None, "Battles to predict: parquet, csv or jsonl.", group="data", path="battles")


# --- one dataclass per script -----------------------------------------------------------------------------------------


@dataclass
class QuantizeArguments:
    """Turns a backbone model into a base for train.py, with a fresh head and quantised weights."""

    own_data: ClassVar[tuple[str, ...]] = ("base", "merge_adapter")

    base: str = option(None, BASE_HELP, group="model", path="base")
    quantization: str = option("8bit", "Quantisation of the base's weights.", choices=QUANTIZATIONS)
    bnb_4bit_quant_type: str = option("nf4", "Data type of 4-bit weights.", choices=QUANT_TYPES)
    bnb_4bit_use_double_quant: bool = option(
        False, "Also quantise the scales of 4-bit weights, which saves 0.4 bits per weight."
    )
    merge_adapter: str | None = option(
        None,
        "LoRA adapter to merge into the weights in float32 before quantisation: a folder or Hub id, or default for the "
        "default judge's.",
        path="adapter",
    )
    dtype: str = option(
        "auto",
        "Precision of computation. Weights that are not quantised are saved in it; auto saves them in bfloat16.",
        choices=PRECISIONS,
    )
    num_labels: int | None = option(
        None,
        "Labels of the head. 2: a wins, b wins. 3: ties too. Default: those of a base that has such a head, otherwise "
        "2.",
        choices=NUM_LABELS,
    )
    head_hidden_size: int | None = option(None, "Width of the head. Default: hidden_size // 2; 0 makes a linear head.")
    head_bias: bool = option(
        True, "Whether a linear head has a bias. Stock heads have none, so publish.py --stock needs false."
    )
    seed: int = option(0, "Seed of the fresh head's weights.")
    output_dir: str = option(None, "Folder to write the base to.", group="output")
    push_to_hub: bool = option(False, "Upload the finished base to --hub_model_id.")
    hub_model_id: str | None = option(None, "Hub repository, USER/NAME, created if it does not exist.")
    hub_private: bool = option(True, "Create a private repository. An existing repository must match.")

    def __post_init__(self):
        require(self, "base", "output_dir")
        if not self.head_bias and self.head_hidden_size != 0:
            raise ValueError(
                "--head_bias false: expected with --head_hidden_size 0, a linear head; found another head. Give both."
            )
        if self.push_to_hub != bool(self.hub_model_id):
            raise ValueError("--push_to_hub and --hub_model_id: expected both or neither; found one. Give the other.")
        if self.quantization != "4bit" and (self.bnb_4bit_quant_type != "nf4" or self.bnb_4bit_use_double_quant):
            raise ValueError(
                "--bnb_4bit_quant_type and --bnb_4bit_use_double_quant: expected only with --quantization 4bit; "
                f"found {self.quantization}. Leave them out."
            )


@dataclass
class AppArguments:
    """Serves a judge as a web page and an API."""

    own_data: ClassVar[tuple[str, ...]] = ("judge",)

    judge: list[str] | None = option(None, JUDGE_HELP, group="model", path="judge")
    skip_probes: bool = option(False, SKIP_PROBES_HELP)
    readings: str = option(
        "both",
        "Passes: every member in both orders (both), or each in the order it was trained in (own), in less time.",
        choices=READINGS,
    )
    merge: str = option("auto", MERGE_HELP, choices=MERGES)
    dtype: str = option("auto", DTYPE_HELP, choices=PRECISIONS)
    use_cpu: bool = option(False, USE_CPU_HELP)
    host: str | None = option(
        None,
        "Address to listen on. Default: GRADIO_SERVER_NAME, which Spaces sets, otherwise 127.0.0.1.",
        group="server",
    )
    port: int = option(7860, "Port to listen on; 0 takes any free port.")
    max_characters: int = option(20_000, "Maximum characters of a text.")
    max_battles: int = option(1000, "Maximum battles in an uploaded file.")
    max_bytes: int = option(10_000_000, "Maximum bytes of an uploaded file.")
    max_waiting: int = option(100, "Maximum battles that wait; further ones are rejected.")
    rate_limit: int = option(120, "Maximum requests per minute and client; 0 sets none.")
    api_key: str | None = option(
        None,
        "File with the key that every client must send. Default: the environment variable BOTHWAYS_API_KEY, otherwise "
        "no key.",
        group="access",
        path="key",
    )
    auth: str | None = option(
        None, "File with a line NAME:PASSWORD for each person who may open the page.", path="users"
    )

    def __post_init__(self):
        require(self, "judge")
        for name in ("max_characters", "max_battles", "max_bytes", "max_waiting"):
            if vars(self)[name] < 1:
                raise ValueError(f"--{name} {vars(self)[name]}: expected 1 or more.")
        if self.rate_limit < 0:
            raise ValueError(f"--rate_limit {self.rate_limit}: expected 0, for any number, or more.")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port {self.port}: expected 0 to 65535.")


@dataclass
class PublishArguments:
    """Uploads a member, a judge or a base to the Hub, or writes a member for use elsewhere."""

    own_data: ClassVar[tuple[str, ...]] = ("member", "judge", "base")

    member: str | None = option(
        None, "Member to upload: a folder. With --merged, a Hub id works too.", group="model", path="judge"
    )
    judge: list[str] | None = option(
        None,
        "Instead of --member: folders of members, or one judge folder, uploaded to one repository.",
        path="judge here",
    )
    base: str | None = option(None, "Instead of --member: folder of a base written by quantize.py.", path="base here")
    repo: str | None = option(None, "Hub repository, USER/NAME, created if it does not exist.", group="Hub")
    base_repo: str | None = option(None, "Hub repository for the base, if it is only in a local folder.")
    private: bool = option(True, "Create private repositories. An existing repository must match.")
    revision: str | None = option(None, "Branch of --repo to commit to, created if it does not exist. Default: main.")
    commit_message: str | None = option(None, "Message of the commit in --repo.")
    license: str | None = option(
        None, "Licence for the card, as the Hub names it: apache-2.0, mit. Default: the base's, if that binds."
    )
    readings: str | None = option(
        None,
        "Passes that the judge runs by default: every member in both orders (both, for members), or each in its own.",
        choices=READINGS,
    )
    report: str | None = option(
        None, "Folder written by evaluate.py; its results go into the card of --member or --judge."
    )
    dry_run: bool = option(False, "List what would be uploaded and where, but send nothing.")
    merged: bool = option(
        False, "Merge the adapter into its base and write one checkpoint to --output_dir.", group="merging"
    )
    stock: str | None = option(
        None,
        "Write the member to --output_dir as a stock <Family>ForSequenceClassification, for programs without this "
        "package: one merged checkpoint, or a PEFT adapter with its base.",
        choices=STOCK_FORMS,
    )
    output_dir: str | None = option(None, "Folder for what --merged or --stock writes.")
    dtype: str = option("auto", "Precision of the written weights; auto means bfloat16.", choices=PRECISIONS)

    def __post_init__(self):
        given = [f"--{name}" for name in ("member", "judge", "base") if vars(self)[name]]
        if len(given) != 1:
            found = " and ".join(given) or "neither"
            raise ValueError(f"Expected one of --member, --judge and --base; found {found}. Say what to upload.")
        others = [
            f"--{name}"
            for name in ("base_repo", "revision", "commit_message", "license", "readings", "report")
            if vars(self)[name]
        ]
        if self.base and others:
            raise ValueError(f"--base: expected only --repo, --private and --dry_run; found {', '.join(others)}.")
        if self.license and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.license):
            raise ValueError(f"--license {self.license}: expected the Hub's name of a licence, such as apache-2.0.")
        if self.merged and (not self.member or self.dry_run or self.base_repo):
            raise ValueError(
                "--merged: expected --member, and neither --base_repo (the base is part of the merged weights) nor "
                "--dry_run; found others. Merge without --repo first, then publish --output_dir as a --member."
            )
        if not self.stock and self.merged != bool(self.output_dir):
            raise ValueError("--merged and --output_dir: expected both or neither; found one. Give the other too.")
        if self.stock:
            self._check_stock(others)
        elif not self.merged:
            require(self, "repo")

    def _check_stock(self, others: Sequence[str]) -> None:
        """Raises a ValueError for flags that do not go with --stock."""
        require(self, "output_dir")
        found = [f"--{name}" for name in ("judge", "base", "repo", "merged", "dry_run") if vars(self)[name]]
        if found := [*found, *others]:
            raise ValueError(
                f"--stock: expected only --member, --output_dir and --dtype; found {', '.join(found)}. Write the "
                "folder first, then upload it with `hf upload USER/NAME DIR`."
            )
