"""kill -9 at random moments: `python -m benchmarks.kills [--kills=50]`.

A small GPT with dropout trains with a checkpoint every sixth step, and is killed: four times out of
five while it trains, else anywhere from the start of the process on. After each kill the newest
good checkpoint must hold, bit for bit, what a run that nobody touched had at that step, and the
same command goes on. A run that got to its end must have the same metrics, each step once, and the
same last state; then the next one begins. Keeps results/survival/kills.json.
"""

import argparse
import collections
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from benchmarks import record
from gpt_jax.runs import run_folder
from gpt_jax.training import trees
from gpt_jax.training.checkpoint import Checkpoints

ROOT = Path(__file__).parents[1]
STEPS = 360
EXPERIMENT = f"""
from gpt_jax import config as configs

def get_config(arg=''):
  configs.arguments(arg)
  config = configs.default()
  config.data.mixture = {{'text': {{'kind': 'synthetic', 'documents': 60}}}}
  config.model.update(layers=2, width=32, heads=2, context=32, dropout=0.1)
  config.optim.update(lr=3e-3, warmup=2, ema=0.9)
  config.train.update(steps={STEPS}, batch_size=8, eval_every=0, sample_every=0, eval_tokens=256)
  config.checkpoint.update(every=6)
  config.log.every = 1
  return config
"""
TIMED = ('time', 'tokens_per_second', 'mfu', 'mfu_causal', 'memory_gib', 'step_seconds')


def start(folder, name, *more, log='log'):
  """A training process in its own run folder; compiled programs are shared."""
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': str(folder / 'compiled'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'PYTHONUNBUFFERED': '1',
  }
  words = ['train', f'--config={folder / "tiny.py"}', f'--workdir={folder / name}', *more]
  with open(folder / log, 'wb') as file:
    return subprocess.Popen(
      [sys.executable, str(ROOT / 'launch.py'), *words],
      cwd=ROOT,
      env=environment,
      stdout=file,
      stderr=subprocess.STDOUT,
    )


def contents(checkpoints, step):
  """Digest of all arrays of a step, and the number of the next batch."""
  like = trees.nest(checkpoints.array_metadata(step))
  as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    path = checkpoints.folder / str(step) / 'state'
    tree = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
  digest = hashlib.sha256()
  for path, array in sorted(trees.flat(tree).items()):
    digest.update(f'{path} {array.dtype} {array.shape}'.encode() + array.tobytes())
  return digest.hexdigest(), checkpoints.read_extra(step)['data']['next_batch']


def metrics(workdir):
  """All lines, without what depends on time."""
  return [{k: v for k, v in x.items() if k not in TIMED} for x in run_folder.read_metrics(workdir)]


def killed(process, log, rng):
  """Kill it at a random moment -> (phase, whether it had ended before)."""
  anywhere = rng.random() < 0.2
  while not anywhere and b'loss' not in log.read_bytes() and process.poll() is None:
    time.sleep(0.01)
  with contextlib.suppress(subprocess.TimeoutExpired):
    process.wait(rng.uniform(0, 6.0 if anywhere else 1.5))
  ended = process.poll() is not None
  process.send_signal(signal.SIGKILL)
  process.wait()
  return 'anywhere' if anywhere else 'training', ended


def examined(workdir, expected):
  """What a kill left -> {step, wrong: what is not as it should be, unfinished: what it cut off}."""
  lines, folder = [], workdir / 'checkpoints'
  if not folder.exists():
    return {'step': 0, 'wrong': '', 'unfinished': 'nothing'}
  checkpoints = Checkpoints(folder, report=lines.append)
  unfinished = 'a save' if [*folder.glob('*.orbax-checkpoint-tmp*')] else 'nothing'
  try:
    step = checkpoints.latest_good()
    unfinished = 'digests' if lines else unfinished
    if step is None:
      return {'step': 0, 'wrong': '', 'unfinished': unfinished}
    same = contents(checkpoints, step) == expected[step]
    return {'step': step, 'wrong': '' if same else 'other values', 'unfinished': unfinished}
  except Exception as error:  # whatever: it was unreadable
    return {'step': -1, 'wrong': f'{type(error).__name__}: {error}', 'unfinished': unfinished}


def reference(folder):
  """Train without a kill, every checkpoint kept -> ({step: contents}, metrics)."""
  process = start(folder, 'whole', '--config.checkpoint.keep_every=6')
  if process.wait():
    raise SystemExit((folder / 'log').read_text())
  checkpoints = Checkpoints(folder / 'whole/checkpoints')
  expected = {step: contents(checkpoints, step) for step in checkpoints.steps()}
  assert len(expected) == STEPS // 6
  return expected, metrics(folder / 'whole')


def trials(folder, kills, seed=0):
  """-> (one row a kill, wrongs of runs that got to their ends, their number)."""
  rng, rows, wrongs, finished = random.Random(seed), [], [], 0
  expected, lines = reference(folder)
  while len(rows) < kills or finished == 0:
    workdir = folder / f'run{finished}'
    process = start(folder, workdir.name)
    if len(rows) < kills:
      phase, ended = killed(process, folder / 'log', rng)
    else:
      process.wait()
      ended = True
    if not ended:
      rows.append({'phase': phase} | examined(workdir, expected))
      print(len(rows), rows[-1], flush=True)
      continue
    if process.returncode:
      wrongs.append(f'run {finished} ended with exit code {process.returncode}')
    if metrics(workdir) != lines:
      wrongs.append(f'run {finished} has other metrics')
    if contents(Checkpoints(workdir / 'checkpoints'), STEPS) != expected[STEPS]:
      wrongs.append(f'run {finished} ends in another state')
    finished += 1
  return rows, wrongs, finished


def main():
  """Kill, look, and keep the outcome."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--kills', type=int, default=50)
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    folder, began = Path(name), time.perf_counter()
    (folder / 'tiny.py').write_text(EXPERIMENT)
    rows, wrongs, finished = trials(folder, arguments.kills)
    seconds = time.perf_counter() - began
  told = {
    'kills': len(rows),
    'runs_to_the_end': finished,
    'wrong_checkpoints': [row for row in rows if row['wrong']],
    'wrong_runs': wrongs,
    'by_phase': dict(collections.Counter(row['phase'] for row in rows)),
    'cut_off': dict(collections.Counter(row['unfinished'] for row in rows)),
    'seconds': seconds,
    'rows': [json.dumps(row) for row in rows],
  }
  wrong = len(told['wrong_checkpoints']) + len(wrongs)
  record.keep('survival/kills', f'{len(rows)} kill -9 of a training: {wrong} wrong checkpoints or runs', told)
  return 1 if wrong else 0


if __name__ == '__main__':
  sys.exit(main())
