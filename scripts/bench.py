"""Placeholder replaced by the benchmarks."""
