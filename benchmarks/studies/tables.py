"""A study's results as Markdown tables and as a plot."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from modeling.evaluation.text_report import format_estimate


def format_table(title: str, arms: Mapping[str, dict]) -> str:
    """Returns a row per arm: accuracy, log loss, and their differences from the arm it is compared with.

    Args:
        title: Heading of the first column.
        arms: The result of `measure_arms`.
    """
    lines = [f"| {title} | accuracy [95%] | compared with | difference | log loss | difference |", "|---" * 6 + "|"]
    for arm, found in arms.items():
        other, differences = next(iter(found.get("against", {}).items()), ("", {}))
        cells = [arm, "{:.3f} [{:.3f}, {:.3f}]".format(*found["accuracy"]), other]
        cells.append("{:+.3f} [{:+.3f}, {:+.3f}]".format(*differences["accuracy"]) if differences else "")
        cells.append(f"{found['log_loss'][0]:.3f}")
        cells.append("{:+.3f} [{:+.3f}, {:+.3f}]".format(*differences["log_loss"]) if differences else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def format_parts(judge: Mapping) -> str:
    """Returns a judge's accuracy and log loss by language, by who gave the verdict, and on its most certain battles.

    Args:
        judge: One of `judges` in benchmarks/results/study.json.
    """
    lines = ["| | battles | accuracy [95%] | log loss [95%] |", "|---" * 4 + "|"]
    for row in [*judge["report"]["tables"]["language"], *judge["report"]["tables"]["verdict"]]:
        accuracy, log_loss = (format_estimate(row[metric]) for metric in ("accuracy", "log_loss"))
        lines.append(f"| {row['name']} | {row['battles']} | {accuracy} | {log_loss} |")
    for row in judge["report"]["selective"]:
        if row["share"] in (0.1, 0.5):
            accuracy = row["accuracy"]
            lines.append(f"| its surest {row['share']:.0%} | {accuracy['count']} | {format_estimate(accuracy)} | |")
    return "\n".join(lines)


def format_judges(results: Mapping) -> str:
    """Returns a row per baseline and two per judge, before and after calibration.

    Args:
        results: The content of benchmarks/results/study.json.
    """
    lines = ["| | accuracy [95%] | log loss [95%] | ECE [95%] |", "|---" * 4 + "|"]
    for name, found in results["baselines"].items():
        log_loss = format_estimate(found["log_loss"]) if "log_loss" in found else ""
        lines.append(f"| {name} | {format_estimate(found['accuracy'])} | {log_loss} | |")
    for name, judge in results["judges"].items():
        for when, added in (("before", ""), ("after", ", calibrated")):
            cells = [format_estimate(judge[when][metric]) for metric in ("accuracy", "log_loss", "ece")]
            lines.append(f"| {name}{added} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_arms(tables: Mapping[str, Mapping[str, dict]], baselines: Mapping[str, dict], path: Path) -> None:
    """Writes a plot of every arm's accuracy with its 95% interval, one panel per table; lines mark the baselines."""
    sizes = [len(arms) for arms in tables.values()]
    figure, panels = plt.subplots(
        len(tables), figsize=(8, 0.27 * sum(sizes) + 0.5 * len(tables)), sharex=True, height_ratios=sizes
    )
    scored = max(found["scored"] for arms in tables.values() for found in arms.values())
    for panel, (title, arms) in zip(panels, tables.items(), strict=True):
        for place, found in enumerate(arms.values()):
            value, low, high = found["accuracy"]
            panel.plot([low, high], [place, place], color="tab:blue", linewidth=1.5)
            panel.plot(value, place, "o", color="tab:blue", markersize=4)
        # The baselines were scored on all battles: their lines would mislead where a table has fewer.
        is_scored_on_all = next(iter(arms.values()))["scored"] == scored
        for place, (name, value) in enumerate(baselines.items() if is_scored_on_all else ()):
            panel.axvline(
                value["accuracy"]["value"], color="0.5", linestyle=("--", ":", "-.")[place], linewidth=1, label=name
            )
        panel.set_yticks(range(len(arms)), arms, fontsize=8)
        panel.set_ylim(len(arms) - 0.5, -0.5)
        panel.set_title(title, fontsize=9, loc="left")
    panels[0].legend(fontsize=7, loc="upper left")
    panels[-1].set_xlabel("accuracy on battles without ties, 95% bootstrap intervals over prompts", fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
