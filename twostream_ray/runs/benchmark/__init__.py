"""Benchmarks: the speed of this package beside the ways people have today, on the same clips in the same run."""
