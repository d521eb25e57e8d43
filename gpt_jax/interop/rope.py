"""RoPE in a config.json: rope_theta and rope_scaling, or both in transformers 5's rope_parameters.

Source: transformers 5.23, `modeling_rope_utils.py`.
"""

import math

from gpt_jax.model.position_schemes import yarn_magnitude


def read_rope(hf):
  """A config.json, old or new -> RoPE's fields of ModelConfig.

  Raises ValueError for a kind that turns otherwise than ours do.
  """
  rope = hf.get('rope_scaling') or hf.get('rope_parameters') or {}
  if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
    raise refusal(f'rope_parameters={rope}', 'one table of numbers for all layers is needed')
  share = rope.get('partial_rotary_factor', hf.get('partial_rotary_factor'))
  if share not in (None, 1):
    raise refusal(f'partial_rotary_factor={share}', 'only a part of each head would turn')
  kind = rope.get('rope_type', rope.get('type', 'default'))
  if kind not in ROPE_READERS:
    raise refusal(f'rope_type={kind!r}', f'RoPE turns as in {", ".join(ROPE_READERS)}, no other way')
  theta = rope.get('rope_theta') or hf.get('rope_theta') or 10000.0
  # Phi's place for it comes first, as in transformers; the context is the last resort.
  original = (
    hf.get('original_max_position_embeddings')
    or rope.get('original_max_position_embeddings')
    or hf['max_position_embeddings']
  )
  return {'rope_theta': theta, **ROPE_READERS[kind](rope, original, hf)}


def _read_linear(rope, original, hf):
  return {'rope_scaling': 'linear', 'rope_factor': need(rope, 'factor')}


def _read_llama3(rope, original, hf):
  return {
    'rope_scaling': 'llama3',
    'rope_factor': need(rope, 'factor'),
    'rope_original_context': original,
    'rope_low_frequency': need(rope, 'low_freq_factor'),
    'rope_high_frequency': need(rope, 'high_freq_factor'),
  }


def _read_yarn(rope, original, hf):
  if not rope.get('truncate', True):
    raise refusal('truncate=False', 'the edges of the ramp would not be whole pairs')
  known = {'factor': hf['max_position_embeddings'] / original} | _given(rope)
  factor = need(known, 'factor')
  scale = lambda m: 0.1 * m * math.log(factor) + 1.0 if factor > 1 else 1.0
  attention = rope.get('attention_factor')
  m, m_all = rope.get('mscale'), rope.get('mscale_all_dim')
  if attention is None and m and m_all:
    attention = scale(m) / scale(m_all)
  if attention is None and factor <= 1:
    attention = 1.0
  return {
    'rope_scaling': 'yarn',
    'rope_factor': factor,
    'rope_original_context': original,
    'rope_beta_fast': rope.get('beta_fast') or 32,
    'rope_beta_slow': rope.get('beta_slow') or 1,
    'rope_attention_factor': attention or 0.0,
  }


def _given(values):
  return {key: value for key, value in values.items() if value is not None}


def write_rope(cfg):
  """RoPE for old and new readers: rope_theta and rope_scaling, and both in one rope_parameters."""
  scaling = ROPE_WRITERS[cfg.rope_scaling](cfg)
  theta = cfg.rope_theta
  if cfg.rope_scaling == 'ntk':  # is a larger base and nothing else
    theta *= cfg.rope_factor ** (cfg.K / (cfg.K - 2))
  return {
    'rope_theta': theta,
    'rope_scaling': scaling or None,
    'rope_parameters': {'rope_type': 'default', **scaling, 'rope_theta': theta},
  }


def _write_llama3(cfg):
  return {
    'rope_type': 'llama3',
    'factor': cfg.rope_factor,
    'original_max_position_embeddings': cfg.rope_original_context,
    'low_freq_factor': cfg.rope_low_frequency,
    'high_freq_factor': cfg.rope_high_frequency,
  }


def _write_yarn(cfg):
  return {
    'rope_type': 'yarn',
    'factor': cfg.rope_factor,
    'original_max_position_embeddings': cfg.rope_original_context,
    'beta_fast': cfg.rope_beta_fast,
    'beta_slow': cfg.rope_beta_slow,
    'attention_factor': yarn_magnitude(cfg),
  }


def need(values, key):
  """A number that has no default; ValueError if it is absent."""
  if not isinstance(values.get(key), int | float):
    raise ValueError(f'config.json has no number {key}\nfix: use the config.json that came with the weights')
  return values[key]


def refusal(what, meaning):
  """The error about a setting that we could not compute exactly."""
  return ValueError(
    f'config.json: {what} cannot be imported: {meaning}\n'
    'fix: choose a model without it; editing config.json would change what the model computes'
  )


ROPE_READERS = {
  'default': lambda rope, original, hf: {},
  'linear': _read_linear,
  'llama3': _read_llama3,
  'yarn': _read_yarn,
}
ROPE_WRITERS = {
  'none': lambda cfg: {},
  'ntk': lambda cfg: {},
  'linear': lambda cfg: {'rope_type': 'linear', 'factor': cfg.rope_factor},
  'llama3': _write_llama3,
  'yarn': _write_yarn,
}
