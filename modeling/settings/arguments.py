"""A run's settings: one dataclass per script. Combinations are checked here, naming the flags as typed.

Only scripts import this module; everything else takes plain values.
"""

import math
import re
from dataclasses import dataclass, field, fields
from typing import ClassVar

from modeling.data.schemas import SCHEMA_NAMES
from modeling.runtime.choices import (
    BAD_ROW_POLICIES,
    BLANK_POLICIES,
    CALIBRATIONS,
    DUPLICATE_POLICIES,
    FOLD_METHODS,
    LEAK_POLICIES,
    MERGES,
    PRECISIONS,
    QUANT_TYPES,
    QUANTIZATIONS,
    READINGS,
    TIE_POLICIES,
    TRAINED_ORIENTATIONS,
    TRUNCATIONS,
)

BASE_HELP = (
    "Backbone: a folder, a Hub id (with @revision, if wanted), a .gguf file, or package:<installed package>/<file>."
)
JUDGE_HELP = "Members or whole judges, one or more: folders or Hub ids (with @revision)."
DTYPE_HELP = "Precision to compute in; auto measures what this device does natively and fastest."


def option(default, help: str, **metadata):
    """A dataclass field with a default, a help and more metadata."""
    return field(default=default, metadata={"help": help, **metadata})


def require(arguments: object, *names: str) -> None:
    """Raises a ValueError naming the flags that were not given."""
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
    """How the rows of a file become battles, in train.py, predict.py and pseudolabel.py alike."""

    schema: str = option(
        "auto", "Schema of the files; auto sees it from the columns.", choices=SCHEMA_NAMES, group="data"
    )
    tie_policy: str = option("keep", "Ties: keep them as [0.5, 0.5], or drop them.", choices=TIE_POLICIES)
    blank_policy: str = option(
        "error", "Null or blank texts: stop, drop the battle, or keep it as empty.", choices=BLANK_POLICIES
    )
    bad_row_policy: str = option(
        "error", "Any other row that cannot be read: stop, or drop it.", choices=BAD_ROW_POLICIES
    )

    @property
    def row_policy(self) -> dict[str, str]:
        """What `load_battles` is told."""
        return {field.name: vars(self)[field.name] for field in fields(BattleArguments)}


@dataclass
class JudgeArguments(BattleArguments):
    """How a judge reads battles, in predict.py, pseudolabel.py and evaluate.py alike."""

    own_data: ClassVar[tuple[str, ...]] = ("battles", "judge")

    battles: str = option(None, "Battles to read: parquet, csv or jsonl.", group="data", path="battles")
    judge: list[str] | None = option(None, JUDGE_HELP, group="model", path="judge")
    readings: str | None = option(
        None,
        "Each member reads the order it was trained in, or every member reads both; as the judge says if left out.",
        choices=READINGS,
    )
    calibrated: bool = option(True, "Apply the judge's calibration, if it has one; raw_p_a is what p_a was before.")
    skip_probes: bool = option(False, "Do not check that each member still answers as it did when it was saved.")
    tokens_per_batch: int | None = option(
        None,
        "Most tokens that are read at once, a longer battle by itself; chosen for the device if left out.",
        group="device",
    )
    merge: str = option(
        "auto",
        "Expand quantised weights once and merge adapters into them, for speed: where memory allows and probes agree.",
        choices=MERGES,
    )
    dtype: str = option("auto", DTYPE_HELP, choices=PRECISIONS)
    use_cpu: bool = option(False, "Run on the CPU even where there is a GPU.")

    @property
    def loading(self) -> dict:
        """What `Judge.from_pretrained` is told."""
        return {name: vars(self)[name] for name in ("skip_probes", "dtype", "merge")}


# --- one dataclass per script -----------------------------------------------------------------------------------------

# What train.py says to the Trainer where neither recipe nor flag does: the settings of configs/gemma2-9b/train.yaml,
# for hours of training on one GPU. The Trainer's own defaults suit the training of all weights (a rate of 5e-5, three
# epochs) and keep every checkpoint. Written as on a command line: transformers converts them as it does a user's.
TRAINING_DEFAULTS = {
    "num_train_epochs": "1",
    "per_device_train_batch_size": "4",  # x 4 = 16 battles a step, as the recipes have them; 4 fit a smaller card
    "gradient_accumulation_steps": "4",
    "gradient_checkpointing": "true",  # one more forward pass instead of every layer's activations
    "gradient_checkpointing_kwargs": '{"use_reentrant": true}',  # else bitsandbytes keeps every 8-bit layer's input
    "learning_rate": "2e-4",
    "lr_scheduler_type": "linear",
    "warmup_steps": "0.025",  # below 1: a share of all steps
    "optim": "adamw_8bit",  # 2 bytes of state a parameter instead of 8
    "max_grad_norm": "1.0",
    "save_strategy": "steps",  # an interrupted run goes on from here when the same command is given again
    "save_steps": "500",
    "save_total_limit": "2",
    "logging_steps": "10",
    "report_to": "none",  # nothing leaves the machine unasked
    "seed": str(0xFACED),
}


@dataclass
class QuantizeArguments:
    """Turns a backbone into a base: a fresh head, quantised weights, ready for train.py."""

    own_data: ClassVar[tuple[str, ...]] = ("base", "merge_adapter")

    base: str = option(None, BASE_HELP, group="model", path="base")
    quantization: str = option("8bit", "Weights of the base.", choices=QUANTIZATIONS)
    bnb_4bit_quant_type: str = option("nf4", "Values that 4-bit weights can take.", choices=QUANT_TYPES)
    bnb_4bit_use_double_quant: bool = option(False, "Quantise the scales of 4-bit weights too, 0.4 bits a weight less.")
    merge_adapter: str | None = option(
        None,
        "Folder or Hub id of a LoRA adapter to merge into the weights, in float32, before they are quantised.",
        path="adapter",
    )
    dtype: str = option(
        "auto",
        "Precision to compute in; what is not quantised is saved in bfloat16 under auto, else in this.",
        choices=PRECISIONS,
    )
    head_hidden_size: int | None = option(None, "Width of the head: hidden_size // 2 if left out, 0 for a linear head.")
    seed: int = option(0, "Seed of the fresh head.")
    output_dir: str = option(None, "Folder to write the base to.", group="output")
    push_to_hub: bool = option(False, "Upload the base as --hub_model_id once it is written.")
    hub_model_id: str | None = option(None, "Hub id, USER/NAME; the repository is created when needed.")
    hub_private: bool = option(True, "Only you and those you name can see the repository.")

    def __post_init__(self):
        require(self, "base", "output_dir")
        if self.push_to_hub != bool(self.hub_model_id):
            raise ValueError("--push_to_hub and --hub_model_id: expected both or neither; found one. Give the other.")
        if self.quantization != "4bit" and (self.bnb_4bit_quant_type != "nf4" or self.bnb_4bit_use_double_quant):
            raise ValueError(
                "--bnb_4bit_quant_type and --bnb_4bit_use_double_quant: expected with --quantization 4bit alone; "
                f"found {self.quantization}. Leave them out."
            )


@dataclass
class TrainArguments(BattleArguments):
    """Trains one member; every TrainingArguments flag works too. The same command goes on with an interrupted run."""

    own_data: ClassVar[tuple[str, ...]] = ("train_file", "eval_file", "base")

    orientation: str = option(
        None,
        "Which answer the adapter reads first, or both orders in each step.",
        choices=TRAINED_ORIENTATIONS,
        group="model",
    )
    base: str = option(
        None, "Base to train on: the folder that quantize.py wrote, or its Hub id (with @revision).", path="base"
    )
    train_file: list[str] | None = option(
        None,
        "Battles with outcomes, one source or more: files, folders of them, or Hub data sets.",
        group="data",
        path="battles",
    )
    train_weights: list[float] | None = option(None, "Weight of each source's battles in the loss; 1 if left out.")
    train_confidences: list[float] | None = option(
        None, "How sure each source's labels are, above 0.5 up to 1: at 0.9 a winner is trained as [0.9, 0.1]."
    )
    eval_file: str | None = option(None, "Battles to evaluate on.", path="battles")
    num_folds: int | None = option(None, "Instead of eval_file: split the first train_file into this many folds.")
    fold: int = option(0, "The fold to evaluate on.")
    fold_method: str = option(
        "prompt",
        "Folds by prompt, near-identical ones together, balanced by label and language; or row modulo num_folds.",
        choices=FOLD_METHODS,
    )
    leak_policy: str = option(
        "drop",
        "Training battles whose prompt is nearly one of the evaluation's: leave them out, keep them, or stop.",
        choices=LEAK_POLICIES,
    )
    repeat_policy: str = option(
        "keep", "Battles of one source that say the same as an earlier one.", choices=DUPLICATE_POLICIES
    )
    identical_policy: str = option("keep", "Battles whose two answers are the same.", choices=DUPLICATE_POLICIES)
    teacher_column: list[str] | None = option(
        None,
        "Columns with a teacher's probabilities, [p_a, p_b] or p_a; several are averaged, null is none.",
        group="teacher",
    )
    teacher_temperature: float = option(5.0, "Flattens teacher and student before they are compared.")
    teacher_weight: float = option(0.9, "Share of the teacher in the loss; the label has the rest.")
    max_length: int = option(2200, "Tokens of an encoded battle, special tokens included.", group="encoding")
    truncation: str = option("balanced", "What is cut from longer battles.", choices=TRUNCATIONS)
    lora_r: int = option(64, "Rank of the adapters.", group="adapter")
    lora_alpha: float = option(4, "Scale of the adapters; alpha / r sets their learning rate against the head's.")
    lora_dropout: float = option(0.05, "Dropout before the adapters.")
    head_dropout: float = option(0.1, "Dropout in the head.")
    head_learning_rate: float | None = option(None, "Learning rate of the head; learning_rate if left out.")
    freeze_layers: int = option(0, "Lower layers that get no adapter, and so cost no backward pass.")
    tokens_per_batch: int | None = option(
        None,
        "Most tokens that are trained on at once: larger batches of a device are parted, with the same gradients.",
        group="device",
    )
    dtype: str = option("auto", DTYPE_HELP, choices=PRECISIONS)
    dry_run: bool = option(False, "Say what the run would need in memory, steps and hours, after two real steps; stop.")

    def __post_init__(self):
        require(self, "orientation", "base", "train_file")
        if self.eval_file and self.num_folds:
            raise ValueError(
                "--eval_file and --num_folds: expected one of them; found both. Leave one out, or pass --num_folds 0."
            )
        for name in ("train_weights", "train_confidences"):
            values = vars(self)[name]
            if values is not None and len(values) != len(self.train_file):
                raise ValueError(
                    f"--{name}: expected a number for each of the {len(self.train_file)} of --train_file; found "
                    f"{len(values)}. Give one each."
                )
        if not all(0 < weight < math.inf for weight in self.train_weights or ()):
            raise ValueError(
                f"--train_weights {self.train_weights}: expected finite numbers above 0. To give a source no weight, "
                "leave it out."
            )
        if not all(0.5 < confidence <= 1 for confidence in self.train_confidences or ()):
            raise ValueError(f"--train_confidences {self.train_confidences}: expected numbers above 0.5, up to 1.")
        if not 0 < self.teacher_temperature < math.inf or not 0 <= self.teacher_weight <= 1:
            raise ValueError(
                f"--teacher_temperature {self.teacher_temperature} --teacher_weight {self.teacher_weight}: expected a "
                "temperature above 0 and a weight from 0 to 1."
            )
        if self.fold and not self.num_folds:
            raise ValueError(f"--fold {self.fold}: expected --num_folds too; found none. Give it, or leave --fold out.")
        defaults = {field.name: field.default for field in fields(self)}
        idle = [name for name in ("teacher_weight", "teacher_temperature") if vars(self)[name] != defaults[name]]
        if idle and not self.teacher_column:
            raise ValueError(
                f"{', '.join(f'--{name}' for name in idle)}: expected --teacher_column too; found none. Name the "
                "columns with a teacher's probabilities, or leave it out."
            )


@dataclass
class AppArguments:
    """Serves a judge as a web page and an API."""

    own_data: ClassVar[tuple[str, ...]] = ("judge",)

    judge: list[str] | None = option(None, JUDGE_HELP, group="model", path="judge")
    skip_probes: bool = option(False, "Do not check that each member still answers as it did when it was saved.")
    dtype: str = option("auto", DTYPE_HELP, choices=PRECISIONS)
    use_cpu: bool = option(False, "Run on the CPU even where there is a GPU.")
    host: str | None = option(
        None, "Address to listen on; left out, GRADIO_SERVER_NAME, which Spaces set, or 127.0.0.1.", group="server"
    )
    port: int = option(7860, "Port to listen on; 0 for any that is free.")
    max_characters: int = option(20_000, "Most characters of a text.")
    max_battles: int = option(1000, "Most battles of an uploaded file.")
    max_bytes: int = option(10_000_000, "Most bytes of an uploaded file.")
    max_waiting: int = option(100, "Most requests that wait; more are turned away.")

    def __post_init__(self):
        require(self, "judge")
        for name in ("max_characters", "max_battles", "max_bytes", "max_waiting"):
            if vars(self)[name] < 1:
                raise ValueError(f"--{name} {vars(self)[name]}: expected 1 or more.")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port {self.port}: expected 0 to 65535.")


@dataclass
class PublishArguments:
    """Uploads a member, a whole judge or a base to the Hub, or writes a member as one plain checkpoint."""

    own_data: ClassVar[tuple[str, ...]] = ("member", "judge", "base")

    member: str | None = option(None, "Folder of one member; with --merged also a Hub id.", group="model", path="judge")
    judge: list[str] | None = option(
        None,
        "Instead: folders of members, or the folder of a judge, which get one repository together.",
        path="judge here",
    )
    base: str | None = option(None, "Instead: folder of a base, as quantize.py wrote it.", path="base here")
    repo: str | None = option(None, "Hub id, USER/NAME; the repository is created when needed.", group="Hub")
    base_repo: str | None = option(None, "Hub id to push the base to, where that is only in a folder here.")
    private: bool = option(True, "Only you and those you name can see what is uploaded.")
    revision: str | None = option(None, "Branch of --repo to commit to, created when needed; main if left out.")
    commit_message: str | None = option(None, "Of the commit in --repo.")
    readings: str | None = option(
        None,
        "How the judge reads: each member in its own order (if nothing else is said), or every member in both.",
        choices=READINGS,
    )
    report: str | None = option(None, "Folder that evaluate.py wrote: what the card says of --member or --judge.")
    dry_run: bool = option(False, "List what would be uploaded, and where; nothing is sent.")
    merged: bool = option(
        False, "Merge the adapter into its base first, into one checkpoint in --output_dir.", group="merging"
    )
    output_dir: str | None = option(None, "Folder for the merged member.")
    dtype: str = option("auto", "Precision of the merged weights; auto is bfloat16.", choices=PRECISIONS)

    def __post_init__(self):
        given = [f"--{name}" for name in ("member", "judge", "base") if vars(self)[name]]
        if len(given) != 1:
            found = " and ".join(given) or "neither"
            raise ValueError(f"Expected one of --member, --judge and --base; found {found}. Say what to upload.")
        others = [
            f"--{name}"
            for name in ("base_repo", "revision", "commit_message", "readings", "report")
            if vars(self)[name]
        ]
        if self.base and others:
            raise ValueError(f"--base: expected --repo, --private and --dry_run alone; found {', '.join(others)}.")
        if self.merged and (not self.member or self.dry_run or self.base_repo):
            raise ValueError(
                "--merged: expected --member, without --base_repo (its weights are in the merged ones) and --dry_run; "
                "found others. Merge without --repo first, then publish --output_dir as a --member."
            )
        if self.merged != bool(self.output_dir):
            raise ValueError("--merged and --output_dir: expected both or neither; found one. Give the other too.")
        if not self.merged:
            require(self, "repo")


@dataclass
class BenchmarkArguments:
    """Times a part of the work against other ways to do it, in turns, and says what it gave."""

    own_data: ClassVar[tuple[str, ...]] = ()  # timings of other battles keep the recipe's judge and base

    what: str = option(
        "prediction",
        "Prediction or training against the notebook's way and peers; second readings' accuracy against seconds; "
        "growth with the number of battles and their length; encoding against the plain way; a streamed pool.",
        choices=("prediction", "training", "second_readings", "growth", "encoding", "streaming"),
        group="what is timed",
    )
    battles: list[str] | None = option(
        None, "Battles to time it on: parquet, csv or jsonl; several for growth.", path="battles"
    )
    judge: list[str] | None = option(None, "Members or a whole judge to read with.", path="judge")
    readings: str | None = option(None, "Orders that its members read, as in predict.py.", choices=READINGS)
    base: str = option(None, f"{BASE_HELP} For encoding, a folder with a tokenizer alone will do.")
    max_length: int = option(2200, "Tokens of an encoded battle where no judge says it, special tokens included.")
    count: int = option(64, "Battles of a turn, of which none is in two.")
    repeats: int = option(3, "Turns of each way; what is reported are medians, and ratios of neighbouring turns.")
    counts: list[int] | None = option(None, "Growth: numbers of battles.")
    rows: int = option(1_000_000, "Battles to stream: those of the file again and again, each with an id of its own.")
    dtype: str = option("auto", f"{DTYPE_HELP} For prediction and training.", choices=PRECISIONS)
    output: str = option(None, "JSON file to write; a picture of the same name goes beside it.", group="output")

    def __post_init__(self):
        require(self, "battles", "output")
        if self.what in ("prediction", "second_readings", "growth"):
            require(self, "judge")
        if self.what not in ("second_readings", "growth"):
            require(self, "base")
        if min(self.repeats, self.count, self.rows) < 1:
            raise ValueError(f"--repeats {self.repeats} --count {self.count} --rows {self.rows}: expected 1 or more.")
        if self.what != "growth" and len(self.battles) > 1:
            raise ValueError(f"--battles: expected one file for {self.what}; found {len(self.battles)}. Name one.")


SECONDS = {"s": 1, "m": 60, "h": 3600, "": 1}


def parse_duration(flag: str, text: str) -> float:
    """Seconds of a duration such as "4.75h", "30m", "90s" or "90"; a ValueError if it is none, or not above 0."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if not found or not (seconds := float(found[1]) * SECONDS[found[2]]):
        raise ValueError(f"{flag} {text}: expected a time above 0, such as 4.75h, 30m or 90s.")
    return seconds


@dataclass
class PredictArguments(JudgeArguments):
    """Reads battles with a judge and writes its verdicts."""

    own_data: ClassVar[tuple[str, ...]] = (*JudgeArguments.own_data, "cascade")

    output_dir: str = option(None, "Folder for predictions.parquet and submission.csv.", group="output")
    folds: bool = option(
        False,
        "Each battle by the members that did not train on it: --battles is what they had as --train_file.",
        group="passes",
    )
    second_reading: float = option(
        1.0, "Share of the battles that get all readings: those whose first one is nearest 1/2."
    )
    cascade: list[str] | None = option(
        None,
        "Judges of growing cost, each a member or a judge folder: they decide where those before are in doubt.",
        path="judge",
    )
    cascade_shares: list[float] | None = option(None, "Share of the battles that each judge of --cascade reads.")
    time_budget: str | None = option(
        None, "Such as 4.75h: as many second readings and later judges as there is time for, from the script's start."
    )

    def __post_init__(self):
        require(self, "battles", "judge", "output_dir")
        if bool(self.cascade) != bool(self.cascade_shares):
            raise ValueError("--cascade and --cascade_shares: expected both or neither; found one. Give both.")
        if self.folds and (self.cascade or self.time_budget):
            raise ValueError("--folds: expected without --cascade and --time_budget; found one of them. Leave it out.")
        if self.time_budget:
            parse_duration("--time_budget", self.time_budget)


@dataclass
class PseudolabelArguments(JudgeArguments):
    """Labels battles with a judge's probabilities, to train on."""

    output: str = option(None, "Parquet file to write: the battles, with a label.", group="output")
    exclude: list[str] | None = option(
        None,
        "Training and evaluation files: battles with nearly one of their prompts are left out.",
        group="data",
        path="battles",
    )
    exclude_schema: str = option(
        "auto", "Schema of the files of --exclude, which --schema is not about.", choices=SCHEMA_NAMES
    )
    rows_per_part: int = option(4096, "Battles that are read, labelled and written at a time.", group="output")
    min_confidence: float | None = option(
        None, "Hard labels instead, for the battles whose likelier answer has at least this probability; no others."
    )

    def __post_init__(self):
        require(self, "battles", "judge", "output")
        if self.min_confidence is not None and not 0.5 <= self.min_confidence <= 1:
            raise ValueError(f"--min_confidence {self.min_confidence}: expected 0.5 to 1.")
        if not self.output.endswith(".parquet"):
            raise ValueError(f"--output {self.output}: expected a file ending in .parquet; give it that ending.")
        if self.rows_per_part < 1:
            raise ValueError(f"--rows_per_part {self.rows_per_part}: expected 1 or more.")


@dataclass
class EvaluateArguments(JudgeArguments):
    """Scores predictions against outcomes: a report with intervals, a page, and pictures."""

    own_data: ClassVar[tuple[str, ...]] = (*JudgeArguments.own_data, "predictions")

    output_dir: str = option(None, "Folder for report.json, report.html and figures/.", group="output")
    predictions: str | None = option(
        None,
        "The predictions.parquet of --battles; a --judge reads them anew instead.",
        group="data",
        path="predictions",
    )
    against: str | None = option(
        None, "Another judge's predictions.parquet of the same battles, to compare with.", path="predictions"
    )
    train_file: str | None = option(
        None, "Battles that the judge was trained on, for the baselines that learn.", path="battles"
    )
    draws: int = option(1000, "Draws of the bootstrap of prompts that the intervals come from.", group="report")
    seed: int = option(0, "Seed of the draws.")
    show_battles: int = option(0, "So many of the most wrong battles are shown, with their texts, in report.html.")
    calibrate: str | None = option(
        None, "Calibrate on --calibrate_battles before scoring.", choices=CALIBRATIONS, group="calibration"
    )
    calibrate_battles: str | None = option(
        None,
        "The battles to calibrate on: not trained on; those with a scored one's prompt are left out.",
        path="battles",
    )
    calibrate_predictions: str | None = option(
        None,
        "Their predictions, such as out-of-fold ones (predict.py --folds true); a --judge reads them if left out.",
        path="predictions",
    )
    save_calibration: bool = option(
        False, "Keep it in the judge.json around the members of --judge: their folder is then a calibrated judge."
    )

    def __post_init__(self):
        require(self, "battles", "output_dir")
        if not self.predictions and not self.judge:
            raise ValueError("Expected --predictions or --judge; found neither. scripts/predict.py writes predictions.")
        self._check_calibration()
        if self.draws < 100 or self.show_battles < 0:
            found = f"--draws {self.draws} --show_battles {self.show_battles}"
            raise ValueError(f"{found}: expected 100 draws or more, and no fewer battles than 0.")

    def _check_calibration(self) -> None:
        if bool(self.calibrate) != bool(self.calibrate_battles):
            raise ValueError("--calibrate and --calibrate_battles: expected both or neither; found one. Give both.")
        if self.calibrate and not (self.calibrate_predictions or self.judge):
            raise ValueError("--calibrate: expected --calibrate_predictions or a --judge; found neither. Give one.")
        if (self.calibrate_predictions or self.save_calibration) and not self.calibrate:
            raise ValueError("--calibrate_predictions and --save_calibration: expected --calibrate too; found none.")
        if self.save_calibration and not self.judge:
            raise ValueError("--save_calibration: expected the --judge to keep it in; found none. Name it.")
