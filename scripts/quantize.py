"""Makes a base of a backbone: merges an adapter if there is one, adds a fresh head, quantises, saves safetensors.

python scripts/quantize.py                                          # configs/demo/quantize.yaml
python scripts/quantize.py configs/gemma2-9b/quantize.yaml
python scripts/quantize.py --base DIR --quantization 4bit --output_dir outputs/base
python scripts/quantize.py --base DIR --output_dir outputs/base --push_to_hub true --hub_model_id USER/NAME
"""

from importlib.util import find_spec

if find_spec("modeling") is None:
    raise SystemExit("Bothways is not installed in this Python: run `make install`, then use .venv/bin/python.")

import logging
from pathlib import Path

from modeling.runtime.startup import run_script
from modeling.settings.arguments import QuantizeArguments
from modeling.settings.parsing import parse_arguments

logger = logging.getLogger("bothways.quantize")


def main() -> None:
    (arguments,) = parse_arguments(QuantizeArguments, verb="quantize")
    # Imported here because torch and transformers take seconds to load: a mistyped flag is answered before that.
    from transformers import set_seed

    from modeling.network.base import copy_notices, describe_origin, load_tokenizer, unpack_gguf
    from modeling.publishing.publish import check_base_repository, publish_base, suggest_upload_command
    from modeling.runtime.files import check_replaceable, replace_folder
    from modeling.runtime.hub import check_repository_name
    from modeling.training.quantization import BASE_FILE, find_backbone, report_change, write_base

    # Not what this device computes fastest: the base must be the same file on every machine.
    held = "bfloat16" if arguments.dtype == "auto" else arguments.dtype
    output = Path(arguments.output_dir)
    check_replaceable(output, BASE_FILE)
    if arguments.push_to_hub:
        check_repository_name("--hub_model_id", arguments.hub_model_id)
        check_base_repository(arguments.hub_model_id, arguments.hub_private)
    base = find_backbone(arguments)
    tokenizer, origin = load_tokenizer(base.folder, **base.source), describe_origin(arguments.base, base)
    set_seed(arguments.seed)
    with replace_folder(output, BASE_FILE) as beside, unpack_gguf(base) as files:
        plain, saved = write_base(arguments, files, beside, held, tokenizer, origin)
        copy_notices(base.folder, beside)
    size = sum(file.stat().st_size for file in output.iterdir())
    report_change(arguments.quantization, held, plain, saved, size)
    logger.info(f"Base of {saved.num_parameters:,} parameters, {arguments.quantization}, {size / 1e6:.0f} MB: {output}")
    if arguments.push_to_hub:
        with suggest_upload_command(f"--base {output} --repo {arguments.hub_model_id}"):
            pushed = publish_base(output, arguments.hub_model_id, arguments.hub_private)
        logger.info(f"Base {'pushed' if pushed.changed else 'is there already'}: {pushed.repo}@{pushed.commit}")


if __name__ == "__main__":
    run_script(main)
