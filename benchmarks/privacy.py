"""Seconds and memory of a private step: `python -m benchmarks.privacy` (needs torch and opacus).

GPT-2's architecture with a head of its own (1.9M parameters by default), the same random tokens, AdamW. Ours:
the program of a plain run, and of a private one whose batch is full, by vmap and by ghost clipping, for each
number of units that are computed at once. Opacus: gradients of all units by its hooks, and by ghost clipping.
Each side is a process of its own; the turns of all sides alternate. Writes results/speed/privacy.json.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np

from benchmarks.record import write_result

CLIP, NOISE = 1.0, 1.0


def ours(sizes, micro, way=''):
  """Return one step of ours; micro: units at once, 0 for a plain step; way: row of gradients.GRADIENTS."""
  import jax

  from gpt_jax.cluster.batches import to_devices
  from gpt_jax.config import Config
  from gpt_jax.model import presets
  from gpt_jax.sharding import make_mesh
  from gpt_jax.step import gpt_program, language_objective
  from gpt_jax.training.privacy import gradients

  layers, width, heads, length, rows, vocab = sizes
  shape = dict(layers=layers, width=width, heads=heads, context=length, vocab=vocab, tied_head=False)
  mesh = make_mesh(Config().mesh)
  jax.sharding.set_mesh(mesh)
  objective, batch = language_objective(), tokens(sizes)
  batch['loss_mask_BT'] = np.ones((rows, length), np.float32)
  if micro:
    objective = gradients.private_objective(objective, CLIP, NOISE, rows, min(micro, rows), way)
    batch |= {'unit_weight_B': np.ones(rows, np.float32), 'noise_key_B2': np.ones((rows, 2), np.uint32)}
  program = gpt_program(Config(), presets.gpt2(**shape).resolved(), mesh, objective)
  state, batch = program.init(), to_devices(batch, mesh)

  def run():
    nonlocal state
    state, metrics = program.step(state, batch)
    jax.block_until_ready(metrics)

  return run


def opacus(sizes, mode):
  """Return one step of torch: mode '' without privacy, else a grad_sample_mode of opacus."""
  import torch
  from torch import nn

  from benchmarks import torch_gpt

  layers, width, heads, length, rows, vocab = sizes
  torch.manual_seed(0)

  class Peer(torch_gpt.GPT):
    """With modules that opacus differentiates for each unit: no tied head, positions looked up."""

    def __init__(self):
      super().__init__(layers, width, heads, length, vocab)
      self.head = nn.Linear(width, vocab, bias=False)

    def forward(self, token_ids_BT):
      x_BTD = self.embed(token_ids_BT)
      x_BTD = x_BTD + self.position(torch.arange(length).repeat(len(token_ids_BT), 1))
      for block in self.blocks:
        x_BTD = block(x_BTD)
      return self.head(self.final_norm(x_BTD)).flatten(0, 1)

  model, loss_of = Peer(), nn.CrossEntropyLoss()
  optimizer = torch_gpt.optimizer(model)
  ids_BT, targets_BT = (torch.from_numpy(x).long() for x in list(tokens(sizes).values()))
  if mode:
    from opacus import PrivacyEngine

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(ids_BT, targets_BT), batch_size=rows)
    private = PrivacyEngine(accountant='rdp').make_private(
      module=model,
      optimizer=optimizer,
      criterion=loss_of,
      data_loader=data,
      noise_multiplier=NOISE,
      max_grad_norm=CLIP,
      poisson_sampling=False,
      grad_sample_mode=mode,
    )
    model, optimizer = private[:2]
    loss_of = private[2] if mode == 'ghost' else loss_of

  def run():
    optimizer.zero_grad(set_to_none=True)
    shape = {'shape': (rows, length, vocab)} if mode == 'ghost' else {}
    loss_of(model(ids_BT), targets_BT.flatten(), **shape).backward()
    optimizer.step()

  return run


def tokens(sizes):
  """Return random tokens and targets."""
  *_, length, rows, vocab = sizes
  ids = np.random.default_rng(0).integers(0, vocab, (rows, length + 1), np.int32)
  return {'token_ids_BT': ids[:, :-1].copy(), 'target_ids_BT': ids[:, 1:].copy()}


SIDES = {
  'plain': lambda sizes: ours(sizes, 0),
  **{
    f'{way}, {m} at once': lambda sizes, m=m, way=way: ours(sizes, m, way)
    for way in ('vmap', 'ghost')
    for m in (1, 4, 16)
  },
  'torch': lambda sizes: opacus(sizes, ''),
  'opacus': lambda sizes: opacus(sizes, 'hooks'),
  'opacus, ghost clipping': lambda sizes: opacus(sizes, 'ghost'),
}


def serve(name, sizes):
  """Answer each line of standard input by the seconds of one step and the peak memory so far in bytes."""
  run = SIDES[name](sizes)
  run()
  run()
  print('ready', flush=True)
  for _ in sys.stdin:
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]), flush=True)


def main():
  """Measure all sides and write the result file."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--sizes', default='4,192,6,256,16,256', help='layers, width, heads, T, rows, ids')
  parser.add_argument('--tiny', action='store_true', help='only see that it runs: ours, small, not written')
  parser.add_argument('--turns', type=int, default=15)
  parser.add_argument('--sides', default='|'.join(SIDES))
  parser.add_argument('--name', default='speed/privacy')
  parser.add_argument('--serve', default='', help='measure this side here')
  arguments = parser.parse_args()
  if arguments.tiny:
    own = '|'.join(name for name in SIDES if not name.startswith(('torch', 'opacus')))
    parser.set_defaults(sizes='1,32,2,32,4,64', turns=2, sides=own)
    arguments = parser.parse_args()
  sizes = [int(n) for n in arguments.sizes.split(',')]
  if arguments.serve:
    serve(arguments.serve, sizes)
    return
  command = [sys.executable, '-m', 'benchmarks.privacy', f'--sizes={arguments.sizes}']
  pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
  names = arguments.sides.split('|')
  processes = {name: subprocess.Popen([*command, f'--serve={name}'], **pipes) for name in names}
  wait = lambda process: process.stdout.readline() or sys.exit('error: a side has ended; see its traceback')
  for process in processes.values():
    while wait(process).strip() != 'ready':  # libraries print, too
      pass
  measured = {name: [] for name in names}
  for _ in range(arguments.turns):
    for name, process in processes.items():
      print('step', file=process.stdin, flush=True)
      measured[name].append(json.loads(wait(process)))
  rows = []
  for name, process in processes.items():
    process.stdin.close()
    process.wait()
    seconds, peaks = zip(*measured[name], strict=True)
    ratio = {}
    if (base := 'torch' if name.startswith('opacus') else 'plain') in measured:
      ratio['times_plain'] = float(np.median(np.array(seconds) / [x for x, _ in measured[base]]))
    rows.append(
      {'name': name, 'seconds': float(np.median(seconds)), 'all': seconds, 'peak_bytes': max(peaks)} | ratio
    )
    print({key: value for key, value in rows[-1].items() if key != 'all'})
  claim = 'A private step (clipped gradient of each unit, noise) against a plain one, beside opacus'
  if not arguments.tiny:
    write_result(arguments.name, claim, {'sizes': sizes, 'rows': rows})


if __name__ == '__main__':
  main()
