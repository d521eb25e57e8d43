"""One ablation at several sizes: does an effect hold as models grow, and how does each arm scale?

A size study has a factor named 'size', whose levels are the rungs, and may have one named 'tokens',
how long each is trained. Every other factor is judged against its baseline level at the same size
and tokens. The laws are fitted in scaling.py.
"""

import numpy as np

from gpt_jax.ablation.stats import inference, scaling

RESOURCES = ('size', 'tokens')  # names of the factors that are scaled, not judged
LAW_SIZES = 3  # sizes that a law needs
LEAST = 0.01  # exponent below which a law has no optimum
SAME_FLOPS = 0.05  # relative difference below which training FLOPs count as equal


def of_study(study, values, diverged=None):
  """What a study with a factor named 'size' says -> {laws, parametric, isoflop, rungs, warnings}.

  Args:
    values: {arm: {seed: value}}.
    diverged: {arm: how many of its runs diverged}.

  Returns:
    laws: {levels of the other factors: scaling.power_law over parameters}, at the baseline's
    tokens. parametric: the same of scaling.parametric, where tokens vary too, with 'optimum': the
    best size at the largest budget of FLOPs that was trained. isoflop: of
    scaling.isoflop, where at least three sizes were trained with equal FLOPs. rungs: see `by_rung`.
    None if there is no such factor.
  """
  if RESOURCES[0] not in (study.get('factors') or {}):
    return None
  base = next(arm['levels'] for arm in study['arms'] if arm['is_baseline'])
  found = {'laws': {}, 'parametric': {}, 'isoflop': {}, 'rungs': by_rung(study, values, diverged)}
  warnings = sign_changes(found['rungs'])
  for others, arms in _grouped(study['arms']).items():
    alike = [arm for arm in arms if arm['levels'].get('tokens') == base.get('tokens')]
    some = {'laws': (alike, _power_law)}
    if len({arm['tokens'] for arm in arms}) >= LAW_SIZES:
      some['parametric'] = (arms, _parametric)
    if equal := _equal_flops(arms):
      some['isoflop'] = (equal, _isoflop)
    for kind, (chosen, fit) in some.items():
      if len({arm['parameters'] for arm in chosen}) < LAW_SIZES:
        continue
      try:
        found[kind][others] = fit(chosen, values)
      except ValueError as error:
        cause = str(error).splitlines()[0]
        warnings.append(f'no scaling law{others and f" for {others}"}: {cause}')
  return found | {'warnings': warnings}


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
  return scaling.power_law(sizes, losses, seeds)


def _parametric(arms, values):
  sizes, tokens, losses, seeds = _points(arms, values)
  law = scaling.parametric(sizes, tokens, losses, seeds)
  if min(law['alpha'], law['beta']) < LEAST:
    return law | {'optimum': None}
  flops = max(arm['flops_per_token'] * arm['tokens'] for arm in arms)
  per_token = float(np.median([arm['flops_per_token'] / arm['parameters'] for arm in arms]))
  best = scaling.optimum(law, flops, per_token)
  inside = min(sizes) <= best['parameters'] <= max(sizes)
  return law | {'optimum': best | {'flops': flops, 'inside': inside}}


def _equal_flops(arms):
  """The arms of budgets that at least three sizes share, as {**arm, 'flops': of the budget}."""
  budgets = []
  for flops, _, arm in sorted((a['flops_per_token'] * a['tokens'], a['name'], a) for a in arms):
    if not budgets or flops > (1 + SAME_FLOPS) * budgets[-1][0]['flops']:
      budgets.append([])
    first = budgets[-1][0]['flops'] if budgets[-1] else flops
    budgets[-1].append(arm | {'flops': first})
  enough = lambda some: len({arm['parameters'] for arm in some}) >= LAW_SIZES
  return [arm for some in budgets if enough(some) for arm in some]


def _isoflop(arms, values):
  budget = {(arm['parameters'], arm['tokens']): arm['flops'] for arm in arms}
  sizes, tokens, losses, seeds = _points(arms, values)
  flops = [budget[pair] for pair in zip(sizes, tokens, strict=True)]
  return scaling.isoflop(flops, sizes, losses, seeds)


def by_rung(study, values, diverged=None):
  """Effects of the other factors at each size, judged as one family.

  Returns list of {arm, levels, size, parameters, what inference.judge says}, by size; levels: as
  'positions=learned'.
  """
  base = next(arm['levels'] for arm in study['arms'] if arm['is_baseline'])
  grouped, own = _grouped(study['arms']), _label(base)
  at_base = {rung(arm): arm for arm in grouped[own]}
  found, pairs, against_of = [], [], []
  for others, arms in grouped.items():
    for arm in sorted(arms, key=lambda arm: arm['parameters']):
      if others != own and rung(arm) in at_base:
        against = at_base[rung(arm)]
        changed = {k: v for k, v in arm['levels'].items() if v != against['levels'][k]}
        size = '/'.join(str(level) for level in rung(arm) if level is not None)
        about = {'arm': arm['name'], 'levels': _label(changed), 'size': size}
        found.append(about | {'parameters': against['parameters']})
        pairs.append((values.get(arm['name'], {}), values.get(against['name'], {})))
        against_of.append(against['name'])
  lost, flattered = (
    [(diverged or {}).get(name, 0) for name in names] for names in ([one['arm'] for one in found], against_of)
  )
  judged = inference.judge(pairs, study['better'], float(study['tolerance']), lost, flattered)
  return [one | verdict for one, verdict in zip(found, judged, strict=True)]


def sign_changes(rungs):
  """Warnings, one for each effect that does not point the same way at all sizes."""
  warnings = []
  for levels in dict.fromkeys(one['levels'] for one in rungs):
    own = [one for one in rungs if one['levels'] == levels and one['difference'] is not None]
    verdicts = {one['verdict']: one['size'] for one in own}
    if {'better', 'worse'} <= set(verdicts):
      warnings.append(
        f'{levels} changes sign with size: better at {verdicts["better"]}, worse at '
        f'{verdicts["worse"]}; do not carry it over to other sizes'
      )
      continue
    open_ones = [one['difference'] for one in own if one['verdict'] != 'no difference']
    if open_ones and min(open_ones) < 0 < max(open_ones):
      warnings.append(
        f'{levels} may change sign with size: its differences point both ways, not all are decided'
      )
  return warnings


def rung(arm):
  """The size and the tokens of an arm, None for a factor that the study does not have."""
  return tuple(arm['levels'].get(name) for name in RESOURCES)


def _grouped(arms):
  """{levels of what is judged, as 'positions=rope': its arms}."""
  grouped = {}
  for arm in arms:
    grouped.setdefault(_label(arm['levels']), []).append(arm)
  return grouped


def _label(levels):
  return ','.join(f'{name}={level}' for name, level in levels.items() if name not in RESOURCES)
