"""Figures of a report, for its HTML page and for model cards.

They are drawn from the report alone, so that any report.json can be drawn again; this module must not know predictions
or battles. The colours are from Okabe and Ito's palette (2008) for colour-blind readers, and what differs in colour
also differs in shape.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from modeling.data.outcomes import LABELS
from modeling.evaluation.text_report import name_judge

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#6b6b6b"
WIDTH, HEIGHT, DPI = 6.4, 4.2, 130  # inches, inches, dots per inch
MARGIN = 0.03  # beyond the ends of a share's axis, so that intervals that end at 0 or 1 are drawn whole
MOST_LANGUAGES, LONGEST_NAME = 20, 28  # rows, characters
STYLE = {"fmt": "o", "markersize": 5, "capsize": 3, "elinewidth": 1.4, "linewidth": 1.6}
BAR_STYLE = {"color": BLUE, "alpha": 0.6, "edgecolor": "white"}


def draw_figures(report: Mapping, folder: Path) -> list[Path]:
    """Draws all figures that the report has data for and writes them as PNG files.

    Args:
        report: Result of `build_report`, possibly read back from JSON.
        folder: Folder for the files; it is created if missing.

    Returns:
        Paths of the files, of those that were drawn: baselines.png, reliability.png, position_bias.png, languages.png,
        length_bias.png and selective.png.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in DRAWINGS.items():
        if figure := draw(report):
            paths.append(folder / f"{name}.png")
            # Not pyplot, which keeps every figure in memory. Without "Software" the file has no version of matplotlib:
            # the same report gives the same bytes.
            FigureCanvasAgg(figure).print_png(paths[-1], metadata={"Software": None})
    return paths


def draw_reliability(report: Mapping) -> Figure | None:
    """Draws people's share for the favoured answer against its probability, and the number of battles below."""
    rows = report["reliability"]
    if not rows:
        return None
    figure = _build_figure(WIDTH, HEIGHT + 0.6)
    axes, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
    x, share = ([row[key] for row in rows] for key in ("mean_p", "share"))
    least = 1 / len(report.get("labels", LABELS))  # no favoured label has less
    axes.plot([least, 1], [least, 1], linestyle="--", color=GREY, label="perfectly calibrated")
    ends = _measure_ends(share, rows, "share_low", "share_high")
    axes.errorbar(x, share, ends, color=BLUE, label=_label_judge(report), **STYLE)
    lowest = min(least - 0.1, *(row["share"] if row["share_low"] is None else row["share_low"] for row in rows))
    axes.set(ylabel="people's share for the favoured answer", ylim=(lowest - MARGIN, 1 + MARGIN))
    axes.set_title(f"Reliability (ECE {_format_value(report['ece'])})")
    axes.legend(loc="upper left", frameon=False)
    widths = [row["high"] - row["low"] for row in rows]
    below.bar([row["low"] for row in rows], [row["battles"] for row in rows], widths, align="edge", **BAR_STYLE)
    below.set(xlabel="probability of the favoured answer", ylabel="battles", xlim=(least - 0.02, 1.02))
    return figure


def draw_position_bias(report: Mapping) -> Figure | None:
    """Draws the mean probability that each pass gives to the first answer."""
    rows = [(row["name"], row["mean_p_first"]) for row in report["readings"] if row.get("mean_p_first")]
    rows = [(name, estimate) for name, estimate in rows if estimate["value"] is not None]
    if not rows:
        return None
    bias = report["position_bias"]
    rows.append(("all passes", bias["mean_p_first"]))
    figure = _build_figure(WIDTH, 1.6 + 0.32 * len(rows))
    axes = figure.subplots()
    axes.axvline(0.5, linestyle="--", color=GREY)
    _draw_intervals(axes, rows)
    flips = bias.get("flip_share")
    known = flips and flips["value"] is not None
    share = f"; {flips['value']:.1%} of verdicts change with the order" if known else ""
    axes.set_title(f"Position bias{share}")
    # The axis is symmetric around 0.5, so that the direction of a bias is visible at once.
    ends = [e["value"] if e[end] is None else e[end] for _, e in rows for end in ("low", "high")]
    reach = max(0.05, *(abs(end - 0.5) for end in ends))
    axes.set(
        xlabel="mean probability of the first answer (0.5: no bias)",
        xlim=(0.5 - 1.15 * reach, 0.5 + 1.15 * reach),
    )
    return figure


def draw_baselines(report: Mapping) -> Figure | None:
    """Draws the judge's accuracy beside that of each baseline and of the judge it is compared with."""
    rows = [(name, row["accuracy"]) for name, row in report["baselines"].items()]
    if facts := report.get("comparison"):
        rows.append((_shorten(facts["name"]), facts["accuracy"]))
    if not rows or report["accuracy"]["value"] is None:
        return None
    rows.insert(0, (_shorten(name_judge(report)), report["accuracy"]))
    figure = _build_figure(WIDTH, 1.4 + 0.34 * len(rows))
    axes = figure.subplots()
    axes.axvline(0.5, linestyle=":", color=GREY)
    axes.axvline(report["accuracy"]["value"], linestyle="--", color=ORANGE)
    _draw_intervals(axes, rows)
    axes.set_title("Accuracy beside the baselines (battles without ties)")
    axes.set(xlabel="accuracy, 95% interval (0.5: guessing)")
    return figure


def draw_languages(report: Mapping) -> Figure | None:
    """Draws the accuracy per language, most battles first, beside the accuracy on all languages."""
    table = [row for row in report["tables"].get("language", []) if row["accuracy"]["value"] is not None]
    if not table:
        return None
    shown = table[:MOST_LANGUAGES]
    rows = [(f"{_shorten(row['name'])} ({row['accuracy']['count']:,})", row["accuracy"]) for row in shown]
    figure = _build_figure(WIDTH, 1.6 + 0.3 * len(rows))
    axes = figure.subplots()
    axes.axvline(0.5, linestyle=":", color=GREY, label="guessing")
    axes.axvline(report["accuracy"]["value"], linestyle="--", color=ORANGE, label="all languages")
    _draw_intervals(axes, rows)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    more = f", the {len(shown)} most frequent" if len(table) > len(shown) else ""
    axes.set_title(f"Accuracy by language{more} (battles without ties)")
    axes.set(xlabel="accuracy, 95% interval", xlim=(-MARGIN, 1 + MARGIN))
    return figure


def draw_length_bias(report: Mapping) -> Figure | None:
    """Draws the judge's mean probability of a, and people's, against the length ratio of the answers."""
    rows = report["length_bias"].get("bins", [])
    if len(rows) < 2:
        return None
    figure = _build_figure(WIDTH, HEIGHT)
    axes = figure.subplots()
    axes.axhline(0.5, linestyle=":", color=GREY)
    x = np.array([row["log2_ratio"] for row in rows])
    shift = 0.008 * np.ptp(x)  # moves the two curves apart, so that neither hides the other
    for key, label, color, marker, move in (
        ("mean_p", _label_judge(report), BLUE, "o", -shift),
        ("people", "people", ORANGE, "s", shift),
    ):
        values = [row[key]["value"] for row in rows]
        ends = _measure_ends(values, [row[key] for row in rows])
        axes.errorbar(x + move, values, ends, color=color, label=label, **(STYLE | {"fmt": f"{marker}-"}))
    correlation = _format_value(report["length_bias"]["correlation"])
    axes.set_title(f"Length bias (correlation of p_a with length {correlation})")
    axes.set(
        xlabel="length of a : length of b (characters)",
        ylabel="mean probability that a wins",
        ylim=(-MARGIN, 1 + MARGIN),
    )
    _name_ratios(axes, x)
    axes.legend(loc="upper left", frameon=False)
    return figure


def draw_selective(report: Mapping) -> Figure | None:
    """Draws the accuracy on the most confident share of the verdicts."""
    rows = report["selective"]
    if len(rows) < 2:
        return None
    figure = _build_figure(WIDTH, HEIGHT)
    axes = figure.subplots()
    x, values = [100 * row["share"] for row in rows], [row["accuracy"]["value"] for row in rows]
    lower, upper = _measure_ends(values, [row["accuracy"] for row in rows])
    axes.fill_between(x, np.array(values) - lower, np.array(values) + upper, color=BLUE, alpha=0.2, linewidth=0)
    axes.plot(x, values, "o-", color=BLUE, label=f"{_label_judge(report)}, with 95% interval")
    axes.axhline(0.5, linestyle=":", color=GREY, label="guessing")
    longer = report["baselines"].get("longer wins", {}).get("accuracy")
    if longer and longer["value"] is not None:
        axes.axhline(longer["value"], linestyle="--", color=ORANGE, label="longer wins, on all battles")
    axes.set_title("Accuracy on the most confident verdicts")
    axes.set(xlabel="share of battles, most confident first (%)", ylabel="accuracy", xlim=(7, 103))
    axes.legend(loc="best", frameon=False)
    return figure


DRAWINGS = {
    "baselines": draw_baselines,
    "reliability": draw_reliability,
    "position_bias": draw_position_bias,
    "languages": draw_languages,
    "length_bias": draw_length_bias,
    "selective": draw_selective,
}


def _build_figure(width: float, height: float) -> Figure:
    """Builds an empty figure; sizes in inches."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def _measure_ends(values: list[float], rows: list[Mapping], low: str = "low", high: str = "high") -> np.ndarray:
    """Returns the distances from each value down and up to its interval's ends, shape (2, rows); 0 without interval."""
    # max(): a percentile interval can exclude the value, and matplotlib refuses negative error bars.
    ends = [
        [0 if row[end] is None else max(sign * (row[end] - value), 0) for value, row in zip(values, rows, strict=True)]
        for sign, end in ((-1, low), (1, high))
    ]
    return np.array(ends, float)


def _draw_intervals(axes: Axes, rows: list[tuple[str, Mapping]]) -> None:
    """Draws estimates as horizontal intervals, the first on top."""
    values = [estimate["value"] for _, estimate in rows]
    ends = _measure_ends(values, [estimate for _, estimate in rows])
    places = np.arange(len(rows))[::-1]
    axes.errorbar(values, places, xerr=ends, color=BLUE, **STYLE)
    axes.set_yticks(places, [name for name, _ in rows], parse_math=False)  # a "$" in a name is no formula
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(axis="x", alpha=0.25)


def _name_ratios(axes: Axes, log2_ratios: np.ndarray) -> None:
    """Labels the x axis with at most nine ratios such as 1:4 instead of logarithms."""
    low, high = int(np.floor(log2_ratios.min())), int(np.ceil(log2_ratios.max()))
    ticks = list(range(low, high + 1, max(1, (high - low) // 8 + ((high - low) % 8 > 0))))
    axes.set_xticks(ticks, [f"{2**tick}:1" if tick > 0 else f"1:{2**-tick}" for tick in ticks])


def _format_value(estimate: Mapping) -> str:
    """Formats an estimate's value without its interval."""
    return "unknown" if estimate["value"] is None else f"{estimate['value']:.3f}"


def _label_judge(report: Mapping) -> str:
    """Returns the judge's label in a legend, where "$" would start a formula and a leading "_" would hide the label."""
    name = _shorten(report["run"]["judge"]) if "run" in report else ""
    return f"judge {name}".strip().replace("$", r"\$")


def _shorten(name: str) -> str:
    """Returns a name with at most `LONGEST_NAME` characters."""
    # The middle goes, because paths begin alike and end in what tells them apart.
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}"
