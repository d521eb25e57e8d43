"""The default experiment: a small GPT learns to write from the text that ships with Python.

Claim: two minutes on two CPU cores are enough for words and sentences of reference-manual English.
Command: launch.py train   Hardware: 2 CPU cores   Minutes: 2
"""

from gpt_jax import config as configs


def get_config(arg=''):
  """The default config with a small model; no arguments."""
  configs.arguments(arg)
  config = configs.default()
  config.model.update(layers=4, width=128, heads=4, context=128)
  config.tokenizer.kind = 'chars'
  config.optim.update(lr=3e-3, warmup=50)
  config.train.update(steps=1000, batch_size=32, eval_every=250, sample_every=500)
  config.sample.update(temperature=0.8, max_new_tokens=120)
  return config
