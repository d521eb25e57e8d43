"""Measure Gemma 3 270M beside transformers: `python -m benchmarks.gemma --source=FOLDER`.

Each side loads the same folder (float32) in processes of its own, in turns, then continues the same random
prompts greedily at batch 1 and 8. Both read the tokenizer, too. Load seconds end when the model can generate;
transformers reads its weights from the mapped file at their first use. Peaks are ru_maxrss after loading
and at the end, less that of a process that only imports its libraries. The first generation of each batch,
which compiles, is not counted. Writes results/speed/gemma.json, or gemma_memory.json.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks import record

PROMPT, BATCHES = 12, (1, 8)


def ours(folder, new):
  """Load with gpt_jax -> function of a batch of ids that generates."""
  from gpt_jax import sample
  from gpt_jax.interop import huggingface
  from gpt_jax.sampling import completions, decoding_layout
  from gpt_jax.tokenizers import grammar

  _, model, _ = huggingface.import_model(folder)
  model = decoding_layout.prepare_model(model, donate=True)
  rules = grammar.plain(np.arange(model.cfg.V) < model.cfg.vocab)
  cfg = sample.SampleConfig(max_new_tokens=new, temperature=0.0)

  def run(ids):
    state = sample.generate(model, ids, cfg, rules)
    return [row for row, _ in completions.new_tokens(state, ids, 1)]

  return run


def theirs(folder, new):
  """Load with transformers -> the same."""
  import torch
  import transformers

  transformers.AutoTokenizer.from_pretrained(folder)
  model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
  model.generation_config.eos_token_id = None

  def run(ids):
    with torch.no_grad():
      return model.generate(torch.tensor(ids), max_new_tokens=new, do_sample=False)[:, PROMPT:].tolist()

  return run


SIDES = {'gpt_jax': ours, 'transformers': theirs}


def peak():
  """Peak bytes of this process."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(side, folder, new):
  """Measure one side in this process -> its numbers and the ids of batch 8."""
  __import__({'gpt_jax': 'gpt_jax.interop.huggingface', 'transformers': 'transformers.models.auto'}[side])
  base, start = peak(), time.perf_counter()
  run = SIDES[side](folder, new)
  row = {'load_seconds': time.perf_counter() - start, 'load_peak_bytes': peak() - base}
  vocab, outputs = 262_144, None
  for batch in BATCHES:
    ids = np.random.default_rng(0).integers(0, vocab, (batch, PROMPT)).tolist()
    run(ids)
    start = time.perf_counter()
    outputs = run(ids)
    row[f'tokens_per_second_{batch}'] = batch * new / (time.perf_counter() - start)
  row['peak_bytes'] = peak() - base
  return row | {'ids': outputs, 'load': os.getloadavg()[0]}


def main():
  """Measure both sides in turns and write the result file."""
  parser = argparse.ArgumentParser(description=__doc__)
  source = os.environ.get('GPT_JAX_GEMMA', '')
  parser.add_argument('--source', default=source, required=not source, help='its Hugging Face folder')
  parser.add_argument('--turns', type=int, default=3)
  parser.add_argument('--new', type=int, default=32, help='tokens a row')
  parser.add_argument('--memory', action='store_true', help='keep the peaks, which other work leaves alone')
  parser.add_argument('--side', default='', help='measure one side here and print it')
  arguments = parser.parse_args()
  if arguments.side:
    print(json.dumps(measure(arguments.side, arguments.source, arguments.new)))
    return
  turns = {side: [] for side in SIDES}
  for _ in range(arguments.turns):
    for side, rows in turns.items():
      command = [sys.executable, '-m', 'benchmarks.gemma', f'--source={arguments.source}', f'--side={side}']
      done = subprocess.run(
        [*command, f'--new={arguments.new}'], stdout=subprocess.PIPE, text=True, check=True
      )
      rows.append(json.loads(done.stdout.splitlines()[-1]))
      print(side, {key: value for key, value in rows[-1].items() if key != 'ids'}, flush=True)
  same = all(a['ids'] == b['ids'] for a, b in zip(*turns.values(), strict=True))
  for rows in turns.values():
    for row in rows:
      del row['ids']
  if arguments.memory:
    keys = ('load_peak_bytes', 'peak_bytes')
    peaks = {side: {key: max(row[key] for row in rows) for key in keys} for side, rows in turns.items()}
    claim = (
      'Gemma 3 270M in float32 with its tokenizer: peak bytes besides libraries, loaded and after generation'
    )
    record.write_result('speed/gemma_memory', claim, {'peaks': peaks})
    return
  middle = lambda side, key: statistics.median(row[key] for row in turns[side])
  keys = [f'tokens_per_second_{batch}' for batch in BATCHES]
  numbers = {
    'file_bytes': sum(path.stat().st_size for path in Path(arguments.source).glob('*.safetensors')),
    'turns': turns,
    'ratios': {key: middle('gpt_jax', key) / middle('transformers', key) for key in keys},
    'greedy_ids_equal': same,
    'peers': record.peer_versions('torch', 'transformers'),
  }
  record.write_result(
    'speed/gemma', 'Gemma 3 270M in float32: gpt_jax over transformers, tokens a second', numbers
  )


if __name__ == '__main__':
  main()
