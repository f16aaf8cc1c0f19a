"""Provenance of predictions: the judge that made them, its passes and calibration, the battles, and the versions.

predictions.parquet holds it as metadata beside its columns, and report.json as "judge", so that nobody's figures can be
published as another judge's. How a judge reads is not known here.
"""

import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

import pandas as pd

from modeling.judging.calibration import Calibration
from modeling.judging.cascade import Cascade
from modeling.judging.judge import Judge, describe_members
from modeling.judging.member import MemberFacts, fingerprint_member, list_readings
from modeling.judging.predictions import RAW, list_pass_columns
from modeling.runtime.files import describe_file
from modeling.runtime.packages import find_version
from modeling.runtime.paths import describe_command

VERSIONS = ("bothways", "torch", "transformers", "peft")


def describe_predictions(
    judge: Judge | Cascade,
    verdicts: pd.DataFrame,
    battles: str,
    readings: str | None = None,
    *,
    hide_prompts: bool = False,
) -> dict:
    """Describes predictions as JSON values that do not depend on the number of processes, on restarts or on the date.

    Args:
        judge: What made them.
        verdicts: What its `predict` returned.
        battles: The source of the battles, as the user named it.
        readings, hide_prompts: As they were predicted.

    Returns:
        `name`, of the judge, as in the command; `members`, the fingerprint of each by name; `passes`, as member:order;
        `calibration`, as `Calibration.to_dict`, or None; `incomplete`, the battles without all passes;
        `cascade_shares`, None without a cascade; `hide_prompts`; `battles`, see `describe_file`; `versions`.
    """
    cascade = isinstance(judge, Cascade)
    return {
        **describe_passes(judge, None if cascade or RAW not in verdicts else judge.calibration, battles, readings),
        "incomplete": int(verdicts[list_pass_columns(verdicts)].isna().any(axis=1).sum()),
        "cascade_shares": list(judge.shares) if cascade else None,
        "hide_prompts": hide_prompts,
    }


def describe_passes(
    judge: Judge | Cascade, calibration: Calibration | None, source: str, readings: str | None = None
) -> dict:
    """Describes who read a source how, as JSON values: the keys of `describe_predictions` that are not of battles."""
    judges = judge.judges if isinstance(judge, Cascade) else [judge]
    plan = [one_pass for each in judges for one_pass in each.plan_passes(readings)]
    return {
        "name": judge.name,
        "members": describe_members([member for each in judges for member in each.members]),
        "passes": [f"{member.name}:{orientation}" for member, orientation in plan],
        "calibration": calibration and calibration.to_dict(),
        "battles": describe_file(source),
        "versions": {name: find_version(name) for name in VERSIONS},
    }


def describe_evaluation() -> dict:
    """Describes the running evaluation as JSON values: `date` (UTC), `command` and `versions`."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": describe_command(sys.argv, "python"),
        "versions": {name: find_version(name) for name in VERSIONS} | {"python": platform.python_version()},
    }


def check_provenance(
    where: str, found: Mapping | None, members: Mapping[str, MemberFacts], readings: str, calibration: Mapping | None
) -> None:
    """Checks that results are those of a judge as it is published: all its passes on whole battles, calibrated alike.

    Args:
        where: Names the results, for errors.
        found: What `describe_predictions` returned when they were made; None if nobody recorded it.
        members: Facts of the judge's members by name. Names may differ from those in `found`; fingerprints decide.
        readings: Orders that the judge reads, see `list_readings`.
        calibration: The judge's, as `Calibration.to_dict` wrote it; None if it is not calibrated.

    Raises:
        ValueError: If they are not.
    """
    way_out = (
        "Evaluate what you publish, with evaluate.py --judge and the same members, --readings and calibration, and "
        "give that folder."
    )
    if not found:
        raise ValueError(f"{where}: expected the fingerprint of the judge it is about; found none. {way_out}")
    prints = {name: fingerprint_member(facts) for name, facts in members.items()}
    passes = [f"{name}:{o}" for name, facts in members.items() for o in list_readings(facts.orientation, readings)]
    try:
        difference = next(_find_differences(found, prints, passes, calibration), None)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: expected a judge as evaluate.py records it; found {error!r}. {way_out}") from error
    if difference:
        raise ValueError(f"{where}: expected {difference[0]}; found {difference[1]}. {way_out}")


def _find_differences(
    found: Mapping, prints: Mapping[str, str], passes: Sequence[str], calibration: Mapping | None
) -> Iterator[tuple[str, str]]:
    """Yields what was expected and what was found, for each difference between recorded results and a judge."""
    theirs = found["members"]
    if sorted(theirs.values()) != sorted(prints.values()):
        yield f"results of {_list_prints(prints)}", f"those of {_list_prints(theirs)}"
    if found["cascade_shares"] is not None:
        yield "results of one judge", "a cascade's"
    if _identify_passes(found["passes"], theirs) != _identify_passes(passes, prints):
        yield f"results of the passes {', '.join(passes)}", ", ".join(found["passes"])
    if found["calibration"] != calibration:
        said = ["an uncalibrated judge", "a calibrated judge"]
        other = "another calibration" if calibration and found["calibration"] else said[bool(found["calibration"])]
        yield f"results of {said[bool(calibration)]}, as it is published", f"those of {other}"
    if found["incomplete"]:
        yield "results of all passes on each battle", f"{found['incomplete']} battles without some of them"
    if found["hide_prompts"]:
        yield "results on whole battles", "hidden prompts"


def _list_prints(prints: Mapping[str, str]) -> str:
    """Lists members with their fingerprints."""
    return ", ".join(f"{name} ({fingerprint})" for name, fingerprint in prints.items())


def _identify_passes(passes: Sequence[str], prints: Mapping[str, str]) -> list[tuple[str, str]]:
    """The passes by fingerprint and order, because publishing may rename a member."""
    return sorted((prints[name], order) for name, _, order in (each.rpartition(":") for each in passes))
