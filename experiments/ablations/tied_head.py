"""Should the head be the embedding table, and at which scale do embeddings enter?

Command: launch.py ablate --config=experiments/ablations/tied_head.py --workdir=runs/tied_head
Hardware: 2 CPU cores   Minutes: 10
"""

from gpt_jax.ablation.design import Budget, Study

SMALL = {
  'layers': 2,
  'model.width': 64,
  'heads': 4,
  'context': 128,
  'batch_size': 16,
  'eval_every': 60,
  'eval_tokens': 16384,
  'sample_every': 0,
}


def get_study(arg=''):
  """No arguments. An embed_scale of 8 is the root of the width, as in Vaswani et al. (2017)."""
  return Study(
    base='experiments/shakespeare_char.py',
    question='Should the head share the embedding table, and how large should embeddings be?',
    factors={'tied_head': [True, False], 'embed_scale': [1.0, 8.0]},
    sweep='full',
    changes=SMALL,
    budget=Budget(tokens=600_000),
  )
