"""The record of a training run that a member carries: data, settings, versions, launch, time and metrics.

Cards are written from it alone. Files are named without their folders, because a member is copied to other machines. It
must not know how a card looks.
"""

import platform
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset
from transformers import Trainer

from modeling.data.battles import list_orders, orient_label
from modeling.data.folds import fingerprint_fold
from modeling.data.outcomes import WITH_TIE, find_outcome
from modeling.encoding.encoder import CUT_COLUMNS
from modeling.judging.predictions import build_verdicts
from modeling.runtime.distributed import describe_launch
from modeling.runtime.files import describe_file
from modeling.runtime.packages import find_version
from modeling.runtime.paths import describe_command, shorten_path
from modeling.training.memory import measure_peak_memory
from modeling.training.trainer import compute_train_loss

VERSIONS = ("bothways", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "tokenizers")
RECORDED = (
    *("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("warmup_steps", "weight_decay", "max_grad_norm", "gradient_checkpointing", "train_sampling_strategy", "seed"),
)


def describe_source(role: str, source: str, battles: Dataset) -> dict:
    """Describes one source of battles, for the data table of a card.

    Args:
        role: "train" or "eval".
        source: File or data set that the battles came from.
        battles: The battles that were used, with labels.

    Returns:
        `role`; `source`, the name without its folder; `battles`, their number; `sha256` of the file, None for a folder
        or data set; `languages` and `outcomes` (a, b, tie), the number of battles of each.
    """
    file = describe_file(source)
    languages = Counter(battles["language"][:] if "language" in battles.column_names else [])
    outcomes = Counter(map(find_outcome, battles["label"]))
    return {
        "role": role,
        "source": file["name"],
        "battles": len(battles),
        "sha256": file["sha256"],
        "languages": {str(name): count for name, count in languages.most_common() if name is not None},
        "outcomes": {name: outcomes[name] for name in WITH_TIE},
    }


def name_run(arguments: object) -> str:
    """Names a run by base, orientation and fold, for experiment trackers."""
    fold = f"-fold{arguments.fold}of{arguments.num_folds}" if arguments.num_folds else ""
    # Recipes write a base to outputs/<name>/base, where the parent folder says more.
    path = Path(arguments.base.partition("@")[0])
    return f"{path.parent.name if path.name == 'base' else path.name}-{arguments.orientation}{fold}"


def describe_run(
    arguments: object, trainer: Trainer, data: Sequence[Mapping], metrics: Mapping, seconds: float
) -> dict:
    """Describes a run as JSON values, for `MemberFacts.training`.

    Args:
        arguments: The script's own arguments, a dataclass.
        data: What `describe_source` returned for each source.
        metrics: Metrics of training and evaluation.
        seconds: Time since the start of the script.
    """
    settings = asdict(arguments)
    for name in ("eval_file", "base", "start_from"):
        settings[name] = shorten_path(settings[name]) if settings[name] else None
    settings["train_file"] = [shorten_path(file) for file in arguments.train_file]
    training = vars(trainer.args)
    settings |= {name: training[name] for name in RECORDED}
    settings |= {"optim": training["optim"].value, "lr_scheduler_type": training["lr_scheduler_type"].value}
    return {
        **settings,
        "base_made_from": trainer.model.config.to_dict().get("made_from"),
        "command": describe_command(sys.argv, "accelerate launch"),
        "data": list(data),
        "num_battles": len(trainer.train_dataset),
        "launch": describe_launch(trainer.accelerator, trainer.model_wrapped),
        "versions": {**{name: find_version(name) for name in VERSIONS}, "python": platform.python_version()},
        "seconds": round(seconds, 1),
        "metrics": dict(metrics),
    }


def measure_training(trainer: Trainer) -> dict[str, float]:
    """Metrics that the Trainer does not report, or only for the part of the run since its last restart."""
    speeds = [entry["train_tokens_per_second"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "train_loss": compute_train_loss(trainer.state.log_history),
        "train_tokens_per_second": speeds[-1],
        "peak_memory_gb": measure_peak_memory() / 1e9,
    }


def build_eval_verdicts(
    probabilities: np.ndarray, encoded: Dataset, battles: Dataset, orientation: str
) -> pd.DataFrame:
    """Builds the verdicts of the Trainer's evaluation, with the columns of `Judge.predict`.

    Args:
        probabilities: By slot, shape (battles, passes, labels): `PreferenceTrainer.eval_probabilities`.
        encoded: What `encode_dataset` returned for the battles.
        battles: The evaluated battles.
        orientation: The member's.
    """
    cuts = np.column_stack([encoded[name][:] for name in CUT_COLUMNS])
    columns, lengths = {}, []
    for place, (order, ids) in enumerate(zip(list_orders(orientation), ("input_ids", "swapped_ids"), strict=False)):
        columns[f"{orientation}_{order}"] = np.array([orient_label(p, order) for p in probabilities[:, place]])
        lengths.append(np.column_stack([[len(row) for row in encoded[ids]], cuts]))
    return build_verdicts(battles["id"][:], columns, np.array(lengths))


def describe_fold(arguments: object, evaluation: Dataset | None) -> dict[str, str]:
    """Identifies the held-out battles of a fold; empty without folds."""
    return {"fold_fingerprint": fingerprint_fold(evaluation)} if arguments.num_folds else {}
