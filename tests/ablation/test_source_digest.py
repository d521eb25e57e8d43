"""The digest of the code that scores depend on."""

import shutil
import types
from pathlib import Path

import gpt_jax
from gpt_jax.ablation import source_digest

SOURCE = '''"""Docs."""
def f(x):
  """Docs."""
  return x + 1
'''


def test_comments_docstrings_and_layout_do_not_change_the_code():
  same = '# New.\ndef f(x):\n    return (x + 1)  # one more\n'
  assert source_digest.code_of(SOURCE) == source_digest.code_of(same)
  assert source_digest.code_of(SOURCE) != source_digest.code_of(same.replace('1', '2'))
  assert source_digest.code_of('def f():\n  "Docs."\n') == source_digest.code_of('def f():\n  "Other."\n')


def test_the_digest_covers_what_evaluates_and_not_what_reports(tmp_path, monkeypatch):
  for name in (*source_digest.FILES, *source_digest.PACKAGES, 'reports'):
    path = Path(gpt_jax.__file__).parent / name
    target = tmp_path / name
    shutil.copy(path, target) if path.is_file() else target.mkdir()
  for place in ('jobs', 'evaluation/tasks', 'data', 'reports'):
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / 'x.py').write_text('y = 0\n')
  monkeypatch.setattr(source_digest, 'gpt_jax', types.SimpleNamespace(__file__=str(tmp_path / '__init__.py')))
  digest = source_digest.scoring_code.__wrapped__
  before = digest()
  (tmp_path / 'reports' / 'x.py').write_text('y = 1\n')
  assert digest() == before
  for place in ('jobs', 'evaluation/tasks', 'data'):
    (tmp_path / place / 'x.py').write_text('y = 1\n')
    assert digest() != before
    before = digest()
