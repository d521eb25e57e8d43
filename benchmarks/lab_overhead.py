"""What a study costs beside its runs: `python -m benchmarks.lab_overhead`.

Trains a study of tiny runs with `launch.py ablate` in one training process, then the same configs one after
another in one process, each with a new compilation cache, and divides the difference by the number of runs.
CPU time is that of all processes: it tells more where other work shares the machine. Also compares the time
of the optimizer steps with the estimate of the dry run. Writes results/ablations/lab_overhead.json.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.record import STUDIES, write_result
from gpt_jax import config, train
from gpt_jax.ablation import store
from gpt_jax.runs import compilation_cache, records

ROOT = Path(__file__).parents[1]
SEEDS = 2
EXPERIMENT = """
from gpt_jax import config as configs

def get_config(arg=''):
  config = configs.default()
  config.data.mixture = {'text': {'kind': 'synthetic', 'documents': 60}}
  config.model.update(layers=1, width=32, heads=2, context=64)
  config.train.update(steps=40, batch_size=16, eval_every=20, sample_every=40)
  return config
"""
STUDY = """
from gpt_jax.ablation.design import Study

def get_study(arg=''):
  return Study('{base}', {{'positions': ['rope', 'alibi', 'none']}}, seeds={seeds})
"""


def timed(cache, *command):
  """Run a command with a compilation cache -> (seconds, CPU seconds of it and its children)."""
  environment = os.environ | {compilation_cache.VARIABLE: str(cache)}
  environment['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = compilation_cache.MIN_COMPILE_SECONDS
  cache.mkdir(mode=compilation_cache.OWNER_ONLY)
  usage = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
  start, before = time.perf_counter(), usage()
  subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
  return time.perf_counter() - start, usage() - before


def train_plain(study, folder):
  """Train the configs of a study's runs one after another, in new folders."""
  for n, row in enumerate(store.read_runs(study)):
    section = records.read_json(Path(row['folder']) / 'config.json')
    section['data']['cache'] = f'{folder}/cache'
    train.train(config.build(config.Config, section), Path(folder) / f'run{n}')


def main():
  """Measure both, write, print."""
  if len(sys.argv) > 1:
    return train_plain(*sys.argv[1:])
  with tempfile.TemporaryDirectory() as folder:
    base, study, workdir = (Path(folder) / name for name in ('tiny.py', 'study.py', 'study'))
    base.write_text(EXPERIMENT)
    study.write_text(STUDY.format(base=base, seeds=SEEDS))
    ablate = 'ablate', f'--config={study}', f'--workdir={workdir}', '--workers=1'
    lab = timed(Path(folder) / 'compiled', 'launch.py', *ablate)
    again = '-m', 'benchmarks.lab_overhead', str(workdir), f'{folder}/plain'
    plain = timed(Path(folder) / 'compiled_plain', *again)
    rows, arms = store.read_runs(workdir), store.read_study(workdir)['arms']
  runs, names = len(rows), ('seconds', 'cpu_seconds')
  steps = sum(row['result']['seconds'] for row in rows)
  estimate = sum(arm['seconds_estimate'] * SEEDS for arm in arms)
  numbers = {'runs': runs, 'study': dict(zip(names, lab, strict=True))}
  numbers |= {'plain': dict(zip(names, plain, strict=True)), 'cores': os.cpu_count()}
  numbers['overhead_per_run'] = {name: (a - b) / runs for name, a, b in zip(names, lab, plain, strict=True)}
  numbers['load_average'] = os.getloadavg()[0]
  numbers['steps'] = {'seconds': steps, 'estimate': estimate, 'ratio': steps / estimate}
  write_result(f'{STUDIES.name}/lab_overhead', 'What a study costs beside its runs', numbers)
  print(numbers)
  return None


if __name__ == '__main__':
  main()
