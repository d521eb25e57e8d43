"""Should the head share the embedding table, and at which scale should embeddings enter?

Each arm is tuned over four learning rates: scale and rate of an embedding act alike.
Result: benchmarks/results/ablations/tied_head.md
Command: launch.py ablate --config=experiments/ablations/tied_head.py --workdir=runs/tied_head
Hardware: 1 CPU core   Minutes: 25 (52 runs)
"""

from gpt_jax.ablation.design import Budget, Study


def get_study(arg=''):
  """Return the study. An embed_scale of 8 is the root of the width, as in Vaswani et al. (2017)."""
  return Study(
    base='experiments/shakespeare_char.py:small',
    question='Should the head share the embedding table, and how large should embeddings be?',
    factors={'tied_head': [True, False], 'embed_scale': [1.0, 8.0]},
    sweep='full',
    tune={'optim.lr': [3e-3, 1e-2, 3e-2, 1e-1]},
    budget=Budget(tokens=600_000),
  )
