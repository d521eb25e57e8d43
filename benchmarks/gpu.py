"""Measure every claim about one GPU: `python -m benchmarks.gpu`.

Each row runs in its own process with its own time limit: a failure or an out-of-memory error costs one
row. Results are written after every row; the table comes last. When the minutes are over, the
remaining rows are skipped and keep their earlier numbers, if any. Rows come first, then their variants
(batches, kernels, XLA flags one at a time), each with its gain. `--only=REGEX` runs rows by name; each
row has its date, command and commit. `--tiny` runs the same code on small models on any machine.
JAX_COMPILATION_CACHE_DIR is used if it is set.
"""

import argparse
import contextlib
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from gpt_jax.runs import provenance

ROOT = Path(__file__).parents[1]
OUT = ROOT / 'benchmarks' / 'results' / 'speed' / 'gpu.json'


class Job(NamedTuple):
  """One row, measured in its own process."""

  name: str
  worker: str  # key of gpu_rows.WORKERS
  arguments: dict
  limit: int  # seconds
  flags: str = ''  # XLA_FLAGS
  of: str = ''  # name of the row that this is a variant of


class Goal(NamedTuple):
  """A line of the table: a number of a row, or its ratio to a peer's."""

  what: str
  row: str
  key: str
  goal: float
  unit: str
  peer: str = ''
  lower: bool = False  # smaller is better


def jobs(tiny=False):
  """All rows, the most important first."""
  small, xl, char = ('tiny',) * 3 if tiny else ('124M', '1558M', '10.7M')
  length, seconds = (32, 0.2) if tiny else (1024, 5)
  rows_124m, rows_1558m, rows_characters, rows_decode = (2, 2, 4, 4) if tiny else (64, 16, 64, 256)
  prompt, new = (8, 16) if tiny else (32, 256)
  text = dict(prompt=prompt, new=new, **({'top_k': 20} if tiny else {}))
  train = dict(model=small, batch=rows_124m, length=length, seconds=seconds)
  characters = dict(model=char, batch=rows_characters, length=min(length, 256), seconds=seconds)
  one = dict(model=small, batch=1) | text
  rows = [
    Job('probe', 'probe', dict(size='tiny' if tiny else 'full', seconds=0.3), 60),
    Job('train 124M', 'train', train, 110),
    Job('torch train 124M', 'torch_train', train, 100),
    Job('generate 124M batch 1', 'generate', one, 70),
    Job('torch loop generate', 'torch_generate', one | dict(kind='loop'), 80),
    Job('train 1558M', 'train', train | dict(model=xl, batch=rows_1558m), 170),
    Job('generate 1558M batch 1', 'generate', one | dict(model=xl), 90),
    Job('train characters', 'train', characters | dict(steps_per_call=2 if tiny else 25), 60),
    Job('torch train characters', 'torch_train', characters, 60),
    Job('generate 124M batch 256', 'generate', one | dict(batch=rows_decode), 70),
    Job('transformers generate', 'torch_generate', one | dict(kind='default'), 50),
    Job('start 124M again', 'train', train | dict(seconds=0), 60),
    *(variants(train, one, characters) if not tiny else tiny_variants(train)),
  ]
  return [job._replace(limit=600) for job in rows] if tiny else rows


def tiny_variants(train):
  """One variant of each kind, for tests."""
  return [
    Job('scanned', 'train', train | dict(overrides=dict(unroll='off')), 60, of='train 124M'),
    Job('torch eager', 'torch_train', train | dict(mode='eager'), 60, of='torch train 124M'),
    Job('less fusion', 'train', train, 60, '--xla_cpu_enable_fast_math=false', 'train 124M'),
  ]


def variants(train, one, characters):
  """Variants of the rows, the most promising first."""
  xla, static = dict(overrides=dict(kernel='xla')), one | dict(kind='static')
  wide = '--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL,+DYNAMIC_SLICE_FUSION'
  rows = [Job(f'batch {n}', 'train', train | dict(batch=n), 80, of='train 124M') for n in (32, 96, 128)]
  rows += [
    Job(f'torch batch {n}', 'torch_train', train | dict(batch=n), 80, of='torch train 124M') for n in (32, 96)
  ]
  peers = {'torch train 124M': train, 'torch train characters': characters}
  for peer, row in peers.items():
    graphs, flash = row | dict(mode='reduce-overhead'), row | dict(attention='flash')
    name = peer.removeprefix('torch train ')
    rows.append(Job(f'torch {name}, CUDA graphs', 'torch_train', graphs, 80, of=peer))
    rows.append(Job(f'torch {name}, flash attention', 'torch_train', flash, 80, of=peer))
    rows.append(Job(f'torch {name}, eager', 'torch_train', row | dict(mode='eager'), 60, of=peer))
  rows += [
    Job('loop in a CUDA graph', 'generate', one, 70, wide, 'generate 124M batch 1'),
    Job('xla attention', 'train', train | xla | dict(batch=16), 80, of='train 124M'),
    Job('one step a call', 'train', characters, 60, of='train characters'),
    Job('static cache', 'torch_generate', static, 80, of='transformers generate'),
  ]
  for flag in FLAGS:
    name = flag.removeprefix('--xla_gpu_')
    rows.append(Job(name, 'train', train, 80, flag, 'train 124M'))
  scanned = train | dict(overrides=dict(unroll='off'))
  return [*rows, Job('scanned layers', 'train', scanned, 80, of='train 124M')]


FLAGS = (
  '--xla_gpu_enable_triton_gemm=false',
  '--xla_gpu_enable_cublaslt=true',
  '--xla_gpu_enable_command_buffer=',
  '--xla_gpu_cudnn_gemm_fusion_level=1',
  '--xla_gpu_exhaustive_tiling_search=true',
)
GOALS = (
  Goal('124M, T=1024', 'train 124M', 'tokens_per_second', 550e3, 'tokens/s'),
  Goal('1558M, T=1024', 'train 1558M', 'tokens_per_second', 52e3, 'tokens/s'),
  Goal('124M against torch.compile', 'train 124M', 'tokens_per_second', 1.05, 'x', 'torch train 124M'),
  Goal(
    '10.7M characters against torch.compile',
    'train characters',
    'steps_per_second',
    3,
    'x',
    'torch train characters',
  ),
  Goal(
    'generate 124M, batch 1, against transformers',
    'generate 124M batch 1',
    'tokens_per_second',
    12,
    'x',
    'transformers generate',
  ),
  Goal(
    'generate 124M, batch 1, against a compiled loop',
    'generate 124M batch 1',
    'tokens_per_second',
    1.1,
    'x',
    'torch loop generate',
  ),
  Goal(
    'generate 1558M, batch 1: read (goal: 60 % of 4.3e12)',
    'generate 1558M batch 1',
    'bytes_per_second',
    2.58e12,
    'bytes/s',
  ),
  Goal('generate 124M, batch 256', 'generate 124M batch 256', 'tokens_per_second', 120e3, 'tokens/s'),
  Goal(
    'start to first step, warm compile cache', 'start 124M again', 'first_step_seconds', 10, 's', lower=True
  ),
)


def run(job, seconds, cache):
  """Run one row -> dict of its numbers, `error` if it failed, and `took_seconds`."""
  environment = os.environ | {
    'JAX_COMPILATION_CACHE_DIR': cache,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'BENCHMARK_START': str(time.time()),
    'HF_HUB_OFFLINE': '1',
    'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.92',
    'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {job.flags}'.strip(),
  }
  command = [sys.executable, '-m', 'benchmarks.gpu_rows', job.worker, json.dumps(job.arguments)]
  start = time.perf_counter()
  with tempfile.TemporaryFile('w+') as stdout, tempfile.TemporaryFile('w+') as stderr:
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stdout, stderr=stderr)
    try:
      code = process.wait(seconds)
      error = '' if code == 0 else f'ended with code {code}'
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()
      error = f'took longer than {seconds:.0f} s'
    stdout.seek(0), stderr.seek(0)
    lines = [line for line in stdout if line.startswith('RESULT ')]
    trace = stderr.read().strip().splitlines()
  row = json.loads(lines[-1].removeprefix('RESULT ')) if lines else {}
  if error:
    cause = next((line for line in reversed(trace) if 'rror' in line), trace[-1] if trace else '')
    row |= {'error': f'{error}: {cause[:200]}'}
  return row | {'took_seconds': time.perf_counter() - start, 'flags': job.flags, 'of': job.of}


def speed(row):
  """Tokens/s of a row, or None."""
  return row.get('tokens_per_second')


def best(rows, name, key):
  """Best value among a row and its variants -> (value, name of the row); (None, '') without any."""
  values = {n: r[key] for n, r in rows.items() if key in r and name in (n, r.get('of'))}
  if not values:
    return None, ''
  winner = max(values, key=values.get)
  return values[winner], winner


def table(rows):
  """Markdown tables: the rows of GOALS, then the gains of variants."""
  lines = ['| what | measured | goal | | by |', '|---|---|---|---|---|']
  for goal in GOALS:
    value, by = best(rows, goal.row, goal.key)
    if goal.peer:
      other, peer = best(rows, goal.peer, goal.key)
      value, by = (value / other, f'{by} / {peer}') if value and other else (None, '')
    if value is None:
      text, verdict = rows.get(goal.row, {}).get('error', 'not measured'), ''
    else:
      met = value <= goal.goal if goal.lower else value >= goal.goal
      text, verdict = f'{value:,.4g} {goal.unit}', 'met' if met else 'below'
    lines.append(f'| {goal.what} | {text} | {goal.goal:,.4g} | {verdict} | {by} |')
  lines += ['', '| row | variant of | tokens/s | gain | PaLM-MFU | causal MFU |']
  lines += ['|---|---|---|---|---|---|']
  for name, row in rows.items():
    base = speed(rows.get(row.get('of') or name, {}))
    if name == 'probe' or 'first_step_seconds' in row and speed(row) is None:
      continue
    if speed(row) is None:
      lines.append(f'| {name} | {row.get("of", "")} | {row.get("error", "")} | | | |')
      continue
    gain = f'{speed(row) / base - 1:+.1%}' if base and row.get('of') else ''
    mfu = [f'{row[key]:.1%}' if key in row else '' for key in ('palm_mfu', 'causal_mfu')]
    lines.append(f'| {name} | {row["of"]} | {speed(row):,.0f} | {gain} | {mfu[0]} | {mfu[1]} |')
  probe = rows.get('probe', {})
  device = probe.get('device', 'an unknown device')
  return '\n'.join([*lines, '', f'MFU against {probe.get("peak", 0):.4g} FLOP/s of {device}.'])


def measure(jobs, minutes, out):
  """Run jobs until the minutes are over -> {name: row}, written to `out` after each."""
  end, rows = time.monotonic() + 60 * minutes, {}
  if out.exists():
    rows = json.loads(out.read_text())['rows']
  own = os.environ.get('JAX_COMPILATION_CACHE_DIR')
  with contextlib.nullcontext(own) if own else tempfile.TemporaryDirectory() as cache:
    for job in jobs:
      left = end - time.monotonic() - 2
      if left >= min(20, job.limit):
        before = rows.get('probe', {}).get('device')
        rows[job.name] = run(job, min(job.limit, left), cache) | {'made': origin()}
        if job.name == 'probe' and before not in (None, rows['probe'].get('device')):
          rows = {'probe': rows['probe']}  # another device: the old rows are not comparable
      else:
        rows.setdefault(job.name, {'error': 'skipped: no time left', 'of': job.of})
      print(job.name, json.dumps(rows[job.name]), flush=True)
      write(out, rows)
  return rows


def origin():
  """Origin of a row: command, commit and date."""
  versions = provenance.versions('')
  now = datetime.datetime.now(datetime.UTC).isoformat('T', 'seconds')
  return {'command': versions['command'], 'git': versions.get('git', ''), 'written': now}


def write(out, rows):
  """Write the result file. The parent process never opens the device: a row may need all its memory."""
  device = rows.get('probe', {}).get('device', 'unknown')
  versions = provenance.versions(device)
  about = {'name': 'gpu', 'claim': 'Speed of one GPU, against torch and transformers'}
  about |= {'command': versions.pop('command'), 'hardware': f'1 x {device}', 'versions': versions}
  out.parent.mkdir(parents=True, exist_ok=True)
  out.write_text(json.dumps(about | {'rows': rows, 'table': table(rows)}, indent=1) + '\n')


def main():
  """Measure, write, print the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--tiny', action='store_true', help='small models, to test the code')
  parser.add_argument('--minutes', type=float, default=9.5)
  parser.add_argument('--only', default='', help='run only rows whose names match this regular expression')
  parser.add_argument('--out', type=Path, default=OUT)
  arguments = parser.parse_args()
  if arguments.tiny and arguments.out == OUT:
    parser.error('--tiny rows must not replace real results: add --out=FILE')
  chosen = [job for job in jobs(arguments.tiny) if re.search(arguments.only, job.name)]
  print(table(measure(chosen, arguments.minutes, arguments.out)))


if __name__ == '__main__':
  main()
