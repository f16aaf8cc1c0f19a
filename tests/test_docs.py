"""README.md and docs/ are held to the code and to the result files: names, commands, links, examples, numbers."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from accelerate.commands.launch import launch_command_parser

import modeling
from benchmarks.speed.arguments import RECIPE, BenchmarkArguments
from benchmarks.studies.prediction_powered import format_results
from benchmarks.studies.tables import format_judges, format_parts, format_table
from modeling.data.battles import load_battles, read_battles
from modeling.evaluation.text_report import conclude
from modeling.runtime.packages import WEIGHTS
from modeling.settings import parsing
from modeling.settings.flags import list_flags, read_trainer_flags
from tests.helpers import REPOSITORY
from tests.settings.commands import KINDS

PAGES = {path.name: path.read_text(encoding="utf-8") for path in (REPOSITORY / "docs").glob("*.md")}
PAGES["README.md"] = (REPOSITORY / "README.md").read_text(encoding="utf-8")
RESULTS = REPOSITORY / "benchmarks" / "results"
SCRIPTS = {path.stem: path for path in (REPOSITORY / "scripts").glob("*.py")}
# Flags of accelerate, pip and curl, of --help itself, and the `--flag value` of a usage line.
FOREIGN_FLAGS = {"config_file", "num_processes", "help", "help_all", "flag", "no-deps", "module"}
FOREIGN_COMMANDS = {"pip", "docker", "curl", "id=$(curl", "umask"}


def locate(page: str) -> Path:
    return REPOSITORY / (page if page == "README.md" else f"docs/{page}")


def list_blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.M | re.S)


def list_commands() -> list[tuple[str, str]]:
    """Each command of each ```bash block with its page, lines that end in a backslash joined."""
    return [
        (page, line.strip())
        for page in sorted(PAGES)
        for block in list_blocks(page, "bash")
        for line in block.replace("\\\n", " ").splitlines()
    ]


def read_benchmark(module: str) -> str:
    """The sources that define the flags of a benchmark with a parser of its own, or with that of the study."""
    path = REPOSITORY.joinpath(*module.split("."))
    files = (
        path / "__main__.py" if path.is_dir() else path.with_suffix(".py"),
        REPOSITORY / "benchmarks/studies/real_battles.py",
    )
    return "".join(file.read_text(encoding="utf-8") for file in files)


def find_slugs(page: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.M | re.S)
    headings = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in re.findall(r"^#+ (.*)$", text, re.M)]
    return {heading.replace(" ", "-") for heading in headings}


# --- what is named exists ---------------------------------------------------------------------------------------------


def test_every_page_is_linked_from_the_readme():
    assert set(re.findall(r"\(docs/(\w+\.md)\)", PAGES["README.md"])) == set(PAGES) - {"README.md"}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_resolves(page):
    links = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", PAGES[page])
    for link in (first or second for first, second in links):
        path, _, anchor = link.partition("#")
        target = (locate(page).parent / path).resolve() if path else locate(page)
        assert target.exists(), link
        if anchor:
            assert anchor in find_slugs(target.name), link


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_exists(page):
    """`<base>` is any recipe; outputs/ is what commands make."""
    names = set(re.findall(r"(?<![\w/.])(?:scripts|configs|modeling|tests|benchmarks)/[\w./-]*\w", PAGES[page]))
    made = {f"scripts/{verb}" for verb in SCRIPTS}
    assert [name for name in sorted(names - made) if not (REPOSITORY / name).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_that_is_named_exists(page):
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"`{1,3}[^`]*`{1,3}", PAGES[page]))
    for target in set(re.findall(r"\bmake ([a-z][\w-]*)", code)):
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_that_is_named_exists(page):
    """In prose and tables; the commands are parsed below, each by its own script."""
    text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.M | re.S)
    known = {flag.name for verb in SCRIPTS for flag in list_flags(KINDS[verb])}
    known |= {flag.name for flag in read_trainer_flags()} | FOREIGN_FLAGS
    assert set(re.findall(r"--([a-z][\w-]*\w)", text)) <= known


# --- commands and examples --------------------------------------------------------------------------------------------


def find_flags(words: list[str]) -> tuple[type, dict, list[str]]:
    """The dataclass that a command's flags fill, other options of `parse_arguments`, and the words after the script."""
    if words[:2] == ["python", "-m"]:
        return BenchmarkArguments, {"verb": "benchmark", "default_recipe": RECIPE}, words[3:]
    if words[:2] == ["accelerate", "launch"]:
        launch = launch_command_parser().parse_args(words[2:])
        assert launch.config_file is None or (REPOSITORY / launch.config_file).is_file()
        module = "bothways." if launch.module else "scripts/"
        script, words = launch.training_script, launch.training_script_args
        assert script.startswith(module)
        verb = script.removeprefix(module).removesuffix(".py")
    else:
        assert words[0] == "bothways" or (words[:1] == ["python"] and words[1].startswith("scripts/")), words
        verb, words = Path(words[1]).stem, words[2:]
    return KINDS[verb], {"verb": verb, "trainer": verb == "train"}, words


@pytest.mark.parametrize(("page", "line"), list_commands())
def test_every_command_parses(page, line, monkeypatch):
    """By the script's own parser, values and combinations included; only that its files exist is not asked."""
    words = shlex.split(line, comments=True)
    while words and re.match(r"[A-Z_]+=", words[0]):
        del words[0]
    if not words or words[0] in {*FOREIGN_COMMANDS, "make"} or words == ["bothways", "doctor"]:
        return  # make's targets are looked up above
    if words[:2] == ["python", "-m"] and words[2] != "benchmarks.speed":
        source, flags = read_benchmark(words[2]), [word for word in words if word.startswith("--")]
        assert [flag for flag in flags if not re.search(rf'add_argument\(\s*"{flag}"', source)] == []
        return
    kind, options, words = find_flags(words)
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(parsing, "check_paths", lambda arguments: None)
    monkeypatch.setattr(parsing, "start_torch", lambda: True)
    parsing.parse_arguments(kind, argv=words, **options)


def test_every_python_example_is_run():
    """Below, in tests/serving/ (docs/app.md's in test_page.py, docs/decisions.md's in test_decisions.py), and
    docs/rewards.md's in tests/judging/test_rewards.py.
    """
    found = {page: len(blocks) for page in PAGES if (blocks := list_blocks(page, "python"))}
    assert found == {
        "README.md": 1,
        "prediction.md": 1,
        "ranking.md": 1,
        "publishing.md": 1,
        "app.md": 1,
        "decisions.md": 2,
        "rewards.md": 1,
    }


def run_example(page: str, members: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> dict:
    """The variables after a page's example, with other members."""
    (code,) = list_blocks(page, "python")
    ours = str([str(folder) for folder in members.values()])
    code, num_replaced = re.subn(r"from_pretrained\(.*?\)", lambda _: f"from_pretrained({ours})", code)
    assert num_replaced == 1
    monkeypatch.chdir(REPOSITORY)
    found: dict = {}
    exec(code, found)
    return found


@pytest.mark.parametrize("page", ["README.md", "prediction.md"])
def test_the_python_example_runs(page, members, monkeypatch):
    """With the tests' own members in place of the demo's, or of the default judge."""
    found = run_example(page, members, monkeypatch)
    verdict = found["verdict"]
    assert verdict.winner in ("model_a", "model_b") and 0 < verdict.p_a < 1
    if page == "prediction.md":
        assert {"id", "p_a", "p_b", "winner"} <= set(found["verdicts"]) and len(found["verdicts"]) == 252
        fields = re.search(r"returns a `Verdict`: (.*?)\. Printed", PAGES[page], re.S)[1]
        assert set(re.findall(r"`(\w+)`", fields)) <= set(verdict.to_dict())


def test_the_ranking_example_and_command_run(members, tmp_path, monkeypatch):
    """With the tests' own members in place of the default judge; the command on the demo's answer sets."""
    found = run_example("ranking.md", members, monkeypatch)
    assert len(found["rankings"]) == 2 and sorted(found["ranking"].ranking) == [0, 1, 2]
    fields = re.search(r"returns a `Ranking`: (.*?)\. Printed", PAGES["ranking.md"], re.S)[1]
    assert set(re.findall(r"`(\w+)`", fields)) == set(found["ranking"].to_dict())
    (command, *_) = [line for page, line in list_commands() if page == "ranking.md"]
    flags = command.replace("--judge default", f"--judge {members['ab']}").replace(
        "outputs/ranked", str(tmp_path / "out")
    )
    monkeypatch.setattr(sys, "argv", [*shlex.split(flags)[1:], "--use_cpu", "true"])
    runpy.run_path(str(REPOSITORY / "scripts" / "rank.py"), run_name="__main__")
    table = pd.read_parquet(tmp_path / "out" / "rankings.parquet")
    columns = re.findall(r"^\| (`.*`) \| ", PAGES["ranking.md"].split("\n## Output\n")[1].split("\n## ")[0], re.M)
    assert re.findall(r"`(\w+)`", " ".join(columns)) == list(table) and len(table) == 5


def test_the_commands_of_labelling_run(tmp_path, monkeypatch):
    """On the demo's battles, with probabilities at random. Two annotators fill in the file: one always left."""
    choose, _, read = [shlex.split(line) for page, line in list_commands() if page == "labelling.md"]
    battles = load_battles(REPOSITORY / choose[choose.index("--battles") + 1])
    passes = np.random.default_rng(0).random((len(battles), 2))
    table = pd.DataFrame(passes, columns=["p_a_both_ab", "p_a_both_ba"]).assign(id=battles["id"][:], p_a=passes.mean(1))
    table.to_parquet(tmp_path / "p.parquet")

    def run(words: list[str]) -> None:
        places = {"outputs/demo/predictions/predictions.parquet": "p.parquet", "outputs/selection": "out"}
        places |= {"outputs/labelled": "labelled", "ann.csv": "ann.csv", "bob.csv": "bob.csv"}
        words = [str(tmp_path / places[word]) if word in places else word for word in words]
        monkeypatch.setattr(sys, "argv", [*words[1:], "--use_cpu", "true"])
        monkeypatch.chdir(REPOSITORY)
        runpy.run_path(str(REPOSITORY / "scripts" / "select.py"), run_name="__main__")

    run(choose)
    tasks = pd.read_csv(tmp_path / "out" / "battles.csv", dtype=str)
    for name, winners in (("ann", ["left"] * 50), ("bob", ["left", "right", "tie", "both_bad", None] * 10)):
        tasks.assign(winner=winners, annotator=name).to_csv(tmp_path / f"{name}.csv", index=False)
    run(read)
    page = PAGES["labelling.md"].split("\n## Read back\n")
    added = [re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \| ", part, re.M))) for part in page]
    chosen, labelled = (
        pd.read_parquet(tmp_path / name) for name in ("out/selected.parquet", "labelled/labelled.parquet")
    )
    assert list(chosen)[-4:] == [name for name in added[0] if name in chosen]
    agreement = json.loads((tmp_path / "labelled" / "agreement.json").read_text())
    assert [*list(labelled)[-3:], *agreement] == added[1]
    assert agreement["percent_agreement"]["value"] == 0.25 and len(labelled) == 50


def test_every_form_of_battles_is_read(members, monkeypatch):
    """The rows of the two tables in docs/prediction.md, of which the second one calls the reader by itself."""
    found = run_example("prediction.md", members, monkeypatch)
    section = PAGES["prediction.md"].split("\n## From Python\n")[1].split("\n## ")[0]
    forms = re.findall(r"^\| .* \| `([(\[{\w].*)` \|$", section, re.M)
    assert len(forms) == 9
    for form in forms:
        battles = eval(form, {"pd": pd, "load_battles": load_battles, "read_battles": read_battles})
        verdicts = found["judge"].predict(battles, readings="own")
        assert len(verdicts) == (252 if "test.jsonl" in form else 2 if "Why?" in form else 1), form
        assert verdicts["id"][0] in (0, "x1") or "test.jsonl" in form


def test_the_example_of_a_merged_member_runs(members, tmp_path, monkeypatch):
    """With a member of the tests' own, merged by the command above the example."""
    (command,) = [line for page, line in list_commands() if page == "publishing.md" and "--merged" in line]
    flags = command.replace("outputs/demo/ab", str(members["ab"])).replace("outputs/merged/ab", str(tmp_path / "ab"))
    monkeypatch.setattr(sys, "argv", shlex.split(flags)[1:])
    monkeypatch.chdir(REPOSITORY)
    runpy.run_path(str(REPOSITORY / "scripts" / "publish.py"), run_name="__main__")
    (code,) = list_blocks("publishing.md", "python")
    found: dict = {}
    exec(code.replace("outputs/merged/ab", str(tmp_path / "ab")), found)
    assert type(found["model"]).__name__ == "Gemma2ForPreference" and found["model"].score.dense is not None


# --- architecture -----------------------------------------------------------------------------------------------------


def test_the_graph_is_that_of_the_package():
    """The same ten lines as in modeling/__init__.py, which tests/test_architecture.py holds to the imports."""
    (graph,) = list_blocks("architecture.md", "")[:1]
    assert [line.split()[0] for line in graph.splitlines()] == list(modeling.PACKAGES)
    assert [line.strip() for line in re.findall(r"^    \w+ {2,}.*$", modeling.__doc__, re.M)] == graph.splitlines()


def test_a_battle_is_predicted_by_five_packages_at_most():
    steps = PAGES["architecture.md"].split("through prediction")[1].split("\n## ")[0]
    packages = set(re.findall(r"modeling/(\w+)/", steps))
    assert packages <= set(modeling.PACKAGES) and len(packages) <= 5


def test_what_is_looked_for_is_where_the_page_says():
    rows = re.findall(r"^\| .* \| `(.*)`: `(\w+)` \|$", PAGES["architecture.md"], re.M)
    assert len(rows) > 10
    for path, name in rows:
        source = (REPOSITORY / path).read_text(encoding="utf-8")
        assert re.search(rf"^(def {name}\(|class {name}\b|{name} = )", source, re.M), f"{path}: {name}"


# --- numbers ----------------------------------------------------------------------------------------------------------


def read_results(name: str) -> dict | list:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def test_the_study_s_tables_are_its_results():
    """Every row, judges and baselines included."""
    results = read_results("study")
    tables = [format_table(title, arms) for title, arms in results["tables"].items()]
    for table in [format_judges(results), format_parts(list(results["judges"].values())[-1]), *tables]:
        assert table in PAGES["results.md"], table


def test_the_tables_of_pseudo_labels_are_the_study_s():
    """Accuracy, log loss and their differences with intervals."""
    arms = read_results("pseudolabels")["arms"]
    rows = [
        row
        for row in PAGES["pseudolabels.md"].splitlines()
        if row.startswith(("| labelled alone", "| + pool", "| teacher, w"))
    ]
    expected = [arm for found in arms.values() for name, arm in found.items() if name[:3] in ("lab", "+ p", "tea")]
    assert len(rows) == len(expected)
    for row, results in zip(rows, expected, strict=True):
        cells = [cell.strip() for cell in row.split("|")]
        for name, at in (("accuracy", 3), ("log_loss", 5)):
            assert cells[at] == f"{results[name][0]:.3f}", row
            if against := results.get("against", {}).get("labelled alone"):
                assert cells[at + 1] == "{:+.3f} [{:+.3f}, {:+.3f}]".format(*against[name]), row


def test_the_last_lines_of_the_demo_are_those_of_its_report():
    report = read_results("demo")
    assert f"```\n{conclude(report, 'outputs/demo/evaluation/report.html')}\n```" in PAGES["results.md"]


def test_the_table_of_few_votes_and_a_judge_is_the_simulation_s():
    results = read_results("prediction_powered")
    assert format_results(results) in PAGES["results.md"]
    widest = max(abs(found["rating"]["coverage"]["both"] - 0.95) for found in results["accuracies"].values())
    assert widest < 3 * (0.95 * 0.05 / results["repeats"]) ** 0.5  # 3 standard errors, if models hit or miss together


def test_the_table_of_chosen_labels_is_the_study_s():
    """And the numbers below it; no score may be called better than chance."""
    results, said = read_results("selection"), " ".join(PAGES["results.md"].split())
    arms, pool = results["arms"], results["arms"]["the whole pool"]
    assert format_table("labels", arms) in PAGES["results.md"]
    assert f"{pool['battles']:,} real battles with hidden votes, on {pool['prompts']} prompts" in said
    spread = arms["uncertainty, prompts spread"]["human"]
    assert f"are {pool['human']} of the pool, but {spread} of the 500 labels" in said
    against = {arm: found["against"]["random"] for arm, found in arms.items() if arm != "random"}
    better = [arm for arm, found in against.items() if found["accuracy"][1] > 0 or found["log_loss"][2] < 0]
    assert better == ["the whole pool"]


def test_numbers_in_the_text_are_the_measured_ones():
    """Those of the result files that are no table."""
    checkpoints, evaluation = map(read_results, ("checkpoints", "evaluation"))
    gemma, smollm = (
        "{median:.1f} times\n({least:.1f} to {most:.1f})".format(**each["speedup"]).replace("\n", " ")
        for each in read_results("encoding")
    )
    streaming, profile, curve = map(read_results, ("streaming", "profile_pack", "second_readings"))
    seconds = checkpoints["median_seconds"]
    expected = {
        "training.md": [
            f"{checkpoints['checkpoint_mb']} MB and {seconds['checkpoint']} s",
            f"{seconds['first_loss_resumed']:.1f} s after a crash and {seconds['first_loss_fresh']:.1f} s on a fresh",
        ],
        "evaluation.md": [
            f"{evaluation['battles']:,} predictions",
            f"{evaluation['seconds']['report, of all cores together']:.1f} s of processor time",
            f"{evaluation['votes']:,} votes and style control another "
            f"{evaluation['seconds']['votes and style control, of all cores together']:.1f} s",
            f"{evaluation['seconds']['report']:.1f} s",
        ],
        "performance.md": [
            f"{gemma} faster with Gemma-2's tokenizer, and {smollm} with SmolLM2's",
            f"{streaming['tokens'] / 1e6:.0f} million tokens",
            f"{sum(streaming['seconds'].values()):.0f} s on 2 CPU cores",
            f"{streaming['peak_memory_gb']:.2f} GB",
            f"{profile['shares']['matrix products']:.0%} of the time is bf16 matrix products ({profile['gflops']}",
            f"{profile['shares']['attention']:.0%} torch's attention kernel",
            f"{curve['notebook_seconds']:.0f} s",
        ],
    }
    for page, texts in expected.items():
        said = " ".join(PAGES[page].split())
        assert [text for text in texts if text not in said] == []


def test_the_bases_from_packages_are_those_that_the_program_knows():
    said = PAGES["training.md"]
    for name, weights in WEIGHTS.items():
        assert f"| `{name}` |" in said
        assert any(f"`{requirement.partition('==')[0]}`" in said for requirement in weights.requirements)
