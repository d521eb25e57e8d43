"""Scores in, verdicts out: intervals, tests, effects, scaling laws."""
