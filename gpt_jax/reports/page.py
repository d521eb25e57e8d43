"""The HTML pieces of the reports: one self-contained page that needs no script and no other file.

Light and dark follow the reader's system; it prints; on a phone the columns become one (report.css).
"""

import base64
import html
import pathlib
import re

from gpt_jax.runs import loggers

MEDIA = {
  '.png': ('image/png', '<img alt="{name}" src="{uri}">'),
  '.jpg': ('image/jpeg', '<img alt="{name}" src="{uri}">'),
  '.wav': ('audio/wav', '<audio controls aria-label="{name}" src="{uri}"></audio>'),
}
WIDE, NARROW, SMALL = (1000, 380), (360, 300), (310, 130)  # pixels of figures


def escape(value):
  """Return any value as text that is safe inside an element or an attribute."""
  return html.escape(loggers.printable(str(value)))


def element(tag, *children, **attributes):
  """Return <tag class="..."> around children, which are HTML; attribute `kind` is the class."""
  names = {'kind': 'class'}
  text = ''.join(f' {names.get(k, k)}="{escape(v)}"' for k, v in attributes.items())
  return f'<{tag}{text}>{"".join(children)}</{tag}>'


def section(title, *children, note=''):
  """Return a section with its heading, or '' if all children are empty."""
  if not any(children):
    return ''
  under = element('p', escape(note), kind='note') if note else ''
  return element('section', element('h2', escape(title)), under, *children)


def header(eyebrow, title, *paragraphs, alarms, tiles):
  """Return the top of a page: small words above the title, paragraphs (HTML), alarms, key numbers.

  eyebrow, alarms: texts. tiles: [(label, text)].
  """
  boxes = [element('div', element('dt', label), element('dd', escape(value))) for label, value in tiles]
  return element(
    'header',
    element('p', escape(' \u00b7 '.join(eyebrow)), kind='eyebrow'),
    element('h1', escape(title)),
    *paragraphs,
    *(element('p', escape(text), kind='alarm') for text in alarms),
    element('dl', *boxes, kind='tiles') if boxes else '',
  )


def table(head, rows, kind=''):
  """Return a table of cells that are HTML, or '' without rows.

  Columns whose head starts with '>' hold numbers; an empty head leaves it out.
  """
  if not rows:
    return ''
  names = head or ('',) * len(rows[0])
  sides = ['number' if name.startswith('>') else 'word' for name in names]
  body = [
    element('tr', *(element('td', cell, kind=side) for cell, side in zip(row, sides, strict=True)))
    for row in rows
  ]
  top = [element('th', escape(name.lstrip('>')), kind=side) for name, side in zip(head, sides, strict=False)]
  parts = [element('thead', element('tr', *top))] if head else []
  return element('div', element('table', *parts, element('tbody', *body), kind=kind), kind='scroll')


def drop_empty_columns(head, rows):
  """Return (head, rows) without the columns that are empty in every row."""
  used = [i for i in range(len(head)) if any(row[i] for row in rows)]
  return [head[i] for i in used], [[row[i] for i in used] for row in rows]


def facts(pairs):
  """Return a small table of {name: text} without its empty texts, or ''."""
  rows = [[escape(name), escape(text)] for name, text in pairs.items() if text]
  return element('div', table((), rows), kind='versions') if rows else ''


def reproduce(command, versions, note=''):
  """Return the section with the command line and all versions."""
  versions = {name: text for name, text in versions.items() if name != 'command'}
  code = element('pre', escape(command)) if command else ''
  return section('Reproduce', code, facts(versions), note=note)


def literal(value):
  """Return a setting almost as on the command line; None stands for an absent key."""
  if isinstance(value, list):
    return f'({", ".join(map(literal, value))})'
  if value is None:
    return 'absent'
  return repr(value) if value == '' or str(value) != str(value).strip() else str(value)


def figure_pair(draw, wide=WIDE, narrow=NARROW):
  """Return the figures for a screen and for a phone; draw(name, size) -> <svg> or ''."""
  sizes = {'broad': wide, 'narrow': narrow}
  figures = {kind: draw(kind, size) for kind, size in sizes.items()}
  return [element('figure', svg, kind=kind) for kind, svg in figures.items() if svg]


def small_figure(title, value, svg):
  """Return a small chart under its name and its last value, both texts."""
  return element('figure', element('figcaption', escape(title), element('span', escape(value))), svg)


def multiples(figures):
  """Return small charts side by side, or '' without any."""
  return element('div', *figures, kind='multiples') if figures else ''


# -------------------------------------------------------------------------------------- samples


def samples_by_step(folder):
  """Return {step: [path]} of the files step_00000120[_NAME].SUFFIX of a folder, steps ascending."""
  steps = {}
  for path in sorted(folder.glob('step_*')):
    if match := re.match(r'step_(\d+)', path.name):
      steps.setdefault(int(match[1]), []).append(path)
  return steps


def sample_name(path):
  """Return [NAME] of step_00000120_NAME.png, or []."""
  return path.stem.split('_', 2)[2:]


def sample(path, title, max_characters):
  """Return one sample, text or media, under its title (HTML)."""
  heading = element('h3', title)
  if path.suffix != '.txt':
    return element('article', heading, media(path))
  text = path.read_text(encoding='utf-8', errors='replace')
  more = len(text) - max_characters
  rest = f'\n[{more:,} more characters in samples/{path.name}]' if more > 0 else ''
  # HTML drops a newline that follows <pre>.
  return element('article', heading, element('pre', '\n' + escape(text[:max_characters] + rest)))


def media(path, max_bytes=4_000_000):
  """Return an image or sound inside the page, or its name where it is too large or unknown."""
  size = path.stat().st_size
  if path.suffix not in MEDIA or size > max_bytes:
    return element('p', escape(f'samples/{path.name}, {size / 1e6:.1f} MB, not shown'), kind='note')
  kind, template = MEDIA[path.suffix]
  data = base64.b64encode(path.read_bytes()).decode()
  return template.format(name=escape(path.stem), uri=f'data:{kind};base64,{data}')


def document(title, *children):
  """Return the whole page, as text."""
  style = (pathlib.Path(__file__).parent / 'report.css').read_text()
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
    f'<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n'
    + '\n'.join(child for child in children if child)
    + '\n</main>\n</body>\n</html>\n'
  )
