"""Checkpoints of a training run: whether one is complete, and whether it belongs to this run.

A checkpoint counts once it is sealed. The seal is its last file, written beside and renamed, with the hash of every
other file and the settings of the run. A process may be killed, or the disk may fill up, at any moment before that:
earlier checkpoints are still there, because they are deleted only after a new one is sealed. This module must not know
what the files contain.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from modeling.runtime.files import hash_file
from modeling.runtime.logs import build_logger

logger = build_logger(__name__)

SEAL = "complete.json"


def seal_checkpoint(folder: Path, run: Mapping) -> None:
    """Seals a checkpoint, after all its files have reached the disk.

    Args:
        folder: The checkpoint; every process has written its files to it.
        run: The settings that decide the run's numbers, as JSON values.
    """
    files = {str(path.relative_to(folder)): _hash_file(path) for path in _list_files(folder)}
    beside = folder / f".{SEAL}.new"
    with beside.open("w", encoding="utf-8") as file:
        json.dump({"run": run, "files": files}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())  # a rename may reach the disk before the content does
    beside.rename(folder / SEAL)


def find_checkpoint(folder: Path, run: Mapping, wanted: str | None) -> Path | None:
    """Returns the checkpoint to resume from, or None; deletes checkpoints that a killed run left incomplete.

    Args:
        folder: Where the run keeps its checkpoints.
        run: This run's settings, in the form that `seal_checkpoint` takes.
        wanted: None or "auto" takes the newest complete checkpoint; "no" deletes them all; else the path of one.

    Raises:
        ValueError: If the checkpoint belongs to a run with other settings, or if the one at the path is incomplete.
    """
    if wanted not in (None, "auto", "no"):
        checkpoint = Path(wanted)
        if problem := _find_damage(checkpoint):
            raise ValueError(
                f"--resume_from_checkpoint {checkpoint}: expected a complete checkpoint; found {problem}. "
                f"Leave the flag out to resume from the newest complete one in {folder}."
            )
    else:
        checkpoint = None
        for candidate in _list_checkpoints(folder):
            problem = "--resume_from_checkpoint is no" if wanted == "no" else _find_damage(candidate)
            if not problem:
                checkpoint = candidate
                break
            logger.warning(f"Deleting {candidate}: {problem}")
            shutil.rmtree(candidate)
    if checkpoint is None:
        return None
    differences = compare_runs(json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))["run"], run)
    if differences:
        raise ValueError(
            f"{checkpoint}: expected a checkpoint of this run; found one of a run with other settings: "
            f"{'; '.join(differences)}. Give those settings to go on with it, another --output_dir to keep it, or "
            "--resume_from_checkpoint no to delete it and start again."
        )
    logger.info(f"This run was interrupted: going on from {checkpoint}")
    return checkpoint


def read_recorded_dtype(folder: Path, wanted: str | None) -> str | None:
    """Returns the precision of the run that `find_checkpoint` would resume, or None; deletes nothing.

    A resumed run keeps its precision even on a machine that would choose another. Arguments as for `find_checkpoint`.
    """
    candidates = [] if wanted == "no" else _list_checkpoints(folder) if wanted in (None, "auto") else [Path(wanted)]
    for seal in (candidate / SEAL for candidate in candidates):
        try:
            return json.loads(seal.read_text(encoding="utf-8"))["run"]["dtype"]
        except (OSError, json.JSONDecodeError, KeyError, TypeError):  # incomplete: find_checkpoint reports it
            continue
    return None


def compare_runs(theirs: Mapping, ours: Mapping) -> list[str]:
    """Returns a line for each setting that differs, such as "seed: 0 there, 1 here"."""
    ours = json.loads(json.dumps(ours))  # theirs came from JSON, where tuples have become lists
    return [
        f"{name}: {theirs.get(name, 'none')} there, {ours.get(name, 'none')} here"
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
    ]


def delete_older_checkpoints(folder: Path, keep: int | None, best: str | None) -> None:
    """Deletes all but the `keep` newest checkpoints, and the best one; None or 0 keeps all."""
    for old in _list_checkpoints(folder)[keep:] if keep else []:
        if best is None or old.name != Path(best).name:
            shutil.rmtree(old)


def _list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders, newest first."""
    found = [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: -int(path.name.rpartition("-")[2]))


def _list_files(folder: Path) -> list[Path]:
    """The files of a checkpoint except its seal."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and SEAL not in path.name)


def _find_damage(checkpoint: Path) -> str | None:
    """Says why a checkpoint is unusable, or None."""
    try:
        files = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"no {SEAL}: writing it was interrupted"
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        return f"a damaged {SEAL} ({error})"
    for name, digest in files.items():
        if not (checkpoint / name).is_file():
            return f"no {name}"
        if _hash_file(checkpoint / name) != digest:
            return f"a changed {name}"
    return None


def _hash_file(path: Path) -> str:
    """SHA-256 of a file, after it has reached the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return hash_file(path)
