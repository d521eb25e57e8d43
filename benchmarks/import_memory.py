"""Measure the time and the peak host memory of importing a model: `python -m benchmarks.import_memory`.

Llama-shaped random weights in one safetensors file are imported into a run folder, each by a process of its
own, whose peak is ru_maxrss. `start` is the peak of a process that imports two layers of width 64: Python,
jax and Orbax. Writes results/speed/import_memory.json.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.record import write_result

SIZES = {  # name -> (layers, width, heads, hidden, vocabulary, type)
  'start': (2, 64, 4, 128, 300, 'float32'),
  '124M float32': (12, 768, 12, 2048, 50257, 'float32'),
  '124M bfloat16': (12, 768, 12, 2048, 50257, 'bfloat16'),
  '1.3B bfloat16': (24, 2048, 16, 5504, 50257, 'bfloat16'),
}


def write_model(folder, layers, width, heads, hidden, vocab, dtype):
  """Write config.json, tokenizer.json and random weights -> bytes of the weights, of the largest tensor."""
  import jax
  from safetensors.numpy import save_file

  from gpt_jax.interop import families, tensors, tokenizer_files
  from gpt_jax.model import gpt, param_trees
  from gpt_jax.model.config import ModelConfig
  from gpt_jax.tokenizers import TokenizerConfig, Tokenizers, text

  cfg = ModelConfig(layers=layers, width=width, heads=heads, hidden=hidden, vocab=vocab, context=1024)
  _, content = families.write_config(cfg)
  rows, sizes, files = families.tensors_of(content, cfg), tensors.sizes_of(cfg), {}
  noise = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32) * 0.02
  for path, _ in param_trees.named_params(gpt.GPT(cfg.resolved())):
    shape = tensors.shape_of(rows[path], sizes)
    array = np.resize(noise, shape).astype(jax.numpy.dtype(dtype))
    files |= {name: array.copy() for _, name in tensors.places(rows[path], sizes)}
  save_file(files, folder / 'model.safetensors', {'format': 'pt'})
  tokenizer_files.write(Tokenizers.build(text.build(TokenizerConfig('bytes'), None)), folder, 1024)
  (folder / 'config.json').write_text(json.dumps(content))
  return (folder / 'model.safetensors').stat().st_size, max(array.nbytes for array in files.values())


def measure(source, workdir):
  """Import here -> {seconds, peak bytes}."""
  from gpt_jax.interop import huggingface

  start = time.perf_counter()
  huggingface.import_run(source, workdir)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return {'seconds': time.perf_counter() - start, 'peak_bytes': peak}


def run_process(*arguments):
  """Run this module with arguments -> what it prints last."""
  command = [sys.executable, '-m', 'benchmarks.import_memory', *arguments]
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
  return json.loads(done.stdout.splitlines()[-1])


def run(name):
  """Write and import one size -> row of the result.

  Both in processes of their own: ru_maxrss of a process begins at that of its parent.
  """
  with tempfile.TemporaryDirectory() as folder:
    size, largest = run_process(f'--write={name}', f'--source={folder}')
    measured = run_process(f'--source={folder}', f'--workdir={folder}/run')
  return {'name': name, 'file_bytes': size, 'largest_tensor_bytes': largest} | measured


def main():
  """Measure all sizes and write the result file."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--sizes', default=','.join(SIZES), help='names of SIZES, start first')
  parser.add_argument('--write', default='', help='write a model of this name into --source')
  parser.add_argument('--source', default='', help='import this folder here and print the result')
  parser.add_argument('--workdir', default='')
  arguments = parser.parse_args()
  if arguments.source:
    source = Path(arguments.source)
    write, workdir = arguments.write, arguments.workdir
    print(json.dumps(write_model(source, *SIZES[write]) if write else measure(source, workdir)))
    return
  rows = []
  for name in arguments.sizes.split(','):
    row = run(name)
    if rows:
      row['peak_over_file'] = (row['peak_bytes'] - rows[0]['peak_bytes']) / row['file_bytes']
    rows.append(row)
    print(row)
  claim = 'Peak host memory of an import, less that of a tiny model, over the size of the weights'
  write_result('speed/import_memory', claim, {'rows': rows})


if __name__ == '__main__':
  main()
