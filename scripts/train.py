"""Trains one member, a LoRA adapter with its head, to read battles in one order.

    accelerate launch scripts/train.py --orientation ba                 # configs/demo/train.yaml
    accelerate launch --config_file configs/accelerate/ddp.yaml --num_processes 8 \
        scripts/train.py configs/gemma2-9b/train.yaml --orientation ab
    accelerate launch scripts/train.py --orientation ab --base outputs/demo/base --train_file mine.parquet \
        --num_folds 10 --output_dir outputs/mine/ab --learning_rate 1e-4    # and any other TrainingArguments flag
"""

from importlib.util import find_spec

if find_spec("modeling") is None:
    raise SystemExit("Bothways is not installed in this Python: run `make install`, then use .venv/bin/python.")

import resource
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate.logging import get_logger
from datasets import Dataset
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed

from modeling.arguments import TrainArguments, parse_arguments, run_script
from modeling.bases import BaseFiles, find_base, fingerprint_base, load_base, load_tokenizer
from modeling.battles import LABELS, load_battles, split_folds
from modeling.encoding import BattleCollator, BattleEncoder, build_encoding, encode_dataset
from modeling.files import check_replaceable
from modeling.loading import MEMBER_FILE, MemberFacts, add_adapters, save_member
from modeling.metrics import compute_trainer_metrics

logger = get_logger("bothways.train")


def main() -> None:
    arguments, training = parse_arguments(TrainArguments, TrainingArguments, verb="train")
    output = prepare_run(arguments, training)
    train_battles, eval_battles = load_parts(arguments)
    base = find_base(arguments.base)
    fingerprint = fingerprint_base(base)  # now: the base may be replaced while we train
    tokenizer = load_tokenizer(base.folder, **base.source)
    encoder = BattleEncoder(tokenizer, build_encoding(tokenizer, arguments.max_length, arguments.truncation))
    train_set = encode_dataset(train_battles, encoder, arguments.orientation)
    eval_set = encode_dataset(eval_battles, encoder, arguments.orientation) if eval_battles is not None else None
    logger.info(f"First battle as read:\n{tokenizer.decode(train_set[0]['input_ids'])}")
    model = build_model(arguments, training, base)

    trainer = Trainer(
        model=model,
        args=training,
        train_dataset=train_set,
        eval_dataset=eval_set,
        data_collator=BattleCollator(encoder.encoding.pad_token_id),
        compute_metrics=compute_trainer_metrics,
    )
    metrics = trainer.train(resume_from_checkpoint=training.resume_from_checkpoint).metrics
    metrics["train_tokens_per_second"] = trainer.state.num_input_tokens_seen / metrics["train_runtime"]
    metrics["peak_memory_gb"] = measure_peak_memory()

    def save() -> None:
        facts = MemberFacts(
            orientation=arguments.orientation,
            labels=list(LABELS),
            dtype=name_dtype(training),
            encoding=encoder.encoding.to_dict(),
            head={"head_dropout": model.config.head_dropout, "head_hidden_size": model.config.head_hidden_size},
            base_fingerprint=fingerprint,
            training=describe_run(arguments, trainer, metrics),
        )
        if trainer.is_world_process_zero():
            save_member(output, model, tokenizer, base, facts)

    save()  # before the evaluation, which could fail after hours of training
    if eval_set is not None:
        metrics |= trainer.evaluate()
        save()
    trainer.log_metrics("all", metrics)
    logger.info(f"Member written: {output}")


def name_dtype(training: TrainingArguments) -> str:
    """The precision of a run, in which its member will be read."""
    return "bfloat16" if training.bf16 else "float32"


def prepare_run(arguments: TrainArguments, training: TrainingArguments) -> Path:
    """The member's folder; the Trainer's own files go beside it, so that a member holds no optimizer state.

    Raises:
        ValueError: If the settings would train something else than what the member says of itself.
    """
    output = Path(training.output_dir.replace("{orientation}", arguments.orientation))
    check_replaceable(output, MEMBER_FILE)
    if training.fp16 or training.mixed_precision != ("bf16" if training.bf16 else "no"):
        raise ValueError(
            f"--bf16 {training.bf16} --fp16 {training.fp16}, launched with mixed precision {training.mixed_precision}: "
            "expected bf16 or none in all of them, as a member is read in the precision it was trained in. "
            "Set --bf16 in the recipe and mixed_precision: 'no' in the launcher."
        )
    if training.n_gpu > 1:
        raise ValueError(
            f"Found {training.n_gpu} GPUs and one process: expected one GPU per process. Launch with "
            "configs/accelerate/ddp.yaml, or set CUDA_VISIBLE_DEVICES to one of them."
        )
    if training.push_to_hub:
        raise ValueError("--push_to_hub: the Trainer would upload its optimizer state. Upload the member folder.")
    if training.label_smoothing_factor:
        raise ValueError("--label_smoothing_factor: expected 0: the Trainer's smoothing takes class numbers as labels.")
    training.output_dir = str(output.with_name(f"{output.name}.checkpoints"))
    training.remove_unused_columns = False  # the collator picks what the model takes
    training.label_names = ["labels"]
    training.include_num_input_tokens_seen = "non_padding"  # makes the Trainer log tokens/s
    return output


def load_parts(arguments: TrainArguments) -> tuple[Dataset, Dataset | None]:
    """Training battles, and those to evaluate on (or None)."""

    def load(flag: str, file: str) -> Dataset:
        options = {"tie_policy": arguments.tie_policy, "blank_policy": arguments.blank_policy}
        battles = load_battles(file, **options, require_labels=True)
        if len(battles) == 0:
            raise ValueError(f"--{flag} {file}: expected battles; found none.")
        return battles

    parts = load("train_file", arguments.train_file), None
    if arguments.eval_file:
        parts = parts[0], load("eval_file", arguments.eval_file)
    elif arguments.num_folds:
        parts = split_folds(parts[0], arguments.num_folds, arguments.fold)
    logger.info(f"Battles: {len(parts[0])} for training, {len(parts[1]) if parts[1] else 0} for evaluation")
    return parts


def build_model(arguments: TrainArguments, training: TrainingArguments, base: BaseFiles) -> nn.Module:
    """The base, frozen, with fresh adapters and a trainable head."""
    set_seed(training.seed)
    model = add_adapters(
        load_base(base, dtype=name_dtype(training), device=training.device, head_dropout=arguments.head_dropout),
        r=arguments.lora_r,
        alpha=arguments.lora_alpha,
        dropout=arguments.lora_dropout,
        freeze_layers=arguments.freeze_layers,
    )
    trainable, total = model.get_nb_trainable_parameters()
    logger.info(f"Parameters: {trainable:,} trainable of {total:,}")
    return model


def measure_peak_memory() -> float:
    """GB: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def describe_run(arguments: TrainArguments, trainer: Trainer, metrics: dict) -> dict:
    """What a reader of the member needs to know of its run; file names without their folders."""
    settings = asdict(arguments)
    for name in ("train_file", "eval_file", "base"):
        settings[name] = Path(settings[name]).name if settings[name] else None
    names = ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "seed")
    settings |= {name: vars(trainer.args)[name] for name in names}
    # What really ran: a launcher that was misread starts one process, or several that do not talk.
    launch = {
        "distributed_type": trainer.accelerator.distributed_type.value,
        "wrapped_as": type(trainer.model_wrapped).__name__,
    }
    counts = {"world_size": trainer.args.world_size, "num_battles": len(trainer.train_dataset)}
    return {**settings, **counts, "launch": launch, "metrics": metrics}


if __name__ == "__main__":
    run_script(main)
