"""kill -9 at random moments: `python -m benchmarks.kills [--kills=50]`.

A small GPT with dropout saves a checkpoint every sixth step and is killed at a random moment: in four
of five trials during training, else at any time after the process starts. After each kill the newest
good checkpoint must be bitwise equal to that step of an undisturbed run; then the same command
resumes. A finished run must have the metrics of the undisturbed run, each step once, and its final
state; then a new run starts. Writes results/survival/kills.json.
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
  """Start a training process in its own run folder, with a shared compilation cache."""
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': str(folder / 'compiled'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'PYTHONUNBUFFERED': '1',
  }
  arguments = ['train', f'--config={folder / "tiny.py"}', f'--workdir={folder / name}', *more]
  with open(folder / log, 'wb') as file:
    return subprocess.Popen(
      [sys.executable, str(ROOT / 'launch.py'), *arguments],
      cwd=ROOT,
      env=environment,
      stdout=file,
      stderr=subprocess.STDOUT,
    )


def checkpoint_contents(checkpoints, step):
  """Digest of all arrays of a checkpoint, and the index of the next batch."""
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
  """All metric lines without the fields that depend on time."""
  return [{k: v for k, v in x.items() if k not in TIMED} for x in run_folder.read_metrics(workdir)]


def kill_at_random(process, log, rng):
  """Kill a process at a random moment -> (phase, whether it had already ended)."""
  anywhere = rng.random() < 0.2
  while not anywhere and b'loss' not in log.read_bytes() and process.poll() is None:
    time.sleep(0.01)
  with contextlib.suppress(subprocess.TimeoutExpired):
    process.wait(rng.uniform(0, 6.0 if anywhere else 1.5))
  ended = process.poll() is not None
  process.send_signal(signal.SIGKILL)
  process.wait()
  return 'anywhere' if anywhere else 'training', ended


def check_checkpoint(workdir, expected):
  """Check the newest checkpoint after a kill -> {step, wrong: cause or '', unfinished: work cut off}."""
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
    same = checkpoint_contents(checkpoints, step) == expected[step]
    return {'step': step, 'wrong': '' if same else 'other values', 'unfinished': unfinished}
  except Exception as error:  # any error counts as unreadable
    return {'step': -1, 'wrong': f'{type(error).__name__}: {error}', 'unfinished': unfinished}


def train_reference(folder):
  """Train undisturbed and keep every checkpoint -> ({step: contents}, metrics)."""
  process = start(folder, 'whole', '--config.checkpoint.keep_every=6')
  if process.wait():
    raise SystemExit((folder / 'log').read_text())
  checkpoints = Checkpoints(folder / 'whole/checkpoints')
  expected = {step: checkpoint_contents(checkpoints, step) for step in checkpoints.steps()}
  assert len(expected) == STEPS // 6
  return expected, metrics(folder / 'whole')


def trials(folder, kills, seed=0):
  """Run until `kills` kills -> (one row per kill, failures of finished runs, number of finished runs)."""
  rng, rows, failures, finished = random.Random(seed), [], [], 0
  expected, lines = train_reference(folder)
  while len(rows) < kills or finished == 0:
    workdir = folder / f'run{finished}'
    process = start(folder, workdir.name)
    if len(rows) < kills:
      phase, ended = kill_at_random(process, folder / 'log', rng)
    else:
      process.wait()
      ended = True
    if not ended:
      rows.append({'phase': phase} | check_checkpoint(workdir, expected))
      print(len(rows), rows[-1], flush=True)
      continue
    if process.returncode:
      failures.append(f'run {finished} ended with exit code {process.returncode}')
    if metrics(workdir) != lines:
      failures.append(f'run {finished} has other metrics')
    if checkpoint_contents(Checkpoints(workdir / 'checkpoints'), STEPS) != expected[STEPS]:
      failures.append(f'run {finished} ends in another state')
    finished += 1
  return rows, failures, finished


def main():
  """Run the trials and write the result file."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--kills', type=int, default=50)
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    folder, start_time = Path(name), time.perf_counter()
    (folder / 'tiny.py').write_text(EXPERIMENT)
    rows, failures, finished = trials(folder, arguments.kills)
    seconds = time.perf_counter() - start_time
  numbers = {
    'kills': len(rows),
    'runs_to_the_end': finished,
    'wrong_checkpoints': [row for row in rows if row['wrong']],
    'wrong_runs': failures,
    'by_phase': dict(collections.Counter(row['phase'] for row in rows)),
    'cut_off': dict(collections.Counter(row['unfinished'] for row in rows)),
    'seconds': seconds,
    'rows': [json.dumps(row) for row in rows],
  }
  wrong = len(numbers['wrong_checkpoints']) + len(failures)
  record.write_result(
    'survival/kills', f'{len(rows)} kill -9 of a training: {wrong} wrong checkpoints or runs', numbers
  )
  return 1 if wrong else 0


if __name__ == '__main__':
  sys.exit(main())
