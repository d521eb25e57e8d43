"""Score a text by a run and by the model that it began from: what did its training cost?

`python -m benchmarks.forgetting --workdir=RUN --text=BOOK.txt --name=NAME`, after `benchmarks.record`: cuts
the text into parts of --characters, scores the first --parts of them, and adds to results/NAME.json `text`:
bits per byte before and after, and their difference with a 95 % interval (bootstrap over parts).
"""

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks.record import RESULTS
from gpt_jax.evaluation import metrics, trained
from gpt_jax.runs import ancestry, records


def bits_per_byte(run, texts):
  """Return bits per byte of each text."""
  return np.array([score.bits_per_byte for score in run.score(texts)])


def main():
  """Write the comparison into a result file."""
  parser = argparse.ArgumentParser(description=__doc__)
  for name in ('workdir', 'text', 'name'):
    parser.add_argument(f'--{name}', required=True)
  parser.add_argument('--characters', type=int, default=2000)
  parser.add_argument('--parts', type=int, default=20)
  args = parser.parse_args()
  text = Path(args.text).read_text(encoding='latin-1')
  texts = [text[n * args.characters : (n + 1) * args.characters] for n in range(args.parts)]
  run = trained.load(args.workdir)
  after_N = bits_per_byte(run, texts)
  before_N = bits_per_byte(trained.load(*ancestry.parse_run(run.cfg.train.init_from)), texts)
  row = {
    'text': Path(args.text).name,
    'parts': args.parts,
    'characters': args.characters,
    'bits_per_byte_before': float(before_N.mean()),
    'bits_per_byte_after': float(after_N.mean()),
    'difference': float((after_N - before_N).mean()),
    'difference_interval': list(metrics.bootstrap_mean(after_N - before_N)),
  }
  print(row)
  path = RESULTS / f'{args.name}.json'
  content = json.loads(path.read_text()) | {'text': row}
  path.write_text(json.dumps(records.to_json(content), indent=1) + '\n')


if __name__ == '__main__':
  main()
