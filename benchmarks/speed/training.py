"""Times training: the notebook's way, ours, TRL and pairjudge, on one base that is not quantised."""

import tempfile
from functools import partial
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset
from torch import nn
from transformers import AutoConfig, Trainer

from benchmarks.speed import notebook, peers
from benchmarks.speed.padding import TRAINING_BATCH
from benchmarks.speed.rounds import Round, run_in_rounds, summarise_rounds
from benchmarks.speed.ways import NOTEBOOK, OURS, draw_slices, unpack_backbone
from modeling.data.battles import load_battles
from modeling.encoding.collator import PackedCollator, encode_dataset
from modeling.judging.canaries import CANARY_FILE
from modeling.judging.loading import load_encoder
from modeling.network.base import BaseFiles, find_base, load_base, load_tokenizer, save_base
from modeling.network.precision import choose_dtype
from modeling.training.trainer import PreferenceTrainer

LORA = {"r": 16, "alpha": 64, "dropout": 0.0, "freeze_layers": 20}  # as configs/demo/train.yaml
OPTIONS = {"gradient_accumulation_steps": 2, "num_train_epochs": 1, "learning_rate": 1.5e-4}
# The check that both ways learn the same is small: tokens of a battle, and training battles.
LEARNING_LENGTH, LEARNING_BATTLES = 256, 112


class _PackedTrainer(PreferenceTrainer):
    """Our Trainer, with the notebook's order of battles."""

    # PreferenceTrainer draws another order from the same seed, and losses of different orders cannot be compared.
    _get_train_sampler = notebook.NotebookTrainer._get_train_sampler


def build_our_trainer(model: nn.Module, train_set: Dataset, folder: str, seed: int, options: dict) -> Trainer:
    """Returns the Trainer that train.py uses, with the notebook's batches. Args as in `notebook.build_trainer`."""
    batch_size = TRAINING_BATCH
    return _PackedTrainer(
        run={},
        model=model,
        args=notebook.build_arguments(folder, per_device_train_batch_size=batch_size, seed=seed, **options),
        train_dataset=train_set,
        data_collator=PackedCollator(),
    )


def benchmark_training(battles: str, backbone: str, count: int, num_rounds: int, max_length: int, dtype: str) -> dict:
    """Returns each way's speed, and the log loss that the notebook's way and ours reach with two seeds.

    Args:
        count: Battles per round.
        dtype: Precision of the base and of computing, in all ways but pairjudge, which uses float32.
    """
    slices = [Dataset.from_list(rows) for rows in draw_slices(battles, count, num_rounds)]
    with tempfile.TemporaryDirectory() as folder:
        files = find_base(backbone)
        config = AutoConfig.from_pretrained(files.folder, **files.source)
        dtype = choose_dtype(dtype, PartialState().device, config, training=True)
        plain = unpack_backbone(backbone, Path(folder), dtype)
        base = str(Path(folder) / "base")
        save_base(Path(base), load_base(BaseFiles(Path(plain)), dtype=dtype), load_tokenizer(plain))
        shared = (base, slices, LORA, max_length, OPTIONS, dtype)
        builds = {NOTEBOOK: notebook.build_trainer, OURS: build_our_trainer}
        ways = {name: partial(notebook.build_training, build, *shared) for name, build in builds.items()}
        installed = peers.find_peers()
        if "trl" in installed:
            ways["TRL's RewardTrainer"] = partial(peers.build_trl_trainer, plain, slices, max_length, LORA, dtype)
        if "pairjudge" in installed:
            ways["pairjudge"] = partial(peers.build_pairjudge_trainer, plain, slices, max_length, LORA)
        results = run_in_rounds(ways, num_rounds)
        losses = run_in_rounds({"losses": partial(build_learners, base, dtype)}, 1)["losses"][0]["losses"]
    summary = summarise_rounds(results, NOTEBOOK)
    return {"max_length": max_length, "dtype": dtype, "ways": summary, "losses": losses}


def build_learners(base: str, dtype: str) -> Round:
    """Returns a round that trains both ways with two seeds on the demo's training battles and evaluates each on its
    test battles.
    """
    encoder = load_encoder(find_base(base), LEARNING_LENGTH, "balanced")
    battles = load_battles(CANARY_FILE.with_name("train.jsonl")).select(range(LEARNING_BATTLES))
    train_set = encode_dataset(battles, encoder, "ab")
    eval_set = encode_dataset(load_battles(CANARY_FILE), encoder, "ab")
    options = {**OPTIONS, "per_device_eval_batch_size": 8}

    def run(number: int) -> dict:
        """Log losses of each way, one per seed."""
        losses: dict[str, list[float]] = {NOTEBOOK: [], OURS: []}
        for seed in (0, 1):
            for way, build in ((NOTEBOOK, notebook.build_trainer), (OURS, build_our_trainer)):
                with tempfile.TemporaryDirectory() as folder:
                    trainer = build(notebook.build_model(base, LORA, seed, dtype), train_set, folder, seed, options)
                    trainer.train()
                    losses[way].append(trainer.evaluate(eval_set)["eval_loss"])
        return {"seconds": 0.0, "losses": losses}

    return run
