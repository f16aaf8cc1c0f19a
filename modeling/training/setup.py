"""The steps of scripts/train.py before training: arguments, battles, encoding, memory plan, checkpoint, model, Trainer.

Argument objects stop here: what is called from here takes plain values. It must not know what is done with a finished
run.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import AutoConfig, TrainingArguments, set_seed

from modeling.data.battles import list_orders, load_battles
from modeling.data.counterfactuals import make_counterfactuals, number_units
from modeling.data.folds import split_folds
from modeling.data.mixture import describe_battles, drop_contaminated, drop_duplicates, mix_sources
from modeling.data.near_duplicates import DuplicateIndex
from modeling.encoding.audit import audit_battles
from modeling.encoding.collator import PackedCollator, encode_dataset, list_passes
from modeling.encoding.encoder import BattleEncoder
from modeling.encoding.packing import pack_sequences
from modeling.evaluation.trainer_metrics import build_trainer_metrics
from modeling.judging.loading import find_adapter_member
from modeling.judging.member import MEMBER_FILE, MemberFacts, read_member
from modeling.judging.predictor import build_batches, choose_budget
from modeling.network.attention import find_attention
from modeling.network.base import BaseFiles, load_base, read_family_config
from modeling.network.classifier import PreferenceMixin
from modeling.network.frozen import FrozenStates, count_frozen_layers, measure_states
from modeling.network.lora import add_adapters, restore_adapter
from modeling.network.losses import Distillation
from modeling.network.precision import DTYPES, choose_dtype
from modeling.runtime.devices import measure_free_memory
from modeling.runtime.distributed import call_on_main, check_shared_folder, prepare_deepspeed, suspend_sharding
from modeling.runtime.files import check_replaceable
from modeling.runtime.logs import build_logger
from modeling.settings.train_arguments import TrainArguments
from modeling.training.checkpoints import find_checkpoint, read_recorded_dtype
from modeling.training.memory import MemoryPlan, measure_resident, plan_memory
from modeling.training.run_record import describe_source, name_run
from modeling.training.trainer import PreferenceTrainer, smooth_dataset

logger = build_logger("bothways.train")
CENTERED = 64  # battles whose mean state centres the head
MADE = "made counterfactual pairs"  # as a source of training battles
MIXED_PRECISIONS = {"bfloat16": "bf16", "float16": "fp16"}  # our names and the launcher's


def prepare_run(arguments: TrainArguments, training: TrainingArguments, base: BaseFiles) -> tuple[Path, str, float]:
    """Checks the settings and changes those of the Trainer that we handle ourselves.

    The Trainer's files go beside the member's folder, which therefore holds no optimizer state. The model computes in
    its precision without the Trainer's help, and labels are smoothed before they reach the Trainer.

    Returns:
        The member's folder, the run's precision and the label smoothing.

    Raises:
        ValueError: If the settings would train something else than the member will say.
    """
    output = Path(training.output_dir.replace("{orientation}", arguments.orientation))
    check_replaceable(output, MEMBER_FILE)
    checkpoints = output.with_name(f"{output.name}.checkpoints")
    dtype = _choose_dtype(arguments.dtype, training, base, checkpoints)
    if training.mixed_precision not in ("no", MIXED_PRECISIONS.get(dtype)):
        raise ValueError(
            f"--dtype {dtype}, launched with mixed precision {training.mixed_precision}: expected the same or none "
            "from the launcher, because a member predicts in the precision it was trained in. Set mixed_precision: "
            "'no' in the launcher; --dtype decides."
        )
    if training.n_gpu > 1:
        raise ValueError(
            f"Found {training.n_gpu} GPUs and one process: expected one GPU per process. Launch with "
            "configs/accelerate/ddp.yaml, or set CUDA_VISIBLE_DEVICES to one of them."
        )
    if not 0 <= training.label_smoothing_factor < 1:
        raise ValueError(f"--label_smoothing_factor {training.label_smoothing_factor}: expected 0 to below 1.")
    smoothing = training.label_smoothing_factor
    # The Trainer's smoother expects class indices; smooth_dataset handles soft labels.
    training.mixed_precision, training.label_smoothing_factor = "no", 0.0
    if training.deepspeed_plugin:
        prepare_deepspeed(training.deepspeed_plugin)
    training.output_dir = str(checkpoints)
    training.run_name = training.run_name or name_run(arguments)
    if training.ddp_find_unused_parameters is None:
        # Every adapter and the head take part in every loss, and DDP's search for parameters that do not fails with
        # reentrant checkpointing.
        training.ddp_find_unused_parameters = False
    training.remove_unused_columns = False  # our collator needs columns that forward does not take
    training.label_names = ["labels"]
    training.include_num_input_tokens_seen = "non_padding"  # the Trainer then logs tokens/s
    if arguments.dry_run:
        training.report_to, training.save_strategy, training.eval_strategy = [], "no", "no"
        training.output_dir = tempfile.gettempdir()  # the Trainer creates its folder even if it writes nothing
    return output, dtype, smoothing


def _choose_dtype(asked: str, training: TrainingArguments, base: BaseFiles, checkpoints: Path) -> str:
    """The run's precision: the interrupted run's, even on another machine, or the best for this device."""
    recorded = call_on_main(read_recorded_dtype, checkpoints, training.resume_from_checkpoint)
    if asked == "auto" and recorded:
        logger.info(f"Precision: {recorded}, as the interrupted run had it")
        return recorded
    return choose_dtype(asked, training.device, AutoConfig.from_pretrained(base.folder), training=True)


def load_parts(
    arguments: TrainArguments, num_processes: int, seed: int, labels: Sequence[str]
) -> tuple[Dataset, Dataset | None, list[dict]]:
    """Loads all sources; no prompt of the evaluation battles is trained on. `labels` are the base's.

    Returns:
        Training battles, evaluation battles (or None), and a description of each source for the member.

    Raises:
        ValueError: If a source is empty, or if fewer training battles remain than there are processes.
    """

    def load(flag: str, file: str) -> Dataset:
        """Battles of one source, with labels."""
        battles = load_battles(file, require_labels=True, labels=labels, **arguments.row_policy)
        if len(battles) == 0:
            raise ValueError(f"--{flag} {file}: expected battles; found none.")
        return battles

    sources = [load("train_file", file) for file in arguments.train_file]
    evaluation = load("eval_file", arguments.eval_file) if arguments.eval_file else None
    if arguments.num_folds:
        sources[0], evaluation = split_folds(sources[0], arguments.num_folds, arguments.fold, arguments.fold_method)
    policies = {"repeat_policy": arguments.repeat_policy, "identical_policy": arguments.identical_policy}
    pairs = zip(arguments.train_file, sources, strict=True)
    guarded = [drop_duplicates(file, part, **policies) for file, part in pairs]
    if evaluation is not None:
        index = DuplicateIndex()
        index.add(evaluation["prompt"][:])
        pairs = zip(arguments.train_file, guarded, strict=True)
        guarded = [drop_contaminated(file, part, index, leak_policy=arguments.leak_policy) for file, part in pairs]
    if (found := sum(map(len, guarded))) < num_processes:
        raise ValueError(
            f"--num_processes {num_processes}: expected a battle for each process; found {found} for training. "
            "Start fewer processes, give more battles, or see above which battles were dropped."
        )
    names = [Path(file).name for file in arguments.train_file]
    weights, confidences = arguments.train_weights, arguments.train_confidences
    parts = list(zip(names, guarded, strict=True))
    if count := arguments.counterfactual_pairs:
        # Before the labels are softened: an answer that won fits its own prompt better than another prompt's does.
        made = make_counterfactuals(mix_sources(parts), count, seed, arguments.counterfactual_similar)
        parts.append((MADE, made))
        weights, confidences = (values and [*values, 1.0] for values in (weights, confidences))
    battles = mix_sources(parts, weights, confidences, arguments.teacher_column or ())
    data = [describe_source("train", file, part) for file, part in zip(arguments.train_file, guarded, strict=True)]
    logger.info(f"Training on {len(battles)} battles:\n{describe_battles(battles)}")
    if evaluation is not None:
        data.append(describe_source("eval", arguments.eval_file or arguments.train_file[0], evaluation))
        logger.info(f"Evaluating on {len(evaluation)} battles:\n{describe_battles(evaluation)}")
    return battles, evaluation, data


def encode_parts(
    encoder: BattleEncoder, orientation: str, train_battles: Dataset, eval_battles: Dataset | None, smoothing: float
) -> tuple[Dataset, Dataset | None]:
    """Encodes both parts for the Trainer; logs an audit of the encoding and the first battle as text."""
    logger.info(f"Audit of the encoding:\n{audit_battles(train_battles, encoder, orientation)}")
    # Only the training labels are smoothed: metrics compare with what people said.
    train_set = smooth_dataset(encode_dataset(train_battles, encoder, orientation), smoothing)
    train_set = train_set.add_column("unit", number_units(train_battles))
    logger.info(f"First encoded battle:\n{encoder.tokenizer.decode(train_set[0]['input_ids'])}")
    return train_set, None if eval_battles is None else encode_dataset(eval_battles, encoder, orientation)


def plan_run(
    arguments: TrainArguments, training: TrainingArguments, base: BaseFiles, dtype: str, longest: int
) -> MemoryPlan:
    """Estimates and logs the memory that each process will need, so that a run that is too large is seen early.

    Args:
        longest: Tokens of the longest pass.

    Raises:
        ValueError: If the base is quantised and the launch uses ZeRO-3.
    """
    stage = training.deepspeed_plugin.zero_stage if training.deepspeed_plugin else 0
    config = AutoConfig.from_pretrained(base.folder)
    if stage == 3 and hasattr(config, "quantization_config"):
        raise ValueError(
            f"--base {arguments.base} with ZeRO-3: expected unquantised weights; found quantised ones. ZeRO-3 "
            "cannot shard bitsandbytes' weights: each process would keep all of them. Take "
            "configs/accelerate/zero2.yaml, which needs no more memory, or a base made with --quantization none."
        )
    num_orders = len(list_orders(arguments.orientation))
    batch_size = training.per_device_train_batch_size * num_orders
    if arguments.tokens_per_batch:
        batch_size = min(batch_size, max(num_orders, arguments.tokens_per_batch // longest))
    kernel = None  # the best: on a CPU it always works
    if training.device.type != "cpu":
        kernel, _ = find_attention(*read_family_config(base, {}), training.device, DTYPES[dtype], training=True)
    with suspend_sharding(training.deepspeed_plugin):  # the plan's network has no weights that could be sharded
        plan = plan_memory(
            config,
            dtype=dtype,
            r=arguments.lora_r,
            lora_dropout=arguments.lora_dropout,
            freeze_layers=arguments.freeze_layers,
            lengths=[longest] * batch_size,
            optim=str(training.optim.value),
            gradient_checkpointing=training.gradient_checkpointing,
            use_reentrant=(training.gradient_checkpointing_kwargs or {}).get("use_reentrant", False),
            num_processes=training.world_size,
            zero_stage=stage,
            device_type=training.device.type,
            kernel=kernel,
            resident=measure_resident() if training.device.type == "cpu" else 0,
        )
    logger.info(f"Memory per device, estimated, for {batch_size} x {longest} tokens:\n{plan}")
    _compare_with_free(plan, training, stage)
    return plan


def _compare_with_free(plan: MemoryPlan, training: TrainingArguments, zero_stage: int) -> None:
    """Warns if a plan is more than the memory that is free, and says what needs less."""
    free = plan.parts.get("process before", 0) + measure_free_memory(training.device)
    if plan.total <= free:
        return
    # The first two give the same training; DeepSpeed refuses the second, and ZeRO-3 the last.
    less = ["a smaller --per_device_train_batch_size with more --gradient_accumulation_steps"]
    less += [] if zero_stage else ["--tokens_per_batch"]
    less += [] if training.gradient_checkpointing else ["--gradient_checkpointing true"]
    less += [] if zero_stage == 3 else ["a base in 4 bit"]
    logger.warning(
        f"The estimate is more than the {free / 1e9:.1f} GB that are free here. If memory runs out, take "
        f"{' or '.join(less)}."
    )


def find_start(training: TrainingArguments, run: dict) -> Path | None:
    """Finds the checkpoint to resume from, the same on every process; None starts from the beginning."""
    folder = Path(training.output_dir)
    check_shared_folder(folder)
    return call_on_main(find_checkpoint, folder, run, training.resume_from_checkpoint)


def find_start_member(
    arguments: TrainArguments, training: TrainingArguments, fingerprint: str
) -> tuple[Path, MemberFacts] | None:
    """Finds the member whose adapter and head the training starts from; None for fresh ones.

    Raises:
        ValueError: If it is no member with an adapter, if it was trained on another base, or if the launch uses ZeRO-3,
            which has sharded the weights before others could be put in.
    """
    name = arguments.start_from
    if not name:
        return None
    folder = find_adapter_member(name, f"--start_from {name}")
    facts = read_member(folder)
    if facts.base_fingerprint != fingerprint:
        raise ValueError(
            f"--start_from {name}: expected a member on --base {arguments.base} ({fingerprint}); found one on another "
            f"({facts.base_fingerprint}). Give that base, or merge the adapter into this one with quantize.py."
        )
    _refuse_sharding("start_from", training)
    return folder, facts


def _refuse_sharding(flag: str, training: TrainingArguments) -> None:
    """Raises a ValueError for a flag that needs whole weights if the launch shards them."""
    if training.deepspeed_plugin and training.deepspeed_plugin.zero_stage == 3:
        raise ValueError(f"--{flag} with ZeRO-3: expected another launcher, such as configs/accelerate/zero2.yaml.")


def build_model(
    arguments: TrainArguments,
    training: TrainingArguments,
    base: BaseFiles,
    dtype: str,
    train_set: Dataset,
    start: tuple[Path, MemberFacts] | None = None,
) -> PeftModel:
    """Loads the base, frozen, and adds adapters and a trainable head: fresh ones, or those of a member."""
    set_seed(training.seed)
    head = dict(start[1].head) if start else {}
    head |= {"head_dropout": arguments.head_dropout}
    head |= {"pooling": arguments.pooling} if arguments.pooling else {}
    model = load_base(base, dtype=dtype, device=training.device, training=True, **head)
    if arguments.center_head and not start:
        _refuse_sharding("center_head", training)
        center_head(model, train_set)
    model.both_orders_weight = arguments.both_orders_weight
    if arguments.teacher_column:
        model.distillation = Distillation(arguments.teacher_weight, arguments.teacher_temperature)
    model = add_adapters(
        model,
        r=arguments.lora_r,
        alpha=arguments.lora_alpha,
        dropout=arguments.lora_dropout,
        freeze_layers=arguments.freeze_layers,
    )
    if start:
        restore_adapter(model, start[0])
    trainable, total = model.get_nb_trainable_parameters()
    logger.info(f"Parameters: {trainable:,} trainable of {total:,}")
    return model


@torch.no_grad()
def center_head(model: PreferenceMixin, train_set: Dataset) -> None:
    """Centres the head's input on the states of the first training battles, the same on every process."""
    first = train_set.select(range(min(CENTERED, len(train_set))))
    passes = [each["input_ids"] for battle in first for each in list_passes(battle)]
    found: list[Tensor] = []
    hook = model.score.register_forward_pre_hook(lambda _, features: found.append(features[0]))
    model.eval()
    for places in build_batches(passes, choose_budget(passes, model.device.type)):
        batch = pack_sequences([passes[place] for place in places]).to_batch()
        model(**{name: value.to(model.device) if isinstance(value, Tensor) else value for name, value in batch.items()})
    hook.remove()
    model.score.center(torch.cat(found))


def cache_frozen_states(
    arguments: TrainArguments, training: TrainingArguments, model: PeftModel, train_set: Dataset
) -> FrozenStates | None:
    """Computes the states of the frozen layers for all passes, if later epochs will use them and there is room.

    Returns:
        The states by `place` of `list_passes`, in a file that goes with this process, however it ends; or None.

    Raises:
        OSError: If the file cannot be written.
    """
    network = model.get_base_model()
    layers = network.list_layers()
    frozen = count_frozen_layers(layers)
    step = training.train_batch_size * training.gradient_accumulation_steps
    epochs = training.num_train_epochs if training.max_steps < 0 else training.max_steps * step / len(train_set)
    # Several processes would each compute the states of all battles, because every epoch deals them out anew. A
    # checkpointed layer passes no gradient on to its adapters if its input has none. Dropout would be another one in
    # every epoch.
    possible = training.world_size == 1 and not training.deepspeed_plugin and not training.gradient_checkpointing
    noisy = getattr(network.config, "attention_dropout", 0)
    if not frozen or epochs <= 1 or not possible or noisy:
        return None
    tokens, limit = sum(train_set["length"]), arguments.cache_frozen_gb
    size = measure_states(tokens, network.config.hidden_size) / 1e9
    if size > limit:
        logger.info(
            f"Frozen layers run in every epoch: their states, {size:.2f} GB, exceed --cache_frozen_gb {limit:g}"
        )
        return None
    passes = [each["input_ids"] for battle in train_set for each in list_passes(battle)]
    path = Path(training.output_dir) / "frozen.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        states = FrozenStates(path, passes, network.config.hidden_size)
    except OSError as error:
        raise OSError(
            f"--cache_frozen_gb {limit:g}: expected to write {size:.2f} GB to {path.parent}; found {error}. Make room, "
            "or pass --cache_frozen_gb 0."
        ) from error
    finally:
        path.unlink(missing_ok=True)  # it lives as long as it is mapped, so that a killed process leaves nothing
    budget = arguments.tokens_per_batch or choose_budget(passes, training.device.type)
    states.compute(network.eval(), layers[frozen - 1], build_batches(passes, budget))
    network.num_frozen_layers = frozen
    logger.info(f"Frozen layers: the states of {frozen} of {len(layers)} layers are computed once, {size:.2f} GB")
    return states


def build_trainer(
    arguments: TrainArguments,
    training: TrainingArguments,
    model: PeftModel,
    train_set: Dataset,
    eval_set: Dataset | None,
    run: dict,
) -> PreferenceTrainer:
    """Builds the Trainer from its parts."""
    states = None if arguments.dry_run else cache_frozen_states(arguments, training, model, train_set)
    if states:
        train_set = train_set.add_column("row", list(range(len(train_set))))
    return PreferenceTrainer(
        run=run,
        head_learning_rate=arguments.head_learning_rate,
        model=model,
        args=training,
        train_dataset=train_set,
        eval_dataset=eval_set,
        data_collator=PackedCollator(arguments.tokens_per_batch, states and states.gather),
        compute_metrics=build_trainer_metrics(
            len(list_orders(arguments.orientation)), eval_set["cut"][:] if eval_set else ()
        ),
    )
