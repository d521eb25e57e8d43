"""Ancestors of a run: the rows of the report and the lines of a console."""

from gpt_jax.runs import ancestry


def test_a_console_lists_the_first_changes_and_the_report_more(tmp_path):
  old, new = ({'optim': {f'key{n}': value for n in range(5)}} for value in (0, 1))
  parent = {'how': 'train.init_from', 'path': 'runs/base', 'step': 2, 'config': old, 'parents': []}
  ancestry.write_parents(tmp_path, [parent])
  changes = [row[4] for row in ancestry.ancestor_rows(tmp_path, new, tokens=8)][-1]
  assert changes.split('\n') == [f'optim.key{n} 0 -> 1' for n in range(5)]
  line = ancestry.format_table(tmp_path, new, tokens=8)[-1]
  assert 'optim.key2 0 -> 1, and 2 more' in line and 'key3' not in line
