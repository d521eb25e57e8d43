"""Figures of a study: learning curves, effects of arms, factors and sizes."""

import collections
import math

import numpy as np

from gpt_jax.ablation.stats import analyze
from gpt_jax.reports import figures, page, study_results
from gpt_jax.reports.job_metrics import JOB_METRICS

COLORS = (figures.FIRST, figures.SECOND, figures.THIRD, figures.FOURTH, figures.FIFTH, figures.INK)
SKIPPED = 0.1  # of the budget: the first plunge would flatten what follows
POINTS = 100  # of a common grid
# verdict: color of its marks, whether they are filled
VERDICT_STYLES = {
  'better': (figures.FIRST, True),
  'worse': (figures.SECOND, True),
  'diverged': (figures.SECOND, False),
  'no difference': (figures.MUTED, True),
  'undecided': (figures.MUTED, False),
}


def verdict_style(arm):
  """(color, whether filled) of an arm's verdict."""
  return VERDICT_STYLES.get(arm.get('verdict'), VERDICT_STYLES['undecided'])


def curves_of(study, name):
  """Return {seed: (x, y)} of one arm: tokens and the study's metric of what is done."""
  found = {}
  for row in study.runs_of(name):
    if row['status'] != 'done':
      continue
    points = np.array([p for p in row.get('curve') or () if None not in p], float).reshape(-1, 2)
    points = points[np.isfinite(points).all(1)]
    if len(points) > 1:
      found[row['seed']] = (points[:, 0], points[:, 1])
  return found


def on_common_grid(curves):
  """Curves on one grid -> (x, y of shape (curves, x)), from SKIPPED of the way on."""
  end = min(x[-1] for x, _ in curves)
  begin = max(max(x[0] for x, _ in curves), SKIPPED * end)
  own = [x for x, _ in curves if len(x) < POINTS]
  grid = np.unique(np.concatenate(own)) if own else np.linspace(begin, end, POINTS)
  grid = grid[(grid >= begin) & (grid <= end)]
  return grid, np.array([np.interp(grid, x, y) for x, y in curves])


def overview_arms(study):
  """The arms of the overview: the baseline, and the most different ones of the others."""
  others = [a for a in study.others() if curves_of(study, a['name'])]
  far = sorted(others, key=lambda a: -abs(study_results.number(a, 'difference', 0.0)))
  names = {a['name'] for a in far[: len(COLORS) - 1]}
  return [study.baseline(), *(a for a in others if a['name'] in names)] if study.baseline() else []


def overview(study):
  """Figures, for a screen and for a phone, of the mean curves with bands over seeds."""
  series, ends_by_arm = [], []
  for arm, color in zip(overview_arms(study), COLORS, strict=False):
    found = list(curves_of(study, arm['name']).values())
    if not found:
      continue
    x, y = on_common_grid(found)
    if len(found) > 1:
      series.append(figures.Series(x, y.min(0), 'band', color, to=y.max(0)))
    ends_by_arm.append((arm['name'], y.mean(0)[-1]))
    series.append(figures.Series(x, y.mean(0), 'line', color, short_label(arm)))
  options = dict(units=units(study))
  ends = ', '.join(f'{name} {value:.3f}' for name, value in ends_by_arm)
  options['label'] = f'{study.metric} against {options["units"][0]}: {ends}'
  room = 16 + 7 * max((len(line.label) for line in series), default=0)
  draw = lambda kind, size: figures.chart(series, name=f'curves {kind}', size=size, room=room, **options)
  return page.figure_pair(draw)


def units(study):
  """Return the units of (x, y), by the items that the runs consumed."""
  counted = {name for row in study.rows for name in row.get('result') or ()}
  job = next((job for job in JOB_METRICS.values() if job.items in counted), JOB_METRICS['gpt'])
  is_loss = 'loss' in study.metric if job.losses_comparable else study.metric == 'validation loss'
  return 'tokens' if job.losses_comparable else 'steps', job.unit if is_loss else study.metric


def short_label(arm, most=16):
  """Return an arm's label at its line: only its level if that is enough."""
  _, _, level = arm['name'].rpartition('=')
  name = arm['name'] if ',' in arm['name'] else level
  if arm.get('is_baseline'):
    name = study_results.base_name(arm).strip('()')
  return name if len(name) <= most else name[: most - 1] + '\u2026'


def differences(study):
  """A small chart for each arm: its curve minus the baseline's of the same seed."""
  base, drawn = curves_of(study, study.baseline().get('name')), []
  for arm in study.others():
    own = curves_of(study, arm['name'])
    common = [seed for seed in own if seed in base]
    if not common:
      continue
    x, y = on_common_grid([curves[seed] for curves in (own, base) for seed in common])
    if not len(x):
      continue
    drawn.append(difference(study, arm, x, y[: len(common)] - y[len(common) :]))
  return drawn


def difference(study, arm, x, y):
  """One small chart; y: (seeds, x)."""
  color, _ = verdict_style(arm)
  series = [figures.Series(x[[0, -1]], np.zeros(2), 'faint', figures.MUTED)]
  if len(y) > 1:
    series.append(figures.Series(x, y.min(0), 'band', color, to=y.max(0)))
  series.append(figures.Series(x, y.mean(0), 'line', color))
  svg = figures.chart(
    series, name=f'difference {arm["name"]}', label=f'{arm["name"]} minus baseline', size=page.SMALL
  )
  return page.small_figure(arm['name'], study_results.signed(y.mean(0)[-1], study.places), svg)


def other_measures(study, name):
  """{measure: [value of each seed]} of one arm: losses per source, and the tasks."""
  found = collections.defaultdict(list)
  for row in study.runs_of(name):
    result = row.get('result') or {}
    values = {k: v for k, v in result.items() if k.startswith('valid_') or k == 'bits_per_byte'}
    for score in result.get('evaluations') or ():
      values[analyze.score_name(score)] = score.get('value')
    for key, value in values.items():
      if math.isfinite(study_results.as_number(value)):
        found[key].append(float(value))
  return dict(found)


# -------------------------------------------------------------------------------------- effects


def arms(study):
  """The forest plot of all arms, with their seeds."""
  base = study.baseline().get('values') or {}
  rows = []
  for arm in study.others():
    values = arm.get('values') or {}
    points = [values[seed] - base[seed] for seed in values if seed in base]
    rows.append(effect(study, arm['name'], arm, points))
  note = (
    f'Difference in {study.metric} from the baseline {study_results.base_name(study.baseline())}, paired '
    'by seed: mean, 95 % interval, and below it each seed. '
  )
  if study.tolerance:
    note += f'Gray band: within {study.tolerance:g} of no difference. Hollow: undecided. '
  note += 'An arrow points beyond the axis.'
  return page.section('Effects', *forest(study, rows, 'arms'), note=note)


def main(study):
  """Main effects of a plan that crosses factors."""
  found = study.analysis.get('effects') or ()
  rows = [effect(study, f'{e["factor"]}={e["level"]}', e) for e in found]
  note = (
    f'What a level changes in {study.metric} on average over the arms that have it, against '
    'arms that differ in nothing else; 95 % intervals, one family of tests.'
  )
  return page.section('Main effects', *forest(study, rows, 'main'), note=note)


def scaling(study):
  """Loss over size with its fitted law, and the other factors' effects at each size."""
  found = study.analysis.get('scaling') or {}
  laws, rungs = found.get('laws') or {}, found.get('effects') or ()
  rows = [effect(study, f'{rung["levels"]} at {rung["size"]}', rung) for rung in rungs]
  said = [page.element('p', page.escape(text)) for text in study.laws()]
  title = page.element('h3', 'Effects by size') if rows else ''
  note = 'Points: runs. Line: fitted law, with its 95 % bootstrap band, beyond the largest size too.'
  return page.section(
    'Scaling', *law_figures(study, laws), *said, title, *forest(study, rows, 'rungs'), note=note
  )


def effect(study, name, found, points=()):
  """One row of a forest plot, of a difference and its verdict."""
  color, filled = verdict_style(found)
  interval = tuple(map(study_results.as_number, found.get('interval') or ()))
  interval = interval if np.isfinite(interval).all() else ()
  value = study_results.number(found, 'difference')
  return figures.Effect(name, value, interval, points, study.effect(found), color, filled)


def forest(study, rows, name):
  """Figures of a forest plot for a screen and for a phone."""
  ends = ('better', 'worse') if study.sign > 0 else ('worse', 'better')
  options = dict(
    equal=study.tolerance,
    ends=(f'\u2190 {ends[0]}', f'{ends[1]} \u2192'),
    label='; '.join(f'{row.name} {row.text}' for row in rows),
  )
  draw = lambda kind, size: figures.forest(rows, name=f'{name} {kind}', width=size[0], **options)
  return page.figure_pair(draw)


def law_figures(study, laws):
  """Figures of the fitted laws over the runs, for a screen and for a phone."""
  series = []
  for (others, law), color in zip(laws.items(), COLORS, strict=False):
    x, y, *band = np.array([[np.nan if v is None else v for v in p] for p in law['curve']]).T
    if np.isfinite(band).all():
      series.append(figures.Series(x, band[0], 'band', color, to=band[1]))
    series.append(figures.Series(x, y, 'line', color, others.rpartition('=')[2]))
    points = [
      (arm['parameters'], value)
      for arm in study.arms()
      if others == study_results.others_of(arm)
      for value in (arm.get('values') or {}).values()
    ]
    if points:
      series.append(figures.Series(*np.array(points, float).T, 'dots', color))
  options = dict(units=('parameters', study.metric), x_scale='log', room=120)
  options['label'] = '; '.join(study_results.law_text(*law) for law in laws.items())
  return page.figure_pair(lambda kind, size: figures.chart(series, name=f'law {kind}', size=size, **options))


EFFECTS = (arms, main, scaling)
