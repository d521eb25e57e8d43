"""Size studies: does an effect hold as models grow, and how does each arm scale?

A size study has a factor named 'size', and may have one named 'tokens', how long each size is trained.
Every other factor is judged against its baseline level at the same size and tokens. The laws are fitted
in scaling.py.
"""

import numpy as np

from gpt_jax.ablation.stats import scaling

RESOURCES = ('size', 'tokens')  # names of the factors that are scaled, not judged
MIN_SIZES = 3  # sizes that a law needs
MIN_EXPONENT = 0.01  # below it a law has no optimum
EQUAL_FLOPS = 0.05  # relative difference below which training FLOPs count as equal


def fit_size_study(study, scored, effects=()):
  """Fit the laws of a study with a factor named 'size' -> {laws, parametric, isoflop, effects, warnings}.

  scored: a scores.Scores. effects: those of `effects_by_size`, judged. None if there is no such factor.

  Returns:
    laws: {levels of the other factors: scaling.power_law over parameters}, at the baseline's tokens, each
    with 'held_out': what the law of the smaller sizes says of the largest (scaling.predict_largest).
    parametric: the same of scaling.parametric, if tokens vary too, with 'optimum': the best size at the
    largest budget of FLOPs that was trained. isoflop: of scaling.isoflop, if at least three sizes were
    trained with equal FLOPs.
  """
  if not has_sizes(study):
    return None
  base = next(arm['levels'] for arm in study['arms'] if arm['is_baseline'])
  fits, warnings = {'laws': {}, 'parametric': {}, 'isoflop': {}}, _sign_changes(effects)
  for label, arms in _group_by_label(study['arms']).items():
    equal_tokens = [arm for arm in arms if arm['levels'].get('tokens') == base.get('tokens')]
    candidates = [('laws', equal_tokens, _power_law), ('isoflop', _with_equal_flops(arms), _isoflop)]
    if len({arm['tokens'] for arm in arms}) >= MIN_SIZES:
      candidates.insert(1, ('parametric', arms, _parametric))
    for kind, chosen, fit in candidates:
      if len({arm['parameters'] for arm in chosen}) < MIN_SIZES:
        continue
      try:
        fits[kind][label] = fit(chosen, scored.values)
      except ValueError as error:
        cause = str(error).splitlines()[0]
        warnings.append(f'no scaling law{label and f" for {label}"}: {cause}')
  return fits | {'effects': list(effects), 'warnings': warnings}


def has_sizes(study):
  """Whether a study has a factor named 'size'."""
  return RESOURCES[0] in (study.get('factors') or {})


def _points(arms, values):
  """(parameters, tokens, value, seed) of the finished runs, as four sequences."""
  points = [
    (arm['parameters'], arm['tokens'], value, seed)
    for arm in arms
    for seed, value in values.get(arm['name'], {}).items()
  ]
  return zip(*points, strict=True) if points else ((),) * 4


def _power_law(arms, values):
  sizes, _, losses, seeds = _points(arms, values)
  held_out = {'held_out': scaling.predict_largest(sizes, losses, seeds)}
  return scaling.power_law(sizes, losses, seeds) | held_out


def _parametric(arms, values):
  sizes, tokens, losses, seeds = _points(arms, values)
  law = scaling.parametric(sizes, tokens, losses, seeds)
  if min(law['alpha'], law['beta']) < MIN_EXPONENT:
    return law | {'optimum': None}
  flops = max(arm['flops_per_token'] * arm['tokens'] for arm in arms)
  per_token = float(np.median([arm['flops_per_token'] / arm['parameters'] for arm in arms]))
  best = scaling.optimum(law, flops, per_token)
  best |= {'flops': flops, 'inside': min(sizes) <= best['parameters'] <= max(sizes)}
  return law | {'optimum': best}


def _isoflop(arms, values):
  budget = {(arm['parameters'], arm['tokens']): arm['flops'] for arm in arms}
  sizes, tokens, losses, seeds = _points(arms, values)
  flops = [budget[pair] for pair in zip(sizes, tokens, strict=True)]
  return scaling.isoflop(flops, sizes, losses, seeds)


def _with_equal_flops(arms):
  """The arms of budgets that at least three sizes share, as {**arm, 'flops': of the budget}."""
  budgets = []
  for flops, _, arm in sorted((a['flops_per_token'] * a['tokens'], a['name'], a) for a in arms):
    if not budgets or flops > (1 + EQUAL_FLOPS) * budgets[-1][0]['flops']:
      budgets.append([])
    budgets[-1].append(arm | {'flops': budgets[-1][0]['flops'] if budgets[-1] else flops})
  enough = lambda group: len({arm['parameters'] for arm in group}) >= MIN_SIZES
  return [arm for group in budgets if enough(group) for arm in group]


def effects_by_size(study):
  """The other factors at each size -> (effects, the names (arm, its baseline) of each).

  effects: list of {arm, levels (like 'positions=learned'), size, parameters}, by size.
  """
  base = _label(next(arm['levels'] for arm in study['arms'] if arm['is_baseline']))
  grouped = _group_by_label(study['arms'])
  baselines = {size_of(arm): arm for arm in grouped.pop(base)}
  effects, pairs = [], []
  for arms in grouped.values():
    for arm in sorted(arms, key=lambda arm: arm['parameters']):
      if own := baselines.get(size_of(arm)):
        changed = {k: v for k, v in arm['levels'].items() if v != own['levels'][k]}
        size = '/'.join(str(level) for level in size_of(arm) if level is not None)
        effect = {'arm': arm['name'], 'levels': _label(changed), 'size': size}
        effects.append(effect | {'parameters': own['parameters']})
        pairs.append((arm['name'], own['name']))
  return effects, pairs


def _sign_changes(effects):
  """Warnings, one for each effect with different signs at different sizes."""
  warnings = []
  for levels in dict.fromkeys(effect['levels'] for effect in effects):
    known = [e for e in effects if e['levels'] == levels and e['difference'] is not None]
    sizes = {effect['verdict']: effect['size'] for effect in known}
    differences = [effect['difference'] for effect in known if effect['verdict'] != 'no difference']
    if {'better', 'worse'} <= set(sizes):
      warnings.append(
        f'{levels} changes sign with size: better at {sizes["better"]}, worse at {sizes["worse"]}; do not '
        'carry it over to other sizes'
      )
    elif differences and min(differences) < 0 < max(differences):
      warnings.append(
        f'{levels} may change sign with size: its differences point both ways, not all are decided'
      )
  return warnings


def size_of(arm):
  """(size, tokens) of an arm, None for a factor that the study does not have."""
  return tuple(arm['levels'].get(name) for name in RESOURCES)


def _group_by_label(arms):
  """{levels of the judged factors, like 'positions=rope': arms}."""
  grouped = {}
  for arm in arms:
    grouped.setdefault(_label(arm['levels']), []).append(arm)
  return grouped


def _label(levels):
  return ','.join(f'{name}={level}' for name, level in levels.items() if name not in RESOURCES)
