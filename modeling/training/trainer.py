"""The Trainer of a member: a learning rate for the head, an order of battles that a restart repeats, evaluation by the
packed predictor, and checkpoints that are complete or worthless. Everything else is transformers' own. It must not know
scripts or files of battles.
"""

import hashlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import DistributedType
from datasets import Dataset
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader, Sampler
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput

from modeling.encoding.collator import list_passes, stack_targets
from modeling.judging.predictor import predict_battles
from modeling.network.base import HEAD
from modeling.network.lora import collect_trained_weights, write_adapter
from modeling.network.losses import compute_preference_loss, smooth_labels
from modeling.runtime.logs import build_logger
from modeling.training.checkpoints import delete_older_checkpoints, seal_checkpoint
from modeling.training.memory import measure_peak_memory

logger = build_logger(__name__)


class EpochSampler(Sampler):
    """Row numbers in an order that depends on seed and epoch only: the same on every process, after every restart.

    transformers' own grouping by length draws from the process's global random state. That differs between processes
    once their batches differ, and after a restart: some battles would be read twice and others never.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        group_size: int | None,
        seed: int,
        units: Sequence[int] | None = None,
    ):
        """
        Args:
            lengths: Tokens of each battle.
            group_size: Battles of similar length that come together, those of one optimizer step. None: no grouping.
            units: A number for each battle; those with the same number come one after the other, as the two battles of
                a counterfactual pair should. None: each battle by itself.
        """
        self.lengths, self.group_size, self.seed = lengths, group_size, seed
        rows: dict[int, list[int]] = {}
        for row, unit in enumerate(range(len(lengths)) if units is None else units):
            rows.setdefault(unit, []).append(row)
        self.units = list(rows.values())
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        # Shifted, so that seed 0 in epoch 1 does not draw the order of seed 1 in epoch 0.
        generator = torch.Generator().manual_seed((self.seed << 16) + self.epoch)
        if self.group_size is None:
            order = torch.randperm(len(self.units), generator=generator).tolist()
        else:
            longest = [max(self.lengths[row] for row in unit) for unit in self.units]
            # In units, which are as large as the battles that they hold on average.
            size = max(1, round(self.group_size * len(self.units) / len(self.lengths)))
            order = get_length_grouped_indices(longest, size, generator=generator)
        return (row for number in order for row in self.units[number])


class PreferenceTrainer(Trainer):
    """Trains the adapter and head of a PeftModel.

    Example: `PreferenceTrainer(model=model, args=training, train_dataset=battles, data_collator=PackedCollator(),
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
            run: The settings that decide the run's numbers, as JSON values; stored with each checkpoint.
            head_learning_rate: Learning rate of the head; the adapter's if None.
            options: Arguments of transformers' Trainer. `data_collator` is a `PackedCollator`; data sets are what
                `encode_dataset` returned.
        """
        super().__init__(**options)
        self.run, self.head_learning_rate = run, head_learning_rate
        self.sampler: EpochSampler | None = None
        self.eval_probabilities: np.ndarray | None = None
        self.add_callback(_RestartCallback(self))

    # --- training -----------------------------------------------------------------------------------------------------

    # Private, but the only place for a sampler: the public get_train_dataloader would have to build the loader, with
    # accelerate's sharding and the workers' seeds, all over again.
    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        strategy = self.args.train_sampling_strategy
        if strategy not in ("random", "group_by_length"):
            return super()._get_train_sampler(train_dataset)
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        grouped = strategy == "group_by_length"
        numbers = self.train_dataset["unit"][:] if "unit" in self.train_dataset.column_names else None
        self.sampler = EpochSampler(self.train_dataset["length"][:], step if grouped else None, seed, numbers)
        return self.sampler

    def training_step(self, model: nn.Module, inputs: dict, num_items_in_batch: int | None = None) -> torch.Tensor:
        """Runs the Trainer's step on each part of the batch; the gradients add up to the whole batch's."""
        *first, last = inputs["parts"]
        # DeepSpeed's no_sync is refused with ZeRO-2 and ZeRO-3: it reduces gradients after every backward.
        if first and self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            raise ValueError(
                f"--tokens_per_batch {self.data_collator.tokens_per_batch}: expected batches in one part, because "
                f"DeepSpeed reduces gradients after each part; found {len(inputs['parts'])} parts. Leave it out, or "
                "lower --per_device_train_batch_size and raise --gradient_accumulation_steps."
            )
        loss = torch.zeros((), device=self.args.device)
        for part in first:
            with self.accelerator.no_sync(model):  # processes reduce their gradients once, after the last part
                loss += super().training_step(model, part, num_items_in_batch)
        return loss + super().training_step(model, last, num_items_in_batch)

    def compute_loss(self, model: nn.Module, inputs: dict, *arguments, **options) -> torch.Tensor:
        """The Trainer's loss times the part's share of its batch."""
        return inputs.pop("share") * super().compute_loss(model, inputs, *arguments, **options)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's optimizer; the head's parameters get groups of their own if the head has its own rate."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if fresh and self.head_learning_rate is not None:
            head = {id(p) for name, p in self.model.named_parameters() if f".{HEAD}." in name}
            groups = []
            # The Trainer's groups differ in weight decay (biases have none), so each is split in two.
            for group in optimizer.param_groups:
                for rate, of_head in ((group["lr"], False), (self.head_learning_rate, True)):
                    if parameters := [p for p in group["params"] if (id(p) in head) == of_head]:
                        groups.append({**group, "params": parameters, "lr": rate})
            optimizer.param_groups[:] = groups
        return optimizer

    # Private, because callbacks cannot stop a run here: on_epoch_begin may set should_training_stop, but the Trainer
    # looks at it only after it has trained a step.
    def _run_epoch(self, **options) -> None:
        """The Trainer's epoch, unless the run was interrupted after its last step: that would train one step more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**options)

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluates the loader's data set with the packed predictor that prediction uses.

        Replaces only the Trainer's loop over padded batches: `evaluate` still logs, calls callbacks and measures speed.
        `eval_probabilities` keeps the probabilities, by slot, shape (battles, passes, labels).

        Returns:
            `predictions` and `label_ids` by slot, shape (battles * passes, labels), the passes of a battle one after
            the other; predictions are log-probabilities, which are logits too. `num_samples` counts passes.
        """
        battles = dataloader.dataset  # the loader's batches are never built
        passes = [each for battle in battles for each in list_passes(battle)]
        # training_step switches both back to training.
        self.model.eval()
        if callable(getattr(self.optimizer, "eval", None)):  # a schedule-free optimizer then shows averaged weights
            self.optimizer.eval()
        by_slot = predict_battles(
            self.model,  # not the wrapped one: DDP would wait for gradients; ZeRO-3's hooks are on the model itself
            passes,
            "ab",  # leaves the columns by slot, as the labels are
            tokens_per_batch=self.data_collator.tokens_per_batch,
            # ZeRO-3 collects weights in the same order on all processes: threads would mix the order up.
            num_workers=1 if self.is_deepspeed_enabled else None,
            name=None if self.args.disable_tqdm else description,
        )
        self.eval_probabilities = by_slot.reshape(len(battles), -1, by_slot.shape[1])
        logits = np.log(by_slot.clip(np.finfo(float).tiny))  # log 0 times a label of 0 would be NaN
        targets = stack_targets(passes)
        labels = targets.pop("labels")
        loss = compute_preference_loss(
            torch.tensor(logits), labels, **targets, distillation=self.model.get_base_model().distillation
        )
        metrics = {"loss": loss.item()}
        if self.compute_metrics:
            metrics |= self.compute_metrics(EvalPrediction(logits, labels.numpy()))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(logits, labels.numpy(), metrics, len(passes))

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves adapter and head only.

        The Trainer's own method also saves its arguments, which name folders and may hold a token, and collects the
        whole base under ZeRO-3.
        """
        weights = collect_trained_weights(self.model)
        if self.args.should_save:
            write_adapter(Path(output_dir or self.args.output_dir), self.model, weights)

    # Private, because no callback surrounds the writing: on_save runs when the Trainer has already deleted older
    # checkpoints, and not at all when the writing failed.
    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        keep, self.args.save_total_limit = self.args.save_total_limit, None  # delete older ones after sealing this one
        start = time.perf_counter()
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # each process writes its own random state
            if self.args.should_save:
                seal_checkpoint(folder, self.run)
                delete_older_checkpoints(folder.parent, keep, self.state.best_model_checkpoint)
                size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                logger.info(f"Checkpoint {folder}: {size / 1e6:.1f} MB in {time.perf_counter() - start:.2f} s")
        except (OSError, RuntimeError, SafetensorError) as error:  # torch raises RuntimeError when a disk is full
            free = shutil.disk_usage(folder.parent).free / 1e6
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
            raise OSError(
                f"Checkpoint {folder}: expected to write it whole; found {error} ({free:,.0f} MB are free there). The "
                "earlier checkpoints are complete: make room, then give the same command again to resume from them."
            ) from error
        finally:
            self.args.save_total_limit = keep


def smooth_dataset(battles: Dataset, smoothing: float) -> Dataset:
    """Returns the encoded battles with smoothed labels."""
    if not smoothing:
        return battles
    return battles.map(lambda row: {"label": smooth_labels(torch.tensor(row["label"]), smoothing).tolist()})


class _RestartCallback(TrainerCallback):
    """Makes a run that was killed and resumed repeat exactly."""

    def __init__(self, trainer: PreferenceTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        """Tells the sampler the epoch, which decides its order."""
        # accelerate does not reach the sampler of a sharded data loader whose first batches are skipped.
        if self.trainer.sampler is not None:
            self.trainer.sampler.epoch = int(state.epoch or 0)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Logs with every checkpoint and at the end."""
        # Checkpoints do not hold the losses since the last log: without a log here a resumed run would lose them.
        if control.should_save or state.global_step >= state.max_steps:
            control.should_log = True

    on_epoch_end = on_step_end


def compute_train_loss(log_history: Sequence[Mapping]) -> float:
    """Mean loss in nats over all optimizer steps, including those before a restart, from the logged means."""
    total, last = 0.0, 0
    for entry in log_history:
        if "loss" in entry:
            total += entry["loss"] * (entry["step"] - last)
            last = entry["step"]
    return total / max(last, 1)


# Settings that decide where files go and what is reported, but no number: a run may resume with other values of them.
# A test holds the list against TrainingArguments, so that a newer version's field is sorted in by hand.
REPORTING = frozenset(
    {
        # our own
        *("base", "train_file", "eval_file", "dry_run", "cache_frozen_gb"),
        # files
        *("output_dir", "save_strategy", "save_steps", "save_total_limit", "save_on_each_node"),
        *("enable_jit_checkpoint", "resume_from_checkpoint", "restore_callback_states_from_checkpoint"),
        # evaluation
        *("do_train", "do_eval", "do_predict", "eval_strategy", "eval_steps", "eval_delay", "eval_on_start"),
        *("eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object", "per_device_eval_batch_size"),
        *("prediction_loss_only", "include_for_metrics", "load_best_model_at_end", "metric_for_best_model"),
        "greater_is_better",
        # logs
        *("logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter", "log_level"),
        *("log_level_replica", "log_on_each_node", "include_num_input_tokens_seen", "disable_tqdm", "run_name"),
        *("report_to", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        "skip_memory_metrics",
        # the Hub
        *("push_to_hub", "hub_model_id", "hub_token", "hub_private_repo", "hub_strategy", "hub_always_push"),
        "hub_revision",
        # processes
        *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
        *("dataloader_prefetch_factor", "ddp_timeout", "local_rank"),
    }
)


def describe_settings(
    arguments: object, training: TrainingArguments, train_set: Dataset, **more: object
) -> dict[str, object]:
    """Describes what decides a run's numbers, as JSON values; equal descriptions mean the same run.

    Args:
        arguments: The script's own arguments, a dataclass.
        training: The Trainer's.
        train_set: Encoded battles. Their content counts, not the file they came from.
        more: Further settings.
    """
    settings = {**training.to_dict(), **asdict(arguments)}
    settings = {name: value for name, value in settings.items() if name not in REPORTING}
    plugin = training.deepspeed_plugin
    launch = {"num_processes": training.world_size, "zero_stage": plugin.zero_stage if plugin else None}
    digest = hashlib.sha256()
    for battle in train_set:
        for name in ("input_ids", "swapped_ids", "label", "teacher", "weight"):
            if (value := battle.get(name)) is not None:
                digest.update(name.encode() + np.array(value).tobytes())
    return {**settings, **launch, **more, "train_battles": f"{len(train_set)}, {digest.hexdigest()[:16]}"}


def run_dry_run(trainer: PreferenceTrainer) -> str:
    """Trains three steps and predicts what the whole run will take. The model cannot be used afterwards.

    Returns:
        Lines of text: peak memory, battles of a step, optimizer steps, tokens and hours.
    """
    _, _, num_battles, _, batch_size, _, steps = trainer.set_initial_training_values(
        trainer.args, trainer.get_train_dataloader()
    )
    clock = _Clock()
    trainer.add_callback(clock)
    trainer.args.max_steps, accumulation = 3, trainer.args.gradient_accumulation_steps
    trainer.train()
    # The first step is not timed: it includes what happens only once, such as allocations.
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
    """Records time and tokens at the end of each step."""

    def __init__(self):
        self.marks: list[tuple[float, int]] = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Adds a mark: seconds, and tokens so far."""
        self.marks.append((time.perf_counter(), state.num_input_tokens_seen))
