"""SIGTERM to one of two processes: `python -m benchmarks.stops [--stops=20]`.

The training run of kills.py in two processes (gloo), with evaluations and samples between steps. One
of the two processes gets SIGTERM at a random moment after the signal handlers are installed. Both must
exit with code 75 after the same step, which both print; its checkpoint must be bitwise equal to that
step of an undisturbed run; and the same command must resume to the same metrics and final state.
Agreement takes the processes a few steps: a signal in the last quarter of the steps may come too late
and is not counted; an earlier signal that stops nothing is a failure. Writes
results/survival/stops.json.
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
SHARE = 0.8  # signals come in this share of a run's duration, so that few come after its end
ALL = ('--config.checkpoint.every=1', '--config.checkpoint.keep_every=1')  # flags of the undisturbed run


def start(folder, name, *more):
  """Start the two processes of a training run, each with its own log."""
  job = (f'--coordinator=127.0.0.1:{bootstrap.free_port()}', '--processes=2')
  start_one = lambda i: kills.start(folder, name, *MORE, *more, *job, f'--process={i}', log=f'log{i}')
  return [start_one(i) for i in (0, 1)]


def handles_sigterm(process):
  """Whether a process has installed its SIGTERM handler."""
  status = Path(f'/proc/{process.pid}/status').read_text()
  caught = int(re.search(r'SigCgt:\s*(\w+)', status)[1], 16)
  return caught >> (signal.SIGTERM - 1) & 1


def phase(workdir, first_event):
  """Name of the last event of this session, or 'start' before the first."""
  with contextlib.suppress(FileNotFoundError):
    names = [event['event'] for event in run_folder.read_events(workdir)][first_event:]
    return names[-1] if names else 'start'
  return 'start'


def steps_done(workdir):
  """The last logged step of a run."""
  lines = run_folder.read_metrics(workdir) if (workdir / 'metrics.jsonl').exists() else []
  return lines[-1]['step'] if lines else 0


def wait(processes):
  """Wait ten minutes for the processes, then kill them -> exit codes (-9 if killed)."""
  end = time.monotonic() + 600
  for process in processes:
    try:
      process.wait(max(0.1, end - time.monotonic()))
    except subprocess.TimeoutExpired:
      process.kill()
  return [process.wait() for process in processes]


def stop_at_random(folder, workdir, rng, seconds):
  """Send SIGTERM to a session at a random moment -> {phase, ...}; None if it had already ended."""
  first_event = len(run_folder.read_events(workdir)) if (workdir / 'events.jsonl').exists() else 0
  processes = start(folder, workdir.name)
  while not all(process.poll() is None and handles_sigterm(process) for process in processes):
    time.sleep(0.01)
  victim = rng.randrange(2)
  with contextlib.suppress(subprocess.TimeoutExpired):
    processes[0].wait(rng.uniform(0, SHARE * seconds))
  if None not in [process.poll() for process in processes]:
    return None
  row = {'asked': victim, 'phase': phase(workdir, first_event), 'at': steps_done(workdir)}
  processes[victim].send_signal(signal.SIGTERM)
  codes = wait(processes)
  steps = [re.findall(r'after step (\d+)\n', (folder / f'log{i}').read_text()) for i in (0, 1)]
  return row | {'codes': codes, 'printed_steps': steps}


def came_too_late(row):
  """Whether the run had finished: after its last event a process handles no signals."""
  fine = (0, -signal.SIGTERM) if row['phase'] == 'done' else (0,)
  return all(code in fine for code in row['codes'])


def check_stop(row, workdir, expected):
  """Add the step of the newest checkpoint and the failures to the row."""
  step = Checkpoints(workdir / 'checkpoints').latest_good()
  failures = []
  if row['codes'] != [75, 75]:
    failures.append(f'exit codes {row["codes"]}')
  if row['printed_steps'] != [[str(step or 0)]] * 2:
    failures.append(f'the processes print step {row["printed_steps"]}, the checkpoint has step {step}')
  if step and kills.checkpoint_contents(Checkpoints(workdir / 'checkpoints'), step) != expected[step]:
    failures.append('other values')
  return row | {'step': step or 0, 'wrong': ', '.join(failures)}


def trials(folder, stops, seed=0):
  """Run until `stops` stops -> (rows, rows of late signals, failures of finished runs, their number)."""
  rng, rows, late, failures, finished = random.Random(seed), [], [], [], 0
  for name, more in (('whole', ALL), ('timed', ())):
    start_time = time.monotonic()
    if codes := [code for code in wait(start(folder, name, *more)) if code]:
      raise SystemExit(f'{codes}: {(folder / "log0").read_text()}')
    seconds = time.monotonic() - start_time
  checkpoints, lines = Checkpoints(folder / 'whole/checkpoints'), kills.metrics(folder / 'whole')
  expected = {step: kills.checkpoint_contents(checkpoints, step) for step in checkpoints.steps()}
  assert len(expected) == STEPS
  while len(rows) < stops or finished == 0:
    workdir, row = folder / f'run{finished}', None
    if len(rows) < stops:
      row = stop_at_random(folder, workdir, rng, seconds)
    else:
      wait(start(folder, workdir.name))
    if row and not came_too_late(row):
      rows.append(check_stop(row, workdir, expected))
      print(len(rows), rows[-1], flush=True)
      continue
    if row:
      late.append(row)
      failures += [f'{row} stopped nothing'] if row['at'] < 0.75 * STEPS else []
    if kills.metrics(workdir) != lines:
      failures.append(f'run {finished} has other metrics')
    if kills.checkpoint_contents(Checkpoints(workdir / 'checkpoints'), STEPS) != expected[STEPS]:
      failures.append(f'run {finished} ends in another state')
    finished += 1
  return rows, late, failures, finished


def main():
  """Run the trials and write the result file."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--stops', type=int, default=20)
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    folder, start_time = Path(name), time.perf_counter()
    (folder / 'tiny.py').write_text(kills.EXPERIMENT)
    rows, late, failures, finished = trials(folder, arguments.stops)
    seconds = time.perf_counter() - start_time
  wrong_stops = [row for row in rows if row['wrong']]
  numbers = {
    'stops': len(rows),
    'processes': 2,
    'too_late': [json.dumps(row) for row in late],
    'runs_to_the_end': finished,
    'wrong_stops': wrong_stops,
    'wrong_runs': failures,
    'by_phase': dict(collections.Counter(row['phase'] for row in rows)),
    'seconds': seconds,
    'rows': [json.dumps(row) for row in rows],
  }
  wrong = len(wrong_stops) + len(failures)
  claim = f'{len(rows)} SIGTERM to one of two processes: {wrong} wrong stops or runs'
  record.write_result('survival/stops', claim, numbers)
  return 1 if wrong else 0


if __name__ == '__main__':
  sys.exit(main())
