"""A judge: one or more members whose passes are averaged into one verdict per battle.

It does not know whether it is alone or part of a cascade, nor how passes are computed.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset

from modeling.data.answer_sets import check_answer_sets
from modeling.data.battles import TEXTS, read_battles
from modeling.data.folds import assign_folds, fingerprint_fold
from modeling.data.outcomes import WITH_TIE
from modeling.judging.calibration import Calibration
from modeling.judging.loaded import Member
from modeling.judging.loading import find_judge, load_members
from modeling.judging.member import JUDGE_FILE, READINGS, JudgeFacts, list_readings
from modeling.judging.predictions import build_verdicts, calibrate_verdicts, list_pass_columns, share_wins
from modeling.judging.schedule import PassSchedule
from modeling.judging.time_budget import TimeBudget
from modeling.judging.tournament import Ranking, rank_answer_sets
from modeling.judging.verdicts import Verdict, explain_verdict
from modeling.runtime.choices import DEFAULT_RANK_METHOD, DEFAULT_READINGS
from modeling.runtime.logs import build_logger
from modeling.runtime.paths import DEFAULT_JUDGE, shorten_path

logger = build_logger(__name__)


class Judge:
    """An ensemble of members with one verdict per battle.

    Example: `Judge.from_pretrained().compare("What is 2 + 2?", "4", "Maybe 5?").winner`.
    """

    def __init__(
        self,
        members: Sequence[Member],
        readings: str = DEFAULT_READINGS,
        calibration: Calibration | None = None,
        name: str | None = None,
    ):
        if not members:
            raise ValueError("Judge: expected at least one member; found none.")
        self.members, self.readings, self.calibration = list(members), readings, calibration
        check_labels("Judge", {member.name: member.facts.labels for member in members})
        self.name = name or " + ".join(member.name for member in members)  # for people, in reports

    @classmethod
    def from_pretrained(
        cls,
        names: str | Path | Sequence[str | Path] = DEFAULT_JUDGE,
        device: torch.device | None = None,
        *,
        skip_probes: bool = False,
        dtype: str | None = "auto",
        merge: str = "auto",
    ) -> "Judge":
        """A judge of members, or of whole judges' members, from folders or Hub ids; without names, the one that comes
        with this package.

        See `find_judge` and `load_members` for arguments and errors.
        """
        names = [str(name) for name in ([names] if isinstance(names, str | Path) else names)]
        found, facts = find_judge(names)
        members = load_members(found, device, skip_probes=skip_probes, dtype=dtype, merge=merge)
        facts = facts or JudgeFacts([member.name for member in members])
        calibration = read_calibration(facts, describe_members(members)) if facts.calibration else None
        return cls(members, facts.readings, calibration, " + ".join(map(shorten_path, names)))

    @property
    def outcomes(self) -> tuple[str, ...]:
        """What its verdicts give probabilities of: its members' labels and, if its calibration says so, ties."""
        ties = self.calibration is not None and self.calibration.ties is not None
        return WITH_TIE if ties else tuple(self.members[0].facts.labels)

    def __repr__(self) -> str:
        num, each = len(self.members), []
        for member in self.members:
            orders = " and ".join(list_readings(member.facts.orientation, self.readings))
            base = member.facts.training.get("base", member.model.config.model_type)
            each.append(
                f"  {member.name} {member.fingerprint}: reads {orders} in {member.dtype} on {base} "
                f"({member.facts.base_fingerprint})"
            )
        fitted = self.calibration
        calibrated = (
            f"calibrated by {fitted.method}, fitted on {fitted.battles} battles" if fitted else "not calibrated"
        )
        return "\n".join([f"Judge of {num} member{'s' * (num > 1)}, {calibrated}", *each])

    def plan_passes(self, readings: str | None = None) -> list[tuple[Member, str]]:
        """The (member, orientation) pairs, one per pass over a battle.

        Args:
            readings: "both": every member reads both orders, so that p(A, B) = 1 - p(B, A), and 0.5 for two equal
                answers. "own": each reads the order that it was trained in. None: what judge.json says, or "both".
        """
        readings = self.readings if readings is None else readings
        if readings not in READINGS:
            raise ValueError(f"--readings: expected one of {', '.join(READINGS)}; found {readings!r}.")
        return [(m, orientation) for m in self.members for orientation in list_readings(m.facts.orientation, readings)]

    def predict(
        self,
        battles: object,
        *,
        readings: str | None = None,
        calibrated: bool = True,
        second_reading: float = 1.0,
        time_budget: TimeBudget | None = None,
        **options,
    ) -> pd.DataFrame:
        """Verdicts, one row per battle and in the battles' order.

        Args:
            battles: A table (pandas, `datasets`, Arrow, polars), a list of dicts, a list of tuples (prompt, response_a,
                response_b), or one such dict or tuple. See `read_battles`.
            readings: See `plan_passes`.
            calibrated: Apply the judge's calibration, if it has one and all of its own passes were run.
            second_reading: Share of the battles that get all passes: the most uncertain after their first pass. The
                others keep only that one.
            time_budget: Every battle gets a verdict within it. First passes come before all others; battles that get
                no pass in time have even odds.
            options: For `PassSchedule`: tokens_per_batch, num_workers, progress_dir, start_pack.

        Returns:
            Columns id; p_a, p_b and, if the judge predicts ties, p_tie: the mean over the passes, calibrated if the
            judge is; winner (model_a, model_b or tie); raw_p_a, the uncalibrated mean, if the judge is calibrated;
            p_a_<member>_<order> for each pass, NaN where it was not run; tokens, of the longest pass; cut_prompt,
            cut_response_a, cut_response_b, the most tokens that a pass cut from the field. With three labels also
            raw_p_tie, and p_tie_<member>_<order> for each pass.

        Raises:
            ValueError: If a row is no battle, as `load_battles` raises it for a file.
        """
        check_share("--second_reading", second_reading)
        rows = read_battles(battles).to_list()
        schedule = PassSchedule(self.plan_passes(readings), rows, **options)
        schedule.run(second_reading, time_budget)
        columns = dict(zip(schedule.names, schedule.p, strict=True))
        verdicts = build_verdicts([row["id"] for row in rows], columns, schedule.lengths)
        calibration = self.find_calibration(readings) if calibrated else None
        # The mean over fewer passes has another distribution, and the calibration does not fit it.
        if calibration and np.isnan(schedule.p).any():
            logger.warning("Not calibrated: the calibration was fitted on battles with all passes; some have fewer")
            return verdicts
        return calibrate_verdicts(verdicts, calibration) if calibration else verdicts

    def compare(
        self, prompt: str | Sequence[Mapping], response_a: str, response_b: str, **options: str | bool
    ) -> Verdict:
        """The verdict on two answers to one prompt.

        Args:
            prompt: A text, or a conversation as a list of messages {"role": ..., "content": ...}.
            response_a, response_b: The answers.
            options: As for `predict`.

        Raises:
            ValueError: If a text is blank, or is none.
        """
        battle = dict(zip(TEXTS, (prompt, response_a, response_b), strict=True))
        # Of a single battle nobody can tell a text that looks like a list of turns from such a list.
        return explain_verdict(self.predict(read_battles(battle, schema="unlabelled"), **options), battle)

    def rank(
        self,
        prompt: str | Sequence[Mapping],
        responses: Sequence[str],
        *,
        method: str = DEFAULT_RANK_METHOD,
        budget: float | None = None,
        **options,
    ) -> Ranking:
        """The ranking of 2 to 64 answers to one prompt.

        Args:
            prompt: A text, or a conversation as a list of messages {"role": ..., "content": ...}.
            responses: The answers.
            method, budget, options: As for `rank_all`.

        Raises:
            ValueError: If a text is blank, or is none, or there are too few or too many answers.
        """
        row = {"prompt": prompt, "responses": responses}
        return self.rank_all([row], method=method, budget=budget, **options)[0]

    def rank_all(
        self,
        answer_sets: Iterable[Mapping],
        *,
        method: str = DEFAULT_RANK_METHOD,
        budget: float | None = None,
        readings: str | None = None,
        **options,
    ) -> list[Ranking]:
        """The rankings of many answer sets, each {"prompt", "responses"} with or without an "id".

        Each pair of different answers is one battle. Which answer is a depends on the texts alone, so that the order
        of the answers changes no score.

        Args:
            answer_sets: See `check_answer_sets`.
            method: Which pairs to read, see `choose_pairs`.
            budget: Fraction of each answer set's pairs that "active" and "swiss" may read; None: half of them.
            readings, options: As for `predict`. All passes of a pair are run, so there is no second_reading and no
                time_budget.

        Raises:
            ValueError: If a row is no answer set.
        """
        if partial := sorted({"second_reading", "time_budget"} & options.keys()):
            raise ValueError(
                f"Ranking: expected no {' and no '.join(partial)}, which leave passes out; found them. Read fewer "
                'pairs instead, with method="active" and a budget.'
            )

        def predict(battles: list[dict]) -> np.ndarray:
            """The expected score of response_a in each of the battles."""
            # Texts are used unchanged: one that looks like a list of turns is still a text, see `compare`.
            checked = read_battles(battles, schema="unlabelled")
            return share_wins(self.predict(checked, readings=readings, **options))

        num_passes = len(self.plan_passes(readings))
        return rank_answer_sets(predict, check_answer_sets(answer_sets), method, budget, num_passes)

    def find_calibration(self, readings: str | None = None) -> Calibration | None:
        """The judge's calibration; None if it has none or it was fitted on other passes."""
        if self.calibration and self.plan_passes(readings) != self.plan_passes():
            logger.warning_once(f"Not calibrated: the calibration was fitted on --readings {self.readings}")
            return None
        return self.calibration

    def predict_folds(self, battles: Dataset, **options) -> pd.DataFrame:
        """Out-of-fold verdicts: each battle is read only by members that did not train on it.

        Args:
            battles: The members' whole training file. The folds are assigned again from it.
            options: As for `predict`.

        Returns:
            The columns of `predict`, in the battles' order. A member's own columns are NaN where it did not read.
            Never calibrated, because a calibration holds for the mean over all members.

        Raises:
            ValueError: If the members were not trained with folds, if a fold has no member, or if the battles are not
                the training file.
        """
        num_folds, method = self._check_folds()
        folds = np.array(assign_folds(battles, num_folds, method))
        parts = []
        for fold in range(num_folds):
            members = [member for member in self.members if member.facts.training["fold"] == fold]
            held_out = battles.select(np.flatnonzero(folds == fold))
            # With another file or row policy the folds differ, and members would read battles that they trained on.
            fingerprints = {member.facts.training["fold_fingerprint"] for member in members}
            if fingerprints != {fingerprint_fold(held_out)}:
                raise ValueError(
                    f"--folds: expected the battles that fold {fold} of {num_folds} was held out from; found others. "
                    "Give as --battles the first --train_file, with the same --schema and policies."
                )
            parts.append(Judge(members, self.readings).predict(held_out, **options))
        verdicts = pd.concat(parts)
        # Folds have different members, so concat has put the later folds' columns last.
        own = list_pass_columns(verdicts, ties=True)
        names = [name for name in verdicts if name not in own]
        at = names.index("winner") + 1
        return verdicts.set_index("id").loc[battles["id"][:]].reset_index()[[*names[:at], *own, *names[at:]]]

    def _check_folds(self) -> tuple[int, str]:
        """The number and method of the folds that all members were trained with."""
        kinds = {(m.facts.training.get("num_folds"), m.facts.training.get("fold_method")) for m in self.members}
        if len(kinds) > 1 or not (kinds := kinds.pop())[0]:
            raise ValueError("--folds: expected members trained with the same --num_folds; found others in --judge.")
        found = {member.facts.training["fold"] for member in self.members}
        if missing := set(range(kinds[0])) - found:
            raise ValueError(
                f"--folds: expected members of all {kinds[0]} folds; found none of fold "
                f"{', '.join(map(str, sorted(missing)))}. Train them with --fold."
            )
        return kinds


def check_labels(where: str, labels: Mapping[str, Sequence[str]]) -> None:
    """Raises a ValueError unless all members or judges, by name, have the same labels."""
    if len(set(map(tuple, labels.values()))) > 1:
        found = "; ".join(f"{name}: {', '.join(each)}" for name, each in labels.items())
        raise ValueError(
            f"{where}: expected the same labels everywhere, because probabilities are averaged; found {found}. Take "
            "only those that predict ties, or only those that do not."
        )


def check_share(flag: str, share: float) -> None:
    """Raises a ValueError unless 0 <= share <= 1."""
    if not 0 <= share <= 1:
        raise ValueError(f"{flag} {share}: expected a share of the battles, from 0 to 1.")


def read_calibration(facts: JudgeFacts, found: Mapping[str, str]) -> Calibration:
    """The calibration in judge.json.

    Args:
        facts: With a calibration.
        found: Fingerprint of each loaded member, by name.

    Raises:
        ValueError: If it was fitted with other members, or is malformed.
    """
    stored = dict(facts.calibration or {})
    fitted_with = stored.pop("members", None)
    if fitted_with != dict(found):
        raise ValueError(
            f"Judge {', '.join(found)}: expected the members that it was calibrated with ({fitted_with}); found "
            f"others ({dict(found)}). Calibrate it again with evaluate.py, or delete the calibration in {JUDGE_FILE}."
        )
    try:
        return Calibration.from_dict(stored)
    except ValueError as error:
        raise ValueError(f"Judge {', '.join(found)}, {JUDGE_FILE}: {error}") from error


def describe_members(members: Sequence[Member]) -> dict[str, str]:
    """Fingerprint of each member, by name."""
    return {member.name: member.fingerprint for member in members}
