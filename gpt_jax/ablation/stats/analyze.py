"""From the runs of a study to its analysis: what each arm changed, how sure that is, what it cost.

In: study.json as a dict, and one row a run: {arm, seed, status, message, result, curve: [[tokens,
metric or validation loss], ...]}. Out: a dict that JSON can hold (no NaN; None = not known), where
the report reads every number and sentence. Tests are in inference.py, main effects in crossed.py,
size studies in rungs.py.
"""

import collections
import math

import numpy as np

from gpt_jax.ablation.stats import inference, main_effects, size_laws

FRACTIONS = (0.25, 0.5, 0.75, 1.0)  # of an arm's own tokens, where learning curves are compared
FAILED = ('failed', 'diverged', 'killed', 'corrupt')  # ended without a result
# what names a score of a task, in this order, as far as its row has it
SCORE = ('task', 'source', 'metric', 'modality', 'way', 'of', 'control', 'codebook')

PLAN_NOTES = {
  'optuna': [
    'Optuna proposed arms by what earlier ones scored on these seeds, which flatters the best of '
    'them: confirm it on other seeds.'
  ]
}


def analyze(study, rows):
  """Judge every arm against the baseline, as one family -> the analysis.

  In a study with a factor 'size' the family is that of rungs.by_rung, and an arm at another size or
  number of tokens than the baseline is 'not judged' here.

  Returns:
    {metric, better, tolerance, baseline, seeds, looks, family, arms, effects, pairing, scaling,
    notes}. arms, the baseline first: {name, is_baseline, n (seeds compared), mean, sd, values:
    {seed: value} (of all finished seeds), what inference.judge says, sentence, speedup, seconds,
    tokens, tokens_per_second, parameters, failed, statuses: {status: runs}, at_fractions:
    [[fraction, difference of the curves, low, high], ...]}. effects: of crossed.main_effects.
    looks: with how many seeds each was judged, where the study says so.

  Raises:
    ValueError: no finished run has the metric.
  """
  metric, better, tolerance = study['metric'], study['better'], float(study['tolerance'])
  rows = [row | {'seed': str(row['seed'])} for row in rows]
  values = measured(rows, metric)
  diverged = collections.Counter(row['arm'] for row in rows if row['status'] == 'diverged')
  baseline = next(arm['name'] for arm in study['arms'] if arm['is_baseline'])
  scaling = size_laws.of_study(study, values, diverged)
  judged, family = _judged(study, values, diverged, scaling)
  by_arm = {arm['name']: [r for r in rows if r['arm'] == arm['name']] for arm in study['arms']}
  arms = []
  for arm in sorted(study['arms'], key=lambda arm: not arm['is_baseline']):
    name = arm['name']
    one = _described(arm, by_arm[name], values.get(name, {}))
    if name in judged:
      one |= judged[name] | compare_curves(by_arm[name], by_arm[baseline], better)
    else:
      one |= inference.judge([({}, {})])[0] | {'n': len(one['values']), 'diverged': diverged[name]}
      one |= {'verdict': 'baseline' if name == baseline else 'not judged'}
      one |= {'at_fractions': [], 'speedup': None}
    arms.append(one | {'sentence': _sentence(one, metric, tolerance)})
  return {
    'metric': metric,
    'better': better,
    'tolerance': tolerance,
    'baseline': baseline,
    'seeds': sorted({row['seed'] for row in rows}, key=_numeric),
    'looks': list(study.get('looks') or ()),
    'family': family,
    'arms': arms,
    'effects': main_effects.main_effects(study, values, diverged),
    'pairing': _pairing([one for one in arms if one['name'] != baseline]),
    'scaling': scaling,
    'notes': _notes(arms, family, metric, tolerance, study.get('looks') or ())
    + PLAN_NOTES.get(study.get('plan'), []),
  }


def _judged(study, values, diverged, scaling):
  """-> ({arm: what inference.judge says}, how many comparisons the family has)."""
  base = next(arm for arm in study['arms'] if arm['is_baseline'])
  if scaling:
    everything, blank = scaling['rungs'], inference.judge([({}, {})])[0]
    same = {arm['name'] for arm in study['arms'] if size_laws.rung(arm) == size_laws.rung(base)}
    judged = {one['arm']: {k: one[k] for k in blank} for one in everything if one['arm'] in same}
  else:
    others = [arm['name'] for arm in study['arms'] if arm is not base]
    pairs = [(values.get(name, {}), values.get(base['name'], {})) for name in others]
    lost = [diverged[name] for name in others]
    flattered = [diverged[base['name']]] * len(others)
    everything = inference.judge(pairs, study['better'], float(study['tolerance']), lost, flattered)
    judged = dict(zip(others, everything, strict=True))
  return judged, sum(one['p'] is not None for one in everything)


# --------------------------------------------------------------------------------------- values


def measured(rows, metric):
  """{arm: {seed: value}} of the runs that are done and whose value is finite.

  Raises ValueError if runs are done but none has the metric, or it may mean several scores.
  """
  values, names, done = collections.defaultdict(dict), set(), 0
  for row in rows:
    if row['status'] != 'done':
      continue
    done += 1
    found = numbers(row['result'], metric)
    names |= set(found)
    if math.isfinite(found.get(metric, math.nan)):
      values[row['arm']][row['seed']] = found[metric]
  if done and metric not in names:
    raise ValueError(
      f'metric={metric!r} is in no result of this study\nfix: use one of {", ".join(sorted(names))}'
    )
  return dict(values)


def score_name(row):
  """TASK/SOURCE/METRIC of a row of a task, and /MODALITY or what else tells it from others."""
  return '/'.join(str(row[key]) for key in SCORE if row.get(key) not in (None, ''))


def numbers(result, metric=''):
  """The numbers of a result by name: its own, its tail/METRIC and its tasks' scores.

  A metric TASK/METRIC is there too if just one score of the task has it, controls and what is not
  the model's own left out; ValueError if several do.
  """
  tail = {f'tail/{name}': value for name, value in (result.get('tail') or {}).items()}
  scores = result.get('evaluations') or ()
  named = {score_name(row): row['value'] for row in scores} | tail | result
  if metric not in named:
    own = [row for row in scores if not {'of', 'control'} & set(row)]
    short = [row for row in own if f'{row["task"]}/{row["metric"]}' == metric]
    if len(short) > 1:
      raise ValueError(
        f'metric={metric!r} is the name of {len(short)} scores\n'
        f'fix: use one of {", ".join(map(score_name, short))}'
      )
    if short:
      named[metric] = short[0]['value']
  is_number = lambda x: isinstance(x, int | float) and not isinstance(x, bool)
  return {name: float(value) for name, value in named.items() if is_number(value)}


def _described(arm, rows, values):
  """What is known of an arm without the baseline."""
  done = _results(rows)
  statuses = collections.Counter(row['status'] for row in rows)
  numbers = list(values.values())
  cost = {key: _median(done, key) for key in ('seconds', 'tokens_per_second')}
  for key in ('tokens', 'parameters'):  # as planned, until a run says what it was
    cost[key] = _median(done, key) if done else arm.get(key)
  return {
    'name': arm['name'],
    'is_baseline': arm['is_baseline'],
    'mean': float(np.mean(numbers)) if numbers else None,
    'sd': float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None,
    'values': values,
    **cost,
    'statuses': dict(statuses),
    'failed': sum(statuses[status] for status in FAILED),
  }


def _median(results, key):
  found = [r[key] for r in results if math.isfinite(r.get(key, math.nan))]
  return float(np.median(found)) if found else None


def _numeric(seed):
  return (int(seed), '') if seed.isdigit() else (math.inf, seed)


# --------------------------------------------------------------------------------------- curves


def compare_curves(rows, base_rows, better='lower'):
  """Learning curves of an arm and the baseline -> {at_fractions, speedup}; see `analyze`.

  speedup: wall-clock of the baseline / wall-clock of the arm to the same value, the worse of the
  two final ones, so that nothing is extrapolated. Both clocks are tokens / median tokens per
  second. Under a decaying learning rate the way to an earlier value is longer than with a schedule
  made for it: the true ratio is further from 1. None without curves or speeds, and where runs were
  not all trained in the same way and as many at once: their clocks cannot be compared.
  """
  arm, base = _curves(rows), _curves(base_rows)
  seeds = sorted(set(arm) & set(base))
  at_fractions = []
  for fraction in FRACTIONS:
    both = [(_at(arm[seed], fraction), _at(base[seed], fraction)) for seed in seeds]
    if both and all(None not in pair for pair in both):
      found = inference.paired([a - b for a, b in both])
      at_fractions.append([fraction, found['mean'], *(found['interval'] or (None, None))])
  speedup = None
  speeds = [_median(_results(side), 'tokens_per_second') for side in (rows, base_rows)]
  ways = {
    (row.get('how'), row['result'].get('replicas', 1))
    for row in (*rows, *base_rows)
    if row['status'] == 'done'
  }
  if seeds and all(speeds) and len(ways) == 1:
    sides = [_mean_curve([curves[s] for s in seeds], better) for curves in (arm, base)]
    goal = max(losses[-1] for _, losses in sides)
    tokens = [_first_reaches(side, goal) for side in sides]
    speedup = (tokens[1] / speeds[1]) / (tokens[0] / speeds[0])
  return {'at_fractions': at_fractions, 'speedup': speedup}


def _results(rows):
  return [numbers(row['result']) for row in rows if row['status'] == 'done']


def _curves(rows):
  """{seed: curve [points, 2]} of the finished runs that were evaluated on the way."""
  found = {}
  for row in rows:
    points = [point for point in row.get('curve') or () if None not in point]
    if row['status'] == 'done' and len(points) > 1 and np.isfinite(points).all():
      found[row['seed']] = np.asarray(points, float)
  return found


def _at(curve, fraction):
  """The value after this share of a run's own tokens, or None before its first evaluation."""
  tokens = fraction * curve[-1, 0]
  return float(np.interp(tokens, *curve.T)) if tokens >= curve[0, 0] else None


def _mean_curve(curves, better):
  """(tokens, best value so far on average, as a loss that falls)."""
  tokens, sign = curves[0][:, 0], 1 if better == 'lower' else -1
  losses = sign * np.mean([np.interp(tokens, *curve.T) for curve in curves], axis=0)
  return tokens, np.minimum.accumulate(losses)


def _first_reaches(side, goal):
  """After how many tokens a falling curve first reaches the goal; at its first point at best."""
  tokens, losses = side
  after = int(np.argmax(losses <= goal))
  if after == 0:
    return float(tokens[0])
  pair = slice(after - 1, after + 1)
  return float(np.interp(-goal, -losses[pair], tokens[pair]))


# ---------------------------------------------------------------------------------------- words


def _sentence(one, metric, tolerance):
  """The verdict in words, with its numbers."""
  name, verdict, lost = one['name'], one['verdict'], _missing(one)
  spread = f' (sd {one["sd"]:.3g} over {one["n"]} seeds)' if one['sd'] is not None else ''
  mean = f'{metric} {one["mean"]:.4g}{spread}' if one['mean'] is not None else 'no run finished'
  if verdict == 'baseline':
    return f'{name} is the baseline: {mean}{lost}.'
  if verdict == 'not judged':
    return f'{name}: {mean}; of another size or number of tokens than the baseline{lost}.'
  numbers = f'{metric} {one["difference"]:+.3g}' if one['n'] else ''
  if one['interval'] is not None:
    low, high = one['interval']
    p = _probability(one['p_holm'])
    numbers += f' ({low:+.3g} to {high:+.3g}; {one["n"]} seeds, p {p})'
  if verdict == 'diverged':
    others = f'; the others, which flatter it: {numbers}' if numbers else ''
    return f'{name} diverged in {one["diverged"]} of {_runs(one)} runs{others}{lost}.'
  if not one['n']:
    return f'{name} is undecided: no seed finished here and in the baseline{lost}.'
  if one['interval'] is None:
    return f'{name} is undecided: {numbers} on one seed, which has no interval{lost}.'
  if verdict == 'no difference':
    return f'{name} is no different by more than {tolerance:g}: {numbers}{lost}.'
  needs = ''
  if one['base_diverged']:
    needs = f'; the baseline diverged in {one["base_diverged"]} runs, and the others flatter it'
  elif verdict == 'undecided':
    more = one['seeds_needed']
    needs = f'about {more} more seed{"s" * (more > 1)}' if more else 'more seeds than is sensible'
    needs = f'; needs {needs}'
  return f'{name} is {verdict}: {numbers}{needs}{lost}.'


def _probability(p):
  return '< 0.001' if p < 0.001 else f'= {p:.2g}'


def _runs(one):
  return sum(one['statuses'].values())


def _missing(one):
  """What did not finish, in words; '' if all did. That it diverged is a verdict's to say."""
  told = ('done', 'diverged') if one['verdict'] == 'diverged' else ('done',)
  lost = {status: n for status, n in one['statuses'].items() if status not in told}
  return (
    '; runs without a result: ' + ', '.join(f'{n} {status}' for status, n in sorted(lost.items()))
    if lost
    else ''
  )


def _pairing(arms):
  """The gain over all arms: of the root mean squares, as a single arm's gain is uncertain."""
  both = [(a['se_paired'], a['se_unpaired']) for a in arms if a['se_paired'] is not None]
  if not both:
    return dict.fromkeys(('se_paired', 'se_unpaired', 'gain'))
  paired, unpaired = (float(np.sqrt(np.mean(np.square(side)))) for side in zip(*both, strict=True))
  return {'se_paired': paired, 'se_unpaired': unpaired, 'gain': unpaired / paired if paired else None}


def _notes(arms, family, metric, tolerance, looks):
  """What a reader must know to read the numbers."""
  notes = [
    f'Differences are arm minus baseline in {metric}, seed by seed. Intervals are 95 % of one arm '
    f'(paired t); p values and verdicts are Holm-corrected over {family} comparisons.'
  ]
  if tolerance:
    notes.append(
      f'"No difference" means: shown to be smaller than {tolerance:g} by two one-sided tests, even '
      'where it differs from 0.'
    )
  if len(looks) > 1:
    notes.append(
      f'Judged {len(looks)} times, with {", ".join(map(str, looks))} seeds: who looks again after '
      'adding seeds errs more often than the 5 % that these verdicts are made for.'
    )
  elif any(one['verdict'] == 'undecided' for one in arms):
    notes.append('Adding seeds and judging again is a second look: verdicts are then not at 5 %.')
  few = min((one['n'] for one in arms), default=0)
  if few < 5:
    notes.append(f'With {few} seeds intervals are wide, and what is undecided may well be real.')
  for one in arms:
    lost = one['failed']
    if lost and one['values'] and not one['is_baseline']:
      notes.append(
        f'{one["name"]}: {lost} of {_runs(one)} runs failed; it is compared on '
        f'the {one["n"]} seeds that finished, which may flatter it.'
      )
    elif lost and not one['is_baseline']:
      notes.append(f'{one["name"]}: no run finished, {lost} failed; there is nothing to judge.')
    elif lost:
      notes.append(f'The baseline failed in {lost} runs: no arm is compared on those seeds.')
  return notes
