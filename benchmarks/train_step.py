"""A full optimizer step on a CPU against torch and transformers; `benchmarks.cpu` runs it.

Our side is the program of `launch.py train`: loss, gradient, clipping, AdamW, the loss guard, metrics.
Peers do the same work on the same random tokens: forward, backward, clipping, fused AdamW. All sides train
GPT-2's architecture, in float32 but for the rows that say bfloat16: torch's autocast, which multiplies twice
as fast on a CPU with AVX-512 bf16, and our `model.dtype=bfloat16`, which XLA does not speed up there.
"""

import dataclasses
import itertools
from typing import NamedTuple

import numpy as np

from benchmarks import versus

BATCHES = 8  # number of different batches, used in rotation


class Shape(NamedTuple):
  """A model and its batch."""

  layers: int
  heads: int
  width: int
  length: int  # T, tokens a row
  rows: int  # B
  vocab: int  # V

  def batches(self):
    """Random tokens and targets, the same for every side: (ids_BT, targets_BT), int32."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, self.vocab, (BATCHES, self.rows, self.length + 1), np.int32)
    return [(row_BT[:, :-1].copy(), row_BT[:, 1:].copy()) for row_BT in ids]


SHAPES = {
  '4 layers of 128, T=64 B=12 V=65': Shape(4, 4, 128, 64, 12, 65),
  '6 layers of 384, T=256 B=8 V=256': Shape(6, 6, 384, 256, 8, 256),
  '12 layers of 768 (124M), T=256 B=2 V=50257': Shape(12, 12, 768, 256, 2, 50257),
}
PLAIN = {'unroll': 'on', 'remat': 'none', 'kernel': 'xla'}  # the obvious program, without our optimizations


def ours(shape, model=None, memory=False, **train):
  """Our program -> (one step, facts).

  model: fields of ModelConfig to change. memory: add the compiled program's bytes to the facts.
  """
  import jax

  from gpt_jax.cluster.batches import to_devices
  from gpt_jax.config import Config
  from gpt_jax.model import costs, presets
  from gpt_jax.runs import hardware
  from gpt_jax.sharding import make_mesh
  from gpt_jax.step import gpt_program

  shape = Shape(*shape)
  sizes = dict(layers=shape.layers, width=shape.width, heads=shape.heads, context=shape.length)
  model_cfg = presets.gpt2(**sizes | {'vocab': shape.vocab} | (model or {})).resolved()
  cfg = Config()
  cfg = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, **train))
  mesh = make_mesh(cfg.mesh)
  jax.sharding.set_mesh(mesh)
  program = gpt_program(cfg, model_cfg, mesh)
  names = ('token_ids_BT', 'target_ids_BT', 'loss_mask_BT')
  mask_BT = np.ones((shape.rows, shape.length), np.float32)
  batches = itertools.cycle(
    [to_devices(dict(zip(names, (*pair, mask_BT), strict=True)), mesh) for pair in shape.batches()]
  )
  state = program.init()

  def run():
    nonlocal state
    state, metrics = program.step(state, next(batches))
    jax.block_until_ready(metrics)
    return float(metrics['loss'])

  flops, tokens = costs.flops_per_token(model_cfg, shape.length), shape.rows * shape.length
  facts = {'memory': memory_of(program, next(batches))} if memory else {}
  facts |= {'losses': [run() for _ in range(3)], 'parameters': costs.count_params(model_cfg)}
  facts |= {'flops': flops['full'] * tokens, 'causal_flops': flops['causal'] * tokens}
  return run, facts | {'peak_flops': hardware.peak_flops()[0]}


def memory_of(program, batch):
  """{state, temporaries}: bytes per device, from XLA's memory analysis."""
  stats = program.step.lower(program.abstract, batch).compile().memory_analysis()
  return {'state': stats.argument_size_in_bytes, 'temporaries': stats.temp_size_in_bytes}


def torch_model(shape, kind):
  """(model, token ids and targets -> loss, torch) for a kind of peer."""
  try:
    import torch
  except ImportError as e:
    raise versus.Missing('torch is not installed') from e
  torch.set_num_threads(versus.CORES)
  torch.manual_seed(0)
  if kind == 'transformers':
    try:
      import transformers
    except ImportError as e:
      raise versus.Missing('transformers is not installed') from e
    cfg = transformers.GPT2Config(
      vocab_size=shape.vocab,
      n_positions=shape.length,
      n_embd=shape.width,
      n_layer=shape.layers,
      n_head=shape.heads,
      resid_pdrop=0.0,
      embd_pdrop=0.0,
      attn_pdrop=0.0,
      use_cache=False,
    )
    model = transformers.GPT2LMHeadModel._from_config(cfg, attn_implementation='sdpa').train()

    def loss_of(model, ids_BT, targets_BT):
      logits_BTV = model(ids_BT).logits
      return torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())

    return model, loss_of, torch
  from benchmarks.torch_gpt import GPT

  model = GPT(shape.layers, shape.width, shape.heads, shape.length, shape.vocab)
  if kind == 'compile':
    model = torch.compile(model)

  def loss_of(model, ids_BT, targets_BT):
    with torch.autocast('cpu', torch.bfloat16, enabled=kind == 'bfloat16'):
      return model(ids_BT, targets_BT)

  return model, loss_of, torch


def torch_peer(shape, kind):
  """A peer in torch: kind eager, bfloat16, compile or transformers -> (one step, facts)."""
  shape = Shape(*shape)
  model, loss_of, torch = torch_model(shape, kind)
  from benchmarks import torch_gpt

  optimizer = torch_gpt.optimizer(model)
  batches = itertools.cycle([tuple(torch.from_numpy(x).long() for x in pair) for pair in shape.batches()])

  def run():
    pair = next(batches)
    return torch_gpt.train_step(model, lambda model: loss_of(model, *pair), optimizer).item()

  return run, {'losses': [run() for _ in range(3)]}


def sides(shape):
  """The sides of a shape; transformers only at 124M, where plain JAX would not fit in 16 GiB."""
  maker = lambda name: f'benchmarks.train_step:{name}'
  yield versus.Side('gpt_jax', maker('ours'), {'shape': shape})
  for name, kind in PEERS.items():
    if kind != 'transformers' or shape.width == 768:
      yield versus.Side(name, maker('torch_peer'), {'shape': shape, 'kind': kind})
  yield versus.Side('gpt_jax, bfloat16', maker('ours'), {'shape': shape, 'model': {'dtype': 'bfloat16'}})
  if shape.width < 768:
    yield versus.Side('plain JAX', maker('ours'), {'shape': shape, 'model': PLAIN})


def rows(shapes=tuple(SHAPES), turns=7, save=lambda results: None):
  """Compare at each shape -> {question: {'rows': of versus.compare, 'ratios': {peer: ...}}}."""
  results = {}
  for name in shapes:

    def save_shape(timed, name=name):
      others = [peer for peer in timed if peer != 'gpt_jax']
      ratios = {peer: versus.ratio(timed, 'gpt_jax', peer) for peer in others}
      results[f'train step, {name}'] = {'rows': timed, 'ratios': ratios}
      save(results)

    save_shape(versus.compare(list(sides(SHAPES[name])), turns, save_shape))
  return results


PEERS = {
  'torch eager': 'eager',
  'torch eager, bfloat16': 'bfloat16',
  'torch.compile': 'compile',
  'transformers': 'transformers',
}
