"""The steps of evaluate.py: gets verdicts from a judge or a file, fits a calibration on other battles, and evaluates.

What the numbers mean, and how they are drawn, is in evaluation/.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
from datasets import Dataset

from modeling.data.battles import TEXTS, hide_prompts, load_battles
from modeling.data.benchmarks import load_benchmark
from modeling.data.outcomes import WITH_TIE
from modeling.evaluation.benchmarks import score_benchmark
from modeling.evaluation.html_report import build_page, list_wrong_battles
from modeling.evaluation.metrics import check_bounds
from modeling.evaluation.plots import draw_figures
from modeling.evaluation.report import (
    align_verdicts,
    build_comparison,
    build_metrics,
    build_report,
    combine_votes,
    find_rows,
    group_battles,
    read_labels,
    remove_style,
    stack_probabilities,
)
from modeling.evaluation.text_report import METRIC_NAMES, PAIR, doubt_calibration
from modeling.judging.calibration import Calibration, add_intervals, fit_labels
from modeling.judging.judge import Judge
from modeling.judging.member import locate_judge
from modeling.judging.predictions import (
    PREDICTIONS_FILE,
    RAW,
    calibrate_verdicts,
    halve_verdicts,
    read_provenance,
    take_raw,
)
from modeling.judging.provenance import describe_evaluation, describe_predictions
from modeling.judging.ranking import score_all_pairs
from modeling.judging.recalibration import (
    check_not_fitted_on,
    check_not_trained_on,
    check_own_passes,
    check_passes,
    find_unscored,
)
from modeling.runtime.distributed import call_on_main
from modeling.runtime.files import check_replaceable, describe_file, name_progress, write_json
from modeling.runtime.logs import build_logger
from modeling.runtime.paths import check_predictions
from modeling.settings.evaluate_arguments import EvaluateArguments

logger = build_logger("bothways.evaluate")

REPORT_FILE = "report.json"
OWN_TABLES = ("length", "cut", PAIR)


def check_output(output: Path, arguments: EvaluateArguments) -> None:
    """Raises a ValueError if the output cannot be written, before minutes are spent on it."""
    check_replaceable(output, REPORT_FILE)
    if arguments.answers_alone not in (None, "judge"):
        check_predictions(arguments.answers_alone)
    names = (
        "battles",
        "benchmark_file",
        "predictions",
        "against",
        "votes",
        "answers_alone",
        "train_file",
        "calibrate_predictions",
        "calibrate_battles",
    )
    for name in names:
        path = vars(arguments)[name]
        read = not (arguments.judge and name == "predictions")  # with --judge, --predictions is ignored
        if path and read and output.resolve() in Path(path).resolve().parents:
            raise ValueError(
                f"--output_dir {output}: expected a folder without inputs, because it is replaced as a whole; found "
                f"--{name} {path}. Move that file, or write elsewhere."
            )


@dataclass(frozen=True)
class Scored:
    """The scored battles and their verdicts, and all that were judged: the same ones, or with --votes more."""

    battles: Dataset
    verdicts: pd.DataFrame
    all_battles: Dataset
    all_verdicts: pd.DataFrame


def take_scored(verdicts: pd.DataFrame, battles: Dataset) -> pd.DataFrame:
    """The verdicts on these battles."""
    return verdicts[verdicts["id"].astype(str).isin(map(str, battles["id"][:]))]


def select_scored(judged: Dataset, verdicts: pd.DataFrame, battles: Dataset) -> Scored:
    """What is scored of the judged battles and their verdicts: `battles`, which have outcomes."""
    return Scored(battles, take_scored(verdicts, battles), judged, verdicts)


def load_judged(arguments: EvaluateArguments) -> Dataset:
    """The battles to judge: those of --battles, or of --benchmark."""
    if arguments.benchmark:
        return load_benchmark(arguments.benchmark, arguments.source)
    return load_battles(arguments.battles, require_labels=not arguments.votes, labels=WITH_TIE, **arguments.row_policy)


def check_columns(arguments: EvaluateArguments, battles: Dataset) -> None:
    """Raises a ValueError if a column of --by does not exist, or cannot be a table of its own."""
    if taken := [name for name in arguments.by or () if name in (*TEXTS, *OWN_TABLES)]:
        raise ValueError(
            f"--by {' '.join(taken)}: expected a column of few values; found a text, which no report may hold, or a "
            "table that every report has. Leave it out."
        )
    if missing := [name for name in arguments.by or () if name not in battles.column_names]:
        found = ", ".join(battles.column_names)
        raise ValueError(f"--by {' '.join(missing)}: expected columns of {arguments.source}; found {found}.")


def load_judge(arguments: EvaluateArguments) -> Judge | None:
    """The judge that will read the battles; None without --judge."""
    if not arguments.judge:
        return None
    if arguments.save_calibration:
        call_on_main(locate_judge, arguments.judge)  # fails now, not after the evaluation
    if arguments.predictions:
        logger.info(f"--judge reads the battles; --predictions {arguments.predictions} is ignored")
    judge = Judge.from_pretrained(arguments.judge, **arguments.loading)
    if arguments.save_calibration and not arguments.readings:
        check_own_passes(arguments.judge, judge)
    if arguments.calibrated and not arguments.calibrate:
        for flag in ("battles", "votes", "benchmark_file"):
            if path := vars(arguments)[flag]:
                check_not_fitted_on(judge, path, f"--{flag}")
    return judge


def run_judge(arguments: EvaluateArguments, judge: Judge, battles: Dataset, calibrated: bool = True) -> pd.DataFrame:
    """The judge's verdicts on the battles."""
    return judge.predict(
        battles,
        readings=arguments.readings,
        calibrated=calibrated and arguments.calibrated,
        tokens_per_batch=arguments.tokens_per_batch,
        progress_dir=name_progress(Path(arguments.output_dir)),
    )


def read_verdicts(path: str, battles: Dataset) -> pd.DataFrame:
    """Verdicts from a predictions file, in the battles' order."""
    check_predictions(path)
    try:
        verdicts = pd.read_parquet(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"Predictions {path}: expected a parquet file; found {error}.") from error
    return align_verdicts(verdicts, battles, f"Predictions {path}")


def load_scored(arguments: EvaluateArguments, judged: Dataset) -> Dataset:
    """The judged battles to score: those with a vote, and the vote as label; without --votes all of them."""
    if not arguments.votes:
        return judged
    votes = load_battles(arguments.votes, require_labels=True, labels=WITH_TIE, **arguments.row_policy)
    voted = judged.select(find_rows(votes, judged))
    kept = voted.remove_columns([name for name in ("label",) if name in voted.column_names])
    return kept.add_column("label", votes["label"][:])


def find_verdicts(arguments: EvaluateArguments, judge: Judge | None, battles: Dataset) -> pd.DataFrame:
    """Verdicts on the battles, read by the judge or taken from --predictions."""
    return run_judge(arguments, judge, battles) if judge else read_verdicts(arguments.predictions, battles)


def find_answers_alone(arguments: EvaluateArguments, judge: Judge | None, battles: Dataset) -> pd.DataFrame | None:
    """Verdicts on the battles without their prompts, read by the judge or taken from a file; None if not asked for."""
    if arguments.answers_alone == "judge":
        return run_judge(arguments, judge, hide_prompts(battles))
    return read_verdicts(arguments.answers_alone, battles) if arguments.answers_alone else None


def load_others(arguments: EvaluateArguments, judge: Judge | None, battles: Dataset) -> tuple[Dataset, list[int]]:
    """The battles to calibrate on, and the rows of them whose prompt is not scored."""
    path = arguments.calibrate_battles
    if not arguments.calibrate_predictions:  # those may be out-of-fold, and then of the training file
        check_not_trained_on(judge, path)
    others = load_battles(path, require_labels=True, labels=WITH_TIE, **arguments.row_policy)
    return others, find_unscored(others, battles, f"--calibrate_battles {path}")


def fit_calibration(arguments: EvaluateArguments, judge: Judge | None, others: Dataset, rows: list[int]) -> Calibration:
    """A calibration fitted on other battles, read by the judge or taken from --calibrate_predictions."""
    path = arguments.calibrate_predictions
    if path:
        verdicts = read_verdicts(path, others).iloc[rows]
        if arguments.save_calibration:
            check_passes(verdicts, judge, arguments.readings, f"--calibrate_predictions {path}")
    else:
        verdicts = run_judge(arguments, judge, others.select(rows), calibrated=False)
    p, labels = stack_probabilities(take_raw(verdicts)), read_labels(others, len(WITH_TIE))[rows]
    calibration = fit_labels(arguments.calibrate, p, labels, ties=arguments.calibrate_ties)
    calibration = replace(calibration, fitted_on=describe_file(arguments.calibrate_battles))
    return add_intervals(calibration, p, labels, group_battles(others.select(rows))[0])


def calibrate(arguments: EvaluateArguments, verdicts: pd.DataFrame, found: Calibration | None) -> pd.DataFrame:
    """Verdicts with the fitted calibration, with the judge's own, or with none, as asked."""
    if found or not arguments.calibrated:
        verdicts = take_raw(verdicts)
    return calibrate_verdicts(verdicts, found) if found else verdicts


def describe_verdicts(
    arguments: EvaluateArguments, judge: Judge | None, verdicts: pd.DataFrame, found: Calibration | None
) -> dict | None:
    """The provenance of the verdicts as they are scored; None for a file of predictions that has none."""
    if judge:
        provenance = describe_predictions(judge, verdicts, arguments.source, arguments.readings)
    else:
        provenance = read_provenance(arguments.predictions)
    if provenance is None or RAW not in verdicts:
        return provenance and provenance | {"calibration": None}
    return provenance | ({"calibration": found.to_dict()} if found else {})


def evaluate_verdicts(
    arguments: EvaluateArguments,
    scored: Scored,
    calibration: Calibration | None,
    provenance: dict | None,
    answers_alone: pd.DataFrame | None = None,
) -> dict:
    """The report, with the verdicts' provenance, the comparison, the calibration, the votes and the input files."""
    bootstrap = {"draws": arguments.draws, "seed": arguments.seed}
    train_battles = load_training(arguments, scored.all_battles) if arguments.train_file else None
    others = {"train_battles": train_battles, "by": arguments.by or ()}
    others |= {"answers_alone": None if answers_alone is None else take_scored(answers_alone, scored.battles)}
    report = {"run": {"judge": find_judge_name(provenance, arguments.predictions)} | describe_evaluation()}
    report |= {"judge": provenance} if provenance else {}
    report |= build_report(scored.verdicts, scored.battles, **others, **bootstrap)
    if arguments.benchmark:
        aligned = align_verdicts(scored.verdicts, scored.battles)
        report["benchmark"] = score_benchmark(
            arguments.benchmark, scored.battles, aligned, score_all_pairs, **bootstrap
        )
    if arguments.votes:
        report["votes"] = combine_votes(scored.all_verdicts, scored.all_battles, scored.battles, **bootstrap)
    if bounds := arguments.read_bounds():
        report["bounds"] = check_bounds(report, bounds)
    if RAW in scored.verdicts:
        # A file of predictions records the calibration of one judge; that of a cascade is not known.
        facts = calibration.to_dict() if calibration else (provenance or {}).get("calibration")
        report["calibration"] = (facts or {"method": "the judge's own"}) | compare_with_raw(arguments, scored, report)
        if doubt := doubt_calibration(report["calibration"]):
            logger.warning(doubt)
    if arguments.against:
        report["comparison"] = compare_with_others(arguments, scored, report["run"]["judge"])
    return report | {"data": describe_sources(arguments)}


def compare_with_raw(arguments: EvaluateArguments, scored: Scored, report: dict) -> dict[str, dict]:
    """The metrics before and after calibration, of which the report has those after."""
    bootstrap = {"draws": arguments.draws, "seed": arguments.seed}
    raw, after = take_raw(scored.verdicts), report
    if "p_tie" in scored.verdicts and "p_tie" not in raw:  # both are scored as before, without ties
        after = build_metrics(halve_verdicts(scored.verdicts), scored.battles, **bootstrap)
    before = build_metrics(raw, scored.battles, **bootstrap)
    return {"before": before, "after": {name: after[name] for name in METRIC_NAMES}}


def compare_with_others(arguments: EvaluateArguments, scored: Scored, ours: str) -> dict:
    """The comparison of a judge of this name with the one of --against."""
    against = take_scored(read_verdicts(arguments.against, scored.all_battles), scored.battles)
    theirs = read_provenance(arguments.against) or {}
    name = find_judge_name(theirs, arguments.against)
    name += " (--against)" * (name == ours)  # such as one judge with other --readings
    comparison = build_comparison(scored.verdicts, against, scored.battles, draws=arguments.draws, seed=arguments.seed)
    return {"name": name, "members": theirs.get("members", {})} | comparison


def describe_sources(arguments: EvaluateArguments) -> dict[str, dict]:
    """The name and SHA-256 of each input file, by its role."""
    sources = {"battles": arguments.source, "predictions": None if arguments.judge else arguments.predictions}
    sources |= {"against": arguments.against, "votes": arguments.votes, "training": arguments.train_file}
    sources |= {"answers alone": None if arguments.answers_alone == "judge" else arguments.answers_alone}
    sources |= {"calibration": arguments.calibrate_battles}
    return {role: describe_file(path) for role, path in sources.items() if path}


def control_style(arguments: EvaluateArguments, scored: Scored) -> tuple[pd.DataFrame, dict]:
    """All verdicts without their style term, and the metrics before and after."""
    controlled = remove_style(scored.all_verdicts, scored.all_battles)
    before, after = (
        build_metrics(each, scored.battles, draws=arguments.draws, seed=arguments.seed)
        for each in (halve_verdicts(scored.verdicts), take_scored(controlled, scored.battles))
    )
    return controlled, {"before": before, "after": after}


def write_report(folder: Path, arguments: EvaluateArguments, report: dict, scored: Scored) -> int:
    """Writes report.json, report.html and the pictures, and returns how many pictures there are."""
    pictures = draw_figures(report, folder / "figures")
    title = f"Evaluation of {report['run']['judge']} on {report['data']['battles']['name']}"
    wrong = list_wrong_battles(scored.verdicts, scored.battles, arguments.show_battles)
    page = build_page(report, pictures, battles=wrong, title=title)
    (folder / "report.html").write_text(page, encoding="utf-8")
    write_json(folder / REPORT_FILE, report)
    return len(pictures)


def find_judge_name(provenance: dict | None, predictions: str | None) -> str:
    """The name of the judge as its predictions record it, or else that of their file."""
    if provenance and "name" in provenance:
        return provenance["name"]
    # predict.py names every file alike, so that its folder says whose predictions they are.
    path = Path(predictions)
    return path.resolve().parent.name if path.name == PREDICTIONS_FILE else path.name


def load_training(arguments: EvaluateArguments, battles: Dataset) -> Dataset:
    """Training battles for the baselines that learn; a ValueError if any of them is scored."""
    train_battles = load_battles(arguments.train_file, require_labels=True, labels=WITH_TIE, **arguments.row_policy)
    if shared := set(map(str, train_battles["id"][:])) & set(map(str, battles["id"][:])):
        raise ValueError(
            f"--train_file {arguments.train_file}: expected no scored battle; found {len(shared)}: "
            f"{', '.join(sorted(shared)[:5])}{' and more' * (len(shared) > 5)}. Give the judge's training file."
        )
    return train_battles
