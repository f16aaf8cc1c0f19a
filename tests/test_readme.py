"""What README.md says is run here, or checked against the tree."""

import json
import re
import runpy
import sys

import pytest

from benchmarks.studies.tables import format_judges, format_parts, format_table
from modeling.data.battles import load_battles
from tests.helpers import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
SCRIPTS = {path.name for path in (REPOSITORY / "scripts").glob("*.py")}


def test_every_file_that_the_readme_names_exists():
    """Outputs are made by the demo and are left out; `<base>` stands for any of the recipes."""
    names = set(re.findall(r"(?:scripts|configs|modeling|tests)/[\w./-]*\w", README))
    assert len(names) > 20
    assert [name for name in sorted(names) if not (REPOSITORY / name).exists()] == []


def test_the_tree_lists_every_module_and_script():
    tree = README.split("## The tree")[1].split("```")[1]
    modules = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "modeling").rglob("*.py")}
    assert set(re.findall(r"modeling/[\w/]+\.py", tree)) == {name for name in modules if "__init__" not in name}
    verbs = re.search(r"scripts/ +one verb per file: (.*)", tree)[1].split(", ")
    assert {f"{verb}.py" for verb in verbs} == SCRIPTS == set(re.findall(r"^\| `scripts/(\w+\.py)`", README, re.M))


def test_every_make_target_and_flag_that_the_readme_names_exists():
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in set(re.findall(r"make (\w+)", "\n".join(re.findall(r"`{1,3}[^`]*`{1,3}", README)))):
        assert re.search(rf"^{target}:", makefile, re.M), target
    arguments = "".join(
        (REPOSITORY / "modeling" / f"{name}.py").read_text()
        for name in ("options", "arguments", "prediction_arguments")
    )
    others = {
        "config_file",
        "num_processes",
        "help",
        "help_all",
        "flag",
        "per_device_train_batch_size",
        "learning_rate",
        "max_steps",
        "report_to",
        "resume_from_checkpoint",
        *("train", "test", "soft", "work_dir"),  # flags of benchmarks.studies.study
        "no",  # of pip's --no-deps
    }
    for flag in set(re.findall(r"--([a-z_]+)", README)) - others:
        assert re.search(rf"^    {flag}: ", arguments, re.M), flag


def test_the_python_example_runs(members, monkeypatch):
    """With the tests' own members in the place of the demo's."""
    code = re.search(r"```python\n(.*?)```", README, re.S)[1]
    for orientation, folder in members.items():
        assert f'"outputs/demo/{orientation}"' in code
        code = code.replace(f"outputs/demo/{orientation}", str(folder))
    monkeypatch.chdir(REPOSITORY)
    found: dict = {}
    exec(code, found)  # the code stands in our own README
    assert {"id", "p_a", "p_b", "winner"} <= set(found["verdicts"]) and len(found["symmetric"]) == 72


def test_the_example_of_a_merged_member_runs(members, tmp_path, monkeypatch):
    """With a member of the tests' own, merged as the README says."""
    command = re.search(r"^python (scripts/publish\.py .*--merged.*)$", README, re.M)[1]
    flags = command.replace("outputs/demo/ab", str(members["ab"])).replace("outputs/merged/ab", str(tmp_path / "ab"))
    monkeypatch.setattr(sys, "argv", flags.split())
    monkeypatch.chdir(REPOSITORY)
    runpy.run_path(str(REPOSITORY / "scripts" / "publish.py"), run_name="__main__")
    code = re.search(r"```python\n(import modeling\.classifier.*?)```", README, re.S)[1]
    found: dict = {}
    exec(code.replace("outputs/merged/ab", str(tmp_path / "ab")), found)
    assert type(found["model"]).__name__ == "Gemma2ForPreference" and found["model"].score.dense is not None


def test_the_table_of_pseudo_labels_is_the_study_s():
    """Accuracy, log loss and their differences with intervals, as benchmarks/results/pseudolabels.json has them."""
    arms = json.loads((REPOSITORY / "benchmarks" / "results" / "pseudolabels.json").read_text())["arms"]
    text = (REPOSITORY / "docs" / "pseudolabels.md").read_text(encoding="utf-8")
    rows = [row for row in text.splitlines() if row.startswith(("| labelled alone", "| + pool", "| teacher, w"))]
    expected = [arm for found in arms.values() for name, arm in found.items() if name[:3] in ("lab", "+ p", "tea")]
    assert len(rows) == len(expected)
    for row, figures in zip(rows, expected, strict=True):
        cells = [cell.strip() for cell in row.split("|")]
        for name, at in (("accuracy", 3), ("log_loss", 5)):
            assert cells[at] == f"{figures[name][0]:.3f}", row
            if against := figures.get("against", {}).get("labelled alone"):
                assert cells[at + 1] == "{:+.3f} [{:+.3f}, {:+.3f}]".format(*against[name]), row


def test_the_study_s_tables_are_its_figures():
    """Every row, judges and baselines included, as benchmarks/results/study.json has it."""
    figures = json.loads((REPOSITORY / "benchmarks" / "results" / "study.json").read_text())
    tables = [format_table(title, arms) for title, arms in figures["tables"].items()]
    best = list(figures["judges"].values())[-1]
    for table in [format_judges(figures), format_parts(best), *tables]:
        assert table in README, table


def test_battles_are_packaged_with_the_code():
    assert load_battles(REPOSITORY / "modeling/data/demo/train.jsonl").num_rows == 216


@pytest.mark.parametrize("folder", ["demo", "gemma2-9b"])
def test_a_recipe_says_the_command_that_runs_it(folder):
    for path in (REPOSITORY / "configs" / folder).glob("*.yaml"):
        header = path.read_text(encoding="utf-8").split("\n\n")[0]
        assert f"scripts/{path.stem}.py" in header, path
