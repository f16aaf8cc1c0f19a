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
from transformers import Trainer, TrainingArguments, set_seed

from modeling.arguments import TrainArguments, parse_arguments, run_script
from modeling.bases import find_base, fingerprint_base, load_base, load_tokenizer
from modeling.battles import LABELS, load_battles, split_folds
from modeling.encoding import BattleCollator, BattleEncoder, build_encoding, encode_dataset
from modeling.files import check_replaceable
from modeling.loading import MEMBER_FILE, MemberFacts, add_adapters, save_member
from modeling.metrics import compute_trainer_metrics

logger = get_logger("bothways.train")


def main() -> None:
    arguments, training = parse_arguments(TrainArguments, TrainingArguments, verb="train")
    output = prepare_output(arguments, training)
    train_battles, eval_battles = load_parts(arguments)
    base = find_base(arguments.base)
    tokenizer = load_tokenizer(base.folder)
    encoder = BattleEncoder(tokenizer, build_encoding(tokenizer, arguments.max_length, arguments.truncation))
    train_set = encode_dataset(train_battles, encoder, arguments.orientation)
    eval_set = encode_dataset(eval_battles, encoder, arguments.orientation) if eval_battles else None
    logger.info(f"First battle as read:\n{tokenizer.decode(train_set[0]['input_ids'])}")

    set_seed(training.seed)
    dtype = "bfloat16" if training.bf16 else "float32"
    model = load_base(base, dtype=dtype, device=training.device, head_dropout=arguments.head_dropout)
    head = {"head_dropout": model.config.head_dropout, "head_hidden_size": model.config.head_hidden_size}
    model = add_adapters(
        model,
        r=arguments.lora_r,
        alpha=arguments.lora_alpha,
        dropout=arguments.lora_dropout,
        freeze_layers=arguments.freeze_layers,
    )
    trainable, total = model.get_nb_trainable_parameters()
    logger.info(f"Parameters: {trainable:,} trainable of {total:,}")

    trainer = Trainer(
        model=model,
        args=training,
        train_dataset=train_set,
        eval_dataset=eval_set,
        data_collator=BattleCollator(encoder.encoding.pad_token_id),
        compute_metrics=compute_trainer_metrics,
    )
    result = trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    metrics = {**result.metrics, **(trainer.evaluate() if eval_set else {})}
    metrics["train_tokens_per_second"] = trainer.state.num_input_tokens_seen / metrics["train_runtime"]
    metrics["peak_memory_gb"] = measure_peak_memory()
    trainer.log_metrics("all", metrics)

    if trainer.is_world_process_zero():
        facts = MemberFacts(
            orientation=arguments.orientation,
            labels=list(LABELS),
            dtype=dtype,
            encoding=encoder.encoding.to_dict(),
            head=head,
            base_fingerprint=fingerprint_base(base),
            training=describe_run(arguments, trainer, metrics),
        )
        save_member(output, model, tokenizer, base, facts)
    logger.info(f"Member written: {output}")


def prepare_output(arguments: TrainArguments, training: TrainingArguments) -> Path:
    """The member's folder; the Trainer's own files go beside it, so that a member holds no optimizer state."""
    output = Path(training.output_dir.format(orientation=arguments.orientation))
    check_replaceable(output, MEMBER_FILE)
    if training.fp16:
        raise ValueError("--fp16: expected bf16, or neither: members are read in the precision they were trained in.")
    if training.push_to_hub:
        raise ValueError("--push_to_hub: the Trainer would upload its optimizer state. Upload the member folder.")
    training.output_dir = str(output.with_name(f"{output.name}.checkpoints"))
    training.remove_unused_columns = False  # the collator picks what the model takes
    training.label_names = ["labels"]
    training.include_num_input_tokens_seen = "non_padding"  # makes the Trainer log tokens/s
    return output


def load_parts(arguments: TrainArguments):
    """Training battles, and those to evaluate on (or None)."""
    options = {"tie_policy": arguments.tie_policy, "blank_policy": arguments.blank_policy, "require_labels": True}
    battles = load_battles(arguments.train_file, **options)
    if len(battles) == 0:
        raise ValueError(f"--train_file {arguments.train_file}: expected battles; found none.")
    if arguments.eval_file:
        parts = battles, load_battles(arguments.eval_file, **options)
    elif arguments.num_folds:
        parts = split_folds(battles, arguments.num_folds, arguments.fold)
    else:
        parts = battles, None
    logger.info(f"Battles: {len(parts[0])} for training, {len(parts[1]) if parts[1] else 0} for evaluation")
    return parts


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
