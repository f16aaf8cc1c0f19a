"""What becomes of a trained model: its member's folder, written at once, and again with probes and evaluation."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from accelerate.logging import get_logger
from datasets import Dataset

from modeling.data.battles import LABELS, list_orders
from modeling.encoding.encoder import BattleEncoder
from modeling.evaluation.report import build_report
from modeling.judging.canaries import build_empty_canaries, record_canaries
from modeling.judging.member import MemberFacts, save_member
from modeling.network.base import BaseFiles
from modeling.network.lora import collect_trained_weights
from modeling.settings.arguments import TrainArguments
from modeling.training.run_record import describe_fold, describe_run, measure_training, read_evaluation
from modeling.training.trainer import EvaluationRecorder, PreferenceTrainer

logger = get_logger(__name__)


@dataclass
class FinishedRun:
    """A trained model with all that its member says of itself; `start` is when the script began."""

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
    probes: dict = field(init=False)

    def __post_init__(self):
        self.metrics |= measure_training(self.trainer)
        self.weights = collect_trained_weights(self.trainer.model)
        self.probes = build_empty_canaries(self.trainer.model, self.dtype)

    def save(self, report: dict | None = None) -> None:
        """Writes the member's folder, its card with the figures of a report where there is one."""
        model, seconds = self.trainer.model, time.perf_counter() - self.start
        described = describe_run(self.arguments, self.trainer, self.data, self.metrics, seconds)
        facts = MemberFacts(
            orientation=self.arguments.orientation,
            labels=list(LABELS),
            dtype=self.dtype,
            encoding=self.encoder.encoding.to_dict(),
            head={"head_dropout": model.config.head_dropout, "head_hidden_size": model.config.head_hidden_size},
            base_fingerprint=self.fingerprint,
            training=described | describe_fold(self.arguments, self.eval_battles),
        )
        if self.trainer.is_world_process_zero():
            tokenizer, card = self.encoder.tokenizer, partial(self.write_card, report=report)
            save_member(self.output, model, self.weights, tokenizer, self.base, facts, self.probes, card)

    def record_canaries(self) -> None:
        """Reads the probe battles, and writes the folder again with their probabilities."""
        logger.info("Training is over, and its member saved; its probe battles are read next")
        orders = list_orders(self.arguments.orientation)
        self.probes = record_canaries(self.trainer.model, self.encoder, orders, self.dtype)
        self.save()

    def evaluate(self, eval_set: Dataset, recorder: EvaluationRecorder) -> None:
        """Evaluates on the encoded battles that were held out, and writes the folder again with the report."""
        self.metrics |= self.trainer.evaluate()
        verdicts = read_evaluation(recorder.logits, eval_set, self.eval_battles, self.arguments.orientation)
        scored = {"battles": {"name": self.data[-1]["source"], "sha256": self.data[-1]["sha256"]}}
        self.save(build_report(verdicts, self.eval_battles) | {"data": scored})
