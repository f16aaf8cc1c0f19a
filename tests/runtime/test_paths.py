"""Names on a command line: packaged files, and ids of Hub repositories."""

import pytest

import modeling
from modeling.data.battles import DEMO_FOLDER
from modeling.runtime import paths


def test_packaged_battles_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "package:modeling/data/demo/test.jsonl"
    assert paths.split_source(name) == (str(DEMO_FOLDER / "test.jsonl"), None, None)
    assert len(modeling.load_battles(name)) == 252
    with pytest.raises(FileNotFoundError, match=r"expected the file none\.csv in the package; found none"):
        paths.check_source("package:modeling/none.csv")
    with pytest.raises(FileNotFoundError, match=r"expected the installed package no\.such; found none"):
        paths.check_source("package:no.such/none.csv")


def test_a_command_is_told_as_typed_without_folders_of_this_machine(tmp_path, monkeypatch):
    """Law 12: a path inside the working directory is relative to it, and any other is only a name."""
    monkeypatch.chdir(tmp_path)
    argv = ["/home/someone/bothways/scripts/train.py", "--orientation", "ab", "--train_file", "/data/my battles.csv"]
    argv += ["--eval_file=/data/test.csv", "--base", str(tmp_path / "outputs" / "base"), "--judge", "owner/name@main"]
    argv += ["../other/judge", "~/judge", "sub/../here.csv", "--output_dir", "outputs/mine/ab", "--columns", "id=key"]
    assert paths.describe_command(argv, "accelerate launch") == (
        "accelerate launch scripts/train.py --orientation ab --train_file 'my battles.csv' --eval_file=test.csv "
        "--base outputs/base --judge owner/name@main judge judge here.csv --output_dir outputs/mine/ab "
        "--columns id=key"
    )


def test_a_repository_id_is_what_the_hub_accepts():
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    names = [
        "gpt2",
        "a/b",
        "a/b.c-d_e",
        "outputs/demo/base",
        "/a/b",
        "../a",
        "./a",
        "a--b",
        "a/b.git",
        "é/a",
        "",
        "a b",
    ]
    for name in [*names, "-a/b", "a/b-", "x" * 97]:
        try:
            validate_repo_id(name)
            expected = True
        except HFValidationError:
            expected = False
        assert paths.is_repository_id(name) is expected, name
