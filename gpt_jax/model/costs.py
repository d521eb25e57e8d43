"""Parameters of a model and FLOPs of a training step.

Sources: PaLM (Chowdhery et al. 2022, appendix B); nanoGPT's estimate_mfu.
"""

import dataclasses

import numpy as np

from gpt_jax.model import adapters, flow, param_trees, towers
from gpt_jax.model.gpt import GPT
from gpt_jax.model.positions import POSITIONS


def count_params(cfg):
  """Parameters of a model, padding rows of the vocabulary left out."""
  shapes = [p.get_value().shape for _, p in param_trees.named_params(GPT(cfg))]
  padding = (cfg.V - cfg.vocab) * cfg.width * (1 if cfg.tied_head else 2)
  return sum(int(np.prod(shape)) for shape in shapes) - padding


def active_matmul_params(cfg):
  """Parameters that multiply a token: no position table, no untied embedding, k of E experts.

  Those of a flow head multiply it once for each noise level.
  """
  dense = dataclasses.replace(cfg, experts=0, encoders=())
  n = count_params(dense)
  if POSITIONS[cfg.positions].has_table:
    n -= cfg.context * cfg.width
  if not cfg.tied_head:
    n -= cfg.vocab * cfg.width
  if cfg.experts:
    mlp = cfg.width * cfg.F * (3 if cfg.gated else 2)
    n += cfg.layers * (mlp * (cfg.experts_per_token - 1) + cfg.width * cfg.experts)
  return n + flow.repeated_params(cfg)


def flops_per_token(cfg, length, adapter=None, places=None):
  """Training FLOPs a token (forward and backward) in rows of `length` -> dict of two conventions.

  'full' counts attention scores over the whole row, as PaLM (appendix B) and nanoGPT do: 6 N + 12 L
  H K T. 'causal' counts only the keys that a query may see, windows included.
  A frozen weight (adapter: AdapterConfig) has no gradient: 4 N, and 6 for each parameter of adapters. places:
  as in step.loss_fn; the head multiplies these alone.
  """
  matmuls, trained, head = 6 * active_matmul_params(cfg), {}, 6 * cfg.vocab * cfg.width
  if adapter is not None and adapters.freezes(adapter, cfg):
    trained, _ = adapters.split(adapter, GPT(cfg))
  if adapter is not None and adapter.freezes:
    own = {path: p for path, p in trained.items() if not towers.owner(cfg, path)}
    whole = param_trees.count({path: p for path, p in own.items() if param_trees.is_param(p)})
    matmuls = 4 * active_matmul_params(cfg) + 6 * param_trees.count(own) - 4 * whole
    is_frozen = not param_trees.is_param(trained.get('embed_VD' if cfg.tied_head else 'head_VD'))
    head = (4 if is_frozen else 6) * cfg.vocab * cfg.width
  if places is not None:
    matmuls -= head * (1 - places / length)
  matmuls += sum(tower_flops(tower, cfg, length, trained) for tower in towers.towers(cfg)) / length
  per_key = 12 * cfg.heads * cfg.K
  t = np.arange(1, length + 1)
  seen = sum(float(np.minimum(t, w or length).mean()) for w in cfg.windows())
  return {'full': matmuls + per_key * length * cfg.layers, 'causal': matmuls + per_key * seen}


def tower_flops(tower, cfg, length, trained):
  """Training FLOPs of an encoder in the model on the items that a row of `length` has room for.

  A frozen one has no backward pass, one with adapters none for its own weights. trained: of adapters.split.
  """
  spec = tower.spec
  n = param_trees.count(getattr(GPT(cfg), tower.name)) - spec.cfg.context * spec.cfg.width
  factor, passes = {'frozen': (2, 1), 'adapters': (4, 3), 'whole': (6, 3)}[tower.training]
  factors = {p: x for p, x in trained.items() if p.startswith(f'{tower.name}/')}
  extra = 6 * param_trees.count(factors) if tower.training == 'adapters' else 0
  positions = tower.window or spec.cfg.context
  scores = 4 * passes * spec.cfg.heads * spec.cfg.K * positions * spec.cfg.layers
  return length // tower.places * positions * (factor * n + extra + scores)
