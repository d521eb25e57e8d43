"""Memory and speed as planned beside memory and speed as measured, on one GPU of this machine.

  python -m benchmarks.plan_memory [--topology=h100-1] [--rows=4,8,16,32]

GPT-2 of 124M parameters, one optimizer step of so many rows of 1,024 random tokens. Each plan and
each measurement is a process of its own: a device's peak is of its process. Needs the packages of
the extra `plan`. Keeps results/plan/memory.json.
"""

import argparse
import json
import os
import subprocess
import sys
import time

from benchmarks.plans import made
from benchmarks.record import keep
from gpt_jax.cluster import batches

EXPERIMENT = 'experiments/gpt2.py:bpe=gpt2'


def measure(rows, steps=10):
  """Train `rows` rows for some steps on this machine's device -> peak bytes, seconds a step."""
  import dataclasses

  import jax
  import numpy as np

  from gpt_jax import config, sharding
  from gpt_jax.cli import experiment_file
  from gpt_jax.plan import plan
  from gpt_jax.runs import hardware
  from gpt_jax.step import gpt_program

  cfg = config.build(config.Config, experiment_file.load_config(EXPERIMENT))
  cfg = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, batch_size=rows, accumulate=1))
  mesh = sharding.make_mesh(cfg.mesh, jax.devices()[:1])
  with jax.set_mesh(mesh):
    model, _ = plan.model_config(cfg)
    program = gpt_program(cfg, model, mesh)
    ids_BT = np.random.default_rng(0).integers(0, model.vocab, (rows, model.context + 1), np.int32)
    batch = {'token_ids_BT': ids_BT[:, :-1], 'target_ids_BT': ids_BT[:, 1:]}
    batch['loss_mask_BT'] = np.ones(batch['token_ids_BT'].shape, np.float32)
    batch, state = batches.to_devices(batch, mesh), program.init()
    for step in range(steps + 2):
      if step == 2:
        jax.block_until_ready(state)
        start = time.perf_counter()
      state, _ = program.step(state, batch)
    jax.block_until_ready(state)
  seconds = (time.perf_counter() - start) / steps
  return {'bytes': hardware.memory_gib() * 2**30, 'seconds': seconds, 'device': hardware.name()}


def compare(rows, topology):
  """One row of the result."""
  words = [f'--config={EXPERIMENT}', f'--topology={topology}', '--nodecode']
  words += [f'--config.train.batch_size={rows}', '--config.train.accumulate=1']
  _, plan, _ = made(words)
  done = subprocess.run(
    [sys.executable, '-m', 'benchmarks.plan_memory', f'--measure={rows}'],
    capture_output=True,
    text=True,
    env=os.environ | {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'},
  )
  found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
  planned, step = plan['train']['memory']['total'], plan['train'].get('estimate', {})
  row = {'rows': rows, 'planned_bytes': planned, 'measured': found, 'error': done.stderr[-300:]}
  if found:
    row |= {'ratio': planned / found['bytes'], 'error': ''}
    row |= {name: step[name] / found['seconds'] for name in ('bound', 'serial') if name in step}
  return row


def main():
  """Compare, print and keep."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--topology', default='h100-1')
  parser.add_argument('--rows', default='4,8,16,32')
  parser.add_argument('--measure', type=int, default=0, help='measure so many rows here, print it')
  arguments = parser.parse_args()
  if arguments.measure:
    print(json.dumps(measure(arguments.measure)))
    return
  rows = [compare(int(n), arguments.topology) for n in arguments.rows.split(',')]
  for row in rows:
    print(row)
  claim = 'Memory and time as planned on a CPU over those measured; bound and serial are estimates'
  keep('plan/memory', claim, {'topology': arguments.topology, 'rows': rows})


if __name__ == '__main__':
  main()
