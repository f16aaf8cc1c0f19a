"""The settings of train.py: its own, and its defaults for the Trainer's. Their `help` texts are what --help prints.

Combinations of flags are checked here, with messages that name the flags as typed. This module must not load torch or
read files.
"""

import math
from dataclasses import dataclass, fields
from typing import ClassVar

from modeling.runtime.choices import (
    CONTAMINATION_POLICIES,
    DUPLICATE_POLICIES,
    FOLD_METHODS,
    POOLINGS,
    PRECISIONS,
    TRAINED_ORIENTATIONS,
    TRUNCATIONS,
)
from modeling.settings.arguments import DTYPE_HELP, BattleArguments, option, require

# train.py's defaults for the Trainer's flags: the settings of configs/gemma2-9b/train.yaml, for hours of training on
# one GPU. The Trainer's own suit full fine-tuning (learning rate 5e-5, three epochs) and keep every checkpoint. Values
# are text, as on a command line: transformers converts them as it converts a user's.
TRAINING_DEFAULTS = {
    "num_train_epochs": "1",
    "per_device_train_batch_size": "4",  # x 4 = 16 battles per step; 4 at a time fit a smaller card
    "gradient_accumulation_steps": "4",
    "gradient_checkpointing": "true",  # one more forward pass, but only one layer's activations
    "gradient_checkpointing_kwargs": '{"use_reentrant": true}',  # else bitsandbytes keeps every 8-bit layer's input
    "learning_rate": "2e-4",
    "lr_scheduler_type": "linear",
    "warmup_steps": "0.025",  # below 1: a share of all steps
    "optim": "adamw_8bit",  # 2 bytes of optimiser state per parameter instead of 8
    "max_grad_norm": "1.0",
    "save_strategy": "steps",  # the same command resumes an interrupted run from the last checkpoint
    "save_steps": "500",
    "save_total_limit": "2",
    "logging_steps": "10",
    "report_to": "none",  # nothing is sent from this machine unless asked for
    "seed": str(0xFACED),
}


@dataclass
class TrainArguments(BattleArguments):
    """Trains one member. Every TrainingArguments flag works too. The same command resumes an interrupted run."""

    own_data: ClassVar[tuple[str, ...]] = ("train_file", "eval_file", "base", "start_from")

    orientation: str = option(
        None,
        "Order of the answers in training: a first, b first, or both orders in each step.",
        choices=TRAINED_ORIENTATIONS,
        group="model",
    )
    base: str = option(
        None, "Base to train on: a folder written by quantize.py, or its Hub id (@revision optional).", path="base"
    )
    start_from: str | None = option(
        None,
        "Member to start from instead of a fresh adapter and head: a folder or Hub id, or default for the default "
        "judge's. Its base and adapter settings must be those of this run.",
        path="adapter",
    )
    train_file: list[str] | None = option(
        None,
        "Labelled training battles, one or more sources: files, folders of files, or Hub data sets.",
        group="data",
        path="battles",
    )
    train_weights: list[float] | None = option(
        None, "Weight of each source's battles in the loss, one number per source. Default: 1."
    )
    train_confidences: list[float] | None = option(
        None, "Confidence in each source's labels, above 0.5 and up to 1: 0.9 turns a win into the label [0.9, 0.1]."
    )
    eval_file: str | None = option(None, "Labelled battles to evaluate on.", path="battles")
    num_folds: int | None = option(None, "Instead of --eval_file: split the first --train_file into this many folds.")
    fold: int = option(0, "Fold to evaluate on; the others are trained on.")
    fold_method: str = option(
        "prompt",
        "How to assign folds. prompt: near-duplicate prompts share a fold, labels and languages are balanced. "
        "modulo: row number modulo --num_folds.",
        choices=FOLD_METHODS,
    )
    leak_policy: str = option(
        "drop",
        "Training battles whose prompt is a near-duplicate of an evaluation prompt: drop them, keep them, or stop.",
        choices=CONTAMINATION_POLICIES,
    )
    repeat_policy: str = option(
        "keep", "Duplicates of an earlier battle of the same source.", choices=DUPLICATE_POLICIES
    )
    identical_policy: str = option("keep", "Battles with two equal answers.", choices=DUPLICATE_POLICIES)
    counterfactual_pairs: int = option(
        0,
        "Add this many pairs of battles, made of the training battles: two prompts of one language with the answers "
        "that won. Only the prompt tells which answer is right.",
    )
    counterfactual_similar: int = option(
        0,
        "Take the second prompt of such a pair from so many that are most similar to the first. 0: from its language.",
    )
    teacher_column: list[str] | None = option(
        None,
        "Columns with a teacher's probabilities, [p_a, p_b] or p_a. Several are averaged; null means no teacher.",
        group="teacher",
    )
    teacher_temperature: float = option(5.0, "Distillation temperature of teacher and student.")
    teacher_weight: float = option(0.9, "Weight of the distillation loss; the label's loss gets the rest.")
    max_length: int = option(2200, "Maximum tokens of an encoded battle, special tokens included.", group="encoding")
    truncation: str = option(
        "balanced",
        "How longer battles are cut. balanced: the middle of each long text. left: the beginning of the battle.",
        choices=TRUNCATIONS,
    )
    lora_r: int = option(64, "Rank of the adapters.", group="adapter")
    lora_alpha: float = option(
        4, "Scale of the adapters. alpha / r multiplies their learning rate relative to the head's."
    )
    lora_dropout: float = option(0.05, "Dropout on the adapters' input.")
    head_dropout: float = option(0.1, "Dropout in the head.")
    head_learning_rate: float | None = option(None, "Learning rate of the head. Default: --learning_rate.")
    center_head: bool = option(
        False, "Begin with a head whose input is centred on the mean of the first training battles' states."
    )
    both_orders_weight: float = option(
        0.0,
        "With --orientation both: share of the loss that is computed on the mean logits of both orders.",
    )
    pooling: str | None = option(
        None,
        "What the head reads: the last token's state, or the mean over a battle's tokens. Default: the base's setting.",
        choices=POOLINGS,
    )
    freeze_layers: int = option(0, "Number of lowest layers without an adapter; they need no backward pass.")
    cache_frozen_gb: float = option(
        4.0,
        "Keep the hidden states of the frozen layers in a temporary file of up to so many GB, so that later epochs "
        "do not compute them again. For one process without --gradient_checkpointing; 0 turns it off.",
        group="device",
    )
    tokens_per_batch: int | None = option(
        None,
        "Maximum tokens per forward pass. A larger batch is split, with the same gradients.",
        group="device",
    )
    dtype: str = option("auto", DTYPE_HELP, choices=PRECISIONS)
    save_tokenizer: bool = option(
        True, "Save the tokenizer with the member. Without it the base's is used, which saves its size in the folder."
    )
    dry_run: bool = option(
        False, "Run three real steps, report the memory, steps and hours that the whole run needs, and stop."
    )

    def __post_init__(self):
        super().__post_init__()
        require(self, "orientation", "base", "train_file")
        if self.eval_file and self.num_folds:
            raise ValueError(
                "--eval_file and --num_folds: expected one of them; found both. Leave one out, or pass --num_folds 0."
            )
        if self.fold and not self.num_folds:
            raise ValueError(f"--fold {self.fold}: expected --num_folds too; found none. Give it, or leave --fold out.")
        for name in ("counterfactual_pairs", "counterfactual_similar"):
            if vars(self)[name] < 0:
                raise ValueError(f"--{name} {vars(self)[name]}: expected 0 or more.")
        if self.counterfactual_similar and not self.counterfactual_pairs:
            raise ValueError(
                f"--counterfactual_similar {self.counterfactual_similar}: expected --counterfactual_pairs too; found "
                "none. Give their number, or leave it out."
            )
        if not 0 <= self.both_orders_weight <= 1 or (self.both_orders_weight and self.orientation != "both"):
            raise ValueError(
                f"--both_orders_weight {self.both_orders_weight}: expected 0 to 1, and --orientation both; found "
                f"{self.orientation}. Leave it out, or train on both orders."
            )
        if self.center_head and self.start_from:
            raise ValueError(
                "--center_head and --start_from: expected one of them, as a member's head is there; found both. Leave "
                "one out."
            )
        self._check_sources()
        self._check_teacher()

    def _check_sources(self) -> None:
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

    def _check_teacher(self) -> None:
        if not 0 < self.teacher_temperature < math.inf or not 0 <= self.teacher_weight <= 1:
            raise ValueError(
                f"--teacher_temperature {self.teacher_temperature} --teacher_weight {self.teacher_weight}: expected a "
                "temperature above 0 and a weight from 0 to 1."
            )
        defaults = {field.name: field.default for field in fields(self)}
        idle = [name for name in ("teacher_weight", "teacher_temperature") if vars(self)[name] != defaults[name]]
        if idle and not self.teacher_column:
            raise ValueError(
                f"{', '.join(f'--{name}' for name in idle)}: expected --teacher_column too; found none. Name the "
                "columns with a teacher's probabilities, or leave it out."
            )
