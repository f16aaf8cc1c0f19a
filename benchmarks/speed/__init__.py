"""What scripts/benchmark.py times: ways of doing the same thing, in turns."""
