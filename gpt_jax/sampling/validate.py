"""Settings of SampleConfig that cannot be honored, each refused with its fix."""

from gpt_jax.sampling.samplers import FILTERS

LIMITS = {  # least and greatest value
  'max_new_tokens': (1, 2**31),
  'num_samples': (1, 2**20),
  'temperature': (0, 1e6),
  'top_k': (0, 2**31),
  'top_p': (1e-6, 1),
  'min_p': (0, 1),
  'repetition_penalty': (1e-6, 1e6),
  'beams': (0, 1024),
  'length_penalty': (0, 10),
  'guidance': (0, 1000),
}


def check_sampling(cfg):
  """Raise ValueError for a SampleConfig out of range, or with fields that others leave without effect."""
  for key, (low, high) in LIMITS.items():
    if not low <= getattr(cfg, key) <= high:
      raise ValueError(f'sample.{key}={getattr(cfg, key)} is out of range\nfix: use {low} to {high}')
  changed = lambda *keys: [key for key in keys if getattr(cfg, key) != getattr(type(cfg), key)]
  unused = changed('temperature', *FILTERS, 'repetition_penalty', 'guidance') if cfg.beams else []
  if unused:
    raise ValueError(
      f'sample.beams={cfg.beams} searches and does not sample: {", ".join(unused)} has no use\n'
      'fix: leave it at its default, or set beams=0'
    )
  if cfg.beams and cfg.num_samples > cfg.beams:
    raise ValueError(f'sample.num_samples={cfg.num_samples} with only {cfg.beams} beams\nfix: use more beams')
  unused = changed(*FILTERS, 'num_samples', 'seed') if cfg.temperature == 0 else []
  if unused:
    raise ValueError(
      f'sample.temperature=0 always takes the likeliest token: {", ".join(unused)} has no use\n'
      'fix: leave it at its default, or set temperature > 0'
    )
