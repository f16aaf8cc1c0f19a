"""Uploads a member, a whole judge or a base to the Hugging Face Hub; private unless told otherwise.

python scripts/publish.py --member outputs/demo/ab --repo USER/NAME --base_repo USER/BASE
python scripts/publish.py --judge outputs/demo/ab outputs/demo/ba --repo USER/NAME --dry_run true
python scripts/publish.py --member outputs/demo/ab --merged true --output_dir outputs/demo/ab-merged --repo USER/NAME

The token is that of `hf auth login`, or HF_TOKEN.
"""

from importlib.util import find_spec

if find_spec("modeling") is None:
    raise SystemExit("Bothways is not installed in this Python: run `make install`, then use .venv/bin/python.")

from dataclasses import replace
from pathlib import Path

from accelerate import PartialState
from accelerate.logging import get_logger

from modeling.arguments import PublishArguments
from modeling.hub import Pushed, check_login, check_repository_name
from modeling.launch import run_script
from modeling.merging import merge_member
from modeling.parsing import parse_arguments
from modeling.publication.publishing import (
    Destination,
    collect_judge,
    describe_base,
    describe_publication,
    publish,
    publish_base,
)
from modeling.publication.staging import Contents

logger = get_logger("bothways.publish")


def main() -> None:
    (arguments,) = parse_arguments(PublishArguments, verb="publish")
    PartialState()  # accelerate's logger needs it
    if arguments.base:
        return upload_base(Path(arguments.base), arguments)
    destination = build_destination(arguments) if arguments.repo else None
    if arguments.merged:
        if destination:
            check_login(destination.repo)  # before the long work
        merge_member(arguments.member, Path(arguments.output_dir), arguments.dtype)
    if destination is None:
        return
    contents = collect_contents(arguments)
    if arguments.dry_run:
        return print(f"Would be uploaded:\n{describe_publication(contents, destination)}")
    for pushed in publish(contents, destination):
        report_push(pushed)
    logger.info(f"Read with it: scripts/predict.py --judge {pushed.repo}@{pushed.commit} --battles FILE")


def upload_base(folder: Path, arguments: PublishArguments) -> None:
    """Uploads a base by itself, or lists its files."""
    check_repository_name("--repo", arguments.repo)
    if not folder.is_dir():
        raise FileNotFoundError(f"--base {folder}: expected the folder of a base; found none.")
    if arguments.dry_run:
        return print(f"Would be uploaded:\n{describe_base(folder, arguments.repo, arguments.private)}")
    pushed = publish_base(folder, arguments.repo, arguments.private)
    report_push(pushed)
    logger.info(f"Train on it: scripts/train.py --base {pushed.repo}@{pushed.commit}")


def report_push(pushed: Pushed) -> None:
    """Says where it is, and whether it was there before."""
    logger.info(f"{'Published' if pushed.changed else 'Nothing has changed'}: {pushed.url}")


def build_destination(arguments: PublishArguments) -> Destination:
    """Where to, from flags."""
    return Destination(
        arguments.repo,
        base_repo=arguments.base_repo,
        private=arguments.private,
        revision=arguments.revision,
        message=arguments.commit_message,
    )


def collect_contents(arguments: PublishArguments) -> Contents:
    """What is to be published, from folders here."""
    report = Path(arguments.report) if arguments.report else None
    if arguments.judge:
        judge = collect_judge([Path(folder) for folder in arguments.judge], arguments.readings)
        return replace(judge, report=report)
    folder = Path(arguments.output_dir if arguments.merged else arguments.member)
    if not folder.is_dir():
        raise FileNotFoundError(f"--member {folder}: expected the folder of a member; found none.")
    return Contents({"": folder}, report=report)


if __name__ == "__main__":
    run_script(main)
