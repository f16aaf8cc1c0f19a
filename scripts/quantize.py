"""Makes a base of a backbone: merges an adapter if there is one, adds a fresh head, quantises, saves safetensors.

python scripts/quantize.py                                          # configs/demo/quantize.yaml
python scripts/quantize.py configs/gemma2-9b/quantize.yaml
python scripts/quantize.py --base DIR --quantization 4bit --output_dir outputs/base
python scripts/quantize.py --base DIR --output_dir outputs/base --push_to_hub true --hub_model_id USER/NAME
"""

from importlib.util import find_spec

if find_spec("modeling") is None:
    raise SystemExit("Bothways is not installed in this Python: run `make install`, then use .venv/bin/python.")

import gc
import logging
import shutil
from pathlib import Path

from modeling.runtime.startup import run_script
from modeling.settings.arguments import QuantizeArguments
from modeling.settings.parsing import parse_arguments

logger = logging.getLogger("bothways.quantize")


def main() -> None:
    (arguments,) = parse_arguments(QuantizeArguments, verb="quantize")
    # Imported here because torch and transformers take seconds to load: a mistyped flag is answered before that.
    from accelerate import PartialState
    from transformers import AutoConfig, set_seed

    from modeling.judging.canaries import build_canary_encoder
    from modeling.network.base import BaseFiles, describe_origin, load_tokenizer, save_base, unpack_gguf
    from modeling.network.precision import choose_dtype
    from modeling.publishing.publish import check_base_repository, name_upload, publish_base
    from modeling.runtime.files import replace_folder
    from modeling.runtime.hub import check_repository_name
    from modeling.training.quantization import (
        BASE_FILE,
        check_saved,
        find_backbone,
        load_plain,
        load_quantized,
        report_change,
        take_snapshot,
    )

    # Not what this device computes fastest: the base must be the same file on every machine.
    held = "bfloat16" if arguments.dtype == "auto" else arguments.dtype
    output = Path(arguments.output_dir)
    if arguments.push_to_hub:
        check_repository_name("--hub_model_id", arguments.hub_model_id)
        check_base_repository(arguments.hub_model_id, arguments.hub_private)
    base = find_backbone(arguments)
    tokenizer = load_tokenizer(base.folder, **base.source)
    encoder, origin = build_canary_encoder(tokenizer), describe_origin(arguments.base, base)
    set_seed(arguments.seed)

    # One model in memory at a time: each is deleted, and its memory freed, before the next is loaded.
    with replace_folder(output, BASE_FILE) as beside, unpack_gguf(base) as files:
        config = AutoConfig.from_pretrained(files.folder)
        dtype = choose_dtype(arguments.dtype, PartialState().device, config, training=False)
        model = load_plain(arguments, files, held)
        if arguments.quantization == "none":
            save_base(beside, model, tokenizer, origin)
            plain = saved = take_snapshot(model, dtype, encoder)
        else:
            if arguments.merge_adapter:
                model.save_pretrained(beside / "merged")
                files = BaseFiles(beside / "merged")
            plain, head = take_snapshot(model, dtype, encoder), model.score.state_dict()
            del model
            gc.collect()
            model = load_quantized(arguments, files, held, head)
            shutil.rmtree(beside / "merged", ignore_errors=True)
            save_base(beside, model, tokenizer, origin)
            saved = take_snapshot(model, dtype, encoder)
        num_parameters = model.num_parameters()
        del model
        gc.collect()
        check_saved(beside, dtype, saved)

    size = sum(file.stat().st_size for file in output.iterdir())
    report_change(arguments.quantization, held, plain, saved, size)
    logger.info(f"Base of {num_parameters:,} parameters, {arguments.quantization}, {size / 1e6:.0f} MB: {output}")
    if arguments.push_to_hub:
        with name_upload(f"--base {output} --repo {arguments.hub_model_id}"):
            pushed = publish_base(output, arguments.hub_model_id, arguments.hub_private)
        logger.info(f"Base {'pushed' if pushed.changed else 'is there already'}: {pushed.repo}@{pushed.commit}")


if __name__ == "__main__":
    run_script(main)
