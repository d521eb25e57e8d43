"""Sampling settings as transformers' generation_config.json, and back.

Not written, as the formula or its inputs differ there: length_penalty, guidance, seed.

Source: transformers 5.23, `generation/configuration_utils.py`.
"""

from gpt_jax.sample import SampleConfig

TOP_K = 50  # of transformers where a file that samples does not say


def to_generation(cfg):
  """Return the keys of a generation_config.json for a SampleConfig."""
  values = {'max_new_tokens': cfg.max_new_tokens, 'do_sample': cfg.temperature > 0 and not cfg.beams}
  if cfg.beams:
    return values | {'num_beams': cfg.beams}
  if cfg.repetition_penalty != 1:
    values['repetition_penalty'] = cfg.repetition_penalty
  if cfg.temperature == 0:
    return values
  values |= {'temperature': cfg.temperature, 'top_k': cfg.top_k, 'top_p': cfg.top_p}
  return values | ({'min_p': cfg.min_p} if cfg.min_p else {})


def from_generation(content):
  """Return the SampleConfig of a generation_config.json; ValueError for a value out of range.

  A file without do_sample, such as one that names special ids alone, keeps our defaults.
  """
  keys = ('max_new_tokens', 'repetition_penalty')
  fields = {key: content[key] for key in keys if content.get(key) is not None}
  if content.get('do_sample') is False:
    beams = content.get('num_beams') or 1
    fields |= {'beams': beams} if beams > 1 else {'temperature': 0.0}
  elif content.get('do_sample'):
    defaults = {'temperature': 1.0, 'top_k': TOP_K, 'top_p': 1.0, 'min_p': 0.0}
    given = {key: content.get(key) for key in defaults}
    fields |= {key: defaults[key] if value is None else value for key, value in given.items()}
    if fields['temperature'] == 0:
      fields = {key: value for key, value in fields.items() if key not in ('top_k', 'top_p', 'min_p')}
  if fields.get('beams'):
    fields.pop('repetition_penalty', None)  # beams do not read it
  types = {key: type(getattr(SampleConfig, key)) for key in fields}
  return SampleConfig(**{key: types[key](value) for key, value in fields.items()})
