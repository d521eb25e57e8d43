"""SIGTERM to one of two processes: `python -m benchmarks.stops [--stops=20]`.

The training of kills.py, in two processes that gloo joins, with evaluations and samples between its
steps. At a random moment of any phase, from when signals are heeded on, one of the two processes is
sent SIGTERM. Both must end with exit code 75 after one step, which both name; its checkpoint must
hold, bit for bit, what a run that nobody touched had at that step; and the same command goes on, to
the same metrics and the same last state. To agree takes the processes some steps, here of
milliseconds: a signal after three quarters of them may come too late, and then counts for nothing;
one that came sooner and stopped nothing is wrong. Keeps results/survival/stops.json.
"""

import argparse
import collections
import contextlib
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import kills, record
from gpt_jax.cluster import bootstrap
from gpt_jax.runs import run_folder
from gpt_jax.training.checkpoint import Checkpoints

STEPS, EVERY = 240, 60
MORE = (
  f'--config.train.steps={STEPS}',
  f'--config.train.eval_every={EVERY}',
  f'--config.train.sample_every={EVERY}',
  '--config.train.eval_tokens=4096',
)
SHARE = 0.8  # of a run's seconds: signals come within them, or many would come when it is over
ALL = ('--config.checkpoint.every=1', '--config.checkpoint.keep_every=1')  # of the untouched run


def start(folder, name, *more):
  """The two processes of a training, with a log each."""
  job = (f'--coordinator=127.0.0.1:{bootstrap.free_port()}', '--processes=2')
  start_one = lambda i: kills.start(folder, name, *MORE, *more, *job, f'--process={i}', log=f'log{i}')
  return [start_one(i) for i in (0, 1)]


def heeds_signals(process):
  """Whether a process has a handler for SIGTERM by now."""
  status = Path(f'/proc/{process.pid}/status').read_text()
  caught = int(re.search(r'SigCgt:\s*(\w+)', status)[1], 16)
  return caught >> (signal.SIGTERM - 1) & 1


def phase(workdir, began):
  """The last event of this session so far, or 'start' before its first one."""
  with contextlib.suppress(FileNotFoundError):
    names = [event['event'] for event in run_folder.read_events(workdir)][began:]
    return names[-1] if names else 'start'
  return 'start'


def steps_done(workdir):
  """The last step that a run has logged."""
  lines = run_folder.read_metrics(workdir) if (workdir / 'metrics.jsonl').exists() else []
  return lines[-1]['step'] if lines else 0


def wait(processes):
  """-> their exit codes; who still lives after ten minutes is killed, and has -9."""
  end = time.monotonic() + 600
  for process in processes:
    try:
      process.wait(max(0.1, end - time.monotonic()))
    except subprocess.TimeoutExpired:
      process.kill()
  return [process.wait() for process in processes]


def stopped(folder, workdir, rng, seconds):
  """One session, sent SIGTERM at a random moment -> {phase, ...}, None if it had ended before."""
  began = len(run_folder.read_events(workdir)) if (workdir / 'events.jsonl').exists() else 0
  processes = start(folder, workdir.name)
  while not all(process.poll() is None and heeds_signals(process) for process in processes):
    time.sleep(0.01)
  victim = rng.randrange(2)
  with contextlib.suppress(subprocess.TimeoutExpired):
    processes[0].wait(rng.uniform(0, SHARE * seconds))
  if None not in [process.poll() for process in processes]:
    return None
  found = {'asked': victim, 'phase': phase(workdir, began), 'at': steps_done(workdir)}
  processes[victim].send_signal(signal.SIGTERM)
  codes = wait(processes)
  said = [re.findall(r'after step (\d+)\n', (folder / f'log{i}').read_text()) for i in (0, 1)]
  return found | {'codes': codes, 'said': said}


def ended(row):
  """Whether the run was over: after its last event a process heeds no signals."""
  fine = (0, -signal.SIGTERM) if row['phase'] == 'done' else (0,)
  return all(code in fine for code in row['codes'])


def examined(row, workdir, expected):
  """The row with the step of its checkpoint, and what is not as it should be."""
  step = Checkpoints(workdir / 'checkpoints').latest_good()
  wrongs = []
  if row['codes'] != [75, 75]:
    wrongs.append(f'exit codes {row["codes"]}')
  if row['said'] != [[str(step or 0)]] * 2:
    wrongs.append(f'the processes say {row["said"]}, the checkpoint {step}')
  if step and kills.contents(Checkpoints(workdir / 'checkpoints'), step) != expected[step]:
    wrongs.append('other values')
  return row | {'step': step or 0, 'wrong': ', '.join(wrongs)}


def trials(folder, stops, seed=0):
  """-> (one row a stop, rows of signals that came too late, wrongs of whole runs, their number)."""
  rng, rows, late, wrongs, finished = random.Random(seed), [], [], [], 0
  for name, more in (('whole', ALL), ('timed', ())):
    began = time.monotonic()
    if codes := [code for code in wait(start(folder, name, *more)) if code]:
      raise SystemExit(f'{codes}: {(folder / "log0").read_text()}')
    seconds = time.monotonic() - began
  checkpoints, lines = Checkpoints(folder / 'whole/checkpoints'), kills.metrics(folder / 'whole')
  expected = {step: kills.contents(checkpoints, step) for step in checkpoints.steps()}
  assert len(expected) == STEPS
  while len(rows) < stops or finished == 0:
    workdir, row = folder / f'run{finished}', None
    if len(rows) < stops:
      row = stopped(folder, workdir, rng, seconds)
    else:
      wait(start(folder, workdir.name))
    if row and not ended(row):
      rows.append(examined(row, workdir, expected))
      print(len(rows), rows[-1], flush=True)
      continue
    if row:
      late.append(row)
      wrongs += [f'{row} stopped nothing'] if row['at'] < 0.75 * STEPS else []
    if kills.metrics(workdir) != lines:
      wrongs.append(f'run {finished} has other metrics')
    if kills.contents(Checkpoints(workdir / 'checkpoints'), STEPS) != expected[STEPS]:
      wrongs.append(f'run {finished} ends in another state')
    finished += 1
  return rows, late, wrongs, finished


def main():
  """Stop, look, and keep the outcome."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--stops', type=int, default=20)
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    folder, began = Path(name), time.perf_counter()
    (folder / 'tiny.py').write_text(kills.EXPERIMENT)
    rows, late, wrongs, finished = trials(folder, arguments.stops)
    seconds = time.perf_counter() - began
  wrong_stops = [row for row in rows if row['wrong']]
  told = {
    'stops': len(rows),
    'processes': 2,
    'too_late': [json.dumps(row) for row in late],
    'runs_to_the_end': finished,
    'wrong_stops': wrong_stops,
    'wrong_runs': wrongs,
    'by_phase': dict(collections.Counter(row['phase'] for row in rows)),
    'seconds': seconds,
    'rows': [json.dumps(row) for row in rows],
  }
  wrong = len(wrong_stops) + len(wrongs)
  claim = f'{len(rows)} SIGTERM to one of two processes: {wrong} wrong stops or runs'
  record.keep('survival/stops', claim, told)
  return 1 if wrong else 0


if __name__ == '__main__':
  sys.exit(main())
