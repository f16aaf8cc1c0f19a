"""A report as titled tables of texts, the same ones for the terminal and for the page. Knows nothing but the report."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from unicodedata import east_asian_width

MOST_ROWS = 12  # of a table in the terminal
ABSENT = "-"
FIGURES = {"accuracy": "accuracy", "log_loss": "log loss", "brier": "Brier", "ece": "ECE", "auc": "AUC"}
FIGURE_NOTES = {
    "accuracy": "share of battles without ties whose winner was predicted; guessing gives 0.5",
    "log_loss": "cost of the probabilities, ties included; always 1/2 gives 0.693, lower is better",
    "brier": "mean squared error of the probabilities; always 1/2 gives 0.25 on battles without ties",
    "ece": "mean distance between probability and what happened; chance alone makes it larger than 0",
    "auc": "how often a battle that a won has a higher p than one that b won; guessing gives 0.5",
}
TABLE_TITLES = {
    "language": "By language",
    "source": "By source",
    "verdict": "By kind of verdict",
    "length": "By length of prompt and answers",
    "cut": "By whether text was cut",
}


@dataclass
class Section:
    """A table with a title, a sentence that says how to read it, and perhaps a figure (a file's stem)."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""
    figures: list[str] = field(default_factory=list)


def format_estimate(estimate: Mapping | None, digits: int = 3) -> str:
    """`0.634 [0.584, 0.679]`; a dash where there is nothing to say."""
    if not estimate or estimate["value"] is None:
        return ABSENT
    ends = [ABSENT if estimate[end] is None else f"{estimate[end]:.{digits}f}" for end in ("low", "high")]
    return f"{estimate['value']:.{digits}f} [{', '.join(ends)}]"


def summarize(report: Mapping) -> str:
    """What was scored, in a sentence."""
    ties = report["battles"] - report["decided"]
    return (
        f"{report['battles']:,} battles on {report['prompts']:,} prompts ({report.get('grouping', 'grouped')}), "
        f"{ties:,} of them ties or even labels; {report['confidence']:.0%} intervals in brackets, by "
        f"{report['draws']:,} bootstrap draws of prompts (none from fewer than 6 prompts)"
    )


def build_sections(report: Mapping) -> list[Section]:
    """All that the report has facts for, in reading order."""
    return [section for build in SECTIONS for section in build(report) if section.rows]


def _list_judge(report: Mapping) -> Iterator[Section]:
    rows = [
        (name, format_estimate(report[key]), f"{report[key]['count']:,}", FIGURE_NOTES[key])
        for key, name in FIGURES.items()
    ]
    yield Section("The judge", ("", "value", "battles", "what it says"), rows)


def _list_calibration(report: Mapping) -> Iterator[Section]:
    if facts := report.get("calibration"):
        rows = [
            (name, format_estimate(facts["before"][key]), format_estimate(facts["after"][key]))
            for key, name in FIGURES.items()
        ]
        what = facts["method"]
        if facts.get("temperature"):
            what += f" {facts['temperature']:.3f}"
        if facts.get("battles"):
            what += f", fitted on {facts['battles']:,} other battles"
        note = f"{what}. All other figures are those after it."
        yield Section("Calibration", ("", "before", "after"), rows, note)


def _list_comparison(report: Mapping) -> Iterator[Section]:
    if facts := report.get("comparison"):
        rows = [
            (FIGURES[key], *map(format_estimate, (report[key], facts[key], facts[f"{key}_difference"])))
            for key in ("accuracy", "log_loss")
        ]
        test = facts["mcnemar"]
        note = (
            f"{test['only_first']:,} battles are right only here and {test['only_second']:,} only there: McNemar's "
            f"p = {test['p_value']:.2g}. A difference whose interval includes 0 may be chance."
        )
        yield Section(f"Against {facts.get('name', 'the other')}", ("", "here", "there", "difference"), rows, note)


def _list_baselines(report: Mapping) -> Iterator[Section]:
    rows = [
        (name, format_estimate(row["accuracy"]), format_estimate(row.get("log_loss")))
        for name, row in report["baselines"].items()
    ]
    note = "A judge is worth its cost where its interval lies above these."
    if "tf-idf" not in report["baselines"]:
        note += " With training battles there would be TF-IDF too."
    yield Section("Baselines", ("", "accuracy", "log loss"), rows, note)


def _list_position(report: Mapping) -> Iterator[Section]:
    facts = report["position_bias"]
    names = {
        "mean_p_first": "mean p of the answer read first",
        "people_first": "share that people give to it",
        "first_wins": "share of readings that it wins",
        "flip_share": "share of verdicts that flip with the order",
    }
    rows = [(name, format_estimate(facts.get(key))) for key, name in names.items() if facts.get(key)]
    note = "" if facts.get("flip_share") else "No member read both orders, so flips are not known."
    if report["readings"]:
        yield Section("Position bias", ("", "value"), rows, note, ["position_bias"])
    readings = [
        (row["name"], *(format_estimate(row.get(key)) for key in ("accuracy", "log_loss", "mean_p_first")))
        for row in report["readings"]
    ]
    note = "Each member in each order alone: <member>_<order>."
    yield Section("PassSchedule", ("", "accuracy", "log loss", "mean p of the first"), readings, note)


def _list_length(report: Mapping) -> Iterator[Section]:
    facts = report["length_bias"]
    names = {
        "correlation": "correlation of p with the log of the lengths' ratio",
        "people_correlation": "the same of people's labels",
        "accuracy_length_matched": "accuracy where lengths differ by less than a fifth",
    }
    rows = [(name, format_estimate(facts.get(key))) for key, name in names.items() if facts.get(key)]
    yield Section("Length bias", ("", "value"), rows, figures=["length_bias"])


def _list_tables(report: Mapping) -> Iterator[Section]:
    for key, table in report["tables"].items():
        rows = [
            (row["name"], f"{row['battles']:,}", format_estimate(row["accuracy"]), format_estimate(row["log_loss"]))
            for row in table
        ]
        header, note = ("", "battles", "accuracy", "log loss"), ""
        if key == "cut":
            fields = (f"{name} of {cut['battles']:,}" for name, cut in report.get("cut_fields", {}).items())
            note = f"Cut: {', '.join(fields)}."
        yield Section(TABLE_TITLES.get(key, key), header, rows, note, ["languages"] if key == "language" else [])


def _list_curves(report: Mapping) -> Iterator[Section]:
    rows = [
        (f"{row['low']:.1f} to {row['high']:.1f}", f"{row['battles']:,}", f"{row['mean_p']:.3f}", f"{row['share']:.3f}")
        for row in report["reliability"]
    ]
    header = ("p of the favoured answer", "battles", "mean p", "people favour it too")
    yield Section("Reliability", header, rows, "Calibrated where the last two columns agree.", ["reliability"])
    rows = [
        (f"{row['share']:.0%}", f"{row['battles']:,}", format_estimate(row["accuracy"])) for row in report["selective"]
    ]
    yield Section("The surest verdicts alone", ("share", "battles", "accuracy"), rows, figures=["selective"])


def _list_leaderboard(report: Mapping) -> Iterator[Section]:
    if facts := report.get("leaderboard"):
        rows = [
            (row["name"], f"{row['battles']:,}", format_estimate(row["people"], 0), format_estimate(row["judge"], 0))
            for row in facts["models"]
        ]
        note = (
            f"Bradley-Terry ratings, mean 1000. Rank correlation of the {facts['ranked']:,} models with ten battles or "
            f"more: Spearman {format_estimate(facts['spearman'], 2)}, Kendall {format_estimate(facts['kendall'], 2)}. "
            "An unsure judge rates models closer together without ranking them worse."
        )
        yield Section("Leaderboard", ("model", "battles", "by people", "by the judge"), rows, note)


SECTIONS = (
    *(_list_judge, _list_calibration, _list_comparison, _list_baselines, _list_curves),
    *(_list_position, _list_length, _list_tables, _list_leaderboard),
)


def format_report(report: Mapping) -> str:
    """The report for a terminal; of long tables the first rows."""
    lines = [summarize(report)]
    for section in build_sections(report):
        shown = [section.header, *section.rows[:MOST_ROWS]]
        cells = [["".join(c if c.isprintable() else "\ufffd" for c in cell) for cell in row] for row in shown]
        widths = [max(map(_measure_width, column)) for column in zip(*cells, strict=True)]
        lines += ["", section.title]
        for row in cells:
            padded = (cell + " " * (width - _measure_width(cell)) for cell, width in zip(row, widths, strict=True))
            lines.append(f"  {'  '.join(padded)}".rstrip())
        if (left_out := len(section.rows) - MOST_ROWS) > 0:
            lines.append(f"  and {left_out:,} more rows, which the report has")
        lines += [f"  {section.note}"] if section.note else []
    return "\n".join(lines)


def _measure_width(text: str) -> int:
    """Places that a text takes in a terminal."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)
