"""Turns a backbone into a base: merges an adapter (if asked), puts a fresh head on, quantises, saves safetensors.

python scripts/quantize.py                                          # configs/demo/quantize.yaml
python scripts/quantize.py configs/gemma2-9b/quantize.yaml
python scripts/quantize.py --base DIR --quantization 4bit --output_dir outputs/base
"""

from importlib.util import find_spec

if find_spec("modeling") is None:
    raise SystemExit("Bothways is not installed in this Python: run `make install`, then use .venv/bin/python.")

import shutil
from pathlib import Path

from accelerate.logging import get_logger
from transformers import set_seed

from modeling.arguments import QuantizeArguments, parse_arguments, run_script
from modeling.bases import DTYPES, BaseFiles, find_base, load_base, load_tokenizer, save_base, unpack_gguf
from modeling.files import replace_folder
from modeling.loading import merge_adapter

logger = get_logger("bothways.quantize")


def main() -> None:
    (arguments,) = parse_arguments(QuantizeArguments, verb="quantize")
    set_seed(arguments.seed)
    base = find_base(arguments.base)
    tokenizer = load_tokenizer(base.folder, **base.source)
    output = Path(arguments.output_dir)
    head = {"head_hidden_size": arguments.head_hidden_size}
    with replace_folder(output, "config.json") as beside, unpack_gguf(base) as files:
        if arguments.merge_adapter:
            merged = merge_adapter(load_base(files, dtype="float32", **head), arguments.merge_adapter)
            merged.model.to(DTYPES[arguments.dtype])  # the body; the head stays float32
            merged.save_pretrained(beside / "merged")
            del merged
            files = BaseFiles(beside / "merged")
        model = load_base(files, dtype=arguments.dtype, quantization=arguments.quantization, **head)
        shutil.rmtree(beside / "merged", ignore_errors=True)
        save_base(beside, model, tokenizer)
    size = sum(file.stat().st_size for file in output.iterdir())
    logger.info(
        f"Base of {model.num_parameters():,} parameters, {arguments.quantization}, {size / 1e6:.0f} MB: {output}"
    )


if __name__ == "__main__":
    run_script(main)
