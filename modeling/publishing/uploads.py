"""What publish.py is asked for: where to, which folders, and a base by itself."""

from dataclasses import replace
from pathlib import Path

from accelerate.logging import get_logger

from modeling.publishing.publish import Destination, collect_judge, describe_base, publish_base
from modeling.publishing.staging import Contents
from modeling.runtime.hub import Pushed, check_repository_name
from modeling.runtime.paths import check_here
from modeling.settings.arguments import PublishArguments

logger = get_logger("bothways.publish")


def upload_base(folder: Path, arguments: PublishArguments) -> None:
    """Uploads a base by itself, or lists its files."""
    check_repository_name("--repo", arguments.repo)
    check_here(folder, "--base", "a base")
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
    check_here(folder, "--member", "a member")
    return Contents({"": folder}, report=report)
