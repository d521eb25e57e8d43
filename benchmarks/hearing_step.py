"""An optimizer step of a model that learns to hear, beside transformers and peft.

  python -m benchmarks.hearing_step --workdir=runs/gemma --hf=runs/gemma-3-270m

`--workdir` is the run imported from the folder of `--hf`, Gemma 3 270M. The step is that of
experiments/hear.py: outputs of a speech encoder, which the token cache holds, go through an MLP into a
frozen language model with adapters of rank 16. Shapes are those of its data: 8 rows of 4 documents, each with
6 places of frames and 2 to 4 targets. Tokens, frames and initial values are random, the same for all sides.
So is the work: packed documents, logits at targets, gradients of projector and adapters, clipping, AdamW.
`torch` picks the targets' places by hand before the head; `torch, labels` gives the model labels, as its
documentation shows, and so has logits of all places.

In bfloat16, where the CPU multiplies it, peft's side has a frozen base in bfloat16 and autocast, ours
model.dtype and model.param_dtype.
Sides are processes of their own and alternate (benchmarks.versus). `memory_gib` is the peak resident size of
a process, `loaded_gib` that before its first step. The losses of the first three steps must agree.
Writes results/speed/hearing_step.json. `--tiny`: ours, of a small random base, not written.
"""

import argparse
import dataclasses
import math
import os
import zlib
from pathlib import Path

import numpy as np

from benchmarks import record, versus

ROWS, DOCUMENTS, FRAMES = 8, 4, 6
TARGETS = (2, 2, 3, 4)  # of a document, by row
WIDTH, RANK, RATE = 4 * 512, 16, 1e-3  # four outputs of Whisper base in a place
TOLERANCE = 1e-3  # nats, between the losses of the float32 sides
MODULES = {  # path of our parameter: module of a layer in transformers
  'blocks/attention/wq_DHK': 'self_attn.q_proj',
  'blocks/attention/wk_DGK': 'self_attn.k_proj',
  'blocks/attention/wv_DGK': 'self_attn.v_proj',
  'blocks/attention/wo_HKD': 'self_attn.o_proj',
  'blocks/mlp/gate_DF': 'mlp.gate_proj',
  'blocks/mlp/up_DF': 'mlp.up_proj',
  'blocks/mlp/down_FD': 'mlp.down_proj',
}


def make_batch(length, vocab):
  """Return random rows of packed documents, as the loader makes them."""
  rng, size = np.random.default_rng(0), length // DOCUMENTS
  ids = rng.integers(0, vocab, (ROWS, length + 1), np.int32)
  place_BT = np.tile(np.arange(length, dtype=np.int32) % size, (ROWS, 1))
  segment_BT = np.tile(np.arange(length, dtype=np.int32) // size + 1, (ROWS, 1))
  targets_B1 = np.resize(TARGETS, (ROWS, 1))
  is_frame_BT = (place_BT > 1) & (place_BT < 2 + FRAMES)
  frames_BTM = rng.standard_normal((ROWS, length, WIDTH), np.float32) * is_frame_BT[..., None]
  return {
    'token_ids_BT': ids[:, :-1].copy(),
    'target_ids_BT': ids[:, 1:].copy(),
    'loss_mask_BT': ((place_BT < size - 1) & (place_BT >= size - 1 - targets_B1)).astype(np.float32),
    'segment_ids_BT': segment_BT,
    'positions_BT': place_BT,
    'frames_BTM': frames_BTM,
    'source_ids_B': np.arange(ROWS, dtype=np.int32) % 3,
  }


def draw(name, *shape):
  """Return the initial values of a trained parameter, the same for all sides."""
  return 0.02 * np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)


# ------------------------------------------------------------------------------------------ sides


def ours(workdir='', dtype='float32'):
  """Our step of experiments/hear.py -> (one step, facts); without a run folder, of a small random base."""
  import jax

  from gpt_jax import config
  from gpt_jax.cli import experiment_file
  from gpt_jax.cluster.batches import to_devices
  from gpt_jax.jobs.modality_objective import modality_objective
  from gpt_jax.model import adapters, gpt, layers, param_trees
  from gpt_jax.model.kernels import target_places
  from gpt_jax.sharding import make_mesh
  from gpt_jax.step import gpt_program, params_of, with_params
  from gpt_jax.training import checkpoint

  arguments = f'base={workdir},text=' + (f',adapter={RANK}' if workdir else '')
  loaded = experiment_file.load_config(f'{versus.ROOT}/experiments/hear.py:{arguments}')
  if not workdir:
    loaded.model.update(layers=1, width=32, heads=2, context=64, vocab=target_places.LARGE)
    loaded.adapter.update(rank=RANK, train=('^frame_',))
  loaded.model.update(dtype=dtype, param_dtype=dtype)
  loaded.optim.update(name='adamw', lr=RATE, schedule='constant', warmup=0, ema=0.0)
  cfg = config.build(config.Config, loaded)
  mesh = make_mesh(cfg.mesh)
  jax.sharding.set_mesh(mesh)
  model_cfg = dataclasses.replace(cfg.model, frame_values=WIDTH).resolved()
  length = cfg.train.length or 64
  batch = make_batch(length, model_cfg.vocab)
  places = target_places.round_count(DOCUMENTS * max(TARGETS), length, model_cfg.vocab)
  objective = modality_objective(cfg.loss, sources=len(cfg.data.mixture), places=places)
  program = gpt_program(cfg, model_cfg, mesh, objective)
  state = program.init()
  if workdir:
    checkpoints = checkpoint.Checkpoints(Path(workdir) / 'checkpoints')
    base = checkpoint.load_base(checkpoints, checkpoints.latest_good(math.inf), model_cfg, mesh)
  else:
    base = jax.jit(lambda key: layers.initialize(gpt.GPT(model_cfg), key))(jax.random.key(0))
  place = lambda path, p: jax.device_put(draw(path, *p.shape).astype(p.dtype), p.sharding)
  model = with_params(state.model, {path: place(path, p) for path, p in params_of(state.model).items()})
  state = state._replace(frozen=adapters.take_base(base, program.abstract.frozen), model=model)
  del base, model
  batch, loaded_gib = to_devices(batch, mesh), versus.peak_gib()
  step = program.step.lower(state, batch).compile()
  tokens = batch['token_ids_BT'].size

  def run():
    nonlocal state
    state, metrics = step(state, batch)
    return float(metrics['loss'])

  facts = {'losses': [run() for _ in range(3)], 'trained': param_trees.count(state.model), 'tokens': tokens}
  return run, facts | {'loaded_gib': loaded_gib, 'temporaries': step.memory_analysis().temp_size_in_bytes}


def theirs(folder, dtype='float32', labels=False):
  """The same step with torch, transformers and peft -> (one step, facts); labels: of the model's own loss."""
  try:
    import peft
    import torch
    import transformers
  except ImportError as e:
    raise versus.Missing(f'{e.name} is not installed') from e
  from benchmarks import torch_gpt

  torch.set_num_threads(versus.CORES)
  dtype = getattr(torch, dtype)
  language = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
  layers, width = language.config.num_hidden_layers, language.config.hidden_size
  targets = [name.partition('.')[2] for name in MODULES.values()]
  adapted = peft.get_peft_model(language, peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets))
  linear = lambda inputs, outputs: torch.nn.Linear(inputs, outputs, bias=False)
  projector = torch.nn.Sequential(linear(WIDTH, width), torch.nn.GELU('tanh'), linear(width, width))
  values = {
    projector[0].weight: draw('frame_projector/up_AF', WIDTH, width).T,
    projector[2].weight: draw('frame_projector/down_FD', width, width).T,
  }
  for path, name in MODULES.items():
    modules = [layer.get_submodule(name) for layer in language.model.layers]
    a_Lir = draw(f'{path}/a', layers, modules[0].in_features, RANK)
    b_Lro = draw(f'{path}/b', layers, RANK, modules[0].out_features)
    for module, a_ir, b_ro in zip(modules, a_Lir, b_Lro, strict=True):
      values |= {module.lora_A.default.weight: a_ir.T, module.lora_B.default.weight: b_ro.T}
  for parameter, value in values.items():
    parameter.data.copy_(torch.from_numpy(value))
  model = torch.nn.ModuleList([adapted, projector]).train()
  optimizer = torch_gpt.optimizer(model, RATE, weight_decay=0.0)
  length = min(64, language.config.max_position_embeddings)
  batch = {k: torch.from_numpy(x) for k, x in make_batch(length, language.config.vocab_size).items()}
  is_target_BT, loaded_gib = batch['loss_mask_BT'] > 0, versus.peak_gib()

  def loss_of(model):
    with torch.autocast('cpu', torch.bfloat16, enabled=dtype == torch.bfloat16):
      x_BTD = language.get_input_embeddings()(batch['token_ids_BT']) + projector(batch['frames_BTM'])
      # Positions that begin again are documents of their own, as for trl's packing.
      inputs = dict(inputs_embeds=x_BTD, position_ids=batch['positions_BT'].long(), use_cache=False)
      if labels:
        return language(**inputs, labels=labels_BT).loss
      y_BTD = language.model(**inputs)[0]
      logits_NV = language.lm_head(y_BTD[is_target_BT]).float()
      return torch.nn.functional.cross_entropy(logits_NV, batch['target_ids_BT'][is_target_BT].long())

  # What `labels` of transformers computes: logits of all places, which it shifts itself.
  labels_BT = torch.full_like(batch['target_ids_BT'], -100).long()
  labels_BT[:, 1:] = batch['target_ids_BT'].where(is_target_BT, -100)[:, :-1]

  run = lambda: torch_gpt.train_step(model, loss_of, optimizer).item()
  trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
  facts = {'losses': [run() for _ in range(3)], 'trained': trained}
  return run, facts | {'tokens': batch['token_ids_BT'].numel(), 'loaded_gib': loaded_gib}


# ------------------------------------------------------------------------------------------- main


def multiplies_bfloat16():
  """Whether the CPU has instructions for it; without them torch takes minutes for a step."""
  flags = Path('/proc/cpuinfo').read_text().split()
  return 'avx512_bf16' in flags or 'amx_bf16' in flags


def sides(workdir, folder):
  """Return the sides that can run: ours, and with a folder those of torch."""
  maker = lambda name: f'benchmarks.hearing_step:{name}'
  rows, dtypes = [], {'': 'float32', **({', bfloat16': 'bfloat16'} if multiplies_bfloat16() else {})}
  for suffix, dtype in dtypes.items():
    rows.append(versus.Side(f'gpt_jax{suffix}', maker('ours'), {'workdir': workdir, 'dtype': dtype}))
    if folder:
      options = {'folder': folder, 'dtype': dtype}
      rows.append(versus.Side(f'torch{suffix}', maker('theirs'), options))
      rows.append(versus.Side(f'torch, labels{suffix}', maker('theirs'), options | {'labels': True}))
  return rows


def check_equal(rows):
  """Return the largest difference of the float32 sides' losses; AssertionError if they are not one model."""
  ours, largest = rows['gpt_jax'], 0
  assert len(rows) > 1, 'no side to compare with'
  for name, torch in rows.items():
    if name == 'gpt_jax' or 'bfloat16' in name:
      continue
    differences = [abs(a - b) for a, b in zip(ours['losses'], torch['losses'], strict=True)]
    largest = max(largest, *differences)
    assert largest < TOLERANCE, f'losses {ours["losses"]} against {torch["losses"]} of {name}'
    assert ours['trained'] == torch['trained'], f'{ours["trained"]} parameters against {torch["trained"]}'
  return largest


def main():
  """Measure all sides in turns and write the result file."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--workdir', default='', help='run folder of the language model')
  parser.add_argument('--hf', default='', help='folder of the same model for transformers')
  parser.add_argument('--turns', type=int, default=7)
  parser.add_argument('--tiny', action='store_true')
  arguments = parser.parse_args()
  if not arguments.tiny and not (arguments.workdir and arguments.hf):
    parser.error('give --workdir and --hf, or --tiny')
  folders = [os.path.abspath(path) if path else '' for path in (arguments.workdir, arguments.hf)]
  rows = versus.compare(sides(*folders), 1 if arguments.tiny else arguments.turns)
  for name, row in rows.items():
    if 'median' in row:
      row['tokens_per_second'] = row['tokens'] / row['median']
    print(name, row)
  if arguments.tiny or any('missing' in row for row in rows.values()):
    return
  others = [name for name in rows if name != 'gpt_jax']
  memory = {name: rows['gpt_jax']['memory_gib'] / rows[name]['memory_gib'] for name in others}
  numbers = {
    'sides': rows,
    'times_as_fast': {name: versus.ratio(rows, 'gpt_jax', name) for name in others},
    'memory': memory,
    'loss_difference': check_equal(rows),
    'multiplies_bfloat16': multiplies_bfloat16(),
    'peers': record.peer_versions('torch', 'transformers', 'peft'),
  }
  claim = 'A step of a model that learns to hear (Gemma 3 270M, rank 16): gpt_jax over transformers and peft'
  record.write_result('speed/hearing_step', claim, numbers)


if __name__ == '__main__':
  main()
