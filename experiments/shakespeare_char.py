"""Tiny Shakespeare by characters, on nanoGPT's 90/10 split, scored on the whole validation text.

Claim: <= 1.60 nats per character within 15 minutes on 2 CPU cores (a character 5-gram scores 1.669, nanoGPT's
CPU recipe 1.88).
Command: GPT_JAX_DATA=... launch.py train --config=experiments/shakespeare_char.py
Arguments: gpu (nanoGPT's 6 layers of width 384, context 256), adamw (instead of Muon), small (for ablations:
2 layers of width 64, context 128), runlocal.
"""

from gpt_jax import config as configs


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(arg, gpu=False, adamw=False, small=False, runlocal=False)
  config = configs.default()
  config.data.mixture = {'shakespeare': {'kind': 'text', 'path': 'tinyshakespeare/input.txt'}}
  config.tokenizer.kind = 'chars'
  config.model.update(
    layers=4, width=192, heads=6, context=256, mlp='relu2', qk_norm=True, init_projections='zero'
  )
  config.optim.update(
    name='adamw' if args.adamw else 'muon', lr=3e-3, warmup=50, schedule='linear', final_lr=0.0
  )
  config.train.update(steps=500, batch_size=16, eval_every=100, eval_tokens=0, sample_every=250)
  config.sample.update(temperature=0.8, max_new_tokens=200)
  if args.gpu:
    config.model.update(layers=6, width=384, heads=6, dropout=0.2)
    config.train.update(steps=5000, batch_size=64, steps_per_call=10)
  if args.small:
    config.model.update(layers=2, width=64, heads=4, context=128)
    config.train.update(eval_every=60, eval_tokens=16384, sample_every=0)
  if args.runlocal:
    config.train.update(steps=20, eval_every=10, sample_every=20)
  return config
