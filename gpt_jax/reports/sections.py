"""Sections of a report as data, and their Markdown and LaTeX; page.py renders them as HTML."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from gpt_jax.runs import loggers

# Characters that are commands in LaTeX, or not ASCII.
LATEX = {
  '\\': r'\textbackslash{}',
  '~': r'\textasciitilde{}',
  '^': r'\textasciicircum{}',
  '\u2212': '$-$',
  '\u00d7': r'$\times$',
  '\u00b1': r'$\pm$',
  '\u2192': r'$\to$',
  '\u2026': r'\dots{}',
  '<': '$<$',
  '>': '$>$',
  **{character: f'\\{character}' for character in '&%$#_{}'},
}


class Table(NamedTuple):
  """Texts in rows and columns; make it with `make_table`."""

  header: Sequence  # column names; '>' marks a right-aligned column of numbers; () for no header
  rows: Sequence  # of cells: texts, whose lines are separated by '\n', or page.Html
  kind: str  # class of the HTML table
  render: dict  # {column name: function of a text that returns HTML}


class Section(NamedTuple):
  """One section; without any content it is left out."""

  title: str
  parts: Sequence  # of Table, Code, list of texts (bullets), or page.Html, which only a page shows
  note: str = ''
  legend: str = ''  # explains the figures


class Code(str):
  """A command line."""


def make_table(header, rows, kind='wide', **render):
  """Return a Table without the columns that are empty in every row."""
  rows = list(rows)
  header = header or ('',) * len(rows[0] if rows else ())
  used = [i for i in range(len(header)) if any(row[i] for row in rows)]
  names = [header[i] for i in used]
  return Table(names if any(names) else (), [[row[i] for i in used] for row in rows], kind, render)


# ------------------------------------------------------------------------------------ Markdown


def to_markdown(title, top, sections):
  """Return a report as Markdown, without figures and samples; top: Markdown, and lists of texts."""
  blocks = [
    f'# {escape_markdown(title)}',
    *(text if isinstance(text, str) else part_to_markdown(text) for text in top),
  ]
  for section in sections:
    parts = [part_to_markdown(part) for part in section.parts]
    if any(parts):
      blocks += [f'## {section.title}', escape_markdown(section.note), *parts]
  return '\n\n'.join(filter(None, blocks)) + '\n'


def part_to_markdown(part):
  """Return one part of a Section as Markdown, '' for HTML."""
  if isinstance(part, Table):
    return table_to_markdown(part)
  if isinstance(part, list):
    return '\n'.join(f'- {escape_markdown(line)}' for line in part)
  return f'```\n{part}\n```' if part and isinstance(part, Code) else ''


def table_to_markdown(table):
  """Return a Markdown table; bullets 'name: text' without a header; '' without rows."""
  if not table.rows:
    return ''
  if not table.header:
    return '\n'.join(f'- {": ".join(map(markdown_cell, row))}' for row in table.rows)
  line = lambda cells: '| ' + ' | '.join(map(markdown_cell, cells)) + ' |'
  sides = '|' + '|'.join('---:' if name.startswith('>') else '---' for name in table.header) + '|'
  return '\n'.join([line(name.lstrip('>') for name in table.header), sides, *map(line, table.rows)])


def markdown_cell(text):
  """Return a text as it may stand in a Markdown table."""
  return escape_markdown(str(text).replace('\n', ', '))


def escape_markdown(text):
  """Return a text as Markdown that shows it; an underscore within a word needs no escape."""
  return re.sub(r'^#|[\\`*$<\[|]|(?<!\w)_|_(?!\w)', r'\\\g<0>', loggers.printable(str(text)))


# --------------------------------------------------------------------------------------- LaTeX


def to_latex(table, caption, label, bold=()):
  """Return a table for a paper, a rule below its first row; needs the package booktabs.

  bold: texts of the first column.
  """
  label = re.sub(r'[^\w-]+', '-', label)
  sides = ''.join('r' if name.startswith('>') else 'l' for name in table.header)
  lines = []
  for first, *cells in table.rows:
    first = f'\\textbf{{{escape_latex(first)}}}' if first in bold else escape_latex(first)
    lines.append(' & '.join([first, *map(escape_latex, cells)]) + ' \\\\')
  lines[1:1] = ['\\midrule'] if len(lines) > 1 else []
  body = '\n'.join(f'    {line}' for line in lines)
  return (
    '% needs \\usepackage{booktabs}\n'
    '\\begin{table}\n  \\centering\n'
    f'  \\caption{{{escape_latex(caption)}}}\n'
    f'  \\label{{tab:{label}}}\n'
    f'  \\begin{{tabular}}{{{sides}}}\n    \\toprule\n'
    f'    {" & ".join(escape_latex(name.lstrip(">")) for name in table.header)} \\\\\n    \\midrule\n'
    f'{body}\n'
    '    \\bottomrule\n  \\end{tabular}\n\\end{table}\n'
  )


def escape_latex(text):
  """Return a text as LaTeX source that shows it."""
  return ''.join(
    LATEX.get(character, character) for character in loggers.printable(str(text)).replace('\n', ' ')
  )
