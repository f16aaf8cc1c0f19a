"""What a member says of its run: data, settings, versions, launch, time and figures, so that a card needs no hand.

Names of files without their folders, because a member travels.
"""

import platform
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset
from scipy.special import softmax
from transformers import Trainer

from modeling.data.battles import LABELS, list_orders, orient_label
from modeling.data.folds import fingerprint_fold
from modeling.encoding.encoder import CUT_COLUMNS
from modeling.judging.predictions import build_verdicts
from modeling.runtime.distributed import describe_launch
from modeling.runtime.files import describe_file
from modeling.training.memory import measure_peak_memory
from modeling.training.trainer import compute_train_loss

VERSIONS = ("bothways", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "tokenizers")
RECORDED = (
    *("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("warmup_steps", "weight_decay", "max_grad_norm", "gradient_checkpointing", "train_sampling_strategy", "seed"),
)


def describe_source(role: str, source: str, battles: Dataset) -> dict:
    """One line of the data table.

    Args:
        role: "train" or "eval".
        source: File or data set that the battles came from.
        battles: Those of it that were used, with labels.

    Returns:
        role; source, its name; battles, their number; sha256 of the file, None for a folder or data set; languages
        and outcomes (a, b, tie), the number of battles of each.
    """
    file = describe_file(source)
    languages = Counter(battles["language"][:] if "language" in battles.column_names else [])
    outcomes = Counter("tie" if p[0] == p[1] else LABELS[int(p[1] > p[0])] for p in battles["label"])
    return {
        "role": role,
        "source": file["name"],
        "battles": len(battles),
        "sha256": file["sha256"],
        "languages": {str(name): count for name, count in languages.most_common() if name is not None},
        "outcomes": {name: outcomes[name] for name in (*LABELS, "tie")},
    }


def name_run(arguments: object) -> str:
    """Base, orientation and fold, for reports."""
    fold = f"-fold{arguments.fold}of{arguments.num_folds}" if arguments.num_folds else ""
    # Recipes write a base to outputs/<name>/base.
    path = Path(arguments.base.partition("@")[0])
    return f"{path.parent.name if path.name == 'base' else path.name}-{arguments.orientation}{fold}"


def describe_run(
    arguments: object, trainer: Trainer, data: Sequence[Mapping], metrics: Mapping, seconds: float
) -> dict:
    """What a reader of the member needs to know of its run.

    Args:
        arguments: The script's own, a dataclass.
        data: What `describe_source` said of each source.
        metrics: Figures of training and evaluation.
        seconds: From the start of the script.
    """
    settings = asdict(arguments)
    for name in ("eval_file", "base"):
        settings[name] = _shorten(settings[name]) if settings[name] else None
    settings["train_file"] = [_shorten(file) for file in arguments.train_file]
    training = vars(trainer.args)
    settings |= {name: training[name] for name in RECORDED}
    settings |= {"optim": training["optim"].value, "lr_scheduler_type": training["lr_scheduler_type"].value}
    return {
        **settings,
        "base_made_from": trainer.model.config.to_dict().get("made_from"),
        "command": describe_command(sys.argv),
        "data": list(data),
        "num_battles": len(trainer.train_dataset),
        "launch": describe_launch(trainer.accelerator, trainer.model_wrapped),
        "versions": {**{name: version(name) for name in VERSIONS}, "python": platform.python_version()},
        "seconds": round(seconds, 1),
        "metrics": dict(metrics),
    }


def describe_command(argv: Sequence[str]) -> str:
    """The command as typed, but for folders that are this machine's own and for what launched it."""
    script, *flags = argv
    return shlex.join(["accelerate", "launch", f"scripts/{Path(script).name}", *map(_shorten, flags)])


def _shorten(text: str) -> str:
    """The last part of an absolute path, also behind `--flag=`; anything else as it is."""
    flag, equals, value = text.partition("=") if text.startswith("--") else ("", "", text)
    return flag + equals + (Path(value).name if Path(value).is_absolute() else value)


def measure_training(trainer: Trainer) -> dict[str, float]:
    """What the Trainer does not report of a run, or only of the part since its last restart."""
    speeds = [entry["train_tokens_per_second"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "train_loss": compute_train_loss(trainer.state.log_history),
        "train_tokens_per_second": speeds[-1],
        "peak_memory_gb": measure_peak_memory() / 1e9,
    }


def read_evaluation(logits: np.ndarray, encoded: Dataset, battles: Dataset, orientation: str) -> pd.DataFrame:
    """The verdicts that the Trainer's evaluation gave, as `Judge.predict` would give them.

    Args:
        logits: By slot, shape (battles * orders, labels), in the order of `encoded`.
        encoded: What `encode_evaluation` returned: the readings of a battle one after the other, with its row.
        battles: Those that were evaluated.
        orientation: The member's.
    """
    orders = list_orders(orientation)
    by_slot, rows, columns = softmax(logits, axis=1), np.array(encoded["row"]), {}
    facts = np.column_stack([encoded[name][:] for name in ("length", *CUT_COLUMNS)])
    lengths = np.zeros((len(orders), len(battles), facts.shape[1]), int)
    for place, order in enumerate(orders):
        read = np.full((len(battles), len(LABELS)), np.nan)
        read[rows[place :: len(orders)]] = [orient_label(p, order) for p in by_slot[place :: len(orders)]]
        lengths[place, rows[place :: len(orders)]] = facts[place :: len(orders)]
        columns[f"{orientation}_{order}"] = read
    return build_verdicts(battles["id"][:], columns, lengths)


def describe_fold(arguments: object, evaluation: Dataset | None) -> dict[str, str]:
    """What identifies the battles that a fold held out; nothing where there are no folds."""
    return {"fold_fingerprint": fingerprint_fold(evaluation)} if arguments.num_folds else {}
