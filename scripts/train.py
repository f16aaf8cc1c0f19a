"""Trains one member, a LoRA adapter with its head, in one orientation.

    accelerate launch scripts/train.py --orientation ba                 # configs/demo/train.yaml
    accelerate launch --config_file configs/accelerate/ddp.yaml --num_processes 8 \
        scripts/train.py configs/gemma2-9b/train.yaml --orientation ab
    accelerate launch scripts/train.py --orientation ab --base outputs/demo/base --train_file mine.parquet \
        --num_folds 10 --output_dir outputs/mine/ab --learning_rate 1e-4    # and any other TrainingArguments flag

Give the same command again after a crash: it resumes from the newest complete checkpoint. `--dry_run true` trains three
steps, prints what the whole run would need, and stops.
"""

from importlib.util import find_spec

if find_spec("modeling") is None:
    raise SystemExit("Bothways is not installed in this Python: run `make install`, then use .venv/bin/python.")

import logging
import time

from modeling.runtime.startup import run_script
from modeling.settings.parsing import parse_arguments
from modeling.settings.train_arguments import TrainArguments

logger = logging.getLogger("bothways.train")


def main() -> None:
    start = time.perf_counter()
    arguments, training = parse_arguments(TrainArguments, verb="train", trainer=True)
    # Imported here because torch and transformers take seconds to load: a mistyped flag is answered before that.
    from modeling.data.battles import list_orders
    from modeling.judging.loading import load_encoder
    from modeling.judging.member import fingerprint_member
    from modeling.network.base import find_base, fingerprint_base, read_labels
    from modeling.publishing.cards import write_card
    from modeling.publishing.publish import plan_push, publish_member
    from modeling.runtime.distributed import check_launch
    from modeling.training import setup
    from modeling.training.finished_run import FinishedRun
    from modeling.training.trainer import describe_settings, run_dry_run

    base = find_base(arguments.base)
    output, dtype, smoothing = setup.prepare_run(arguments, training, base)
    train_battles, eval_battles, data = setup.load_parts(
        arguments, training.world_size, training.seed, read_labels(base)
    )
    publish_to = plan_push(training, arguments.orientation, base)
    fingerprint = fingerprint_base(base)  # now, because the base may be replaced during the training
    encoder = load_encoder(base, arguments.max_length, arguments.truncation)
    train_set, eval_set = setup.encode_parts(encoder, arguments.orientation, train_battles, eval_battles, smoothing)
    longest = -(-max(train_set["length"]) // len(list_orders(arguments.orientation)))
    plan = setup.plan_run(arguments, training, base, dtype, longest)
    start_member = setup.find_start_member(arguments, training, fingerprint)
    decided = {"base": fingerprint, "dtype": dtype, "label_smoothing_factor": smoothing}
    decided |= {"start_from": fingerprint_member(start_member[1])} if start_member else {}
    run = describe_settings(arguments, training, train_set, **decided)
    checkpoint = None if arguments.dry_run else setup.find_start(training, run)
    model = setup.build_model(arguments, training, base, dtype, train_set, start_member)
    trainer = setup.build_trainer(arguments, training, model, train_set, eval_set, run)
    check_launch(trainer.accelerator)
    if arguments.dry_run:
        report = run_dry_run(trainer)
        return print(f"{plan}\n{report}") if trainer.is_world_process_zero() else None
    metrics = trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint)).metrics
    finished = FinishedRun(
        arguments, trainer, base, fingerprint, encoder, dtype, data, eval_battles, output, start, metrics, write_card
    )
    finished.save()  # first, because everything after it may fail, and the training took hours
    finished.record_canaries()
    if eval_set is not None:
        finished.evaluate(eval_set)
    trainer.log_metrics("all", finished.metrics)
    logger.info(f"Member written: {output}")
    if publish_to and trainer.is_world_process_zero():
        pushed = publish_member(output, publish_to, private=training.hub_private_repo is not False)
        logger.info(f"Member published: {pushed.url}")


if __name__ == "__main__":
    run_script(main)
