"""Publishes members, judges and bases to a local imitation of the Hub and loads judges from it; see hub_stub.py."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from modeling.data.battles import load_battles
from modeling.judging.judge import Judge
from modeling.judging.member import MEMBER_FILE, fingerprint_member, read_member
from modeling.network.base import find_base, fingerprint_base
from modeling.publishing.publish import check_publishable, publish_base, publish_member
from modeling.runtime.files import hash_file
from tests.helpers import REPOSITORY, SAMPLES, TRAINING, call, fail
from tests.hub_stub import READ_TOKEN, USER

REPO, BASE_REPO = f"{USER}/member", f"{USER}/base"
BATTLES = SAMPLES / "test.jsonl"


@pytest.fixture
def publish(monkeypatch):
    """Runs scripts/publish.py in this process."""

    def run(*flags) -> None:
        monkeypatch.setattr(sys, "argv", ["publish.py", *map(str, flags)])
        runpy.run_path(str(REPOSITORY / "scripts" / "publish.py"), run_name="__main__")

    return run


@pytest.fixture
def refuse(publish, caplog, hub):
    """Runs the script where it must end with exit code 2, a one-line error and no upload; returns that line."""

    def run(*flags) -> str:
        before = {repo: hub.files(repo) for repo in hub.repositories}
        with pytest.raises(SystemExit) as stop:
            publish(*flags)
        assert stop.value.code == 2 and {repo: hub.files(repo) for repo in hub.repositories} == before
        said = caplog.messages[-1]
        assert "\n" not in said and "Traceback" not in caplog.text
        return said

    return run


@pytest.fixture
def member(members, tmp_path) -> Path:
    """A copy of a member that a test may damage; its adapter names the base's real path."""
    shutil.copytree(members["ab"], folder := tmp_path / "ab")
    change_json(folder / "adapter_config.json", base_model_name_or_path=str(find_base_of(members["ab"])))
    return folder


def find_base_of(folder: Path) -> Path:
    config = json.loads((folder / "adapter_config.json").read_text())
    return (folder / config["base_model_name_or_path"]).resolve()


def change_json(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_facts(folder: Path, **training) -> None:
    change_json(folder / MEMBER_FILE, training=training)


# --- from the Hub, in a fresh process with an empty cache -------------------------------------------------------------

DRIVER = f"""
import json, runpy, sys
for flags in json.loads(sys.argv[1]):
    sys.argv = ["predict", *flags]
    runpy.run_path({str(REPOSITORY / "scripts" / "predict.py")!r}, run_name="__main__")
"""


def test_a_fresh_process_with_an_empty_cache_gives_the_same_probabilities(hub, publish, members, tmp_path):
    """Law 6, bit for bit: members by id and by commit, and a judge; each adapter names its base's id and commit."""
    for orientation, folder in members.items():
        publish("--member", folder, "--repo", f"{USER}/{orientation}", "--base_repo", BASE_REPO)
    publish("--judge", *members.values(), "--repo", f"{USER}/judge", "--base_repo", BASE_REPO)
    assert len(hub.repositories[BASE_REPO].commits) == 2  # its creation, and one push for all
    commit = hub.repositories[f"{USER}/ab"].branches["main"]
    hub.put(f"{USER}/ab", {"adapter_model.safetensors": b"newer, and broken"})
    hub.put(BASE_REPO, {"model.safetensors": b"newer, and broken"})
    judges = {
        "here": members.values(),
        "members": [f"{USER}/ab@{commit}", f"{USER}/ba"],
        "judge": [f"{USER}/judge"],
    }
    load_battles(BATTLES).select(range(12)).to_parquet(battles := tmp_path / "battles.parquet")
    commands = [
        ["--battles", battles, "--output_dir", tmp_path / name, "--use_cpu", "true", "--judge", *judge]
        for name, judge in judges.items()
    ]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(commands, default=str)],
        cwd=REPOSITORY,
        env=hub.environment(tmp_path / "fresh"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    here, *others = (pd.read_parquet(tmp_path / name / "predictions.parquet") for name in judges)
    for other in others:
        pd.testing.assert_frame_equal(other, here, check_exact=True)


# --- what is uploaded -------------------------------------------------------------------------------------------------


def test_a_member_goes_with_its_own_files_and_a_base_that_others_can_fetch(hub, publish, members):
    publish("--member", members["ab"], "--repo", REPO, "--base_repo", BASE_REPO)
    files, base = hub.files(REPO), find_base_of(members["ab"])
    assert set(files) == {path.name for path in members["ab"].iterdir()} | {"README.md"}
    unchanged = set(files) - {"adapter_config.json", "README.md"}
    assert all(files[name] == (members["ab"] / name).read_bytes() for name in unchanged)
    config = json.loads(files["adapter_config.json"])
    assert config["base_model_name_or_path"] == BASE_REPO
    assert config["revision"] == hub.repositories[BASE_REPO].branches["main"]
    pushed = hub.files(BASE_REPO)
    assert b"A base for Bothways members" in pushed.pop("README.md")
    assert pushed == {path.name: path.read_bytes() for path in base.iterdir()}
    assert hub.repositories[REPO].private and BASE_REPO in files["README.md"].decode()
    assert fingerprint_base(find_base(BASE_REPO)) == read_member(members["ab"]).base_fingerprint


def test_publishing_again_makes_no_commit(hub, publish, members, caplog):
    flags = ["--member", members["ab"], "--repo", REPO, "--base_repo", BASE_REPO]
    publish(*flags)
    sent = {kind: hub.counts[kind] for kind in ("commit", "put")}
    publish(*flags)
    assert {kind: hub.counts[kind] for kind in sent} == sent and sent["commit"] == 2


def test_another_member_replaces_the_first_and_keeps_the_users_own_files(hub, publish, members, tmp_path):
    """The second upload has no figures, so ours goes; the user's own picture and notes stay."""
    shutil.copytree(members["ab"], folder := tmp_path / "ab")
    shutil.copytree(find_base_of(members["ab"]), tmp_path / "base")
    change_json(folder / "adapter_config.json", base_model_name_or_path="../base")
    (folder / "figures").mkdir()
    (folder / "figures" / "selective.png").write_bytes(b"\x89PNG")
    flags = ["--member", folder, "--repo", REPO, "--base_repo", BASE_REPO]
    publish(*flags)
    assert "figures/selective.png" in hub.files(REPO)
    theirs = {"notes.md": b"mine", "figures/mine.png": b"mine", "LICENSE": b"mine"}
    hub.put(REPO, theirs)
    shutil.rmtree(folder / "figures")
    publish(*flags)
    files = hub.files(REPO)
    assert theirs.items() <= files.items() and "figures/selective.png" not in files
    assert set(files) - set(theirs) == {path.name for path in folder.iterdir()} | {"README.md"}


def test_a_judge_has_its_members_in_folders_and_a_removed_member_is_deleted(hub, publish, members):
    flags = ["--repo", REPO, "--base_repo", BASE_REPO]
    publish("--judge", *members.values(), *flags)
    files = hub.files(REPO)
    assert json.loads(files["judge.json"]) == {"format": 1, "members": ["ab", "ba"], "readings": "both"}
    assert {name for name in files if "/" not in name} == {"judge.json", "README.md"}
    assert files["ba/adapter_model.safetensors"] == (members["ba"] / "adapter_model.safetensors").read_bytes()
    assert {json.loads(files[f"{name}/adapter_config.json"])["base_model_name_or_path"] for name in members} == {
        BASE_REPO
    }
    hub.put(REPO, {"ba/mine.txt": b"mine"})
    publish("--judge", members["ab"], *flags)
    assert {name for name in hub.files(REPO) if name.startswith("ba/")} == {"ba/mine.txt"}
    publish("--member", members["ab"], *flags)
    assert not {name for name in hub.files(REPO) if name.startswith("ab/") or name == "judge.json"}


def test_a_judge_folder_goes_as_it_is(hub, publish, members, tmp_path):
    """A downloaded judge names a base on the Hub, so none has to be uploaded."""
    publish("--judge", *members.values(), "--repo", REPO, "--base_repo", BASE_REPO)
    hub_files = hub.files(REPO)
    for name, content in hub_files.items():
        (tmp_path / "judge" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "judge" / name).write_bytes(content)
    publish("--judge", tmp_path / "judge", "--repo", f"{USER}/copy")
    same = {name: content for name, content in hub.files(f"{USER}/copy").items() if name != "README.md"}
    assert same == {name: content for name, content in hub_files.items() if name != "README.md"}


@pytest.fixture
def evaluate(monkeypatch, tmp_path):
    """Evaluates members or predictions; returns the folder of the report."""

    def run(*flags) -> Path:
        flags = ["--battles", BATTLES, *flags, "--draws", 100, "--output_dir", tmp_path / "report"]
        call("evaluate", *flags, monkeypatch=monkeypatch)
        return tmp_path / "report"

    return run


def test_a_report_of_evaluate_becomes_the_evaluation_of_what_is_published(hub, publish, refuse, members, evaluate):
    """For a judge and for a member: the card shows its metrics, and its pictures are uploaded."""
    for flag, folders, repo in (("--judge", [*members.values()], f"{USER}/judge"), ("--member", [members["ab"]], REPO)):
        report = evaluate("--judge", *folders)
        flags = [flag, *folders, "--repo", repo, "--base_repo", BASE_REPO, "--report", report]
        publish(*flags)
        files, found = hub.files(repo), json.loads((report / "report.json").read_text())
        assert json.loads(files["evaluation.json"]) == found and "figures/reliability.png" in files
        assert f"{found['accuracy']['value']:.3f} [" in files["README.md"].decode()
    (report / "report.json").unlink()
    assert "expected a folder with report.json; found none" in refuse(*flags)


def test_another_judges_report_is_not_published(hub, publish, refuse, members, evaluate, sample_battles, tmp_path):
    """Nor one that says nothing of its judge, as for a random generator's predictions; nor of a part of the judge."""
    destination = ["--repo", REPO, "--base_repo", BASE_REPO]
    member, judge = ["--member", members["ab"]], ["--judge", *members.values()]
    way_out = "Evaluate what you publish, with evaluate.py --judge"
    prints = {name: fingerprint_member(read_member(folder)) for name, folder in members.items()}

    report = evaluate("--judge", members["ba"])
    said = refuse(*member, *destination, "--report", report)
    assert f"--report {report}: expected results of ab ({prints['ab']}); found those of ba ({prints['ba']})" in said
    assert way_out in said
    assert f"found those of ba ({prints['ba']})" in refuse(
        *judge, *destination, "--report", report, "--dry_run", "true"
    )

    report = evaluate("--judge", members["ab"], "--readings", "own")
    said = refuse(*member, *destination, "--report", report)
    assert "expected results of the passes ab:ab, ab:ba; found ab:ab" in said and way_out in said
    publish("--judge", members["ab"], "--readings", "own", *destination, "--report", report)

    verdicts = pd.DataFrame({"id": sample_battles["id"][:], "p_a": np.random.default_rng(0).random(72)})
    verdicts.to_parquet(tmp_path / "random.parquet")
    report = evaluate("--predictions", tmp_path / "random.parquet")
    said = refuse(*member, *destination, "--report", report)
    assert "expected the fingerprint of the judge it is about; found none" in said and way_out in said


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--hide_prompts", "true"], "expected results on whole battles; found hidden prompts"),
        (["--second_reading", 0.5], "expected results of all passes on each battle; found 36 battles without some"),
        (["--cascade", "{ba}", "--cascade_shares", 0.5], "expected results of ab .*; found those of ab .*, ba "),
        (["--cascade", "{ab}", "--cascade_shares", 1], "expected results of ab .*; found those of ab .*, ab-2 "),
    ],
)
def test_a_report_on_less_or_more_than_the_judges_verdicts_is_refused(
    flags, expected, hub, refuse, members, evaluate, tmp_path, monkeypatch
):
    """The predictions file says how they were made, and evaluate.py passes it on."""
    flags = [str(flag).format(**members) for flag in flags]
    common = ["--battles", BATTLES, "--judge", members["ab"], "--output_dir", tmp_path / "p"]
    call("predict", *common, *flags, monkeypatch=monkeypatch)
    report = evaluate("--predictions", tmp_path / "p" / "predictions.parquet")
    publication = ["--judge", members["ab"], "--repo", REPO, "--base_repo", BASE_REPO]
    assert re.search(expected, refuse(*publication, "--report", report))


def test_a_downloaded_judge_keeps_no_evaluation_of_other_passes(hub, publish, refuse, members, evaluate, tmp_path):
    """Its evaluation.json goes with it as it is, and not with members read in other orders."""
    report = evaluate("--judge", *members.values())
    publish("--judge", *members.values(), "--repo", REPO, "--base_repo", BASE_REPO, "--report", report)
    for name, content in hub.files(REPO).items():
        (tmp_path / "judge" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "judge" / name).write_bytes(content)
    publish("--judge", tmp_path / "judge", "--repo", f"{USER}/copy")
    assert hub.files(f"{USER}/copy")["evaluation.json"] == (report / "report.json").read_bytes()
    said = refuse("--judge", tmp_path / "judge", "--repo", f"{USER}/own", "--readings", "own")
    assert "evaluation.json: expected results of the passes ab:ab, ba:ba; found ab:ab, ab:ba, ba:ab, ba:ba" in said


def test_members_of_one_orientation_are_named_as_their_folders(hub, publish, member):
    shutil.copytree(member, again := member.parent / "again" / "ab")
    publish("--judge", member, again, "--repo", REPO, "--base_repo", BASE_REPO)
    assert json.loads(hub.files(REPO)["judge.json"])["members"] == ["ab", "ab-2"]
    assert [loaded.name for loaded in Judge.from_pretrained(REPO).members] == ["ab", "ab-2"]


def test_a_dry_run_lists_what_the_real_one_uploads_and_needs_no_hub(hub, publish, members, capsys, monkeypatch):
    flags = ["--member", members["ab"], "--repo", REPO, "--base_repo", BASE_REPO]
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        publish(*flags, "--dry_run", "true")
    said = capsys.readouterr().out
    assert not hub.counts and f"{REPO} (private)" in said and f"{BASE_REPO} (private)" in said
    rows = [line.split() for line in said.splitlines() if line.startswith("  ")]
    listed = [row for row in rows if row != ["file", "bytes"]]
    publish(*flags)
    sizes = [(name, len(content)) for repo in (BASE_REPO, REPO) for name, content in sorted(hub.files(repo).items())]
    assert [(name, int(size.replace(",", ""))) for name, size in listed] == sizes


def test_a_public_repository_and_a_branch_need_a_flag(hub, publish, members):
    flags = ["--member", members["ab"], "--repo", REPO, "--base_repo", BASE_REPO, "--private", "false"]
    publish(*flags, "--revision", "v2", "--commit_message", "Second")
    assert not hub.repositories[REPO].private and not hub.repositories[BASE_REPO].private
    assert hub.files(REPO) == {} and "member.json" in hub.files(REPO, "v2")


def test_a_merged_member_needs_no_base(hub, publish, members, tmp_path, sample_battles):
    flags = ["--merged", "true", "--output_dir", tmp_path / "merged", "--dtype", "float32"]
    publish("--member", members["ab"], *flags, "--repo", REPO)
    files = hub.files(REPO)
    assert {"config.json", "model.safetensors", "member.json"} < set(files) and "adapter_config.json" not in files
    battles = [battle for battle in sample_battles][:4]
    judges = (Judge.from_pretrained(name, dtype="float32") for name in (REPO, members["ab"]))
    merged, plain = (judge.predict(battles)["p_a"] for judge in judges)
    assert (merged - plain).abs().max() < 1e-5
    publish("--member", members["ab"], "--repo", REPO, "--base_repo", BASE_REPO)  # and back
    assert {"config.json", "model.safetensors"}.isdisjoint(hub.files(REPO))


# --- what must not be published ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (
            lambda m: (m / "optimizer.pt").write_bytes(b"state"),
            "expected only a member's own files; found optimizer.pt",
        ),
        (
            lambda m: (m / "model.safetensors").write_bytes(b"x"),
            "expected only a member's own files; found model.safetensors",
        ),
        (lambda m: (m / "notes").write_text("x"), "found notes. Move them away. Nothing was uploaded"),
        (lambda m: change_facts(m, output_dir="/data/runs/7"), "member.json: expected no absolute path; found '/data"),
        (lambda m: change_facts(m, command="train.py --base ~/base"), "expected no absolute path; found '~/base'"),
        (lambda m: change_facts(m, seen=f"at {m.resolve()}"), "member.json: expected no absolute path"),
        (lambda m: change_facts(m, base="C:\\bases\\one"), "expected no absolute path; found 'C:"),
        (lambda m: change_facts(m, key="hf_" + "a" * 34), "expected no secret; found what looks like a Hub token"),
        (lambda m: (m / "tokenizer.json").write_text("{}"), "expected tokenizer.json as it was saved"),
        (lambda m: (m / "probes.json").unlink(), "expected a member folder with probes.json; found none"),
        (
            lambda m: change_json(m / MEMBER_FILE, base_fingerprint="0" * 16),
            "expected the base it was trained on (0000",
        ),
        (
            lambda m: change_json(m / "adapter_config.json", base_model_name_or_path="../gone"),
            "expected its base in ../",
        ),
    ],
)
def test_what_must_not_be_published_is_refused_before_anything_is_sent(spoil, expected, member, refuse, hub):
    spoil(member)
    said = refuse("--member", member, "--repo", REPO, "--base_repo", BASE_REPO)
    assert expected in said and "a" * 34 not in said and not hub.counts


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "Expected one of --member, --judge and --base; found neither"),
        (["--member", "AB", "--judge", "AB", "--repo", REPO], "found --member and --judge"),
        (["--base", "AB", "--repo", REPO, "--revision", "x"], "--base: expected only --repo, --private and --dry_run"),
        (["--base", "no/where", "--repo", REPO], "--base no/where: expected the folder of a base; found none"),
        (["--base", "AB", "--repo", REPO], "expected config.json and safetensors"),
        (["--member", "AB"], "Expected --repo"),
        (["--member", "AB", "--repo", "plain"], "--repo plain: expected USER/NAME"),
        (["--member", "AB", "--repo", REPO, "--base_repo", "a/b/c"], "--base_repo a/b/c: expected USER/NAME"),
        (["--member", "AB", "--repo", REPO, "--base_repo", REPO], "expected two repositories; found someone/member"),
        (["--member", "AB", "--repo", REPO], "Pass --base_repo USER/NAME to push it there first"),
        (["--member", "no/where", "--repo", REPO], "--member no/where: expected the folder of a member; found none"),
        (["--judge", "AB", "no/where", "--repo", REPO], "--judge no/where: expected the folder of a member or judge"),
        (["--member", "AB", "--merged", "true", "--repo", REPO], "--merged and --output_dir: expected both or neither"),
        (
            ["--judge", "AB", "--merged", "true", "--output_dir", "x"],
            "--merged: expected --member, and neither --base_repo",
        ),
        (["--member", "AB", "--repo", REPO, "--hub_token", "hf_x"], "--hub_token: expected no token in a command"),
        (["--member", "AB", "--repo", REPO, "--hub-token=hf_x"], "--hub_token: expected no token in a command"),
    ],
)
def test_mistakes_in_the_command_are_named(flags, expected, members, refuse, hub):
    said = refuse(*(members["ab"] if flag == "AB" else flag for flag in flags))
    assert expected in said and not hub.counts


def test_another_model_s_repository_is_not_overwritten(members, refuse, publish, hub):
    flags = ["--member", members["ab"], "--repo", REPO, "--base_repo", BASE_REPO]
    hub.put(REPO, {"config.json": b"{}", "model.safetensors": b"weights", "README.md": b"A model"})
    assert "found another model's files (config.json, model.safetensors). Give another name" in refuse(*flags)
    assert "found a private one. Pass --private true, or make it public" in refuse(*flags, "--private", "false")
    hub.put(REPO, {"config.json": None, "model.safetensors": None, "README.md": b"To come"})
    publish(*flags)
    assert "found member.json. Give another name" in refuse(*flags[:3], f"{USER}/new", "--base_repo", REPO)


def test_a_login_that_may_not_write_is_found_first(members, refuse, hub, monkeypatch, tmp_path):
    flags = ["--member", members["ab"], "--repo", REPO, "--base_repo", BASE_REPO]
    for token, expected in ((None, "expected a login; found none"), (READ_TOKEN, "found one of someone that may only")):
        hub.connect(monkeypatch, tmp_path / "home", token)
        assert expected in refuse(*flags)
    hub.connect(monkeypatch, tmp_path / "home")
    assert "because the login is someone's" in refuse("--member", members["ab"], "--repo", "else/x", *flags[4:])


# --- what must not load -----------------------------------------------------------------------------------------------


def test_a_member_that_was_changed_on_the_hub_is_refused(hub, publish, members, tmp_path):
    """A missing head, even with a matching hash; a file that differs from its hash."""
    publish("--member", members["ab"], "--repo", REPO, "--base_repo", BASE_REPO)
    whole = hub.files(REPO)
    weights = load_file(members["ab"] / "adapter_model.safetensors")
    headless = {name: tensor for name, tensor in weights.items() if "score" not in name}
    assert len(headless) < len(weights)
    save_file(headless, tmp_path / "headless.safetensors")
    facts = json.loads(whole["member.json"])
    facts["files"]["adapter_model.safetensors"] = hash_file(tmp_path / "headless.safetensors")
    content = (tmp_path / "headless.safetensors").read_bytes()
    hub.put(REPO, {"adapter_model.safetensors": content, "member.json": json.dumps(facts).encode()})
    with pytest.raises(ValueError, match=r"tensors of its base's layers and head; of these .* are missing"):
        Judge.from_pretrained(REPO)
    for name in ("tokenizer.json", "probes.json", "adapter_model.safetensors"):
        hub.put(REPO, {**whole, name: whole[name] + b" "})
        with pytest.raises(ValueError, match=f"expected {name} as it was saved"):
            Judge.from_pretrained(REPO)
    hub.put(REPO, whole)
    hub.put(BASE_REPO, {"config.json": hub.files(BASE_REPO)["config.json"] + b" "})
    Judge.from_pretrained(REPO)  # the adapter names the base's commit, so a newer one changes nothing


# --- from training and quantising -------------------------------------------------------------------------------------


def test_a_base_is_pushed_once_it_is_written_and_its_members_need_no_push(
    hub, publish, plain_backbone, make_member, tmp_path, monkeypatch, caplog
):
    flags = ["--base", plain_backbone, "--quantization", "none", "--output_dir", tmp_path / "base"]
    flags += ["--push_to_hub", "true", "--hub_model_id", BASE_REPO]
    hub.connect(monkeypatch, tmp_path / "home", READ_TOKEN)
    with pytest.raises(SystemExit):
        call("quantize", *flags, monkeypatch=monkeypatch)
    assert "may only read" in caplog.messages[-1] and not (tmp_path / "base").exists()  # before the work
    hub.connect(monkeypatch, tmp_path / "home")
    call("quantize", *flags, monkeypatch=monkeypatch)
    pushed = hub.files(BASE_REPO)
    assert b"Made from | plain" in pushed.pop("README.md")
    assert pushed == {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()}
    assert hub.repositories[BASE_REPO].private
    hub.failures["commit"] = ["500"]
    with pytest.raises(SystemExit):
        call("quantize", *flags[:-1], f"{USER}/other", monkeypatch=monkeypatch)
    command = f"scripts/publish.py --base {tmp_path / 'base'} --repo {USER}/other"
    assert f"All files were written. Upload them with `{command}`." in caplog.messages[-1]
    publish("--base", tmp_path / "base", "--repo", f"{USER}/other", "--dry_run", "true")
    assert hub.files(f"{USER}/other") == {}
    publish("--base", tmp_path / "base", "--repo", f"{USER}/other")
    assert hub.files(f"{USER}/other").keys() == hub.files(BASE_REPO).keys()

    base = find_base(BASE_REPO)
    check_publishable(REPO, base)
    make_member(tmp_path / "ab", base, "ab")
    pushed = publish_member(tmp_path / "ab", REPO)
    assert json.loads(hub.files(REPO)["adapter_config.json"])["revision"] == base.revision
    assert len(hub.repositories[BASE_REPO].commits) == 2  # its creation, and the one push
    assert len(Judge.from_pretrained(f"{REPO}@{pushed.commit}").members) == 1
    with pytest.raises(ValueError, match=r"expected a base on the Hub, .* found a local folder"):
        check_publishable(REPO, replace(base, repo=None))
    with pytest.raises(ValueError, match="found another model's files"):
        hub.put(f"{USER}/model", {"model.safetensors": b"weights"})
        check_publishable(f"{USER}/model", base)
    with pytest.raises(ValueError, match="--hub_model_id plain: expected USER/NAME"):
        check_publishable("plain", base)


def test_a_member_is_pushed_once_it_is_trained(hub, bases, tmp_path, monkeypatch, caplog):
    flags = [TRAINING, "--orientation", "ab", "--train_file", BATTLES, "--max_steps", 1, "--max_length", 64]
    flags += ["--freeze_layers", 0, "--output_dir", tmp_path / "ab", "--push_to_hub", "true", "--hub_model_id", REPO]
    said = fail("train", *flags, "--base", bases["float32"].folder, monkeypatch=monkeypatch, caplog=caplog)
    assert "expected a base on the Hub" in said and not hub.counts and not (tmp_path / "ab").exists()
    with_terms = shutil.copytree(bases["float32"].folder, tmp_path / "base")
    (with_terms / "NOTICE.md").write_text("Terms apply.", encoding="utf-8")
    base = publish_base(with_terms, BASE_REPO)
    call("train", *flags, "--base", f"{BASE_REPO}@{base.commit}", monkeypatch=monkeypatch)
    assert hub.files(REPO)["NOTICE.md"] == b"Terms apply."  # they go on from base to member, by way of the Hub
    assert hub.files(REPO).keys() == {path.name for path in (tmp_path / "ab").iterdir()}
    assert json.loads(hub.files(REPO)["adapter_config.json"])["revision"] == base.commit
    assert f"[{BASE_REPO}]" in hub.files(REPO)["README.md"].decode() and hub.repositories[REPO].private
    assert len(Judge.from_pretrained(REPO).members) == 1


def test_a_base_without_weights_is_not_pushed(hub, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"expected config.json and safetensors; found config.json"):
        publish_base(tmp_path, BASE_REPO)
    assert not hub.counts
