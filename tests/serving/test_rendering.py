"""What the page shows: verdicts, errors, previews, the judge's facts and cards. Text of others never becomes markup."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from markupsafe import escape

from modeling.data.battles import TEXTS
from modeling.judging.judge import Judge
from modeling.judging.member import JudgeFacts, write_judge
from modeling.judging.verdicts import DISAGREE, EQUAL, WITHIN_BAND, Verdict
from modeling.publishing.markdown import format_estimate
from modeling.runtime.paths import DEFAULT_JUDGE, find_judge_folder
from modeling.serving.rendering import (
    BREAK,
    NOT_EVALUATED,
    PREVIEW_CHARACTERS,
    disarm_markdown,
    read_card,
    render_error,
    render_judge,
    render_preview,
    render_quality,
    render_verdict,
)
from tests.helpers import HOSTILE_INPUTS

EVALUATION = find_judge_folder(DEFAULT_JUDGE) / "both" / "evaluation.json"
VERDICT = Verdict(
    id="x", winner="model_b", p_a=0.4, p_b=0.6, margin=0.2, close=None, readings={"ab": 0.45, "ba": 0.35},
    order_mattered=False, tokens=128, cut=dict.fromkeys(TEXTS, 0),
)  # fmt: skip


def show(**changes) -> str:
    return str(render_verdict(replace(VERDICT, **changes).to_dict() | {"seconds": 0.25}))


# --- verdicts ---------------------------------------------------------------------------------------------------------


def test_a_verdict_names_the_winner_with_its_probability_and_both_orders():
    html = show()
    assert "<b>Answer B wins 60.0%</b>" in html and "width: 40.0%" in html
    assert "A 45.0%" in html and "A 35.0%" in html and "Answer B wins in both orders." in html
    assert "differs by 10.0 points" in html and "128 tokens · 0.25 s" in html
    assert "<b>Answer A wins 60.0%</b>" in show(winner="model_a", p_a=0.6, p_b=0.4)


@pytest.mark.parametrize("reason", [EQUAL, DISAGREE, WITHIN_BAND])
def test_a_close_verdict_names_no_winner_but_the_reason(reason):
    html = show(close=reason)
    assert "<b>Too close to call</b>" in html and reason in html and "wins" not in html
    assert html.count("class='bar'") == show().count("class='bar'") == 3


def test_a_tie_is_named_and_shared_by_both_ends_of_the_bar():
    """p_a 0.3 and half of 0.45 fill 52.5% of the bar."""
    shown = show(winner="tie", p_a=0.3, p_b=0.25, p_tie=0.45)
    assert "<b>Tie 45.0%</b>" in shown and "<span>Tie 45.0%</span>" in shown and "A tie in both orders." in shown
    assert "width: 52.5%" in shown and "aria-label='A 30.0%, B 25.0%'" in shown
    assert "Tie" not in show()


def test_what_was_not_read_is_said_with_its_share():
    """Of 128 tokens read and 1,203 left out, 1,203 / 1,331 = 90% were left out."""
    html = show(cut={"prompt": 0, "response_a": 1200, "response_b": 3})
    assert "Left out: Answer A: 1,200 tokens, Answer B: 3 tokens; about 90% of the battle." in html
    assert "warning" in html and "warning" not in show()


@pytest.mark.parametrize("text", HOSTILE_INPUTS)
def test_text_of_others_is_escaped(text):
    assert render_error(text) == f"<p class='error' role='alert'>{escape(text)}</p>"
    battle = {"prompt": text, "response_a": "x", "response_b": "y"}
    row = {"id": text, "p_a": 0.4, "p_b": 0.6, "p_a_m_ab": 0.4, "p_a_m_ba": 0.4, "tokens": 9}
    row |= {f"cut_{name}": 0 for name in TEXTS}
    html = render_preview(text, pd.DataFrame([row]), [battle])
    assert html.count(str(escape(text))) >= 2  # summary and id; of the prompt, the beginning
    assert "<script" not in html and "<img" not in html and "<eos" not in html


def test_a_preview_has_a_row_for_each_battle_and_says_which_are_close():
    p_a = [0.9, 0.505, 0.3]
    columns = {"id": [7, 8, 9], "p_a": p_a, "p_b": [1 - p for p in p_a], "p_a_m_ab": p_a, "p_a_m_ba": p_a}
    columns |= {"tokens": 50} | {f"cut_{name}": 0 for name in TEXTS}
    battles = [{"prompt": "long\n" * 100, "response_a": "x", "response_b": "y"}] * 3
    html = render_preview("Done.", pd.DataFrame(columns), battles[:2])
    assert "The first 2 of 3 verdicts" in html and html.count("<tr>") == 1 + 2
    assert "<td>7</td><td>model_a</td><td>0.900</td><td></td>" in html
    assert f"<td>8</td><td>model_a</td><td>0.505</td><td>{WITHIN_BAND}</td>" in html
    assert f"<td>{('long ' * 100)[:PREVIEW_CHARACTERS]}…</td>" in html


# --- the judge --------------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(judge, members, tmp_path) -> Judge:
    """The judge with its members in folders of this test."""
    copies = [replace(m, folder=Path(shutil.copytree(m.folder, tmp_path / m.name))) for m in judge.members]
    return Judge(copies)


def test_the_quality_is_what_the_folders_hold(copied, tmp_path):
    """Nothing without an evaluation; the members' where only they have one; the judge's own where there is one."""
    assert render_quality(copied) == NOT_EVALUATED
    first, second = (member.folder for member in copied.members)
    shutil.copy(EVALUATION, second)
    report = json.loads(EVALUATION.read_text())
    assert render_quality(copied).startswith(f"<p>Member {copied.members[1].name} alone. Accuracy <b>")
    for name in ("accuracy", "ece"):
        assert format_estimate(report[name]) in render_quality(copied)
    assert f"on {report['battles']} battles of {report['data']['battles']['name']}" in render_quality(copied)
    shutil.copy(EVALUATION, tmp_path)
    assert "alone" in render_quality(copied)  # of which judge that is an evaluation, nothing says
    write_judge(tmp_path, JudgeFacts([first.name, second.name]))
    assert render_quality(copied).startswith("<p>Accuracy <b>") and render_quality(copied).count("<p>") == 1


def test_the_judges_facts_are_those_of_its_members(copied):
    (copied.members[0].folder / "member.json").write_text(
        json.dumps(
            {
                **json.loads((copied.members[0].folder / "member.json").read_text()),
                "training": {
                    "base_made_from": "google/gemma-2-9b@" + "0" * 40,
                    "data": [{"role": "train", "source": "<b>.csv", "battles": 1234}, {"role": "eval", "battles": 5}],
                },
            }
        )
    )
    html = render_judge(copied, "both")
    for member in copied.members:
        assert member.fingerprint in html and f"{member.name} (trained on orientation" in html
    assert "<td>1,234 from &lt;b&gt;.csv</td>" in html and "Gemma Terms of Use" in html
    assert "within 2 points of 50%" in html and "<td>none</td>" in html and str(NOT_EVALUATED) in html


def test_a_card_comes_without_its_metadata_pictures_and_html(tmp_path):
    assert read_card(tmp_path) == ("This member has no card.", [])
    card = "---\nlicense: gemma\n---\n\n# Judge\n\n![plot](figures/a.png)\n\n---\n\nMore ![far](http://x/y.png)"
    card += "<img src=x> 1 < 2 `<response_a>` </b>\n```\n<b>\n```\n"
    card += "<details>\n<summary>Per <i>language</i></summary>\n\n| a |\n\n</details>\n"
    (tmp_path / "README.md").write_text(card)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "a.png").touch()
    assert read_card(tmp_path) == (
        "# Judge\n\n\n\n---\n\nMore <~img src=x> 1 < 2 `<~response_a>` <~/b>\n```\n<~b>\n```\n"
        "**Per <~i>language<~/i>**\n\n| a |\n\n".replace("~", BREAK),
        [tmp_path / "figures" / "a.png"],
    )


def test_markdown_of_users_has_no_tags_and_fetches_no_pictures():
    text = "![x](http://192.0.2.1/x.png) ![y][1] <b>bold</b> a<b <https://example.org> `![z] <i>` wow!"
    assert disarm_markdown(text) == (
        "!~[x](http://192.0.2.1/x.png) !~[y][1] <~b>bold<~/b> a<~b <https://example.org> `!~[z] <~i>` wow!"
    ).replace("~", BREAK)
    # What looks like code to a simple pattern, and is none to Markdown.
    assert disarm_markdown("\\`<b>\\`\n\nx ```\n\n<h1>\n\n```") == "\\`<~b>\\`\n\nx ```\n\n<~h1>\n\n```".replace(
        "~", BREAK
    )
