"""Ties as a third outcome, from battles to report: the commands of docs/training.md on a tiny base, and their laws."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from sklearn.metrics import log_loss

from modeling.data.battles import load_battles, swap_responses
from modeling.data.outcomes import LABELS, WITH_TIE, list_mirrored
from modeling.judging.judge import Judge
from modeling.judging.member import read_member
from modeling.judging.predictions import build_submission
from modeling.judging.rewards import PairwiseReward
from modeling.serving.server import ServedJudge
from tests.helpers import LAUNCH, LAUNCHERS, REPOSITORY, SAMPLES, TRAINING, call, fail, succeed, write_rows
from tests.judging.test_loading import declare
from tests.serving.test_api import LIMITS, send

pytestmark = pytest.mark.usefixtures("quick")

P = ["p_a", "p_b", "p_tie"]
TOLERANCE = 1e-5  # float32


def write_battles(path: Path, name: str, count: int) -> Path:
    """Battles of the samples of which every third is a tie, with LMSYS's three outcome columns."""
    rows = load_battles(SAMPLES / f"{name}.jsonl").select(range(count)).to_list()
    for number, row in enumerate(rows):
        outcome = ("a", "b", "tie")[number % 3]
        del row["label"]
        row |= {f"winner_model_{side}": int(outcome == side) for side in LABELS} | {"winner_tie": int(outcome == "tie")}
    return write_rows(path, rows)


@pytest.fixture(scope="module")
def made(tmp_path_factory, plain_backbone, quick) -> Path:
    """The folder in which the commands of the section Ties have run, with the names in them replaced."""
    folder = tmp_path_factory.mktemp("ties")
    files = {
        "google/gemma-2-9b-it": plain_backbone,
        "mine.parquet": write_battles(folder / "mine.parquet", "train", 24),
        "test.parquet": write_battles(folder / "test.parquet", "test", 24),
        "others.parquet": write_battles(folder / "others.parquet", "train", 48),
    }
    section = (
        (REPOSITORY / "docs" / "training.md").read_text(encoding="utf-8").split("\n## Ties\n")[1].split("\n## ")[0]
    )
    lines = re.search(r"```bash\n(.*?)```", section, re.S)[1].replace("\\\n", " ").splitlines()
    small = {
        "quantize": [],
        "train": ["--max_length", 96, "--max_steps", 2, "--freeze_layers", 0, "--dtype", "float32"],
    }
    with pytest.MonkeyPatch.context() as monkeypatch:
        for line in lines:
            words = [str(files.get(word, word)).replace("outputs/ties", str(folder)) for word in shlex.split(line)]
            script = next(place for place, word in enumerate(words) if word.startswith("scripts/"))
            verb = Path(words[script]).stem
            recipe = [TRAINING] if verb == "train" else []
            flags = small.get(verb, ["--dtype", "float32"] if "--judge" in words else [])
            call(verb, *recipe, *words[script + 1 :], *flags, monkeypatch=monkeypatch)
    return folder


def read_predictions(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "predictions" / "predictions.parquet")


def test_a_tie_is_half_a_win_where_one_answer_is_to_be_chosen(made):
    """In rankings, in rewards and over HTTP, where no answer may be called a tie."""
    judge = Judge.from_pretrained(str(made / "both"), dtype="float32")
    verdict = judge.compare("Why?", "Because.", "I do not know.")
    expected = verdict.p_a + verdict.p_tie / 2
    assert verdict.p_tie > 0.01 and verdict.share_a == expected
    answers = ["Because.", "I do not know."]
    assert judge.rank("Why?", answers).p_best == pytest.approx([expected, 1 - expected], abs=TOLERANCE)
    assert PairwiseReward(judge)(["Why?"] * 2, answers) == pytest.approx([expected, 1 - expected], abs=TOLERANCE)
    served = ServedJudge(judge, LIMITS, max_waiting=10)
    try:
        criteria = dict(zip(("one", "two"), answers, strict=True))
        question = {"best": {"type": "choice", "criteria": criteria}}
        asked = {"query": [f"Why?{text}" for text in answers], "prompts": ["Why?"] * 2}
        (rewards,) = send(served, asked, path="/get_reward")
        (choice,) = send(served, {"state": "Why?", "questions": question}, path="/v1/systemone")
    finally:
        served.close()
    assert rewards.json()["rewards"] == pytest.approx([expected, 1 - expected], abs=TOLERANCE)
    found = choice.json()["answers"]["best"]["probabilities"]
    assert found == pytest.approx({"one": expected, "two": 1 - expected}, abs=TOLERANCE)


def test_the_canaries_watch_ties_too(made):
    """A member that gives b and a tie each other's probabilities has the same p_a where a is first."""
    member = shutil.copytree(made / "both", made / "watched")  # beside its base
    probes = json.loads((member / "probes.json").read_text())
    assert set(probes["p_tie"]) == set(probes["p_a"]) == {"ab", "ba"}
    probes["p_tie"]["ab"] = [1 - a - tie for a, tie in zip(probes["p_a"]["ab"], probes["p_tie"]["ab"], strict=True)]
    (member / "probes.json").write_text(json.dumps(probes))
    declare(member, "probes.json")
    with pytest.raises(ValueError, match="expected the probabilities of its canary battles"):
        Judge.from_pretrained(str(member), dtype="float32")


def test_base_and_member_say_their_labels(made):
    config = json.loads((made / "base" / "config.json").read_text())
    assert config["id2label"] == {"0": "first", "1": "second", "2": "tie"}
    facts = read_member(made / "both")
    assert facts.labels == list(WITH_TIE)
    assert facts.training["data"][0]["outcomes"] == {"a": 8, "b": 8, "tie": 8}


def test_predictions_are_of_three_outcomes(made):
    """Verdict and passes sum to 1, and a verdict is the mean of its passes."""
    found, battles = read_predictions(made), load_battles(made / "test.parquet", labels=WITH_TIE)
    assert list(found["id"]) == battles["id"][:] and found["p_tie"].nunique() == len(found)
    assert found[P].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-11)
    for name in ("p_a", "p_tie"):
        mean = found[[f"{name}_both_ab", f"{name}_both_ba"]].mean(axis=1)
        assert mean.to_numpy() == pytest.approx(found[name].to_numpy(), abs=1e-11)


def test_the_submission_is_lmsys(made):
    found, submission = read_predictions(made), pd.read_csv(made / "predictions" / "submission.csv")
    assert list(submission) == ["id", "winner_model_a", "winner_model_b", "winner_tie"]
    assert submission.iloc[:, 1:].to_numpy() == pytest.approx(found[P].to_numpy(), abs=1e-11)
    winners = np.where(found["p_a"] >= found["p_b"], "model_a", "model_b")
    assert build_submission(found.assign(winner="tie"), "wsdm")["winner"].tolist() == winners.tolist()


def test_the_report_scores_three_classes(made):
    """Log loss as LMSYS scored it, which is scikit-learn's, and the share of the likeliest outcomes that came true."""
    report = json.loads((made / "evaluation" / "report.json").read_text())
    p, truth = read_predictions(made)[P].to_numpy(), np.arange(24) % 3
    assert report["labels"] == list(WITH_TIE) and report["decided"] == 24
    assert report["log_loss"]["value"] == pytest.approx(log_loss(truth, p, labels=[0, 1, 2]))
    assert report["accuracy"]["value"] == pytest.approx((p.argmax(axis=1) == truth).mean())


def test_swapped_answers_swap_a_and_b_and_keep_the_tie(made, sample_battles):
    """Law 2: p(A, B) mirrored is p(B, A), also of the winners, and two equal answers are even."""
    judge, battles = Judge.from_pretrained(made / "both", dtype="float32"), sample_battles.select(range(12))
    found, swapped = judge.predict(battles), judge.predict(swap_responses(battles))
    assert swapped[P].to_numpy()[:, list_mirrored(3)] == pytest.approx(found[P].to_numpy(), abs=TOLERANCE)
    assert swapped["p_tie_both_ba"].to_numpy() == pytest.approx(found["p_tie_both_ab"].to_numpy(), abs=TOLERANCE)
    names = {"model_a": "model_b", "model_b": "model_a", "tie": "tie"}
    assert swapped["winner"].map(names).tolist() == found["winner"].tolist()
    equal = judge.compare("Why?", "Because.", "Because.")
    assert equal.p_a == pytest.approx(equal.p_b, abs=1e-12) and equal.p_tie == pytest.approx(1 - 2 * equal.p_a)


def test_order_and_batching_change_nothing(made, sample_battles):
    """Laws 1 and 3: rows reversed, one battle to a batch."""
    judge, battles = Judge.from_pretrained(made / "both", dtype="float32"), sample_battles.select(range(12))
    found = judge.predict(battles).set_index("id")[P]
    other = judge.predict(battles.select(range(11, -1, -1)), tokens_per_batch=1).set_index("id")[P]
    assert other.loc[found.index].to_numpy() == pytest.approx(found.to_numpy(), abs=TOLERANCE)


def test_two_processes_predict_and_choose_as_one(made, tmp_path):
    """Law 7, by select.py, which predicts first."""
    flags = ["--battles", made / "test.parquet", "--judge", made / "both", "--num_battles", 8, "--dtype", "float32"]
    for name in ("one", "ddp"):
        output = ["--use_cpu", "true", "--tokens_per_batch", 200, "--output_dir", tmp_path / name]
        succeed(*LAUNCH, *LAUNCHERS[name], "scripts/select.py", *flags, *output)
    one, two = (pd.read_parquet(tmp_path / name / "predictions.parquet") for name in ("one", "ddp"))
    assert two["id"].tolist() == one["id"].tolist()
    assert two[P].to_numpy() == pytest.approx(one[P].to_numpy(), abs=TOLERANCE)
    one, two = (pd.read_parquet(tmp_path / name / "selected.parquet") for name in ("one", "ddp"))
    assert two["id"].tolist() == one["id"].tolist() and len(one) == 8


def test_a_judge_of_two_labels_gets_a_tie_band(made, members, tmp_path, monkeypatch):
    """Without ties the ratio of a and b is the calibrated one; a saved band is applied, and left out if asked."""
    folder = tmp_path / "judge"
    folder.mkdir()
    for name, path in members.items():
        (folder / name).symlink_to(path)
    flags = ["--judge", folder / "ab", folder / "ba", "--battles", made / "test.parquet", "--dtype", "float32"]
    fit = ["--calibrate", "temperature", "--calibrate_ties", "true", "--calibrate_battles", made / "others.parquet"]
    call(
        "evaluate", *flags, *fit, "--save_calibration", "true", "--output_dir", tmp_path / "e", monkeypatch=monkeypatch
    )
    report = json.loads((tmp_path / "e" / "report.json").read_text())
    assert report["labels"] == list(WITH_TIE) and report["calibration"]["intervals"]["nu of ties"]["count"] == 48
    judge = Judge.from_pretrained(folder, dtype="float32")
    battles = load_battles(made / "test.parquet")
    found, plain = judge.predict(battles), judge.predict(battles, calibrated=False)
    assert "p_tie" not in plain and found["raw_p_a"].tolist() == plain["p_a"].tolist()
    ratio = judge.calibration.apply(plain["p_a"].to_numpy())
    assert (found["p_a"] / (found["p_a"] + found["p_b"])).to_numpy() == pytest.approx(ratio, abs=1e-9)
    # A third of the battles are ties, and nu is the maximum likelihood's, so the mean p_tie is about that.
    assert found["p_tie"].mean() == pytest.approx(1 / 3, abs=0.03)


def test_labels_of_three_for_a_base_of_two_are_refused(bases, tmp_path, monkeypatch, caplog):
    rows = load_battles(SAMPLES / "train.jsonl").select(range(8)).to_list()
    file = write_rows(tmp_path / "b.parquet", [row | {"label": [0.2, 0.3, 0.5]} for row in rows])
    flags = ["--base", bases["float32"].folder, "--train_file", file, "--orientation", "ab"]
    said = fail("train", TRAINING, *flags, "--output_dir", tmp_path / "out", monkeypatch=monkeypatch, caplog=caplog)
    assert "must be 2 probabilities (of a, b); found [0.2, 0.3, 0.5]" in said and "--num_labels 3" in said


def test_members_with_other_labels_are_no_judge(made, members, tmp_path, monkeypatch, caplog):
    flags = [
        "--battles",
        SAMPLES / "test.jsonl",
        "--judge",
        made / "both",
        members["ab"],
        "--output_dir",
        tmp_path / "p",
    ]
    said = fail("predict", *flags, "--dtype", "float32", monkeypatch=monkeypatch, caplog=caplog)
    assert "expected the same labels everywhere" in said and "both: a, b, tie; ab: a, b" in said


def test_pseudo_labels_have_three_probabilities(made, tmp_path, monkeypatch):
    flags = ["--battles", made / "test.parquet", "--judge", made / "both", "--output", tmp_path / "soft.parquet"]
    call("pseudolabel", *flags, "--dtype", "float32", monkeypatch=monkeypatch)
    labels = np.array(load_battles(tmp_path / "soft.parquet", labels=WITH_TIE)["label"])
    assert labels == pytest.approx(read_predictions(made)[P].to_numpy(), abs=TOLERANCE)


def test_the_tie_of_a_member_merges_into_a_base_of_two_labels(made, plain_backbone, tmp_path, monkeypatch):
    """LMSYS's member is the start of WSDM's: its adapter is merged, and the new head has two labels."""
    flags = ["--base", plain_backbone, "--merge_adapter", made / "both", "--quantization", "none"]
    call("quantize", *flags, "--output_dir", tmp_path / "base", monkeypatch=monkeypatch)
    assert json.loads((tmp_path / "base" / "config.json").read_text())["id2label"] == {"0": "first", "1": "second"}


def test_even_labels_of_two_are_ties_of_three(tmp_path):
    rows = [{"id": str(n), "prompt": "p", "response_a": "x", "response_b": "y", "label": label} for n, label in
            enumerate(([0.5, 0.5], [0.75, 0.25], [0.2, 0.3, 0.5]))]  # fmt: skip
    battles: Dataset = load_battles(write_rows(tmp_path / "b.jsonl", rows), labels=WITH_TIE)
    assert battles["label"][:] == [[0, 0, 1], [0.75, 0.25, 0], [0.2, 0.3, 0.5]]
