"""Peers: pairjudge 0.3.0 and TRL 1.16.0, used through their own classes on the same backbone and battles. The extra
`[benchmark]` installs them.
"""

import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.speed.rounds import Round
from modeling.data.battles import TEXTS
from modeling.network.lora import LORA_MODULES
from modeling.network.precision import DTYPES

PAIRJUDGE_BATCH, TRL_BATCH = 4, 8  # battles: pairjudge's default, and the notebook's


def find_peers() -> set[str]:
    """Returns the names of the installed peers."""
    return {name for name in ("pairjudge", "trl") if find_spec(name)}


def build_frame(battles: Sequence[dict]) -> pd.DataFrame:
    """Returns battles in pairjudge's form, where each text is a list of turns."""
    return pd.DataFrame([{"id": row["id"], **{name: [row[name]] for name in TEXTS}} for row in battles])


def build_pairjudge_predictor(
    backbone: str, slices: Sequence[list[dict]], max_length: int, orders: int, dtype: str
) -> Round:
    """Returns a round that predicts one slice with an untrained 3-class head, in both orders if `orders` is 2.

    Args:
        backbone: Folder of a plain language model.
        slices: The battles of each round.
    """
    from pairjudge import PackerConfig, PairwiseJudge

    tokenizer = AutoTokenizer.from_pretrained(backbone)
    tokenizer.padding_side = "right"
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=3, dtype=DTYPES[dtype])
    model.config.pad_token_id, model.config.use_cache = tokenizer.pad_token_id, False
    judge = PairwiseJudge(model.eval(), tokenizer, PackerConfig(max_length=max_length))

    def run(number: int) -> dict:
        """Seconds of its prediction, packing included; tokens of all passes; battles."""
        frame = build_frame(slices[number])
        tokens = [
            len(judge.packer.pack(*texts).input_ids)
            for a, b in (("response_a", "response_b"), ("response_b", "response_a"))[:orders]
            for texts in zip(frame["prompt"], frame[a], frame[b], strict=True)
        ]
        start = time.perf_counter()
        judge.predict_proba(frame, swap_debias=orders == 2, batch_size=PAIRJUDGE_BATCH)
        return {"seconds": time.perf_counter() - start, "tokens": sum(tokens), "battles": len(frame)}

    return run


def build_pairjudge_trainer(backbone: str, slices: Sequence[Dataset], max_length: int, lora: dict) -> Round:
    """Returns a round that trains on one slice with pairjudge's own configuration.

    On a CPU it allows float32 only. It puts adapters on all layers, and it insists on an evaluation set: one battle,
    whose time is included.
    """
    from pairjudge.packing import PackerConfig, PairPacker
    from pairjudge.training import JudgeTrainConfig, train

    packer = PairPacker(AutoTokenizer.from_pretrained(backbone), PackerConfig(max_length=max_length))

    def run(number: int) -> dict:
        """Seconds of its training, loading included, tokens, and battles."""
        frame = build_frame(slices[number])
        labels = np.array(slices[number]["label"][:])
        for name, won in zip(("winner_model_a", "winner_model_b"), labels.T.round().astype(int), strict=True):
            frame[name] = won
        frame["winner_tie"] = 0
        tokens = [len(packer.pack(*texts).input_ids) for texts in zip(*(frame[name] for name in TEXTS), strict=True)]
        with tempfile.TemporaryDirectory() as folder:
            held_out = frame.tail(1).assign(prompt=[["What is 2 + 2?"]], response_a=[["4"]], response_b=[["5"]])
            for name, part in (("train", frame), ("eval", held_out)):
                part.to_json(Path(folder) / f"{name}.jsonl", orient="records", lines=True)
            config = JudgeTrainConfig(
                train_path=str(Path(folder) / "train.jsonl"),
                validation_path=str(Path(folder) / "eval.jsonl"),
                model_name=backbone,
                max_length=max_length,
                lora_r=lora["r"],
                lora_dropout=0.0,
                output_dir=str(Path(folder) / "out"),
                merge_adapter=False,
                # Its default of 2 battles of 2,200 tokens in float32 ran out of 24 GB beside the other ways.
                per_device_train_batch_size=1,
                gradient_accumulation_steps=8,
                device="cpu",
            )
            start = time.perf_counter()
            train(config)
            seconds = time.perf_counter() - start
        return {"seconds": seconds, "tokens": sum(tokens), "battles": len(frame)}

    return run


def build_trl_trainer(backbone: str, slices: Sequence[Dataset], max_length: int, lora: dict, dtype: str) -> Round:
    """Returns a round that trains TRL's RewardTrainer on one slice.

    TRL reads the prompt with the chosen answer and the prompt with the rejected one as two sequences. Its tokens per
    second compare with ours directly; its battles per second are those of a model that scores each answer alone. The
    adapters continue from the round before.
    """
    from trl import RewardConfig, RewardTrainer

    tokenizer = AutoTokenizer.from_pretrained(backbone)
    model = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=1, dtype=DTYPES[dtype])
    model = get_peft_model(model, _build_lora(lora, model.config.num_hidden_layers))
    options = {"per_device_train_batch_size": TRL_BATCH, "num_train_epochs": 1, "bf16": dtype == "bfloat16"}
    options |= {"gradient_checkpointing": False, "max_length": max_length, "use_cpu": not torch.cuda.is_available()}
    options |= {"report_to": [], "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}

    def run(number: int) -> dict:
        """Seconds of training alone, tokens of both sequences without padding, and pairs."""
        with tempfile.TemporaryDirectory() as folder:
            settings = RewardConfig(output_dir=folder, **options)
            pairs = Dataset.from_list([_build_pair(battle) for battle in slices[number]])
            trainer = RewardTrainer(model=model, args=settings, train_dataset=pairs, processing_class=tokenizer)
            tokens = sum(len(ids) for name in ("chosen_ids", "rejected_ids") for ids in trainer.train_dataset[name])
            start = time.perf_counter()
            trainer.train()
            seconds = time.perf_counter() - start
        return {"seconds": seconds, "tokens": tokens, "battles": len(pairs)}

    return run


def _build_lora(lora: dict, num_layers: int) -> LoraConfig:
    """The same adapters as `add_adapters` makes, for a plain model with a stock head."""
    return LoraConfig(
        task_type="SEQ_CLS",
        r=lora["r"],
        lora_alpha=lora["alpha"],
        lora_dropout=0.0,
        target_modules=list(LORA_MODULES),
        modules_to_save=["score"],
        layers_to_transform=list(range(lora["freeze_layers"], num_layers)),
    )


def _build_pair(battle: dict) -> dict:
    """A battle in TRL's form: the likelier answer is the chosen one."""
    best, worst = ("response_a", "response_b")[:: 1 if battle["label"][0] >= 0.5 else -1]
    return {"prompt": battle["prompt"], "chosen": battle[best], "rejected": battle[worst]}
