"""The default experiment: a small GPT learns to write from the text that ships with Python.

Claim: two minutes on two CPU cores are enough for sentences of reference-manual English, mostly.
Command: launch.py train   Hardware: 2 CPU cores   Minutes: 2
"""

from gpt_jax import config as configs


def get_config(arg=''):
  """The default config with a small model; no arguments."""
  configs.arguments(arg)
  config = configs.default()
  config.model.update(layers=4, width=128, heads=4, context=128, mlp='relu2', qk_norm=True,
                      init_projections='zero')  # fmt: skip
  config.tokenizer.update(kind='bpe', vocab=1024)
  config.optim.update(name='muon', lr=4e-3, warmup=20, schedule='linear', final_lr=0.0)
  config.train.update(steps=200, batch_size=16, eval_every=50, eval_tokens=16384, sample_every=100)
  config.train.sample_prompts = ('The ', 'A list is ', 'Functions are ')
  config.sample.update(temperature=0.7, max_new_tokens=60)
  return config
