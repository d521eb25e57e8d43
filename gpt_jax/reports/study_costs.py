"""Score against cost: the figure, and the table that marks which arms no other arm beats in both.

An arm is on the frontier of a cost if every arm with as good a mean costs more. Where a study varies the size
of the model, each setting of the other factors has a frontier of its own, over its sizes.
"""

import math

import numpy as np

from gpt_jax.reports import figures, page, study_figures
from gpt_jax.reports import study_results as results
from gpt_jax.reports.sections import make_table
from gpt_jax.reports.study_tables import times
from gpt_jax.runs import loggers
from gpt_jax.runs.metric_names import human

FLOPS, TIME = 'FLOPs', 'seconds'
NOTABLE = 1.02  # ratio of the largest to the least cost from which arms differ


def group_of(study, arm):
  """Return the arms with a frontier of their own: those of equal levels but size, or all."""
  return results.levels_but_size(arm) or 'base' if 'size' in (study.spec.get('factors') or {}) else ''


def cost_points(study):
  """Return {cost: [(arm, its cost, its mean)]} of the costs in which comparable arms differ.

  Times are left out where runs were trained in different ways, or on different hardware.
  """
  ways = {(r.get('how'), r['result'].get('replicas', 1), r['result'].get('hardware')) for r in study.done}
  costs = {FLOPS: lambda arm: results.number(arm, 'flops_per_token') * results.number(arm, 'tokens')}
  costs |= {TIME: lambda arm: results.number(arm, 'seconds')} if len(ways) == 1 else {}
  by_cost = {}
  for name, cost in costs.items():
    points = [
      (arm, cost(arm), results.number(arm, 'mean')) for arm in study.arms if arm['name'] in study.comparable
    ]
    points = [point for point in points if np.isfinite(point[1:]).all() and point[1] > 0]
    values = [value for _, value, _ in points]
    if len(points) > 1 and max(values) > NOTABLE * min(values):
      by_cost[name] = points
  return by_cost


def on_frontier(points, better):
  """Return the names of the arms of [(arm, cost, mean)] that no other beats or equals in both."""
  sign, best, names = 1 if better == 'lower' else -1, math.inf, []
  for arm, _, mean in sorted(points, key=lambda point: (point[1], sign * point[2])):
    if sign * mean < best:
      best = sign * mean
      names.append(arm['name'])
  return names


def frontiers(study):
  """Return {cost: names of the arms on their frontiers}."""
  by_cost = {}
  for cost, points in cost_points(study).items():
    groups = dict.fromkeys(group_of(study, arm) for arm, *_ in points)
    own = [[point for point in points if group_of(study, point[0]) == group] for group in groups]
    by_cost[cost] = [name for points in own for name in on_frontier(points, study.better)]
  return by_cost


def cost_figures(study):
  """Return the figures of the metric against each cost in which the arms differ."""
  by_cost, svgs = frontiers(study), []
  for cost, points in cost_points(study).items():
    groups = list(dict.fromkeys(group_of(study, arm) for arm, *_ in points))
    colors = dict(zip(groups, study_figures.COLORS, strict=False))  # as many as can be told apart
    series = []
    for group, color in colors.items():
      own = sorted((p for p in points if group_of(study, p[0]) == group), key=lambda point: point[1])
      best = [point for point in own if point[0]['name'] in by_cost[cost]]
      series.append(figures.Series(*columns(best), 'frontier', color, group.rpartition('=')[2]))
      if len(groups) > 1:  # the line is labelled
        series.append(figures.Series(*columns(own), 'dots', color))
        continue
      for point in own:
        shade = color if point in best else figures.MUTED
        series.append(figures.Series(*columns([point]), 'named', shade, study_figures.short_label(point[0])))
    svgs += draw(study, cost, series, [arm['name'] for arm, *_ in points])
  return svgs


def columns(points):
  """Return the costs and means of points as arrays."""
  return np.array([point[1] for point in points], float), np.array([point[2] for point in points], float)


def draw(study, cost, series, names):
  """Return the figures of one cost."""
  ends = [line.label for line in series if line.mark == 'frontier']
  options = dict(
    units=(cost, study.metric),
    x_scale='log' if cost == FLOPS and len(ends) > 1 else 'linear',
    room=16 + 7 * max(len(cost), *(len(line.label) for line in series)),
    label=f'{study.metric} against {cost} of {", ".join(names)}',
  )
  return page.figure_pair(
    lambda kind, size: figures.chart(series, name=f'{cost} {kind}', size=size, **options)
  )


def costs_table(study):
  """Return parameters, FLOPs, time, effective speedup and frontiers of each arm."""
  brief = lambda seconds: f'{seconds:.2g} s' if seconds < 100 else loggers.duration(seconds)
  numbers = {
    'parameters': ('>parameters', human),
    'flops_per_token': ('>FLOPs/token', human),
    'tokens': ('>tokens a run', human),
    'seconds': ('>time a run', brief),
    'tokens_per_second': ('>tokens/s', human),
  }
  rows, by_cost = [], frontiers(study)
  for arm in study.arms:
    row = [results.show(results.number(arm, key), form) for key, (_, form) in numbers.items()]
    speedup = math.nan if arm.get('is_baseline') else results.number(arm, 'speedup')
    on = ', '.join(cost for cost, names in by_cost.items() if arm['name'] in names)
    rows.append([results.label(arm), *row, times(speedup), on])
  names = (name for name, _ in numbers.values())
  return make_table(('arm', *names, '>effective speedup', 'on the frontier of'), rows)
