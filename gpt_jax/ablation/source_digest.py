"""Digests of code: what a run's scores depend on besides its compiled step, and what judges them.

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
ANALYSIS = ('ablation/stats',)


@functools.cache
def scoring_code():
  """Return the digest of what trains and evaluates. Cached: later edits are not what this process runs."""
  return digest_of(FILES, PACKAGES)


@functools.cache
def analysis_code():
  """Return the digest of what turns scores into verdicts."""
  return digest_of((), ANALYSIS)


def digest_of(files, packages):
  """Return a hash of these files and packages without comments and docstrings, 16 hex digits."""
  root = Path(gpt_jax.__file__).parent
  paths = [
    *(root / name for name in files),
    *(path for package in packages for path in (root / package).rglob('*.py')),
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
