"""The real app in its own process, used by a browser, by gradio_client and by curl."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from modeling.data.battles import TEXTS
from modeling.judging.verdicts import EQUAL, WITHIN_BAND, explain_verdict
from modeling.serving.rendering import BREAK, NOT_EVALUATED, PREVIEW_ROWS
from tests.helpers import HOSTILE_INPUTS, REPOSITORY, SAMPLES, call, run

CARD = (
    "---\nlicense: apache-2.0\n---\n# A careful judge\n\n| language | accuracy |\n|---|---|\n| Thai | 0.7 |\n\n"
    "<script>window.hit = 1</script><img src=x onerror='window.hit = 1'> [link](javascript:window.hit=1)\n"
    "![far](http://192.0.2.1/far.png) <img src='http://192.0.2.1/near.png'>\n"
)
LIMITS = ["--max_characters", "3000", "--max_battles", "80", "--max_bytes", "200000", "--max_waiting", "4"]
LIMITS += ["--rate_limit", "0"]  # the tests are one client
# As docs/app.md has them.
CURL = """\
curl -s $URL/v1/judge -H 'Content-Type: application/json' \\
    -d '{"prompt": "2 + 2?", "response_a": "4", "response_b": "Five.", "id": "mine"}'
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
    page.set_default_timeout(120_000)  # on a busy machine
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.on("dialog", lambda dialog: broken.append(dialog.message))
    page.goto(app)
    page.wait_for_selector("#judge")
    yield page
    assert page.evaluate("window.hit") is None
    assert [url for url in asked if not url.startswith((app, "data:", "blob:"))] == [] and broken == []
    page.close()


@pytest.fixture
def phone(page):
    """The page in a window as narrow as a phone's."""
    page.set_viewport_size({"width": 390, "height": 760})
    return page


def find_text(page, title: str):
    return page.get_by_label(title, exact=True)


def fill(page, *texts: str) -> None:
    for title, text in zip(("Prompt", "Answer A", "Answer B"), texts, strict=True):
        find_text(page, title).fill(text)


def ask_page(page, *texts: str) -> str:
    """Types a battle, presses the button, and returns what the page says about it."""
    fill(page, *texts)
    page.wait_for_selector("#verdict .facts:only-child")  # the verdict on earlier texts has gone
    page.click("#judge")
    page.wait_for_selector("#verdict .headline, #verdict .error")
    return page.inner_text("#verdict")


def judge_upload(page, path: Path) -> None:
    page.get_by_role("tab", name="A file").click()
    page.set_input_files("#upload input[type=file]", path)
    page.locator("#upload a").wait_for()
    page.click("#judge_file")


# --- in the browser: one battle ---------------------------------------------------------------------------------------


def test_a_typed_battle_gets_the_verdict_of_predict(page, judge, tmp_path):
    battle = {"id": 0, "prompt": "What is 2 + 2?", "response_a": "It is 4.", "response_b": "Five, I think."}
    said = ask_page(page, *(battle[name] for name in TEXTS))
    verdict = explain_verdict(judge.predict([battle], readings="both"), battle)
    winner, p = max(("A", verdict.p_a), ("B", verdict.p_b), key=lambda side: side[1])
    assert (verdict.close or f"Answer {winner} wins {p:.1%}") in said
    assert f"A {verdict.p_a:.1%}" in said and f"B {verdict.p_b:.1%}" in said
    shown = [order.inner_text().split() for order in page.locator("#verdict .order").all()]
    assert [words[-1] for words in shown] == [f"{verdict.readings[order]:.1%}" for order in ("ab", "ba")]
    assert f"{verdict.tokens} tokens" in said
    assert page.locator("#verdict[aria-live=polite], #verdict [aria-live=polite]").count() == 1
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 20_000


def test_two_equal_answers_are_too_close_to_call(page):
    said = ask_page(page, "Which?", "The same.", "The same.")
    assert said.startswith("Too close to call") and EQUAL in said and "wins" not in said
    assert "A 50.0%" in said and page.locator("#verdict .bar").count() == 3


def test_the_documented_numbers_are_the_pages():
    said = " ".join((REPOSITORY / "docs" / "app.md").read_text(encoding="utf-8").split())
    assert WITHIN_BAND.replace("The", "the") in said and f"its first {PREVIEW_ROWS} verdicts" in said


def test_how_good_the_judge_is_stands_on_the_first_tab(page):
    assert page.inner_html("#quality p") in NOT_EVALUATED


@pytest.mark.parametrize("change", ["typed", "deleted", "swapped", "cleared"])
@pytest.mark.parametrize("before", ["One.", " "])  # a verdict, and a refusal
def test_verdict_and_error_go_when_a_text_changes(page, change, before):
    ask_page(page, "Which?", before, "Two.")
    match change:
        case "typed":
            find_text(page, "Prompt").press_sequentially("x")
        case "deleted":
            find_text(page, "Answer B").press("Backspace")
        case "swapped":
            page.click("#swap")
        case "cleared":
            page.click("#clear")
    page.wait_for_selector("#verdict .facts:only-child")
    texts = [find_text(page, title).input_value() for title in ("Answer A", "Answer B")]
    assert texts == {"swapped": ["Two.", before], "cleared": ["", ""], "deleted": [before, "Two"]}.get(
        change, [before, "Two."]
    )


def test_the_verdict_on_texts_that_have_changed_meanwhile_is_not_shown(page):
    """The request is held back; the user sees within two seconds that something happens, and then edits a text."""
    held: list = []
    page.route("**/queue/join*", lambda route: held.append(route))
    fill(page, "Which?", "One.", "Two.")
    page.click("#judge")
    page.wait_for_selector("#verdict .progress-text", timeout=2000)
    held.pop().continue_()
    page.unroute("**/queue/join*")
    fill(page, "Which?", "One.", "Two, or three.")
    page.wait_for_timeout(1000)
    assert page.inner_text("#verdict").strip() == "The verdict appears here."
    assert ask_page(page, "Which?", "One.", "Two.").count("shown first") == 2  # the page still works


def test_ctrl_enter_in_a_text_judges(page):
    fill(page, "Which?", "One.", "Two.")
    find_text(page, "Answer B").press("Control+Enter")
    page.wait_for_selector("#verdict .headline")
    assert find_text(page, "Answer B").input_value() == "Two."


def test_an_example_is_filled_in_and_judged_and_arabic_runs_from_the_right(page):
    page.get_by_role("button", name="Arabic").click()
    page.wait_for_selector("#verdict .headline")
    box = find_text(page, "Answer A")
    assert "ابحث عن بقعة صفراء" in box.input_value()
    assert (
        box.evaluate("box => getComputedStyle(box).unicodeBidi + getComputedStyle(box).textAlign") == "plaintextstart"
    )


def test_hostile_answers_are_shown_as_text_and_judged(page):
    page.get_by_role("button", name="rendered Markdown").click()
    for text in HOSTILE_INPUTS:
        ask_page(page, text, text, HOSTILE_INPUTS[0])
        assert find_text(page, "Prompt").input_value() == text
    assert page.locator("img[src=x], img[src*='192.0.2.1'], #verdict script, a[href^=javascript]").count() == 0


def test_texts_are_rendered_as_markdown_as_they_are_typed(page):
    page.get_by_role("button", name="rendered Markdown").click()
    fill(
        page, "**Which?** $$a<b$$", "```python\nif ![1] <b>\n```\n\n| x | y |\n|---|---|\n| 1 | 2 |", "cost $5, not $6"
    )
    page.wait_for_selector("#rendered strong:text-is('Which?')")
    page.wait_for_selector("#rendered .katex")
    page.wait_for_selector("#rendered td:text-is('2')")
    said = page.inner_text("#rendered").replace(BREAK, "")
    assert "if ![1] <b>" in said and "cost $5, not $6" in said


def test_a_megabyte_is_refused_with_a_reason(page):
    said = ask_page(page, "Which?", "word " * 200_000, "short")
    assert said.startswith("Answer A: expected at most 3,000 characters; found 1,000,000")
    assert page.get_by_role("alert").inner_text() == said.strip()
    ask_page(page, "Which?", "long", "short")  # the page still works
    assert page.get_by_role("alert").count() == 0


def test_texts_that_are_cut_are_reported(page):
    said = ask_page(page, "Which?", "word " * 500, "short")
    assert re.search(r"Left out: Answer A: [\d,]+ tokens; about \d+% of the battle\.", said)


# --- in the browser: a file and the judge -----------------------------------------------------------------------------


def test_a_file_gives_the_files_of_predict(page, members, tmp_path, monkeypatch):
    flags = ["--battles", SAMPLES / "test.jsonl", "--judge", members["ab"], members["ba"], "--readings", "both"]
    flags += ["--dtype", "float32"]
    call("predict", *flags, "--output_dir", tmp_path / "expected", monkeypatch=monkeypatch)
    judge_upload(page, SAMPLES / "test.jsonl")
    for name in ("predictions.parquet", "submission.csv"):
        with page.expect_download() as download:
            page.click(f"#files a[download='{name}']")
        assert Path(download.value.path()).read_bytes() == (tmp_path / "expected" / name).read_bytes()
    assert page.inner_text("#result").startswith("72 battles in ")
    submission = (tmp_path / "expected" / "submission.csv").read_text().splitlines()[1 : 1 + PREVIEW_ROWS]
    rows = [row.locator("td").all_inner_texts() for row in page.locator("#result tbody tr").all()]
    assert [f"{id},{winner}" for id, winner, *_ in rows] == submission
    page.locator("#upload").get_by_role("button", name="Clear").click()
    page.locator("#result table").wait_for(state="detached")
    assert not page.is_visible("#files")


def test_a_bad_file_is_refused_with_a_reason(page, tmp_path):
    odd = tmp_path / "<img src=x onerror='window.hit = 1'>.csv"
    odd.write_text("id,<script>window.hit = 1</script>\n1,2\n")
    judge_upload(page, odd)
    said = page.get_by_role("alert").inner_text()
    assert (
        "missing columns prompt, response_a, response_b; found id, <script>" in said and "/" not in said.split(":")[0]
    )


def test_hostile_battles_of_a_file_are_shown_as_text(page, tmp_path):
    rows = [{"id": text, "prompt": text, "response_a": text, "response_b": "x"} for text in HOSTILE_INPUTS]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge_upload(page, tmp_path / "x.jsonl")
    page.wait_for_selector("#result table")
    assert HOSTILE_INPUTS[2] in page.inner_text("#result")
    assert page.locator("#result img, #result script").count() == 0


def test_the_judges_facts_come_before_its_cards_which_run_nothing(page):
    page.get_by_role("tab", name="The judge").click()
    page.wait_for_selector("#facts table")
    assert page.evaluate("document.documentElement.scrollHeight") < 1500
    page.get_by_role("button", name="Card of member ab").click()
    page.get_by_role("heading", name="A careful judge").wait_for()
    page.get_by_role("button", name="Card of member ba").click()
    page.get_by_text("This member has no card.").wait_for()
    said = page.inner_text(".gradio-container")
    assert "Thai" in said and "license:" not in said
    assert page.locator("img[src*='192.0.2.1']").count() == 0
    assert page.locator("a[href^='javascript']").count() == 0
    picture = page.locator("img[src*='reliability']").first
    picture.wait_for()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 60


# --- in the browser: on a phone, and for all eyes ---------------------------------------------------------------------


def test_on_a_phone_the_verdict_comes_into_view_and_nothing_is_wider_than_the_window(phone):
    ask_page(phone, "Which?", "word " * 100, "short")
    phone.wait_for_function(
        """() => {
            const box = document.querySelector('#verdict .headline').getBoundingClientRect()
            return box.top >= 0 && box.bottom <= innerHeight
        }"""
    )
    judge_upload(phone, SAMPLES / "test.jsonl")
    phone.wait_for_selector("#result table")
    for tab in ("Two answers", "A file", "The judge"):
        phone.get_by_role("tab", name=tab).click()
        phone.wait_for_timeout(300)
        assert phone.evaluate("document.documentElement.scrollWidth") == 390
    phone.get_by_role("button", name="Card of member ab").click()
    word = phone.get_by_role("cell", name="Thai")
    word.wait_for()
    assert (
        word.evaluate(
            "cell => { const r = document.createRange(); r.selectNodeContents(cell); return r.getClientRects().length }"
        )
        == 1
    )


CONTRAST = """() => {
    const parse = color => color.match(/[\\d.]+/g).map(Number)
    const luminance = ([r, g, b]) => [r, g, b].map(c => c / 255).map(
        c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4
    ).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0)
    const findBackground = element => {
        const color = parse(getComputedStyle(element).backgroundColor)
        return color.length === 3 ? color : findBackground(element.parentElement)
    }
    const found = {}
    for (const element of document.querySelectorAll('.gradio-container *')) {
        const text = [...element.childNodes].filter(n => n.nodeType === 3).map(n => n.textContent).join('').trim()
        const shown = element.checkVisibility({opacityProperty: true, visibilityProperty: true})
        if (!shown || !(text || element.placeholder)) continue
        const style = getComputedStyle(element, text ? null : '::placeholder')
        const [light, dark] = [parse(style.color), findBackground(element)].map(luminance).sort((x, y) => y - x)
        found[text || element.placeholder] = (light + 0.05) / (dark + 0.05)
    }
    return found
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_text_has_a_contrast_of_at_least_4_5(app, page, theme):
    """WCAG 2.2, success criterion 1.4.3: (L1 + 0.05) / (L2 + 0.05), of the relative luminances of text and ground."""
    page.goto(f"{app}/?__theme={theme}")
    page.wait_for_selector("#judge")
    found: dict[str, float] = {}
    for texts in (("", "", ""), ("Which?", "word " * 500, "short"), ("?", "word", "short word")):
        ask_page(page, *texts)
        page.mouse.move(0, 0)
        page.wait_for_timeout(400)  # colours change gradually
        found |= page.evaluate(CONTRAST)
    judge_upload(page, SAMPLES / "test.jsonl")
    page.wait_for_selector("#result table")
    page.wait_for_timeout(400)
    found |= page.evaluate(CONTRAST)
    page.get_by_role("tab", name="The judge").click()
    page.get_by_role("button", name="Card of member ab").click()
    page.get_by_role("heading", name="A careful judge").wait_for()
    page.wait_for_timeout(400)
    found |= page.evaluate(CONTRAST)
    assert {"Which one wins?", "Swap A ↔ B", "The judge", "Question or task", "A shown first"} <= set(found)
    assert {text[:80]: round(ratio, 2) for text, ratio in found.items() if ratio < 4.5} == {}


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


def test_curl_gets_a_verdict_with_the_documented_fields(app, judge):
    if shutil.which("curl") is None:
        pytest.skip("curl is not here")
    page = (REPOSITORY / "docs" / "app.md").read_text(encoding="utf-8")
    assert CURL in page
    verdict = json.loads(run("bash", "-c", CURL.replace("$URL", app)).stdout)
    battle = {"id": 0, "prompt": "2 + 2?", "response_a": "4", "response_b": "Five."}
    assert (verdict["id"], verdict["p_a"]) == ("mine", judge.predict([battle], readings="both")["p_a"][0])
    rows = re.search(r"^\| field \| meaning \|\n(.*?)\n\n", page, re.M | re.S)[1]
    assert re.findall(r"`(\w+)`(?=[^|]*\|.*\|)", rows) == list(verdict)


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


def test_an_answer_can_be_fetched_for_five_minutes_and_is_then_dropped():
    """Gradio keeps what nobody fetches for ever; a sweep right after the answer would lose it to a slow client."""
    from modeling.serving.page import SECONDS_TO_FETCH, drop_finished_calls

    events = {"running": {1}, "early": set(), "late": set()}
    queue = SimpleNamespace(pending_event_ids_session=events, pending_messages_per_session=dict.fromkeys(events))
    finished = drop_finished_calls(queue, {"early": 0.0}, 10.0)
    assert finished == {"early": 0, "late": 10} and set(events) == {"running", "early", "late"}
    finished = drop_finished_calls(queue, finished, SECONDS_TO_FETCH)
    assert finished == {"late": 10} and set(events) == {"running", "late"}
    assert set(queue.pending_messages_per_session) == {"running", "late"}
    events["late"].add(2)  # the session asks again
    assert drop_finished_calls(queue, finished, 10.0 + SECONDS_TO_FETCH) == {} and "late" in events


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
            # Read together with others, a battle may differ by a rounding.
            assert verdict["p_a"] == pytest.approx(known[int(verdict["id"])], abs=1e-5)


def test_an_upload_that_is_cut_disturbs_nobody(app):
    """A client dies in the middle of a file; others are answered, and the log shows no traceback (see `app`)."""
    address = httpx.URL(app)
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {address.host}\r\nContent-Length: 100000\r\n"
    head += "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    part = '--x\r\nContent-Disposition: form-data; name="files"; filename="x.csv"\r\n\r\nid,prompt\r\n'
    with socket.create_connection((address.host, address.port)) as client:
        client.sendall((head + part).encode())
    battle = {"prompt": "2 + 2?", "response_a": "4", "response_b": "Five."}
    assert httpx.post(f"{app}/v1/judge", json=battle, timeout=60).status_code == 200


def test_the_server_has_the_paths_that_the_docs_name(app):
    """Health, metrics and both protocols, behind the same rules as the page."""
    assert httpx.get(f"{app}/health").json()["status"] == "ok"
    assert "bothways_battles_total" in httpx.get(f"{app}/metrics").text
    question = {"best": {"type": "choice", "criteria": {"one": "4", "two": "Five."}}}
    asked = httpx.post(f"{app}/v1/systemone", json={"state": "2 + 2?", "questions": question}, timeout=60)
    assert set(asked.json()["answers"]["best"]["probabilities"]) == {"one", "two"}
    misspelt = httpx.post(f"{app}/gradio_api/call/v2/judge", json={"promt": "?", "response_a": "x", "response_b": "y"})
    assert misspelt.status_code == 422 and "Did you mean prompt?" in misspelt.text


def test_what_is_not_served_is_refused(app, cards):
    assert "Answer B: expected text; found an object" in ask(app, "x", "y", {"path": "/etc/passwd"}, "")
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
