"""HTML of the reports: one self-contained page that needs no script and no other file.

Light and dark follow the reader's system; it prints; on a phone the columns become one (report.css).
"""

import base64
import html
import pathlib
import re

from gpt_jax.reports.sections import Code, Section, Table, make_table
from gpt_jax.runs import loggers

MEDIA = {  # suffix: type, element
  '.png': ('image/png', '<img alt="{name}" src="{uri}">'),
  '.jpg': ('image/jpeg', '<img alt="{name}" src="{uri}">'),
  '.wav': ('audio/wav', '<audio controls aria-label="{name}" src="{uri}"></audio>'),
}
MAX_CAPTION_ROWS = 24  # lines of texts below an image or sound
SMALL = (310, 130)  # pixels of a small figure
WIDE, NARROW = (1000, 380), (360, 300)  # pixels of a figure on a screen and on a phone


class Html(str):
  """A text that is HTML and needs no escaping."""


def escape(value):
  """Return any value as Html that shows it as text; Html stays as it is."""
  return value if isinstance(value, Html) else Html(html.escape(loggers.printable(str(value))))


def element(tag, *children, **attributes):
  """Return <tag class="...">children</tag> as Html; texts are escaped; attribute `kind` is the class."""
  text = ''.join(f' {"class" if k == "kind" else k}="{escape(v)}"' for k, v in attributes.items())
  return Html(f'<{tag}{text}>{"".join(map(escape, children))}</{tag}>')


def element_unless_empty(tag, *children, **attributes):
  """Return `element`, or '' if all children are empty."""
  return element(tag, *children, **attributes) if any(children) else Html()


def header(eyebrow, title, *paragraphs, alarms, tiles):
  """Return the top of a page: small words above the title, paragraphs, alarms, key numbers.

  eyebrow, alarms: texts. tiles: [(label, text)].
  """
  return element(
    'header',
    element('p', ' \u00b7 '.join(eyebrow), kind='eyebrow'),
    element('h1', title),
    *paragraphs,
    *(element('p', text, kind='alarm') for text in alarms),
    element_unless_empty(
      'dl',
      *(element('div', element('dt', label), element('dd', text)) for label, text in tiles),
      kind='tiles',
    ),
  )


def render_section(section):
  """Return a Section as Html, '' without content."""
  parts = [render_part(part) for part in section.parts]
  if not any(parts):
    return Html()
  note = element_unless_empty('p', f'{section.note} {section.legend}'.strip(), kind='note')
  return element('section', element('h2', section.title), note, *parts)


def render_part(part):
  """Return one part of a Section as Html."""
  if isinstance(part, Table):
    return render_table(part)
  if isinstance(part, list):
    return element_unless_empty('ul', *(element('li', line) for line in part))
  return element_unless_empty('pre', part) if isinstance(part, Code) else part


def render_table(table):
  """Return a Table as Html, '' without rows; the lines of a cell are below each other."""
  if not table.rows:
    return Html()
  names = table.header or ('',) * len(table.rows[0])
  sides = ['number' if name.startswith('>') else 'word' for name in names]
  renderers = [table.render.get(name.lstrip('>'), render_lines) for name in names]
  body = [
    element(
      'tr',
      *(element('td', show(cell), kind=side) for cell, show, side in zip(row, renderers, sides, strict=True)),
    )
    for row in table.rows
  ]
  head = [element('th', name.lstrip('>'), kind=side) for name, side in zip(table.header, sides, strict=False)]
  head = element('thead', element('tr', *head)) if head else ''
  return element('div', element('table', head, element('tbody', *body), kind=table.kind), kind='scroll')


def render_lines(text, kind=''):
  """Return a text, its lines in elements of their own if there are several or they have a class."""
  if isinstance(text, Html) or not (kind or '\n' in str(text)):
    return escape(text)
  options = {'kind': kind} if kind else {}
  return Html(''.join(element('div', line, **options) for line in str(text).splitlines()))


def strong(text):
  """Return a text in bold."""
  return element_unless_empty('strong', text)


def facts(pairs):
  """Return a Table of {name: text} without its empty texts."""
  return make_table((), [pair for pair in pairs.items() if pair[1]], 'versions')


def reproduce(command, versions, note='', legend=''):
  """Return the Section with the command line and all versions."""
  versions = {name: text for name, text in versions.items() if name != 'command'}
  return Section('Reproduce', [Code(command), facts(versions)], note, legend)


def literal(value):
  """Return a setting almost as on the command line; None stands for an absent key."""
  if isinstance(value, list):
    return f'({", ".join(map(literal, value))})'
  if value is None:
    return 'absent'
  return repr(value) if value == '' or str(value) != str(value).strip() else str(value)


def changes(pairs, separator=' '):
  """Return ['model.positions: rope → learned', ...] of {key: (old, new)}."""
  return [
    f'{key}{separator}{literal(old)} \u2192 {literal(new)}' for key, (old, new) in (pairs or {}).items()
  ]


def figure_pair(draw, wide=WIDE, narrow=NARROW):
  """Return the figures for a screen and for a phone; draw(name, size) -> <svg> or ''."""
  figures = {'broad': draw('broad', wide), 'narrow': draw('narrow', narrow)}
  return [element('figure', svg, kind=kind) for kind, svg in figures.items() if svg]


def small_figure(title, value, svg):
  """Return a small chart under its name and its last value, both texts."""
  return element('figure', element('figcaption', title, element('span', value)), svg)


def multiples(figures):
  """Return small charts side by side, or '' without any."""
  return element_unless_empty('div', *figures, kind='multiples')


# -------------------------------------------------------------------------------------- samples


def samples_by_step(folder):
  """Return {step: [path]} of the files step_00000120[_NAME].SUFFIX of a run's folder, steps ascending.

  A link to a file outside the run is left out: a page that is passed on must not hold it.
  """
  steps, run = {}, folder.parent.resolve()
  for path in sorted(folder.glob('step_*')):
    match = re.match(r'step_(\d{1,15})', path.name)
    if match and path.is_file() and path.resolve().is_relative_to(run) and not captioned(path):
      steps.setdefault(int(match[1]), []).append(path)
  return steps


def captioned(path):
  """Return the image or sound that a text file is the caption of, or None: NAME.png of NAME.txt."""
  others = (path.with_suffix(suffix) for suffix in MEDIA if path.suffix == '.txt')
  return next((other for other in others if other.exists()), None)


def caption(path):
  """Return the texts of NAME.txt beside an image or sound, in rows and columns as there; '' without it."""
  file = path.with_suffix('.txt')
  if not file.is_file() or file.resolve().parent != path.resolve().parent:
    return ''
  rows = [line.split('\t') for line in file.read_text(encoding='utf-8', errors='replace').splitlines()]
  cells = [element('span', text) for row in rows[:MAX_CAPTION_ROWS] for text in row]
  columns = max((len(row) for row in rows), default=1)
  return element_unless_empty('div', *cells, kind='caption', style=f'--columns:{columns}')


def sample_title(path, *texts):
  """Return the NAME of step_00000120_NAME.png, if it has one, and other texts."""
  return ' \u00b7 '.join([*path.stem.split('_', 2)[2:], *filter(None, texts)])


def sample(path, title, max_characters):
  """Return one sample, text or media, under its title."""
  if path.suffix != '.txt':
    return element('article', element('h3', title), media(path), caption(path))
  text = path.read_text(encoding='utf-8', errors='replace')
  text = text if text.strip() else '(empty)'
  more = len(text) - max_characters
  rest = f'\n[{more:,} more characters in samples/{path.name}]' if more > 0 else ''
  # HTML drops a newline that follows <pre>.
  return element('article', element('h3', title), element('pre', '\n' + text[:max_characters] + rest))


def media(path, max_bytes=4_000_000):
  """Return an image or sound inside the page, or its name where it is too large or unknown."""
  size = path.stat().st_size
  if path.suffix not in MEDIA or size > max_bytes:
    return element('p', f'samples/{path.name}, {size / 1e6:.1f} MB, not shown', kind='note')
  kind, template = MEDIA[path.suffix]
  data = base64.b64encode(path.read_bytes()).decode()
  return Html(template.format(name=escape(path.stem), uri=f'data:{kind};base64,{data}'))


def document(title, top, sections):
  """Return the whole page as text: its header and its Sections."""
  style = (pathlib.Path(__file__).parent / 'report.css').read_text()
  body = [top, *filter(None, map(render_section, sections))]
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
    f'<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n'
    + '\n'.join(body)
    + '\n</main>\n</body>\n</html>\n'
  )
