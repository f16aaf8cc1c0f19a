import json
import shutil

import pytest
from accelerate import PartialState

from modeling.training.checkpoints import SEAL, compare_runs, delete_older_checkpoints, find_checkpoint, seal_checkpoint

PartialState(cpu=True)  # or nothing could be logged
RUN = {"learning_rate": 0.1, "seed": 0, "layers": [1, 2]}


@pytest.fixture
def checkpoints(tmp_path):
    """Three sealed checkpoints of one run, with files in folders of their own as DeepSpeed's have."""
    for step in (8, 9, 10):
        folder = tmp_path / f"checkpoint-{step}"
        (folder / "global_step").mkdir(parents=True)
        (folder / "weights").write_bytes(b"w" * 1000)
        (folder / "global_step" / "optimizer").write_bytes(b"o" * step)
        seal_checkpoint(folder, RUN)
    return tmp_path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("wanted", [None, "auto"])
def test_the_newest_complete_checkpoint_is_found_by_itself(checkpoints, wanted):
    """By number, not by name: 10 is newer than 9."""
    assert find_checkpoint(checkpoints, RUN, wanted) == checkpoints / "checkpoint-10"
    assert find_checkpoint(checkpoints / "none", RUN, wanted) is None


def tear(folder):
    (folder / "weights").write_bytes(b"w" * 999)


def flip(folder):
    (folder / "weights").write_bytes(b"w" * 999 + b"x")


def lose(folder):
    shutil.rmtree(folder / "global_step")


def unseal(folder):
    (folder / SEAL).unlink()


def tear_seal(folder):
    (folder / SEAL).write_text((folder / SEAL).read_text()[:-20])


@pytest.mark.parametrize("damage", [tear, flip, lose, unseal, tear_seal])
def test_a_damaged_checkpoint_is_deleted_and_the_one_before_it_taken(checkpoints, damage, caplog):
    damage(checkpoints / "checkpoint-10")
    assert find_checkpoint(checkpoints, RUN, None) == checkpoints / "checkpoint-9"
    assert names(checkpoints) == ["checkpoint-8", "checkpoint-9"] and "Deleting" in caplog.text


@pytest.mark.parametrize("damage", [tear, flip, lose, unseal, tear_seal])
def test_a_damaged_checkpoint_that_was_asked_for_is_an_error_and_stays(checkpoints, damage):
    damage(checkpoints / "checkpoint-8")
    with pytest.raises(
        ValueError, match=r"--resume_from_checkpoint .*checkpoint-8: expected a complete checkpoint; found"
    ):
        find_checkpoint(checkpoints, RUN, str(checkpoints / "checkpoint-8"))
    assert len(names(checkpoints)) == 3
    assert find_checkpoint(checkpoints, RUN, str(checkpoints / "checkpoint-9")) == checkpoints / "checkpoint-9"


@pytest.mark.parametrize("wanted", [None, "auto", "checkpoint-9"])
def test_a_run_with_other_settings_is_refused_with_the_difference_and_loses_nothing(checkpoints, wanted):
    wanted = str(checkpoints / wanted) if wanted == "checkpoint-9" else wanted
    with pytest.raises(ValueError, match=r"learning_rate: 0\.1 there, 0\.2 here; warmup: none there, 3 here\. Give"):
        find_checkpoint(checkpoints, {**RUN, "learning_rate": 0.2, "warmup": 3}, wanted)
    assert len(names(checkpoints)) == 3


def test_no_begins_anew_whatever_the_settings(checkpoints):
    assert find_checkpoint(checkpoints, {"seed": 1}, "no") is None
    assert names(checkpoints) == []


def test_settings_are_compared_as_they_are_written():
    assert compare_runs(json.loads(json.dumps({"layers": (1, 2)})), {"layers": (1, 2)}) == []


@pytest.mark.parametrize(
    ("keep", "best", "left"), [(None, None, 3), (2, None, 2), (1, "x/checkpoint-8", 2), (0, None, 3)]
)
def test_older_checkpoints_are_deleted_by_number(checkpoints, keep, best, left):
    delete_older_checkpoints(checkpoints, keep, best)
    assert len(names(checkpoints)) == left and (checkpoints / "checkpoint-10").exists()
    assert best is None or (checkpoints / "checkpoint-8").exists()
