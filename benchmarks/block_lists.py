"""What a block list costs in decoding: `python -m benchmarks.block_lists` (needs GPT_JAX_DATA/gpt2_bpe).

GPT-2's architecture and tokenizer with random weights, a prompt of 16 tokens a row and 64 new ones, sampled
at temperature 1: without a list, and with lists of 10 and 1,000 made-up words, in turns on the same cores
(see versus.py). Goal: less than 5 % of the time. Writes results/speed/block_lists.json.
"""

import argparse
import os
import random
import string
from pathlib import Path

import numpy as np

from benchmarks import versus
from benchmarks.record import RESULTS
from gpt_jax.runs import records

SIZES = {'124M': {}, '5M': dict(layers=4, width=96, heads=4)}
LISTS, BATCHES = (0, 10, 1000), (1, 8)
PROMPT, NEW = 16, 64


def words(count):
  """Return made-up words of 4 to 9 letters."""
  rng = random.Random(0)
  return tuple(''.join(rng.choices(string.ascii_lowercase, k=rng.randint(4, 9))) for _ in range(count))


def decode(size, batch, count):
  """Return a function that generates once with a list of `count` words."""
  import jax

  from gpt_jax import sample
  from gpt_jax.model import gpt, presets
  from gpt_jax.model import layers as nn
  from gpt_jax.sampling import completions, decoding_layout
  from gpt_jax.tokenizers import Tokenizers, text

  folder = Path(os.environ.get('GPT_JAX_DATA', '../shared/data')) / 'gpt2_bpe'
  settings = text.TokenizerConfig(kind='gpt2', path=str(folder))
  tokenizers = Tokenizers.build(text.build(settings))
  cfg = presets.gpt2(size='small', vocab=tokenizers.vocabulary.size, **SIZES[size]).resolved()
  trained = jax.jit(lambda key: nn.initialize(gpt.GPT(cfg), key))(jax.random.key(0))
  model = decoding_layout.prepare_model(trained)
  grammar = completions.build_grammar(tokenizers, model.cfg.V, blocked=words(count))
  options = sample.SampleConfig(max_new_tokens=NEW)
  ids = np.random.default_rng(0).integers(0, 50_000, (batch, PROMPT)).tolist()

  def run():
    state = sample.generate(model, ids, options, grammar)
    return [row for row, _ in completions.new_tokens(state, ids, 1)]

  return run


def main():
  """Time all sides in turns and write the result."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--turns', type=int, default=7)
  turns, rows = parser.parse_args().turns, {}
  for size in SIZES:
    for batch in BATCHES:
      maker = 'benchmarks.block_lists:decode'
      name = lambda count: f'{count} words' if count else 'no list'
      sides = [versus.Side(name(n), maker, dict(size=size, batch=batch, count=n)) for n in LISTS]
      timed = versus.compare(sides, turns)
      costs = {}
      for count in LISTS[1:]:
        value, (low, high) = versus.ratio(timed, 'no list', name(count))
        costs[name(count)] = {'cost': value - 1, 'of_turns': [low - 1, high - 1]}
      rows[f'{size}, batch {batch}'] = {'rows': timed, 'costs': costs}
      print(f'{size}, batch {batch}: {costs}', flush=True)
  claim = 'Decoding with block lists of made-up words, beside decoding without'
  records.write_json(
    RESULTS / 'speed' / 'block_lists.json', versus.result_content('block_lists', claim, rows)
  )


if __name__ == '__main__':
  main()
