"""The Trainer of a member: a learning rate for the head, an order of battles that a restart finds again, checkpoints
that are complete or worthless. Everything else is transformers' own.
"""

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import DistributedType
from accelerate.logging import get_logger
from datasets import Dataset
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from modeling.encoding.collator import BattleCollator
from modeling.network.base import HEAD
from modeling.network.lora import collect_trained_weights, write_adapter
from modeling.network.losses import smooth_labels
from modeling.training.checkpoints import delete_older_checkpoints, seal_checkpoint
from modeling.training.memory import measure_peak_memory

logger = get_logger(__name__)


class EpochSampler(Sampler):
    """Row numbers in an order that only seed and epoch decide: the same on every process and after every restart.

    transformers' own grouping draws from the process's random numbers instead, which differ between processes as soon
    as their batches do, and after a restart: some battles would then be read twice, and others never.
    """

    def __init__(self, lengths: Sequence[int], group_size: int | None, seed: int):
        """
        Args:
            lengths: Tokens of each battle.
            group_size: Battles that should be of like length, those of one optimizer step; None groups nothing.
        """
        self.lengths, self.group_size, self.seed = lengths, group_size, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed((self.seed << 16) + self.epoch)
        if self.group_size is None:
            return iter(torch.randperm(len(self.lengths), generator=generator).tolist())
        return iter(get_length_grouped_indices(self.lengths, self.group_size, generator=generator))


class PreferenceTrainer(Trainer):
    """Trains the adapter and head of a PeftModel.

    Example: `PreferenceTrainer(model=model, args=training, train_dataset=battles, data_collator=collator,
    run={"seed": 0}, head_learning_rate=1e-3).train()`.
    """

    def __init__(
        self,
        *,
        run: Mapping,
        head_learning_rate: float | None = None,
        **options,
    ):
        """
        Args:
            run: What decides the run's numbers, as JSON values; kept with each checkpoint.
            head_learning_rate: The head's; the adapters' own if None.
            options: Of transformers' Trainer; `data_collator` is a `PackedCollator`.
        """
        super().__init__(**options)
        self.run, self.head_learning_rate = run, head_learning_rate
        self.sampler: EpochSampler | None = None
        self.add_callback(_RestartCallback(self))

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        strategy = self.args.train_sampling_strategy
        if strategy not in ("random", "group_by_length"):
            return super()._get_train_sampler(train_dataset)
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        grouped = strategy == "group_by_length"
        self.sampler = EpochSampler(self.train_dataset["length"][:], step if grouped else None, seed)
        return self.sampler

    def get_eval_dataloader(self, eval_dataset: Dataset | None = None) -> DataLoader:
        """The Trainer's, in padded batches with a row for each reading, as it counts them."""
        # Padding is found by the attention mask alone, so that any id will do.
        packing, self.data_collator = self.data_collator, BattleCollator(pad_token_id=0)
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = packing

    def training_step(self, model: nn.Module, inputs: dict, num_items_in_batch: int | None = None) -> torch.Tensor:
        """The Trainer's, once for each part of the batch: their gradients add up to the whole batch's."""
        *first, last = inputs["parts"]
        if first and self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            raise ValueError(
                f"--tokens_per_batch {self.data_collator.tokens_per_batch}: expected batches in one part, as DeepSpeed "
                f"shares gradients out after each; found {len(inputs['parts'])}. Leave it out, or lower "
                "--per_device_train_batch_size and raise --gradient_accumulation_steps."
            )
        loss = torch.zeros((), device=self.args.device)
        for part in first:
            with self.accelerator.no_sync(model):  # the processes' gradients meet once, after the last part
                loss += super().training_step(model, part, num_items_in_batch)
        return loss + super().training_step(model, last, num_items_in_batch)

    def compute_loss(self, model: nn.Module, inputs: dict, *arguments, **options) -> torch.Tensor:
        """The Trainer's, times the part's share of its batch."""
        if "share" not in inputs:  # an evaluation's batch
            return super().compute_loss(model, inputs, *arguments, **options)
        return inputs.pop("share") * super().compute_loss(model, inputs, *arguments, **options)

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler:
        """The data set's own order; the Trainer's grouping by length would shuffle it."""
        return SequentialSampler(eval_dataset)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's optimizer, with groups of their own for the head's parameters where it has another rate."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if fresh and self.head_learning_rate is not None:
            head = {id(p) for name, p in self.model.named_parameters() if f".{HEAD}." in name}
            groups = []
            for group in optimizer.param_groups:
                for rate, of_head in ((group["lr"], False), (self.head_learning_rate, True)):
                    if parameters := [p for p in group["params"] if (id(p) in head) == of_head]:
                        groups.append({**group, "params": parameters, "lr": rate})
            optimizer.param_groups[:] = groups
        return optimizer

    def _run_epoch(self, **options) -> None:
        """The Trainer's, but for a run that was over when it was interrupted: that would train one step too many."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**options)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Adapter and head only; the Trainer's own would write its arguments too, which name folders and may hold a
        token, and under ZeRO-3 collect the whole base."""
        weights = collect_trained_weights(self.model)
        if self.args.should_save:
            write_adapter(Path(output_dir or self.args.output_dir), self.model, weights)

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        keep, self.args.save_total_limit = self.args.save_total_limit, None  # the older ones go once this is sealed
        start = time.perf_counter()
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                seal_checkpoint(folder, self.run)
                delete_older_checkpoints(folder.parent, keep, self.state.best_model_checkpoint)
                size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                logger.info(f"Checkpoint {folder}: {size / 1e6:.1f} MB in {time.perf_counter() - start:.2f} s")
        except (OSError, RuntimeError, SafetensorError) as error:  # torch says RuntimeError when a disk is full
            free = shutil.disk_usage(folder.parent).free / 1e6
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
            raise OSError(
                f"Checkpoint {folder}: expected to write it whole; found {error} ({free:,.0f} MB are free there). The "
                "checkpoints before it are complete: make room, then give the same command again to go on from them."
            ) from error
        finally:
            self.args.save_total_limit = keep


def smooth_dataset(battles: Dataset, smoothing: float) -> Dataset:
    """The encoded battles with smoothed labels."""
    if not smoothing:
        return battles
    return battles.map(lambda row: {"label": smooth_labels(torch.tensor(row["label"]), smoothing).tolist()})


class EvaluationRecorder:
    """A Trainer's `compute_metrics` that also keeps the logits of the last evaluation, which the Trainer lets go."""

    def __init__(self, compute: Callable[[EvalPrediction], dict[str, float]]):
        self.compute = compute
        self.logits: np.ndarray | None = None

    def __call__(self, evaluation: EvalPrediction) -> dict[str, float]:
        self.logits = evaluation.predictions.astype(float)
        return self.compute(evaluation)


class _RestartCallback(TrainerCallback):
    """Lets a run that was killed be repeated exactly."""

    def __init__(self, trainer: PreferenceTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        """Gives the sampler the epoch, from which alone it draws its order."""
        # accelerate does not reach the sampler of a sharded data loader whose first batches are skipped.
        if self.trainer.sampler is not None:
            self.trainer.sampler.epoch = int(state.epoch or 0)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Logs with every checkpoint and at the end."""
        # The losses since the last log are in no checkpoint, so there must be none; nor any left at the end.
        if control.should_save or state.global_step >= state.max_steps:
            control.should_log = True

    on_epoch_end = on_step_end


def compute_train_loss(log_history: Sequence[Mapping]) -> float:
    """Mean loss over all optimizer steps, those before a restart too, from the logged means; nats."""
    total, last = 0.0, 0
    for entry in log_history:
        if "loss" in entry:
            total += entry["loss"] * (entry["step"] - last)
            last = entry["step"]
    return total / max(last, 1)


# Settings that decide where a run's files go and what it reports, but none of its numbers.
# By the beginning of their names.
REPORTING = (
    *("output_dir", "run_name", "base", "train_file", "eval_file", "dry_run", "resume_from_checkpoint", "do_", "eval_"),
    *("per_device_eval", "logging_", "log_", "report_to", "project", "trackio", "save_", "hub_", "push_to_hub"),
    *("disable_tqdm", "include_", "skip_memory", "dataloader_num", "dataloader_p", "local_rank", "ddp_timeout"),
    *("load_best", "metric_for", "greater_is", "prediction_loss", "restore_callback", "enable_jit"),
)


def describe_settings(
    arguments: object, training: TrainingArguments, train_set: Dataset, **more: object
) -> dict[str, object]:
    """What decides a run's numbers, as JSON values: two runs with the same are one run, interrupted or not.

    Args:
        arguments: The script's own, a dataclass.
        train_set: Encoded battles; what they hold counts, not the file they came from.
    """
    settings = {**training.to_dict(), **asdict(arguments)}
    settings = {name: value for name, value in settings.items() if not name.startswith(REPORTING)}
    plugin = training.deepspeed_plugin
    launch = {"num_processes": training.world_size, "zero_stage": plugin.zero_stage if plugin else None}
    digest = hashlib.sha256()
    for battle in train_set:
        for name in ("input_ids", "swapped_ids", "label", "teacher", "weight"):
            if (value := battle.get(name)) is not None:
                digest.update(name.encode() + np.array(value).tobytes())
    return {**settings, **launch, **more, "train_battles": f"{len(train_set)}, {digest.hexdigest()[:16]}"}


def run_dry_run(trainer: PreferenceTrainer) -> str:
    """Trains three steps, the first of them not timed, and says what the whole run would take. The model is spoilt.

    Returns:
        Lines for the effective batch, optimizer steps, tokens, hours and the peak of memory.
    """
    _, _, num_battles, _, batch_size, _, steps = trainer.set_initial_training_values(
        trainer.args, trainer.get_train_dataloader()
    )
    clock = _Clock()
    trainer.add_callback(clock)
    trainer.args.max_steps, accumulation = 3, trainer.args.gradient_accumulation_steps
    trainer.train()
    (start, tokens_before), *_, (end, tokens_after) = clock.marks
    speed = (tokens_after - tokens_before) / (end - start)
    tokens = sum(trainer.train_dataset["length"]) / num_battles * batch_size * steps
    a_device, processes = trainer.args.per_device_train_batch_size, trainer.args.world_size
    return (
        f"peak measured in {len(clock.marks)} steps: {measure_peak_memory() / 1e9:.2f} GB per device\n"
        f"a step: {batch_size} battles = {a_device} on a device x {accumulation} accumulated x {processes} processes\n"
        f"the run: {steps} steps, {tokens:,.0f} tokens, {tokens / speed / 3600:.2f} h at {speed:,.0f} tokens/s"
    )


class _Clock(TrainerCallback):
    """Notes time and tokens at the end of each step."""

    def __init__(self):
        self.marks: list[tuple[float, int]] = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """One mark: seconds, and tokens so far."""
        self.marks.append((time.perf_counter(), state.num_input_tokens_seen))
