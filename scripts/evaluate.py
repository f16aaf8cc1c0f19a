"""Evaluates predictions: prints a table, and writes report.json, report.html and pictures to --output_dir.

python scripts/evaluate.py                                          # configs/demo/evaluate.yaml, after predict.py
python scripts/evaluate.py --predictions outputs/p/predictions.parquet --battles test.parquet --output_dir outputs/e
python scripts/evaluate.py --judge outputs/demo/ab outputs/demo/ba --battles test.parquet --output_dir outputs/e
python scripts/evaluate.py --judge default --benchmark rewardbench --output_dir outputs/e
python scripts/evaluate.py --judge default --battles all.parquet --votes some.parquet --output_dir outputs/e
"""

from importlib.util import find_spec

if find_spec("modeling") is None:
    raise SystemExit("Bothways is not installed in this Python: run `make install`, then use .venv/bin/python.")

import logging
import shutil
from pathlib import Path

from modeling.runtime.startup import run_script
from modeling.settings.evaluate_arguments import EvaluateArguments
from modeling.settings.parsing import parse_arguments

logger = logging.getLogger("bothways.evaluate")


def main() -> None:
    (arguments,) = parse_arguments(EvaluateArguments, verb="evaluate")
    # Imported here because torch and transformers take seconds; a mistake on the command line is reported before that.
    from accelerate import PartialState

    from modeling.evaluation.text_report import conclude, format_report, list_failures
    from modeling.judging import scoring
    from modeling.judging.predictions import PREDICTIONS_FILE, write_predictions
    from modeling.judging.recalibration import save_calibration
    from modeling.runtime.distributed import call_on_main
    from modeling.runtime.files import name_progress, replace_folder, write_json

    state = PartialState(cpu=arguments.use_cpu)
    output = Path(arguments.output_dir)
    call_on_main(scoring.check_output, output, arguments)
    judged = scoring.load_judged(arguments)
    scoring.check_columns(arguments, judged)
    battles = scoring.load_scored(arguments, judged)
    judge = scoring.load_judge(arguments)
    others = scoring.load_others(arguments, judge, judged) if arguments.calibrate else None
    verdicts = scoring.find_verdicts(arguments, judge, judged)
    answers_alone = scoring.find_answers_alone(arguments, judge, judged)
    found = scoring.fit_calibration(arguments, judge, *others) if others else None
    if not state.is_main_process:
        return
    verdicts = scoring.calibrate(arguments, verdicts, found)
    if answers_alone is not None:
        answers_alone = scoring.calibrate(arguments, answers_alone, found)
    scored = scoring.select_scored(judged, verdicts, battles)
    provenance = scoring.describe_verdicts(arguments, judge, verdicts, found)
    calibration = found or (judge and judge.calibration)
    report = scoring.evaluate_verdicts(arguments, scored, calibration, provenance, answers_alone)
    with replace_folder(output, scoring.REPORT_FILE) as folder:
        if judge:
            write_predictions(folder / PREDICTIONS_FILE, verdicts, provenance)
        if found:
            write_json(folder / "calibration.json", found.to_dict())
        if arguments.style_control:
            controlled, report["style_control"] = scoring.control_style(arguments, scored)
            controlled.to_parquet(folder / "style_controlled.parquet", index=False)
        num_pictures = scoring.write_report(folder, arguments, report, scored)
    shutil.rmtree(name_progress(output), ignore_errors=True)
    print(format_report(report))
    logger.info(f"Written: {output / scoring.REPORT_FILE}, {output / 'report.html'}, {num_pictures} pictures")
    if found and arguments.save_calibration:
        save_calibration(arguments.judge, judge, arguments.readings or judge.readings, found)
    print(f"\n{conclude(report, str(output / 'report.html'))}")
    if failures := list_failures(report):
        logger.error("\n".join(failures))
        raise SystemExit(1)


if __name__ == "__main__":
    run_script(main)
