"""Versions and hardware of this machine, and whether one training step runs on it."""

import shutil
import time

import jax
import numpy as np

from gpt_jax.cluster.batches import to_devices
from gpt_jax.config import Config
from gpt_jax.model.config import ModelConfig
from gpt_jax.runs import hardware, provenance
from gpt_jax.runs.loggers import say
from gpt_jax.sharding import make_mesh
from gpt_jax.step import gpt_program


def run_checks():
  """Print one line per check -> the number of failed checks."""
  for name, value in provenance.versions(hardware.name()).items():
    say(f'{name:18} {value}')
  peak, source = hardware.peak_flops()
  say(f'{"processes":18} {jax.process_count()}')
  say(f'{"peak":18} {peak / 1e12:.2f} TFLOP/s a device ({source})')
  say(f'{"free disk here":18} {shutil.disk_usage(".").free / 2**30:.1f} GiB')
  try:
    loss, seconds = one_step()
  except Exception as e:  # whatever a broken driver raises is the finding
    say(f'{"one step":18} FAILS: {type(e).__name__}: {e}')
    return 1
  say(f'{"one step":18} loss {loss:.3f}, {seconds:.1f} s with compilation')
  return 0


def one_step():
  """Train a tiny model for one step on all devices -> (loss, seconds)."""
  cfg, start = Config(), time.perf_counter()
  model = ModelConfig(layers=2, width=32, heads=2, vocab=128, context=32).resolved()
  mesh = make_mesh(cfg.mesh)
  ids_BT = np.random.default_rng(0).integers(0, 128, (jax.device_count(), 33), np.int32)
  batch = {'token_ids_BT': ids_BT[:, :-1], 'target_ids_BT': ids_BT[:, 1:]}
  batch['loss_mask_BT'] = np.ones(batch['token_ids_BT'].shape, np.float32)
  with jax.set_mesh(mesh):
    program = gpt_program(cfg, model, mesh)
    _, metrics = program.step(program.init(), to_devices(batch, mesh))
  return float(metrics['loss']), time.perf_counter() - start
