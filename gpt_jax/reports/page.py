"""The look of the reports: one self-contained HTML page that needs no script and no other file.

Light and dark follow the reader's system; it prints; on a phone the columns become one.
"""

import base64
import html

from gpt_jax.runs import loggers

MEDIA = {
  '.png': ('image/png', '<img alt="{name}" src="{uri}">'),
  '.jpg': ('image/jpeg', '<img alt="{name}" src="{uri}">'),
  '.wav': ('audio/wav', '<audio controls aria-label="{name}" src="{uri}"></audio>'),
}


def escape(value):
  """Any value as text that is safe inside an element or an attribute."""
  return html.escape(loggers.printable(str(value)))


def element(tag, *children, **attributes):
  """<tag class="..."> around children, which are HTML; attribute `kind` is the class."""
  names = {'kind': 'class'}
  said = ''.join(f' {names.get(k, k)}="{escape(v)}"' for k, v in attributes.items())
  return f'<{tag}{said}>{"".join(children)}</{tag}>'


def section(title, *children, note=''):
  """A section with its heading, or nothing where no child has anything to say."""
  if not any(children):
    return ''
  under = element('p', escape(note), kind='note') if note else ''
  return element('section', element('h2', escape(title)), under, *children)


def table(head, rows, kind=''):
  """A table of cells that are HTML, or nothing without rows.

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
  whole = element('table', *parts, element('tbody', *body), kind=kind)
  return element('div', whole, kind='scroll')


def media(path, most=4_000_000):
  """A picture or sound inside the page, or its name where it is too large (bytes) or unknown."""
  size = path.stat().st_size
  if path.suffix not in MEDIA or size > most:
    return element('p', escape(f'samples/{path.name}, {size / 1e6:.1f} MB, not shown'), kind='note')
  kind, shape = MEDIA[path.suffix]
  data = base64.b64encode(path.read_bytes()).decode()
  return shape.format(name=escape(path.stem), uri=f'data:{kind};base64,{data}')


def document(title, *children):
  """The whole page, as text."""
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
    f'<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n'
    + '\n'.join(child for child in children if child)
    + '\n</main>\n</body>\n</html>\n'
  )


# first to fifth: blue, vermilion, green, purple and orange of Okabe and Ito's palette, darkened
# where they would be pale on white, lighter on dark
STYLE = """
:root {
  --paper: #fff; --card: #f6f7f9; --ink: #16181d; --muted: #5f6773; --rule: #e2e5ea;
  --first: #0072b2; --second: #d55e00; --warn: #b3261e; --mark: #fdf3e7;
  --third: #00855f; --fourth: #b3578f; --fifth: #a87500;
  --mono: ui-monospace, 'SF Mono', 'Cascadia Mono', 'JetBrains Mono', Menlo, Consolas,
    'DejaVu Sans Mono', monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #121418; --card: #1a1d23; --ink: #e7e9ed; --muted: #98a1ae; --rule: #2c313a;
    --first: #56b4e9; --second: #f09a4e; --warn: #ff8a80; --mark: #2b241b;
    --third: #3fc79f; --fourth: #e59bc6; --fifth: #e8bb45;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, 'Inter',
    'Helvetica Neue', Arial, sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 1064px; margin: 0 auto; padding: 56px 32px 80px; }
h1 { margin: 0; font-size: 38px; line-height: 1.15; letter-spacing: -0.022em; font-weight: 700;
  overflow-wrap: anywhere; }
h2 { margin: 0 0 4px; font-size: 20px; letter-spacing: -0.01em; font-weight: 650; }
h3 { margin: 0 0 6px; font-size: 13px; font-weight: 600; color: var(--muted); }
section { margin-top: 60px; }
.eyebrow { margin: 0 0 8px; color: var(--muted); font-size: 14px; }
.verdict { margin: 16px 0 0; font-size: 20px; line-height: 1.5; max-width: 46em; }
.note { margin: 0 0 16px; color: var(--muted); font-size: 14px; max-width: 60em; }
.question { margin: 12px 0 0; color: var(--muted); font-size: 17px; max-width: 46em; }
.verdicts { margin: 24px 0 0; max-width: 60em; }
.verdicts > div { display: flex; gap: 16px; padding: 8px 0; border-top: 1px solid var(--rule); }
.verdicts dt { flex: 0 0 124px; }
.verdicts dd { margin: 0; display: flex; flex-wrap: wrap; gap: 2px 28px; }
.verdicts dd b { font-weight: 600; }
.verdicts dd i { color: var(--muted); font-style: normal; }
.badge { padding: 2px 10px; border-radius: 20px; font-size: 13px; font-weight: 650;
  white-space: nowrap; color: var(--muted); box-shadow: inset 0 0 0 1.5px currentColor; }
.badge.better { color: var(--first); }
.badge.worse, .badge.diverged { color: var(--second); }
.badge.undecided { font-weight: 400; }
.badge.better, .badge.worse, .badge.diverged, .badge.no-difference { background: var(--card); }
.flag { color: var(--warn); }
.along small { display: block; color: var(--muted); }
.spaced { margin-top: 28px; }
h3 b { color: var(--ink); }
h3 small { font-weight: 400; }
ul { margin: 8px 0 0; padding-left: 20px; }
ul.note { margin-top: 14px; }
.alarm { margin: 20px 0 0; padding: 12px 16px; border-left: 3px solid var(--warn);
  background: var(--card); border-radius: 0 6px 6px 0; max-width: 60em; }
.tiles { display: flex; flex-wrap: wrap; gap: 1px; width: fit-content; margin: 36px 0 0;
  border: 1px solid var(--rule); border-radius: 10px; overflow: hidden; }
.tiles dd { margin: 0; font-size: 25px; line-height: 1.2; font-weight: 650;
  letter-spacing: -0.02em; white-space: nowrap; }
.tiles dt { color: var(--muted); font-size: 13px; line-height: 1.35; margin-top: 3px; }
.tiles div { flex: 1 0 141px; display: flex; flex-direction: column-reverse;
  justify-content: flex-end; max-width: 180px;
  padding: 14px 16px 12px; box-shadow: 0 0 0 1px var(--rule); }
svg { display: block; width: 100%; height: auto; overflow: visible; }
figure { margin: 0; min-width: 0; }
.narrow { display: none; }
.multiples { display: grid; grid-template-columns: repeat(auto-fill, minmax(280px, 1fr));
  gap: 32px 28px; margin-top: 20px; }
.multiples figcaption { display: flex; justify-content: space-between; font-size: 14px;
  font-weight: 600; margin-bottom: 4px; }
.multiples figcaption span { color: var(--muted); font-weight: 400; }
.texts, .media { display: grid; gap: 20px; align-items: start; }
.texts { grid-template-columns: repeat(auto-fit, minmax(290px, 1fr)); }
.media { grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); margin-top: 28px; }
article { min-width: 0; }
pre { margin: 0; padding: 14px 16px; background: var(--card); border-radius: 8px;
  font: 13px/1.55 var(--mono); white-space: pre-wrap; overflow-wrap: anywhere; tab-size: 2; }
img { max-width: 100%; min-width: 140px; image-rendering: pixelated; border-radius: 6px; }
audio { width: 100%; }
.scroll { overflow-x: auto; }
.settings .scroll { overflow: visible; }
table { border-collapse: collapse; font-size: 15px; }
th { font-size: 13px; font-weight: 500; color: var(--muted); text-align: left; }
th, td { padding: 7px 24px 7px 0; border-bottom: 1px solid var(--rule); vertical-align: baseline; }
td:last-child, th:last-child { padding-right: 0; }
.number { text-align: right; white-space: nowrap; }
.about { color: var(--muted); }
.wide { width: 100%; }
.meter { position: relative; height: 8px; min-width: 180px; border-radius: 4px;
  background: var(--rule); }
.meter i { position: absolute; inset: 0 auto 0 0; background: var(--first); border-radius: 4px; }
.meter b { position: absolute; top: -4px; bottom: -4px; width: 2px; background: var(--ink); }
.settings { columns: 300px 3; column-gap: 32px; margin-top: 20px; }
.settings > div { margin-bottom: 24px; }
.settings h3 { break-after: avoid; }
.settings tr { break-inside: avoid; }
.settings table { width: 100%; }
.settings table, .versions table { font-size: 13.5px; }
.settings td, .versions td { padding: 3px 12px 3px 0; }
.settings td:first-child, .versions td:first-child { color: var(--muted); white-space: nowrap; }
.settings td:last-child { padding-right: 0; text-align: right; overflow-wrap: anywhere; }
.changed { font-weight: 650; color: var(--second); }
.changed small { display: block; font-weight: 400; color: var(--muted); }
.strip { position: relative; height: 14px; margin: 20px 0 6px; border-radius: 7px;
  background: repeating-linear-gradient(135deg, var(--rule) 0 2px, transparent 2px 7px); }
.strip i { position: absolute; top: 0; bottom: 0; min-width: 3px; background: var(--first);
  border-radius: 7px; }
.versions { margin-top: 16px; }
.ends { display: flex; justify-content: space-between; color: var(--muted); font-size: 13px;
  margin: 0 0 20px; }
.events td { padding-top: 5px; padding-bottom: 5px; font-size: 14px; }
.events td:nth-child(-n+3) { width: 1%; white-space: nowrap; }
.events td:nth-child(3) { font-weight: 600; }
.events .resume, .events .preempted, .events .error { color: var(--second); }
@media (max-width: 640px) {
  main { padding: 32px 18px 56px; }
  h1 { font-size: 29px; }
  .verdict { font-size: 17px; }
  section { margin-top: 44px; }
  .broad { display: none; }
  .narrow { display: block; }
  .tiles dd { font-size: 21px; }
  .tiles div { flex: 1 0 30%; padding: 11px 12px; }
}
@media print {
  @page { margin: 16mm; }
  :root { --paper: #fff; --card: #f6f7f9; --ink: #000; --muted: #555; --rule: #ddd;
    --first: #0072b2; --second: #d55e00; --warn: #b3261e;
    --third: #00855f; --fourth: #b3578f; --fifth: #a87500; }
  body { font-size: 12px; }
  h1 { font-size: 27px; }
  h2 { font-size: 16px; }
  .verdict { font-size: 15px; margin-top: 10px; }
  .note, h3, .multiples figcaption, table, .events td { font-size: 11px; }
  th, td { padding-right: 14px; }
  .tiles { margin-top: 20px; }
  .tiles div { flex-basis: 80px; padding: 8px; }
  .tiles dd { font-size: 16px; }
  .tiles dt { font-size: 10.5px; }
  .texts { grid-template-columns: repeat(3, 1fr); gap: 12px; }
  .settings { columns: 3; }
  .settings table, .versions table { font-size: 10.5px; }
  .scroll { overflow: visible; }
  .meter { min-width: 90px; }
  pre { font-size: 10px; padding: 8px 10px; }
  main { padding: 0; max-width: none; }
  section { margin-top: 28px; }
  h2 { break-after: avoid; }
  article, figure, tr, pre, .tiles, .strip { break-inside: avoid; }
  .multiples { grid-template-columns: repeat(3, 1fr); }
  .meter, .meter i, .strip i, pre, .alarm { print-color-adjust: exact; }
  audio { display: none; }
}
"""
