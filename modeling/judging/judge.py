"""A judge: one or more members, each reading battles in its order, averaged into one verdict per battle."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate.logging import get_logger
from datasets import Dataset

from modeling.data.battles import ORIENTATIONS, list_orders
from modeling.data.folds import assign_folds, fingerprint_fold
from modeling.judging.calibration import Calibration
from modeling.judging.loading import Member, find_judge, load_members
from modeling.judging.member import JUDGE_FILE, READINGS, JudgeFacts
from modeling.judging.predictions import build_verdicts, calibrate_verdicts
from modeling.judging.schedule import PassSchedule

logger = get_logger(__name__)


class Judge:
    """Example: `Judge.from_pretrained(["outputs/demo/ab", "outputs/demo/ba"]).predict(battles)`."""

    def __init__(self, members: Sequence[Member], readings: str = "own", calibration: Calibration | None = None):
        if not members:
            raise ValueError("Judge: expected at least one member; found none.")
        self.members, self.readings, self.calibration = list(members), readings, calibration

    @classmethod
    def from_pretrained(
        cls,
        names: str | Path | Sequence[str | Path],
        device: torch.device | None = None,
        *,
        skip_probes: bool = False,
        dtype: str | None = "auto",
        merge: str = "auto",
    ) -> "Judge":
        """Loads members, or whole judges, from folders or Hub ids, with what they need to read battles as in training.

        Args and errors as for `find_judge` and `load_members`.
        """
        names = [str(name) for name in ([names] if isinstance(names, str | Path) else names)]
        found, facts = find_judge(names)
        members = load_members(found, device, skip_probes=skip_probes, dtype=dtype, merge=merge)
        facts = facts or JudgeFacts([member.name for member in members])
        calibration = read_calibration(facts, describe_members(members)) if facts.calibration else None
        return cls(members, facts.readings, calibration)

    def plan_passes(self, readings: str | None = None) -> list[tuple[Member, str]]:
        """The (member, orientation) pairs to read.

        Args:
            readings: "own": each member in the order it was trained in, or both if it was trained in both; "both":
                every member in both orders, which makes p(A, B) = 1 - p(B, A); None: as the judge says of itself.
        """
        readings = self.readings if readings is None else readings
        if readings not in READINGS:
            raise ValueError(f"--readings: expected one of {', '.join(READINGS)}; found {readings!r}.")
        orders = {"own": lambda member: list_orders(member.facts.orientation), "both": lambda _: ORIENTATIONS}[readings]
        return [(member, orientation) for member in self.members for orientation in orders(member)]

    def predict(
        self,
        battles: Dataset | Sequence[Mapping],
        *,
        readings: str | None = None,
        calibrated: bool = True,
        second_reading: float = 1.0,
        deadline: float | None = None,
        later_judges: int = 0,
        **options,
    ) -> pd.DataFrame:
        """Verdicts, one row per battle and in the battles' order.

        Args:
            battles: Rows with id, prompt, response_a, response_b.
            readings: See `plan_passes`.
            calibrated: Apply the judge's calibration, if it has one. It is about all of the judge's own readings.
            second_reading: Share of the battles that get all readings, those whose first one is nearest 1/2; the others
                have their first reading alone.
            deadline: Of `time.monotonic()`: by then there is a verdict on each battle, with as many readings, first
                ones before others, as there was time for.
            later_judges: That share the time with this one's second readings, as in a cascade.
            options: Of `predict_battles`: tokens_per_batch, num_workers, progress_dir.

        Returns:
            Columns id; p_a, p_b, the mean over the readings, calibrated if the judge is; winner (model_a or model_b);
            raw_p_a, the mean itself, if the judge is calibrated; p_a_<member>_<order read> per reading, NaN where it
            was not made; tokens, of the longest reading; cut_prompt, cut_response_a, cut_response_b, the most tokens
            that a reading left out.
        """
        check_share("--second_reading", second_reading)
        rows = [dict(battle) for battle in battles]
        made = PassSchedule(self.plan_passes(readings), rows, **options)
        if second_reading == 1 and deadline is None:
            made.read(np.full(made.p.shape[:2], True))
        else:
            made.read_selected(second_reading, deadline, later_judges)
        columns = dict(zip(made.names, made.p, strict=True))
        verdicts = build_verdicts([row["id"] for row in rows], columns, made.lengths)
        calibration = self.find_calibration(readings) if calibrated else None
        if calibration and np.isnan(made.p).any():
            logger.warning("Not calibrated: this judge's calibration is about battles with all readings")
            return verdicts
        return calibrate_verdicts(verdicts, calibration) if calibration else verdicts

    def find_calibration(self, readings: str | None = None) -> Calibration | None:
        """The judge's calibration, if it has one and it is about these readings."""
        if self.calibration and self.plan_passes(readings) != self.plan_passes():
            logger.warning_once(f"Not calibrated: this judge's calibration is about --readings {self.readings}")
            return None
        return self.calibration

    def predict_folds(self, battles: Dataset, **options) -> pd.DataFrame:
        """Verdicts on the battles that the members were trained on, each by those that did not see it.

        Args:
            battles: The members' training file, whole: the folds are made from it once more.
            options: As for `predict`.

        Returns:
            The columns of `predict`, in the battles' order, never calibrated, as a calibration is about all members
            together; a member's own column is NaN where it did not read.

        Raises:
            ValueError: If the members were not trained with folds, if a fold has none, or if the battles are not those
                that they were trained with.
        """
        num_folds, method = self._check_folds()
        folds = np.array(assign_folds(battles, num_folds, method))
        parts = []
        for fold in range(num_folds):
            members = [member for member in self.members if member.facts.training["fold"] == fold]
            held_out = battles.select(np.flatnonzero(folds == fold))
            fingerprints = {member.facts.training["fold_fingerprint"] for member in members}
            if fingerprints != {fingerprint_fold(held_out)}:
                raise ValueError(
                    f"--folds: expected the battles that fold {fold} of {num_folds} was held out from; found others. "
                    "Give as --battles the first --train_file, with the same --schema and policies."
                )
            parts.append(Judge(members, self.readings).predict(held_out, **options))
        verdicts = pd.concat(parts)
        own = [name for name in verdicts if name.startswith("p_a_")]
        names = [name for name in verdicts if name not in own]
        at = names.index("winner") + 1
        return verdicts.set_index("id").loc[battles["id"][:]].reset_index()[[*names[:at], *own, *names[at:]]]

    def _check_folds(self) -> tuple[int, str]:
        """Number and method of the folds that the members were trained with."""
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


def check_share(flag: str, share: float) -> None:
    """Raises a ValueError if a share of the battles is none."""
    if not 0 <= share <= 1:
        raise ValueError(f"{flag} {share}: expected a share of the battles, from 0 to 1.")


def read_calibration(facts: JudgeFacts, found: Mapping[str, str]) -> Calibration:
    """The calibration in judge.json.

    Args:
        found: The fingerprint of each member by its name.

    Raises:
        ValueError: If it was fitted with other members than these, or is none.
    """
    stored = dict(facts.calibration or {})
    fitted_with = stored.pop("members", None)
    if fitted_with != dict(found):
        raise ValueError(
            f"Judge {', '.join(found)}: expected the members that it was calibrated with ({fitted_with}); found "
            f"others ({dict(found)}). Calibrate it again with evaluate.py, or take it out of {JUDGE_FILE}."
        )
    try:
        return Calibration.from_dict(stored)
    except ValueError as error:
        raise ValueError(f"Judge {', '.join(found)}, {JUDGE_FILE}: {error}") from error


def describe_members(members: Sequence[Member]) -> dict[str, str]:
    """The fingerprint of each member by its name."""
    return {member.name: member.fingerprint for member in members}
