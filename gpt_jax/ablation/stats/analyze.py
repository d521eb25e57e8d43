"""Analyze the runs of a study: what each arm changed, how certain that is, and what it cost.

In: study.json as a dict, and the rows of store.read_runs. Out: a JSON-able dict (no NaN; None = unknown)
that holds every number and sentence of the report.
"""

import collections
import itertools
import math

import numpy as np

from gpt_jax.ablation import protocol
from gpt_jax.ablation.stats import comparability, inference, judging, main_effects, scores, size_laws
from gpt_jax.ablation.stats.notes import make_notes, run_count

FRACTIONS = (0.25, 0.5, 0.75, 1.0)  # of an arm's own tokens, where learning curves are compared
FAILED = ('failed', 'diverged', 'killed', 'hung', 'corrupt')  # ended without a result
NO_VERDICT = judging.judge([({}, {})])[0]  # of an arm that is not compared
NO_CURVES = {'at_fractions': [], 'speedup': None}


def analyze(study, rows):
  """Judge every arm against the baseline, and main effects and interactions, as one family -> the analysis.

  The arms in each further metric of `outcomes` of the study belong to the family, too.
  In a study with a factor 'size' arms are judged at each size, see size_laws.effects_by_size, and an arm with
  another size or number of tokens than the baseline is 'not judged' here.

  Returns:
    {metric, better, tolerance, protocol and exploratory (of protocol.py), baseline, seeds, looks (numbers of
    seeds at earlier judgments), family (number of comparisons), arms, effects, interactions (see
    main_effects), runner_up (see judging.best_against_second), pairing, scaling (see size_laws), notes,
    outcomes: [{metric, better, tolerance, arms}] of further metrics, without curves}.
    arms, the baseline first: {name, is_baseline, n (seeds compared), mean, sd, values: {seed: value} (of all
    finished seeds), the keys of judging.judge, sentence, speedup, seconds, tokens, targets,
    tokens_per_second, parameters, failed, statuses: {status: runs}, at_fractions: [[fraction, difference of
    the curves, low, high], ...]}.

  Raises:
    ValueError: no finished run has the metric.
  """
  rows = [row | {'seed': str(row['seed'])} for row in rows]
  scored = scores.collect_scores(rows, study['metric'])
  baseline = next(arm['name'] for arm in study['arms'] if arm['is_baseline'])
  more = [_further_outcome(study, rows, settings) for settings in study.get('outcomes') or ()]
  verdicts, judged, more_verdicts, family = _judge_family(study, scored, baseline, more)
  arms, exploratory = _describe_arms(study, rows, scored, verdicts), protocol.exploratory(study)
  outcomes = [
    {key: view[key] for key in ('metric', 'better', 'tolerance')} | {'arms': _describe_arms(view, *of_view)}
    for (view, *of_view) in ((*each, judged) for each, judged in zip(more, more_verdicts, strict=True))
  ]
  looks = list(study.get('looks') or ())
  examples = max(each.examples for each in (scored, *(of_view for *_, of_view in more)))
  return {
    'metric': study['metric'],
    'better': study['better'],
    'tolerance': float(study['tolerance']),
    'protocol': study.get('protocol', ''),
    'exploratory': exploratory,
    'baseline': baseline,
    'seeds': sorted({row['seed'] for row in rows}, key=lambda seed: (not seed.isdigit(), seed.zfill(20))),
    'looks': looks,
    'family': family,
    'arms': arms,
    'outcomes': outcomes,
    **judged,
    'pairing': _pairing_gain([arm for arm in arms if arm['name'] != baseline]),
    'runner_up': judging.best_against_second(study, scored, verdicts),
    'notes': make_notes(study, arms, outcomes, family, looks, examples),
  }


def _further_outcome(study, rows, settings):
  """-> (the study by another metric, the rows with its examples and without curves, their Scores)."""
  metric = settings['metric']
  rows = [row | {'curve': [], 'examples': row.get('further_examples', {}).get(metric)} for row in rows]
  return study | settings, rows, scores.collect_scores(rows, metric)


def _judge_family(study, scored, baseline, more):
  """-> ({arm: verdict of judging}, {effects, interactions, scaling}, [{arm: verdict}] of more, comparisons).

  more: list of _further_outcome. comparisons: their number.
  """
  by_size, pairs = [], [(arm['name'], baseline) for arm in study['arms'] if not arm['is_baseline']]
  others = [name for name, _ in pairs]
  if size_laws.has_sizes(study):
    by_size, pairs = size_laws.effects_by_size(study)
  comparisons = [scored.comparison(study, name, base) for name, base in pairs]
  effects, interactions, crossed = main_effects.crossed_effects(study, scored)
  outcomes = [judging.outcome_of(study, comparisons + crossed, scored.examples)]
  for view, _, of_view in more:
    comparisons = [of_view.comparison(view, name, baseline) for name in others]
    outcomes.append(judging.outcome_of(view, comparisons, of_view.examples))
  verdicts, *more_verdicts = judging.judge_outcomes(outcomes, judging.sequential_of(study))
  family = sum(verdict['p'] is not None for each in (verdicts, *more_verdicts) for verdict in each)
  more_verdicts = [dict(zip(others, each, strict=True)) for each in more_verdicts]
  verdicts = iter(verdicts)
  of_pairs = list(itertools.islice(verdicts, len(pairs)))
  by_arm = {name: verdict for (name, base), verdict in zip(pairs, of_pairs, strict=True) if base == baseline}
  judge = lambda about: [each | verdict for each, verdict in zip(about, verdicts, strict=False)]
  judged = {'effects': judge(effects), 'interactions': judge(interactions)}
  by_size = [effect | verdict for effect, verdict in zip(by_size, of_pairs, strict=False)]
  judged['scaling'] = size_laws.fit_size_study(study, scored, by_size)
  return by_arm, judged, more_verdicts, family


# --------------------------------------------------------------------------------------- values


def _describe_arms(study, rows, scored, verdicts):
  """The entries of all arms in the metric of a study, the baseline first."""
  by_arm = {arm['name']: [row for row in rows if row['arm'] == arm['name']] for arm in study['arms']}
  arms, exploratory = [], protocol.exploratory(study)
  planned_arms = sorted(study['arms'], key=lambda arm: not arm['is_baseline'])
  baseline = planned_arms[0]['name']
  for planned in planned_arms:
    name = planned['name']
    arm = _summarize_arm(planned, by_arm[name], scored.values.get(name, {}))
    if name in verdicts:
      arm |= verdicts[name]
    else:
      arm |= NO_VERDICT | {'n': len(arm['values']), 'diverged': scored.diverged.get(name, 0)}
      arm |= {'missing': len(scored.missing.get(name, ()))}
      arm |= {'verdict': 'baseline' if name == baseline else 'not judged'}
    compares = name in verdicts and not arm['reasons']
    arm |= compare_curves(by_arm[name], by_arm[baseline], study['better']) if compares else NO_CURVES
    mark = ' Exploratory.' if exploratory and name != baseline else ''
    sentence = _sentence(arm, comparability.label(study), float(study['tolerance']), study.get('sequential'))
    arms.append(arm | {'sentence': sentence + mark})
  return arms


def _summarize_arm(arm, rows, values):
  """An arm's entry without its comparison to the baseline."""
  results = _finished_results(rows)
  statuses = collections.Counter(row['status'] for row in rows)
  numbers = list(values.values())
  planned = {} if results else arm  # costs are as planned until a run has finished
  return {
    'name': arm['name'],
    'is_baseline': arm['is_baseline'],
    'mean': float(np.mean(numbers)) if numbers else None,
    'sd': float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None,
    'values': values,
    'seconds': _median(results, 'seconds'),
    'tokens_per_second': _median(results, 'tokens_per_second'),
    'tokens': planned.get('tokens', _median(results, 'tokens')),
    'targets': _median(results, 'targets'),
    'parameters': planned.get('parameters', _median(results, 'parameters')),
    'statuses': dict(statuses),
    'failed': sum(statuses[status] for status in FAILED),
  }


def _finished_results(rows):
  return [scores.numeric_results(row['result']) for row in rows if row['status'] == 'done']


def _median(results, key):
  values = [result[key] for result in results if math.isfinite(result.get(key, math.nan))]
  return float(np.median(values)) if values else None


# --------------------------------------------------------------------------------------- curves


def compare_curves(rows, base_rows, better='lower'):
  """Compare learning curves of an arm and the baseline -> {at_fractions, speedup}; see `analyze`.

  speedup: wall-clock time of the baseline / of the arm to the worse of their final values, so that nothing is
  extrapolated; times are tokens / median tokens per second. Under a decaying learning rate an earlier value
  takes longer than with a schedule made for it: the true ratio is further from 1. None without curves or
  speeds, and if runs were trained on other hardware, in other ways or numbers at once: times do not compare.
  """
  curves = _curves(rows), _curves(base_rows)
  seeds = sorted(set(curves[0]) & set(curves[1]))
  at_fractions, speedup = [], None
  for fraction in FRACTIONS:
    pairs = [[_value_at(side[seed], fraction) for side in curves] for seed in seeds]
    if pairs and all(None not in pair for pair in pairs):
      test = inference.paired_t([a - b for a, b in pairs])
      at_fractions.append([fraction, test['mean'], *(test['interval'] or (None, None))])
  speeds = [_median(_finished_results(side), 'tokens_per_second') for side in (rows, base_rows)]
  finished = [row for row in (*rows, *base_rows) if row['status'] == 'done']
  ways = set(map(scores.training_way, finished))
  if seeds and all(speeds) and len(ways) == 1:
    sides = [_mean_curve([side[seed] for seed in seeds], better) for side in curves]
    target = max(losses[-1] for _, losses in sides)
    arm, base = (_tokens_to_reach(side, target) / speed for side, speed in zip(sides, speeds, strict=True))
    speedup = base / arm
  return {'at_fractions': at_fractions, 'speedup': speedup}


def _curves(rows):
  """{seed: curve [points, 2]} of the finished runs with more than one evaluation."""
  curves = {}
  for row in rows:
    points = [point for point in row.get('curve') or () if None not in point]
    if row['status'] == 'done' and len(points) > 1 and np.isfinite(points).all():
      curves[row['seed']] = np.asarray(points, float)
  return curves


def _value_at(curve, fraction):
  """The value after this fraction of a run's own tokens, or None before its first evaluation."""
  tokens = fraction * curve[-1, 0]
  return float(np.interp(tokens, *curve.T)) if tokens >= curve[0, 0] else None


def _mean_curve(curves, better):
  """(tokens, best mean value so far, with its sign such that it falls)."""
  tokens, sign = curves[0][:, 0], 1 if better == 'lower' else -1
  losses = sign * np.mean([np.interp(tokens, *curve.T) for curve in curves], axis=0)
  return tokens, np.minimum.accumulate(losses)


def _tokens_to_reach(side, target):
  """Tokens after which a falling curve first reaches the target; at least those of its first point."""
  tokens, losses = side
  after = int(np.argmax(losses <= target))
  if after == 0:
    return float(tokens[0])
  pair = slice(after - 1, after + 1)
  return float(np.interp(-target, -losses[pair], tokens[pair]))


# -------------------------------------------------------------------------------------- sentences


def _sentence(arm, metric, tolerance, sequential=None):
  """The verdict as a sentence, with its numbers."""
  name, verdict, n, missing = arm['name'], arm['verdict'], arm['n'], _missing_runs(arm)
  if verdict in ('baseline', 'not judged'):
    spread = f' (sd {arm["sd"]:.3g} over {n} seeds)' if arm['sd'] is not None else ''
    mean = f'{metric} {arm["mean"]:.4g}{spread}' if arm['mean'] is not None else 'no run finished'
    if verdict == 'baseline':
      return f'{name} is the baseline: {mean}{missing}.'
    return f'{name}: {mean}; of another size or number of tokens than the baseline{missing}.'
  numbers = f'{metric} {arm["difference"]:+.3g}' if n else ''
  if arm['interval'] is not None:
    low, high = arm['interval']
    p = '< 0.001' if arm['p_holm'] < 0.001 else f'= {arm["p_holm"]:.2g}'
    numbers += f' ({low:+.3g} to {high:+.3g}; {n} seeds, p {p})'
  more = arm['seeds_needed']
  if verdict == 'diverged':
    others = f'; the others, which flatter it: {numbers}' if numbers else ''
    text = f'diverged in {arm["diverged"]} of {run_count(arm)} runs{others}'
  elif verdict == 'not comparable':
    text = f'is not comparable: {"; ".join(arm["reasons"])}'
  elif arm['missing']:
    seeds = f'{arm["missing"]} of {n + arm["missing"]} seeds'
    text = f'is undecided: {metric} is missing or not finite in {seeds}'
    text += f'; in the others {numbers}' if numbers else ''
  elif not n:
    text = 'is undecided: no seed finished here and in the baseline'
  elif arm['interval'] is None and n == 1:
    text = f'is undecided: {numbers} on one seed, which has no interval'
  elif arm['interval'] is None:
    text = f'is undecided: {numbers} in each of {n} seeds; without spread there is no interval'
  elif verdict == 'no difference':
    text = f'is no different by more than {tolerance:g}: {numbers}'
  elif arm['base_diverged']:
    lost = f'the baseline diverged in {arm["base_diverged"]} runs, and the others flatter it'
    text = f'is {verdict}: {numbers}; {lost}'
  elif verdict == 'undecided':
    seeds = f'{more} more seed{"s" * (more > 1)}' if more else ''
    if sequential:
      needs = f'may get {seeds}' if seeds else f'{sequential["most"]} seeds would hardly decide'
    else:
      needs = f'needs about {seeds}' if seeds else 'needs more seeds than is sensible'
    text = f'is undecided: {numbers}; {needs}'
  else:
    text = f'is {verdict}: {numbers}'
  if arm['ties']:
    text += f'; equal to the baseline in {arm["ties"]} of {n} seeds'
  doubt = f'; in doubt: {arm["doubt"]}' if arm['doubt'] else ''
  return f'{name} {text}{doubt}{missing}.'


def _missing_runs(arm):
  """'; runs without a result: 2 failed', or '' if all finished; a verdict 'diverged' says so itself."""
  stated = ('done', 'diverged') if arm['verdict'] == 'diverged' else ('done',)
  counts = [f'{n} {status}' for status, n in sorted(arm['statuses'].items()) if status not in stated]
  return f'; runs without a result: {", ".join(counts)}' if counts else ''


def _pairing_gain(arms):
  """The gain over all arms, from root mean squares, as a single arm's gain is uncertain."""
  pairs = [(arm['se_paired'], arm['se_unpaired']) for arm in arms if arm['se_paired'] is not None]
  if not pairs:
    return dict.fromkeys(('se_paired', 'se_unpaired', 'gain'))
  paired, unpaired = (float(np.sqrt(np.mean(np.square(side)))) for side in zip(*pairs, strict=True))
  return {'se_paired': paired, 'se_unpaired': unpaired, 'gain': unpaired / paired if paired else None}
