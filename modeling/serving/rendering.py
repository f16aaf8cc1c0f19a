"""What the page shows, as HTML: verdicts, errors, previews and the judge's facts; and its cards as Markdown.

It knows no web framework. Text of users and of folders is always escaped.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from modeling.data.outcomes import TIE, name_winners
from modeling.judging.judge import Judge
from modeling.judging.loaded import Member
from modeling.judging.member import list_readings, read_json, read_judge
from modeling.judging.verdicts import CLOSE_BAND, explain_verdict
from modeling.publishing.cards import CARD_FILE, EVALUATION_FILE, list_bases, list_data, read_card_member
from modeling.publishing.markdown import format_estimate
from modeling.serving.requests import TITLES

METADATA_BLOCK = re.compile(r"---\n.*?\n---\n", re.S)
# Markdown pictures; the page shows the card's own figures in a gallery and fetches no others.
PICTURE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
FOLD, SUMMARY = re.compile(r"</?details>\n?"), re.compile(r"<summary>(.*?)</summary>")
# What Markdown would turn into HTML or fetch: the beginnings of tags, but for links in angle brackets, and of pictures.
# The page's JavaScript uses the same pattern.
MARKUP = re.compile(r"<(?=[A-Za-z/!?])(?!https?://)|!(?=\[)")
BREAK = "\u200b"  # a space of no width, which ends what would become markup and changes nothing that is seen
PREVIEW_ROWS, PREVIEW_CHARACTERS = 20, 80
NOT_EVALUATED = Markup("<p>Not evaluated: run <code>scripts/evaluate.py</code>.</p>")
CALIBRATED = 1e-3  # by how much calibration must change a probability to be mentioned


# --- verdicts ---------------------------------------------------------------------------------------------------------


def render_verdict(verdict: Mapping) -> Markup:
    """Returns HTML for the fields of a `Verdict`, with `seconds`."""
    if verdict["close"]:
        headline = Markup("<div class='headline'><b>Too close to call</b></div><p>{}</p>").format(verdict["close"])
    elif verdict["winner"] == TIE:
        headline = Markup("<div class='headline'><b>Tie {:.1%}</b></div>").format(verdict["p_tie"])
    else:
        side = "A" if verdict["winner"] == "model_a" else "B"
        headline = Markup("<div class='headline {}'><b>{} {:.1%}</b></div>").format(
            side, _name_winner(verdict), max(verdict["p_a"], verdict["p_b"])
        )
    tie = verdict.get("p_tie") or 0
    ends = Markup("<span>Tie {:.1%}</span>").format(tie) if verdict.get("p_tie") is not None else Markup("")
    return Markup(
        "{}{}<div class='ends'><span>A {:.1%}</span>{}<span>B {:.1%}</span></div>{}{}"
        "<p class='facts'>{:,} tokens · {:.2f} s</p>"
    ).format(
        headline, _render_bar(verdict["p_a"], tie), verdict["p_a"], ends, verdict["p_b"], _render_orders(verdict),
        _render_cuts(verdict), verdict["tokens"], verdict["seconds"],
    )  # fmt: skip


def _name_winner(verdict: Mapping) -> str:
    """Returns the likeliest outcome in words."""
    return {"model_a": "Answer A wins", "model_b": "Answer B wins", TIE: "A tie"}[verdict["winner"]]


def _render_orders(verdict: Mapping) -> Markup:
    """Returns a bar for each order that was read, and what they have in common."""
    readings = verdict["readings"]
    rows = Markup("").join(
        Markup("<div class='order'><span>{} shown first</span>{}<span>A {:.1%}</span></div>").format(
            orientation[0].upper(), _render_bar(p_a), p_a
        )
        for orientation, p_a in readings.items()
    )
    said = []
    if len(readings) == 1:
        said.append("Only one order was read.")
    else:
        if not verdict["close"]:
            said.append(f"{_name_winner(verdict)} in both orders.")
        gap = abs(readings["ab"] - readings["ba"]) * 100
        said.append(f"The probability of A differs by {gap:.1f} points between the orders.")
    if abs(sum(readings.values()) / len(readings) - verdict["p_a"]) > CALIBRATED:
        said.append("Calibration turned the orders' mean into the probability above.")
    return Markup("<div class='orders'>{}</div><p>{}</p>").format(rows, " ".join(said))


def render_error(message: str) -> Markup:
    """Returns HTML for an error, which screen readers announce. The message may quote users."""
    return Markup("<p class='error' role='alert'>{}</p>").format(message)


def _render_bar(p_a: float, p_tie: float = 0.0) -> Markup:
    """Returns a bar divided between A and B; a tie is shared by both."""
    share = p_a + p_tie / 2
    return Markup(
        "<div class='bar' role='img' aria-label='A {0:.1%}, B {1:.1%}'><i style='width: {2:.1%}'></i></div>"
    ).format(p_a, 1 - p_a - p_tie, share)


def _render_cuts(verdict: Mapping) -> Markup:
    """Returns a warning that says how much was not read; nothing if all was read."""
    cut = {TITLES[name]: count for name, count in verdict["cut"].items() if count}
    if not cut:
        return Markup("")
    share = sum(cut.values()) / (sum(cut.values()) + verdict["tokens"])
    fields = ", ".join(f"{title}: {count:,} tokens" for title, count in cut.items())
    return Markup(
        "<p class='warning'>Not all was read, because the texts are too long for this judge. "
        "Left out: {}; about {:.0%} of the battle.</p>"
    ).format(fields, share)


# --- files ------------------------------------------------------------------------------------------------------------


def render_preview(summary: str, verdicts: pd.DataFrame, battles: Sequence[Mapping]) -> Markup:
    """Returns the summary of a file's verdicts and a table of the first ones.

    Args:
        summary: One line.
        verdicts: The rows of predictions.parquet.
        battles: The first `PREVIEW_ROWS` of the file, in the verdicts' order.
    """
    verdicts = verdicts.assign(winner=name_winners(verdicts["p_a"], verdicts.get("p_tie")))
    rows = []
    for number, battle in enumerate(battles):
        verdict = explain_verdict(verdicts.iloc[[number]], battle)
        prompt = " ".join(battle["prompt"].split())
        if len(prompt) > PREVIEW_CHARACTERS:
            prompt = prompt[:PREVIEW_CHARACTERS] + "…"
        rows.append((verdict.id, verdict.winner, f"{verdict.p_a:.3f}", verdict.close or "", prompt))
    table = _render_table(("id", "winner", "p_a", "too close to call", "prompt"), rows)
    caption = Markup("<p>{}</p><p class='facts'>The first {} of {:,} verdicts:</p>{}")
    return caption.format(summary, len(battles), len(verdicts), table)


# --- the judge --------------------------------------------------------------------------------------------------------


def render_quality(judge: Judge) -> Markup:
    """Returns a line with accuracy and calibration error for each evaluation in the folders of judge and members."""
    lines = [_render_report(judge, *found) for found in _find_reports(judge)]
    return Markup("").join(lines) or NOT_EVALUATED


def render_judge(judge: Judge, readings: str) -> Markup:
    """Returns a table of the judge's facts: members, base, precision, calibration, training battles and licence.

    Args:
        judge: The judge.
        readings: Which passes are run, see `Judge.plan_passes`.
    """
    members = [read_card_member(member.folder, member.name) for member in judge.members]
    sources, bases, calibration = list_data(members, "train"), list_bases(members), judge.find_calibration(readings)
    trained = f"{sum(row['battles'] for row in sources):,} from {', '.join(row['source'] for row in sources)}"
    rows = [
        (
            "Members",
            _join(f"{member.name} (trained on orientation {member.facts.orientation})" for member in judge.members),
        ),
        (
            "Passes",
            "; ".join(f"{m.name}: {' and '.join(list_readings(m.facts.orientation, readings))}" for m in judge.members),
        ),
        (
            "Too close to call",
            "Where the answers are the same, the two orders give different winners, or the probability is within "
            f"{CLOSE_BAND * 100:g} points of 50%.",
        ),
        ("Base", _join(base["origin"] or base["name"] for base in bases)),
        ("Licence of the base", _join(base["licence"] or "not known" for base in bases)),
        ("Precision", _join(member.dtype for member in judge.members)),
        ("Calibration", f"{calibration.method}, fitted on {calibration.battles:,} battles" if calibration else "none"),
        ("Training battles", trained if sources else "not recorded"),
        ("Fingerprint", _join(member.fingerprint for member in judge.members)),
        ("Evaluation", render_quality(judge)),
    ]
    return _render_table((), rows)


def read_card(folder: Path) -> tuple[str, list[Path]]:
    """Returns a member's model card as Markdown, without metadata, pictures and HTML, and the paths of its figures."""
    path = folder / CARD_FILE
    text = path.read_text(encoding="utf-8") if path.is_file() else "This member has no card."
    text = PICTURE.sub("", METADATA_BLOCK.sub("", text, count=1)).strip()
    text = SUMMARY.sub(r"**\1**", FOLD.sub("", text))  # the only HTML in our cards
    return disarm_markdown(text), sorted((folder / "figures").glob("*.png"))


def disarm_markdown(text: str) -> str:
    """Returns Markdown whose tags are shown as text and whose pictures become links, also in code."""
    return MARKUP.sub(lambda found: found[0] + BREAK, text)


def _find_reports(judge: Judge) -> Iterator[tuple[Member | None, dict]]:
    """Yields the judge's own evaluation, as (None, report); if there is none, those of its members."""
    (folder, *others) = {member.folder.parent for member in judge.members}
    facts = None if others else read_judge(folder)
    whole = facts and facts.members == [member.folder.name for member in judge.members]
    if whole and (folder / EVALUATION_FILE).is_file():
        yield None, read_json(folder / EVALUATION_FILE, "Judge")
        return
    for member in judge.members:
        if (member.folder / EVALUATION_FILE).is_file():
            yield member, read_json(member.folder / EVALUATION_FILE, "Judge")


def _render_report(judge: Judge, member: Member | None, report: Mapping) -> Markup:
    """Returns one line about an evaluation."""
    who = "" if member is None or len(judge.members) == 1 else f"Member {member.name} alone. "
    source = report["data"].get("battles", {}).get("name")
    before = " before calibration" if member and judge.calibration else ""
    return Markup(
        "<p>{}Accuracy <b>{}</b> and calibration error (ECE) {}{} on {:,} battles{}, with {:.0%} intervals.</p>"
    ).format(
        who, format_estimate(report["accuracy"]), format_estimate(report["ece"]), before, report["battles"],
        f" of {source}" if source else "", report["confidence"],
    )  # fmt: skip


def _join(values: Iterator[str]) -> str:
    """Returns distinct values in one line."""
    return ", ".join(dict.fromkeys(values))


def _render_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> Markup:
    """Returns a table that scrolls in its own box; without a header, the first cell of each row names it."""
    head = Markup("").join(Markup("<th scope='col'>{}</th>").format(name) for name in header)
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(
            Markup("").join(
                Markup("<td>{}</td>" if header or column else "<th scope='row'>{}</th>").format(cell)
                for column, cell in enumerate(row)
            )
        )
        for row in rows
    )
    return Markup("<div class='table'><table>{}<tbody>{}</tbody></table></div>").format(
        Markup("<thead><tr>{}</tr></thead>").format(head) if header else "", body
    )
