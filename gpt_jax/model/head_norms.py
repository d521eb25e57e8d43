"""Norms of queries and keys before RoPE.

Sources: Henry et al. 2020 (QK-norm); OLMo et al. 2024 (OLMo 2: one norm over all heads); Chameleon Team 2024,
section 2.3 (LayerNorms, which transformers gives a scale and a bias for each head).
"""

from gpt_jax.model.layers import NORMS, Norm, broadcast_like, param


class HeadNorm(Norm):
  """LayerNorm over the width of a head, with a scale and a bias of each head."""

  def __init__(self, cfg, axes):
    self.kind, self.eps = 'layernorm', cfg.norm_eps
    self.scale, self.bias = param(cfg, axes, mean=1.0), param(cfg, axes)

  def __call__(self, x):
    """x normalized, in x's dtype."""
    y = NORMS[self.kind](x, self.eps)
    return (y * broadcast_like(self.scale, y) + broadcast_like(self.bias, y)).astype(x.dtype)


def head_norms(cfg):
  """Return the norms of queries and of keys, None and None without model.qk_norm."""
  return tuple(QK_NORMS[cfg.qk_norm_over](cfg, f'{heads}K') if cfg.qk_norm else None for heads in 'HG')


QK_NORMS = {'head': lambda cfg, axes: Norm(cfg, 'K'), 'all': Norm, 'each': HeadNorm}
