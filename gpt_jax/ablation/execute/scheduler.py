"""Which way of training several runs is the fastest here, by trying each for some seconds.

On a GPU small models leave room for many replicas in one step; on a CPU one process a core usually
wins, because a small model's step does not fill two. What is tried is trained in a folder that is
deleted afterwards, so that no run of the study is timed under two regimes; its compiled programs
are kept for the runs.
"""

import contextlib
import itertools
import math
import shutil
import time
from pathlib import Path

from gpt_jax.ablation.execute.pool import Pool, cores, split_machine
from gpt_jax.runs import records

WORTH = 600.0  # seconds of steps that are left, from which on measuring pays
SECONDS = 8.0  # timed of each way, after its first interval of log lines
PATIENCE = 120.0  # seconds that a way gets for starting, compiling and its first log lines
REPLICAS = 8  # most runs in one step; a worker takes fewer where memory says so
ALONE = {'how': 'alone', 'workers': 1, 'replicas': 1}


def accelerators():
  """How many accelerators this process sees; 0 on a CPU."""
  import jax

  return 0 if jax.default_backend() == 'cpu' else jax.local_device_count()


def choose_schedule(workdir, left, workers, should_stop, say):
  """How to train these tasks -> {how, workers, replicas, ...}, None if asked to stop.

  What was measured on this machine before is in study.json and is taken from there.
  workers: processes at once, as the user wants; 0 = measure.
  """
  choices = candidates(left)
  if workers or len(choices) == 1:
    return default_schedule(left, workers)
  machine = f'{len(cores())} cores, {accelerators()} accelerators'
  study = records.read_json(workdir / 'study.json')
  known = study.get('schedule', {})
  if known.get('machine') == machine:
    return known
  if (seconds := remaining_seconds(study, left)) < WORTH:
    chosen = default_schedule(left)
    say(f'{describe(chosen)}: with {seconds:.0f} s of steps left, not measured')
    return chosen
  rates = {}
  for choice in choices:
    say(f'measuring: {describe(choice)}')
    rates[choice['how']] = measure(workdir, left, choice, should_stop)
    if should_stop():
      return None
  best = max(choices, key=lambda choice: rates[choice['how']])
  if not rates[best['how']]:
    say(f'no way could be measured; taken: {describe(best)}')
    return best
  per_hour = {how: round(3600 * rate, 2) for how, rate in rates.items()}
  chosen = best | {'machine': machine, 'runs_per_hour': per_hour}
  study = records.read_json(workdir / 'study.json') | {'schedule': chosen}
  records.write_json(workdir / 'study.json', study)
  pace = ', '.join(f'{how} {rate:.4g}' for how, rate in per_hour.items())
  say(f'chosen: {describe(best)} (runs an hour: {pace})')
  return chosen


def default_schedule(left, workers=0):
  """The way that usually is the fastest, or with as many processes as the user wants."""
  if workers:
    return ALONE | ({'how': 'process', 'workers': workers} if workers > 1 else {})
  choices, how = candidates(left), 'replicas' if accelerators() else 'process'
  return next((choice for choice in choices if choice['how'] == how), choices[0])


def remaining_seconds(study, left):
  """Seconds of steps of these tasks one after another, as the proof of the study estimates."""
  each = {arm['name']: arm.get('seconds_estimate') for arm in study.get('arms', ())}
  known = [each.get(task.arm) for task in left]
  return math.inf if None in known else sum(known)


def describe(choice):
  """A way of training in words."""
  return {
    'alone': 'one run at a time',
    'process': f'{choice["workers"]} processes at once',
    'replicas': f'up to {choice["replicas"]} runs in one step',
  }[choice['how']]


def candidates(left):
  """The ways that are worth a try for these tasks, at least one."""
  devices = accelerators()
  each = devices or len(cores())  # processes that have something of their own
  if any(uses_several_devices(task.config['mesh']) for task in left):
    each = 1
  several = min(each, len(left))
  found = [{'how': 'process', 'workers': several, 'replicas': 1}] if several > 1 else []
  if not devices or several == 1:
    found.insert(0, ALONE)
  counts = {}
  for task in left:
    counts[task.program] = counts.get(task.program, 0) + 1
  if max(counts.values()) > 1:
    replicas = min(max(counts.values()), REPLICAS)
    found.append({'how': 'replicas', 'workers': devices or 1, 'replicas': replicas})
  return found[-1:] if len(left) == 1 else found


def uses_several_devices(mesh):
  """Whether a run wants more than one device."""
  return bool(mesh['preset']) or any(size > 1 for size in mesh.values() if isinstance(size, int))


def split_for(choice, jobs):
  """The workers' shares of the machine."""
  return split_machine(min(choice['workers'], max(jobs, 1)), accelerators())


def measure(workdir, left, choice, should_stop):
  """Runs a second of one way, 0.0 if it does not work. Trains in a folder that is deleted.

  All ways train the same program, of which most runs are: others may be larger.
  """
  place = Path(workdir) / '.calibration'
  programs = [task.program for task in left]
  most = max(programs, key=programs.count)
  same = [task for task in left if task.program == most]
  count = choice['replicas'] if choice['replicas'] > 1 else choice['workers']
  chosen = list(itertools.islice(itertools.cycle(same), count))
  folders = [place / f'run{k}' for k in range(len(chosen))]
  jobs = [{'configs': [t.config], 'folders': [f]} for t, f in zip(chosen, folders, strict=True)]
  if choice['replicas'] > 1:
    jobs = [{'configs': [task.config for task in chosen], 'folders': folders}]
  shutil.rmtree(place, ignore_errors=True)
  try:
    with Pool(workdir, split_for(choice, len(jobs))) as pool:
      for worker, job in zip(pool.idle(len(jobs)), jobs, strict=True):
        worker.give(job)
      wait_until_timed(pool, folders, should_stop)
      pool.kill()
    return sum(runs_per_second(folder, task.config) for folder, task in zip(folders, chosen, strict=True))
  finally:
    shutil.rmtree(place, ignore_errors=True)


def wait_until_timed(pool, folders, should_stop):
  """Wait until each run has been timed for long enough, or nothing more will come."""
  end = time.monotonic() + PATIENCE
  while not should_stop() and time.monotonic() < end and pool.busy():
    if event := pool.next():
      event[0].job = None  # done, failed or dead: there is no more to see
    times = [[line['time'] for line in logged(folder)] for folder in folders]
    if all(len(seen) > 2 and seen[-1] - seen[0] > SECONDS for seen in times):
      return


def logged(folder):
  """Lines of training metrics that a run has written so far."""
  with contextlib.suppress(ValueError, OSError):
    lines = records.read_lines(folder / 'metrics.jsonl')
    return [line for line in lines if 'step_seconds' in line]
  return []


def runs_per_second(folder, config):
  """Runs a second: whole runs, with what evaluation and samples fell into the time."""
  lines = logged(folder)
  if len(lines) < 2 or lines[-1]['time'] <= lines[0]['time']:
    return 0.0
  steps = lines[-1]['step'] - lines[0]['step']
  return steps / (lines[-1]['time'] - lines[0]['time']) / config['train']['steps']
