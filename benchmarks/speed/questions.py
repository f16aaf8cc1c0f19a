"""Maps each value of --what to the benchmark that answers it."""

from benchmarks.speed.arguments import BenchmarkArguments
from benchmarks.speed.encoding import benchmark_encoding
from benchmarks.speed.growth import benchmark_growth
from benchmarks.speed.prediction import benchmark_prediction
from benchmarks.speed.second_pass import benchmark_second_pass
from benchmarks.speed.streaming import benchmark_streaming
from benchmarks.speed.training import benchmark_training


def measure(arguments: BenchmarkArguments) -> dict:
    """Returns the results of the benchmark that --what names."""
    a, battles, judge = arguments, arguments.battles[0], arguments.judge or []
    if a.what == "prediction":
        return benchmark_prediction(battles, judge, a.base, a.count, a.repeats, a.readings, a.dtype)
    if a.what == "training":
        return benchmark_training(battles, a.base, a.count, a.repeats, a.max_length, a.dtype)
    if a.what == "second_readings":
        return benchmark_second_pass(battles, judge, a.readings, a.count)
    if a.what == "growth":
        return benchmark_growth(a.battles, judge, a.counts or (1000, 2000, 4000, 8000))
    if a.what == "encoding":
        return benchmark_encoding(battles, a.base, a.max_length, a.repeats)
    return benchmark_streaming(battles, a.base, a.max_length, a.rows)
