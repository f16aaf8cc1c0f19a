"""What becomes of a trained model: its member's folder, written at once, and again with probes and evaluation."""

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from accelerate.logging import get_logger
from datasets import Dataset

from modeling.adapters import collect_trained_weights
from modeling.arguments import TrainArguments
from modeling.bases import BaseFiles
from modeling.battles import LABELS, list_orders
from modeling.encoding import BattleEncoder
from modeling.evaluation.reports import build_report
from modeling.members import MemberFacts, save_member
from modeling.probes import build_unread_probes, record_probes
from modeling.provenance import describe_fold, describe_run, measure_training, read_evaluation
from modeling.publication.cards import write_card
from modeling.training import EvaluationRecorder, PreferenceTrainer

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
    weights: dict = field(init=False)
    probes: dict = field(init=False)

    def __post_init__(self):
        self.metrics |= measure_training(self.trainer)
        self.weights = collect_trained_weights(self.trainer.model)
        self.probes = build_unread_probes(self.trainer.model, self.dtype)

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
            tokenizer, card = self.encoder.tokenizer, partial(write_card, report=report)
            save_member(self.output, model, self.weights, tokenizer, self.base, facts, self.probes, card)

    def read_probes(self) -> None:
        """Reads the probe battles, and writes the folder again with their probabilities."""
        logger.info("Training is over, and its member saved; its probe battles are read next")
        orders = list_orders(self.arguments.orientation)
        self.probes = record_probes(self.trainer.model, self.encoder, orders, self.dtype)
        self.save()

    def evaluate(self, eval_set: Dataset, recorder: EvaluationRecorder) -> None:
        """Evaluates on the encoded battles that were held out, and writes the folder again with the report."""
        self.metrics |= self.trainer.evaluate()
        verdicts = read_evaluation(recorder.logits, eval_set, self.eval_battles, self.arguments.orientation)
        scored = {"battles": {"name": self.data[-1]["source"], "sha256": self.data[-1]["sha256"]}}
        self.save(build_report(verdicts, self.eval_battles) | {"data": scored})
