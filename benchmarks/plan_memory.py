"""Compare planned with measured memory and speed on one GPU of this machine.

  python -m benchmarks.plan_memory [--topology=h100-1] [--rows=4,8,16,32]

GPT-2 124M, one optimizer step on --rows rows of 1,024 random tokens. Each plan and each measurement
runs in its own process, because peak memory is per process. Needs the extra `plan`. Writes
results/plan/memory.json.
"""

import argparse
import json
import os
import subprocess
import sys
import time

from benchmarks.plans import run_plan
from benchmarks.record import write_result
from gpt_jax.cluster import batches

EXPERIMENT = 'experiments/gpt2.py:bpe=gpt2'


def measure(rows, steps=10):
  """Train on this machine's device -> peak bytes, seconds per step."""
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
    model = plan.run_of(cfg, mesh)[0].model
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
  """Plan and measure one batch size -> row of the result."""
  arguments = [f'--config={EXPERIMENT}', f'--topology={topology}', '--nodecode']
  arguments += [f'--config.train.batch_size={rows}', '--config.train.accumulate=1']
  _, plan, _ = run_plan(arguments)
  done = subprocess.run(
    [sys.executable, '-m', 'benchmarks.plan_memory', f'--measure={rows}'],
    capture_output=True,
    text=True,
    env=os.environ | {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'},
  )
  measured = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
  planned, step = plan['train']['memory']['total'], plan['train'].get('estimate', {})
  row = {'rows': rows, 'planned_bytes': planned, 'measured': measured, 'error': done.stderr[-300:]}
  if measured:
    row |= {'ratio': planned / measured['bytes'], 'error': ''}
    row |= {name: step[name] / measured['seconds'] for name in ('bound', 'serial') if name in step}
  return row


def main():
  """Compare, print and write the result file."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--topology', default='h100-1')
  parser.add_argument('--rows', default='4,8,16,32')
  parser.add_argument(
    '--measure', type=int, default=0, help='measure this number of rows here and print the result'
  )
  arguments = parser.parse_args()
  if arguments.measure:
    print(json.dumps(measure(arguments.measure)))
    return
  rows = [compare(int(n), arguments.topology) for n in arguments.rows.split(',')]
  for row in rows:
    print(row)
  claim = 'Memory and time planned on a CPU over measured ones; bound and serial are estimates'
  write_result('plan/memory', claim, {'topology': arguments.topology, 'rows': rows})


if __name__ == '__main__':
  main()
