"""Prediction and training: the notebook's way, ours, and peers, on one base and the same battles, in turns."""

import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from accelerate import PartialState
from datasets import Dataset
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, Trainer

from benchmarks.speed import notebook, peers
from benchmarks.speed.turns import Turn, run_in_turns, summarise_turns
from modeling.data.battles import load_battles
from modeling.encoding.collator import PackedCollator, encode_dataset
from modeling.judging.canaries import CANARY_FILE
from modeling.judging.judge import Judge
from modeling.judging.loading import load_encoder
from modeling.judging.schedule import PassSchedule
from modeling.network.base import BaseFiles, find_base, load_base, load_tokenizer, save_base, unpack_gguf
from modeling.network.precision import DTYPES, choose_dtype
from modeling.training.trainer import PreferenceTrainer

NOTEBOOK, OURS, NOISE = "the notebook's way", "ours", "the notebook's in batches of 4"
LORA = {"r": 16, "alpha": 64, "dropout": 0.0, "freeze_layers": 20}  # as configs/demo/train.yaml
LEARNED, FEW = 256, 112  # tokens of a battle, and battles, where what two seeds learn is compared
TRAINING = {"gradient_accumulation_steps": 2, "num_train_epochs": 1, "learning_rate": 1.5e-4}


def draw_slices(battles: str, count: int, turns: int) -> list[list[dict]]:
    """Battles for each turn, drawn once for all, none of them twice."""
    drawn = load_battles(battles, tie_policy="drop", blank_policy="keep").shuffle(seed=0)
    if count * turns > len(drawn):
        raise ValueError(
            f"--count {count} --repeats {turns}: expected {count * turns} battles in {battles}; found {len(drawn)}. "
            "Give fewer of one, or another file."
        )
    return [drawn.select(range(turn * count, (turn + 1) * count)).to_list() for turn in range(turns)]


# --- prediction -------------------------------------------------------------------------------------------------------


def build_our_predictor(
    judge: Sequence[str],
    slices: Sequence[list[dict]],
    readings: str | None,
    merge: str = "auto",
    dtype: str = "auto",
) -> Turn:
    """A turn reads a slice of the battles as predict.py does."""
    loaded = Judge.from_pretrained(judge, merge=merge, dtype=dtype)
    plan = loaded.plan_passes(readings)
    made = [PassSchedule(plan, rows) for rows in slices]

    def run(turn: int) -> dict:
        """Seconds of reading, tokens of all readings, battles, and p that a wins."""
        start = time.perf_counter()
        made[turn].read(np.full(made[turn].p.shape[:2], True))
        seconds = time.perf_counter() - start
        tokens = int(made[turn].lengths[..., 0].sum())
        return {
            "seconds": seconds,
            "tokens": tokens,
            "battles": len(slices[turn]),
            "p_a": made[turn].p.mean(0)[:, 0],
        }

    return run


def benchmark_prediction(
    battles: str, judge: Sequence[str], backbone: str, count: int, turns: int, readings: str | None, dtype: str
) -> dict:
    """Figures of each way, and how far its probabilities lie from the notebook's.

    Args:
        battles: A file.
        judge: Names of its members, or of a judge.
        backbone: What its base was made of, for the peers.
        count: Battles of a turn.
        dtype: In which all ways compute; "auto" is decided here, once for all.
    """
    slices = draw_slices(battles, count, turns)
    loaded = Judge.from_pretrained(judge, merge="never", skip_probes=True, dtype=dtype)
    orders, max_length = len(loaded.plan_passes(readings)), loaded.members[0].encoder.encoding.max_length
    dtype = loaded.members[0].dtype
    del loaded
    with tempfile.TemporaryDirectory() as folder:
        plain = unpack_backbone(backbone, Path(folder), dtype)
        ways = {
            NOTEBOOK: partial(notebook.build_predictor, judge, slices, readings, notebook.PREDICTED_AT_ONCE, dtype),
            OURS: partial(build_our_predictor, judge, slices, readings, "auto", dtype),
            "ours, unmerged": partial(build_our_predictor, judge, slices, readings, "never", dtype),
        }
        if "pairjudge" in peers.find_peers():
            options = (max_length, min(orders, 2), dtype)
            ways["pairjudge"] = partial(peers.build_pairjudge_predictor, plain, slices, *options)
        # What the precision itself does to answers: nothing but the batches is another, and float32 in its place.
        twice = 2 * notebook.PREDICTED_AT_ONCE
        noise = {
            NOISE: partial(notebook.build_predictor, judge, slices[:1], readings, twice, dtype),
            "float32": partial(build_our_predictor, judge, slices[:1], readings, "always", "float32"),
        }
        results = run_in_turns(ways, turns)
        others = run_in_turns(noise, 1)
    summary = summarise_turns(results, NOTEBOOK)
    answered = {name: found for name, found in results.items() if "p_a" in found[0]}
    for name, found in answered.items():
        summary[name]["answers"] = compare_answers(results[NOTEBOOK], found)
        summary[name]["from_float32"] = compare_answers(others["float32"], found[:1])
    noise = {
        "answers": compare_answers(results[NOTEBOOK][:1], others[NOISE]),
        "from_float32": compare_answers(others["float32"], others[NOISE]),
    }
    return {"readings": orders, "max_length": max_length, "dtype": dtype, "ways": summary, NOISE: noise}


def compare_answers(first: Sequence[dict], second: Sequence[dict]) -> dict:
    """How far two ways' probabilities lie apart over their turns, and how many winners differ."""
    p, q = (np.concatenate([turn["p_a"] for turn in turns]) for turns in (first, second))
    differences = np.abs(p - q)
    return {
        "battles": len(p),
        "largest_dp": float(differences.max()),
        "dp_99_percent": float(np.quantile(differences, 0.99)),
        "other_winners": int(((p >= 0.5) != (q >= 0.5)).sum()),
        "spread": float(p.std()),
    }


def unpack_backbone(backbone: str, folder: Path, dtype: str) -> str:
    """A plain language model in a precision, with its tokenizer, as peers take it."""
    files = find_base(backbone)
    with unpack_gguf(files) as unpacked:
        model = AutoModelForCausalLM.from_pretrained(unpacked.folder, dtype=DTYPES[dtype])
    target = folder / "backbone"
    model.save_pretrained(target)
    tokenizer = load_tokenizer(files.folder, **files.source)
    tokenizer.padding_side = "right"
    tokenizer.save_pretrained(target)
    return str(target)


# --- training ---------------------------------------------------------------------------------------------------------


class _PackedTrainer(PreferenceTrainer):
    """Ours, in the order in which the notebook's draws."""

    _get_train_sampler = notebook.NotebookTrainer._get_train_sampler


def build_our_trainer(model: nn.Module, train_set: Dataset, folder: str, seed: int, options: dict) -> Trainer:
    """The Trainer of a model as train.py has it, with the notebook's batches; args as of `notebook.build_trainer`."""
    batch_size = notebook.TRAINED_AT_ONCE
    return _PackedTrainer(
        run={},
        model=model,
        args=notebook.build_arguments(folder, per_device_train_batch_size=batch_size, seed=seed, **options),
        train_dataset=train_set,
        data_collator=PackedCollator(),
    )


def benchmark_training(battles: str, backbone: str, count: int, turns: int, max_length: int, dtype: str) -> dict:
    """Figures of each way on a base that is not quantised, and what two seeds of each have learned on the packaged
    battles.

    Args:
        count: Battles of a turn.
        dtype: In which all ways but pairjudge, which takes float32, hold the base and compute.
    """
    slices = [Dataset.from_list(rows) for rows in draw_slices(battles, count, turns)]
    with tempfile.TemporaryDirectory() as folder:
        files = find_base(backbone)
        config = AutoConfig.from_pretrained(files.folder, **files.source)
        dtype = choose_dtype(dtype, PartialState().device, config, training=True)
        plain = unpack_backbone(backbone, Path(folder), dtype)
        base = str(Path(folder) / "base")
        save_base(Path(base), load_base(BaseFiles(Path(plain)), dtype=dtype), load_tokenizer(plain))
        shared = (base, slices, LORA, max_length, TRAINING, dtype)
        builds = {NOTEBOOK: notebook.build_trainer, OURS: build_our_trainer}
        ways = {name: partial(notebook.build_training, build, *shared) for name, build in builds.items()}
        found = peers.find_peers()
        if "trl" in found:
            ways["TRL's RewardTrainer"] = partial(peers.build_trl_trainer, plain, slices, max_length, LORA, dtype)
        if "pairjudge" in found:
            ways["pairjudge"] = partial(peers.build_pairjudge_trainer, plain, slices, max_length, LORA)
        results = run_in_turns(ways, turns)
        losses = run_in_turns({"losses": partial(build_learners, base, dtype)}, 1)["losses"][0]["losses"]
    ways = summarise_turns(results, NOTEBOOK)
    return {"max_length": max_length, "dtype": dtype, "ways": ways, "losses": losses}


def build_learners(base: str, dtype: str) -> Turn:
    """A turn trains both ways, with two seeds, on the demo's training battles, and says their mean log loss on its test
    battles."""
    encoder = load_encoder(find_base(base), LEARNED, "balanced")
    battles = load_battles(CANARY_FILE.with_name("train.jsonl")).select(range(FEW))
    train_set = encode_dataset(battles, encoder, "ab")
    eval_set = encode_dataset(load_battles(CANARY_FILE), encoder, "ab")
    options = {**TRAINING, "per_device_eval_batch_size": 8}

    def run(turn: int) -> dict:
        """The log losses of each way, a seed after the other."""
        losses: dict[str, list[float]] = {NOTEBOOK: [], OURS: []}
        for seed in (0, 1):
            for way, build in ((NOTEBOOK, notebook.build_trainer), (OURS, build_our_trainer)):
                with tempfile.TemporaryDirectory() as folder:
                    trainer = build(notebook.build_model(base, LORA, seed, dtype), train_set, folder, seed, options)
                    trainer.train()
                    losses[way].append(trainer.evaluate(eval_set)["eval_loss"])
        return {"seconds": 0.0, "losses": losses}

    return run
