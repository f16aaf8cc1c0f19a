"""A cascade: judges of growing cost, each reading only the battles of which the one before is least sure."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from accelerate.logging import get_logger
from datasets import Dataset

from modeling.judging.judge import Judge, check_share
from modeling.judging.loading import name_member
from modeling.judging.predictions import replace_verdicts
from modeling.runtime.distributed import call_on_main

logger = get_logger(__name__)


def _is_over(deadline: float) -> bool:
    return time.monotonic() >= deadline


class Cascade:
    """Example: `Cascade([small, large], [0.2]).predict(battles)`: the large judge decides a fifth of the battles."""

    def __init__(self, judges: Sequence[Judge], shares: Sequence[float]):
        """
        Args:
            judges: At least one; the first one reads every battle.
            shares: Of all battles, for each later judge: it reads those whose p is nearest 1/2, and its verdict counts.
        """
        if len(shares) != len(judges) - 1:
            raise ValueError(
                f"--cascade_shares {' '.join(map(str, shares))}: expected a share for each of the {len(judges) - 1} of "
                f"--cascade; found {len(shares)}. Give one each."
            )
        for share in shares:
            check_share("--cascade_shares", share)
        taken: list[str] = []
        self.judges, self.shares = [], list(shares)
        for judge in judges:
            members = []
            for member in judge.members:
                taken.append(name_member(member.name, taken))
                members.append(replace(member, name=taken[-1]))
            self.judges.append(Judge(members, judge.readings, judge.calibration))

    def predict(
        self,
        battles: Dataset | Sequence[Mapping],
        *,
        deadline: float | None = None,
        progress_dir: Path | None = None,
        **options,
    ) -> pd.DataFrame:
        """Verdicts, one row per battle and in the battles' order.

        Args:
            deadline: Of `time.monotonic()`, shared out: what the first judge's reading of all leaves is divided evenly
                among what is left to do, its second readings and each later judge.
            progress_dir, options: As for `Judge.predict`.

        Returns:
            The columns of `Judge.predict`, with the readings of all judges.
        """
        rows = [dict(battle) for battle in battles]
        verdicts = self._predict(0, rows, deadline, progress_dir, options)
        for index, share in enumerate(self.shares, 1):
            if deadline is not None and call_on_main(_is_over, deadline):
                logger.warning(f"Time budget: no time for {self._name(index)}")
                break
            doubt = np.argsort((verdicts["p_a"] - 0.5).abs().round(6).to_numpy(), kind="stable")
            chosen = np.sort(doubt[: round(share * len(rows))])
            found = self._predict(index, [rows[row] for row in chosen], deadline, progress_dir, options)
            own = [name for name in found if name.startswith("p_a_")]
            read = found[own].notna().any(axis=1).to_numpy()
            verdicts = replace_verdicts(verdicts, chosen[read], found[read])
            logger.info(f"{self._name(index)} decides {read.sum()} of {len(rows)} battles")
        return verdicts

    def _predict(
        self, index: int, rows: list[dict], deadline: float | None, progress_dir: Path | None, options: dict
    ) -> pd.DataFrame:
        """One judge's verdicts, within its part of the time."""
        if deadline is not None:
            later, now = len(self.judges) - 1 - index, time.monotonic()
            if index:  # the first one's first readings may take what they need: without them there are no verdicts
                deadline = now + (deadline - now) / (1 + later)
            options = options | {"deadline": deadline, "later_judges": 0 if index else later}
        return self.judges[index].predict(rows, progress_dir=progress_dir and progress_dir / str(index), **options)

    def _name(self, index: int) -> str:
        return " and ".join(member.name for member in self.judges[index].members)
