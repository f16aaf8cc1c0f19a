"""Rewards for reinforcement learning from a judge of pairs: the completions of one prompt are compared with each other.

The reward function has TRL's signature, as GRPO, RLOO and OnlineDPO call it (docs/rewards.md). This module must not
know a trainer.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object

from modeling.data.battles import TEXTS, read_battles
from modeling.data.cells import RowError
from modeling.data.conversations import join_if_messages
from modeling.data.text import is_blank
from modeling.judging.judge import Judge
from modeling.judging.predictions import share_wins
from modeling.judging.ranking import list_pairs, list_texts, score_answers

MODES = ("mean", "bt")
Row = tuple[str, str, str | None]  # prompt, completion, reference


class Comparisons:
    """The battles that tell how good completions are, and their rewards once these are judged.

    A completion with a reference is compared with it, any other with the other completions of its prompt. Example:
    `comparisons.compute_rewards(share_wins(judge.predict(comparisons.battles, readings="both")))`.

    battles: {"id", "prompt", "response_a", "response_b"}, each once. Which text is response_a depends on the two texts
        alone, so that no order of the completions changes a reward.
    """

    def __init__(self, rows: Sequence[Row], mode: str = "mean"):
        """
        Args:
            rows: One for each completion.
            mode: See `PairwiseReward`.

        Raises:
            ValueError: If the mode is none of `MODES`.
        """
        check_mode(mode)
        self.rows, self.mode = list(rows), mode
        self._groups: dict[tuple[str, str | None], Counter] = {}  # how often each completion was written
        for prompt, completion, reference in self.rows:
            self._groups.setdefault((prompt, reference), Counter())[completion] += 1
        self._ids: dict[tuple[str, str, str], int] = {}
        for (prompt, reference), times in self._groups.items():
            for first, second in _pair_up(times, reference):
                self._ids.setdefault((prompt, first, second), len(self._ids))
        self.battles = [{"id": id, **dict(zip(TEXTS, texts, strict=True))} for texts, id in self._ids.items()]

    def compute_rewards(self, p_a: Sequence[float]) -> list[float | None]:
        """The reward of each row; None for the only completion of a prompt without a reference.

        Args:
            p_a: The probability that response_a wins, for each of the battles, read in both orders; of a tie, half.
        """
        p_a = [float(p) for p in p_a]
        assert len(p_a) == len(self.battles)
        rewards = {key: self._score(*key, times, p_a) for key, times in self._groups.items()}
        return [rewards[prompt, reference][completion] for prompt, completion, reference in self.rows]

    def _score(
        self, prompt: str, reference: str | None, times: Counter, p_a: Sequence[float]
    ) -> dict[str, float | None]:
        """The reward of each completion of one group."""

        def beats(text: str, other: str) -> float:
            """The probability that people prefer the first text; even odds for equal ones."""
            if text == other:
                return 0.5
            first, second = sorted((text, other))
            p = p_a[self._ids[prompt, first, second]]
            return p if text == first else 1 - p

        if reference is not None:
            return {text: beats(text, reference) for text in times}
        if times.total() == 1:
            return dict.fromkeys(times)
        if self.mode == "mean":  # each text's own even odds are taken out again; fsum is the same in every order
            won = {text: math.fsum(beats(text, other) * count for other, count in times.items()) for text in times}
            return {text: (sum_of_p - 0.5) / (times.total() - 1) for text, sum_of_p in won.items()}
        texts = list_texts(list(times))
        p_first = {(i, j): beats(texts[i], texts[j]) for i, j in list_pairs(len(texts))}
        return dict(zip(texts, score_answers(texts, p_first).scores, strict=True))


class PairwiseReward:
    """How much people prefer a completion to the other completions of its prompt, or to a reference.

    Example: `GRPOTrainer(model, reward_funcs=PairwiseReward("default"), ...)`.

    Every pair is read in both orders, and completions are gathered from all processes, because a trainer may deal those
    of one prompt to several of them.
    """

    def __init__(
        self, judge: Judge | str | Path | Sequence[str | Path], mode: str = "mean", reference: str | None = None
    ):
        """
        Args:
            judge: A judge, or the names of one as for `Judge.from_pretrained`.
            mode: "mean": the mean probability that people prefer the completion to another one of its prompt, from 0 to
                1; copies of one text are even. "bt": its strength by Bradley and Terry (1952), as a logit whose mean
                over the different completions of the prompt is 0.
            reference: A column of the training data with one answer per row. A completion's reward is then the
                probability that people prefer it to that answer, whatever the other completions are. Rows without an
                answer are compared as if there were no such column.

        Raises:
            ValueError: If the mode is none of `MODES`.
        """
        check_mode(mode)
        self.judge, self.mode = judge if isinstance(judge, Judge) else Judge.from_pretrained(judge), mode
        self.reference = reference
        # What trainers call it in their logs.
        self.__name__ = f"pairwise_{mode}" if reference is None else f"preferred_to_{reference}"

    def __call__(self, prompts: Sequence, completions: Sequence, **columns: object) -> list[float | None]:
        """The reward of each completion; None for the only completion of a prompt without a reference.

        Args:
            prompts: A text or a list of messages for each completion. All processes must call at the same time.
            completions: Texts, or lists of one message of the assistant. A blank one is compared too.
            columns: The training data's other columns, and whatever else the trainer passes.

        Raises:
            ValueError: If the lists have different lengths, a text is neither text nor messages, or there is no column
                of references.
        """
        try:
            mine, error = self._read(prompts, completions, columns), None
        except ValueError as found:  # raised below on every process, as the others would wait for this one
            mine, error = [], found
        everyone = gather_object([(mine, error)])
        if errors := [found for _, found in everyone if found]:
            raise errors[0]
        first = sum(len(rows) for rows, _ in everyone[: PartialState().process_index])
        # Every process computes all rewards: the judge deals the reading out to them.
        comparisons = Comparisons([row for rows, _ in everyone for row in rows], self.mode)
        rewards = comparisons.compute_rewards(self._predict(comparisons.battles))
        return rewards[first : first + len(mine)]

    def _read(self, prompts: Sequence, completions: Sequence, columns: Mapping) -> list[Row]:
        """This process's rows."""
        if self.reference is None:
            references = [None] * len(prompts)
        elif (references := columns.get(self.reference)) is None:
            raise ValueError(
                f"PairwiseReward: expected the training data's column {self.reference}; found {', '.join(columns)}. "
                "Name it by reference=..., and let the trainer keep it (remove_unused_columns=False)."
            )
        if not len(prompts) == len(completions) == len(references):
            raise ValueError(
                "PairwiseReward: expected a prompt, and a reference if any, for each completion; found "
                f"{len(prompts)} prompts, {len(completions)} completions and {len(references)} references."
            )
        rows = enumerate(zip(prompts, completions, references, strict=True), 1)
        return [
            (_join("prompt", prompt, number), _join("completion", completion, number), _join_reference(text, number))
            for number, (prompt, completion, text) in rows
        ]

    def _predict(self, battles: list[dict]) -> Sequence[float]:
        """The expected score of response_a in each of the battles, by the judge."""
        if not battles:
            return []
        # Texts as they are: a completion may look like a list of turns, and a blank one is a bad answer, not a fault.
        checked = read_battles(battles, schema="unlabelled", blank_policy="keep")
        return share_wins(self.judge.predict(checked, readings="both")).tolist()


def check_mode(mode: str) -> None:
    """Raises a ValueError if a mode of rewards is unknown."""
    if mode not in MODES:
        raise ValueError(f"PairwiseReward, mode: expected one of {', '.join(MODES)}; found {mode!r}.")


def _pair_up(times: Counter, reference: str | None) -> list[tuple[str, str]]:
    """The pairs of texts that are compared in a group, each in alphabetical order."""
    if reference is not None:
        return [tuple(sorted((text, reference))) for text in times if text != reference]
    texts = list_texts(list(times))
    return [(texts[i], texts[j]) for i, j in list_pairs(len(texts))]


def _join(name: str, value: object, number: int) -> str:
    """A prompt or a completion as one text, as in training."""
    try:
        text = join_if_messages(value, name)
        if not isinstance(text, str):
            raise RowError(f"{name} must be text or a list of messages", value, "Give each as TRL does.")
    except RowError as error:
        raise ValueError(
            f"PairwiseReward, row {number}: {error.expected}; found {error.found!r:.60}. {error.way_out}"
        ) from error
    return text


def _join_reference(value: object, number: int) -> str | None:
    """A reference as one text; None if there is none."""
    text = None if value is None else _join("reference", value, number)
    return None if text is None or is_blank(text) else text
