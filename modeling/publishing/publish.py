"""Publishing members, judges and bases: what has to go to the Hub, in which order, and whether it can."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from accelerate import PartialState
from accelerate.logging import get_logger
from transformers import TrainingArguments

from modeling.judging.judge import read_calibration
from modeling.judging.loading import find_judge, name_member
from modeling.judging.member import ADAPTER_FILES, JUDGE_FILE, fingerprint_member, is_merged, read_json, read_member
from modeling.network.base import BaseFiles, fingerprint_base
from modeling.publishing.staging import (
    Contents,
    find_published_base_files,
    find_published_files,
    locate_base,
    stage_base,
    stage_contents,
)
from modeling.runtime.distributed import call_on_main
from modeling.runtime.hub import Pushed, check_login, check_repository, check_repository_name, push_folder
from modeling.runtime.paths import check_here

logger = get_logger(__name__)

NOT_YET = "0" * 40  # stands for the commit of a base that is still to be pushed


@dataclass(frozen=True)
class Destination:
    """Where a member or judge is published: its repository, and the one for a base that is only here.

    `revision` is a branch of the first, and `message` its commit's; both have a default.
    """

    repo: str
    base_repo: str | None = None
    private: bool = True
    revision: str | None = None
    message: str | None = None

    def __post_init__(self):
        check_repository_name("--repo", self.repo)
        if self.base_repo:
            check_repository_name("--base_repo", self.base_repo)
        if self.repo == self.base_repo:
            raise ValueError(f"--repo and --base_repo: expected two repositories; found {self.repo} twice.")


def plan_push(training: TrainingArguments, orientation: str, base: BaseFiles) -> str | None:
    """The repository to publish a member in, checked before hours of training; None if the member is to stay here."""
    if not training.push_to_hub:
        return None
    if not training.hub_model_id:
        raise ValueError("--push_to_hub: expected the repository too; found none. Pass --hub_model_id USER/NAME.")
    training.push_to_hub = False  # the Trainer would upload its optimizer state
    repo = training.hub_model_id.replace("{orientation}", orientation)
    call_on_main(check_publishable, repo, base, training.hub_private_repo is not False)
    return repo


# --- publishing -------------------------------------------------------------------------------------------------------


def publish_member(folder: Path, repo: str, private: bool = True) -> Pushed:
    """Uploads a member whose base is on the Hub, once it is trained. Errors as for `publish`."""
    with name_upload(f"--member {folder} --repo {repo}"):
        return publish(Contents({"": folder}), Destination(repo, private=private))[-1]


@contextmanager
def name_upload(flags: str) -> Iterator[None]:
    """Around an upload at the end of long work: if the Hub fails, says how to upload without doing that work again."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{error} All that was written is whole: `scripts/publish.py {flags}` uploads it.") from error


def publish(contents: Contents, destination: Destination) -> list[Pushed]:
    """Uploads a member, or a judge's members together, after their base if that is only here.

    Returns:
        The base, if it had to be pushed, and the repository.

    Raises:
        ValueError: If a member or its base is not whole, not one, or holds what must not be published.
        OSError: If the Hub refuses or does not answer.
    """
    base = find_local_base(contents, destination)
    with stage_contents(contents, destination.repo, (destination.base_repo, NOT_YET)):
        pass  # all is checked before anything is sent
    options = {"find_own": partial(find_published_files, destination.repo), "private": destination.private}
    check_login(destination.repo)
    check_repository(destination.repo, **options)
    pushed = [publish_base(base, destination.base_repo, destination.private)] if base else []
    commit = pushed[0].commit if pushed else NOT_YET
    with stage_contents(contents, destination.repo, (destination.base_repo, commit)) as stage:
        pushed.append(
            push_folder(
                stage,
                destination.repo,
                **options,
                branch=destination.revision,
                message=destination.message or f"Bothways {contents.kind}",
            )
        )
    return pushed


def publish_base(folder: Path, repo: str, private: bool = True) -> Pushed:
    """Uploads a base as quantize.py wrote it: config, weights and tokenizer. Errors as for `publish`."""
    with stage_base(folder, repo) as stage:
        check_base_repository(repo, private)
        find_own = partial(find_published_base_files, repo)
        return push_folder(stage, repo, find_own=find_own, private=private, message="Bothways base")


def check_base_repository(repo: str, private: bool = True) -> None:
    """Makes sure, before a base is quantised, that it can be published. Errors as for `publish`."""
    check_login(repo)
    check_repository(repo, find_own=partial(find_published_base_files, repo), private=private)


def check_publishable(repo: str, base: BaseFiles, private: bool = True) -> None:
    """Makes sure, before training, that its member can be published.

    Raises:
        ValueError: If the base is a folder, which nobody else could fetch, or the repository is something else's.
        PermissionError: If there is no login that may write there.
    """
    check_repository_name("--hub_model_id", repo)
    if base.repo is None:
        raise ValueError(
            f"--push_to_hub with --base {base.folder.name}: expected a base on the Hub, from where others can fetch "
            "it; found one that is only here. Push it with `scripts/publish.py --base DIR --repo USER/BASE` and pass "
            "--base USER/BASE, or publish the member later with `scripts/publish.py --base_repo USER/BASE`."
        )
    check_login(repo)
    check_repository(repo, find_own=partial(find_published_files, repo), private=private)


def describe_publication(contents: Contents, destination: Destination) -> str:
    """What `publish` would upload, and where: repositories with the names and sizes of their files. No network."""
    base = find_local_base(contents, destination)
    branch = f"@{destination.revision}" if destination.revision else ""
    parts = []
    if base:
        parts.append(describe_base(base, destination.base_repo, destination.private))
    with stage_contents(contents, destination.repo, (destination.base_repo, NOT_YET)) as stage:
        parts.append(_list_files(f"{destination.repo}{branch}", destination.private, stage))
    return "\n".join(parts)


def describe_base(folder: Path, repo: str, private: bool = True) -> str:
    """What `publish_base` would upload, and where. No network."""
    with stage_base(folder, repo) as stage:
        return _list_files(repo, private, stage)


def _list_files(repo: str, private: bool, stage: Path) -> str:
    sizes = {path.relative_to(stage).as_posix(): path.stat().st_size for path in stage.rglob("*") if path.is_file()}
    lines = [f"{repo} ({'private' if private else 'public'}), {len(sizes)} files, {sum(sizes.values()):,} bytes:"]
    return "\n".join([*lines, *(f"  {name:<40}{size:>16,}" for name, size in sorted(sizes.items()))])


# --- what there is ----------------------------------------------------------------------------------------------------


def collect_judge(folders: Sequence[Path], readings: str | None = None) -> Contents:
    """A judge of a judge folder, or of members, which are named by orientation where each has another.

    Args:
        readings: "own" or "both"; what the judge folder says if None, or else "own".
    """
    for folder in folders:
        check_here(folder, "--judge", "a member or judge")
    if len(folders) == 1 and (folders[0] / JUDGE_FILE).is_file():
        members, stored = find_judge([str(folders[0])])
        contents = Contents(dict(members), readings or stored.readings, folders[0])
        if stored.calibration and contents.readings != stored.readings:
            PartialState()  # accelerate's logger needs it
            logger.warning(f"--readings {readings}: the calibration is about {stored.readings} ones, and is left out")
        elif stored.calibration:
            read_calibration(stored, {name: fingerprint_member(read_member(folder)) for name, folder in members})
            contents = replace(contents, calibration=stored.calibration)
        return contents
    orientations = [read_member(folder).orientation for folder in folders]
    names: list[str] = []
    for folder, orientation in zip(folders, orientations, strict=True):
        names.append(name_member(orientation if len(set(orientations)) == len(folders) else str(folder), names))
    return Contents(dict(zip(names, folders, strict=True)), readings or "own")


def find_local_base(contents: Contents, destination: Destination) -> Path | None:
    """The folder of the members' base if it is only here, checked to be theirs; None if it is on the Hub.

    Raises:
        FileNotFoundError: If a base is named that is neither here nor on the Hub.
        ValueError: If a member is not whole, its base is another than it was trained on, the members have several, or
            there is no repository to push it to.
    """
    found: dict[Path, Path] = {}
    for folder in contents.members.values():
        facts, local = read_member(folder), locate_base(folder)
        config = {} if is_merged(folder) else read_json(folder / ADAPTER_FILES[0], "Member")
        name = config.get("base_model_name_or_path")
        if config and not local and not config.get("revision"):
            raise FileNotFoundError(f"Member {folder}: expected its base in {name}; found none. Bring the base along.")
        if local and destination.base_repo is None:
            raise ValueError(
                f"Member {folder}: expected a base on the Hub, from where others can fetch it; found one that is only "
                f"here, {name}. Pass --base_repo USER/NAME to push it there first."
            )
        if local and (fingerprint := fingerprint_base(BaseFiles(local))) != facts.base_fingerprint:
            raise ValueError(
                f"Member {folder}: expected the base it was trained on ({facts.base_fingerprint}); found another in "
                f"{name} ({fingerprint}). Restore the old one."
            )
        if local:
            found[local] = folder
    if len(found) > 1:
        raise ValueError(
            f"--base_repo: expected members of one base; found {len(found)}, those of "
            f"{', '.join(map(str, found.values()))}. Publish them one by one, each with its own --base_repo."
        )
    return next(iter(found), None)
