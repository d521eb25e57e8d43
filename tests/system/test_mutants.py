"""Mutants of every kind of file: each verb that reads one ends in its result or in two lines.

A mutant flips a bit, cuts or empties a file, deletes it, swaps it with another, or gives an entry of its JSON
another type; some without their digest, as the fix of an altered record allows.
"""

import json
import pathlib
import random
import re
import shutil

import pytest

from tests import command_line, tiny_runs

FAST, MANY = 20, 300
VALUES = (None, True, -1, 10**400, 1e308, '', 'x', '\x1b[31m', [], [[]], {}, {'a': 1}, ['a'])
# Verb -> files that it reads, as globs in a run folder.
RUN_FILES = ('*.json', '*.jsonl', 'samples/*', 'checkpoints/**/*', 'tokenizer/*')
VERBS = {
  'report': ('report', '--workdir={run}'),
  'table': ('report', '--workdir={parent}', '--columns=optim.lr'),
  'sample': ('sample', '--workdir={run}', '--prompt=a', '--max_new_tokens=2'),
  'export': ('export', '--workdir={run}', '--out={parent}/exported'),
  'evaluate': ('evaluate', '--workdir={run}', '--limit=20'),
  'train': ('train', '--workdir={run}'),
}
SAYS_SO = re.compile(
  'altered|readable|read|damaged|left out|differ|missing|lost|refused|not '
)  # of a new line


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
  with tiny_runs.compiled_programs(tmp_path_factory):
    yield


@pytest.fixture
def call(capsys, monkeypatch):
  return command_line.in_process(capsys, monkeypatch)


@pytest.fixture
def copy(tmp_path_factory, tmp_path):
  run = tiny_runs.finished(tmp_path_factory)
  return pathlib.Path(shutil.copytree(run, tmp_path / 'runs' / 'copy'))


def flip(content, rng):
  content = bytearray(content)
  content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  return bytes(content)


def retype(content, rng):
  """Give one entry of a JSON object, or of one line, another value, without its digest."""
  lines = [content] if content.startswith(b'{\n') else content.splitlines()
  number = rng.randrange(len(lines))
  node = tree = json.loads(lines[number])
  tree.pop('sha256', None)
  while True:
    key = rng.choice([*node]) if isinstance(node, dict) else rng.randrange(len(node))
    if not (isinstance(node[key], dict | list) and node[key] and rng.random() < 0.8):
      break
    node = node[key]
  if rng.random() < 0.2:
    del node[key]
  else:
    node[key] = rng.choice(VALUES)
  lines[number] = json.dumps(tree).encode()
  return b'\n'.join([*lines, b''])


def mutate(path, others, rng):
  """Alter a file -> the name of the mutation."""
  content = path.read_bytes()
  kinds = ['flip', 'flip', 'cut', 'empty', 'delete', 'swap', 'zeros']
  kinds += ['retype'] * 8 if path.suffix in ('.json', '.jsonl') else []
  kind = rng.choice(kinds) if content else 'delete'
  if kind == 'delete':
    path.unlink()
  else:
    start = rng.randrange(len(content))
    altered = {
      'flip': lambda: flip(content, rng),
      'cut': lambda: content[:start],
      'empty': lambda: b'',
      'swap': lambda: rng.choice(others).read_bytes(),
      'zeros': lambda: content[:start] + bytes(16) + content[start + 16 :],
      'retype': lambda: retype(content, rng),
    }
    path.write_bytes(altered[kind]())
  return kind


def run_mutants(call, copy, verb, count, seed=0):
  """Failures of `count` mutants, as (seed, file, mutation, what was printed)."""
  pristine, failures = copy.parent.parent / 'pristine', []
  shutil.copytree(copy, pristine)
  for number in range(count):
    rng = random.Random(f'{verb} {seed + number}')
    shutil.rmtree(copy.parent)
    shutil.copytree(pristine, copy)
    files = sorted({p for pattern in RUN_FILES for p in copy.glob(pattern) if p.is_file()})
    records = [p for p in files if p.parent == copy]
    path = rng.choice(records if rng.random() < 0.6 else files)
    kind = mutate(path, files, rng)
    words = [word.format(run=copy, parent=copy.parent) for word in VERBS[verb]]
    about = (seed + number, str(path.relative_to(copy)), kind)
    try:
      code, _, err = call(*words)
    except Exception as error:
      failures.append((*about, repr(error)))
      continue
    lines = [line for line in err.splitlines() if line.startswith(('error:', 'fix:', 'Traceback'))]
    is_two_lines = [line.partition(':')[0] for line in lines] == ['error', 'fix']
    if code not in (0, 1, 2, 75) or (code and not is_two_lines) or 'Traceback' in err:
      failures.append((*about, code, err[-500:]))
  return failures


@pytest.mark.parametrize('verb', ['table'])
def test_some_mutants_of_a_run_end_in_two_lines(call, copy, verb):
  assert not run_mutants(call, copy, verb, FAST)


@pytest.mark.slow
@pytest.mark.parametrize('verb', VERBS)
def test_mutants_of_a_run_end_in_two_lines(call, copy, verb):
  assert not run_mutants(call, copy, verb, MANY)


def outcome(call, run):
  """Lines that sample and report print, and what they make: the sampled text, the page."""
  results, said = [], []
  for verb in ('sample', 'report'):
    code, out, err = call(*(word.format(run=run, parent=run.parent) for word in VERBS[verb]))
    results.append(out if verb == 'sample' else code == 0 and (run / 'report.html').read_text())
    said += (out + err).splitlines()
  return results, said


@pytest.mark.slow
def test_a_flipped_bit_of_a_run_is_found_or_harmless(call, copy):
  """All files but samples, which the report shows as they are."""
  pristine, silent = copy.parent.parent / 'pristine', []
  shutil.copytree(copy, pristine)
  (text, page), said = outcome(call, copy)
  for number in range(60):
    rng = random.Random(number)
    shutil.rmtree(copy.parent)
    shutil.copytree(pristine, copy)
    files = sorted(
      p for p in copy.rglob('*') if p.is_file() and p.stat().st_size and p.parent.name != 'samples'
    )
    path = rng.choice(files)
    path.write_bytes(flip(path.read_bytes(), rng))
    (new_text, new_page), new_said = outcome(call, copy)
    new_lines = {*new_said, *(new_page or '').splitlines()} - {*said, *page.splitlines()}
    is_found = any(SAYS_SO.search(line) for line in new_lines)
    if (new_text, new_page) != (text, page) and not is_found:
      silent.append((number, str(path.relative_to(copy)), sorted(new_lines)[:3]))
  assert not silent
