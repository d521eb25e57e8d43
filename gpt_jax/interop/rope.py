"""RoPE in a config.json: rope_theta and rope_scaling, or both in transformers 5's rope_parameters.

Families with windows of their own frequencies have one table for each type of layers.

Source: transformers 5.23, `modeling_rope_utils.py`.
"""

import math

from gpt_jax.model.position_schemes import yarn_magnitude

LLAMA3_KEYS = {  # ModelConfig field -> key of rope_parameters
  'rope_factor': 'factor',
  'rope_original_context': 'original_max_position_embeddings',
  'rope_low_frequency': 'low_freq_factor',
  'rope_high_frequency': 'high_freq_factor',
}
YARN_KEYS = {
  'rope_factor': 'factor',
  'rope_original_context': 'original_max_position_embeddings',
  'rope_beta_fast': 'beta_fast',
  'rope_beta_slow': 'beta_slow',
}
SCALING_KEYS = {
  'none': {},
  'ntk': {},
  'linear': {'rope_factor': 'factor'},
  'llama3': LLAMA3_KEYS,
  'yarn': YARN_KEYS,
}
# dynamic stretches only rows longer than the context, which a model here never sees; mrope is RoPE where
# time, row and column are equal, as for every text.
AS_DEFAULT = ('default', 'dynamic', 'mrope')
READABLE = (*AS_DEFAULT, 'linear', 'llama3', 'yarn')  # values of rope_type
FULL, SLIDING = 'full_attention', 'sliding_attention'


def read_rope(hf, defaults):
  """Read RoPE's fields of ModelConfig from a config.json of any version.

  defaults: the family's. Only with a default for partial_rotary_factor does it rotate a part of each head,
  and only with one for rope_local_base_freq do layers with a window have their own frequencies. Raises
  ValueError for what ModelConfig does not have.
  """
  hf = defaults | hf
  rope, local = hf.get('rope_scaling') or hf.get('rope_parameters') or {}, None
  if 'rope_local_base_freq' in defaults:
    tables = hf.get('rope_parameters') or {FULL: {}}
    if not set(tables) & {FULL, SLIDING}:
      raise unsupported(f'rope_parameters={tables}', 'one table for each type of layers is needed')
    rope, local = hf.get('rope_scaling') or tables.get(FULL) or {}, tables.get(SLIDING) or {}
    rope = (tables.get(FULL) or {}) | rope
  if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
    raise unsupported(f'rope_parameters={rope}', 'one table of numbers for all layers is needed')
  share = rope.get('partial_rotary_factor') or hf.get('partial_rotary_factor') or 1.0
  if share != 1 and 'partial_rotary_factor' not in defaults:
    raise unsupported(f'partial_rotary_factor={share}', 'only a part of each head would be rotated')
  fields = _read_scaling(rope, hf) | ({} if share == 1 else {'rope_fraction': share})
  return fields if local is None else fields | _read_local(local, hf, fields)


def _read_scaling(rope, hf):
  """Return theta and the fields of a scaling, from the table of the layers that are scaled."""
  scaling = rope.get('rope_type', rope.get('type', 'default'))
  if scaling not in READABLE:
    raise unsupported(f'rope_type={scaling!r}', f'RoPE has only the scalings {", ".join(READABLE)}')
  theta = rope.get('rope_theta') or hf.get('rope_theta') or 10000.0
  if scaling in AS_DEFAULT:
    return {'rope_theta': theta}
  # Phi's place for it comes first, as in transformers; the context is the last resort.
  original = (
    hf.get('original_max_position_embeddings')
    or rope.get('original_max_position_embeddings')
    or hf['max_position_embeddings']
  )
  rope = {key: value for key, value in rope.items() if value is not None}
  rope['original_max_position_embeddings'] = original
  extra = {}
  if scaling == 'yarn':
    if not rope.get('truncate', True):
      raise unsupported('truncate=False', 'the edges of the ramp would not be whole pairs')
    rope = {'factor': hf['max_position_embeddings'] / original} | rope
    rope |= {'beta_fast': rope.get('beta_fast') or 32, 'beta_slow': rope.get('beta_slow') or 1}
    extra['rope_attention_factor'] = _yarn_attention_factor(rope)
  fields = {field: read_number(rope, key) for field, key in SCALING_KEYS[scaling].items()}
  return {'rope_theta': theta, 'rope_scaling': scaling} | fields | extra


def _read_local(rope, hf, fields):
  """Return rope_local_theta, from the table of the layers with a window; 0 where they are as the others."""
  if rope.get('rope_type', 'default') != 'default':
    raise unsupported(
      f'rope_parameters={rope} of {SLIDING}', 'layers with a window have only the default type'
    )
  theta = rope.get('rope_theta') or hf['rope_local_base_freq'] or fields['rope_theta']
  is_same = theta == fields['rope_theta'] and 'rope_scaling' not in fields
  return {'rope_local_theta': 0.0 if is_same else theta}


def _yarn_attention_factor(rope):
  """The factor of attention scores, from `attention_factor` or `mscale`; 0.0 = derive it from the scaling."""
  factor = read_number(rope, 'factor')
  scale = lambda m: 0.1 * m * math.log(factor) + 1.0 if factor > 1 else 1.0
  if 'attention_factor' in rope:
    return rope['attention_factor'] or 0.0
  if rope.get('mscale') and rope.get('mscale_all_dim'):
    return scale(rope['mscale']) / scale(rope['mscale_all_dim'])
  return 1.0 if factor <= 1 else 0.0


def write_rope(cfg, defaults):
  """RoPE's keys of a config.json: rope_theta and rope_scaling, and for transformers 5 rope_parameters.

  defaults: the family's, as in `read_rope`; what it cannot hold is left out.
  """
  theta, scaling, values = cfg.rope_theta, {}, {}
  if cfg.rope_scaling == 'ntk':  # only a larger base
    theta *= cfg.rope_factor ** (cfg.rotary_dim / (cfg.rotary_dim - 2))
  elif cfg.rope_scaling != 'none':
    numbers = {key: getattr(cfg, field) for field, key in SCALING_KEYS[cfg.rope_scaling].items()}
    scaling = {'rope_type': cfg.rope_scaling} | numbers
  if cfg.rope_scaling == 'yarn':
    scaling['attention_factor'] = yarn_magnitude(cfg)
  if 'partial_rotary_factor' in defaults:
    values['partial_rotary_factor'] = cfg.rope_fraction
  table = {'rope_type': 'default', **scaling, **values, 'rope_theta': theta}
  if 'rope_local_base_freq' in defaults:
    local = cfg.rope_local_theta or theta
    table = {FULL: table, SLIDING: {'rope_type': 'default', 'rope_theta': local}}
    values['rope_local_base_freq'] = local
  return values | {'rope_theta': theta, 'rope_scaling': scaling or None, 'rope_parameters': table}


def read_number(values, key):
  """A number that has no default; ValueError if it is absent."""
  if not isinstance(values.get(key), int | float):
    raise ValueError(f'config.json has no number {key}\nfix: use the config.json that came with the weights')
  return values[key]


def unsupported(setting, meaning):
  """The ValueError for a setting that ModelConfig cannot reproduce exactly."""
  return ValueError(
    f'config.json: {setting} cannot be imported: {meaning}\n'
    'fix: choose a model without it; editing config.json would change what the model computes'
  )
