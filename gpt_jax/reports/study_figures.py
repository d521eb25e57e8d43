"""Figures of a study: learning curves, effects of arms, factors and sizes."""

import numpy as np

from gpt_jax.reports import figures, page
from gpt_jax.reports import study_results as results
from gpt_jax.reports.job_metrics import JOB_METRICS

COLORS = (*figures.LINE_COLORS, figures.INK)
SKIPPED = 0.1  # of the budget: the first plunge would flatten the rest
POINTS = 100  # of a common grid
# verdict: color of its marks, whether they are filled
VERDICT_STYLES = {
  'better': (figures.FIRST, True),
  'worse': (figures.SECOND, True),
  'diverged': (figures.SECOND, False),
  'no difference': (figures.MUTED, True),
}


def verdict_style(row):
  """Return (color, whether filled) of the verdict of an arm or effect."""
  return VERDICT_STYLES.get(row.get('verdict'), (figures.MUTED, False))


# --------------------------------------------------------------------------------------- curves


def curves_of(study, name):
  """Return {seed: (x, y)} of the finished runs of one arm: tokens and the study's metric.

  {} for an arm whose values do not compare: its curves have another scale.
  """
  curves = {}
  for row in study.runs_of(name) if name in study.comparable else ():
    points = np.array([p for p in row.get('curve') or () if None not in p], float).reshape(-1, 2)
    points = points[np.isfinite(points).all(1)]
    if row['status'] == 'done' and len(points) > 1:
      curves[row['seed']] = tuple(points.T)
  return curves


def on_common_grid(curves):
  """Interpolate curves on one grid, without the first SKIPPED: x, y of shape (curves, x)."""
  end = min(x[-1] for x, _ in curves)
  begin = max(max(x[0] for x, _ in curves), SKIPPED * end)
  own = [x for x, _ in curves if len(x) < POINTS]
  grid = np.unique(np.concatenate(own)) if own else np.linspace(begin, end, POINTS)
  grid = grid[(grid >= begin) & (grid <= end)]
  return grid, np.array([np.interp(grid, x, y) for x, y in curves])


def mean_and_band(x, y, color, label=''):
  """Return the Series of a mean over seeds and, for several, the band of all; y: (seeds, x)."""
  band = [figures.Series(x, y.min(0), 'band', color, to=y.max(0))] if len(y) > 1 else []
  return [*band, figures.Series(x, y.mean(0), 'line', color, label)]


def overview_arms(study):
  """Return the arms of the overview: the baseline, and the most different ones of the others."""
  others = [arm for arm in study.others if curves_of(study, arm['name'])]
  far = sorted(others, key=lambda arm: -abs(results.number(arm, 'difference', 0.0)))
  names = {arm['name'] for arm in far[: len(COLORS) - 1]}
  return [study.baseline, *(arm for arm in others if arm['name'] in names)] if study.baseline else []


def overview(study):
  """Return the figures of the mean curves with bands over seeds."""
  series, ends = [], []
  for arm, color in zip(overview_arms(study), COLORS, strict=False):
    if curves := list(curves_of(study, arm['name']).values()):
      x, y = on_common_grid(curves)
      ends.append(f'{arm["name"]} {y.mean(0)[-1]:.3f}')
      series += mean_and_band(x, y, color, short_label(arm))
  options = {'units': units(study), 'room': 16 + 7 * max((len(line.label) for line in series), default=0)}
  options['label'] = f'{study.metric} against {options["units"][0]}: {", ".join(ends)}'
  return page.figure_pair(
    lambda kind, size: figures.chart(series, name=f'curves {kind}', size=size, **options)
  )


def units(study):
  """Return the units of (x, y), by the items that the runs consumed."""
  counted = {name for row in study.rows for name in row.get('result') or ()}
  job = next((job for job in JOB_METRICS.values() if job.items in counted), JOB_METRICS['gpt'])
  is_loss = 'loss' in study.metric if job.losses_comparable else study.metric == 'validation loss'
  return 'tokens' if job.losses_comparable else 'steps', study.unit or job.unit if is_loss else study.metric


def short_label(arm, limit=16):
  """Return an arm's label at its line: only its level if that is enough."""
  name = arm['name'] if ',' in arm['name'] else arm['name'].rpartition('=')[2]
  if arm.get('is_baseline'):
    name = results.base_name(arm).strip('()')
  return figures.cut(name, limit)


def differences(study):
  """Return a small chart for each arm: its curve minus the baseline's of the same seed."""
  base, charts = curves_of(study, study.baseline.get('name')), []
  for arm in study.others:
    own = curves_of(study, arm['name'])
    seeds = [seed for seed in own if seed in base]
    if not seeds:
      continue
    x, y = on_common_grid([curves[seed] for curves in (own, base) for seed in seeds])
    if len(x):
      y = y[: len(seeds)] - y[len(seeds) :]
      zero = figures.Series(x[[0, -1]], np.zeros(2), 'faint', figures.MUTED)
      label, name = f'{arm["name"]} minus baseline', f'difference {arm["name"]}'
      lines = [zero, *mean_and_band(x, y, verdict_style(arm)[0])]
      svg = figures.chart(lines, name=name, label=label, size=page.SMALL)
      charts.append(page.small_figure(arm['name'], results.signed(y.mean(0)[-1], study.places), svg))
  return charts


# -------------------------------------------------------------------------------------- effects


def arm_effects(study):
  """Return the forest plot of all arms, with their seeds."""
  base, rows = study.baseline.get('values') or {}, []
  for arm in (arm for arm in study.others if arm['name'] in study.comparable):
    values = arm.get('values') or {}
    rows.append((arm['name'], arm, [values[seed] - base[seed] for seed in values if seed in base]))
  return forest(study, rows, 'arms')


def forest(study, rows, name):
  """Return the figures of a forest plot of [(name, effect with its verdict, value of each seed)]."""
  effects = []
  for title, row, points in rows:
    interval = tuple(map(results.as_number, row.get('interval') or ()))
    interval = interval if np.isfinite(interval).all() else ()
    value, text = results.number(row, 'difference'), study.effect(row)
    effects.append(figures.Effect(title, value, interval, points, text, *verdict_style(row)))
  ends = ('better', 'worse') if study.better == 'lower' else ('worse', 'better')
  options = dict(
    equal=study.tolerance,
    ends=(f'\u2190 {ends[0]}', f'{ends[1]} \u2192'),
    label='; '.join(f'{effect.name} {effect.text}' for effect in effects),
  )
  draw = lambda kind, size: figures.forest(effects, name=f'{name} {kind}', width=size[0], **options)
  return page.figure_pair(draw)


def sensitivity(study):
  """Return the figures of the metric against the tuned setting, a line an arm; none for several settings."""
  search = study.spec.get('search') or {}
  if len(search.get('keys', ())) != 1:
    return []
  [key], series = search['keys'], []
  arms = {arm['name']: arm for arm in study.arms}
  for (name, tuned), color in zip(search['arms'].items(), COLORS, strict=False):
    points = sorted((value, scores) for [value], scores in tuned['scores'] if scores)
    if not points or not all(isinstance(value, int | float) for value, _ in points):
      return []
    x, y = np.array([v for v, _ in points], float), [np.array(scores) for _, scores in points]
    low, high, mean = (np.array([side(scores) for scores in y]) for side in (np.min, np.max, np.mean))
    best = x == tuned['best'][key]
    series += [
      figures.Series(x, low, 'band', color, to=high),
      figures.Series(x, mean, 'line', color, short_label(arms[name]) or name),
      figures.Series(x[best], mean[best], 'dots', color),
    ]
  options = dict(units=(key, study.metric), x_scale='log' if min(x) > 0 else 'linear')
  options['room'] = 16 + 7 * max(len(line.label) for line in series)
  options['label'] = f'{study.metric} against {key}'
  return page.figure_pair(
    lambda kind, size: figures.chart(series, name=f'tuning {kind}', size=size, **options)
  )


def law_figures(study, laws):
  """Return the figures of the fitted laws over the runs that they are fitted to, of the baseline's tokens."""
  series, tokens_of = [], lambda arm: (arm.get('levels') or {}).get('tokens')
  for (levels, law), color in zip(laws.items(), COLORS, strict=False):
    x, y, *band = np.array(law['curve'], float).T  # None becomes NaN
    if np.isfinite(band).all():
      series.append(figures.Series(x, band[0], 'band', color, to=band[1]))
    series.append(figures.Series(x, y, 'line', color, levels.rpartition('=')[2]))
    points = [
      (arm['parameters'], value)
      for arm in study.arms
      if levels == results.levels_but_size(arm) and tokens_of(arm) == tokens_of(study.baseline)
      for value in (arm.get('values') or {}).values()
    ]
    if points:
      series.append(figures.Series(*np.array(points, float).T, 'dots', color))
  options = dict(units=('parameters', study.metric), x_scale='log', room=120)
  options['label'] = '; '.join(results.law_text(*law) for law in laws.items())
  return page.figure_pair(lambda kind, size: figures.chart(series, name=f'law {kind}', size=size, **options))
