"""Measure adapters against full fine-tuning and against peft.

  python -m benchmarks.adapters [--source=FOLDER] [--runs=8] [--steps=10] [--turns=3]

Each side trains the same weights (float32; default: GPT-2 124M with random values) on the same random ids, in
a process of its own, in turns. `full` trains all parameters, `lora` adapters of rank 8 on every matrix of a
block, `lora x R` R such runs in one vmapped step, as `ablate` trains seeds, `peft` the adapters of peft and
transformers with AdamW. Times are medians of a step without the first, which compiles; peaks are ru_maxrss.
`state` and `temporaries` are XLA's: parameters, moments and base; activations and gradients. First losses are
equal on all sides. Writes results/speed/adapters.json.
"""

import argparse
import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import record

RANK, ALPHA, ROWS, LENGTH = 8, 16, 2, 256
PEFT_TARGETS = ('c_attn', 'attn.c_proj', 'c_fc', 'mlp.c_proj')


def token_ids(vocab, runs=1):
  """Random ids [runs, ROWS, LENGTH + 1]."""
  return np.random.default_rng(0).integers(0, vocab, (runs, ROWS, LENGTH + 1), dtype=np.int32)


def ours(source, rank, runs):
  """Our program -> (one step, which returns the loss of the first run; facts)."""
  import jax
  import jax.numpy as jnp

  from gpt_jax import config, step
  from gpt_jax.interop import huggingface
  from gpt_jax.model import adapters
  from gpt_jax.sharding import make_mesh
  from gpt_jax.training import checkpoint

  cfg = config.Config()
  cfg = dataclasses.replace(cfg, adapter=dataclasses.replace(cfg.adapter, rank=rank, alpha=float(ALPHA)))
  mesh = make_mesh(cfg.mesh, jax.devices()[:1])
  jax.sharding.set_mesh(mesh)
  model_cfg, model, _ = huggingface.import_model(source, mesh)
  program = step.gpt_program(cfg, model_cfg.resolved(), mesh)
  state = program.init()
  if rank:
    frozen = adapters.take_base(model, checkpoint.with_shardings(program.abstract.frozen, mesh))
    state = state._replace(frozen=frozen)
  else:
    state = state._replace(model=model)
  stack = lambda x: jnp.broadcast_to(x[None], (runs, *x.shape)).copy()
  state = jax.tree.map(stack, state._replace(frozen=None))._replace(frozen=state.frozen)
  axes = jax.tree.map(lambda _: 0, state._replace(frozen=None))
  fn = jax.jit(jax.vmap(program.pure, (axes, 0), (axes, 0)), donate_argnums=0)
  ids = token_ids(model_cfg.vocab, runs)
  batch = dict(token_ids_BT=ids[..., :-1], target_ids_BT=ids[..., 1:])
  batch |= dict(loss_mask_BT=np.ones(batch['token_ids_BT'].shape, np.float32))
  compiled = fn.lower(state, batch).compile()
  stats = compiled.memory_analysis()
  size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
  facts = {
    'state': stats.argument_size_in_bytes,
    'temporaries': stats.temp_size_in_bytes,
    'optimizer': size(state.opt_state.direction),
    'gradients': size(state.model),
  }

  def run():
    nonlocal state
    state, metrics = compiled(state, batch)
    return float(metrics['loss'][0])

  return run, facts


def peft(source):
  """The peer -> the same."""
  import peft as library
  import torch
  import transformers

  model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
  settings = library.LoraConfig(
    r=RANK, lora_alpha=ALPHA, target_modules=list(PEFT_TARGETS), fan_in_fan_out=True, task_type='CAUSAL_LM'
  )
  model = library.get_peft_model(model, settings).train()
  for module in model.modules():
    if isinstance(module, torch.nn.Dropout):
      module.p = 0.0
  trained = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
  ids = torch.from_numpy(token_ids(model.config.vocab_size)[0]).long()

  def run():
    logits = model(ids[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    return loss.item()

  return run, {'gradients': sum(p.nbytes for p in trained), 'optimizer': 2 * sum(p.nbytes for p in trained)}


def measure(side, source, steps):
  """Time one side -> dict of numbers; in a process of its own."""
  runs = int(side.partition(' x ')[2] or 1)
  run, facts = peft(source) if side == 'peft' else ours(source, 0 if side == 'full' else RANK, runs)
  first_loss, seconds = run(), []
  for _ in range(steps):
    start = time.perf_counter()
    run()
    seconds.append(time.perf_counter() - start)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  median = statistics.median(seconds)
  tokens = runs * ROWS * LENGTH / median
  return facts | {'seconds': median, 'tokens_per_second': tokens, 'peak': peak, 'first_loss': first_loss}


def write_random_gpt2(folder):
  """Write GPT-2 124M with random weights as transformers stores it."""
  import torch
  import transformers

  torch.manual_seed(0)
  transformers.GPT2LMHeadModel(transformers.GPT2Config()).save_pretrained(folder)


def main():
  """Measure all sides in turns and write the result file."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--source', default='', help='folder of a GPT-2 as transformers stores it')
  parser.add_argument('--runs', type=int, default=8, help='adapters that are trained together')
  parser.add_argument('--steps', type=int, default=10)
  parser.add_argument('--turns', type=int, default=3)
  parser.add_argument('--side', default='', help='measure this side alone and print its numbers')
  arguments = parser.parse_args()
  if arguments.side:
    print(json.dumps(measure(arguments.side, arguments.source, arguments.steps)))
    return
  sides = ('full', 'lora', f'lora x {arguments.runs}', 'peft')
  turns = {side: [] for side in sides}
  with tempfile.TemporaryDirectory() as folder:
    if not arguments.source:
      write_random_gpt2(folder)
    source = Path(arguments.source or folder)
    for _ in range(arguments.turns):
      for side in sides:
        command = [sys.executable, '-m', 'benchmarks.adapters', f'--side={side}', f'--source={source}']
        command += [f'--steps={arguments.steps}']
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        turns[side].append(json.loads(done.stdout.splitlines()[-1]))
        print(side, turns[side][-1], flush=True)
  rows = {}
  for side, numbers in turns.items():
    rows[side] = {key: statistics.median(x[key] for x in numbers) for key in numbers[0]}
  together = rows[sides[2]]['seconds'] / (arguments.runs * rows['lora']['seconds'])
  ratio = rows['lora']['tokens_per_second'] / rows['peft']['tokens_per_second']
  claim = (
    f'Adapters of rank {RANK}: {ratio:.2f} times the tokens/s of peft; {arguments.runs} together take '
    f'{together:.2f} of the time of one after another'
  )
  versions = record.peer_versions('torch', 'transformers', 'peft')
  record.write_result('speed/adapters', claim, {'sides': rows, 'peers': versions, 'turns': arguments.turns})


if __name__ == '__main__':
  main()
