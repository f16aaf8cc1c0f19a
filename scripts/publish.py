"""Uploads a member, a whole judge or a base to the Hugging Face Hub; private unless told otherwise.

python scripts/publish.py --member outputs/demo/ab --repo USER/NAME --base_repo USER/BASE
python scripts/publish.py --judge outputs/demo/ab outputs/demo/ba --repo USER/NAME --dry_run true
python scripts/publish.py --member outputs/demo/ab --merged true --output_dir outputs/demo/ab-merged --repo USER/NAME

The token is that of `hf auth login`, or HF_TOKEN.
"""

from importlib.util import find_spec

if find_spec("modeling") is None:
    raise SystemExit("Bothways is not installed in this Python: run `make install`, then use .venv/bin/python.")

import logging
from pathlib import Path

from modeling.runtime.startup import run_script
from modeling.settings.arguments import PublishArguments
from modeling.settings.parsing import parse_arguments

logger = logging.getLogger("bothways.publish")


def main() -> None:
    (arguments,) = parse_arguments(PublishArguments, verb="publish")
    # Here, and not above: they load torch and transformers, which takes seconds, and a mistake is answered before.
    from accelerate import PartialState

    from modeling.judging.loading import merge_member
    from modeling.publishing.publish import describe_publication, publish
    from modeling.publishing.uploads import build_destination, collect_contents, report_push, upload_base
    from modeling.runtime.hub import check_login

    PartialState()  # accelerate's logger needs it
    if arguments.base:
        return upload_base(Path(arguments.base), arguments)
    destination = build_destination(arguments) if arguments.repo else None
    if arguments.merged:
        if destination:
            check_login(destination.repo)  # before the long work
        dtype = "bfloat16" if arguments.dtype == "auto" else arguments.dtype
        merge_member(arguments.member, Path(arguments.output_dir), dtype)
    if destination is None:
        return
    contents = collect_contents(arguments)
    if arguments.dry_run:
        return print(f"Would be uploaded:\n{describe_publication(contents, destination)}")
    for pushed in publish(contents, destination):
        report_push(pushed)
    logger.info(f"Read with it: scripts/predict.py --judge {pushed.repo}@{pushed.commit} --battles FILE")


if __name__ == "__main__":
    run_script(main)
