"""Which benchmark answers which question of benchmark.py."""

from benchmarks.speed.encoding_speed import benchmark_encoding
from benchmarks.speed.growth import benchmark_growth
from benchmarks.speed.second_readings import benchmark_second_readings
from benchmarks.speed.speed import benchmark_prediction, benchmark_training
from benchmarks.speed.streaming import benchmark_streaming
from modeling.settings.arguments import BenchmarkArguments


def measure(arguments: BenchmarkArguments) -> dict:
    """The figures of what is asked for."""
    a, battles, judge = arguments, arguments.battles[0], arguments.judge or []
    if a.what == "prediction":
        return benchmark_prediction(battles, judge, a.base, a.count, a.repeats, a.readings, a.dtype)
    if a.what == "training":
        return benchmark_training(battles, a.base, a.count, a.repeats, a.max_length, a.dtype)
    if a.what == "second_readings":
        return benchmark_second_readings(battles, judge, a.readings, a.count)
    if a.what == "growth":
        return benchmark_growth(a.battles, judge, a.counts or (1000, 2000, 4000, 8000))
    if a.what == "encoding":
        return benchmark_encoding(battles, a.base, a.max_length, a.repeats)
    return benchmark_streaming(battles, a.base, a.max_length, a.rows)
