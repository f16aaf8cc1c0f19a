"""The steps of scripts/train.py after training: save the member, record its canaries, evaluate it.

The member is saved before the other two, which may fail, and again after each. It must not know how the run was set
up, nor how a card is written: publishing is a package above this one.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from datasets import Dataset

from modeling.data.battles import list_orders
from modeling.data.outcomes import find_labels
from modeling.encoding.encoder import BattleEncoder
from modeling.evaluation.report import build_report
from modeling.judging.canaries import build_empty_canaries, record_canaries
from modeling.judging.member import MemberFacts, save_member
from modeling.network.base import BaseFiles
from modeling.network.classifier import HEAD_DEFAULTS
from modeling.network.lora import collect_trained_weights
from modeling.runtime.logs import build_logger
from modeling.settings.train_arguments import TrainArguments
from modeling.training.run_record import build_eval_verdicts, describe_fold, describe_run, measure_training
from modeling.training.trainer import PreferenceTrainer

logger = build_logger(__name__)


@dataclass
class FinishedRun:
    """A trained model and everything its member folder will say.

    start: `time.perf_counter()` when the script began.
    metrics: What training returned; evaluation adds to it.
    write_card: Writes card, plots and evaluation into a folder, given the folder and `report`.
    """

    arguments: TrainArguments
    trainer: PreferenceTrainer
    base: BaseFiles
    fingerprint: str
    encoder: BattleEncoder
    dtype: str
    data: list[dict]
    eval_battles: Dataset | None
    output: Path
    start: float
    metrics: dict
    write_card: Callable
    weights: dict = field(init=False)
    canaries: dict = field(init=False)

    def __post_init__(self):
        self.metrics |= measure_training(self.trainer)
        self.weights = collect_trained_weights(self.trainer.model)
        self.canaries = build_empty_canaries(self.trainer.model, self.dtype)

    def save(self, report: dict | None = None) -> None:
        """Writes the member's folder; the card shows the results of the report if there is one."""
        model, seconds = self.trainer.model, time.perf_counter() - self.start
        described = describe_run(self.arguments, self.trainer, self.data, self.metrics, seconds)
        facts = MemberFacts(
            orientation=self.arguments.orientation,
            labels=list(find_labels(model.config.num_labels)),
            dtype=self.dtype,
            encoding=self.encoder.encoding.to_dict(),
            head={name: getattr(model.config, name) for name in HEAD_DEFAULTS},
            base_fingerprint=self.fingerprint,
            training=described | describe_fold(self.arguments, self.eval_battles),
        )
        if self.trainer.is_world_process_zero():
            tokenizer = self.encoder.tokenizer if self.arguments.save_tokenizer else None
            card = partial(self.write_card, report=report)
            save_member(self.output, model, self.weights, tokenizer, self.base, facts, self.canaries, card)

    def record_canaries(self) -> None:
        """Predicts the canary battles, and writes the folder again with their probabilities."""
        logger.info("Training is finished and the member saved. Recording its canary battles")
        orders = list_orders(self.arguments.orientation)
        self.canaries = record_canaries(self.trainer.model, self.encoder, orders, self.dtype)
        self.save()

    def evaluate(self, eval_set: Dataset) -> None:
        """Evaluates on the held-out battles, and writes the folder again with the report."""
        self.metrics |= self.trainer.evaluate()
        verdicts = build_eval_verdicts(
            self.trainer.eval_probabilities, eval_set, self.eval_battles, self.arguments.orientation
        )
        scored = {"battles": {"name": self.data[-1]["source"], "sha256": self.data[-1]["sha256"]}}
        self.save(build_report(verdicts, self.eval_battles) | {"data": scored})
