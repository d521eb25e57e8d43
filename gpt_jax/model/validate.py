"""Validation of ModelConfig: limits, choices and combinations that no layer could honor.

Every error is a ValueError that names the key, its value and the fix.
"""

from collections import ChainMap

from gpt_jax.model.head_norms import QK_NORMS
from gpt_jax.model.kernels.choice import FUSED_KERNELS
from gpt_jax.model.kernels.remat import REMAT
from gpt_jax.model.layers import ACTIVATIONS, INITS, NORMS
from gpt_jax.model.position_schemes import ROPE_SCALINGS
from gpt_jax.model.positions import POSITIONS
from gpt_jax.model.projectors import PROJECTORS


def check_model(cfg):
  """Raise ValueError for the first setting that is impossible, alone or beside others."""
  for key, rows in CHOICES.items():
    if getattr(cfg, key) not in rows:
      raise ValueError(f'model.{key}={getattr(cfg, key)!r} is not known\nfix: use one of {", ".join(rows)}')
  for key, low in MINIMUM.items():
    value, high = getattr(cfg, key), MAXIMUM.get(key, MAXIMUM_OF_OTHERS)
    if not low <= value < float('inf'):  # NaN fails too
      raise ValueError(f'model.{key}={value} is too small\nfix: use at least {low}')
    if isinstance(low, int) and value > high:
      raise ValueError(f'model.{key}={value} is too large\nfix: use at most {high}')
  for key in ('dropout', 'attention_dropout'):
    if not 0 <= getattr(cfg, key) < 1:
      raise ValueError(f'model.{key}={getattr(cfg, key)} is not a probability\nfix: use 0 <= p < 1')
  raise_first(rule for rules in (head_rules, position_rules, other_rules) for rule in rules(cfg))


def check_effective(cfg):
  """Raise ValueError for a setting that others leave without effect: only for what a user wrote.

  A config that code derives, such as the dense counterpart of a mixture of experts, may hold such settings.
  """
  raise_first(unused_rules(cfg))


def raise_first(rules):
  """Raise ValueError for the first rule (whether it is wrong, cause, fix) that is broken."""
  for is_wrong, cause, fix in rules:
    if is_wrong:
      raise ValueError(f'{cause}\nfix: {fix}')


def head_rules(cfg):
  """Yield (whether it is wrong, cause, fix) for the numbers of heads."""
  yield (
    not cfg.head_dim and cfg.width % cfg.heads,
    f'model.heads={cfg.heads} does not divide model.width={cfg.width}',
    f'use one of {divisors(cfg.width)}, or set model.head_dim',
  )
  yield (
    cfg.heads % cfg.G,
    f'model.kv_heads={cfg.G} does not divide model.heads={cfg.heads}',
    f'use one of {divisors(cfg.heads)}',
  )


def position_rules(cfg):
  """Yield (whether it is wrong, cause, fix) for positions and RoPE scalings."""
  position = POSITIONS[cfg.positions]
  yield (
    cfg.rope_scaling == 'ntk' and cfg.K < 4,
    f'model.rope_scaling=ntk needs a head width of 4 or more, and it is {cfg.K}',
    'choose fewer model.heads, or another rope_scaling',
  )
  yield (
    position.rotate and cfg.K % 2,
    f'model.positions={cfg.positions} needs an even head width, and it is {cfg.K}',
    'choose model.heads so that width / heads is even, or other positions',
  )
  yield (
    position.rotate and position.axes == 3 and cfg.K < 8,
    f'model.positions={cfg.positions} needs a head width of 8 or more for time, rows and columns, and '
    f'it is {cfg.K}',
    'choose fewer model.heads, or other positions',
  )
  sections = cfg.rope_sections
  yield (
    sections and (len(sections) != 3 or sum(sections) != cfg.rotary_dim // 2),
    f'model.rope_sections={sections} are not three numbers of pairs that make {cfg.rotary_dim // 2}',
    'use (), or pairs of time, row and column',
  )
  needs_context = 'rope_original_context' in ROPE_SCALINGS[cfg.rope_scaling].settings
  yield (
    needs_context and not cfg.rope_original_context,
    f'model.rope_scaling={cfg.rope_scaling} needs the context length of the original training',
    'set model.rope_original_context',
  )
  yield (
    not 0 < cfg.rope_fraction <= 1 or (position.rotate and cfg.rotary_dim < 2),
    f'model.rope_fraction={cfg.rope_fraction} rotates no pair of a head of width {cfg.K}, or more than all',
    f'use {2 / cfg.K:.3g} to 1',
  )
  yield (
    cfg.rope_scaling == 'yarn' and (cfg.rope_local_theta or 'N' in cfg.layer_pattern),
    'model.rope_scaling=yarn scales queries and keys of all layers, also of those with other frequencies',
    'choose another rope_scaling, or one RoPE for all layers',
  )


def other_rules(cfg):
  """Yield (whether it is wrong, cause, fix) for muP, windows and experts."""
  yield (
    cfg.mup_base and not cfg.embed_scale,
    f'model.embed_scale=0 grows with the width, which muP does not allow (model.mup_base={cfg.mup_base})',
    f'set model.embed_scale={cfg.mup_base**0.5:.4g}, its value at the base width',
  )
  yield (
    set(cfg.layer_pattern) - set('SLN') or ('S' in cfg.layer_pattern and not cfg.window),
    f'model.layer_pattern={cfg.layer_pattern!r} with model.window={cfg.window} is not a pattern of layers',
    'use letters S (window), L (all keys) and N (all keys, no RoPE), and set model.window > 0 for S',
  )
  yield (
    cfg.experts and not 1 <= cfg.experts_per_token <= cfg.experts,
    f'model.experts_per_token={cfg.experts_per_token} is not possible with model.experts={cfg.experts}',
    f'use 1 to {cfg.experts}',
  )
  for key in ('patch_values', 'frame_values', 'vector_values'):
    yield (
      getattr(cfg, key) % cfg.projector_parts,
      f'model.projector_parts={cfg.projector_parts} does not divide model.{key}={getattr(cfg, key)}',
      'let it be the number of vectors in a place: encoder.stack, or audio.stack',
    )
  yield (
    cfg.experts and cfg.mlp_bias,
    'model.mlp_bias=True is not supported with model.experts > 0',
    'set model.mlp_bias=False',
  )


def unused_rules(cfg):
  """Yield (whether it is wrong, cause, fix) for settings without effect."""
  yield (
    cfg.rope_scaling != 'none' and not POSITIONS[cfg.positions].rotate,
    f'model.rope_scaling={cfg.rope_scaling} has no effect with model.positions={cfg.positions}',
    'set model.positions=rope, or model.rope_scaling=none',
  )
  yield (
    (cfg.rope_local_theta or 'N' in cfg.layer_pattern) and not POSITIONS[cfg.positions].rotate,
    f'model.positions={cfg.positions} has no RoPE for model.rope_local_theta={cfg.rope_local_theta} and '
    f'layer_pattern={cfg.layer_pattern!r}',
    'set model.positions=rope, or leave both out',
  )
  yield (
    cfg.rope_factor != 1.0 and cfg.rope_scaling == 'none',
    f'model.rope_factor={cfg.rope_factor} has no effect with model.rope_scaling=none',
    'choose a rope_scaling, or rope_factor=1',
  )
  yield (
    cfg.projector_parts != 1 and cfg.projector not in ('pool', 'resampler'),
    f'model.projector_parts={cfg.projector_parts} has no effect with model.projector={cfg.projector}',
    'set model.projector=pool or resampler, or model.projector_parts=1',
  )
  yield (
    cfg.flow_width and not cfg.flow_layers,
    f'model.flow_width={cfg.flow_width} has no effect with model.flow_layers=0',
    'set model.flow_layers=3 and image.kind=continuous, or flow_width=0',
  )
  yield (
    cfg.capacity_factor and not cfg.experts,
    f'model.capacity_factor={cfg.capacity_factor} has no effect with model.experts=0',
    'set model.experts, or capacity_factor=0',
  )


def divisors(n):
  """The divisors of n, ascending, as text."""
  return ', '.join(str(d) for d in range(1, n + 1) if n % d == 0)


# No machine has room for more: larger numbers come from a broken or malicious file.
MAXIMUM, MAXIMUM_OF_OTHERS = {'layers': 10_000, 'context': 2**31 - 1}, 2**24
MINIMUM = {
  **dict.fromkeys(('layers', 'width', 'heads', 'vocab_multiple', 'projector_parts'), 1),
  'context': 2,  # a token and the next one, to sample
  **dict.fromkeys(('patch_values', 'frame_values', 'vector_values', 'mup_base'), 0),
  'patch_id': -1,
  **dict.fromkeys(('flow_layers', 'flow_width'), 0),
  **dict.fromkeys(('kv_heads', 'head_dim', 'hidden', 'vocab', 'window', 'experts'), 0),
  **dict.fromkeys(('capacity_factor', 'attention_softcap', 'logit_softcap', 'init_std'), 0),
  **dict.fromkeys(('embed_scale', 'rope_original_context', 'rope_attention_factor'), 0),
  **dict.fromkeys(('rope_local_theta', 'query_scale'), 0),
  **dict.fromkeys(('rope_theta', 'rope_factor', 'norm_eps', 'rope_beta_slow'), 1e-12),
  **dict.fromkeys(('residual_scale', 'logit_scale'), -1e6),
}
CHOICES = {
  'positions': POSITIONS,
  'projector': PROJECTORS,
  'rope_scaling': ROPE_SCALINGS,
  'norm': NORMS,
  'norm_position': ('pre', 'post', 'sandwich', 'output', 'parallel'),
  'qk_norm_over': QK_NORMS,
  'mlp': ACTIVATIONS,
  'init_projections': INITS,
  'kernel': ChainMap(FUSED_KERNELS, dict.fromkeys(('auto', 'xla'))),
  'unroll': ('auto', 'on', 'off'),
  'remat': ChainMap(REMAT, {'auto': None}),
  'dtype': ('auto', 'float32', 'bfloat16'),
  'param_dtype': ('float32', 'bfloat16', 'float16'),
}
