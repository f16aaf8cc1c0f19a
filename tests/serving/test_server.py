"""A judge for many users: answers equal `Judge.predict`, whatever is sent and however many requests come at once."""

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pandas as pd
import pytest
import torch

from modeling.data.battles import ORIENTATIONS, TEXTS
from modeling.judging.judge import Judge
from modeling.judging.verdicts import EQUAL
from modeling.serving.batching import QueueFullError
from modeling.serving.requests import RequestLimits, check_battle
from modeling.serving.server import ServedJudge
from modeling.settings.arguments import AppArguments
from tests.helpers import HOSTILE_INPUTS, SAMPLES, call

LIMITS = RequestLimits(max_characters=1000, max_battles=100, max_bytes=100_000)
TEXT = {"prompt": "Which?", "response_a": "This one.", "response_b": "That one, because it is better."}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # threads that wait for each other slow tiny members down on a busy machine


@pytest.fixture(scope="module")
def served(judge: Judge) -> Iterator[ServedJudge]:
    served = ServedJudge(judge, LIMITS)
    yield served
    served.close()


@pytest.fixture(scope="module")
def known(judge, sample_battles) -> dict:
    """`Judge.predict` of some demo battles, one at a time."""
    return {row["id"]: judge.predict([row], readings="both").iloc[0] for row in list(sample_battles)[:12]}


def ask(served: ServedJudge, texts, id="") -> dict:
    return asyncio.run(served.judge_battle({name: texts[name] for name in TEXTS} | {"id": texts.get("id", id)}))


# --- answers ----------------------------------------------------------------------------------------------------------


def test_a_verdict_equals_the_prediction(served, known, sample_battles):
    flips = 0
    for battle in list(sample_battles)[:12]:
        row, verdict = known[battle["id"]], ask(served, battle)
        assert json.loads(json.dumps(verdict)) == verdict
        assert (verdict["id"], verdict["winner"]) == (battle["id"], row["winner"])
        assert (verdict["p_a"], verdict["p_b"], verdict["tokens"]) == (row["p_a"], row["p_b"], row["tokens"])
        assert verdict["cut"] == {name: row[f"cut_{name}"] for name in TEXTS}
        for order in ORIENTATIONS:  # the mean over the members
            assert verdict["readings"][order] == (row[f"p_a_ab_{order}"] + row[f"p_a_ba_{order}"]) / 2
        assert verdict["p_a"] == pytest.approx(sum(verdict["readings"].values()) / 2)
        assert verdict["order_mattered"] == ((verdict["readings"]["ab"] >= 0.5) != (verdict["readings"]["ba"] >= 0.5))
        flips += verdict["order_mattered"]
    assert 0 < flips < 12  # both kinds occurred


def test_the_page_python_and_the_script_agree(served, members, sample_battles, tmp_path, monkeypatch):
    """To 1e-6, without any flag. Read among other battles, a battle may differ by a rounding of its pack, 1e-5."""
    battles = sample_battles.select(range(6))
    flags = ["--judge", *members.values(), "--dtype", "float32", "--output_dir"]
    for number, battle in enumerate(battles):
        page, python = ask(served, battle)["p_a"], served.judge.predict([battle])["p_a"][0]
        battles.select([number]).to_json(file := tmp_path / "one.jsonl", force_ascii=False)
        call("predict", "--battles", file, *flags, tmp_path / "one", monkeypatch=monkeypatch)
        script = pd.read_parquet(tmp_path / "one" / "predictions.parquet")["p_a"][0]
        assert (page, script) == (pytest.approx(python, abs=1e-6),) * 2
    together = served.judge.predict(battles)["p_a"]
    assert list(together) == pytest.approx([ask(served, battle)["p_a"] for battle in battles], abs=1e-5)


def test_a_judge_that_reads_its_own_orders_is_served_with_a_warning(judge, caplog):
    """The page always shows both orders, so it must say that predict.py would answer otherwise."""
    ServedJudge(judge, LIMITS)
    assert not caplog.messages
    ServedJudge(Judge(judge.members, "own"), LIMITS)
    assert "The app runs --readings both, whereas this judge's judge.json says own" in caplog.messages[-1]
    ServedJudge(Judge(judge.members, "own"), LIMITS, readings="own")
    assert len(caplog.messages) == 1


def test_swapped_answers_give_the_mirrored_verdict(served):
    """Law 2: with both orders read, p(a, b) = 1 - p(b, a)."""
    swapped = {"prompt": TEXT["prompt"], "response_a": TEXT["response_b"], "response_b": TEXT["response_a"]}
    one, other = ask(served, TEXT), ask(served, swapped)
    assert one["p_a"] == pytest.approx(other["p_b"], abs=1e-5)
    assert one["readings"]["ab"] == pytest.approx(1 - other["readings"]["ba"], abs=1e-5)


@pytest.mark.parametrize("text", HOSTILE_INPUTS)
def test_hostile_text_is_read_as_text_and_its_id_comes_back(served, text):
    verdict = ask(served, {**TEXT, "response_a": text}, text)
    assert verdict["id"] == text and 0 < verdict["p_a"] < 1


def test_texts_up_to_the_limit_are_read(served):
    verdict = ask(served, {name: "word " * 200 for name in TEXTS}, 7)
    assert verdict["id"] == 7 and all(verdict["cut"].values()) and verdict["tokens"] == 128


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_gives_the_bytes_that_predict_writes(served, members, tmp_path, monkeypatch):
    battles = SAMPLES / "test.jsonl"
    flags = ["--battles", battles, "--judge", members["ab"], members["ba"], "--readings", "both", "--dtype", "float32"]
    call("predict", *flags, "--output_dir", tmp_path / "expected", monkeypatch=monkeypatch)
    shares: list[float] = []
    found = served.judge_file(battles, tmp_path / "found", shares.append)
    for path in (found.predictions, found.submission):
        assert path.read_bytes() == (tmp_path / "expected" / path.name).read_bytes()
    assert len(shares) > 4 and shares[0] == 0 and shares == sorted(shares) and shares[-1] < 1
    wins = (pd.read_csv(found.submission)["winner"] == "model_a").sum()
    assert found.summary.startswith("72 battles in ") and f"A wins {wins}, B {72 - wins};" in found.summary
    assert "accuracy 0." in found.summary


# --- many at once -----------------------------------------------------------------------------------------------------


def test_results_of_many_threads_do_not_mix(served, known, sample_battles, tmp_path):
    """12 battles from 6 threads, four times each, while a file is judged: each result is that of the battle alone, but
    for the rounding of its batch; the file's are the same to the last bit."""
    alone = served.judge_file(SAMPLES / "test.jsonl", tmp_path / "alone").predictions.read_bytes()
    rows, wrong = list(sample_battles)[:12], []
    p_a = sorted(row["p_a"] for row in known.values())
    assert min(after - before for before, after in pairwise(p_a)) > 4e-5  # so a mix-up shows

    def ask_all(first: int) -> None:
        for number in range(8):
            row = rows[(first + number) % 12]
            verdict = ask(served, row)
            if verdict["id"] != row["id"] or abs(verdict["p_a"] - known[row["id"]]["p_a"]) > 1e-5:
                wrong.append(verdict)

    with ThreadPoolExecutor(6) as pool:
        asked = pool.map(ask_all, range(0, 12, 2))
        together = served.judge_file(SAMPLES / "test.jsonl", tmp_path / "together").predictions.read_bytes()
    assert list(asked) == [None] * 6 and wrong == [] and together == alone


def build_body(row: dict) -> dict:
    """A request for a row, whose id is one that others have too."""
    return {name: row[name] for name in TEXTS} | {"id": "same"}


def test_battles_that_wait_together_are_read_together(judge, known, sample_battles, monkeypatch):
    """Five that arrive while the model is busy make one batch; users' ids may be equal, and come back."""
    sizes: list[int] = []
    predict = judge.predict
    monkeypatch.setattr(judge, "predict", lambda rows, **options: sizes.append(len(rows)) or predict(rows, **options))
    served = ServedJudge(judge, LIMITS)
    rows = list(sample_battles)[:5]
    with served._use_model():
        (first,) = served.submit([check_battle(build_body(rows[0]), LIMITS)])
        while served.queue.count_waiting():
            pass
        others = served.submit([check_battle(build_body(row), LIMITS) for row in rows])
    for row, future in zip([rows[0], *rows], [first, *others], strict=True):
        assert future.result().id == "same"
        assert future.result().p_a == pytest.approx(known[row["id"]]["p_a"], abs=1e-5)
    assert sizes == [1, 5]
    served.close()


def test_a_cancelled_request_is_never_read(judge, monkeypatch):
    """A client that goes away costs nothing and disturbs nobody."""
    seen: list[str] = []
    predict = judge.predict
    monkeypatch.setattr(
        judge, "predict", lambda rows, **options: seen.extend(r["prompt"] for r in rows) or predict(rows, **options)
    )
    served = ServedJudge(judge, LIMITS)

    async def ask_and_leave() -> dict:
        """The second of three waiting requests is cancelled."""
        tasks = [asyncio.create_task(served.judge_battle({**TEXT, "prompt": name})) for name in ("1", "2", "3")]
        await asyncio.sleep(0.05)
        tasks[1].cancel()
        served._model_in_use.release()
        return [(await tasks[number])["close"] for number in (0, 2)]

    served._wait_for_model()
    served.queue._max_delay = 0.2  # so that all three still wait when one is cancelled
    assert len(asyncio.run(ask_and_leave())) == 2
    served.close()
    assert seen == ["1", "3"]


def test_one_bad_battle_fails_alone(judge, monkeypatch):
    predict = judge.predict

    def fail(rows, **options):
        """Predicts, unless a row is the bad one."""
        if any(row["prompt"] == "bad" for row in rows):
            raise ValueError("Prediction: expected finite probabilities")
        return predict(rows, **options)

    monkeypatch.setattr(judge, "predict", fail)
    served = ServedJudge(judge, LIMITS)
    good, bad, other = served.submit([{**TEXT, "id": 1}, {**TEXT, "id": 2, "prompt": "bad"}, {**TEXT, "id": 3}])
    assert (good.result().id, other.result().id) == (1, 3)
    with pytest.raises(ValueError, match="finite"):
        bad.result()
    served.close()


def test_a_stopped_judge_answers_who_waits_and_refuses_others(judge):
    served = ServedJudge(judge, LIMITS)
    waiting = served.submit([{**TEXT, "id": number} for number in range(20)])
    served.close()
    assert [future.result(timeout=0).id for future in waiting] == list(range(20))
    with pytest.raises(QueueFullError, match="stopping"):
        served.submit([{**TEXT, "id": 1}])


def test_equal_answers_are_too_close_to_call(served):
    verdict = ask(served, {**TEXT, "response_b": TEXT["response_a"]})
    assert (verdict["p_a"], verdict["margin"], verdict["close"]) == (0.5, 0, EQUAL)


@pytest.mark.parametrize("merge", ["always", "never"])
def test_a_battle_is_answered_while_a_file_is_judged(merge, members, sample_battles, tmp_path):
    """A battle that arrives just before the first pack is answered before the second, and does not change the file.

    Unmerged members share one model, and the battle switches its adapter."""
    judge = Judge.from_pretrained(list(members.values()), dtype="float32", merge=merge)
    served = ServedJudge(judge, LIMITS)
    order: list[object] = []
    asker = threading.Thread(target=lambda: order.append(ask(served, sample_battles[0])["id"]))

    def report(share: float) -> None:
        order.append(share)
        if share == 0:
            asker.start()
            while not served._entrance.locked():
                pass

    served.judge_file(SAMPLES / "test.jsonl", tmp_path, report)
    asker.join()
    assert order.index(sample_battles[0]["id"]) == 1
    expected = judge.predict(list(sample_battles), readings="both", num_workers=1)
    assert list(pd.read_parquet(tmp_path / "predictions.parquet")["p_a"]) == list(expected["p_a"])


@pytest.mark.parametrize(
    "wrong", [{"max_bytes": 0}, {"max_characters": -1}, {"rate_limit": -1}, {"port": 70000}, {"judge": None}]
)
def test_the_apps_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=f"--{next(iter(wrong))}"):
        AppArguments(**{"judge": ["x"], **wrong})
