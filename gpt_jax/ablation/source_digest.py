"""Digest of the code that a run's scores depend on besides its compiled step.

Data, tokenizers, generation and evaluation run on the host or in programs of their own, so the lowered train
step does not show that they changed.
"""

import ast
import functools
import hashlib
from pathlib import Path

import gpt_jax

PACKAGES = ('data', 'evaluation', 'jobs', 'model', 'sampling', 'tokenizers')
FILES = ('losses.py', 'sample.py', 'step.py', 'train.py')


@functools.cache
def scoring_code():
  """Return a hash of these packages and files without comments and docstrings, 16 hex digits.

  Cached: later edits are not what this process runs.
  """
  root = Path(gpt_jax.__file__).parent
  paths = [
    *(root / name for name in FILES),
    *(path for package in PACKAGES for path in (root / package).rglob('*.py')),
  ]
  digest = hashlib.sha256()
  for path in sorted(paths):
    digest.update(f'{path.relative_to(root).as_posix()}\n{code_of(path.read_text("utf-8"))}\n'.encode())
  return digest.hexdigest()[:16]


def code_of(source):
  """Return the syntax tree of Python source as text, without docstrings."""
  tree = ast.parse(source)
  for node in ast.walk(tree):
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
      del node.body[0]
  return ast.dump(tree)
