"""Damaged files of every kind through every verb: `python -m benchmarks.mutants [--mutants=300]`.

Each trial copies a small folder, alters one file of it, and runs a verb that reads it: in this process, as
launch.py would. A verb must end in its result or in two lines, `error:` and `fix:`, with exit code 0, 1, 2 or
75. Writes results/survival/mutants.json, with the number of mutants of each kind and verb.
`--kinds=texts,sounds` and `--verbs=train` choose; `--seconds=60` ends each pair of kind and verb early.
"""

import argparse
import collections
import contextlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import types
import warnings
from pathlib import Path
from unittest import mock

from benchmarks import mutant_worlds, record
from tests import command_line, tiny_runs

VALUES = (None, True, -1, 10**400, 1e308, '', 'x', '\x1b[31m', [], [[]], {}, {'a': 1}, ['a'])
CODES = (0, 1, 2, 75)
HANG_SECONDS = 120
MEMORY_GIB = 8  # beyond what the process has: what asks for more fails at once
IS_ROOT = not hasattr(os, 'geteuid') or os.geteuid() == 0  # who may read every file


class Hang(BaseException):
  """A verb that takes longer than HANG_SECONDS."""


# ------------------------------------------------------------------------------------- mutations


def flip(content, rng):
  """Return bytes with one bit flipped."""
  content = bytearray(content)
  content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  return bytes(content)


def retype(content, rng):
  """Return JSON, or JSON lines, without a digest and with another value, or none, for one entry."""
  lines = [content] if content.startswith(b'{\n') else content.splitlines()
  number = rng.randrange(len(lines))
  try:
    node = tree = json.loads(lines[number])
  except ValueError:
    return flip(content, rng)
  if not isinstance(tree, dict) or not tree.keys() - {'sha256'}:
    return b'[]'
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


def change_number(content, rng):
  """Return bytes with a run of digits replaced by a huge, negative or long number."""
  numbers = [*re.finditer(rb'\d+', content)]
  if not numbers:
    return flip(content, rng)
  match = rng.choice(numbers)
  value = rng.choice((b'9' * 19, b'-1', b'0', b'1e999', b'9' * 400, b'4294967296'))
  return content[: match.start()] + value + content[match.end() :]


def change_lines(content, rng):
  """Return bytes with a line deleted, duplicated, moved or torn."""
  lines = content.splitlines(keepends=True)
  at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
  kind = rng.randrange(4)
  if kind == 0:
    del lines[at]
  elif kind == 1:
    lines.insert(other, lines[at])
  elif kind == 2:
    lines[at], lines[other] = lines[other], lines[at]
  else:
    lines[at] = lines[at][: rng.randrange(len(lines[at]))]
  return b''.join(lines)


CHANGES = {
  'flip': flip,
  'cut': lambda content, rng: content[: rng.randrange(len(content))],
  'empty': lambda content, rng: b'',
  'zeros': lambda content, rng: (
    content[: (at := rng.randrange(len(content)))] + bytes(16) + content[at + 16 :]
  ),
  'append': lambda content, rng: content + rng.randbytes(20),
  'lines': change_lines,
  'number': change_number,
  'retype': retype,
}
TEXTS = ('.json', '.jsonl', '.txt', '.py', '.model', '.en', '.de', '.diff', '.md', '.csv')


def mutate(path, others, rng):
  """Alter a file -> the name of the mutation."""
  content = path.read_bytes()
  kinds = ['flip', 'flip', 'cut', 'empty', 'delete', 'swap', 'zeros', 'append', 'folder']
  kinds += [] if IS_ROOT else ['unreadable']
  kinds += ['lines', 'lines', 'number', 'number'] if path.suffix in TEXTS else []
  kinds += ['retype'] * 8 if path.suffix in ('.json', '.jsonl') else []
  new = {**CHANGES, 'swap': lambda content, rng: rng.choice(others).read_bytes()}
  kind = rng.choice(kinds) if content else 'delete'
  while kind in new and (changed := new[kind](content, rng)) == content:
    kind = rng.choice(kinds)
  if kind in new:
    path.write_bytes(changed)
  elif kind == 'unreadable':
    path.chmod(0)
  else:
    path.unlink()
    if kind == 'folder':
      path.mkdir()
  return kind


# ---------------------------------------------------------------------------------------- trials


@contextlib.contextmanager
def in_this_process():
  """Run verbs in this process within the block."""
  with contextlib.ExitStack() as stack:
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter('ignore')
    for target, name, value in command_line.IN_PROCESS:
      stack.enter_context(mock.patch.object(target, name, value))
    stack.enter_context(mock.patch.dict(os.environ, command_line.ENVIRONMENT))
    yield


def call(*args):
  """Run a verb -> (exit code, stdout, stderr)."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    code = command_line.run_verb(*args)
  return code, out.getvalue(), err.getvalue()


def fault_of(code, err):
  """Return what is wrong with how a verb ended, '' for its result or two lines."""
  if code not in CODES:
    return f'exit code {code}'
  if 'Traceback' in err:
    return f'traceback: {err[-500:]}'
  lines = [line.partition(':')[0] for line in err.splitlines() if line.startswith(('error:', 'fix:'))]
  if code not in (0, 75) and lines != ['error', 'fix']:
    return f'exit code {code} with {lines}: {err[-500:]}'
  return ''


@contextlib.contextmanager
def limits():
  """Turn a hang into an exception, and a request for far too much memory into a MemoryError."""

  def hang(*_):
    raise Hang

  before = resource.getrlimit(resource.RLIMIT_AS)
  used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
  old = signal.signal(signal.SIGALRM, hang)
  resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_GIB * 2**30, before[1]))
  signal.alarm(HANG_SECONDS)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)
    resource.setrlimit(resource.RLIMIT_AS, before)


def trial(world, verb, seed, pristine, folder):
  """Mutate one file and run a verb -> {seed, file, mutation, code, seconds, fault}."""
  rng = random.Random(f'{world.name} {verb} {seed}')
  shutil.rmtree(folder, ignore_errors=True)
  shutil.copytree(pristine, folder, symlinks=True)
  files = sorted({path for glob in world.files for path in folder.glob(glob) if path.is_file()})
  # Small files, which hold structure, as often as large ones, of which there are more.
  by_suffix = collections.defaultdict(list)
  for path in files:
    by_suffix[path.parent == folder, path.suffix].append(path)
  path = rng.choice(rng.choice([*by_suffix.values()]) if rng.random() < 0.5 else files)
  kind, start = mutate(path, files, rng), time.perf_counter()
  outcome = {'seed': seed, 'file': str(path.relative_to(folder)), 'mutation': kind, 'code': None}
  fault = err = ''
  try:
    for command in world.verbs[verb]:
      with limits():
        outcome['code'], _, err = call(*(arg.format(folder=folder) for arg in command))
      fault = fault_of(outcome['code'], err)
      if fault or outcome['code']:
        break
  except Exception as error:
    fault = f'traceback: {type(error).__name__}: {error}'[:500]
  except Hang:
    fault = f'ran for {HANG_SECONDS} s'
  said = next((line for line in err.splitlines() if line.startswith('error:')), '')[:300]
  return outcome | {'seconds': time.perf_counter() - start, 'fault': fault, 'said': said}


def run_world(world, home, verbs, count, seconds=float('inf'), seed=0, report=None):
  """Run `count` mutants of a kind of file through each verb -> {verb: outcomes}."""
  pristine, folder = home / 'pristine' / world.name, home / 'world' / world.name
  if not pristine.exists():
    world.prepare(folder, call)
    shutil.copytree(folder, pristine, symlinks=True)
  results = {}
  for verb in verbs or world.verbs:
    if verb not in world.verbs:
      continue
    end, results[verb] = time.monotonic() + seconds, []
    for number in range(seed, seed + count):
      if time.monotonic() > end:
        break
      results[verb].append(trial(world, verb, number, pristine, folder))
      if report and results[verb][-1]['fault']:
        report(world.name, verb, results[verb][-1])
  return results


def summarize(results):
  """Return {kind: {verb: {mutants, exit codes, faults, seconds each}}} of {kind: {verb: outcomes}}."""
  return {
    kind: {
      verb: {
        'mutants': len(outcomes),
        'exit_codes': {str(k): n for k, n in collections.Counter(x['code'] for x in outcomes).items()},
        'faults': sum(bool(x['fault']) for x in outcomes),
        'seconds_each': round(sum(x['seconds'] for x in outcomes) / max(len(outcomes), 1), 2),
      }
      for verb, outcomes in verbs.items()
    }
    for kind, verbs in results.items()
  }


def write(results, seed):
  """Write the result file of {kind: {verb: outcomes}}."""
  counts = summarize(results)
  total = sum(row['mutants'] for verbs in counts.values() for row in verbs.values())
  named = [x | {'kind': k, 'verb': v} for k, vs in results.items() for v, xs in vs.items() for x in xs]
  faults = [x for x in named if x['fault']]
  record.write_result(
    'survival/mutants',
    f'{total:,} damaged files of {len(counts)} kinds through verbs that read them, {len(faults)} faults',
    {'seed': seed, 'permissions': not IS_ROOT, 'counts': counts, 'faults': faults},
  )


def main():
  """Run all trials, print faults as they come, write the result file."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--mutants', type=int, default=300)
  parser.add_argument('--kinds', default=','.join(mutant_worlds.WORLDS))
  parser.add_argument('--verbs', default='')
  parser.add_argument('--seconds', type=float, default=float('inf'))
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--said', action='store_true', help='print what each mutant says')
  parser.add_argument('--record', action=argparse.BooleanOptionalAction, default=True)
  arguments = parser.parse_args()
  results = {}
  with contextlib.ExitStack() as stack:
    name = stack.enter_context(tempfile.TemporaryDirectory())
    factory = types.SimpleNamespace(getbasetemp=lambda: Path(name))
    stack.enter_context(tiny_runs.compiled_programs(factory))
    stack.enter_context(in_this_process())
    for kind in arguments.kinds.split(','):
      results[kind] = run_world(
        mutant_worlds.WORLDS[kind],
        Path(name),
        [verb for verb in arguments.verbs.split(',') if verb],
        arguments.mutants,
        arguments.seconds,
        arguments.seed,
        lambda *fault: print('FAULT', *fault, flush=True),
      )
      print(json.dumps(summarize({kind: results[kind]})), flush=True)
      if arguments.record:  # also if the rest is stopped
        write(results, arguments.seed)
      for outcomes in results[kind].values() if arguments.said else ():
        for x in outcomes:
          print(' ', x['code'], x['mutation'], x['file'], f'{x["seconds"]:.1f}', x['said'])
  faults = [x for verbs in results.values() for outcomes in verbs.values() for x in outcomes if x['fault']]
  sys.stdout.flush()
  os._exit(bool(faults))  # a world may have left threads


if __name__ == '__main__':
  main()
