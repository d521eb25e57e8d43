"""Measure a frozen base in int8 and int4: `python -m benchmarks.quantized_base --workdir=RUN --text=FILE`.

Bytes of the base in a run's state, and bits per byte of the first characters of a text under the weights that
its codes stand for. Writes results/quantized_base.json.
"""

import argparse

import jax

from benchmarks.record import write_result
from gpt_jax.data.files import find_files
from gpt_jax.evaluation import trained
from gpt_jax.model import adapters, gpt
from gpt_jax.training import checkpoint


def measure(run, dtype, text):
  """Return {bytes, bits_per_byte} of a run's model as a frozen base."""
  settings = adapters.AdapterConfig(rank=1, base_dtype=dtype)
  _, abstract = adapters.split(settings, gpt.GPT(run.model.cfg))
  frozen = adapters.take_base(run.model, checkpoint.with_shardings(abstract, run.mesh))
  size = sum(x.nbytes for x in jax.tree.leaves(frozen))
  [score] = run._replace(model=adapters.merge(frozen, {})).score([text])
  return {'bytes': size, 'bits_per_byte': score.bits_per_byte, 'tokens': score.tokens}


def main():
  """Write the result file."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--text', required=True, help='a text, also below GPT_JAX_DATA')
  parser.add_argument('--characters', type=int, default=8000)
  arguments = parser.parse_args()
  [path] = find_files(arguments.text)
  text, run = path.read_text(encoding='utf-8')[: arguments.characters], trained.load(arguments.workdir)
  numbers = {dtype or run.model.cfg.param_dtype: measure(run, dtype, text) for dtype in ('', 'int8', 'int4')}
  source = {'source': 'gemma-3-270m', 'text': arguments.text, 'characters': len(text)}
  write_result('quantized_base', 'A frozen base in int8 and int4', source | numbers)


if __name__ == '__main__':
  main()
