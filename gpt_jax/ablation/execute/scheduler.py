"""Scheduler: choose the fastest way to train several runs, by trying each for some seconds.

On a GPU small models leave room for many replicas in one step; on a CPU one process per core usually wins.
Trials train in a folder that is deleted afterwards, so that no run of the study is timed under two regimes;
their compiled programs are kept for the runs.
"""

import collections
import contextlib
import itertools
import math
import shutil
import time
from pathlib import Path

from gpt_jax.ablation.execute.pool import Pool, cores, split_machine
from gpt_jax.runs import records

WORTHWHILE = 600.0  # seconds of remaining steps from which on measuring pays
SECONDS = 8.0  # timed of each way, after its first logged steps
PATIENCE = 120.0  # seconds for starting, compiling and the first logged steps
MAX_REPLICAS = 8  # runs in one step; a worker takes fewer if memory is short
ALONE = {'how': 'alone', 'workers': 1, 'replicas': 1}


def accelerators():
  """Number of accelerators that this process sees; 0 on a CPU."""
  import jax

  return 0 if jax.default_backend() == 'cpu' else jax.local_device_count()


def choose_schedule(workdir, tasks, workers, should_stop, say):
  """Choose how to train these tasks -> {how, workers, replicas, ...}, None if stopped.

  A schedule measured on this machine before is taken from study.json. workers: number of processes that the
  user wants; 0 = measure.
  """
  choices = candidates(tasks)
  if workers or len(choices) == 1:
    return default_schedule(tasks, workers)
  machine = f'{len(cores())} cores, {accelerators()} accelerators'
  study = records.read_json(workdir / 'study.json')
  stored = study.get('schedule', {})
  if stored.get('machine') == machine:
    return stored
  by_arm = {arm['name']: arm.get('seconds_estimate') for arm in study.get('arms', ())}
  estimates = [by_arm.get(task.arm) for task in tasks]
  seconds = math.inf if None in estimates else sum(estimates)  # of steps one after another
  if seconds < WORTHWHILE:
    choice = default_schedule(tasks)
    say(f'{describe(choice)}: with {seconds:.0f} s of steps left, not measured')
    return choice
  rates = {}
  for choice in choices:
    say(f'measuring: {describe(choice)}')
    rates[choice['how']] = measure(workdir, tasks, choice, should_stop)
    if should_stop():
      return None
  best = max(choices, key=lambda choice: rates[choice['how']])
  if not rates[best['how']]:
    say(f'no way could be measured; taken: {describe(best)}')
    return best
  per_hour = {how: round(3600 * rate, 2) for how, rate in rates.items()}
  schedule = best | {'machine': machine, 'runs_per_hour': per_hour}
  study = records.read_json(workdir / 'study.json') | {'schedule': schedule}
  records.write_json(workdir / 'study.json', study)
  listed = ', '.join(f'{how} {rate:.4g}' for how, rate in per_hour.items())
  say(f'chosen: {describe(best)} (runs an hour: {listed})')
  return schedule


def default_schedule(tasks, workers=0):
  """The usually fastest way, or as many processes as the user wants."""
  if workers:
    return ALONE | ({'how': 'process', 'workers': workers} if workers > 1 else {})
  choices, how = candidates(tasks), 'replicas' if accelerators() else 'process'
  return next((choice for choice in choices if choice['how'] == how), choices[0])


# ------------------------------------------------------------------------------- ways of execution


WAYS = {
  'alone': 'one run at a time',
  'process': '{workers} processes at once',
  'replicas': 'up to {replicas} runs in one step',
}


def describe(schedule):
  """A schedule in words."""
  return WAYS[schedule['how']].format(**schedule)


def candidates(tasks):
  """The schedules that are worth a try for these tasks, at least one."""
  devices, meshes = accelerators(), [task.config['mesh'] for task in tasks]
  processes = min(devices or len(cores()), len(tasks))  # that would have a device or core of their own
  if any(mesh['preset'] or any(isinstance(n, int) and n > 1 for n in mesh.values()) for mesh in meshes):
    processes = 1
  largest = max(collections.Counter(task.program for task in tasks).values())
  sizes = []
  if not devices or processes == 1:
    sizes.append(('alone', 1, 1))
  if processes > 1:
    sizes.append(('process', processes, 1))
  if largest > 1:
    sizes.append(('replicas', devices or 1, min(largest, MAX_REPLICAS)))
  return [{'how': how, 'workers': workers, 'replicas': runs} for how, workers, runs in sizes]


def split_for(choice, jobs):
  """The workers' parts of the machine."""
  return split_machine(min(choice['workers'], max(jobs, 1)), accelerators())


# ------------------------------------------------------------------------------------- measurement


def measure(workdir, tasks, choice, should_stop):
  """Runs per second of a schedule, 0.0 if it does not work. Trains in a folder that is deleted.

  All schedules train the program that most runs have: others may be larger.
  """
  folder = Path(workdir) / '.calibration'
  [(program, _)] = collections.Counter(task.program for task in tasks).most_common(1)
  configs = itertools.cycle(task.config for task in tasks if task.program == program)
  together = choice['replicas'] > 1
  runs = [(next(configs), folder / f'run{k}') for k in range(choice['replicas' if together else 'workers'])]
  jobs = [runs] if together else [[run] for run in runs]
  shutil.rmtree(folder, ignore_errors=True)
  try:
    with Pool(workdir, split_for(choice, len(jobs))) as pool:
      for worker, job in zip(pool.idle(len(jobs)), jobs, strict=True):
        worker.send(*zip(*job, strict=True), tasks=job)
      wait_until_timed(pool, [run_folder for _, run_folder in runs], should_stop)
      pool.kill()
    return sum(runs_per_second(run_folder, config) for config, run_folder in runs)
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def wait_until_timed(pool, folders, should_stop):
  """Wait until each run has been timed for long enough, or all have ended."""
  end = time.monotonic() + PATIENCE
  while not should_stop() and time.monotonic() < end and pool.busy():
    if event := pool.next_event():
      event[0].tasks = None  # done, failed or dead
    times = [[line['time'] for line in _step_lines(folder)] for folder in folders]
    if all(len(logged) > 2 and logged[-1] - logged[0] > SECONDS for logged in times):
      return


def _step_lines(folder):
  """Lines of training metrics that a run has written so far."""
  with contextlib.suppress(ValueError, OSError):
    lines = records.read_lines(folder / 'metrics.jsonl')
    return [line for line in lines if 'step_seconds' in line]
  return []


def runs_per_second(folder, config):
  """Whole runs per second at the logged pace, including evaluation and samples in that time."""
  lines = _step_lines(folder)
  if len(lines) < 2 or lines[-1]['time'] <= lines[0]['time']:
    return 0.0
  steps = lines[-1]['step'] - lines[0]['step']
  return steps / (lines[-1]['time'] - lines[0]['time']) / config['train']['steps']
