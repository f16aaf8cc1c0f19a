"""A cascade: judges of growing cost, each reading only the battles that the judges before it are least certain of."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset

from modeling.data.battles import read_battles
from modeling.evaluation.report import stack_probabilities
from modeling.judging.judge import Judge, check_labels, check_share
from modeling.judging.loading import name_member
from modeling.judging.predictions import list_pass_columns, replace_verdicts, sort_by_uncertainty
from modeling.judging.time_budget import TimeBudget
from modeling.runtime.logs import build_logger

logger = build_logger(__name__)


class Cascade:
    """Judges that are asked in turn, each about fewer battles.

    Example: `Cascade([small, large], [0.2]).predict(battles)`: the large judge decides a fifth of the battles.
    """

    def __init__(self, judges: Sequence[Judge], shares: Sequence[float]):
        """
        Args:
            judges: At least one; the first one reads every battle.
            shares: For each later judge, its share of all battles: it reads the most uncertain ones and decides them.

        Raises:
            ValueError: If the number of shares is wrong, a share is not between 0 and 1, or some judges predict ties
                and others do not.
        """
        if len(shares) != len(judges) - 1:
            raise ValueError(
                f"--cascade_shares {' '.join(map(str, shares))}: expected a share for each of the {len(judges) - 1} of "
                f"--cascade; found {len(shares)}. Give one each."
            )
        for share in shares:
            check_share("--cascade_shares", share)
        check_labels("--cascade", {judge.name: judge.outcomes for judge in judges})
        # Members name the columns of the result, so a name must be unique in the whole cascade.
        taken: list[str] = []
        self.judges, self.shares = [], list(shares)
        for judge in judges:
            members = []
            for member in judge.members:
                taken.append(name_member(member.name, taken))
                members.append(replace(member, name=taken[-1]))
            self.judges.append(Judge(members, judge.readings, judge.calibration, judge.name))
        self.name = ", then ".join(judge.name for judge in judges)

    def predict(
        self,
        battles: object,
        *,
        time_budget: TimeBudget | None = None,
        progress_dir: Path | None = None,
        **options,
    ) -> pd.DataFrame:
        """Verdicts, one row per battle and in the battles' order.

        Args:
            battles: As for `Judge.predict`.
            time_budget: The first judge's first passes may use all of it. What they leave is divided evenly among that
                judge's other passes and the later judges.
            progress_dir, options: As for `Judge.predict`.

        Returns:
            The columns of `Judge.predict`, with the passes of all judges.
        """
        battles = read_battles(battles)
        verdicts = self._predict(0, battles, time_budget, progress_dir, options)
        # Two equal answers have even odds, and no judge can do better.
        differ = [a != b for a, b in zip(battles["response_a"][:], battles["response_b"][:], strict=True)]
        for index, share in enumerate(self.shares, 1):
            if time_budget is not None and time_budget.is_over():
                logger.warning(f"Time budget: no time for {self._name(index)}")
                break
            uncertain = sort_by_uncertainty(stack_probabilities(verdicts))
            open_rows = [row for row in uncertain if differ[row]]
            chosen = np.sort(np.array(open_rows[: round(share * len(battles))], dtype=int))
            found = self._predict(index, battles.select(chosen), time_budget, progress_dir, options)
            # Within a time budget some of them may have no pass; their even odds must not replace a verdict.
            read = found[list_pass_columns(found)].notna().any(axis=1).to_numpy()
            verdicts = replace_verdicts(verdicts, chosen[read], found[read])
            logger.info(f"{self._name(index)} decides {read.sum()} of {len(battles)} battles")
        return verdicts

    def _predict(
        self, index: int, battles: Dataset, time_budget: TimeBudget | None, progress_dir: Path | None, options: dict
    ) -> pd.DataFrame:
        """One judge's verdicts, within its part of the time."""
        if time_budget is not None:
            parts = len(self.judges) - index
            # The first judge's first passes are not limited to a part: without them there are no verdicts.
            time_budget = time_budget.share(parts) if index else replace(time_budget, parts=parts)
        progress_dir = progress_dir and progress_dir / str(index)
        return self.judges[index].predict(battles, time_budget=time_budget, progress_dir=progress_dir, **options)

    def _name(self, index: int) -> str:
        """A judge's members, for messages."""
        return " and ".join(member.name for member in self.judges[index].members)


def load_judges(
    judge: Sequence[str], cascade: Sequence[str] | None, shares: Sequence[float] | None, **options
) -> Judge | Cascade:
    """A judge, or a cascade that starts with it.

    Args:
        judge: Folders or Hub ids of the members of one judge.
        cascade: Folder or Hub id of each later judge, if there are any.
        shares: See `Cascade`; needed only with one.
        options: For `Judge.from_pretrained`.
    """
    first = Judge.from_pretrained(judge, **options)
    if not cascade:
        return first
    return Cascade([first, *(Judge.from_pretrained(name, **options) for name in cascade)], shares)
