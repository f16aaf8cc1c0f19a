"""Pictures of a benchmark's figures."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import matplotlib.ticker

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def draw_figures(figures: Mapping, path: Path) -> None:
    """A picture of what was measured, where there is something to see."""
    draw = {"prediction": draw_ways, "training": draw_ways, "second_readings": draw_curve, "growth": draw_growth}
    if figures["what"] not in draw:
        return
    figure = draw[figures["what"]](figures)
    figure.savefig(beside := path.with_suffix(".new.png"), dpi=120)
    plt.close(figure)
    beside.rename(path)


def draw_ways(figures: Mapping) -> plt.Figure:
    """Tokens and battles a second as multiples of the notebook's, with the spread over the turns."""
    ways = figures["ways"]
    figure, axes = plt.subplots(1, 2, figsize=(10, 0.9 + 0.5 * len(ways)), sharey=True, layout="constrained")
    for axis, unit in zip(axes, ("tokens", "battles"), strict=True):
        for place, (name, way) in enumerate(reversed(ways.items())):
            median, least, most = way[f"{unit}_ratio"]
            color = "tab:blue" if name.startswith("ours") else "tab:gray"
            axis.barh(place, median, color=color, xerr=[[median - least], [most - median]], capsize=3)
            speed = f"{way[f'{unit}_per_second']:,.{0 if unit == 'tokens' else 2}f}/s"
            axis.text(0.02, place, speed, va="center", color="white")
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xlabel(f"{unit} a second, times the notebook's")
    axes[0].set_yticks(range(len(ways)), list(reversed(ways)))
    figure.suptitle(f"{figures['what'].capitalize()}: {figures['machine']['device']}", fontsize=10)
    return figure


def draw_curve(figures: Mapping) -> plt.Figure:
    """Accuracy and log loss against seconds, with intervals; the notebook's loop as a line."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for axis, key in zip(axes, ("accuracy", "log_loss"), strict=True):
        seconds = [row["seconds"] for row in figures["curve"]]
        value, low, high = zip(*(row[key] for row in figures["curve"]), strict=True)
        axis.plot(seconds, value, "o-", color="tab:blue", label="share with a second reading, 0 to 100%")
        axis.fill_between(seconds, low, high, color="tab:blue", alpha=0.15)
        together = figures["together"]
        middle, least, most = together[key]
        error = [[middle - least], [most - middle]]
        axis.errorbar(together["seconds"], middle, error, fmt="s", color="tab:orange", label="both read together")
        axis.axvline(figures["notebook_seconds"], color="black", linestyle="--", label="the notebook's loop")
        axis.set_xlabel(f"seconds for {figures['battles']} battles")
        axis.set_ylabel(key.replace("_", " "))
        for row in figures["curve"][::2]:
            place = (row["seconds"], row[key][0])
            axis.annotate(f"{row['share']:.0%}", place, (0, 7), textcoords="offset points", fontsize=8)
    axes[0].legend(fontsize=8, loc="lower right")
    return figure


def draw_growth(figures: Mapping) -> plt.Figure:
    """Seconds against the number of battles and against their length, both axes logarithmic."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, (name, table) in zip(axes, figures["tables"].items(), strict=True):
        sizes = [int(size) for size in table]
        per = [1 if name == "battles" else row["battles"] for row in table.values()]
        for key, label in (("seconds", "to read"), ("encoding_seconds", "to encode in both orders")):
            exponent = figures["exponents"][name][key]
            values = [row[key] / count for row, count in zip(table.values(), per, strict=True)]
            axis.loglog(sizes, values, "o-", label=f"{label}, exponent {exponent:.2f}")
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axis.set_xlabel("battles" if name == "battles" else "tokens of a battle")
        axis.set_ylabel("seconds" if name == "battles" else "seconds a battle")
        axis.legend(fontsize=8)
    return figure
