"""Uploads a member, a judge or a base to the Hugging Face Hub, or writes a member for use elsewhere.

New repositories are private by default.

python scripts/publish.py --member outputs/demo/ab --repo USER/NAME --base_repo USER/BASE
python scripts/publish.py --judge outputs/demo/ab outputs/demo/ba --repo USER/NAME --dry_run true
python scripts/publish.py --member outputs/demo/ab --merged true --output_dir outputs/demo/ab-merged --repo USER/NAME
python scripts/publish.py --member outputs/mine/ab --stock merged --output_dir outputs/mine/stock

The token comes from `hf auth login` or from HF_TOKEN.
"""

from importlib.util import find_spec

if find_spec("modeling") is None:
    raise SystemExit("Bothways is not installed in this Python: run `make install`, then use .venv/bin/python.")

import logging
from dataclasses import replace
from pathlib import Path

from modeling.runtime.startup import run_script
from modeling.settings.arguments import PublishArguments
from modeling.settings.parsing import parse_arguments

logger = logging.getLogger("bothways.publish")


def main() -> None:
    (arguments,) = parse_arguments(PublishArguments, verb="publish")
    # Imported here, because torch and transformers take seconds to load and a mistake in the flags is reported first.
    from accelerate import PartialState

    from modeling.judging.loading import merge_member
    from modeling.publishing.publish import (
        Destination,
        collect_judge,
        collect_member,
        describe_base,
        describe_publication,
        describe_push,
        publish,
        publish_base,
    )
    from modeling.publishing.stock import export_member
    from modeling.runtime.hub import check_login, check_repository_name
    from modeling.runtime.paths import check_local_folder

    PartialState()  # accelerate's logger needs it
    repo, private = arguments.repo, arguments.private
    if arguments.base:
        base = Path(arguments.base)
        check_repository_name("--repo", repo)
        check_local_folder(base, "--base", "a base")
        if arguments.dry_run:
            return print(f"Would be uploaded:\n{describe_base(base, repo, private)}")
        pushed = publish_base(base, repo, private)
        logger.info(describe_push(pushed))
        return logger.info(f"Train on it: scripts/train.py --base {pushed.repo}@{pushed.commit}")
    # Before the merge, so that a wrong name is reported before the long work.
    destination = repo and Destination(
        repo, arguments.base_repo, private=private, revision=arguments.revision, message=arguments.commit_message
    )
    dtype = "bfloat16" if arguments.dtype == "auto" else arguments.dtype
    if arguments.stock:
        return export_member(arguments.member, Path(arguments.output_dir), arguments.stock, dtype)
    if arguments.merged:
        if destination:
            check_login(repo)
        merge_member(arguments.member, Path(arguments.output_dir), dtype)
    if not destination:
        return
    if arguments.judge:
        contents = collect_judge([Path(folder) for folder in arguments.judge], arguments.readings)
    else:
        contents = collect_member(Path(arguments.output_dir if arguments.merged else arguments.member))
    contents = replace(contents, report=Path(arguments.report) if arguments.report else None, licence=arguments.license)
    if arguments.dry_run:
        return print(f"Would be uploaded:\n{describe_publication(contents, destination)}")
    for pushed in publish(contents, destination):
        logger.info(describe_push(pushed))
    logger.info(f"Predict with it: scripts/predict.py --judge {pushed.repo}@{pushed.commit} --battles FILE")


if __name__ == "__main__":
    run_script(main)
