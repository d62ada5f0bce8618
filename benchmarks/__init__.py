"""Benchmarks: ratios measured in one run, results kept with machine and commit. Never timed tests."""
