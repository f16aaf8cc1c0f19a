"""A judge for many users: answers equal `Judge.predict`, whatever is sent and however many requests come at once."""

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from modeling.data.battles import ORIENTATIONS, TEXTS
from modeling.judging.judge import Judge
from modeling.serving.rendering import read_card, render_verdict
from modeling.serving.server import TITLES, RequestLimits, ServedJudge, check_battle, load_upload
from modeling.serving.web import LARGEST_BODY, RequestGuard, choose_port
from modeling.settings.arguments import AppArguments
from tests.helpers import HOSTILE_INPUTS, SAMPLES, call

LIMITS = RequestLimits(max_characters=1000, max_battles=100, max_bytes=100_000)
TEXT = {"prompt": "Which?", "response_a": "This one.", "response_b": "That one, because it is better."}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # threads that wait for each other slow tiny members down on a busy machine


@pytest.fixture(scope="module")
def served(judge: Judge) -> ServedJudge:
    return ServedJudge(judge, LIMITS)


@pytest.fixture(scope="module")
def known(judge, sample_battles) -> dict:
    """`Judge.predict` of some demo battles, one at a time."""
    return {row["id"]: judge.predict([row], readings="both").iloc[0] for row in list(sample_battles)[:12]}


def ask(served: ServedJudge, battle) -> dict:
    return served.judge_battle(battle, battle["id"])


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
    assert "The page reads both orders, whereas this judge's judge.json says --readings own" in caplog.messages[-1]


def test_swapped_answers_give_the_mirrored_verdict(served):
    """Law 2: with both orders read, p(a, b) = 1 - p(b, a)."""
    swapped = {"prompt": TEXT["prompt"], "response_a": TEXT["response_b"], "response_b": TEXT["response_a"]}
    one, other = served.judge_battle(TEXT), served.judge_battle(swapped)
    assert one["p_a"] == pytest.approx(other["p_b"], abs=1e-5)
    assert one["readings"]["ab"] == pytest.approx(1 - other["readings"]["ba"], abs=1e-5)


@pytest.mark.parametrize("text", HOSTILE_INPUTS)
def test_hostile_text_is_read_as_text_and_reaches_no_markup(served, text):
    verdict = served.judge_battle({**TEXT, "response_a": text}, text)
    assert verdict["id"] == text and 0 < verdict["p_a"] < 1
    assert "hit" not in render_verdict(verdict) and "click" not in render_verdict(verdict)


def test_lone_surrogates_are_read_as_the_replacement_character(served):
    """JSON lets them in, but neither a tokenizer nor an answer can contain them."""
    odd = served.judge_battle({**TEXT, "prompt": "a \ud800 b \ud83d\ude00"}, "\udfff")
    plain = served.judge_battle({**TEXT, "prompt": "a \ufffd b \U0001f600"})
    assert odd["id"] == "\ufffd" and odd["p_a"] == plain["p_a"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": ""}, "Prompt: expected some text; found none"),
        ({"prompt": " \n\t"}, "Prompt: expected some text"),
        ({"response_a": None}, "Answer A: expected some text"),
        ({"response_b": 7}, "Answer B: expected text; found int"),
        ({"response_b": ["x"]}, "Answer B: expected text; found list"),
        ({"response_a": "x" * 1001}, "Answer A: expected at most 1,000 characters; found 1,001"),
        ({"id": "x" * 201}, "id: expected a text of at most 200"),
        ({"id": {"a": 1}}, "id: expected a text"),
    ],
)
def test_a_bad_battle_is_refused_with_the_fields_name(change, said):
    with pytest.raises(ValueError, match=said):
        check_battle({**TEXT, **change}, LIMITS, change.get("id", ""))


def test_texts_up_to_the_limit_are_read(served):
    verdict = served.judge_battle({name: "word " * 200 for name in TEXTS}, 7)
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


def write_rows(path, rows: int, text: str = "word"):
    path.write_text("".join(json.dumps({**TEXT, "id": row, "prompt": text}) + "\n" for row in range(rows)))
    return path


def test_a_file_beyond_a_limit_is_refused(tmp_path):
    assert len(load_upload(write_rows(tmp_path / "fits.jsonl", 100), LIMITS)) == 100
    for name, rows, text, said in (
        ("rows", 101, "word", "at most 100 battles; found"),
        ("bytes", 90, "word " * 250, "at most 100,000 bytes; found"),
        ("text", 3, "x" * 1001, "row 1, prompt: expected at most 1,000 characters; found 1,001"),
        ("none", 0, "", "missing columns|at least one battle"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            load_upload(write_rows(tmp_path / f"{name}.jsonl", rows, text), LIMITS)
        assert str(tmp_path) not in str(error.value) and f"{name}.jsonl" in str(error.value)


def test_a_small_file_that_unpacks_to_a_large_one_is_refused_unread(tmp_path):
    """A few kB of zstd hold 15 MB of one letter; the file's own metadata give it away."""
    table = pa.table({"id": [1], **{name: ["x" * 5_000_000] for name in TEXTS}})
    pq.write_table(table, tmp_path / "bomb.parquet", compression="zstd", use_dictionary=False)
    assert (tmp_path / "bomb.parquet").stat().st_size < LIMITS.max_bytes
    with pytest.raises(ValueError, match=r"expected at most 800,000 bytes once unpacked; found 15,"):
        load_upload(tmp_path / "bomb.parquet", LIMITS)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.txt", b"hello", "expected a file ending in .parquet, .csv, .tsv, .jsonl; found '.txt'"),
        ("x.csv.gz", b"", "expected a file ending in .parquet, .csv, .tsv, .jsonl; found '.gz'. Unpack"),
        ("x.parquet", b"PAR1 no", "expected a parquet file"),
        ("x.csv", b"id,prompt\n1,2\n", "missing columns response_a, response_b"),
        ("x.jsonl", b"{\n", "line 1: expected JSON"),
        ("x.jsonl", b"\xff\xfa", "expected UTF-8"),
        ("<img src=x>.csv", b"a\n<script>\n", "missing columns"),
    ],
)
def test_a_bad_file_is_refused_in_one_line_without_its_folder(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        load_upload(tmp_path / name, LIMITS)
    assert str(error.value).startswith(name) and "\n" not in str(error.value) and str(tmp_path) not in str(error.value)


# --- many at once -----------------------------------------------------------------------------------------------------


def test_results_of_many_threads_do_not_mix(served, known, sample_battles, tmp_path):
    """12 battles from 6 threads, four times each, while a file is judged: each result is that of the battle alone."""
    alone = served.judge_file(SAMPLES / "test.jsonl", tmp_path / "alone").predictions.read_bytes()
    rows, wrong = list(sample_battles)[:12], []

    def ask_all(first: int) -> None:
        for number in range(8):
            verdict = ask(served, rows[(first + number) % 12])
            if (verdict["id"], verdict["p_a"]) != (rows[(first + number) % 12]["id"], known[verdict["id"]]["p_a"]):
                wrong.append(verdict)

    with ThreadPoolExecutor(6) as pool:
        asked = pool.map(ask_all, range(0, 12, 2))
        together = served.judge_file(SAMPLES / "test.jsonl", tmp_path / "together").predictions.read_bytes()
    assert list(asked) == [None] * 6 and wrong == [] and together == alone


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


# --- the page's own parts ---------------------------------------------------------------------------------------------


def test_a_card_comes_without_its_metadata_pictures_and_html(tmp_path):
    assert read_card(tmp_path) == ("This member has no card.", [])
    card = "---\nlicense: gemma\n---\n\n# Judge\n\n![plot](figures/a.png)\n\n---\n\nMore ![far](http://x/y.png)"
    card += "<img src=x> 1 < 2 `<response_a>` </b>\n```\n<b>\n```\n"
    card += "<details>\n<summary>Per <i>language</i></summary>\n\n| a |\n\n</details>\n"
    (tmp_path / "README.md").write_text(card)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "a.png").touch()
    assert read_card(tmp_path) == (
        "# Judge\n\n\n\n---\n\nMore &lt;img src=x> 1 < 2 `<response_a>` &lt;/b>\n```\n<b>\n```\n"
        "**Per &lt;i>language&lt;/i>**\n\n| a |\n\n",
        [tmp_path / "figures" / "a.png"],
    )


def test_a_verdict_is_shown_with_both_orders_and_what_was_truncated():
    verdict = {"winner": "model_b", "p_a": 0.4, "p_b": 0.6, "readings": {"ab": 0.55, "ba": 0.25}, "tokens": 128}
    verdict |= {"order_mattered": True, "cut": {"prompt": 0, "response_a": 1200, "response_b": 3}, "seconds": 0.25}
    html = render_verdict(verdict)
    assert "Answer B wins" in html and "60.0%" in html and "A 55.0%" in html and "A 25.0%" in html
    assert "order changes the winner" in html and "30.0 points" in html and "width: 40.0%" in html
    assert f"Tokens truncated: {TITLES['response_a']} 1,200, {TITLES['response_b']} 3 · 128 tokens" in html
    steady = verdict | {"order_mattered": False, "cut": dict.fromkeys(TEXTS, 0)}
    assert "Answer B wins in both orders" in render_verdict(steady)
    assert "Nothing was truncated" in render_verdict(steady)


@pytest.mark.parametrize(
    ("method", "path", "length", "status"),
    [
        ("GET", "/", None, None),
        ("GET", "/gradio_api/file=/tmp/x/predictions.parquet", None, None),
        ("POST", "/gradio_api/call/judge", LARGEST_BODY, None),
        ("POST", "/gradio_api/call/judge", LARGEST_BODY + 1, 413),
        ("POST", "/gradio_api/queue/join", None, 411),
        ("POST", "/gradio_api/upload", 6_000_000, None),
        ("POST", "/gradio_api/upload", 7_000_000, 413),
        ("GET", "/gradio_api/file=http://192.0.2.1/", None, 404),
        ("GET", "/gradio_api/proxy=http://192.0.2.1/", None, 404),
        ("GET", "/monitoring/summary", None, 404),
        ("POST", "/gradio_api/process_recording", 10, 404),
    ],
)
def test_only_requests_that_the_page_needs_are_let_in(method, path, length, status):
    guard = RequestGuard(None, max_bytes=6_000_000)
    headers = {} if length is None else {b"content-length": str(length).encode()}
    assert (guard.find_refusal(method, path, headers) or (None,))[0] == status


@pytest.mark.parametrize("wrong", [{"max_bytes": 0}, {"max_characters": -1}, {"port": 70000}, {"judge": None}])
def test_the_apps_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=f"--{next(iter(wrong))}"):
        AppArguments(**{"judge": ["x"], **wrong})


def test_a_taken_port_is_reported():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"--port {port}: expected an address of this machine and a free port"):
            choose_port("127.0.0.1", port)
        assert choose_port("127.0.0.1", 0) not in (0, port)
    with pytest.raises(ValueError, match=r"--host 192\.0\.2\.1"):
        choose_port("192.0.2.1", 0)
