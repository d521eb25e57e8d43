"""Figures for the reports: matplotlib drawings as inline SVG that takes its colours from the page.

Matplotlib draws with placeholder colours, which become CSS variables, and leaves text as text, so
that one figure is right in light and dark, in print and at any zoom, and its words can be selected.
Sizes are in CSS pixels. The colours of lines are from Okabe and Ito's palette for all kinds of
colour vision (jfly.uni-koeln.de/color).
"""

import dataclasses
import html
import io
import re

import matplotlib
import numpy as np
from matplotlib import figure, ticker

MUTED, RULE, FIRST, SECOND, WARN = (f'#0000a{i}' for i in range(5))
VARIABLES = {MUTED: 'muted', RULE: 'rule', FIRST: 'first', SECOND: 'second', WARN: 'warn'}
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
  finite = [(line.look, line.y[np.isfinite(line.y)]) for line in series]
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


def chart(series, *, name, label, size, marks=(), units=('', ''), room=0):
  """A chart of lines.

  Args:
    series: list of Series.
    name: unique on the page.
    label: what a screen reader says.
    size: (width, height).
    marks: [(x, text)]: dotted vertical lines.
    units: names of x and y.
    room: pixels at the right for the labels of the lines.

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


def _line(axes, line):
  axes.plot(*thin(line.x, line.y), color=line.color, linewidth=1.9)
  bad = ~np.isfinite(line.y)
  between = ~bad & np.append(bad[1:], True) & np.append(True, bad[:-1])  # no neighbour to join
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
  """The figure as an <svg> element with neither a size nor colours or fonts of its own."""
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


LOOKS = {'line': _line, 'faint': _faint, 'points': _points}
