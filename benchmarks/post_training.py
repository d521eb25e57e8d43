"""Measure fine-tuning, adapters and preferences against trl: `python -m benchmarks.post_training`.

Three stages on the same weights (GPT-2 124M with random values), ids and losses: `sft` trains all parameters
on the second half of each row, `lora` adapters of rank 8 on every matrix of a block, `dpo` all parameters on
pairs. trl's own trainers run them on transformers and peft, in float32 and under bfloat16 autocast, which is
what a user of theirs would pick. `lora x R` are R of our runs in one vmapped step, as `ablate` trains seeds.
Each side is a process of its own, in turns. Losses and norms of the gradient are of the first step. Times are
medians of later steps; peaks are ru_maxrss. `state` and `temporaries` are XLA's: parameters, moments and
base; activations and gradients. Writes results/speed/post_training.json.
It is written of all sides alone: not with --sides=REGEX, or with --tiny, a small model.
"""

import argparse
import contextlib
import dataclasses
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import record

STAGES = ('sft', 'lora', 'dpo')
RANK, ALPHA, BETA, RATE = 8, 16, 0.1, 1e-5
TARGETS = ('c_attn', 'attn.c_proj', 'c_fc', 'mlp.c_proj')
TINY = dict(n_layer=2, n_embd=64, n_head=2, n_positions=64, vocab_size=256)


def token_ids(length, vocab, rows):
  """Random ids [rows, length + 1]; the two rows of a pair begin alike."""
  ids = np.random.default_rng(0).integers(0, vocab, (rows, length + 1), dtype=np.int32)
  ids[1::2, : length // 2] = ids[::2, : length // 2]
  return ids


def sizes(tiny):
  """Return (rows of a batch, their length)."""
  return (4, 32) if tiny else (4, 256)


def write_models(folder, tiny):
  """Write GPT-2 with random weights, an adapter on it, and a tokenizer, as transformers and peft do."""
  import peft
  import tokenizers
  import torch
  import transformers

  torch.manual_seed(0)
  settings = transformers.GPT2Config(**(TINY if tiny else {}), resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
  model = transformers.GPT2LMHeadModel(settings)
  model.save_pretrained(folder / 'model')
  words = tokenizers.models.WordLevel({'<eos>': 0, **{str(i): i for i in range(1, settings.vocab_size)}})
  fast = tokenizers.Tokenizer(words)
  fast.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  names = dict(eos_token='<eos>', pad_token='<eos>')
  transformers.PreTrainedTokenizerFast(tokenizer_object=fast, **names).save_pretrained(folder / 'model')
  settings = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS), fan_in_fan_out=True)
  model = peft.get_peft_model(model, settings)
  for name, p in model.named_parameters():
    if 'lora_B' in name:
      p.data += 0.01 * torch.randn_like(p)
  model.save_pretrained(folder / 'adapter')


# ------------------------------------------------------------------------------------------ ours


def measure_ours(stage, runs, folder, steps, tiny):
  """Train with our program -> numbers."""
  import jax
  import jax.numpy as jnp

  from gpt_jax import config, step
  from gpt_jax.evaluation import trained
  from gpt_jax.interop import huggingface, peft_files
  from gpt_jax.jobs import preferences
  from gpt_jax.model import adapters
  from gpt_jax.training import checkpoint

  with contextlib.redirect_stdout(sys.stderr):
    workdir = Path(tempfile.mkdtemp(dir=folder)) / 'base'
    huggingface.import_run(folder / 'model', workdir)
  base = trained.load(workdir)
  jax.sharding.set_mesh(base.mesh)
  cfg = config.Config()
  cfg = dataclasses.replace(cfg, optim=dataclasses.replace(cfg.optim, lr=RATE, schedule='constant', warmup=0))
  tree, objective = None, None
  if stage == 'lora':
    settings, tree = peft_files.read_adapter(folder / 'adapter', base)
    cfg = dataclasses.replace(cfg, adapter=settings)
  if stage == 'dpo':
    objective = preferences.preference_objective(cfg.preference)
  program = step.gpt_program(cfg, base.model.cfg, base.mesh, objective)
  state = program.init()
  if stage == 'lora':
    frozen = adapters.take_base(base.model, checkpoint.with_shardings(program.abstract.frozen, base.mesh))
    state = state._replace(model=tree, frozen=frozen)
  else:
    state = state._replace(model=base.model)
  rows, length = sizes(tiny)
  ids = token_ids(length, base.model.cfg.vocab, rows)
  mask = np.broadcast_to(np.arange(length) >= length // 2 - 1, (rows, length)).astype(np.float32)
  batch = dict(token_ids_BT=ids[:, :-1], target_ids_BT=ids[:, 1:], loss_mask_BT=mask)
  if stage == 'dpo':
    batch = {name: x.reshape(rows // 2, -1) for name, x in batch.items()}
    references = preferences.REFERENCE[:2]  # chosen, rejected: two documents a pair
    batch |= {name: np.zeros(rows // 2, np.float32) for name in references}
    scores = preferences.evaluate_pairs(base.model, batch)
    batch |= dict(zip(references, map(np.asarray, (scores.chosen_B, scores.rejected_B)), strict=True))
  stack = lambda x: jnp.broadcast_to(x[None], (runs, *x.shape)).copy()
  if runs > 1:
    state = jax.tree.map(stack, state._replace(frozen=None))._replace(frozen=state.frozen)
    axes = jax.tree.map(lambda _: 0, state._replace(frozen=None))
    compiled = jax.jit(jax.vmap(program.pure, (axes, None), (axes, 0)), donate_argnums=0)
  else:
    compiled = program.step
  compiled = compiled.lower(state, batch).compile()
  stats = compiled.memory_analysis()
  size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree)) // runs
  facts = dict(state=stats.argument_size_in_bytes, temporaries=stats.temp_size_in_bytes)
  facts |= dict(optimizer=size(state.opt_state.direction), gradients=size(state.model))
  first, seconds = {}, []
  for _ in range(steps + 1):
    start = time.perf_counter()
    state, metrics = compiled(state, batch)
    values = {name: float(np.ravel(metrics[name])[0]) for name in ('loss', 'grad_norm')}
    seconds.append(time.perf_counter() - start)
    first = first or values
  return first | facts | {'seconds': statistics.median(seconds[1:])}


# ------------------------------------------------------------------------------------------- trl


def measure_trl(stage, dtype, folder, steps, tiny):
  """Train with trl's trainers -> numbers."""
  import datasets
  import peft
  import torch
  import transformers
  import trl

  model = transformers.AutoModelForCausalLM.from_pretrained(folder / 'model', dtype=torch.float32)
  rows, length = sizes(tiny)
  ids = token_ids(length, model.config.vocab_size, rows).tolist()
  half = length // 2
  options = dict(
    output_dir=str(folder / 'trl'),
    max_steps=steps + 1,
    learning_rate=RATE,
    lr_scheduler_type='constant',
    adam_beta2=0.95,
    weight_decay=0.1,
    max_grad_norm=1.0,
    logging_steps=1,
    save_strategy='no',
    report_to='none',
    use_cpu=True,
    bf16=dtype == 'bfloat16',
    gradient_checkpointing=False,
    disable_tqdm=True,
    max_length=None,
  )
  if stage == 'dpo':
    pairs = [
      dict(prompt_ids=c[:half], chosen_ids=c[half:], rejected_ids=r[half:])
      for c, r in zip(ids[::2], ids[1::2], strict=True)
    ]
    base = trl.DPOTrainer
    arguments = trl.DPOConfig(
      **options, per_device_train_batch_size=rows // 2, precompute_ref_log_probs=True, beta=BETA
    )
  else:
    pairs = [dict(input_ids=row, labels=[-100] * half + row[half:]) for row in ids]
    base = trl.SFTTrainer
    arguments = trl.SFTConfig(**options, per_device_train_batch_size=rows)
  if stage == 'lora':
    model = peft.PeftModel.from_pretrained(model, folder / 'adapter', is_trainable=True)
  seconds = []

  class Clock(transformers.TrainerCallback):
    """Seconds of each step."""

    def on_step_begin(self, *_, **__):
      """Start the clock."""
      self.start = time.perf_counter()

    def on_step_end(self, *_, **__):
      """Stop the clock."""
      seconds.append(time.perf_counter() - self.start)

  class Trainer(base):
    """The trainer of ids that are ready."""

    def _prepare_dataset(self, dataset, *_, **__):
      return dataset

  trainer = Trainer(
    model=model,
    args=arguments,
    train_dataset=datasets.Dataset.from_list(pairs),
    processing_class=transformers.AutoTokenizer.from_pretrained(folder / 'model'),
    callbacks=[Clock()],
  )
  with contextlib.redirect_stdout(sys.stderr):
    trainer.train()
  first = next(line for line in trainer.state.log_history if 'grad_norm' in line)
  trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
  facts = dict(optimizer=2 * trained, gradients=trained)
  return facts | {
    'loss': first['loss'],
    'grad_norm': first['grad_norm'],
    'seconds': statistics.median(seconds[1:]),
  }


# ------------------------------------------------------------------------------------ all of them


def measure(side, folder, steps, tiny):
  """Measure one side, in this process -> its numbers."""
  stage, who = side.split(' ', 1)
  rows, length = sizes(tiny)
  runs = int(who.partition(' x ')[2] or 1)
  if who.startswith('ours'):
    numbers = measure_ours(stage, runs, folder, steps, tiny)
  else:
    numbers = measure_trl(stage, who.split()[1], folder, steps, tiny)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return numbers | {'tokens_per_second': runs * rows * length / numbers['seconds'], 'peak': peak}


def check_equal(rows):
  """Raise AssertionError where a first loss or gradient of ours is not trl's."""
  for stage in STAGES:
    ours, theirs = (rows.get(f'{stage} {who}') for who in ('ours', 'trl float32'))
    for name in ('loss', 'grad_norm') if ours and theirs else ():
      difference = abs(ours[name] - theirs[name]) / abs(theirs[name])
      assert difference < 1e-4, f'{stage}: {name} {ours[name]} against {theirs[name]} of trl'


def main():
  """Measure all sides in turns and write the result file."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--steps', type=int, default=6)
  parser.add_argument('--turns', type=int, default=3)
  parser.add_argument('--runs', type=int, default=8)
  parser.add_argument('--sides', default='')
  parser.add_argument('--tiny', action='store_true')
  parser.add_argument('--worker', nargs=2, help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.worker:
    side, folder = arguments.worker
    print(json.dumps(measure(side, Path(folder), arguments.steps, arguments.tiny)))
    return
  who = ('ours', 'trl float32', 'trl bfloat16')
  sides = [f'{stage} {name}' for stage in STAGES for name in who] + [f'lora ours x {arguments.runs}']
  chosen = [side for side in sides if re.search(arguments.sides, side)]
  rows = measure_all(chosen, arguments.steps, arguments.turns, arguments.tiny)
  check_equal(rows)
  if chosen == sides and not arguments.tiny:
    versions = record.peer_versions('torch', 'transformers', 'peft', 'trl')
    numbers = {'sides': rows, 'peers': versions, 'turns': arguments.turns}
    record.write_result('speed/post_training', claim(rows, arguments.runs), numbers)


def measure_all(sides, steps, turns, tiny):
  """Measure sides in turns, each in a process of its own -> {side: medians of its numbers}."""
  done = {side: [] for side in sides}
  with tempfile.TemporaryDirectory() as folder:
    write = f'from benchmarks import post_training as p; p.write_models(p.Path({folder!r}), {tiny})'
    subprocess.run([sys.executable, '-c', write], check=True, stdout=sys.stderr)
    for _ in range(turns):
      for side in sides:
        command = [sys.executable, '-m', 'benchmarks.post_training', '--worker', side, folder]
        command += [f'--steps={steps}', *(['--tiny'] if tiny else [])]
        output = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
        done[side].append(json.loads(output.splitlines()[-1]))
        print(side, done[side][-1], flush=True)
  return {side: {k: statistics.median(x[k] for x in rows) for k in rows[0]} for side, rows in done.items()}


def claim(rows, runs):
  """Return the sentence of the result."""
  texts = []
  for stage in STAGES:
    ours = rows[f'{stage} ours']
    against = []
    for dtype in ('float32', 'bfloat16'):
      theirs = rows[f'{stage} trl {dtype}']
      ratio, peak = (ours[k] / theirs[k] for k in ('tokens_per_second', 'peak'))
      against.append(f'{ratio:.2f} times its tokens/s and {peak:.2f} times its peak memory in {dtype}')
    texts.append(f'{stage} ' + ', '.join(against))
  together = rows[f'lora ours x {runs}']['seconds'] / (runs * rows['lora ours']['seconds'])
  texts.append(f'{runs} adapters together take {together:.2f} of the time of one after another')
  return 'Against trl: ' + '; '.join(texts)


if __name__ == '__main__':
  main()
