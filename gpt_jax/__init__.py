"""gpt_jax: the laboratory for multimodal GPTs in JAX.

run = gpt_jax.load('runs/demo')
run.generate(['Once upon a time'], temperature=0.8)
run.score(['A text.'])[0].bits_per_byte
"""

import importlib


def load(workdir, step=None):
  """Load a checkpoint of a run, by default the newest good one -> evaluation.trained.TrainedRun."""
  return importlib.import_module('gpt_jax.evaluation.trained').load(workdir, step)
