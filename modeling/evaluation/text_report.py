"""The report as titled tables of text, for the terminal and the HTML page. It must not know anything but reports."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from modeling.evaluation.baselines import ANSWERS_ALONE, TFIDF
from modeling.evaluation.bootstrap import format_estimate as format_estimate
from modeling.runtime.choices import HIGHER_IS_BETTER, METRICS
from modeling.runtime.text_tables import format_table

PAIR = "counterfactual_pair"  # column that names the two battles with the same answers and opposite winners
LESSER_BASELINES = ("shorter wins", "majority per language")  # not in the conclusion
# Battles. Simulated for an ideal judge, the fitted temperature of 100 has a standard deviation of about a quarter.
LEAST_TO_CALIBRATE = 100
MOST_ROWS = 12  # rows of a table in the terminal
METRIC_NAMES = dict(zip(METRICS, ("accuracy", "log loss", "Brier", "ECE", "AUC"), strict=True))
METRIC_NOTES = {
    "accuracy": "share of battles without ties whose winner was predicted; guessing gives 0.5",
    "log_loss": "mean cross-entropy of the probabilities, ties included; always 1/2 gives 0.693, lower is better",
    "brier": "mean squared error of the probabilities; always 1/2 gives 0.25 on battles without ties",
    "ece": "mean gap between probability and outcome; chance alone makes it larger than 0",
    "auc": "how often a battle that a won has a higher p_a than one that b won; guessing gives 0.5",
}
# What is different where ties are an outcome of their own.
TIE_NOTES = {
    "accuracy": "share of battles whose outcome, a tie included, was predicted; guessing gives 1/3",
    "log_loss": "mean cross-entropy over three outcomes; always 1/3 gives 1.099, lower is better",
    "brier": "mean sum of squared errors over three outcomes; always 1/3 gives 0.667",
    "auc": "how often a battle that a won has a higher p_a + p_tie / 2 than one that b won; guessing gives 0.5",
}
NO_WINNER, NOT_READ = "no battle has a winner", "no battle was read"
ONE_ORDER = "not read in both orders"
# Why a metric has no value.
METRIC_GAPS = {name: "no battles" for name in METRIC_NAMES} | {
    "accuracy": NO_WINNER,
    "auc": "needs battles that a won and battles that b won",
}
TABLE_TITLES = {
    "language": "By language",
    PAIR: "By whether the answers alone can decide",
    "source": "By source",
    "verdict": "By kind of verdict",
    "length": "By length of prompt and answers",
    "cut": "By whether the text was cut",
}


@dataclass
class Section:
    """A table with a title, a note on how to read it, and the names of its figures (file stems)."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""
    figures: list[str] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """The title as the id of an HTML element, which has no spaces."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


def summarize(report: Mapping) -> str:
    """Says in a sentence what was scored and how the intervals were computed; without the final full stop."""
    ties = report["battles"] - report["decided"]
    kind = "have even labels" if "labels" in report else "are ties or have even labels"
    return (
        f"{report['battles']:,} battles on {report['prompts']:,} prompts ({report.get('grouping', 'grouped')}); "
        f"{ties:,} battles {kind}. Brackets hold {report['confidence']:.0%} intervals from "
        f"{report['draws']:,} bootstrap draws of prompts (none for fewer than 6 prompts)"
    )


def name_judge(report: Mapping) -> str:
    """Returns the name of the judge that a report is about."""
    return report["run"]["judge"] if "run" in report else "the judge"


def describe_origin(report: Mapping) -> dict[str, str]:
    """Says whose report it is, and how and when it was made; empty for a report that was not made by evaluate.py."""
    if "run" not in report:
        return {}
    run, judge, other = report["run"], report.get("judge", {}), report.get("comparison")
    origin = {"Judge": _name_members(run["judge"], judge.get("members"))}
    origin |= {"Compared with": _name_members(other["name"], other.get("members"))} if other else {}
    predicted = judge.get("versions", {})
    if not predicted.items() <= run["versions"].items():
        origin["Predicted with"] = _list_versions(predicted)
    return origin | {"Evaluated": f"{run['date']}, with {_list_versions(run['versions'])}", "Command": run["command"]}


def _name_members(name: str, members: Mapping[str, str] | None) -> str:
    """Names a judge, and its members with their fingerprints as far as they are known."""
    if not members:
        return f"{name} (members not recorded)"
    return f"{name} (members: {', '.join(f'{member} {fingerprint}' for member, fingerprint in members.items())})"


def _list_versions(versions: Mapping[str, str]) -> str:
    """Lists packages with their versions."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def build_sections(report: Mapping) -> list[Section]:
    """Returns the sections that the report has data for, in order."""
    return [section for build in SECTIONS for section in build(report) if section.rows]


def _list_judge(report: Mapping) -> Iterator[Section]:
    notes = METRIC_NOTES | (TIE_NOTES if "labels" in report else {})
    rows = [
        (name, _format_metric(report, key), f"{report[key]['count']:,}", notes[key])
        for key, name in METRIC_NAMES.items()
    ]
    yield Section("Metrics", ("", "value", "battles", "what it says"), rows)


def _format_metric(estimates: Mapping, key: str) -> str:
    """Formats a metric, or says why it has no value."""
    return format_estimate(estimates[key], why=METRIC_GAPS[key.removesuffix("_difference")])


def _list_benchmark(report: Mapping) -> Iterator[Section]:
    if facts := report.get("benchmark"):
        columns = ("judge", "longest", "shortest", "always a", "flips")
        rows = [
            (
                row["name"],
                f"{row['judge']['count']:,}",
                *(format_estimate(row[name], why=ONE_ORDER) for name in columns),
            )
            for row in facts["rows"]
        ]
        of = f" of {facts['size']:,}" if facts["size"] else ""
        note = f"{facts['questions']:,}{of} questions, scored by the authors' rules; docs/benchmarks.md describes them."
        if facts["size"] not in (None, facts["questions"]):
            note += " This is not the whole benchmark, so these are not its official numbers."
        if facts["absent"]:
            note += f" Without {', '.join(facts['absent'])}."
        note += " Longest, shortest and always a are rules that read no text. Flips: how often the order decides."
        header = ("", "questions", f"score of {name_judge(report)}", *columns[1:])
        yield Section(f"Benchmark {facts['name']}", header, rows, note)


def _list_bounds(report: Mapping) -> Iterator[Section]:
    rows = [
        (
            METRIC_NAMES[row["metric"]],
            _format_bound(row),
            _format_metric(report, row["metric"]),
            "yes" if row["passed"] else "no",
        )
        for row in report.get("bounds", [])
    ]
    yield Section("Bounds", ("", "expected", "found", "passed"), rows, "Bounds are those of --fail_under.")


def _format_bound(row: Mapping) -> str:
    """Says which values pass a bound."""
    return f"{row['bound']:g} or {'more' if row['metric'] in HIGHER_IS_BETTER else 'less'}"


def list_failures(report: Mapping) -> list[str]:
    """Returns an error for each bound of --fail_under that a metric does not pass."""
    return [
        f"--fail_under {row['metric']}={row['bound']:g}: expected {METRIC_NAMES[row['metric']]} {_format_bound(row)}; "
        f"found {_format_metric(report, row['metric'])} on {report[row['metric']]['count']:,} battles."
        for row in report.get("bounds", [])
        if not row["passed"]
    ]


def _list_calibration(report: Mapping) -> Iterator[Section]:
    if facts := report.get("calibration"):
        rows = [
            (name, _format_metric(facts["before"], key), _format_metric(facts["after"], key))
            for key, name in METRIC_NAMES.items()
        ]
        what = facts["method"]
        if facts.get("battles"):
            what += f", fitted on {facts['battles']:,} other battles"
        note = f"Method: {what}{_list_parameters(facts)}. All other metrics are after calibration."
        if doubt := doubt_calibration(facts):
            note += f" {doubt}"
        yield Section("Calibration", ("", "before", "after"), rows, note)


def _list_parameters(facts: Mapping) -> str:
    """Lists a calibration's parameters with their intervals; those of an older judge.json have none."""
    parameters = facts.get("intervals", {})
    if not parameters and facts.get("temperature"):
        return f"; temperature {facts['temperature']:.3f} (interval not recorded)"
    return "".join(f"; {name} {format_estimate(estimate)}" for name, estimate in parameters.items())


def doubt_calibration(facts: Mapping) -> str:
    """Returns a warning if a calibration was fitted on fewer battles than `LEAST_TO_CALIBRATE`, else nothing."""
    if facts.get("battles", LEAST_TO_CALIBRATE) >= LEAST_TO_CALIBRATE:
        return ""
    return (
        f"The calibration was fitted on {facts['battles']:,} battles: expected {LEAST_TO_CALIBRATE} or more. With "
        "fewer, chance may change the probabilities more than the judge's error does. Calibrate on more battles."
    )


def _list_comparison(report: Mapping) -> Iterator[Section]:
    if facts := report.get("comparison"):
        rows = [
            (
                METRIC_NAMES[key],
                *(_format_metric(*which) for which in ((report, key), (facts, key), (facts, f"{key}_difference"))),
            )
            for key in ("accuracy", "log_loss")
        ]
        test, ours, theirs = facts["mcnemar"], name_judge(report), facts.get("name", "other predictions")
        note = (
            f"{test['only_first']:,} battles are right only with {ours}, {test['only_second']:,} only with {theirs}: "
            f"McNemar's p = {test['p_value']:.2g}. A difference whose interval includes 0 may be due to chance."
        )
        yield Section(f"Against {theirs}", ("", ours, theirs, "difference"), rows, note)


def _list_baselines(report: Mapping) -> Iterator[Section]:
    rows = [
        (
            name,
            *(format_estimate(row.get(key), why=NO_WINNER) for key in ("accuracy", "difference")),
            format_estimate(row.get("log_loss"), why="no probabilities"),
        )
        for name, row in report["baselines"].items()
    ]
    judge = name_judge(report)
    note = f"A baseline is beaten if the interval of the lead of {judge} lies above 0. None of them reads a prompt."
    if TFIDF not in report["baselines"]:
        note += " Give training battles to add TF-IDF."
    if ANSWERS_ALONE in report["baselines"]:
        note += " Answers alone is the judge without the prompts: its lead over that is what reading them is worth."
    yield Section("Baselines", ("", "accuracy", f"lead of {judge}", "log loss"), rows, note, ["baselines"])


def _list_position(report: Mapping) -> Iterator[Section]:
    facts = report["position_bias"]
    names = {
        "mean_p_first": "mean probability of the first answer",
        "people_first": "people's share for the first answer",
        "first_wins": "share of passes that the first answer wins",
        "flip_share": "share of verdicts that change with the order",
    }
    rows = [(name, format_estimate(facts.get(key), why=NOT_READ)) for key, name in names.items() if facts.get(key)]
    note = "" if facts.get("flip_share") else "No member read both orders, so changes with the order are unknown."
    if report["readings"]:
        yield Section("Position bias", ("", "value"), rows, note, ["position_bias"])
    passes = [
        (
            row["name"],
            format_estimate(row["accuracy"], why=NO_WINNER),
            *(format_estimate(row.get(key), why=NOT_READ) for key in ("log_loss", "mean_p_first")),
        )
        for row in report["readings"]
    ]
    note = "Each pass alone: <member>_<order>."
    yield Section("Passes", ("", "accuracy", "log loss", "mean probability of the first answer"), passes, note)


def _list_length(report: Mapping) -> Iterator[Section]:
    facts = report["length_bias"]
    names = {
        "correlation": ("correlation of p_a with the log of the length ratio", "all lengths or all p_a are equal"),
        "people_correlation": ("the same correlation for people's labels", "all lengths or all labels are equal"),
        "accuracy_length_matched": ("accuracy where lengths differ by at most a fifth", "no such battle has a winner"),
    }
    rows = [(name, format_estimate(facts[key], why=why)) for key, (name, why) in names.items()]
    yield Section("Length bias", ("", "value"), rows, figures=["length_bias"])


def _list_tables(report: Mapping) -> Iterator[Section]:
    for key, table in report["tables"].items():
        rows = [
            (row["name"], f"{row['battles']:,}", *(_format_metric(row, metric) for metric in ("accuracy", "log_loss")))
            for row in table
        ]
        header, note = ("", "battles", "accuracy", "log loss"), ""
        if key == PAIR:
            note = "Two battles of a pair have the same answers and opposite winners: only the prompt tells."
        if key == "cut":
            fields = (f"{name} in {cut['battles']:,}" for name, cut in report.get("cut_fields", {}).items())
            note = f"Battles with cut text, by field: {', '.join(fields)}."
        title = TABLE_TITLES.get(key, f"By {key}")
        yield Section(title, header, rows, note, ["languages"] if key == "language" else [])


def _list_curves(report: Mapping) -> Iterator[Section]:
    digits = 2 if "labels" in report else 1  # fifths of the way from 1/3 to 1, or from 1/2
    rows = [
        (
            f"{row['low']:.{digits}f} to {row['high']:.{digits}f}",
            f"{row['battles']:,}",
            f"{row['mean_p']:.3f}",
            f"{row['share']:.3f}",
        )
        for row in report["reliability"]
    ]
    header = ("probability of the favoured answer", "battles", "mean probability", "people's share for it")
    note = "The judge is calibrated where the last two columns agree."
    yield Section("Reliability", header, rows, note, ["reliability"])
    rows = [
        (f"{row['share']:.0%}", f"{row['battles']:,}", format_estimate(row["accuracy"])) for row in report["selective"]
    ]
    header = ("share of battles", "battles", "accuracy")
    yield Section("Accuracy on the most confident verdicts", header, rows, figures=["selective"])


def _list_leaderboard(report: Mapping) -> Iterator[Section]:
    if facts := report.get("leaderboard"):
        rows = [
            (row["name"], f"{row['battles']:,}", format_estimate(row["people"], 0), format_estimate(row["judge"], 0))
            for row in facts["models"]
        ]
        why = "needs three models of different ratings"
        spearman, kendall = (format_estimate(facts[name], 2, why) for name in ("spearman", "kendall"))
        note = (
            f"Bradley-Terry ratings, mean 1000. Rank correlation of the {facts['ranked']:,} models with at least ten "
            f"battles: Spearman {spearman}, Kendall {kendall}. A less confident judge rates models closer together "
            "without ranking them worse."
        )
        yield Section("Leaderboard", ("model", "battles", "by people", f"by {name_judge(report)}"), rows, note)


def _list_style(report: Mapping) -> Iterator[Section]:
    judge = name_judge(report)
    if facts := report.get("style"):
        rows = [
            (row["name"], *(format_estimate(row[who]) for who in ("people", "judge", "difference")))
            for row in facts["features"]
        ]
        note = (
            "By how much the log-odds of an answer rise with its style, per standard deviation, the other features "
            "held fixed. A less confident judge has smaller coefficients."
        )
        yield Section("Style", ("feature", "people", judge, "difference"), rows, note)
        rows = [
            (name, *(format_estimate(facts[who][key], why=NO_WINNER) for key in ("accuracy", "explained")))
            for who, name in (("judge", f"the verdicts of {judge}"), ("people", "people's votes"))
        ]
        note = (
            "Winners predicted from style alone, by a regression fitted on other prompts. On the third of the battles "
            f"where style moves {judge} least, its accuracy is {format_estimate(facts['matched'], why=NO_WINNER)}."
        )
        yield Section("What style alone explains", ("of", "winners named", "deviance explained"), rows, note)
        rows = [
            (row["name"], *(format_estimate(row[who], 0) for who in ("people", "judge"))) for row in facts["models"]
        ]
        note = (
            "As in the leaderboard, with length and markdown in the regression; the intervals are clustered by prompt "
            "(sandwich estimator)."
        )
        yield Section("Leaderboard with style held fixed", ("model", "by people", f"by {judge}"), rows, note)
    if facts := report.get("style_control"):
        rows = [
            (name, _format_metric(facts["before"], key), _format_metric(facts["after"], key))
            for key, name in METRIC_NAMES.items()
        ]
        note = "The style term is fitted on other prompts, without labels. style_controlled.parquet holds the result."
        yield Section("Without style", ("", f"{judge}", "style taken out"), rows, note)


def _list_votes(report: Mapping) -> Iterator[Section]:
    facts = report.get("votes")
    if not facts:
        return
    judge = name_judge(report)
    header = ("both", "votes alone", f"{judge} alone (not valid)", "votes", "worth", "to halve")
    note = (
        f"{facts['votes']:,} of {facts['battles']:,} battles have a vote. Both: prediction-powered intervals, valid if "
        f"the votes are a random sample of the battles, and tested with 10 votes or more. Worth: how many votes alone "
        "give the same width. To halve: how many more votes halve it; too many if that is more than the battles."
    )
    shares = [("answer a", facts["share_a"]), *((row["name"], row["win_rate"]) for row in facts["models"])]
    rows = [(name, *_format_powered(powered, 3)) for name, powered in shares]
    yield Section("Win rates by votes and judge", ("", *header), rows, note)
    rows = [(row["name"], *_format_powered(row["rating"], 0)) for row in facts["models"] if row["rating"]]
    note = "Bradley-Terry ratings, mean 1000, of models with at least ten votes."
    yield Section("Ratings by votes and judge", ("model", *header), rows, note)
    rows = [(f"{row['first']} over {row['second']}", *_format_powered(row["win_rate"], 3)) for row in facts["pairs"]]
    note = "How often the first wins, for pairs with at least ten votes."
    yield Section("Pairs by votes and judge", ("pair", *header), rows, note)
    names = {
        "agreement": "agreement with votes that name a winner",
        "kappa": "Cohen's kappa with people, beyond chance",
        "position_consistency": "share of winners that stay in the other order",
        "self_consistency": "share of passes with the verdict's winner",
    }
    rows = [(name, format_estimate(facts[key], why=NO_WINNER)) for key, name in names.items() if facts[key]]
    yield Section("Agreement with people and with itself", ("", judge), rows)


def _format_powered(facts: Mapping, digits: int) -> tuple[str, ...]:
    """Formats a quantity's three estimates, and what the judge is worth."""
    estimates = [format_estimate(facts[way], digits, "no votes") for way in ("both", "votes", "judge")]
    effective, more = facts["effective_votes"], facts["votes_to_halve"]
    worth = ("unknown", "unknown") if effective is None else (f"{effective:,.0f}", f"{more:,}" if more else "too many")
    return *estimates, f"{facts['votes']['count']:,}", *worth


# In the order in which they are shown.
SECTIONS = (
    _list_benchmark,
    _list_judge,
    _list_bounds,
    _list_calibration,
    _list_comparison,
    _list_baselines,
    _list_curves,
    _list_position,
    _list_length,
    _list_style,
    _list_tables,
    _list_leaderboard,
    _list_votes,
)


def conclude(report: Mapping, more: str) -> str:
    """Says what the report found in a few lines, for someone who reads nothing else.

    Args:
        more: Where the tables and pictures are.
    """
    accuracy = report["accuracy"]
    if accuracy["value"] is None:
        return f"No battle has a winner, so there is no accuracy. All tables and pictures: {more}"
    right = round(accuracy["value"] * accuracy["count"])
    who = f"The judge {name_judge(report)}" if "comparison" in report and "run" in report else "The judge"
    what = "outcome" if "labels" in report else "winner"
    lines = [f"{who} names the {what} of {right:,} of {accuracy['count']:,} battles: {_format_share(accuracy)}"]
    baselines = {name: row for name, row in report["baselines"].items() if name not in LESSER_BASELINES}
    rows = [(name, row["accuracy"], row["difference"]) for name, row in baselines.items()]
    if facts := report.get("comparison"):
        rows.append((facts["name"], facts["accuracy"], facts["accuracy_difference"]))
    cells = [(name, f"{other['value']:.0%}", *_compare(lead)) for name, other, lead in rows]
    table = format_table([("is it better than", "right in", "", "by points"), *cells])
    lines += [f"  {line}".rstrip() for line in table.splitlines()]
    pairs = next((row["accuracy"] for row in report["tables"].get(PAIR, ())), None)
    if pairs and pairs["value"] is not None:
        lines.append(f"Where only the prompt can tell ({pairs['count']:,} battles): {_format_share(pairs)}")
    ece = report["ece"]["value"]
    lines += [f"Its probabilities are {100 * ece:.0f} points off on average."] if ece is not None else []
    return "\n".join([*lines, f"All tables and pictures: {more}"])


def _format_share(estimate: Mapping) -> str:
    """Formats an estimate as `63% (58% to 68%)`."""
    if estimate["low"] is None:
        return f"{estimate['value']:.0%}"
    return f"{estimate['value']:.0%} ({estimate['low']:.0%} to {estimate['high']:.0%})"


def _compare(lead: Mapping) -> tuple[str, str]:
    """Says whether a lead is above 0, and gives its interval in points."""
    if lead["low"] is None:
        return "cannot be told", f"{100 * lead['value']:+.0f}"
    answer = "yes" if lead["low"] > 0 else "no" if lead["high"] < 0 else "cannot be told"
    return answer, f"{100 * lead['value']:+.0f} ({100 * lead['low']:+.0f} to {100 * lead['high']:+.0f})"


def format_report(report: Mapping) -> str:
    """Returns the report as text for a terminal, with the first `MOST_ROWS` rows of each table."""
    lines = [f"{name}: {_escape_controls(text)}" for name, text in describe_origin(report).items()]
    lines.append(summarize(report))
    for section in build_sections(report):
        cells = [list(map(_escape_controls, row)) for row in [section.header, *section.rows[:MOST_ROWS]]]
        lines += ["", _escape_controls(section.title)]
        lines += [f"  {line}".rstrip() for line in format_table(cells).splitlines()]
        if (left_out := len(section.rows) - MOST_ROWS) > 0:
            lines.append(f"  and {left_out:,} more rows in the full report")
        lines += [f"  {_escape_controls(section.note)}"] if section.note else []
    return "\n".join(lines)


def format_agreement(agreement: Mapping) -> str:
    """Returns the agreement of annotators, see `agreement.measure_agreement`, as text for a terminal."""
    votes, battles, shared = (f"{agreement[name]:,}" for name in ("votes", "battles", "shared"))
    why = "no battle has two votes"
    lines = [
        f"{votes} votes on {battles} battles, of which {shared} have two or more",
        f"Equal pairs of votes: {format_estimate(agreement['percent_agreement'], why=why)}",
        f"Krippendorff's alpha: {format_estimate(agreement['alpha'], why='all votes equal' if shared != '0' else why)}",
    ]
    rows = [("annotator", "votes", "with the others", "with the judge")]
    for name, found in agreement["annotators"].items():
        compared = [format_estimate(found.get(key)) for key in ("with_others", "with_judge")]
        rows.append((_escape_controls(name), f"{found['votes']:,}", *compared))
    return "\n".join([*lines, "", format_table(rows)])


def _escape_controls(text: str) -> str:
    """Replaces control characters, because names come from data and could change the terminal's state."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
