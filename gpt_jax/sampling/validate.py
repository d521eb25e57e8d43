"""Settings of SampleConfig that cannot be honored, each refused with its fix, and overrides."""

import dataclasses
import difflib
import numbers

from gpt_jax.sampling.samplers import active_filters

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
  'flow_steps': (1, 1000),
  'guidance': (0, 1000),
  'judge_threshold': (0, 1),
  'judge_tries': (1, 1000),
  'seed': (0, 2**32 - 1),  # jax.random.key would take others modulo 2**32
}
KINDS = {  # type of a field: what a value must be, in Python and in words
  int: (numbers.Integral, 'an integer'),
  float: (numbers.Real, 'a number'),
  str: (str, 'a text'),
  tuple[str, ...]: (tuple | list, 'a list of texts'),
}
FILTERS = ('top_k', 'top_p', 'min_p', 'filters')  # fields that choose among sampled tokens

JUDGED = ('judge_threshold', 'judge_tries', 'refusal')  # fields that need a judge


def check_sampling(cfg):
  """Raise ValueError for a SampleConfig out of range."""
  for key, (low, high) in LIMITS.items():
    if not low <= getattr(cfg, key) <= high:
      raise ValueError(f'sample.{key}={getattr(cfg, key)} is out of range\nfix: use {low} to {high}')
  active_filters(cfg)
  if cfg.beams and cfg.num_samples > cfg.beams:
    raise ValueError(f'sample.num_samples={cfg.num_samples} with only {cfg.beams} beams\nfix: use more beams')


def ineffective_fields(cfg):
  """Return the changed fields that others leave without effect, and why: ([], '', '') for none."""
  changed = lambda *keys: [key for key in keys if getattr(cfg, key) != getattr(type(cfg), key)]
  if not cfg.judge and (fields := changed(*JUDGED)):
    return fields, "sample.judge='' judges nothing", 'set judge=RUN:LABEL|LABEL'
  if cfg.beams:
    fields = changed('temperature', *FILTERS, 'repetition_penalty', 'guidance', 'judge_tries')
    return fields, f'sample.beams={cfg.beams} searches and does not sample', 'set beams=0'
  if cfg.temperature == 0:
    fields = changed(*FILTERS, 'num_samples', 'seed', 'judge_tries')
    return fields, 'sample.temperature=0 always takes the likeliest token', 'set temperature > 0'
  return [], '', ''


def check_effective(cfg, fields=None):
  """Raise ValueError if one of `fields` (None: all) of a SampleConfig has no effect."""
  names, cause, fix = ineffective_fields(cfg)
  names = [name for name in names if fields is None or name in fields]
  if names:
    raise ValueError(f'{cause}: {", ".join(names)} has no use\nfix: leave it at its default, or {fix}')


def static_config(cfg):
  """Reset the fields that vary per call and that no compiled step reads: they recompile nothing."""
  unread = dict(max_new_tokens=1, num_samples=1, seed=0, begin='', guidance=1.0, block=())
  unread |= dict(judge='', judge_threshold=0.5, judge_tries=4, refusal='')
  return dataclasses.replace(cfg, **unread)


def check_fields(cfg, fields):
  """Raise ValueError for names that are no fields of a SampleConfig, and for values of another type."""
  types = {field.name: field.type for field in dataclasses.fields(cfg)}
  for name, value in fields.items():
    if name not in types:
      near = [t for t in types if t.startswith(name)] or difflib.get_close_matches(name, types, 1)
      fix = f'did you mean {near[0]}?' if near else f'use one of {", ".join(types)}'
      raise ValueError(f'{name}={value!r} is not a sampling setting\nfix: {fix}')
    kind, words = KINDS[types[name]]
    if not isinstance(value, kind) or isinstance(value, bool):
      default = getattr(type(cfg), name)
      raise ValueError(f'{name}={value!r} is not {words}\nfix: give {words}; the default is {default!r}')


def override(cfg, **fields):
  """Return a SampleConfig with `fields` replaced; what the new ones leave without effect takes its default.

  A field that beams do not use turns the beams of `cfg` off. ValueError for a new field without effect, an
  unknown one, or a value of another type.
  """
  check_fields(cfg, fields)
  beams = fields.get('beams', 0)
  if beams and 'num_samples' not in fields:
    cfg = dataclasses.replace(cfg, num_samples=min(cfg.num_samples, beams))
  changed = dataclasses.replace(cfg, **fields)
  if 'beams' not in fields and set(ineffective_fields(changed)[0]) & set(fields):
    changed = dataclasses.replace(changed, beams=0)
  check_effective(changed, fields)
  return dataclasses.replace(
    changed, **{name: getattr(type(cfg), name) for name in ineffective_fields(changed)[0]}
  )
