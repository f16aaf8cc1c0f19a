"""Plots of a benchmark's results."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import matplotlib.ticker

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from modeling.runtime.files import replace_file


def draw_results(results: Mapping, path: Path) -> None:
    """Writes a plot of the results; encoding and streaming have none."""
    draw = {"prediction": draw_ways, "training": draw_ways, "second_readings": draw_curve, "growth": draw_growth}
    if results["what"] not in draw:
        return
    figure = draw[results["what"]](results)
    with replace_file(path) as beside:
        figure.savefig(beside, dpi=120)
    plt.close(figure)


def draw_ways(results: Mapping) -> plt.Figure:
    """Returns bars of tokens and battles per second, relative to the notebook's, with their spread over the rounds."""
    ways = results["ways"]
    figure, axes = plt.subplots(1, 2, figsize=(10, 0.9 + 0.5 * len(ways)), sharey=True, layout="constrained")
    for axis, unit in zip(axes, ("tokens", "battles"), strict=True):
        for place, (name, way) in enumerate(reversed(ways.items())):
            median, least, most = way[f"{unit}_ratio"]
            color = "tab:blue" if name.startswith("ours") else "tab:gray"
            axis.barh(place, median, color=color, xerr=[[median - least], [most - median]], capsize=3)
            speed = f"{way[f'{unit}_per_second']:,.{0 if unit == 'tokens' else 2}f}/s"
            axis.text(0.02, place, speed, va="center", color="white")
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xlabel(f"{unit} per second, relative to the notebook's way")
    axes[0].set_yticks(range(len(ways)), list(reversed(ways)))
    figure.suptitle(f"{results['what'].capitalize()}: {results['machine']['device']}", fontsize=10)
    return figure


def draw_curve(results: Mapping) -> plt.Figure:
    """Returns accuracy and log loss against seconds, with intervals; a line marks the notebook's seconds."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for axis, key in zip(axes, ("accuracy", "log_loss"), strict=True):
        seconds = [row["seconds"] for row in results["curve"]]
        value, low, high = zip(*(row[key] for row in results["curve"]), strict=True)
        axis.plot(seconds, value, "o-", color="tab:blue", label="battles with a second pass, 0 to 100%")
        axis.fill_between(seconds, low, high, color="tab:blue", alpha=0.15)
        together = results["together"]
        middle, least, most = together[key]
        error = [[middle - least], [most - middle]]
        axis.errorbar(together["seconds"], middle, error, fmt="s", color="tab:orange", label="both passes at once")
        axis.axvline(results["notebook_seconds"], color="black", linestyle="--", label="the notebook's way")
        axis.set_xlabel(f"seconds for {results['battles']} battles")
        axis.set_ylabel(key.replace("_", " "))
        for row in results["curve"][::2]:
            place = (row["seconds"], row[key][0])
            axis.annotate(f"{row['share']:.0%}", place, (0, 7), textcoords="offset points", fontsize=8)
    axes[0].legend(fontsize=8, loc="lower right")
    return figure


def draw_growth(results: Mapping) -> plt.Figure:
    """Returns seconds against the number of battles and against their length, on logarithmic axes."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, (name, table) in zip(axes, results["tables"].items(), strict=True):
        sizes = [int(size) for size in table]
        per = [1 if name == "battles" else row["battles"] for row in table.values()]
        for key, label in (("seconds", "prediction"), ("encoding_seconds", "encoding in both orders")):
            exponent = results["exponents"][name][key]
            values = [row[key] / count for row, count in zip(table.values(), per, strict=True)]
            axis.loglog(sizes, values, "o-", label=f"{label}, exponent {exponent:.2f}")
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axis.set_xlabel("battles" if name == "battles" else "tokens per battle")
        axis.set_ylabel("seconds" if name == "battles" else "seconds per battle")
        axis.legend(fontsize=8)
    return figure
