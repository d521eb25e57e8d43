"""Plain-text tables: aligned, uncut, without colors."""

from gpt_jax.runs.text_table import format_table


def test_numbers_are_right_aligned_and_words_left():
  rows = [('rope', 1.5, '1,234', 'a'), ('[bold]none', -22.25, '-', 'b c')]
  assert format_table(rows, ('arm', 'loss', 'tokens', 'note')) == [
    'arm           loss  tokens  note',
    'rope           1.5   1,234  a',
    '[bold]none  -22.25       -  b c',
  ]


def test_long_cells_are_never_cut_and_colors_never_used(monkeypatch):
  monkeypatch.setenv('FORCE_COLOR', '1')
  monkeypatch.setenv('COLUMNS', '20')
  cell = 'x' * 300
  assert format_table([(cell, 'y')], ('name', 'other'))[1] == f'{cell}  y'


def test_a_table_without_rows_is_its_header():
  assert format_table([], ('a', 'b')) == ['a  b']
