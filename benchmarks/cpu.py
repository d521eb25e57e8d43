"""How fast we are on a CPU, beside others: `python -m benchmarks.cpu [--only='train step, 4']`.

Every comparison is made anew, in turns (see versus.py), and kept after each turn in
results/speed/cpu.json: what is not finished when it is stopped is not lost. About 15 minutes on two
cores. `--only` runs the questions that begin like this and leaves the others as they were.
"""

import argparse
import importlib.util
import json

from benchmarks import train_step, versus
from benchmarks.record import RESULTS
from gpt_jax import records

FILE = RESULTS / 'speed' / 'cpu.json'
CLAIM = 'Speed on a CPU of two cores, against torch, transformers and CTranslate2'


def main():
  """Run the comparisons, keep them, print them."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--only', default='')
  parser.add_argument('--turns', type=int, default=5)
  arguments = parser.parse_args()
  FILE.parent.mkdir(exist_ok=True, parents=True)
  known = json.loads(FILE.read_text())['rows'] if FILE.exists() else {}
  found = {} if not arguments.only else known

  def keep(new):
    found.update(new)
    records.write_json(FILE, versus.content('cpu', CLAIM, found))

  chosen = [name for name in train_step.SHAPES if f'train step, {name}'.startswith(arguments.only)]
  train_step.rows(chosen, arguments.turns, keep)
  if importlib.util.find_spec('benchmarks.generate') and not chosen[: bool(arguments.only)]:
    from benchmarks import generate

    generate.rows(keep=lambda new: keep({f'generate, {k}': row for k, row in new.items()}))
  print('\n'.join(lines(found)))


def lines(found):
  """A line a peer: how many times as fast we are, and both medians."""
  for question, row in found.items():
    ours = row['rows']['gpt_jax']['median']
    for peer, ratio in row['ratios'].items():
      if ratio is None:
        yield f'{question}: {peer} is left out: {row["rows"][peer].get("missing", "not timed yet")}'
        continue
      value, (low, high) = ratio
      theirs = row['rows'][peer]['median']
      yield (
        f'{question}: {value:.2f}x {peer} ({low:.2f} to {high:.2f}), '
        f'{1e3 * ours:.1f} ms against {1e3 * theirs:.1f} ms'
      )


if __name__ == '__main__':
  main()
