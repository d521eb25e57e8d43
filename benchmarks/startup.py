"""Time from the command to the first optimizer step: `python -m benchmarks.startup`.

Trains an experiment in a new process, first with an empty compilation cache, then with that cache, and
waits for the first line of metrics.jsonl. Also times the imports, in total and by package. Needs
GPT_JAX_DATA. Writes results/speed/startup.json.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import versus
from benchmarks.record import RESULTS

OUT = RESULTS / 'speed' / 'startup.json'
EXPERIMENT = 'experiments/shakespeare_char.py:runlocal'


def first_step(experiment, cache, workdir):
  """Seconds from the command to the first line of metrics; then kills the run."""
  command = [
    sys.executable,
    'launch.py',
    'train',
    f'--config={experiment}',
    f'--workdir={workdir}',
    '--config.log.every=1',
  ]
  environment = os.environ | {
    'JAX_COMPILATION_CACHE_DIR': str(cache),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '0',
  }
  start, metrics = time.perf_counter(), Path(workdir) / 'metrics.jsonl'
  with subprocess.Popen(
    command, cwd=versus.ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
  ) as process:
    while not (metrics.exists() and metrics.read_text().strip()):
      if process.poll() is not None:
        raise RuntimeError(f'the run ended before a step\nfix: {process.stderr.read()[-500:]}')
      time.sleep(0.02)
    seconds = time.perf_counter() - start
    process.kill()  # its programs are already in the cache
  return seconds


def time_imports(count=12):
  """Import launch and train -> (seconds, {package: ms} of the slowest packages)."""
  code = 'import launch, gpt_jax.train'
  start = time.perf_counter()
  subprocess.run([sys.executable, '-c', code], cwd=versus.ROOT, check=True)
  seconds = time.perf_counter() - start
  traced = subprocess.run(
    [sys.executable, '-X', 'importtime', '-c', code],
    cwd=versus.ROOT,
    check=True,
    capture_output=True,
    text=True,
  )
  lines = re.findall(r'import time:\s+(\d+) \|\s+(\d+) \| +(\S+)', traced.stderr)
  packages = {}
  for own, _, name in lines:
    package = name.partition('.')[0]
    packages[package] = packages.get(package, 0) + int(own) / 1000
  slowest = sorted(packages.items(), key=lambda pair: -pair[1])[:count]
  return seconds, {name: round(ms, 1) for name, ms in slowest}


def main():
  """Measure, write after each number, print."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--experiment', default=EXPERIMENT)
  parser.add_argument('--repeats', type=int, default=3, help='number of starts with a warm cache')
  parser.add_argument('--out', type=Path, default=OUT)
  arguments = parser.parse_args()
  rows = {}

  def save(**numbers):
    rows.update(numbers)
    print(json.dumps(numbers), flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    claim = 'seconds from the command to the first optimizer step'
    result = versus.result_content('startup', claim, {arguments.experiment: rows})
    arguments.out.write_text(json.dumps(result, indent=1) + '\n')

  seconds, slowest = time_imports()
  save(import_seconds=seconds, import_ms_by_package=slowest)
  with tempfile.TemporaryDirectory() as folder:
    start = lambda n: first_step(arguments.experiment, f'{folder}/cache', f'{folder}/run{n}')
    save(cold_seconds=start(0))
    warm = []
    for n in range(arguments.repeats):
      warm.append(start(n + 1))
      save(warm_seconds=warm)


if __name__ == '__main__':
  main()
