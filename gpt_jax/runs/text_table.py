"""Plain text for consoles, logs and errors: tables, laid out by rich, and shortened lists."""

import io
import re

NUMBER = re.compile(r'[-+~\u2212]?[\d.,]+(e[-+]?\d+)?[%kMBT\u00d7]?|-|nan|')


def format_table(rows, header):
  """Return the lines of a table: no borders, no colors, cells never cut or wrapped.

  rows: sequences of cells (any type, shown by str). header: the column names. A column whose cells
  are all numbers, '-' or empty is right-aligned.
  """
  from rich import console, table, text

  columns = list(zip(*([str(cell) for cell in row] for row in rows), strict=True)) or [()] * len(header)
  grid = table.Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
  for name, cells in zip(header, columns, strict=True):
    is_number = bool(cells) and all(NUMBER.fullmatch(cell) for cell in cells)
    grid.add_column(text.Text(name), justify='right' if is_number else 'left', no_wrap=True)
  for row in zip(*columns, strict=True):
    grid.add_row(*map(text.Text, row))
  file = io.StringIO()
  plain = console.Console(
    file=file, width=10_000, color_system=None, force_terminal=False, force_jupyter=False
  )
  plain.print(grid)
  return [line.rstrip() for line in file.getvalue().splitlines()]


def join_some(items, limit=8):
  """Return 'a, b, c and 4 more': at most `limit` items."""
  items = list(items)
  more = f' and {len(items) - limit} more' if len(items) > limit else ''
  return ', '.join(items[:limit]) + more
