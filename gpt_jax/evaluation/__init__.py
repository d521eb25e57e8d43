"""A model in, scores out: tasks, metrics and judges."""
