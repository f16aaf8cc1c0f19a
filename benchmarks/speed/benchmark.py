"""Times prediction, training, encoding and more against other ways to do the same, in turns A B C A B C.

python scripts/benchmark.py                                         # configs/demo/benchmark.yaml, after make demo
python scripts/benchmark.py --what training --battles train.parquet --count 16 --output training.json
TOKENIZERS_PARALLELISM=false python scripts/benchmark.py --what encoding --battles train.parquet \
    --base .cache/gemma2-tokenizer --output encoding.json

Each way has a process of its own, which the others wait for; it loads what it needs before it is timed. Peers take part
where they are installed: pip install -e ".[benchmark]".
"""

from importlib.util import find_spec

if find_spec("modeling") is None:
    raise SystemExit("Bothways is not installed in this Python: run `make install`, then use .venv/bin/python.")

from pathlib import Path

from modeling.runtime.startup import run_script
from modeling.settings.arguments import BenchmarkArguments
from modeling.settings.parsing import parse_arguments


def main() -> None:
    (arguments,) = parse_arguments(BenchmarkArguments, verb="benchmark")
    # Here, and not above: they load torch and transformers, which takes seconds, and a mistake is answered before.
    from benchmarks.speed.plots import draw_figures
    from benchmarks.speed.questions import measure
    from benchmarks.speed.tables import format_figures
    from benchmarks.speed.turns import describe_machine
    from modeling.runtime.files import write_json

    figures = {"what": arguments.what, **measure(arguments), "machine": describe_machine()}
    print(format_figures(figures))
    output = Path(arguments.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, figures)
    draw_figures(figures, output.with_suffix(".png"))


if __name__ == "__main__":
    run_script(main)
