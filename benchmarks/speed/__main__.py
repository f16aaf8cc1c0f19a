"""Times prediction, training, encoding and more against other ways of doing the same, in rounds A B C A B C.

Run it from the root of a clone:

python -m benchmarks.speed                                          # speed/benchmark.yaml, after `make demo`
python -m benchmarks.speed --what training --battles train.parquet --count 16 --output training.json
TOKENIZERS_PARALLELISM=false python -m benchmarks.speed --what encoding --battles train.parquet \
    --base .cache/gemma2-tokenizer --output encoding.json

Each way runs in its own process, and only one runs at a time. It loads everything it needs before it is timed. Peers
take part if they are installed: pip install -e ".[benchmark]".
"""

from pathlib import Path

from benchmarks.speed.arguments import RECIPE, BenchmarkArguments
from modeling.runtime.startup import run_script
from modeling.settings.parsing import parse_arguments


def main() -> None:
    (arguments,) = parse_arguments(
        BenchmarkArguments, verb="benchmark", command="python -m benchmarks.speed", default_recipe=RECIPE
    )
    # Imported here because they load torch and transformers, which takes seconds; a mistyped flag is answered first.
    from benchmarks.speed.machine import describe_machine
    from benchmarks.speed.plots import draw_results
    from benchmarks.speed.questions import measure
    from benchmarks.speed.tables import format_results
    from modeling.runtime.files import write_json

    results = {"what": arguments.what, **measure(arguments), "machine": describe_machine()}
    print(format_results(results))
    output = Path(arguments.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, results)
    draw_results(results, output.with_suffix(".png"))


if __name__ == "__main__":
    run_script(main)
