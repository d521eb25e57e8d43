"""Compile plans for absent hardware: 7B on pods and hosts, 124M on single chips.

  python -m benchmarks.plans [--only=WORD] [--again]

Needs the extra `plan`. Writes results/plan/plans.json after each plan and skips existing plans unless
--again is set.
"""

import argparse
import json
import os
import subprocess
import sys
import time

from benchmarks import record

PATH = record.RESULTS / 'plan' / 'plans.json'
CLAIM = 'Compiled on a CPU for hardware that is not there; times are estimates'
SEVEN = ['--config=experiments/llama.py:size=7b', '--nodecode']
SMALL = ['--config=experiments/gpt2.py:bpe=gpt2', '--config.train.accumulate=64']
PLANS = {
  '7b v5e-256': ['--topology=v5e-256', *SEVEN],
  '124m v5e': ['--topology=v5e-1', *SMALL],
  '7b v6e-256': ['--topology=v6e-256', *SEVEN],
  '7b v5p-128': ['--topology=v5p-128', *SEVEN],
  '124m h200': ['--topology=h200-1', *SMALL],
  '7b h200-8': ['--topology=h200-8', *SEVEN],
  '124m too large for v5e': ['--topology=v5e-1', *SMALL[:1], '--nodecode'],
  '7b 4x8-h100': ['--topology=4x8-h100', *SEVEN],
  '124m v5p': ['--topology=v5p-2', *SMALL],
  '124m v4': ['--topology=v4-2', *SMALL],
  '124m v6e': ['--topology=v6e-1', *SMALL],
  '124m h100': ['--topology=h100-1', *SMALL],
  '124m a100': ['--topology=a100-1', *SMALL],
  '124m b200': ['--topology=b200-1', *SMALL],
  '7b 2xv5e-256': ['--topology=2xv5e-256', *SEVEN, '--config.train.batch_size=512'],
}


def run_plan(arguments):
  """Run `launch.py plan` -> (exit code, plan or {error: last lines}, seconds)."""
  start = time.perf_counter()
  done = subprocess.run(
    [sys.executable, 'launch.py', 'plan', *arguments, '--json'], capture_output=True, text=True
  )
  seconds = round(time.perf_counter() - start, 1)
  if done.stdout.startswith('{'):
    return done.returncode, json.loads(done.stdout), seconds
  return done.returncode, {'error': done.stderr[-600:]}, seconds


def write_result(name, claim, numbers):
  """Call record.write_result with jax on the CPU, so that it does not probe for other devices."""
  os.environ['JAX_PLATFORMS'] = 'cpu'
  record.write_result(name, claim, numbers)


def main():
  """Run the missing plans."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--only', default='', help='run plans whose names contain this')
  parser.add_argument('--again', action='store_true', help='also rerun existing plans')
  arguments = parser.parse_args()
  rows = json.loads(PATH.read_text())['numbers']['plans'] if PATH.exists() else {}
  for name, flags in PLANS.items():
    if arguments.only not in name or (name in rows and not arguments.again):
      continue
    code, plan, seconds = run_plan(flags)
    rows[name] = {
      'command': ' '.join(['launch.py plan', *flags]),
      'exit': code,
      'seconds': seconds,
      'plan': plan,
    }
    write_result('plan/plans', CLAIM, {'plans': rows})
    print(f'{name}: exit {code}, {seconds} s', flush=True)


if __name__ == '__main__':
  main()
