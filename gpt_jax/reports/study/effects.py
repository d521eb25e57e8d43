"""Effects as figures: of the arms, of factors over crossed arms, and along sizes."""

import numpy as np

from gpt_jax.reports import figures, page
from gpt_jax.reports.study import curves, summary

WIDE, NARROW = 1000, 360  # pixels


def arms(told):
  """The forest plot of all arms, with their seeds."""
  base = told.baseline().get('values') or {}
  rows = []
  for arm in told.others():
    values = arm.get('values') or {}
    points = [values[seed] - base[seed] for seed in values if seed in base]
    rows.append(effect(told, arm['name'], arm, points))
  note = (
    f'Difference in {told.metric} from the baseline {summary.base_name(told.baseline())}, paired '
    'by seed: mean, 95 % interval, and below it each seed. '
  )
  if told.tolerance:
    note += f'Gray band: within {told.tolerance:g} of no difference. Hollow: undecided. '
  note += 'An arrow points beyond the axis.'
  return page.section('Effects', *forest(told, rows, 'arms'), note=note)


def main(told):
  """Main effects of a plan that crosses factors."""
  found = told.analysis.get('effects') or ()
  rows = [effect(told, f'{e["factor"]}={e["level"]}', e) for e in found]
  note = (
    f'What a level changes in {told.metric} on average over the arms that have it, against '
    'arms that differ in nothing else; 95 % intervals, one family of tests.'
  )
  return page.section('Main effects', *forest(told, rows, 'main'), note=note)


def scaling(told):
  """Loss over size with its fitted law, and the other factors' effects at each size."""
  found = told.analysis.get('scaling') or {}
  laws, rungs = found.get('laws') or {}, found.get('effects') or ()
  rows = [effect(told, f'{rung["levels"]} at {rung["size"]}', rung) for rung in rungs]
  said = [page.element('p', page.escape(text)) for text in told.laws()]
  title = page.element('h3', 'Effects by size') if rows else ''
  note = 'Points: runs. Line: fitted law, with its 95 % bootstrap band, beyond the largest size too.'
  return page.section(
    'Scaling', *law_figures(told, laws), *said, title, *forest(told, rows, 'rungs'), note=note
  )


def effect(told, name, found, points=()):
  """One row of a forest plot, of a difference and its verdict."""
  color, filled = curves.look(found)
  interval = tuple(map(summary.as_number, found.get('interval') or ()))
  interval = interval if np.isfinite(interval).all() else ()
  value = summary.number(found, 'difference')
  return figures.Effect(name, value, interval, points, told.effect(found), color, filled)


def forest(told, rows, name):
  """Figures of a forest plot for a screen and for a phone."""
  ends = ('better', 'worse') if told.sign > 0 else ('worse', 'better')
  said = dict(
    equal=told.tolerance,
    ends=(f'\u2190 {ends[0]}', f'{ends[1]} \u2192'),
    label='; '.join(f'{row.name} {row.text}' for row in rows),
  )
  return [
    page.element('figure', svg, kind=kind)
    for kind, width in (('broad', WIDE), ('narrow', NARROW))
    if (svg := figures.forest(rows, name=f'{name} {kind}', width=width, **said))
  ]


def law_figures(told, laws):
  """Figures of the fitted laws over the runs, for a screen and for a phone."""
  series = []
  for (others, law), color in zip(laws.items(), curves.COLORS, strict=False):
    x, y, *band = np.array([[np.nan if v is None else v for v in p] for p in law['curve']]).T
    if np.isfinite(band).all():
      series.append(figures.Series(x, band[0], 'band', color, to=band[1]))
    series.append(figures.Series(x, y, 'line', color, others.rpartition('=')[2]))
    points = [
      (arm['parameters'], value)
      for arm in told.arms()
      if others == summary.others_of(arm)
      for value in (arm.get('values') or {}).values()
    ]
    if points:
      series.append(figures.Series(*np.array(points, float).T, 'dots', color))
  said = dict(units=('parameters', told.metric), x_scale='log', room=120)
  said['label'] = '; '.join(summary.law_text(*law) for law in laws.items())
  return [
    page.element('figure', svg, kind=kind)
    for kind, size in (('broad', (WIDE, 380)), ('narrow', (NARROW, 300)))
    if (svg := figures.chart(series, name=f'law {kind}', size=size, **said))
  ]


PARTS = (arms, main, scaling)
