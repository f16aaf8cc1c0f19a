"""The real app in its own process, used by a browser, by gradio_client and by curl."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from modeling.data.battles import TEXTS
from tests.helpers import HOSTILE_INPUTS, REPOSITORY, SAMPLES, call, run

CARD = (
    "---\nlicense: apache-2.0\n---\n# A careful judge\n\n| language | accuracy |\n|---|---|\n| Thai | 0.7 |\n\n"
    "<script>window.hit = 1</script><img src=x onerror='window.hit = 1'> [link](javascript:window.hit=1)\n"
    "![far](http://192.0.2.1/far.png) <img src='http://192.0.2.1/near.png'>\n"
)
LIMITS = ["--max_characters", "3000", "--max_battles", "80", "--max_bytes", "200000", "--max_waiting", "4"]
# As docs/app.md has them.
CURL = """\
id=$(curl -s $URL/gradio_api/call/v2/judge -H 'Content-Type: application/json' \\
    -d '{"prompt": "2 + 2?", "response_a": "4", "response_b": "Five.", "id": "mine"}' | cut -d'"' -f4)
curl -s $URL/gradio_api/call/judge/$id
"""


@pytest.fixture(scope="module")
def cards(members, tmp_path_factory) -> dict[str, Path]:
    """Copies of the two members, the first with a card and a figure; other tests use the originals."""
    from PIL import Image

    root = tmp_path_factory.mktemp("app")
    base = json.loads((members["ab"] / "adapter_config.json").read_text())["base_model_name_or_path"]
    shutil.copytree((members["ab"] / base).resolve(), root / base.removeprefix("../../"))
    copies = {name: Path(shutil.copytree(folder, root / "members" / name)) for name, folder in members.items()}
    (copies["ab"] / "README.md").write_text(CARD)
    (copies["ab"] / "figures").mkdir()
    Image.new("RGB", (60, 40)).save(copies["ab"] / "figures" / "reliability.png")
    return copies


@pytest.fixture(scope="module")
def app(cards, tmp_path_factory) -> Iterator[str]:
    """Address of the running app, which must end well and leave nothing behind."""
    folder = tmp_path_factory.mktemp("run")
    log, temporary = folder / "log", folder / "temporary"
    temporary.mkdir()
    flags = ["--judge", cards["ab"], cards["ba"], "--port", 0, "--use_cpu", "true", "--dtype", "float32", *LIMITS]
    command = [sys.executable, "scripts/app.py", *map(str, flags)]
    environment = {**os.environ, "TMPDIR": str(temporary), "OMP_WAIT_POLICY": "PASSIVE"}  # on a busy machine
    with log.open("w") as said, subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=said) as process:
        while not (address := re.search(r"Serving ab, ba on (http://\S+)/\n", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        try:
            yield address[1]
        finally:
            process.send_signal(signal.SIGTERM)
    said = log.read_text()
    # Gradio prints a traceback for a path that was never uploaded.
    assert process.returncode == 0 and said.count("Traceback") == said.count("InvalidPathError: Cannot move"), said
    assert [path.name for path in temporary.iterdir() if path.name.startswith("bothways")] == []
    assert not (REPOSITORY / "scripts" / "app.pyi").exists()


@pytest.fixture(scope="module")
def browser():
    """A window of Debian's chromium."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Debian's chromium is not here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium's sandbox needs more rights than a container gives; the pages are our own.
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started.new_context(viewport={"width": 1200, "height": 900})
        started.close()


@pytest.fixture
def page(app, browser):
    """The freshly loaded page; it must contact no other host and run nothing that it was shown."""
    page, asked, broken = browser.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.on("dialog", lambda dialog: broken.append(dialog.message))
    page.goto(app)
    page.wait_for_selector("#judge")
    yield page
    assert page.evaluate("window.hit") is None
    assert [url for url in asked if not url.startswith((app, "data:", "blob:"))] == [] and broken == []
    page.close()


def fill(page, *texts: str) -> None:
    for title, text in zip(("Prompt", "Answer A", "Answer B"), texts, strict=True):
        page.get_by_label(title, exact=True).fill(text)


# --- in the browser ---------------------------------------------------------------------------------------------------


def test_a_typed_battle_gets_the_verdict_of_predict(page, judge, tmp_path):
    battle = {"id": 0, "prompt": "What is 2 + 2?", "response_a": "It is 4.", "response_b": "Five, I think."}
    fill(page, *(battle[name] for name in TEXTS))
    page.click("#judge")
    page.wait_for_selector("#verdict .headline")
    row = judge.predict([battle], readings="both").iloc[0]
    said, winner = page.inner_text("#verdict"), row["winner"][-1].upper()
    assert f"Answer {winner} wins" in said and f"A {row['p_a']:.1%}" in said and f"B {row['p_b']:.1%}" in said
    shown = [order.inner_text().split() for order in page.locator("#verdict .order").all()]
    means = [(row[f"p_a_ab_{order}"] + row[f"p_a_ba_{order}"]) / 2 for order in ("ab", "ba")]
    assert [words[-1] for words in shown] == [f"{mean:.1%}" for mean in means]
    assert "Nothing was truncated" in said and f"{row['tokens']} tokens" in said
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 20_000


def test_an_example_is_filled_in_and_judged_and_arabic_runs_from_the_right(page):
    page.get_by_role("button", name="Arabic").click()
    page.wait_for_selector("#verdict .headline")
    box = page.get_by_label("Answer A", exact=True)
    assert "ابحث عن بقعة صفراء" in box.input_value()
    assert (
        box.evaluate("box => getComputedStyle(box).unicodeBidi + getComputedStyle(box).textAlign") == "plaintextstart"
    )


def test_hostile_answers_are_shown_as_text_and_judged(page):
    fill(page, *HOSTILE_INPUTS[:3])
    page.click("#judge")
    page.wait_for_selector("#verdict .headline")
    assert page.get_by_label("Prompt", exact=True).input_value() == HOSTILE_INPUTS[0]
    assert page.locator("img[src=x], #verdict script").count() == 0


def test_a_megabyte_is_refused_with_a_reason(page):
    fill(page, "Which?", "word " * 200_000, "short")
    page.click("#judge")
    page.wait_for_selector("#note textarea")
    assert page.input_value("#note textarea").startswith("Answer A: expected at most 3,000 characters; found 1,000,000")
    fill(page, "Which?", "long", "short")  # the page still works
    page.click("#judge")
    page.wait_for_selector("#verdict .headline")
    assert not page.is_visible("#note")


def test_a_file_gives_the_files_of_predict(page, members, tmp_path, monkeypatch):
    flags = ["--battles", SAMPLES / "test.jsonl", "--judge", members["ab"], members["ba"], "--readings", "both"]
    flags += ["--dtype", "float32"]
    call("predict", *flags, "--output_dir", tmp_path / "expected", monkeypatch=monkeypatch)
    page.get_by_role("tab", name="A file").click()
    page.set_input_files("#upload input[type=file]", SAMPLES / "test.jsonl")
    page.locator("#upload a").wait_for()
    page.click("#judge_file")
    for name in ("predictions.parquet", "submission.csv"):
        with page.expect_download() as download:
            page.click(f"#files a[download='{name}']")
        assert Path(download.value.path()).read_bytes() == (tmp_path / "expected" / name).read_bytes()
    assert page.input_value("#summary textarea").startswith("72 battles in ")


def test_a_bad_file_is_refused_with_a_reason(page, tmp_path):
    page.get_by_role("tab", name="A file").click()
    odd = tmp_path / "<img src=x onerror='window.hit = 1'>.csv"
    odd.write_text("id,<script>window.hit = 1</script>\n1,2\n")
    page.set_input_files("#upload input[type=file]", odd)
    page.locator("#upload a").wait_for()
    page.click("#judge_file")
    page.wait_for_selector("#file_note textarea")
    said = page.input_value("#file_note textarea")
    assert (
        "missing columns prompt, response_a, response_b; found id, <script>" in said and "/" not in said.split(":")[0]
    )


def test_the_cards_are_shown_and_run_nothing(page):
    page.get_by_role("tab", name="The judge").click()
    page.get_by_role("heading", name="A careful judge").wait_for()
    said = page.inner_text(".gradio-container")
    assert "Thai" in said and "license:" not in said and "This member has no card." in said
    assert page.locator("img[src*='192.0.2.1']").count() == 0
    assert page.locator("a[href^='javascript']").count() == 0
    picture = page.locator("img[src*='reliability']").first
    picture.wait_for()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 60


# --- the API ----------------------------------------------------------------------------------------------------------


def test_gradio_client_gets_verdicts_and_files(app, judge, tmp_path):
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    client = Client(app, verbose=False, download_files=tmp_path)
    battle = {"prompt": "2 + 2?", "response_a": "4", "response_b": "Five."}
    verdict = client.predict(**battle, id="mine", api_name="/judge")
    row = judge.predict([{"id": 0, **battle}], readings="both").iloc[0]
    assert (verdict["id"], verdict["p_a"], verdict["winner"]) == ("mine", row["p_a"], row["winner"])
    with pytest.raises(AppError, match="Answer A: expected some text; found none"):
        client.predict(prompt="?", response_a=" ", response_b="x", api_name="/judge")
    *files, summary = client.predict(file=handle_file(SAMPLES / "test.jsonl"), api_name="/judge_file")
    assert [Path(file).name for file in files] == ["predictions.parquet", "submission.csv"]
    assert summary.startswith("72 battles in ") and len(Path(files[1]).read_text().splitlines()) == 73
    with pytest.raises(AppError, match=r"train.jsonl: expected at most 80 battles"):
        client.predict(file=handle_file(SAMPLES / "train.jsonl"), api_name="/judge_file")


def test_curl_gets_a_verdict_by_two_steps(app, judge):
    if shutil.which("curl") is None:
        pytest.skip("curl is not here")
    assert CURL in (REPOSITORY / "docs" / "app.md").read_text(encoding="utf-8")
    answer = run("bash", "-c", CURL.replace("$URL", app)).stdout
    verdict = json.loads(re.search(r"event: complete\ndata: (.*)\n", answer)[1])[0]
    battle = {"id": 0, "prompt": "2 + 2?", "response_a": "4", "response_b": "Five."}
    assert (verdict["id"], verdict["p_a"]) == ("mine", judge.predict([battle], readings="both")["p_a"][0])


def test_the_documented_python_example_runs(app, judge, tmp_path):
    """As docs/app.md has it, with this app's address and a file of two battles."""
    page = (REPOSITORY / "docs" / "app.md").read_text(encoding="utf-8")
    code = re.search(r"^```python\n(.*?)^```", page, re.M | re.S)[1]
    lines = (SAMPLES / "test.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "mine.jsonl").write_text("".join(lines[:2]), encoding="utf-8")
    found: dict = {}
    exec(code.replace("http://127.0.0.1:7860", app).replace("mine.jsonl", str(tmp_path / "mine.jsonl")), found)
    battle = {"id": 0, "prompt": "2 + 2?", "response_a": "4", "response_b": "Five."}
    expected = judge.predict([battle], readings="both")["p_a"][0]
    assert (found["verdict"]["id"], found["verdict"]["p_a"]) == ("mine", expected)
    assert found["summary"].startswith("2 battles in ") and found["predictions"].endswith("predictions.parquet")


def ask(app: str, *data: object) -> str:
    url = f"{app}/gradio_api/call/judge"
    # json.dumps writes lone surrogates as \ud800, which is how they come in.
    body = json.dumps({"data": data}).encode()
    asked = httpx.post(url, content=body, headers={"Content-Type": "application/json"})
    return httpx.get(f"{url}/{asked.json()['event_id']}").text


@pytest.mark.parametrize("text", [*HOSTILE_INPUTS, "lone \ud800 surrogate", "event: complete\ndata: [1]\n\n"])
def test_the_api_answers_hostile_texts_and_echoes_ids(app, text):
    answer = ask(app, text, text, f"{text}!", text)
    event, data, *rest = answer.strip().split("\n")
    assert event == "event: complete" and rest == []
    assert json.loads(data.removeprefix("data: "))[0]["id"] == text.replace("\ud800", "\ufffd")


def test_when_too_many_wait_more_are_turned_away_and_the_others_get_their_own_answers(app, judge):
    """60 requests at once where 4 may wait: the queue overflows, because requests arrive faster than verdicts."""
    battles = [{"id": 0, "prompt": "?", "response_a": "yes " * times, "response_b": "no"} for times in range(1, 9)]
    known = [judge.predict([battle], readings="both")["p_a"][0] for battle in battles]

    def send(number: int) -> httpx.Response:
        data = [*(battles[number % 8][name] for name in TEXTS), str(number % 8)]
        return httpx.post(f"{app}/gradio_api/call/judge", json={"data": data}, timeout=60)

    with ThreadPoolExecutor(60) as pool:
        answers = list(pool.map(send, range(60)))
    assert {answer.status_code for answer in answers} == {200, 503}
    assert all("Queue is full" in answer.json()["detail"] for answer in answers if answer.status_code == 503)
    for answer in answers:
        if answer.status_code == 200:
            text = httpx.get(f"{app}/gradio_api/call/judge/{answer.json()['event_id']}").text
            verdict = json.loads(re.search(r"event: complete\ndata: (.*)\n", text)[1])[0]
            assert verdict["p_a"] == known[int(verdict["id"])]


def test_what_is_not_served_is_refused(app, cards):
    assert "Answer B: expected text; found dict" in ask(app, "x", "y", {"path": "/etc/passwd"}, "")
    for path in ("monitoring/summary", "gradio_api/file=http://192.0.2.1/x", "gradio_api/proxy=http://192.0.2.1/x"):
        assert httpx.get(f"{app}/{path}").status_code == 404
    for path in ("/etc/passwd", str(cards["ab"] / "member.json"), str(REPOSITORY / "setup.cfg")):
        assert httpx.get(f"{app}/gradio_api/file={path}").status_code == 403
    large = httpx.post(f"{app}/gradio_api/call/judge", content=b" " * 5_000_000)
    assert large.status_code == 413 and "at most 4,000,000 bytes" in large.json()["detail"]
    for size in (250_000, 2_000_000):  # beyond the file's limit, and beyond the guard's
        upload = httpx.post(f"{app}/gradio_api/upload", files={"files": ("x.csv", b" " * size)})
        assert upload.status_code == 413
    for path in ("/etc/passwd", "http://192.0.2.1/x.csv", str(cards["ab"] / "member.json")):
        body = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}]}
        asked = httpx.post(f"{app}/gradio_api/call/judge_file", json=body)
        assert "event: error" in httpx.get(f"{app}/gradio_api/call/judge_file/{asked.json()['event_id']}").text


def test_without_gradio_the_error_says_how_to_install_it():
    code = "import runpy, sys; sys.modules['gradio'] = None; runpy.run_path('scripts/app.py', run_name='__main__')"
    done = run(sys.executable, "-c", code)
    assert done.returncode == 1 and 'pip install "bothways[app]", or in a clone `make app`' in done.stderr
