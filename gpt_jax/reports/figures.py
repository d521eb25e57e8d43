"""Figures for the reports: matplotlib drawings as inline SVG that takes its colors from the page.

Matplotlib draws with placeholder colors, which become CSS variables, and leaves text as text, so
that one figure is right in light and dark, in print and at any zoom, and its words can be selected.
Sizes are in CSS pixels. The colors of lines are from Okabe and Ito's palette for all kinds of
color vision (jfly.uni-koeln.de/color).
"""

import dataclasses
import html
import io
import re

import matplotlib
import numpy as np
from matplotlib import figure, ticker

NAMES = ('muted', 'rule', 'first', 'second', 'warn', 'third', 'fourth', 'fifth', 'ink')
VARIABLES = {f'#0000a{i}': name for i, name in enumerate(NAMES)}
MUTED, RULE, FIRST, SECOND, WARN, THIRD, FOURTH, FIFTH, INK = VARIABLES
STYLE = {
  'svg.fonttype': 'none',
  'font.size': 12,
  'text.color': MUTED,
  'axes.edgecolor': RULE,
  'axes.spines.left': False,
  'axes.spines.right': False,
  'axes.spines.top': False,
  'axes.grid': True,
  'axes.grid.axis': 'y',
  'axes.xmargin': 0.01,
  'grid.color': RULE,
  'xtick.color': RULE,
  'xtick.labelcolor': MUTED,
  'ytick.labelcolor': MUTED,
  'ytick.left': False,
}
LEFT, BOTTOM = 44, 30  # pixels for tick labels
MOST_POINTS = 1200  # of a line; more are below a pixel


@dataclasses.dataclass(frozen=True)
class Series:
  """One line: x and y, float arrays of equal length (y may be NaN), and how it looks."""

  x: np.ndarray
  y: np.ndarray
  look: str = 'line'  # row of LOOKS
  color: str = FIRST
  label: str = ''  # at its right end
  to: np.ndarray = ()  # upper edge of a band, of which y is the lower


def thin(x, y, most=MOST_POINTS):
  """Keeps the lowest and the highest point of each bin, so that no spike is lost."""
  if len(x) <= most:
    return x, y
  keep = {0, len(x) - 1}
  for part in np.array_split(np.arange(len(x)), most // 2):
    finite = part[np.isfinite(y[part])]
    if len(finite):
      keep |= {finite[np.argmin(y[finite])], finite[np.argmax(y[finite])]}
  index = np.array(sorted(keep))
  return x[index], y[index]


def smooth(y, share=0.04):
  """Mean of the finite values nearby; the window is this share of all points, less at the start.

  The first points fall steeply, so there the window reaches back a quarter of the way at most.
  """
  here, finite = np.arange(len(y)), np.isfinite(y)
  total = np.append(0, np.cumsum(np.where(finite, y, 0)))
  count = np.append(0, np.cumsum(finite))
  reach = np.minimum(int(len(y) * share / 2), here // 4)
  low, high = here - reach, np.minimum(here + reach + 1, len(y))
  mean = (total[high] - total[low]) / np.maximum(count[high] - count[low], 1)
  return np.where(finite, mean, np.nan)


def compact(value, _position=None):
  """Tick label: 2000000 -> '2M', 0.0003 -> '3e-4', 1.5 -> '1.5'."""
  if value and abs(value) < 1e-2:
    return re.sub(r'(\.0)?e-0?', 'e-', f'{value:.1e}')
  for size, unit in ((1e12, 'T'), (1e9, 'B'), (1e6, 'M'), (1e3, 'k')):
    if abs(value) >= size:
      return f'{value / size:g}{unit}'
  return f'{value:.6g}'


def limits(series):
  """(low, high) of y, or () if nothing is finite.

  A first plunge or a rare spike may leave a long curve at the top, or it would flatten the rest.
  """
  finite = [(line.look, y) for line in series for y in (line.y, np.asarray(line.to))]
  finite = [(look, y[np.isfinite(y)]) for look, y in finite]
  finite = [(look, y) for look, y in finite if len(y)]
  if not finite:
    return ()
  low = min(y.min() if look != 'faint' else np.quantile(y, 0.002) for look, y in finite)
  crowded = any(len(y) > 40 for _, y in finite)
  high = max(_top(look, y, low) if crowded else y.max() for look, y in finite)
  margin = 0.06 * (high - low) or 0.05 * abs(high) or 1
  return low - margin, high + margin


def _top(look, y, low):
  usual = np.quantile(y, 0.95)
  if look == 'faint':
    return usual
  if len(y) > 40:
    return min(y.max(), usual + 0.6 * (usual - low))
  return y[len(y) // 2 :].max()


def chart(series, *, name, label, size, marks=(), units=('', ''), room=0, x_scale='linear'):
  """A chart of lines.

  Args:
    series: list of Series.
    name: unique on the page.
    label: what a screen reader says.
    size: (width, height).
    marks: [(x, text)]: dotted vertical lines.
    units: names of x and y.
    room: pixels at the right for the labels of the lines.
    x_scale: linear or log.

  Returns:
    An <svg> element, or '' where there is nothing finite to draw.
  """
  span = limits(series)
  if not span:
    return ''
  (width, height), right = size, max(room, 12)
  top = 26 if units[1] else 8
  with matplotlib.rc_context({**STYLE, 'svg.hashsalt': name}):
    fig = figure.Figure(figsize=(width / 72, height / 72))
    inner = (width - LEFT - right, height - BOTTOM - top)
    axes = fig.add_axes(
      (LEFT / width, BOTTOM / height, inner[0] / width, inner[1] / height), facecolor='none'
    )
    axes.set_axisbelow(True)
    for axis in (axes.xaxis, axes.yaxis):
      ticks = max(2, min(6, (inner[0] // 80) if axis is axes.xaxis else inner[1] // 40))
      whole = axis is axes.xaxis  # steps and tokens
      axis.set_major_locator(ticker.MaxNLocator(ticks, steps=[1, 2, 5, 10], integer=whole))
      axis.set_major_formatter(ticker.FuncFormatter(compact))
    if x_scale == 'log':
      axes.set_xscale('log')
      axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=8))
      axes.xaxis.set_minor_locator(ticker.NullLocator())
      axes.xaxis.set_major_formatter(ticker.FuncFormatter(compact))
    for line in series:
      LOOKS[line.look](axes, line)
    axes.set_ylim(span)
    for x, text in marks:
      axes.axvline(x, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
      axes.text(x, 1, f'\u2009{text}', transform=axes.get_xaxis_transform(), va='top')
    if room:
      _label_ends(axes, series, 16 / inner[1])
    axes.text(-LEFT / inner[0], 1 + 10 / inner[1], units[1], transform=axes.transAxes)
    axes.text(1.012, -7 / inner[1], units[0], va='top', transform=axes.transAxes)
    return _inline(fig, label)


@dataclasses.dataclass(frozen=True)
class Effect:
  """One row of a forest plot: an arm's difference from the baseline."""

  name: str
  value: float
  interval: tuple = ()  # (low, high), or () where one seed gives none
  points: tuple = ()  # the difference of each seed
  text: str = ''  # at the right
  color: str = MUTED
  filled: bool = True


def forest(effects, *, name, label, width, equal=0.0, ends=('', '')):
  """A forest plot: a line an effect, the zero line, and the band that counts as no difference.

  Args:
    effects: list of Effect, first at the top; a value beyond the others gets an arrow.
    name: unique on the page.
    label: what a screen reader says.
    width: pixels; below 500 the texts at the right are left out.
    equal: half the width of the band of equivalence, in units of the values.
    ends: what the left and the right side mean.

  Returns:
    An <svg> element, or '' where no effect is finite.
  """
  effects = [effect for effect in effects if np.isfinite(effect.value)]
  if not effects:
    return ''
  letter = 7  # pixels
  most = 34 if width >= 500 else 18
  left = letter * min(most, max(len(e.name) for e in effects)) + 14
  right = letter * max(len(e.text) for e in effects) + 14 if width >= 500 else 12
  row, top, bottom = 30, 24, BOTTOM
  height = top + bottom + row * len(effects)
  low, high = _reach(effects, equal)
  with matplotlib.rc_context({**STYLE, 'svg.hashsalt': name, 'axes.grid.axis': 'x'}):
    fig = figure.Figure(figsize=(width / 72, height / 72))
    box = (left / width, bottom / height, (width - left - right) / width, row * len(effects))
    axes = fig.add_axes((*box[:3], box[3] / height), facecolor='none')
    axes.set_axisbelow(True)
    axes.set(xlim=(low, high), ylim=(len(effects) - 0.5, -0.5), yticks=())
    axes.axvspan(-equal, equal, color=RULE, alpha=0.55, linewidth=0)
    axes.axvline(0, color=MUTED, linewidth=1.2)
    ticks = max(2, min(8, int(width - left - right) // 90))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(ticks, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(_difference))
    for y, effect in enumerate(effects):
      _effect(axes, y, effect, (low, high))
      across = axes.get_yaxis_transform()
      shown = effect.name if len(effect.name) <= most else effect.name[: most - 1] + '\u2026'
      reach = width - left - right
      axes.text(-14 / reach, y, shown, transform=across, ha='right', va='center', color=INK)
      if width >= 500:
        axes.text(1 + 14 / reach, y, effect.text, transform=across, va='center', color=effect.color)
    above = dict(transform=axes.transAxes, va='bottom')
    axes.text(0, 1 + 5 / (row * len(effects)), ends[0], **above)
    axes.text(1, 1 + 5 / (row * len(effects)), ends[1], ha='right', **above)
    return _inline(fig, label)


def _difference(value, _position=None):
  """Tick label of a difference: '+0.05', a true minus sign, '0'."""
  return f'{value:+.4g}'.replace('-', '\u2212') if abs(value) > 1e-12 else '0'


def _reach(effects, equal):
  """(low, high) of the axis: what is far beyond the others must not flatten them."""
  spans = np.array([(min((e.value, *e.interval)), max((e.value, *e.interval))) for e in effects])
  far = np.abs(spans).max(axis=1)
  shown = spans[far <= 6 * max(np.median(far), 2 * equal)]
  low, high = shown.min(), shown.max()
  low, high = min(low, -1.5 * equal, 0), max(high, 1.5 * equal, 0)
  margin = 0.06 * (high - low) or 1
  return low - margin, high + margin


def _effect(axes, y, effect, span):
  """The interval, the mean and the seeds; an arrow at the edge where the mean is outside."""
  color = effect.color
  seeds = [point for point in effect.points if span[0] < point < span[1]]
  dots = dict(color=color, marker='o', linestyle='', markersize=4, alpha=0.4, markeredgewidth=0)
  axes.plot(seeds, np.full(len(seeds), y + 0.26), **dots)
  if effect.interval:
    axes.plot(effect.interval, (y, y), color=color, linewidth=2.4, solid_capstyle='butt')
  inside = span[0] < effect.value < span[1]
  marker = 's' if inside else '>' if effect.value > 0 else '<'
  at = effect.value if inside else span[int(effect.value > 0)]
  face = color if effect.filled else 'none'
  axes.plot(at, y, color=color, marker=marker, markersize=8, clip_on=False, markerfacecolor=face)


def _line(axes, line):
  axes.plot(*thin(line.x, line.y), color=line.color, linewidth=1.9)
  bad = ~np.isfinite(line.y)
  between = ~bad & np.append(bad[1:], True) & np.append(True, bad[:-1])  # no neighbor to join
  dots = dict(color=line.color, linestyle='', marker='o', markersize=3.6)
  axes.plot(line.x[between], line.y[between], **dots)
  crosses = dict(color=WARN, linestyle='', marker='x', markersize=6, clip_on=False)
  foot = np.zeros(bad.sum())
  axes.plot(line.x[bad], foot, transform=axes.get_xaxis_transform(), **crosses)


def _faint(axes, line):
  axes.plot(*thin(line.x, line.y), color=line.color, alpha=0.3, linewidth=1)


def _points(axes, line):
  marker = 'o' if len(line.x) <= 60 else ''
  axes.plot(*thin(line.x, line.y), color=line.color, linewidth=1.7, marker=marker, markersize=4)


def _dots(axes, line):
  axes.plot(line.x, line.y, color=line.color, linestyle='', marker='o', markersize=5, alpha=0.6)


def _band(axes, line):
  axes.fill_between(line.x, line.y, line.to, color=line.color, alpha=0.16, linewidth=0)


def _label_ends(axes, series, height):
  """Names each line at its right end, `height` apart where they would touch."""
  ends = []
  for line in series:
    finite = np.flatnonzero(np.isfinite(line.y))
    if line.label and len(finite):
      low, high = axes.get_ylim()
      ends.append([(line.y[finite[-1]] - low) / (high - low), line])
  ends.sort(key=lambda end: end[0])
  for below, above in zip(ends, ends[1:], strict=False):
    above[0] = max(above[0], below[0] + height)
  style = dict(transform=axes.transAxes, va='center', fontweight='bold')
  for y, line in ends:
    axes.text(1.012, min(max(y, 0.03), 0.97), line.label, color=line.color, **style)


def _inline(fig, label):
  """The figure as an <svg> element with neither a size nor colors or fonts of its own."""
  text = io.StringIO()
  unsaid = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
  fig.savefig(text, format='svg', transparent=True, metadata=unsaid)
  svg = text.getvalue()
  svg = svg[svg.index('<svg') :]
  view = re.search(r'viewBox="[^"]*"', svg).group()
  head = f'<svg {view} role="img" aria-label="{html.escape(label)}">'
  for pattern, replacement in (
    (r'<svg[^>]*>', head),
    (r'(?s)<metadata>.*?</metadata>|<!--.*?-->|<defs>\s*<style.*?</style>\s*</defs>', ''),
    (r' font-family: [^;"]*;', ''),
    (r' id="[\w.]+_\d+"| transform="rotate\(-0 [^"]*"', ''),  # figure_1: repeated in each figure
    (r'(\d\.\d\d)\d+(?=[^<>]*>)', r'\1'),  # a hundredth of a pixel is enough, in tags only
    (r'\s*\n\s*', '\n'),
  ):
    svg = re.sub(pattern, replacement, svg)
  for color, variable in VARIABLES.items():
    svg = svg.replace(color, f'var(--{variable})')
  return svg


LOOKS = {'line': _line, 'faint': _faint, 'points': _points, 'dots': _dots, 'band': _band}
