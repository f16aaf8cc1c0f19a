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

from modeling.arguments import BenchmarkArguments
from modeling.benchmarking.encoding_speed import benchmark_encoding
from modeling.benchmarking.growth import benchmark_growth
from modeling.benchmarking.plots import draw_figures
from modeling.benchmarking.second_readings import benchmark_second_readings
from modeling.benchmarking.speed import benchmark_prediction, benchmark_training
from modeling.benchmarking.streaming import benchmark_streaming
from modeling.benchmarking.tables import format_figures
from modeling.benchmarking.turns import describe_machine
from modeling.files import write_json
from modeling.launch import run_script
from modeling.parsing import parse_arguments


def main() -> None:
    (arguments,) = parse_arguments(BenchmarkArguments, verb="benchmark")
    figures = {"what": arguments.what, **measure(arguments), "machine": describe_machine()}
    print(format_figures(figures))
    output = Path(arguments.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, figures)
    draw_figures(figures, output.with_suffix(".png"))


def measure(arguments: BenchmarkArguments) -> dict:
    """The figures of what is asked for."""
    a, battles, judge = arguments, arguments.battles[0], arguments.judge or []
    if a.what == "prediction":
        return benchmark_prediction(battles, judge, a.base, a.count, a.repeats, a.readings)
    if a.what == "training":
        return benchmark_training(battles, a.base, a.count, a.repeats, a.max_length)
    if a.what == "second_readings":
        return benchmark_second_readings(battles, judge, a.readings, a.count)
    if a.what == "growth":
        return benchmark_growth(a.battles, judge, a.counts or (1000, 2000, 4000, 8000))
    if a.what == "encoding":
        return benchmark_encoding(battles, a.base, a.max_length, a.repeats)
    return benchmark_streaming(battles, a.base, a.max_length, a.rows)


if __name__ == "__main__":
    run_script(main)
