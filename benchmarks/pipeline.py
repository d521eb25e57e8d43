"""Compare the speed of the data pipeline with the train step: `python -m benchmarks.pipeline`.

For each experiment: tokens/s that its loader alone delivers to the device, and tokens/s that its
compiled step consumes. Needs GPT_JAX_DATA. Writes
results/speed/pipeline.json after each.
"""

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import versus
from benchmarks.record import RESULTS

OUT = RESULTS / 'speed' / 'pipeline.json'
EXPERIMENTS = ('experiments/shakespeare_char.py', 'experiments/mnist.py', 'experiments/demo.py')
CHUNKS = 5


def rate(call, tokens, seconds):
  """Median tokens/s of `call()` over CHUNKS, `seconds` in total."""
  call()
  start = time.perf_counter()
  call()
  many = max(1, round(seconds / CHUNKS / (time.perf_counter() - start)))
  rates = []
  for _ in range(CHUNKS):
    start = time.perf_counter()
    for _ in range(many):
      call()
    rates.append(many * tokens / (time.perf_counter() - start))
  return float(np.median(rates))


def measure(experiment, seconds):
  """Measure one experiment -> {delivered, consumed: tokens/s, ratio}."""
  import jax

  from gpt_jax import config, sharding
  from gpt_jax.cli import experiment_file
  from gpt_jax.cluster.batches import to_devices
  from gpt_jax.jobs.language_model import LanguageModelJob

  cfg = config.build(config.Config, experiment_file.load_config(experiment))
  mesh = sharding.make_mesh(cfg.mesh)
  jax.sharding.set_mesh(mesh)
  with tempfile.TemporaryDirectory() as folder:
    job = LanguageModelJob(cfg, Path(folder), mesh)
    tokens = cfg.train.batch_size * job.length
    next_batch = lambda: jax.block_until_ready(to_devices(next(job.loader), mesh))
    delivered = rate(next_batch, tokens, seconds)
    batches = itertools.cycle([next_batch() for _ in range(4)])
    state = job.program.init()

    def step():
      nonlocal state
      state, metrics = job.program.step(state, next(batches))
      jax.block_until_ready(metrics)

    consumed = rate(step, tokens, seconds)
    job.loader.close()
  return {'delivered': delivered, 'consumed': consumed, 'ratio': delivered / consumed}


def main():
  """Measure, write after each experiment, print."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--seconds', type=float, default=4)
  parser.add_argument('--out', type=Path, default=OUT)
  parser.add_argument('experiments', nargs='*', default=EXPERIMENTS)
  arguments = parser.parse_args()
  rows = {}
  for experiment in arguments.experiments:
    rows[experiment] = measure(experiment, arguments.seconds)
    print(experiment, json.dumps(rows[experiment]), flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    result = versus.result_content('pipeline', 'tokens/s delivered against tokens/s consumed', rows)
    arguments.out.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
  main()
