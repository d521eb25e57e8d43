"""Figures of the reports: matplotlib drawings as inline SVG that takes its colors from the page.

Matplotlib draws with placeholder colors, which become CSS variables, and leaves text as text: one figure is
right in light and dark, in print and at any zoom, and its words can be selected. Sizes are in CSS pixels.
Line colors: Okabe and Ito's palette for all kinds of color vision (jfly.uni-koeln.de/color).
"""

import contextlib
import dataclasses
import io
import re
import warnings

import matplotlib
import numpy as np
from matplotlib import colors, figure, ticker

from gpt_jax.reports.page import Html, escape
from gpt_jax.runs import loggers

NAMES = ('muted', 'rule', 'first', 'second', 'warn', 'third', 'fourth', 'fifth', 'ink')
VARIABLES = {f'#0000a{i}': name for i, name in enumerate(NAMES)}
MUTED, RULE, FIRST, SECOND, WARN, THIRD, FOURTH, FIFTH, INK = VARIABLES
# The colors of a light page, for files; report.css has them, too.
LIGHT = {
  MUTED: '#5f6773',
  RULE: '#e2e5ea',
  FIRST: '#0072b2',
  SECOND: '#d55e00',
  WARN: '#b3261e',
  THIRD: '#00855f',
  FOURTH: '#b3578f',
  FIFTH: '#a87500',
  INK: '#16181d',
}
LINE_COLORS = (FIRST, SECOND, THIRD, FOURTH, FIFTH)
STYLE = {
  'svg.fonttype': 'none',
  'font.size': 12,
  'text.color': MUTED,
  'axes.edgecolor': RULE,
  'axes.spines.left': False,
  'axes.spines.right': False,
  'axes.spines.top': False,
  'axes.grid': True,
  'axes.xmargin': 0.01,
  'grid.color': RULE,
  'xtick.color': RULE,
  'xtick.labelcolor': MUTED,
  'ytick.labelcolor': MUTED,
  'ytick.left': False,
  'text.parse_math': False,  # a $ in a name is a $
}
LEFT, BOTTOM = 44, 30  # pixels for tick labels
ROW, LETTER = 30, 7  # pixels of a forest plot's row, and of a letter
MAX_LETTERS = 60  # of a label
MAX_POINTS = 1200  # of a line; more are below a pixel


LARGEST = 1e100


@dataclasses.dataclass(frozen=True)
class Series:
  """One line: x and y are float arrays of equal length; y may be NaN."""

  x: np.ndarray
  y: np.ndarray
  mark: str = 'line'  # row of MARKS
  color: str = FIRST
  label: str = ''  # at its right end
  to: np.ndarray = ()  # upper edge of a band, of which y is the lower


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


def draw(plot, *, name, label, size, margins, grid='y'):
  """Return the <svg> that plot(axes) draws; name: unique on the page; label: for screen readers.

  size: (width, height). margins: (left, right, top, bottom) of the axes. grid: axis with grid lines.
  """
  (width, height), (left, right, top, bottom) = size, margins
  with matplotlib.rc_context({**STYLE, 'axes.grid.axis': grid, 'svg.hashsalt': name}):
    fig = figure.Figure(figsize=(width / 72, height / 72))
    inner = ((width - left - right) / width, (height - top - bottom) / height)
    axes = fig.add_axes((left / width, bottom / height, *inner), facecolor='none')
    axes.set_axisbelow(True)
    plot(axes)
    svg = to_svg(fig, label)
    if _folder:
      save(fig, _folder / re.sub(r'\W+', '-', name))
    return svg


_folder = None  # of `saving`


@contextlib.contextmanager
def saving(folder):
  """Save each figure that is drawn meanwhile to a folder, too: NAME.pdf and NAME.svg."""
  global _folder
  _folder = folder
  try:
    yield
  finally:
    _folder = None


def save(fig, path):
  """Write a figure as PDF and SVG in the colors of a light page; it keeps them."""
  for artist in fig.findobj():
    for part in ('color', 'facecolor', 'edgecolor', 'markerfacecolor', 'markeredgecolor'):
      if hasattr(artist, f'get_{part}') and hasattr(artist, f'set_{part}'):
        rgba = colors.to_rgba_array(getattr(artist, f'get_{part}')())
        own = [LIGHT.get(colors.to_hex(color[:3])) for color in rgba]
        if any(own):
          new = [colors.to_rgba(h, c[3]) if h else tuple(c) for h, c in zip(own, rgba, strict=True)]
          getattr(artist, f'set_{part}')(new[0] if len(new) == 1 else new)
  with warnings.catch_warnings(), matplotlib.rc_context({'pdf.fonttype': 42, 'svg.fonttype': 'path'}):
    warnings.filterwarnings('ignore', 'Glyph')
    fig.savefig(f'{path}.pdf', transparent=True, metadata={'CreationDate': None})
    fig.savefig(f'{path}.svg', transparent=True, metadata={'Date': None})


def to_svg(fig, label):
  """Return a matplotlib figure as an <svg> without a size, colors or fonts of its own."""
  text = io.StringIO()
  no_metadata = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
  with warnings.catch_warnings():
    warnings.filterwarnings('ignore', 'Glyph')  # the reader's fonts have letters that matplotlib's lack
    fig.savefig(text, format='svg', transparent=True, metadata=no_metadata)
  svg = text.getvalue()
  svg = svg[svg.index('<svg') :]
  view = re.search(r'viewBox="[^"]*"', svg).group()
  head = f'<svg {view} role="img" aria-label="{escape(label)}">'
  for pattern, replacement in (
    (r'<svg[^>]*>', head.replace('\\', r'\\')),
    (r'(?s)<metadata>.*?</metadata>|<!--.*?-->|<defs>\s*<style.*?</style>\s*</defs>', ''),
    (r' font-family: [^;"]*;', ''),
    (r' id="[\w.]+_\d+"| transform="rotate\(-0 [^"]*"', ''),  # figure_1: repeated in each figure
    (r'(\d\.\d\d)\d+(?=[^<>]*>)', r'\1'),  # a hundredth of a pixel is enough, in tags only
    (r'\s*\n\s*', '\n'),
  ):
    svg = re.sub(pattern, replacement, svg)
  for color, variable in VARIABLES.items():
    svg = svg.replace(color, f'var(--{variable})')
  return Html(svg)


def set_ticks(axis, count, form, integer=False):
  """Put about `count` round ticks on an axis, between 2 and its maximum."""
  axis.set_major_locator(ticker.MaxNLocator(max(2, int(count)), steps=[1, 2, 5, 10], integer=integer))
  axis.set_major_formatter(ticker.FuncFormatter(form))


def compact(value, _position=None):
  """Format a tick: 2000000 -> '2M', 0.0003 -> '3e-4', 1.5 -> '1.5'."""
  if value and abs(value) < 1e-2:
    return re.sub(r'(\.0)?e-0?', 'e-', f'{value:.1e}')
  for size, unit in ((1e12, 'T'), (1e9, 'B'), (1e6, 'M'), (1e3, 'k')):
    if abs(value) >= size:
      return f'{value / size:g}{unit}'
  return f'{value:.6g}'


def cut(text, limit=MAX_LETTERS):
  """Return a text on one printable line of at most `limit` characters; a longer one ends with an ellipsis."""
  text = ' '.join(loggers.printable(text).splitlines())
  return text if len(text) <= limit else text[: limit - 1] + '\u2026'


# ---------------------------------------------------------------------------------------- lines


def chart(series, *, name, label, size, marks=(), units=('', ''), room=0, x_scale='linear'):
  """Return a chart of Series as <svg>, or '' where nothing is finite; name, label, size: see `draw`.

  marks: [(x, text)] of dotted vertical lines. units: of x and y. room: pixels for the labels of lines.
  """
  drawable = lambda values: np.where(np.abs(values) < LARGEST, values, np.nan)  # matplotlib cannot tick more
  series = [dataclasses.replace(s, x=drawable(s.x), y=drawable(s.y)) for s in series]
  y_limits = limits(series)
  if not y_limits:
    return Html()
  margins = (LEFT, max(room, 12), 26 if units[1] else 8, BOTTOM)
  width, height = size[0] - sum(margins[:2]), size[1] - sum(margins[2:])

  def plot(axes):
    set_ticks(axes.xaxis, min(6, width // 80), compact, integer=True)  # steps and tokens
    set_ticks(axes.yaxis, min(6, height // 40), compact)
    if x_scale == 'log':
      axes.set_xscale('log')
      axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=8))
      axes.xaxis.set_minor_locator(ticker.NullLocator())
      axes.xaxis.set_major_formatter(ticker.FuncFormatter(compact))
    for line in series:
      MARKS[line.mark](axes, line)
    axes.set_ylim(y_limits)
    for x, text in marks:
      axes.axvline(x, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
      axes.text(x, 1, f'\u2009{cut(text)}', transform=axes.get_xaxis_transform(), va='top')
    label_points(axes, [line for line in series if line.mark == 'named'])
    if room:
      label_ends(axes, [line for line in series if line.mark != 'named'], 16 / height)
    axes.text(-LEFT / width, 1 + 10 / height, cut(units[1]), transform=axes.transAxes)
    axes.text(1 + 16 / width, -7 / height, cut(units[0]), va='top', transform=axes.transAxes)

  return draw(plot, name=name, label=label, size=size, margins=margins)


def thin(x, y, limit=MAX_POINTS):
  """Keep the lowest and the highest point of each bin, so that no spike is lost."""
  if len(x) <= limit:
    return x, y
  keep = {0, len(x) - 1}
  for part in np.array_split(np.arange(len(x)), limit // 2):
    finite = part[np.isfinite(y[part])]
    if len(finite):
      keep |= {finite[np.argmin(y[finite])], finite[np.argmax(y[finite])]}
  index = np.array(sorted(keep))
  return x[index], y[index]


def smooth(y, share=0.04):
  """Average the finite values in a window of this share of all points.

  The first points fall steeply, so there the window reaches back a quarter of the way at most.
  """
  here, finite = np.arange(len(y)), np.isfinite(y)
  total = np.append(0, np.cumsum(np.where(finite, y, 0)))
  count = np.append(0, np.cumsum(finite))
  reach = np.minimum(int(len(y) * share / 2), here // 4)
  low, high = here - reach, np.minimum(here + reach + 1, len(y))
  mean = (total[high] - total[low]) / np.maximum(count[high] - count[low], 1)
  return np.where(finite, mean, np.nan)


def limits(series):
  """Return (low, high) of y, or () if nothing is finite.

  A first plunge or a rare spike may leave a long curve at the top, or it would flatten the rest.
  """
  values = [(line.mark, y[np.isfinite(y)]) for line in series for y in (line.y, np.asarray(line.to))]
  values = [(mark, y) for mark, y in values if len(y)]
  if not values:
    return ()
  low = min(np.quantile(y, 0.002) if mark == 'faint' else y.min() for mark, y in values)
  is_long = any(len(y) > 40 for _, y in values)

  def top(mark, y):
    usual = np.quantile(y, 0.95)
    if not is_long or mark == 'faint':
      return usual if is_long else y.max()
    return min(y.max(), usual + 0.6 * (usual - low)) if len(y) > 40 else y[len(y) // 2 :].max()

  high = max(top(mark, y) for mark, y in values)
  margin = 0.06 * (high - low) or 0.05 * abs(high) or 1
  return low - margin, high + margin


def draw_line(axes, line):
  """Draw a line, its points without finite neighbors, and a cross below each value that is not finite."""
  axes.plot(*thin(line.x, line.y), color=line.color, linewidth=1.9)
  bad = ~np.isfinite(line.y)
  alone = ~bad & np.append(bad[1:], True) & np.append(True, bad[:-1])
  axes.plot(line.x[alone], line.y[alone], color=line.color, linestyle='', marker='o', markersize=3.6)
  crosses = dict(color=WARN, linestyle='', marker='x', markersize=6, clip_on=False)
  axes.plot(line.x[bad], np.zeros(bad.sum()), transform=axes.get_xaxis_transform(), **crosses)


def draw_points(axes, line):
  """Draw a line, and its points if they are few."""
  marker = 'o' if len(line.x) <= 60 else ''
  axes.plot(*thin(line.x, line.y), color=line.color, linewidth=1.7, marker=marker, markersize=4)


def label_ends(axes, series, height):
  """Write the label of each line at its right end, `height` apart where they would touch."""
  ends, (low, high) = [], axes.get_ylim()
  for line in series:
    finite = line.y[np.isfinite(line.y)]
    if line.label and len(finite):
      ends.append([(finite[-1] - low) / (high - low), line])
  ends.sort(key=lambda end: end[0])
  for below, above in zip(ends, ends[1:], strict=False):
    above[0] = max(above[0], below[0] + height)
  style = dict(transform=axes.transAxes, va='center', fontweight='bold')
  for y, line in ends:
    axes.text(1.012, min(max(y, 0.03), 0.97), cut(line.label), color=line.color, **style)


def label_points(axes, points):
  """Write the label of each single point at its right, above those that it would touch."""
  axes.get_xlim()  # sets the limits
  scale, boxes = 72 / axes.figure.dpi, []  # left, right and height of what is written
  for point in sorted(points, key=lambda point: float(point.y[0])):
    x, y = scale * axes.transData.transform((point.x[0], point.y[0]))
    right, height = x + LETTER * (len(cut(point.label)) + 2), y
    for other_x, other_right, other_height in boxes:
      if other_x < right and x < other_right and abs(other_height - height) < 14:
        height = other_height + 14
    boxes.append((x, right, height))
    place = dict(xytext=(7, height - y + 6), textcoords='offset points', va='center')
    axes.annotate(cut(point.label), (point.x[0], point.y[0]), color=point.color, **place)


MARKS = {
  'line': draw_line,
  'frontier': lambda axes, line: axes.plot(line.x, line.y, color=line.color, linewidth=1.4, alpha=0.7),
  'named': lambda axes, line: axes.plot(line.x, line.y, 'o', color=line.color, markersize=7),
  'points': draw_points,
  'faint': lambda axes, line: axes.plot(*thin(line.x, line.y), color=line.color, alpha=0.3, linewidth=1),
  'dots': lambda axes, line: axes.plot(
    line.x, line.y, color=line.color, linestyle='', marker='o', markersize=5, alpha=0.6
  ),
  'band': lambda axes, line: axes.fill_between(
    line.x, line.y, line.to, color=line.color, alpha=0.16, linewidth=0
  ),
}


# --------------------------------------------------------------------------------- forest plots


def forest(effects, *, name, label, width, equal=0.0, ends=('', '')):
  """Return a forest plot of Effects as <svg>, or '' where none is finite; name, label: see `draw`.

  A value far beyond the others gets an arrow. Below a width of 500 pixels the texts at the right are left
  out. equal: half the width of the band of equivalence. ends: labels of the left and the right side.
  """
  effects = [effect for effect in effects if np.isfinite(effect.value)]
  if not effects:
    return Html()
  is_wide, height = width >= 500, ROW * len(effects)
  max_letters = 34 if is_wide else 18
  left = LETTER * min(max_letters, max(len(effect.name) for effect in effects)) + 14
  right = LETTER * max(len(cut(effect.text)) for effect in effects) + 14 if is_wide else 12
  inner, x_limits = width - left - right, forest_limits(effects, equal)

  def plot(axes):
    axes.set(xlim=x_limits, ylim=(len(effects) - 0.5, -0.5), yticks=())
    axes.axvspan(-equal, equal, color=RULE, alpha=0.55, linewidth=0)
    axes.axvline(0, color=MUTED, linewidth=1.2)
    set_ticks(axes.xaxis, min(8, inner // 90), tick_difference)
    for y, effect in enumerate(effects):
      draw_effect(axes, y, effect, x_limits)
      style = dict(transform=axes.get_yaxis_transform(), va='center')
      axes.text(-14 / inner, y, cut(effect.name, max_letters), ha='right', color=INK, **style)
      if is_wide:
        axes.text(1 + 14 / inner, y, cut(effect.text), color=effect.color, **style)
    for x, text, side in ((0, ends[0], 'left'), (1, ends[1], 'right')):
      axes.text(x, 1 + 5 / height, text, ha=side, va='bottom', transform=axes.transAxes)

  size, margins = (width, height + 24 + BOTTOM), (left, right, 24, BOTTOM)
  return draw(plot, name=name, label=label, size=size, margins=margins, grid='x')


def tick_difference(value, _position=None):
  """Format a tick of a difference: '+0.05', a true minus sign, '0'."""
  return f'{value:+.4g}'.replace('-', '\u2212') if abs(value) > 1e-12 else '0'


def forest_limits(effects, equal):
  """Return (low, high) of x, which an effect far beyond the others does not stretch."""
  values = [(effect.value, *effect.interval) for effect in effects]
  spans = np.array([(min(ends), max(ends)) for ends in values])
  largest = np.abs(spans).max(axis=1)
  spans = spans[largest <= 6 * max(np.median(largest), 2 * equal)]
  low, high = min(spans.min(), -1.5 * equal, 0), max(spans.max(), 1.5 * equal, 0)
  margin = 0.06 * (high - low) or 1
  return low - margin, high + margin


def draw_effect(axes, y, effect, x_limits):
  """Draw the interval, the mean and the seeds; an arrow at the edge for a mean outside."""
  color, (low, high) = effect.color, x_limits
  seeds = [point for point in effect.points if low < point < high]
  dots = dict(color=color, marker='o', linestyle='', markersize=4, alpha=0.4, markeredgewidth=0)
  axes.plot(seeds, np.full(len(seeds), y + 0.26), **dots)
  if effect.interval:
    axes.plot(effect.interval, (y, y), color=color, linewidth=2.4, solid_capstyle='butt')
  marker = 's' if low < effect.value < high else '>' if effect.value > 0 else '<'
  mean = dict(marker=marker, markersize=8, markerfacecolor=color if effect.filled else 'none')
  axes.plot(np.clip(effect.value, low, high), y, color=color, clip_on=False, **mean)
